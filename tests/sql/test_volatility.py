"""Which queries may answer otherwise tomorrow, by their text."""

from __future__ import annotations

import re
import sqlite3
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from postgres_server import PostgresServer

from sense_trl.database.sqlite_engine import _FUNCTIONS
from sense_trl.sql.volatility import get_clock_queries, is_volatile


@pytest.mark.parametrize(
    ("sql", "volatile"),
    [
        ("SELECT a FROM t ORDER BY RANDOM() LIMIT 1", True),
        ("SELECT randomblob (4)", True),
        ("SELECT a FROM t WHERE d < DATE('now')", True),
        ("SELECT a FROM t WHERE d < CURRENT_DATE", True),
        ("SELECT strftime('%Y', 'now') - y FROM t", True),
        ("SELECT date() FROM t", True),
        ("SELECT strftime('%Y', d) FROM t", False),
        ("SELECT random FROM t", False),
        ("SELECT date(d) FROM t", False),
    ],
)
def test_reading_the_clock_or_dice_is_seen(sql: str, volatile: bool) -> None:
    assert is_volatile(sql) is volatile


@pytest.mark.parametrize(
    "sql",
    [
        # The time value is computed, or missing.
        "SELECT date('n' || 'ow')",
        "SELECT date(lower('NOW'))",
        "SELECT date(x'6e6f77')",
        "SELECT date(char(110, 111, 119))",
        "SELECT julianday((SELECT 'n' || 'ow'))",
        "SELECT strftime('%Y') FROM t",
        'SELECT strftime("%Y") FROM t',
        "SELECT unixepoch()",
        "SELECT datetime(CAST('n' || 'ow' AS TEXT))",
        'SELECT date("now")',
        "SELECT date('NOW')",
        "SELECT date('subsec')",
        # By the time zone of the machine.
        "SELECT datetime(d, 'localtime') FROM t",
        "SELECT datetime(d, 'utc') FROM t",
        "SELECT datetime(d, 'local' || 'time') FROM t",
        # However the name is written.
        'SELECT "random"()',
        "SELECT [random] ()",
        "SELECT `random`()",
        "SELECT RaNdOm/* x */()",
        "SELECT date -- x\n()",
        "SELECT CURRENT_TIMESTAMP",
        # The connection, and the library.
        "SELECT changes()",
        "SELECT total_changes()",
        "SELECT last_insert_rowid()",
        "SELECT sqlite_version()",
    ],
)
def test_what_sqlite_answers_otherwise_tomorrow(sql: str) -> None:
    assert is_volatile(sql, "sqlite")


@pytest.mark.parametrize(
    "sql",
    [
        "SELECT date('2020-01-01', '-1 day')",
        "SELECT date(2459000.5), date(-1)",
        "SELECT date(date), time(time) FROM t",
        "SELECT date(substr(d, 1, 4) || '-01-01') FROM t",
        "SELECT date(\"d\", '+1 day') FROM t",
        "SELECT strftime('%Y', max(d), 'start of year') FROM t",
        "SELECT changes, random, date, current FROM t",
        "SELECT t.current_date, u.today FROM t, u",
        "SELECT age (a), sample FROM t JOIN u USING (sample)",
        "SELECT 'date()', 'random()' FROM t -- random()",
        "SELECT a FROM t WHERE zone = 'utc'",
    ],
)
def test_what_sqlite_answers_tomorrow_as_today(sql: str) -> None:
    assert not is_volatile(sql, "sqlite")


@pytest.mark.parametrize(
    ("sql", "volatile"),
    [
        ("SELECT age(d) FROM t", True),
        ("SELECT age(d, e) FROM t", False),
        ("SELECT age FROM t", False),
        ("SELECT current_localtimestamp()", True),
        ("SELECT localtimestamp, localtime", True),
        ("SELECT ago(INTERVAL 1 DAY)", True),
        ("SELECT uuidv7(), gen_random_uuid()", True),
        ("FROM t USING SAMPLE 3", True),
        ("SELECT * FROM t TABLESAMPLE 10%", True),
        ("SELECT approx_quantile(a, 0.5) FROM t", True),
        ("SELECT approx_top_k(a, 2) FROM t", True),
        ("SELECT reservoir_quantile(a, 0.5) FROM t", True),
        ("SELECT version(), current_database()", True),
        ("SELECT a FROM t JOIN u USING (sample)", False),
        (
            "SELECT strftime(d, '%Y'), date_trunc('month', d), date('2020-' || '01-01') FROM t",
            False,
        ),
    ],
)
def test_duckdb_is_read_by_its_own_rules(sql: str, volatile: bool) -> None:
    assert is_volatile(sql, "duckdb") is volatile


@pytest.mark.parametrize(
    ("sql", "volatile"),
    [
        ("SELECT age(d) FROM t", True),
        ("SELECT age(d, e) FROM t", False),
        ("SELECT a FROM t WHERE d > 'Yesterday'::date", True),
        ("SELECT a FROM t WHERE d = date 'today'", True),
        ("SELECT today FROM t", False),
        ("SELECT CURRENT_USER", True),
        ("SELECT t.session_user, u.tomorrow FROM t, u", False),
        ("SELECT pg_backend_pid()", True),
        ("SELECT pg_catalog.PG_DATABASE_SIZE('a')", True),
        ("SELECT pg_typeof(a), pg_get_viewdef('v'::regclass) FROM t", False),
        ("SELECT lo_get(1)", True),
        ("SELECT lo_get FROM t", False),
        ("SELECT timeofday(), random_normal()", True),
        ("SELECT nextval('s')", True),
        ("SELECT random(1, 6)", True),
        ("SELECT a FROM t TABLESAMPLE system (1)", True),
        ("SELECT to_char(d, 'YYYY'), date_trunc('month', d), a::text FROM t", False),
    ],
)
def test_postgresql_is_read_by_its_own_rules(sql: str, volatile: bool) -> None:
    assert is_volatile(sql, "postgres") is volatile


