"""Columns that a query chooses by, told from its text: most queries need no parser for that."""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Final


@dataclass(frozen=True, slots=True)
class PlainQuery:
    """A query of which every part was recognised.

    Attributes:
        is_cut: whether the outermost query has a LIMIT. No other has one.
        bare_columns: where columns stand, as `[start, end)` in the text, that are neither grouped
            by nor aggregated; only in the result columns and the ORDER BY of the outermost query.
    """

    is_cut: bool
    bare_columns: tuple[tuple[int, int], ...]


# What may stand before a parenthesis in a text that is told to be harmless without parsing it.
_PLAIN_CALLS: Final = frozenset(
    """
    count avg sum max min abs round lower upper length substr in and or not where on having by from
    join select exists between like using union all intersect except distinct
    """.split()  # noqa: SIM905
)
_CALLED: Final = re.compile(r"\b(\w+)\s*\(")
_ONE_AGGREGATE: Final = re.compile(r"\b(?:count|avg|sum|max|min)\s*\([^(),]*\)")
_EXTREME: Final = re.compile(r"\bm(?:ax|in)\s*\(")
_UNUSUAL: Final = re.compile(
    r"--|/\*|\[|`|\\|\$|\b(?:over|with|offset|fetch|values|window|qualify|distinct\s+on|case)\b"
)
_QUOTED: Final = re.compile(r"'[^']*'|\"[^\"]*\"")
# Letters, so that what they stand for counts as a name, and of no ASCII text.
_QUOTED_NAME: Final = "ª"
_SUBQUERY: Final = "º"
_OPEN_SUBQUERY: Final = re.compile(r"\(\s*select\b")
_PARENTHESIS: Final = re.compile(r"[()]")
_SET_OPERATOR: Final = re.compile(r"\b(?:union(?:\s+all)?|intersect|except)\b")
_COMMA: Final = re.compile(",")
_SELECT: Final = re.compile(r"\s*select\b")
_FROM: Final = re.compile(r"\bfrom\b")
_CLAUSE: Final = re.compile(r"\b(group\s+by|having|order\s+by|limit)\b")
_LIMIT: Final = re.compile(r"\blimit\b")
_ALIAS: Final = re.compile(r"\bas\s+(\w+)")
_NAME: Final = re.compile(r"\b[^\W\d]\w*(?:\.\w+)?")
_NO_NAME: Final = frozenset(
    "distinct and or not is null in between like asc desc nulls first last".split()  # noqa: SIM905
)
# A result column or a sort key that is nothing but a column.
_ONE_COLUMN: Final = re.compile(r"\s*(?:distinct\s+)?([^\W\d]\w*(?:\.\w+)?)\s*(?:asc|desc)?\s*")
_READ_FROM: Final = ("in", "from", "join", "exists")


@functools.lru_cache(maxsize=64)
def read_plain_query(sql: str) -> PlainQuery | None:
    """Tell from the text alone what a query may choose by.

    Returns:
        What is known if every part of the text is one of the usual ones: then it has no function
        but the common aggregates and a few of one value, no window, no CTE, no LIMIT but the
        outermost, and every subquery that stands for one value has one row. `None` otherwise.

    Example:
        >>> sql = "SELECT a, b, count(*) FROM t GROUP BY a LIMIT 3"
        >>> read_plain_query(sql)
        PlainQuery(is_cut=True, bare_columns=((10, 11),))
        >>> read_plain_query("SELECT a FROM t WHERE b = (SELECT b FROM u)") is None
        True
    """
    if not sql.isascii():
        # Lower case may have another length.
        return None
    # A string is no name; what stands in double quotes may be one, that no key is called by.
    text = _QUOTED.sub(
        lambda found: ("0" if found[0][0] == "'" else _QUOTED_NAME) * len(found[0]), sql.lower()
    )
    if _UNUSUAL.search(text) is not None or not _PLAIN_CALLS.issuperset(_CALLED.findall(text)):
        return None
    # From the inside out, each subquery gives way to a mark of its length.
    for opened in reversed(list(_OPEN_SUBQUERY.finditer(text))):
        end = _find_end(text, opened.end())
        if end is None:
            return None
        start = opened.start() + 1
        before = text[: opened.start()].rstrip().rpartition(" ")[2]
        columns = _read_selects(text[start:end], is_scalar=before not in _READ_FROM)
        if columns is None or columns or _LIMIT.search(text, start, end) is not None:
            return None
        text = text[:start] + _SUBQUERY * (end - start) + text[end:]
    body = text.rstrip().removesuffix(";")
    cut = _LIMIT.search(body)
    if ";" in body or (cut is not None and (body.count("limit") > 1 or ")" in body[cut.end() :])):
        return None
    columns = _read_selects(body, is_scalar=False)
    return None if columns is None else PlainQuery(cut is not None, tuple(columns))


