"""`get_wanted_values`, `get_limits`, `get_example_values`: which values a column should have.

A query over random rows finds nothing. So values are read out of it: those its conditions ask for.
Checks say what a column may hold, and comments beside columns what it holds for example.
"""

from __future__ import annotations

import contextlib
import datetime
import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Final, TypeAlias

from sqlglot import exp

from sense_trl.sql.parsing import SQLParseError, parse_sql
from sense_trl.sql.resolution import QueryNames, SchemaNames
from sense_trl.synthesis.strong.column_values import Value
from sense_trl.synthesis.strong.schema_design import (
    ColumnDesign,
    ColumnKind,
    SchemaDesign,
    TableDesign,
)

WantedValues: TypeAlias = dict[tuple[str, str], tuple[Value, ...]]
"""Table and column, in lower case, to values."""

_MAX_INTEGER: Final = 2**53
_MAX_TEXT_CHARS: Final = 200
_MAX_EXAMPLES: Final = 20


# ---------------------------------------------------------------------- from the query


@dataclass(frozen=True, slots=True)
class _Condition:
    """`holds` tells of a value whether it meets the condition, which some of `values` do."""

    values: tuple[Value, ...]
    holds: Callable[[Value], bool]


def get_wanted_values(design: SchemaDesign, sql: str, dialect: str) -> WantedValues:
    """The values that conditions of a query ask for.

    Of each column that the query compares with constants: values that meet as many of its
    conditions as one value can, so that of `age > 20 AND age < 30` those between are wanted.
    Columns are found inside a call, too (`LOWER(name) = 'x'`, `AVG(price) > 5`), except COUNT and
    LENGTH. Conditions between columns and on subqueries want nothing.

    Returns:
        Nothing for a text that cannot be parsed.
    """
    try:
        tree = parse_sql(sql, dialect)
    except SQLParseError:
        return {}
    tables = {table.name.lower(): table for table in design.tables}
    declared = {t.name: {c.name: str(c.kind) for c in t.columns} for t in design.tables}
    names = QueryNames(tree, SchemaNames.of(declared))
    conditions: dict[tuple[str, str], list[_Condition]] = defaultdict(list)
    for node in tree.walk():
        for column, condition in _conditions(node, names, tables):
            conditions[column].append(condition)
    return {column: _best(found) for column, found in conditions.items()}


def _conditions(
    node: exp.Expression, names: QueryNames, tables: dict[str, TableDesign]
) -> Iterator[tuple[tuple[str, str], _Condition]]:
    for side, operator, constants in _comparisons(node):
        columns = [column for column in side.find_all(exp.Column) if not names.is_string(column)]
        # What is counted or measured is not what the column holds.
        if len(columns) != 1 or side.find(exp.Count, exp.Length, exp.Query) is not None:
            continue
        source = names.resolve(columns[0])
        table = None if source is None else tables.get(source.table)
        if table is None:
            continue
        try:
            column = table.column(columns[0].name)
        except KeyError:
            continue
        condition = _condition(column, operator, constants)
        if condition is not None:
            yield (table.name.lower(), column.name.lower()), condition


def _comparisons(node: exp.Expression) -> Iterator[tuple[exp.Expression, str, list[str]]]:
    """(the side with the column, operator, the constants) of a comparison."""
    if isinstance(node, exp.In) and all(map(_is_constant, node.expressions)):
        yield node.this, "=", [_text(value) for value in node.expressions]
    elif isinstance(node, exp.Between):
        for operator, bound in ((">=", node.args["low"]), ("<=", node.args["high"])):
            if _is_constant(bound):
                yield node.this, operator, [_text(bound)]
    elif isinstance(node, (exp.Like, exp.ILike, exp.Glob)) and _is_constant(node.expression):
        yield node.this, "like", [_text(node.expression).replace("*", "%")]
    elif type(node) in _OPERATORS:
        operator, flipped = _OPERATORS[type(node)]
        if _is_constant(node.expression):
            yield node.this, operator, [_text(node.expression)]
        elif _is_constant(node.this):
            yield node.expression, flipped, [_text(node.this)]


