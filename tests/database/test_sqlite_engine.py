from __future__ import annotations

import contextlib
import functools
import os
import shutil
import sqlite3
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from sense_trl.database.engine import (
    ExecutionLimits,
    ForeignKeyInfo,
    LimitKind,
    QueryStatus,
)
from sense_trl.database.sqlite_engine import SQLiteEngine
from sense_trl.database.worker import EngineWorker, IsolatedEngine
from sense_trl.errors import DatabaseError, InputError

SCRIPT = """
CREATE TABLE singer (id INTEGER PRIMARY KEY, name TEXT NOT NULL, age INT);
INSERT INTO singer VALUES (1, 'Joe', 52), (2, 'Ann', 32), (3, 'Lee', NULL);
CREATE TABLE concert (
    id INTEGER PRIMARY KEY,
    singer_id INT REFERENCES singer,
    year INT,
    FOREIGN KEY (year, id) REFERENCES season (year, nr)
);
CREATE TABLE season (year INT, nr INT, PRIMARY KEY (nr, year));
CREATE VIEW adult AS SELECT name FROM singer WHERE age >= 18;
CREATE VIEW broken AS SELECT x FROM gone;
"""
ENDLESS = "WITH RECURSIVE r(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM r) SELECT count(*) FROM r"
Engine = SQLiteEngine | IsolatedEngine


@pytest.fixture(scope="module")
def worker() -> Iterator[EngineWorker]:
    with EngineWorker() as worker:
        yield worker


@pytest.fixture(params=["in-process", "isolated"])
def engine(request: pytest.FixtureRequest, fresh_db, worker: EngineWorker) -> Iterator[Engine]:
    path = fresh_db(SCRIPT)
    if request.param == "isolated":
        with IsolatedEngine(path, worker=worker) as engine:
            yield engine
    else:
        with SQLiteEngine(path) as engine:
            yield engine


def test_rows_and_columns_are_read_in_order(engine: Engine) -> None:
    result = engine.execute("SELECT name, age AS years FROM singer ORDER BY id")
    assert result.ok
    assert result.columns == ("name", "years")
    assert result.rows == (("Joe", 52), ("Ann", 32), ("Lee", None))
    assert result.error is None and result.exceeded is None


@pytest.mark.parametrize(
    ("sql", "status"),
    [
        ("", QueryStatus.SYNTAX_ERROR),
        ("   \n", QueryStatus.SYNTAX_ERROR),
        (";", QueryStatus.SYNTAX_ERROR),
        ("-- SELECT 1", QueryStatus.SYNTAX_ERROR),
        ("/* SELECT 1", QueryStatus.SYNTAX_ERROR),
        ("SELECT", QueryStatus.SYNTAX_ERROR),
        ("SELECT 'a", QueryStatus.SYNTAX_ERROR),
        ("SELECT \x00", QueryStatus.SYNTAX_ERROR),
        ("SELECT '\ud800'", QueryStatus.SYNTAX_ERROR),
        ("I cannot answer this.", QueryStatus.SYNTAX_ERROR),
        ("SELECT * FROM nope", QueryStatus.EXECUTION_ERROR),
        ("SELECT nope FROM singer", QueryStatus.EXECUTION_ERROR),
        ("SELECT abs(-9223372036854775807 - 1)", QueryStatus.EXECUTION_ERROR),
        ("SELECT 1; SELECT 2", QueryStatus.DENIED),
        ("DELETE FROM singer", QueryStatus.DENIED),
        ("WITH x AS (SELECT 1) DELETE FROM singer", QueryStatus.DENIED),
        ("/* read only */ DROP TABLE singer", QueryStatus.DENIED),
        ("CREATE TEMP VIEW singer AS SELECT 1", QueryStatus.DENIED),
        ("PRAGMA case_sensitive_like = 1", QueryStatus.DENIED),
        ("EXPLAIN SELECT 1", QueryStatus.DENIED),
        ("SELECT * FROM pragma_table_info('singer')", QueryStatus.DENIED),
        ("SELECT * FROM sqlite_temp_master", QueryStatus.DENIED),
        ("SELECT count(*) FROM sqlite_temp_schema", QueryStatus.DENIED),
        ("SELECT * FROM dbstat", QueryStatus.DENIED),
        ("SELECT load_extension('x')", QueryStatus.DENIED),
        ("SELECT LOAD_EXTENSION('x')", QueryStatus.DENIED),
        ("SELECT fts3_tokenizer('simple')", QueryStatus.DENIED),
        ("SELECT " + "1" * 200_000, QueryStatus.DENIED),
        ("\ufeffDROP TABLE singer", QueryStatus.DENIED),
        ("SELECT 1;", QueryStatus.OK),
        # To SQLite, a mark of byte order is a space.
        ("\ufeff; \ufeffSELECT 1", QueryStatus.OK),
        ("-- note\n/* more */ select 1 -- end", QueryStatus.OK),
        ("VALUES (1), (2)", QueryStatus.OK),
        ("WITH x AS (SELECT 1 AS a) SELECT count(*) FROM x", QueryStatus.OK),
        ("SELECT value FROM json_each('[1, 2]')", QueryStatus.OK),
        ("SELECT name, rank() OVER (ORDER BY age) FROM singer", QueryStatus.OK),
        ("SELECT sql FROM sqlite_master", QueryStatus.OK),
    ],
)
def test_each_text_ends_with_its_status(engine: Engine, sql: str, status: QueryStatus) -> None:
    result = engine.execute(sql)
    assert result.status is status, result.error
    assert (result.error is None) == result.ok
    if not result.ok:
        assert result.rows == () and result.columns == ()


