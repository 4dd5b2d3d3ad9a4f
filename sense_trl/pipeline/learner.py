"""`TransformersLearner`: one model's part in recursive distillation, resumable stage by stage."""

from __future__ import annotations

import gc
import json
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rich.console import Console

from sense_trl._files import write_text_atomically
from sense_trl.evaluation.evaluate import EvaluationReport, evaluate_sql
from sense_trl.generation.generator import SamplingConfig
from sense_trl.generation.transformers_generator import TransformersGenerator
from sense_trl.pipeline.cpu import fastest_sampling_dtype, multiplies_bfloat16
from sense_trl.pipeline.progress import progress_callback, stage_bar
from sense_trl.pipeline.recursion_config import RecursionConfig
from sense_trl.pipeline.sampling import sample_candidates
from sense_trl.pipeline.task import TextToSQLTask
from sense_trl.questions import Question
from sense_trl.synthesis.recursion import DevScore
from sense_trl.synthesis.training_rows import TrainingRow
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
        if not (folder / "metrics.json").exists():
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

        from sense_trl.pipeline.training import train_sft

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
        arguments = self._get_arguments(len(rows), folder)
        with stage_bar(self.console, f"Train {folder.parent.name}", arguments.max_steps) as bar:
            start = self._load(arguments.use_cpu)
            metrics = train_sft(start, dataset, arguments, callbacks=[progress_callback(bar)])
        write_text_atomically(folder / "metrics.json", json.dumps(metrics, indent=1))

    def _get_arguments(self, num_rows: int, folder: Path) -> Any:
        import torch

        from sense_trl.trainers import SenseSFTConfig

        config = self.config
        steps = max(1, round(config.num_epochs * num_rows / config.train_batch_size))
        return SenseSFTConfig(
            output_dir=str(folder),
            max_steps=steps,
            num_train_epochs=config.num_epochs,
            learning_rate=config.learning_rate,
            max_length=config.max_length,
            per_device_train_batch_size=config.train_batch_size,
            # What a batch shares is computed once: the schema, and the examples of inventions.
            group_by_columns=["db_id", "task"],
            use_cpu=not torch.cuda.is_available(),
            bf16=multiplies_bfloat16(),
            gradient_checkpointing=torch.cuda.is_available(),
            lr_scheduler_type="cosine",
            warmup_steps=max(1, steps // 10),
            logging_steps=max(1, steps // 20),
            save_steps=max(1, steps // 4),
            save_total_limit=1,
            seed=config.seed,
            report_to="none",
            disable_tqdm=True,
        )

    def _load(self, use_cpu: bool) -> Any:
        from trl import ModelConfig

        from sense_trl.pipeline.starting_model import load_starting_model

        lora: dict[str, Any] = {}
        if self.config.lora_r is not None:
            lora = {
                "use_peft": True,
                "lora_r": self.config.lora_r,
                "lora_alpha": 2 * self.config.lora_r,
                "lora_dropout": 0.0,
                "lora_target_modules": ["all-linear"],
            }
        model_config = ModelConfig(
            model_name_or_path=str(self.base_model),
            # All weights are trained in 32 bits; an adapter is, whatever its base has.
            dtype="auto" if lora else "float32",
            **lora,
        )
        return load_starting_model(model_config, use_cpu=use_cpu)