_OPERATORS: Final[dict[type[Any], tuple[str, str]]] = {
    exp.EQ: ("=", "="),
    exp.GT: (">", "<"),
    exp.GTE: (">=", "<="),
    exp.LT: ("<", ">"),
    exp.LTE: ("<=", ">="),
}
_HOLDS: Final[dict[str, Callable[[Any, Any], bool]]] = {
    ">": lambda value, bound: value > bound,
    ">=": lambda value, bound: value >= bound,
    "<": lambda value, bound: value < bound,
    "<=": lambda value, bound: value <= bound,
}


def _is_constant(node: Any) -> bool:
    if isinstance(node, exp.Neg):
        return isinstance(node.this, exp.Literal)
    # SQLite takes a quoted word that names no column for a string.
    quoted = isinstance(node, exp.Column) and not node.table and node.this.args.get("quoted")
    return bool(quoted) or isinstance(node, exp.Literal)


def _text(node: exp.Expression) -> str:
    return f"-{node.this.name}" if isinstance(node, exp.Neg) else str(node.name)


def _condition(column: ColumnDesign, operator: str, constants: list[str]) -> _Condition | None:
    if operator == "like":
        return _like(column, constants[0])
    found = [value for text in constants for value in _as_values(column, text)]
    if not found:
        return None
    if operator == "=":
        wanted = frozenset(found)
        return _Condition(tuple(dict.fromkeys(found)), lambda value: value in wanted)
    bound, compare = found[0], _HOLDS[operator]

    def holds(value: Value) -> bool:
        return isinstance(value, str) == isinstance(bound, str) and compare(value, bound)

    return _Condition(tuple(_around(column.kind, bound)), holds)


def _as_values(column: ColumnDesign, text: str) -> list[Value]:
    """A constant as the column would hold it; [] where it cannot."""
    if len(text) > _MAX_TEXT_CHARS:
        return []
    if column.kind is ColumnKind.BOOLEAN and text.lower() in ("true", "false"):
        return [int(text.lower() == "true")]
    if column.kind.is_number:
        with contextlib.suppress(ValueError):
            number = float(text)
            if abs(number) < _MAX_INTEGER:
                return [number if column.kind is ColumnKind.REAL else int(number)]
        return []
    if column.kind in (ColumnKind.DATE, ColumnKind.DATETIME):
        return [_as_date(text, column.kind)] if _DATE.match(text) else []
    return [text]


_DATE: Final = re.compile(r"\d{4}(?:-\d\d(?:-\d\d(?:[ T]\d\d:\d\d(?::\d\d)?)?)?)?-?\Z")


def _as_date(text: str, kind: ColumnKind) -> str:
    """A date, or its beginning, in full: `2023-05` is in the middle of May."""
    text = text.rstrip("-").replace("T", " ")
    date = text + "2000-06-15"[len(text) :] if len(text) < len("2000-06-15") else text
    if kind is ColumnKind.DATETIME and len(date) == len("2000-06-15"):
        date += " 12:00:00"
    return date


