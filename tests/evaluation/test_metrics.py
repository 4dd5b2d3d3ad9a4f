"""Accuracy, its interval and the paired comparison."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binomtest

from sense_trl.errors import InputError
from sense_trl.evaluation.metrics import (
    GroupAccuracy,
    Interval,
    Score,
    accuracy_interval,
    bootstrap_interval,
    compare_paired,
    execution_accuracy,
)
from sense_trl.verification.verifier import Verdict

C, W, U = Verdict.CORRECT, Verdict.WRONG, Verdict.UNDETERMINED


def test_undetermined_stays_in_the_denominator() -> None:
    assert execution_accuracy([C, C, W, U]) == 0.5
    with pytest.raises(InputError, match="`verdicts` is empty"):
        execution_accuracy([])


def test_the_interval_is_wilsons() -> None:
    # p = 0.5, n = 100: centre 0.5, half width 1.96 / (1 + 0.0384) * sqrt(0.0025 + 0.0000960).
    interval = accuracy_interval([True] * 50 + [False] * 50)
    assert (interval.low, interval.high) == pytest.approx((0.40383, 0.59617), abs=1e-5)
    # None of 20: z^2 / (n + z^2) = 3.8415 / 23.8415.
    none = accuracy_interval([False] * 20)
    assert (none.low, none.high) == pytest.approx((0.0, 0.16113), abs=1e-5)
    with pytest.raises(InputError, match="`successes` is empty"):
        accuracy_interval([])


@given(st.lists(st.booleans(), min_size=1, max_size=300))
def test_the_interval_holds_the_share_and_mirrors(successes: list[bool]) -> None:
    interval = accuracy_interval(successes)
    share = sum(successes) / len(successes)
    assert 0 <= interval.low <= share + 1e-12
    assert share - 1e-12 <= interval.high <= 1
    mirrored = accuracy_interval([not s for s in successes])
    assert mirrored.low == pytest.approx(1 - interval.high, abs=1e-12)


def test_mcnemar_by_hand() -> None:
    # 5 gained, 1 lost: 2 * (C(6,0) + C(6,1)) / 2^6 = 14 / 64.
    first = [False] * 5 + [True] + [True, False]
    second = [True] * 5 + [False] + [True, False]
    comparison = compare_paired(first, second)
    assert (comparison.gained, comparison.lost) == (5, 1)
    assert comparison.p_value == pytest.approx(14 / 64)
    assert compare_paired([True], [True]).p_value == 1.0
    with pytest.raises(InputError, match="1 outcomes and `second` 2"):
        compare_paired([True], [True, False])


@pytest.mark.parametrize(("gained", "lost"), [(9_000, 8_800), (3, 2), (0, 0)])
def test_mcnemar_is_the_exact_binomial_test(gained: int, lost: int) -> None:
    found = compare_paired([False] * gained + [True] * lost, [True] * gained + [False] * lost)
    exact = binomtest(gained, gained + lost).pvalue if gained + lost else 1.0
    assert found.p_value == pytest.approx(exact, rel=1e-9)


@given(st.lists(st.tuples(st.booleans(), st.booleans()), max_size=60))
def test_the_comparison_is_symmetric(outcomes: list[tuple[bool, bool]]) -> None:
    first, second = [a for a, _ in outcomes], [b for _, b in outcomes]
    there, back = compare_paired(first, second), compare_paired(second, first)
    assert (there.gained, there.lost) == (back.lost, back.gained)
    assert there.p_value == back.p_value
    assert 0 < there.p_value <= 1


def test_the_bootstrap_by_hand() -> None:
    # The mean of 400 draws from {0, 1} has the standard error 0.5 / 20 = 0.025.
    values = [0.0, 1.0] * 200
    interval = bootstrap_interval(values)
    assert (interval.low, interval.high) == pytest.approx((0.451, 0.549), abs=0.006)
    assert bootstrap_interval(values) == interval
    uneven = [0.3, 0.1, 0.7, 0.25, 0.9]
    assert bootstrap_interval(uneven, seed=1) != bootstrap_interval(uneven)
    assert bootstrap_interval([0.25] * 9) == Interval(0.25, 0.25)
    with pytest.raises(InputError, match="`values` is empty"):
        bootstrap_interval([])
    with pytest.raises(InputError, match="`num_resamples` is 0"):
        bootstrap_interval([1.0], num_resamples=0)


@given(st.lists(st.floats(0, 1), min_size=1, max_size=40))
def test_the_bootstrap_stays_within_the_values(values: list[float]) -> None:
    interval = bootstrap_interval(values, num_resamples=50)
    assert min(values) - 1e-12 <= interval.low <= interval.high <= max(values) + 1e-12


def test_scores_and_groups_as_they_are_printed() -> None:
    group = GroupAccuracy(50, 100)
    assert group == (50, 100)
    assert group.accuracy == 0.5
    score = Score("strict", "Execution accuracy", group.accuracy, group.interval, 100)
    assert (score.text, score.interval_text) == ("50.0 %", "40.4 to 59.6")
