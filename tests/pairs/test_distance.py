"""Distances between queries: counted by hand, and metrics for every pair of queries."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sense_trl.pairs import distance
from sense_trl.pairs.distance import token_distance, tree_distance

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
    ("left", "right", "tokens", "nodes"),
    [
        # Spelling is no distance.
        ("select A from T as x", "SELECT a FROM t AS y", 0, 0),
        # One name; one identifier.
        ("SELECT a FROM t", "SELECT b FROM t", 1, 1),
        # ", b": two tokens; a column and its identifier.
        ("SELECT a FROM t", "SELECT a, b FROM t", 2, 2),
        # "WHERE b = 1": four tokens; where, equality, column, identifier, literal.
        ("SELECT a FROM t", "SELECT a FROM t WHERE b = 1", 4, 5),
        # A string is one token and one node, whatever it holds.
        ("SELECT a FROM t WHERE b = 'x'", "SELECT a FROM t WHERE b = 'one two'", 1, 1),
        # Neither is SQL: one node for another, three words and a full stop for one.
        ("I do not", "know .", 3, 1),
    ],
)
def test_edits_are_counted(left: str, right: str, tokens: int, nodes: int) -> None:
    assert token_distance(left, right, "sqlite") == tokens
    assert tree_distance(left, right, "sqlite") == nodes


@pytest.mark.parametrize("measure", [token_distance, tree_distance])
@given(st.tuples(*[st.sampled_from(QUERIES)] * 3))
def test_both_are_metrics(measure, queries: tuple[str, str, str]) -> None:
    a, b, c = queries
    assert (measure(a, b, "sqlite") == 0) == (a == b)
    assert measure(a, b, "sqlite") == measure(b, a, "sqlite")
    assert measure(a, c, "sqlite") <= measure(a, b, "sqlite") + measure(b, c, "sqlite")


def test_what_lies_behind_the_cap_counts_as_replaced(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(distance, "_MAX_TOKENS", 3)
    assert token_distance("no SQL ) x y", "no SQL )", "sqlite") == 2
    assert token_distance("no SQL of x y", "no SQL )", "sqlite") == 1 + 2


def test_trees_that_are_too_large_go_and_come_as_a_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(distance, "_MAX_NODE_PAIRS", 40)
    short, long = "SELECT a FROM t", "SELECT a, b FROM t"
    # Six nodes and eight; the roots are both SELECT.
    assert tree_distance(short, long, "sqlite") == 5 + 7
    assert tree_distance(long, long, "sqlite") == 0
    assert tree_distance("SELECT 1", "SELECT 2", "sqlite") == 1
