"""pass@k and the vote of results."""

import itertools
import json
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest import FreshDB
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sense_trl.database.engine import ExecutionLimits
from sense_trl.database.sqlite_engine import SQLiteEngine
from sense_trl.errors import InputError
from sense_trl.evaluation.samples import (
    _get_fingerprint,
    estimate_pass_at_k,
    pass_at_k,
    vote_by_execution,
)
from sense_trl.verification.verifier import Verdict, verify_sql

C, W, U = Verdict.CORRECT, Verdict.WRONG, Verdict.UNDETERMINED
PETS = """
CREATE TABLE pet (name TEXT, age INTEGER);
INSERT INTO pet VALUES ('Rex', 3), ('Tom', 5), ('Ann', 5);
"""


def test_pass_at_k_by_hand() -> None:
    # Of the 10 pairs among 5 samples 3 hold none of the 2 correct ones.
    assert estimate_pass_at_k(5, 2, 2) == pytest.approx(0.7)
    assert estimate_pass_at_k(5, 2, 1) == pytest.approx(2 / 5)
    assert estimate_pass_at_k(5, 0, 5) == 0
    assert estimate_pass_at_k(5, 1, 5) == 1
    assert pass_at_k([[C, W, W, U], [W, W, U, W]], 2) == 0.25
    # Exact where a product of floats would not be.
    assert estimate_pass_at_k(2000, 1, 1000) == 0.5


@given(st.lists(st.booleans(), min_size=1, max_size=7), st.integers(1, 7))
def test_pass_at_k_counts_the_choices_with_a_correct_sample(correct: list[bool], k: int) -> None:
    if k > len(correct):
        with pytest.raises(InputError, match=rf"`k` is {k} with {len(correct)} samples"):
            estimate_pass_at_k(len(correct), sum(correct), k)
        return
    choices = list(itertools.combinations(correct, k))
    expected = sum(map(any, choices)) / len(choices)
    assert estimate_pass_at_k(len(correct), sum(correct), k) == pytest.approx(expected)


def test_unusable_counts_are_refused() -> None:
    with pytest.raises(InputError, match="`k` is 0"):
        estimate_pass_at_k(3, 1, 0)
    with pytest.raises(InputError, match="`num_correct` is 4 of 3"):
        estimate_pass_at_k(3, 4, 1)
    with pytest.raises(InputError, match="`verdicts` is empty"):
        pass_at_k([], 1)


@pytest.fixture
def engine(fresh_db: FreshDB) -> Iterator[SQLiteEngine]:
    with SQLiteEngine(fresh_db(PETS)) as engine:
        yield engine


def test_the_result_with_most_votes_wins_and_its_earliest_sample_is_chosen(
    engine: SQLiteEngine,
) -> None:
    samples = [
        "SELECT nme FROM pet",
        "SELECT name FROM pet WHERE age = 3",
        "SELECT age, name FROM pet WHERE age = 5",
        "",
        "SELECT name, age FROM pet WHERE age > 4 ORDER BY name",
        "SELECT name, age + 0.0 FROM pet WHERE age > 3",
    ]
    vote = vote_by_execution(samples, engine)
    assert (vote.index, vote.sql, vote.num_votes, vote.num_samples) == (2, samples[2], 3, 6)
    assert vote.share == 0.5


def test_rows_count_as_often_as_they_come(engine: SQLiteEngine) -> None:
    samples = ["SELECT age FROM pet", "SELECT DISTINCT age FROM pet", "SELECT age FROM pet LIMIT 9"]
    assert vote_by_execution(samples, engine).num_votes == 2


def test_a_tie_goes_to_the_result_written_first(engine: SQLiteEngine) -> None:
    samples = ["SELECT 1", "SELECT 2", "SELECT 2 WHERE 1", "SELECT 1 WHERE 1"]
    assert vote_by_execution(samples, engine).index == 0
    assert vote_by_execution(samples[1:] + samples[:1], engine).sql == "SELECT 2"


def test_empty_results_vote_together(engine: SQLiteEngine) -> None:
    samples = ["SELECT 1", "SELECT name FROM pet WHERE 0", "SELECT name, age FROM pet WHERE 0"]
    assert vote_by_execution(samples, engine).index == 1


def test_what_fails_runs_away_or_draws_lots_has_no_vote(engine: SQLiteEngine) -> None:
    runaway = (
        "WITH RECURSIVE c(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM c) SELECT COUNT(*) FROM c"
    )
    hopeless = ["SELECT nme FROM pet", "DELETE FROM pet", runaway, "SELECT abs(random()) * 0"]
    limits = ExecutionLimits(max_steps=100_000)
    vote = vote_by_execution([*hopeless * 2, "SELECT 0"], engine, limits=limits)
    assert (vote.index, vote.num_votes, vote.num_samples) == (8, 1, 9)
    nothing = vote_by_execution(hopeless, engine, limits=limits)
    assert (nothing.index, nothing.num_votes, nothing.share) == (0, 0, 0.0)
    assert engine.execute("SELECT COUNT(*) FROM pet").rows == ((3,),)
    with pytest.raises(InputError, match="`samples` is empty"):
        vote_by_execution([], engine)


