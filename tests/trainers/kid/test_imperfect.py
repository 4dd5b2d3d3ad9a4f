"""Which tokens are masked and what replaces them, without a model."""

from __future__ import annotations

import itertools
import random

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from sense_trl.trainers.kid.imperfect import (
    MASK_STRATEGIES,
    TokenPrediction,
    choose_masked,
    get_mask_groups,
    get_maskable,
    get_random,
    get_units,
)

END = 2
#       prompt  SELECT name  (2)   FROM   t    end
TOKENS = [9, 9, 5, 6, 7, 8, 10, END]
TRAINED = [0, 0, 1, 1, 1, 1, 1, 1]

UNITS = st.lists(st.integers(1, 3), max_size=8).map(
    # Units of these sizes, one after the other.
    lambda sizes: [
        list(range(5 + sum(sizes[:i]), 5 + sum(sizes[: i + 1]))) for i in range(len(sizes))
    ]
)


# ------------------------------------------------------------------------------ by hand


def test_only_tokens_of_the_answer_are_maskable():
    assert get_maskable(TOKENS, TRAINED, {END}) == [2, 3, 4, 5, 6]
    # Nothing predicts the first token of a sequence.
    assert get_maskable([5, 6], [True, True], {END}) == [1]
    assert get_maskable([5, END], [False, True], {END}) == []


def test_units_are_tokens_or_whole_items():
    maskable = [2, 3, 4, 5, 6]
    assert get_units(maskable) == [[2], [3], [4], [5], [6]]
    groups = [-1, -1, -1, 0, 0, -1, 1, -1]
    assert get_units(maskable, groups) == [[3, 4], [6]]
    assert get_units(maskable, [-1] * 8) == get_units(maskable)


@pytest.mark.parametrize(
    "strategy, expected", [("hard", [3, 4]), ("easy", [2, 6]), ("uniform", None), ("random", None)]
)
def test_the_student_s_confidence_decides_what_is_hard(strategy, expected):
    confidences = [0.0, 0.0, -0.1, -5.0, -3.0, -1.0, -0.2]
    units = [[2], [3], [4], [5], [6]]
    masked = choose_masked(units, 2, strategy, random.Random(0), confidences)
    assert len(masked) == 2
    assert expected in (None, masked)


def test_a_unit_counts_with_its_mean_and_may_exceed_the_share():
    # -2.5 on average against -2 and -3.
    units = [[2, 3], [4], [5]]
    confidences = [0, 0, -1.0, -4.0, -2.0, -3.0]
    assert choose_masked(units, 1, "hard", random.Random(0), confidences) == [5]
    assert choose_masked(units, 2, "hard", random.Random(0), confidences) == [2, 3, 5]
    assert choose_masked(units, 3, "hard", random.Random(0), confidences) == [2, 3, 5]


def test_uniform_masks_are_evenly_spaced():
    units = [[i] for i in range(20)]
    starts = set()
    for seed in range(20):
        masked = choose_masked(units, 4, "uniform", random.Random(seed))
        assert {b - a for a, b in itertools.pairwise(masked)} == {5}
        starts.add(masked[0])
    assert starts == {0, 1, 2, 3, 4}


def test_tokens_belong_to_the_span_that_they_touch():
    text = "SELECT singer.name FROM singer"
    offsets = [(0, 6), (6, 9), (9, 13), (13, 14), (14, 18), (18, 23), (23, 30), (0, 0)]
    spans = [[7, 13], [14, 18], [24, 30]]
    assert [text[a:b] for a, b in spans] == ["singer", "name", "singer"]
    assert get_mask_groups(offsets, spans) == [-1, 0, 0, -1, 1, -1, 2, -1]


def test_predictions_by_hand():
    #        special            special  no token
    probabilities = [0.5, 0.1, 0.2, 0.0, 0.1, 0.1]
    logits = torch.tensor([probabilities] * 5).log()
    special_ids = torch.tensor([0, 4])
    best = TokenPrediction(5, special_ids)
    assert best(logits, slice(0, 5)).tolist() == [2.0] * 5
    # A third for token 1, two thirds for token 2, nothing for the others.
    draws = torch.tensor([0.0, 0.33, 0.34, 0.99, 1 - 2**-53], dtype=torch.float64)
    sample = TokenPrediction(5, special_ids, draws)
    assert sample(logits, slice(0, 5)).tolist() == [1.0, 1.0, 2.0, 2.0, 2.0]
    assert sample(logits[:2], torch.tensor([4, 0])).tolist() == [2.0, 1.0]
    # The whole vocabulary of a chunk is not changed: other terms read it too.
    assert torch.equal(logits, torch.tensor([probabilities] * 5).log())


def test_evenly_spaced_units_are_all_different_however_large_the_offset():
    rng = random.Random(0)
    rng.random = lambda: 1 - 2**-53
    units = [[5], [6], [7], [8], [9]]
    assert choose_masked(units, 5, "uniform", rng) == [5, 6, 7, 8, 9]
    # The last of each half, the second of which is the longer one.
    assert choose_masked(units, 2, "uniform", rng) == [7, 9]


# --------------------------------------------------------------------------- properties


@given(UNITS, st.integers(1, 20), st.sampled_from(MASK_STRATEGIES), st.randoms())
def test_whole_units_are_masked_at_least_one_and_no_more_than_needed(units, num, strategy, rng):
    positions = [position for unit in units for position in unit]
    confidences = [rng.random() for _ in range(max(positions, default=0) + 1)]
    masked = choose_masked(units, num, strategy, rng, confidences)
    chosen = [unit for unit in units if set(unit) & set(masked)]
    assert sorted(masked) == masked == [position for unit in chosen for position in unit]
    assert bool(masked) == bool(units)
    if strategy != "uniform" and units:
        assert len(masked) >= min(num, len(positions))
        assert len(masked) < num + max(map(len, units))
    if all(len(unit) == 1 for unit in units):
        assert len(masked) == min(num, len(units))


def test_every_token_is_masked_as_often_as_any_other():
    units = [[i] for i in range(10)]
    for strategy in ("random", "uniform"):
        counts = [0] * 10
        for step in range(2000):
            for position in choose_masked(units, 2, strategy, get_random("mask", 0, step, TOKENS)):
                counts[position] += 1
        # 400 each are expected; five standard deviations are 90.
        assert max(abs(count - 400) for count in counts) < 90


def test_random_numbers_depend_on_every_argument_and_are_pinned():
    arguments = ("mask", 1, 2, [3, 4])
    first = get_random(*arguments).random()
    assert first == get_random(*arguments).random()
    # A run that is resumed with another version draws the same.
    assert first == pytest.approx(0.7126353764621925, abs=1e-15)
    for index, other in enumerate(["fill", 2, 1, [4, 3]]):
        changed = [*arguments[:index], other, *arguments[index + 1 :]]
        assert get_random(*changed).random() != first
    assert get_random("mask", 1, 2, [3]).random() != first
