"""Numbers over verdicts: accuracy, its interval, and whether one run beats another."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from sense_trl.errors import InputError
from sense_trl.verification.verifier import Verdict

# 97.5 % quantile of the normal distribution.
_Z95 = 1.959963984540054


@dataclass(frozen=True, slots=True)
class Interval:
    """A 95 % interval, both ends shares in [0, 1]."""

    low: float
    high: float


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
    n, share, z2 = len(successes), sum(successes) / len(successes), _Z95**2
    centre = (share + z2 / (2 * n)) / (1 + z2 / n)
    half = _Z95 / (1 + z2 / n) * math.sqrt(share * (1 - share) / n + z2 / (4 * n * n))
    return Interval(max(0.0, centre - half), min(1.0, centre + half))


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
    tail = sum(math.comb(n, k) for k in range(min(gained, lost) + 1)) / 2**n
    return PairedComparison(gained, lost, min(1.0, 2 * tail))
