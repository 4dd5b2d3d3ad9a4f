"""`TransformersLearner`: one model's part in recursive distillation, resumable stage by stage."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console

from sense_trl.evaluation.evaluate import EvaluationReport
from sense_trl.generation.generator import SamplingConfig
from sense_trl.generation.transformers_generator import TransformersGenerator
from sense_trl.jobs.recursion_config import RecursionConfig
from sense_trl.questions import Question
from sense_trl.steps import work
from sense_trl.steps.cpu import fastest_sampling_dtype
from sense_trl.steps.progress import stage_bar
from sense_trl.steps.training import get_unattended_options, train_unattended
from sense_trl.synthesis.recursive.recursion import DevScore
from sense_trl.synthesis.recursive.training_rows import TrainingRow
from sense_trl.task import TextToSQLTask
from sense_trl.verification.verifier import SQLVerifier


@dataclass(frozen=True)
class TransformersLearner:
    """Samples, trains and evaluates with `transformers`: a `Learner` for `distill_recursively`.

    Attributes:
        config: how; its output folder is not used.
        base_model: what every training starts from.
        dev_task: prompts for the dev questions.
        dev: questions to evaluate on.
        verifier: over their databases.
        console: where progress is shown.
    """

    config: RecursionConfig
    base_model: Path
    dev_task: TextToSQLTask
    dev: Sequence[Question]
    verifier: SQLVerifier
    console: Console

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

        train_unattended(
            self.base_model,
            dataset,
            arguments,
            self.dev_task.writer.style,
            self.console,
            f"Train {folder.parent.name}",
            lora_r=config.lora_r,
        )

    def evaluate(self, model: Path, folder: Path) -> DevScore:
        """Answer the dev questions greedily and execute the answers."""
        path = folder / "evaluation.json"
        if path.exists():
            report = EvaluationReport.load(path)
        else:
            file = work.predict(
                self.dev_task,
                self.dev,
                lambda: TransformersGenerator(model, batch_size=self.config.batch_size),
                SamplingConfig(max_new_tokens=self.config.max_new_tokens),
                folder / "predictions.jsonl",
                self.console,
                f"Predict {folder.name}",
                batch_size=self.config.batch_size,
            )
            report = work.evaluate(
                self.dev, file, self.verifier, path, self.console, name=folder.name
            )
        interval = report.interval
        return DevScore(report.execution_accuracy, interval.low, interval.high, len(self.dev))
