"""`is_redundant`: queries that nobody would ask, because a part of them says nothing.

`SELECT maker FROM cars WHERE maker = 'fiat'` asks for what it states. Queries that are drawn, and
templates two places of which take the same column, come out like this.
"""

from __future__ import annotations

from typing import Any, Final

from sqlglot import exp

from sense_trl.sql.parsing import parse_sql


def is_redundant(sql: str, dialect: str) -> bool:
    """Whether a SELECT of a query has a part that cannot change what it returns, or its order.

    That is another use, outside joins, of a column that an equality fixes; two bounds on one side
    of a column; an inequality beside another condition on its column under OR; a HAVING that every
    group fulfils.

    Args:
        sql: one query.
        dialect: of its text.

    Raises:
        SQLParseError: it is no query.

    Example:
        >>> is_redundant("SELECT name FROM pet WHERE age != 3 AND age = 2", "sqlite")
        True
        >>> is_redundant("SELECT name FROM pet WHERE age > 3 AND age < 5", "sqlite")
        False
    """
    selects = parse_sql(sql, dialect).find_all(exp.Select)
    return any(_uses_fixed(s) or _repeats_bound(s) or _keeps_all_groups(s) for s in selects)


def _uses_fixed(select: exp.Select) -> bool:
    """Whether a column is asked for, or compared, although its value is stated."""
    used = [
        column.sql()
        for column in select.find_all(exp.Column)
        if column.parent_select is select and column.find_ancestor(exp.Join, exp.Select) is select
    ]
    return any(used.count(column) > 1 for column in _compared(_conjuncts(select), exp.EQ))


def _repeats_bound(select: exp.Select) -> bool:
    conditions = _conjuncts(select)
    for sides in _SIDES:
        bounded = _compared(conditions, *sides)
        if len(set(bounded)) < len(bounded):
            return True
    return any(_holds_anyway(either) for either in select.find_all(exp.Or))


def _holds_anyway(either: exp.Or) -> bool:
    """Whether one side of an OR says all but what the other does."""
    left, right = [either.this.unnest()], [either.expression.unnest()]
    return any(
        set(_compared(one, exp.NEQ)) & set(_compared(other, *_COMPARISONS))
        for one, other in ((left, right), (right, left))
    )


def _keeps_all_groups(select: exp.Select) -> bool:
    having = select.args.get("having")
    return having is not None and having.this.sql().upper() in _ALWAYS


def _conjuncts(select: exp.Select) -> list[Any]:
    """The conditions that all hold for each row."""
    where = select.args.get("where")
    return [] if where is None else _split(where.this)


def _split(condition: exp.Expression) -> list[Any]:
    condition = condition.unnest()
    if isinstance(condition, exp.And):
        return [*_split(condition.this), *_split(condition.expression)]
    return [condition]


def _compared(conditions: list[Any], *kinds: type[exp.Expression]) -> list[str]:
    """The columns that conditions of some kinds compare with a constant."""
    return [
        condition.this.sql()
        for condition in conditions
        if isinstance(condition, kinds)
        and isinstance(condition.this, exp.Column)
        and isinstance(condition.expression, (exp.Literal, exp.Neg))
    ]


_SIDES: Final = ((exp.GT, exp.GTE), (exp.LT, exp.LTE))
_COMPARISONS: Final = (exp.EQ, exp.NEQ, exp.GT, exp.GTE, exp.LT, exp.LTE, exp.Like)
_ALWAYS: Final = frozenset({"COUNT(*) >= 1", "COUNT(*) > 0"})
