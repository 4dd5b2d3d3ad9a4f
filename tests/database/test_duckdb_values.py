from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

duckdb = pytest.importorskip("duckdb")

from sense_trl.database.duckdb_engine import DuckDBEngine  # noqa: E402
from sense_trl.database.fuzzing import DatabaseFuzzer  # noqa: E402
from sense_trl.database.opening import open_engine  # noqa: E402
from sense_trl.database.profile import profile_database  # noqa: E402
from sense_trl.database.worker import IsolatedEngine  # noqa: E402
from sense_trl.verification.comparison import Reason  # noqa: E402
from sense_trl.verification.judging import verify_sql  # noqa: E402
from sense_trl.verification.values import values_equal  # noqa: E402

# One value of each type and of each kind of value that Python's type of that name has not.
VALUES = (
    "true",
    "7::UTINYINT",
    "170141183460469231731687303715884105727::HUGEINT",
    "340282366920938463463374607431768211455::UHUGEINT",
    "'123456789012345678901234567890123456789012345'::BIGNUM",
    "1.5::DOUBLE",
    "'nan'::DOUBLE",
    "'-inf'::FLOAT",
    "'12345678901234567890123456789012345678'::DECIMAL(38,0)",
    "0.00000000000000000000000000000000000001::DECIMAL(38,38)",
    "DATE '2020-01-02'",
    "DATE '9999-12-31'",
    "DATE 'infinity'",
    "DATE '-infinity'",
    "DATE '0044-03-15 (BC)'",
    "DATE '20000-01-01'",
    "TIME '10:00:00.000001'",
    "TIME '24:00:00'",
    "'10:00:00.123456789'::TIME_NS",
    "TIMETZ '10:00:00+05:30'",
    "TIMESTAMP '2020-01-02 03:04:05.123456'",
    "TIMESTAMP '9999-12-31 23:59:59.999999'",
    "TIMESTAMP '20000-01-01 01:00:00'",
    "TIMESTAMP_S '2020-01-02 03:04:06'",
    "TIMESTAMP_MS '2020-01-02 03:04:05.125'",
    "TIMESTAMP_NS '2020-01-02 03:04:05.123456788'",
    "TIMESTAMP_NS '2020-01-02 03:04:05.123456789'",
    "TIMESTAMPTZ '2020-01-02 03:04:05+01'",
    "TIMESTAMPTZ 'infinity'",
    "INTERVAL '1 month 2 days 3 seconds'",
    "'0101'::BIT",
    "'x'::BLOB",
    "'a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11'::UUID",
    "[1, NULL, 2]",
    "[DATE 'infinity']",
    "[TIMESTAMP_NS '2020-01-02 03:04:05.123456789']",
    "[[TIMESTAMPTZ '2020-01-02 03:04:05+01'], NULL]",
    "['01'::BIT]",
    "['1', '2']::VARCHAR[2]",
    "{'a': 1, 'b c': 'x'}",
    "{'a': TIMESTAMP 'infinity', 'b': [{'c': DATE '2020-01-01'}]}",
    "row(DATE 'infinity', 1)",
    "MAP {'k': 1}",
    "MAP {1: 2}",
    "MAP {'1': 2}",
    "MAP {[1]: 2}",
    "MAP {'key': [1], 'value': [2]}",
    "MAP {TIMESTAMPTZ '2020-01-02 03:04:05+01': MAP {1: DATE 'infinity'}}",
    "[MAP {'k': 1}]",
    "{'m': MAP {'k': 1}}",
    "{'k': 1}",
    "union_value(num := DATE '2021-01-01')",
)

EQUAL = (
    ("1::UTINYINT", "1::HUGEINT"),
    ("1::BIGNUM", "1.0::DOUBLE"),
    ("1.50::DECIMAL(10,2)", "1.5::DECIMAL(38,5)"),
    ("0.1::DECIMAL(4,2)", "0.1::DOUBLE"),
    ("DATE '2020-01-02'", "TIMESTAMP_NS '2020-01-02'"),
    ("DATE 'infinity'", "TIMESTAMP_S 'infinity'"),
    ("DATE '20000-01-01'", "TIMESTAMP '20000-01-01'"),
    ("DATE '0044-03-15 (BC)'", "DATE '0044-03-15 (BC)'::TIMESTAMP"),
    ("TIMESTAMP '2020-01-02 03:04:05.12'", "TIMESTAMP_NS '2020-01-02 03:04:05.120000000'"),
    ("TIMESTAMPTZ '2020-01-02 03:04:05+01'", "TIMESTAMPTZ '2020-01-02 02:04:05+00'"),
    ("INTERVAL '1 month'", "INTERVAL '30 days'"),
    ("'x'::ENUM('x', 'y')", "'x'"),
    ("[1, 2]", "[1.0::DOUBLE, 2]"),
    ("[1, 2]", "[1, 2]::INTEGER[2]"),
    ("[DATE '2020-01-02']", "[TIMESTAMP '2020-01-02']"),
    ("{'a': 1, 'b': 2}", "{'b': 2, 'a': 1.0::DOUBLE}"),
    ("MAP {1: 2, 3: 4}", "MAP {3: 4, 1: 2}"),
    ("MAP {1: 0.1::DOUBLE + 0.2::DOUBLE}", "MAP {1: 0.3::DOUBLE}"),
    ("histogram(a) FROM range(3) r(a)", "MAP {0: 1, 1: 1, 2: 1}"),
)


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("values") / "values.duckdb"
    with duckdb.connect(str(path)) as connection:
        connection.execute("CREATE TABLE t AS SELECT range AS a FROM range(20)")
    return path


