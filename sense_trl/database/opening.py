"""Opens a database with the engine of its kind: `open_engine`."""

from __future__ import annotations

import importlib.util
import sqlite3
from pathlib import Path
from typing import Final

from sense_trl.database.engine import ExecutionLimits, SQLEngine
from sense_trl.database.location import DatabasePath, ServerDatabase
from sense_trl.database.sqlite_engine import SQLiteEngine
from sense_trl.errors import InputError

_SQLITE_SUFFIXES: Final = (".sqlite", ".sqlite3", ".db")
_DUCKDB_SUFFIXES: Final = (".duckdb",)
DATABASE_SUFFIXES: Final = _SQLITE_SUFFIXES + _DUCKDB_SUFFIXES
# What Windows keeps of the pictures of a folder.
_THUMBNAILS: Final = ("thumbs.db", "ehthumbs.db")


def is_database_file(path: Path) -> bool:
    """Whether a file in a folder is a database, by its name.

    Hidden files are none: macOS puts `._x.sqlite` beside the `x.sqlite` of an archive. Nor is
    `Thumbs.db`.
    """
    name = path.name.lower()
    is_named = path.suffix.lower() in DATABASE_SUFFIXES and not name.startswith(".")
    return is_named and name not in _THUMBNAILS and path.is_file()


def dialect_of(path: DatabasePath) -> str:
    """The dialect of the database at `path`: that of its server, or by the suffix of its file."""
    if isinstance(path, ServerDatabase):
        return "postgres"
    return "duckdb" if path.suffix.lower() in _DUCKDB_SUFFIXES else "sqlite"


def version_of(dialect: str) -> str:
    """Name and version of the library that runs this dialect."""
    if dialect == "duckdb":
        import duckdb

        return f"duckdb {duckdb.__version__}"
    return f"sqlite {sqlite3.sqlite_version}"


def open_engine(path: DatabasePath, *, limits: ExecutionLimits | None = None) -> SQLEngine:
    """Open the database at `path` with the engine of its kind.

    Raises:
        DatabaseError: the file is missing or cannot be read, or the server cannot be reached.
        InputError: psycopg is not installed.
    """
    if isinstance(path, ServerDatabase):
        check_psycopg()
        from sense_trl.database.postgres_engine import PostgresEngine

        return PostgresEngine(path, limits=limits)
    if dialect_of(path) == "duckdb":
        # Loading DuckDB takes 0.1 s and is left to those who have such a file.
        from sense_trl.database.duckdb_engine import DuckDBEngine

        return DuckDBEngine(path, limits=limits)
    return SQLiteEngine(path, limits=limits)


def check_psycopg() -> None:
    """Refuse a server where its driver is not installed.

    Raises:
        InputError: it is not.
    """
    if importlib.util.find_spec("psycopg") is None:
        raise InputError(
            "`database` is on a PostgreSQL server, and psycopg is not installed; "
            "pip install 'sense-trl[postgres]'."
        )
