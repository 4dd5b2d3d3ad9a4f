"""`sense-trl teacher`: ask a teacher before training, and look at what it said."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from sense_trl.cli.parser import Command
from sense_trl.errors import InputError
from sense_trl.options import (
    ChatTemplateOptions,
    DataArguments,
    GeneratorOptions,
    PromptOptions,
    get_values,
    option,
    option_of,
)

if TYPE_CHECKING:
    from sense_trl.trainers.teachers.cache import TeacherCache


@dataclass(kw_only=True)
class CacheOptions(ChatTemplateOptions, PromptOptions):
    """Options of `teacher cache`: the teacher, its rows, and the tokens kept per position."""

    model_name_or_path: str = option_of(GeneratorOptions, "model_name_or_path")
    output: str = option("Folder of the cache.")
    rows: str | None = option(
        "Dataset as .parquet or JSON Lines, with prompt and completion, or prompt and chosen (the "
        "pairs.parquet of a build); instead of --questions.",
        default=None,
    )
    questions: str | None = option_of(DataArguments, "questions", default=None)
    database: str | None = option_of(DataArguments, "database", default=None)
    split: str | None = option_of(DataArguments, "split")
    tokenizer: str | None = option(
        "The student's folder or hub id, whose chat template writes the prompts; the teacher's if "
        "not given.",
        default=None,
    )
    top_k: int | None = option("Likeliest tokens to keep; 16 if not given.", default=None)
    num_samples: int | None = option(
        "Draw so many tokens instead: an unbiased estimate of forward_kl, and of no other "
        "divergence.",
        default=None,
    )
    temperature: float = option("That of the training.", default=1.0)
    seed: int = option("Seed of the draws.", default=0)
    batch_size: int = option("Answers per batch.", default=8)
    generation_dtype: str = option_of(GeneratorOptions, "generation_dtype")
    load_in_4bit: bool = option_of(GeneratorOptions, "load_in_4bit")

    def __post_init__(self) -> None:
        if self.top_k is not None and self.num_samples is not None:
            raise InputError(
                f"`top_k` is {self.top_k} and `num_samples` {self.num_samples}; expected one of "
                "them."
            )


def cache(options: CacheOptions, console: Any) -> None:
    """Run `sense-trl teacher cache`."""
    from sense_trl.steps.progress import stage_bar
    from sense_trl.steps.teacher import cache_teacher

    rows = _load_rows(options)
    names = (
        "output", "tokenizer", "num_samples", "temperature", "seed", "batch_size", "load_in_4bit",
        "fold_system_message", "template_date",
    )  # fmt: skip
    with stage_bar(console, "Asking the teacher", len(rows)) as bar:
        found = cache_teacher(
            options.model_name_or_path,
            rows,
            top_k=16 if options.top_k is None else options.top_k,
            dtype=options.generation_dtype,
            on_progress=bar.advance,
            **{name: getattr(options, name) for name in names},
        )
    print(_describe(found))  # noqa: T201 - the result of the command


def _load_rows(options: CacheOptions) -> list[dict[str, Any]]:
    from sense_trl.steps.prompting import load_styled_task
    from sense_trl.steps.teacher import load_answers

    if (options.rows is None) == (options.questions is None):
        raise InputError(
            "Expected either `--rows`, a dataset, or `--questions` with `--database`. Give one of "
            "them."
        )
    if options.questions is None:
        assert options.rows is not None, "one of the two is given"
        return load_answers(options.rows)
    if options.database is None:
        raise InputError("`--database` is missing; prompts hold the schema. Give the databases.")
    data = DataArguments(
        options.database,
        options.questions,
        split=options.split,
        **get_values(PromptOptions, options),
    )
    # Prompts are those of the student's training.
    task = load_styled_task(data, options.tokenizer, options.model_name_or_path)
    return task.prompt_completion_rows(task.questions)


@dataclass
class InfoOptions:
    """Options of `teacher info`: the cache to describe."""

    cache: str = option("Folder of a cache.", positional=True)


def info(options: InfoOptions, console: Any) -> None:
    """Run `sense-trl teacher info`."""
    from sense_trl.trainers.teachers.cache import TeacherCache

    print(_describe(TeacherCache(options.cache)))  # noqa: T201 - the result of the command


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


COMMAND: Final = Command(
    "teacher",
    "keep what a teacher says of answers, for training without it",
    description="Distributions of a teacher over the tokens of given answers, on disk.",
    actions=(
        Command(
            "cache",
            "ask a teacher about answers",
            cache,
            (CacheOptions,),
            description="Ask a teacher about every token of the answers to questions (their gold "
            "SQL), or of the rows of a dataset, and keep its likeliest tokens. Training takes the "
            "folder as `teacher_cache`. When interrupted, the same command continues; answers can "
            "be added later.",
        ),
        Command(
            "info",
            "say what a cache holds",
            info,
            (InfoOptions,),
            description="Print what a cache holds.",
        ),
    ),
)
