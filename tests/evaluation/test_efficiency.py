"""VES and R-VES: the arithmetic on given times, then real queries."""

import itertools
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from conftest import FreshDB
from hypothesis import example, given
from hypothesis import strategies as st

from sense_trl.database.catalog import DatabaseCatalog
from sense_trl.database.engine import ExecutionLimits, QueryResult, QueryStatus
from sense_trl.errors import InputError
from sense_trl.evaluation.efficiency import (
    EfficiencyReport,
    PairTiming,
    get_r_ves_reward,
    measure_efficiency,
    time_pair,
)
from sense_trl.verification.verifier import VerificationRequest


class _Clockwork:
    """An engine whose queries take the times they are told to, in seconds."""

    def __init__(self, seconds: Callable[[str, int], float], fails_at: int | None = None) -> None:
        self._seconds, self._fails_at = seconds, fails_at
        self.executed: list[str] = []

    def execute(self, sql: str, *, limits: ExecutionLimits | None = None) -> QueryResult:
        elapsed = self._seconds(sql, len(self.executed))
        self.executed.append(sql)
        if len(self.executed) == self._fails_at:
            return QueryResult(QueryStatus.EXECUTION_ERROR, (), (), "no", elapsed, None)
        return QueryResult(QueryStatus.OK, (), (), None, elapsed, None)


def _time(seconds: Callable[[str, int], float], **options: object) -> PairTiming | None:
    return time_pair("P", "G", _Clockwork(seconds), **options)  # type: ignore[arg-type]


def _timing(ratio: float, gold_ratio: float = 1.0, spread: float = 0.1) -> PairTiming:
    return PairTiming(ratio, (ratio, ratio + spread), gold_ratio, 1.0, 1.0, 100)


def test_rewards_by_ratio() -> None:
    ratios = [9, 2, 1.99, 1, 0.99, 0.5, 0.49, 0.25, 0.24, 0.001]
    rewards = [1.25, 1.25, 1, 1, 0.75, 0.75, 0.5, 0.5, 0.25, 0.25]
    assert [get_r_ves_reward(ratio) for ratio in ratios] == rewards


def test_scores_by_hand() -> None:
    # Four predictions: one wrong, three correct at 4 times, once and a quarter of gold's speed.
    report = EfficiencyReport((_timing(4), _timing(1), None, _timing(0.25)), 0)
    assert report.ves == pytest.approx(100 * (2 + 1 + 0 + 0.5) / 4)
    assert report.r_ves == pytest.approx(100 * (1.25**0.5 + 1 + 0 + 0.5**0.5) / 4)
    assert report.accuracy == report.gold_ves == report.gold_r_ves == 75
    assert not report.is_noisy
    nothing = EfficiencyReport((None, None), 0)
    assert nothing.ves == nothing.r_ves == 0
    assert not nothing.is_noisy


def test_a_ratio_is_golds_time_by_the_predictions() -> None:
    timing = _time(lambda sql, n: 0.002 if sql == "G" else 0.001)
    assert timing == PairTiming(2.0, (2.0, 2.0), 1.0, 0.002, 0.001, 100)


def test_single_outliers_do_not_count() -> None:
    # One of 100 rounds was interrupted: gold took a thousand times as long.
    calls = itertools.count()

    def seconds(sql: str, number: int) -> float:
        return 1.0 if sql == "G" and next(calls) == 50 else 0.001

    timing = _time(seconds)
    assert timing is not None
    assert timing.ratio == timing.gold_ratio == 1.0


def test_prediction_and_gold_take_turns_to_be_first() -> None:
    engine = _Clockwork(lambda sql, n: 1.0)
    assert time_pair("P", "G", engine, repetitions=4) is not None  # type: ignore[arg-type]
    # The first round only warms the caches.
    assert "".join(engine.executed) == "GGP" + "PGG" + "GGP" + "PGG" + "GGP"
    # What gets 1 % slower with every query runs, has no say.
    slower = _time(lambda sql, n: 1.01**n, repetitions=10)
    assert slower is not None
    assert slower.ratio == pytest.approx(slower.gold_ratio, abs=0.001)
    assert slower.ratio == pytest.approx(1, abs=0.001)


def test_what_fails_while_it_is_timed_scores_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    failing = _Clockwork(lambda sql, n: 1.0, fails_at=7)
    assert time_pair("P", "G", failing) is None  # type: ignore[arg-type]
    catalog = DatabaseCatalog({})
    monkeypatch.setattr(DatabaseCatalog, "engine", lambda self, db_id: failing)
    failing.executed.clear()
    requests = [VerificationRequest("d", "P", "G")] * 3
    report = measure_efficiency(requests, [True, True, False], catalog, repetitions=2)
    assert report.num_failed == 1
    assert [timing is None for timing in report.timings] == [True, False, True]
    assert report.ves == pytest.approx(100 / 3)
    assert "1 correct predictions could not be timed" in report.describe()


