from __future__ import annotations

import pytest
import torch

from sense_trl.collators import DataCollatorForWeightedPreference
from sense_trl.errors import InputError


def collate_ids(examples):
    return {"ids": torch.tensor([example["id"] for example in examples])}


def test_adds_the_weights_in_order_and_keeps_the_batch():
    collator = DataCollatorForWeightedPreference(collate_ids)
    batch = collator([{"id": 7, "pair_weight": 0.5}, {"id": 8, "pair_weight": 1.5}])
    assert batch["ids"].tolist() == [7, 8]
    assert batch["pair_weight"].tolist() == [0.5, 1.5]
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
