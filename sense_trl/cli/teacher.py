"""`sense-trl teacher`: ask a teacher before training, and look at what it said."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

from sense_trl.errors import InputError

if TYPE_CHECKING:
    from sense_trl.trainers.teachers.cache import TeacherCache

__all__ = ["add_parser", "run"]


def add_parser(commands: Any) -> None:
    """Add the command and its flags; imports nothing heavy."""
    parser: argparse.ArgumentParser = commands.add_parser(
        "teacher",
        help="keep what a teacher says of answers, for training without it",
        description="Distributions of a teacher over the tokens of given answers, on disk.",
    )
    actions = parser.add_subparsers(dest="action", required=True, metavar="ACTION")
    cache: argparse.ArgumentParser = actions.add_parser(
        "cache",
        help="ask a teacher about answers",
        description="Ask a teacher about every token of the answers to questions (their gold SQL), "
        "or of the rows of a dataset, and keep its likeliest tokens. Training takes the folder as "
        "`teacher_cache`. When interrupted, the same command continues; answers can be added "
        "later.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    cache.add_argument("--model", required=True, help="the teacher: a folder, or a hub id")
    cache.add_argument("--output", required=True, help="folder of the cache")
    _add_row_arguments(cache)
    _add_teacher_arguments(cache)
    info: argparse.ArgumentParser = actions.add_parser(
        "info", help="say what a cache holds", description="Print what a cache holds."
    )
    info.add_argument("cache", help="folder of a cache")


def _add_row_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--rows",
        default=None,
        help="dataset as .parquet or JSON Lines, with prompt and completion, or prompt and chosen "
        "(the pairs.parquet of a build); instead of --questions",
    )
    parser.add_argument("--questions", default=None, help="questions with gold SQL")
    parser.add_argument("--database", default=None, help="the databases of the questions")
    parser.add_argument("--tables-json", default=None, help="Spider's tables.json, for prompts")
    parser.add_argument("--schema-style", default="compact", help="how prompts write a schema")
    parser.add_argument("--split", default=None, help="only questions of this split")


def _add_teacher_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--tokenizer",
        default=None,
        help="the student's folder or hub id, whose chat template writes the prompts; the "
        "teacher's if not given",
    )
    parser.add_argument(
        "--fold-system-message",
        action="store_true",
        help="put the system's text in front of the user's, as in the student's training",
    )
    parser.add_argument(
        "--template-date",
        default=None,
        help="day that a chat template which writes the date is told, e.g. 2026-11-29; that of the "
        "cache, or today, if not given",
    )
    kept = parser.add_mutually_exclusive_group()
    kept.add_argument("--top-k", type=int, default=16, help="likeliest tokens to keep")
    kept.add_argument(
        "--num-samples",
        type=int,
        default=None,
        help="draw so many tokens instead: an unbiased estimate of forward_kl, and of no other "
        "divergence",
    )
    parser.add_argument("--temperature", type=float, default=1.0, help="that of the training")
    parser.add_argument("--seed", type=int, default=0, help="of the draws")
    parser.add_argument("--batch-size", type=int, default=8, help="answers per batch")
    parser.add_argument("--dtype", default="auto", help="type of the teacher's weights")
    parser.add_argument("--load-in-4bit", action="store_true", help="hold the teacher in 4 bits")


def run(arguments: dict[str, Any], console: Any) -> int:
    """Run the command.

    Returns:
        0 when all is done.

    Raises:
        SenseTRLError: unusable input (exit code 2).
    """
    from sense_trl.trainers.teachers.cache import TeacherCache

    if arguments.pop("action") == "info":
        cache = TeacherCache(arguments["cache"])
    else:
        cache = _cache(arguments, console)
    print(_describe(cache))  # noqa: T201 - the result of the command
    return 0


def _cache(arguments: dict[str, Any], console: Any) -> TeacherCache:
    from sense_trl.steps.progress import stage_bar
    from sense_trl.steps.teacher import cache_teacher

    rows = _load_rows(arguments)
    names = (
        "output", "tokenizer", "top_k", "num_samples", "temperature", "seed", "batch_size",
        "dtype", "load_in_4bit", "fold_system_message", "template_date",
    )  # fmt: skip
    options = {name: arguments[name] for name in names}
    with stage_bar(console, "Asking the teacher", len(rows)) as bar:
        return cache_teacher(arguments["model"], rows, on_progress=bar.advance, **options)


def _load_rows(arguments: dict[str, Any]) -> list[dict[str, Any]]:
    from sense_trl.steps.teacher import load_answers
    from sense_trl.task import DataArguments, load_task

    data = {
        name: arguments[name]
        for name in ("questions", "database", "tables_json", "schema_style", "split")
    }
    if (arguments["rows"] is None) == (arguments["questions"] is None):
        raise InputError(
            "Expected either `--rows`, a dataset, or `--questions` with `--database`. Give one of "
            "them."
        )
    if arguments["rows"] is not None:
        return load_answers(arguments["rows"])
    if arguments["database"] is None:
        raise InputError("`--database` is missing; prompts hold the schema. Give the databases.")
    task = load_task(DataArguments(**data))
    return task.prompt_completion_rows(task.questions)


def _describe(cache: TeacherCache) -> str:
    settings = cache.settings
    tokens = cache.num_completion_tokens
    kept = f"{settings.top_k} likeliest tokens and the rest"
    if settings.num_samples:
        kept = f"{settings.num_samples} samples, seed {settings.seed}"
    facts = {
        "teacher": settings.teacher,
        "kept": kept,
        "temperature": f"{settings.temperature:g}",
        "vocabulary": f"{settings.num_tokens:,}",
        "answers": f"{len(cache):,}",
        "tokens": f"{tokens:,}",
        "bytes": f"{cache.num_bytes:,} ({cache.num_bytes / max(tokens, 1):.1f} a token)",
    }
    return "\n".join(f"{name:<16}{value}" for name, value in facts.items())
