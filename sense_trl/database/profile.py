"""Profile of a database, with all that a neighbour of it must keep: `profile_database`.

A file says less than its data obeys. Many published databases declare no foreign keys and few
keys, and an instance that broke them would tell queries apart that are equal on every database a
user could have. So this reads what is declared, and adds what the rows show beyond doubt: columns
that look like identifiers and never repeat, references by matching names whose values are all
there, columns that follow from another one, flags, and formats such as dates.
"""

from __future__ import annotations

import functools
import math
import re
import sqlite3
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final, TypeAlias

from sense_trl.database.engine import MapValue, SQLEngine, TableInfo
from sense_trl.database.text import (
    get_nameable_tables,
    has_bad_bytes,
    name_bad_bytes,
    quote_name,
)
from sense_trl.errors import DatabaseError

ForeignKeyColumns: TypeAlias = tuple[str, str, str, str]
"""Table, column, referenced table, referenced column."""

_MAX_ROWS: Final = 2_000
_SMALLER_SAMPLES: Final = (_MAX_ROWS, 200, 20)
_MAX_TEXT_CHARS: Final = 500
_MAX_STEPS: Final = 50_000_000
# Columns whose agreement in so many rows is less likely than this by chance are taken to follow
# from each other. Pairs of columns are many, so it is small.
_MAX_CHANCE: Final = 1e-6
_MAX_SHAPES: Final = 3
_MIN_FLAG_ROWS: Final = 8
_MIN_NATURAL_KEY_ROWS: Final = 30

_WORDS: Final = re.compile(r"[A-Z]?[a-z]+|[A-Z]+(?![a-z])|\d+")
_KEY_WORDS: Final = frozenset(
    {"id", "code", "key", "number", "num", "no", "nr", "ssn", "isbn", "uid"}
)
_INTEGER: Final = re.compile(r"-?[0-9]{1,18}")
_DIGIT: Final = re.compile(r"[0-9]")
_LETTERS: Final = re.compile(r"[^\W\d_]+")
_PLAIN: Final = re.compile(r"[^a-z0-9]")
# Names that say nothing about which table they refer to.
_GENERIC_NAMES: Final = _KEY_WORDS | {"name", "title", "type", "index", "rank", "year", "date"}


@dataclass(frozen=True, slots=True)
class ColumnProfile:
    """One column as the data shows it.

    Attributes:
        name: as declared.
        type: as declared, "" where nothing is.
        values: distinct values other than NULL, in the order of their first appearance.
        has_nulls: NULL occurs, and is allowed to.
        allows_nulls: NULL is allowed by the declaration.
        is_flag: there are two values only; a third would make "not yes" something else than "no".
        shapes: the few formats that all values have (digits as 9, letters as a), `None` if the
            values follow no format.
        follows: column of the same table that determines this one, `None` if none does.
        mapping: value of `follows` to the value of this column, NULL included.
    """

    name: str
    type: str
    values: tuple[object, ...]
    has_nulls: bool
    allows_nulls: bool = False
    is_flag: bool = False
    shapes: frozenset[str] | None = None
    follows: int | None = None
    mapping: Mapping[object, object] | None = None

    def fits(self, value: object) -> bool:
        """Whether a made-up value could be one of this column."""
        if value is None or self.is_flag:
            return False
        if not self.values:
            return True
        if type(value) not in {type(known) for known in self.values}:
            return False
        if isinstance(value, str):
            return self.shapes is None or shape_of(value) in self.shapes
        if isinstance(value, (int, float)) and value < 0:
            return any(isinstance(known, (int, float)) and known < 0 for known in self.values)
        return True


@dataclass(frozen=True, slots=True)
class Reference:
    """`columns` of one table hold values of `referenced` of the table numbered `table`."""

    columns: tuple[int, ...]
    table: int
    referenced: tuple[int, ...]

    @property
    def is_single(self) -> bool:
        """Whether it is one column."""
        return len(self.columns) == 1


@dataclass(frozen=True, slots=True)
class TableProfile:
    """One table.

    Attributes:
        name: as declared.
        columns: in the order of their declaration.
        keys: sets of columns whose values together never repeat, declared or seen.
        references: foreign keys, declared, given or seen.
        is_complete: whether all rows were looked at.
        generated: columns that are computed from those, so that nothing can be written to them.
    """

    name: str
    columns: tuple[ColumnProfile, ...]
    keys: tuple[tuple[int, ...], ...]
    references: tuple[Reference, ...]
    is_complete: bool
    generated: tuple[ColumnProfile, ...] = ()

    def is_key(self, column: int) -> bool:
        """Whether values of one column never repeat."""
        return (column,) in self.keys


