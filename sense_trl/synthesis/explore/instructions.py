"""`explore_with_model`: a model asks and answers questions about a part of a database.

The progressive step of DB-Explore (arXiv 2503.04959): for the columns of one walk over the schema's
graph the model writes questions with SQL from simple to complex, a level each. It sees the tables,
values, what the data dictionary says, and the shape of some seed queries.
"""

from __future__ import annotations

import contextlib
import random
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

from sense_trl.generation.generator import Completion, SamplingConfig, SQLGenerator
from sense_trl.prompts import Messages, extract_sql
from sense_trl.schema.data_dictionary import DataDictionary
from sense_trl.schema.formats import format_schema
from sense_trl.schema.graph import ColumnName
from sense_trl.sql.parsing import SQLParseError
from sense_trl.synthesis.answers import find_json, is_refusal, is_text
from sense_trl.synthesis.example import Provenance, SynthesizedExample
from sense_trl.synthesis.explore.config import ExplorationConfig
from sense_trl.synthesis.explore.data_dictionary import NUM_SAMPLE_VALUES
from sense_trl.synthesis.explore.exploration import (
    ExplorationAccount,
    get_draw_seed,
    make_filters,
)
from sense_trl.synthesis.explore.facts import DatabaseFacts
from sense_trl.synthesis.explore.sql_sampler import LEVELS
from sense_trl.synthesis.explore.templates import (
    SQLTemplate,
    TemplateMiner,
    fill_template,
    get_complexity,
)
from sense_trl.synthesis.filters.contamination import EvaluationIndex
from sense_trl.synthesis.filters.filters import ExampleFilter, FilterPipeline
from sense_trl.verification.verifier import SQLVerifier

_BATCH_SIZE: Final = 16
_NUM_SHAPES: Final = 2
_MAX_QUESTION_CHARS: Final = 1_000
# Calls for each one that would be needed if every answer were good.
_CALLS_PER_NEEDED: Final = 3

_SYSTEM: Final = (
    "You write questions that people ask about a database, each with the one {dialect} query that "
    "answers it."
)
_REQUEST: Final = """\
{schema}
{meaning}
Write {num} questions about these columns: {columns}.
Go from simple to complex:

{levels}

Each question must be answerable from the database alone, name every value exactly as the data \
spells it, and read as somebody would ask who does not know how the tables are called. Each query \
must return at least one row, only what is asked for, and the same rows whenever it runs: no \
random, nothing about today, no LIMIT where rows could tie.
{shapes}
Answer with one JSON array and nothing else:

[{form}]"""
_LEVELS: Final = {
    1: "one table, at most one condition or one aggregate",
    2: "two tables joined, or one with groups, an order or several conditions",
    3: "a join with groups or an order, or a nested query",
    4: "several of: joins, nested queries, HAVING, INTERSECT, EXCEPT, UNION",
}


@dataclass(frozen=True, slots=True)
class Instruction:
    """One question of an answer; `level` is `None` where the model named none."""

    question: str
    sql: str
    level: int | None


def get_instruction_prompt(
    facts: DatabaseFacts,
    columns: Sequence[ColumnName],
    *,
    dictionary: DataDictionary | None = None,
    shapes: Sequence[str] = (),
) -> Messages:
    """Build the conversation that asks for one question of each level.

    Args:
        facts: the database. Shown are the tables of `columns` and those that join them.
        columns: what the questions are to be about.
        dictionary: what is known of tables and columns.
        shapes: queries on this database whose structure may serve as an example.
    """
    tables = list(dict.fromkeys(column.table for column in columns))
    edges = facts.graph.get_join_tree(tables) or ()
    shown = {*tables, *(t for edge in edges for t in (edge.table, edge.referenced_table))}
    schema = replace(facts.schema, tables=tuple(t for t in facts.schema.tables if t.name in shown))
    values = {
        (name.table, name.column): known.values[:NUM_SAMPLE_VALUES]
        for name, known in facts.columns.items()
        if name.table in shown
    }
    every = [name for name in facts.columns if name.table in shown]
    meaning = "" if dictionary is None else dictionary.describe(every)
    request = _REQUEST.format(
        schema=format_schema(schema, style="ddl", sample_values=values),
        meaning=f"\nWhat the columns mean:\n{meaning}\n" if meaning else "",
        num=len(LEVELS),
        columns=", ".join(map(str, columns)),
        levels="\n".join(f"{level}. {text}" for level, text in _LEVELS.items()),
        # All of them: a small model repeats what it is shown.
        form=",\n ".join(
            f'{{"level": {level}, "question": "...", "sql": "SELECT ..."}}' for level in LEVELS
        ),
        shapes="\nQueries may look like these:\n" + "\n".join(shapes) + "\n" if shapes else "",
    )
    return [
        {"role": "system", "content": _SYSTEM.format(dialect=facts.schema.dialect)},
        {"role": "user", "content": request},
    ]


