"""Generated queries give the same rows on SQLite and, translated, on DuckDB and PostgreSQL."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from postgres_server import PostgresServer
from translated_copies import Copy, DuckDBCopy, PostgresCopy

from sense_trl.database.sqlite_engine import SQLiteEngine
from sense_trl.verification.comparison import bags_equal

TEXTS = [
    "1,200", "12abc", " 7", "0x10", "1e3x", "", "5", "-3.5e1", ".5", "5.", "+2", "1_0", "inf", "nan",
    "\t\v 8 ", "9 x", "-", "e5", "2e", "Abc", "aBC", "a%c", "a_c", "a[c", "a\\c", "É", "é", None,
    "2024-05-01", "12.50", "007",
]  # fmt: skip
Engines = tuple[SQLiteEngine, DuckDBCopy, PostgresCopy]


@pytest.fixture(scope="module")
def engines(
    tmp_path_factory: pytest.TempPathFactory, postgres_server: PostgresServer
) -> Iterator[Engines]:
    folder = tmp_path_factory.mktemp("pair")
    connection = sqlite3.connect(folder / "t.sqlite")
    connection.execute(
        "CREATE TABLE t (id INTEGER, age INT, pay REAL, name TEXT, note TEXT, g INT)"
    )
    connection.executemany(
        "INSERT INTO t VALUES (?, ?, ?, ?, ?, ?)",
        [
            (
                number,
                None if number % 7 == 3 else number * 5 - 20,
                None if number % 5 == 1 else number * 2.5 - 11,
                TEXTS[(number * 11) % len(TEXTS)],
                text,
                number % 4,
            )
            for number, text in enumerate(TEXTS)
        ],
    )
    connection.commit()
    connection.close()
    source = folder / "t.sqlite"
    with (
        SQLiteEngine(source) as sqlite,
        DuckDBCopy(source, folder / "t.duckdb") as duckdb,
        PostgresCopy(source, postgres_server) as postgres,
    ):
        yield sqlite, duckdb, postgres


def assert_same_rows(engines: Engines, sql: str, *, on_postgres: bool = False) -> None:
    sqlite, duckdb, postgres = engines
    expected = sqlite.execute(sql)
    assert expected.ok, (sql, expected.error)
    copy: Copy = postgres if on_postgres else duckdb
    got, translated = copy.ask(sql)
    assert got.ok, (sql, translated, got.error)
    assert bags_equal(got.rows, expected.rows), (sql, translated, got.rows, expected.rows)


NUMBERS = st.sampled_from(["id", "age", "pay", "5", "-3", "2.5", "0", "12", "t.age"])
WORDS = st.sampled_from(
    ["name", "note", "t.name", *("'" + t + "'" for t in TEXTS if t is not None), "'x'", "'old'"]
)
PATTERNS = st.sampled_from(
    ["'a%'", "'%C'", "'_b_'", "'%'", "''", "'A_C'", "'%\\%'", "name", "'É'", "'%5%'", "'a!%c'", "5"]
)
GLOBS = st.sampled_from(
    [
        "'a*'",
        "'A*'",
        "'?b?'",
        "'*[0-9]*'",
        "'[^a]*'",
        "'[]x[]*'",
        "'a[[]c'",
        "'a\\c'",
        "'a[c'",
        "''",
        "'*.*'",
    ]
)


def numeric(draw: st.DrawFn, depth: int) -> str:
    kind = draw(st.integers(0, 8 if depth else 0))
    if kind == 0:
        return draw(NUMBERS)
    if kind == 1:
        # What arithmetic makes of text is an integer or a real number, which only rows tell.
        left = draw(st.one_of(NUMBERS, WORDS))
        return f"({left} / {draw(st.one_of(NUMBERS, WORDS))})"
    if kind <= 3:
        operator = draw(st.sampled_from(["+", "-", "*", "%"]))
        return f"({any_value(draw, depth - 1)} {operator} {any_value(draw, depth - 1)})"
    if kind <= 5:
        type_ = draw(
            st.sampled_from(["INTEGER", "REAL", "NUMERIC", "DECIMAL(9,2)", "FLOAT", "BIGINT"])
        )
        return f"CAST({any_value(draw, depth - 1)} AS {type_})"
    if kind == 6:
        return f"length({draw(WORDS)})"
    if kind == 7:
        return f"abs({any_value(draw, depth - 1)})"
    return f"CASE WHEN {predicate(draw, depth - 1)} THEN {numeric(draw, depth - 1)} ELSE 0 END"


def textual(draw: st.DrawFn, depth: int) -> str:
    kind = draw(st.integers(0, 3 if depth else 0))
    if kind <= 1:
        return draw(WORDS)
    if kind == 2:
        return f"substr({draw(WORDS)}, 1, 3)"
    return f"({draw(WORDS)} || 'x')"


def any_value(draw: st.DrawFn, depth: int) -> str:
    return numeric(draw, depth) if draw(st.booleans()) else textual(draw, depth)


def predicate(draw: st.DrawFn, depth: int) -> str:
    kind = draw(st.integers(0, 12 if depth else 10))
    negated = draw(st.sampled_from(["", "NOT "]))
    left = any_value(draw, max(depth - 1, 0))
    if kind <= 2:
        operator = draw(st.sampled_from(["=", "==", "<>", "!=", "<", "<=", ">", ">="]))
        return f"{left} {operator} {any_value(draw, max(depth - 1, 0))}"
    if kind == 3:
        operator = draw(
            st.sampled_from(["IS", "IS NOT", "IS DISTINCT FROM", "IS NOT DISTINCT FROM"])
        )
        return f"{left} {operator} {any_value(draw, 0)}"
    if kind == 4:
        return f"{left} {draw(st.sampled_from(['ISNULL', 'NOTNULL', 'IS NULL', 'IS NOT NULL', 'NOT NULL']))}"
    if kind in (5, 6):
        # Of other numbers only the rows tell whether "5" or "5.0" is their text.
        left = draw(NUMBERS) if draw(st.booleans()) else textual(draw, 1)
    if kind == 5:
        escape = draw(st.sampled_from(["", " ESCAPE '!'"]))
        return f"{left} {negated}LIKE {draw(PATTERNS)}{escape}"
    if kind == 6:
        return f"{left} {negated}GLOB {draw(GLOBS)}"
    if kind == 7:
        return f"{left} {negated}BETWEEN {any_value(draw, 0)} AND {any_value(draw, 0)}"
    if kind == 8:
        items = [any_value(draw, 0) for _ in range(draw(st.integers(0, 3)))]
        return f"{left} {negated}IN ({', '.join(items)})"
    if kind == 9:
        column = draw(st.sampled_from(["age", "note", "pay", "name"]))
        return f"{left} {negated}IN (SELECT u.{column} FROM t AS u WHERE u.{column} IS NOT NULL)"
    if kind == 10:
        return (
            f"{negated}EXISTS (SELECT 1 FROM t AS u WHERE u.id = t.id AND u.age > {draw(NUMBERS)})"
        )
    if kind == 11:
        operator = draw(st.sampled_from(["AND", "OR"]))
        return f"({predicate(draw, depth - 1)} {operator} {predicate(draw, depth - 1)})"
    return f"NOT ({predicate(draw, depth - 1)})"


@st.composite
def predicates(draw: st.DrawFn) -> str:
    return predicate(draw, 2)


@st.composite
def values(draw: st.DrawFn) -> str:
    return numeric(draw, 2)


@st.composite
def aggregates(draw: st.DrawFn) -> str:
    name = draw(st.sampled_from(["sum", "avg", "count", "min", "max", "total"]))
    distinct = draw(st.sampled_from(["", "DISTINCT "]))
    value = any_value(draw, 1)
    filtered = draw(st.sampled_from(["", f" FILTER (WHERE {predicate(draw, 1)})"]))
    over = ""
    if not distinct:
        over = draw(
            st.sampled_from(["", " OVER (PARTITION BY g)", " OVER (PARTITION BY g ORDER BY id)"])
        )
    return f"{name}({distinct}{value}){filtered}{over}"


@given(condition=predicates())
@settings(max_examples=60, derandomize=True)
@example("name NOT LIKE 'a%'")
@example("note BETWEEN 5 AND '7'")
@example("NOT age IN ('5', 'x', '')")
def test_a_condition_and_its_negation_keep_the_same_rows(engines: Engines, condition: str) -> None:
    assert_same_rows(engines, f"SELECT id FROM t WHERE {condition}")
    assert_same_rows(engines, f"SELECT id, {condition} FROM t")
    assert_same_rows(engines, f"SELECT id FROM t WHERE NOT ({condition})")


@given(value=values())
@settings(max_examples=60, derandomize=True)
def test_a_number_is_what_it_was(engines: Engines, value: str) -> None:
    assert_same_rows(engines, f"SELECT id, {value} FROM t")


@given(value=aggregates())
@settings(max_examples=60, derandomize=True)
def test_an_aggregate_keeps_distinct_filter_and_window(engines: Engines, value: str) -> None:
    if " OVER " in value:
        assert_same_rows(engines, f"SELECT id, {value} FROM t")
    else:
        assert_same_rows(engines, f"SELECT {value} FROM t")
        assert_same_rows(engines, f"SELECT g, {value} FROM t GROUP BY g")
        assert_same_rows(engines, f"SELECT g FROM t GROUP BY g HAVING {value} > 2")


@st.composite
def queries(draw: st.DrawFn) -> str:
    match draw(st.integers(0, 3)):
        case 0:
            return f"SELECT id FROM t WHERE {draw(predicates())}"
        case 1:
            return f"SELECT id, {draw(predicates())} FROM t"
        case 2:
            return f"SELECT id, {draw(values())} FROM t"
    value = draw(aggregates())
    if " OVER " in value:
        return f"SELECT id, {value} FROM t"
    form = draw(st.sampled_from(["SELECT {}", "SELECT g, {}", "SELECT g HAVING {} > 2"]))
    chosen, _, having = form.format(value).partition(" HAVING ")
    group = " GROUP BY g" if "g, " in form or having else ""
    return f"{chosen} FROM t{group}{f' HAVING {having}' if having else ''}"


@given(sql=queries())
@settings(max_examples=60, derandomize=True)
@example("SELECT sum(DISTINCT note), avg(DISTINCT name || 'x') FILTER (WHERE g = 1) FROM t")
@example("SELECT sum(DISTINCT '1,200') FROM t")
def test_postgresql_gives_the_same_rows(engines: Engines, sql: str) -> None:
    assert_same_rows(engines, sql, on_postgres=True)
