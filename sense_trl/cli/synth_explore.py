"""`sense-trl synth explore`: questions about databases that nobody has asked anything yet."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

from sense_trl.cli.arguments import (
    add_dataclass_arguments,
    add_endpoint_arguments,
    name_first,
    take_generator,
)

if TYPE_CHECKING:
    from sense_trl.synthesis.explore.folder import ExplorationResult, ModelOptions

__all__ = ["add_parser", "run"]


def add_parser(actions: Any) -> None:
    """Add the action and its flags; imports nothing heavy."""
    from sense_trl.synthesis.explore.config import ExplorationConfig

    parser: argparse.ArgumentParser = actions.add_parser(
        "explore",
        help="make questions about databases that have none (DB-Explore), with or without a model",
        description="Walk over the schema of each database, draw queries from templates of seed "
        "queries and from a grammar, keep what runs and returns something, and write the question "
        "from the query; or, with --model, have a model write both. An interrupted run continues "
        "when the same command is given again.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument(
        "--database",
        required=True,
        help="a database file (.sqlite, .db, .duckdb), a folder of them, or a Spider or BIRD root",
    )
    parser.add_argument("--output", required=True, help="folder for the data set")
    parser.add_argument(
        "--db-ids", nargs="+", default=None, metavar="DB_ID", help="these databases only"
    )
    parser.add_argument(
        "--tables-json",
        default=None,
        help="schemas in Spider's format: foreign keys that the databases do not declare",
    )
    parser.add_argument(
        "--seed-questions",
        default=None,
        help="training questions with gold SQL, for templates and for which columns go together",
    )
    parser.add_argument(
        "--exclude",
        nargs="+",
        default=[],
        metavar="FILE",
        help="evaluation questions: what is close to one of them is left out",
    )
    parser.add_argument("--num-workers", type=int, default=None, help="processes that run the SQL")
    parser.add_argument(
        "--per-database",
        dest="num_per_database",
        type=int,
        default=argparse.SUPPRESS,
        help="short for --num-per-database",
    )
    add_dataclass_arguments(parser, ExplorationConfig)
    model = parser.add_argument_group("a model behind an OpenAI-compatible server")
    add_endpoint_arguments(model, required=False)
    model.add_argument("--temperature", type=float, default=0.8, help="of the model's answers")
    model.add_argument(
        "--max-new-tokens", type=int, default=2048, help="longest answer of the model"
    )
    model.add_argument(
        "--round-trip-samples",
        type=int,
        default=0,
        help="answers to each question, one of which must return what its SQL returns; 0: none",
    )


def run(arguments: dict[str, Any], console: Any) -> int:
    """Run the action.

    Returns:
        0 when all databases are done, however much is kept.

    Raises:
        SenseTRLError: unusable input, or a server that does not answer (exit code 2).
    """
    from sense_trl.database.catalog import DatabaseCatalog
    from sense_trl.questions import load_questions
    from sense_trl.schema.schema import load_spider_schemas
    from sense_trl.steps.progress import stage_bar
    from sense_trl.synthesis.explore.config import ExplorationConfig
    from sense_trl.synthesis.explore.folder import explore_databases

    model = _get_model(arguments)
    seeds = arguments.pop("seed_questions")
    tables_json = arguments.pop("tables_json")
    output, db_ids = arguments.pop("output"), arguments.pop("db_ids")
    num_workers = arguments.pop("num_workers")
    with DatabaseCatalog.from_path(arguments.pop("database")) as catalog:
        only = catalog.db_ids[0] if len(catalog) == 1 else None
        # What is close to one of these is left out, whatever database it is of.
        excluded = [
            question
            for path in arguments.pop("exclude")
            for question in load_questions(path, default_db_id=only or "unknown")
        ]
        with stage_bar(console, "Exploring", len(db_ids or catalog.db_ids)) as bar:
            result = explore_databases(
                catalog,
                output,
                ExplorationConfig(**arguments),
                db_ids=db_ids,
                schemas=load_spider_schemas(tables_json) if tables_json else None,
                seeds=load_questions(seeds, default_db_id=only) if seeds else (),
                excluded=excluded,
                model=model,
                num_workers=num_workers,
                on_progress=bar.advance,
            )
    console.print(f"data set: {output}", soft_wrap=True, highlight=False, markup=False)
    print(_summary(result))  # noqa: T201 - the result of the command
    return 0


def _get_model(arguments: dict[str, Any]) -> ModelOptions | None:
    """Take the flags of the model out of the arguments."""
    names = ("temperature", "max_new_tokens", "round_trip_samples")
    given = {name: arguments.pop(name) for name in names}
    generator = take_generator(arguments)
    if generator is None:
        return None
    from sense_trl.generation.generator import SamplingConfig
    from sense_trl.synthesis.explore.folder import ModelOptions

    sampling = SamplingConfig(
        temperature=given["temperature"],
        max_new_tokens=given["max_new_tokens"],
        seed=arguments["seed"],
    )
    return ModelOptions(generator, sampling, given["round_trip_samples"])


def _summary(result: ExplorationResult) -> str:
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
