"""`DatabaseSchema`: tables, columns, keys and foreign keys of one database."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sense_trl.database.engine import ColumnInfo, ForeignKeyInfo, SQLEngine, TableInfo
from sense_trl.database.location import DatabasePath
from sense_trl.database.profile import ForeignKeyColumns
from sense_trl.errors import DatabaseError, InputError

# What SQLite's full-text and R-tree modules add to the name of a table to store it.
_SHADOW_SUFFIXES = (
    ("_data", "_idx", "_docsize", "_config", "_content"),  # FTS5
    ("_data", "_idx", "_docsize", "_config"),  # FTS5 without its own content
    ("_segments", "_segdir", "_docsize", "_stat", "_content"),  # FTS4
    ("_segments", "_segdir", "_content"),  # FTS3
    ("_node", "_parent", "_rowid"),  # R-tree
)


@dataclass(frozen=True, slots=True)
class DatabaseSchema:
    """The schema of one database.

    Attributes:
        db_id: name of the database.
        dialect: sqlglot dialect its SQL is written in.
        tables: tables and views in the order of the database.
    """

    db_id: str
    dialect: str
    tables: tuple[TableInfo, ...]

    @property
    def foreign_keys(self) -> tuple[tuple[str, ForeignKeyInfo], ...]:
        """Every foreign key with the name of the table that declares it."""
        return tuple((t.name, key) for t in self.tables for key in t.foreign_keys)

    @property
    def foreign_key_columns(self) -> list[ForeignKeyColumns]:
        """The same, one column at a time: table, column, referenced table, referenced column.

        Keys that do not say which columns they refer to are left out: SQLite takes one to a table
        that is not there, or whose primary key is of another number of columns.
        """
        return [
            (table, column, key.referenced_table, referenced)
            for table, key in self.foreign_keys
            if len(key.columns) == len(key.referenced_columns)
            for column, referenced in zip(key.columns, key.referenced_columns, strict=True)
        ]


def get_schema(engine: SQLEngine, db_id: str | None = None) -> DatabaseSchema:
    """Read the schema of a database, without the tables in which SQLite stores virtual ones.

    Args:
        engine: an open database.
        db_id: its name; the file's stem if not given.
    """
    tables = engine.get_tables()
    hidden: set[str] = set()
    if engine.dialect == "sqlite":
        names = {table.name for table in tables}
        for name in names:
            for suffixes in _SHADOW_SUFFIXES:
                # Only a full set is one: a table `film_data` beside `film` may be the user's.
                shadows = {name + suffix for suffix in suffixes}
                if shadows <= names:
                    hidden |= shadows
    return DatabaseSchema(
        db_id or engine.path.stem,
        engine.dialect,
        tuple(table for table in tables if table.name not in hidden),
    )


def check_tables(schema: DatabaseSchema, path: DatabasePath | str) -> None:
    """Refuse a database that nothing can be asked of.

    Args:
        schema: of the database.
        path: its place, for the message.

    Raises:
        DatabaseError: it has no table.
    """
    if not schema.tables:
        where = {
            "duckdb": " in the schema `main`; those of other schemas are not read, copy them there",
            "postgres": " that the role may read in the schemas that are looked at; name others "
            "with ?schemas=a,b in the URL, or GRANT USAGE ON SCHEMA and SELECT on its tables",
        }
        raise DatabaseError(f"{str(path)!r} has no tables{where.get(schema.dialect, '')}.")


def load_spider_schemas(path: str | Path, *, dialect: str = "sqlite") -> dict[str, DatabaseSchema]:
    """Read the schemas of a `tables.json` in Spider's format (BIRD's is the same).

    Many Spider databases declare no foreign keys in the file itself; `tables.json` has them, so
    these schemas are the better prompts.

    Returns:
        `db_id` to schema.

    Raises:
        InputError: not a file, not UTF-8, not JSON, a record without the expected fields or with
            an index that is out of range, or a `db_id` that occurs twice.
    """
    path = Path(path)
    if not path.is_file():
        raise InputError(f"`tables_json` is {str(path)!r}, which is not a file.")
    try:
        records = json.loads(path.read_text(encoding="utf-8-sig"))
    except UnicodeDecodeError as error:
        raise InputError(
            f"`tables_json` {str(path)!r} is not UTF-8 text (byte {error.start}). Save it as UTF-8."
        ) from error
    except (ValueError, RecursionError) as error:
        raise InputError(
            f"{path}, line {getattr(error, 'lineno', 1)}: invalid JSON "
            f"({getattr(error, 'msg', error)})."
        ) from error
    if not isinstance(records, list):
        raise InputError(
            f"{path}: expected a JSON array with one object per database, as in Spider's "
            f"tables.json; got {type(records).__name__}."
        )
    schemas: dict[str, DatabaseSchema] = {}
    for index, record in enumerate(records):
        try:
            schema = _spider_schema(record, dialect)
        except (KeyError, IndexError, TypeError, ValueError, AttributeError) as error:
            raise InputError(
                f"{path}, record {index + 1}: not a Spider schema ({type(error).__name__}: "
                f"{error}). Expected db_id, table_names_original, column_names_original, "
                "column_types, primary_keys and foreign_keys."
            ) from error
        if schema.db_id in schemas:
            raise InputError(
                f"{path}, record {index + 1}: `db_id` {schema.db_id!r} occurs twice. Keep one of "
                "the records."
            )
        schemas[schema.db_id] = schema
    return schemas


def _spider_schema(record: dict[str, Any], dialect: str) -> DatabaseSchema:
    names: list[str] = record["table_names_original"]
    columns: list[tuple[int, str]] = [(int(t), str(c)) for t, c in record["column_names_original"]]
    types: list[str] = record["column_types"]
    for value in (record["db_id"], *names, *types):
        if not isinstance(value, str):
            raise TypeError(f"{value!r} is not a string")
    for owner, column in columns:
        if not -1 <= owner < len(names):
            raise IndexError(f"column {column!r} is of table {owner}, of {len(names)} tables")
    # BIRD writes a composite primary key as a list, Spider a plain index.
    primary: dict[int, int] = {}
    for entry in record["primary_keys"]:
        for position, index in enumerate(entry if isinstance(entry, list) else [entry], start=1):
            primary[_checked_index(index, columns)] = position
    foreign: dict[int, list[ForeignKeyInfo]] = {}
    for source, target in record["foreign_keys"]:
        table, column = columns[_checked_index(source, columns)]
        target_table, target_column = columns[_checked_index(target, columns)]
        # Column 0 is "*" and belongs to no table.
        if table < 0 or target_table < 0:
            continue
        foreign.setdefault(table, []).append(
            ForeignKeyInfo((column,), names[target_table], (target_column,))
        )
    return DatabaseSchema(
        db_id=record["db_id"],
        dialect=dialect,
        tables=tuple(
            TableInfo(
                name=name,
                columns=tuple(
                    ColumnInfo(column, types[i], False, primary.get(i, 0))
                    for i, (owner, column) in enumerate(columns)
                    if owner == number
                ),
                foreign_keys=tuple(foreign.get(number, ())),
                is_view=False,
            )
            for number, name in enumerate(names)
        ),
    )


def _checked_index(index: int, columns: list[tuple[int, str]]) -> int:
    if not isinstance(index, int) or not 0 <= index < len(columns):
        raise IndexError(f"column {index!r}, of {len(columns)} columns")
    return index
