"""Gold with more than one legal answer is undetermined; what is right is never wrong."""

from __future__ import annotations

import itertools
import sqlite3
from collections.abc import Sequence
from dataclasses import replace

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from sense_trl.database.engine import ExecutionLimits, SQLEngine
from sense_trl.database.sqlite_engine import SQLiteEngine
from sense_trl.sql.ambiguity import get_tie_breaking_queries
from sense_trl.verification import judging
from sense_trl.verification.comparison import Reason, Verdict
from sense_trl.verification.judging import GoldExamination, examine_gold, verify_sql

AMBIGUOUS = {Reason.GOLD_NOT_DETERMINISTIC, Reason.GOLD_LIMIT_TIE}
SCHEMA = "CREATE TABLE t (a TEXT, b INT, c INT); CREATE TABLE u (a TEXT, d INT);"
ROWS_OF_T = st.lists(
    st.tuples(st.sampled_from(["x", "y", "z", None]), st.integers(0, 1), st.integers(0, 2)),
    max_size=4,
)
ROWS_OF_U = st.lists(st.tuples(st.sampled_from(["x", "y"]), st.integers(0, 2)), max_size=3)

# A grammar of what takes one of several rows, for both engines.
KEYS = st.sampled_from(["b", "c", "b DESC", "c % 2", "a", "b, c"])
CUTS = st.sampled_from(
    [
        "LIMIT 1",
        "LIMIT 2",
        "LIMIT 1 OFFSET 1",
        "LIMIT 2 OFFSET 1",
        "LIMIT 3 - 1",
        "LIMIT (SELECT 1)",
    ]
)
COLUMNS = st.sampled_from(["a", "b", "c", "a, b"])
ONE = st.sampled_from(["a", "b", "c"])
OVER = st.sampled_from(
    [
        "row_number()", "rank()", "dense_rank()", "ntile(2)", "lag(a)", "lead(c)", "first_value(a)",
        "last_value(a)", "nth_value(a, 2)", "sum(c)", "count(*)", "cume_dist()",
    ]
)  # fmt: skip
FRAMES = st.sampled_from(
    ["", " ROWS UNBOUNDED PRECEDING", " ROWS BETWEEN 1 PRECEDING AND CURRENT ROW",
     " RANGE BETWEEN UNBOUNDED PRECEDING AND CURRENT ROW",
     " GROUPS BETWEEN UNBOUNDED PRECEDING AND CURRENT ROW"]
)  # fmt: skip
PARTITIONS = st.sampled_from(["", "PARTITION BY a ", "PARTITION BY b "])
COMMON = st.one_of(
    st.builds("SELECT {} FROM t ORDER BY {} {}".format, COLUMNS, KEYS, CUTS),
    st.builds("SELECT {} FROM t {}".format, COLUMNS, CUTS),
    st.builds("SELECT DISTINCT {} FROM t ORDER BY 1 {}".format, COLUMNS, CUTS),
    st.builds("SELECT count(*) FROM t WHERE a IN (SELECT {} FROM t ORDER BY {} {})".format,
              st.just("a"), KEYS, CUTS),
    st.builds("SELECT a FROM t WHERE b = (SELECT max(b) FROM (SELECT b FROM t ORDER BY {} {}) AS s)"
              .format, KEYS, CUTS),
    st.builds("WITH s AS (SELECT a, {0} AS k FROM t ORDER BY {1} {2}) SELECT u.d, s.k FROM s "
              "JOIN u ON s.a = u.a".format, ONE, KEYS, CUTS),
    st.builds("SELECT u.d, (SELECT {} FROM t WHERE t.a = u.a ORDER BY {} LIMIT 1) FROM u".format,
              ONE, KEYS),
    st.builds("SELECT {}, {} OVER ({}ORDER BY {}{}) FROM t".format,
              COLUMNS, OVER, PARTITIONS, st.sampled_from(["b", "c", "a"]), FRAMES),
    st.builds("SELECT a FROM (SELECT a, row_number() OVER ({}ORDER BY {}) AS r FROM t) AS s "
              "WHERE r = 1".format, PARTITIONS, KEYS),
    st.builds("SELECT {0}, count(*) FROM t GROUP BY {0} ORDER BY count(*) LIMIT 1".format, ONE),
    st.builds("SELECT d FROM u WHERE a = (SELECT a FROM t GROUP BY a ORDER BY {} LIMIT 1)".format,
              st.sampled_from(["count(*)", "max(b)", "sum(c) DESC"])),
    st.builds("SELECT EXISTS (SELECT {} FROM t LIMIT 1)".format, ONE),
)  # fmt: skip
SQLITE_ONLY = st.one_of(
    st.builds("SELECT {}, {}({}) FROM t".format, COLUMNS, st.sampled_from(["max", "min"]), ONE),
    st.builds("SELECT {}, max(b), c FROM t GROUP BY c".format, ONE),
    st.builds("SELECT {}, count(*) FROM t GROUP BY {}".format, COLUMNS, ONE),
    st.builds("SELECT {}({}) FROM t".format,
              st.sampled_from(["group_concat", "json_group_array"]), ONE),
    st.builds("SELECT {0}, group_concat({1}) FROM t GROUP BY {0}".format, ONE, ONE),
    st.builds("SELECT d FROM u WHERE d = (SELECT {} FROM t)".format, ONE),
    st.builds("SELECT d, (SELECT {} FROM t ORDER BY {}) FROM u".format, ONE, KEYS),
)  # fmt: skip


