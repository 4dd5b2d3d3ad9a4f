"""`DatabaseFacts`: what drawing a query from a database needs to know about it."""

from __future__ import annotations

import random
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Final, TypeGuard

from sense_trl.database.engine import SQLEngine
from sense_trl.database.profile import (
    ColumnProfile,
    ForeignKeyColumns,
    TableProfile,
    profile_database,
    shape_of,
)
from sense_trl.database.text import get_nameable_tables, quote_name
from sense_trl.schema.graph import ColumnName, SchemaGraph
from sense_trl.schema.naming import get_words
from sense_trl.schema.schema import DatabaseSchema, get_schema
from sense_trl.sql.resolution import get_type_class

_MAX_VALUES: Final = 500
_MAX_TEXT_CHARS: Final = 60
_MIN_WORD_CHARS: Final = 3
_KEY_WORDS: Final = frozenset({"id", "code", "key", "uid", "ssn", "isbn"})
_NESTED_TYPE: Final = re.compile(r"\]$|^(?:STRUCT|MAP|UNION)\b")
_DATE_SHAPES: Final = ("9999-99-99", "99/99/9999", "9/99/9999", "9/9/9999", "99:99:99")


class ColumnRole(StrEnum):
    """The role of a column in a query."""

    KEY = "key"
    """It identifies rows or refers to them: joined on and counted, never added up."""
    NUMBER = "number"
    TEXT = "text"
    TIME = "time"
    """A date or a time written as text: it has an order and no sum."""


@dataclass(frozen=True, slots=True)
class ColumnFacts:
    """A column, its role and values that occur in it.

    Attributes:
        name: with its table.
        role: what it is good for.
        values: distinct numbers or texts, those that can stand in a query and a question.
        repeats: whether a value occurs twice, so that grouping by the column says something.
    """

    name: ColumnName
    role: ColumnRole
    values: tuple[int | float | str, ...]
    repeats: bool

    def draw_value(self, rng: random.Random) -> int | float | str | None:
        """A value that occurs; `None` if there is none."""
        return rng.choice(self.values) if self.values else None

    def draw_bound(self, rng: random.Random) -> int | float | str | None:
        """A value with others on both sides of it where that can be; `None` if there is none."""
        if not self.values:
            return None
        ordered = sorted(self.values, key=lambda value: (isinstance(value, str), value))
        margin = len(ordered) // 5
        return ordered[rng.randint(margin, len(ordered) - 1 - margin)]

    def draw_word(self, rng: random.Random) -> str | None:
        """A word of a text that occurs, to look for; `None` if there is none."""
        texts = [value for value in self.values if isinstance(value, str)]
        words = [w for w in rng.choice(texts).split() if w.isalnum()] if texts else []
        words = [word for word in words if len(word) >= _MIN_WORD_CHARS]
        return rng.choice(words) if words else None


@dataclass(frozen=True, slots=True)
class DatabaseFacts:
    """A database as queries are drawn from it.

    Attributes:
        graph: which columns belong together.
        columns: facts of each column of the graph.
        num_rows: of each table; 0 where counting failed.
    """

    graph: SchemaGraph
    columns: Mapping[ColumnName, ColumnFacts]
    num_rows: Mapping[str, int]

    @property
    def schema(self) -> DatabaseSchema:
        """The schema of the graph."""
        return self.graph.schema

    def of_table(self, table: str) -> list[ColumnFacts]:
        """The facts of a table's columns, in their order."""
        return [facts for name, facts in self.columns.items() if name.table == table]


def get_database_facts(
    engine: SQLEngine,
    *,
    schema: DatabaseSchema | None = None,
    foreign_keys: Sequence[ForeignKeyColumns] = (),
    seed_sql: Iterable[str] = (),
) -> DatabaseFacts:
    """Read a database's columns, keys and values.

    Args:
        engine: an open database.
        schema: what is known of it elsewhere (`tables.json`): its foreign keys are added, but for
            those that name what the database does not have.
        foreign_keys: references besides the declared ones.
        seed_sql: training queries on this database, see `SchemaGraph`.

    Raises:
        DatabaseError: the database cannot be read.
        InputError: a foreign key names what is not there.
    """
    # The database's own spelling and types, and the better keys.
    declared = get_schema(engine, None if schema is None else schema.db_id)
    given = [*_get_known_keys(schema, declared), *foreign_keys]
    profile = profile_database(engine, foreign_keys=given)
    num_rows = {table.name: _count_rows(engine, table.name) for table in profile.tables}
    described = {
        ColumnName(table.name, column.name): _describe(
            table, column, table.is_key(position), num_rows[table.name]
        )
        for table in profile.tables
        for position, column in enumerate((*table.columns, *table.generated))
    }
    repeating = {(c.table.lower(), c.column.lower()) for c, f in described.items() if f.repeats}
    # One column of a key of several: joined on alone it pairs what does not belong together.
    given = [key for key in given if (key[2].lower(), key[3].lower()) not in repeating]
    tables = tuple(t for t in get_nameable_tables(declared.tables) if t.name in num_rows)
    graph = SchemaGraph(replace(declared, tables=tables), foreign_keys=given, seed_sql=seed_sql)
    roles = get_roles(graph)
    columns = {
        name: replace(described[name], role=_get_role(roles[name], described[name].values))
        for name in graph.columns
    }
    return DatabaseFacts(graph, columns, num_rows)