def parse_instructions(text: str, *, is_whole: bool = True) -> list[Instruction]:
    """Read an answer: JSON objects anywhere in it, or lines labelled Question and SQL.

    Objects without a question or SQL are left out; the result may be empty.

    Args:
        text: the answer.
        is_whole: whether the model came to its end; otherwise the last labelled SQL, of which
            there may be a half, is left out.

    Example:
        >>> parse_instructions("1. Question: How many?\\nSQL: SELECT count(*) FROM pet;")
        [Instruction(question='How many?', sql='SELECT count(*) FROM pet', level=None)]
    """
    if not is_text(text):
        return []
    records = [record for value in find_json(text) for record in _objects(value)]
    found = [instruction for record in records if (instruction := _from_record(record))]
    if found:
        return found
    labelled = list(_from_labels(text))
    return labelled if is_whole else labelled[:-1]


def _objects(value: Any) -> list[dict[str, Any]]:
    """The objects in a JSON value: itself, its items, or the items of one of its fields."""
    if isinstance(value, list):
        return [item for item in value if isinstance(item, dict)]
    if not isinstance(value, dict):
        return []
    if any(isinstance(item, str) for item in value.values()):
        return [value]
    return [record for item in value.values() for record in _objects(item)]


def _from_record(record: dict[str, Any]) -> Instruction | None:
    fields = {str(name).strip().lower(): value for name, value in record.items()}
    question = fields.get("question") or fields.get("instruction")
    sql = fields.get("sql") or fields.get("query") or fields.get("sql_query")
    level = fields.get("level")
    if not isinstance(question, str) or not isinstance(sql, str):
        return None
    digits = re.search(r"[1-4]", str(level))
    return _make(question, sql, int(digits.group()) if digits else None)


# "2. **Question:** ...", the label of its SQL, and what ends that. The marks around a label are
# few: where several parts may take the same ones, long runs would be divided in all ways.
_MARKS: Final = r"[^\w\n]{0,40}"
_LABELS: Final = re.compile(
    rf"^{_MARKS}(?:(?P<sql>(?:sql|query|answer)[^\n:]{{0,20}}:)"
    rf"|(?:\d{{1,6}}[.)]{_MARKS})?(?:question(?:(?P<question>{_MARKS}\d{{0,6}}{_MARKS}:)|\b)"
    r"|level\b))",
    re.I | re.M,
)
_LEVEL_LABEL: Final = re.compile(r"\blevel[^\w\n]{0,40}([1-4])\b", re.I)


def _from_labels(text: str) -> Iterator[Instruction]:
    end = 0
    question: re.Match[str] | None = None
    sql: re.Match[str] | None = None
    for label in [*_LABELS.finditer(text), None]:
        if label is not None and label["sql"]:
            sql = label if question is not None and sql is None else sql
            continue
        if question is not None and sql is not None:
            level = _LEVEL_LABEL.search(text, end, question.end())
            end = len(text) if label is None else label.start()
            number = int(level.group(1)) if level else None
            made = _make(text[question.end() : sql.start()], text[sql.end() : end], number)
            if made is not None:
                yield made
            question = sql = None
        if label is not None and question is None and label["question"]:
            question = label


def _make(question: str, sql: str, level: int | None) -> Instruction | None:
    question = " ".join(question.split()).strip("*_` ")
    sql = extract_sql(sql)
    if not question or not sql or len(question) > _MAX_QUESTION_CHARS:
        return None
    return Instruction(question, sql, level)