def _fill(connection: sqlite3.Connection, t: Sequence[object], u: Sequence[object]) -> None:
    connection.executescript(SCHEMA)
    connection.executemany("INSERT INTO t VALUES (?, ?, ?)", t)
    connection.executemany("INSERT INTO u VALUES (?, ?)", u)
    connection.commit()


def _answers(sql: str, t: list[object], u: list[object]) -> set[tuple[str, ...]]:
    """The answers to a query when the rows were stored in other orders."""
    answers = set()
    for rows, others in itertools.product(itertools.permutations(t), (u, u[::-1])):
        connection = sqlite3.connect(":memory:")
        _fill(connection, rows, others)
        answers.add(tuple(sorted(map(repr, connection.execute(sql)))))
        connection.close()
    return answers


def _check_rewritten(sql: str, engine: SQLEngine) -> None:
    """Gold with its ties broken is a right prediction, whichever way they are."""
    for query in get_tie_breaking_queries(sql, engine.dialect, num_ordered_columns=None) or ():
        assert verify_sql(query, sql, engine).verdict is not Verdict.WRONG, query


@settings(max_examples=40, suppress_health_check=list(HealthCheck))
@given(st.one_of(COMMON, SQLITE_ONLY), ROWS_OF_T, ROWS_OF_U)
# Sorted either way, the second row is an x.
@example(
    "SELECT count(*) FROM t WHERE a IN (SELECT a FROM t ORDER BY c % 2 LIMIT 1 OFFSET 1)",
    [("x", 1, 2), ("x", 1, 2), ("y", 0, 0)],
    [],
)
def test_gold_whose_answer_hangs_on_the_order_of_storage_is_ambiguous(
    tmp_path_factory: pytest.TempPathFactory, sql: str, t, u
) -> None:
    path = tmp_path_factory.mktemp("ties") / "ties.sqlite"
    connection = sqlite3.connect(path)
    _fill(connection, t, u)
    connection.close()
    with SQLiteEngine(path) as engine:
        gold = examine_gold(sql, engine, "strict", None)
        assert gold.problem is None or gold.problem in AMBIGUOUS, gold
        if len(_answers(sql, t, u)) > 1:
            assert gold.problem in AMBIGUOUS
        _check_rewritten(sql, engine)


