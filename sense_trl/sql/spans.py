"""Finds schema items and literals in the text of a query: `get_maskable_spans`."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

from sqlglot import exp

from sense_trl.sql.parsing import parse_sql


class SpanKind(StrEnum):
    """The kind of an item of a query."""

    TABLE = "table"
    COLUMN = "column"
    LITERAL = "literal"
    """A number without its sign, or a string with its quotes."""
    QUOTED = "quoted"
    """A word in double quotes: to SQLite a column where there is one, and a string otherwise."""
    QUALIFIER = "qualifier"
    """The word before the dot of a column: an alias, or the name of a table."""
    ALIAS = "alias"
    """A name that the query itself gives, where it gives it and where it uses it alone."""


SCHEMA_ITEMS: Final = frozenset(
    {SpanKind.TABLE, SpanKind.COLUMN, SpanKind.LITERAL, SpanKind.QUOTED}
)
"""Kinds that take knowledge of the database; qualifiers and aliases follow from the rest."""


@dataclass(frozen=True, order=True, slots=True)
class Span:
    """The characters `[start, end)` of a text, and what they are."""

    start: int
    end: int
    kind: SpanKind


def get_maskable_spans(
    sql: str, dialect: str = "sqlite", *, kinds: Collection[SpanKind] = tuple(SpanKind)
) -> tuple[Span, ...]:
    """Find the tables, columns, literals and aliases of a query, each as a whole.

    `sql[span.start:span.end]` is the item as it is written, quotes included; the spans do not
    overlap and are in the order of the text. Keywords, functions, operators, stars, types and the
    database of a qualified table are none, nor are the rare spellings `.5` and `x'ff'`. Which names
    mean what is read from the query alone, without its schema.

    A trainer that masks whole items reads them as a column of its dataset, `mask_spans`: a list of
    `[start, end]`, counted from the start of the completion. For a completion that is the query:

        spans = get_maskable_spans(completion, kinds=SCHEMA_ITEMS)
        {"mask_spans": [[span.start, span.end] for span in spans]}

    and for one that says something before it, with the length of that added to both numbers.

    Args:
        sql: one query.
        dialect: its dialect.
        kinds: which items to return, such as `SCHEMA_ITEMS`.

    Raises:
        SQLParseError: the text is not one statement of the dialect.

    Example:
        >>> sql = "SELECT T1.name FROM singer AS T1 WHERE age > 30"
        >>> [(sql[span.start:span.end], str(span.kind)) for span in get_maskable_spans(sql)][:3]
        [('T1', 'qualifier'), ('name', 'column'), ('singer', 'table')]
    """
    tree = parse_sql(sql, dialect)
    names = _Names.of(tree)
    spans = {}
    for node in tree.find_all(exp.Identifier, exp.Literal):
        # What the parser adds by itself stands nowhere, and what it copies stands where it did.
        if "start" not in node.meta:
            continue
        start, end = node.meta["start"], node.meta["end"] + 1
        kind = SpanKind.LITERAL if isinstance(node, exp.Literal) else _get_kind(node, names)
        if kind is SpanKind.COLUMN and dialect == "sqlite" and _may_be_string(node, sql[start]):
            kind = SpanKind.QUOTED
        if kind is not None and kind in kinds:
            spans[start] = Span(start, end, kind)
    return tuple(sorted(spans.values()))


@dataclass(frozen=True, slots=True)
class _Names:
    """The names that a query gives, in lower case."""

    queries: frozenset[str]
    columns: frozenset[str]

    @classmethod
    def of(cls, tree: exp.Expression) -> _Names:
        return cls(
            frozenset(cte.alias.lower() for cte in tree.find_all(exp.CTE)),
            frozenset(alias.alias.lower() for alias in tree.find_all(exp.Alias)),
        )


_CLAUSES_OF_RESULT: Final = (exp.Order, exp.Group, exp.Having)


def _get_kind(name: exp.Identifier, names: _Names) -> SpanKind | None:
    parent, role = name.parent, name.arg_key
    if isinstance(parent, exp.Column):
        if role == "table":
            return SpanKind.QUALIFIER
        return SpanKind.ALIAS if _is_alias(parent, names) else SpanKind.COLUMN
    if isinstance(parent, exp.Table) and role == "this":
        return SpanKind.ALIAS if name.name.lower() in names.queries else SpanKind.TABLE
    if isinstance(parent, (exp.Alias, exp.TableAlias)):
        return SpanKind.ALIAS
    if isinstance(parent, exp.Join) and role == "using":
        return SpanKind.COLUMN
    return None


def _is_alias(column: exp.Column, names: _Names) -> bool:
    """Whether a column is the name of a result column, which only some clauses can use."""
    if column.table or column.name.lower() not in names.columns:
        return False
    return isinstance(column.find_ancestor(exp.Select, *_CLAUSES_OF_RESULT), _CLAUSES_OF_RESULT)


def _may_be_string(name: exp.Identifier, first_character: str) -> bool:
    column = name.parent
    return first_character == '"' and isinstance(column, exp.Column) and not column.table
