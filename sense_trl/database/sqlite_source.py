"""Reading an SQLite file to copy it elsewhere: `SQLiteSource`."""

from __future__ import annotations

import os
import re
import sqlite3
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Final, Self

from sense_trl.database.engine import TableInfo
from sense_trl.database.sqlite_engine import SQLiteEngine
from sense_trl.database.text import decode_text, encode_text, has_bad_bytes, quote_name, show_text
from sense_trl.errors import DatabaseError

_BATCH_ROWS: Final = 50_000


@dataclass(frozen=True, slots=True)
class ConversionReport:
    """Account of a conversion: the types of its columns, and what of SQLite's was not kept.

    Attributes:
        types: type of each column (BIGINT, DOUBLE, VARCHAR or BLOB, whatever the target calls it),
            by table and column, in the target's names.
        dropped: constraints, views and tables that could not be kept, in words.
        not_utf8: columns with a name or values that are not UTF-8, with what became of them.
    """

    types: dict[str, dict[str, str]]
    dropped: tuple[str, ...]
    not_utf8: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class SourceColumn:
    """A column to copy.

    Attributes:
        name: in the source.
        expression: reads it.
        type: of its values: BIGINT, DOUBLE, VARCHAR or BLOB.
        is_escaped: whether values hold bytes that the target cannot.
    """

    name: str
    expression: str
    type: str
    is_escaped: bool = False

    @property
    def target(self) -> str:
        """Its name as UTF-8."""
        return show_text(self.name)

    def convert(self, value: object) -> object:
        """A value as the target takes it."""
        if not self.is_escaped or not isinstance(value, str):
            return value
        return encode_text(value) if self.type == "BLOB" else show_text(value)


@dataclass(frozen=True, slots=True)
class SourceTable:
    """A table to copy: what the schema says of it, the FROM clause that reads it, its columns."""

    info: TableInfo
    source: str
    columns: tuple[SourceColumn, ...]


class SQLiteSource:
    """The tables of an SQLite file, with types from their values.

    Errors of SQLite while it is open become a `DatabaseError`.

    Attributes:
        dropped: views, and tables that cannot be read, in words; a target adds to it.
        not_utf8: as in `ConversionReport`.

    Args:
        path: the file.

    Raises:
        DatabaseError: it is no SQLite database or cannot be read.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self._path = path
        with SQLiteEngine(path) as engine:
            self._tables = engine.get_tables()
        self.dropped = [
            f"table {show_text(t.name)}: its name is not UTF-8"
            for t in self._tables
            if has_bad_bytes(t.name)
        ]
        self.dropped += [f"view {show_text(t.name)}" for t in self._tables if t.is_view]
        self.not_utf8: list[str] = []
        self._reader = sqlite3.connect(f"{Path(path).absolute().as_uri()}?mode=ro", uri=True)
        self._reader.text_factory = decode_text

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._reader.close()
        if isinstance(exc, sqlite3.Error):
            raise DatabaseError(f"cannot read {self._path}: {exc}") from exc

    def get_tables(self) -> Iterator[SourceTable]:
        """Tables in an order in which references point back, as far as there is one."""
        remaining = {t.name: t for t in self._tables if not t.is_view and not has_bad_bytes(t.name)}
        while remaining:
            ready = [
                table
                for table in remaining.values()
                if not any(
                    key.referenced_table in remaining and key.referenced_table != table.name
                    for key in table.foreign_keys
                )
            ]
            # A cycle: its first table goes first, and refers to one that is not there yet.
            for table in ready or [next(iter(remaining.values()))]:
                yield self._look_at(remaining.pop(table.name))

    def read_rows(self, table: SourceTable) -> Iterator[list[tuple[object, ...]]]:
        """Its rows in batches, values as SQLite gives them.

        Text among numbers is printed by SQLite itself: 1.0 and not 1, 1e+20 and not 100000000000.
        """
        selected = ", ".join(
            f"CAST({column.expression} AS TEXT)"
            if column.type == "VARCHAR" or column.is_escaped
            else column.expression
            for column in table.columns
        )
        cursor = self._reader.execute(f"SELECT {selected} FROM {table.source}")
        while rows := cursor.fetchmany(_BATCH_ROWS):
            yield rows

    def get_unique_keys(self, table: str) -> list[tuple[str, ...]]:
        """The columns of each UNIQUE constraint and index over whole columns and all rows."""
        indices = self._reader.execute(
            'SELECT name FROM pragma_index_list(?) WHERE "unique" AND NOT partial '
            "AND origin <> 'pk' ORDER BY seq DESC",
            (table,),
        ).fetchall()
        keys = []
        for (index,) in indices:
            columns = self._reader.execute(
                "SELECT name FROM pragma_index_info(?) ORDER BY seqno", (index,)
            ).fetchall()
            if all(name is not None for (name,) in columns):
                keys.append(tuple(name for (name,) in columns))
        return list(dict.fromkeys(keys))

    def _look_at(self, table: TableInfo) -> SourceTable:
        source, expressions = self._get_source(table)
        columns = []
        for column in table.columns:
            expression = expressions[column.name]
            kinds = dict(
                self._reader.execute(
                    f"SELECT typeof({expression}), count(*) FROM {source} GROUP BY 1"
                ).fetchall()
            )
            kinds.pop("null", None)
            type_ = _type_of(set(kinds), column.type)
            is_escaped = False
            if type_ == "VARCHAR" and kinds.keys() & {"text", "blob"}:
                texts = self._reader.execute(f"SELECT CAST({expression} AS TEXT) FROM {source}")
                bad, like_escaped = _look_at_texts(text for (text,) in texts if text is not None)
                is_escaped, type_ = bad, "BLOB" if bad and like_escaped else type_
            found = SourceColumn(column.name, expression, type_, is_escaped)
            columns.append(found)
            place = f"column {found.target} of {table.name}"
            if found.name != found.target:
                self.not_utf8.append(f"{place}: its name, written as here")
            if is_escaped:
                how = "kept as a BLOB" if type_ == "BLOB" else "their bytes written as \\xe9"
                self.not_utf8.append(f"{place}: values, {how}")
        return SourceTable(table, source, tuple(columns))

    def _get_source(self, table: TableInfo) -> tuple[str, dict[str, str]]:
        """The FROM clause that reads a table, and the expression for each column in it."""
        name = quote_name(table.name)
        if not any(has_bad_bytes(column.name) for column in table.columns):
            return name, {column.name: quote_name(column.name) for column in table.columns}
        # What cannot be named is counted.
        visible = self._reader.execute(
            "SELECT name FROM pragma_table_xinfo(?) WHERE hidden <> 1", (table.name,)
        ).fetchall()
        expressions = {column: f"c{number}" for number, (column,) in enumerate(visible)}
        renamed = ", ".join(expressions.values())
        return (
            f"(WITH renamed({renamed}) AS (SELECT * FROM {name}) SELECT * FROM renamed)",
            {column.name: expressions[column.name] for column in table.columns},
        )


def get_primary_key(table: TableInfo) -> Sequence[str]:
    """Its columns in their order, () without one."""
    keys = [column for column in table.columns if column.primary_key]
    return [column.name for column in sorted(keys, key=lambda column: column.primary_key)]


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


def _type_of(kinds: set[str], declared: str) -> str:
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
