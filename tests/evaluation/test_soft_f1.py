"""Soft-F1: the official one, and the one that does not depend on the order of rows."""

import itertools
import json
import random
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sense_trl.database.sqlite_engine import SQLiteEngine
from sense_trl.evaluation import soft_f1 as module
from sense_trl.evaluation.soft_f1 import bird_soft_f1, soft_f1
from sense_trl.verification.verifier import Verdict, verify_sql

Row = tuple[object, ...]


def test_the_official_score_by_hand() -> None:
    # Row 1 matches wholly; in row 2 one of two values does: tp 1.5, fp 0.5, fn 0.5.
    assert bird_soft_f1([(1, "a"), (2, "b")], [(1, "a"), (3, "b")]) == 0.75
    # One row of two is there: tp 1, fn 1, precision 1, recall 1/2.
    assert bird_soft_f1([(1,)], [(1,), (2,)]) == pytest.approx(2 / 3)
    assert bird_soft_f1([(1,), (2,)], [(1,)]) == pytest.approx(2 / 3)
    # A column too many: tp 1, fp 1/1 of gold's width.
    assert bird_soft_f1([(1, 9)], [(1,)]) == pytest.approx(2 / 3)
    # A column too few: tp 1/2, fn 1/2.
    assert bird_soft_f1([(1,)], [(1, 9)]) == pytest.approx(2 / 3)
    # The order of columns does not count, repeated rows are dropped.
    assert bird_soft_f1([("a", 1), ("a", 1)], [(1, "a")]) == 1.0
    assert bird_soft_f1([], []) == 1.0
    assert bird_soft_f1([], [(1,)]) == bird_soft_f1([(1,)], []) == 0.0


def test_what_is_wrong_with_the_official_score() -> None:
    # Rows are paired by position.
    assert bird_soft_f1([(1,), (2,)], [(2,), (1,)]) == 0.0
    # The 1 counts as matched twice: tp 2/2, fp 0, fn 1/2.
    assert bird_soft_f1([(1, 1)], [(1, 2)]) == pytest.approx(0.8)
    # Swapped: tp 1/2, fp 1/2, fn 0.
    assert bird_soft_f1([(1, 2)], [(1, 1)]) == pytest.approx(2 / 3)


def test_the_score_without_row_order_by_hand() -> None:
    assert soft_f1([(1,), (2,)], [(2,), (1,)]) == 1.0
    # The rows with "b" belong together: 2 + 1 cells of 4 in common.
    assert soft_f1([(2, "b"), (1, "a")], [(1, "a"), (3, "b")]) == 0.75
    # One 1 in common of 2 + 2 cells.
    assert soft_f1([(1, 1)], [(1, 2)]) == soft_f1([(1, 2)], [(1, 1)]) == 0.5
    # A repeated row is one cell too many: 2 * 1 of 2 + 1.
    assert soft_f1([(1,), (1,)], [(1,)]) == pytest.approx(2 / 3)
    # In the order of rows 2 + 1 cells are in common, crosswise 2 + 2, of 6 + 6.
    crosswise = [(1, 2, 9), (1, 3, 8)]
    assert soft_f1([(1, 2, 3), (1, 2, 7)], crosswise) == pytest.approx(2 / 3)
    assert soft_f1([], []) == 1.0
    assert soft_f1([], [(1,)]) == soft_f1([(1,)], []) == 0.0


def test_values_are_equal_as_in_strict() -> None:
    assert soft_f1([(0.1 + 0.2, 1, None)], [(0.3, 1.0, None)]) == 1.0
    assert soft_f1([("1", b"x")], [(1, "x")]) == 0.0


def _best_by_trying(predicted: list[Row], gold: list[Row]) -> float:
    """The slow obvious version: all pairings."""
    if not predicted and not gold:
        return 1.0
    short, long = sorted((predicted, gold), key=len)
    best = max(
        sum((Counter(a) & Counter(b)).total() for a, b in zip(short, chosen, strict=True))
        for chosen in itertools.permutations(long, len(short))
    )
    return 2 * best / (sum(map(len, short)) + sum(map(len, long)))


