"""Data collators of the tensor half. They know no SQL and import no TRL."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from sense_trl.errors import InputError

PAIR_WEIGHT = "pair_weight"
"""Name of the column and of the batch entry that holds one weight per preference pair."""


@dataclass
class DataCollatorForWeightedPreference:
    """Adds the pair weights to the batch that another preference collator builds.

    It holds the other collator instead of subclassing one: the batch format stays that collator's
    business (TRL's `DataCollatorForPreference`, or a user's own), and this module needs no TRL.
    The output is that collator's output, plus `pair_weight`, float32 `[B]` with B pairs, when the
    examples carry it. Examples without weights pass through untouched.

    Args:
        collator: builds the batch, e.g. TRL's `[2B, L]` layout, chosen rows first.

    Raises:
        InputError: some examples of one batch have a weight and others have none.

    Example:
        >>> collator = DataCollatorForWeightedPreference(lambda examples: {"num": len(examples)})
        >>> collator([{"pair_weight": 0.5}, {"pair_weight": 1.5}])
        {'num': 2, 'pair_weight': tensor([0.5000, 1.5000])}
        >>> collator([{}])
        {'num': 1}
    """

    collator: Callable[[list[dict[str, Any]]], dict[str, Any]]

    def __call__(self, examples: list[dict[str, Any]]) -> dict[str, Any]:
        batch = self.collator(examples)
        weights = [example.get(PAIR_WEIGHT) for example in examples]
        if all(weight is None for weight in weights):
            return batch
        if any(weight is None for weight in weights):
            raise InputError(
                f"`{PAIR_WEIGHT}` is missing in {weights.count(None)} of {len(weights)} examples "
                "of one batch, expected all or none. Give every pair a weight, 1.0 where there is "
                "no reason for another."
            )
        batch[PAIR_WEIGHT] = torch.tensor(weights, dtype=torch.float32)
        return batch
