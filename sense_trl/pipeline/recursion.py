"""Recursive distillation put together: data, sampling, fine-tuning, evaluation, the table."""

from __future__ import annotations

import gc
import json
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table

from sense_trl._files import write_text_atomically
from sense_trl._version import __version__
from sense_trl.evaluation.evaluate import EvaluationReport, evaluate_sql
from sense_trl.generation.generator import SamplingConfig
from sense_trl.generation.transformers_generator import (
    TransformersGenerator,
    check_chat_template,
    load_tokenizer,
)
from sense_trl.pipeline.cpu import fastest_sampling_dtype, multiplies_bfloat16
from sense_trl.pipeline.pretrained import get_smollm2
from sense_trl.pipeline.progress import progress_callback, stage_bar
from sense_trl.pipeline.recursion_config import RecursionConfig
from sense_trl.pipeline.run_folder import (
    RunFolder,
    fingerprint_databases,
    fingerprint_file,
    fingerprint_model,
)
from sense_trl.pipeline.sampling import sample_candidates
from sense_trl.pipeline.task import DataArguments, TextToSQLTask, draw_questions, load_task
from sense_trl.questions import Question, split_questions
from sense_trl.schema import DatabaseSchema, format_schema
from sense_trl.synthesis.recursion import (
    BASE,
    DevScore,
    RecursionData,
    Round,
    TrainingRow,
    distill_recursively,
    get_best_round,
    has_fallen,
)
from sense_trl.verification.suite import SuiteVerifier
from sense_trl.verification.suite_instances import SuiteSettings
from sense_trl.verification.verifier import SQLVerifier

if TYPE_CHECKING:
    from sense_trl.database.profile import ForeignKeyColumns


def run_recursion(config: RecursionConfig, console: Console) -> Path:
    """Run the rounds, or what is left of them, and show their table.

    Args:
        config: all settings.
        console: where progress and the table are shown.

    Returns:
        Path of `rounds.json`.

    Raises:
        SenseTRLError: unusable input; what earlier rounds wrote stays.
    """
    # Questions and databases are checked before anything is downloaded or written.
    task, gold, dev_task, dev = _load_data(config)
    if config.model is None:
        with console.status("Preparing SmolLM2-135M-Instruct"):
            model = get_smollm2()
    else:
        model = Path(config.model)
        check_chat_template(load_tokenizer(model), model.name)
    output = Path(config.output_dir)
    _claim_output(config, model, [task, dev_task])
    console.print(
        f"{len(gold)} training questions on {len({q.db_id for q in gold})} database(s), {len(dev)} "
        f"dev questions; model {model.name}; output {output}",
        markup=False,
    )
    settings = SuiteSettings(
        num_instances=config.suite_size,
        max_candidates=max(SuiteSettings().max_candidates, 3 * config.suite_size),
    )
    keys = {db_id: get_foreign_keys(schema) for db_id, schema in task.schemas.items()}
    with (
        SQLVerifier(task.catalog) as verifier,
        SuiteVerifier(task.catalog, settings=settings, foreign_keys=keys) as suite_verifier,
        SQLVerifier(dev_task.catalog) as dev_verifier,
    ):
        rounds = distill_recursively(
            model,
            _Trainer(config, model, dev_task, dev, dev_verifier, console),
            RecursionData(
                gold,
                dev,
                {
                    db_id: format_schema(schema, style=config.schema_style)
                    for db_id, schema in task.schemas.items()
                },
                task.get_messages,
                task.dialect,
            ),
            config.get_settings(),
            output,
            verifier=verifier,
            suite_verifier=suite_verifier,
            on_round=lambda finished: console.print(_describe(finished), markup=False),
        )
    _show(rounds, console)
    best = get_best_round(rounds)
    reason = "dev accuracy fell" if has_fallen(rounds) else "all rounds are done"
    path = model if best.model == BASE else output / best.model
    console.print(f"Ended: {reason}. Best: round {best.number}, {path}", markup=False)
    for used in (task, dev_task):
        used.catalog.close()
    return output / "rounds.json"


