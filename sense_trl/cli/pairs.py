"""`sense-trl pairs`: build a preference dataset from candidates, look at pairs, count them."""

from __future__ import annotations

import argparse
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from sense_trl._files import check_writable_file, write_text_atomically
from sense_trl.cli.arguments import (
    add_data_arguments,
    add_execution_arguments,
    add_extract_argument,
    hint_at_chat,
    name_first,
    take_limits,
)
from sense_trl.cli.stage import STAGE_EPILOG
from sense_trl.cli.terminal import format_result, make_visible
from sense_trl.errors import InputError

if TYPE_CHECKING:
    import datasets
    from rich.console import Console
    from rich.text import Text

    from sense_trl.database.catalog import DatabaseCatalog
    from sense_trl.pairs import Candidate, PreferencePairConfig
    from sense_trl.questions import Question
    from sense_trl.schema import DatabaseSchema
    from sense_trl.task import TextToSQLTask

__all__ = ["add_parser", "run"]

# The last file of a build: where it is, everything else is.
_CARD: Final = "README.md"
# Written out, for `sense_trl.pairs` imports sqlglot and the parser imports nothing heavy.
_POLICIES: Final = (
    "grouped_any",
    "random",
    "nearest",
    "farthest",
    "hard_first",
    "one_per_error_class",
)
_SOURCES: Final = ("gold", "strong", "weak", "any")


def add_parser(commands: Any) -> None:
    """Add the command and its flags; imports nothing heavy."""
    parser: argparse.ArgumentParser = commands.add_parser(
        "pairs",
        help="build, inspect and count preference pairs",
        description="Preference pairs from candidate SQL of any origin.",
        epilog=STAGE_EPILOG,
    )
    actions = parser.add_subparsers(dest="action", required=True, metavar="ACTION")
    _add_build(actions)
    answers = _add_action(
        actions,
        "answers",
        "keep a model's right answers, to fine-tune on",
        "Execute candidates and write those that are right as a questions file, with the answer as "
        "gold_sql: what `sense-trl sft --questions` trains on (rejection sampling, RFT).",
    )
    add_data_arguments(answers)
    _add_candidates(answers)
    answers.add_argument("--output", required=True, help="questions file to write (JSON Lines)")
    answers.add_argument("--limit", type=int, default=1, help="different answers per question")
    answers.add_argument("--seed", type=int, default=0, help="seed of the draw among the right")
    answers.add_argument(
        "--gold",
        choices=("none", "rest", "instead"),
        default="none",
        help="add the gold SQL of the questions without a right answer, or write that of the "
        "answered ones instead of the answers, to compare with",
    )
    add_execution_arguments(answers)
    inspect = _add_action(
        actions,
        "inspect",
        "show pairs with their results side by side",
        "Show pairs in the terminal: the question, both queries with what differs, why the "
        "rejected one is wrong and, with --database, the results of both.",
    )
    inspect.add_argument("pairs", help="folder of a build, or its pairs.parquet")
    inspect.add_argument("--database", default=None, help="databases, to execute both queries")
    inspect.add_argument("--question-id", default=None, help="only pairs of this question")
    inspect.add_argument("--error-class", default=None, help="only pairs with this error class")
    inspect.add_argument("--skip", type=int, default=0, help="pairs to pass over first")
    inspect.add_argument("--count", type=int, default=3, help="pairs to show")
    inspect.add_argument("--max-rows", type=int, default=5, help="rows to show of each result")
    inspect.add_argument("--timeout-s", type=float, default=5.0, help="seconds each query may run")
    stats = _add_action(
        actions,
        "stats",
        "count pairs, what was left out, and error classes",
        "Print what became of questions and candidates, and the classes of the rejected queries.",
    )
    stats.add_argument("pairs", help="folder of a build")


