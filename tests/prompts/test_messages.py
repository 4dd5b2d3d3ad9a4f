"""What goes into a model and what is taken out of its answer."""

import re
from pathlib import Path

import duckdb
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sense_trl.database.catalog import DatabaseCatalog
from sense_trl.database.engine import QueryResult, QueryStatus
from sense_trl.prompts import Attempt, choose_answer, extract_sql, get_prompt


def test_questions_on_one_database_differ_in_the_last_message_only() -> None:
    first = get_prompt("How many?", "t(a)")
    second = get_prompt("Which?", "t(a)", evidence="big means a > 9")
    assert first[0] == second[0]
    assert first[0]["role"] == "system"
    assert "SQLite" in first[0]["content"]
    assert first[0]["content"].endswith("t(a)")
    assert second[1] == {"role": "user", "content": "big means a > 9\nWhich?"}
    assert "DuckDB" in get_prompt("q", "t(a)", dialect="duckdb")[0]["content"]


@pytest.mark.parametrize(
    ("text", "sql"),
    [
        ("SELECT 1", "SELECT 1"),
        ("  select a from t ;  ", "select a from t"),
        ("```sql\nSELECT 1;\n```\nThis counts.", "SELECT 1"),
        ("Here it is:\n```\nSELECT a\nFROM t\n```", "SELECT a\nFROM t"),
        ("```sql\nSELECT 1", "SELECT 1"),
        ("```\n```\nSELECT 2", "SELECT 2"),
        ("SQL: SELECT 1", "SELECT 1"),
        ("SQLite query: SELECT 1", "SELECT 1"),
        ("The query is\nSELECT 1\n\nIt returns one row.", "SELECT 1"),
        ("To count, use SELECT COUNT(*) FROM t; which counts.", "SELECT COUNT(*) FROM t"),
        ("WITH x AS (SELECT 1) SELECT * FROM x", "WITH x AS (SELECT 1) SELECT * FROM x"),
        ("-- count\nSELECT 1", "-- count\nSELECT 1"),
        ("(SELECT 1)", "(SELECT 1)"),
        ("SELECT ';' FROM t; -- end", "SELECT ';' FROM t"),
        ("SELECT 'it''s; ok' AS \"a;b\", [c;d] /* ; */ FROM t;", "SELECT 'it''s; ok' AS \"a;b\", [c;d] /* ; */ FROM t"),
        ("```SELECT name FROM t```", "SELECT name FROM t"),
        ("```sql SELECT name FROM t```", "SELECT name FROM t"),
        ("```WITH a AS (SELECT 1) SELECT * FROM a```", "WITH a AS (SELECT 1) SELECT * FROM a"),
        ("The answer is `SELECT 1`.", "SELECT 1"),
        ("SELECT `a` FROM `t`", "SELECT `a` FROM `t`"),
        ("-- count pets\n\nSELECT COUNT(*) FROM t", "-- count pets\n\nSELECT COUNT(*) FROM t"),
        ("WITH x AS (\n SELECT 1\n)\n\nSELECT * FROM x", "WITH x AS (\n SELECT 1\n)\n\nSELECT * FROM x"),
        ("SELECT a\nFROM t\n\nWHERE a > 1", "SELECT a\nFROM t\n\nWHERE a > 1"),
        ("SELECT a FROM t WHERE b IN (\n\n1)", "SELECT a FROM t WHERE b IN (\n\n1)"),
        ("SELECT 'a\n\nb'", "SELECT 'a\n\nb'"),
        ("SELECT 1\n\nWhere a is the age.", "SELECT 1"),
        ("SELECT 1\n\nSELECT 2", "SELECT 1"),
        ("With the schema above we can write:\nSELECT name FROM t", "SELECT name FROM t"),
        ("Select the oldest singer:\nSELECT name FROM t", "SELECT name FROM t"),
        ("Set of pets:\nSELECT 1", "SELECT 1"),
        ("SELECT 1;\nWith this query we count.", "SELECT 1"),
        ("SELECT 1;\nReplace t by your table.", "SELECT 1"),
        ("SELECT name FROM t```", "SELECT name FROM t"),
        ("SELECT a FROM t -- it's; fine\nWHERE b", "SELECT a FROM t -- it's; fine\nWHERE b"),
        ("I cannot answer that.", "I cannot answer that."),
        ("", ""),
    ],
)  # fmt: skip
def test_the_query_is_found(text: str, sql: str) -> None:
    assert extract_sql(text) == sql


