"""`TransformersLearner`: one model's part in recursive distillation, resumable stage by stage."""

from __future__ import annotations

import gc
import json
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from rich.console import Console

from sense_trl._files import holds_json, write_text_atomically
from sense_trl.checkpoints.starting_model import load_unquantized_model
from sense_trl.evaluation.evaluate import EvaluationReport, evaluate_sql
from sense_trl.generation.generator import SamplingConfig
from sense_trl.generation.transformers_generator import TransformersGenerator
from sense_trl.jobs.recursion_config import RecursionConfig
from sense_trl.questions import Question
from sense_trl.steps.cpu import fastest_sampling_dtype
from sense_trl.steps.progress import progress_callback, stage_bar
from sense_trl.steps.sampling import sample_candidates
from sense_trl.steps.training import get_unattended_options, train_sft
from sense_trl.synthesis.recursive.recursion import DevScore
from sense_trl.synthesis.recursive.training_rows import TrainingRow
from sense_trl.task import TextToSQLTask
from sense_trl.verification.verifier import SQLVerifier


class TransformersLearner:
    """Samples, trains and evaluates with `transformers`: a `Learner` for `distill_recursively`.

    Args:
        config: how; its output folder is not used.
        base_model: what every training starts from.
        dev_task: prompts for the dev questions.
        dev: questions to evaluate on.
        verifier: over their databases.
        console: where progress is shown.
    """

    def __init__(
        self,
        config: RecursionConfig,
        base_model: Path,
        dev_task: TextToSQLTask,
        dev: Sequence[Question],
        verifier: SQLVerifier,
        console: Console,
    ) -> None:
        self.config = config
        self.base_model = base_model
        self.dev_task = dev_task
        self.dev = dev
        self.verifier = verifier
        self.console = console

    def get_generator(self, model: Path) -> TransformersGenerator:
        """Load a model to sample from."""
        return TransformersGenerator(
            model, batch_size=self.config.batch_size, dtype=fastest_sampling_dtype()
        )

    @contextmanager
    def open_bar(self, total: int) -> Iterator[Callable[[int], object]]:
        """Show the progress of sampling for `total` prompts."""
        with stage_bar(self.console, "Sample", total) as bar:
            yield bar.advance

    def train(self, rows: Sequence[TrainingRow], folder: Path) -> None:
        """Fine-tune the base model into `folder`, unless its metrics, written last, are there."""
        if not holds_json(folder / "metrics.json"):
            self._train(rows, folder)
            gc.collect()
        # Also those that a crash left behind a finished training.
        for checkpoint in folder.glob("checkpoint-*"):
            shutil.rmtree(checkpoint)

    def evaluate(self, model: Path, folder: Path) -> DevScore:
        """Answer the dev questions greedily and execute the answers."""
        path = folder / "evaluation.json"
        if not path.exists():
            generator = TransformersGenerator(model, batch_size=self.config.batch_size)
            with stage_bar(self.console, f"Evaluate {folder.name}", len(self.dev)) as bar:
                file = sample_candidates(
                    self.dev_task,
                    self.dev,
                    generator,
                    SamplingConfig(max_new_tokens=self.config.max_new_tokens),
                    folder / "predictions.jsonl",
                    source="weak",
                    chunk_size=self.config.batch_size,
                    on_progress=bar.advance,
                )
            predictions = {candidate.question_id: candidate.sql for candidate in file}
            evaluate_sql(self.dev, predictions, self.verifier, name=folder.name).save(path)
        report = EvaluationReport.load(path)
        interval = report.interval
        return DevScore(report.execution_accuracy, interval.low, interval.high, len(self.dev))

    def _train(self, rows: Sequence[TrainingRow], folder: Path) -> None:
        import datasets

        from sense_trl.trainers import SenseSFTConfig

        dataset = datasets.Dataset.from_list(
            [
                {
                    "db_id": row.db_id,
                    "task": row.task,
                    "prompt": row.prompt,
                    "completion": [{"role": "assistant", "content": row.completion}],
                }
                for row in rows
            ]
        )
        config = self.config
        arguments = SenseSFTConfig(
            learning_rate=config.learning_rate,
            max_length=config.max_length,
            **get_unattended_options(
                folder,
                num_rows=len(rows),
                num_epochs=config.num_epochs,
                batch_size=config.train_batch_size,
                # The examples of inventions are shared as well.
                group_by_columns=["db_id", "task"],
                seed=config.seed,
            ),
        )
        with stage_bar(self.console, f"Train {folder.parent.name}", arguments.max_steps) as bar:
            start = load_unquantized_model(
                self.base_model, use_cpu=arguments.use_cpu, lora_r=config.lora_r
            )
            metrics = train_sft(start, dataset, arguments, callbacks=[progress_callback(bar)])
        write_text_atomically(folder / "metrics.json", json.dumps(metrics, indent=1))
