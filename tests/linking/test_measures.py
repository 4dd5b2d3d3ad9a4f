"""Measures of scores of tables and columns."""

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sense_trl.errors import InputError
from sense_trl.linking import average_precision, recall_at

CASES = st.lists(st.tuples(st.integers(0, 5), st.booleans()), min_size=1, max_size=12).filter(
    lambda pairs: any(label for _, label in pairs)
)


def test_average_precision_by_hand() -> None:
    # Positives at the ranks 1, 3 and 4: (1/1 + 2/3 + 3/4) / 3.
    scores, labels = [5.0, 4.0, 3.0, 2.0, 1.0], [True, False, True, True, False]
    assert average_precision(scores, labels) == pytest.approx((1 + 2 / 3 + 3 / 4) / 3)
    # All equal: every threshold takes all, of which three in five are positives.
    assert average_precision([1.0] * 5, labels) == pytest.approx(3 / 5)


@settings(max_examples=50)
@given(CASES, st.randoms(use_true_random=False))
def test_the_order_of_equal_scores_does_not_matter(
    pairs: list[tuple[int, bool]], rng: random.Random
) -> None:
    shuffled = rng.sample(pairs, len(pairs))
    first, second = (
        average_precision([s for s, _ in p], [label for _, label in p]) for p in (pairs, shuffled)
    )
    assert first == pytest.approx(second)
    assert 0 < first <= 1


def test_recall_by_hand() -> None:
    scores = {"a": 3.0, "b": 2.0, "c": 1.0}
    assert [recall_at(k, scores, {"a", "c"}) for k in (1, 2, 3)] == [0.5, 0.5, 1.0]
    # What has no score is not found.
    assert recall_at(10, scores, {"a", "z"}) == 0.5


def test_what_is_undefined_is_refused() -> None:
    with pytest.raises(InputError, match="no positive"):
        average_precision([1.0], [False])
    with pytest.raises(InputError, match="`k` is 0"):
        recall_at(0, {"a": 1.0}, {"a"})
    with pytest.raises(InputError, match="`wanted` is empty"):
        recall_at(1, {"a": 1.0}, set())
