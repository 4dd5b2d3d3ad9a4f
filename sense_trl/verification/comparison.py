"""Comparing two results: `strict` (sound), `spider` and `bird` (as the official evaluators do)."""

from __future__ import annotations

import bisect
from collections import Counter
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from decimal import Decimal
from enum import StrEnum
from typing import Any, Final, Literal, TypeAlias, get_args

from sense_trl.database.engine import QueryResult
from sense_trl.database.text import drop_bad_bytes, rows_have_bad_bytes
from sense_trl.errors import InputError
from sense_trl.sql.parsing import order_matters, visible_sort_columns
from sense_trl.verification.values import CanonicalTables, get_reach, rows_equal

Semantics: TypeAlias = Literal["strict", "spider", "bird"]
Row: TypeAlias = tuple[object, ...]
Tables: TypeAlias = tuple[Sequence[Row], Sequence[Row]]
"""The rows of the prediction and those of gold."""

# Column matching is polynomial for all but strongly regular tables; this many times it may choose
# one of several columns that look alike before the answer is `UNDETERMINED`.
_MAX_SEARCH_NODES: Final = 2_000
# And so often it may look whether two rows are equal while it pairs rows of nearly equal numbers.
_MAX_PAIRS_TRIED: Final = 300_000
# Larger numbers have no neighbours that a float could tell apart.
_MAX_PLACE: Final = 1e300


class Verdict(StrEnum):
    """The verdict on a prediction."""

    CORRECT = "correct"
    WRONG = "wrong"
    UNDETERMINED = "undetermined"


class Reason(StrEnum):
    """The reason for a verdict; `verdict` tells which one a reason belongs to."""

    RESULTS_EQUAL = "results_equal"

    ROW_COUNT_DIFFERS = "row_count_differs"
    COLUMN_COUNT_DIFFERS = "column_count_differs"
    VALUES_DIFFER = "values_differ"
    ORDER_DIFFERS = "order_differs"
    PREDICTION_SYNTAX_ERROR = "prediction_syntax_error"
    PREDICTION_EXECUTION_ERROR = "prediction_execution_error"
    PREDICTION_DENIED = "prediction_denied"

    BOTH_EMPTY = "both_empty"
    ORDER_UNKNOWN = "order_unknown"
    """The same rows in another order, and gold's ties could not be seen."""
    COLUMN_SEARCH_CAP = "column_search_cap"
    """Too many columns look alike, or too many numbers are nearly the same, to tell whether one
    order of columns and one pairing of rows fits."""
    PREDICTION_STEP_BUDGET = "prediction_step_budget"
    """It needed far more work than gold (see `verify_sql`); it may still be right."""
    PREDICTION_TIMEOUT = "prediction_timeout"
    PREDICTION_TOO_LARGE = "prediction_too_large"
    PREDICTION_NOT_DETERMINISTIC = "prediction_not_deterministic"
    """It calls `random` or reads the clock."""
    WORKER_DIED = "worker_died"
    """Verifying it ended two worker processes: out of memory, or a bug of the engine."""
    GOLD_EMPTY = "gold_empty"
    GOLD_SYNTAX_ERROR = "gold_syntax_error"
    GOLD_EXECUTION_ERROR = "gold_execution_error"
    GOLD_DENIED = "gold_denied"
    GOLD_TIMEOUT = "gold_timeout"
    GOLD_STEP_BUDGET = "gold_step_budget"
    GOLD_TOO_LARGE = "gold_too_large"
    GOLD_NOT_DETERMINISTIC = "gold_not_deterministic"
    """It calls `random`, reads the clock, or answers otherwise when scanned backwards."""
    GOLD_LIMIT_TIE = "gold_limit_tie"
    """Its LIMIT cuts between rows that tie under its ORDER BY and differ."""

    @property
    def verdict(self) -> Verdict:
        """The verdict that this reason explains."""
        if self is Reason.RESULTS_EQUAL:
            return Verdict.CORRECT
        return Verdict.WRONG if self in _WRONG else Verdict.UNDETERMINED


_WRONG: Final = frozenset(
    {
        Reason.ROW_COUNT_DIFFERS,
        Reason.COLUMN_COUNT_DIFFERS,
        Reason.VALUES_DIFFER,
        Reason.ORDER_DIFFERS,
        Reason.PREDICTION_SYNTAX_ERROR,
        Reason.PREDICTION_EXECUTION_ERROR,
        Reason.PREDICTION_DENIED,
    }
)


