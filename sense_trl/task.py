"""`TextToSQLTask`: databases, questions and prompts that belong together."""

from __future__ import annotations

import logging
import random
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final

from sense_trl.database.catalog import DatabaseCatalog
from sense_trl.database.engine import ExecutionLimits
from sense_trl.errors import InputError
from sense_trl.options import DataArguments
from sense_trl.prompts import Attempt, Messages, PromptStyle
from sense_trl.prompts.style import get_style
from sense_trl.prompts.writer import MakeLinker, PromptWriter
from sense_trl.questions import Question, describe_unusable, load_questions
from sense_trl.schema import (
    DatabaseSchema,
    check_tables,
    get_schema,
    load_spider_schemas,
)
from sense_trl.sql.spans import SCHEMA_ITEMS, get_maskable_spans
from sense_trl.verification.gold import find_contradictory_gold, find_unusable_gold
from sense_trl.verification.verifier import SQLVerifier

logger = logging.getLogger(__name__)

_MAX_NAMED: Final = 5


@dataclass(frozen=True, slots=True)
class TextToSQLTask:
    """Questions on databases with everything needed to prompt for and to check an answer.

    Attributes:
        catalog: the databases.
        questions: usable questions: the database exists and, where `load_task` has looked, the gold
            query runs.
        writer: makes prompts.
        unusable: question id to the reason it was left out.
        attempts: queries that failed before, by question id: prompts go on with them.
    """

    catalog: DatabaseCatalog
    questions: tuple[Question, ...]
    writer: PromptWriter
    unusable: dict[str, str]
    attempts: Mapping[str, Sequence[Attempt]] = field(default_factory=dict)

    @property
    def schemas(self) -> dict[str, DatabaseSchema]:
        """Schema per database of these questions."""
        names = sorted({question.db_id for question in self.questions})
        return {db_id: self.writer.get_schema(db_id) for db_id in names}

    def get_messages(self, question: Question) -> Messages:
        """The prompt of a question."""
        return self.writer.get_messages(
            question.db_id,
            question.question,
            evidence=question.evidence,
            attempts=self.attempts.get(question.question_id, ()),
        )

    def get_training_messages(
        self, question: Question, attempts: Iterable[Attempt] = ()
    ) -> Messages:
        """The prompt with all that gold uses, however wide the schema is.

        Args:
            question: of the task.
            attempts: queries that failed before.
        """
        return self.writer.get_messages(
            question.db_id,
            question.question,
            evidence=question.evidence,
            gold_sql=question.gold_sql,
            attempts=attempts,
        )

    def select(self, questions: Sequence[Question]) -> TextToSQLTask:
        """The same task with some of its questions."""
        return replace(self, questions=tuple(questions))

    def prompt_completion_rows(
        self, questions: Sequence[Question], *, mask_spans: bool = False
    ) -> list[dict[str, Any]]:
        """Rows `{db_id, prompt, completion}` (conversational) for fine-tuning on gold.

        Args:
            questions: of the task; of one that has a `completion`, that is the answer.
            mask_spans: whether to add `mask_spans`, in which `KIDTrainer` finds the schema items
                and literals of an answer: a list of `[start, end]` in characters.

        Raises:
            InputError: a question has a `completion`, and `mask_spans` is true.
        """
        rows = []
        for question in questions:
            row: dict[str, Any] = {
                "db_id": question.db_id,
                "prompt": self.get_training_messages(question),
                "completion": [
                    {"role": "assistant", "content": question.completion or question.gold_sql}
                ],
            }
            if mask_spans and question.completion is not None:
                raise InputError(
                    f"The question {question.question_id} has a `completion`, in which schema "
                    "items are not looked for; mask tokens instead, or leave `completion` out."
                )
            if mask_spans:
                dialect = self.catalog.dialect(question.db_id)
                spans = get_maskable_spans(question.gold_sql, dialect, kinds=SCHEMA_ITEMS)
                row["mask_spans"] = [[span.start, span.end] for span in spans]
            rows.append(row)
        return rows


