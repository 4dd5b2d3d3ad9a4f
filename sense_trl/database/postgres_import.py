"""From an SQLite file to a schema of a PostgreSQL database: `load_sqlite`."""

from __future__ import annotations

import os
import string
from collections.abc import Iterable, Sequence
from typing import Any, Final, cast

import psycopg
from psycopg import sql

from sense_trl.database.location import ServerDatabase, locate
from sense_trl.database.postgres_session import describe_error
from sense_trl.database.sqlite_source import (
    ConversionReport,
    SourceColumn,
    SourceTable,
    SQLiteSource,
    get_primary_key,
)
from sense_trl.database.text import has_bad_bytes, show_text
from sense_trl.errors import DatabaseError, InputError

# Texts are compared and ordered byte by byte, as SQLite does.
_TYPES: Final = {
    "BIGINT": "bigint",
    "DOUBLE": "double precision",
    "VARCHAR": 'text COLLATE "C"',
    "BLOB": "bytea",
}
_LOWER: Final = str.maketrans(string.ascii_uppercase, string.ascii_lowercase)
# Refusals that say that the rows or the keys of the source break a constraint.
_BROKEN: Final = (
    psycopg.IntegrityError,
    psycopg.errors.DatatypeMismatch,
    psycopg.errors.InvalidForeignKey,
    psycopg.errors.InvalidTableDefinition,
    psycopg.errors.ProgramLimitExceeded,
    psycopg.errors.UndefinedColumn,
    psycopg.errors.UndefinedTable,
)


def load_sqlite(source: str | os.PathLike[str], dsn: str) -> ConversionReport:
    """Write the tables of an SQLite file into a schema of a PostgreSQL database.

    Types come from the values as for `convert_sqlite`: bigint, double precision, text and bytea.

    * Names are in lower case (of ASCII), so that SQL finds them without quotes, as in SQLite.
    * Text has COLLATE "C", the order of SQLite; U+0000, which PostgreSQL does not hold, is
      written `\\x00`.
    * Primary keys, UNIQUE and NOT NULL are kept where the rows obey them; foreign keys always but
      where the types differ or no key is referred to: as NOT VALID where rows break them, which
      shows the key to readers of the schema and checks nothing that is there.
    * The columns of each foreign key that is kept have an index, and the tables have statistics.

    All is one transaction: the tables appear complete or not at all. The role that reads them
    later needs USAGE on the schema and SELECT on the tables, which this does not give.

    Args:
        source: the SQLite file.
        dsn: `postgresql://...`, with `schemas=NAME` for the schema, which is made where it is
            missing; `public` without it.

    Raises:
        DatabaseError: the source cannot be read, or the server cannot be reached or refuses.
        InputError: the schema has a table of this name.
    """
    location = locate(dsn)
    if not isinstance(location, ServerDatabase):
        raise InputError(f"`dsn` is {dsn!r}; expected postgresql://user@host/name.")
    schema, *others = location.schemas or ("public",)
    if others:
        raise InputError(
            f"`target` names the schemas {location.schemas}; expected one to write to."
        )
    types: dict[str, dict[str, str]] = {}
    with SQLiteSource(source) as reader:
        try:
            with psycopg.connect(
                location.conninfo,
                client_encoding="UTF8",
                **cast("dict[str, Any]", location.secrets),
            ) as connection:
                writer = _Writer(connection, schema, reader)
                for table in reader.get_tables():
                    types[lower_name(table.info.name)] = writer.write(table)
                writer.add_references()
        except psycopg.errors.DuplicateTable as error:
            raise InputError(
                f"`target` has the table: {error.diag.message_primary} in schema {schema!r}; drop "
                "it, or name another schema."
            ) from error
        except psycopg.Error as error:
            raise DatabaseError(
                f"cannot write to {location}: {describe_error(location, error)}"
            ) from None
    return ConversionReport(types, tuple(reader.dropped), tuple(reader.not_utf8))


def lower_name(name: str) -> str:
    """A name of SQLite, which ignores the case of ASCII, as PostgreSQL reads it without quotes.

    Example:
        >>> lower_name("Singer_ID")
        'singer_id'
    """
    return name.translate(_LOWER)


