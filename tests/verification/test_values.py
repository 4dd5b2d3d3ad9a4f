from __future__ import annotations

import itertools
import math
import random
import time
from collections import Counter
from decimal import Decimal
from fractions import Fraction

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from sense_trl.database.engine import QueryResult, QueryStatus
from sense_trl.verification.comparison import Reason, bags_equal, results_match
from sense_trl.verification.values import canonical_value, values_equal
from tests.verification.verdict_pairs import FAR, NEAR, NEXT, PLAIN, TABLES, VALUES


def result(rows) -> QueryResult:
    rows = tuple(map(tuple, rows))
    names = tuple(f"c{i}" for i in range(len(rows[0]) if rows else 1))
    return QueryResult(QueryStatus.OK, names, rows, None, 0.0, 0)


def compare(predicted, gold, gold_sql=PLAIN) -> Reason:
    return results_match(
        result(predicted), result(gold), gold_sql=gold_sql, dialect="sqlite"
    ).reason


@pytest.mark.parametrize("rule", VALUES)
def test_values_are_equal_as_the_rule_says(rule: str) -> None:
    for left, right, equal in VALUES[rule]:
        assert values_equal(left, right) is equal, (left, right)
        assert values_equal(right, left) is equal, (right, left)
        assert bags_equal([(left,)], [(right,)]) is equal, (left, right)
        reason = Reason.RESULTS_EQUAL if equal else Reason.VALUES_DIFFER
        # A second row keeps a result of one row from being the whole story.
        assert compare([(left, 1), ("z", 2)], [("z", 2), (right, 1)]) is reason, (left, right)


@pytest.mark.parametrize("rule", TABLES)
def test_tables_are_equal_as_the_rule_says(rule: str) -> None:
    for predicted, gold, sql, reason in TABLES[rule]:
        assert compare(predicted, gold, sql) is reason, (predicted, gold)


# ---------------------------------------------------------------------- the rule, word by word


def slow_numbers_equal(left, right) -> bool:
    """The rule in fractions, without any of its short cuts."""
    if any(isinstance(v, float) and math.isnan(v) for v in (left, right)):
        return all(isinstance(v, float) and math.isnan(v) for v in (left, right))
    if any(isinstance(v, float) and math.isinf(v) for v in (left, right)):
        return left == right
    a, b = Fraction(left), Fraction(right)
    if a == b:
        return True

    def is_exact(value) -> bool:
        return not isinstance(value, float) or (value.is_integer() and abs(value) < 2**53)

    exact = [is_exact(left), is_exact(right)]
    if all(exact):
        return False
    if any(exact) and max(abs(a), abs(b)) >= 2**53:
        return False
    if abs(a - b) <= Fraction(1e-12) * max(abs(a), abs(b)):
        return True
    if 0 in (a, b) and any(exact) and Fraction(1e-18) <= abs(a + b) <= Fraction(1e-12):
        return True
    units = [(Fraction(float(v)) * 2**64).denominator == 1 for v in (left, right)]
    return abs(a - b) <= Fraction(1e-12) and all(units)


def slow_equal(left, right) -> bool:
    numbers = [isinstance(value, (int, float, Decimal)) for value in (left, right)]
    if all(numbers):
        return slow_numbers_equal(left, right)
    return not any(numbers) and type(left) is type(right) and left == right


def slow_bags_equal(left, right) -> bool:
    """Same rows cancel; the others are paired in every way that there is."""
    keys = [[tuple(map(canonical_value, row)) for row in table] for table in (left, right)]
    bags = [Counter(table) for table in keys]
    rest = [list((bags[0] - bags[1]).elements()), list((bags[1] - bags[0]).elements())]
    return any(
        all(all(map(slow_equal, row, other)) for row, other in zip(rest[0], permuted, strict=True))
        for permuted in itertools.permutations(rest[1])
    )


def slow_strict(left, right) -> bool:
    if len(left) != len(right) or len(left[0]) != len(right[0]):
        return False
    return any(
        slow_bags_equal([tuple(row[i] for i in order) for row in left], right)
        for order in itertools.permutations(range(len(right[0])))
    )


BASES = (1.5, 0.3, 1.0, 1e12, 1e12 + 0.5, 2.0**53, 1e20, 0.0, 1e-13, 2.0**-54, 1.6e-19)
# Steps of which some lead out of the tolerance and some do not.
STEPS = (0.0, 3e-13, 8e-13, 1.6e-12, -8e-13)


