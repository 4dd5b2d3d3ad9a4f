"""Neighbour instances of a database, small and unlike it: `DatabaseFuzzer`.

A query that is wrong can give the right answer on one database by luck. On a neighbour with the
same tables, keys and references, but few, often repeated and otherwise combined values, the luck
ends. Instances are drawn, not solved for: values come from the original columns and from what the
caller hands in (the constants of the queries to tell apart, and values close to them).
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import itertools
import operator
import os
import random
import sqlite3
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final, Literal, TypeAlias, TypeVar

from sense_trl.database.engine import MapValue, TypedText
from sense_trl.database.profile import (
    ColumnProfile,
    DatabaseProfile,
    Reference,
    TableProfile,
    comparable,
    comparable_values,
)
from sense_trl.database.text import encode_text, has_bad_bytes, quote_name
from sense_trl.errors import InputError

ColumnName: TypeAlias = tuple[str, str]
"""Table and column, in any case."""
Row: TypeAlias = tuple[object, ...]
_T = TypeVar("_T")

# Number of a table and of its column.
_Position: TypeAlias = tuple[int, int]

# Instances take turns in these: rows of a table (about), share of the constants among the values
# of their column, and share of NULL where there may be any.
_SIZES: Final = (12, 24, 6, 34, 16, 9, 40, 4)
_CONSTANT_SHARES: Final = (0.5, 0.25, 0.7)
_NULL_SHARES: Final = (0.1, 0.0, 0.3, 0.0, 0.1)
_MIN_ROWS: Final = 3
_MAX_ROWS: Final = 40
# Distinct values of a column, by draw; 0 is as many as there are rows.
_CARDINALITIES: Final = (2, 3, 4, 6, 0)
# Chances of a constant, and of a value close to one, to be among the values of its column.
_CONSTANT_CHANCE: Final = 0.85
_NEIGHBOUR_CHANCE: Final = 0.4
_PAGE_BYTES: Final = 1_024
# DuckDB takes larger integers as text only.
_MAX_PARAMETER: Final = 2**127


@dataclass(frozen=True, slots=True)
class FuzzHints:
    """Values and joins that instances should hold, so that certain queries give telling answers.

    Attributes:
        constants: values that a column is compared with; they become frequent, whether or not the
            original holds them.
        neighbours: values close to those; taken where they are of the column's type and format.
        joins: pairs of columns that are compared with each other. They share values, and where
            one is a key that holds all values of the other, that is kept.
    """

    constants: Mapping[ColumnName, Sequence[object]] = field(default_factory=dict)
    neighbours: Mapping[ColumnName, Sequence[object]] = field(default_factory=dict)
    joins: Sequence[tuple[ColumnName, ColumnName]] = ()


class DatabaseFuzzer:
    """Draws instances of one database for one set of hints.

    Instance `number` is the same on every machine and whatever was drawn before. It keeps types
    as the values show them, PRIMARY KEY, UNIQUE, NOT NULL, references, and what else the profile
    names; NULL stands only where the original has some (or, if asked for, wherever the
    declaration allows it). It does not keep CHECK constraints, or
    relations between columns that are not references (a beginning before its end).

    Args:
        profile: the database.
        hints: what the instances should hold.
        seed: other seeds give other instances.
        nulls: columns that may hold NULL: those that do in the original ("seen"), or all that are
            not declared otherwise ("allowed").

    Raises:
        InputError: `nulls` is unknown.

    Example:
        >>> import sqlite3, tempfile, pathlib
        >>> from sense_trl.database import SQLiteEngine
        >>> from sense_trl.database.profile import profile_database
        >>> file = pathlib.Path(tempfile.mkdtemp()) / "pets.sqlite"
        >>> with sqlite3.connect(file) as connection:
        ...     _ = connection.execute("CREATE TABLE pet (id INTEGER PRIMARY KEY, kind TEXT)")
        ...     _ = connection.execute("INSERT INTO pet VALUES (1, 'dog'), (2, 'cat')")
        >>> with SQLiteEngine(file) as engine:
        ...     fuzzer = DatabaseFuzzer(profile_database(engine))
        >>> all(kind in ("dog", "cat") for _, kind in fuzzer.draw(0)["pet"])
        True
    """

    def __init__(
        self,
        profile: DatabaseProfile,
        hints: FuzzHints | None = None,
        *,
        seed: int = 0,
        nulls: Literal["seen", "allowed"] = "seen",
    ) -> None:
        if nulls not in ("seen", "allowed"):
            raise InputError(f'`nulls` is {nulls!r}; expected "seen" or "allowed".')
        if nulls == "allowed":
            profile = _with_all_nulls(profile)
        self._profile = profile
        self._seed = seed
        self._plan = _make_plan(profile, FuzzHints() if hints is None else hints)
        self._connection: sqlite3.Connection | None = None

    @property
    def dialect(self) -> str:
        """The dialect of the original, and of the instances."""
        return self._profile.dialect

    def draw(self, number: int) -> dict[str, list[Row]]:
        """Rows of every table of instance `number`, by the table's name."""
        name = f"{self._seed}:{number}".encode()
        # An integer seeds alike in every version of Python, and `random` is all that is called.
        rng = random.Random(int.from_bytes(hashlib.sha256(name).digest()[:8], "big"))
        instance = _Instance(self._plan, number, rng.random)
        for table in self._plan.order:
            instance.fill(table)
        if self._plan.may_leave_orphans:
            instance.drop_orphans()
        return {t.name: instance.rows(index) for index, t in enumerate(self._profile.tables)}

    def write(self, number: int, path: str | os.PathLike[str]) -> None:
        """Write instance `number` as a database file of the original's kind.

        Raises:
            OSError: the file cannot be written.
        """
        if self._profile.dialect == "duckdb":
            self._write_duckdb(number, Path(path))
        else:
            Path(path).write_bytes(self._serialize(number))

    def close(self) -> None:
        """Free what `write` keeps in memory; the fuzzer can still be used."""
        if self._connection is not None:
            self._connection.close()
        self._connection = None

    def _serialize(self, number: int) -> bytes:
        if self._connection is None:
            self._connection = sqlite3.connect(":memory:", isolation_level=None)
            self._connection.execute("PRAGMA ignore_check_constraints = ON")
        connection = self._connection
        # From the same empty file each time: what an earlier instance left free changes nothing.
        connection.deserialize(_make_template(self._profile.statements))
        self._insert(connection, number)
        return connection.serialize()

    def _write_duckdb(self, number: int, path: Path) -> None:
        import duckdb

        path.unlink(missing_ok=True)
        with duckdb.connect(str(path)) as connection:
            connection.execute("SET enable_progress_bar = false")
            # The zone of the engine that will read what is written.
            connection.execute("SET TimeZone = 'UTC'")
            for statement in self._profile.statements:
                connection.execute(statement)
            self._insert(connection, number)

    def _insert(self, connection: Any, number: int) -> None:
        drawn = self.draw(number)
        connection.execute("BEGIN")
        for table in self._profile.tables:
            if rows := drawn[table.name]:
                names = ", ".join(quote_name(column.name) for column in table.columns)
                # A collation can make two values of a key one.
                ignore = "OR IGNORE " if self._profile.dialect == "sqlite" else ""
                head = f"INSERT {ignore}INTO {quote_name(table.name)} ({names}) VALUES"
                # Rows that are bound alike go in one go; nearly all are.
                for marks, run in itertools.groupby(map(_bind, rows), key=operator.itemgetter(0)):
                    connection.executemany(f"{head} ({marks})", [values for _, values in run])
        connection.execute("COMMIT")


