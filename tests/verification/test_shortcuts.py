"""What is decided without running a query, or without running it to its end."""

from __future__ import annotations

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sense_trl.database.duckdb_engine import DuckDBEngine
from sense_trl.database.engine import QueryStatus
from sense_trl.database.sqlite_engine import SQLiteEngine
from sense_trl.verification.comparison import Reason, Verdict
from sense_trl.verification.judging import examine_gold, verify_against, verify_sql

SCRIPT = """
CREATE TABLE singer (id INTEGER PRIMARY KEY, name TEXT, age INT, land TEXT);
INSERT INTO singer VALUES
    (1, 'Joe', 52, 'NL'), (2, 'Ann', 32, 'US'), (3, 'Lee', 32, 'FR'), (4, 'Tim', 29, 'FR');
CREATE TABLE nobody (a);
"""
ENDLESS = "WITH RECURSIVE r(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM r) SELECT {} FROM r"
# Some 40,000 and 300,000 instructions.
LONG = "SELECT count(*) FROM " + ", ".join(f"singer s{i}" for i in range(7))
LONGER = "SELECT count(*) FROM " + ", ".join(f"singer s{i}" for i in range(8))


class CountingEngine(SQLiteEngine):
    """Keeps the texts it ran to their end."""

    def __init__(self, path) -> None:
        super().__init__(path)
        self.ran: list[str] = []
        self.num_reordered = 0

    def execute(self, sql, *, limits=None):
        result = super().execute(sql, limits=limits)
        if result.status is not QueryStatus.TIMEOUT:
            self.ran.append(sql)
        return result

    def execute_reordered(self, sql, *, limits=None):
        self.num_reordered += 1
        return super().execute_reordered(sql, limits=limits)


@pytest.fixture
def engine(fresh_db):
    with CountingEngine(fresh_db(SCRIPT)) as engine:
        yield engine


@pytest.mark.parametrize("semantics", ["strict", "spider", "bird"])
@pytest.mark.parametrize(
    "predicted",
    [
        "select NAME,age from singer where land='FR'",
        "SELECT name ,  age\nFROM singer WHERE land='FR' ;",
    ],
)
def test_the_text_of_gold_is_right_without_running_it(engine, predicted: str, semantics) -> None:
    gold = examine_gold("SELECT name, age FROM singer WHERE land='FR'", engine, semantics, None)
    engine.ran.clear()
    verification = verify_against(predicted, gold, engine, semantics, None)
    assert verification.reason is Reason.RESULTS_EQUAL
    assert verification.predicted_status is QueryStatus.OK
    assert engine.ran == []


@pytest.mark.parametrize(
    ("predicted", "gold", "reason"),
    [
        ("SELECT name FROM singer WHERE land = 'fr'", "SELECT name FROM singer WHERE land = 'FR'",
         Reason.ROW_COUNT_DIFFERS),
        ("SELECT 'a  b' FROM singer", "SELECT 'a b' FROM singer", Reason.VALUES_DIFFER),
        ("SELECT 'a ,b' FROM singer", "SELECT 'a,b' FROM singer", Reason.VALUES_DIFFER),
        ("SELECT name -- x FROM singer", "SELECT name -- x\nFROM singer",
         Reason.PREDICTION_EXECUTION_ERROR),
        ("SELECT name FROM singer;;", "SELECT name FROM singer;", Reason.RESULTS_EQUAL),
        ("SELECT name FROM singer; SELECT 1;", "SELECT name FROM singer;",
         Reason.PREDICTION_DENIED),
        ("SELECT name\x0bFROM singer", "SELECT name FROM singer", Reason.PREDICTION_SYNTAX_ERROR),
        ("SELECT a FROM nobody", "SELECT A FROM nobody", Reason.BOTH_EMPTY),
    ],
)  # fmt: skip
def test_what_only_looks_like_gold_is_run(engine, predicted: str, gold: str, reason) -> None:
    assert verify_sql(predicted, gold, engine).reason is reason


