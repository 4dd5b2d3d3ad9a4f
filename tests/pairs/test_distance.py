"""The distance of queries: counted by hand, and a metric for every pair of queries."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sense_trl.pairs import distance
from sense_trl.pairs.distance import token_distance

QUERIES = [
    "SELECT a FROM t",
    "SELECT b FROM t",
    "SELECT a, b FROM t",
    "SELECT a FROM t WHERE b = 1",
    "SELECT a FROM t WHERE b = 'one two'",
    "SELECT a FROM t WHERE b IN (SELECT c FROM u)",
    "SELECT DISTINCT a FROM t ORDER BY a DESC LIMIT 3",
    "SELECT a FROM t UNION SELECT c FROM u",
    "SELECT FROM WHERE",
    "I do not know.",
    "",
]


@pytest.mark.parametrize(
    ("left", "right", "tokens"),
    [
        # Spelling is no distance.
        ("select A from T as x", "SELECT a FROM t AS y", 0),
        # One name.
        ("SELECT a FROM t", "SELECT b FROM t", 1),
        # ", b".
        ("SELECT a FROM t", "SELECT a, b FROM t", 2),
        # "WHERE b = 1".
        ("SELECT a FROM t", "SELECT a FROM t WHERE b = 1", 4),
        # A string is one token, whatever it holds.
        ("SELECT a FROM t WHERE b = 'x'", "SELECT a FROM t WHERE b = 'one two'", 1),
        # Neither is SQL: three words and a full stop for one.
        ("I do not", "know .", 3),
    ],
)
def test_edits_are_counted(left: str, right: str, tokens: int) -> None:
    assert token_distance(left, right, "sqlite") == tokens


@given(st.tuples(*[st.sampled_from(QUERIES)] * 3))
def test_it_is_a_metric(queries: tuple[str, str, str]) -> None:
    a, b, c = queries
    ab, bc, ac = (token_distance(*pair, "sqlite") for pair in ((a, b), (b, c), (a, c)))
    assert (ab == 0) == (a == b)
    assert ab == token_distance(b, a, "sqlite")
    assert ac <= ab + bc


def test_what_lies_behind_the_cap_counts_as_replaced(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(distance, "_MAX_TOKENS", 3)
    assert token_distance("no SQL ) x y", "no SQL )", "sqlite") == 2
    assert token_distance("no SQL of x y", "no SQL )", "sqlite") == 1 + 2