def test_nothing_a_query_does_is_seen_by_the_next(engine: Engine) -> None:
    before = engine.path.read_bytes()
    for sql in (
        "CREATE TEMP TABLE singer AS SELECT 'forged' AS name",
        "PRAGMA reverse_unordered_selects = 1",
        "PRAGMA hard_heap_limit = 10000",
        "ATTACH ':memory:' AS other",
        "BEGIN EXCLUSIVE",
        "DROP TABLE singer",
        ENDLESS,
    ):
        engine.execute(sql, limits=ExecutionLimits(max_steps=10_000))
    result = engine.execute("SELECT name FROM singer")
    assert result.rows == (("Joe",), ("Ann",), ("Lee",))
    assert engine.path.read_bytes() == before
    assert [file.name for file in engine.path.parent.iterdir()] == [engine.path.name]


def test_the_step_budget_stops_at_the_same_instruction_every_time(engine: Engine) -> None:
    limits = ExecutionLimits(max_steps=1_000_000)
    results = [engine.execute(ENDLESS, limits=limits) for _ in range(3)]
    assert {result.status for result in results} == {QueryStatus.TIMEOUT}
    assert {result.exceeded for result in results} == {LimitKind.STEPS}
    assert {result.steps for result in results} == {1_000_000}


def test_counted_steps_do_not_depend_on_what_ran_before(engine: Engine) -> None:
    count = (
        "SELECT count(*) FROM singer a, singer b, singer c, singer d, singer e, singer f, singer g"
    )
    first = engine.execute(count).steps
    for _ in range(5):
        engine.execute("SELECT name FROM singer, concert")
    assert first is not None and first >= 2_000
    assert engine.execute(count).steps == first


def test_the_wall_clock_stops_a_query(engine: Engine) -> None:
    started = time.perf_counter()
    result = engine.execute(ENDLESS, limits=ExecutionLimits(timeout_s=0.2))
    assert time.perf_counter() - started < 0.7
    assert result.status is QueryStatus.TIMEOUT
    assert result.exceeded is LimitKind.WALL_CLOCK


def test_row_cap_counts_exactly(engine: Engine) -> None:
    three = "SELECT name FROM singer"
    assert engine.execute(three, limits=ExecutionLimits(max_rows=3)).ok
    result = engine.execute(three, limits=ExecutionLimits(max_rows=2))
    assert (result.status, result.exceeded) == (QueryStatus.TOO_LARGE, LimitKind.ROWS)
    empty = ExecutionLimits(max_rows=0)
    assert engine.execute("SELECT 1 WHERE 0", limits=empty).ok
    assert engine.execute("SELECT 1", limits=empty).exceeded is LimitKind.ROWS