@dataclass(frozen=True, slots=True)
class Comparison:
    """The outcome of comparing two results; `verdict` always is `reason.verdict`."""

    verdict: Verdict
    reason: Reason


_OUTCOMES: Final = {reason: Comparison(reason.verdict, reason) for reason in Reason}


def results_match(
    predicted: QueryResult,
    gold: QueryResult,
    *,
    semantics: Semantics = "strict",
    gold_sql: str,
    dialect: str,
    tie_groups: Callable[[], Sequence[Hashable] | None] | None = None,
) -> Comparison:
    """Compare the result of a prediction with gold's.

    `strict`: the two hold the same bag of rows, for one order of the predicted columns. Where the
    outermost query of gold orders, the rows also come in gold's order, rows that tie under gold's
    sort keys in any order among themselves. Two empty results are `UNDETERMINED`: any query with
    no match gives one. Names of columns do not matter. Values are equal as `values_equal` says:
    numbers by value, with a tolerance of 1e-12 only where rounding can be the reason, everything
    else by type and content. Rows are paired one to one, first those that are the same in both,
    then each of the others with an equal one: that two values are close to a third does not make
    them equal.

    `spider`: the test-suite evaluator's `result_eq`. Python equality of values (1 == 1.0, no
    tolerance), columns in any order, duplicates count, order counts where the text of gold
    contains "order by" in any place; two empty results are equal whatever their columns. What is
    not UTF-8 in a text is left out.
    `gold_sql` is the text after that evaluator's own changes (`verify_sql` makes them).

    `bird`: set equality of rows with columns in their order; neither duplicates nor the order of
    rows count.

    Args:
        predicted: result of the prediction, status OK.
        gold: result of gold, status OK.
        semantics: which comparison.
        gold_sql: the text of gold, which decides whether order counts.
        dialect: the dialect of `gold_sql` as sqlglot spells it.
        tie_groups: gives one value per row of gold, equal for rows that tie under gold's sort
            keys, or `None` if unknown. Called only where the bags agree and the orders do not.
            Without it ties are seen where all sort keys are result columns.

    Returns:
        Verdict and reason. Time is polynomial in the size of the results; a table whose columns
        or rows cannot be told apart by that is `UNDETERMINED` (`COLUMN_SEARCH_CAP`).

    Raises:
        InputError: a result's status is not OK, or `semantics` is unknown.
        SQLParseError: `strict`, and gold contains ORDER but cannot be parsed.
    """
    for name, result in (("predicted", predicted), ("gold", gold)):
        if not result.ok:
            raise InputError(
                f"`{name}` has the status {result.status}; expected a complete result. "
                "`verify_sql` decides about queries that did not run"
            )
    if semantics == "strict":
        return _OUTCOMES[_strict(predicted, gold, gold_sql, dialect, tie_groups)]
    if semantics not in get_args(Semantics):
        raise InputError(f"`semantics` is {semantics!r}; expected one of {get_args(Semantics)}.")
    left, right = hashable_rows(predicted.rows), hashable_rows(gold.rows)
    if semantics == "spider":
        return _OUTCOMES[_spider(left, right, ordered="order by" in gold_sql.lower())]
    equal = left == right or set(left) == set(right)
    return _OUTCOMES[Reason.RESULTS_EQUAL if equal else Reason.VALUES_DIFFER]


def bags_equal(left: Sequence[Row], right: Sequence[Row]) -> bool:
    """Whether two results hold the same bag of rows, columns in place, values as `strict` does."""
    if left == right:
        return True
    if len(left) != len(right):
        return False
    tables = CanonicalTables(left, right)
    left, right = tables.merged
    if Counter(left) != Counter(right):
        return False
    return not tables.has_chains or _match_rows((left, right), tables.exact) is True


def hashable_rows(rows: Sequence[Row]) -> Sequence[Row]:
    """The rows, with lists and structs (which DuckDB has) as tuples that are equal if those are."""
    firsts = (
        next((row[place] for row in rows if row[place] is not None), None)
        for place in range(len(rows[0]) if rows else 0)
    )
    try:
        if not any(isinstance(value, (list, tuple, dict, bytearray)) for value in firsts):
            # A column of DuckDB's type UNION may have such values further down.
            hash(tuple(rows))
            return rows
    except TypeError:
        pass
    return [tuple(map(_hashable, row)) for row in rows]