def explore_with_model(
    facts: DatabaseFacts,
    verifier: SQLVerifier,
    generator: SQLGenerator,
    sampling: SamplingConfig,
    config: ExplorationConfig | None = None,
    *,
    dictionary: DataDictionary | None = None,
    templates: Sequence[SQLTemplate] = (),
    evaluation: EvaluationIndex | None = None,
    more_filters: Sequence[ExampleFilter] = (),
    account: ExplorationAccount | None = None,
) -> Iterator[SynthesizedExample]:
    """Have a model make questions with SQL about one database; see `explore_database`.

    Each call asks for one question of each level about the columns of one walk; at most three
    times as many calls are made as would do if every question passed. What is not made is counted
    by reason: `"unfinished"`, `"refusal"`, `"malformed"`. The level of an example is that of its
    SQL (see `get_complexity`), whatever the model says.

    Args:
        facts: the database; its schema's `db_id` is the one that the verifier's catalog knows.
        verifier: runs the queries, in worker processes if it has them: models write anything.
        generator: the model. In a `RecordedGenerator`, an interrupted exploration continues.
        sampling: how it answers.
        config: how many examples, and how columns are drawn.
        dictionary: what tables and columns mean.
        templates: shapes to show, filled with this database's names.
        evaluation: what must not leak into training data.
        more_filters: asked last, such as a `RoundTripFilter`.
        account: counts are added to it as the iterator goes on.

    Yields:
        Examples as they are made; fewer than asked for where the calls are used up.
    """
    config = ExplorationConfig() if config is None else config
    account = ExplorationAccount() if account is None else account
    db_id = facts.schema.db_id
    dialect = verifier.catalog.dialect(db_id)
    filters = make_filters(verifier, dialect, config, evaluation)
    pipeline = FilterPipeline([*filters, *more_filters])
    account.filters = pipeline.account
    miner = TemplateMiner(facts.graph)
    num_kept, num_calls = 0, 0
    max_calls = _CALLS_PER_NEEDED * -(-config.num_per_database // len(LEVELS))
    while num_kept < config.num_per_database and num_calls < max_calls:
        missing = -(-(config.num_per_database - num_kept) // len(LEVELS))
        calls = range(num_calls, min(max_calls, num_calls + min(missing, _BATCH_SIZE)))
        num_calls = calls.stop
        draws = [_draw(facts, config, dictionary, templates, call) for call in calls]
        answers = generator.generate([prompt for _, _, prompt in draws], sampling)
        made = []
        for (seed, columns, _), group in zip(draws, answers, strict=True):
            account.num_attempts += len(group)
            for answer in group:
                instructions = _read(answer)
                if isinstance(instructions, str):
                    account.not_made[instructions] += 1
                    continue
                origin = Provenance("explore_model", generator.name, seed, columns)
                made += [_make_example(i, db_id, origin, miner, dialect) for i in instructions]
        for example in pipeline.apply(made).kept:
            if num_kept == config.num_per_database:
                account.num_surplus += 1
                continue
            num_kept += 1
            yield example


def _draw(
    facts: DatabaseFacts,
    config: ExplorationConfig,
    dictionary: DataDictionary | None,
    templates: Sequence[SQLTemplate],
    call: int,
) -> tuple[int, tuple[str, ...], Messages]:
    """Seed, columns and prompt of a call."""
    seed = get_draw_seed(config.seed, facts.schema.db_id, call)
    rng = random.Random(seed)
    columns = facts.graph.sample(
        rng,
        min_columns=config.min_columns,
        max_columns=config.max_columns,
        restart=config.restart,
        weighted_share=config.weighted_share,
    )
    drawn = rng.sample(templates, min(len(templates), 4 * _NUM_SHAPES))
    filled = (fill_template(template, facts, columns, rng) for template in drawn)
    shapes = [sql for sql in filled if sql is not None][:_NUM_SHAPES]
    prompt = get_instruction_prompt(facts, columns, dictionary=dictionary, shapes=shapes)
    return seed, tuple(map(str, columns)), prompt


def _read(answer: Completion) -> list[Instruction] | str:
    """The instructions of an answer, or why there are none."""
    found = parse_instructions(answer.text, is_whole=answer.finished)
    if found:
        return found
    if not answer.finished:
        return "unfinished"
    return "refusal" if is_refusal(answer.text) else "malformed"


def _make_example(
    instruction: Instruction, db_id: str, origin: Provenance, miner: TemplateMiner, dialect: str
) -> SynthesizedExample:
    level = instruction.level
    # The filters say what is wrong with SQL that cannot be parsed.
    with contextlib.suppress(SQLParseError):
        level = get_complexity(instruction.sql, dialect)
    shape = miner.mine(instruction.sql)
    template = None if shape is None else shape.template_id
    return SynthesizedExample(
        instruction.question,
        instruction.sql,
        db_id,
        None if level is None else str(level),
        replace(origin, template=template),
    )