@dataclass(frozen=True, slots=True)
class DatabaseProfile:
    """A database: its dialect, its tables, and the statements that create them empty."""

    dialect: str
    tables: tuple[TableProfile, ...]
    statements: tuple[str, ...]

    def find(self, table: str, column: str) -> tuple[int, int] | None:
        """Numbers of a table and its column, by their names in any case."""
        for number, profile in enumerate(self.tables):
            if profile.name.lower() == table.lower():
                for position, known in enumerate(profile.columns):
                    if known.name.lower() == column.lower():
                        return number, position
        return None


def profile_database(
    engine: SQLEngine, *, foreign_keys: Sequence[ForeignKeyColumns] = ()
) -> DatabaseProfile:
    """Read what a neighbour of a database must keep.

    At most 2,000 rows of a table are read, evenly spread where it has more. Views are kept as
    they are declared; virtual tables and triggers are left out, and so are tables and columns whose
    names are not UTF-8, which no query can name.

    Args:
        engine: an open database.
        foreign_keys: references that the database itself does not declare, such as those of
            Spider's `tables.json`; what names no column is ignored.

    Raises:
        DatabaseError: the database cannot be read, or its tables cannot be created anew.
    """
    statements, virtual = _read_statements(engine)
    infos = [
        table
        for table in get_nameable_tables(engine.get_tables())
        if not table.is_view and table.name not in virtual
    ]
    generated: list[TableInfo] = []
    if engine.dialect == "sqlite":
        infos, generated, unique = _read_declarations(infos, statements)
    else:
        unique = [_primary_key(info) for info in infos]
        statements = [_create_statement(info) for info in infos]
    references = [_declared_references(info, infos) for info in infos]
    for names in foreign_keys:
        _add_given(names, infos, references)
    referenced = {(r.table, r.referenced[0]) for refs in references for r in refs if r.is_single}
    tables = []
    for number, info in enumerate(infos):
        rows, is_complete = read_rows(engine, info)
        keys = set(unique[number])
        own, foreign = _columns_like_keys(number, infos, references, referenced)
        for candidates in (own, foreign):
            # That each parent has one child is chance in a small table that has a key of its own.
            if candidates is own or not keys:
                keys |= {(c,) for c in candidates if _never_repeats(engine, info, rows, c)}
        if not keys:
            keys = _seen_wide_keys(info, rows, references[number])
        keys |= {(c,) for c in _natural_keys(info, rows) if _never_repeats(engine, info, rows, c)}
        columns = _profile_columns(info, rows, keys, references[number])
        computed: tuple[ColumnProfile, ...] = ()
        if generated and generated[number].columns:
            rows, _ = read_rows(engine, generated[number])
            computed = _profile_columns(generated[number], rows, set(), ())
        tables.append(
            TableProfile(info.name, columns, tuple(sorted(keys)), (), is_complete, computed)
        )
    kept = _seen_references(engine, tables, references)
    return DatabaseProfile(
        engine.dialect,
        tuple(replace(t, references=tuple(r)) for t, r in zip(tables, kept, strict=True)),
        tuple(statements),
    )


def shape_of(text: str) -> str:
    """The format of a text: digits become 9, runs of letters a.

    Example:
        >>> shape_of("2018-03-17"), shape_of("AB12")
        ('9999-99-99', 'a99')
    """
    return _LETTERS.sub("a", _DIGIT.sub("9", text))


def comparable_values(column: ColumnProfile) -> frozenset[object]:
    """The values as SQLite compares them across types: text that spells an integer is one."""
    return frozenset(map(comparable, column.values))


def comparable(value: object) -> object:
    """A value as SQLite compares it across types, see `comparable_values`."""
    if isinstance(value, str) and _INTEGER.fullmatch(value):
        return int(value)
    return value


# ---------------------------------------------------------------------- what is declared


