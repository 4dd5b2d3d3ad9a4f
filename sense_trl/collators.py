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

PAIR_MARGIN = "pair_margin"
"""Name of the column and of the batch entry that holds one target margin per preference pair."""

MASK_GROUPS = "mask_groups"
"""Name of the column and of the batch entry that says which item each token of an answer is part of
(a table, a column, a literal), -1 for none."""

PREFIX_TREE = "prefix_tree"
"""Name of the batch entry that holds the `PrefixTree` of the batch."""


@dataclass
class DataCollatorForWeightedPreference:
    """Adds weights and target margins of pairs to the batch that another collator builds.

    It holds the other collator instead of subclassing one: the batch format stays that collator's
    business (TRL's `DataCollatorForPreference`, or a user's own), and this module needs no TRL.
    The output is that collator's output, plus `pair_weight` and `pair_margin`, float32 `[B]` with B
    pairs, when the examples carry them. Examples without either pass through untouched.

    Args:
        collator: builds the batch, e.g. TRL's `[2B, L]` layout, chosen rows first.

    Raises:
        InputError: some examples of one batch have a weight or a margin and others have none.

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
        for name, neutral in ((PAIR_WEIGHT, 1.0), (PAIR_MARGIN, 0.0)):
            values = [example.get(name) for example in examples]
            if all(value is None for value in values):
                continue
            if any(value is None for value in values):
                raise InputError(
                    f"`{name}` is missing in {values.count(None)} of {len(values)} examples of one "
                    f"batch, expected all or none. Give every pair a value, {neutral} where there "
                    "is no reason for another."
                )
            batch[name] = torch.tensor(values, dtype=torch.float32)
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


@dataclass
class DataCollatorForMaskGroups:
    """Adds the `mask_groups` of the examples to the batch that another collator builds.

    The output is that collator's output, plus `mask_groups`, int64 `[N, L]` and -1 at padding on
    the right, when the examples have them.

    Args:
        collator: builds a padded batch with `input_ids` `[N, L]`.

    Example:
        >>> collator = DataCollatorForMaskGroups(lambda examples: {"input_ids": torch.ones(2, 3)})
        >>> collator([{"mask_groups": [-1, 0]}, {"mask_groups": [-1, 0, 0]}])["mask_groups"]
        tensor([[-1,  0, -1],
                [-1,  0,  0]])
    """

    collator: Callable[[list[dict[str, Any]]], dict[str, Any]]

    def __call__(self, examples: list[dict[str, Any]]) -> dict[str, Any]:
        batch = self.collator(examples)
        if MASK_GROUPS in examples[0]:
            groups = torch.full(batch["input_ids"].shape, -1)
            for row, example in zip(groups, examples, strict=True):
                row[: len(example[MASK_GROUPS])] = torch.tensor(example[MASK_GROUPS])
            batch[MASK_GROUPS] = groups
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
