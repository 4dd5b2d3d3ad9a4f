"""Hints of what tells a query from its neighbours, for making instances: `get_hints`."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import Final

from sqlglot import exp

from sense_trl.database.fuzzing import ColumnName, FuzzHints
from sense_trl.database.profile import DatabaseProfile
from sense_trl.sql.parsing import parse_sql
from sense_trl.sql.resolution import QueryNames, SchemaNames

_COMPARISONS: Final = (exp.EQ, exp.NEQ, exp.GT, exp.GTE, exp.LT, exp.LTE, exp.Between, exp.In)
_PATTERNS: Final = (exp.Like, exp.ILike, exp.Glob)
_MAX_MATCHES: Final = 4
_MAX_DEPTH: Final = 5
# Holds no part that a pattern would look for.
_OTHER_TEXT: Final = "zq"


def get_table_columns(profile: DatabaseProfile) -> dict[str, dict[str, str]]:
    """Declared type of each column, by table and column."""
    return {table.name: {c.name: c.type for c in table.columns} for table in profile.tables}


def get_hints(
    sql: str, profile: DatabaseProfile, *, other_queries: Sequence[str] = ()
) -> FuzzHints:
    """Read the constants, the values close to them, and the joins out of a query.

    A constant belongs to the columns that it is compared with. Where a function stands between
    (`strftime('%Y', born) = '1990'`) or the constant is a pattern, the original values that hold
    it stand in for it. Columns are joined where they are compared with each other, also through a
    subquery, and where a set operation puts one beneath the other.

    Args:
        sql: the query.
        profile: the database.
        other_queries: queries to be told apart from it; their constants are close values, too.

    Raises:
        SQLParseError: a text is not one statement.
    """
    hints = _Reader(sql, profile).read()
    neighbours = {name: list(values) for name, values in hints.neighbours.items()}
    for other in other_queries:
        read = _Reader(other, profile).read()
        for values in (read.constants, read.neighbours):
            for name, own in values.items():
                known = neighbours.setdefault(name, [])
                known += [value for value in own if value not in known]
    return FuzzHints(hints.constants, neighbours, hints.joins)


class _Reader:
    def __init__(self, sql: str, profile: DatabaseProfile) -> None:
        self._tree = parse_sql(sql, profile.dialect)
        self._profile = profile
        self._names = QueryNames(self._tree, SchemaNames.of(get_table_columns(profile)))
        self._constants: dict[ColumnName, list[object]] = {}
        self._neighbours: dict[ColumnName, list[object]] = {}
        self._joins: dict[tuple[ColumnName, ColumnName], None] = {}

    def read(self) -> FuzzHints:
        for node in self._tree.find_all(*_COMPARISONS, *_PATTERNS):
            self._read_comparison(node)
        for operation in self._tree.find_all(exp.SetOperation):
            left, right = _projections(operation.this), _projections(operation.expression)
            for first, second in zip(left, right, strict=False):
                self._join([first], [second])
        for join in self._tree.find_all(exp.Join):
            for name in join.args.get("using") or []:
                tables = [s.table for s in self._names.sources(join.parent) if s.table]
                named = [(table, name.name) for table in tables]
                for other in named[1:]:
                    self._joins[named[0], other] = None
        return FuzzHints(self._constants, self._neighbours, tuple(self._joins))

    def _read_comparison(self, node: exp.Expression) -> None:
        columns: list[exp.Expression] = []
        constants: list[object] = []
        for inner in node.walk(prune=lambda inner: isinstance(inner, exp.Query)):
            if isinstance(inner, exp.Column):
                if self._names.is_string(inner):
                    constants.append(inner.name)
                else:
                    columns.append(inner)
            elif isinstance(inner, exp.Literal):
                constants.append(_value(inner))
            elif isinstance(inner, exp.Query):
                self._join(columns, _projections(inner)[:1])
        # "a IN (SELECT b ...)" keeps the query apart from its other parts.
        if len(columns) > 1 and not isinstance(node, exp.Between):
            self._join(columns[:1], columns[1:])
        for column in columns:
            origin = self._origin(column)
            if origin is not None:
                for constant in constants:
                    self._add(origin, node, column, constant)

    def _add(
        self, origin: ColumnName, node: exp.Expression, column: exp.Expression, constant: object
    ) -> None:
        frequent = self._constants.setdefault(origin, [])
        close = self._neighbours.setdefault(origin, [])
        if isinstance(node, _PATTERNS):
            core = re.sub(r"[%_*?]", "", str(constant))
            frequent += self._values_with(origin, core)
            close += (*_around(core), _OTHER_TEXT)
        elif _is_operand(column, node):
            frequent.append(constant)
            close += _neighbours(constant)
        else:
            frequent += self._values_with(origin, str(constant))

    def _values_with(self, origin: ColumnName, part: str) -> list[object]:
        place = self._profile.find(*origin)
        if place is None or not part:
            return []
        values = self._profile.tables[place[0]].columns[place[1]].values
        low = part.lower()
        # Others, such as dates, would be lost where the choice of instances is kept.
        found: list[object] = [
            v for v in values if isinstance(v, (str, int, float)) and low in str(v).lower()
        ]
        return found[:_MAX_MATCHES]

    def _join(self, left: list[exp.Expression], right: list[exp.Expression]) -> None:
        for first in left:
            for second in right:
                names = self._origin(first), self._origin(second)
                if names[0] is not None and names[1] is not None and names[0] != names[1]:
                    self._joins[names[0], names[1]] = None

    def _origin(self, node: exp.Expression, depth: int = 0) -> ColumnName | None:
        """The table's column that a name stands for, through subqueries."""
        node = _without_aggregate(node)
        if not isinstance(node, exp.Column) or depth > _MAX_DEPTH:
            return None
        source = self._names.resolve(node)
        if source is None:
            return None
        if source.table:
            return source.table, node.name.lower()
        for projection in _projections(source.node):
            if projection.alias_or_name.lower() == node.name.lower():
                return self._origin(projection, depth + 1)
        return None


