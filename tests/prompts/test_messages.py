"""What goes into a model and what is taken out of its answer."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sense_trl.prompts import extract_sql, get_prompt


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
