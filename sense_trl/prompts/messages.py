"""`get_prompt`: the conversation that asks for one query."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final, Self

from sense_trl.database.engine import QueryResult, QueryStatus
from sense_trl.prompts.harmless import make_harmless, remove_control_tokens

# A conversation in the form chat templates and TRL expect.
Messages = list[dict[str, str]]

DIALECT_MARK: Final = "{dialect}"
"""Stands for the name of the SQL dialect in an instruction."""
INSTRUCTION: Final = f"Write one {DIALECT_MARK} query that answers the question."

_MAX_SQL_CHARS: Final = 4_000
_MAX_PROBLEM_CHARS: Final = 300
# An error of DuckDB, which names its kind first.
_KIND: Final = re.compile(r"(\w[\w ]*? Error): ")
# The kinds that quote the query and names alone; the others come from the data, and quote it.
_HARMLESS_KINDS: Final = frozenset({"Parser Error", "Binder Error", "Catalog Error"})
_DIALECT_NAMES: Final = {"sqlite": "SQLite", "duckdb": "DuckDB", "postgres": "PostgreSQL"}


def get_prompt(
    question: str,
    schema_text: str,
    *,
    dialect: str = "sqlite",
    evidence: str | None = None,
    matched_values: str = "",
    instruction: str = INSTRUCTION,
) -> Messages:
    """Build the conversation that asks for one query.

    The instruction and the schema form the system message and what depends on the question the user
    message, so that all questions on one database share the longest possible prefix: generation
    prefills it once.

    Args:
        question: the user's question.
        schema_text: the schema as `format_schema` writes it.
        dialect: sqlglot name of the SQL dialect to ask for.
        evidence: external knowledge (BIRD), put before the question.
        matched_values: a line on values that the question seems to name, put before the question.
        instruction: what is asked for; `{dialect}` in it becomes the name of the dialect.

    Returns:
        Two messages, `system` and `user`.
    """
    asked = instruction.replace(DIALECT_MARK, _DIALECT_NAMES.get(dialect, dialect))
    parts = ((evidence or "").strip(), matched_values, question)
    return [
        {"role": "system", "content": f"{asked}\n\n{schema_text}"},
        {"role": "user", "content": "\n".join(filter(None, parts))},
    ]


@dataclass(frozen=True, slots=True)
class Attempt:
    """A query that did not answer the question, and what the database said.

    Attributes:
        sql: as the model wrote it.
        problem: the database's error, or that there are no rows.
        runs: whether it ran, and found no rows.
    """

    sql: str
    problem: str
    runs: bool = False

    @classmethod
    def of(cls, sql: str, result: QueryResult) -> Self | None:
        """Make an attempt of a query that went wrong; `None` if it gave rows.

        This alone decides whether a model is asked again. Of a result without a row nothing is
        known to be wrong, but that is what a value that is spelt otherwise looks like. An error
        that quotes a value of the data is named without it.
        """
        if result.ok:
            no_rows = "The query runs, but finds no rows."
            return None if result.rows else cls(sql, no_rows, runs=True)
        if result.status is QueryStatus.TIMEOUT:
            return cls(sql, "The query takes too long.")
        if result.status is QueryStatus.TOO_LARGE:
            return cls(sql, "The result of the query is too large.")
        error = result.error or ""
        kind = _KIND.match(error)
        if kind is not None and kind[1] not in _HARMLESS_KINDS:
            error = f"{kind[1]} at a value of the data."
        return cls(sql, f"The database says: {error}")


def choose_answer(attempts: Sequence[Attempt | None]) -> int:
    """Choose the answer to a question: the first with rows, else that runs, else the first.

    Args:
        attempts: of each answer in turn what went wrong with it, `None` where it gave rows; at
            least one.

    Returns:
        Its index.

    Example:
        >>> empty, broken = Attempt("SELECT 1 WHERE 0", "no rows", runs=True), Attempt("SELEC", "?")
        >>> choose_answer([empty, broken]), choose_answer([broken, empty, None])
        (0, 2)
    """
    ranks = [0 if attempt is None else 2 - attempt.runs for attempt in attempts]
    return ranks.index(min(ranks))


def add_attempts(messages: Messages, attempts: Iterable[Attempt]) -> Messages:
    """The conversation after queries that failed: each as the answer, with what the database said.

    Queries and errors are cut, and control tokens taken out of them: a model wrote the one, and the
    other quotes it.
    """
    turns = []
    for attempt in attempts:
        problem = make_harmless(attempt.problem)[:_MAX_PROBLEM_CHARS]
        turns += [
            {
                "role": "assistant",
                "content": remove_control_tokens(attempt.sql)[:_MAX_SQL_CHARS].strip(),
            },
            {"role": "user", "content": f"{problem}\nWrite the query that answers the question."},
        ]
    return [*messages, *turns]
