"""Recursive distillation put together: data, sampling, fine-tuning, evaluation, the table."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from sense_trl.chat_template import check_chat_template
from sense_trl.errors import InputError
from sense_trl.generation.transformers_generator import load_tokenizer
from sense_trl.jobs.learner import TransformersLearner
from sense_trl.jobs.output import claim_output
from sense_trl.jobs.pretrained import get_smollm2
from sense_trl.jobs.recursion_config import RecursionConfig
from sense_trl.options import DataArguments, PromptOptions, get_values
from sense_trl.questions import Question, split_questions
from sense_trl.sql.dialects import Dialects
from sense_trl.steps.prompting import load_styled_task
from sense_trl.synthesis.filters.contamination import find_evaluated
from sense_trl.synthesis.recursive.recursion import (
    BASE,
    RecursionData,
    Round,
    distill_recursively,
    get_best_round,
    has_fallen,
)
from sense_trl.task import TextToSQLTask, draw_questions
from sense_trl.verification.suite.instances import SuiteSettings
from sense_trl.verification.suite.verifier import SuiteVerifier, check_suite_databases
from sense_trl.verification.verifier import SQLVerifier


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
    check_suite_databases(task.catalog)
    if config.model is None:
        model = get_smollm2(on_download=console.print)
    else:
        model = Path(config.model)
        check_chat_template(load_tokenizer(model), model.name)
    output = Path(config.output_dir)
    claim_output("recurse", config, model, [task, dev_task])
    console.print(
        f"{len(gold)} training questions on {len({q.db_id for q in gold})} database(s), {len(dev)} "
        f"dev questions; model {model.name}; output {output}",
        markup=False,
    )
    settings = SuiteSettings(
        num_instances=config.suite_size,
        max_candidates=max(SuiteSettings().max_candidates, 3 * config.suite_size),
    )
    keys = {db_id: schema.foreign_key_columns for db_id, schema in task.schemas.items()}
    with (
        SQLVerifier(task.catalog) as verifier,
        SuiteVerifier(task.catalog, settings=settings, foreign_keys=keys) as suite_verifier,
        SQLVerifier(dev_task.catalog) as dev_verifier,
    ):
        rounds = distill_recursively(
            model,
            TransformersLearner(config, model, dev_task, dev, dev_verifier, console),
            RecursionData(
                gold,
                dev,
                {db_id: task.writer.get_schema_text(db_id) for db_id in task.schemas},
                task.get_messages,
                task.catalog.dialect,
            ),
            config,
            output,
            verifier=verifier,
            suite_verifier=suite_verifier,
            # Enough prompts to fill a batch: what a crash can cost is one chunk.
            chunk_size=max(1, config.batch_size // config.num_samples),
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


# ---------------------------------------------------------------------- input


def _load_data(
    config: RecursionConfig,
) -> tuple[TextToSQLTask, list[Question], TextToSQLTask, list[Question]]:
    database, questions = config.get_data_paths()
    arguments = DataArguments(
        database,
        questions,
        **get_values(PromptOptions, config),
        max_unusable_fraction=config.max_unusable_fraction,
    )
    task = dev_task = load_styled_task(arguments, config.model)
    if config.dev_questions is None:
        gold, dev = split_questions(
            task.questions,
            test_fraction=config.dev_fraction,
            seed=config.seed,
            dialect=task.catalog.dialect,
        )
    else:
        arguments.questions = config.dev_questions
        dev_task = load_styled_task(arguments, config.model)
        gold, dev = list(task.questions), list(dev_task.questions)
        _check_apart(gold, dev, task.catalog.dialect)
    gold = draw_questions(
        gold, config.max_train_questions, config.seed, argument="max_train_questions"
    )
    dev = draw_questions(dev, config.max_dev_questions, config.seed, argument="max_dev_questions")
    return task, gold, dev_task, dev


def _check_apart(gold: Sequence[Question], dev: Sequence[Question], dialect: Dialects) -> None:
    """Refuse questions that would be trained and evaluated on, however they are spelled."""
    for trained, evaluated in find_evaluated(gold, dev, dialect=dialect).items():
        raise InputError(
            f"`questions` holds {trained}, which `dev_questions` has as {evaluated}: the same "
            "question or the same SQL about the same database. What a model was trained on does "
            "not measure it: leave it out of one of the two files."
        )


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
