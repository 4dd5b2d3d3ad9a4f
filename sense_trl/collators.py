"""Data collators of the tensor half. They know no SQL and import no TRL."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from sense_trl.errors import InputError
from sense_trl.prefix_tree import PrefixTree

PAIR_WEIGHT = "pair_weight"
"""Name of the column and of the batch entry that holds one weight per preference pair."""

PREFIX_TREE = "prefix_tree"
"""Name of the batch entry that holds the `PrefixTree` of the batch."""


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


@dataclass
class DataCollatorForPrefixTree:
    """Adds the `PrefixTree` of the batch that another collator builds, under `prefix_tree`.

    The other collator's batch stays as it is: a padded batch of token ids is small, and losses and
    metrics are computed on its layout. It holds `input_ids` and `attention_mask` `[N, L]`, padded
    on the right, and says which tokens are trained by `completion_mask` (preference data) or by
    `labels` that are -100 elsewhere (prompt-completion and language-modelling data).

    Args:
        collator: builds the padded batch, e.g. TRL's.
        max_row_tokens: longest row of the tree; None for no limit.

    Raises:
        InputError: the batch is padded on the left, or a sequence exceeds `max_row_tokens`.

    Example:
        >>> batch = {
        ...     "input_ids": torch.tensor([[1, 2, 3], [1, 2, 4]]),
        ...     "attention_mask": torch.ones(2, 3),
        ...     "labels": torch.tensor([[-100, -100, 3], [-100, -100, 4]]),
        ... }
        >>> DataCollatorForPrefixTree(lambda examples: batch)([])["prefix_tree"].input_ids
        tensor([[1, 2, 3, 4]])
    """

    collator: Callable[[list[dict[str, Any]]], dict[str, Any]]
    max_row_tokens: int | None = None

    def __call__(self, examples: list[dict[str, Any]]) -> dict[str, Any]:
        batch = self.collator(examples)
        batch[PREFIX_TREE] = get_prefix_tree(batch, max_row_tokens=self.max_row_tokens)
        return batch


def get_prefix_tree(batch: dict[str, Any], *, max_row_tokens: int | None = None) -> PrefixTree:
    """The tree of a padded batch, on the device of its tensors; see `DataCollatorForPrefixTree`."""
    sequences, loss_masks = get_sequences(batch)
    tree = PrefixTree.from_sequences(sequences, loss_masks, max_row_tokens=max_row_tokens)
    return tree.to(batch["input_ids"].device)


def get_sequences(batch: dict[str, Any]) -> tuple[list[list[int]], list[list[bool]]]:
    """The token ids of a padded batch's rows without padding, and which of them are trained.

    Args:
        batch: as `DataCollatorForPrefixTree` describes it.

    Raises:
        InputError: the batch is padded on the left.
    """
    is_token = batch["attention_mask"].bool()
    if (is_token[:, 1:] > is_token[:, :-1]).any():
        raise InputError(
            "`attention_mask` has padding before tokens, expected padding on the right. Set the "
            "collator's `padding_side` to 'right'."
        )
    is_trained = (
        batch["completion_mask"].bool() if "completion_mask" in batch else batch["labels"] != -100
    )
    lengths = is_token.sum(1).tolist()
    sequences, loss_masks = (
        [row[:length] for row, length in zip(rows.tolist(), lengths, strict=True)]
        for rows in (batch["input_ids"], is_trained)
    )
    return sequences, loss_masks