def _hashable(value: object) -> object:
    if isinstance(value, (list, tuple)):
        return ("list", *map(_hashable, value))
    if isinstance(value, dict):
        return ("struct", *((key, _hashable(item)) for key, item in value.items()))
    return bytes(value) if isinstance(value, bytearray) else value


# ---------------------------------------------------------------------- spider


def _as_spider_reads(rows: Sequence[Row]) -> Sequence[Row]:
    if not rows_have_bad_bytes(rows):
        return rows
    return [
        tuple(drop_bad_bytes(value) if isinstance(value, str) else value for value in row)
        for row in rows
    ]


def _spider(predicted: Sequence[Row], gold: Sequence[Row], *, ordered: bool) -> Reason:
    if not predicted and not gold:
        return Reason.RESULTS_EQUAL
    if len(predicted) != len(gold):
        return Reason.ROW_COUNT_DIFFERS
    if len(predicted[0]) != len(gold[0]):
        return Reason.COLUMN_COUNT_DIFFERS
    predicted, gold = _as_spider_reads(predicted), _as_spider_reads(gold)
    # The official script rejects by this first. It is not implied by the search below: the text
    # of 1 and 1.0 sorts differently, so rows that are equal can be rejected here.
    left, right = [_sorted_row(row) for row in gold], [_sorted_row(row) for row in predicted]
    if left != right if ordered else set(left) != set(right):
        return Reason.VALUES_DIFFER
    return _match_columns(
        predicted, gold, groups=range(len(gold)) if ordered else None, mismatch=Reason.VALUES_DIFFER
    )


def _sorted_row(row: Row) -> Row:
    return tuple(sorted(row, key=lambda value: str(value) + str(type(value))))


# ---------------------------------------------------------------------- strict


def _strict(
    predicted: QueryResult,
    gold: QueryResult,
    gold_sql: str,
    dialect: str,
    tie_groups: Callable[[], Sequence[Hashable] | None] | None,
) -> Reason:
    if not predicted.rows and not gold.rows:
        return Reason.BOTH_EMPTY
    if len(predicted.rows) != len(gold.rows):
        return Reason.ROW_COUNT_DIFFERS
    if len(predicted.rows[0]) != len(gold.rows[0]):
        return Reason.COLUMN_COUNT_DIFFERS
    if predicted.rows == gold.rows:
        return Reason.RESULTS_EQUAL
    tables = CanonicalTables(predicted.rows, gold.rows)
    left, right = tables.merged
    exact = tables.exact if tables.has_chains else None

    def match(groups: Sequence[int] | None, mismatch: Reason) -> Reason:
        return _match_columns(left, right, groups=groups, mismatch=mismatch, exact=exact)

    unordered = match(None, Reason.VALUES_DIFFER)
    if unordered is not Reason.RESULTS_EQUAL or len(right) == 1:
        return unordered
    if not order_matters(gold_sql, dialect):
        return unordered
    in_order = match(range(len(right)), Reason.ORDER_DIFFERS)
    if in_order is Reason.RESULTS_EQUAL:
        return in_order
    if tie_groups is not None:
        groups = tie_groups()
    else:
        groups = _visible_ties(right if exact is None else exact[1], gold_sql, dialect)
    if groups is None:
        return Reason.ORDER_UNKNOWN
    return match(_runs(groups), Reason.ORDER_DIFFERS)


def _visible_ties(rows: Sequence[Row], sql: str, dialect: str) -> Sequence[Hashable] | None:
    columns = visible_sort_columns(sql, dialect)
    if columns is None or max(columns) >= len(rows[0]):
        return None
    return [tuple(row[column] for column in columns) for row in rows]


def _runs(values: Sequence[Hashable]) -> list[int]:
    """Number the runs of equal neighbours: [a, a, b, a] -> [0, 0, 1, 2]."""
    runs: list[int] = []
    for index, value in enumerate(values):
        if index == 0:
            runs.append(0)
        else:
            runs.append(runs[-1] + (value != values[index - 1]))
    return runs


# ---------------------------------------------------------------------- columns


