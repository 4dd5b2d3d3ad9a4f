"""Numbers over questions: scores, their intervals, and whether one run beats another."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from sense_trl.errors import InputError
from sense_trl.verification.verifier import Verdict

# 97.5 % quantile of the normal distribution.
_Z95 = 1.959963984540054


@dataclass(frozen=True, slots=True)
class Interval:
    """A 95 % interval, in the unit of what it is of (for a share: within [0, 1])."""

    low: float
    high: float

    @property
    def text(self) -> str:
        """Both ends in percent, without the sign: `80.6 to 85.2`."""
        return f"{100 * self.low:.1f} to {100 * self.high:.1f}"


@dataclass(frozen=True, slots=True)
class Score:
    """One number of a run, as every report prints it.

    Attributes:
        name: short name, the same in every run: `strict`, `spider`, `bird`, `suite`, ...
        label: what to call it in a table.
        value: a share or a mean over questions, where 1 is 100 %; only VES and R-VES exceed 1.
        interval: 95 % interval of `value`.
        num_questions: questions that it is over.
        note: a sentence on how it was measured or what to mind; often empty.
    """

    name: str
    label: str
    value: float
    interval: Interval
    num_questions: int
    note: str = ""

    @property
    def text(self) -> str:
        """The value in percent: `83.0 %`."""
        return f"{100 * self.value:.1f} %"

    @property
    def interval_text(self) -> str:
        """The interval in percent, without the sign: `80.6 to 85.2`."""
        return self.interval.text


class GroupAccuracy(NamedTuple):
    """Execution accuracy of the questions of one group: one level, one database.

    Attributes:
        num_correct: correct predictions.
        num_questions: all, at least one.
    """

    num_correct: int
    num_questions: int

    @property
    def accuracy(self) -> float:
        """Share of correct predictions in [0, 1]."""
        return self.num_correct / self.num_questions

    @property
    def interval(self) -> Interval:
        """95 % interval (Wilson) of `accuracy`."""
        return _wilson_interval(self.num_correct, self.num_questions)


@dataclass(frozen=True, slots=True)
class PairedComparison:
    """Two runs on the same questions (McNemar's exact test).

    Attributes:
        gained: questions that only the second run answers correctly.
        lost: questions that only the first run answers correctly.
        p_value: two-sided; the probability of a split at least this uneven if neither run were
            better.
    """

    gained: int
    lost: int
    p_value: float


def execution_accuracy(verdicts: Sequence[Verdict]) -> float:
    """Share of questions whose prediction is correct, in [0, 1].

    Undetermined verdicts stay in the denominator: they are not counted as correct. Report their
    share beside this number.

    Raises:
        InputError: no verdicts.
    """
    if not verdicts:
        raise InputError("`verdicts` is empty; accuracy over no question is undefined.")
    return sum(verdict is Verdict.CORRECT for verdict in verdicts) / len(verdicts)


def accuracy_interval(successes: Sequence[bool]) -> Interval:
    """95 % interval of a share (Wilson's score interval).

    Unlike resampling it stays honest at the ends: 0 of 20 correct gives 0 to 16 %, not 0 to 0.

    Raises:
        InputError: `successes` is empty.
    """
    if not successes:
        raise InputError("`successes` is empty; an interval over no question is undefined.")
    return _wilson_interval(sum(successes), len(successes))


def _wilson_interval(num_successes: int, n: int) -> Interval:
    share, z2 = num_successes / n, _Z95**2
    centre = (share + z2 / (2 * n)) / (1 + z2 / n)
    half = _Z95 / (1 + z2 / n) * math.sqrt(share * (1 - share) / n + z2 / (4 * n * n))
    return Interval(max(0.0, centre - half), min(1.0, centre + half))


def bootstrap_interval(
    values: Sequence[float], *, num_resamples: int = 2000, seed: int = 0
) -> Interval:
    """95 % interval of a mean: the middle 95 % of the means of resamples of the questions.

    The percentile bootstrap (Efron 1979). Too narrow for a handful of questions, and of no width
    where all values are equal; use `accuracy_interval` for shares.

    Args:
        values: one per question.
        num_resamples: how many times as many questions are drawn, with replacement.
        seed: of the draws; the same seed gives the same interval.

    Raises:
        InputError: `values` is empty, or `num_resamples` is below 1.
    """
    if not values:
        raise InputError("`values` is empty; an interval over no question is undefined.")
    if num_resamples < 1:
        raise InputError(f"`num_resamples` is {num_resamples}; expected at least 1, e.g. 2000.")
    import numpy as np

    drawn, rng = np.asarray(values, dtype=float), np.random.default_rng(seed)
    means = [rng.choice(drawn, len(drawn)).mean() for _ in range(num_resamples)]
    low, high = np.quantile(means, (0.025, 0.975))
    return Interval(float(low), float(high))


def compare_paired(first: Sequence[bool], second: Sequence[bool]) -> PairedComparison:
    """Compare two runs on the same questions in the same order.

    Raises:
        InputError: the runs have different lengths.
    """
    if len(first) != len(second):
        raise InputError(
            f"`first` has {len(first)} outcomes and `second` {len(second)}; a paired comparison "
            "needs the same questions in the same order."
        )
    gained = sum(b and not a for a, b in zip(first, second, strict=True))
    lost = sum(a and not b for a, b in zip(first, second, strict=True))
    n = gained + lost
    # Each binomial coefficient from the one before it: computed anew, 10,000 questions that differ
    # take ten seconds.
    tail = coefficient = 1
    for k in range(1, min(gained, lost) + 1):
        coefficient = coefficient * (n - k + 1) // k
        tail += coefficient
    return PairedComparison(gained, lost, min(1.0, 2 * tail / 2**n))
