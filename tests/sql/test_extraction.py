"""What models write, and the SQL that is the answer."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sqlglot.dialects.sqlite import SQLite

from sense_trl.sql.extraction import extract_sql
from sense_trl.sql.reading import read_query, scan_tokens

CASES = Path(__file__).resolve().parent / "cases" / "answers.txt"


def _load_cases() -> list[tuple[str, str, str]]:
    """(name, text, SQL); the format stands at the head of the file."""
    cases = []
    for part in CASES.read_text(encoding="utf-8").split("\n===== ")[1:]:
        name, _, rest = part.partition("\n")
        text, arrow, sql = rest.partition("\n---->")
        cases.append((name, text, sql if arrow else text))
    return cases


@pytest.mark.parametrize(("name", "text", "sql"), _load_cases(), ids=lambda part: part[:40])
def test_the_answer_of_a_case_is_found(name: str, text: str, sql: str) -> None:
    assert extract_sql(text) == sql.strip(), name


# ---------------------------------------------------------------------- properties


@pytest.fixture(scope="module")
def gold(shared_data: Path) -> list[str]:
    """All gold queries of Spider and of BIRD's database."""
    queries = []
    for file, field in (
        ("spider/dev.jsonl", "query"),
        ("spider/train.jsonl", "query"),
        ("bird_superhero/mini_dev.jsonl", "SQL"),
    ):
        for line in (shared_data / file).read_text(encoding="utf-8").splitlines():
            queries.append(json.loads(line)[field].strip().rstrip(";").strip())
    return sorted(set(queries))


def _lower(word: str) -> str:
    return word.lower()


def _title(word: str) -> str:
    return word.title()


def _as_written(word: str) -> str:
    return word


_WORDS = {
    "SELECT",
    "FROM",
    "WHERE",
    "GROUP",
    "ORDER",
    "BY",
    "UNION",
    "INTERSECT",
    "EXCEPT",
    "JOIN",
    "ON",
    "AND",
    "OR",
    "LIMIT",
    "DESC",
    "HAVING",
    "DISTINCT",
    "AS",
    "ALL",
    "NOT",
    "IN",
    "LIKE",
    "BETWEEN",
}
_GAPS = [
    "\n\n", "\n", "\n \t\n\n", "\r\n\r\n", "\n\n-- a note\n\n", "\n-- it's; one\n",
    "\n\n/* why;\n\nnot */\n\n", " /* here */ ",
]  # fmt: skip
_WRAPPINGS = [
    "{}",
    "{};",
    "```sql\n{}\n```",
    "Here's the query:\n\n```sql\n{};\n```\n\nIt doesn't need more.",
    "<think>Maybe SELECT 1?\n\n```sql\nSELECT x FROM y\n```</think>\n{}",
    "<answer>{}</answer>",
    "SQL: {}<|im_end|>",
    "**SQL**:\n\n{}",
    "{}</s>",
    "{}\n\nThis query returns what was asked for. It's simple.",
    "{}\nThis returns the rows.",
    "{};\n\nExplanation: we select the names.",
    "The answer is:\n{}\n\nNote that nothing else isn't needed.",
    "{}\n\n**Explanation**\n\n- `a` is b\n- the rest is c",
    "{}\n\nWhere x is the id, the table holds one row per singer.",
    "{}\n\n| a | b |\n|---|---|\n| 1 | 2 |",
    "CREATE TABLE x (a INT);\n\n{}",
]


@settings(max_examples=150)
@given(data=st.data())
def test_line_breaks_comments_and_what_stands_around_a_query_change_nothing(
    gold: list[str], data: st.DataObject
) -> None:
    query = data.draw(st.sampled_from(gold))
    style: Callable[[str], str] = data.draw(st.sampled_from([_as_written, _lower, _title]))
    gaps = data.draw(st.randoms(use_true_random=False))
    share = data.draw(st.sampled_from([0.0, 0.1, 0.5, 1.0]))
    pieces = []
    position = 0
    for token in scan_tokens(query):
        gap = query[position : token.start]
        # A word that loses the space before it may become another one; a gap stays a gap.
        pieces.append(gaps.choice(_GAPS) if gap and gaps.random() < share else gap)
        written = query[token.start : token.end]
        pieces.append(style(written) if token.text in _WORDS else written)
        position = token.end
    sql = "".join(pieces)
    text = data.draw(st.sampled_from(_WRAPPINGS)).format(sql)
    assert extract_sql(text) == sql


def test_gold_reads_without_a_flaw_and_is_cut_where_sqlglot_cuts(gold: list[str]) -> None:
    tokenizer = SQLite()
    for query in gold[::4]:
        reading = read_query(query)
        assert (reading.flaws, reading.is_closed, reading.end) == (0, True, len(query)), query
        ours = [token.start for token in scan_tokens(query)]
        theirs = [token.start for token in tokenizer.tokenize(query)]
        # Of "GROUP BY" and of ">=" with a space in it, sqlglot makes one token.
        assert set(theirs) <= set(ours), query


def test_predictions_of_models_come_back_whole(shared_data: Path) -> None:
    num_cut = 0
    for file in sorted((shared_data / "predictions").glob("*/spider_dev.sql")):
        for line in file.read_text(encoding="utf-8").splitlines()[::5]:
            if extract_sql(line) != line.strip().rstrip(";").strip():
                num_cut += 1
                assert not line.lower().startswith("select") or "```" in line, line
    # Lines of one model that repeat the prompt before the query.
    assert num_cut < 40