def _match_columns(
    predicted: Sequence[Row],
    gold: Sequence[Row],
    *,
    groups: Sequence[int] | None,
    mismatch: Reason,
    exact: Tables | None = None,
) -> Reason:
    """Look for an order of the predicted columns that makes the two bags of rows equal.

    Args:
        predicted: rows, as many and as wide as gold's.
        gold: rows, at least one.
        groups: a number per row position; rows may only be exchanged within equal numbers.
            `None` allows any exchange.
        mismatch: the reason where no order of columns fits.
        exact: the same rows with the values that decide, where equal rows can be unequal.
    """
    if groups is not None:
        predicted, gold = _with_groups((predicted, gold), groups)
        exact = None if exact is None else _with_groups(exact, groups)
    if Counter(predicted) == Counter(gold):
        in_place = True if exact is None else _match_rows((predicted, gold), exact)
        if in_place is not False:
            return Reason.RESULTS_EQUAL if in_place else Reason.COLUMN_SEARCH_CAP
    if len(gold[0]) == 1 + (groups is not None):
        return mismatch
    found = _ColumnSearch(predicted, gold, pinned=groups is not None, exact=exact).run()
    if found is None:
        return Reason.COLUMN_SEARCH_CAP
    return Reason.RESULTS_EQUAL if found else mismatch


def _with_groups(tables: Tables, groups: Sequence[int]) -> Tables:
    left, right = (
        [(group, *row) for group, row in zip(groups, table, strict=True)] for table in tables
    )
    return left, right


class _ColumnSearch:
    """Colour refinement on the columns and rows of two tables, with backtracking.

    Columns that can correspond get the same colour: at first by the bag of their values, then in
    turns by the bag of (value, colour of the row), and rows by the bag of (value, colour of the
    column). Where columns of one table keep one colour, one of them is matched with each
    candidate in turn. Every match is checked by comparing bags of whole rows, so the answer is
    exact; colours only prune.
    """

    def __init__(
        self,
        predicted: Sequence[Row],
        gold: Sequence[Row],
        *,
        pinned: bool,
        exact: Tables | None,
    ) -> None:
        self._pinned = pinned
        self._exact = exact
        self._columns = _number_columns((predicted, gold))
        # Columns whose values are the same, and not just close, can stand for each other.
        self._vectors = self._columns if exact is None else _number_columns(exact)
        self._gold_bag = Counter(zip(*self._columns[1], strict=True))
        self._nodes = 0

    def run(self) -> bool | None:
        """Whether a match exists; `None` if the search gave up."""
        colours = []
        for columns in self._columns:
            colours.append([hash(frozenset(Counter(column).items())) for column in columns])
        if self._pinned:
            colours[0][0] = colours[1][0] = -1
        return self._search(colours[0], colours[1])

    def _search(self, predicted: list[int], gold: list[int]) -> bool | None:
        self._nodes += 1
        if self._nodes > _MAX_SEARCH_NODES:
            return None
        refined = self._refine(predicted, gold)
        if refined is None:
            return False
        predicted, gold = refined
        classes: dict[int, list[int]] = {}
        for column, colour in enumerate(gold):
            classes.setdefault(colour, []).append(column)
        open_classes = []
        for colour, members in classes.items():
            # Columns equal in every row are interchangeable.
            if len({self._vectors[1][member] for member in members}) > 1:
                open_classes.append((len(members), colour, members))
        if not open_classes:
            return self._check(predicted, gold)
        _, colour, members = min(open_classes)
        chosen = members[0]
        tried = set()
        for candidate, candidate_colour in enumerate(predicted):
            vector = self._vectors[0][candidate]
            if candidate_colour != colour or vector in tried:
                continue
            tried.add(vector)
            marked_predicted, marked_gold = list(predicted), list(gold)
            marked_predicted[candidate] = marked_gold[chosen] = hash((colour, "chosen"))
            outcome = self._search(marked_predicted, marked_gold)
            if outcome is not False:
                return outcome
        return False

    def _refine(self, predicted: list[int], gold: list[int]) -> tuple[list[int], list[int]] | None:
        while True:
            if sorted(predicted) != sorted(gold):
                return None
            kinds = len(set(gold))
            if kinds == len(gold):
                return predicted, gold
            rows = [
                _row_colours(columns, colours)
                for columns, colours in zip(self._columns, (predicted, gold), strict=True)
            ]
            if Counter(rows[0]) != Counter(rows[1]):
                return None
            predicted, gold = (
                [
                    hash((colour, sum(map(hash, zip(column, row_colours, strict=True)))))
                    for column, colour in zip(columns, colours, strict=True)
                ]
                for columns, colours, row_colours in zip(
                    self._columns, (predicted, gold), rows, strict=True
                )
            )
            if len(set(gold)) == kinds:
                return (predicted, gold) if sorted(predicted) == sorted(gold) else None

    def _check(self, predicted: list[int], gold: list[int]) -> bool | None:
        places: dict[int, list[int]] = {}
        for column, colour in enumerate(predicted):
            places.setdefault(colour, []).append(column)
        order = [places[colour].pop() for colour in gold]
        rows = list(zip(*(self._columns[0][column] for column in order), strict=True))
        if Counter(rows) != self._gold_bag or self._exact is None:
            return Counter(rows) == self._gold_bag
        gold_rows = list(zip(*self._columns[1], strict=True))
        moved = [tuple(row[column] for column in order) for row in self._exact[0]]
        return _match_rows((rows, gold_rows), (moved, self._exact[1]))


