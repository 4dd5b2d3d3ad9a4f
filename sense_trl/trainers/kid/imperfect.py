"""Imperfect copies of answers: which tokens are masked, and what the student puts in their place.

The first three stages of KID (Zhong et al., Learning from Imperfect Data: Towards Efficient
Knowledge Distillation of Autoregressive Language Models for Text-to-SQL, arXiv 2410.11371): mask,
predict, rewrite. Whatever is random is a function of a seed, the step and the example's own tokens.
So an example gets the same copy whichever batch, micro-batch or process it is in, and a run that is
resumed draws what it would have drawn without the interruption.
"""

from __future__ import annotations

import array
import hashlib
import random
from collections.abc import Sequence, Set

import torch
from torch import Tensor

MASK_STRATEGIES = ("random", "uniform", "hard", "easy")
"""Which tokens are masked: see `choose_masked`."""

FILLS = ("argmax", "sample", "mask")
"""What stands in place of a masked token: the student's prediction, or the mask itself."""

Unit = list[int]
"""Positions in a sequence that are masked together."""


def get_random(purpose: str, seed: int, step: int, tokens: Sequence[int]) -> random.Random:
    """A generator of random numbers that depends on its arguments and nothing else.

    Args:
        purpose: keeps draws for different purposes independent.
        seed: of the run.
        step: of the optimiser.
        tokens: of the example, or of the part of it that the draw is for.
    """
    numbers = array.array("q", [seed, step, *tokens]).tobytes()
    digest = hashlib.blake2b(numbers, digest_size=8, person=purpose.encode()).digest()
    return random.Random(int.from_bytes(digest, "big"))


def get_answer(
    tokens: Sequence[int], is_trained: Sequence[bool], end_ids: Set[int] = frozenset()
) -> list[int]:
    """Positions of the answer's tokens, in order.

    The prompt and padding are not trained. What a chat template writes from the end of the answer
    on is trained, but no part of the answer. In a conversation every message that is trained is an
    answer.

    Args:
        tokens: of the sequence.
        is_trained: per token.
        end_ids: tokens at which an answer ends, without them.

    Example:
        >>> get_answer([5, 6, 7, 2, 9, 8], [False, True, True, True, True, False], {2})
        [1, 2]
    """
    positions = []
    ended = False
    for position, (token, trained) in enumerate(zip(tokens, is_trained, strict=True)):
        ended = trained and (ended or token in end_ids)
        if trained and not ended:
            positions.append(position)
    return positions


def get_maskable(
    tokens: Sequence[int],
    is_trained: Sequence[bool],
    special_ids: Set[int],
    end_ids: Set[int] = frozenset(),
) -> list[int]:
    """Positions of the answer's tokens that may be masked, in order.

    Special tokens are no part of the query. Nothing predicts the first token of a sequence.
    """
    return [
        position
        for position in get_answer(tokens, is_trained, end_ids)
        if position > 0 and tokens[position] not in special_ids
    ]


def get_units(maskable: Sequence[int], groups: Sequence[int] | None = None) -> list[Unit]:
    """Units that are masked as a whole, in order: every token, or every group of them.

    Args:
        maskable: positions.
        groups: group of each token of the sequence, -1 for none (see `get_mask_groups`). Tokens
            without a group are no unit, unless there is no group at all.

    Example:
        >>> get_units([3, 4, 5, 6], groups=[-1, -1, -1, 0, 0, -1, 1])
        [[3, 4], [6]]
    """
    units: dict[int, Unit] = {}
    for position in maskable if groups is not None else ():
        if groups is not None and groups[position] >= 0:
            units.setdefault(groups[position], []).append(position)
    return list(units.values()) or [[position] for position in maskable]


def choose_masked(
    units: Sequence[Unit],
    num_masked: int,
    strategy: str,
    rng: random.Random,
    confidences: Sequence[float] | None = None,
) -> list[int]:
    """Positions that are masked, in order.

    Args:
        units: see `get_units`; none gives none.
        num_masked: how many tokens to mask; units are added until there are as many.
        strategy: `random`: any; `uniform`: evenly spaced, the first one at random; `hard` and
            `easy`: those of which the student is least and most sure.
        confidences: log-probability of every token of the sequence; for `hard` and `easy`, where a
            unit counts with its mean.

    Example:
        >>> units = [[4], [5], [6], [7]]
        >>> choose_masked(units, 2, "hard", random.Random(0), [0, 0, 0, 0, -1, -3, -2, -4])
        [5, 7]
    """
    if strategy == "uniform":
        num_tokens = sum(len(unit) for unit in units)
        num_units = min(len(units), max(1, round(num_masked * len(units) / max(num_tokens, 1))))
        # In whole numbers: a sum that is rounded up would mask one unit twice, and another never.
        offset = min(int(rng.random() * len(units)), len(units) - 1)
        chosen = [units[(k * len(units) + offset) // num_units] for k in range(num_units)]
        return sorted(position for unit in chosen for position in unit)
    if strategy == "random":
        order = rng.sample(units, len(units))
    else:
        assert confidences is not None, f"{strategy!r} goes by the student's confidence"

        def get_confidence(unit: Unit) -> float:
            return sum(confidences[position] for position in unit) / len(unit)

        order = sorted(units, key=get_confidence, reverse=strategy == "easy")
    masked: list[int] = []
    for unit in order:
        if len(masked) >= num_masked:
            break
        masked += unit
    return sorted(masked)


def get_mask_groups(
    offsets: Sequence[tuple[int, int]], spans: Sequence[Sequence[int]]
) -> list[int]:
    """The span that each token belongs to, -1 for none.

    A token belongs to the first span with which it has a character in common: a blank before a
    name, which many tokenizers make part of the name's token, does not matter.

    Args:
        offsets: `[start, end)` of each token in the text; empty for added special tokens.
        spans: `[start, end)` of the items in the same text.

    Example:
        >>> get_mask_groups([(0, 6), (6, 9), (9, 11), (11, 16)], [[7, 11]])
        [-1, 0, 0, -1]
    """
    return [
        next(
            (
                index
                for index, (first, last) in enumerate(spans)
                if max(start, first) < min(end, last)
            ),
            -1,
        )
        for start, end in offsets
    ]


class TokenPrediction:
    """A term of the logits (`LogitTerm`) whose value is the token that the student puts there.

    Special tokens are never predicted, since a query that ends in its middle is no imperfect query,
    and neither are rows of the head beyond the tokenizer's tokens, which another model may not
    have; both by our choice. Values are token ids as float32, exact below 2 ** 24.

    Args:
        num_tokens: one more than the largest id that the tokenizer gives.
        special_ids: `[S]`, the special tokens.
        draws: `[M]`, numbers in [0, 1), one per trained node: what makes a sample of the student's
            distribution. None for its likeliest token.
    """

    def __init__(self, num_tokens: int, special_ids: Tensor, draws: Tensor | None = None) -> None:
        self._num_tokens = num_tokens
        self._special_ids = special_ids
        self._draws = draws

    def __call__(self, logits: Tensor, rows: slice | Tensor) -> Tensor:
        special_ids = self._special_ids.to(logits.device, non_blocking=True)
        logits = logits[:, : self._num_tokens].index_fill(1, special_ids, -torch.inf)
        if self._draws is None:
            return logits.argmax(-1).float()
        cumulative = logits.double().softmax(-1).cumsum(-1)
        draws = self._draws[rows].to(cumulative, non_blocking=True)
        chosen = torch.searchsorted(cumulative, draws[:, None] * cumulative[:, -1:], right=True)
        return chosen[:, 0].clamp(max=logits.shape[1] - 1).float()