def _projections(query: exp.Expression) -> list[exp.Expression]:
    """The result columns of a query, of its first part where it has several."""
    while isinstance(query, (exp.Subquery, exp.Paren, exp.SetOperation, exp.CTE)):
        query = query.this
    return list(query.expressions) if isinstance(query, exp.Select) else []


def _without_aggregate(node: exp.Expression) -> exp.Expression:
    node = node.unalias()
    if isinstance(node, (exp.Max, exp.Min, exp.Avg)):
        node = node.this
    return node


def _is_operand(column: exp.Expression, comparison: exp.Expression) -> bool:
    """Whether a column is compared itself, or its extremes or mean are."""
    parent = column.parent
    while isinstance(parent, (exp.Paren, exp.Max, exp.Min, exp.Avg, exp.Sum)):
        parent = parent.parent
    return parent is comparison


def _value(literal: exp.Literal) -> object:
    if literal.is_string:
        return literal.this
    sign = -1 if isinstance(literal.parent, exp.Neg) else 1
    try:
        return sign * int(literal.this)
    except ValueError:
        try:
            return sign * float(literal.this)
        except ValueError:
            return literal.this


def _neighbours(constant: object) -> Iterator[object]:
    """Values that a slightly wrong comparison would treat otherwise."""
    if isinstance(constant, (int, float)):
        yield from (constant - 1, constant + 1)
        return
    text = str(constant)
    try:
        number = int(text)
    except ValueError:
        yield from _around(text)
        yield from (text.upper(), text.lower(), text[:-1])
    else:
        yield from (str(number - 1), str(number + 1))


def _around(core: str) -> tuple[str, ...]:
    return (core, f"{core}x", f"x{core}", f"x{core}x")