def test_byte_caps_count_exactly(engine: Engine) -> None:
    many = (
        "WITH RECURSIVE r(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM r LIMIT 100) "
        "SELECT hex(zeroblob(50)) FROM r"
    )
    exact = ExecutionLimits(max_cell_bytes=1_000, max_result_bytes=10_000)
    assert engine.execute(many, limits=exact).ok
    less = ExecutionLimits(max_cell_bytes=1_000, max_result_bytes=9_999)
    assert engine.execute(many, limits=less).exceeded is LimitKind.RESULT_BYTES
    cell = ExecutionLimits(max_cell_bytes=99)
    assert engine.execute(many, limits=cell).exceeded is LimitKind.CELL_BYTES


def test_a_small_result_of_few_huge_values_is_counted_too(engine: Engine) -> None:
    limits = ExecutionLimits(max_cell_bytes=1_000, max_result_bytes=1_500)
    one_row = "SELECT zeroblob(900), zeroblob(900)"
    assert engine.execute(one_row, limits=limits).exceeded is LimitKind.RESULT_BYTES


def test_text_that_is_not_utf8_keeps_its_bad_bytes(engine: Engine) -> None:
    assert engine.execute("SELECT CAST(x'61ff62' AS TEXT)").rows == (("a\udcffb",),)
    assert engine.execute("SELECT name FROM singer WHERE id = 1").rows == (("Joe",),)


def test_reordered_execution_shows_an_undefined_order(engine: Engine) -> None:
    undefined = "SELECT name FROM singer LIMIT 1"
    assert engine.execute(undefined).rows == (("Joe",),)
    assert engine.execute_reordered(undefined).rows == (("Lee",),)
    assert engine.execute(undefined).rows == (("Joe",),)


def test_tables_views_and_keys_are_read_as_declared(engine: Engine) -> None:
    tables = {table.name: table for table in engine.get_tables()}
    assert list(tables) == ["singer", "concert", "season", "adult"]
    assert [(c.name, c.type, c.not_null, c.primary_key) for c in tables["singer"].columns] == [
        ("id", "INTEGER", False, 1),
        ("name", "TEXT", True, 0),
        ("age", "INT", False, 0),
    ]
    assert tables["concert"].foreign_keys == (
        ForeignKeyInfo(("singer_id",), "singer", ("id",)),
        ForeignKeyInfo(("year", "id"), "season", ("year", "nr")),
    )
    assert [c.primary_key for c in tables["season"].columns] == [2, 1]
    assert tables["adult"].is_view and not tables["singer"].is_view


def test_a_changed_file_is_read_anew(engine: Engine) -> None:
    count = "SELECT count(*) FROM singer"
    assert engine.execute(count).rows == ((3,),)
    connection = sqlite3.connect(engine.path)
    with connection:
        connection.execute("DELETE FROM singer WHERE id = 1")
    connection.close()
    # File systems with coarse times would hide a change within one tick.
    os.utime(engine.path, ns=(0, time.time_ns()))
    time.sleep(0.002)  # the engine's state may be 1 ms old
    assert engine.execute(count).rows == ((2,),)


def test_rows_in_a_write_ahead_log_are_seen(fresh_db) -> None:
    path = fresh_db("CREATE TABLE t (a INT)")
    writer = sqlite3.connect(path)
    writer.execute("PRAGMA journal_mode = WAL")
    writer.execute("INSERT INTO t VALUES (1)")
    writer.commit()
    assert Path(f"{path}-wal").stat().st_size > 0
    with SQLiteEngine(path) as engine:
        assert engine.execute("SELECT count(*) FROM t").rows == ((1,),)
    writer.close()


def test_a_write_ahead_log_that_appears_later_is_seen(fresh_db) -> None:
    path = fresh_db("PRAGMA journal_mode = WAL; CREATE TABLE t (a INT)")
    assert not Path(f"{path}-wal").exists()
    with SQLiteEngine(path) as engine:
        assert engine.execute("SELECT count(*) FROM t").rows == ((0,),)
        writer = sqlite3.connect(path)
        with writer:
            writer.execute("INSERT INTO t VALUES (1)")
        time.sleep(0.002)
        assert engine.execute("SELECT count(*) FROM t").rows == ((1,),)
        with writer:
            writer.execute("INSERT INTO t VALUES (2)")
        assert engine.execute("SELECT count(*) FROM t").rows == ((2,),)
        writer.close()


