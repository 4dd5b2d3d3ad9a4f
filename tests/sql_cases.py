"""Reads the SQL cases in tests/sql/cases; their format stands at the head of each file."""

from __future__ import annotations

import sqlite3
from dataclasses import dataclass
from pathlib import Path

FOLDER = Path(__file__).resolve().parent / "sql" / "cases"


@dataclass(frozen=True)
class SQLCase:
    """A query beside gold, and the labels written over it."""

    gold: str
    sql: str
    labels: tuple[str, ...]


def load_cases(name: str) -> list[SQLCase]:
    cases = []
    gold, labels = "", None
    for line in (FOLDER / name).read_text(encoding="utf-8").splitlines():
        if not line or line.startswith("---"):
            continue
        if line.startswith("-- gold: "):
            gold, labels = line.removeprefix("-- gold: ").rstrip(";"), None
        elif line.startswith("-- "):
            labels = tuple(line.removeprefix("-- ").replace(",", " ").split())
        else:
            assert gold and labels is not None, f"{name}: no gold or no labels over {line!r}"
            cases.append(SQLCase(gold, line.rstrip(";"), labels))
    return cases


def load_schema() -> tuple[dict[str, dict[str, str]], list[tuple[str, str, str, str]]]:
    """Columns and foreign keys of schema.sql, as `mutate_sql` takes them."""
    connection = sqlite3.connect(":memory:")
    connection.executescript((FOLDER / "schema.sql").read_text(encoding="utf-8"))
    tables = [row[0] for row in connection.execute("SELECT name FROM sqlite_master")]
    columns = {
        table: {row[1]: row[2] for row in connection.execute(f"PRAGMA table_info({table})")}
        for table in tables
    }
    keys = [
        (table, row[3], row[2], row[4])
        for table in tables
        for row in connection.execute(f"PRAGMA foreign_key_list({table})")
    ]
    connection.close()
    return columns, keys
