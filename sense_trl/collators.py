"""Data collators of the tensor half. They know no SQL and import no TRL."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sense_trl.errors import InputError
from sense_trl.prefix_tree import PrefixTree

PAIR_WEIGHT = "pair_weight"
"""Name of the column and of the batch entry that holds one weight per preference pair."""

PAIR_MARGIN = "pair_margin"
"""Name of the column and of the batch entry that holds one target margin per preference pair."""

MASK_GROUPS = "mask_groups"
"""Name of the column and of the batch entry that says which item each token of an answer is part of
(a table, a column, a literal), -1 for none."""

LINKED_TEXTS = "linked_texts"
"""Name of the column and of the batch entry that holds texts a linker's head learns from."""

ANSWERS = "answers"
"""Name of the batch entry that holds the `Answers` of the batch."""

PREFIX_TREE = "prefix_tree"
"""Name of the batch entry that holds the `PrefixTree` of the batch."""

_TREE_ENTRIES = frozenset(
    {
        "input_ids",
        "attention_mask",
        "completion_mask",
        "labels",
        "ref_chosen_logps",
        "ref_rejected_logps",
        # TRL's trainers put it in, always False.
        "use_cache",
        PAIR_WEIGHT,
        PAIR_MARGIN,
        MASK_GROUPS,
        LINKED_TEXTS,
        PREFIX_TREE,
    }
)


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
                    f"batch; expected all or none. Give every pair a value, {neutral} where there "
                    "is no reason for another."
                )
            batch[name] = torch.tensor(values, dtype=torch.float32)
        return batch


@dataclass
class DataCollatorForLinkedTexts:
    """Adds the `linked_texts` of the examples to the batch as rows of which nothing is trained.

    They are its last rows. The texts themselves are in the batch, too, in the same order.

    Args:
        collator: builds a batch of `input_ids` and `labels`.

    Example:
        >>> def collate(rows):
        ...     return {"labels": [row["labels"] for row in rows]}
        >>> examples = [{"labels": [1], "linked_texts": [{"input_ids": [5, 6]}]}]
        >>> batch = DataCollatorForLinkedTexts(collate)(examples)
        >>> batch["labels"], len(batch["linked_texts"].texts)
        ([[1], [-100, -100]], 1)
    """

    collator: Callable[[list[dict[str, Any]]], dict[str, Any]]

    def __call__(self, examples: list[dict[str, Any]]) -> dict[str, Any]:
        texts = [text for example in examples for text in example.get(LINKED_TEXTS) or ()]
        own = [{k: v for k, v in row.items() if k != LINKED_TEXTS} for row in examples]
        if not texts:
            return self.collator(own)
        rows = [
            {"input_ids": text["input_ids"], "labels": [-100] * len(text["input_ids"])}
            for text in texts
        ]
        return {**self.collator([*own, *rows]), LINKED_TEXTS: LinkedTexts(texts)}


@dataclass(frozen=True)
class LinkedTexts:
    """Texts of a batch, which stay in host memory.

    Attributes:
        texts: as `sense_trl.steps.linking.write_linked_texts` makes them.
    """

    texts: list[dict[str, Any]]


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
        is_required: False leaves the tree out of a batch in which `find_tree_obstacle` finds
            something.
        pad_to_multiple_of: the tree's rows have one of its multiples as their length.

    Raises:
        InputError: a tree is required and the batch is laid out in another way, e.g. padded on the
            left; or a sequence exceeds `max_row_tokens`.

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
    is_required: bool = True
    pad_to_multiple_of: int = 1

    def __call__(self, examples: list[dict[str, Any]]) -> dict[str, Any]:
        batch = self.collator(examples)
        if self.is_required or find_tree_obstacle(batch) is None:
            batch[PREFIX_TREE] = get_prefix_tree(
                batch,
                max_row_tokens=self.max_row_tokens,
                pad_to_multiple_of=self.pad_to_multiple_of,
            )
        return batch


@dataclass(frozen=True)
class Answers:
    """Sequences of prompt and answer, as lists in host memory.

    Attributes:
        sequences: token ids.
        is_trained: per token, whether it belongs to the answer.
    """

    sequences: list[list[int]]
    is_trained: list[list[bool]]

    @property
    def lengths(self) -> list[int]:
        """Number of trained tokens of each; nothing predicts the first of a sequence."""
        return [sum(is_trained[1:]) for is_trained in self.is_trained]

    def get_prompt(self, row: int) -> list[int]:
        """The tokens before the first trained one that something predicts."""
        is_trained = self.is_trained[row]
        num_tokens = is_trained.index(True, 1) if True in is_trained[1:] else len(is_trained)
        return self.sequences[row][:num_tokens]


