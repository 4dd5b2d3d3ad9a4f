from __future__ import annotations

import datetime
import itertools
import random
import time
from collections import Counter
from decimal import Decimal

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sense_trl.database.engine import QueryResult, QueryStatus
from sense_trl.errors import InputError
from sense_trl.verification.comparison import Reason, Verdict, bags_equal, results_match

PLAIN = "SELECT a, b FROM t"
ORDERED = "SELECT a, b FROM t ORDER BY a"
HIDDEN = "SELECT a, b FROM t ORDER BY c"


def result(rows) -> QueryResult:
    rows = tuple(map(tuple, rows))
    width = len(rows[0]) if rows else 1
    names = tuple(f"c{i}" for i in range(width))
    return QueryResult(QueryStatus.OK, names, rows, None, 0.0, 0)


def compare(predicted, gold, *, gold_sql=PLAIN, semantics="strict", ties=None) -> Reason:
    comparison = results_match(
        result(predicted),
        result(gold),
        semantics=semantics,
        gold_sql=gold_sql,
        dialect="sqlite",
        tie_groups=None if ties is None else lambda: ties,
    )
    assert comparison.verdict is comparison.reason.verdict
    return comparison.reason


def slow_strict(predicted, gold) -> bool:
    """The definition, word by word: some order of columns makes the bags equal."""
    if len(predicted) != len(gold):
        return False
    if not gold:
        return True
    width = len(gold[0])
    return len(predicted[0]) == width and any(
        Counter(tuple(row[i] for i in order) for row in predicted) == Counter(gold)
        for order in itertools.permutations(range(width))
    )


def slow_spider(predicted, gold, *, ordered: bool) -> bool:
    """The official rules with the full factorial search."""
    if not predicted and not gold:
        return True
    if len(predicted) != len(gold) or len(predicted[0]) != len(gold[0]):
        return False

    def sort(row):
        return tuple(sorted(row, key=lambda value: str(value) + str(type(value))))

    left, right = list(map(sort, gold)), list(map(sort, predicted))
    if (left != right) if ordered else (set(left) != set(right)):
        return False
    for order in itertools.permutations(range(len(gold[0]))):
        moved = [tuple(row[i] for i in order) for row in predicted]
        if moved == list(gold) if ordered else Counter(moved) == Counter(gold):
            return True
    return False


@pytest.mark.parametrize(
    ("predicted", "gold", "reason"),
    [
        ([(1, "x"), (2, "y")], [(2, "y"), (1, "x")], Reason.RESULTS_EQUAL),
        ([("x", 1), ("y", 2)], [(1, "x"), (2, "y")], Reason.RESULTS_EQUAL),
        ([(1,), (1,), (2,)], [(1,), (2,), (2,)], Reason.VALUES_DIFFER),
        ([(1,)], [(1,), (1,)], Reason.ROW_COUNT_DIFFERS),
        ([(1, 1)], [(1,)], Reason.COLUMN_COUNT_DIFFERS),
        ([], [], Reason.BOTH_EMPTY),
        ([], [(None,)], Reason.ROW_COUNT_DIFFERS),
        # Each column has the same values, but no order of columns pairs them the same way.
        ([(1, 2), (2, 1)], [(1, 1), (2, 2)], Reason.VALUES_DIFFER),
        ([(0, 1), (1, 0)], [(1, 0), (0, 1)], Reason.RESULTS_EQUAL),
    ],
)
def test_strict_compares_bags_of_rows_up_to_column_order(predicted, gold, reason) -> None:
    assert compare(predicted, gold) is reason


UTC = datetime.UTC
PLUS_ONE = datetime.timezone(datetime.timedelta(hours=1))