@pytest.mark.parametrize("tail", [";;", "; ;\n", "; -- c\n;", ";/* c; */;;"])
def test_a_second_semicolon_ends_nothing_but_to_birds_script(engine, tail: str) -> None:
    sql = "SELECT name FROM singer"
    for semantics in ("strict", "spider"):
        for predicted, gold in ((sql + tail, sql), (sql, sql + tail)):
            verification = verify_sql(predicted, gold, engine, semantics=semantics)
            assert verification.reason is Reason.RESULTS_EQUAL
    # Spider's script takes what stands before the first one.
    for semantics in ("strict", "bird"):
        led = verify_sql(f"; {sql}", sql, engine, semantics=semantics)
        assert led.reason is Reason.RESULTS_EQUAL
    # Python's module takes it for two statements, and so does the script.
    refused = verify_sql(sql + tail, sql, engine, semantics="bird")
    assert refused.reason is Reason.PREDICTION_DENIED
    assert verify_sql(sql, sql + tail, engine, semantics="bird").verdict is Verdict.UNDETERMINED
    one = verify_sql(sql + "; -- c; d", sql, engine, semantics="bird")
    assert one.reason is Reason.RESULTS_EQUAL


PIECES = ["SELECT", "select", " ", "\n", "\t", ",", "(", ")", "name", "NAME", "'x'", "'X'", "' '",
          '"name"', '"NAME"', ";", "FROM singer", "from SINGER", "--", "/*", "*/", "é", "É", "1"]  # fmt: skip


@given(st.lists(st.sampled_from(PIECES), min_size=1, max_size=6))
def test_a_text_taken_for_golds_has_golds_answer(spelling: list[str]) -> None:
    from sense_trl.verification.judging import GoldExamination, _is_same_text

    gold_sql = "SELECT name, 'x' FROM singer"
    sql = "".join(spelling)
    for text in (sql, f"SELECT name, {sql} FROM singer", f"SELECT name {sql} 'x' FROM singer"):
        if _is_same_text(text, GoldExamination(gold_sql, None, None)):  # type: ignore[arg-type]
            assert _rows(text) == _rows(gold_sql)


def _rows(sql: str) -> object:
    import sqlite3

    connection = sqlite3.connect(":memory:")
    connection.executescript(SCRIPT)
    rows = connection.execute(sql).fetchall()
    connection.close()
    return rows


def test_a_long_query_with_another_number_of_columns_is_not_run_to_its_end(engine) -> None:
    gold = "SELECT id, age FROM singer WHERE id = 1"
    started = time.perf_counter()
    verification = verify_sql(ENDLESS.format("count(*)"), gold, engine)
    assert verification.reason is Reason.COLUMN_COUNT_DIFFERS
    # Without the look at its columns it would use up its budget of 100 M instructions.
    assert time.perf_counter() - started < 0.5
    two = ENDLESS.format("count(*), 1 -- two;")
    assert verify_sql(two, "SELECT 1, 2, 3", engine).reason is Reason.COLUMN_COUNT_DIFFERS


def test_empty_gold_says_nothing_about_columns(engine) -> None:
    sql = LONG.replace("count(*)", "1, 2") + " WHERE s6.id > 9"
    assert verify_sql(sql, "SELECT a FROM nobody", engine).reason is Reason.BOTH_EMPTY


@pytest.mark.parametrize("semantics", ["strict", "spider", "bird"])
def test_long_predictions_that_are_spelled_alike_run_once(engine, semantics) -> None:
    gold = examine_gold("SELECT 16384", engine, semantics, None)
    for sql, reason in ((LONG, Reason.RESULTS_EQUAL), (LONGER, Reason.VALUES_DIFFER)):
        engine.ran.clear()
        spellings = [sql, sql.lower() + ";", sql.replace("s0", "x0"), "\n" + sql]
        verified = [verify_against(text, gold, engine, semantics, None) for text in spellings]
        assert {v.reason for v in verified} == {reason}
        assert {v.predicted_status for v in verified} == {QueryStatus.OK}
        assert [text for text in engine.ran if "LIMIT 0" not in text] == [sql]


@pytest.mark.parametrize(
    ("gold", "predicted"),
    [
        # A decimal is no floating-point number to SQLite: 3 / 2 is 1.
        ("sum(CAST(s0.id AS REAL) / 2)", "sum(CAST(s0.id AS DECIMAL) / 2)"),
        ("sum(mod(s0.id, 1.5))", "sum(s0.id % 1.5)"),
        ("sum(s0.id = '1')", "sum(+s0.id = '1')"),
        ("sum((s0.id = 1 OR s0.age = 32) AND s0.land = 'US')",
         "sum(s0.id = 1 OR s0.age = 32 AND s0.land = 'US')"),
    ],
)  # fmt: skip
def test_a_long_prediction_that_only_reads_like_gold_is_run(engine, gold, predicted) -> None:
    gold, predicted = (LONG.replace("count(*)", text) for text in (gold, predicted))
    assert verify_sql(predicted, gold, engine).reason is Reason.VALUES_DIFFER