VALUES = st.sampled_from([1, 2, 3, "a", None])
ROWS = st.lists(st.tuples(VALUES, VALUES), max_size=5)
WIDER = st.lists(st.tuples(VALUES, VALUES, VALUES), max_size=5)


@given(ROWS, WIDER)
def test_no_pairing_has_more_in_common(predicted: list[Row], gold: list[Row]) -> None:
    assert soft_f1(predicted, gold) == _best_by_trying(predicted, gold)


@pytest.mark.parametrize("max_exact_pairs", [module._MAX_EXACT_PAIRS, 0])
@given(predicted=ROWS, gold=ROWS, seed=st.integers(0, 99))
def test_what_holds_for_any_number_of_rows(
    max_exact_pairs: int, predicted: list[Row], gold: list[Row], seed: int
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "_MAX_EXACT_PAIRS", max_exact_pairs)
        score = soft_f1(predicted, gold)
        assert 0 <= score <= _best_by_trying(predicted, gold) <= 1
        assert soft_f1(gold, predicted) == score
        rng = random.Random(seed)
        shuffled = [tuple(rng.sample(row, 2)) for row in rng.sample(predicted, len(predicted))]
        assert soft_f1(shuffled, rng.sample(gold, len(gold))) == score
        bags = [Counter(frozenset(Counter(r).items()) for r in rows) for rows in (predicted, gold)]
        assert (score == 1) == (bags[0] == bags[1])


def test_many_rows_are_paired_by_what_is_rare() -> None:
    gold = [(i, f"name {i}", i % 3) for i in range(600)]
    predicted = [(i % 3, i, f"NAME {i}") for i in reversed(range(600))]
    # Two of three cells, found by the key although the group is the same in 200 rows.
    assert soft_f1(predicted, gold) == pytest.approx(2 / 3)


@given(ROWS, ROWS)
def test_the_official_score_is_a_share_and_1_for_gold(
    predicted: list[Row], gold: list[Row]
) -> None:
    assert 0 <= bird_soft_f1(predicted, gold) <= 1
    assert bird_soft_f1(gold, gold) == 1.0


@pytest.mark.parametrize(
    ("model", "official", "without_row_order"),
    [("gpt4", 81.396, 83.205), ("llama3_8b", 54.520, 55.977), ("mixtral_8x7b", 24.699, 24.709)],
)
def test_real_predictions(
    shared_data: Path, model: str, official: float, without_row_order: float
) -> None:
    """Means over BIRD's 52 superhero questions; `official` is what its script gives."""
    folder = shared_data / "bird_superhero"
    lines = (folder / "mini_dev.jsonl").read_text(encoding="utf-8").splitlines()
    gold = [json.loads(line)["SQL"] for line in lines]
    predictions = (folder / "predictions" / f"{model}.sql").read_text(encoding="utf-8").splitlines()
    scores, soft_scores = [], []
    with SQLiteEngine(folder / "superhero.sqlite") as engine:
        for predicted_sql, gold_sql in zip(predictions, gold, strict=True):
            predicted, wanted = engine.execute(predicted_sql), engine.execute(gold_sql)
            scores.append(bird_soft_f1(predicted.rows, wanted.rows) if predicted.ok else 0.0)
            soft_scores.append(soft_f1(predicted.rows, wanted.rows) if predicted.ok else 0.0)
            if verify_sql(predicted_sql, gold_sql, engine).verdict is Verdict.CORRECT:
                assert soft_scores[-1] == 1.0
    assert 100 * sum(scores) / 52 == pytest.approx(official, abs=5e-4)
    assert 100 * sum(soft_scores) / 52 == pytest.approx(without_row_order, abs=5e-4)