# Ann and Ben tie in age, Cem and Dan in land; every name and id is one of its kind.
PEOPLE = """
CREATE TABLE s (id INTEGER PRIMARY KEY, name TEXT, age INT, land TEXT, day TEXT);
INSERT INTO s VALUES
    (1, 'Ann', 20, 'NL', '2020-01-05'), (2, 'Ben', 20, 'FR', '2021-03-01'),
    (3, 'Cem', 30, 'DE', '2020-07-09'), (4, 'Dan', 40, 'DE', '2022-12-24');
"""
CERTAIN_ANYWHERE = [
    "SELECT name FROM s ORDER BY age DESC LIMIT 2",
    "SELECT name FROM s ORDER BY age LIMIT 2",
    "SELECT name FROM s ORDER BY age LIMIT 1 OFFSET 2",
    "SELECT name FROM s ORDER BY age LIMIT 3 - 1 OFFSET 2",
    "SELECT age FROM s ORDER BY age LIMIT 1",
    "SELECT name FROM s LIMIT 4",
    "SELECT name FROM s LIMIT 9 OFFSET 0",
    "SELECT count(*) FROM s LIMIT 1",
    "SELECT name FROM s WHERE id = (SELECT id FROM s ORDER BY age DESC LIMIT 1)",
    "SELECT name FROM s WHERE EXISTS (SELECT 1 FROM s AS x WHERE x.land = s.land LIMIT 1)",
    "SELECT land, count(*) FROM s GROUP BY land ORDER BY count(*) DESC LIMIT 1",
    "SELECT DISTINCT land FROM s ORDER BY land LIMIT 1",
    "SELECT name, rank() OVER (ORDER BY age), dense_rank() OVER (ORDER BY land) FROM s",
    "SELECT name, sum(id) OVER (ORDER BY age) FROM s",
    "SELECT name, count(*) OVER (PARTITION BY land) FROM s",
    "SELECT name, row_number() OVER (ORDER BY age, name) FROM s",
    "SELECT name, max(age) OVER (ORDER BY age ROWS UNBOUNDED PRECEDING) FROM s",
    "SELECT count(*) FROM (SELECT name FROM s LIMIT 2) AS x",
    "SELECT name FROM s WHERE id = (SELECT id FROM s ORDER BY age DESC LIMIT 1); -- ; the oldest",
    "SELECT rowid, row_number() OVER (ORDER BY rowid) FROM s;",
]  # fmt: skip
AMBIGUOUS_ANYWHERE = [
    # At the edge of LIMIT, however it is written.
    "SELECT name FROM s ORDER BY age LIMIT 1",
    "SELECT name FROM s ORDER BY age LIMIT 2 - 1",
    "SELECT name FROM s ORDER BY age LIMIT (SELECT 1)",
    "SELECT name FROM s ORDER BY age LIMIT CAST('1' AS INTEGER)",
    "SELECT name FROM s LIMIT 1 + 1",
    # At the edge of OFFSET.
    "SELECT name FROM s ORDER BY age LIMIT 2 OFFSET 1",
    "SELECT name FROM s ORDER BY age LIMIT 9 OFFSET 1",
    "SELECT name FROM s ORDER BY age LIMIT 9 OFFSET 2 - 1",
    "SELECT name FROM s LIMIT 9 OFFSET 2",
    # All of the result columns tie, but not the rows of the same rank before DISTINCT.
    "SELECT DISTINCT name, age FROM s ORDER BY age LIMIT 1",
    "SELECT name FROM s UNION SELECT land FROM s LIMIT 1",
    "SELECT age, name FROM s UNION SELECT age, name FROM s ORDER BY 1 LIMIT 1",
    # Inside.
    "SELECT day FROM s WHERE id = (SELECT id FROM s ORDER BY age LIMIT 1)",
    "SELECT name FROM (SELECT name, age FROM s ORDER BY age LIMIT 1) AS x",
    "WITH x AS (SELECT name FROM s ORDER BY age LIMIT 1) SELECT name FROM x",
    "SELECT name FROM s WHERE id IN (SELECT id FROM s ORDER BY age LIMIT 1)",
    "SELECT name FROM s ORDER BY (SELECT x.age FROM s AS x ORDER BY x.id LIMIT 1) LIMIT 1",
    "SELECT y.id, (SELECT x.name FROM s AS x WHERE x.age = y.age ORDER BY x.age LIMIT 1) FROM s y",
    "SELECT name FROM s WHERE land = (SELECT land FROM s WHERE id < 4 GROUP BY land "
    "ORDER BY count(*) LIMIT 1)",
    # Windows.
    "SELECT name, row_number() OVER (ORDER BY age) FROM s",
    "SELECT name, row_number() OVER () FROM s",
    "SELECT name, ntile(4) OVER (ORDER BY age) FROM s",
    "SELECT name, first_value(name) OVER (ORDER BY age) FROM s",
    "SELECT name, last_value(name) OVER (ORDER BY age) FROM s",
    "SELECT name, nth_value(name, 2) OVER (ORDER BY age) FROM s",
    "SELECT name, lag(name) OVER (ORDER BY age), rank() OVER (ORDER BY age) FROM s",
    "SELECT name, lead(id) OVER (ORDER BY age) FROM s",
    "SELECT name, sum(id) OVER (ORDER BY age ROWS UNBOUNDED PRECEDING) FROM s",
    "SELECT name, avg(id) OVER w FROM s WINDOW w AS (ORDER BY age ROWS 1 PRECEDING)",
    "SELECT name FROM (SELECT name, row_number() OVER (PARTITION BY age ORDER BY land > 'A') AS r "
    "FROM s) AS x WHERE r = 1",
    "SELECT land, row_number() OVER (ORDER BY count(*)) FROM s WHERE id < 4 GROUP BY land",
    "SELECT group_concat(name) FROM s WHERE age = 20",
]  # fmt: skip
SQLITE_CERTAIN = [
    "SELECT name, max(age) FROM s",
    "SELECT land, max(age), count(*) FROM s GROUP BY land",
    # One aggregate, written twice.
    "SELECT s.name, max(s.age) FROM s WHERE id > 1 GROUP BY land ORDER BY MAX(age) LIMIT 1",
    "SELECT land, name, max(age) FROM s WHERE id > 1 GROUP BY land HAVING max(age) > 20",
    "SELECT land, name, max(age) FROM s WHERE id > 1 GROUP BY land ORDER BY max(age)",
    "SELECT group_concat(name) FROM s WHERE id = 1",
    "SELECT group_concat(name) FROM (SELECT name FROM s ORDER BY name)",
    "SELECT name FROM s WHERE age = (SELECT age FROM s WHERE id = 3)",
    "SELECT strftime('%Y', day) FROM s",
    "SELECT name FROM s ORDER BY age LIMIT -1",
    "SELECT name FROM s ORDER BY age LIMIT 2, 1",
    "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n LIMIT 5) SELECT i FROM n",
]
SQLITE_AMBIGUOUS = [
    "SELECT name, min(age) FROM s",
    "SELECT age, name, max(id < 9) FROM s GROUP BY age",
    "SELECT name, count(*) FROM s GROUP BY land",
    "SELECT x.land, x.name, max(x.age), max(y.age) FROM s AS x, s AS y GROUP BY x.land",
    "SELECT age, group_concat(name) FROM s GROUP BY age",
    "SELECT json_group_array(name) FROM s",
    "SELECT age, json_group_object(name, id) FROM s GROUP BY age",
    "SELECT (SELECT name FROM s)",
    "SELECT id FROM s WHERE name = (SELECT name FROM s ORDER BY age)",
    "SELECT name FROM s ORDER BY age LIMIT 1, 2",
    "SELECT rowid, row_number() OVER (ORDER BY age) FROM s",
    # What the copies of tables lack, nobody can decide.
    "SELECT *, rowid, row_number() OVER (ORDER BY name) FROM s",
]
DUCKDB_CERTAIN = [
    "SELECT string_agg(name, ',' ORDER BY name) FROM s",
    "SELECT list(name ORDER BY name) FROM s",
    "SELECT land, any_value(land), first(land) FROM s GROUP BY land",
    "SELECT arg_max(name, age), max_by(name, id) FROM s",
    "SELECT mode(land) FROM s",
    "SELECT DISTINCT ON (land) land, name FROM s ORDER BY land, name",
    "SELECT name FROM s QUALIFY row_number() OVER (PARTITION BY land ORDER BY name) = 1",
    "SELECT name FROM s ORDER BY age DESC LIMIT 50%",
    "SELECT name FROM s ORDER BY ALL LIMIT 2",
    "SELECT median(age), quantile_cont(age, 0.5), stddev(age) FROM s",
    "SELECT histogram(age) FROM s",
    "SELECT land, count(*) FROM s GROUP BY ALL ORDER BY ALL",
    "SELECT mode(age), mode(land) FILTER (WHERE id > 2) FROM s",
    "SELECT list_sort(list(DISTINCT land)), list(DISTINCT land ORDER BY land) FROM s",
    "SELECT any_value(DISTINCT land) FROM s WHERE id > 2",
]
DUCKDB_AMBIGUOUS = [
    "(SELECT name FROM s ORDER BY age LIMIT 1)",
    "SELECT string_agg(name, ',') FROM s",
    "SELECT string_agg(name, ',' ORDER BY age) FROM s",
    "SELECT age, listagg(name, ',') FROM s GROUP BY age",
    "SELECT list(name) FROM s",
    "SELECT land, array_agg(name ORDER BY land) FROM s GROUP BY land",
    "SELECT any_value(name) FROM s",
    "SELECT age, arbitrary(name) FROM s GROUP BY age",
    "SELECT land, first(name) FROM s GROUP BY land",
    "SELECT last(name) FROM s",
    "SELECT mode(age) FROM s WHERE id IN (1, 3)",
    "SELECT mode(age) FROM (FROM s UNION ALL FROM s) WHERE id > 2",
    "SELECT land, mode(age) FILTER (WHERE id > 0) AS m FROM s GROUP BY land",
    "SELECT list(DISTINCT land) FROM s",
    "SELECT string_agg(DISTINCT land, ',') FILTER (WHERE id > 0) FROM s",
    "SELECT first(DISTINCT land) FROM s",
    "SELECT arg_min(name, age) FROM s",
    "SELECT min_by(name, age), max(age) FROM s",
    "SELECT arg_max(name, land = 'DE') FROM s",
    "SELECT DISTINCT ON (land) land, name FROM s",
    "SELECT DISTINCT ON (age) age, name FROM s ORDER BY age",
    "SELECT name FROM s QUALIFY row_number() OVER (PARTITION BY land ORDER BY age > 0) = 1",
    "SELECT name FROM s ORDER BY age LIMIT 25%",
    "SELECT name FROM s LIMIT 25 PERCENT",
    "FROM s LIMIT 1",
    "SELECT name FROM s USING SAMPLE 2",
    "SELECT name FROM s TABLESAMPLE reservoir(50%)",
    "SELECT count(*) FROM s TABLESAMPLE 50%",
    "SELECT approx_quantile(age, 0.5) FROM s",
    "SELECT approx_count_distinct(age) FROM s",
    "SELECT reservoir_quantile(age, 0.5) FROM s",
    "SELECT age(day::TIMESTAMP) FROM s",
    "SELECT current_localtimestamp()",
]


