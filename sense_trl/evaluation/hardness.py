"""`get_hardness`: Spider's four levels of difficulty, counted from the gold query."""

from __future__ import annotations

from enum import StrEnum

from sense_trl.evaluation.spider_sql import (
    ColumnUnit,
    SpiderQuery,
    get_table_columns,
    read_gold_sql,
)
from sense_trl.schema import DatabaseSchema


class Hardness(StrEnum):
    """Spider's levels, from easy to extra hard."""

    EASY = "easy"
    MEDIUM = "medium"
    HARD = "hard"
    EXTRA = "extra"


def get_hardness(gold_sql: str, schema: DatabaseSchema) -> Hardness:
    """Spider's level of a gold query (Yu et al., 2018, arXiv 1809.08887).

    Three things are counted, as `evaluation.py` of https://github.com/taoyds/spider does it:

    1. clauses: WHERE, GROUP BY, ORDER BY and LIMIT, each table after the first, each OR and LIKE;
    2. nested queries: in conditions and behind a set operator. Subqueries in FROM do not count;
    3. further parts, at most one each: several aggregates, result columns, WHERE conditions or
       grouping columns. Each NOT in WHERE or HAVING and each AND or OR in HAVING passes for an
       aggregate; the script takes the first field of whatever it meets for one.

    Only the outermost query is looked at; the level says nothing about the words of the question.

    Raises:
        InputError: Spider's parser cannot read `gold_sql` (see `sense_trl.evaluation.spider_sql`).

    Example:
        >>> from sense_trl.database import ColumnInfo, TableInfo
        >>> columns = tuple(ColumnInfo(name, "text", False, 0) for name in ("name", "age"))
        >>> schema = DatabaseSchema("pets", "sqlite", (TableInfo("dog", columns, (), False),))
        >>> get_hardness("SELECT name FROM dog WHERE age > 3", schema)
        <Hardness.EASY: 'easy'>
        >>> get_hardness("SELECT name, age FROM dog WHERE age > 3 ORDER BY age", schema)
        <Hardness.MEDIUM: 'medium'>
    """
    query = read_gold_sql(gold_sql, get_table_columns(schema))
    clauses = _count_clauses(query)
    nested = _count_nested(query)
    parts = _count_further_parts(query)
    if clauses <= 1 and nested == 0 and parts == 0:
        return Hardness.EASY
    if nested == 0 and ((clauses <= 1 and parts <= 2) or (clauses <= 2 and parts < 2)):
        return Hardness.MEDIUM
    if nested == 0 and ((clauses <= 2 and parts > 2) or (clauses == 3 and parts <= 2)):
        return Hardness.HARD
    if nested == 1 and clauses <= 1 and parts == 0:
        return Hardness.HARD
    return Hardness.EXTRA


def _count_clauses(query: SpiderQuery) -> int:
    conditions = (query.joins, query.where, query.having)
    return (
        bool(query.where.units)
        + bool(query.group_by)
        + (query.order_direction is not None)
        + query.has_limit
        + max(len(query.tables) - 1, 0)
        + sum(clause.connectives.count("or") for clause in conditions)
        + sum(unit.operator == "like" for clause in conditions for unit in clause.units)
    )


def _count_nested(query: SpiderQuery) -> int:
    values = [
        value
        for clause in (query.joins, query.where, query.having)
        for unit in clause.units
        for value in (unit.value, unit.upper_value)
    ]
    return sum(isinstance(value, SpiderQuery) for value in values) + (query.set_query is not None)


def _count_further_parts(query: SpiderQuery) -> int:
    return (
        (_count_aggregates(query) > 1)
        + (len(query.select) > 1)
        + (len(query.where.units) > 1)
        + (len(query.group_by) > 1)
    )


def _count_aggregates(query: SpiderQuery) -> int:
    units: list[ColumnUnit] = list(query.group_by)
    for unit in query.order_by:
        units += [unit.left] if unit.right is None else [unit.left, unit.right]
    return (
        sum(aggregate != "none" for aggregate, _ in query.select)
        + sum(unit.aggregate != "none" for unit in units)
        + sum(condition.negated for condition in query.where.units + query.having.units)
        + len(query.having.connectives)
    )
