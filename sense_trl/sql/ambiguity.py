"""Queries that have several right answers: what to look for in the text of a query."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Final

from sqlglot import exp

from sense_trl.sql.parsing import parse_sql

__all__ = ["depends_on_scan_order", "get_bare_column_queries"]

_AGGREGATE: Final = re.compile(r"\b(?:avg|count|max|min|sum|total)\s*\(", re.IGNORECASE)
_GROUP: Final = re.compile(r"\bgroup\b", re.IGNORECASE)
# Aggregates whose value is the same in whatever order they see the rows of a group, but for the
# last bits of a sum of floats.
_ORDERLESS: Final = (exp.Avg, exp.Count, exp.Max, exp.Min, exp.Sum)


def depends_on_scan_order(sql: str, dialect: str) -> bool:
    """Whether the bag of rows may depend on the order in which tables are read.

    Answers no only where that is plain: no LIMIT, no window, no aggregate that keeps an order
    (`group_concat`), no function that sqlglot does not know, no column that is neither grouped by
    nor aggregated, and no scalar subquery that could have several rows.

    Raises:
        SQLParseError: the text is not one statement.

    Example:
        >>> depends_on_scan_order("SELECT a, count(*) FROM t GROUP BY a", "sqlite")
        False
        >>> depends_on_scan_order("SELECT a, b, count(*) FROM t GROUP BY a", "sqlite")
        True
    """
    tree = parse_sql(sql, dialect)
    for node in tree.walk():
        if isinstance(node, (exp.Limit, exp.Offset, exp.Fetch, exp.Window, exp.Anonymous)):
            return True
        if isinstance(node, exp.AggFunc) and not _is_orderless(node):
            return True
        if isinstance(node, exp.Select) and _has_bare_columns(node):
            return True
        if isinstance(node, exp.Subquery) and _may_be_scalar(node) and not _has_one_row(node.this):
            return True
    return False


def get_bare_column_queries(sql: str, dialect: str) -> tuple[str, str] | None:
    """Rewrite a query so that two answers show whether its bare columns have one value per group.

    SQLite takes a column that is neither grouped by nor aggregated from any one row of its group.
    The rewritten queries take the smallest and the largest value instead (NULL and the largest
    where the group has NULL and something else): where they give the same rows, every choice
    gives them.

    Returns:
        The two texts; `None` where there is no such column, or where a query's only aggregate is
        one MIN or MAX, whose row SQLite then takes the columns from.

    Raises:
        SQLParseError: the text is not one statement. (Texts without aggregates and GROUP BY are
            answered without parsing.)

    Example:
        >>> low, high = get_bare_column_queries("SELECT a, b FROM t GROUP BY a", "sqlite")
        >>> low
        'SELECT a, CASE WHEN COUNT(b) = COUNT(*) THEN MIN(b) END FROM t GROUP BY a'
        >>> high
        'SELECT a, MAX(b) FROM t GROUP BY a'
    """
    if not (_GROUP.search(sql) or _AGGREGATE.search(sql)):
        return None
    tree = parse_sql(sql, dialect)
    if next(_all_bare_columns(tree), None) is None:
        return None
    texts = []
    for lowest in (True, False):
        rewritten = tree.copy()
        for column in list(_all_bare_columns(rewritten)):
            _replace(column, _smallest(column) if lowest else exp.Max(this=column.copy()))
        texts.append(rewritten.sql(dialect=dialect))
    return texts[0], texts[1]


def _smallest(column: exp.Expression) -> exp.Expression:
    complete = exp.EQ(this=exp.Count(this=column.copy()), expression=exp.Count(this=exp.Star()))
    return exp.Case(ifs=[exp.If(this=complete, true=exp.Min(this=column.copy()))])


def _replace(column: exp.Expression, value: exp.Expression) -> None:
    select = column.parent
    if isinstance(select, exp.Select) and select.parent is not None:
        # A result column keeps its name, which an outer query may use.
        value = exp.alias_(value, column.name, quoted=True)
    column.replace(value)


def _all_bare_columns(tree: exp.Expression) -> Iterator[exp.Expression]:
    for select in list(tree.find_all(exp.Select)):
        if not _takes_the_row_of_an_extreme(select):
            yield from _bare_columns(select)


def _takes_the_row_of_an_extreme(select: exp.Select) -> bool:
    aggregates = list(_own(select, exp.AggFunc))
    return len(aggregates) == 1 and isinstance(aggregates[0], (exp.Max, exp.Min))


def _has_bare_columns(select: exp.Select) -> bool:
    if not _is_grouped(select):
        return False
    if next(_bare_columns(select), None) is not None or next(_own(select, exp.Query), None):
        # A query inside may use columns of this one.
        return True
    # Which columns a star stands for, the schema says, and whether a quoted word is a column.
    has_star = any(column.is_star for column in select.expressions)
    return has_star or any(map(_is_string, _own(select, exp.Column)))


def _is_grouped(select: exp.Select) -> bool:
    return select.args.get("group") is not None or next(_own(select, exp.AggFunc), None) is not None


def _bare_columns(select: exp.Select) -> Iterator[exp.Expression]:
    """Columns outside aggregates that the grouping does not name (a subquery's are its own)."""
    if not _is_grouped(select):
        return
    group = select.args.get("group")
    keys = [] if group is None else list(group.expressions)
    names = {projection.alias.lower() for projection in select.expressions if projection.alias}
    # A key may be a number or an alias of a result column.
    for key in list(keys):
        if isinstance(key, exp.Literal) and key.this.isdigit():
            position = int(key.this) - 1
            if position < len(select.expressions):
                keys.append(select.expressions[position].unalias())
        elif isinstance(key, exp.Column) and key.name.lower() in names:
            keys += [p.unalias() for p in select.expressions if p.alias.lower() == key.name.lower()]
    spelled = {_spelled(key) for key in keys}
    columns = [key for key in keys if isinstance(key, exp.Column)]
    for part in ("expressions", "having", "order"):
        for column in _own_in(select, select.args.get(part), exp.Column):
            if column.is_star or _is_string(column) or _stands_in(column, select, spelled):
                continue
            if any(_may_be_one(column, key) for key in columns):
                continue
            if part != "expressions" and not column.table and column.name.lower() in names:
                continue
            yield column


def _may_be_one(left: exp.Column, right: exp.Column) -> bool:
    """Whether two spellings may name one column: `a` may be `t.a`."""
    tables = {left.table.lower(), right.table.lower()} - {""}
    return left.name.lower() == right.name.lower() and len(tables) < 2


def _is_string(column: exp.Expression) -> bool:
    """A quoted word without a table may be a string to SQLite."""
    identifier = column.this
    return not column.table and isinstance(identifier, exp.Identifier) and bool(identifier.quoted)


def _stands_in(node: exp.Expression, select: exp.Select, spelled: set[str]) -> bool:
    """Whether a grouping expression or an aggregate of `select` stands around `node`."""
    inner: exp.Expression | None = node
    while inner is not None and inner is not select:
        if isinstance(inner, exp.AggFunc) or _spelled(inner) in spelled:
            return True
        inner = inner.parent
    return False


def _spelled(node: exp.Expression) -> str:
    text: str = node.sql()
    return text.lower()


def _own(select: exp.Select, kind: type[exp.Expression]) -> Iterator[exp.Expression]:
    for part in ("expressions", "having", "order"):
        yield from _own_in(select, select.args.get(part), kind)


def _own_in(
    select: exp.Select, part: object, kind: type[exp.Expression]
) -> Iterator[exp.Expression]:
    """Nodes of a kind below `part` that do not belong to a query inside it."""
    for root in part if isinstance(part, list) else [part]:
        if isinstance(root, exp.Expression):
            for node in root.walk(prune=lambda node: isinstance(node, exp.Query)):
                if isinstance(node, kind) and not isinstance(node.parent, exp.Window):
                    yield node


def _is_orderless(node: exp.AggFunc) -> bool:
    return isinstance(node, _ORDERLESS) and (
        # Over several columns: not an aggregate to SQLite.
        not node.expressions or isinstance(node, exp.Count)
    )


def _may_be_scalar(subquery: exp.Subquery) -> bool:
    parent, part = subquery.parent, str(subquery.arg_key)
    if isinstance(parent, exp.In):
        # `a IN ((SELECT b FROM t))` takes one row.
        return part != "query" or isinstance(subquery.this, exp.Subquery)
    if isinstance(parent, exp.Join):
        return part != "this"
    return not isinstance(parent, (exp.From, exp.Exists, exp.SetOperation, exp.Subquery))


def _has_one_row(query: exp.Expression) -> bool:
    return (
        isinstance(query, exp.Select)
        and query.args.get("group") is None
        and next(_own_in(query, query.expressions, exp.AggFunc), None) is not None
    )