def _bind(row: Row) -> tuple[str, Row]:
    """A row's parameters and what stands for them in the statement."""
    marks, values = [], []
    for value in row:
        mark = "?"
        if isinstance(value, str) and has_bad_bytes(value):
            # As text `sqlite3` takes only what is UTF-8.
            mark, value = "CAST(? AS TEXT)", encode_text(value)
        marks.append(mark)
        values.append(_get_parameter(value))
    return ", ".join(marks), tuple(values)


def _get_parameter(value: object) -> object:
    """A value as DuckDB takes it; SQLite has none of those that change."""
    if isinstance(value, TypedText):
        # DuckDB reads each of its types from text, but for unions.
        return None if value.type.startswith("UNION(") else value.text
    if isinstance(value, MapValue):
        keys, items = (list(map(_get_parameter, part)) for part in (value, value.values()))
        return {"key": keys, "value": items}
    if isinstance(value, dict):
        return {name: _get_parameter(item) for name, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_get_parameter(item) for item in value]
    if isinstance(value, int) and abs(value) >= _MAX_PARAMETER:
        return str(value)
    return value


def _with_all_nulls(profile: DatabaseProfile) -> DatabaseProfile:
    tables = []
    for table in profile.tables:
        columns = tuple(replace(c, has_nulls=c.allows_nulls) for c in table.columns)
        tables.append(replace(table, columns=columns))
    return replace(profile, tables=tuple(tables))