def get_foreign_keys(schema: DatabaseSchema) -> list[ForeignKeyColumns]:
    """The foreign keys of a schema, one column at a time, as suites take them."""
    return [
        (table, column, key.referenced_table, referenced)
        for table, key in schema.foreign_keys
        for column, referenced in zip(key.columns, key.referenced_columns, strict=True)
    ]


# ---------------------------------------------------------------------- input


def _load_data(
    config: RecursionConfig,
) -> tuple[TextToSQLTask, list[Question], TextToSQLTask, list[Question]]:
    embedded = files("sense_trl") / "data" / "nycflights"
    arguments = DataArguments(
        database=config.database or str(embedded / "nycflights.sqlite"),
        questions=config.questions or str(embedded / "questions.jsonl"),
        tables_json=config.tables_json,
        schema_style=config.schema_style,
    )
    task = dev_task = load_task(arguments)
    if config.dev_questions is None:
        gold, dev = split_questions(
            task.questions,
            test_fraction=config.dev_fraction,
            seed=config.seed,
            dialect=task.dialect,
        )
    else:
        arguments.questions = config.dev_questions
        dev_task = load_task(arguments)
        gold, dev = list(task.questions), list(dev_task.questions)
    gold = draw_questions(
        gold, config.max_train_questions, config.seed, argument="max_train_questions"
    )
    dev = draw_questions(dev, config.max_dev_questions, config.seed, argument="max_dev_questions")
    return task, gold, dev_task, dev


def _claim_output(config: RecursionConfig, model: Path, tasks: Sequence[TextToSQLTask]) -> None:
    """Make the output folder this run's, or refuse one that holds something else."""
    settings: dict[str, Any] = asdict(config)
    for name in ("output_dir", "overwrite"):
        del settings[name]
    paths = sorted({task.catalog.path(db_id) for task in tasks for db_id in task.schemas})
    settings |= {
        "version": __version__,
        "model": fingerprint_model(model),
        "database": fingerprint_databases(paths),
    }
    given = [name for name in ("questions", "dev_questions", "tables_json") if settings[name]]
    inputs = [model, *paths, *(settings[name] for name in given)]
    settings |= {name: fingerprint_file(settings[name]) for name in given}
    folder = RunFolder(config.output_dir, "recurse", settings)
    if config.overwrite:
        folder.clear(inputs)
    folder.claim()


# ---------------------------------------------------------------------- the model


class _Trainer:
    """Samples, trains and evaluates with `transformers`; the `Learner` of the rounds."""

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
        import datasets

        from sense_trl.pipeline.training import train_sft

        done = folder / "metrics.json"
        if done.exists():
            return
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
        write_text_atomically(done, json.dumps(metrics, indent=1))
        for checkpoint in folder.glob("checkpoint-*"):
            shutil.rmtree(checkpoint)
        gc.collect()

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


# ---------------------------------------------------------------------- output


def _describe(finished: Round) -> str:
    dev = finished.dev
    accuracy = f"dev accuracy {100 * dev.execution_accuracy:.1f} %"
    interval = f"({100 * dev.low:.1f} to {100 * dev.high:.1f})"
    rows = f"{finished.num_gold_rows} gold and {finished.num_synthesized_rows} synthesised rows"
    return f"Round {finished.number}: {rows}, {accuracy} {interval}"


def _show(rounds: Sequence[Round], console: Console) -> None:
    """A column per round; what the critics left stands below what was written."""
    table = Table(title="Rounds of recursive distillation")
    table.add_column("")
    for finished in rounds:
        table.add_column(f"round {finished.number}", justify="right")
    for group in ("inventions", "answers"):
        counts: list[Any] = [getattr(finished, group) for finished in rounds]
        for name in counts[-1]:
            table.add_row(f"{group}: {name}", *(str(count.get(name, "")) for count in counts))
        table.add_section()
    table.add_row("gold rows", *(str(finished.num_gold_rows) for finished in rounds))
    table.add_row("synthesised rows", *(str(finished.num_synthesized_rows) for finished in rounds))
    table.add_section()
    devs = [finished.dev for finished in rounds]
    table.add_row("dev EX", *(f"{100 * dev.execution_accuracy:.1f} %" for dev in devs))
    table.add_row("95 % interval", *(f"{100 * dev.low:.1f} - {100 * dev.high:.1f}" for dev in devs))
    console.print(table)
