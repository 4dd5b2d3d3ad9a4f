"""`exact_set_match`: Spider's comparison of two queries clause by clause, without running them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace

from sense_trl.evaluation.spider_sql import (
    ColumnUnit,
    Conditions,
    SpiderQuery,
    SpiderSQLError,
    Value,
    ValueUnit,
    get_table_columns,
    read_gold_sql,
    read_spider_sql,
)
from sense_trl.schema import DatabaseSchema


def exact_set_match(predicted_sql: str, gold_sql: str, schema: DatabaseSchema) -> bool:
    """Whether a prediction has the clauses of gold, by the rules of Spider (Yu et al., 2018).

    The verdicts are those of `evaluation.py --etype match` of
    https://github.com/taoyds/test-suite-sql-eval (arXiv 1809.08887, 2010.02840). Result columns,
    conditions and tables are compared as bags; GROUP BY, HAVING and ORDER BY as written. Columns
    that a chain of foreign keys links count as one where their table is in the FROM clause.

    Not seen:

    * values, and the number behind LIMIT;
    * DISTINCT, also inside an aggregate;
    * conditions of joins, but for the presence of OR, NOT, IN and LIKE;
    * how AND and OR are nested: only which of them occur in WHERE;
    * the direction of each sort key: the last one written counts for all;
    * what follows a complete query, and what follows a column that stands as a value, such as the
      second half of `a = b OR c = d`.

    Subqueries are compared as written: in a condition everything but values must agree (DISTINCT,
    the order of columns and conditions, the left side of each join, columns that keys link); in
    FROM the values, too. Two subqueries in FROM that differ stop the script; here, no match.

    Counted as wrong although it may be right: every prediction that Spider's parser cannot read
    (see `sense_trl.evaluation.spider_sql`), every other way of writing the same query, and, since
    the script replaces `value` by `1` throughout the prediction, most that name a column like
    `value`.

    Args:
        predicted_sql: any text; it is never executed.
        gold_sql: a query that Spider's parser can read.
        schema: the database; for official figures from `load_spider_schemas`, because many
            database files do not declare the foreign keys that `tables.json` lists.

    Raises:
        InputError: Spider's parser cannot read `gold_sql`; the script ends there.

    Example:
        >>> from sense_trl.database import ColumnInfo, TableInfo
        >>> columns = tuple(ColumnInfo(name, "text", False, 0) for name in ("name", "age"))
        >>> schema = DatabaseSchema("pets", "sqlite", (TableInfo("dog", columns, (), False),))
        >>> gold = "SELECT name, age FROM dog WHERE age > 3"
        >>> exact_set_match("SELECT age, name FROM dog WHERE age > 5", gold, schema)
        True
        >>> exact_set_match("SELECT name, age FROM dog WHERE age >= 3", gold, schema)
        False
    """
    table_columns = get_table_columns(schema)
    gold = read_gold_sql(gold_sql, table_columns)
    try:
        # The script's placeholder for values, replaced even inside a longer word.
        predicted = read_spider_sql(predicted_sql.replace("value", "1"), table_columns)
    except SpiderSQLError:
        # The script compares an empty query then, which equals no gold.
        return False
    keys = _get_key_representatives(schema)
    return _same_clauses(_simplify(predicted, keys), _simplify(gold, keys))


# ------------------------------------------------------------- what is not seen


def _get_key_representatives(schema: DatabaseSchema) -> dict[str, str]:
    """Columns in foreign keys to the first column, in the order of the schema, of their group.

    As in Spider's script, a key joins the first group that holds one of its ends, and groups that
    a later key links stay apart.
    """
    positions = {
        f"{table.name}.{column.name}".lower(): (i, j)
        for i, table in enumerate(schema.tables)
        for j, column in enumerate(table.columns)
    }
    groups: list[set[str]] = []
    for table, key in schema.foreign_keys:
        for column, referenced in zip(key.columns, key.referenced_columns, strict=False):
            ends = {f"{table}.{column}".lower(), f"{key.referenced_table}.{referenced}".lower()}
            if ends <= positions.keys():
                group = next((group for group in groups if group & ends), None)
                if group is None:
                    groups.append(ends)
                else:
                    group |= ends
    return {column: min(group, key=positions.__getitem__) for group in groups for column in group}


def _simplify(query: SpiderQuery, keys: Mapping[str, str]) -> SpiderQuery:
    """Remove values and DISTINCT, and write one column for those that foreign keys link.

    Only columns of the tables in the outermost FROM are linked, also behind a set operator.
    """
    linked = {column: first for column, first in keys.items() if _table(column) in query.tables}
    return _unify_columns(_remove_values(query), linked)


def _table(column: str) -> str:
    return column.partition(".")[0]


def _remove_values(query: SpiderQuery) -> SpiderQuery:
    # Subqueries in FROM keep their values: the script does not look there.
    return replace(
        query,
        joins=_remove_condition_values(query.joins),
        where=_remove_condition_values(query.where),
        having=_remove_condition_values(query.having),
        set_query=query.set_query and _remove_values(query.set_query),
    )


def _remove_condition_values(conditions: Conditions) -> Conditions:
    return Conditions(
        tuple(
            replace(
                unit,
                value=_remove_value(unit.value),
                upper_value=_remove_value(unit.upper_value),
            )
            for unit in conditions.units
        ),
        conditions.connectives,
    )


def _remove_value(value: Value) -> Value:
    return _remove_values(value) if isinstance(value, SpiderQuery) else None


def _unify_columns(query: SpiderQuery, linked: Mapping[str, str]) -> SpiderQuery:
    # Subqueries in conditions and in FROM stay as they are: the script does not look there.
    def column_unit(unit: ColumnUnit) -> ColumnUnit:
        return ColumnUnit(unit.aggregate, linked.get(unit.column, unit.column), False)

    def value_unit(unit: ValueUnit) -> ValueUnit:
        return ValueUnit(
            unit.operator, column_unit(unit.left), unit.right and column_unit(unit.right)
        )

    def conditions(conditions: Conditions) -> Conditions:
        return Conditions(
            tuple(replace(unit, left=value_unit(unit.left)) for unit in conditions.units),
            conditions.connectives,
        )

    return replace(
        query,
        distinct=False,
        select=tuple((aggregate, value_unit(unit)) for aggregate, unit in query.select),
        where=conditions(query.where),
        group_by=tuple(column_unit(unit) for unit in query.group_by),
        having=conditions(query.having),
        order_by=tuple(value_unit(unit) for unit in query.order_by),
        set_query=query.set_query and _unify_columns(query.set_query, linked),
    )


# ------------------------------------------------------------------- comparison


def _same_clauses(predicted: SpiderQuery, gold: SpiderQuery) -> bool:
    """The script's ten partial scores and its comparison of tables, each once."""
    return (
        Counter(predicted.select) == Counter(gold.select)
        and Counter(predicted.tables) == Counter(gold.tables)
        and Counter(predicted.where.units) == Counter(gold.where.units)
        and set(predicted.where.connectives) == set(gold.where.connectives)
        and _get_names(predicted.group_by) == _get_names(gold.group_by)
        and predicted.having == gold.having
        and predicted.order_direction == gold.order_direction
        and predicted.order_by == gold.order_by
        and predicted.has_limit == gold.has_limit
        and _get_condition_words(predicted) == _get_condition_words(gold)
        and _same_set_operation(predicted, gold)
    )


def _get_names(units: Sequence[ColumnUnit]) -> list[str]:
    # The script does not compare aggregates in GROUP BY.
    return [unit.column for unit in units]


def _get_condition_words(query: SpiderQuery) -> tuple[bool, ...]:
    """Presence of OR, NOT, IN and LIKE in all conditions together, those of joins included."""
    clauses = (query.joins, query.where, query.having)
    units = [unit for clause in clauses for unit in clause.units]
    operators = {unit.operator for unit in units}
    return (
        any("or" in clause.connectives for clause in clauses),
        any(unit.negated for unit in units),
        "in" in operators,
        "like" in operators,
    )


def _same_set_operation(predicted: SpiderQuery, gold: SpiderQuery) -> bool:
    if predicted.set_query is None or gold.set_query is None:
        return predicted.set_query is gold.set_query
    return predicted.set_operator == gold.set_operator and _same_clauses(
        predicted.set_query, gold.set_query
    )
