"""Values of a real server as they are read and compared."""

from __future__ import annotations

import datetime
import math
import uuid
from collections.abc import Callable, Iterator
from decimal import Decimal

import psycopg
import pytest
from postgres_server import PostgresServer
from psycopg.adapt import Transformer

from sense_trl.database.engine import TypedText
from sense_trl.database.postgres_values import register_loaders
from sense_trl.verification.values import values_equal

Read = Callable[[str], object]
OWN_TYPES = """
    CREATE TYPE mood AS ENUM ('sad', 'ok');
    CREATE DOMAIN age AS integer CHECK (VALUE > 0);
    CREATE TYPE pair AS (a int, b text);
    CREATE TYPE floatrange AS RANGE (subtype = float8);
    CREATE TABLE t (a int, b text);
    INSERT INTO t VALUES (1, 'x y');
"""
SESSION = "-c TimeZone=UTC -c DateStyle=ISO -c IntervalStyle=postgres -c extra_float_digits=1"


@pytest.fixture(scope="module")
def read(postgres_server: PostgresServer) -> Iterator[Read]:
    """Read the value of an expression, as a connection with the loaders gives it."""
    dsn = postgres_server.dsn(postgres_server.create_database(OWN_TYPES))
    with psycopg.connect(dsn, options=SESSION, autocommit=True) as connection:
        register_loaders(connection)

        def read_value(expression: str) -> object:
            result = connection.pgconn.exec_params(f"SELECT {expression}".encode(), [])
            assert result.status == psycopg.pq.ExecStatus.TUPLES_OK, result.error_message
            transformer = Transformer(connection)
            transformer.set_pgresult(result)
            ((value,),) = transformer.load_rows(0, 1, tuple)
            return value

        yield read_value


def _days(days: int, **rest: int) -> datetime.timedelta:
    return datetime.timedelta(days=days, **rest)


VALUES = [
    ("true", True),
    ("7::int2", 7),
    ("9223372036854775807", 2**63 - 1),
    ("1.50", Decimal("1.50")),
    ("'Infinity'::numeric", Decimal("Infinity")),
    ("0.1::float4", 0.1),
    ("0.1::float8 + 0.2::float8", 0.1 + 0.2),
    ("'-Infinity'::float8", -math.inf),
    ("avg(x) FROM (VALUES (1), (2)) AS v(x)", Decimal("1.5000000000000000")),
    ("'-1234.50'::numeric::money", Decimal("-1234.50")),
    ("'a '", "a "),
    ("'a'::char(5)", "a"),
    ("ARRAY['a']::char(5)[]", ["a"]),
    ("'ok'::mood", "ok"),
    ("ARRAY['ok', NULL]::mood[]", ["ok", None]),
    ("7::age", 7),
    ("ARRAY[7]::age[]", [7]),
    ("current_schema", "public"),
    ("'t'::regclass", "t"),
    ("NULL", None),
    ("DATE '2020-01-02'", datetime.date(2020, 1, 2)),
    ("DATE 'infinity'", TypedText("DATE", "infinity")),
    ("DATE '0044-03-15 BC'", TypedText("DATE", "0044-03-15 BC")),
    ("TIMESTAMP '2020-01-02 03:04:05.000006'", datetime.datetime(2020, 1, 2, 3, 4, 5, 6)),
    ("TIMESTAMP '20000-01-01'", TypedText("TIMESTAMP", "20000-01-01 00:00:00")),
    (
        "TIMESTAMPTZ '2020-01-02 03:04:05+02'",
        datetime.datetime(2020, 1, 2, 1, 4, 5, tzinfo=datetime.UTC),
    ),
    ("TIMESTAMPTZ '-infinity'", TypedText("TIMESTAMP WITH TIME ZONE", "-infinity")),
    ("TIME '10:00:00.5'", datetime.time(10, 0, 0, 500_000)),
    ("TIME '24:00'", TypedText("TIME", "24:00:00")),
    ("INTERVAL '1 year'", _days(360)),
    ("INTERVAL '-1 mon 3 days -04:05:06.7'", _days(-27, seconds=-14706, milliseconds=-700)),
    ("INTERVAL '-0.5 s'", _days(0, milliseconds=-500)),
    ("INTERVAL '0'", _days(0)),
    ("INTERVAL '178000000 years'", TypedText("INTERVAL", "178000000 years")),
    ("'\\x00ff'::bytea", b"\x00\xff"),
    (
        "'a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11'::uuid",
        uuid.UUID("a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11"),
    ),
    ("ARRAY[[1, NULL], [2, 3]]", [[1, None], [2, 3]]),
    ("'[0:1]={DATE,infinity}'::text[]", ["DATE", "infinity"]),
    ("ARRAY[DATE 'infinity']", [TypedText("DATE", "infinity")]),
    ("'{\"b\": 1.50, \"a\": [1e2, null]}'::jsonb", TypedText("JSON", '{"a": [100, null], "b": 1.5}')),
    ("'{\"b\":1,\"a\":\"\\u00e9\",\"b\":-0.0}'::json", TypedText("JSON", '{"a": "é", "b": 0}')),
    ("'1e-400'::json", TypedText("JSON", "1e-400")),
    ("int4range(1, 3, '[]')", TypedText("RANGE", "[1,4)")),
    ("'[1,2]'::floatrange", TypedText("RANGE", "[1,2]")),
    ("(1, 'a')", TypedText("RECORD", "(1,a)")),
    ("(1, 'a')::pair", TypedText("RECORD", "(1,a)")),
    ("t FROM t", TypedText("RECORD", '(1,"x y")')),
    ("'10.0.0.1'::inet", TypedText("INET", "10.0.0.1")),
    ("B'0101'", TypedText("BIT", "0101")),
    ("point(1, 2)", TypedText("POINT", "(1,2)")),
]  # fmt: skip


