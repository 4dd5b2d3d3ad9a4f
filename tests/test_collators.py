from __future__ import annotations

import re
from dataclasses import fields

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from trl.trainer.dpo_trainer import DataCollatorForPreference
from trl.trainer.sft_trainer import DataCollatorForLanguageModeling

from sense_trl.collators import (
    DataCollatorForMaskGroups,
    DataCollatorForPrefixTree,
    DataCollatorForWeightedPreference,
    find_tree_obstacle,
    get_answers,
    get_prefix_tree,
)
from sense_trl.errors import InputError
from sense_trl.prefix_tree import PrefixTree


def collate_ids(examples):
    return {"ids": torch.tensor([example["id"] for example in examples])}


def test_adds_the_weights_in_order_and_keeps_the_batch():
    collator = DataCollatorForWeightedPreference(collate_ids)
    batch = collator([{"id": 7, "pair_weight": 0.5}, {"id": 8, "pair_weight": 1.5}])
    assert batch["ids"].tolist() == [7, 8]
    assert batch["pair_weight"].tolist() == [0.5, 1.5]
    assert "pair_margin" not in batch
    assert batch["pair_weight"].dtype == torch.float32


def test_without_weights_the_batch_is_the_other_collator_s():
    batch = DataCollatorForWeightedPreference(collate_ids)([{"id": 7}, {"id": 8}])
    assert list(batch) == ["ids"]


def test_a_weight_of_zero_is_a_weight():
    batch = DataCollatorForWeightedPreference(collate_ids)([{"id": 7, "pair_weight": 0.0}])
    assert batch["pair_weight"].tolist() == [0.0]


def test_a_batch_with_some_weights_is_refused():
    collator = DataCollatorForWeightedPreference(collate_ids)
    with pytest.raises(InputError, match="missing in 1 of 2"):
        collator([{"id": 7, "pair_weight": 0.5}, {"id": 8}])


def test_groups_of_tokens_are_padded_like_their_tokens():
    examples = [
        {"input_ids": [5, 6], "labels": [5, 6], "mask_groups": [-1, 0]},
        {"input_ids": [5, 6, 7], "labels": [5, 6, 7], "mask_groups": [-1, 1, 0]},
    ]
    collator = DataCollatorForLanguageModeling(pad_token_id=0, pad_to_multiple_of=4)
    batch = DataCollatorForMaskGroups(collator)(examples)
    assert batch["mask_groups"].tolist() == [[-1, 0, -1, -1], [-1, 1, 0, -1]]
    without = [{k: v for k, v in e.items() if k != "mask_groups"} for e in examples]
    assert "mask_groups" not in DataCollatorForMaskGroups(collator)(without)


# ------------------------------------------------------------------------------ prefix trees

TOKENS = st.lists(st.integers(1, 3), min_size=1, max_size=4)
PAIRS = st.lists(
    st.fixed_dictionaries({"prompt_ids": TOKENS, "chosen_ids": TOKENS, "rejected_ids": TOKENS}),
    min_size=1,
    max_size=4,
)


def assert_same_tree(found, expected):
    for name in (f.name for f in fields(PrefixTree) if f.compare):
        value = getattr(expected, name)
        same = getattr(found, name) == value
        assert same if isinstance(value, bool) else same.all(), name


@given(PAIRS)
def test_the_tree_of_a_preference_batch_holds_its_rows_and_trains_the_answers(examples):
    collator = DataCollatorForPreference(pad_token_id=0)
    batch = DataCollatorForPrefixTree(collator)(examples)
    for name, tensor in collator(examples).items():
        assert torch.equal(batch[name], tensor)
    rows = [(e["prompt_ids"], e[side]) for side in ("chosen_ids", "rejected_ids") for e in examples]
    expected = PrefixTree.from_sequences(
        [prompt + answer for prompt, answer in rows],
        [[0] * len(prompt) + [1] * len(answer) for prompt, answer in rows],
    )
    assert_same_tree(batch["prefix_tree"], expected)