@pytest.mark.parametrize(
    ("left", "right", "equal"),
    [
        (None, None, True),
        (None, 0, False),
        (None, "", False),
        (1, 1.0, True),
        (True, 1, True),
        (False, 0.0, True),
        (Decimal("1.0"), 1, True),
        (Decimal("0.1"), 0.1, True),
        (Decimal("NaN"), float("nan"), True),
        (0.1 + 0.2, 0.3, True),
        (1e-13, 0.0, True),
        (-0.0, 0.0, True),
        (0.3, 0.3000001, False),
        (1e15, 1e15 * (1 + 1e-13), True),
        (2**60, 2**60 + 1, False),
        (10**12, 10**12 + 1, False),
        (2459000.5, 2459000.5 + 1 / 86400, False),
        (float("inf"), float("inf"), True),
        (float("inf"), float("-inf"), False),
        (float("nan"), float("nan"), True),
        (float("nan"), None, False),
        ("1", 1, False),
        ("a", "A", False),
        ("a", "a ", False),
        ("a", b"a", False),
        (b"a", b"a", True),
        (bytearray(b"a"), b"a", True),
        (datetime.date(2020, 1, 2), datetime.date(2020, 1, 2), True),
        (datetime.date(2020, 1, 2), datetime.datetime(2020, 1, 2), True),
        (datetime.date(2020, 1, 2), datetime.datetime(2020, 1, 2, 1), False),
        (datetime.date(2020, 1, 2), "2020-01-02", False),
        (
            datetime.datetime(2020, 1, 2, tzinfo=UTC),
            datetime.datetime(2020, 1, 2, 1, tzinfo=PLUS_ONE),
            True,
        ),
        (datetime.datetime(2020, 1, 2, tzinfo=UTC), datetime.datetime(2020, 1, 2), False),
        ([1, 2.0], [1.0, 2], True),
        ([1, 2], [2, 1], False),
        ({"a": 0.1 + 0.2}, {"a": 0.3}, True),
        ({"a": 1}, {"b": 1}, False),
    ],
)
def test_strict_equality_of_values(left, right, equal: bool) -> None:
    expected = Reason.RESULTS_EQUAL if equal else Reason.VALUES_DIFFER
    # A second column keeps identical rows from being the whole story.
    assert compare([(left, 1), ("z", 2)], [("z", 2), (right, 1)]) is expected
    assert compare([(right, 1), ("z", 2)], [("z", 2), (left, 1)]) is expected
    assert bags_equal([(left,)], [(right,)]) is equal


def test_two_integers_stay_apart_beside_a_float_between_them() -> None:
    near = 10**12 + 0.5
    assert compare([(10**12,), (near,)], [(10**12 + 1,), (near,)]) is Reason.VALUES_DIFFER


def test_a_float_equals_its_own_integer_although_another_is_close() -> None:
    assert compare([(1e12 + 1,), (10**12,)], [(10**12,), (10**12 + 1,)]) is Reason.RESULTS_EQUAL


@pytest.mark.parametrize(
    ("predicted", "gold", "sql", "reason"),
    [
        ([(1, "x"), (2, "y")], [(1, "x"), (2, "y")], ORDERED, Reason.RESULTS_EQUAL),
        ([(2, "y"), (1, "x")], [(1, "x"), (2, "y")], ORDERED, Reason.ORDER_DIFFERS),
        ([(2, "y"), (1, "x")], [(1, "x"), (2, "y")], PLAIN, Reason.RESULTS_EQUAL),
        # Columns exchanged, order kept.
        ([("x", 1), ("y", 2)], [(1, "x"), (2, "y")], ORDERED, Reason.RESULTS_EQUAL),
        # Rows that tie on the sort key may swap.
        ([(1, "y"), (1, "x")], [(1, "x"), (1, "y")], ORDERED, Reason.RESULTS_EQUAL),
        (
            [(1, "y"), (1, "x"), (2, "z")],
            [(1, "x"), (1, "y"), (2, "z")],
            ORDERED,
            Reason.RESULTS_EQUAL,
        ),
        ([(2, "z"), (1, "x"), (1, "y")], [(1, "x"), (1, "y"), (2, "z")], ORDERED,
         Reason.ORDER_DIFFERS),
        # The sort key is not in the result: nobody can say which rows tie.
        ([(2, "y"), (1, "x")], [(1, "x"), (2, "y")], HIDDEN, Reason.ORDER_UNKNOWN),
        # An ORDER BY that is not the outermost query's.
        ([(2, "y"), (1, "x")], [(1, "x"), (2, "y")],
         "SELECT a, b FROM (SELECT * FROM t ORDER BY a LIMIT 2)", Reason.RESULTS_EQUAL),
    ],
)  # fmt: skip
def test_strict_order_counts_where_golds_outermost_query_orders(
    predicted, gold, sql: str, reason: Reason
) -> None:
    assert compare(predicted, gold, gold_sql=sql) is reason


def test_given_tie_groups_decide_about_swaps() -> None:
    gold = [(1,), (2,), (3,), (4,)]
    ties = (7, 7, 8, 9)
    for predicted, reason in (
        ([(2,), (1,), (3,), (4,)], Reason.RESULTS_EQUAL),
        ([(1,), (3,), (2,), (4,)], Reason.ORDER_DIFFERS),
        ([(1,), (2,), (4,), (3,)], Reason.ORDER_DIFFERS),
    ):
        assert compare(predicted, gold, gold_sql=HIDDEN, ties=ties) is reason


