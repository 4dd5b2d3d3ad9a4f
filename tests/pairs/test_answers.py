"""A model's own right answers as questions to fine-tune on."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from conftest import FreshDB
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sense_trl.database.catalog import DatabaseCatalog
from sense_trl.errors import InputError
from sense_trl.pairs import Candidate, select_verified_answers
from sense_trl.questions import Question, load_questions, write_questions
from sense_trl.verification.verifier import SQLVerifier

PETS = "CREATE TABLE pet (name TEXT, age INT); INSERT INTO pet VALUES ('Rex', 3), ('Tom', 5);"
QUESTIONS = [
    Question("q1", "pets", "Names?", "SELECT name FROM pet"),
    Question("q2", "pets", "Ages?", "SELECT age FROM pet"),
    Question("q3", "pets", "Who is 100?", "SELECT name FROM pet WHERE age = 100"),
]
RIGHT = ("SELECT T1.name FROM pet AS T1", "SELECT name FROM pet WHERE age > 0")
TEXTS = (*RIGHT, "select t1.name  from pet as t1", "SELECT age FROM pet", "SELECT nme FROM pet")


@pytest.fixture
def verifier(fresh_db: FreshDB) -> Iterator[SQLVerifier]:
    with DatabaseCatalog.from_path(fresh_db(PETS, name="pets")) as catalog:
        yield SQLVerifier(catalog, num_workers=0)


def _candidate(sql: str, question_id: str = "q1", **fields: object) -> Candidate:
    return Candidate(question_id, 0, sql, sql, "weak", "m", **fields)  # type: ignore[arg-type]


def test_right_answers_replace_gold_and_others_are_left_out(verifier: SQLVerifier) -> None:
    candidates = [
        *map(_candidate, TEXTS),
        # Right, but cut off by the length limit.
        _candidate("SELECT age FROM pet", "q2", finished=False),
        _candidate("", "q2"),
        # Gold returns nothing, so no answer to it is known to be right.
        _candidate("SELECT name FROM pet WHERE age = 100", "q3"),
    ]
    answers = select_verified_answers(QUESTIONS, candidates, verifier, limit=5)
    assert [answer.question_id for answer in answers] == ["q1", "q1-2"]
    # Of texts that say the same the first one is kept.
    assert {answer.gold_sql for answer in answers} == set(RIGHT)
    assert {(a.db_id, a.question) for a in answers} == {("pets", "Names?")}


def test_reasoning_is_kept_where_its_query_is_right(verifier: SQLVerifier) -> None:
    def reasoned(sql: str) -> Candidate:
        text = f"<reasoning>Names are in pet.</reasoning>\n```sql\n{sql}\n```\n"
        return replace(_candidate(sql), text=text)

    candidates = [reasoned(RIGHT[0]), reasoned("SELECT nme FROM pet")]
    (answer,) = select_verified_answers(QUESTIONS, candidates, verifier, completion="text")
    assert answer.gold_sql == RIGHT[0]
    assert answer.completion == candidates[0].text.strip()
    (alone,) = select_verified_answers(QUESTIONS, candidates, verifier)
    assert (alone.gold_sql, alone.completion) == (RIGHT[0], None)


def test_one_of_several_is_drawn_by_the_seed(verifier: SQLVerifier) -> None:
    candidates = [*map(_candidate, TEXTS)]
    drawn = [
        [a.gold_sql for a in select_verified_answers(QUESTIONS, candidates, verifier, seed=seed)]
        for seed in range(8)
    ]
    assert {len(answers) for answers in drawn} == {1}
    assert {answers[0] for answers in drawn} == set(RIGHT)


@settings(max_examples=20, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(texts=st.permutations(TEXTS), limit=st.integers(1, 3), seed=st.integers(0, 5))
def test_the_draw_does_not_depend_on_the_order_of_candidates(
    texts: list[str], limit: int, seed: int, verifier: SQLVerifier
) -> None:
    def draw(order: list[str]) -> list[str]:
        answers = select_verified_answers(
            QUESTIONS[:1], map(_candidate, order), verifier, limit=limit, seed=seed
        )
        return [answer.gold_sql.casefold().replace("  ", " ") for answer in answers]

    assert draw(texts) == draw([*TEXTS])
    assert len(draw(texts)) == min(limit, 2)


def test_bad_input_is_refused(verifier: SQLVerifier) -> None:
    with pytest.raises(InputError, match="`limit` is 0"):
        select_verified_answers(QUESTIONS, [], verifier, limit=0)
    with pytest.raises(InputError, match="'q9'"):
        select_verified_answers(QUESTIONS, [_candidate("SELECT 1", "q9")], verifier)


def test_questions_are_read_back_as_they_were_written(tmp_path: Path) -> None:
    questions = [
        Question("a", "pets", 'Älter als "3"?', "SELECT 1", split="train", evidence="3 is three"),
        Question("b", "pets", "Names?", "SELECT name\nFROM pet", level="easy"),
        Question("c", "pets", "Ages?", "SELECT age", completion="In pet.\nSELECT age"),
    ]
    write_questions(tmp_path / "q.jsonl", questions)
    assert load_questions(tmp_path / "q.jsonl") == questions
