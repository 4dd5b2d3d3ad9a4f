"""Distances between two queries: in tokens, and in nodes of their syntax trees."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable
from functools import lru_cache
from typing import Final, TypeAlias

from rapidfuzz.distance import Levenshtein
from sqlglot import exp

from sense_trl.sql.parsing import SQLParseError, canonical_sql, parse_sql

Distance: TypeAlias = Callable[[str, str, str], int]
"""From two queries and their dialect to the number of edits between them."""

Tree: TypeAlias = tuple[str, tuple["Tree", ...], int]
"""Label, children, number of nodes."""

_TOKEN: Final = re.compile(r"'(?:[^']|'')*'|\"[^\"]*\"|\w+|<=|>=|<>|!=|\|\||\S")
_NO_SQL: Final = "no SQL"
_MAX_TOKENS: Final = 10_000
# Some 0.1 s. Of 3,674 queries of Spider and BIRD no two have as many.
_MAX_NODE_PAIRS: Final = 100_000


def token_distance(left: str, right: str, dialect: str) -> int:
    """Tokens to insert, delete or replace to get from one query to the other (Levenshtein).

    Between the canonical texts (see `canonical_sql`), so that spelling is no distance; a text that
    does not parse counts as it is. What lies behind 10,000 tokens counts as replaced.

    Example:
        >>> token_distance("SELECT a FROM t", "select a from t where b > 3", "sqlite")
        4
    """
    ours, theirs = _tokens(left, dialect), _tokens(right, dialect)
    num_beyond = max(len(ours), len(theirs)) - _MAX_TOKENS
    return Levenshtein.distance(ours[:_MAX_TOKENS], theirs[:_MAX_TOKENS]) + max(num_beyond, 0)


def tree_distance(left: str, right: str, dialect: str) -> int:
    """Nodes to insert, delete or rename to get from one syntax tree to the other, from the top.

    A node can only be inserted or deleted together with all that is below it (Selkow, "The
    tree-to-tree editing problem", 1977); that is quadratic in the number of nodes. A text that does
    not parse is one node that equals no other but itself, and of trees with more than 100,000 pairs
    of nodes one goes and the other comes as a whole, but for their roots.

    Example:
        >>> tree_distance("SELECT a FROM t", "SELECT b FROM t", "sqlite")
        1
        >>> tree_distance("SELECT a FROM t", "SELECT a FROM t WHERE b = 1", "sqlite")
        5
    """
    ours, theirs = _tree(left, dialect), _tree(right, dialect)
    if ours[2] * theirs[2] > _MAX_NODE_PAIRS and ours != theirs:
        return ours[2] + theirs[2] - 2 + (ours[0] != theirs[0])
    return _tree_distance(ours, theirs)


@lru_cache(maxsize=4096)
def _tokens(sql: str, dialect: str) -> tuple[str, ...]:
    with contextlib.suppress(SQLParseError):
        sql = canonical_sql(sql, dialect)
    return tuple(_TOKEN.findall(sql))


@lru_cache(maxsize=4096)
def _tree(sql: str, dialect: str) -> Tree:
    try:
        return _convert(parse_sql(canonical_sql(sql, dialect), dialect))
    except SQLParseError:
        return f"{_NO_SQL}: {sql}", (), 1


def _convert(node: exp.Expression) -> Tree:
    children = tuple(_convert(child) for child in node.iter_expressions())
    values = sorted(
        f"{name}={value}"
        for name, value in node.args.items()
        if value and not isinstance(value, (exp.Expression, list))
    )
    return " ".join([node.key, *values]), children, 1 + sum(size for _, _, size in children)


def _tree_distance(left: Tree, right: Tree) -> int:
    if left == right:
        return 0
    # The same sequence distance, over children: whole subtrees come and go, or become each other.
    ours, theirs = left[1], right[1]
    row = [0]
    for other in theirs:
        row.append(row[-1] + other[2])
    for child in ours:
        diagonal, row[0] = row[0], row[0] + child[2]
        for j, other in enumerate(theirs, start=1):
            changed = diagonal + _tree_distance(child, other)
            diagonal = row[j]
            row[j] = min(changed, row[j] + child[2], row[j - 1] + other[2])
    return row[-1] + (left[0] != right[0])