def _read_statements(engine: SQLEngine) -> tuple[list[str], set[str]]:
    """The statements that create tables, unique indices and views; the names of virtual tables."""
    if engine.dialect != "sqlite":
        return [], set()
    result = engine.execute(
        "SELECT type, name, sql FROM sqlite_master WHERE sql IS NOT NULL"
        " AND name NOT LIKE 'sqlite\\_%' ESCAPE '\\' ORDER BY type = 'view', rowid"
    )
    if not result.ok:
        raise DatabaseError(f"cannot read the schema of {engine.path}: {result.error}")
    statements, virtual = [], set()
    for kind, name, sql in result.rows:
        if has_bad_bytes(str(name)):
            continue
        # Whatever else is not UTF-8 has to become something that it can be created with.
        sql = name_bad_bytes(str(sql))
        words = sql.lower().split(None, 3)
        if kind == "table" and words[:2] == ["create", "virtual"]:
            virtual.add(str(name))
        elif kind in ("table", "view") or words[:2] == ["create", "unique"]:
            statements.append(sql)
    return statements, virtual


def _read_declarations(
    infos: Sequence[TableInfo], statements: Sequence[str]
) -> tuple[list[TableInfo], list[TableInfo], list[set[tuple[int, ...]]]]:
    """Each table without its generated columns, with these alone, and its declared keys.

    They are looked up in an empty copy.
    """
    connection = sqlite3.connect(":memory:", isolation_level=None)
    try:
        for statement in statements:
            connection.execute(statement)
        stored, generated, keys = [], [], []
        for both in infos:
            names = {
                name
                for (name,) in connection.execute(
                    "SELECT name FROM pragma_table_xinfo(?) WHERE hidden <> 0", (both.name,)
                )
            }
            info, other = (
                replace(
                    both, columns=tuple(c for c in both.columns if (c.name in names) is is_other)
                )
                for is_other in (False, True)
            )
            stored.append(info)
            generated.append(other)
            found = _primary_key(info)
            positions = {c.name.lower(): i for i, c in enumerate(info.columns)}
            for name, is_partial in connection.execute(
                'SELECT name, partial FROM pragma_index_list(?) WHERE "unique"', (info.name,)
            ).fetchall():
                columns = [
                    positions.get(str(column).lower(), -1)
                    for (column,) in connection.execute(
                        "SELECT name FROM pragma_index_info(?)", (name,)
                    )
                ]
                if not is_partial and -1 not in columns:
                    found.add(tuple(sorted(columns)))
            keys.append(found)
        return stored, generated, keys
    except sqlite3.Error as error:
        raise DatabaseError(f"cannot create the tables anew: {error}") from error
    finally:
        connection.close()


def _primary_key(info: TableInfo) -> set[tuple[int, ...]]:
    key = tuple(i for i, column in enumerate(info.columns) if column.primary_key)
    return {key} if key else set()


def _create_statement(info: TableInfo) -> str:
    parts = [f"{quote_name(c.name)} {c.type}{' NOT NULL' * c.not_null}" for c in info.columns]
    return f"CREATE TABLE {quote_name(info.name)} ({', '.join(parts)})"


def _position(info: TableInfo, column: str) -> int | None:
    names = [known.name.lower() for known in info.columns]
    return names.index(column.lower()) if column.lower() in names else None


def _table_number(infos: Sequence[TableInfo], table: str) -> int | None:
    names = [info.name.lower() for info in infos]
    return names.index(table.lower()) if table.lower() in names else None


def _declared_references(info: TableInfo, infos: Sequence[TableInfo]) -> list[Reference]:
    references = []
    for key in info.foreign_keys:
        parent = _table_number(infos, key.referenced_table)
        if parent is None or len(key.columns) != len(key.referenced_columns):
            continue
        own = [_position(info, column) for column in key.columns]
        others = [_position(infos[parent], column) for column in key.referenced_columns]
        if None not in own and None not in others:
            reference = Reference(
                tuple(c for c in own if c is not None),
                parent,
                tuple(c for c in others if c is not None),
            )
            if reference not in references:
                references.append(reference)
    return references


def _add_given(
    names: ForeignKeyColumns, infos: Sequence[TableInfo], references: list[list[Reference]]
) -> None:
    child, parent = _table_number(infos, names[0]), _table_number(infos, names[2])
    if child is None or parent is None:
        return
    own, other = _position(infos[child], names[1]), _position(infos[parent], names[3])
    if own is None or other is None or (child, own) == (parent, other):
        return
    known = {(c, r.table) for r in references[child] for c in r.columns}
    if (own, parent) not in known:
        references[child].append(Reference((own,), parent, (other,)))


# ---------------------------------------------------------------------- what the rows show