@pytest.fixture(scope="module")
def engine(path: Path) -> Iterator[DuckDBEngine]:
    with DuckDBEngine(path) as engine:
        yield engine


def _read(engine: DuckDBEngine, value: str) -> object:
    result = engine.execute(f"SELECT {value}")
    assert result.ok, (value, result.error)
    return result.rows[0][0]


def test_no_value_equals_its_text_or_another_one(engine: DuckDBEngine) -> None:
    read = [_read(engine, value) for value in VALUES]
    for number, (sql, value) in enumerate(zip(VALUES, read, strict=True)):
        assert values_equal(value, _read(engine, sql))
        text = _read(engine, f"CAST({sql} AS VARCHAR)")
        assert isinstance(text, str) and not values_equal(value, text), sql
        for other_sql, other in zip(VALUES[number + 1 :], read[number + 1 :], strict=True):
            assert not values_equal(value, other), (sql, other_sql)


@pytest.mark.parametrize(("left", "right"), EQUAL)
def test_the_same_value_of_two_types_is_equal(engine: DuckDBEngine, left: str, right: str) -> None:
    assert values_equal(_read(engine, left), _read(engine, right))


def test_values_are_the_same_through_a_worker(path: Path, engine: DuckDBEngine) -> None:
    sql = f"SELECT {', '.join(VALUES)}"
    with IsolatedEngine(path) as isolated:
        here, there = engine.execute(sql), isolated.execute(sql)
    assert here.ok, here.error
    assert repr(there.rows) == repr(here.rows)
    assert all(map(values_equal, here.rows[0], there.rows[0]))


def test_verdicts_tell_values_from_their_texts(engine: DuckDBEngine) -> None:
    for value in VALUES:
        gold = f"SELECT {value} AS v, a FROM t"
        wrong = f"SELECT CAST({value} AS VARCHAR), a FROM t"
        assert verify_sql(f"SELECT a, {value} FROM t", gold, engine).reason is Reason.RESULTS_EQUAL
        assert verify_sql(wrong, gold, engine).reason is Reason.VALUES_DIFFER, value


@pytest.mark.parametrize("semantics", ["strict", "spider", "bird"])
def test_nested_values_can_be_compared_at_all(engine: DuckDBEngine, semantics) -> None:
    for value in ("row({'a': 1}, 2)", "[MAP {1: [2]}]", "[{'a': [1]}]::STRUCT(a INTEGER[])[1]"):
        gold = f"SELECT {value}, a FROM t ORDER BY a LIMIT 3"
        predicted = f"SELECT {value}, a FROM t WHERE a < 3 ORDER BY a"
        reason = verify_sql(predicted, gold, engine, semantics=semantics).reason
        assert reason is Reason.RESULTS_EQUAL, value


@pytest.mark.parametrize("end", ["", ";", " ; -- done", "/* ; */;\n-- é\n;"])
def test_what_follows_the_statement_does_not_matter(engine: DuckDBEngine, end: str) -> None:
    assert str(_read(engine, f"'01'::BIT AS \"b;é\"{end}")) == "01"


def test_rows_keep_their_order_and_names(engine: DuckDBEngine) -> None:
    result = engine.execute(
        "SELECT a, TIMESTAMPTZ '2020-01-01' + INTERVAL (a * 7 % 20) DAY AS x, 1 AS y, 2 AS y"
        " FROM t ORDER BY x DESC, a"
    )
    plain = engine.execute("SELECT a FROM t ORDER BY a * 7 % 20 DESC")
    assert [row[0] for row in result.rows] == [row[0] for row in plain.rows]
    assert result.columns == ("a", "x", "y", "y")


def test_neighbours_hold_values_of_every_type(tmp_path: Path) -> None:
    with duckdb.connect(str(tmp_path / "v.duckdb")) as connection:
        # DuckDB takes no parameter for a struct without names.
        stored = [value for value in VALUES if not value.startswith("row")]
        columns = ", ".join(f"{value} AS c{i}" for i, value in enumerate(stored))
        connection.execute(f"CREATE TABLE t AS SELECT range AS id, {columns} FROM range(10)")
    with open_engine(tmp_path / "v.duckdb") as engine:
        original = engine.execute("SELECT * FROM t WHERE id = 0").rows[0][1:]
        fuzzer = DatabaseFuzzer(profile_database(engine))
    fuzzer.write(0, tmp_path / "0.duckdb")
    with open_engine(tmp_path / "0.duckdb") as engine:
        rows = engine.execute("SELECT * FROM t").rows
    assert rows
    for row in rows:
        for value, found in zip(original, row[1:], strict=True):
            assert values_equal(value, found), (value, found)