def _number_columns(tables: Tables) -> list[list[tuple[int, ...]]]:
    """The columns of two tables as numbers: equal values have one number in both."""
    ids: dict[object, int] = {}
    return [
        [
            tuple(ids.setdefault(value, len(ids)) for value in column)
            for column in zip(*table, strict=True)
        ]
        for table in tables
    ]


def _row_colours(columns: Sequence[Sequence[int]], colours: Sequence[int]) -> list[int]:
    """One number per row: a sum over its cells, so the order of columns does not matter."""
    totals = [0] * len(columns[0])
    for column, colour in zip(columns, colours, strict=True):
        known = {value: hash((value, colour)) for value in set(column)}
        totals = [total + known[value] for total, value in zip(totals, column, strict=True)]
    return totals


# ---------------------------------------------------------------------- nearly equal rows


def _match_rows(merged: Tables, exact: Tables) -> bool | None:
    """Whether the rows can be paired so that those of a pair are equal; `None` if it gave up.

    Rows that are the same are paired with each other: {a, b} and {b, c} are not equal by way of b.

    Args:
        merged: rows of both tables that can only be equal if these are, as equal bags.
        exact: the same rows with the values that decide.
    """
    sets: dict[Row, tuple[list[Row], list[Row]]] = {}
    for side in (0, 1):
        for key, row in zip(merged[side], exact[side], strict=True):
            sets.setdefault(key, ([], []))[side].append(row)
    budget = _MAX_PAIRS_TRIED
    for left_rows, right_rows in sets.values():
        left, right = Counter(left_rows), Counter(right_rows)
        if left == right:
            continue
        rest = list((left - right).elements()), list((right - left).elements())
        matched, budget = _match_close_rows(*rest, budget)
        if not matched:
            return None if budget <= 0 else False
    return True


def _match_close_rows(left: list[Row], right: list[Row], budget: int) -> tuple[bool, int]:
    """Pair rows by augmenting paths; whether all are paired, and what is left of the budget."""
    # Along the column with most values: only rows that are near there can be equal.
    column = max(range(len(left[0])), key=lambda c: len({row[c] for row in left}))
    left, right = (sorted(rows, key=lambda row: _get_place(row[column])) for rows in (left, right))
    places = [_get_place(row[column]) for row in right]
    # In the order of one column nearly all are paired already.
    of_left = {
        number: number
        for number, rows in enumerate(zip(left, right, strict=True))
        if rows_equal(*rows)
    }
    of_right = dict(of_left)
    for start in range(len(left)):
        if start in of_left:
            continue
        reached_from: dict[int, int] = {}
        queue = [start]
        end = None
        while queue and end is None:
            number = queue.pop()
            place = _get_place(left[number][column])
            reach = 2 * get_reach(abs(place))
            for other in range(
                bisect.bisect_left(places, place - reach),
                bisect.bisect_right(places, place + reach),
            ):
                if other in reached_from:
                    continue
                budget -= 1
                if budget <= 0:
                    return False, 0
                if rows_equal(left[number], right[other]):
                    reached_from[other] = number
                    if other not in of_right:
                        end = other
                        break
                    queue.append(of_right[other])
        if end is None:
            return False, budget
        other_end: int | None = end
        while other_end is not None:
            number = reached_from[other_end]
            before = of_left.get(number)
            of_left[number], of_right[other_end] = other_end, number
            other_end = before
    return True, budget


def _get_place(value: object) -> float:
    if not isinstance(value, (int, float, Decimal)):
        return 0.0
    magnitude: Any = abs(value)
    return float(value) if magnitude < _MAX_PLACE else 0.0