@pytest.mark.parametrize(
    "text",
    [
        "DELETE FROM t; SELECT 1",
        "DROP TABLE t",
        "SELECT 1; DROP TABLE t",
        "SELECT 1; SELECT 2",
        "SELECT 1\n\nDROP TABLE t",
        "PRAGMA writable_schema = 1;\nSELECT 1",
        "```sql\nUPDATE t SET a = 1\n```",
    ],
)
def test_a_statement_that_must_be_refused_is_not_turned_into_a_query(text: str) -> None:
    kept = extract_sql(text)
    body = text.removeprefix("```sql\n").removesuffix("\n```")
    assert kept == body


@given(st.text(max_size=200) | st.text(alphabet="`;'\"-/*[]\n SELCTselct:1", max_size=80))
def test_the_query_is_a_piece_of_the_text_unchanged(text: str) -> None:
    assert extract_sql(text) in text


def _result(status: str, error: str | None = None, rows: int = 0) -> QueryResult:
    return QueryResult(QueryStatus(status), ("a",) * (rows > 0), ((1,),) * rows, error, 0.0, None)


@pytest.mark.parametrize(
    ("result", "problem", "runs"),
    [
        (_result("ok", rows=1), None, False),
        (_result("ok"), "The query runs, but finds no rows.", True),
        (_result("timeout", "stopped after 30 s"), "The query takes too long.", False),
        (_result("too_large", "1 GB"), "The result of the query is too large.", False),
        (_result("denied", "function error is not allowed"), "The database says: function error is not allowed", False),
        # What DuckDB tells of the query may be told, what it quotes of the data not.
        (_result("execution_error", "Binder Error: no column \"nme\"!"), "The database says: Binder Error: no column \"nme\"!", False),
        (_result("execution_error", "Conversion Error: Could not convert string 'O'Brien' to INT32"), "The database says: Conversion Error at a value of the data.", False),
        (_result("execution_error", "Out of Range Error: Overflow (5 * 4)!"), "The database says: Out of Range Error at a value of the data.", False),
    ],
)  # fmt: skip
def test_what_deserves_a_second_turn(result: QueryResult, problem: str | None, runs: bool) -> None:
    attempt = Attempt.of("SELECT 1", result)
    assert attempt == (None if problem is None else Attempt("SELECT 1", problem, runs))


def test_no_value_of_a_hidden_column_is_told(tmp_path: Path) -> None:
    path = tmp_path / "people.duckdb"
    with duckdb.connect(str(path)) as connection:
        connection.execute("CREATE TABLE person AS SELECT 'hunter''2' AS password, 31337 AS pin")
    queries = [
        "SELECT CAST(password AS INT) FROM person",
        "SELECT strptime(password, '%Y') FROM person",
        "SELECT json(password) FROM person",
        "SELECT regexp_matches('a', password || '(') FROM person",
        "SELECT pin::TINYINT FROM person",
        "SELECT pin * 2000000 FROM person",
    ]
    with DatabaseCatalog.from_path(path) as catalog:
        for sql in queries:
            result = catalog.engine("people").execute(sql)
            attempt = Attempt.of(sql, result)
            assert result.error is not None and attempt is not None
            assert "hunter" in result.error or "31337" in result.error, "the test has no point"
            assert not {"hunter", "31337"} & set(re.findall(r"hunter|31337", attempt.problem))


@given(st.lists(st.sampled_from(["rows", "empty", "fails"]), min_size=1, max_size=5))
def test_the_first_of_the_best_answers_stands(kinds: list[str]) -> None:
    attempts = [
        None if kind == "rows" else Attempt(kind, "?", runs=kind == "empty") for kind in kinds
    ]
    best = next(kind for kind in ("rows", "empty", "fails") if kind in kinds)
    assert choose_answer(attempts) == kinds.index(best)