@pytest.fixture(scope="module")
def sqlite_people(tmp_path_factory: pytest.TempPathFactory):
    path = tmp_path_factory.mktemp("people") / "people.sqlite"
    with sqlite3.connect(path) as connection:
        connection.executescript(PEOPLE)
    connection.close()
    with SQLiteEngine(path) as engine:
        yield engine


@pytest.fixture(scope="module")
def duckdb_people(tmp_path_factory: pytest.TempPathFactory):
    duckdb = pytest.importorskip("duckdb")
    from sense_trl.database.duckdb_engine import DuckDBEngine

    path = tmp_path_factory.mktemp("people") / "people.duckdb"
    with duckdb.connect(str(path)) as connection:
        connection.execute(PEOPLE)
    with DuckDBEngine(path) as engine:
        yield engine


@pytest.mark.parametrize("sql", CERTAIN_ANYWHERE + SQLITE_CERTAIN)
def test_sqlite_gold_with_one_answer_decides(sqlite_people: SQLEngine, sql: str) -> None:
    gold = examine_gold(sql, sqlite_people, "strict", None)
    assert (gold.problem, gold.result.error) == (None, None)


@pytest.mark.parametrize("sql", AMBIGUOUS_ANYWHERE + SQLITE_AMBIGUOUS)
def test_sqlite_gold_with_several_answers_decides_nothing(
    sqlite_people: SQLEngine, sql: str
) -> None:
    assert examine_gold(sql, sqlite_people, "strict", None).problem in AMBIGUOUS
    assert examine_gold(sql, sqlite_people, "spider", None).problem is None
    assert examine_gold(sql, sqlite_people, "bird", None).problem is None


