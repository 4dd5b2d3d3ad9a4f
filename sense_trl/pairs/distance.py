"""`token_distance`: how far two queries are apart."""

from __future__ import annotations

import contextlib
import re
from functools import lru_cache
from typing import Final

from rapidfuzz.distance import Levenshtein

from sense_trl.sql.parsing import SQLParseError, canonical_sql

_TOKEN: Final = re.compile(r"'(?:[^']|'')*'|\"[^\"]*\"|\w+|<=|>=|<>|!=|\|\||\S")
_MAX_TOKENS: Final = 10_000


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


@lru_cache(maxsize=4096)
def _tokens(sql: str, dialect: str) -> tuple[str, ...]:
    with contextlib.suppress(SQLParseError):
        sql = canonical_sql(sql, dialect)
    return tuple(_TOKEN.findall(sql))
