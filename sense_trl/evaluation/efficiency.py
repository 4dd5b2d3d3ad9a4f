"""Efficiency of correct queries: BIRD's VES and R-VES, with what they are worth on this machine.

Both compare how long gold and a correct prediction run. Such ratios are noisy, so gold is also
timed against itself, in the same rounds: what gold scores against itself is the noise floor, and
a difference between two runs that is not well above it says nothing.
"""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Final

from sense_trl.database.catalog import DatabaseCatalog
from sense_trl.database.engine import ExecutionLimits, SQLEngine
from sense_trl.errors import InputError
from sense_trl.verification.judging import VerificationRequest

# R-VES: least ratio for each reward (BIRD, mini-dev `evaluation_ves.py`).
_REWARDS: Final = ((2.0, 1.25), (1.0, 1.0), (0.5, 0.75), (0.25, 0.5), (0.0, 0.25))

# With six busy processes on two cores gold against itself came out at 1.10 and the spread stayed at
# 0.04; on a quiet machine at 1.00 and 0.03 (104 of Spider's gold queries, 100 repetitions).
_MAX_FLOOR_ERROR: Final = 0.05
_MAX_SPREAD: Final = 0.2

_MIN_ROUNDS: Final = 3


@dataclass(frozen=True, slots=True)
class PairTiming:
    """Time of gold relative to that of a prediction that gives the same answer.

    Attributes:
        ratio: mean of gold's time divided by the prediction's over the rounds, without those more
            than three standard deviations away; above 1 the prediction is faster.
        quartiles: first and third quartile of the ratio over all rounds.
        gold_ratio: the same mean for gold against itself: 1 but for noise.
        gold_s: median seconds of gold.
        predicted_s: median seconds of the prediction.
        num_repetitions: rounds; fewer than asked for where `max_pair_s` was used up.
    """

    ratio: float
    quartiles: tuple[float, float]
    gold_ratio: float
    gold_s: float
    predicted_s: float
    num_repetitions: int

    @property
    def spread(self) -> float:
        """Width of the middle half of the ratios."""
        return self.quartiles[1] - self.quartiles[0]


@dataclass(frozen=True, slots=True)
class EfficiencyReport:
    """VES and R-VES of a run.

    Scores are in percent: 100 means that every prediction is correct and as fast as gold.

    Attributes:
        timings: one per prediction in their order, `None` where it is not correct, or where it or
            gold did not run to its end while it was timed.
        num_failed: correct predictions without a timing; they score 0.
    """

    timings: tuple[PairTiming | None, ...]
    num_failed: int

    @property
    def ves(self) -> float:
        """Valid efficiency score: mean of the root of the ratio, times 100; not bounded above."""
        return self._score(math.sqrt(t.ratio) for t in self._timed)

    @property
    def r_ves(self) -> float:
        """Reward-based valid efficiency score: mean of the root of the reward, times 100."""
        return self._score(math.sqrt(get_r_ves_reward(t.ratio)) for t in self._timed)

    @property
    def gold_ves(self) -> float:
        """Noise floor: what gold in place of each timed prediction scores; 100 without noise."""
        return self._score(math.sqrt(t.gold_ratio) for t in self._timed)

    @property
    def gold_r_ves(self) -> float:
        """Noise floor of R-VES.

        It has a step at a ratio of 1, so gold against itself earns 1 or 0.75 by chance: 89 to 93
        out of 100 on a quiet machine (104 of Spider's gold queries, 100 repetitions).
        """
        return self._score(math.sqrt(get_r_ves_reward(t.gold_ratio)) for t in self._timed)

    @property
    def accuracy(self) -> float:
        """Share of timed predictions, times 100: the scores of a run exactly as fast as gold."""
        return self._score(1.0 for _ in self._timed)

    @property
    def spread(self) -> float:
        """Median over the timed predictions of the width of the middle half of their ratios."""
        return statistics.median(t.spread for t in self._timed) if self._timed else 0.0

    @property
    def is_noisy(self) -> bool:
        """Whether this machine was too restless to rank anything by these scores.

        Over the timed predictions the mean root of `gold_ratio` is more than 5 % away from 1, or
        `spread` is above 0.2.
        """
        if not self._timed:
            return False
        floor = statistics.fmean(math.sqrt(t.gold_ratio) for t in self._timed)
        return abs(floor - 1) > _MAX_FLOOR_ERROR or self.spread > _MAX_SPREAD

    def describe(self) -> str:
        """The scores and their noise in words, with a warning if `is_noisy`."""
        text = (
            f"VES {self.ves:.1f} and R-VES {self.r_ves:.1f} over {len(self.timings)} predictions, "
            f"{len(self._timed)} of them timed. Gold in their place: VES {self.gold_ves:.1f}, "
            f"R-VES {self.gold_r_ves:.1f}; half of a question's ratios lie within "
            f"{self.spread:.2f}."
        )
        if self.num_failed:
            text += f" {self.num_failed} correct predictions could not be timed and score 0."
        if self.is_noisy:
            text += (
                " The machine was too noisy to rank by this: end other programs, or raise "
                "`repetitions`, and measure again."
            )
        return text

    @property
    def _timed(self) -> list[PairTiming]:
        return [timing for timing in self.timings if timing is not None]

    def _score(self, roots: Iterable[float]) -> float:
        return 100 * math.fsum(roots) / len(self.timings)


