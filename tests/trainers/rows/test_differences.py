"""Answers from the first token in which a pair differs."""

from __future__ import annotations

import pytest
import torch
from datasets import Dataset, IterableDataset
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_models import PAIRS, assert_same_weights, get_history

from sense_trl.errors import InputError
from sense_trl.losses import cdpo_loss, dpop_loss
from sense_trl.trainers.rows.differences import count_shared_tokens, keep_differences

# TRL 1.16 and peft 0.21 use names of this option that transformers 5.23 deprecates.
pytestmark = pytest.mark.filterwarnings("ignore:.*gradient_checkpointing:FutureWarning")

ROW = {"prompt_ids": [1, 4], "chosen_ids": [5, 6, 7, 2], "rejected_ids": [5, 6, 8, 9, 7, 2]}
COLUMNS = ["prompt_ids", "chosen_ids", "rejected_ids"]


@pytest.mark.parametrize(
    ("is_prompt", "kept", "expected"),
    [
        (False, None, ([1, 4], [5, 6, 7, 2], [5, 6, 8, 9, 7, 2])),
        (False, 1, ([1, 4], [5, 6, 7, 2], [5, 6, 8])),
        (False, 2, ([1, 4], [5, 6, 7, 2], [5, 6, 8, 9])),
        (False, 99, ([1, 4], [5, 6, 7, 2], [5, 6, 8, 9, 7, 2])),
        (True, None, ([1, 4, 5, 6], [7, 2], [8, 9, 7, 2])),
        (True, 1, ([1, 4, 5, 6], [7, 2], [8])),
    ],
)
def test_answers_begin_and_end_where_they_differ(is_prompt, kept, expected):
    options = {"shared_prefix_as_prompt": is_prompt, "truncate_rejected_after": kept}
    (row,) = keep_differences(Dataset.from_list([ROW]), **options)
    assert tuple(row[column] for column in COLUMNS) == expected
    stream = IterableDataset.from_generator(lambda: iter([ROW]))
    assert list(keep_differences(stream, **options)) == [row]


ids = st.lists(st.integers(0, 2), min_size=1, max_size=6)


@given(ids, ids)
@settings(max_examples=60)
def test_no_answer_loses_a_token_that_differs(chosen, rejected):
    shared = count_shared_tokens(chosen, rejected)
    assert chosen[:shared] == rejected[:shared]
    assert 0 <= shared < min(len(chosen), len(rejected))
    if shared < min(len(chosen), len(rejected)) - 1:
        assert chosen[shared] != rejected[shared]
    # Once they begin there, they share nothing more, but for one that is the other's beginning.
    assert count_shared_tokens(chosen[shared:], rejected[shared:]) == 0


def test_shared_tokens_have_no_gradient_in_a_margin_and_lose_likelihood_in_an_average():
    # One shared token; behind it three of the chosen and one of the rejected answer.
    shared, chosen, rejected = (
        torch.tensor(values, requires_grad=True) for values in ([-1.0], [-1.0, -2, -1], [-1.0])
    )
    sums = [(shared.sum() + own.sum())[None] for own in (chosen, rejected)]
    references = torch.tensor([-6.0]), torch.tensor([-3.0])

    def get_gradient(loss):
        return torch.autograd.grad(loss.sum(), shared, retain_graph=True)[0].item()

    assert get_gradient(cdpo_loss(*sums, *references, beta=0.1, label_smoothing=0.1)) == 0.0
    # Below its reference the chosen answer as a whole is pulled up: margin 0 - 0.5 * 5 * 0.
    low = torch.tensor([-4.0]), references[1]
    penalised = dpop_loss(*sums, *low, beta=0.1, dpop_lambda=5.0)
    # x = 0.1 * ((-1 - 1) - 5 * 1) = -0.7; d/ds = -sigmoid(0.7) * 0.1 * 5.
    assert get_gradient(penalised) == pytest.approx(-0.5 * torch.sigmoid(torch.tensor(0.7)))
    # IPO, beta 0.1: averages 1/4 and 1/2; (1/4 - 1/2 - 5)^2 with d/ds = 2 * -5.25 * (1/4 - 1/2).
    means = (sums[0] - references[0]) / 4, (sums[1] - references[1]) / 2
    ipo = (means[0] - means[1] - 1 / (2 * 0.1)) ** 2
    assert get_gradient(ipo) == pytest.approx(2.625)


def _by_hand(train, *, is_prompt, kept):
    rows = []
    for row in train(["ipo"], start=False).train_dataset.select_columns(COLUMNS):
        shared = next(
            i
            for i, (a, b) in enumerate(zip(row["chosen_ids"], row["rejected_ids"], strict=False))
            if a != b
        )
        assert shared > 0
        moved = shared if is_prompt else 0
        rows.append(
            {
                "prompt_ids": row["prompt_ids"] + row["chosen_ids"][:moved],
                "chosen_ids": row["chosen_ids"][moved:],
                "rejected_ids": row["rejected_ids"][
                    moved : None if kept is None else shared + kept
                ],
            }
        )
    return rows


def test_training_is_that_on_rows_made_by_hand(train):
    loss_type, options = ["ipo", "sft"], {"max_steps": 2, "learning_rate": 1e-2}
    rows = _by_hand(train, is_prompt=True, kept=1)
    trainer = train(loss_type, shared_prefix_as_prompt=True, truncate_rejected_after=1, **options)
    assert list(trainer.train_dataset.select_columns(COLUMNS)) == rows
    assert_same_weights(trainer, train(loss_type, pairs=rows, **options))
    whole = train(loss_type, **options)
    assert get_history(whole, "loss")[1:] != get_history(trainer, "loss")[1:]


def test_where_an_answer_begins_changes_no_margin(train):
    options = {"max_steps": 2, "learning_rate": 1e-2}
    rows = _by_hand(train, is_prompt=True, kept=None)
    whole, differing = train(["cdpo"], **options), train(["cdpo"], pairs=rows, **options)
    assert_same_weights(whole, differing, rtol=1e-3, atol=1e-5)
    for key in ("loss", "rewards/margins"):
        torch.testing.assert_close(
            get_history(whole, key), get_history(differing, key), rtol=1e-4, atol=1e-5
        )
    with pytest.raises(InputError, match="in which tokens that both answers begin with cancel"):
        train(["cdpo"], shared_prefix_as_prompt=True)


def test_several_rejected_answers_and_an_evaluation_are_cut_too(train):
    examples = [{**p, "rejected": [p["rejected"], "SELECT 1"]} for p in PAIRS[:4]]
    trainer = train(
        ["dpop", "sft"],
        pairs=examples,
        eval_pairs=examples[:1],
        shared_prefix_as_prompt=True,
        truncate_rejected_after=2,
        precompute_ref_log_probs=True,
        max_steps=2,
    )
    for dataset in (trainer.train_dataset, trainer.eval_dataset):
        assert {len(row["rejected_ids"]) for row in dataset} <= {1, 2}
    before = list(trainer.eval_dataset["prompt_ids"])
    trainer.evaluate()
    trainer.evaluate(trainer.eval_dataset)
    assert list(trainer.eval_dataset["prompt_ids"]) == before