def read_rows(engine: SQLEngine, info: TableInfo) -> tuple[tuple[tuple[object, ...], ...], bool]:
    """At most 2,000 rows of a table, evenly spread where it has more, and whether these are all.

    Values are made hashable. Where they are so large that the limits of `engine` let none be read,
    there are no rows.

    Raises:
        DatabaseError: the table cannot be read.
    """
    table = quote_name(info.name)
    columns = ", ".join(quote_name(column.name) for column in info.columns)
    if engine.dialect == "postgres":
        return _sample_rows(engine, table, columns)
    counted = engine.execute(f"SELECT count(*) FROM {table}")
    if not counted.ok:
        raise DatabaseError(f"cannot read {info.name} of {engine.path}: {counted.error}")
    count = counted.rows[0][0]
    assert isinstance(count, int)
    for size in _SMALLER_SAMPLES:
        queries = [f"SELECT {columns} FROM {table} LIMIT {size}"]
        if count > size:
            # Tables without a rowid are read from their beginning.
            queries.insert(0, f"SELECT {columns} FROM {table} WHERE rowid % {count // size} = 0")
            queries[0] += f" LIMIT {size}"
        for query in queries:
            result = engine.execute(query)
            if result.ok and (result.rows or not count):
                rows = tuple(tuple(map(_make_hashable, row)) for row in result.rows)
                return rows, len(rows) == count
    # Values so large that not even 20 rows can be read.
    return (), False


def _sample_rows(
    engine: SQLEngine, table: str, columns: str
) -> tuple[tuple[tuple[object, ...], ...], bool]:
    """`read_rows` of a table of a server, which may be too large to count."""
    literal = "'" + table.replace("'", "''") + "'"
    # Of partitions the pages are those of all, of a view there are none.
    found = engine.execute(
        "SELECT sum(pg_relation_size(oid)) / 8192 FROM pg_class WHERE oid = to_regclass("
        f"{literal}) OR oid IN (SELECT inhrelid FROM pg_inherits WHERE inhparent = "
        f"to_regclass({literal}))"
    )
    num_pages = float(str(found.rows[0][0] or 0)) if found.ok else 0.0
    for size in _SMALLER_SAMPLES:
        queries = [f"SELECT {columns} FROM {table} LIMIT {size}"]
        if num_pages > size:
            # Some 2 pages for each row wanted: whole pages are drawn, the same every time.
            percent = min(100.0, 200.0 * size / num_pages)
            sample = f"{table} TABLESAMPLE SYSTEM ({percent:f}) REPEATABLE (0)"
            # By a hash of its place, so that a row of each page comes before a second one.
            queries.insert(
                0, f"SELECT {columns} FROM {sample} ORDER BY hashtext(ctid::text) LIMIT {size}"
            )
        for query in queries:
            result = engine.execute(query)
            if result.ok and (result.rows or num_pages <= size):
                rows = tuple(tuple(map(_make_hashable, row)) for row in result.rows)
                return rows, len(rows) < size and num_pages <= size
            if not result.ok and result.exceeded is None and num_pages <= size:
                raise DatabaseError(f"cannot read {table} of {engine.path}: {result.error}")
    return (), False


class _HashableDict(dict[str, object]):
    """A value of DuckDB's STRUCT, to be counted and written like any other."""

    def __hash__(self) -> int:  # type: ignore[override]
        return hash(frozenset(self.items()))


class _HashableMap(MapValue):
    """The same for a MAP."""

    def __hash__(self) -> int:  # type: ignore[override]
        return hash(frozenset(self.items()))


def _make_hashable(value: object) -> object:
    if isinstance(value, (list, tuple)):
        return tuple(map(_make_hashable, value))
    if isinstance(value, MapValue):
        return _HashableMap((key, _make_hashable(item)) for key, item in value.items())
    if isinstance(value, dict):
        return _HashableDict((key, _make_hashable(item)) for key, item in value.items())
    return value


def _columns_like_keys(
    number: int,
    infos: Sequence[TableInfo],
    references: Sequence[Sequence[Reference]],
    referenced: set[tuple[int, int]],
) -> tuple[list[int], list[int]]:
    """Columns that could be keys: of the table itself, and those that refer to another table."""
    info = infos[number]
    referring = {c for reference in references[number] for c in reference.columns}
    own: list[int] = []
    foreign: list[int] = []
    for position, column in enumerate(info.columns):
        if (number, position) in referenced:
            own.append(position)
        elif _looks_like_key(column.name):
            names_other = any(
                _names_refer(column.name, other.name, known.name)
                for other in infos
                if other is not info
                for known in other.columns
            )
            (foreign if names_other or position in referring else own).append(position)
    return own, foreign


