"""Asking a strong model, and reading what it answers."""

from __future__ import annotations

import contextlib
import sqlite3
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st
from strong_model import BAD, BEES, CLOCKS, FERRIES, KITES, LICHEN

from sense_trl.errors import InputError
from sense_trl.questions import Question
from sense_trl.synthesis.strong.domains import DomainLedger
from sense_trl.synthesis.strong.level import Level, get_level
from sense_trl.synthesis.strong.prompt import (
    SHOWN_DOMAIN,
    AnswerError,
    get_strong_prompt,
    is_complete,
    parse_answer,
)
from sense_trl.synthesis.strong.schema_design import parse_design, write_design


def test_the_prompt_shows_the_examples_the_level_and_the_closed_domains() -> None:
    shown = [
        Question("1", "pets", "How old is Rex?", "SELECT age FROM pet"),
        Question("2", "pets", "Who?", "SELECT 2"),
    ]
    system, user = get_strong_prompt(17, shown, Level.HARD, ["travel", "Beekeeping"])
    assert (system["role"], user["role"]) == ("system", "user")
    for text in (
        "How old is Rex?",
        "SELECT age FROM pet",
        "SELECT 2",
        '"hard"',
        "travel, Beekeeping",
        "(number 17)",
    ):
        assert text in user["content"]
    assert "{" not in user["content"]


@pytest.mark.parametrize(
    ("rest", "complete"),
    [
        ("", False),
        ("SQL:\n```sql\nSELECT 1", False),
        ("SQL:\n```sql\n```", False),
        ("SQL: SELECT 1", False),
        ("SQL:\n```sql\nSELECT 1\n```", True),
        ("SQL:\n```sql\nSELECT 1\n```\n\nThe schema has CREATE TABLE statements, and no", True),
        ("SQL:\n```sql\nSELECT 1\n```\n\nQUESTION: What", False),
        ("SQL:\n```sql\nSELECT 1\n```\n\nSQL:\n```sql\nSELECT 2", False),
    ],
)
def test_an_answer_is_complete_where_the_fence_of_its_query_is_closed(
    rest: str, complete: bool
) -> None:
    start = "DOMAIN: tides\nSCHEMA:\n```sql\nCREATE TABLE tide (at TEXT);\n```\nQUESTION: When?\n"
    assert is_complete(start + rest) is complete


@pytest.mark.parametrize("rest", ["\n" + "a " * 500_000, " " * 1_000_000, "\n" + "\n)" * 500_000])
def test_an_endless_answer_is_read_at_once(rest: str) -> None:
    started = time.process_time()
    assert not is_complete("SQL:\n```sql" + rest)
    # Milliseconds; it was minutes where every place to end was tried with every other.
    assert time.process_time() - started < 5


def test_the_answer_that_the_prompt_shows_is_a_good_one() -> None:
    _, user = get_strong_prompt(1, [], Level.EASY, [])
    shown = user["content"].split("this example:\n\n")[1].split("\n\nThe schema has")[0]
    answer = parse_answer(shown)
    assert answer.domain == SHOWN_DOMAIN
    with contextlib.closing(sqlite3.connect(":memory:")) as connection:
        for statement in write_design(parse_design(answer.ddl)):
            connection.execute(statement)
        connection.execute("INSERT INTO lighthouse VALUES (1, 'North Head', 'Baltic')")
        connection.executemany("INSERT INTO lamp VALUES (?, 1, 'LED', ?)", [(1, 20.5), (2, 31.0)])
        assert connection.execute(answer.sql).fetchall() == [("North Head", 31.0)]