def test_the_position_of_a_row_is_not_taken_for_a_column() -> None:
    """Positions 0, 1, 2 and the column exchanged would give gold's pairs."""
    gold = [(1, "k"), (2, "k"), (0, "k")]
    predicted = [(2, "k"), (0, "k"), (1, "k")]
    reason = compare(predicted, gold, gold_sql=HIDDEN, ties=(0, 1, 2))
    assert reason is Reason.ORDER_DIFFERS
    spider = compare(predicted, gold, gold_sql="select a order by b", semantics="spider")
    assert spider is Reason.VALUES_DIFFER


@pytest.mark.parametrize("width", [3, 4, 5])
def test_columns_of_a_symmetric_table_are_matched_exactly(width: int) -> None:
    """In a cyclic Latin square nothing tells columns apart; only some exchanges keep the bag."""
    table = _latin_square(width, width)
    other = [table[0], *([(*row[1:], row[0]) for row in table[2:]]), table[1][::-1]]
    for order in itertools.permutations(range(width)):
        moved = [tuple(row[i] for i in order) for row in table]
        assert compare(moved, table) is Reason.RESULTS_EQUAL
        spoiled = [tuple(row[i] for i in order) for row in other]
        got = compare(spoiled, table) is Reason.RESULTS_EQUAL
        assert got == slow_strict(spoiled, table)


VALUES = st.sampled_from([None, 0, 1, 2, 1.0, 0.5, "1", "a", b"a"])


def tables(min_rows: int = 1):
    return st.integers(1, 4).flatmap(
        lambda width: st.lists(st.tuples(*[VALUES] * width), min_size=min_rows, max_size=6)
    )


@settings(max_examples=150)
@given(tables(), st.randoms(use_true_random=False))
def test_strict_is_invariant_under_exchanging_rows_and_columns(table, rng: random.Random) -> None:
    order = list(range(len(table[0])))
    rng.shuffle(order)
    moved = [tuple(row[i] for i in order) for row in table]
    rng.shuffle(moved)
    assert compare(moved, table) is Reason.RESULTS_EQUAL
    assert compare(table, moved) is Reason.RESULTS_EQUAL


@settings(max_examples=250)
@given(st.data())
def test_strict_agrees_with_its_definition(data) -> None:
    width = data.draw(st.integers(1, 4))
    # Few values: look-alike columns are the hard case.
    cell = st.sampled_from([0, 1, "a"])
    rows = st.lists(st.tuples(*[cell] * width), min_size=1, max_size=5)
    left, right = data.draw(rows), data.draw(rows)
    assert (compare(left, right) is Reason.RESULTS_EQUAL) == slow_strict(left, right)


@settings(max_examples=150)
@given(tables(), st.data())
def test_strict_never_accepts_another_bag(table, data) -> None:
    row = data.draw(st.integers(0, len(table) - 1))
    column = data.draw(st.integers(0, len(table[0]) - 1))
    changed = [list(each) for each in table]
    changed[row][column] = "a value that occurs nowhere else"
    assert compare(changed, table).verdict is Verdict.WRONG
    assert compare([*table, table[0]], table) is Reason.ROW_COUNT_DIFFERS


@settings(max_examples=150)
@given(tables(), st.randoms(use_true_random=False))
def test_order_counts_only_where_gold_orders(table, rng: random.Random) -> None:
    moved = list(table)
    rng.shuffle(moved)
    assert compare(moved, table, gold_sql=PLAIN) is Reason.RESULTS_EQUAL
    ordered = compare(moved, table, gold_sql=HIDDEN, ties=tuple(range(len(table))))
    in_place = any(
        [tuple(row[i] for i in order) for row in moved] == list(table)
        for order in itertools.permutations(range(len(table[0])))
    )
    assert (ordered is Reason.RESULTS_EQUAL) == in_place


@settings(max_examples=300)
@given(st.data(), st.booleans())
def test_spider_agrees_with_the_factorial_search(data, ordered: bool) -> None:
    width = data.draw(st.integers(1, 4))
    # 1 and 1.0, 10 and 10.0 are equal but sort differently as text.
    cell = st.sampled_from([1, 1.0, 10, 10.0, "1", None, "a"])
    rows = st.lists(st.tuples(*[cell] * width), min_size=1, max_size=4)
    left = data.draw(rows)
    right = data.draw(st.one_of(rows, st.permutations(left)))
    sql = "select a from t order by a" if ordered else "select a from t"
    got = compare(left, right, gold_sql=sql, semantics="spider")
    assert (got is Reason.RESULTS_EQUAL) == slow_spider(left, right, ordered=ordered)