@dataclass
class DataCollatorForAnswers:
    """Adds the `Answers` of the batch that another collator builds, under `answers`.

    A trainer that rewrites answers reads them here, and not from the batch's tensors: a GPU would
    be waited for.

    Args:
        collator: builds the padded batch, as `DataCollatorForPrefixTree` describes it. One in which
            `find_tree_obstacle` finds something is left as it is.

    Example:
        >>> batch = {
        ...     "input_ids": torch.tensor([[1, 2, 3], [4, 5, 0]]),
        ...     "attention_mask": torch.tensor([[1, 1, 1], [1, 1, 0]]),
        ...     "labels": torch.tensor([[-100, -100, 3], [-100, 5, -100]]),
        ... }
        >>> DataCollatorForAnswers(lambda examples: batch)([])["answers"].sequences
        [[1, 2, 3], [4, 5]]
    """

    collator: Callable[[list[dict[str, Any]]], dict[str, Any]]

    def __call__(self, examples: list[dict[str, Any]]) -> dict[str, Any]:
        batch = self.collator(examples)
        if find_tree_obstacle(batch) is None:
            batch[ANSWERS] = get_answers(batch)
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


def find_tree_obstacle(batch: dict[str, Any]) -> str | None:
    """The reason why a model on a tree would not compute what it does on a padded batch, or None.

    Args:
        batch: of a collator; entries that are not about tokens, masks and labels reach the model,
            which may read anything out of them (`position_ids`, `token_type_ids`).
    """
    if others := sorted(batch.keys() - _TREE_ENTRIES):
        return f"`{others[0]}` tells the model more of every row than its tokens"
    return _find_layout_obstacle(batch)


def get_answers(batch: dict[str, Any]) -> Answers:
    """The token ids of a padded batch's rows without padding, and which of them are trained.

    Args:
        batch: as `DataCollatorForPrefixTree` describes it. Without `attention_mask`, a row ends
            with its last trained token: nothing that is trained depends on what comes later.

    Raises:
        InputError: the batch is padded on the left, has an `attention_mask` of more dimensions, or
            `labels` that are other tokens than those of `input_ids`.
    """
    answers: Answers | None = batch.get(ANSWERS)
    if answers is not None:
        return answers
    rows, masks = _get_rows(batch)
    return Answers([row.tolist() for row in rows], [mask.tolist() for mask in masks])


def get_prefix_tree(
    batch: dict[str, Any], *, max_row_tokens: int | None = None, pad_to_multiple_of: int = 1
) -> PrefixTree:
    """The tree of a padded batch, on the device of its tensors; see `DataCollatorForPrefixTree`."""
    tree = PrefixTree.from_sequences(
        *_get_rows(batch), max_row_tokens=max_row_tokens, pad_to_multiple_of=pad_to_multiple_of
    )
    device = batch["input_ids"].device
    return tree if device.type == "cpu" else tree.to(device)


def _get_rows(batch: dict[str, Any]) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Token ids of the rows without padding, and which of them are trained."""
    if obstacle := _find_layout_obstacle(batch):
        raise InputError(
            f"{obstacle}; expected `input_ids` with padding on the right, and labels that are -100 "
            "or the token at the same place. Set the collator's `padding_side` to 'right', or use "
            "TRL's collator."
        )
    is_trained = _get_is_trained(batch)
    if "attention_mask" in batch:
        lengths = batch["attention_mask"].bool().sum(1)
    else:
        positions = torch.arange(1, is_trained.shape[1] + 1, device=is_trained.device)
        lengths = (is_trained * positions).max(1).values.clamp(min=1)
    tokens, masks = (
        [row[:length] for row, length in zip(rows.numpy(force=True), lengths.tolist(), strict=True)]
        for rows in (batch["input_ids"], is_trained)
    )
    return tokens, masks


def _get_is_trained(batch: dict[str, Any]) -> Tensor:
    if "completion_mask" in batch:
        return batch["completion_mask"].bool()
    is_trained: Tensor = batch["labels"] != -100
    return is_trained


def _find_layout_obstacle(batch: dict[str, Any]) -> str | None:
    input_ids, mask = batch["input_ids"], batch.get("attention_mask")
    if mask is not None:
        if mask.shape != input_ids.shape:
            return f"`attention_mask` has the shape {list(mask.shape)}"
        is_token = mask.bool()
        if (is_token[:, 1:] > is_token[:, :-1]).any():
            return "`attention_mask` has padding before tokens"
        if not is_token[:, 0].all():
            return "`attention_mask` has a row without tokens"
    if "completion_mask" not in batch:
        is_trained = _get_is_trained(batch)
        # Nothing predicts the first token.
        is_other = (is_trained & (batch["labels"] != input_ids))[:, 1:]
        if is_other.any():
            return f"`labels` differ from `input_ids` at {int(is_other.sum())} trained tokens"
    return None
