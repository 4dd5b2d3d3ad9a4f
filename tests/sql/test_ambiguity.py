import sqlite3

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sense_trl.sql.ambiguity import depends_on_scan_order, get_bare_column_queries
from sense_trl.sql.parsing import SQLParseError


@pytest.mark.parametrize(
    "sql",
    [
        "SELECT a FROM t",
        "SELECT a FROM t WHERE b > 1 ORDER BY c",
        "SELECT a, count(*), avg(b) FROM t GROUP BY a HAVING max(b) > 2",
        "SELECT count(DISTINCT a) FROM t",
        "SELECT x.a FROM t AS x JOIN u ON x.a = u.a WHERE u.b IN (SELECT b FROM v)",
        "SELECT a FROM t WHERE b = (SELECT max(b) FROM t)",
        "SELECT a FROM t UNION SELECT b FROM u",
        "SELECT 1 FROM t WHERE EXISTS (SELECT 1 FROM u WHERE u.a = t.a)",
        "SELECT t.a, count(*) FROM t GROUP BY 1",
        "SELECT lower(a) AS l, count(*) FROM t GROUP BY l",
    ],
)
def test_a_query_whose_rows_no_order_of_reading_changes(sql: str) -> None:
    assert not depends_on_scan_order(sql, "sqlite")


@pytest.mark.parametrize(
    "sql",
    [
        "SELECT a FROM t LIMIT 3",
        "SELECT a FROM t WHERE b IN (SELECT b FROM u LIMIT 1)",
        "SELECT group_concat(a) FROM t",
        "SELECT a, row_number() OVER (ORDER BY b) FROM t",
        "SELECT a, b, count(*) FROM t GROUP BY a",
        "SELECT a, max(b) FROM t",
        "SELECT * FROM t GROUP BY a",
        "SELECT t.a, u.a, count(*) FROM t JOIN u ON t.i = u.i GROUP BY t.a",
        "SELECT a FROM t WHERE b = (SELECT b FROM u)",
        "SELECT a FROM t WHERE b = (SELECT max(b) FROM u GROUP BY c)",
        "SELECT some_function(a) FROM t",
        'SELECT "b", count(*) FROM t GROUP BY a',
        "SELECT a FROM t WHERE (SELECT b FROM u) IN (1, 2)",
        "SELECT a FROM t WHERE b IN ((SELECT b FROM u))",
        "SELECT a FROM t JOIN u ON (SELECT b FROM u)",
        "SELECT a, (SELECT max(c) FROM u WHERE u.b = t.b), count(*) FROM t GROUP BY a",
    ],
)
def test_a_query_that_an_order_of_reading_may_change(sql: str) -> None:
    assert depends_on_scan_order(sql, "sqlite")


@pytest.mark.parametrize(
    "sql",
    [
        "SELECT a FROM t",
        "SELECT a, count(*) FROM t GROUP BY a",
        "SELECT t.a, count(*) FROM t GROUP BY a ORDER BY count(*)",
        "SELECT a AS x, count(*) FROM t GROUP BY x",
        # SQLite takes `a` from the row of the maximum.
        "SELECT a, max(b) FROM t",
        # A quoted word may be a string.
        'SELECT "a", count(*) FROM t',
        "SELECT a FROM t WHERE b IN (SELECT b FROM u GROUP BY b)",
    ],
)
def test_a_query_without_a_free_choice_is_left_alone(sql: str) -> None:
    assert get_bare_column_queries(sql, "sqlite") is None


def test_what_is_no_query_is_an_error() -> None:
    with pytest.raises(SQLParseError):
        get_bare_column_queries("SELECT a, count( FROM t GROUP BY", "sqlite")


def _answers(rows: list[tuple[object, ...]], sql: str) -> list[list[tuple[object, ...]]]:
    connection = sqlite3.connect(":memory:")
    connection.execute("CREATE TABLE t (a, b)")
    connection.executemany("INSERT INTO t VALUES (?, ?)", rows)
    queries = get_bare_column_queries(sql, "sqlite")
    assert queries is not None
    answers = [connection.execute(query).fetchall() for query in queries]
    connection.close()
    return answers


def test_an_inner_column_keeps_its_name() -> None:
    sql = "SELECT b FROM (SELECT a, b FROM t GROUP BY a) AS s WHERE b > 1"
    low, high = _answers([(1, 2), (1, 3)], sql)
    assert (low, high) == ([(2,)], [(3,)])


values = st.one_of(st.none(), st.integers(0, 2), st.sampled_from(["x", "y"]))


@given(st.lists(st.tuples(st.integers(0, 2), values), max_size=8))
@settings(max_examples=200, deadline=None)
def test_the_two_answers_differ_if_and_only_if_a_group_has_several_values(
    rows: list[tuple[object, ...]],
) -> None:
    low, high = _answers(rows, "SELECT a, b FROM t GROUP BY a")
    groups: dict[object, set[object]] = {}
    for key, value in rows:
        groups.setdefault(key, set()).add(value)
    assert (sorted(map(repr, low)) != sorted(map(repr, high))) == any(
        len(group) > 1 for group in groups.values()
    )