@functools.lru_cache(maxsize=32)
def _make_template(statements: tuple[str, ...]) -> bytes:
    """A database file with empty tables."""
    with contextlib.closing(sqlite3.connect(":memory:", isolation_level=None)) as connection:
        connection.execute(f"PRAGMA page_size = {_PAGE_BYTES}")
        for statement in statements:
            connection.execute(statement)
        return connection.serialize()


# ---------------------------------------------------------------------- plan


@dataclass(frozen=True, slots=True)
class _Plan:
    """The parts of a generator that all its instances share.

    Attributes:
        tables: of the profile.
        references: of each table, with those that the hints add.
        order: numbers of the tables, parents first.
        late: references that point to a table not before their own, with their own table.
        groups: columns that share their values, for each column of such a group.
        constants: values that become frequent, by column.
        neighbours: further values that fit, by column.
        may_leave_orphans: whether drawing alone does not keep all references.
    """

    tables: tuple[TableProfile, ...]
    references: tuple[tuple[Reference, ...], ...]
    order: tuple[int, ...]
    late: frozenset[tuple[int, Reference]]
    groups: Mapping[_Position, tuple[_Position, ...]]
    constants: Mapping[_Position, Sequence[object]]
    neighbours: Mapping[_Position, Sequence[object]]
    may_leave_orphans: bool


def _make_plan(profile: DatabaseProfile, hints: FuzzHints) -> _Plan:
    references = [list(table.references) for table in profile.tables]
    links: list[tuple[_Position, _Position]] = []
    for names in hints.joins:
        first, second = (profile.find(*name) for name in names)
        if first is not None and second is not None and first != second:
            _add_join(profile, first, second, references, links)
    order = _parents_first(references)
    place = {table: position for position, table in enumerate(order)}
    late = {
        (table, reference)
        for table, own in enumerate(references)
        for reference in own
        if place[reference.table] >= place[table]
    }
    overlapping = False
    for table, own in enumerate(references):
        targets: dict[int, _Position] = {}
        for reference in own:
            for column, other in zip(reference.columns, reference.referenced, strict=True):
                if (table, reference) in late and reference.table != table:
                    links.append(((table, column), (reference.table, other)))
                if column in targets:
                    # Only values that both parents have can stand there.
                    overlapping = True
                    links.append((targets[column], (reference.table, other)))
                targets[column] = (reference.table, other)
    constants, neighbours = (
        _by_position(profile, values, references, order)
        for values in (hints.constants, hints.neighbours)
    )
    _reach_followers(profile, constants)
    for (table, position), near in neighbours.items():
        fits = profile.tables[table].columns[position].fits
        neighbours[table, position] = [value for value in near if fits(value)]
    return _Plan(
        profile.tables,
        tuple(map(tuple, references)),
        tuple(order),
        frozenset(late),
        _connected(links),
        constants,
        neighbours,
        bool(late) or overlapping,
    )


def _add_join(
    profile: DatabaseProfile,
    first: _Position,
    second: _Position,
    references: list[list[Reference]],
    links: list[tuple[_Position, _Position]],
) -> None:
    """Keep a join as a reference where the rows show it to be one; else let it share values."""
    for (table, column), (parent, _) in ((first, second), (second, first)):
        if any(column in r.columns for r in references[table] if r.table == parent):
            return
    for (table, column), (parent, target) in ((first, second), (second, first)):
        own, other = profile.tables[table], profile.tables[parent]
        values = comparable_values(own.columns[column])
        if (
            table != parent
            and other.is_key(target)
            and own.is_complete
            and other.is_complete
            and values
            and values <= comparable_values(other.columns[target])
        ):
            references[table].append(Reference((column,), parent, (target,)))
            return
    links.append((first, second))


def _parents_first(references: Sequence[Sequence[Reference]]) -> list[int]:
    order: list[int] = []
    remaining = list(range(len(references)))
    while remaining:
        waiting = set(remaining)
        ready = [
            table
            for table in remaining
            if not any(r.table in waiting and r.table != table for r in references[table])
        ]
        # A cycle: its first table goes first, and its references are looked at in the end.
        for table in ready or remaining[:1]:
            order.append(table)
            remaining.remove(table)
    return order


