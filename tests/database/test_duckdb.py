"""What is DuckDB's own: its sandbox, its values, and the import from SQLite."""

from __future__ import annotations

import datetime
import sqlite3
from collections.abc import Iterator
from decimal import Decimal
from pathlib import Path

import duckdb
import pytest

from sense_trl.database.catalog import DatabaseCatalog
from sense_trl.database.duckdb_engine import DuckDBEngine
from sense_trl.database.duckdb_import import convert_sqlite
from sense_trl.database.engine import QueryStatus
from sense_trl.database.worker import IsolatedEngine
from sense_trl.errors import DatabaseError, InputError
from sense_trl.verification.comparison import Reason
from sense_trl.verification.judging import VerificationRequest, verify_sql
from sense_trl.verification.verifier import SQLVerifier


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "music.duckdb"
    with duckdb.connect(str(path)) as connection:
        connection.execute("CREATE TABLE t AS SELECT range AS a, range % 3 AS b FROM range(9)")
    return path


@pytest.fixture
def engine(path: Path) -> Iterator[DuckDBEngine]:
    with DuckDBEngine(path) as engine:
        yield engine


@pytest.mark.parametrize(
    "sql",
    [
        "SELECT * FROM read_text('{file}')",
        "FROM read_csv('{file}')",
        "SELECT * FROM glob('{folder}/*')",
        "COPY t TO '{folder}/out.csv'",
        "SELECT * FROM duckdb_secrets()",
        "SELECT setseed(0.5)",
        "SELECT * FROM query('SELECT 42')",
        "SELECT * FROM query /* hidden */ ('SELECT 42')",
        'SELECT * FROM "query"($$SELECT 42$$)',
        "SELECT * FROM enable_logging()",
        "SELECT * FROM checkpoint()",
        "SELECT write_log('x')",
        "SET threads = 4",
        "INSTALL httpfs",
        "CALL pragma_version()",
    ],
)
def test_files_and_state_are_out_of_reach(engine: DuckDBEngine, sql: str, tmp_path: Path) -> None:
    secret = tmp_path / "secret.txt"
    secret.write_text("secret")
    result = engine.execute(sql.format(file=secret, folder=tmp_path))
    assert result.status is QueryStatus.DENIED, result
    assert not (tmp_path / "out.csv").exists()


def test_a_variable_of_the_program_is_no_table(engine: DuckDBEngine) -> None:
    gold_rows = duckdb.sql("SELECT 1 AS x")
    assert engine.execute("SELECT * FROM gold_rows").status is QueryStatus.EXECUTION_ERROR
    del gold_rows


def test_values_are_the_same_through_a_worker(path: Path, engine: DuckDBEngine) -> None:
    sql = (
        "SELECT 1.5::DECIMAL(4,1), DATE '2020-01-02', TIMESTAMP '2020-01-02 03:04:05', TRUE, "
        "[1, 2], {'a': DATE '2020-01-02'}, INTERVAL 1 DAY, TIME '10:00', 'x'::BLOB, NULL, "
        "TIMESTAMPTZ '2020-01-01 10:00:00+02', "
        "'00000000-0000-0000-0000-000000000001'::UUID"
    )
    here = engine.execute(sql)
    assert here.ok, here.error
    assert here.rows[0][:5] == (
        Decimal("1.5"),
        datetime.date(2020, 1, 2),
        datetime.datetime(2020, 1, 2, 3, 4, 5),
        True,
        [1, 2],
    )
    assert here.rows[0][10] == datetime.datetime(2020, 1, 1, 8, tzinfo=datetime.UTC)
    with IsolatedEngine(path) as isolated:
        assert isolated.execute(sql).rows == here.rows


