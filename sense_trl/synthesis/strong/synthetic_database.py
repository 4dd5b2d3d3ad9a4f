"""`create_database`: a file with a designed schema and rows that obey it.

The rows are drawn one by one and inserted with all constraints in force: SQLite is asked whether a
row obeys its keys and checks, and one that does not is drawn again.

Of 150 of Spider's training queries, 87 returned something, and always the same, on random rows of
their schemas; 139 did with `wanted` values, and 144 after up to three other seeds. The rows tell
queries apart as real ones do: of 282 mutants (`mutate_sql`) of 60 such queries that are wrong on
Spider's own rows, 271 are wrong on synthetic ones, and so are 38 of 78 that Spider's rows take for
right.
"""

from __future__ import annotations

import contextlib
import os
import random
import sqlite3
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from sense_trl._files import replacing
from sense_trl.database.text import quote_name
from sense_trl.errors import InputError
from sense_trl.synthesis.strong.column_values import Value, is_label, make_value
from sense_trl.synthesis.strong.schema_design import (
    ColumnDesign,
    ColumnKind,
    DesignError,
    ForeignKeyDesign,
    SchemaDesign,
    TableDesign,
    write_design,
)
from sense_trl.synthesis.strong.value_hints import ColumnLimits, WantedValues, get_limits

_MAX_DRAWS: Final = 30
# Of the rows of a table, which take wanted values in all columns that have some, so that they meet
# several conditions at once; they refer to such rows, too, so that a join meets them.
_WANTED_SHARE: Final = 0.3
_NULL_SHARE: Final = 0.05
_EXAMPLE_SHARE: Final = 0.9

Row = dict[str, Any]


def create_database(
    path: str | os.PathLike[str],
    design: SchemaDesign,
    *,
    num_rows: int = 30,
    seed: int = 0,
    wanted: WantedValues | None = None,
    examples: WantedValues | None = None,
) -> dict[str, int]:
    """Write an SQLite file with the schema and synthetic rows.

    All constraints hold. A table has fewer rows where its constraints leave no room for more, or
    where none was found in 30 draws in a row: none at all if its checks contradict each other.
    Equal arguments give equal rows.

    Args:
        path: the file; replaced if it exists, and there wholly or not at all.
        design: the schema.
        num_rows: rows of each table; tables with foreign keys have twice as many.
        seed: another seed gives other rows.
        wanted: values that some of the rows have, and have together (`get_wanted_values`).
        examples: values that most rows of a column have (`get_example_values`).

    Returns:
        Number of rows by table.

    Raises:
        InputError: `num_rows` is below 1.
        DesignError: `"refused_by_sqlite"`: SQLite makes no such table.
    """
    if num_rows < 1:
        raise InputError(f"`num_rows` is {num_rows}; expected at least 1.")
    with replacing(path) as temporary:
        temporary.unlink(missing_ok=True)
        return _write(temporary, design, num_rows, seed, wanted or {}, examples or {})


def _write(
    path: Path,
    design: SchemaDesign,
    num_rows: int,
    seed: int,
    wanted: WantedValues,
    examples: WantedValues,
) -> dict[str, int]:
    wanted = _with_referenced(wanted, design)
    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as connection:
        connection.execute("PRAGMA synchronous = OFF")
        connection.execute("PRAGMA journal_mode = MEMORY")
        connection.execute("PRAGMA foreign_keys = ON")
        connection.execute("BEGIN")
        _create_tables(connection, design)
        rows: dict[str, list[tuple[Row, bool]]] = {}
        for table in design.tables:
            rng = random.Random(f"{seed}/{table.name}")
            filler = _TableFiller(table, rows, rng, wanted, examples)
            count = num_rows * (2 if table.foreign_keys else 1)
            rows[table.name] = filler.fill(connection, count)
        connection.execute("COMMIT")
    return {name: len(found) for name, found in rows.items()}