class _Writer:
    """Writes tables one after the other, and foreign keys when all are there."""

    def __init__(
        self, connection: psycopg.Connection[Any], schema: str, reader: SQLiteSource
    ) -> None:
        self._connection = connection
        self._schema = sql.Identifier(schema)
        self._reader = reader
        self._references: list[SourceTable] = []
        found = connection.execute("SELECT to_regnamespace(quote_ident(%s))", [schema]).fetchone()
        if found == (None,):
            self._run("CREATE SCHEMA {}", self._schema)

    def write(self, table: SourceTable) -> dict[str, str]:
        """Write a table with the keys that its rows obey; the types of its columns."""
        info, name = table.info, self._name(table.info.name)
        columns = sql.SQL(", ").join(
            sql.SQL("{} ").format(_column(column.target)) + sql.SQL(_TYPES[column.type])
            for column in table.columns
        )
        self._run("CREATE TABLE {} ({})", name, columns)
        self._copy(table)
        key = get_primary_key(info)
        if key:
            self._try("PRIMARY KEY ({})", info.name, key)
        for unique in self._reader.get_unique_keys(info.name):
            if list(unique) != list(key):
                self._try("UNIQUE ({})", info.name, unique)
        for column in info.columns:
            if column.not_null and not column.primary_key:
                self._try("NOT NULL ({})", info.name, [column.name])
        self._references.append(table)
        return {lower_name(column.target): column.type for column in table.columns}

    def add_references(self) -> None:
        """Add foreign keys with their indices, and look at the values of each column."""
        for table in self._references:
            info = table.info
            for key in info.foreign_keys:
                if not key.referenced_columns or has_bad_bytes(key.referenced_table):
                    self._drop(f"FOREIGN KEY ({', '.join(key.columns)})", info.name)
                    continue
                target = sql.SQL("REFERENCES {} ({})").format(
                    self._name(key.referenced_table), _columns(key.referenced_columns)
                )
                is_kept = self._try("FOREIGN KEY ({})", info.name, key.columns, target)
                leading = list(get_primary_key(info))[: len(key.columns)]
                if is_kept and list(key.columns) != leading:
                    self._try_index(info.name, key.columns)
            self._run("ANALYZE {}", self._name(info.name))

    def _copy(self, table: SourceTable) -> None:
        names = _columns(column.name for column in table.columns)
        statement = sql.SQL("COPY {} ({}) FROM STDIN").format(self._name(table.info.name), names)
        with self._connection.cursor() as cursor, cursor.copy(statement) as copy:
            for rows in self._reader.read_rows(table):
                for row in rows:
                    copy.write_row([_value(c, v) for c, v in zip(table.columns, row, strict=True)])

    def _try(
        self,
        constraint: str,
        table: str,
        columns: Sequence[str],
        target: sql.Composable = sql.SQL(""),  # noqa: B008
    ) -> bool:
        """Add a constraint if the rows obey it; a foreign key that they break as NOT VALID."""
        is_not_null, is_reference = constraint.startswith("NOT"), constraint.startswith("FOREIGN")
        written = "ALTER {} SET NOT NULL" if is_not_null else f"ADD {constraint}"
        attempts = [written + " {}"] + [written + " {} NOT VALID"] * is_reference
        for attempt in attempts:
            try:
                with self._connection.transaction():
                    names = _columns(columns)
                    self._run(f"ALTER TABLE {{}} {attempt}", self._name(table), names, target)
                    return True
            except _BROKEN:
                continue
        self._drop(constraint.format(", ".join(map(show_text, columns))), table)
        return False

    def _try_index(self, table: str, columns: Sequence[str]) -> None:
        """Make an index, unless values are too long for one."""
        try:
            with self._connection.transaction():
                self._run("CREATE INDEX ON {} ({})", self._name(table), _columns(columns))
        except psycopg.errors.ProgramLimitExceeded:
            self._drop(f"index on ({', '.join(map(show_text, columns))})", table)

    def _drop(self, what: str, table: str) -> None:
        self._reader.dropped.append(f"{what} of {table}")

    def _run(self, text: str, *parts: sql.Composable) -> None:
        self._connection.execute(sql.SQL(text).format(*parts))

    def _name(self, table: str) -> sql.Composed:
        return sql.SQL("{}.{}").format(self._schema, _column(table))


def _column(name: str) -> sql.Identifier:
    return sql.Identifier(lower_name(show_text(name)))


def _columns(names: Iterable[str]) -> sql.Composed:
    return sql.SQL(", ").join(map(_column, names))


def _value(column: SourceColumn, value: object) -> object:
    value = column.convert(value)
    return value.replace("\0", "\\x00") if isinstance(value, str) and "\0" in value else value