def test_what_is_known_to_fail_has_no_vote(engine: SQLiteEngine) -> None:
    vote = vote_by_execution(["SELECT 2", "SELECT 1", "SELECT 2"], engine, failing={"SELECT 2"})
    assert (vote.sql, vote.num_votes) == ("SELECT 1", 1)


def test_a_text_is_executed_once(engine: SQLiteEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    executed = []
    execute = SQLiteEngine.execute

    def counting(self: SQLiteEngine, sql: str, **options: object):  # type: ignore[no-untyped-def]
        executed.append(sql)
        return execute(self, sql, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(SQLiteEngine, "execute", counting)
    samples = ["SELECT 1", "SELECT 2", "SELECT 1", "SELECT x", "SELECT x"]
    assert vote_by_execution(samples, engine).num_votes == 2
    assert executed == ["SELECT 1", "SELECT 2", "SELECT x"]


QUERIES = st.sampled_from(
    ["SELECT 1", "SELECT 1.0", "SELECT age FROM pet", "SELECT age FROM pet ORDER BY age DESC", "?"]
)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(samples=st.lists(QUERIES, min_size=1, max_size=8), seed=st.integers(0, 99))
def test_the_order_of_samples_decides_ties_only(
    engine: SQLiteEngine, samples: list[str], seed: int
) -> None:
    vote = vote_by_execution(samples, engine)
    ones, ages = sum("1" in s for s in samples), sum("age" in s for s in samples)
    assert vote.num_votes == max(ones, ages)
    assert samples[vote.index] == vote.sql
    shuffled = random.Random(seed).sample(samples, len(samples))
    assert vote_by_execution(shuffled, engine).num_votes == vote.num_votes


def test_a_vote_of_real_models_is_nearly_as_good_as_the_best_of_them(shared_data: Path) -> None:
    folder = shared_data / "bird_superhero"
    lines = (folder / "mini_dev.jsonl").read_text(encoding="utf-8").splitlines()
    gold = [json.loads(line)["SQL"] for line in lines]
    models = ["mixtral_8x7b", "llama3_8b", "gpt4"]
    predictions = [
        (folder / "predictions" / f"{model}.sql").read_text(encoding="utf-8").splitlines()
        for model in models
    ]
    correct = dict.fromkeys([*models, "vote"], 0)
    with SQLiteEngine(folder / "superhero.sqlite") as engine:
        for wanted, *samples in zip(gold, *predictions, strict=True):
            voted = vote_by_execution(samples, engine)
            verdicts = {
                sql: verify_sql(sql, wanted, engine, semantics="bird").verdict
                for sql in dict.fromkeys([*samples, voted.sql])
            }
            for name, sql in zip([*models, "vote"], [*samples, voted.sql], strict=True):
                correct[name] += verdicts[sql] is Verdict.CORRECT
    # The first of three answers that all differ is the weakest model's.
    assert correct == {"mixtral_8x7b": 12, "llama3_8b": 26, "gpt4": 40, "vote": 39}


# ---------------------------------------------------------------------- large results

NUMBERS = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < {}) "


def _count(number: int, columns: str = "i") -> str:
    return f"{NUMBERS.format(number)}SELECT {columns} FROM n"


def test_results_beyond_the_limits_are_told_apart_by_fingerprints(engine: SQLiteEngine) -> None:
    limits = ExecutionLimits(max_rows=50)
    large = [_count(60, "i, -i"), _count(60, "-i, i"), _count(60, "i, i"), _count(61, "i, i")]
    vote = vote_by_execution([*large, "SELECT 1"], engine, limits=limits)
    assert (vote.index, vote.num_votes, vote.result) == (0, 2, None)


@pytest.mark.parametrize("held", [0, 10**6])
def test_what_is_not_held_has_the_same_votes(
    engine: SQLiteEngine, monkeypatch: pytest.MonkeyPatch, held: int
) -> None:
    monkeypatch.setattr("sense_trl.evaluation.samples._MAX_HELD_VALUES", held)
    samples = [_count(60, "i, -i"), _count(60, "i, i"), _count(60, "-i, i"), "SELECT age FROM pet"]
    vote = vote_by_execution(samples, engine)
    assert (vote.index, vote.num_votes) == (0, 2)
    assert (vote.result is None) == (not held)


def test_numbers_within_the_tolerance_are_one_result(engine: SQLiteEngine) -> None:
    # The first is no integer, and equals one.
    samples = ["SELECT 0.1 + 0.2, 3.0000000000000004", "SELECT 0.3, 3", "SELECT 0.3, 4"]
    vote = vote_by_execution(samples, engine)
    assert (vote.index, vote.num_votes) == (0, 2)
    assert vote.result is not None
    assert len(vote.result.rows) == 1


@given(
    rows=st.lists(st.tuples(st.integers(0, 2), st.sampled_from(["a", "b", None])), max_size=5),
    other=st.lists(st.tuples(st.integers(0, 2), st.sampled_from(["a", "b", None])), max_size=5),
)
def test_fingerprints_of_equal_results_are_equal(rows: list[Any], other: list[Any]) -> None:
    assert _get_fingerprint(rows) == _get_fingerprint([row[::-1] for row in reversed(rows)])
    if sorted(map(str, rows)) != sorted(map(str, other)) and len(rows) == len(other) == 1:
        assert _get_fingerprint(rows) != _get_fingerprint(other)
