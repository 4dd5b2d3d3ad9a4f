"""What a pair policy promises, for every small size and limit."""

import itertools
import random
from collections import Counter
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sense_trl.pairs.candidates import Candidate
from sense_trl.pairs.distance import token_distance
from sense_trl.pairs.policies import (
    POLICY_NAMES,
    PairPolicy,
    get_policy,
    group_by_chosen,
    grouped_any,
)


def _candidates(name: str, count: int) -> list[Candidate]:
    return [Candidate("q", i, f"{name}{i}", f"{name}{i}", "weak", "m") for i in range(count)]


@settings(max_examples=150)
@given(st.integers(0, 6), st.integers(0, 6), st.integers(0, 2**32))
def test_no_query_is_used_twice_before_every_one_was_used_once(
    num_correct: int, num_erroneous: int, seed: int
) -> None:
    correct, erroneous = _candidates("c", num_correct), _candidates("e", num_erroneous)
    previous: list[tuple[Candidate, Candidate]] = []
    for limit in range(num_correct * num_erroneous + 2):
        pairs = grouped_any(correct, erroneous, limit, random.Random(seed))
        assert len(pairs) == min(limit, num_correct * num_erroneous)
        assert len(set(pairs)) == len(pairs)
        assert all(chosen in correct and rejected in erroneous for chosen, rejected in pairs)
        for side, every in ((0, correct), (1, erroneous)):
            uses = Counter(pair[side] for pair in pairs)
            # At any limit, nobody has been used more than once oftener than anybody else.
            assert not pairs or max(uses.values()) - min(uses[c] for c in every) <= 1
        assert pairs[: len(previous)] == previous
        previous = pairs


def test_a_limit_of_one_takes_any_query_on_either_side() -> None:
    correct, erroneous = _candidates("c", 3), _candidates("e", 2)
    first = [grouped_any(correct, erroneous, 1, random.Random(seed))[0] for seed in range(60)]
    assert set(first) == {(c, e) for c in correct for e in erroneous}
    assert any(a != b for a, b in pairwise(first))


CORRECT = [
    Candidate("q", i, sql, sql, "strong", "m")
    for i, sql in enumerate(["SELECT a FROM t", "SELECT t.a FROM t JOIN u ON t.k = u.k"])
]
ERRORS = {
    "SELECT b FROM t": ("wrong_column",),
    "SELECT a FROM t WHERE a > 3": ("extra_condition",),
    "SELECT b FROM t WHERE a > 3": ("wrong_column", "extra_condition"),
    "SELECT a, b, c FROM t": ("extra_select_column",),
    "SELECT a FORM t": ("does_not_parse",),
    "SELECT a FROM t ORDER BY b LIMIT 1": (),
}
ERRONEOUS = [Candidate("q", i, sql, sql, "weak", "m") for i, sql in enumerate(ERRORS)]


def _policy(name: str) -> PairPolicy:
    classes = {candidate: ERRORS[candidate.sql] for candidate in ERRONEOUS}
    return get_policy(name, dialect="sqlite", classes=classes)


def _rejected(name: str, seed: int = 0, correct=tuple(CORRECT[:1])) -> list[str]:
    pairs = _policy(name)(correct, ERRONEOUS, 99, random.Random(seed))
    return [rejected.sql for _, rejected in pairs]


def test_nearest_and_farthest_count_tokens() -> None:
    # From "SELECT a FROM t": one name; one word; four tokens more; the same and a name; two columns;
    # five tokens more.
    edits = {sql: token_distance(CORRECT[0].sql, sql, "sqlite") for sql in ERRORS}
    assert list(edits.values()) == [1, 4, 5, 4, 1, 5]
    nearest, farthest = _rejected("nearest"), _rejected("farthest")
    assert [edits[sql] for sql in nearest] == [1, 1, 4, 4, 5, 5]
    assert [edits[sql] for sql in farthest] == [5, 5, 4, 4, 1, 1]


def test_the_hardest_come_first_and_what_cannot_run_last() -> None:
    order = _rejected("hard_first")
    # Weight 1 and no class, then one class, then two; weight 0.5; weight 0.
    assert order[0] == "SELECT a FROM t ORDER BY b LIMIT 1"
    assert set(order[1:3]) == {"SELECT b FROM t", "SELECT a FROM t WHERE a > 3"}
    assert order[3:] == [
        "SELECT b FROM t WHERE a > 3",
        "SELECT a, b, c FROM t",
        "SELECT a FORM t",
    ]


def test_one_for_each_error_class_and_no_class_is_shown_twice_alone() -> None:
    for seed in range(20):
        order = _rejected("one_per_error_class", seed, tuple(CORRECT))
        # The query with two classes adds none to those of the single ones.
        assert set(order) == set(ERRORS) - {"SELECT b FROM t WHERE a > 3"}
        assert len(order) == 5


@pytest.mark.parametrize("name", POLICY_NAMES)
@settings(max_examples=30)
@given(seed=st.integers(0, 99), num_correct=st.integers(0, 2), num_erroneous=st.integers(0, 6))
def test_every_policy_gives_distinct_pairs_and_a_limit_cuts_them(
    name: str, seed: int, num_correct: int, num_erroneous: int
) -> None:
    correct, erroneous = CORRECT[:num_correct], ERRONEOUS[:num_erroneous]
    every = _policy(name)(correct, erroneous, 99, random.Random(seed))
    assert len(set(every)) == len(every)
    assert set(every) <= set(itertools.product(correct, erroneous))
    assert bool(every) == bool(correct and erroneous)
    for limit in (1, 3):
        again = _policy(name)(correct, erroneous, limit, random.Random(seed))
        assert again == every[:limit]
    if name != "one_per_error_class":
        assert len(every) == num_correct * num_erroneous
    if name not in ("one_per_error_class", "random"):
        first_round = [rejected for _, rejected in every[:num_erroneous]]
        assert len(set(first_round)) == len(first_round)


def test_groups_take_the_next_pairs_of_their_chosen_query() -> None:
    a, b = CORRECT
    e, f, g = ERRONEOUS[:3]
    pairs = [(a, e), (b, f), (a, g), (b, e), (a, f), (b, g)]
    assert group_by_chosen(pairs, limit=1, num_rejected=2) == [(a, [e, g])]
    assert group_by_chosen(pairs, limit=9, num_rejected=2) == [
        (a, [e, g]), (b, [f, e]), (a, [f]), (b, [g]),
    ]  # fmt: skip
    assert group_by_chosen(pairs, limit=4, num_rejected=1) == [
        (chosen, [rejected]) for chosen, rejected in pairs[:4]
    ]