def load_task(
    arguments: DataArguments,
    style: PromptStyle | None = None,
    *,
    count_tokens: Callable[[str], int] | None = None,
    make_linker: MakeLinker | None = None,
    limits: ExecutionLimits | None = None,
) -> TextToSQLTask:
    """Open the databases, read the questions and check every gold query once.

    Args:
        arguments: databases and questions.
        style: of the prompts; `get_style(arguments)` if not given.
        count_tokens: see `PromptWriter`.
        make_linker: likewise.
        limits: of each query, those of gold among them; the catalog's own if not given.

    Raises:
        InputError: unusable arguments or files; more unusable questions than
            `max_unusable_fraction` allows, each named with the reason.
        DatabaseError: a database cannot be read.
    """
    style = get_style(arguments) if style is None else style
    catalog = DatabaseCatalog.from_path(arguments.database, limits=limits)
    only = catalog.db_ids[0] if len(catalog.db_ids) == 1 else None
    questions = load_questions(arguments.questions, default_db_id=only)
    if arguments.split is not None:
        splits = {question.split for question in questions}
        questions = [q for q in questions if q.split == arguments.split]
        if not questions:
            raise InputError(
                f"`split` is {arguments.split!r}, but no question in {arguments.questions!r} has "
                f"it; found {sorted(map(str, splits))}."
            )
    questions = draw_questions(
        questions, arguments.max_questions, arguments.subset_seed, argument="max_questions"
    )
    unusable = find_unusable_gold(catalog, questions)
    if len(unusable) > arguments.max_unusable_fraction * len(questions):
        allowed = arguments.max_unusable_fraction
        said = describe_unusable(unusable, len(questions), repr(arguments.questions), allowed)
        if any(question.db_id not in catalog for question in questions):
            shown = ", ".join(map(repr, catalog.db_ids[:_MAX_NAMED]))
            more = ", ..." * (len(catalog) > _MAX_NAMED)
            said += f" A `db_id` is the name of a database there: {shown}{more}."
        raise InputError(said)
    usable = tuple(q for q in questions if q.question_id not in unusable)
    if not usable:
        place, reason = next(iter(unusable.items()))
        raise InputError(
            f"None of the {len(questions)} questions in {arguments.questions!r} can be used; "
            f"{place}: {reason}"
        )
    with SQLVerifier(catalog) as verifier:
        contradictions = find_contradictory_gold(verifier, usable)
    if contradictions:
        shown = "; ".join(" and ".join(pair) for pair in contradictions[:5])
        logger.warning(
            "%d of the questions in %r repeat another one, but their gold SQL gives another "
            "result: %s. At most one of each can be right: mend or remove the other.",
            len(contradictions),
            arguments.questions,
            shown,
        )
    return make_task(
        catalog,
        usable,
        tables_json=arguments.tables_json,
        style=style,
        description_source=arguments.description_source,
        count_tokens=count_tokens,
        make_linker=make_linker,
        unusable=unusable,
    )


def make_task(
    catalog: DatabaseCatalog,
    questions: Sequence[Question],
    *,
    tables_json: str | None = None,
    style: PromptStyle | None = None,
    description_source: str | None = None,
    count_tokens: Callable[[str], int] | None = None,
    make_linker: MakeLinker | None = None,
    unusable: Mapping[str, str] | None = None,
) -> TextToSQLTask:
    """Put together a task whose gold queries are not looked at.

    Args:
        catalog: the databases.
        questions: on some of them.
        tables_json: Spider's, for schemas with all foreign keys.
        style: of the prompts; `PromptStyle()` if not given. One that shows values reads them when
            a question is asked, so the catalog has to be open then.
        description_source: see `PromptWriter`.
        count_tokens: likewise.
        make_linker: likewise.
        unusable: question id to the reason, for questions that were left out.

    Raises:
        InputError: an unknown `db_id`, or a `tables_json` that cannot be read.
        DatabaseError: a database cannot be read, or has no tables.

    Example:
        >>> import sqlite3, tempfile, pathlib
        >>> folder = pathlib.Path(tempfile.mkdtemp())
        >>> connection = sqlite3.connect(folder / "pets.sqlite")
        >>> _ = connection.execute("CREATE TABLE pet (name TEXT, age INTEGER)")
        >>> connection.close()
        >>> question = Question("q1", "pets", "How old is Rex?", "SELECT age FROM pet")
        >>> with DatabaseCatalog.from_path(folder) as catalog:
        ...     task = make_task(catalog, [question], style=PromptStyle(num_matched_values=0))
        >>> task.get_messages(question)[0]["content"].splitlines()[-1]
        'pet(name, age)'
    """
    writer = PromptWriter(
        catalog,
        style,
        schemas=read_schemas(catalog, {q.db_id for q in questions}, tables_json),
        description_source=description_source,
        count_tokens=count_tokens,
        make_linker=make_linker,
    )
    return TextToSQLTask(catalog, tuple(questions), writer, dict(unusable or {}))


def draw_questions(
    questions: list[Question], size: int | None, seed: int, *, argument: str
) -> list[Question]:
    """At most `size` questions, drawn at random, in their order; `argument` names the setting.

    Raises:
        InputError: `size` is below 1.
    """
    if size is None or size >= len(questions):
        return questions
    if size < 1:
        raise InputError(f"`{argument}` is {size}; expected at least 1.")
    kept = set(random.Random(seed).sample(range(len(questions)), size))
    return [question for index, question in enumerate(questions) if index in kept]


def read_schemas(
    catalog: DatabaseCatalog, db_ids: set[str], tables_json: str | None
) -> dict[str, DatabaseSchema]:
    """The schemas of databases, from Spider's tables.json where it has them.

    Raises:
        InputError: `tables_json` cannot be read.
        DatabaseError: a database cannot be read, or has no tables.
    """
    declared = load_spider_schemas(Path(tables_json)) if tables_json else {}
    schemas = {
        # The file says nothing of a dialect: Spider's databases may have been converted.
        db_id: replace(declared[db_id], dialect=catalog.dialect(db_id))
        if db_id in declared
        else get_schema(catalog.engine(db_id), db_id)
        for db_id in sorted(db_ids)
    }
    for db_id, schema in schemas.items():
        check_tables(schema, catalog.path(db_id))
    return schemas