def test_a_slow_pair_is_cut_short_but_not_below_three_rounds() -> None:
    timing = _time(lambda sql, n: 1.0, max_pair_s=0.0)
    assert timing is not None
    assert timing.num_repetitions == 3


def test_noise_is_called_noise() -> None:
    quiet = EfficiencyReport((_timing(1.0), _timing(3.0)), 0)
    assert "too noisy" not in quiet.describe()
    for noisy in (
        replace(quiet, timings=(_timing(1.0, gold_ratio=1.3), _timing(3.0))),
        replace(quiet, timings=(_timing(1.0, gold_ratio=0.7), _timing(3.0))),
        replace(quiet, timings=(_timing(1.0, spread=0.4), _timing(3.0, spread=0.3))),
    ):
        assert noisy.is_noisy
        assert "too noisy to rank" in noisy.describe()


@given(
    st.lists(st.floats(1e-6, 1.0), min_size=9, max_size=9),
    st.floats(1e-3, 1e3),
)
def test_the_unit_of_time_does_not_matter(seconds: list[float], factor: float) -> None:
    timing = _time(lambda sql, n: seconds[n % 9], repetitions=2)
    scaled = _time(lambda sql, n: seconds[n % 9] * factor, repetitions=2)
    assert timing is not None
    assert scaled is not None
    assert scaled.ratio == pytest.approx(timing.ratio)
    assert scaled.gold_ratio == pytest.approx(timing.gold_ratio)
    assert scaled.quartiles == pytest.approx(timing.quartiles)


@given(st.floats(1e-3, 1e3), st.floats(1e-3, 1e3), st.integers(2, 12))
@example(0.1, 1.0, 3)  # the mean of three times 0.1 is not 0.1
def test_constant_times_give_their_ratio(gold_s: float, predicted_s: float, rounds: int) -> None:
    timing = _time(lambda sql, n: gold_s if sql == "G" else predicted_s, repetitions=rounds)
    assert timing is not None
    assert timing.ratio == pytest.approx(gold_s / predicted_s)
    assert timing.gold_ratio == 1.0


def test_unusable_arguments_are_refused() -> None:
    catalog = DatabaseCatalog({})
    request = VerificationRequest("d", "SELECT 1", "SELECT 1")
    with pytest.raises(InputError, match="`predictions` is empty"):
        measure_efficiency([], [], catalog)
    with pytest.raises(InputError, match="`correct` has 2 entries for 1 predictions"):
        measure_efficiency([request], [True, False], catalog)
    with pytest.raises(InputError, match="`repetitions` is 1"):
        _time(lambda sql, n: 1.0, repetitions=1)


def test_a_query_that_does_a_hundred_times_the_work_is_found_slow(fresh_db: FreshDB) -> None:
    count = (
        "WITH RECURSIVE c(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM c WHERE x < {}) "
        "SELECT COUNT(*) > 0 FROM c"
    )
    fast, slow = count.format(500), count.format(50_000)
    requests = [VerificationRequest("d", *pair) for pair in ((slow, fast), (fast, slow))]
    done = []
    with DatabaseCatalog.from_path(fresh_db("CREATE TABLE t (a)", name="d")) as catalog:
        report = measure_efficiency(
            requests, [True, True], catalog, repetitions=5, on_progress=done.append
        )
    slower, faster = report.timings
    assert slower is not None
    assert faster is not None
    assert slower.ratio < 0.25 < 2 < faster.ratio
    assert slower.predicted_s > slower.gold_s
    assert done == [1, 1]


@pytest.mark.slow
def test_gold_against_itself_on_real_questions(shared_data: Path) -> None:
    folder = shared_data / "bird_superhero"
    lines = (folder / "mini_dev.jsonl").read_text(encoding="utf-8").splitlines()
    gold = [json.loads(line)["SQL"] for line in lines]
    with DatabaseCatalog.from_path(folder / "superhero.sqlite") as catalog:
        requests = [VerificationRequest("superhero", sql, sql) for sql in gold]
        report = measure_efficiency(requests, [True] * 52, catalog, repetitions=20)
    assert report.num_failed == 0
    # Gold as the prediction is what the noise floor is made of.
    assert report.is_noisy or report.ves == pytest.approx(report.gold_ves, rel=0.1)
