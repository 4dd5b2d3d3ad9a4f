"""From an SQLite file to a DuckDB file or a PostgreSQL schema: `convert_sqlite`."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import duckdb

from sense_trl._files import replacing
from sense_trl.database.location import is_server_url
from sense_trl.database.sqlite_source import (
    ConversionReport,
    SourceTable,
    SQLiteSource,
    get_primary_key,
)
from sense_trl.database.text import has_bad_bytes, quote_name, show_text
from sense_trl.errors import InputError


def convert_sqlite(
    source: str | os.PathLike[str], target: str | os.PathLike[str]
) -> ConversionReport:
    """Write the tables of an SQLite file into a new DuckDB file, or into a PostgreSQL schema.

    SQLite declares types and stores what it is given, so the type of a column comes from its
    values: BIGINT if all are integers of 64 bits, DOUBLE if all are numbers, BLOB if all are
    blobs, VARCHAR otherwise (numbers among text as SQLite would print them). A column without
    values follows its declaration. Keys and NOT NULL are kept where the rows obey them. Views,
    indices and triggers are left out.

    Neither target holds text that is not UTF-8. Bytes of names and values that are not are written
    as `\\xe9`; a column where a text reads like that already becomes a BLOB of the bytes. A table
    whose name is not UTF-8 cannot be read and is left out. The report names all of these.

    The target appears complete or not at all.

    What is PostgreSQL's own, see `sense_trl.database.postgres_import.load_sqlite`, says its
    docstring: lower-case names, foreign keys that rows break, indices.

    Args:
        source: the SQLite file.
        target: a path where nothing is, or `postgresql://host/name?schemas=SCHEMA` of a role that
            may create; the schema is made where it is missing, and `public` without one.

    Raises:
        DatabaseError: the source is no SQLite database or cannot be read; the server cannot be
            reached or refuses.
        InputError: the target exists, or the schema has a table of this name.
        OutputError: it cannot be written.
    """
    if isinstance(target, str) and is_server_url(target):
        # An extra, and a second to import.
        from sense_trl.database.postgres_import import load_sqlite

        return load_sqlite(source, target)
    target = Path(target).absolute()
    if target.exists():
        raise InputError(f"`target` {target} exists; delete it or choose another name")
    types: dict[str, dict[str, str]] = {}
    with (
        SQLiteSource(source) as reader,
        replacing(target, is_shared=True) as partial,
        duckdb.connect(str(partial)) as writer,
    ):
        writer.execute("SET enable_progress_bar = false")
        for table in reader.get_tables():
            _copy(reader, writer, table)
            types[table.info.name] = {column.target: column.type for column in table.columns}
    return ConversionReport(types, tuple(reader.dropped), tuple(reader.not_utf8))


def _copy(reader: SQLiteSource, writer: Any, table: SourceTable) -> None:
    name, keys = table.info.name, get_primary_key(table.info)
    not_null = {column.name for column in table.info.columns if column.not_null}
    references = [
        f"FOREIGN KEY ({_list(key.columns)}) REFERENCES {quote_name(key.referenced_table)} "
        f"({_list(key.referenced_columns)})"
        for key in table.info.foreign_keys
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
            f"{quote_name(c.target)} {c.type}{' NOT NULL' if c.name in required else ''}"
            for c in table.columns
        ]
        try:
            writer.execute("BEGIN")
            writer.execute(f"CREATE TABLE {quote_name(name)} ({', '.join(parts + constraints)})")
            _insert(reader, writer, table)
            writer.execute("COMMIT")
        except (duckdb.ConstraintException, duckdb.BinderException, duckdb.CatalogException):
            writer.execute("ROLLBACK")
            if number == len(attempts) - 1:
                raise
        else:
            lost = [c for c in primary + references if c not in constraints]
            lost += [f"NOT NULL ({show_text(column)})" for column in sorted(not_null - required)]
            reader.dropped += [f"{constraint} of {name}" for constraint in lost]
            return


def _insert(reader: SQLiteSource, writer: Any, table: SourceTable) -> None:
    import pyarrow

    arrow_types = {
        "BIGINT": pyarrow.int64(),
        "DOUBLE": pyarrow.float64(),
        "BLOB": pyarrow.binary(),
        "VARCHAR": pyarrow.string(),
    }
    for rows in reader.read_rows(table):
        arrays = [
            pyarrow.array(
                map(column.convert, values) if column.is_escaped else values,
                type=arrow_types[column.type],
            )
            for values, column in zip(zip(*rows, strict=True), table.columns, strict=True)
        ]
        batch = pyarrow.table(arrays, names=[f"c{number}" for number in range(len(arrays))])
        writer.register("_batch", batch)
        writer.execute(f"INSERT INTO {quote_name(table.info.name)} SELECT * FROM _batch")
        writer.unregister("_batch")


def _list(names: Sequence[str]) -> str:
    return ", ".join(quote_name(show_text(name)) for name in names)
