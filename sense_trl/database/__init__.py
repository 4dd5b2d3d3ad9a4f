"""Engines over one database, and the catalog that finds databases."""

from sense_trl.database.catalog import DatabaseCatalog
from sense_trl.database.engine import (
    ColumnInfo,
    ExecutionLimits,
    ForeignKeyInfo,
    LimitKind,
    QueryResult,
    QueryStatus,
    SQLEngine,
    TableInfo,
)
from sense_trl.database.sqlite_engine import SQLiteEngine
from sense_trl.database.worker import IsolatedSQLiteEngine, SQLiteWorker

__all__ = [
    "ColumnInfo",
    "DatabaseCatalog",
    "ExecutionLimits",
    "ForeignKeyInfo",
    "IsolatedSQLiteEngine",
    "LimitKind",
    "QueryResult",
    "QueryStatus",
    "SQLEngine",
    "SQLiteEngine",
    "SQLiteWorker",
    "TableInfo",
]
