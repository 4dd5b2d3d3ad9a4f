"""`Level`, `get_level`: how much of SQL a query uses."""

from __future__ import annotations

from enum import StrEnum
from typing import Final

from sqlglot import exp

from sense_trl.sql.parsing import parse_sql


class Level(StrEnum):
    """The three levels of SENSE (arXiv 2408.03256)."""

    EASY = "easy"
    MEDIUM = "medium"
    HARD = "hard"

    @property
    def description(self) -> str:
        """Description of a query of this level, for a prompt."""
        return _DESCRIPTIONS[self]


_DESCRIPTIONS: Final = {
    Level.EASY: "one table, with a filter, a sort or an aggregate",
    Level.MEDIUM: "two or three joined tables, with a filter, groups or aggregates",
    Level.HARD: "several tables and at least two of: a subquery, a common table expression, "
    "HAVING, INTERSECT, EXCEPT or UNION, a window function, CASE",
}
_MANY_JOINS: Final = 3


def get_level(sql: str, dialect: str) -> Level:
    """The level of a query.

    Advanced features are: each SELECT inside another query or joined to one by a set operation,
    HAVING, windows, CASE, and three or more joins taken together. With two of them a query is
    hard, with none of them and one table it is easy.

    Raises:
        SQLParseError: the text is not one statement.

    Example:
        >>> get_level("SELECT name FROM pet WHERE age > 3", "sqlite")
        <Level.EASY: 'easy'>
        >>> get_level("SELECT name FROM pet WHERE age = (SELECT max(age) FROM pet)", "sqlite")
        <Level.MEDIUM: 'medium'>
    """
    tree = parse_sql(sql, dialect)
    features = len(list(tree.find_all(exp.Select))) - 1
    features += len(list(tree.find_all(exp.Having, exp.Window, exp.Case)))
    features += len(list(tree.find_all(exp.Join))) >= _MANY_JOINS
    if features >= 2:
        return Level.HARD
    if features == 0 and len(list(tree.find_all(exp.Table))) <= 1:
        return Level.EASY
    return Level.MEDIUM