_OTHER = ["DELETE FROM t", "DROP TABLE t", "UPDATE t SET a = 1", "insert into t values (1)",
          "ATTACH 'x' AS y", "PRAGMA user_version = 1", "CREATE TABLE t AS SELECT 1", "VACUUM",
          "ALTER TABLE t ADD COLUMN a", "REPLACE INTO t VALUES (1)", "COPY t TO 'x'",
          "DELETE/**/FROM t", "DELETE -- c\nFROM t", "delete\n\nfrom t", "DELETE t",
          'UPDATE "my t" SET a = 1', "UPDATE t AS x SET a = 1", "INSERT/* c */INTO t SELECT 1",
          "WITH a AS (SELECT 1) INSERT INTO t SELECT * FROM a", "Attach 'x' As y",
          'with "a b"(c) as (select 1), d as (select 2) update t set e = (select c from "a b")',
          "WITH a AS (SELECT 1)\nREPLACE INTO t SELECT * FROM a", "EXPLAIN DELETE FROM t",
          "CREATE SEQUENCE s", "DROP MACRO f", "USE other", "SET GLOBAL x = 1", "EXECUTE p",
          "SHOW TABLES", "DESCRIBE t", "CHECKPOINT", "DECLARE @x INT"]  # fmt: skip
_AROUND = ["{}", "```sql\n{}\n```", "SQL: {}", "Sure:\n{}", "<think>x</think>{}", "{}</s>"]


@pytest.mark.parametrize("around", _AROUND)
@pytest.mark.parametrize("other", _OTHER)
def test_no_statement_that_must_be_refused_becomes_a_query(other: str, around: str) -> None:
    for text in (f"{other};\nSELECT 1", f"{other};\n\nSELECT 1", f"-- c\n{other}; SELECT 1"):
        assert other in extract_sql(around.format(text)), text
    for gap in ("; ", ";\n", ";\n\n", "; -- c\n", "; /* c */", ";\u200b", ";\0"):
        kept = extract_sql(around.format(f"SELECT 1{gap}{other}"))
        assert kept.startswith("SELECT 1;") and other in kept, gap


@pytest.mark.parametrize(
    "around",
    ["1. {};\n2. SELECT 1 FROM t", ";;{};;SELECT 1 FROM t", "({}); SELECT 1 FROM t",
     "`{}; SELECT 1 FROM t`", "The query is {}; SELECT 1 FROM t"],
)  # fmt: skip
@pytest.mark.parametrize("other", ["DELETE FROM t", "update t set a = 1", "DROP/**/VIEW v"])
def test_no_list_mark_or_word_before_a_statement_hides_it(other: str, around: str) -> None:
    assert other in extract_sql(around.format(other))


@pytest.mark.parametrize(
    "prose",
    ["Update the filter as needed;", "Do not use DELETE FROM t here.", "Set the limit yourself;",
     "- DELETE FROM t would be wrong\n", "Use this query;", "With the (new) table, update it:",
     "PRAGMA is not needed;", "Describe the table first;", "Explain: the table holds the names."],
)  # fmt: skip
def test_a_sentence_that_begins_with_the_word_of_a_statement_is_none(prose: str) -> None:
    assert extract_sql(f"{prose}\n\nSELECT a FROM t") == "SELECT a FROM t"


@given(
    st.text(max_size=200) | st.text(alphabet="`~;'\"-/*[](){}\\\n SELCTselct:1.,<>|", max_size=90)
)
def test_every_text_is_read_and_tokens_cover_it(text: str) -> None:
    extract_sql(text)
    position = 0
    for token in scan_tokens(text):
        assert token.start >= position and not text[position : token.start].strip()
        assert text[token.start : token.end].upper() == token.text or token.kind != "word"
        position = token.end
    assert not text[position:].strip()


_UNITS = [
    "'", '"', "`", "``", "```", "```sql\n", "[", "(", "/*", "--", "don't ", "''", "'a' ", "SELECT ",
    "(SELECT ", "SELECT a FROM t\n\n", "SELECT a FROM t\n", "-- SELECT a\n", "SQL: ", "a: ",
    "Final answer: SELECT a b c d\n", '{"a":', '[{"', "<think>", "</think>", "<answer>",
    "<|im_end|>", "WITH a AS (", "CREATE TABLE t (", "\n", "\n\n", " ", "a", ".", "\\n", "- ",
    "final ", "CASE WHEN ", "\u201c", "|", "SELECT `a` FROM `t` WHERE ", "BETWEEN 1 AND ",
]  # fmt: skip


@pytest.mark.parametrize("unit", _UNITS)
@pytest.mark.parametrize("head", ["", "SELECT a FROM t ", "Well: "])
def test_the_time_is_bounded_whatever_is_repeated(unit: str, head: str) -> None:
    text = (head + unit * 40_000)[:40_000]
    started = time.process_time()
    extract_sql(text)
    # What is quadratic takes minutes; most take a hundredth of this.
    assert time.process_time() - started < 5


def test_a_text_that_no_engine_takes_comes_back_unsearched() -> None:
    text = "Here: SELECT 1\n\n" + "x " * 150_000
    assert extract_sql(text) == text.strip()
    # Reasoning may be longer than any query.
    assert extract_sql(f"<think>{text}</think>SELECT 1") == "SELECT 1"