def _around(kind: ColumnKind, bound: Value) -> Iterator[Value]:
    """The bound and values near it, on both sides."""
    yield bound
    if isinstance(bound, str):
        if kind in (ColumnKind.DATE, ColumnKind.DATETIME):
            with contextlib.suppress(ValueError, OverflowError):
                day = datetime.date.fromisoformat(bound[:10])
                for days in (-150, -60, -20, -7, -1, 1, 7, 20, 60, 150):
                    yield f"{day + datetime.timedelta(days)}{bound[10:]}"
        return
    far = max(abs(bound) // 5, 3)
    for distance in (1, 2, far, 2 * far, 3 * far):
        yield from (bound - distance, bound + distance)


def _like(column: ColumnDesign, pattern: str) -> _Condition | None:
    if column.kind in (ColumnKind.DATE, ColumnKind.DATETIME):
        dates = _as_values(column, pattern.rstrip("%"))
        return _Condition(tuple(dates), lambda value: value in dates) if dates else None
    if column.kind is not ColumnKind.TEXT or len(pattern) > _MAX_TEXT_CHARS:
        return None
    text = pattern.replace("_", "a").replace("%", "").strip()
    values = (text, f"{text} Bay") if pattern.endswith("%") else (text,)
    return _Condition(values, lambda value: value in values) if text else None


def _best(conditions: list[_Condition]) -> tuple[Value, ...]:
    candidates = dict.fromkeys(value for condition in conditions for value in condition.values)
    scores = {
        value: sum(condition.holds(value) for condition in conditions) for value in candidates
    }
    best = max(scores.values())
    return tuple(value for value, score in scores.items() if score == best)


# ---------------------------------------------------------------------- from the checks


@dataclass(frozen=True, slots=True)
class ColumnLimits:
    """Values that checks allow: of `choices` (any where it is `None`), from `low` to `high`."""

    choices: tuple[Value, ...] | None = None
    low: float | None = None
    high: float | None = None


def get_limits(table: TableDesign) -> dict[str, ColumnLimits]:
    """Limits of columns by simple checks of their table, by their names in lower case.

    Only what is stated of one column and constants, by itself or joined by AND, is read; whoever
    makes rows has to try the whole check.
    """
    limits: dict[str, ColumnLimits] = {}
    for column in table.columns:
        if column.choices:
            limits[column.name.lower()] = ColumnLimits(choices=column.choices)
    for check in table.checks:
        for part in _conjuncts(check):
            for side, operator, constants in _comparisons(part):
                if isinstance(side, exp.Column):
                    column = table.column(side.name)
                    name = column.name.lower()
                    old = limits.get(name, ColumnLimits())
                    limits[name] = _narrowed(old, column, operator, constants)
    return limits


def _conjuncts(condition: exp.Expression) -> Iterator[exp.Expression]:
    if isinstance(condition, exp.Paren):
        yield from _conjuncts(condition.this)
    elif isinstance(condition, exp.And):
        yield from _conjuncts(condition.this)
        yield from _conjuncts(condition.expression)
    else:
        yield condition


def _narrowed(
    limits: ColumnLimits, column: ColumnDesign, operator: str, constants: list[str]
) -> ColumnLimits:
    values = [value for text in constants for value in _as_values(column, text)]
    if not values or operator == "like":
        return limits
    if operator == "=":
        kept = [v for v in values if limits.choices is None or v in limits.choices]
        return ColumnLimits(tuple(kept), limits.low, limits.high)
    bound = values[0]
    if isinstance(bound, str):
        return limits
    step = 0 if operator.endswith("=") else (0.01 if column.kind is ColumnKind.REAL else 1)
    if operator.startswith(">"):
        low = bound + step if limits.low is None else max(bound + step, limits.low)
        return ColumnLimits(limits.choices, low, limits.high)
    high = bound - step if limits.high is None else min(bound - step, limits.high)
    return ColumnLimits(limits.choices, limits.low, high)


# ---------------------------------------------------------------------- from the comments

_TABLE_LINE: Final = re.compile(r'\s*CREATE\s+TABLE\s+(?:IF\s+NOT\s+EXISTS\s+)?["`\[]?(\w+)', re.I)
_COLUMN_LINE: Final = re.compile(r'\s*["`\[]?(\w+)["`\]]?\s')
_EXAMPLE: Final = re.compile(r"'((?:[^']|'')+)'|\"([^\"]+)\"|(?<![\w.])(-?\d+(?:\.\d+)?)(?![\w.])")


def get_example_values(design: SchemaDesign, ddl: str) -> WantedValues:
    """Values in comments behind columns: `city TEXT, -- 'Oslo', 'Lima'`.

    Quoted ones, and numbers for columns of numbers; those that the column cannot hold are left
    out. The DDL is read line by line; a column that shares its line with another has none.
    """
    tables = {table.name.lower(): table for table in design.tables}
    examples: WantedValues = {}
    table: TableDesign | None = None
    for line in ddl.split("\n"):
        if opening := _TABLE_LINE.match(line):
            table = tables.get(opening.group(1).lower())
            continue
        found = _COLUMN_LINE.match(line)
        if table is None or found is None:
            continue
        comment = line[found.end() :].partition("--")[2]
        try:
            column = table.column(found.group(1))
        except KeyError:
            continue
        values = tuple(dict.fromkeys(_examples(column, comment)))[:_MAX_EXAMPLES]
        if values:
            examples[table.name.lower(), column.name.lower()] = values
    return examples


def _examples(column: ColumnDesign, comment: str) -> Iterable[Value]:
    for single, double, number in _EXAMPLE.findall(comment):
        quoted = single.replace("''", "'") or double
        if quoted or column.kind.is_number:
            yield from _as_values(column, quoted or number)