@given(st.lists(st.tuples(TOKENS, TOKENS), min_size=1, max_size=4))
def test_the_tree_of_a_prompt_completion_batch_trains_what_its_labels_say(rows):
    examples = [{"input_ids": p + c, "labels": [-100] * len(p) + c} for p, c in rows]
    collator = DataCollatorForPrefixTree(
        DataCollatorForLanguageModeling(pad_token_id=1, pad_to_multiple_of=8)
    )
    batch = collator(examples)
    expected = PrefixTree.from_sequences(
        [p + c for p, c in rows], [[0] * len(p) + [1] * len(c) for p, c in rows]
    )
    assert batch["input_ids"].shape[1] == 8
    assert_same_tree(batch["prefix_tree"], expected)


def test_the_bound_of_the_rows_is_passed_on():
    examples = [{"input_ids": [1, 2, 3, i]} for i in range(4)]
    collator = DataCollatorForLanguageModeling(pad_token_id=0)
    assert DataCollatorForPrefixTree(collator)(examples)["prefix_tree"].input_ids.shape == (1, 7)
    tree = DataCollatorForPrefixTree(collator, max_row_tokens=5)(examples)["prefix_tree"]
    assert tree.input_ids.shape == (2, 5)


def test_padding_on_the_left_is_refused():
    batch = {"input_ids": torch.ones(1, 3), "attention_mask": torch.tensor([[0, 1, 1]])}
    with pytest.raises(InputError, match="`attention_mask` has padding before tokens"):
        get_prefix_tree(batch)


def make_batch(**changes):
    batch = {
        "input_ids": torch.tensor([[5, 6, 7, 0], [5, 6, 8, 9]]),
        "attention_mask": torch.tensor([[1, 1, 1, 0], [1, 1, 1, 1]]),
        "labels": torch.tensor([[-100, -100, 7, -100], [-100, -100, 8, 9]]),
    }
    return {name: value for name, value in {**batch, **changes}.items() if value is not None}


@pytest.mark.parametrize(
    "changes, reason",
    [
        ({"labels": torch.tensor([[-100, -100, 7, -100], [-100, -100, 8, 3]])}, "at 1 trained"),
        # Shifted by the collator.
        ({"labels": torch.tensor([[-100, 7, -100, -100], [-100, 8, 9, -100]])}, "at 3 trained"),
        ({"attention_mask": torch.tensor([[0, 1, 1, 1], [1, 1, 1, 1]])}, "padding before tokens"),
        ({"attention_mask": torch.tensor([[1, 0, 1, 1], [1, 1, 1, 1]])}, "padding before tokens"),
        ({"attention_mask": torch.zeros(2, 4)}, "a row without tokens"),
        ({"attention_mask": torch.ones(2, 1, 4, 4)}, r"the shape \[2, 1, 4, 4\]"),
    ],
    ids=["labels", "shifted", "left", "hole", "empty", "4d"],
)
def test_a_batch_in_another_layout_gets_no_tree(changes, reason):
    batch = make_batch(**changes)
    assert re.search(reason, find_tree_obstacle(batch))
    with pytest.raises(InputError, match=reason):
        DataCollatorForPrefixTree(lambda examples: dict(batch))([])
    collator = DataCollatorForPrefixTree(lambda examples: dict(batch), is_required=False)
    assert collator([]).keys() == batch.keys()


def test_entries_that_the_model_reads_for_every_row_are_found():
    assert find_tree_obstacle(make_batch()) is None
    batch = make_batch(position_ids=torch.arange(4).repeat(2, 1))
    assert find_tree_obstacle(batch) == (
        "`position_ids` tells the model more of every row than its tokens"
    )


def test_the_first_label_is_never_trained_and_may_be_anything():
    labels = torch.tensor([[1, -100, 7, -100], [2, -100, 8, 9]])
    assert find_tree_obstacle(make_batch(labels=labels)) is None


def test_without_a_mask_a_row_ends_with_what_is_trained():
    answers = get_answers(make_batch(attention_mask=None))
    assert answers.sequences == [[5, 6, 7], [5, 6, 8, 9]]
    assert answers.is_trained == [[False, False, True], [False, False, True, True]]
    untrained = make_batch(attention_mask=None, labels=torch.full((2, 4), -100))
    assert get_answers(untrained).sequences == [[5], [5]]
