"""`sense-trl pairs`: build a preference dataset from candidates, look at pairs, count them."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal

from sense_trl._files import check_writable_file, write_text_atomically
from sense_trl.cli.ask import AskOptions
from sense_trl.cli.parser import Command
from sense_trl.cli.terminal import format_result, hint_at_chat, make_visible, name_first
from sense_trl.errors import InputError
from sense_trl.options import (
    CandidateOptions,
    DataArguments,
    DataOptions,
    ExecutionOptions,
    option,
    option_of,
)
from sense_trl.steps.arguments import PairArguments

if TYPE_CHECKING:
    import datasets
    from rich.console import Console
    from rich.text import Text

    from sense_trl.database.catalog import DatabaseCatalog
    from sense_trl.pairs import Candidate, PreferencePairConfig
    from sense_trl.questions import Question
    from sense_trl.task import TextToSQLTask

# The last file of a build: where it is, everything else is.
_CARD: Final = "README.md"


# ---------------------------------------------------------------------- build


def build_from_files(
    data: DataArguments, config: PreferencePairConfig, options: PairArguments, console: Any
) -> None:
    """Build pairs from files of candidates, and print what became of them.

    Raises:
        SenseTRLError: unusable input.
    """
    import datasets

    from sense_trl.database.catalog import DatabaseCatalog
    from sense_trl.pairs.card import format_card
    from sense_trl.questions import load_questions
    from sense_trl.schema import load_spider_schemas
    from sense_trl.steps import work
    from sense_trl.steps.verification import get_limits, open_execution

    if options.output_dir is None:
        raise InputError("`output_dir` is missing; name the folder for the dataset.")
    folder = Path(options.output_dir)
    tables = data.tables_json
    declared = None if tables is None else load_spider_schemas(tables)
    limits = get_limits(options)
    with DatabaseCatalog.from_path(data.database, limits=limits) as catalog:
        only = catalog.db_ids[0] if len(catalog) == 1 else None
        questions = load_questions(data.questions, default_db_id=only)
        candidates = list(_read_candidates(options, questions, console))
        task = _make_task(catalog, questions, data, options)
        _claim(folder, config, task, data, options)
        if (folder / _CARD).exists():
            console.print(f"{folder} is finished; nothing to do.", markup=False)
            shutil.rmtree(folder / "shards", ignore_errors=True)
            stats(StatsOptions(str(folder)), console)
            return
        candidates = [c for c in candidates if c.question_id not in task.unusable]
        # Writing takes no time worth a bar.
        datasets.disable_progress_bars()
        with open_execution(catalog, options, declared) as (backend, verifier, suite_verifier):
            result = work.pair(
                task,
                candidates,
                verifier,
                config,
                folder,
                console,
                suite_verifier=suite_verifier,
                shard_folder=folder / "shards",
                backend=backend,
            )
    card = format_card(
        result.dataset, result.summary(), config.as_json(), title="Text-to-SQL preference pairs"
    )
    write_text_atomically(folder / _CARD, card)
    shutil.rmtree(folder / "shards")
    stats(StatsOptions(str(folder)), console)


def _make_task(
    catalog: DatabaseCatalog,
    questions: Sequence[Question],
    data: DataArguments,
    options: PairArguments,
) -> TextToSQLTask:
    """Questions with the schemas of their databases; gold is for the builder to judge."""
    from sense_trl.prompts.style import get_style
    from sense_trl.steps.prompting import get_linker, get_token_counter
    from sense_trl.task import make_task
    from sense_trl.verification.gold import find_missing_databases

    unusable = {}
    if options.skip_missing_databases:
        unusable = find_missing_databases(catalog, questions)
    usable = [question for question in questions if question.question_id not in unusable]
    if not usable:
        raise InputError("`questions` holds no question whose database is there.")
    # Pairs ask as those who answered were asked.
    style = get_style(data, *(Path(file).parent for file in options.candidates))
    return make_task(
        catalog,
        usable,
        tables_json=data.tables_json,
        style=style,
        description_source=data.description_source,
        count_tokens=get_token_counter(style, data, None),
        make_linker=get_linker(style),
        unusable=unusable,
    )


def _read_candidates(
    options: CandidateOptions, questions: Sequence[Question], console: Any
) -> Iterator[Candidate]:
    from sense_trl.evaluation.predictions import load_predictions
    from sense_trl.pairs import Candidate, CandidateFile

    for path in options.candidates:
        if not Path(path).is_file():
            raise InputError(f"`candidates` is {path!r}, which is not a file")
        yield from CandidateFile(path)
    for source in ("weak", "strong"):
        for text in getattr(options, source):
            name, path = _split_name(text)
            answers = load_predictions(path, questions)
            hint_at_chat(console, path, answers, options)
            queries = load_predictions(path, questions, extract=options.extract)
            for question, answer, sql in zip(questions, answers, queries, strict=True):
                yield Candidate(question.question_id, 0, sql, answer, source, name)


def _split_name(text: str) -> tuple[str, str]:
    """`NAME=FILE`, or a file, which names its model by its folder."""
    name, equals, path = text.partition("=")
    if equals and not Path(text).exists():
        return name, path
    return Path(text).absolute().parent.name, text


def _claim(
    folder: Path,
    config: PreferencePairConfig,
    task: TextToSQLTask,
    data: DataArguments,
    options: PairArguments,
) -> None:
    """Refuse a folder that holds a build with other settings or other input."""
    from sense_trl.run_folder import RunFolder, fingerprint_databases, fingerprint_file
    from sense_trl.steps.prompting import identify_style

    def fingerprints(name: str) -> list[Any]:
        pairs = (_split_name(text) for text in getattr(options, name))
        return [(model, fingerprint_file(path)) for model, path in pairs]

    tables = data.tables_json
    settings = {
        **config.as_json(),
        "questions": fingerprint_file(data.questions),
        "databases": fingerprint_databases(map(task.catalog.path, task.schemas)),
        "candidates": [fingerprint_file(path) for path in options.candidates],
        "weak": fingerprints("weak"),
        "strong": fingerprints("strong"),
        "tables_json": None if tables is None else fingerprint_file(tables),
        **identify_style(task.writer.style, data.description_source),
        **{
            name: getattr(options, name)
            for name in ("skip_missing_databases", "suite", "timeout_s")
        },
        # A folder whose settings name no limits was built with the default ones.
        **({"query_limit": sorted(options.query_limit)} if options.query_limit else {}),
        # Nor the default of a flag that is younger than the folder.
        **({"extract": True} if options.extract else {}),
        "suite_dir": options.suite_dir and str(Path(options.suite_dir).absolute()),
    }
    RunFolder(folder, "pairs", settings).claim()


# ---------------------------------------------------------------------- answers


@dataclass(kw_only=True)
class AnswersOptions(ExecutionOptions, CandidateOptions, DataOptions):
    """Candidates, and where the right ones go."""

    output: str = option("Questions file to write (JSON Lines).")
    limit: int = option("Different answers per question.", default=1)
    seed: int = option("Seed of the draw among the right.", default=0)
    completion: Literal["sql", "text"] = option(
        "Train on the query alone, or on all that the model wrote, its reasoning included.",
        default="sql",
    )
    gold: Literal["none", "rest", "instead"] = option(
        "Add the gold SQL of the questions without a right answer, or write that of the answered "
        "ones instead of the answers, to compare with.",
        default="none",
    )


def answers(options: AnswersOptions, console: Any) -> None:
    """Run `sense-trl pairs answers`."""
    from sense_trl.database.catalog import DatabaseCatalog
    from sense_trl.pairs import select_verified_answers
    from sense_trl.questions import load_questions, write_questions
    from sense_trl.steps.progress import stage_bar
    from sense_trl.steps.verification import get_limits
    from sense_trl.verification.verifier import SQLVerifier

    check_writable_file(options.output, "output")
    if options.completion == "text" and options.gold != "none":
        raise InputError(
            f"`completion` is 'text', but `gold` is {options.gold!r}: gold is bare SQL, and beside "
            "whole answers it would teach two forms of an answer. Leave one of them out."
        )
    limits = get_limits(options)
    with DatabaseCatalog.from_path(options.database, limits=limits) as catalog:
        only = catalog.db_ids[0] if len(catalog) == 1 else None
        questions = load_questions(options.questions, default_db_id=only)
        candidates = list(_read_candidates(options, questions, console))
        usable = [question for question in questions if question.db_id in catalog]
        with (
            SQLVerifier(
                catalog, num_workers=options.num_workers, cache_dir=options.cache_dir
            ) as verifier,
            stage_bar(console, "Execute", len(candidates)) as bar,
        ):
            right = select_verified_answers(
                usable,
                candidates,
                verifier,
                limit=options.limit,
                seed=options.seed,
                completion=options.completion,
                on_progress=bar.advance,
            )
            bar.set(len(candidates))
    if not right:
        raise InputError(
            f"None of the {len(candidates)} candidates is right, so there is nothing to train on; "
            "`sense-trl verify` says of each why."
        )
    answered = {answer.question_id for answer in right}
    if options.gold == "instead":
        right = [question for question in usable if question.question_id in answered]
    elif options.gold == "rest":
        right += [question for question in usable if question.question_id not in answered]
    write_questions(options.output, right)
    num_answered = sum(question.question_id in answered for question in usable)
    console.print(
        f"{options.output}: {len(right)} rows; {num_answered} of {len(questions)} questions "
        "have a right answer",
        soft_wrap=True,
        highlight=False,
    )


# ---------------------------------------------------------------------- inspect


@dataclass
class StatsOptions:
    """Options of `pairs stats`: the build to count."""

    pairs: str = option("Folder of a build, or its pairs.parquet.", positional=True)


@dataclass(kw_only=True)
class InspectOptions(StatsOptions):
    """Options of `pairs inspect`: the pairs to show, and how."""

    database: str | None = option_of(
        DataOptions, "database", default=None, note="To execute both queries."
    )
    question_id: str | None = option("Only pairs of this question.", default=None)
    error_class: str | None = option("Only pairs with this error class.", default=None)
    skip: int = option("Pairs to pass over first.", default=0)
    count: int = option("Pairs to show.", default=3)
    max_rows: int = option_of(AskOptions, "max_rows", default=5)
    timeout_s: float = option_of(ExecutionOptions, "timeout_s", default=5.0)


def inspect(options: InspectOptions, console: Any) -> None:
    """Run `sense-trl pairs inspect`."""
    from contextlib import ExitStack

    from rich.console import Console

    from sense_trl.database.catalog import DatabaseCatalog
    from sense_trl.database.engine import ExecutionLimits

    rows = _select(_load(options.pairs), options)
    output = Console()
    limits = ExecutionLimits(timeout_s=options.timeout_s)
    with ExitStack() as stack:
        catalog = None
        if options.database is not None:
            catalog = stack.enter_context(
                DatabaseCatalog.from_path(options.database, limits=limits)
            )
        for number, row in rows:
            for rejected in _rejected_queries(row):
                _show(output, number, {**row, **rejected}, catalog, options.max_rows)
    if not rows:
        console.print("No pair fits.")


def _load(path: str) -> datasets.Dataset:
    import datasets

    from sense_trl.pairs.dataset import read_pairs

    file = Path(path) / "pairs.parquet" if Path(path).is_dir() else Path(path)
    if not file.is_file():
        raise InputError(f"`pairs` is {path!r}: there is no {str(file)!r}. Build it first.")
    return datasets.Dataset(read_pairs(file))


def _select(dataset: datasets.Dataset, options: InspectOptions) -> list[tuple[int, dict[str, Any]]]:
    """Numbered rows that fit, those passed over left out."""
    wanted, name = options.question_id, options.error_class
    ids = dataset["question_id"]
    fitting = [
        number
        for number, classes in enumerate(dataset["error_classes"])
        if (wanted is None or ids[number] == wanted)
        and (name is None or name in classes or any(name in own for own in classes))
    ]
    chosen = fitting[options.skip :][: options.count]
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


def stats(options: StatsOptions, console: Any) -> None:
    """Run `sense-trl pairs stats`."""
    from sense_trl.pairs.card import COUNTED_COLUMNS, count_column
    from sense_trl.pairs.dataset import read_account

    folder = Path(options.pairs)
    dataset = _load(options.pairs)
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


COMMAND: Final = Command(
    "pairs",
    "build, inspect and count preference pairs",
    description="Preference pairs from candidate SQL of any origin.",
    actions=(
        Command(
            "answers",
            "keep a model's right answers, to fine-tune on",
            answers,
            (AnswersOptions,),
            description="Execute candidates and write those that are right as a questions file, "
            "with the answer as gold_sql: what `sense-trl sft --questions` trains on (rejection "
            "sampling, RFT).",
        ),
        Command(
            "inspect",
            "show pairs with their results side by side",
            inspect,
            (InspectOptions,),
            description="Show pairs in the terminal: the question, both queries with what differs, "
            "why the rejected one is wrong and, with --database, the results of both.",
        ),
        Command(
            "stats",
            "count pairs, what was left out, and error classes",
            stats,
            (StatsOptions,),
            description="Print what became of questions and candidates, and the classes of the "
            "rejected queries.",
        ),
    ),
)
