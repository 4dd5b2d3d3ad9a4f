"""`TemplateIndex`: finds a query again that differs in spelling and constants only.

`get_sql_template` is for people to read, and keeps how a query was written. This is for finding it
again: `SELECT name FROM singer WHERE age > 30` in `SELECT T1.name FROM singer AS T1 WHERE 20 <
T1.age`.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Final, TypeAlias

from sqlglot import exp

from sense_trl.sql.normal_form import (
    Block,
    Column,
    Expr,
    Query,
    flip_comparison,
    get_normal_form,
    get_relabellings,
)
from sense_trl.sql.parsing import SQLNestingError, parse_folded
from sense_trl.sql.resolution import QueryNames
from sense_trl.synthesis.filters.sql_template import is_constant

# Of a column whose table only a schema could tell.
_UNKNOWN: Final = "?"
_COMMUTATIVE: Final = frozenset({"add", "mul"})


@dataclass(frozen=True, slots=True)
class NormalTemplate:
    """A query without its constants and its spelling.

    Attributes:
        by_table: the query with the table of every column.
        by_name: the same with the names of columns alone.
        is_open: whether the table of some column is not known, as without a schema that of
            `name` in `SELECT name FROM singer JOIN concert ON ...`.
    """

    by_table: str
    by_name: str
    is_open: bool


class TemplateIndex:
    """Finds a query up to spelling and constants, by its `NormalTemplate`.

    The tables of columns are compared where both queries say them.

    Example:
        >>> index = TemplateIndex()
        >>> index.add(get_normal_template("SELECT COUNT(1) FROM pet WHERE age > 3", "sqlite"), "q1")
        >>> sql = "SELECT count(*) FROM pet AS p WHERE 5 < p.age"
        >>> index.find(get_normal_template(sql, "sqlite"))
        'q1'
    """

    def __init__(self) -> None:
        self._by_table: dict[str, str] = {}
        self._by_name: dict[str, str] = {}
        self._open: dict[str, str] = {}

    def add(self, template: NormalTemplate, name: str) -> None:
        """Remember a query under a name; of several with one template, the first."""
        self._by_name.setdefault(template.by_name, name)
        if template.is_open:
            self._open.setdefault(template.by_name, name)
        else:
            self._by_table.setdefault(template.by_table, name)

    def find(self, template: NormalTemplate) -> str | None:
        """The name of a query with this template, `None` if there is none."""
        if template.is_open:
            return self._by_name.get(template.by_name)
        return self._by_table.get(template.by_table) or self._open.get(template.by_name)


def get_normal_template(sql: str, dialect: str, *, keeps_constants: bool = False) -> NormalTemplate:
    """Take spelling and constants from a query, without a schema.

    One are: tables with and without an alias, whatever it is; columns with and without their
    table; the order of joined tables, of the two sides of a comparison, of conditions, of keys of
    GROUP BY and of what is selected outermost; JOIN with ON, with USING and with WHERE; columns
    that an inner join sets equal; `BETWEEN` and two bounds, `IN (1, 2)` and `= 1 OR ... = 2`, `NOT
    a > b` and `a <= b`, `!=` and `<>`, `COUNT(*)` and `COUNT(1)`; and what `get_normal_form`
    and `get_sql_template` take for one.

    Two constants are as good as more of them: `IN (1, 2)` and `IN (1, 2, 3)`. In rare cases too
    much is one: a condition in an outer join's ON, and in WHERE.

    Args:
        sql: the query.
        dialect: sqlglot dialect of its text.
        keeps_constants: whether queries with other constants are others.

    Raises:
        SQLParseError: the text is not one statement, or is nested too deeply.
    """
    tree = _prepare(parse_folded(sql, dialect), keeps_constants)
    try:
        query = get_normal_form(tree, QueryNames(tree, dialect=dialect), dialect=dialect)
        by_table, by_name = _Writer(names_tables=True), _Writer(names_tables=False)
        with_tables = repr(by_table.write(query, (), is_top=True))
        without = repr(by_name.write(query, (), is_top=True))
    except RecursionError as error:
        raise SQLNestingError(f"too deeply nested: {sql[:200]!r}") from error
    return NormalTemplate(with_tables, without, by_table.met_unknown)


def _prepare(tree: exp.Expression, keeps_constants: bool) -> exp.Expression:
    """Number the constants, or make literals of them, and take the quotes from other names."""
    numbers = itertools.count()

    def replace(node: exp.Expression) -> exp.Expression:
        if is_constant(node):
            if not keeps_constants:
                # Two conditions are not one because both have lost their constant.
                return exp.Placeholder(this=str(next(numbers)))
            return exp.Literal.string(node.name) if isinstance(node, exp.Column) else node
        if isinstance(node, exp.Column) and isinstance(node.this, exp.Identifier):
            node.this.set("quoted", False)
        return node

    return tree.transform(replace, copy=False)


@dataclass(frozen=True, slots=True)
class _Scope:
    """The names of tables and columns in one SELECT."""

    labels: Mapping[str, str]
    merged: Mapping[Column, Column]


_Scopes: TypeAlias = tuple[_Scope, ...]
"""Innermost first."""


class _Writer:
    """Writes a normal form so that no order is left in it that says nothing.

    Args:
        names_tables: whether columns carry their table.
    """

    def __init__(self, *, names_tables: bool) -> None:
        self._names_tables = names_tables
        self.met_unknown = False

    def write(self, query: Query, outer: _Scopes, *, is_top: bool = False) -> Expr:
        if not isinstance(query, Block):
            operands = [self.write(operand, outer) for operand in query.operands]
            if query.is_commutative:
                operands.sort(key=repr)
            return (query.operator, *operands, *self._write_tail(query, outer))
        # Elsewhere, occurrences of one table keep the order in which they are written.
        relabellings = get_relabellings(query.tables) if is_top else [{}]
        return min((self._write_block(query, r, outer, is_top) for r in relabellings), key=repr)

    def _write_block(
        self, block: Block, labels: Mapping[str, str], outer: _Scopes, is_top: bool
    ) -> Expr:
        # What an outer join may fill with NULL equals nothing. Names alone do not tell what does.
        inner = [
            pair
            for pair in block.equalities
            if self._names_tables and not set(block.optional) & {label for label, _ in pair}
        ]
        merged = _merge(inner, labels)
        scopes = (_Scope(labels, merged), *outer)
        joins = [("=", *(("col", *c) for c in p)) for p in block.equalities if p not in inner]
        select = [self._write(value, scopes) for value in block.select]
        return (
            ("select", block.distinct, *(sorted(select, key=repr) if is_top else select)),
            ("from", *sorted(block.tables)),
            ("optional", *sorted(labels.get(label, label) for label in block.optional)),
            ("derived", *(self.write(derived, outer) for derived in block.derived)),
            ("join", *sorted(merged.items())),
            ("where", self._write(("and", *joins, block.where), scopes)),
            ("group", *sorted({self._write(key, scopes) for key in block.group}, key=repr)),
            ("having", self._write(block.having, scopes)),
            *self._write_tail(block, scopes),
        )

    def _write_tail(self, query: Query, scopes: _Scopes) -> Expr:
        keys = ((self._write(key, scopes), descends) for key, descends in query.order)
        return (("order", *keys), ("limit", query.limit, query.offset))

    def _write(self, value: Expr, scopes: _Scopes) -> Expr:
        """Write an expression or a condition."""
        kind = value[0]
        if kind == "col":
            return self._write_column((value[1], value[2]), scopes)
        if kind == "placeholder":
            return ("?",)
        if kind == "query":
            return ("query", self.write(value[1], scopes))
        parts = [self._write(v, scopes) if isinstance(v, tuple) and v else v for v in value[1:]]
        if kind in ("and", "or"):
            return _connect(kind, parts)
        if kind in _COMMUTATIVE:
            parts.sort(key=repr)
        written = (kind, *parts)
        return min(written, flip_comparison(written) or written, key=repr)

    def _write_column(self, column: Column, scopes: _Scopes) -> Expr:
        label, name = column
        depth = len(label) - len(label.lstrip("^"))
        self.met_unknown |= label[depth:] == _UNKNOWN
        if not self._names_tables:
            return ("col", name)
        if depth >= len(scopes):
            return ("col", label, name)
        scope = scopes[depth]
        own = (scope.labels.get(label[depth:], label[depth:]), name)
        return ("col", depth, *scope.merged.get(own, own))


def _merge(
    pairs: Iterable[tuple[Column, Column]], labels: Mapping[str, str]
) -> dict[Column, Column]:
    """The first of all columns that pairs set equal, by column."""
    classes: list[set[Column]] = []
    for pair in pairs:
        columns = {(labels.get(label, label), name) for label, name in pair}
        touched = [known for known in classes if known & columns]
        classes = [known for known in classes if not known & columns]
        classes.append(columns.union(*touched))
    return {column: min(known) for known in classes for column in known}


def _connect(connective: str, conditions: Iterable[Expr]) -> Expr:
    """Conditions in one order; those that differ in their constant are several, however many."""
    counts: Counter[Expr] = Counter()
    for condition in conditions:
        counts.update(condition[1:] if condition[0] == connective else [condition])
    parts = [part for part, count in counts.items() for _ in range(min(count, 2))]
    return parts[0] if len(parts) == 1 else (connective, *sorted(parts, key=repr))