@pytest.mark.parametrize(
    ("predicted", "gold", "sql", "equal"),
    [
        ([], [], PLAIN, True),
        ([(1,)], [(1.0,)], PLAIN, True),
        ([(0.1 + 0.2,)], [(0.3,)], PLAIN, False),
        ([(1,), (2,)], [(2,), (1,)], "SELECT a FROM (SELECT a FROM t ORDER BY a)", False),
        ([(1,), (2,)], [(2,), (1,)], "SELECT a FROM t ORDER  BY a", True),
        ([(1, 10.0)], [(1.0, 10)], PLAIN, False),
    ],
)
def test_spider_keeps_the_official_quirks(predicted, gold, sql: str, equal: bool) -> None:
    got = compare(predicted, gold, gold_sql=sql, semantics="spider")
    assert (got is Reason.RESULTS_EQUAL) == equal


@pytest.mark.parametrize(
    ("predicted", "gold", "equal"),
    [
        ([], [], True),
        ([(1,), (1,)], [(1,)], True),
        ([(2,), (1,)], [(1,), (2,)], True),
        ([("x", 1)], [(1, "x")], False),
        ([(1,)], [(1.0,)], True),
    ],
)
def test_bird_compares_sets_of_rows(predicted, gold, equal: bool) -> None:
    got = compare(predicted, gold, gold_sql=ORDERED, semantics="bird")
    assert (got is Reason.RESULTS_EQUAL) == equal


def test_results_that_are_not_complete_are_refused() -> None:
    failed = QueryResult(QueryStatus.TIMEOUT, (), (), "stopped", 1.0, None)
    with pytest.raises(InputError, match="`predicted`"):
        results_match(failed, result([(1,)]), gold_sql=PLAIN, dialect="sqlite")
    with pytest.raises(InputError, match="`semantics`"):
        compare([(1,)], [(1,)], semantics="exact")


def _latin_square(width: int, rows: int) -> list[tuple[object, ...]]:
    return [tuple((row + column) % width for column in range(width)) for row in range(rows)]


def _booleans(width: int, rows: int) -> list[tuple[object, ...]]:
    rng = random.Random(0)
    return [tuple(rng.randrange(2) for _ in range(width)) for _ in range(rows)]


@pytest.mark.parametrize("make", [_latin_square, _booleans], ids=["latin", "booleans"])
@pytest.mark.parametrize("rows", [120, 10_000])
def test_look_alike_columns_take_polynomial_time(make, rows: int) -> None:
    """12 columns: the official search would try up to 12! = 479,001,600 orders."""
    table = make(12, rows)
    rng = random.Random(1)
    order = list(range(12))
    rng.shuffle(order)
    moved = [tuple(row[i] for i in order) for row in table]
    rng.shuffle(moved)
    started = time.perf_counter()
    assert compare(moved, table) is Reason.RESULTS_EQUAL
    spoiled = [*moved[:-1], tuple(-1 if i == 0 else v for i, v in enumerate(moved[-1]))]
    assert compare(spoiled, table) is Reason.VALUES_DIFFER
    assert time.perf_counter() - started < 5.0


def test_every_reason_has_one_verdict() -> None:
    assert {reason.verdict for reason in Reason} == set(Verdict)
    assert [r for r in Reason if r.verdict is Verdict.CORRECT] == [Reason.RESULTS_EQUAL]
    for reason in Reason:
        if reason.startswith("gold_"):
            assert reason.verdict is Verdict.UNDETERMINED


@pytest.mark.parametrize("semantics", ["strict", "spider", "bird"])
def test_lists_and_structs_are_compared_by_value(semantics) -> None:
    gold = [(None, {"a": [1]}), ([1, 2], {"a": [2]})]
    for predicted, equal in (
        (list(gold), True),
        ([([1, 2], {"a": [2]}), (None, {"a": [1]})], True),
        ([(None, {"a": [1]}), ([2, 1], {"a": [2]})], False),
        ([(None, {"b": [1]}), ([1, 2], {"a": [2]})], False),
    ):
        reason = compare(predicted, gold, semantics=semantics)
        assert (reason is Reason.RESULTS_EQUAL) == equal


@pytest.mark.parametrize("semantics", ["strict", "spider", "bird"])
def test_a_column_may_have_values_of_several_types(semantics) -> None:
    # As DuckDB's type UNION has them.
    union = [(1,), ([1, 2],)]
    assert compare(union, union[::-1], semantics=semantics) is Reason.RESULTS_EQUAL
    assert compare(union, [(1,), ([2, 1],)], semantics=semantics) is Reason.VALUES_DIFFER
