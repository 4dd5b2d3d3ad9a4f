"""Spans of schema items and literals, as characters of the text."""

from __future__ import annotations

import itertools
import json
from pathlib import Path

import pytest
import sqlglot
from hypothesis import given
from hypothesis import strategies as st

from sense_trl.sql.parsing import SQLParseError
from sense_trl.sql.spans import SCHEMA_ITEMS, SpanKind, get_maskable_spans


def read_spans(sql: str, dialect: str = "sqlite") -> list[tuple[str, str]]:
    return [(sql[s.start : s.end], str(s.kind)) for s in get_maskable_spans(sql, dialect)]


def test_every_kind_by_hand() -> None:
    sql = 'SELECT T1.name, count(*) AS n FROM singer AS T1 WHERE age > -30 AND land = "USA" LIMIT 3'
    assert read_spans(sql) == [
        ("T1", "qualifier"),
        ("name", "column"),
        ("n", "alias"),
        ("singer", "table"),
        ("T1", "alias"),
        ("age", "column"),
        ("30", "literal"),
        ("land", "column"),
        ('"USA"', "quoted"),
        ("3", "literal"),
    ]  # fmt: skip
    assert get_maskable_spans("SELECT a FROM t")[1].start == 14
    assert get_maskable_spans("SELECT a FROM t")[1].end == 15


@pytest.mark.parametrize(
    "sql, expected",
    [
        ("SELECT 'it''s' || [a b] || `c d`", ["'it''s'", "[a b]", "`c d`"]),
        ("SELECT ä /* b */ -- c\n\t, 'ü' FROM \"日 本\"", ["ä", "'ü'", '"日 本"']),
        ("SELECT max(a) FROM main.t", ["a", "t"]),
        ("SELECT a FROM t JOIN u USING (b)", ["a", "t", "u", "b"]),
        ("SELECT CAST(a AS REAL) * 1.5e3 FROM t", ["a", "1.5e3", "t"]),
        ("SELECT 1 + NULL + TRUE", ["1"]),
    ],
)
def test_items_are_whole_and_nothing_else_is_an_item(sql: str, expected: list[str]) -> None:
    assert [text for text, _ in read_spans(sql)] == expected


def test_a_name_of_the_result_is_an_alias_where_only_that_can_be_meant() -> None:
    sql = "SELECT a AS k, b FROM t WHERE k = 1 GROUP BY k ORDER BY K, b"
    kinds = dict(zip([s.start for s in get_maskable_spans(sql)], read_spans(sql), strict=True))
    # SQLite would take the alias in WHERE too, but there a column of that name comes first.
    assert kinds[sql.index("k = 1")] == ("k", "column")
    assert kinds[sql.index("k ORDER")] == ("k", "alias")
    assert kinds[sql.index("K, b")] == ("K", "alias")
    assert kinds[sql.rindex("b")] == ("b", "column")


def test_a_named_subquery_is_no_table() -> None:
    sql = "WITH r AS (SELECT a FROM t) SELECT a FROM R JOIN u"
    tables = [text for text, kind in read_spans(sql) if kind == SpanKind.TABLE]
    assert tables == ["t", "u"]
    assert ("R", "alias") in read_spans(sql)


def test_a_word_in_double_quotes_is_a_column_where_it_cannot_be_a_string() -> None:
    assert read_spans('SELECT t."a" FROM t')[1] == ('"a"', "column")
    assert read_spans('SELECT "a" FROM t', "duckdb")[0] == ('"a"', "column")
    assert read_spans('SELECT "a" FROM t')[0] == ('"a"', "quoted")


def test_schema_items_are_neither_aliases_nor_qualifiers() -> None:
    sql = 'SELECT T1.name AS n FROM singer AS T1 WHERE land = "USA" AND age > 30'
    spans = get_maskable_spans(sql, kinds=SCHEMA_ITEMS)
    words = [sql[span.start : span.end] for span in spans]
    assert words == ["name", "singer", "land", '"USA"', "age", "30"]


@pytest.mark.parametrize("sql", ["", "SELECT (", "SELECT 1; SELECT 2"])
def test_what_is_not_one_query_is_refused(sql: str) -> None:
    with pytest.raises(SQLParseError):
        get_maskable_spans(sql)


names = st.sampled_from(["a", '"b c"', "`d`", "[e]", "é", "T1.x"])
values = st.sampled_from(["1", "2.5", "'s'", "'it''s'", "''", "'日本'"])
spaces = st.sampled_from([" ", "  ", "\n", " /* 'c' */ ", " -- d\r\n"])


@given(names, values, st.lists(spaces, min_size=6, max_size=6))
def test_items_are_found_whatever_stands_between_them(
    name: str, value: str, space: list[str]
) -> None:
    parts = ["SELECT", name, "FROM", "t", "WHERE", name, "=", value]
    gaps = [*space, " ", " "]
    sql = "".join(part + gap for part, gap in zip(parts, gaps, strict=True))
    words = ["T1", "x"] if name == "T1.x" else [name]
    assert [text for text, _ in read_spans(sql)] == [*words, "t", *words, value]


def check_against_tokens(path: Path) -> int:
    """Every word, string and number of the gold queries is a span, or the name of a function."""
    checked = 0
    for line in path.read_text(encoding="utf-8").splitlines():
        sql = json.loads(line)["query"]
        spans = get_maskable_spans(sql)
        for span, following in itertools.pairwise(spans):
            assert span.end <= following.start
        tokens = sqlglot.tokenize(sql, read="sqlite")
        ends = {token.start: token.end + 1 for token in tokens}
        assert all(ends[span.start] == span.end for span in spans), sql
        starts = {span.start for span in spans}
        for token in tokens:
            if token.token_type.name in {"VAR", "STRING", "NUMBER", "IDENTIFIER"}:
                is_function = sql[token.end + 1 :].lstrip().startswith("(")
                assert is_function or token.start in starts, (sql, token.text)
        checked += 1
    return checked


def test_the_gold_queries_of_spider_dev(shared_data: Path) -> None:
    assert check_against_tokens(shared_data / "spider" / "dev.jsonl") == 1034


@pytest.mark.slow  # 8,659 queries, some 10 s
def test_the_gold_queries_of_spider_train(shared_data: Path) -> None:
    assert check_against_tokens(shared_data / "spider" / "train.jsonl") == 8659