@pytest.mark.parametrize("sql", CERTAIN_ANYWHERE + DUCKDB_CERTAIN)
def test_duckdb_gold_with_one_answer_decides(duckdb_people: SQLEngine, sql: str) -> None:
    gold = examine_gold(sql, duckdb_people, "strict", None)
    assert (gold.problem, gold.result.error) == (None, None)


@pytest.mark.parametrize("sql", AMBIGUOUS_ANYWHERE + DUCKDB_AMBIGUOUS)
def test_duckdb_gold_with_several_answers_decides_nothing(
    duckdb_people: SQLEngine, sql: str
) -> None:
    gold = examine_gold(sql, duckdb_people, "strict", None)
    assert gold.problem in AMBIGUOUS, gold.result.error


def test_the_order_of_long_gold_matters_as_well(sqlite_people: SQLEngine) -> None:
    many = ", ".join(f"s AS s{number}" for number in range(8))
    for sql, problem in (
        ("SELECT min(r), count(*) FROM (SELECT rank() OVER (ORDER BY s1.age) AS r FROM {})", None),
        (
            "SELECT n, max(r) FROM (SELECT s1.name AS n, row_number() OVER (ORDER BY s1.age) AS r "
            "FROM {}) GROUP BY n",
            Reason.GOLD_NOT_DETERMINISTIC,
        ),
    ):
        gold = examine_gold(sql.format(many), sqlite_people, "strict", None)
        assert gold.problem is problem
        assert gold.result.steps is not None and gold.result.steps > 100_000


