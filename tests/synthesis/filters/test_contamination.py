"""Finding examples that leak an evaluation set."""

from __future__ import annotations

from pathlib import Path

import pytest

from sense_trl.errors import InputError
from sense_trl.questions import Question, load_questions
from sense_trl.sql.parsing import SQLParseError
from sense_trl.synthesis.filters.contamination import EvaluationIndex, normalize_question
from sense_trl.synthesis.filters.sql_template import get_sql_template


def _index(question: str, sql: str, **settings: float) -> EvaluationIndex:
    return EvaluationIndex([Question("dev-1", "shop", question, sql)], dialect="sqlite", **settings)


def test_case_spaces_and_punctuation_do_not_hide_a_question() -> None:
    index = _index("List the names of all singers .", "SELECT name FROM singer")
    found = index.find("list the NAMES of all singers", "SELECT 1")
    assert found is not None
    assert (found.kind, found.question_id, found.similarity) == ("same_question", "dev-1", 1.0)


def test_similarity_is_the_share_of_common_trigrams() -> None:
    # < a b c d > has the trigrams <ab abc bcd cd>; < a b c e > has <ab abc bce ce>: 2 of 6.
    index = _index("a b c d", "SELECT x FROM y", min_similarity=0.3)
    found = index.find("a b c e", "SELECT 1")
    assert found is not None
    assert found.kind == "similar_question"
    assert found.similarity == pytest.approx(2 / 6)
    strict = _index("a b c d", "SELECT x FROM y", min_similarity=0.34)
    assert strict.find("a b c e", "SELECT 1") is None


def test_one_word_of_twelve_is_near_and_another_question_is_not() -> None:
    index = _index("What are the names of all the singers from France in 2014?", "SELECT 1")
    assert index.find("What are the names of all the singers from Spain in 2014?", "SELECT 2 + 2")
    assert index.find("How many concerts were there in 2014?", "SELECT 2 + 2") is None


@pytest.mark.parametrize(
    "sql",
    [
        "select Name from SINGER where age>30",
        "SELECT x.name FROM singer x WHERE 18 < x.age",
        "SELECT name FROM singer WHERE age > -3",
    ],
)
def test_other_constants_and_spellings_do_not_hide_a_query(sql: str) -> None:
    alias = "x." in sql
    gold = "SELECT s.name FROM singer AS s WHERE s.age > 40" if alias else "SELECT name FROM singer WHERE age > 40"  # fmt: skip
    found = _index("Who?", gold).find("Which singers are grown up?", sql)
    assert found is not None
    assert (found.kind, found.similarity) == ("same_template", None)


def test_another_table_or_operator_is_another_template() -> None:
    index = _index("Who?", "SELECT name FROM singer WHERE age > 40")
    assert index.find("Which?", "SELECT name FROM dancer WHERE age > 40") is None
    assert index.find("Which?", "SELECT name FROM singer WHERE age >= 40") is None


def test_sql_that_cannot_be_read_is_compared_by_its_question() -> None:
    index = _index("Who is it?", "SELEC name FRM")
    assert index.find("Who is it", "SELEC name FRM") is not None
    assert index.find("What else is there", "SELEC name FRM") is None


@pytest.mark.parametrize(
    ("sql", "template"),
    [
        ("SELECT a FROM t WHERE b IN (1, 2, 3)", "SELECT a FROM t WHERE b IN (?)"),
        ("SELECT a FROM t WHERE b NOT IN ('x')", "SELECT a FROM t WHERE NOT b IN (?)"),
        ("SELECT a FROM t WHERE b BETWEEN 1 AND 9", "SELECT a FROM t WHERE b BETWEEN ? AND ?"),
        ('SELECT a FROM t WHERE b LIKE "%x%"', "SELECT a FROM t WHERE b LIKE ?"),
        ("SELECT a, b FROM t ORDER BY 2 LIMIT 5", "SELECT a, b FROM t ORDER BY 2 LIMIT ?"),
        ("SELECT a FROM t LIMIT 5 OFFSET 2", "SELECT a FROM t LIMIT ? OFFSET ?"),
        ('SELECT "a b" FROM t', 'SELECT "a b" FROM t'),
        ("SELECT t.a FROM t WHERE t.b = 'x' OR t.b = -1.5", "SELECT t.a FROM t WHERE t.b = ? OR t.b = ?"),
    ],
)  # fmt: skip
def test_a_template_has_no_constants(sql: str, template: str) -> None:
    assert get_sql_template(sql, "sqlite") == template


def test_a_text_that_is_no_statement_has_no_template() -> None:
    with pytest.raises(SQLParseError):
        get_sql_template("I cannot help with that.", "sqlite")


def test_words_are_compared_without_accents_of_typography() -> None:
    assert normalize_question("\uff28ow many\u2026?") == "how many"


@pytest.mark.parametrize("value", [0.0, 1.2])
def test_a_similarity_out_of_range_is_refused(value: float) -> None:
    with pytest.raises(InputError, match="min_similarity"):
        _index("Q", "SELECT 1", min_similarity=value)


def test_every_question_of_an_evaluation_set_leaks_it(shared_data: Path) -> None:
    dev = load_questions(shared_data / "spider" / "dev.jsonl")[:200]
    index = EvaluationIndex(dev, dialect="sqlite")
    assert {index.find(q.question, "SELECT 1").kind for q in dev} == {"same_question"}
    leaks = [index.find("Something else entirely", q.gold_sql) for q in dev]
    assert {leak.kind for leak in leaks} == {"same_template"}