@pytest.mark.parametrize(
    ("text", "domain", "question", "sql"),
    [
        (BEES, "Beekeeping", "What is the total honey", "SELECT a.name, SUM"),
        (CLOCKS, "Antique clock repair", "Which makers have", "SELECT DISTINCT c.maker"),
        (LICHEN, "Lichen herbarium", "How many specimens were collected in 2021?", "SELECT COUNT(*)"),
        (FERRIES, "River ferries", "Which ferries are in dock? Give their names in order", "SELECT name"),
        (KITES, "Kite competitions", "Which pilots", "SELECT DISTINCT k.pilot"),
    ],
)  # fmt: skip
def test_every_form_of_answer_is_read(text: str, domain: str, question: str, sql: str) -> None:
    answer = parse_answer(text)
    assert answer.domain == domain
    assert answer.question.startswith(question) and answer.question[-1] not in "\"'*"
    assert answer.sql.startswith(sql) and "`" not in answer.sql
    assert answer.ddl.removeprefix("-- Specimens\n").startswith("CREATE TABLE")
    assert "```" not in answer.ddl


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (BAD["refusal"], "refusal"),
        (BAD["prose"], "malformed"),
        ("", "malformed"),
        ('{"domain": ', "malformed"),
        (BAD["no_sql"], "no_sql"),
        (BEES.replace("DOMAIN: Beekeeping", ""), "no_domain"),
        (BEES.replace("QUESTION", "TASK"), "no_question"),
        ('{"domain": "x", "question": "y?", "sql": "SELECT 1"}', "no_schema"),
        ('{"domain": "x", "schema": {"a": 1}, "question": "y?", "sql": "SELECT 1"}', "no_schema"),
        (BEES.replace("Beekeeping", "b" * 100), "too_long"),
        (BAD["nul"], "not_text"),
        (BEES.replace("Beekeeping", "\ud83d"), "not_text"),
    ],
)
def test_what_is_missing_is_named(text: str, reason: str) -> None:
    with pytest.raises(AnswerError) as caught:
        parse_answer(text)
    assert caught.value.reason == reason


def test_a_draft_does_not_count() -> None:
    assert parse_answer("QUESTION: A draft?\n\n" + BEES).question.startswith("What is the total")


def test_json_in_a_column_is_no_answer() -> None:
    text = BEES.replace("'Fjordland', 'Heath'", """'{"query": "x", "domain": "y"}'""")
    assert parse_answer(text).domain == "Beekeeping"


@given(st.text(alphabet="DOMAINSCHEQUT:\n`{}\"'#*-sql ", max_size=200))
def test_any_text_is_read_or_refused(text: str) -> None:
    try:
        answer = parse_answer(text)
    except AnswerError as error:
        assert error.reason
    else:
        assert all((answer.domain, answer.ddl, answer.question, answer.sql))


def test_a_domain_is_closed_when_it_is_full() -> None:
    ledger = DomainLedger(2)
    names = ["Beekeeping", "BEEKEEPING database", "beekeeping Management System", "Kites"]
    assert [ledger.admit(name) for name in names] == [True, True, False, True]
    assert ledger.counts == {"Beekeeping": 2, "Kites": 1}
    assert ledger.closed == ["education", "healthcare", "travel", "entertainment", "Beekeeping"]


@pytest.mark.parametrize(
    ("domain", "admitted"),
    [("Education", False), ("Higher education", False), ("Space travel", False), ("Seed banks", True), ("Management", True)],
)  # fmt: skip
def test_overused_domains_are_closed_from_the_start(domain: str, admitted: bool) -> None:
    assert DomainLedger(1).admit(domain) is admitted


def test_a_ledger_without_places_is_refused() -> None:
    with pytest.raises(InputError, match="max_per_domain"):
        DomainLedger(0)


@pytest.mark.parametrize(
    ("sql", "level"),
    [
        ("SELECT count(*) FROM pet WHERE age > 3", "easy"),
        ("SELECT p.name FROM pet p JOIN toy t ON t.pet_id = p.id", "medium"),
        ("SELECT name FROM pet WHERE id IN (SELECT pet_id FROM toy)", "medium"),
        ("SELECT name FROM pet GROUP BY name HAVING count(*) > 1", "medium"),
        ("SELECT a.x FROM a JOIN b ON a.x = b.x JOIN c ON b.x = c.x JOIN d ON c.x = d.x GROUP BY a.x HAVING count(*) > 2", "hard"),
        ("SELECT name FROM pet WHERE id IN (SELECT pet_id FROM toy) GROUP BY name HAVING count(*) > 1", "hard"),
        ("WITH x AS (SELECT id FROM pet) SELECT id FROM x EXCEPT SELECT pet_id FROM toy", "hard"),
        ("SELECT name, CASE WHEN age > 3 THEN 1 END, rank() OVER (ORDER BY age) FROM pet", "hard"),
    ],
)  # fmt: skip
def test_levels_count_what_a_query_uses(sql: str, level: str) -> None:
    assert get_level(sql, "sqlite") == level
    assert Level(level).description
