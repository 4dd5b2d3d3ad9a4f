"""SQLite queries for DuckDB: `sqlite_to_duckdb`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, TypeAlias

from sqlglot import exp

from sense_trl.sql.parsing import parse_sql

__all__ = ["ColumnTypes", "sqlite_to_duckdb"]

ColumnTypes: TypeAlias = Mapping[str, Mapping[str, str]]
"""DuckDB type ("BIGINT", "DOUBLE", "VARCHAR", "BLOB") of each column, by table and column."""

_NUMERIC: Final = frozenset({"BIGINT", "DOUBLE"})
_COMPARISONS: Final = (exp.EQ, exp.NEQ, exp.GT, exp.GTE, exp.LT, exp.LTE)


def sqlite_to_duckdb(sql: str, types: ColumnTypes) -> str:
    """Translate a query from SQLite to DuckDB so that it gives the same rows.

    Beyond sqlglot's translation, what SQLite does silently is written out:

    * a double-quoted word that names no column is a string;
    * LIKE ignores case, and takes numbers as text;
    * a column that is neither grouped by nor aggregated has some value of its group, and beside a
      single MIN or MAX that of the row with the extremum;
    * text and numbers are compared after conversion of the text, where it converts;
    * SUM, AVG and arithmetic take text as a number, or as 0;
    * dividing integers truncates, and dividing by zero gives NULL;
    * casting to an integer truncates.

    Args:
        sql: one query.
        types: the columns of the DuckDB database, as `convert_sqlite` reports them.

    Raises:
        SQLParseError: the text is not one statement.

    Example:
        >>> types = {"t": {"a": "BIGINT", "b": "VARCHAR"}}
        >>> sqlite_to_duckdb('SELECT a FROM t WHERE b LIKE "x%"', types)
        "SELECT a FROM t WHERE b ILIKE 'x%'"
    """
    tree = parse_sql(sql, "sqlite").copy()
    columns = _Columns.of(tree, types)
    for node in list(tree.find_all(exp.Column)):
        _literal_for_unknown_name(node, columns)
    for select in list(tree.find_all(exp.Select)):
        _pick_values_of_groups(select)
    for node in list(tree.walk()):
        match node:
            case exp.Like():
                _like(node, columns)
            case exp.Sum() | exp.Avg():
                _set_number(node, "this", columns)
            case exp.Add() | exp.Sub() | exp.Mul():
                _set_number(node, "this", columns)
                _set_number(node, "expression", columns)
            case exp.Div():
                _divide(node, columns)
            case exp.Cast():
                _cast(node, columns)
            case exp.Between():
                for part in ("low", "high"):
                    _align(node, "this", part, columns)
            case exp.In():
                _in(node, columns)
            case _ if isinstance(node, _COMPARISONS):
                _align(node, "this", "expression", columns)
    text: str = tree.sql(dialect="duckdb")
    return text


@dataclass(frozen=True, slots=True)
class _Columns:
    """What names of columns mean in one query."""

    by_table: dict[str, dict[str, str]]
    aliases: dict[str, str]
    made_names: frozenset[str]

    @classmethod
    def of(cls, tree: exp.Expression, types: ColumnTypes) -> _Columns:
        known = {
            table.lower(): {column.lower(): type_ for column, type_ in columns.items()}
            for table, columns in types.items()
        }
        tables = list(tree.find_all(exp.Table))
        used = {table.name.lower() for table in tables}
        by_table = {name: columns for name, columns in known.items() if name in used}
        aliases = {(table.alias or table.name).lower(): table.name.lower() for table in tables}
        made = {alias.alias.lower() for alias in tree.find_all(exp.Alias)}
        made |= {
            name.name.lower()
            for alias in tree.find_all(exp.TableAlias)
            for name in alias.args.get("columns") or []
        }
        return cls(by_table, aliases, frozenset(made))

    def knows(self, name: str) -> bool:
        name = name.lower()
        return name in self.made_names or any(name in c for c in self.by_table.values())

    def type_of(self, node: exp.Expression | None) -> str | None:
        """ "BIGINT", "DOUBLE", "VARCHAR", "BLOB", or `None` where it is not obvious."""
        match node:
            case exp.Paren() | exp.Min() | exp.Max() | exp.Neg() | exp.AnyValue():
                return self.type_of(node.this)
            case exp.Distinct():
                return self.type_of(node.expressions[0]) if len(node.expressions) == 1 else None
            case exp.Literal():
                if node.is_string:
                    return "VARCHAR"
                return "BIGINT" if node.this.isdigit() else "DOUBLE"
            case exp.Count() | exp.Length():
                return "BIGINT"
            case exp.Avg() | exp.Div():
                return "DOUBLE"
            case exp.Sum() | exp.Abs():
                inner = self.type_of(node.this)
                return inner if inner in _NUMERIC else "DOUBLE"
            case exp.Add() | exp.Sub() | exp.Mul():
                both = {self.type_of(node.this), self.type_of(node.expression)}
                return "BIGINT" if both == {"BIGINT"} else "DOUBLE"
            case exp.Cast():
                if node.to.is_type(*exp.DataType.INTEGER_TYPES):
                    return "BIGINT"
                return "DOUBLE" if node.to.is_type(*exp.DataType.REAL_TYPES) else None
            case exp.Subquery() | exp.Select():
                query = node.this if isinstance(node, exp.Subquery) else node
                if isinstance(query, exp.Select) and len(query.expressions) == 1:
                    return self.type_of(query.expressions[0].unalias())
                return None
            case exp.Substring() | exp.Upper() | exp.Lower() | exp.DPipe() | exp.Trim():
                return "VARCHAR"
            case exp.Column():
                return self._column_type(node)
            case _:
                return None

    def _column_type(self, column: exp.Column) -> str | None:
        name = column.name.lower()
        if column.table:
            table = self.aliases.get(column.table.lower(), "")
            return self.by_table.get(table, {}).get(name)
        found = {c[name] for c in self.by_table.values() if name in c}
        return found.pop() if len(found) == 1 and name not in self.made_names else None


def _literal_for_unknown_name(column: exp.Column, columns: _Columns) -> None:
    identifier = column.this
    if (
        isinstance(identifier, exp.Identifier)
        and identifier.quoted
        and not column.table
        and not columns.knows(identifier.name)
    ):
        column.replace(exp.Literal.string(identifier.name))


def _pick_values_of_groups(select: exp.Select) -> None:
    group = select.args.get("group")
    keys = list(group.expressions) if group is not None else []
    places = [*select.expressions, *_clauses(select)]
    aggregates = [
        node
        for place in places
        for node in place.find_all(exp.AggFunc)
        if node.parent_select is select and not isinstance(node.parent, exp.Window)
    ]
    if group is None and not aggregates:
        return
    projected = {p.alias.lower(): p.this for p in select.expressions if isinstance(p, exp.Alias)}
    grouped: set[str] = set()
    for key in keys:
        if isinstance(key, exp.Literal) and key.this.isdigit():
            position = int(key.this) - 1
            if position < len(select.expressions):
                key = select.expressions[position].unalias()
        grouped.add(key.sql().lower())
        if isinstance(key, exp.Column) and not key.table and key.name.lower() in projected:
            grouped.add(projected[key.name.lower()].sql().lower())
    # Beside a single MIN or MAX, SQLite takes the other values from the row that has it.
    extremum = None
    if len({node.sql().lower() for node in aggregates}) == 1 and isinstance(
        aggregates[0], (exp.Min, exp.Max)
    ):
        extremum = aggregates[0]
    for place in places:
        for column in list(place.find_all(exp.Column)):
            if column.parent_select is not select or isinstance(column.this, exp.Star):
                continue
            if _is_inside(column, place, grouped):
                continue
            in_clause = place not in select.expressions
            if in_clause and not column.table and column.name.lower() in projected:
                continue
            value: exp.Expression = exp.AnyValue(this=column.copy())
            if extremum is not None:
                name = "ARG_MAX" if isinstance(extremum, exp.Max) else "ARG_MIN"
                chosen = exp.Anonymous(this=name, expressions=[column.copy(), extremum.this.copy()])
                # A group without values has no extremum, and still a row.
                nothing = exp.Is(this=extremum.copy(), expression=exp.Null())
                value = exp.Case(ifs=[exp.If(this=nothing, true=value)], default=chosen)
            if column is place:
                _replace_projection(select, column, value)
            else:
                column.replace(value)


def _clauses(select: exp.Select) -> list[exp.Expression]:
    having = select.args.get("having")
    order = select.args.get("order")
    found = [] if having is None else [having]
    return found + ([] if order is None else list(order.expressions))


def _replace_projection(select: exp.Select, column: exp.Expression, value: exp.Expression) -> None:
    # The name of the result column stays what it was: an outer query may use it.
    column.replace(exp.alias_(value, column.name, quoted=True))


def _is_inside(column: exp.Expression, place: exp.Expression, grouped: set[str]) -> bool:
    """Whether the column is part of a grouping key or of an aggregate or window."""
    node: exp.Expression | None = column
    while node is not None:
        if isinstance(node, (exp.AggFunc, exp.Window)) or node.sql().lower() in grouped:
            return True
        if isinstance(node, exp.Column) and _short(node) in {_last(key) for key in grouped}:
            return True
        if node is place:
            return False
        node = node.parent
    return False


def _short(column: exp.Column) -> str:
    # `name` and `t.name` are one key if either is unqualified.
    name: str = column.sql() if column.table else column.name
    return name.lower()


def _last(key: str) -> str:
    last: str = key.rsplit(".", 1)[-1].strip('"')
    return last


def _like(node: exp.Like, columns: _Columns) -> None:
    for part in ("this", "expression"):
        operand = node.args[part]
        if columns.type_of(operand) in _NUMERIC:
            node.set(part, exp.cast(operand.copy(), "VARCHAR"))
    node.replace(exp.ILike(this=node.this.copy(), expression=node.expression.copy()))


def _number(node: exp.Expression) -> exp.Expression:
    converted = exp.func("COALESCE", exp.TryCast(this=node.copy(), to=_double()), "0")
    return exp.Case(
        ifs=[exp.If(this=exp.Is(this=node.copy(), expression=exp.Null()), true=exp.Null())],
        default=converted,
    )


def _double() -> exp.DataType:
    return exp.DataType.build("DOUBLE")


def _set_number(node: exp.Expression, part: str, columns: _Columns) -> None:
    operand = node.args[part]
    if isinstance(operand, exp.Distinct):
        return
    if columns.type_of(operand) == "VARCHAR":
        node.set(part, exp.Paren(this=_number(operand)))


def _divide(node: exp.Div, columns: _Columns) -> None:
    integers = {columns.type_of(node.this), columns.type_of(node.expression)} == {"BIGINT"}
    _set_number(node, "this", columns)
    _set_number(node, "expression", columns)
    divisor = exp.func("NULLIF", node.expression.copy(), "0")
    if integers:
        node.replace(exp.IntDiv(this=node.this.copy(), expression=divisor))
    else:
        node.set("expression", divisor)
        node.set("typed", False)
        node.set("safe", False)


def _cast(node: exp.Cast, columns: _Columns) -> None:
    if isinstance(node, exp.TryCast):
        return
    kind = columns.type_of(node.this)
    if node.to.is_type(*exp.DataType.INTEGER_TYPES):
        value = _number(node.this) if kind in (None, "VARCHAR") else node.this.copy()
        truncated = exp.Anonymous(this="TRUNC", expressions=[value])
        node.replace(exp.cast(truncated, "BIGINT"))
    elif node.to.is_type(*exp.DataType.REAL_TYPES):
        value = _number(node.this) if kind in (None, "VARCHAR") else node.this.copy()
        node.replace(exp.cast(value, "DOUBLE"))


def _align(node: exp.Expression, left: str, right: str, columns: _Columns) -> None:
    """Compare text with a number as SQLite does: as numbers where the text is one."""
    kinds = {part: columns.type_of(node.args[part]) for part in (left, right)}
    if not (kinds[left] in _NUMERIC and kinds[right] == "VARCHAR") and not (
        kinds[right] in _NUMERIC and kinds[left] == "VARCHAR"
    ):
        return
    text = left if kinds[left] == "VARCHAR" else right
    operand = node.args[text]
    if isinstance(operand, exp.Literal):
        try:
            float(operand.this)
        except ValueError:
            # No number equals it; as text neither does.
            other = right if text == left else left
            node.set(other, exp.cast(node.args[other].copy(), "VARCHAR"))
            return
        node.set(text, exp.Literal.number(operand.this.strip()))
        return
    node.set(text, exp.TryCast(this=operand.copy(), to=_double()))


def _in(node: exp.In, columns: _Columns) -> None:
    kind = columns.type_of(node.this)
    query = node.args.get("query")
    if query is not None:
        inner = columns.type_of(query)
        if {kind, inner} in ({"VARCHAR", "BIGINT"}, {"VARCHAR", "DOUBLE"}):
            if kind == "VARCHAR":
                node.set("this", exp.TryCast(this=node.this.copy(), to=_double()))
            else:
                select = query.this if isinstance(query, exp.Subquery) else query
                value = select.expressions[0]
                select.set("expressions", [exp.TryCast(this=value.unalias().copy(), to=_double())])
        return
    for item in node.expressions:
        pair = exp.EQ(this=node.this.copy(), expression=item.copy())
        _align(pair, "this", "expression", columns)
        if pair.expression != item:
            item.replace(pair.expression.copy())
        elif pair.this != node.this:
            node.set("this", pair.this.copy())