@pytest.mark.parametrize("value", ["now", "NOW"])
@pytest.mark.parametrize(
    ("sql", "problem"),
    [
        ("SELECT date(day) FROM t", Reason.GOLD_NOT_DETERMINISTIC),
        (
            "SELECT count(*) FROM t WHERE strftime('%Y', day) > '2020'",
            Reason.GOLD_NOT_DETERMINISTIC,
        ),
        ("SELECT julianday(max(day), '+1 day') FROM t", Reason.GOLD_NOT_DETERMINISTIC),
        ("WITH x AS (SELECT day AS d FROM t) SELECT time(date(d)) FROM x WHERE d > 'a'", None),
        ("SELECT datetime(substr(day, 1, 10)) FROM t", Reason.GOLD_NOT_DETERMINISTIC),
        ("SELECT date('2020-01-01', shift) FROM t", Reason.GOLD_NOT_DETERMINISTIC),
        ("SELECT date(day) FROM t WHERE length(day) > 3", None),
        ("SELECT day FROM t", None),
        # In whatever year now is.
        ("SELECT count(date(day)) FROM t", None),
    ],
)
def test_the_clock_is_read_through_the_data(fresh_db, sql: str, problem, value: str) -> None:
    path = fresh_db(
        "CREATE TABLE t (day TEXT, shift TEXT); INSERT INTO t VALUES ('2020-01-01', '+1 day'), "
        f"('{value}', 'localtime');"
    )
    with SQLiteEngine(path) as engine:
        assert examine_gold(sql, engine, "strict", None).problem is problem


def test_gold_over_generated_columns_has_an_answer(fresh_db) -> None:
    path = fresh_db(
        "CREATE TABLE sale (id INTEGER PRIMARY KEY, price REAL, n INT,"
        " total REAL GENERATED ALWAYS AS (price * n), code TEXT AS ('S' || id) STORED);"
        "INSERT INTO sale (id, price, n) VALUES (1, 2, 3), (2, 5, 1), (3, 1, 9), (4, 5, 1);"
    )
    with SQLiteEngine(path) as engine:
        for sql, problem in (
            ("SELECT max(total), code FROM sale", None),
            ("SELECT code, rank() OVER (ORDER BY total) FROM sale", None),
            (
                "SELECT * FROM sale WHERE id = (SELECT id FROM sale ORDER BY total DESC LIMIT 1)",
                None,
            ),
            ("SELECT min(total), code FROM sale", Reason.GOLD_NOT_DETERMINISTIC),
        ):
            assert examine_gold(sql, engine, "strict", None).problem is problem, sql


def test_a_choice_in_gold_that_is_too_large_to_keep_decides_nothing(fresh_db) -> None:
    path = fresh_db(
        "CREATE TABLE t (a, b); INSERT INTO t WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL "
        "SELECT i + 1 FROM n WHERE i < 50) SELECT i, i % 7 FROM n;"
    )
    limits = ExecutionLimits(max_rows=30)
    with SQLiteEngine(path) as engine:
        for sql, problem in (
            ("SELECT a, b FROM t", None),
            ("SELECT a, rank() OVER (ORDER BY b) FROM t", None),
            ("SELECT a, row_number() OVER (ORDER BY b) FROM t", Reason.GOLD_TOO_LARGE),
            (
                "SELECT a, (SELECT x.a FROM t AS x ORDER BY x.b LIMIT 1) FROM t",
                Reason.GOLD_TOO_LARGE,
            ),
            ("SELECT a, max(b), min(b), b FROM t GROUP BY a", Reason.GOLD_TOO_LARGE),
        ):
            gold = examine_gold(sql, engine, "strict", limits)
            assert gold.problem is problem, sql
            assert (gold.digest is None) == (problem is not None)


# ---------------------------------------------------------------------- predictions