def near_numbers():
    floats = st.tuples(st.sampled_from(BASES), st.sampled_from(STEPS)).map(
        lambda pair: pair[0] * (1 + pair[1])
    )
    exact = st.sampled_from(
        [0, 1, 10**12, 10**12 + 1, 2**53, 2**53 + 1, 10**20, Decimal("0.3"), Decimal("1.5")]
    )
    return st.one_of(floats, exact, st.sampled_from([math.inf, math.nan, -0.0, -1.5]))


@settings(max_examples=150)
@given(near_numbers(), near_numbers())
def test_numbers_are_equal_as_in_fractions(left, right) -> None:
    expected = slow_equal(left, right)
    assert values_equal(left, right) is expected
    assert values_equal(right, left) is expected
    assert values_equal(left, left)


@settings(max_examples=150)
@given(st.floats(), st.floats(min_value=-1e-11, max_value=1e-11))
def test_any_float_is_equal_as_in_fractions(value: float, step: float) -> None:
    # Not on the edge, and not where the tolerance itself is rounded.
    assume(not 0.99e-12 < abs(step) < 1.01e-12 and not 0 < abs(value) < 1e-290)
    other = value * (1 + step)
    assert values_equal(value, other) is slow_equal(value, other)
    assert values_equal(value, step) is slow_equal(value, step)


def tables_of(cell, max_rows: int = 4):
    return st.integers(1, 3).flatmap(
        lambda width: st.tuples(
            *[st.lists(st.tuples(*[cell] * width), min_size=1, max_size=max_rows)] * 2
        )
    )


# Few places, so that chains, columns that look alike and rows that compete are frequent.
CHAIN = st.sampled_from([NEAR, NEXT, FAR, NEAR * (1 - 2e-13), 1.5 * (1 + 24e-13)])


@settings(max_examples=150)
@given(
    st.one_of(
        tables_of(CHAIN), tables_of(near_numbers()), tables_of(st.one_of(CHAIN, st.just("x")))
    )
)
def test_tables_of_close_numbers_agree_with_the_definition(tables) -> None:
    left, right = tables
    expected = slow_strict(left, right)
    assert (compare(left, right) is Reason.RESULTS_EQUAL) is expected
    assert (compare(right, left) is Reason.RESULTS_EQUAL) is expected
    if len(left) == len(right):
        assert bags_equal(left, right) is slow_bags_equal(left, right)


@settings(max_examples=100)
@given(tables_of(near_numbers()), st.randoms(use_true_random=False))
def test_order_of_rows_and_columns_changes_nothing(tables, rng: random.Random) -> None:
    table = tables[0]
    order = list(range(len(table[0])))
    rng.shuffle(order)
    moved = [tuple(row[i] for i in order) for row in table]
    rng.shuffle(moved)
    assert compare(moved, table) is Reason.RESULTS_EQUAL
    other = tables[1]
    shuffled = rng.sample(other, len(other))
    assert compare(shuffled, table) is compare(other, table)


@settings(max_examples=100)
@given(
    st.lists(st.floats(min_value=1e-3, max_value=1e9), min_size=1, max_size=40),
    st.randoms(use_true_random=False),
)
def test_sums_in_another_order_are_equal(numbers: list[float], rng: random.Random) -> None:
    fractional = [value + 0.25 if value.is_integer() else value for value in numbers]
    first = sum(fractional)
    second = sum(rng.sample(fractional, len(fractional)))
    if first.is_integer() and second.is_integer():
        return
    assert values_equal(first, second)
    assert values_equal(first / len(numbers), second / len(numbers))


def test_many_numbers_in_one_chain_are_told_apart_in_time() -> None:
    count = 20_000
    chain = [1.5 * (1 + 5e-13 * i) for i in range(count)]
    rng = random.Random(0)
    moved = [(value * (1 + 2e-16),) for value in rng.sample(chain, count)]
    started = time.process_time()
    assert compare(moved, [(value,) for value in chain]) is Reason.RESULTS_EQUAL
    spoiled = [*moved[1:], (chain[-1] * (1 + 1e-10),)]
    assert compare(spoiled, [(value,) for value in chain]) is Reason.VALUES_DIFFER
    assert time.process_time() - started < 5


def test_too_many_close_rows_are_undetermined() -> None:
    rng = random.Random(0)
    # Dense in both columns, so that neither narrows the search.
    rows = [
        tuple(1.5 * (1 + rng.randrange(1000) * 1e-15 * 3) for _ in range(2)) for _ in range(3000)
    ]
    far = [*rows[1:], (1.5 * (1 + 2e-12), 1.5)]
    assert compare(far, rows) in (Reason.COLUMN_SEARCH_CAP, Reason.VALUES_DIFFER)
