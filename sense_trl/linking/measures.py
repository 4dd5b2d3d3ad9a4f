"""Measures of scores for tables and columns against what gold uses."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from typing import TypeVar

from sense_trl.errors import InputError

Item = TypeVar("Item")


def average_precision(scores: Iterable[float], labels: Iterable[bool]) -> float:
    """Area under the precision-recall curve, in [0, 1]: the mean precision at each positive.

    Positives that tie with negatives stand behind none and before none of them: those with the
    same score are one step of the curve, so that no order of equal scores is better than another.

    Args:
        scores: one per item.
        labels: whether the item is a positive; at least one is.

    Raises:
        InputError: the lengths differ, or nothing is a positive.

    Example:
        >>> average_precision([0.9, 0.8, 0.7, 0.1], [True, False, True, False])
        0.8333333333333333
    """
    pairs = sorted(zip(scores, labels, strict=True), key=lambda pair: -pair[0])
    num_positive = sum(label for _, label in pairs)
    if not num_positive:
        raise InputError("`labels` holds no positive; its precision-recall curve is undefined.")
    total, hits, start = 0.0, 0, 0
    while start < len(pairs):
        end = start
        while end < len(pairs) and pairs[end][0] == pairs[start][0]:
            end += 1
        found = sum(label for _, label in pairs[start:end])
        hits += found
        total += found * hits / end
        start = end
    return total / num_positive


def recall_at(k: int, scores: Mapping[Item, float], wanted: Collection[Item]) -> float:
    """Share of what is wanted among the `k` items of the highest scores.

    Args:
        k: >= 1.
        scores: by item; what has none is not found. Of equal ones the first count.
        wanted: at least one item.

    Raises:
        InputError: `k` is below 1 or nothing is wanted.

    Example:
        >>> recall_at(2, {"a": 0.9, "b": 0.1, "c": 0.8}, {"a", "b"})
        0.5
    """
    if k < 1:
        raise InputError(f"`k` is {k}; expected at least 1.")
    if not wanted:
        raise InputError("`wanted` is empty; recall of nothing is undefined.")
    best = sorted(scores, key=lambda item: -scores[item])[:k]
    return len(set(best) & set(wanted)) / len(set(wanted))