def get_r_ves_reward(ratio: float) -> float:
    """R-VES's reward of a correct prediction for gold's time divided by its own.

    1.25 from 2 upwards, 1 from 1, 0.75 from 0.5, 0.5 from 0.25, and 0.25 below.
    """
    return next(reward for least, reward in _REWARDS if ratio >= least)


def measure_efficiency(
    predictions: Sequence[VerificationRequest],
    correct: Sequence[bool],
    catalog: DatabaseCatalog,
    *,
    repetitions: int = 100,
    max_pair_s: float = 60.0,
    limits: ExecutionLimits | None = None,
    on_progress: Callable[[int], None] | None = None,
) -> EfficiencyReport:
    """Time every correct prediction against its gold query; compute VES and R-VES.

    VES is from Li et al. 2023, "Can LLM Already Serve as a Database Interface?" (BIRD), R-VES from
    BIRD's mini-dev. The ratio of a prediction is the mean over the repetitions of gold's time
    divided by its own, without those more than three standard deviations from the mean; what is
    not correct scores 0.

    What differs from the official scripts, so that figures can be compared only within one run of
    this one (theirs depend on the machine and its load as well):

    * Which predictions are correct is an argument. The scripts compare sets of rows (`bird`).
    * A round runs prediction, gold and gold again, every other round backwards; the scripts run the
      prediction first in every round, which is a bias where caches or clocks warm up.
    * The second gold gives the noise floor, at half the cost again. The scripts have none.
    * Queries run through the engine: read-only, limited, on a connection that stays open. The
      scripts open a connection for every run.
    * A query's time is `QueryResult.elapsed_s`, all rows read. VES's script stops the clock before
      the first row is fetched, R-VES's reads all rows.
    * One process does everything. The scripts let several run side by side, on the same cores.

    Args:
        predictions: predictions with their gold, as they were verified.
        correct: whether each one is correct.
        catalog: where the databases are.
        repetitions: rounds of three runs for each correct prediction.
        max_pair_s: seconds after which no further round is begun for a prediction, but at least
            3 are: what runs long is not noisy. The scripts stop after 3,000 s and score it 0.
        limits: limits of each query instead of the catalog's.
        on_progress: called with the number of predictions done since the last call.

    Raises:
        InputError: no predictions, `correct` of another length, a `db_id` is unknown, or
            `repetitions` is below 2.
        DatabaseError: a database cannot be read.
    """
    if not predictions:
        raise InputError("`predictions` is empty; efficiency over no question is undefined.")
    if len(correct) != len(predictions):
        raise InputError(
            f"`correct` has {len(correct)} entries for {len(predictions)} predictions; expected "
            "one for each."
        )
    timings: list[PairTiming | None] = []
    for prediction, is_correct in zip(predictions, correct, strict=True):
        timing = None
        if is_correct:
            timing = time_pair(
                prediction.predicted_sql,
                prediction.gold_sql,
                catalog.engine(prediction.db_id),
                repetitions=repetitions,
                max_pair_s=max_pair_s,
                limits=limits,
            )
        timings.append(timing)
        if on_progress is not None:
            on_progress(1)
    num_timed = sum(timing is not None for timing in timings)
    return EfficiencyReport(tuple(timings), sum(correct) - num_timed)


def time_pair(
    predicted_sql: str,
    gold_sql: str,
    engine: SQLEngine,
    *,
    repetitions: int = 100,
    max_pair_s: float = 60.0,
    limits: ExecutionLimits | None = None,
) -> PairTiming | None:
    """Time a correct prediction against gold, and gold against itself; see `measure_efficiency`.

    One round that does not count comes first.

    Returns:
        The timing, or `None` where a query did not run to its end.

    Raises:
        InputError: `repetitions` is below 2.
    """
    if repetitions < 2:
        raise InputError(f"`repetitions` is {repetitions}; expected at least 2, e.g. 100.")
    predicted: list[float] = []
    gold: list[float] = []
    gold_again: list[float] = []
    # Gold stands in the middle, so prediction and second gold are compared with it alike.
    order = [(predicted_sql, predicted), (gold_sql, gold), (gold_sql, gold_again)]
    started = time.perf_counter()
    # The first round only warms the caches.
    for round_number in range(repetitions + 1):
        for sql, seconds in order if round_number % 2 else reversed(order):
            result = engine.execute(sql, limits=limits)
            if not result.ok:
                return None
            if round_number > 0:
                seconds.append(result.elapsed_s)
        if round_number >= _MIN_ROUNDS and time.perf_counter() - started > max_pair_s:
            break
    ratios = [g / p for g, p in zip(gold, predicted, strict=True)]
    first, _, third = statistics.quantiles(ratios, n=4, method="inclusive")
    return PairTiming(
        ratio=_mean_without_outliers(ratios),
        quartiles=(first, third),
        gold_ratio=_mean_without_outliers(
            [g / again for g, again in zip(gold, gold_again, strict=True)]
        ),
        gold_s=statistics.median(gold),
        predicted_s=statistics.median(predicted),
        num_repetitions=len(ratios),
    )


def _mean_without_outliers(values: Sequence[float]) -> float:
    """Mean of those within three (population) standard deviations of the mean."""
    mean, deviation = statistics.fmean(values), statistics.pstdev(values)
    kept = [value for value in values if abs(value - mean) <= 3 * deviation]
    # Equal values may all differ from their mean, by a rounding error.
    return statistics.fmean(kept) if kept else mean