def _add_action(actions: Any, name: str, help_text: str, text: str) -> argparse.ArgumentParser:
    parser: argparse.ArgumentParser = actions.add_parser(
        name,
        help=help_text,
        description=text,
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    return parser


def _add_build(actions: Any) -> None:
    build = _add_action(
        actions,
        "build",
        "build a preference dataset",
        "Execute candidates in sandboxed worker processes, pair right with wrong ones, and write "
        "pairs.parquet, pairs.json (what was left out, and why) and a dataset card. No model is "
        "needed. An interrupted build continues when the same command is given again.",
    )
    add_data_arguments(build)
    build.add_argument("--output-dir", required=True, help="folder for the dataset")
    _add_candidates(build)
    build.add_argument("--tables-json", default=None, help="Spider's tables.json, for prompts")
    build.add_argument("--schema-style", default="compact", help="how prompts write a schema")
    build.add_argument(
        "--skip-missing-databases",
        action="store_true",
        help="leave out questions whose database is not there, and name them in pairs.json",
    )
    _add_config(build)
    suite = build.add_mutually_exclusive_group()
    suite.add_argument(
        "--suite",
        type=int,
        default=None,
        metavar="K",
        help="a chosen query that is not gold must be right on K generated neighbours, too",
    )
    suite.add_argument(
        "--suite-dir", default=None, help="the same on an official test suite: <db_id>/*.sqlite"
    )
    add_execution_arguments(build)


def _add_candidates(action: argparse.ArgumentParser) -> None:
    action.add_argument(
        "--candidates", nargs="+", default=[], metavar="FILE", help="candidates.jsonl of samplers"
    )
    for source in ("weak", "strong"):
        action.add_argument(
            f"--{source}",
            nargs="+",
            default=[],
            metavar="[NAME=]FILE",
            help=f"predictions of {source} models, in the layouts that `sense-trl verify` reads",
        )
    add_extract_argument(action)


def _add_config(build: argparse.ArgumentParser) -> None:
    """The fields of `PreferencePairConfig`."""
    build.add_argument(
        "--policy", choices=_POLICIES, default="grouped_any", help="which right meets which wrong"
    )
    build.add_argument(
        "--limit", type=int, default=1, help="chosen queries with their rejected ones per question"
    )
    build.add_argument(
        "--chosen-sources", nargs="+", choices=_SOURCES, default=["gold"], help="who may be chosen"
    )
    build.add_argument(
        "--rejected-sources",
        nargs="+",
        choices=_SOURCES[1:],
        default=["weak"],
        help="who may be rejected",
    )
    build.add_argument("--seed", type=int, default=0, help="seed of draws and mutants")
    build.add_argument("--num-rejected", type=int, default=1, help="rejected per chosen query")
    build.add_argument(
        "--list-rejected",
        dest="spread_rejected",
        action="store_false",
        help="one row per chosen query with lists of rejected ones, instead of one row for each",
    )
    build.add_argument(
        "--distance",
        choices=("tokens", "tree"),
        default="tokens",
        help="what nearest and farthest measure",
    )
    build.add_argument(
        "--class-weights",
        nargs="+",
        default=[],
        metavar="CLASS=WEIGHT",
        help="weights of error classes for hard_first, instead of the default ones",
    )
    build.add_argument(
        "--deduplicate-by",
        choices=("text", "normal_form", "result"),
        default="text",
        help="when two queries count as one; each includes those before it",
    )
    build.add_argument(
        "--prefer-novel",
        action="store_true",
        help="choose queries that differ from gold in their normal form, where there are any",
    )
    build.add_argument(
        "--completion",
        choices=("sql", "text"),
        default="sql",
        help="train on the query, or on all the model wrote",
    )
    build.add_argument(
        "--prompt-format",
        choices=("conversational", "plain"),
        default="conversational",
        help="rows as messages or as strings",
    )
    build.add_argument(
        "--num-mutants",
        type=int,
        default=0,
        help="wrong neighbours of gold to try for questions without a wrong candidate",
    )
    build.add_argument(
        "--weighting",
        choices=("uniform", "question"),
        default="uniform",
        help="what pair_weight makes equal: pairs or questions",
    )
    build.add_argument(
        "--classify-results",
        action="store_true",
        help="say in result_class how the rejected query's rows differ from gold's",
    )


def run(arguments: dict[str, Any], console: Any) -> int:
    """Run the command.

    Returns:
        0 when the dataset is there, or was shown.

    Raises:
        SenseTRLError: unusable input (exit code 2).
    """
    action = arguments.pop("action")
    actions = {"build": _build, "answers": _answers, "inspect": _inspect, "stats": _stats}
    return actions[action](arguments, console)


# ---------------------------------------------------------------------- build


def _build(arguments: dict[str, Any], console: Any) -> int:
    import datasets

    from sense_trl.cli.evaluate import open_suite
    from sense_trl.database.catalog import DatabaseCatalog
    from sense_trl.pairs import build_preference_pairs
    from sense_trl.pairs.card import format_card
    from sense_trl.questions import load_questions
    from sense_trl.schema import load_spider_schemas
    from sense_trl.steps.progress import stage_bar
    from sense_trl.verification.verifier import SQLVerifier

    config = _get_config(arguments)
    folder = Path(arguments["output_dir"])
    tables = arguments["tables_json"]
    declared = None if tables is None else load_spider_schemas(tables)
    limits = take_limits(arguments)
    with DatabaseCatalog.from_path(arguments["database"], limits=limits) as catalog:
        only = catalog.db_ids[0] if len(catalog) == 1 else None
        questions = load_questions(arguments["questions"], default_db_id=only)
        candidates = list(_read_candidates(arguments, questions, console))
        task = _make_task(catalog, questions, declared or {}, arguments)
        _claim(folder, config, task, arguments)
        if (folder / _CARD).exists():
            console.print(f"{folder} is finished; nothing to do.", markup=False)
            shutil.rmtree(folder / "shards", ignore_errors=True)
            return _stats({"pairs": str(folder)}, console)
        candidates = [c for c in candidates if c.question_id not in task.unusable]
        with (
            SQLVerifier(
                catalog, num_workers=arguments["num_workers"], cache_dir=arguments["cache_dir"]
            ) as verifier,
            open_suite(catalog, declared, arguments) as suite_verifier,
            stage_bar(console, "Execute, build pairs", len(candidates)) as bar,
        ):
            result = build_preference_pairs(
                task.questions,
                candidates,
                verifier,
                get_messages=task.get_messages,
                config=config,
                dialect=task.dialect,
                catalog=catalog,
                suite_verifier=suite_verifier,
                shard_folder=folder / "shards",
                on_progress=bar.advance,
            )
            bar.set(len(candidates))
    # Writing takes no time worth a bar.
    datasets.disable_progress_bars()
    result.save(folder, unusable_questions=task.unusable)
    card = format_card(
        result.dataset, result.summary(), config.as_json(), title="Text-to-SQL preference pairs"
    )
    write_text_atomically(folder / _CARD, card)
    shutil.rmtree(folder / "shards")
    return _stats({"pairs": str(folder)}, console)


def _get_config(arguments: Mapping[str, Any]) -> PreferencePairConfig:
    from sense_trl.pairs import PreferencePairConfig

    values = {field.name: arguments[field.name] for field in fields(PreferencePairConfig)}
    return PreferencePairConfig(
        **{
            **values,
            "chosen_sources": tuple(values["chosen_sources"]),
            "rejected_sources": tuple(values["rejected_sources"]),
            "class_weights": dict(map(_read_weight, values["class_weights"])),
        }
    )


def _read_weight(text: str) -> tuple[str, float]:
    name, _, weight = text.partition("=")
    try:
        return name, float(weight)
    except ValueError:
        raise InputError(
            f"`class_weights` has {text!r}; expected a class, `=` and a number: wrong_column=1"
        ) from None


def _make_task(
    catalog: DatabaseCatalog,
    questions: Sequence[Question],
    declared: Mapping[str, DatabaseSchema],
    arguments: Mapping[str, Any],
) -> TextToSQLTask:
    """Questions with the schemas of their databases; gold is for the builder to judge."""
    from sense_trl.schema import SCHEMA_STYLES, get_schema
    from sense_trl.task import TextToSQLTask

    style = arguments["schema_style"]
    if style not in SCHEMA_STYLES:
        raise InputError(
            f"`schema_style` is {style!r}; expected one of {', '.join(SCHEMA_STYLES)}."
        )
    unusable = {}
    if arguments["skip_missing_databases"]:
        unusable = {
            q.question_id: f"the database {q.db_id!r} is not there"
            for q in questions
            if q.db_id not in catalog
        }
    usable = tuple(q for q in questions if q.question_id not in unusable)
    if not usable:
        raise InputError("`questions` holds no question whose database is there.")
    schemas = {
        db_id: declared.get(db_id) or get_schema(catalog.engine(db_id), db_id)
        for db_id in sorted({question.db_id for question in usable})
    }
    return TextToSQLTask(catalog, usable, schemas, style, unusable)


def _read_candidates(
    arguments: dict[str, Any], questions: Sequence[Question], console: Any
) -> Iterator[Candidate]:
    from sense_trl.evaluation.predictions import load_predictions
    from sense_trl.pairs import Candidate, CandidateFile

    for path in arguments["candidates"]:
        if not Path(path).is_file():
            raise InputError(f"`candidates` is {path!r}, which is not a file")
        yield from CandidateFile(path)
    for source in ("weak", "strong"):
        for text in arguments[source]:
            name, path = _split_name(text)
            answers = load_predictions(path, questions)
            hint_at_chat(console, path, answers, arguments)
            queries = load_predictions(path, questions, extract=arguments["extract"])
            for question, answer, sql in zip(questions, answers, queries, strict=True):
                yield Candidate(question.question_id, 0, sql, answer, source, name)


def _split_name(text: str) -> tuple[str, str]:
    """`NAME=FILE`, or a file, which names its model by its folder."""
    name, equals, path = text.partition("=")
    if equals and not Path(text).exists():
        return name, path
    return Path(text).absolute().parent.name, text


def _claim(
    folder: Path, config: PreferencePairConfig, task: TextToSQLTask, arguments: Mapping[str, Any]
) -> None:
    """Refuse a folder that holds a build with other settings or other input."""
    from sense_trl.run_folder import RunFolder, fingerprint_databases, fingerprint_file

    def fingerprints(name: str) -> list[Any]:
        pairs = (_split_name(text) for text in arguments[name])
        return [(model, fingerprint_file(path)) for model, path in pairs]

    tables = arguments["tables_json"]
    settings = {
        **config.as_json(),
        "questions": fingerprint_file(arguments["questions"]),
        "databases": fingerprint_databases(map(task.catalog.path, task.schemas)),
        "candidates": [fingerprint_file(path) for path in arguments["candidates"]],
        "weak": fingerprints("weak"),
        "strong": fingerprints("strong"),
        "tables_json": None if tables is None else fingerprint_file(tables),
        **{
            name: arguments[name]
            for name in ("schema_style", "skip_missing_databases", "suite", "timeout_s")
        },
        # A folder whose settings name no limits was built with the default ones.
        **({"query_limit": sorted(arguments["query_limit"])} if arguments["query_limit"] else {}),
        # Nor the default of a flag that is younger than the folder.
        **({"extract": True} if arguments["extract"] else {}),
        "suite_dir": arguments["suite_dir"] and str(Path(arguments["suite_dir"]).absolute()),
    }
    RunFolder(folder, "pairs", settings).claim()


# ---------------------------------------------------------------------- answers


def _answers(arguments: dict[str, Any], console: Any) -> int:
    from sense_trl.database.catalog import DatabaseCatalog
    from sense_trl.pairs import select_verified_answers
    from sense_trl.questions import load_questions, write_questions
    from sense_trl.steps.progress import stage_bar
    from sense_trl.verification.verifier import SQLVerifier

    check_writable_file(arguments["output"], "output")
    limits = take_limits(arguments)
    with DatabaseCatalog.from_path(arguments["database"], limits=limits) as catalog:
        only = catalog.db_ids[0] if len(catalog) == 1 else None
        questions = load_questions(arguments["questions"], default_db_id=only)
        candidates = list(_read_candidates(arguments, questions, console))
        usable = [question for question in questions if question.db_id in catalog]
        with (
            SQLVerifier(
                catalog, num_workers=arguments["num_workers"], cache_dir=arguments["cache_dir"]
            ) as verifier,
            stage_bar(console, "Execute", len(candidates)) as bar,
        ):
            answers = select_verified_answers(
                usable,
                candidates,
                verifier,
                limit=arguments["limit"],
                seed=arguments["seed"],
                dialect=catalog.engine(usable[0].db_id).dialect if usable else "sqlite",
                on_progress=bar.advance,
            )
            bar.set(len(candidates))
    if not answers:
        raise InputError(
            f"None of the {len(candidates)} candidates is right, so there is nothing to train on; "
            "`sense-trl verify` says of each why."
        )
    answered = {answer.question_id for answer in answers}
    if arguments["gold"] == "instead":
        answers = [question for question in usable if question.question_id in answered]
    elif arguments["gold"] == "rest":
        answers += [question for question in usable if question.question_id not in answered]
    write_questions(arguments["output"], answers)
    num_answered = sum(question.question_id in answered for question in usable)
    console.print(
        f"{arguments['output']}: {len(answers)} rows; {num_answered} of {len(questions)} questions "
        "have a right answer",
        soft_wrap=True,
        highlight=False,
    )
    return 0


# ---------------------------------------------------------------------- inspect


def _inspect(arguments: dict[str, Any], console: Any) -> int:
    from contextlib import ExitStack

    from rich.console import Console

    from sense_trl.database.catalog import DatabaseCatalog
    from sense_trl.database.engine import ExecutionLimits

    rows = _select(_load(arguments["pairs"]), arguments)
    output = Console()
    limits = ExecutionLimits(timeout_s=arguments["timeout_s"])
    with ExitStack() as stack:
        catalog = None
        if arguments["database"] is not None:
            catalog = stack.enter_context(
                DatabaseCatalog.from_path(arguments["database"], limits=limits)
            )
        for number, row in rows:
            for rejected in _rejected_queries(row):
                _show(output, number, {**row, **rejected}, catalog, arguments["max_rows"])
    if not rows:
        console.print("No pair fits.")
    return 0


def _load(path: str) -> datasets.Dataset:
    import datasets

    from sense_trl.pairs.dataset import read_pairs

    file = Path(path) / "pairs.parquet" if Path(path).is_dir() else Path(path)
    if not file.is_file():
        raise InputError(f"`pairs` is {path!r}: there is no {str(file)!r}. Build it first.")
    return datasets.Dataset(read_pairs(file))


def _select(
    dataset: datasets.Dataset, arguments: Mapping[str, Any]
) -> list[tuple[int, dict[str, Any]]]:
    """Numbered rows that fit, those passed over left out."""
    wanted, name = arguments["question_id"], arguments["error_class"]
    ids = dataset["question_id"]
    fitting = [
        number
        for number, classes in enumerate(dataset["error_classes"])
        if (wanted is None or ids[number] == wanted)
        and (name is None or name in classes or any(name in own for own in classes))
    ]
    chosen = fitting[arguments["skip"] :][: arguments["count"]]
    return [(number, dataset[number]) for number in chosen]


def _rejected_queries(row: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """The rejected side of a row, one for each query where it holds lists."""
    from sense_trl.pairs.dataset import REJECTED_COLUMNS

    if isinstance(row["rejected_sql"], str):
        yield {name: row[name] for name in REJECTED_COLUMNS}
        return
    for index in range(len(row["rejected_sql"])):
        yield {name: row[name][index] for name in REJECTED_COLUMNS}


def _show(
    output: Console,
    number: int,
    row: Mapping[str, Any],
    catalog: DatabaseCatalog | None,
    max_rows: int,
) -> None:
    from rich.table import Table
    from rich.text import Text

    from sense_trl.evaluation.sql_diff import mark_differences

    output.rule(Text(f"pair {number}: {row['question_id']} on {row['db_id']}"))
    output.print(Text(make_visible(row["question"]), style="bold"))
    output.print(
        Text(
            f"{row['rejected_reason']}; {', '.join(row['error_classes']) or 'no error class'}\n"
            f"weight {row['pair_weight']:.3g}"
        )
    )
    table = Table(show_lines=True, expand=True)
    for side in ("chosen", "rejected"):
        model = make_visible(row[f"{side}_model"])
        table.add_column(Text(f"{side} ({row[f'{side}_source']}, {model})"), ratio=1)
    marked = mark_differences(make_visible(row["chosen_sql"]), make_visible(row["rejected_sql"]))
    table.add_row(*map(_highlight, marked, ("green", "red")))
    if catalog is not None:
        engine = catalog.engine(row["db_id"])
        results = (engine.execute(row[f"{side}_sql"]) for side in ("chosen", "rejected"))
        table.add_row(*(format_result(result, max_rows) for result in results))
    output.print(table)


def _highlight(pieces: Sequence[str], style: str) -> Text:
    """Pieces that are by turns shared and marked."""
    from rich.text import Text

    text = Text()
    for index, piece in enumerate(pieces):
        text.append(piece, style=f"bold {style}" if index % 2 else None)
    return text


# ---------------------------------------------------------------------- stats


def _name_gold_problems(problems: Mapping[str, str], account: Path) -> list[str]:
    """A line per reason why gold is no label, with the first questions that have it."""
    by_reason: dict[str, list[str]] = {}
    for question_id, text in problems.items():
        by_reason.setdefault(text.split(":")[0], []).append(question_id)
    lines = [f"gold that decides nothing (all in {account}, gold_problems)"] if problems else []
    for reason, question_ids in sorted(by_reason.items()):
        lines.append(f"  {reason:<38}{len(question_ids):>8,}  {name_first(question_ids)}")
    return lines


def _stats(arguments: dict[str, Any], console: Any) -> int:
    from sense_trl.pairs.card import COUNTED_COLUMNS, count_column
    from sense_trl.pairs.dataset import read_account

    folder = Path(arguments["pairs"])
    dataset = _load(arguments["pairs"])
    account = folder / "pairs.json"
    if not account.is_file():
        raise InputError(f"`pairs` is {str(folder)!r}, which holds no pairs.json. Give a build.")
    summary = read_account(account)
    questions = len(set(dataset["question_id"]))
    sections = {
        "": {
            "questions": summary["num_questions"],
            "questions with a pair": questions,
            "candidates": summary["num_candidates"],
            "pairs": summary["num_pairs"],
        },
        "candidates by verdict": summary["verdicts"],
        "mutants by verdict": summary.get("mutant_verdicts", {}),
        "questions left out": summary["dropped_questions"],
        "candidates left out": summary["dropped_candidates"],
    }
    sections |= {
        title.lower(): count_column(dataset, name)
        for name, title in COUNTED_COLUMNS.items()
        if name in dataset.column_names
    }
    lines = []
    for title, counts in sections.items():
        if counts:
            lines += [title] if title else []
            ordered = (
                sorted(counts.items(), key=lambda item: (-item[1], item[0]))
                if title
                else (counts.items())
            )
            lines += [f"  {name:<38}{count:>8,}" for name, count in ordered]
    lines += _name_gold_problems(summary.get("gold_problems", {}), account)
    print("\n".join(lines))  # noqa: T201 - the result of the command
    return 0
