"""`infer_foreign_keys`: which columns refer to which, in a database that does not say so.

Three things speak for a reference: the name of the column, its type, and its values, which are all
found in a column of another table that never repeats. Values alone say little (1, 2, 3 are found
in every column of ids), so numbers need a name; texts that are all found need none.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Final

from sense_trl.database.engine import SQLEngine, TableInfo
from sense_trl.database.profile import ForeignKeyColumns
from sense_trl.database.text import get_nameable_tables, quote_name
from sense_trl.errors import InputError
from sense_trl.schema.naming import get_words, singular
from sense_trl.schema.schema import DatabaseSchema
from sense_trl.sql.resolution import get_type_class

_MAX_STEPS: Final = 50_000_000
_MIN_OVERLAP: Final = 0.5
# Texts that are all found without a name that says so: this many, or chance explains it.
_MIN_UNNAMED_VALUES: Final = 5
_UNNAMED: Final = 0.5
_NO_ROWS: Final = 0.7
_KEY_WORDS: Final = frozenset({"id", "code", "key", "number", "no", "nr"})
# Names that say nothing about which table they refer to.
_GENERIC: Final = frozenset(
    {
        *("id", "code", "key", "number", "num", "no", "nr", "ssn", "uid", "name", "title", "type"),
        *("index", "rank", "year", "date", "time", "status", "description", "details", "count"),
    }
)
# A shorter end of a name is found by chance.
_MIN_ENDING: Final = 4


@dataclass(frozen=True, slots=True)
class InferredForeignKey:
    """A reference that the database does not declare.

    Attributes:
        table: that refers.
        column: that refers.
        referenced_table: what is referred to.
        referenced_column: never repeats, or is the declared primary key.
        confidence: from 0 to 1: how much the name says, times the share of the distinct values
            that are found (0.7 where there are none). A rank, not a calibrated probability.
        evidence: what speaks for it, in words.
    """

    table: str
    column: str
    referenced_table: str
    referenced_column: str
    confidence: float
    evidence: tuple[str, ...]

    @property
    def columns(self) -> ForeignKeyColumns:
        """Table, column, referenced table, referenced column."""
        return self.table, self.column, self.referenced_table, self.referenced_column


def infer_foreign_keys(
    engine: SQLEngine, schema: DatabaseSchema, *, min_confidence: float = 0.5
) -> tuple[InferredForeignKey, ...]:
    """Find the references between tables from names, types and values.

    Foreign keys that `schema` declares are not looked at. At most one reference is found for a
    column. References of several columns, and of a table to itself, are not found.

    Args:
        engine: runs the queries that count values; what its limits stop counts as unknown.
        schema: tables, columns and primary keys.
        min_confidence: references below it are left out, in [0, 1].

    Returns:
        The references in the order of the schema.

    Raises:
        InputError: `min_confidence` is out of its range.
    """
    if not 0 <= min_confidence <= 1:
        raise InputError(f"`min_confidence` is {min_confidence}; expected a number from 0 to 1.")
    columns = [
        column
        for table in get_nameable_tables(schema.tables)
        if not table.is_view
        for column in _read_columns(engine, table)
    ]
    candidates = [
        (found, child, parent)
        for child in columns
        for parent in columns
        if (found := _weigh(engine, child, parent)) is not None
        and found.confidence >= min_confidence
    ]
    # Of two tables that could refer to each other, the one that is named refers to nothing.
    candidates.sort(
        key=lambda c: (c[0].confidence, c[2].names_own_table, c[2].is_primary, c[2].num_distinct),
        reverse=True,
    )
    taken: set[tuple[str, str]] = set()
    pairs: set[tuple[str, str, str, str]] = set()
    for found, child, parent in candidates:
        if child.place not in taken and (*parent.place, *child.place) not in pairs:
            taken.add(child.place)
            pairs.add(found.columns)
    order = {column.place: number for number, column in enumerate(columns)}
    kept = [found for found, _, _ in candidates if found.columns in pairs]
    return tuple(sorted(kept, key=lambda found: order[found.table, found.column]))


@dataclass(frozen=True, slots=True)
class _Column:
    """A column and what counting its values told; counts are 0 where they are unknown."""

    table: str
    name: str
    type_class: str
    is_primary: bool
    num_rows: int
    num_distinct: int

    @property
    def place(self) -> tuple[str, str]:
        return self.table, self.name

    @property
    def is_unique(self) -> bool:
        if not self.num_rows:
            return self.is_primary
        return self.num_distinct == self.num_rows

    @property
    def names_own_table(self) -> bool:
        """Whether it is named as the key of its own table: `singer_id` of `singer`."""
        return _plain(self.name).startswith(_plain(self.table))


def _read_columns(engine: SQLEngine, table: TableInfo) -> Iterator[_Column]:
    counts = ", ".join(f"count(DISTINCT {quote_name(c.name)})" for c in table.columns)
    result = engine.execute(
        f"SELECT count(*), {counts} FROM {quote_name(table.name)}",
        limits=replace(engine.limits, max_steps=_MAX_STEPS),
    )
    num_rows, *distinct = result.rows[0] if result.ok else [0] * (len(table.columns) + 1)
    primary = [column for column in table.columns if column.primary_key]
    for column, num_distinct in zip(table.columns, distinct, strict=True):
        assert isinstance(num_rows, int) and isinstance(num_distinct, int)
        yield _Column(
            table.name,
            column.name,
            get_type_class(column.type),
            primary == [column],
            num_rows,
            num_distinct,
        )


def _weigh(engine: SQLEngine, child: _Column, parent: _Column) -> InferredForeignKey | None:
    """The reference of one column to another, if names, types and values allow it."""
    if child.table == parent.table or not parent.is_unique:
        return None
    types = {child.type_class, parent.type_class}
    # SQLite compares across types, and people declare ids as text there.
    if engine.dialect != "sqlite" and len(types) > 1 and "other" not in types:
        return None
    name, reason = _weigh_names(child, parent)
    # More values than the other column has cannot all be found in it, which needs no counting.
    may_hold_all = _MIN_UNNAMED_VALUES <= child.num_distinct <= parent.num_distinct
    is_text = types == {"text"} and may_hold_all
    if not name and not is_text:
        return None
    evidence = [reason] if reason else []
    if child.num_distinct and parent.num_distinct:
        num_found = _count_found(engine, child, parent)
        overlap = num_found / child.num_distinct
        if overlap < (_MIN_OVERLAP if name else 1):
            return None
        evidence.append(f"{num_found} of {child.num_distinct} distinct values found")
    else:
        overlap = _NO_ROWS
        evidence.append("no rows to compare")
    evidence.append("declared primary key" if parent.is_primary else "values never repeat")
    confidence = round((name or _UNNAMED) * overlap, 3)
    return InferredForeignKey(*child.place, *parent.place, confidence, tuple(evidence))


def _count_found(engine: SQLEngine, child: _Column, parent: _Column) -> int:
    """Distinct values of `child` that `parent` has; 0 if that takes too long."""
    column, key = quote_name(child.name), quote_name(parent.name)
    result = engine.execute(
        f"SELECT count(DISTINCT {column}) FROM {quote_name(child.table)} WHERE {column} IN "
        f"(SELECT {key} FROM {quote_name(parent.table)})",
        limits=replace(engine.limits, max_steps=_MAX_STEPS),
    )
    count = result.rows[0][0] if result.ok else 0
    assert isinstance(count, int)
    return count


def _weigh_names(child: _Column, parent: _Column) -> tuple[float, str]:
    """From 0 to 1, how much the name of a column says that it refers to another, and why."""
    column, key, table = _plain(child.name), _plain(parent.name), _plain(parent.table)
    is_telling = parent.name.lower() not in _GENERIC
    words, table_words = get_words(child.name), _telling_words(parent.table)
    weight, reason = 0.0, ""
    if column == key and is_telling:
        weight, reason = 1.0, "same name"
    elif column == table + key:
        weight, reason = 1.0, "named after table and key"
    elif is_telling and len(key) >= _MIN_ENDING and column.endswith(key):
        weight, reason = 0.8, "name ends with the key's"
    elif column.endswith(table + key):
        weight, reason = 0.8, "name ends with table and key"
    elif parent.is_primary and column.endswith(table):
        weight, reason = 0.8, "named after the table"
    elif (
        parent.is_primary
        and table_words
        and set(words) >= table_words
        and words[-1] in _KEY_WORDS | table_words
    ):
        weight, reason = 0.6, "holds the words of the table"
    # `singer_id` of `singer` is what others refer to.
    if child.names_own_table and child.is_unique:
        weight *= 0.5
    return weight, reason


# Each name is compared with every other one.
@functools.lru_cache(maxsize=65_536)
def _plain(name: str) -> str:
    """A name in lower case without spaces and underscores, its last word in the singular."""
    words = get_words(name) or [name.lower()]
    return "".join([*words[:-1], singular(words[-1])])


@functools.lru_cache(maxsize=65_536)
def _telling_words(name: str) -> frozenset[str]:
    return frozenset(singular(word) for word in get_words(name)) - _GENERIC
