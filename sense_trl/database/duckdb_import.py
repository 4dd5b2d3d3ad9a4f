"""From an SQLite file to a DuckDB file: `convert_sqlite`."""

from __future__ import annotations

import os
import re
import sqlite3
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import duckdb

from sense_trl._files import replacing
from sense_trl.database.engine import TableInfo
from sense_trl.database.sqlite_engine import SQLiteEngine
from sense_trl.database.text import decode_text, encode_text, has_bad_bytes, show_text
from sense_trl.errors import DatabaseError, InputError

_BATCH_ROWS: Final = 50_000


@dataclass(frozen=True, slots=True)
class ConversionReport:
    """Account of a conversion: the types of DuckDB, and what of SQLite's was not kept.

    Attributes:
        types: DuckDB type of each column, by table and column, in DuckDB's names.
        dropped: constraints, views and tables that could not be kept, in words.
        not_utf8: columns with a name or values that are not UTF-8, with what became of them.
    """

    types: dict[str, dict[str, str]]
    dropped: tuple[str, ...]
    not_utf8: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class _Column:
    """A column to copy.

    Attributes:
        name: in the source.
        target: its name in DuckDB.
        source: the expression that reads it.
        type: in DuckDB.
        is_escaped: whether values hold bytes that are not UTF-8.
    """

    name: str
    target: str
    source: str
    type: str
    is_escaped: bool = False

    @property
    def definition(self) -> str:
        """Name and type as CREATE TABLE takes them."""
        return f"{_quote(self.target)} {self.type}"

    def convert(self, values: Sequence[object]) -> Sequence[object]:
        """Values as Arrow takes them."""
        if not self.is_escaped:
            return values
        change = encode_text if self.type == "BLOB" else show_text
        return [change(value) if isinstance(value, str) else value for value in values]


def convert_sqlite(
    source: str | os.PathLike[str], target: str | os.PathLike[str]
) -> ConversionReport:
    """Write the tables of an SQLite file into a new DuckDB file.

    SQLite declares types and stores what it is given, so the type of a column comes from its
    values: BIGINT if all are integers of 64 bits, DOUBLE if all are numbers, BLOB if all are
    blobs, VARCHAR otherwise (numbers among text as SQLite would print them). A column without
    values follows its declaration. Keys and NOT NULL are kept where the rows obey them. Views,
    indices and triggers are left out.

    DuckDB holds UTF-8 alone. Bytes of names and values that are not are written as `\\xe9`; a
    column where a text reads like that already becomes a BLOB of the bytes. A table whose name is
    not UTF-8 cannot be read and is left out. The report names all of these.

    The target appears complete or not at all.

    Raises:
        DatabaseError: the source is no SQLite database or cannot be read.
        InputError: the target exists.
        OutputError: it cannot be written.
    """
    target = Path(target).absolute()
    if target.exists():
        raise InputError(f"`target` {target} exists; delete it or choose another name")
    with SQLiteEngine(source) as engine:
        tables = engine.get_tables()
    types: dict[str, dict[str, str]] = {}
    unreadable = [f"table {show_text(t.name)}" for t in tables if has_bad_bytes(t.name)]
    dropped = [f"{table}: its name is not UTF-8" for table in unreadable]
    not_utf8: list[str] = []
    reader = sqlite3.connect(f"{Path(source).absolute().as_uri()}?mode=ro", uri=True)
    reader.text_factory = decode_text
    try:
        with (
            replacing(target, is_shared=True) as partial,
            duckdb.connect(str(partial)) as writer,
        ):
            writer.execute("SET enable_progress_bar = false")
            for table in _parents_first(tables, dropped):
                rows_from, expressions = _get_source(reader, table)
                columns = _infer_types(reader, table, rows_from, expressions)
                _copy(reader, writer, table, rows_from, columns, dropped)
                types[table.name] = {column.target: column.type for column in columns}
                not_utf8 += _name_escaped(table, columns)
    except sqlite3.Error as error:
        raise DatabaseError(f"cannot read {source}: {error}") from error
    finally:
        reader.close()
    return ConversionReport(types, tuple(dropped), tuple(not_utf8))


def _name_escaped(table: TableInfo, columns: Sequence[_Column]) -> Iterator[str]:
    for column in columns:
        place = f"column {column.target} of {table.name}"
        if column.name != column.target:
            yield f"{place}: its name, written as here"
        if column.is_escaped:
            how = "kept as a BLOB" if column.type == "BLOB" else "their bytes written as \\xe9"
            yield f"{place}: values, {how}"


def _parents_first(tables: Sequence[TableInfo], dropped: list[str]) -> list[TableInfo]:
    """Tables in an order in which references point back, as far as there is one."""
    remaining = {t.name: t for t in tables if not t.is_view and not has_bad_bytes(t.name)}
    dropped += [f"view {show_text(table.name)}" for table in tables if table.is_view]
    ordered: list[TableInfo] = []
    while remaining:
        ready = [
            table
            for table in remaining.values()
            if not any(
                key.referenced_table in remaining and key.referenced_table != table.name
                for key in table.foreign_keys
            )
        ]
        # A cycle: its first table goes first, and loses the reference when it is created.
        for table in ready or [next(iter(remaining.values()))]:
            ordered.append(remaining.pop(table.name))
    return ordered


def _get_source(reader: sqlite3.Connection, table: TableInfo) -> tuple[str, dict[str, str]]:
    """The FROM clause that reads a table, and the expression for each column in it."""
    name = _quote(table.name)
    if not any(has_bad_bytes(column.name) for column in table.columns):
        return name, {column.name: _quote(column.name) for column in table.columns}
    # What cannot be named is counted.
    visible = reader.execute(
        "SELECT name FROM pragma_table_xinfo(?) WHERE hidden <> 1", (table.name,)
    ).fetchall()
    expressions = {column: f"c{number}" for number, (column,) in enumerate(visible)}
    renamed = ", ".join(expressions.values())
    return (
        f"(WITH renamed({renamed}) AS (SELECT * FROM {name}) SELECT * FROM renamed)",
        {column.name: expressions[column.name] for column in table.columns},
    )