def _natural_keys(info: TableInfo, rows: Sequence[tuple[object, ...]]) -> list[int]:
    """Columns of text in a table so long that some would repeat if they could (country names)."""
    if len(rows) < _MIN_NATURAL_KEY_ROWS:
        return []
    return [c for c in range(len(info.columns)) if isinstance(rows[0][c], str)]


def _looks_like_key(name: str) -> bool:
    words = _WORDS.findall(name)
    return bool(words) and (words[-1].lower() in _KEY_WORDS or words[-1].lower().endswith("id"))


def _never_repeats(
    engine: SQLEngine, info: TableInfo, rows: Sequence[tuple[object, ...]], column: int
) -> bool:
    values = [row[column] for row in rows]
    if len(values) < 2 or None in values or len(set(values)) < len(values):
        return False
    if len(values) < _MAX_ROWS:
        return True
    name = quote_name(info.columns[column].name)
    repeated = engine.execute(
        f"SELECT {name} FROM {quote_name(info.name)} GROUP BY {name}"
        f" HAVING count(*) > 1 OR {name} IS NULL LIMIT 1",
        limits=replace(engine.limits, max_steps=_MAX_STEPS),
    )
    return repeated.ok and not repeated.rows


def _seen_wide_keys(
    info: TableInfo, rows: Sequence[tuple[object, ...]], references: Sequence[Reference]
) -> set[tuple[int, ...]]:
    """The key of a table that has no other: what identifies its rows, or the whole row."""
    linking = {c for reference in references for c in reference.columns}
    linking |= {i for i, c in enumerate(info.columns) if _looks_like_key(c.name)}
    for columns in (tuple(sorted(linking)), tuple(range(len(info.columns)))):
        if columns and len(rows) > 1:
            seen = {tuple(row[c] for c in columns) for row in rows}
            if len(seen) == len(rows):
                return {columns}
    return set()


def _profile_columns(
    info: TableInfo,
    rows: Sequence[tuple[object, ...]],
    keys: set[tuple[int, ...]],
    references: Sequence[Reference],
) -> tuple[ColumnProfile, ...]:
    in_primary_key = {c for key in _primary_key(info) for c in key}
    follows = _find_dependencies(info, rows, keys, references)
    columns = []
    for number, column in enumerate(info.columns):
        counts = Counter(row[number] for row in rows)
        num_nulls = counts.pop(None, 0)
        values = [v for v in counts if not isinstance(v, (str, bytes)) or len(v) <= _MAX_TEXT_CHARS]
        source = follows.get(number)
        allows_nulls = not column.not_null and number not in in_primary_key
        columns.append(
            ColumnProfile(
                column.name,
                column.type,
                tuple(values),
                has_nulls=allows_nulls and num_nulls > 0,
                allows_nulls=allows_nulls,
                is_flag=_is_flag(values, len(rows)),
                shapes=_find_shapes(values),
                follows=source,
                mapping=None
                if source is None
                else {row[source]: row[number] for row in rows if row[source] is not None},
            )
        )
    return tuple(columns)


def _is_flag(values: Sequence[object], num_rows: int) -> bool:
    """Whether a column knows two values only, as yes and no, in rows enough to say so."""
    return len(values) == 2 and num_rows >= _MIN_FLAG_ROWS


def _find_shapes(values: Sequence[object]) -> frozenset[str] | None:
    """The formats of texts that all hold digits (dates, times, codes), if these are few.

    Whole numbers of several lengths follow none.
    """
    texts = [value for value in values if isinstance(value, str)]
    if len(texts) < len(values) or not texts or not all(map(_DIGIT.search, texts)):
        return None
    shapes = frozenset(map(shape_of, texts))
    if len(shapes) > 1 and all(shape.strip("9") == "" for shape in shapes):
        return None
    return shapes if len(shapes) <= _MAX_SHAPES else None


