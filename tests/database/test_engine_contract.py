"""What holds for every engine, whatever its dialect."""

from __future__ import annotations

import hashlib
import sqlite3
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from postgres_server import PostgresServer

from sense_trl.database.catalog import DatabaseCatalog
from sense_trl.database.duckdb_engine import DuckDBEngine
from sense_trl.database.duckdb_import import convert_sqlite
from sense_trl.database.engine import ExecutionLimits, LimitKind, QueryStatus, SQLEngine
from sense_trl.database.location import DatabasePath, locate
from sense_trl.database.postgres_engine import PostgresEngine
from sense_trl.database.sqlite_engine import SQLiteEngine
from sense_trl.database.worker import EngineWorker, IsolatedEngine
from sense_trl.errors import DatabaseError, InputError

SCRIPT = """
CREATE TABLE singer (id INTEGER PRIMARY KEY, name TEXT NOT NULL, age INT);
INSERT INTO singer VALUES (1, 'Joe', 52), (2, 'Ann', 32), (3, 'Lee', NULL);
CREATE TABLE concert (id INTEGER PRIMARY KEY, singer_id INT REFERENCES singer (id));
INSERT INTO concert VALUES (1, 2);
"""
ENDLESS = "WITH RECURSIVE r(x) AS (SELECT 1 UNION ALL SELECT x + 0 FROM r) SELECT count(*) FROM r"
POSTGRES_SCRIPT = SCRIPT.replace("id INTEGER PRIMARY KEY", "id int PRIMARY KEY")
KINDS = (
    *("sqlite", "duckdb", "isolated sqlite", "isolated duckdb"),
    *("postgres", "isolated postgres"),
)
CLASSES = {"sqlite": SQLiteEngine, "duckdb": DuckDBEngine, "postgres": PostgresEngine}


@pytest.fixture(scope="module")
def databases(
    tmp_path_factory: pytest.TempPathFactory, postgres_server: PostgresServer
) -> dict[str, DatabasePath]:
    folder = tmp_path_factory.mktemp("contract")
    connection = sqlite3.connect(folder / "music.sqlite")
    connection.executescript(SCRIPT)
    connection.close()
    convert_sqlite(folder / "music.sqlite", folder / "music.duckdb")
    name = postgres_server.create_database(POSTGRES_SCRIPT)
    role, password = postgres_server.create_role(
        "GRANT SELECT ON ALL TABLES IN SCHEMA public TO {role}", database=name
    )
    files = {kind: folder / f"music.{kind}" for kind in ("sqlite", "duckdb")}
    return {**files, "postgres": locate(postgres_server.dsn(name, role, password))}


def digest_of(engine: SQLEngine) -> str:
    """Of all that a database holds."""
    if isinstance(engine.path, Path):
        return hashlib.sha256(engine.path.read_bytes()).hexdigest()
    tables = ("singer", "concert", "pg_class", "pg_settings", "pg_roles", "pg_largeobject_metadata")
    rows = [engine.execute(f"SELECT * FROM {table} ORDER BY 1").rows for table in tables]
    assert all(rows[:-1])
    return hashlib.sha256(repr(rows).encode()).hexdigest()


@pytest.fixture(scope="module")
def worker() -> Iterator[EngineWorker]:
    with EngineWorker() as worker:
        yield worker


@pytest.fixture(params=KINDS)
def engine(
    request: pytest.FixtureRequest, databases: dict[str, DatabasePath], worker: EngineWorker
) -> Iterator[SQLEngine]:
    path = databases[request.param.removeprefix("isolated ")]
    opened: SQLEngine
    if request.param.startswith("isolated"):
        opened = IsolatedEngine(path, worker=worker)
    else:
        opened = CLASSES[request.param](path)
    with opened:
        yield opened


def test_an_engine_says_what_it_is(engine: SQLEngine, databases: dict[str, DatabasePath]) -> None:
    assert engine.path == databases[engine.dialect]
    assert engine.version.startswith(engine.dialect + " ")
    assert engine.limits == ExecutionLimits()