@pytest.mark.parametrize(("expression", "expected"), VALUES)
def test_a_value_keeps_its_kind(read: Read, expression: str, expected: object) -> None:
    value = read(expression)
    assert (type(value), value) == (type(expected), expected)
    assert values_equal(value, read(expression))


def test_nan_and_deep_json_are_equal_to_themselves(read: Read) -> None:
    deep = "(repeat('[', 3000) || repeat(']', 3000))::json"
    for expression in ("'NaN'::float8", "'NaN'::numeric", "ARRAY['NaN'::float4]", deep):
        assert values_equal(read(expression), read(expression))
    assert values_equal(read("'NaN'::float8"), read("'NaN'::numeric"))


@pytest.mark.parametrize(
    ("left", "right", "equal"),
    [
        ("avg(x) FROM (VALUES (1), (2), (2)) AS v(x)", "5 / 3.0", True),
        ("avg(x) FROM (VALUES (1), (2), (2)) AS v(x)", "5 / 3::float8", True),
        ("100 * (1.0 / 3)", "100 * 1.0 / 3", True),
        ("round(100 / 3.0, 2)", "100 / 3.0", False),
        ("5 / 3", "5 / 3.0", False),
        ("12.3400::numeric(10, 4)", "12.34::numeric(10, 2)", True),
        ("0.1::numeric", "0.1::float8", True),
        ("true", "1", True),
        ("'a'::char(5)", "'a'::varchar", True),
        ("'a '", "'a'", False),
        ("'A'", "'a'", False),
        ("5", "'5'", False),
        ("DATE '2020-01-02'", "TIMESTAMP '2020-01-02'", True),
        ("DATE 'infinity'", "TIMESTAMP 'infinity'", True),
        ("TIMESTAMPTZ '2020-01-02 03:00+02'", "TIMESTAMPTZ '2020-01-02 01:00+00'", True),
        ("TIMESTAMPTZ '2020-01-02 00:00+00'", "TIMESTAMP '2020-01-02'", False),
        ("INTERVAL '1 year'", "INTERVAL '12 months'", True),
        ("INTERVAL '1 month'", "INTERVAL '30 days'", True),
        ("'{\"a\": 1, \"b\": 1.0}'::jsonb", "'{\"b\":1,\"a\":1}'::json", True),
        ("'\"x\"'::jsonb", "'x'", False),
        ("'{\"a\": \"1\"}'::jsonb", "'{\"a\": 1}'::jsonb", False),
        ("int4range(1, 4)", "int8range(1, 3, '[]')", True),
        ("ARRAY[1, 2]", "ARRAY[1.0, 2.0]", True),
        ("ARRAY[1, 2]", "ARRAY[2, 1]", False),
        ("'ok'::mood", "'ok'", True),
        ("'\\x61'::bytea", "'a'", False),
        ("NULL", "''", False),
    ],
)  # fmt: skip
def test_values_are_equal_as_strict_says(read: Read, left: str, right: str, equal: bool) -> None:
    assert values_equal(read(left), read(right)) is equal


def test_text_that_is_not_utf8_keeps_its_bytes(postgres_server: PostgresServer) -> None:
    with postgres_server.connect() as connection:
        connection.execute("DROP DATABASE IF EXISTS ascii_values")
        connection.execute(
            "CREATE DATABASE ascii_values TEMPLATE template0 ENCODING 'SQL_ASCII' LOCALE 'C'"
        )
    try:
        with psycopg.connect(postgres_server.dsn("ascii_values"), autocommit=True) as connection:
            register_loaders(connection)
            row = connection.execute("SELECT E'a\\xe9', ARRAY[E'\\xe9'], 'b'::name").fetchone()
            assert row == ("a\udce9", ["\udce9"], "b")
    finally:
        with postgres_server.connect() as connection:
            connection.execute("DROP DATABASE ascii_values WITH (FORCE)")