def _connected(
    links: Iterable[tuple[_Position, _Position]],
) -> dict[_Position, tuple[_Position, ...]]:
    groups: dict[_Position, set[_Position]] = {}
    for first, second in links:
        group = groups.get(first, {first}) | groups.get(second, {second})
        for member in group:
            groups[member] = group
    return {position: tuple(sorted(group)) for position, group in groups.items()}


def _by_position(
    profile: DatabaseProfile,
    values: Mapping[ColumnName, Sequence[object]],
    references: Sequence[Sequence[Reference]],
    order: Sequence[int],
) -> dict[_Position, list[object]]:
    """Values as their columns hold them, also at the columns that those refer to."""
    found: dict[_Position, list[object]] = {}
    for name, own in values.items():
        position = profile.find(*name)
        if position is not None:
            found.setdefault(position, []).extend(own)
    for table in reversed(order):
        for reference in references[table]:
            for column, other in zip(reference.columns, reference.referenced, strict=True):
                if (table, column) in found and (table, column) != (reference.table, other):
                    found.setdefault((reference.table, other), []).extend(found[table, column])
    for position, own in found.items():
        column_profile = profile.tables[position[0]].columns[position[1]]
        converted = (_convert(value, column_profile) for value in own)
        found[position] = list(dict.fromkeys(v for v in converted if v is not None))
    return found


def _convert(value: object, column: ColumnProfile) -> object:
    """A constant of a query as the column holds it, `None` if it holds no such thing."""
    kinds = {type(known) for known in column.values}
    if not kinds or type(value) in kinds:
        return value
    if kinds == {str}:
        return str(value)
    try:
        if kinds <= {int, float}:
            number = float(str(value))
            return int(number) if int in kinds and number.is_integer() else number
        if len(kinds) == 1 and hasattr(kind := next(iter(kinds)), "fromisoformat"):
            return kind.fromisoformat(str(value))
    except (ValueError, OverflowError):
        return None
    return None


def _reach_followers(profile: DatabaseProfile, constants: dict[_Position, list[object]]) -> None:
    """Make the values frequent that bring the constants of the columns that follow from them."""
    for (table, position), values in list(constants.items()):
        column = profile.tables[table].columns[position]
        if column.follows is not None and column.mapping is not None:
            sources = [a for a, b in column.mapping.items() if b in values]
            constants.setdefault((table, column.follows), []).extend(sources[: len(values) + 1])


# ---------------------------------------------------------------------- one instance