# Volatile by what they may do or by mistake; these read nothing that changes.
_HARMLESS = frozenset({"amvalidate", "currtid2", "ts_rewrite", "bernoulli", "system"})


def test_every_function_that_postgresql_calls_volatile_is_known(
    postgres_server: PostgresServer,
) -> None:
    with postgres_server.connect() as connection:
        functions = connection.execute(
            "SELECT DISTINCT proname FROM pg_proc WHERE pronamespace = 'pg_catalog'::regnamespace "
            "AND prokind = 'f' AND NOT proretset AND (provolatile = 'v' OR provolatile = 's' AND "
            "pronargs = 0) AND prorettype NOT IN ('internal'::regtype, 'trigger'::regtype)"
        ).fetchall()
    # What builds JSON of no arguments is stable for the sake of others; the rest is an owner's.
    others = re.compile(
        r"json|brin|gin_|.*handler|.*validator|binary_upgrade|dsnowball|cursor_to|.*_xmlschema|getdatabaseenc|pg_get_|plpgsql"
    )
    names = {name for (name,) in functions if not others.match(name)} - _HARMLESS
    assert {"random", "now", "clock_timestamp"} <= names
    assert [name for name in sorted(names) if not is_volatile(f"SELECT {name}()", "postgres")] == []


def test_every_function_that_sqlite_calls_not_deterministic_is_known() -> None:
    connection = sqlite3.connect(":memory:")
    functions = connection.execute("SELECT name, type, flags FROM pragma_function_list").fetchall()
    connection.close()
    # 0x800 is SQLITE_DETERMINISTIC; aggregates, windows and full-text search do without it.
    others = {name for name, kind, flags in functions if kind == "s" and not flags & 0x800}
    others -= {"bm25", "highlight", "match", "matchinfo", "offsets", "snippet"}
    assert "random" in others
    for name in others & _FUNCTIONS:
        assert is_volatile(f"SELECT {name}()"), name


def test_every_function_that_duckdb_calls_volatile_is_known() -> None:
    duckdb = pytest.importorskip("duckdb")
    functions = duckdb.connect(":memory:").execute(
        "SELECT DISTINCT function_name FROM duckdb_functions() WHERE stability <> 'CONSISTENT'"
    )
    names = [name for (name,) in functions.fetchall()]
    assert "random" in names and "now" in names
    for name in names:
        assert is_volatile(f"SELECT {name}()", "duckdb"), name


@pytest.mark.parametrize(
    "text", ["date(", "(", "date(d, ", "date('n' || ", "order by ", "a.", "date   ", "'", "/* "]
)
def test_repetition_costs_no_more_than_its_length(text: str) -> None:
    started = time.perf_counter()
    is_volatile("SELECT date(" + 20_000 * text)
    # Quadratic work would take minutes.
    assert time.perf_counter() - started < 5


TIMES = st.sampled_from(
    ["d", "'2020-02-03'", "d || ''", "max(d)", "substr(d, 1, 10)", "date(d)", "datetime(d, m)",
     "(SELECT max(d) FROM t)", "2459000.5"]
)  # fmt: skip
CALLS = st.one_of(
    st.builds("{}({})".format, st.sampled_from(["date", "time", "datetime", "julianday"]), TIMES),
    st.builds("strftime('%Y-%m', {}, {})".format, TIMES, st.sampled_from(["m", "'+1 day'"])),
)


@settings(max_examples=60)
@given(st.lists(CALLS, min_size=1, max_size=3))
def test_another_clock_changes_nothing_where_no_row_says_now(calls: list[str]) -> None:
    sql = f"SELECT {', '.join(calls)} FROM t GROUP BY d ORDER BY 1"
    connection = sqlite3.connect(":memory:")
    connection.execute("CREATE TABLE t (d, m)")
    rows = [("2020-01-05", "+1 day"), ("2021-07-09 10:00", "-2 months"), (None, "x"), (1, None)]
    connection.executemany("INSERT INTO t VALUES (?, ?)", rows)
    wanted = connection.execute(sql).fetchall()
    for query in get_clock_queries(sql, "sqlite") or ():
        assert connection.execute(query).fetchall() == wanted
    connection.close()


def test_the_two_clocks_are_put_where_the_data_says_now() -> None:
    connection = sqlite3.connect(":memory:")
    connection.execute("CREATE TABLE t (d, m)")
    connection.execute("INSERT INTO t VALUES ('Now', 'localtime'), ('2020-01-05', '+1 day')")
    queries = get_clock_queries("SELECT date(d), date('2020-01-01', m) FROM t", "sqlite")
    assert queries is not None
    answers = [connection.execute(query).fetchall() for query in queries]
    connection.close()
    assert answers == [
        [("0001-01-01", "2019-12-31"), ("2020-01-05", "2020-01-02")],
        [("9999-12-31", "2020-01-02"), ("2020-01-05", "2020-01-02")],
    ]


@settings(max_examples=100)
@given(
    st.lists(
        st.sampled_from(["date", "(", ")", "'now", "now'", '"', "[", ",", "random", "x'6", "--", "/*",
                         "d", "$$", "strftime", "age", ";"])
    )
)  # fmt: skip
def test_no_text_is_too_broken(pieces: list[str]) -> None:
    for dialect in ("sqlite", "duckdb"):
        is_volatile(" ".join(pieces), dialect)
        get_clock_queries("".join(pieces), dialect)