@pytest.mark.parametrize("engine_class", [SQLiteEngine, IsolatedEngine])
def test_what_is_no_database_is_refused_at_once(engine_class, tmp_path: Path) -> None:
    text = tmp_path / "notes.sqlite"
    text.write_text("these are notes, not a database")
    empty = tmp_path / "empty.sqlite"
    empty.touch()
    for path, words in (
        (tmp_path / "missing.sqlite", "does not exist"),
        (tmp_path, "folder"),
        (text, "not an SQLite database"),
        (empty, "0 bytes"),
    ):
        with pytest.raises(DatabaseError, match=words):
            engine_class(path)


def test_a_damaged_database_raises_and_gives_no_verdict(fresh_db) -> None:
    path = fresh_db(
        "CREATE TABLE t (a TEXT); WITH RECURSIVE r(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM r "
        "LIMIT 3000) INSERT INTO t SELECT hex(zeroblob(50)) FROM r;"
    )
    data = bytearray(path.read_bytes())
    data[4096 * 3 :] = b"\xff" * (len(data) - 4096 * 3)
    path.write_bytes(data)
    with SQLiteEngine(path) as engine, pytest.raises(DatabaseError, match="cannot be read"):
        engine.execute("SELECT count(a) FROM t")


def test_a_lock_of_another_program_is_no_error_of_the_query(
    fresh_db, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = fresh_db("CREATE TABLE t (a INT); INSERT INTO t VALUES (1);")
    monkeypatch.setattr(sqlite3, "connect", functools.partial(sqlite3.connect, timeout=0))
    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as writer:
        writer.execute("PRAGMA journal_mode = PERSIST")
        writer.execute("INSERT INTO t VALUES (2)")
        with SQLiteEngine(path) as engine:
            assert engine.execute("SELECT a FROM t").rows == ((1,), (2,))
            writer.execute("BEGIN EXCLUSIVE")
            with pytest.raises(DatabaseError, match=r"locked.*-journal beside it is of a program"):
                engine.execute("SELECT a FROM t")


def test_a_journal_that_was_left_behind_is_named(fresh_db, tmp_path: Path) -> None:
    path = fresh_db("CREATE TABLE t (a TEXT); INSERT INTO t VALUES (hex(zeroblob(9000)));")
    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as writer:
        writer.execute("PRAGMA cache_size = 1")
        writer.execute("BEGIN")
        writer.execute("INSERT INTO t SELECT a || a || a || a FROM t")
        writer.execute("UPDATE t SET a = 'x' || a")
        for suffix in ("", "-journal"):
            shutil.copy(f"{path}{suffix}", tmp_path / f"left.sqlite{suffix}")
    with pytest.raises(DatabaseError, match=r"left\.sqlite-journal beside it") as caught:
        SQLiteEngine(tmp_path / "left.sqlite").get_tables()
    # What the message says to do helps.
    assert "run `SELECT count(*) FROM sqlite_master;`" in str(caught.value)
    with contextlib.closing(sqlite3.connect(tmp_path / "left.sqlite")) as shell:
        shell.execute("SELECT count(*) FROM sqlite_master").fetchall()
    with SQLiteEngine(tmp_path / "left.sqlite") as engine:
        assert engine.execute("SELECT count(*) FROM t").rows == ((1,),)


def test_a_path_with_uri_characters_is_opened(tmp_path: Path) -> None:
    path = tmp_path / "a?b#c %41.sqlite"
    connection = sqlite3.connect(path)
    connection.execute("CREATE TABLE t AS SELECT 1 AS a")
    connection.commit()
    connection.close()
    with SQLiteEngine(path) as engine:
        assert engine.execute("SELECT a FROM t").rows == ((1,),)


def test_a_table_wider_than_the_column_cap_stays_readable(fresh_db) -> None:
    columns = ", ".join(f"c{i} INT" for i in range(700))
    path = fresh_db(f"CREATE TABLE wide ({columns}); INSERT INTO wide (c699) VALUES (7);")
    with SQLiteEngine(path) as engine:
        assert engine.execute("SELECT * FROM wide").rows[0][-1] == 7


def test_a_full_text_table_of_the_database_can_be_searched(fresh_db) -> None:
    try:
        path = fresh_db(
            "CREATE VIRTUAL TABLE doc USING fts5(body);INSERT INTO doc VALUES ('a cat'), ('a dog');"
        )
    except sqlite3.OperationalError:
        pytest.skip("this SQLite has no fts5")
    with SQLiteEngine(path) as engine:
        assert engine.execute("SELECT body FROM doc WHERE doc MATCH 'cat'").rows == (("a cat",),)


def test_another_thread_is_told_to_open_its_own_engine(fresh_db) -> None:
    engine = SQLiteEngine(fresh_db(SCRIPT))
    caught: list[BaseException] = []

    def use() -> None:
        try:
            engine.execute("SELECT 1")
        except InputError as error:
            caught.append(error)

    thread = threading.Thread(target=use)
    thread.start()
    thread.join()
    assert len(caught) == 1 and "one engine per thread" in str(caught[0])
    engine.close()
    engine.close()
    with pytest.raises(InputError, match="closed"):
        engine.execute("SELECT 1")


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("timeout_s", 0),
        ("timeout_s", float("nan")),
        ("timeout_s", float("inf")),
        ("max_rows", -1),
        ("max_rows", 1.5),
        ("max_cell_bytes", 0),
        ("max_result_bytes", True),
        ("memory_limit_bytes", -5),
        ("max_steps", 0),
    ],
)
def test_impossible_limits_are_refused_by_name(name: str, value: float) -> None:
    with pytest.raises(InputError, match=f"`{name}`"):
        ExecutionLimits(**{name: value})


