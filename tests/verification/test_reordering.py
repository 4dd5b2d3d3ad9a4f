"""Reading the same rows in another order."""

from __future__ import annotations

import sqlite3
from contextlib import closing

import pytest

from sense_trl.database.engine import ColumnInfo, TableInfo
from sense_trl.verification.reordering import MAX_ORDERS, get_reordered_queries


def _table(name: str, *columns: str) -> TableInfo:
    return TableInfo(name, tuple(ColumnInfo(c, "TEXT", False, 0) for c in columns), (), False)


TABLES = [_table("t", "a", "b c"), _table("u", *(f"col{n}" for n in range(9))), _table("empty")]
ROWS = [("x", 1), ("X", 2), (None, 0), ("x", 0)]


@pytest.fixture
def connection():
    connection = sqlite3.connect(":memory:")
    connection.execute('CREATE TABLE t (a TEXT COLLATE NOCASE, "b c" INT)')
    connection.executemany("INSERT INTO t VALUES (?, ?)", ROWS)
    yield connection
    connection.close()


def test_the_same_rows_come_in_other_orders(connection: sqlite3.Connection) -> None:
    for sql in ('SELECT a, "b c" FROM t', "SELECT * FROM t;"):
        orders = [
            tuple(connection.execute(query).fetchall())
            for query in get_reordered_queries(sql, TABLES, "sqlite")
        ]
        assert {frozenset(order) for order in orders} == {frozenset(ROWS)}
        assert orders[0] == orders[1][::-1]
        assert len(set(orders)) >= 4
        # Every column has its smallest and its largest value first once.
        assert {order[0][0] for order in orders} >= {None, "x"}


@pytest.mark.parametrize("number", [2, 3, 4])
def test_where_rows_are_skipped_every_row_comes_to_every_place(number: int) -> None:
    with closing(sqlite3.connect(":memory:")) as connection:
        connection.execute('CREATE TABLE t (a TEXT, "b c" INT)')
        connection.executemany("INSERT INTO t VALUES ('x', ?)", [(n,) for n in range(number)])
        for cut in ("LIMIT 9 OFFSET 0", "LIMIT 0, 9"):
            queries = get_reordered_queries(f'SELECT "b c" FROM t {cut}', TABLES, "sqlite")
            orders = [connection.execute(query).fetchall() for query in queries]
            for rows in zip(*orders, strict=True):
                assert {row[0] for row in rows} == {*range(number)}


def test_a_collation_lets_no_rows_keep_their_order(connection: sqlite3.Connection) -> None:
    low, high = (
        connection.execute(query).fetchall()
        for query in list(get_reordered_queries("SELECT a FROM t", TABLES, "sqlite"))[:2]
    )
    assert low == [(None,), ("X",), ("x",), ("x",)] == high[::-1]


def test_only_tables_and_columns_that_are_named_are_copied() -> None:
    (query, *_) = get_reordered_queries("SELECT count(*) FROM t WHERE A > 1", TABLES, "sqlite")
    assert query.startswith('WITH "t" AS (SELECT "a" FROM main."t" ORDER BY "a" ')
    # Which columns these need, the text does not say.
    for sql in ("SELECT a * 2 FROM t", "SELECT a FROM t NATURAL JOIN t AS x", "SELECT t.* FROM t"):
        (query, *_) = get_reordered_queries(sql, TABLES, "sqlite")
        assert '"b c"' in query


def test_there_are_not_too_many() -> None:
    queries = list(get_reordered_queries("SELECT * FROM t, u WHERE col1 = col2", TABLES, "duckdb"))
    assert 2 < len(queries) <= MAX_ORDERS
    every = ", ".join(f"col{n}" for n in range(9))
    assert (
        len(list(get_reordered_queries(f"SELECT {every} FROM u", TABLES, "duckdb"))) == MAX_ORDERS
    )
    assert list(get_reordered_queries("SELECT 1", TABLES[1:2], "duckdb")) == []


def test_copies_have_the_numbers_of_the_rows_that_a_query_asks_for() -> None:
    connection = sqlite3.connect(":memory:")
    connection.execute('CREATE TABLE t (a INTEGER PRIMARY KEY, "b c" INT)')
    connection.executemany("INSERT INTO t VALUES (?, ?)", [(7, 1), (9, 2)])
    for sql in ("SELECT a, rowid FROM t", "SELECT rowid, x._rowid_ FROM t AS x; -- ;"):
        orders = [
            connection.execute(query).fetchall()
            for query in get_reordered_queries(sql, TABLES, "sqlite")
        ]
        assert orders[:2] == [[(7, 7), (9, 9)], [(9, 9), (7, 7)]]
    connection.close()
