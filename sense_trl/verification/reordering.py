"""The same query over the same rows in another order: `get_reordered_queries`."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator, Sequence, Set
from typing import Final, NamedTuple

from sense_trl.database.engine import TableInfo
from sense_trl.database.text import quote_name
from sense_trl.sql.parsing import without_end

MAX_ORDERS: Final = 16
"""So many queries there are at most, and of one that skips rows the shuffled ones."""

# Where these stand, columns matter that the text does not name.
_UNNAMED_COLUMNS: Final = re.compile(r"\*|\bnatural\b")
_NAMES_OF_NUMBERS: Final = frozenset({"rowid", "_rowid_", "oid"})
_ROW_NUMBERS: Final = re.compile(rf"\b(?:{'|'.join(_NAMES_OF_NUMBERS)})\b")
_COUNTED: Final = re.compile(r"\(\s*\*\s*\)")
# What PostgreSQL has no order for, and orders here as text.
_UNORDERED: Final = re.compile(
    r"(?:json|xml|point|line|lseg|box|path|polygon|circle|aclitem|xid|cid)\b", re.IGNORECASE
)
_UP, _DOWN = "ASC NULLS FIRST", "DESC NULLS LAST"
# What takes a row in the middle of those that tie: sorted either way, it can be the same one.
_SKIPPING: Final = re.compile(r"\boffset\b|\blimit\b[^(),]{0,40},|\bnth_value\b|\bntile\b")
# The place of a row, times one of these, modulo a prime, is a shuffled place. Counted from both
# ends, they bring every row of up to four to every place.
_SHUFFLES: Final = (1430271108, 2011970467, 904644004, 650970480)
_PRIME: Final = 2**31 - 1


class _Order(NamedTuple):
    """The column to sort by first, the directions of it and of the others, and how to shuffle."""

    lead: str | None
    directions: tuple[str, str]
    factor: int | None = None


def get_reordered_queries(sql: str, tables: Sequence[TableInfo], dialect: str) -> Iterator[str]:
    """Rewrite a query to read the rows of its tables in other orders, which SQL allows as well.

    A table is a bag of rows: where the order in which they are read changes the answer, the query
    has several. Each rewritten query hides the tables behind sorted copies of the same name. So
    whatever takes the first of several rows takes another one: a LIMIT between rows that tie, also
    in a subquery that hangs on the row around it, `row_number` and `lag` over ties,
    `group_concat`, a bare column, DISTINCT ON.

    The first two orders are one and its reverse. Then every column that the query may use leads
    once in both directions, so that of several rows the one with its smallest and the one with its
    largest value come first; at last with the others in the opposite direction. A query that
    skips rows (OFFSET, `nth_value`) reads them shuffled, too.

    Args:
        sql: the query.
        tables: all tables of the database.
        dialect: its dialect.

    Returns:
        At most `MAX_ORDERS` texts and those shuffled; none where the query names no table. The rows
        come in no order. A query that uses what a copy lacks (full-text search, `rowid` beside a
        star) fails.
    """
    lower = sql.lower()
    read = [table for table in tables if table.name.lower() in lower]
    has_unnamed = _UNNAMED_COLUMNS.search(_COUNTED.sub("", lower)) is not None
    row_numbers = set() if has_unnamed else set(_ROW_NUMBERS.findall(lower))
    columns: dict[str, list[str]] = {}
    as_text: set[tuple[str, str]] = set()
    leading: dict[str, None] = {}
    for table in read:
        names = [column.name for column in table.columns]
        named = [name for name in names if name.lower() in lower]
        columns[table.name] = names if has_unnamed else named or names[:1]
        if dialect == "postgres":
            as_text |= {(table.name, c.name) for c in table.columns if _UNORDERED.match(c.type)}
        if not table.is_view and dialect != "postgres":
            columns[table.name] += sorted(row_numbers - {name.lower() for name in names})
        leading.update(dict.fromkeys(name.lower() for name in columns[table.name]))
    if not read:
        return
    same, opposite = ((_UP, _UP), (_DOWN, _DOWN)), ((_UP, _DOWN), (_DOWN, _UP))
    orders: itertools.chain[tuple[str | None, tuple[str, str]]] = itertools.chain(
        itertools.product([None], same),
        # The first order began with the first column.
        itertools.product(leading, same),
        itertools.product(leading, opposite),
    )
    query = without_end(sql, dialect)
    chosen = [_Order(*order) for order in itertools.islice(orders, MAX_ORDERS)]
    if _SKIPPING.search(lower):
        chosen += [_Order(None, both, factor) for factor in _SHUFFLES for both in same]
    for order in chosen:
        copies = [_copy(table, names, order, dialect, as_text) for table, names in columns.items()]
        alias = " AS reread" if dialect == "postgres" else ""
        yield f"WITH {', '.join(copies)}\nSELECT * FROM (\n{query}\n){alias}"


def _copy(
    table: str,
    columns: Sequence[str],
    order: _Order,
    dialect: str,
    as_text: Set[tuple[str, str]],
) -> str:
    first = [name for name in columns if name.lower() == order.lead]
    rest = [name for name in columns if name.lower() != order.lead]
    # A collation would let different texts tie.
    binary = " COLLATE BINARY" if dialect == "sqlite" else ""
    keys = [
        f"{quote_name(name)}{'::text' if (table, name) in as_text else binary} {direction}"
        for names, direction in zip((first, rest), order.directions, strict=True)
        for name in names
    ]
    sorting = ", ".join(keys)
    if order.factor is not None:
        sorting = f"(row_number() OVER (ORDER BY {sorting}) * {order.factor}) % {_PRIME}"
    # SQLite would give the number of a row the name of the column that is its alias.
    selected = [
        f"{quoted} AS {quoted}" if name in _NAMES_OF_NUMBERS else quoted
        for name, quoted in zip(columns, map(quote_name, columns), strict=True)
    ]
    # SQLite keeps the order of a subquery that has a LIMIT.
    # A copy does not see itself in PostgreSQL, whose tables are found by the search path.
    schema = "" if dialect == "postgres" else "main."
    kept, limit = ("", " LIMIT -1") if dialect == "sqlite" else (" MATERIALIZED", "")
    return (
        f"{quote_name(table)} AS{kept} (SELECT {', '.join(selected)} "
        f"FROM {schema}{quote_name(table)} ORDER BY {sorting}{limit})"
    )