def _get_known_keys(
    schema: DatabaseSchema | None, declared: DatabaseSchema
) -> list[ForeignKeyColumns]:
    """The foreign keys of `schema` between columns that the database has."""
    own = {(t.name.lower(), c.name.lower()) for t in declared.tables for c in t.columns}
    return [
        (table, column, key.referenced_table, referenced)
        for table, key in (() if schema is None else schema.foreign_keys)
        for column, referenced in zip(key.columns, key.referenced_columns, strict=False)
        if {(table.lower(), column.lower()), (key.referenced_table.lower(), referenced.lower())}
        <= own
    ]


def get_roles(graph: SchemaGraph) -> dict[ColumnName, ColumnRole]:
    """The role of each column, by its keys, its name and its declared type."""
    keys = {column for edge in graph.join_edges for pair in edge.pairs for column in pair}
    roles = {}
    for table in graph.schema.tables:
        for column in table.columns:
            name = ColumnName(table.name, column.name)
            words = get_words(column.name)
            is_named_key = bool(words) and (words[-1] in _KEY_WORDS or words[-1].endswith("id"))
            if name in keys or column.primary_key or is_named_key:
                roles[name] = ColumnRole.KEY
            else:
                # A list or a struct of numbers is no number: INTEGER[], STRUCT(a INTEGER).
                is_nested = _NESTED_TYPE.search(column.type.upper()) is not None
                type_class = "other" if is_nested else get_type_class(column.type)
                roles[name] = _TYPE_ROLES.get(type_class, ColumnRole.TEXT)
    return roles


_TYPE_ROLES: Final = {
    "number": ColumnRole.NUMBER,
    "time": ColumnRole.TIME,
    "boolean": ColumnRole.TEXT,
}


def _count_rows(engine: SQLEngine, table: str) -> int:
    result = engine.execute(f"SELECT count(*) FROM {quote_name(table)}")
    count = result.rows[0][0] if result.ok else 0
    assert isinstance(count, int)
    return count


def _describe(
    table: TableProfile, column: ColumnProfile, is_key: bool, num_rows: int
) -> ColumnFacts:
    # Of a large table only a part of the values is known.
    repeats = 1 < len(column.values) < num_rows and not is_key
    values = tuple(map(_shorten, filter(_is_sayable, column.values)))[:_MAX_VALUES]
    return ColumnFacts(ColumnName(table.name, column.name), ColumnRole.TEXT, values, repeats)


def _get_role(declared: ColumnRole, values: Sequence[object]) -> ColumnRole:
    """SQLite holds what it is given: the values tell more than the declared type."""
    if declared is ColumnRole.KEY or not values:
        return declared
    if all(isinstance(value, (int, float)) for value in values):
        return ColumnRole.NUMBER
    shapes = {shape_of(value[:10]) for value in values if isinstance(value, str)}
    return ColumnRole.TIME if shapes and shapes.issubset(_DATE_SHAPES) else ColumnRole.TEXT


def _shorten(value: int | float | str) -> int | float | str:
    """A number as people write it: 3 rather than 3.0, which SQL takes for the same."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _is_sayable(value: object) -> TypeGuard[int | float | str]:
    """Whether a value can be written into a question and read back from it."""
    if isinstance(value, float):
        return value == value and abs(value) < 1e15
    if isinstance(value, str):
        return (
            0 < len(value) <= _MAX_TEXT_CHARS
            and value.isprintable()
            and value == value.strip()
            and not set(value) & set("\"'%")
        )
    return isinstance(value, int) and not isinstance(value, bool)