def test_killed_workers_are_replaced_and_lose_nothing(fresh_db) -> None:
    path = fresh_db(SCRIPT)
    with IsolatedEngine(path) as engine:
        for number in range(12):
            assert engine.execute(f"SELECT {number}").rows == ((number,),)
            process_id = engine.worker.process_id
            assert process_id is not None
            if number % 3 == 0:
                os.kill(process_id, 9)
        assert engine.worker.num_kills == 4


def test_an_operation_that_cannot_be_interrupted_is_killed(fresh_db) -> None:
    path = fresh_db(SCRIPT)
    slow = "SELECT instr(zeroblob(900000), zeroblob(450000) || x'01')"
    with IsolatedEngine(path, limits=ExecutionLimits(timeout_s=0.3)) as engine:
        assert engine.execute("SELECT 1").ok
        started = time.perf_counter()
        result = engine.execute(slow)
        assert time.perf_counter() - started < 0.8
        assert (result.status, result.exceeded) == (QueryStatus.TIMEOUT, LimitKind.WALL_CLOCK)
        assert engine.execute("SELECT 2").rows == ((2,),)


def test_memory_of_a_worker_is_limited(fresh_db) -> None:
    path = fresh_db(SCRIPT)
    limits = ExecutionLimits(memory_limit_bytes=20_000_000, timeout_s=20)
    big_sort = (
        "WITH RECURSIVE r(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM r LIMIT 1000000) "
        "SELECT count(DISTINCT hex(zeroblob(30)) || x) FROM r"
    )
    with IsolatedEngine(path, limits=limits) as engine:
        result = engine.execute(big_sort)
        assert (result.status, result.exceeded) == (QueryStatus.TOO_LARGE, LimitKind.MEMORY)
        assert engine.execute("SELECT 1").ok


def test_generated_columns_are_columns_and_what_a_virtual_table_hides_is_none(fresh_db) -> None:
    path = fresh_db(
        "CREATE TABLE sale (price REAL, n INT, total REAL AS (price * n), "
        "label TEXT AS ('L' || n) STORED);"
        "CREATE VIEW totals AS SELECT total FROM sale;"
        "CREATE VIRTUAL TABLE note USING fts5(body);"
    )
    with SQLiteEngine(path) as engine:
        columns = {t.name: [(c.name, c.type) for c in t.columns] for t in engine.get_tables()}
        star = engine.execute("SELECT * FROM sale").columns
    assert star == ("price", "n", "total", "label")
    assert columns["sale"] == [
        ("price", "REAL"),
        ("n", "INT"),
        ("total", "REAL"),
        ("label", "TEXT"),
    ]
    assert columns["totals"] == [("total", "REAL")]
    assert columns["note"] == [("body", "")]
