"""What the few-shot prompt looks like, and how what a model writes is read."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sense_trl.questions import Question
from sense_trl.synthesis.recursive.invention import (
    format_invention,
    get_invention_prompt,
    parse_invention,
)

EXAMPLES = [
    Question("q1", "pets", "How many pets are there?", "SELECT COUNT(*) FROM pet"),
    Question("q2", "pets", "Who is old?", "SELECT name FROM pet WHERE age > 8"),
]


def test_examples_are_turns_and_the_last_one_is_open() -> None:
    prompt = get_invention_prompt("pet(id, name, age)", EXAMPLES)
    assert [message["role"] for message in prompt] == [
        "system", "user", "assistant", "user", "assistant", "user",
    ]  # fmt: skip
    assert prompt[0]["content"].endswith("(sqlite) that answers it.\n\npet(id, name, age)")
    assert prompt[2]["content"] == "How many pets are there?\nSQL: SELECT COUNT(*) FROM pet"
    assert prompt[1] == prompt[-1] == {"role": "user", "content": "Question:"}
    # A stronger model is asked in its own dialect.
    assert "(duckdb)" in get_invention_prompt("t(a)", [], dialect="duckdb")[0]["content"]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("How old?\nSQL: SELECT age FROM pet", ("How old?", "SELECT age FROM pet")),
        (" Question: How\n old? \n sql :select 1;\nThe answer", ("How old?", "select 1")),
        ("**Question:** How old?\n**SQL:** SELECT 1", ("How old?", "SELECT 1")),
        ("Question 3: How old?\n\nSQL query: SELECT 1\n\nNo.", ("How old?", "SELECT 1")),
        ("How old?\n```sql\nSELECT 1\n```\nIt is 1.", ("How old?", "SELECT 1")),
        ("How old?\nSQL:\n```sql\nSELECT 1\n```", ("How old?", "SELECT 1")),
        ("SQL in words\nSQL: DROP TABLE pet", ("SQL in words", "DROP TABLE pet")),
        ("SELECT age FROM pet", None),
        ("SQL: SELECT age FROM pet", None),
        ("Question: \nSQL: SELECT 1", None),
        ("How old?\nSQL:", None),
        ("How old?", None),
        ("How old?\ud83d\nSQL: SELECT 1", None),
        ("", None),
    ],
)
def test_answers_are_read(text: str, expected: tuple[str, str] | None) -> None:
    assert parse_invention(text) == expected


_WORDS = st.text(st.characters(codec="utf-8", exclude_characters="`:"), min_size=1).map(
    lambda text: " ".join(text.split())
)


@given(_WORDS.filter(bool), st.integers())
def test_what_is_written_is_read_back(words: str, number: int) -> None:
    question = f"Is {words}?"
    sql = f"SELECT {number} FROM pet"
    assert parse_invention(format_invention(question, sql)) == (question, sql)


@given(st.text())
def test_any_text_is_read_without_an_error(text: str) -> None:
    found = parse_invention(text)
    assert found is None or all(found)