def _find_dependencies(
    info: TableInfo,
    rows: Sequence[tuple[object, ...]],
    keys: set[tuple[int, ...]],
    references: Sequence[Reference],
) -> dict[int, int]:
    """Columns that follow from another one: column to the finest column that determines it.

    A chain a -> b -> c is kept by giving both b and c the values that go with a. Two sources that
    do not determine each other cannot both be kept; the finer one is.
    """
    width = len(info.columns)
    fixed = {c for reference in references for c in reference.columns}
    fixed |= {key[0] for key in keys if len(key) == 1}
    values = list(zip(*rows, strict=True)) or [()] * width
    counts = [Counter(column) for column in values]
    # How likely two rows are to agree in a column by chance.
    same = [sum((n / len(rows)) ** 2 for n in column.values()) for column in counts]
    candidates = [c for c in range(width) if c not in fixed and len(counts[c]) > 1]
    chances = {c: math.log(same[c]) for c in candidates}
    sources = [c for c in range(width) if (c,) not in keys and 1 < len(counts[c]) < len(rows)]
    sources.sort(key=lambda c: (-len(counts[c]), c))
    follows: dict[int, int] = {}
    determining: set[int] = set()
    for source in sources:
        # What follows itself from a finer column hands that one on.
        if source in follows:
            continue
        repeats = _find_repeats(values[source])
        for column in candidates:
            if column == source or column in follows or column in determining:
                continue
            is_chance = len(repeats) * chances[column] > math.log(_MAX_CHANCE)
            if not is_chance and _agrees(values[column], repeats):
                follows[column] = source
                determining.add(source)
    return follows


def _find_repeats(values: Sequence[object]) -> list[tuple[int, int]]:
    """The rows whose value was there before, each with the first row that has it.

    NULL is left out: what it goes with says nothing.
    """
    first: dict[object, int] = {}
    repeats = []
    for row, value in enumerate(values):
        if value is not None and first.setdefault(value, row) != row:
            repeats.append((first[value], row))
    return repeats


def _agrees(values: Sequence[object], repeats: Sequence[tuple[int, int]]) -> bool:
    # A loop stops at the first difference, which comes early, and costs half of `all`.
    for first, row in repeats:  # noqa: SIM110
        if values[first] != values[row]:
            return False
    return True


def _seen_references(
    engine: SQLEngine, tables: Sequence[TableProfile], references: Sequence[list[Reference]]
) -> list[list[Reference]]:
    """The declared references that the rows do not contradict, and those that names suggest."""
    values = [[comparable_values(column) for column in table.columns] for table in tables]
    kept: list[list[Reference]] = []
    for number, table in enumerate(tables):
        own = [r for r in references[number] if _shares_values(values, number, r)]
        taken = {column for reference in references[number] for column in reference.columns}
        for column, profile in enumerate(table.columns):
            if column in taken or not profile.values:
                continue
            for parent, other in enumerate(tables):
                target = next(
                    (
                        c
                        for c, known in enumerate(other.columns)
                        if parent != number
                        and other.is_key(c)
                        and _names_refer(profile.name, other.name, known.name)
                    ),
                    None,
                )
                if target is None or (
                    # Each could refer to the other: the first table is the parent.
                    table.is_key(column) and number < parent
                ):
                    continue
                if _is_contained(engine, (table, column), (other, target)):
                    own.append(Reference((column,), parent, (target,)))
                    break
        kept.append(own)
    return kept


def _shares_values(
    values: Sequence[Sequence[frozenset[object]]], child: int, reference: Reference
) -> bool:
    """Whether a reference is more than a slip of the schema: some value is found where it says."""
    for own, other in zip(reference.columns, reference.referenced, strict=True):
        here, there = values[child][own], values[reference.table][other]
        if here and there and not here & there:
            return False
    return True


def _names_refer(column: str, table: str, referenced: str) -> bool:
    """Whether a column is named like a reference to `referenced` of `table`.

    Example:
        >>> _names_refer("singer_id", "singers", "id"), _names_refer("id", "singer", "id")
        (True, False)
    """
    column, table, referenced = map(_get_plain_name, (column, table, referenced))
    if column == referenced:
        return referenced not in _GENERIC_NAMES
    singular = table.removesuffix("s")
    return column in {table + referenced, singular + referenced}


# Each name is compared with every other one.
@functools.lru_cache(maxsize=65_536)
def _get_plain_name(name: str) -> str:
    return _PLAIN.sub("", name.lower())


def _is_contained(
    engine: SQLEngine, child: tuple[TableProfile, int], parent: tuple[TableProfile, int]
) -> bool:
    (table, column), (other, target) = child, parent
    if table.is_complete and other.is_complete:
        return comparable_values(table.columns[column]) <= comparable_values(other.columns[target])
    name, known = quote_name(table.columns[column].name), quote_name(other.columns[target].name)
    orphan = engine.execute(
        f"SELECT 1 FROM {quote_name(table.name)} WHERE {name} IS NOT NULL AND {name} NOT IN"
        f" (SELECT {known} FROM {quote_name(other.name)} WHERE {known} IS NOT NULL) LIMIT 1",
        limits=replace(engine.limits, max_steps=_MAX_STEPS),
    )
    return orphan.ok and not orphan.rows
