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
from sense_trl.database.opening import open_engine
from sense_trl.database.sqlite_engine import SQLiteEngine
from sense_trl.database.worker import EngineWorker, IsolatedEngine

__all__ = [
    "ColumnInfo",
    "DatabaseCatalog",
    "EngineWorker",
    "ExecutionLimits",
    "ForeignKeyInfo",
    "IsolatedEngine",
    "LimitKind",
    "QueryResult",
    "QueryStatus",
    "SQLEngine",
    "SQLiteEngine",
    "TableInfo",
    "open_engine",
]