class _Instance:
    """The columns of one instance while it is drawn."""

    def __init__(self, plan: _Plan, number: int, draw: Callable[[], float]) -> None:
        self._plan = plan
        self._draw = draw
        self._size = _SIZES[number % len(_SIZES)]
        self._constant_share = _CONSTANT_SHARES[number % len(_CONSTANT_SHARES)]
        self._null_share = _NULL_SHARES[number % len(_NULL_SHARES)]
        self._columns: list[list[list[object]]] = [[] for _ in plan.tables]
        self._shared: dict[tuple[_Position, ...], list[object]] = {}

    def rows(self, table: int) -> list[Row]:
        """The finished rows of a table."""
        return list(zip(*self._columns[table], strict=True))

    def fill(self, number: int) -> None:
        """Draw a table; those it refers to are drawn, but for late references."""
        table = self._plan.tables[number]
        num_rows = min(max(int(self._size * (0.5 + self._draw())), _MIN_ROWS), _MAX_ROWS)
        columns: dict[int, list[object]] = {}
        inner: list[Reference] = []
        for reference in self._plan.references[number]:
            if (number, reference) not in self._plan.late:
                if not any(c in columns for c in reference.columns):
                    columns |= self._draw_reference(number, reference, num_rows)
            elif reference.table == number and not _touches_key(table, reference):
                inner.append(reference)
        # References into the table itself are drawn last, from the rows that remain.
        postponed = {c for reference in inner for c in reference.columns} - set(columns)
        drawn = [c for c in range(len(table.columns)) if c not in columns and c not in postponed]
        for position in sorted(drawn, key=lambda c: table.columns[c].follows is not None):
            source = columns.get(_source(table.columns[position]))
            if source is None:
                columns[position] = self._draw_column(number, position, num_rows)
            else:
                columns[position] = self._follow(number, position, source)
        num_rows = min((len(values) for values in columns.values()), default=num_rows)
        kept = _without_repeats(table, columns, num_rows)
        self._columns[number] = [
            [columns[c][row] for row in kept] if c in columns else [None] * len(kept)
            for c in range(len(table.columns))
        ]
        for reference in inner:
            own = self._draw_reference(number, reference, len(kept))
            for position in postponed & set(own):
                self._columns[number][position] = own[position]

    def drop_orphans(self) -> None:
        """Delete rows whose references lead nowhere, until there are none."""
        num_dropped = 1
        while num_dropped:
            num_dropped = 0
            for table, references in enumerate(self._plan.references):
                for reference in references:
                    parents, own = (
                        [tuple(map(comparable, values)) for values in _tuples(columns, positions)]
                        for columns, positions in (
                            (self._columns[reference.table], reference.referenced),
                            (self._columns[table], reference.columns),
                        )
                    )
                    there = set(parents)
                    kept = [row for row, v in enumerate(own) if None in v or v in there]
                    if len(kept) < len(own):
                        num_dropped += len(own) - len(kept)
                        self._columns[table] = [
                            [c[row] for row in kept] for c in self._columns[table]
                        ]

    # ------------------------------------------------------------------ columns

    def _draw_reference(
        self, number: int, reference: Reference, num_rows: int
    ) -> dict[int, list[object]]:
        table = self._plan.tables[number]
        parents = _tuples(self._columns[reference.table], reference.referenced)
        candidates = [row for row, values in enumerate(parents) if None not in values]
        has_nulls = all(table.columns[c].has_nulls for c in reference.columns)
        picks: list[int]
        if not candidates:
            length = num_rows if has_nulls else 0
            return {column: [None] * length for column in reference.columns}
        if tuple(sorted(reference.columns)) in table.keys:
            picks = self._shuffled(candidates)[:num_rows]
        else:
            # Some parents stay without children, and some have many.
            used = self._shuffled(candidates)[: 1 + int(len(candidates) * self._draw())]
            wanted = set(self._plan.constants.get((number, reference.columns[0]), ()))
            frequent = [row for row in candidates if parents[row][0] in wanted]
            used = self._weighted(frequent, used)
            if self._draw() < 0.5:
                picks = [used[int(len(used) * self._draw())] for _ in range(num_rows)]
            else:
                picks = [used[int(len(used) * self._draw() ** 2)] for _ in range(num_rows)]
        drawn = [parents[row] for row in picks]
        if has_nulls and self._null_share:
            nothing = (None,) * len(reference.columns)
            drawn = [nothing if self._draw() < self._null_share else values for values in drawn]
        return {
            column: _as_held([values[place] for values in drawn], table.columns[column])
            for place, column in enumerate(reference.columns)
        }

    def _draw_column(self, number: int, position: int, num_rows: int) -> list[object]:
        table = self._plan.tables[number]
        if table.is_key(position):
            return self._draw_key(number, position, num_rows)
        pool = self._get_pool(number, position, num_rows)
        if table.columns[position].has_nulls and self._null_share:
            share = self._null_share
            pool = pool + [None] * max(1, round(len(pool) * share / (1 - share)))
        size, draw = len(pool), self._draw
        return [pool[int(size * draw())] for _ in range(num_rows)]

    def _draw_key(self, number: int, position: int, num_rows: int) -> list[object]:
        column = self._plan.tables[number].columns[position]
        values = self._take_extras(number, position)
        values += self._some(self._originals(number, position), 2 * num_rows)
        distinct: dict[object, object] = {}
        for value in values:
            # Two spellings of one word may be one value to a collation.
            distinct.setdefault(value.casefold() if isinstance(value, str) else value, value)
        chosen = list(distinct.values())[:num_rows]
        chosen += _new_values(column, set(distinct), num_rows - len(chosen))
        if self._draw() < 0.5 and len({type(value) for value in chosen}) == 1:
            return sorted(chosen)  # type: ignore[type-var]
        return self._shuffled(chosen)

    def _follow(self, number: int, position: int, source: Sequence[object]) -> list[object]:
        column = self._plan.tables[number].columns[position]
        known = dict(column.mapping or {})
        pool = self._get_pool(number, position, len(source))
        for value in source:
            if value not in known:
                known[value] = pool[int(len(pool) * self._draw())]
        return [known[value] for value in source]

    def _get_pool(self, number: int, position: int, num_rows: int) -> list[object]:
        """The values that a column takes, the frequent ones several times."""
        group = self._plan.groups.get((number, position))
        if group is not None and group in self._shared:
            return self._shared[group]
        cardinality = _CARDINALITIES[int(len(_CARDINALITIES) * self._draw())] or num_rows
        members = group or ((number, position),)
        values = [value for member in members for value in self._originals(*member)]
        values = self._some(values, cardinality)
        extras = [value for member in members for value in self._take_extras(*member)]
        constants = {v for member in members for v in self._plan.constants.get(member, ())}
        values += [value for value in extras if value not in constants]
        pool = self._weighted([value for value in extras if value in constants], values)
        if group is not None:
            self._shared[group] = pool
        return pool

    # ------------------------------------------------------------------ values

    def _originals(self, number: int, position: int) -> Sequence[object]:
        column = self._plan.tables[number].columns[position]
        return column.values or _invented_values(column.type)

    def _take_extras(self, number: int, position: int) -> list[object]:
        """Some of the values that the hints name for a column."""
        draw = self._draw
        constants = self._plan.constants.get((number, position), ())
        neighbours = self._plan.neighbours.get((number, position), ())
        taken = [value for value in constants if draw() < _CONSTANT_CHANCE]
        return taken + [value for value in neighbours if draw() < _NEIGHBOUR_CHANCE]

    def _weighted(self, frequent: list[_T], others: list[_T]) -> list[_T]:
        """Both, the frequent ones repeated until they are as many as their share."""
        if not frequent:
            return others
        share = self._constant_share
        wanted = share / (1 - share) * len(others)
        return frequent * max(1, round(wanted / len(frequent))) + others

    def _some(self, values: Sequence[object], count: int) -> list[object]:
        """Up to `count` different members, in a random order."""
        if count >= len(values):
            return self._shuffled(values)
        places = dict.fromkeys(int(len(values) * self._draw()) for _ in range(count))
        return [values[place] for place in places]

    def _shuffled(self, values: Sequence[_T]) -> list[_T]:
        shuffled = list(values)
        for place in range(len(shuffled) - 1, 0, -1):
            other = int((place + 1) * self._draw())
            shuffled[place], shuffled[other] = shuffled[other], shuffled[place]
        return shuffled


