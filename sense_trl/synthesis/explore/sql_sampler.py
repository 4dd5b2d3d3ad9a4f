"""`SQLSampler`: queries drawn from a small grammar over a part of a schema, at four levels.

1. one table: columns, DISTINCT, a count or another aggregate, with or without a condition;
2. one table with several conditions, an order or groups; two tables joined;
3. joins with groups, HAVING, an order; IN and NOT IN; comparison with an aggregate;
4. set operations, and the shapes of level 3 with more conditions.

Columns come from the part of the schema that is asked about, constants from the values of the
database. Whether a query returns anything, and always the same, only running it tells.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

from sense_trl.errors import InputError
from sense_trl.schema.formats import quote_name
from sense_trl.schema.graph import ColumnName, JoinEdge
from sense_trl.synthesis.explore.facts import ColumnFacts, ColumnRole, DatabaseFacts

LEVELS: Final = (1, 2, 3, 4)

_AGGREGATES: Final = ("avg", "max", "min", "sum")
_ORDERED: Final = frozenset({ColumnRole.NUMBER, ColumnRole.TIME})


def format_literal(value: int | float | str) -> str:
    """A constant as SQL writes it.

    Example:
        >>> format_literal(3), format_literal("O'Neil")
        ('3', "'O''Neil'")
    """
    return "'" + value.replace("'", "''") + "'" if isinstance(value, str) else repr(value)


class SQLSampler:
    """Draws queries on one database.

    Args:
        facts: the database.
    """

    def __init__(self, facts: DatabaseFacts) -> None:
        self._facts = facts

    def sample(self, level: int, columns: Sequence[ColumnName], rng: random.Random) -> str | None:
        """Draw one query.

        Args:
            level: one of `LEVELS`.
            columns: what the query is about. Tables that join theirs may come in besides; where a
                shape needs a column of a role that none of them has, another one of the table.
            rng: draws; the same state gives the same query.

        Returns:
            The text, `None` where the columns do not allow the shape that was drawn.

        Raises:
            InputError: `level` is none, or `columns` is empty.
        """
        if level not in LEVELS:
            raise InputError(f"`level` is {level!r}; expected one of {LEVELS}.")
        if not columns:
            raise InputError("`columns` is empty; expected at least one column.")
        shape = rng.choice(_SHAPES[level])
        try:
            return shape(_Draw(self._facts, columns, rng))
        except _Impossible:
            return None


class _Impossible(Exception):
    """The columns do not allow the shape."""


@dataclass(frozen=True, slots=True)
class _Source:
    """A FROM clause: its text, and what the columns of each table are qualified by."""

    text: str
    prefixes: dict[str, str]
    dialect: str

    def write(self, column: ColumnName) -> str:
        return self.prefixes[column.table] + quote_name(column.column, self.dialect)


class _Draw:
    """One query in the making: the parts that shapes are put together from."""

    def __init__(
        self, facts: DatabaseFacts, columns: Sequence[ColumnName], rng: random.Random
    ) -> None:
        self.facts = facts
        self.rng = rng
        self.focus = list(columns)
        self.used: set[ColumnName] = set()
        self.tables = list(dict.fromkeys(column.table for column in columns))

    def one_table(self) -> _Source:
        table = self.rng.choice(self.tables)
        return self.alone(table)

    def alone(self, table: str) -> _Source:
        """One table without an alias."""
        dialect = self.facts.schema.dialect
        return _Source(quote_name(table, dialect), {table: ""}, dialect)

    def joined(self, max_tables: int = 3) -> _Source:
        """Tables of the focus joined, with a neighbour where there is one table only."""
        wanted = self.rng.sample(self.tables, min(len(self.tables), max_tables))
        if len(wanted) == 1:
            edges = self.facts.graph.get_join_edges(wanted[0])
            if not edges:
                raise _Impossible
            wanted.append(self.rng.choice(edges).get_other(wanted[0]))
        tree = self.facts.graph.get_join_tree(wanted, self.rng)
        # A table joined to itself, and long ways round, are hard to say.
        if not tree or len(tree) > max_tables:
            raise _Impossible
        return _join(wanted[0], tree, self.facts.schema.dialect)

    def pick(
        self, source: _Source, roles: frozenset[ColumnRole], *, repeats: bool = False
    ) -> ColumnFacts:
        """A column of one of the roles: of the focus, and not used before, where there is one."""
        known = [
            facts
            for table in source.prefixes
            for facts in self.facts.of_table(table)
            if facts.role in roles and (facts.repeats or not repeats)
        ]
        if not known:
            raise _Impossible
        near = [facts for facts in known if facts.name in self.focus]
        fresh = [facts for facts in near or known if facts.name not in self.used]
        drawn = self.rng.choice(fresh or near or known)
        self.used.add(drawn.name)
        return drawn

    def projection(self, source: _Source, max_columns: int = 2) -> str:
        """One column or more, rather none that only identifies rows."""
        known = [f for table in source.prefixes for f in self.facts.of_table(table)]
        near = [f for f in known if f.name in self.focus] or known
        told = [f for f in near if f.role is not ColumnRole.KEY]
        if not told or self.rng.random() < 0.15:
            told = near
        drawn = self.rng.sample(told, min(len(told), self.rng.randint(1, max_columns)))
        self.used.update(facts.name for facts in drawn)
        return ", ".join(source.write(facts.name) for facts in drawn)

    def condition(self, source: _Source) -> str:
        """A condition that a value of the database satisfies."""
        facts = self.pick(source, frozenset(ColumnRole) - {ColumnRole.KEY})
        return self.compare(source.write(facts.name), facts)

    def compare(self, left: str, facts: ColumnFacts) -> str:
        value = facts.draw_value(self.rng)
        if value is None:
            raise _Impossible
        kind = self.rng.random()
        if facts.role is ColumnRole.TEXT:
            word = facts.draw_word(self.rng) if kind < 0.2 else None
            if word is not None:
                return f"{left} LIKE '%{word}%'"
            return f"{left} {'!=' if kind > 0.85 else '='} {format_literal(value)}"
        bound = facts.draw_bound(self.rng)
        assert bound is not None
        if kind < 0.2:
            return f"{left} = {format_literal(value)}"
        if kind < 0.35:
            other = facts.draw_bound(self.rng)
            assert other is not None
            low, high = sorted((bound, other), key=lambda v: (isinstance(v, str), v))
            if low != high:
                return f"{left} BETWEEN {format_literal(low)} AND {format_literal(high)}"
        return f"{left} {self.rng.choice(('>', '<', '>=', '<='))} {format_literal(bound)}"

    def where(self, source: _Source, num_conditions: int, *, all_hold: bool = False) -> str:
        """A WHERE clause of so many conditions, or fewer if they repeat; with `all_hold` no OR."""
        conditions = list(dict.fromkeys(self.condition(source) for _ in range(num_conditions)))
        if not conditions:
            return ""
        is_or = not all_hold and len(conditions) == 2 and self.rng.random() < 0.3
        glue = " OR " if is_or else " AND "
        return " WHERE " + glue.join(conditions)

    def order(self, source: _Source, num_rows: int | None = None) -> str:
        facts = self.pick(source, _ORDERED)
        direction = self.rng.choice(("ASC", "DESC"))
        limit = "" if num_rows is None else f" LIMIT {num_rows}"
        return f" ORDER BY {source.write(facts.name)} {direction}{limit}"

    def aggregate(self, source: _Source) -> str:
        facts = self.pick(source, frozenset({ColumnRole.NUMBER}))
        return f"{self.rng.choice(_AGGREGATES)}({source.write(facts.name)})"

    def group_key(self, source: _Source) -> str:
        roles = frozenset({ColumnRole.TEXT, ColumnRole.TIME, ColumnRole.NUMBER})
        try:
            facts = self.pick(source, frozenset({ColumnRole.TEXT}), repeats=True)
        except _Impossible:
            facts = self.pick(source, roles, repeats=True)
        return source.write(facts.name)

    def count_or_aggregate(self, source: _Source) -> str:
        if self.rng.random() < 0.6:
            return "count(*)"
        try:
            return self.aggregate(source)
        except _Impossible:
            return "count(*)"

    def edge(self) -> JoinEdge:
        """A reference from or to a table of the focus."""
        edges = [
            edge
            for table in self.tables
            for edge in self.facts.graph.get_join_edges(table)
            if len(edge.columns) == 1 and edge.table != edge.referenced_table
        ]
        if not edges:
            raise _Impossible
        return self.rng.choice(edges)


def _join(first: str, tree: Sequence[JoinEdge], dialect: str) -> _Source:
    tables = list(
        dict.fromkeys([first, *(t for edge in tree for t in (edge.table, edge.referenced_table))])
    )
    # The first edge touches the first table, and each other one a table before it.
    prefixes = {first: "T1."}
    text = f"{quote_name(first, dialect)} AS T1"
    for edge in tree:
        new = edge.table if edge.referenced_table in prefixes else edge.referenced_table
        prefixes[new] = f"T{len(prefixes) + 1}."
        source = _Source("", prefixes, dialect)
        pairs = " AND ".join(f"{source.write(a)} = {source.write(b)}" for a, b in edge.pairs)
        text += f" JOIN {quote_name(new, dialect)} AS {prefixes[new][:-1]} ON {pairs}"
    assert len(prefixes) == len(tables)
    return _Source(text, prefixes, dialect)


# ---------------------------------------------------------------------- level 1


def _columns(draw: _Draw) -> str:
    source = draw.one_table()
    distinct = "DISTINCT " if draw.rng.random() < 0.25 else ""
    where = draw.where(source, draw.rng.randint(0, 1))
    return f"SELECT {distinct}{draw.projection(source)} FROM {source.text}{where}"


def _count(draw: _Draw) -> str:
    source = draw.one_table()
    counted = "*"
    if draw.rng.random() < 0.3:
        counted = f"DISTINCT {draw.group_key(source)}"
    return f"SELECT count({counted}) FROM {source.text}{draw.where(source, draw.rng.randint(0, 1))}"


def _aggregate(draw: _Draw) -> str:
    source = draw.one_table()
    value = draw.aggregate(source)
    return f"SELECT {value} FROM {source.text}{draw.where(source, draw.rng.randint(0, 1))}"


# ---------------------------------------------------------------------- level 2


def _conditions(draw: _Draw) -> str:
    source = draw.one_table()
    return f"SELECT {draw.projection(source)} FROM {source.text}{draw.where(source, 2)}"


def _ordered(draw: _Draw) -> str:
    source = draw.one_table()
    limit = draw.rng.choice((None, 1, 1, 3, 5))
    tail = draw.where(source, draw.rng.randint(0, 1)) + draw.order(source, limit)
    return f"SELECT {draw.projection(source)} FROM {source.text}{tail}"


def _grouped(draw: _Draw) -> str:
    source = draw.one_table()
    key = draw.group_key(source)
    return f"SELECT {key}, {draw.count_or_aggregate(source)} FROM {source.text} GROUP BY {key}"


def _joined(draw: _Draw) -> str:
    source = draw.joined(2)
    where = draw.where(source, draw.rng.randint(0, 1))
    return f"SELECT {draw.projection(source)} FROM {source.text}{where}"


def _aggregates(draw: _Draw) -> str:
    source = draw.one_table()
    facts = draw.pick(source, frozenset({ColumnRole.NUMBER}))
    column = source.write(facts.name)
    drawn = ", ".join(f"{name}({column})" for name in draw.rng.sample(_AGGREGATES, 2))
    return f"SELECT {drawn} FROM {source.text}{draw.where(source, draw.rng.randint(0, 1))}"


# ---------------------------------------------------------------------- level 3


def _joined_grouped(draw: _Draw, num_conditions: int = 0) -> str:
    source = draw.joined()
    key = draw.group_key(source)
    value = draw.count_or_aggregate(source)
    where = draw.where(source, num_conditions)
    return f"SELECT {key}, {value} FROM {source.text}{where} GROUP BY {key}" + _tail(draw, value)


def _tail(draw: _Draw, value: str) -> str:
    """Draw the clauses after GROUP BY."""
    kind = draw.rng.random()
    if kind < 0.35 and value == "count(*)":
        return f" HAVING count(*) {draw.rng.choice(('>', '>='))} {draw.rng.randint(1, 3)}"
    if kind < 0.7:
        limit = draw.rng.choice(("", " LIMIT 1", " LIMIT 1", " LIMIT 3"))
        return f" ORDER BY {value} {draw.rng.choice(('ASC', 'DESC', 'DESC'))}{limit}"
    return ""


def _grouped_with_tail(draw: _Draw) -> str:
    source = draw.one_table()
    key = draw.group_key(source)
    value = draw.count_or_aggregate(source)
    columns = key if draw.rng.random() < 0.5 else f"{key}, {value}"
    tail = _tail(draw, value) or f" ORDER BY {value} DESC LIMIT 1"
    return f"SELECT {columns} FROM {source.text} GROUP BY {key}{tail}"


def _joined_ordered(draw: _Draw) -> str:
    source = draw.joined()
    limit = draw.rng.choice((None, 1, 1, 3))
    tail = draw.where(source, draw.rng.randint(0, 1)) + draw.order(source, limit)
    return f"SELECT {draw.projection(source)} FROM {source.text}{tail}"


def _member(draw: _Draw, num_outer: int = 0, *, has_groups: bool = False) -> str:
    """IN or NOT IN along a reference, from either of its ends."""
    edge = draw.edge()
    ends = [edge.pairs[0], edge.pairs[0][::-1]]
    outer, inner = draw.rng.choice(ends)
    source = draw.alone(outer.table)
    other = draw.alone(inner.table)
    key = other.write(inner)
    if has_groups:
        tail = f" GROUP BY {key} HAVING count(*) >= {draw.rng.randint(2, 3)}"
        operator = "IN"
    else:
        # Every value that refers is found where it refers to.
        least = int(outer == edge.pairs[0][0])
        tail = draw.where(other, draw.rng.randint(least, 1))
        operator = draw.rng.choice(("IN", "NOT IN"))
    where = draw.where(source, num_outer, all_hold=True)
    glue = " AND " if where else " WHERE "
    member = f"{source.write(outer)} {operator} (SELECT {key} FROM {other.text}{tail})"
    return f"SELECT {draw.projection(source)} FROM {source.text}{where}{glue}{member}"


def _beside_aggregate(draw: _Draw, num_conditions: int = 0) -> str:
    """A comparison with an aggregate of the same column."""
    source = draw.one_table()
    facts = draw.pick(source, frozenset({ColumnRole.NUMBER}))
    column = source.write(facts.name)
    name, operator = draw.rng.choice((("avg", ">"), ("avg", "<"), ("max", "="), ("min", "=")))
    where = draw.where(source, num_conditions, all_hold=True)
    inner = f"(SELECT {name}({column}) FROM {source.text}{where})"
    glue = f"{where} AND" if where else " WHERE"
    return f"SELECT {draw.projection(source)} FROM {source.text}{glue} {column} {operator} {inner}"


def _many_conditions(draw: _Draw) -> str:
    source = draw.joined()
    return f"SELECT {draw.projection(source)} FROM {source.text}{draw.where(source, 2)}"


# ---------------------------------------------------------------------- level 4


def _set_operation(draw: _Draw) -> str:
    source = draw.joined() if draw.rng.random() < 0.3 else draw.one_table()
    columns = draw.projection(source, 1)
    operator = draw.rng.choice(("INTERSECT", "UNION", "EXCEPT"))
    left, right = draw.where(source, 1), draw.where(source, 1)
    if operator == "EXCEPT" and draw.rng.random() < 0.5:
        left = ""
    if left == right:
        raise _Impossible
    body = f"SELECT {columns} FROM {source.text}"
    return f"{body}{left} {operator} {body}{right}"


def _joined_grouped_where(draw: _Draw) -> str:
    return _joined_grouped(draw, draw.rng.randint(1, 2))


def _member_where(draw: _Draw) -> str:
    return _member(draw, draw.rng.randint(1, 2))


def _member_of_groups(draw: _Draw) -> str:
    return _member(draw, has_groups=True)


def _beside_aggregate_where(draw: _Draw) -> str:
    return _beside_aggregate(draw, 1)


_SHAPES: Final[dict[int, tuple[Callable[[_Draw], str], ...]]] = {
    1: (_columns, _columns, _count, _aggregate),
    2: (_conditions, _ordered, _grouped, _joined, _aggregates),
    3: (
        _joined_grouped,
        _grouped_with_tail,
        _joined_ordered,
        _member,
        _beside_aggregate,
        _many_conditions,
    ),
    4: (
        _set_operation,
        _joined_grouped_where,
        _member_where,
        _member_of_groups,
        _beside_aggregate_where,
    ),
}
