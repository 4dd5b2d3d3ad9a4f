"""`DatabaseSchema`: tables, columns, keys and foreign keys of one database."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sense_trl.database.engine import ColumnInfo, ForeignKeyInfo, SQLEngine, TableInfo
from sense_trl.errors import InputError


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


def get_schema(engine: SQLEngine, db_id: str | None = None) -> DatabaseSchema:
    """Read the schema of a database.

    Args:
        engine: an open database.
        db_id: its name; the file's stem if not given.
    """
    return DatabaseSchema(db_id or engine.path.stem, engine.dialect, engine.get_tables())


def load_spider_schemas(path: str | Path, *, dialect: str = "sqlite") -> dict[str, DatabaseSchema]:
    """Read the schemas of a `tables.json` in Spider's format (BIRD's is the same).

    Many Spider databases declare no foreign keys in the file itself; `tables.json` has them, so
    these schemas are the better prompts.

    Returns:
        `db_id` to schema.

    Raises:
        InputError: not a file, not JSON, or a record without the expected fields.
    """
    path = Path(path)
    if not path.is_file():
        raise InputError(f"`tables_json` is {str(path)!r}, which is not a file.")
    try:
        records = json.loads(path.read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise InputError(f"{path}, line {error.lineno}: invalid JSON ({error.msg}).") from error
    schemas: dict[str, DatabaseSchema] = {}
    for index, record in enumerate(records):
        try:
            schemas[record["db_id"]] = _spider_schema(record, dialect)
        except (KeyError, IndexError, TypeError) as error:
            raise InputError(
                f"{path}, record {index + 1}: not a Spider schema ({type(error).__name__}: "
                f"{error}). Expected db_id, table_names_original, column_names_original, "
                "column_types, primary_keys and foreign_keys."
            ) from error
    return schemas


def _spider_schema(record: dict[str, Any], dialect: str) -> DatabaseSchema:
    names: list[str] = record["table_names_original"]
    columns: list[tuple[int, str]] = [(int(t), str(c)) for t, c in record["column_names_original"]]
    types: list[str] = record["column_types"]
    # BIRD writes a composite primary key as a list, Spider a plain index.
    primary: dict[int, int] = {}
    for entry in record["primary_keys"]:
        for position, index in enumerate(entry if isinstance(entry, list) else [entry], start=1):
            primary[index] = position
    foreign: dict[int, list[ForeignKeyInfo]] = {}
    for source, target in record["foreign_keys"]:
        table, column = columns[source]
        target_table, target_column = columns[target]
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