def test_rows_and_columns_are_read_in_order(engine: SQLEngine) -> None:
    result = engine.execute("SELECT name, age AS years FROM singer ORDER BY id")
    assert result.ok and result.error is None and result.exceeded is None
    assert result.columns == ("name", "years")
    assert result.rows == (("Joe", 52), ("Ann", 32), ("Lee", None))
    assert result.elapsed_s > 0


@pytest.mark.parametrize(
    ("sql", "status"),
    [
        ("", "syntax_error"),
        ("   \n", "syntax_error"),
        (";", "syntax_error"),
        ("-- SELECT 1", "syntax_error"),
        ("SELECT 'a", "syntax_error"),
        ("SELECT \x00", "syntax_error"),
        ("SELECT '\ud800'", "syntax_error"),
        ("I cannot answer this.", "syntax_error"),
        ("SELECT * FROM nope", "execution_error"),
        ("SELECT nope FROM singer", "execution_error"),
        ("SELECT 1; SELECT 2", "denied"),
        ("DELETE FROM singer", "denied"),
        ("DROP TABLE singer", "denied"),
        ("CREATE TEMP VIEW singer AS SELECT 1", "denied"),
        ("ATTACH ':memory:' AS other", "denied"),
        ("PRAGMA enable_profiling", "denied"),
        ("EXPLAIN SELECT 1", "denied"),
        ("SELECT " + "1" * 200_000, "denied"),
        ("SELECT 1;", "ok"),
        ("-- note\n/* more */ select 1 -- end", "ok"),
        ("VALUES (1), (2)", "ok"),
        ("WITH x AS (SELECT 1 AS a) SELECT count(*) FROM x", "ok"),
        ("SELECT name, rank() OVER (ORDER BY age) FROM singer", "ok"),
    ],
)
def test_each_text_ends_with_its_status(engine: SQLEngine, sql: str, status: str) -> None:
    result = engine.execute(sql)
    assert result.status == status, result.error
    assert (result.error is None) == result.ok
    if not result.ok:
        assert result.rows == () and result.columns == ()


def test_nothing_a_query_does_is_seen_by_the_next(engine: SQLEngine) -> None:
    before = digest_of(engine)
    folder = engine.path.parent if isinstance(engine.path, Path) else None
    files = folder and {file.name for file in folder.iterdir()}
    for sql in (
        "CREATE TEMP TABLE singer AS SELECT 'forged' AS name",
        "INSERT INTO singer VALUES (9, 'x', 1)",
        "WITH x AS (INSERT INTO singer VALUES (9, 'x', 1) RETURNING id) SELECT * FROM x",
        "SET memory_limit = '1MB'",
        "BEGIN",
        "DROP TABLE singer",
        "SELECT * FROM nope",
        "SELECT * FROM singer, singer",
    ):
        engine.execute(sql, limits=ExecutionLimits(max_rows=2))
    result = engine.execute("SELECT name FROM singer ORDER BY id")
    assert result.rows == (("Joe",), ("Ann",), ("Lee",))
    assert digest_of(engine) == before
    assert (folder and {file.name for file in folder.iterdir()}) == files


def test_the_wall_clock_stops_a_query_and_the_next_one_runs(engine: SQLEngine) -> None:
    started = time.perf_counter()
    result = engine.execute(ENDLESS, limits=ExecutionLimits(timeout_s=0.3))
    assert time.perf_counter() - started < 0.8
    assert (result.status, result.exceeded) == (QueryStatus.TIMEOUT, LimitKind.WALL_CLOCK)
    assert engine.execute("SELECT count(*) FROM singer").rows == ((3,),)