def _create_tables(connection: sqlite3.Connection, design: SchemaDesign) -> None:
    try:
        for statement in write_design(design):
            connection.execute(statement)
    except (sqlite3.Error, RecursionError) as error:
        raise DesignError("refused_by_sqlite", str(error)) from error


def _with_referenced(wanted: WantedValues, design: SchemaDesign) -> WantedValues:
    """Want the values of a foreign key in the columns that it refers to as well."""
    result = dict(wanted)
    for table in reversed(design.tables):
        for key in table.foreign_keys:
            for name, other in zip(key.columns, key.referenced_columns, strict=True):
                values = result.get((table.name.lower(), name.lower()), ())
                if values:
                    target = (key.referenced_table.lower(), other.lower())
                    result[target] = tuple(dict.fromkeys((*result.get(target, ()), *values)))
    return result


class _TableFiller:
    """Draws the rows of one table.

    Args:
        table: what to fill.
        rows: of the tables before it, each with whether it has the wanted values.
        rng: of this table.
        wanted, examples: as `create_database` takes them.
    """

    def __init__(
        self,
        table: TableDesign,
        rows: Mapping[str, list[tuple[Row, bool]]],
        rng: random.Random,
        wanted: WantedValues,
        examples: WantedValues,
    ) -> None:
        self._table = table
        self._parents = rows
        self._own: list[tuple[Row, bool]] = []
        self._rng = rng
        self._wanted = _of_table(wanted, table)
        self._examples = _of_table(examples, table)
        self._limits = get_limits(table)
        self._unique = {names[0] for names in (table.primary_key, *table.unique) if len(names) == 1}
        self._keys = {name for names in (table.primary_key, *table.unique) for name in names}

    def fill(self, connection: sqlite3.Connection, num_rows: int) -> list[tuple[Row, bool]]:
        """Insert up to `num_rows` rows and return them."""
        names = [column.name for column in self._table.columns]
        places = ", ".join("?" for _ in names)
        insert = (
            f"INSERT INTO {quote_name(self._table.name)} "
            f"({', '.join(map(quote_name, names))}) VALUES ({places})"
        )
        for number in range(num_rows):
            is_wanted = number < max(2, _WANTED_SHARE * num_rows)
            for draw in range(_MAX_DRAWS):
                row = self._draw(number, is_wanted, draw)
                if row is not None and _insert(connection, insert, [row[name] for name in names]):
                    self._own.append((row, is_wanted))
                    break
            else:
                break
        return self._own

    def _draw(self, number: int, is_wanted: bool, draw: int) -> Row | None:
        """A row that may yet break a rule; `None` where there is nothing to refer to."""
        # The more draws have failed, the less is wanted: what is wanted may be forbidden.
        is_wanted = is_wanted and draw < _MAX_DRAWS // 2
        row: Row = {}
        later = []
        for key in self._table.foreign_keys:
            if not self._refer(key, row, is_wanted):
                if key.referenced_table != self._table.name:
                    return None
                later.append(key)
        for column in self._table.columns:
            if column.name not in row:
                row[column.name] = self._value(column, number, is_wanted, draw)
        for key in later:
            # The first row of all can only refer to itself.
            own = [row[name] for name in key.referenced_columns]
            row.update(zip(key.columns, own, strict=True))
        return row

    def _refer(self, key: ForeignKeyDesign, row: Row, is_wanted: bool) -> bool:
        """Set the columns of a foreign key; false where that cannot be done."""
        if any(row.get(name, 0) is None for name in key.columns):
            # A key with a NULL in it refers to nothing.
            return True
        is_own = key.referenced_table == self._table.name
        parents = self._own if is_own else self._parents[key.referenced_table]
        pairs = list(zip(key.columns, key.referenced_columns, strict=True))
        fitting = [
            (parent, parent_is_wanted)
            for parent, parent_is_wanted in parents
            if all(row.get(name, parent[other]) == parent[other] for name, other in pairs)
        ]
        nullable = [name for name in key.columns if name not in row and self._allows_null(name)]
        if nullable and (not fitting or (not is_wanted and self._rng.random() < 2 * _NULL_SHARE)):
            row.update(dict.fromkeys(nullable))
            return True
        if not fitting:
            return False
        if is_wanted:
            fitting = [pair for pair in fitting if self._holds_wanted(pair[0], key)] or fitting
            fitting = [pair for pair in fitting if pair[1]] or fitting
        # Some are referred to much more often than others, so that counts differ.
        parent, _ = fitting[int(len(fitting) * self._rng.random() ** 2)]
        row.update((name, parent[other]) for name, other in pairs)
        return True

    def _holds_wanted(self, parent: Row, key: ForeignKeyDesign) -> bool:
        return all(
            parent[other] in self._wanted.get(name.lower(), (parent[other],))
            for name, other in zip(key.columns, key.referenced_columns, strict=True)
        )

    def _allows_null(self, name: str) -> bool:
        return not self._table.column(name).not_null and name not in self._keys

    def _value(self, column: ColumnDesign, number: int, is_wanted: bool, draw: int) -> Value | None:
        wanted = self._wanted.get(column.name.lower())
        if wanted and _is_label(column):
            if is_wanted and number < 2 * len(wanted):
                return wanted[number % len(wanted)]
        elif wanted and (is_wanted or self._rng.random() < _WANTED_SHARE):
            return self._rng.choice(wanted)
        if self._allows_null(column.name) and self._rng.random() < _NULL_SHARE and not is_wanted:
            return None
        return self._usual_value(column, number, draw)

    def _usual_value(self, column: ColumnDesign, number: int, draw: int) -> Value | None:
        """A value that nobody has asked for."""
        name = column.name.lower()
        limits = self._limits.get(name, ColumnLimits())
        if limits.choices is not None:
            return self._rng.choice(limits.choices) if limits.choices else None
        if column.kind is ColumnKind.INTEGER and column.name in self._unique:
            return _clamped(number + 1 + (0 if draw < 3 else self._rng.randrange(10**6)), limits)
        examples = self._examples.get(name, ())
        if _is_label(column) or column.name in self._keys:
            # Once each: a table whose rows all have one of three names hides wrong answers.
            if number < len(examples) and not draw:
                return examples[number]
        elif examples and self._rng.random() < _EXAMPLE_SHARE:
            return self._rng.choice(examples)
        value = make_value(self._table.name, column.name, column.kind, self._rng)
        if not isinstance(value, str):
            return self._within(value, column.kind, limits)
        is_taken = column.name in self._unique and draw > 3
        return f"{value} {number + 1}" if is_taken and column.kind is ColumnKind.TEXT else value

    def _within(self, value: float, kind: ColumnKind, limits: ColumnLimits) -> float:
        """`value`, or one between the limits where it is outside."""
        if _clamped(value, limits) == value:
            return value
        low = limits.low if limits.low is not None else (limits.high or 0) - 100
        high = limits.high if limits.high is not None else low + 100
        drawn = self._rng.uniform(low, high)
        return _clamped(round(drawn) if kind is not ColumnKind.REAL else round(drawn, 2), limits)


def _is_label(column: ColumnDesign) -> bool:
    return column.kind is ColumnKind.TEXT and is_label(column.name)


def _clamped(value: float, limits: ColumnLimits) -> float:
    if limits.low is not None and value < limits.low:
        return limits.low
    if limits.high is not None and value > limits.high:
        return limits.high
    return value


def _of_table(values: WantedValues, table: TableDesign) -> dict[str, tuple[Value, ...]]:
    name = table.name.lower()
    return {column: found for (owner, column), found in values.items() if owner == name}


def _insert(connection: sqlite3.Connection, statement: str, values: list[Any]) -> bool:
    """Insert a row; false if it breaks a rule."""
    try:
        connection.execute(statement, values)
    except sqlite3.IntegrityError:
        return False
    return True
