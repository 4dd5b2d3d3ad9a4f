"""`sense-trl link`: train, measure and look at a linker of schemas."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from sense_trl.cli.parser import Command
from sense_trl.cli.terminal import make_visible, quieten_libraries
from sense_trl.errors import InputError
from sense_trl.options import DataArguments, GeneratorOptions, OutputOptions, option, option_of

if TYPE_CHECKING:
    from collections.abc import Mapping

    from sense_trl.questions import Question
    from sense_trl.schema import DatabaseSchema


@dataclass(kw_only=True)
class LinkDataOptions:
    """Questions whose gold says what is needed, and their databases."""

    questions: str = option_of(DataArguments, "questions")
    database: str | None = option_of(
        DataArguments,
        "database",
        default=None,
        note="Not needed where `tables_json` has them all.",
    )
    tables_json: str | None = option_of(DataArguments, "tables_json")
    split: str | None = option_of(DataArguments, "split")
    max_questions: int | None = option_of(DataArguments, "max_questions")
    subset_seed: int = option_of(DataArguments, "subset_seed")


@dataclass(kw_only=True)
class TrainOptions(LinkDataOptions):
    """The model whose states are read, and where the linker goes."""

    model_name_or_path: str = option_of(GeneratorOptions, "model_name_or_path")
    output_dir: str = option_of(
        OutputOptions, "output_dir", note="That of an adapter may be given, too."
    )
    state_cache: str | None = option(
        "Folder for the model's states of questions and schemas (float16, some 25 kB a question of "
        "a 0.5B model), which other trainings on the same layer take from there; `states` in "
        "`output_dir` if not given.",
        default=None,
    )
    layer: int | None = option(
        "Layer whose states are read, from 1; two thirds of the depth.", default=None
    )
    readout: str = option(
        "Where the model reads tables and columns: once in the schema, or repeated behind each "
        "question, when it has read that, which takes many times as long: for a teacher.",
        default="once",
        choices=("once", "repeated"),
    )
    pooled_databases: int = option(
        "Ask each question once more on a schema into which so many of the databases were joined "
        "(drawn with `subset_seed`), to learn what a wide schema is like; 0 for none. Reading "
        "takes twice as long.",
        default=0,
    )
    teacher: str | None = option(
        "Folder of a larger model's linker that was trained on the same questions with "
        "`save_teachings`, for `distillation`.",
        default=None,
    )
    save_teachings: bool = option(
        "Write what the linker says of its questions, to teach a smaller one.", default=False
    )


def train(options: TrainOptions, config: Any, console: Any) -> None:
    """Run `sense-trl link train`."""
    from sense_trl._files import check_writable

    quieten_libraries()
    from sense_trl.steps.linking import (
        load_teachings,
        open_reader,
        save_teachings,
        train_linker,
    )
    from sense_trl.steps.progress import stage_bar
    from sense_trl.trainers.linking import StateCache

    if (config.distillation is None) != (options.teacher is None):
        raise InputError(
            f"`distillation` is {config.distillation!r} and `teacher` {options.teacher!r}; give "
            "both or none of them."
        )
    check_writable(options.output_dir, "output_dir")
    if options.state_cache is not None:
        check_writable(options.state_cache, "state_cache")
    questions, schemas = _load(options)
    teachings = None if options.teacher is None else load_teachings(options.teacher)
    reader = open_reader(options.model_name_or_path, layer=options.layer)
    cache = StateCache(reader, options.state_cache or Path(options.output_dir) / "states")
    num_readings = len(questions) * (2 if options.pooled_databases else 1)
    with stage_bar(console, "Reading questions", num_readings) as bar:
        linker, examples = train_linker(
            reader,
            options.model_name_or_path,
            questions,
            schemas,
            config,
            teachings=teachings,
            cache=cache,
            readout=options.readout,
            pooled_databases=options.pooled_databases,
            pool_seed=options.subset_seed,
            on_progress=bar.advance,
        )
    linker.save(options.output_dir)
    told = f"{options.output_dir}: a linker from {len(questions)} questions"
    if options.save_teachings:
        size = save_teachings(options.output_dir, linker.head, examples)
        told += f", {size / 1000 / len(questions):.1f} kB of teachings a question"
    print(told)  # noqa: T201 - the result of the command


@dataclass(kw_only=True)
class MeasureOptions(LinkDataOptions):
    """The linker to measure, and what it leaves."""

    linker: str = option("Folder of a linker, or `names`: names and keys.", positional=True)
    linked_tables: int = option_of(DataArguments, "linked_tables", default=6)
    linked_columns: int = option_of(DataArguments, "linked_columns", default=10)


def evaluate(options: MeasureOptions, console: Any) -> None:
    """Run `sense-trl link evaluate`."""
    import time

    quieten_libraries()
    from sense_trl.prompts.name_linker import NameLinker
    from sense_trl.prompts.style import NAME_LINKER
    from sense_trl.steps.linking import TrainedLinker, measure_linking, score_questions

    for name in ("linked_tables", "linked_columns"):
        if (value := getattr(options, name)) < 1:
            raise InputError(f"`{name}` is {value}; expected at least 1.")
    questions, schemas = _load(options)
    is_named = options.linker == NAME_LINKER
    make = NameLinker if is_named else TrainedLinker.load(options.linker).of
    with console.status("Reading questions"):
        scoring = score_questions(make, questions, schemas)
        start = time.perf_counter()
        scored = list(scoring)
        seconds = time.perf_counter() - start
    report = measure_linking(
        scored, max_tables=options.linked_tables, max_columns=options.linked_columns
    )
    print(f"{report}; {1000 * seconds / len(questions):.0f} ms a question")  # noqa: T201


@dataclass(kw_only=True)
class ShowOptions:
    """The linker, the question, and its database."""

    linker: str = option("Folder of a linker.", positional=True)
    question: str = option("What is asked.", positional=True)
    database: str | None = option_of(LinkDataOptions, "database")
    tables_json: str | None = option_of(DataArguments, "tables_json")
    db_id: str | None = option("The database, where there are several.", default=None)
    num_items: int = option("Tables and columns shown.", default=10)


def show(options: ShowOptions, console: Any) -> None:
    """Run `sense-trl link show`."""
    quieten_libraries()
    from sense_trl.schema.schema import check_tables
    from sense_trl.steps.linking import TrainedLinker

    if options.num_items < 1:
        raise InputError(f"`num_items` is {options.num_items}; expected at least 1.")
    schemas = _load_schemas(options.database, options.tables_json, options.db_id)
    if len(schemas) > 1:
        raise InputError(f"`db_id` is missing; expected one of {', '.join(sorted(schemas)[:10])}.")
    ((_, schema),) = schemas.items()
    check_tables(schema, options.database or str(options.tables_json))
    scorer = TrainedLinker.load(options.linker).of(schema)
    scores = scorer.score(options.question)
    words, maps, _ = scorer.explain(options.question)
    best = sorted(scores, key=lambda item: -scores[item])[: options.num_items]
    lines = []
    for item in best:
        adding = sorted(zip(maps[item], words, strict=True), reverse=True)[:3]
        named = ", ".join(f"{word} {value:+.2f}" for value, word in adding)
        name = " ".join(".".join(filter(None, item)).split())
        lines.append(f"{scores[item]:6.3f}  {name:<40}  {named}")
    print(make_visible("\n".join(lines)))  # noqa: T201 - the result of the command


def _load(options: LinkDataOptions) -> tuple[list[Question], Mapping[str, DatabaseSchema]]:
    """Questions, and the schemas of their databases."""
    from sense_trl.questions import load_questions
    from sense_trl.schema.schema import check_tables
    from sense_trl.task import draw_questions

    schemas = _load_schemas(options.database, options.tables_json, None)
    only = next(iter(schemas)) if len(schemas) == 1 else None
    questions = load_questions(options.questions, default_db_id=only)
    if options.split is not None:
        questions = [q for q in questions if q.split == options.split]
    if not questions:
        raise InputError(f"`split` is {options.split!r}; no question has it.")
    questions = draw_questions(
        questions, options.max_questions, options.subset_seed, argument="max_questions"
    )
    if missing := sorted({q.db_id for q in questions} - schemas.keys()):
        raise InputError(
            f"`questions` asks about {missing[0]!r}, which neither `tables_json` nor `database` "
            "has. Name the file or the folder that holds it."
        )
    for db_id in {question.db_id for question in questions}:
        check_tables(schemas[db_id], options.database or str(options.tables_json))
    return questions, schemas


def _load_schemas(
    database: str | None, tables_json: str | None, db_id: str | None
) -> dict[str, DatabaseSchema]:
    from sense_trl.database.catalog import DatabaseCatalog
    from sense_trl.schema import load_spider_schemas
    from sense_trl.task import read_schemas

    if database is None and tables_json is None:
        raise InputError("Expected `database`, `tables_json` or both. Name where schemas are.")
    if database is None:
        schemas = load_spider_schemas(str(tables_json))
    else:
        with DatabaseCatalog.from_path(database) as catalog:
            wanted = set(catalog.db_ids) if db_id is None else {db_id}
            schemas = read_schemas(catalog, wanted, tables_json)
    if db_id is not None:
        if db_id not in schemas:
            raise InputError(f"`db_id` is {db_id!r}; expected one of {sorted(schemas)[:10]}.")
        schemas = {db_id: schemas[db_id]}
    return schemas


COMMAND: Final = Command(
    "link",
    "train and measure what chooses the part of a wide schema for a question",
    description="A linker says which tables and columns a question needs, so that a prompt need "
    "not hold all of a wide schema. See docs/schema-linker.md.",
    actions=(
        Command(
            "train",
            "train a linker on a frozen model",
            train,
            (TrainOptions, "sense_trl.trainers.linking.training:LinkerTrainingConfig"),
            description="Read the questions once with the model, and train a small head on its "
            "states. What was read is kept: an interrupted run goes on, and another one on the "
            "same questions trains at once. With `teacher` the head also learns from that of a "
            "larger model.",
        ),
        Command(
            "evaluate",
            "measure a linker against gold",
            evaluate,
            (MeasureOptions,),
            description="Print how well a linker ranks columns, and what is left of a schema.",
        ),
        Command(
            "show",
            "show what a question needs, and which of its words say so",
            show,
            (ShowOptions,),
            description="Print the likeliest tables and columns of a question with the words that "
            "add most to each.",
        ),
    ),
)
