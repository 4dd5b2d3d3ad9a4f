"""Soft-F1: partial credit for a result that is nearly gold's, cell by cell.

Two of them, both per question and in [0, 1]; a run's score is the mean over its questions, where a
query that does not run counts 0:

* `bird_soft_f1` gives what BIRD's mini-dev script gives, whose rows are paired by their position;
* `soft_f1` pairs rows by their content, so that it does not depend on the order of rows.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence
from decimal import Decimal
from typing import Final, TypeAlias

from sense_trl.verification.comparison import hashable_rows
from sense_trl.verification.values import CanonicalTables

Row: TypeAlias = tuple[object, ...]
# A value of a row, and how often it has occurred there before.
_Cell: TypeAlias = tuple[object, int]
_Cells: TypeAlias = frozenset[_Cell]

# Pairs of differing rows up to which the best pairing is searched for; scores depend on it.
_MAX_EXACT_PAIRS: Final = 250_000


def bird_soft_f1(predicted: Sequence[Row], gold: Sequence[Row]) -> float:
    """Soft-F1 as BIRD's mini-dev computes it (`evaluation_f1.py`), to the last bit.

    Repeated rows are dropped, then row i of the prediction meets row i of gold. Values of the
    prediction that occur anywhere in gold's row are matched, its others are false positives, and
    gold's values that the prediction's row lacks are false negatives; each count is divided by
    the width of gold's row. A row without a partner counts 1. Two empty results score 1.

    Two equal rows in the other order can score 0, a value repeated within a row is matched every
    time (so that a precision of 1 does not mean equal rows), and swapping prediction and gold can
    change the score. `soft_f1` has none of this.

    Args:
        predicted: rows of the prediction, as the engine gave them.
        gold: rows of gold.

    Example:
        >>> bird_soft_f1([("Rex", 3)], [("Rex", 4)])
        0.5
        >>> bird_soft_f1([("Tom",), ("Rex",)], [("Rex",), ("Tom",)])
        0.0
    """
    if not predicted and not gold:
        return 1.0
    predicted, gold = (list(dict.fromkeys(hashable_rows(rows))) for rows in (predicted, gold))
    matched, predicted_only, gold_only = [], [], []
    for row, gold_row in zip(predicted, gold, strict=False):
        num_matched = sum(value in gold_row for value in row)
        num_missed = sum(value not in row for value in gold_row)
        matched.append(num_matched / len(gold_row))
        predicted_only.append((len(row) - num_matched) / len(gold_row))
        gold_only.append(num_missed / len(gold_row))
    # One by one, because a float sum depends on it.
    predicted_only += [1.0] * (len(predicted) - len(gold))
    gold_only += [1.0] * (len(gold) - len(predicted))
    tp, fp, fn = sum(matched), sum(predicted_only), sum(gold_only)
    if tp == 0:
        return 0.0
    precision, recall = tp / (tp + fp), tp / (tp + fn)
    return 2 * precision * recall / (precision + recall)


def soft_f1(predicted: Sequence[Row], gold: Sequence[Row]) -> float:
    """Share of cells that prediction and gold have in common, rows paired as well as possible.

    Every row of the prediction is paired with at most one row of gold. A pair has as many cells
    in common as values, each counted as often as both rows hold it, in whatever columns. Of all
    pairings the one with the most cells in common counts, and the score is twice that number
    divided by the number of cells of both results: the harmonic mean of precision and recall.

    It does not depend on the order of rows, is the same when prediction and gold are swapped, and
    is 1 exactly where both hold the same rows, each as often, but for the order of values within
    a row: whatever `results_match` calls correct under `strict` scores 1, with equal values
    defined as there, except that numbers which many others between them make close count as
    equal. Two empty results score 1 as well. The order that gold asks for does not count.

    The best pairing is found in polynomial time. Rows that both results hold are paired first,
    which loses nothing. If more than 250,000 pairs of others remain (500 by 500 rows), rows that
    share the rarest value are paired first instead: the score is then a lower bound, and as
    independent of order and swapping.

    Args:
        predicted: rows of the prediction.
        gold: rows of gold.

    Example:
        >>> soft_f1([("Tom",), ("Rex",)], [("Rex",), ("Tom",)])
        1.0
        >>> soft_f1([("Rex", 3), ("Rex", 3)], [("Rex", 4)])  # 2 * 1 cell of 4 + 2
        0.3333333333333333
    """
    if not predicted and not gold:
        return 1.0
    predicted, gold = CanonicalTables(predicted, gold).merged
    num_cells = sum(map(len, predicted)) + sum(map(len, gold))
    left, right = Counter(map(_cells, predicted)), Counter(map(_cells, gold))
    num_common = sum(len(row) * count for row, count in (left & right).items())
    num_common += _count_common(list((left - right).elements()), list((right - left).elements()))
    return 2 * num_common / num_cells


def _cells(row: Row) -> _Cells:
    """The values of a row without their order; a value's second occurrence is a cell of its own."""
    seen: Counter[object] = Counter()
    cells = []
    for value in row:
        cells.append((value, seen[value]))
        seen[value] += 1
    return frozenset(cells)


def _count_common(left: list[_Cells], right: list[_Cells]) -> int:
    """Cells in common of a pairing of rows: of the best one, or of a good one if there are many."""
    holders: defaultdict[_Cell, tuple[list[int], list[int]]] = defaultdict(lambda: ([], []))
    for side, rows in enumerate((left, right)):
        for index, row in enumerate(rows):
            for cell in row:
                holders[cell][side].append(index)
    shared = {cell: sides for cell, sides in holders.items() if sides[0] and sides[1]}
    if not shared:
        return 0
    if len(left) * len(right) > _MAX_EXACT_PAIRS:
        return _pair_by_rarest(left, right, shared)
    import numpy as np
    from scipy.optimize import linear_sum_assignment

    common = np.zeros((len(left), len(right)))
    for lefts, rights in shared.values():
        common[np.ix_(lefts, rights)] += 1
    return int(common[linear_sum_assignment(common, maximize=True)].sum())


def _pair_by_rarest(
    left: list[_Cells],
    right: list[_Cells],
    shared: dict[_Cell, tuple[list[int], list[int]]],
) -> int:
    # Everything is ordered by content, so the order in which rows came does not matter.
    place = [{i: n for n, i in enumerate(_order(rows))} for rows in (left, right)]
    open_rows = [set(range(len(left))), set(range(len(right)))]
    rarity = {cell: len(sides[0]) * len(sides[1]) for cell, sides in shared.items()}
    total = 0
    for cell in sorted(shared, key=lambda cell: (rarity[cell], _key(cell))):
        candidates = [
            sorted((i for i in rows if i in open_rows[side]), key=place[side].__getitem__)
            for side, rows in enumerate(shared[cell])
        ]
        for i, j in zip(*candidates, strict=False):
            total += len(left[i] & right[j])
            open_rows[0].discard(i)
            open_rows[1].discard(j)
    return total


def _order(rows: list[_Cells]) -> list[int]:
    keys = [sorted(map(_key, row)) for row in rows]
    return sorted(range(len(rows)), key=keys.__getitem__)


def _key(cell: _Cell) -> tuple[str, int]:
    value, occurrence = cell
    # 1 and 1.0 are one value, and have one hash.
    is_number = isinstance(value, (int, float, Decimal))
    return repr(hash(value) if is_number else value), occurrence
