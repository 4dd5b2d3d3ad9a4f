"""From an SQLite file to a DuckDB file: `convert_sqlite`."""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import duckdb

from sense_trl.database.engine import TableInfo
from sense_trl.database.sqlite_engine import SQLiteEngine
from sense_trl.errors import DatabaseError, InputError

__all__ = ["ConversionReport", "convert_sqlite"]

_BATCH_ROWS: Final = 50_000


@dataclass(frozen=True, slots=True)
class ConversionReport:
    """What became of an SQLite database.

    Attributes:
        types: DuckDB type of each column, by table and column.
        dropped: constraints and views that could not be kept, in words.
    """

    types: dict[str, dict[str, str]]
    dropped: tuple[str, ...]


def convert_sqlite(
    source: str | os.PathLike[str], target: str | os.PathLike[str]
) -> ConversionReport:
    """Write the tables of an SQLite file into a new DuckDB file.

    SQLite declares types and stores what it is given, so the type of a column comes from its
    values: BIGINT if all are integers of 64 bits, DOUBLE if all are numbers, BLOB if all are
    blobs, VARCHAR otherwise (numbers among text as SQLite would print them, text that is not
    UTF-8 without its bad bytes). A column without values follows its declaration. Keys and
    NOT NULL are kept where the rows obey them. Views, indices and triggers are left out.

    The target appears complete or not at all.

    Raises:
        DatabaseError: the source is no SQLite database or cannot be read.
        InputError: the target exists.
    """
    target = Path(target).absolute()
    if target.exists():
        raise InputError(f"`target` {target} exists; delete it or choose another name")
    with SQLiteEngine(source) as engine:
        tables = engine.get_tables()
    partial = target.with_name(f".{target.name}.{os.getpid()}.partial")
    types: dict[str, dict[str, str]] = {}
    dropped: list[str] = []
    reader = sqlite3.connect(f"{Path(source).absolute().as_uri()}?mode=ro", uri=True)
    reader.text_factory = lambda data: data.decode(errors="ignore")
    try:
        with duckdb.connect(str(partial)) as writer:
            writer.execute("SET enable_progress_bar = false")
            for table in _parents_first(tables, dropped):
                columns = _infer_types(reader, table)
                _copy(reader, writer, table, columns, dropped)
                types[table.name] = dict(columns)
        os.replace(partial, target)
    except sqlite3.Error as error:
        raise DatabaseError(f"cannot read {source}: {error}") from error
    finally:
        reader.close()
        partial.unlink(missing_ok=True)
    return ConversionReport(types, tuple(dropped))


def _parents_first(tables: Sequence[TableInfo], dropped: list[str]) -> list[TableInfo]:
    """Tables in an order in which references point back, as far as there is one."""
    remaining = {table.name: table for table in tables if not table.is_view}
    dropped += [f"view {table.name}" for table in tables if table.is_view]
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


def _infer_types(reader: sqlite3.Connection, table: TableInfo) -> list[tuple[str, str]]:
    columns = []
    for column in table.columns:
        name = _quote(column.name)
        kinds = dict(
            reader.execute(
                f"SELECT typeof({name}), count(*) FROM {_quote(table.name)} GROUP BY 1"
            ).fetchall()
        )
        kinds.pop("null", None)
        columns.append((column.name, _duckdb_type(set(kinds), column.type)))
    return columns


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
    columns: list[tuple[str, str]],
    dropped: list[str],
) -> None:
    keys = [c.name for c in sorted(table.columns, key=lambda c: c.primary_key) if c.primary_key]
    not_null = {column.name for column in table.columns if column.not_null}
    references = [
        f"FOREIGN KEY ({_list(key.columns)}) REFERENCES {_quote(key.referenced_table)} "
        f"({_list(key.referenced_columns)})"
        for key in table.foreign_keys
        if key.referenced_columns
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
            f"{_quote(name)} {type_}{' NOT NULL' if name in required else ''}"
            for name, type_ in columns
        ]
        try:
            writer.execute("BEGIN")
            writer.execute(f"CREATE TABLE {_quote(table.name)} ({', '.join(parts + constraints)})")
            _insert(reader, writer, table.name, columns)
            writer.execute("COMMIT")
        except (duckdb.ConstraintException, duckdb.BinderException, duckdb.CatalogException):
            writer.execute("ROLLBACK")
            if number == len(attempts) - 1:
                raise
        else:
            lost = [c for c in primary + references if c not in constraints]
            lost += [f"NOT NULL ({name})" for name in sorted(not_null - required)]
            dropped += [f"{constraint} of {table.name}" for constraint in lost]
            return


def _insert(
    reader: sqlite3.Connection, writer: Any, table: str, columns: list[tuple[str, str]]
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
        f"CAST({_quote(name)} AS TEXT)" if type_ == "VARCHAR" else _quote(name)
        for name, type_ in columns
    )
    cursor = reader.execute(f"SELECT {selected} FROM {_quote(table)}")
    while rows := cursor.fetchmany(_BATCH_ROWS):
        arrays = [
            pyarrow.array(values, type=arrow_types[type_])
            for values, (_, type_) in zip(zip(*rows, strict=True), columns, strict=True)
        ]
        batch = pyarrow.table(arrays, names=[f"c{number}" for number in range(len(columns))])
        writer.register("_batch", batch)
        writer.execute(f"INSERT INTO {_quote(table)} SELECT * FROM _batch")
        writer.unregister("_batch")


def _quote(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'


def _list(names: Sequence[str]) -> str:
    return ", ".join(map(_quote, names))