@pytest.mark.parametrize(
    ("predicted", "gold", "reason"),
    [
        # No order is asked for, and reading gives it.
        ("SELECT name FROM s", "SELECT name FROM s ORDER BY id", Reason.ORDER_DIFFERS),
        ("SELECT * FROM s", "SELECT * FROM s ORDER BY id", Reason.ORDER_DIFFERS),
        (
            "SELECT land, count(*) FROM s GROUP BY land",
            "SELECT land, count(*) FROM s GROUP BY land ORDER BY land",
            Reason.ORDER_DIFFERS,
        ),
        (
            "SELECT DISTINCT land FROM s",
            "SELECT DISTINCT land FROM s ORDER BY land DESC",
            Reason.ORDER_DIFFERS,
        ),
        ("SELECT name FROM s ORDER BY land <> 'NL'", "SELECT name FROM s ORDER BY land <> 'NL', id",
         Reason.ORDER_DIFFERS),
        (
            "SELECT name FROM (SELECT name, row_number() OVER (ORDER BY id) FROM s) AS x",
            "SELECT name FROM s ORDER BY id",
            Reason.ORDER_DIFFERS,
        ),
        # The rows that tie under gold's keys may come as they like.
        ("SELECT name FROM s WHERE age = 20", "SELECT name FROM s WHERE age = 20 ORDER BY age",
         Reason.RESULTS_EQUAL),
        ("SELECT name FROM s WHERE id = 1", "SELECT name FROM s WHERE id = 1 ORDER BY id",
         Reason.RESULTS_EQUAL),
        # Other keys, and the order is theirs; an order inside that is only passed on.
        ("SELECT name FROM s ORDER BY name", "SELECT name FROM s ORDER BY id",
         Reason.RESULTS_EQUAL),
        ("SELECT x.name FROM s AS x ORDER  BY x.id;", "SELECT name FROM s ORDER BY id",
         Reason.RESULTS_EQUAL),
        ("SELECT name FROM (SELECT * FROM s ORDER BY id) AS x", "SELECT name FROM s ORDER BY id",
         Reason.RESULTS_EQUAL),
        (
            "WITH x AS (SELECT name, id FROM s ORDER BY id) SELECT name FROM x",
            "SELECT name FROM s ORDER BY id",
            Reason.RESULTS_EQUAL,
        ),
        # The first of several, which may be any.
        ("SELECT name FROM s LIMIT 1", "SELECT name FROM s WHERE id = 1", Reason.VALUES_DIFFER),
        ("SELECT * FROM s LIMIT 1", "SELECT * FROM s ORDER BY id LIMIT 1", Reason.VALUES_DIFFER),
        ("SELECT name FROM s ORDER BY age LIMIT 1", "SELECT name FROM s ORDER BY age, id LIMIT 1",
         Reason.VALUES_DIFFER),
        ("SELECT name FROM s ORDER BY age DESC LIMIT 1", "SELECT name FROM s WHERE age > 30",
         Reason.RESULTS_EQUAL),
        (
            "SELECT name FROM s WHERE id = (SELECT id FROM s ORDER BY age LIMIT 1)",
            "SELECT name FROM s WHERE id = 1",
            Reason.VALUES_DIFFER,
        ),
        (
            "SELECT name, row_number() OVER (ORDER BY age) FROM s",
            "SELECT name, row_number() OVER (ORDER BY age, id) FROM s",
            Reason.VALUES_DIFFER,
        ),
        # Of three rows that tie the middle one, from either end.
        ("SELECT age > 20 FROM s ORDER BY id > 3 LIMIT 1 OFFSET 1", "SELECT 2 < 1",
         Reason.VALUES_DIFFER),
        ("SELECT age > 20 FROM s ORDER BY id LIMIT 1 OFFSET 1", "SELECT 2 < 1",
         Reason.RESULTS_EQUAL),
        # The order that an aggregate keeps.
        ("SELECT group_concat(name) FROM s", "SELECT 'Ann,Ben,Cem,Dan'", Reason.VALUES_DIFFER),
        ("SELECT group_concat(name) FROM s WHERE id = 1", "SELECT 'Ann'", Reason.RESULTS_EQUAL),
    ],
)  # fmt: skip
def test_a_prediction_that_is_right_by_the_order_of_storage_is_wrong(
    sqlite_people: SQLEngine, duckdb_people: SQLEngine, predicted: str, gold: str, reason: Reason
) -> None:
    for engine in (sqlite_people, duckdb_people):
        assert verify_sql(predicted, gold, engine).reason is reason, engine.dialect
    for semantics in ("spider", "bird"):
        verdict = verify_sql(predicted, gold, sqlite_people, semantics=semantics).verdict
        assert verdict is Verdict.CORRECT


@pytest.mark.parametrize(
    ("predicted", "gold", "reason"),
    [
        ("SELECT land, name FROM s GROUP BY land", "SELECT land, name FROM s WHERE id <> 4",
         Reason.VALUES_DIFFER),
        ("SELECT name, land FROM s GROUP BY id", "SELECT name, land FROM s", Reason.RESULTS_EQUAL),
        ("SELECT name, min(age) FROM s", "SELECT name, age FROM s WHERE id = 1",
         Reason.VALUES_DIFFER),
        ("SELECT name, max(age) FROM s", "SELECT name, age FROM s WHERE id = 4",
         Reason.RESULTS_EQUAL),
        ("SELECT (SELECT name FROM s)", "SELECT name FROM s WHERE id = 1", Reason.VALUES_DIFFER),
        ("SELECT (SELECT name FROM s WHERE id = 1)", "SELECT name FROM s WHERE id = 1",
         Reason.RESULTS_EQUAL),
    ],
)  # fmt: skip
def test_a_row_that_sqlite_takes_from_several_is_luck(
    sqlite_people: SQLEngine, predicted: str, gold: str, reason: Reason
) -> None:
    assert verify_sql(predicted, gold, sqlite_people).reason is reason


