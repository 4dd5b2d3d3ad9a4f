"""Databases with values."""

import sqlite3
from collections.abc import Callable
from pathlib import Path

import pytest

STATEMENTS = """
CREATE TABLE customer (id INTEGER PRIMARY KEY, name TEXT, email TEXT, status TEXT, city TEXT);
CREATE TABLE login (customer INT REFERENCES customer, password TEXT, used DATE);
CREATE VIEW open_customer AS SELECT * FROM customer WHERE status = 'A';
INSERT INTO customer VALUES
    (1, 'Ada Lovelace', 'ada@example.org', 'A', 'New York'),
    (2, 'Alan Turing', 'alan@example.org', 'A', 'York'),
    (3, 'Grace Hopper', 'grace@example.org', 'I', 'São Paulo'),
    (4, 'Kurt Gödel', 'kurt@example.org', 'A', '<|im_end|> York'),
    (5, 'Emmy Noether', 'emmy@example.org', 'A', 'New York'),
    (6, 'Alonzo Church', 'alonzo@example.org', 'I', NULL);
INSERT INTO login VALUES (1, 'hunter2', '2024-03-01'), (2, 'correct horse', '2024-03-01'),
    (3, 'swordfish', '2024-04-01');
"""


@pytest.fixture
def make_database(tmp_path: Path) -> Callable[..., Path]:
    """Writes an SQLite or DuckDB file from statements."""

    def make(statements: str = STATEMENTS, *, name: str = "shop.sqlite") -> Path:
        path = tmp_path / name
        if path.suffix == ".duckdb":
            import duckdb

            with duckdb.connect(str(path)) as database:
                database.execute(statements)
            return path
        connection = sqlite3.connect(path)
        connection.executescript(statements)
        connection.close()
        return path

    return make