def test_answers_do_not_depend_on_the_environment(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sql = (
        "SELECT date_trunc('day', t), t::DATE, t::VARCHAR, hour(t), t::TIMESTAMP, "
        "'2020-01-01 12:00:00'::TIMESTAMPTZ, '2020-01-01'::DATE::TIMESTAMPTZ, "
        "make_timestamptz(2020, 1, 1, 0, 0, 0), epoch('2020-07-01 00:00:00'::TIMESTAMPTZ), year(t) "
        "FROM (SELECT TIMESTAMPTZ '2019-12-31 23:30:00+00' AS t)"
    )
    rows = []
    for zone, language in (("UTC", "C"), ("Asia/Tokyo", "th_TH.UTF-8"), ("America/Lima", "fa_IR")):
        monkeypatch.setenv("TZ", zone)
        monkeypatch.setenv("LC_ALL", language)
        with IsolatedEngine(path) as isolated:
            rows.append(isolated.execute(sql).rows)
    assert rows[0][0][1:4] == (datetime.date(2019, 12, 31), "2019-12-31 23:30:00+00", 23)
    assert rows[1:] == rows[:1] * 2


def test_nothing_is_painted(path: Path, engine: DuckDBEngine) -> None:
    setting = "SELECT current_setting('enable_progress_bar')"
    assert engine._connection.execute(setting).fetchall() == [(False,)]


def test_a_changed_file_is_read_anew(path: Path, engine: DuckDBEngine) -> None:
    assert engine.execute("SELECT count(*) FROM t").rows == ((9,),)
    other = path.with_name("other.duckdb")
    with duckdb.connect(str(other)) as connection:
        connection.execute("CREATE TABLE t AS SELECT 1 AS a")
    other.replace(path)
    engine.execute("SELECT 1")
    assert engine.execute("SELECT count(*) FROM t").rows == ((1,),)


@pytest.mark.parametrize(
    ("predicted", "gold", "reason"),
    [
        ("SELECT b, a FROM t", "SELECT a, b FROM t", Reason.RESULTS_EQUAL),
        ("SELECT DISTINCT b FROM t", "SELECT b FROM t", Reason.ROW_COUNT_DIFFERS),
        ("SELECT a FROM t ORDER BY a DESC", "SELECT a FROM t ORDER BY a", Reason.ORDER_DIFFERS),
        ("SELECT 1", "SELECT a FROM t LIMIT 2", Reason.GOLD_NOT_DETERMINISTIC),
        ("SELECT 1", "SELECT a FROM t ORDER BY b LIMIT 2", Reason.GOLD_LIMIT_TIE),
        ("SELECT 1", "SELECT now()", Reason.GOLD_NOT_DETERMINISTIC),
        ("SELECT a FROM t", "SELECT a FROM t LIMIT 9", Reason.RESULTS_EQUAL),
        ("SELECT x FROM t", "SELECT a FROM t", Reason.PREDICTION_EXECUTION_ERROR),
    ],
)
def test_verdicts_on_duckdb(
    path: Path, engine: DuckDBEngine, predicted: str, gold: str, reason: Reason
) -> None:
    assert verify_sql(predicted, gold, engine).reason is reason
    with (
        DatabaseCatalog.from_path(path) as catalog,
        SQLVerifier(catalog, num_workers=1) as verifier,
    ):
        (verification,) = verifier.verify([VerificationRequest("music", predicted, gold)])
    assert verification.reason is reason


# ---------------------------------------------------------------------- import


def test_types_come_from_values_and_not_from_declarations(fresh_db, tmp_path: Path) -> None:
    source = fresh_db(
        """
        CREATE TABLE "odd ""name" (
            id INTEGER PRIMARY KEY, whole REAL, mixed INT, numbers TEXT, empty NUMERIC, data BLOB,
            parent INT REFERENCES "odd ""name" (id)
        );
        INSERT INTO "odd ""name" VALUES
            (1, 1, 'a', 1, NULL, x'00ff', NULL), (2, 2.5, 7, 2, NULL, NULL, 1);
        CREATE TABLE child (id INT REFERENCES "odd ""name" (id), other INT REFERENCES gone (x));
        INSERT INTO child VALUES (1, 1), (99, 2);
        CREATE VIEW v AS SELECT 1;
        """
    )
    target = tmp_path / "out.duckdb"
    report = convert_sqlite(source, target)
    assert report.types['odd "name'] == {
        "id": "BIGINT",
        "whole": "DOUBLE",
        "mixed": "VARCHAR",
        # Affinity TEXT has turned the numbers into text already.
        "numbers": "VARCHAR",
        "empty": "DOUBLE",
        "data": "BLOB",
        "parent": "BIGINT",
    }
    assert any(line.startswith("FOREIGN KEY") and "child" in line for line in report.dropped)
    assert "view v" in report.dropped
    with DuckDBEngine(target) as engine:
        rows = engine.execute('SELECT * FROM "odd ""name" ORDER BY id').rows
        assert rows == (
            (1, 1.0, "a", "1", None, b"\x00\xff", None),
            (2, 2.5, "7", "2", None, None, 1),
        )
        assert engine.execute("SELECT count(*) FROM child").rows == ((2,),)
    with pytest.raises(InputError, match="exists"):
        convert_sqlite(source, target)


def test_generated_columns_are_imported_with_their_values(fresh_db, tmp_path: Path) -> None:
    source = fresh_db(
        "CREATE TABLE sale (price REAL, n INT, total REAL AS (price * n),"
        " code TEXT AS ('S' || n) STORED UNIQUE);"
        "INSERT INTO sale (price, n) VALUES (1.5, 2), (2.5, 4);"
    )
    convert_sqlite(source, tmp_path / "out.duckdb")
    with DuckDBEngine(tmp_path / "out.duckdb") as engine:
        rows = engine.execute("SELECT * FROM sale ORDER BY n").rows
    assert rows == ((1.5, 2, 3.0, "S2"), (2.5, 4, 10.0, "S4"))


def test_a_failed_import_leaves_nothing(tmp_path: Path) -> None:
    source = tmp_path / "notes.sqlite"
    source.write_text("no database")
    with pytest.raises(DatabaseError):
        convert_sqlite(source, tmp_path / "out.duckdb")
    assert [file.name for file in tmp_path.iterdir()] == ["notes.sqlite"]


def test_spider_tables_have_the_same_rows_after_import(
    spider_databases: Path, tmp_path: Path
) -> None:
    for db_id in ("concert_singer", "car_1", "bike_1", "hospital_1"):
        source = spider_databases / db_id / f"{db_id}.sqlite"
        if source.stat().st_size > 3_000_000:
            continue
        report = convert_sqlite(source, tmp_path / f"{db_id}.duckdb")
        reader = sqlite3.connect(source)
        with DuckDBEngine(tmp_path / f"{db_id}.duckdb") as engine:
            for table in report.types:
                count = reader.execute(f'SELECT count(*) FROM "{table}"').fetchone()
                assert engine.execute(f'SELECT count(*) FROM "{table}"').rows == (count,)
        reader.close()