def _find_end(text: str, start: int) -> int | None:
    """Position of the parenthesis that closes the one opened before `start`."""
    depth = 1
    for found in _PARENTHESIS.finditer(text, start):
        depth += 1 if found[0] == "(" else -1
        if depth == 0:
            return found.start()
    return None


def _read_selects(text: str, *, is_scalar: bool) -> list[tuple[int, int]] | None:
    """The bare columns of one query or of several that are united, `None` if that is not plain."""
    parts = _split(_SET_OPERATOR, text, 0)
    columns: list[tuple[int, int]] = []
    for start, part in parts:
        found = _read_select(part, start, is_scalar=is_scalar)
        if found is None or (found and len(parts) > 1):
            return None
        columns += found
    return columns


def _split(pattern: re.Pattern[str], text: str, start: int) -> list[tuple[int, str]]:
    pieces, at = [], 0
    for found in pattern.finditer(text):
        pieces.append((start + at, text[at : found.start()]))
        at = found.end()
    return [*pieces, (start + at, text[at:])]


def _read_select(text: str, start: int, *, is_scalar: bool) -> list[tuple[int, int]] | None:
    head, source = _SELECT.match(text), _FROM.search(text)
    if head is None or source is None or "select" in text[head.end() :]:
        return None
    places = [(start + head.end(), text[head.end() : source.start()])]
    marks = list(_CLAUSE.finditer(text, source.end()))
    keys = None
    for mark, end in zip(marks, [*(mark.start() for mark in marks[1:]), len(text)], strict=False):
        clause = text[mark.end() : end]
        if mark[0].startswith("group"):
            keys = clause
        elif not mark[0].startswith("limit"):
            places.append((start + mark.end(), clause))
    rest = [(at, _blank(_ONE_AGGREGATE, place)) for at, place in places]
    if rest == places and keys is None:
        return None if is_scalar else []
    aliases = set(_ALIAS.findall(rest[0][1]))
    rest[0] = (rest[0][0], _blank(_ALIAS, rest[0][1]))
    known = {key.strip(" \n\t();") for key in (keys or "").split(",")} - {""}
    if (
        "*" in rest[0][1]
        or (is_scalar and keys is not None)
        or any(_SUBQUERY in place for _, place in places)
        or not all(map(_NAME.fullmatch, known))
        or any(_QUOTED_NAME in name for name in known)
    ):
        return None
    bare = []
    for number, (at, place) in enumerate(rest):
        # A name of this query is one behind its result columns only.
        is_named = _get_test(known, aliases if number else set())
        bare += [
            (at + name.start(), at + name.end())
            for name in _NAME.finditer(place)
            if not is_named(name[0])
        ]
    if not bare:
        return []
    # Which other columns follow from one maximum, or from a name given in this query, is not plain.
    if any(_EXTREME.search(place) for _, place in places) or aliases & {
        name.rpartition(".")[2] for name in known
    }:
        return None
    return bare if set(bare) <= set(_find_whole_columns(rest)) else None


def _get_test(keys: set[str], aliases: set[str]) -> Callable[[str], bool]:
    """A test of whether a word is no column, or may be one of the keys: `a` may be `t.a`."""
    own = {key for key in keys if "." not in key}
    alone = {key.rpartition(".")[2] for key in keys} | aliases

    def test(word: str) -> bool:
        if word in keys or word in _NO_NAME or word.rpartition(".")[2] in own:
            return True
        return "." not in word and word in alone

    return test


def _blank(pattern: re.Pattern[str], text: str) -> str:
    return pattern.sub(lambda found: " " * len(found[0]), text)


def _find_whole_columns(places: list[tuple[int, str]]) -> Iterator[tuple[int, int]]:
    """Places of columns that stand alone between two commas."""
    for at, place in places:
        for start, item in _split(_COMMA, place, at):
            found = _ONE_COLUMN.fullmatch(item)
            if found is not None and found[1] not in _NO_NAME and _QUOTED_NAME not in found[1]:
                yield start + found.start(1), start + found.end(1)
