"""`sense-trl synth`: make training questions where there are none."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from sense_trl.cli.parser import Command
from sense_trl.cli.terminal import name_first
from sense_trl.errors import InputError
from sense_trl.options import (
    BackendOptions,
    DatabaseOptions,
    EndpointOptions,
    ExecutionOptions,
    GeneratorOptions,
    PromptOptions,
    option,
    option_of,
)
from sense_trl.synthesis.explore.config import ExplorationConfig
from sense_trl.synthesis.strong.config import StrongDataConfig

if TYPE_CHECKING:
    from sense_trl.generation.openai_generator import OpenAIGenerator
    from sense_trl.synthesis.explore.folder import ExplorationResult, ModelOptions


@dataclass(kw_only=True)
class OutputOptions:
    """Options of every synthesis: the folder, and evaluation questions to stay clear of."""

    output: str = option("Folder for the data set.")
    exclude: list[str] = option(
        "Evaluation questions: what is close to one of them is left out.",
        default_factory=list,
        metavar="FILE",
    )
    num_workers: int | None = option_of(ExecutionOptions, "num_workers")


# ------------------------------------------------------------------------------- explore


@dataclass(kw_only=True)
class ExploreOptions(OutputOptions, BackendOptions, DatabaseOptions):
    """Options of `synth explore`: the databases to explore, and seed questions."""

    db_ids: list[str] | None = option("These databases only.", default=None, metavar="DB_ID")
    tables_json: str | None = option_of(PromptOptions, "tables_json")
    seed_questions: str | None = option(
        "Training questions with gold SQL, for templates and for which columns go together.",
        default=None,
    )


@dataclass(kw_only=True)
class WritingOptions(EndpointOptions):
    """A model that writes the questions and their SQL."""

    temperature: float = option_of(StrongDataConfig, "temperature", default=0.8)
    max_new_tokens: int = option_of(GeneratorOptions, "max_new_tokens", default=2048)
    round_trip_samples: int = option(
        "Answers to each question, one of which must return what its SQL returns; 0: none.",
        default=0,
    )


def explore(
    options: ExploreOptions, config: ExplorationConfig, endpoint: WritingOptions, console: Any
) -> None:
    """Run the action."""
    from sense_trl.database.catalog import DatabaseCatalog
    from sense_trl.questions import load_questions
    from sense_trl.schema.schema import load_spider_schemas
    from sense_trl.steps.progress import stage_bar
    from sense_trl.steps.verification import open_backend
    from sense_trl.synthesis.explore.folder import explore_databases

    model = _get_model(endpoint, config.seed)
    seeds, tables_json = options.seed_questions, options.tables_json
    with DatabaseCatalog.from_path(options.database) as catalog:
        only = catalog.db_ids[0] if len(catalog) == 1 else None
        # What is close to one of these is left out, whatever database it is of.
        excluded = [
            question
            for path in options.exclude
            for question in load_questions(path, default_db_id=only or "unknown")
        ]
        number = len(options.db_ids or catalog.db_ids)
        with (
            open_backend(catalog, options, options.num_workers) as backend,
            stage_bar(console, "Exploring", number) as bar,
        ):
            result = explore_databases(
                catalog,
                options.output,
                config,
                db_ids=options.db_ids,
                schemas=load_spider_schemas(tables_json) if tables_json else None,
                seeds=load_questions(seeds, default_db_id=only) if seeds else (),
                excluded=excluded,
                model=model,
                num_workers=options.num_workers,
                on_progress=bar.advance,
                backend=None if options.backend == "local" else backend,
            )
    console.print(f"data set: {options.output}", soft_wrap=True, highlight=False, markup=False)
    print(_summarize_exploration(result))  # noqa: T201 - the result of the command


def _get_generator(options: EndpointOptions) -> OpenAIGenerator | None:
    """The model that the options name.

    Returns:
        None where neither `model_name_or_path` nor `base_url` was given.

    Raises:
        InputError: one of the two was.
    """
    if options.model_name_or_path is None and options.base_url is None:
        return None
    for name in ("model_name_or_path", "base_url"):
        if getattr(options, name) is None:
            raise InputError(
                f"`{name}` is missing: a model needs both --model_name_or_path and --base_url. "
                "Leave both out to work without one."
            )
    assert options.model_name_or_path is not None and options.base_url is not None
    from sense_trl.generation.openai_generator import OpenAIGenerator

    return OpenAIGenerator(
        options.model_name_or_path,
        options.base_url,
        api_key_env=options.api_key_env,
        concurrency=options.concurrency,
        timeout_s=options.request_timeout_s,
    )


def _get_model(endpoint: WritingOptions, seed: int) -> ModelOptions | None:
    generator = _get_generator(endpoint)
    if generator is None:
        return None
    from sense_trl.generation.generator import SamplingConfig
    from sense_trl.synthesis.explore.folder import ModelOptions

    sampling = SamplingConfig(
        temperature=endpoint.temperature,
        max_new_tokens=endpoint.max_new_tokens,
        seed=seed,
    )
    return ModelOptions(generator, sampling, endpoint.round_trip_samples)


def _summarize_exploration(result: ExplorationResult) -> str:
    """Counts, those of what went out by reason."""
    account = result.account
    lines = [
        f"{'databases':<32}{len(result.num_examples):>7}",
        f"{'attempts':<32}{account.num_attempts:>7}",
        f"{'questions':<32}{sum(result.num_examples.values()):>7}",
    ]
    removed = {"not made": account.not_made, **account.filters.removed}
    for name, reasons in removed.items():
        if reasons:
            lines.append(f"{name:<32}{reasons.total():>7}")
            lines += [f"  {reason:<30}{count:>7}" for reason, count in reasons.most_common()]
    for reason, left_out in (
        ("that cannot be read", result.seeds.unreadable),
        ("close to an evaluation question", result.seeds.too_close),
    ):
        if left_out:
            lines.append(
                f"left out: {len(left_out)} seed questions {reason}: {name_first(left_out)}"
            )
    if result.replaced:
        lines.append(
            f"replaced: what the folder held about {len(result.replaced)} databases had been made "
            "with other settings, seeds or evaluation questions"
        )
    fruitless = [db_id for db_id, count in result.num_examples.items() if not count]
    if fruitless:
        lines.append(
            f"no question about {', '.join(fruitless)}: without rows or tables, or all left out "
            "(views, and tables of other schemas than main, are not asked about)"
        )
    return "\n".join(lines)


# -------------------------------------------------------------------------------- strong


@dataclass(kw_only=True)
class StrongOptions(OutputOptions):
    """Options of `synth strong`: the examples in its prompts."""

    examples: str = option("Training questions with gold SQL, to show two of them.")


def strong(
    options: StrongOptions, endpoint: EndpointOptions, config: StrongDataConfig, console: Any
) -> None:
    """Run the action."""
    from sense_trl.questions import load_questions
    from sense_trl.steps.progress import stage_bar
    from sense_trl.synthesis.strong.data import build_strong_data

    generator = _get_generator(endpoint)
    if generator is None:
        raise InputError("`model_name_or_path` and `base_url` are missing; name the strong model.")
    # Which database a question is of does not matter: each answer invents its own.
    examples = load_questions(options.examples, default_db_id="unknown")
    excluded = [
        question
        for path in options.exclude
        for question in load_questions(path, default_db_id="unknown")
    ]
    with stage_bar(console, "Asking", config.num_calls) as bar:
        result = build_strong_data(
            generator,
            examples,
            options.output,
            config,
            excluded=excluded,
            num_workers=options.num_workers,
            on_progress=bar.advance,
        )
    usage = generator.usage
    console.print(
        f"{usage.num_requests} requests, {usage.num_prompt_tokens} tokens read, "
        f"{usage.num_completion_tokens} written; data set: {options.output}",
        soft_wrap=True,
        highlight=False,
        markup=False,
    )
    print(_summarize_strong_data(result.account))  # noqa: T201 - the result of the command


def _summarize_strong_data(account: dict[str, Any]) -> str:
    """Counts by filter and reason."""
    total = account["num_examples"]
    kept = account["num_kept"]
    lines = [f"{'calls':<32}{total:>7}", f"{'kept':<32}{kept:>7}{100 * kept / total:>8.1f} %"]
    for name, reasons in account["removed"].items():
        lines.append(f"{name:<32}{sum(reasons.values()):>7}")
        lines += [f"  {reason:<30}{count:>7}" for reason, count in reasons.items()]
    return "\n".join(lines)


COMMAND: Final = Command(
    "synth",
    "make training questions with SQL",
    description="Make training questions with SQL, checked by execution.",
    actions=(
        Command(
            "explore",
            "make questions about databases that have none (DB-Explore), with or without a model",
            explore,
            (ExploreOptions, ExplorationConfig, WritingOptions),
            description="Walk over the schema of each database, draw queries from templates of "
            "seed queries and from a grammar, keep what runs and returns something, and write the "
            "question from the query; or, with --model_name_or_path, have a model write both. An "
            "interrupted run continues when the same command is given again.",
        ),
        Command(
            "strong",
            "let a strong model invent databases with questions (SENSE's strong data)",
            strong,
            (StrongOptions, EndpointOptions, StrongDataConfig),
            description="Ask a model behind an OpenAI-compatible server for a domain, a schema, a "
            "question and its SQL, two training examples at a time; make each database with rows; "
            "keep what runs, answers, is new, and leaks no evaluation set. An interrupted run "
            "continues when the same command is given again.",
        ),
    ),
)