@pytest.mark.parametrize(
    ("predicted", "gold", "reason"),
    [
        ("SELECT first(name) FROM s", "SELECT 'Ann'", Reason.VALUES_DIFFER),
        ("SELECT first(name ORDER BY id) FROM s", "SELECT 'Ann'", Reason.RESULTS_EQUAL),
        ("SELECT mode(age) FROM s WHERE id > 2", "SELECT 30", Reason.VALUES_DIFFER),
        ("SELECT mode(age) FROM s", "SELECT 20", Reason.RESULTS_EQUAL),
        ("SELECT DISTINCT ON (age) age, name FROM s", "SELECT age, name FROM s WHERE id <> 2",
         Reason.VALUES_DIFFER),
        ("SELECT land FROM s", "SELECT land FROM s ORDER BY ALL DESC", Reason.ORDER_DIFFERS),
        ("SELECT name FROM s", "SELECT name FROM s ORDER BY ALL", Reason.ORDER_DIFFERS),
        ("SELECT name FROM s ORDER BY name", "SELECT name FROM s ORDER BY ALL",
         Reason.RESULTS_EQUAL),
    ],
)  # fmt: skip
def test_a_row_that_duckdb_takes_from_several_is_luck(
    duckdb_people: SQLEngine, predicted: str, gold: str, reason: Reason
) -> None:
    assert verify_sql(predicted, gold, duckdb_people).reason is reason


INSIDE = [
    # One row, several rows, and several that are equal.
    "SELECT name FROM s WHERE id = (SELECT id FROM s WHERE name = 'Ann')",
    "SELECT name FROM s WHERE id = (SELECT id FROM s)",
    "SELECT name FROM s WHERE id = (SELECT id FROM s ORDER BY id LIMIT 2)",
    "SELECT name FROM s WHERE id = (SELECT id FROM s ORDER BY age LIMIT 1)",
    "SELECT name FROM s WHERE id = (SELECT id FROM s ORDER BY age DESC LIMIT 1)",
    "SELECT name FROM s WHERE id IN (SELECT id FROM s ORDER BY age LIMIT 2)",
    "SELECT p.name FROM s AS p WHERE p.id = (SELECT q.id FROM s AS q WHERE q.age = p.age)",
]


@pytest.mark.parametrize("sql", AMBIGUOUS_ANYWHERE + INSIDE)
def test_a_look_at_the_subqueries_alone_changes_no_verdict(
    sqlite_people: SQLEngine, duckdb_people: SQLEngine, monkeypatch, sql: str
) -> None:
    for engine in (sqlite_people, duckdb_people):
        result = engine.execute(sql)
        if not result.ok:
            continue
        gold = GoldExamination("SELECT 1", result, None)
        copy = replace(result, steps=0)
        # In the order of storage it answers as gold does: was that luck?
        answers = []
        for look in (judging.get_choosing_subqueries, lambda *_: None):
            monkeypatch.setattr(judging, "get_choosing_subqueries", look)
            answers.append(judging._judge_luck(sql, copy, gold, engine, engine.limits))
        assert answers[0] == answers[1]


def test_a_long_prediction_is_looked_at_as_well(sqlite_people: SQLEngine) -> None:
    many = ", ".join(f"s AS s{number}" for number in range(7))
    gold = f"SELECT s1.name, count(*) FROM {many} GROUP BY s1.name ORDER BY s1.name"
    predicted = f"SELECT s1.name, count(*) FROM {many} GROUP BY s1.name"
    assert verify_sql(predicted, gold, sqlite_people).reason is Reason.ORDER_DIFFERS
    assert verify_sql(predicted + " ORDER BY 1", gold, sqlite_people).verdict is Verdict.CORRECT


def test_a_prediction_that_is_too_large_to_keep_is_looked_at_as_well(
    sqlite_people: SQLEngine,
) -> None:
    gold, limits = "SELECT name FROM s ORDER BY id", ExecutionLimits(max_rows=3)
    for predicted, reason in (
        ("SELECT name FROM s", Reason.ORDER_UNKNOWN),
        ("SELECT name FROM s ORDER BY name", Reason.RESULTS_EQUAL),
    ):
        found = verify_sql(predicted, gold, sqlite_people, limits=limits)
        assert found.reason is reason