def test_row_cap_counts_exactly(engine: SQLEngine) -> None:
    three = "SELECT name FROM singer"
    assert engine.execute(three, limits=ExecutionLimits(max_rows=3)).ok
    result = engine.execute(three, limits=ExecutionLimits(max_rows=2))
    assert (result.status, result.exceeded) == (QueryStatus.TOO_LARGE, LimitKind.ROWS)
    assert engine.execute("SELECT 1 WHERE 1 = 0", limits=ExecutionLimits(max_rows=0)).ok
    assert engine.execute(three).rows == (("Joe",), ("Ann",), ("Lee",))


def test_byte_caps_count_exactly(engine: SQLEngine) -> None:
    text = "SELECT name || ' and ' || name FROM singer"  # 3 + 5 + 3 bytes, three times
    assert engine.execute(text, limits=ExecutionLimits(max_cell_bytes=100, max_result_bytes=33)).ok
    result = engine.execute(text, limits=ExecutionLimits(max_cell_bytes=100, max_result_bytes=32))
    assert result.exceeded is LimitKind.RESULT_BYTES
    result = engine.execute(text, limits=ExecutionLimits(max_cell_bytes=10))
    assert result.exceeded is LimitKind.CELL_BYTES


def test_tables_and_keys_are_read_as_declared(engine: SQLEngine) -> None:
    tables = {table.name: table for table in engine.get_tables()}
    assert list(tables) == ["singer", "concert"]
    assert [(c.name, c.primary_key) for c in tables["singer"].columns] == [
        ("id", 1),
        ("name", 0),
        ("age", 0),
    ]
    assert [c.not_null for c in tables["singer"].columns][1:] == [True, False]
    (key,) = tables["concert"].foreign_keys
    assert (key.columns, key.referenced_table, key.referenced_columns) == (
        ("singer_id",),
        "singer",
        ("id",),
    )


def test_a_closed_engine_says_so(engine: SQLEngine) -> None:
    if isinstance(engine, IsolatedEngine):
        pytest.skip("the worker is shared between the tests")
    engine.close()
    engine.close()
    with pytest.raises(InputError, match="closed"):
        engine.execute("SELECT 1")


@pytest.mark.parametrize("engine_class", CLASSES.values())
def test_another_thread_is_told_to_open_its_own(
    engine_class, databases: dict[str, DatabasePath]
) -> None:
    caught: list[str] = []
    with engine_class(databases[engine_class.dialect]) as engine:

        def use() -> None:
            try:
                engine.execute("SELECT 1")
            except InputError as error:
                caught.append(str(error))

        thread = threading.Thread(target=use)
        thread.start()
        thread.join()
    assert len(caught) == 1 and "one engine per thread" in caught[0]


@pytest.mark.parametrize("suffix", ["sqlite", "duckdb"])
def test_what_is_no_database_is_refused_at_once(suffix: str, tmp_path: Path) -> None:
    engine_class = CLASSES[suffix]
    notes, empty = tmp_path / f"notes.{suffix}", tmp_path / f"empty.{suffix}"
    notes.write_text("these are notes, not a database")
    empty.touch()
    for path, words in (
        (tmp_path / f"missing.{suffix}", "does not exist"),
        (tmp_path, "folder"),
        (notes, "not a"),
        (empty, "0 bytes"),
    ):
        for refuse in (engine_class, IsolatedEngine):
            if refuse is IsolatedEngine and path == tmp_path:
                continue
            with pytest.raises(DatabaseError, match=words):
                refuse(path)


def test_the_catalog_opens_the_engine_a_database_needs(
    databases: dict[str, DatabasePath],
) -> None:
    for dialect, path in databases.items():
        with DatabaseCatalog.from_path(path) as catalog:
            [db_id] = catalog.db_ids
            assert db_id == path.stem and catalog.dialect(db_id) == dialect
            for engine in (catalog.engine(db_id), catalog.in_process_engine(db_id)):
                assert engine.dialect == dialect
                assert engine.execute("SELECT count(*) FROM singer").rows == ((3,),)