def _infer_types(
    reader: sqlite3.Connection, table: TableInfo, source: str, expressions: Mapping[str, str]
) -> list[_Column]:
    columns = []
    for column in table.columns:
        expression = expressions[column.name]
        kinds = dict(
            reader.execute(
                f"SELECT typeof({expression}), count(*) FROM {source} GROUP BY 1"
            ).fetchall()
        )
        kinds.pop("null", None)
        type_ = _duckdb_type(set(kinds), column.type)
        is_escaped = False
        if type_ == "VARCHAR" and kinds.keys() & {"text", "blob"}:
            texts = reader.execute(f"SELECT CAST({expression} AS TEXT) FROM {source}")
            bad, like_escaped = _look_at_texts(text for (text,) in texts if text is not None)
            is_escaped, type_ = bad, "BLOB" if bad and like_escaped else type_
        columns.append(
            _Column(column.name, show_text(column.name), expression, type_, is_escaped=is_escaped)
        )
    return columns


def _look_at_texts(texts: Iterable[str]) -> tuple[bool, bool]:
    """Tell whether some are not UTF-8, and whether some look like `show_text` of those."""
    bad = like_escaped = False
    for text in texts:
        if has_bad_bytes(text):
            bad = True
        # Also next to bad bytes: what was there would not be known from what is written.
        like_escaped = like_escaped or _ESCAPE.search(text) is not None
    return bad, like_escaped


_ESCAPE: Final = re.compile(r"\\x[89a-f][0-9a-f]")


def _duckdb_type(kinds: set[str], declared: str) -> str:
    if kinds == {"integer"}:
        return "BIGINT"
    if kinds == {"blob"}:
        return "BLOB"
    if kinds and kinds <= {"integer", "real"}:
        return "DOUBLE"
    if kinds:
        return "VARCHAR"
    # SQLite's own rules of affinity, on the declaration.
    upper = declared.upper()
    if "INT" in upper:
        return "BIGINT"
    if any(word in upper for word in ("CHAR", "CLOB", "TEXT")) or not upper:
        return "VARCHAR"
    if "BLOB" in upper:
        return "BLOB"
    if any(word in upper for word in ("REAL", "FLOA", "DOUB", "NUM", "DEC")):
        return "DOUBLE"
    return "VARCHAR"


def _copy(
    reader: sqlite3.Connection,
    writer: Any,
    table: TableInfo,
    source: str,
    columns: list[_Column],
    dropped: list[str],
) -> None:
    keys = [c.name for c in sorted(table.columns, key=lambda c: c.primary_key) if c.primary_key]
    not_null = {column.name for column in table.columns if column.not_null}
    references = [
        f"FOREIGN KEY ({_list(key.columns)}) REFERENCES {_quote(key.referenced_table)} "
        f"({_list(key.referenced_columns)})"
        for key in table.foreign_keys
        if key.referenced_columns and not has_bad_bytes(key.referenced_table)
    ]
    primary = [f"PRIMARY KEY ({_list(keys)})"] if keys else []
    # From all constraints to none: SQLite enforces few of them, and DuckDB each.
    attempts = [
        (not_null, primary + references),
        (not_null, primary),
        (set(), primary),
        (set(), []),
    ]
    for number, (required, constraints) in enumerate(attempts):
        parts = [
            f"{column.definition}{' NOT NULL' if column.name in required else ''}"
            for column in columns
        ]
        try:
            writer.execute("BEGIN")
            writer.execute(f"CREATE TABLE {_quote(table.name)} ({', '.join(parts + constraints)})")
            _insert(reader, writer, table.name, source, columns)
            writer.execute("COMMIT")
        except (duckdb.ConstraintException, duckdb.BinderException, duckdb.CatalogException):
            writer.execute("ROLLBACK")
            if number == len(attempts) - 1:
                raise
        else:
            lost = [c for c in primary + references if c not in constraints]
            lost += [f"NOT NULL ({show_text(name)})" for name in sorted(not_null - required)]
            dropped += [f"{constraint} of {table.name}" for constraint in lost]
            return


def _insert(
    reader: sqlite3.Connection, writer: Any, table: str, source: str, columns: list[_Column]
) -> None:
    import pyarrow

    arrow_types = {
        "BIGINT": pyarrow.int64(),
        "DOUBLE": pyarrow.float64(),
        "BLOB": pyarrow.binary(),
        "VARCHAR": pyarrow.string(),
    }
    # Text among numbers is printed by SQLite itself: 1.0 and not 1, 1e+20 and not 100000000000.
    selected = ", ".join(
        f"CAST({column.source} AS TEXT)"
        if column.type == "VARCHAR" or column.is_escaped
        else column.source
        for column in columns
    )
    cursor = reader.execute(f"SELECT {selected} FROM {source}")
    while rows := cursor.fetchmany(_BATCH_ROWS):
        arrays = [
            pyarrow.array(column.convert(values), type=arrow_types[column.type])
            for values, column in zip(zip(*rows, strict=True), columns, strict=True)
        ]
        batch = pyarrow.table(arrays, names=[f"c{number}" for number in range(len(columns))])
        writer.register("_batch", batch)
        writer.execute(f"INSERT INTO {_quote(table)} SELECT * FROM _batch")
        writer.unregister("_batch")


def _quote(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'


def _list(names: Sequence[str]) -> str:
    return ", ".join(_quote(show_text(name)) for name in names)