def _as_held(values: list[object], column: ColumnProfile) -> list[object]:
    """Values of another column as this one holds them: a text column refers to 1 as '1'."""
    kinds = {type(known) for known in column.values}
    if not kinds or {type(value) for value in values} <= kinds | {type(None)}:
        return values
    return [None if value is None else _convert(value, column) for value in values]


def _source(column: ColumnProfile) -> int:
    return -1 if column.follows is None else column.follows


def _touches_key(table: TableProfile, reference: Reference) -> bool:
    return any(column in key for key in table.keys for column in reference.columns)


def _tuples(columns: Sequence[Sequence[object]], positions: Sequence[int]) -> list[Row]:
    return list(zip(*(columns[position] for position in positions), strict=True))


def _without_repeats(
    table: TableProfile, columns: Mapping[int, Sequence[object]], num_rows: int
) -> list[int]:
    """The rows to keep so that no key repeats (rows with NULL in a key never do)."""
    kept = list(range(num_rows))
    for key in table.keys:
        if not all(column in columns for column in key):
            continue
        seen: set[Row] = set()
        unique = []
        for row in kept:
            values = tuple(columns[column][row] for column in key)
            if values not in seen:
                unique.append(row)
                if None not in values:
                    seen.add(values)
        kept = unique
    return kept


def _new_values(column: ColumnProfile, taken: set[object], count: int) -> list[object]:
    """Further values for a key, of the kind of those that it has."""
    known = column.values or tuple(_invented_values(column.type))
    made: list[object] = []
    number = max((v for v in (*known, *taken) if isinstance(v, int)), default=0)
    for step in range(1, count + 1):
        if all(isinstance(value, (int, float)) for value in known):
            made.append(number + step)
        elif all(isinstance(value, str) for value in known):
            text = f"{known[step % len(known)]}{number + step}"
            if text.casefold() not in taken:
                made.append(text)
    return made


def _invented_values(declared: str) -> Sequence[object]:
    """Values for a column that has none, by SQLite's reading of its type."""
    upper = declared.upper()
    if "DATE" in upper or "TIME" in upper:
        return [f"200{year}-0{year}-1{year}" for year in range(1, 10)]
    if "INT" in upper or "BOOL" in upper:
        return [0, 1] if "BOOL" in upper else list(range(1, 13))
    if any(word in upper for word in ("REAL", "FLOA", "DOUB", "NUM", "DEC")):
        return [1, 2, 3.5, 4, 5.25, 6, 7, 8.5, 9, 10]
    return list("abcdefgh")
