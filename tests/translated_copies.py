"""Copies of SQLite databases on the engines that SQLite's queries are translated for."""

from __future__ import annotations

import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Self

from postgres_server import PostgresServer

from sense_trl.database.duckdb_engine import DuckDBEngine
from sense_trl.database.duckdb_import import convert_sqlite
from sense_trl.database.engine import QueryResult
from sense_trl.database.postgres_engine import PostgresEngine
from sense_trl.database.sqlite_source import ConversionReport
from sense_trl.sql.transpile import ColumnTypes, sqlite_to_duckdb, sqlite_to_postgres


class Copy:
    """A copy of a SQLite database, which is asked in SQLite's SQL."""

    translate: Callable[[str, ColumnTypes], str]

    def __init__(self, report: ConversionReport) -> None:
        self.report = report

    def ask(self, sql: str) -> tuple[QueryResult, str]:
        """The result, and the query that gave it."""
        translated = type(self).translate(sql, self.report.types)
        return self.execute(translated), translated

    def execute(self, sql: str) -> QueryResult:
        """Run SQL of the target."""
        raise NotImplementedError

    def close(self) -> None:
        """Release it."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


class DuckDBCopy(Copy):
    """In a file."""

    translate = staticmethod(sqlite_to_duckdb)

    def __init__(self, source: Path, target: Path) -> None:
        super().__init__(convert_sqlite(source, target))
        self._engine = DuckDBEngine(target)
        self.close = self._engine.close
        self.execute = self._engine.execute


class PostgresCopy(Copy):
    """In a schema of its own."""

    translate = staticmethod(sqlite_to_postgres)

    def __init__(self, source: Path, server: PostgresServer) -> None:
        self.schema = f"copy_{uuid.uuid4().hex[:8]}"
        dsn = server.dsn()
        url = f"{dsn}{'&' if '?' in dsn else '?'}schemas={self.schema}"
        super().__init__(convert_sqlite(source, url))
        self.connection = server.connect()
        self.connection.execute(f"SET search_path = {self.schema}")
        self.engine = PostgresEngine(url, allow_superuser=True)
        self.execute = self.engine.execute

    def close(self) -> None:
        self.engine.close()
        self.connection.execute(f"DROP SCHEMA {self.schema} CASCADE")
        self.connection.close()