@pytest.mark.parametrize(
    ("semantics", "reason"),
    [
        ("strict", Reason.PREDICTION_NOT_DETERMINISTIC),
        ("spider", Reason.COLUMN_COUNT_DIFFERS),
        ("bird", Reason.VALUES_DIFFER),
    ],
)
def test_a_long_random_query_with_another_number_of_columns(engine, semantics, reason) -> None:
    predicted = LONG.replace("count(*)", "count(*), random()")
    verification = verify_sql(predicted, "SELECT 16384", engine, semantics=semantics)
    assert verification.reason is reason
    assert verification.predicted_status is QueryStatus.OK


def test_a_long_spelling_of_gold_is_not_run_again(engine) -> None:
    gold = examine_gold(LONG, engine, "strict", None)
    engine.ran.clear()
    other = LONG.replace("singer s0", "singer AS s0")
    assert verify_against(other, gold, engine, "strict", None).reason is Reason.RESULTS_EQUAL
    assert all("LIMIT 0" in text for text in engine.ran)


def test_long_gold_is_read_backwards_only_if_that_could_matter(engine) -> None:
    assert examine_gold(LONG, engine, "strict", None).problem is None
    assert engine.num_reordered == 0
    picks_any = LONG.replace("count(*)", "s0.name, count(*)")
    assert examine_gold(picks_any, engine, "strict", None).problem is Reason.GOLD_NOT_DETERMINISTIC
    assert examine_gold(f"{LONG} LIMIT 1", engine, "strict", None).problem is None
    assert engine.num_reordered == 2


@pytest.mark.parametrize(
    ("schema", "sql"),
    [
        ("CREATE TABLE t (a TEXT COLLATE NOCASE)", "SELECT a FROM t UNION SELECT a FROM t"),
        ("CREATE TABLE t (a); CREATE VIEW v AS SELECT a FROM t LIMIT 1", "SELECT a, b FROM v, u"),
        ("CREATE TABLE t (a)", 'SELECT "a", count(*) FROM t'),
        ("CREATE TABLE t (a)", "SELECT b FROM u WHERE (SELECT a FROM t) IN ('y')"),
        ("CREATE TABLE t (a)", "SELECT b FROM u WHERE 'y' IN ((SELECT a FROM t))"),
    ],
)
def test_long_gold_whose_choice_of_a_row_is_hidden(fresh_db, schema: str, sql: str) -> None:
    numbers = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 9000)"
    path = fresh_db(
        f"{schema}; CREATE TABLE u AS {numbers} SELECT i AS b FROM n;"
        "INSERT INTO t SELECT iif(b % 2, 'y', 'Y') FROM u; INSERT INTO t VALUES ('Y')"
    )
    with SQLiteEngine(path) as engine:
        assert examine_gold(sql, engine, "strict", None).problem is Reason.GOLD_NOT_DETERMINISTIC


@pytest.mark.parametrize(
    ("predicted", "gold"),
    [("SELECT $$ x $$", "SELECT $$ X $$"), ("SELECT E'\\'a  b'", "SELECT E'\\'a b'")],
)
def test_strings_of_duckdb_are_not_respelled(tmp_path, predicted: str, gold: str) -> None:
    duckdb = pytest.importorskip("duckdb")
    path = tmp_path / "empty.duckdb"
    duckdb.connect(str(path)).close()
    with DuckDBEngine(path) as engine:
        assert verify_sql(predicted, gold, engine).reason is Reason.VALUES_DIFFER


@pytest.mark.parametrize(
    ("gold", "problem"),
    [
        # Joe is the only Dutchman; the French are two.
        ("SELECT name, count(*) FROM singer WHERE land <> 'FR' GROUP BY land", None),
        ("SELECT name, count(*) FROM singer GROUP BY land", Reason.GOLD_NOT_DETERMINISTIC),
        ("SELECT name FROM singer GROUP BY land HAVING count(*) = 1", None),
        ("SELECT land, count(*) FROM singer GROUP BY land ORDER BY name", None),
        ("SELECT name, max(age) FROM singer", None),
        ("SELECT name, max(age), min(age) FROM singer", Reason.GOLD_NOT_DETERMINISTIC),
    ],
)
def test_gold_that_picks_any_row_of_a_group_has_no_one_answer(engine, gold: str, problem) -> None:
    assert examine_gold(gold, engine, "strict", None).problem is problem
    assert examine_gold(gold, engine, "bird", None).problem is None
