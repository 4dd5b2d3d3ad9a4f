"""Words that only one of two queries has."""

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sense_trl.evaluation.sql_diff import mark_differences


@pytest.mark.parametrize(
    ("gold", "predicted", "marked_gold", "marked_predicted"),
    [
        ("SELECT a FROM t", "select A\nfrom T;", [], []),
        ("SELECT name FROM t", "SELECT age FROM t", ["name"], ["age"]),
        ("SELECT a FROM t", "SELECT a FROM t WHERE b = 1", [], ["WHERE b = 1"]),
        ("SELECT a FROM t LIMIT 1", "SELECT a FROM t", ["LIMIT 1"], []),
        # In quotes, case counts, and a string is one word.
        ("SELECT 'It''s A' FROM t", "SELECT 'it''s a' FROM t", ["'It''s A'"], ["'it''s a'"]),
        ("WHERE a >= 1.5", "WHERE a > 1.5", [">="], [">"]),
        ("SELECT 1", "", ["SELECT 1"], []),
        ("", "", [], []),
    ],
)
def test_marked_words(
    gold: str, predicted: str, marked_gold: list[str], marked_predicted: list[str]
) -> None:
    of_gold, of_predicted = mark_differences(gold, predicted)
    assert list(of_gold[1::2]) == marked_gold
    assert list(of_predicted[1::2]) == marked_predicted


words = st.lists(
    st.sampled_from(
        ["SELECT", "a", "b", ",", "'x y'", "'", '"', "<=", "1.5", "ü", "\U0001d4b3", ";", "\n"]
    )
)


@given(words, words)
def test_nothing_is_lost_and_the_rest_is_equal(gold: list[str], predicted: list[str]) -> None:
    texts = " ".join(gold), " ".join(predicted)
    of_gold, of_predicted = mark_differences(*texts)
    assert ("".join(of_gold), "".join(of_predicted)) == texts
    shared = ["".join("".join(p[::2]).split()).replace(";", "") for p in (of_gold, of_predicted)]
    assert shared[0] == shared[1]
    assert mark_differences(texts[0], texts[0]) == ((texts[0],), (texts[0],))


def test_long_texts_cost_no_time() -> None:
    started = time.perf_counter()
    gold, predicted = "a b " * 50_000, "b b a " * 50_000
    assert mark_differences(gold, predicted) == ((gold,), (predicted,))
    assert time.perf_counter() - started < 5
