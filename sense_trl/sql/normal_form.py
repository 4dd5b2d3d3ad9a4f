"""A query without its spelling: `get_normal_form` gives what taxonomy compares.

Names are resolved to tables and columns of the schema, so aliases and qualification are gone;
`BETWEEN`, `IN (1, 2)`, `NOT (a > b)`, comma joins, `USING` and flipped comparisons are written in
one way; parentheses, aliases of result columns and what changes no row (DISTINCT below IN, ORDER
BY without LIMIT in a subquery) are dropped.

Expressions are nested tuples that begin with what they are:

* `("col", label, name)`: a column; the label is its table's name, `table#2` for the second
  occurrence of a table in one FROM clause, `@1` for the first subquery in it (whose columns are
  named by position), and begins with one `^` for each query it lies outside of;
* `("lit", number)`, `("lit", string, "text")`, `("null",)`, `("star",)`;
* `("agg", name, is_distinct, *arguments)`; `("query", Block | SetOperation)`;
* conditions: `("and" | "or", *conditions)` and atoms `(operator, left, right)`;
* anything else by the name of its node in sqlglot.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, Final, TypeAlias

from sqlglot import exp

from sense_trl.sql.parsing import SQLNestingError, get_text
from sense_trl.sql.resolution import QueryNames, Source, get_from

Expr: TypeAlias = tuple[Any, ...]
Column: TypeAlias = tuple[str, str]
"""Label and name."""

ALWAYS: Final[Expr] = ("and",)
"""The condition that is always true."""


@dataclass(frozen=True, slots=True)
class Block:
    """One SELECT.

    Attributes:
        select: result columns; () below EXISTS.
        tables: labels of the tables and subqueries of its FROM clause.
        derived: the subqueries among them.
        optional: labels that an outer join may fill with NULL.
        equalities: pairs of columns of different tables that joins or WHERE set equal.
        where: conditions on rows, those of ON included.
        having: conditions on groups.
        group: keys, sorted.
        order: keys, each with whether it descends.
        limit, offset: `None` if there is none.
        distinct: whether it drops duplicates that it may have.
    """

    select: tuple[Expr, ...]
    tables: tuple[str, ...] = ()
    derived: tuple[Query, ...] = ()
    optional: tuple[str, ...] = ()
    equalities: tuple[tuple[Column, Column], ...] = ()
    where: Expr = ALWAYS
    having: Expr = ALWAYS
    group: tuple[Expr, ...] = ()
    order: tuple[tuple[Expr, bool], ...] = ()
    limit: Expr | None = None
    offset: Expr | None = None
    distinct: bool = False


@dataclass(frozen=True, slots=True)
class SetOperation:
    """UNION, INTERSECT or EXCEPT; a chain of one commutative operator is one operation."""

    operator: str
    operands: tuple[Query, ...]
    order: tuple[tuple[Expr, bool], ...] = ()
    limit: Expr | None = None
    offset: Expr | None = None

    @property
    def is_commutative(self) -> bool:
        return not self.operator.startswith("except")


Query: TypeAlias = Block | SetOperation


def get_normal_form(tree: exp.Expression, names: QueryNames, *, dialect: str) -> Query:
    """The normal form of a query.

    Args:
        tree: the parsed query.
        names: resolves its names.
        dialect: "sqlite" takes LIKE without regard to case.

    Raises:
        SQLNestingError: the query is nested too deeply, or says its own parts again (common table
            expressions, aliases, operands of BETWEEN and IN) so often that written out it would be
            immense.
    """
    try:
        return _Normalizer(names, dialect).query(tree, (), _Place.TOP)
    except RecursionError as error:
        raise SQLNestingError("nested too deeply to be normalised") from error


def get_atoms(condition: Expr) -> list[Expr]:
    """The conditions that a tree of AND and OR connects."""
    if condition[0] in ("and", "or"):
        return [atom for part in condition[1:] for atom in get_atoms(part)]
    return [condition]


def get_queries(expression: Expr) -> Iterator[Query]:
    """The subqueries in an expression, not those within them."""
    if expression[0] == "query":
        yield expression[1]
        return
    for part in expression[1:]:
        if isinstance(part, tuple) and part:
            yield from get_queries(part)


def has_aggregate(expression: Expr) -> bool:
    """Whether an expression aggregates rows of its own query."""
    if expression[0] == "agg":
        return True
    if expression[0] in ("query", "window"):
        return False
    return any(has_aggregate(part) for part in expression[1:] if isinstance(part, tuple) and part)


def flip_comparison(atom: Expr) -> Expr | None:
    """`b > a` for `a < b`; `None` for a condition that is no comparison."""
    operator = _FLIPPED.get(atom[0])
    return None if operator is None else (operator, atom[2], atom[1])


def get_relabellings(labels: Iterable[str]) -> Iterator[dict[str, str]]:
    """The ways to number the occurrences of each table, at most 24; first the one there is.

    Example:
        >>> list(get_relabellings(["pet", "pet#2", "owner"]))
        [{'pet': 'pet', 'pet#2': 'pet#2'}, {'pet': 'pet#2', 'pet#2': 'pet'}]
    """
    repeated: dict[str, set[str]] = {}
    for label in labels:
        if "#" in label:
            table = label.partition("#")[0]
            repeated.setdefault(table, {table}).add(label)
    choices = []
    for occurrences in repeated.values():
        ordered = sorted(occurrences)
        # No more than are looked at: a table may occur dozens of times.
        orders = itertools.islice(itertools.permutations(ordered), _MAX_RELABELLINGS)
        choices.append([dict(zip(ordered, order, strict=True)) for order in orders])
    for chosen in itertools.islice(itertools.product(*choices), _MAX_RELABELLINGS):
        yield {old: new for names in chosen for old, new in names.items()}


_MAX_RELABELLINGS: Final = 24


def map_columns(query: Block, change: Callable[[Column], Column]) -> Block:
    """A block with other columns, those of its subqueries that mean its own included."""
    mapped = _map_columns(query, change)
    assert isinstance(mapped, Block)
    return mapped


def _map_columns(query: Query, change: Callable[[Column], Column]) -> Query:
    def inner(column: Column) -> Column:
        label, name = column
        if not label.startswith("^"):
            return column
        label, name = change((label[1:], name))
        return "^" + label, name

    def outer(column: Column) -> Column:
        # A subquery in FROM sees what its query sees of the outside.
        return change(column) if column[0].startswith("^") else column

    def expression(value: Expr) -> Expr:
        if value[0] == "col":
            return ("col", *change((value[1], value[2])))
        if value[0] == "query":
            return ("query", _map_columns(value[1], inner))
        return tuple(expression(v) if isinstance(v, tuple) and v else v for v in value)

    order = tuple((expression(key), descends) for key, descends in query.order)
    if isinstance(query, SetOperation):
        operands = tuple(_map_columns(operand, change) for operand in query.operands)
        return replace(query, operands=operands, order=order)
    return replace(
        query,
        select=tuple(expression(column) for column in query.select),
        derived=tuple(_map_columns(derived, outer) for derived in query.derived),
        equalities=_sorted(
            {_sorted_pair(change(left), change(right)) for left, right in query.equalities}
        ),
        where=expression(query.where),
        having=expression(query.having),
        group=tuple(expression(key) for key in query.group),
        order=order,
    )


# ---------------------------------------------------------------------- helpers


class _Place:
    """The place of a query in another one; decides what of it changes no row."""

    TOP: Final = "top"
    VALUE: Final = "value"
    TABLE: Final = "table"
    MEMBERS: Final = "members"
    EXISTS: Final = "exists"
    OPERAND: Final = "operand"


_MAX_EXPANSIONS: Final = 1_000
# Parts of a query as it is written out, some ten for each token of a query that names no part
# again and nearly a second's work.
_MAX_PARTS: Final = 50_000

# What IN, EXISTS and a set operation without ALL see of a query is a set.
_SETS: Final = frozenset({_Place.MEMBERS, _Place.EXISTS, _Place.OPERAND})

_Labels: TypeAlias = dict[int, str]
_Scopes: TypeAlias = tuple[_Labels, ...]
"""The label of each source, by scope, the innermost first."""

_COMPARISONS: Final[dict[type[Any], str]] = {
    exp.EQ: "=",
    exp.NEQ: "<>",
    exp.GT: ">",
    exp.GTE: ">=",
    exp.LT: "<",
    exp.LTE: "<=",
}
_FLIPPED: Final = {"=": "=", "<>": "<>", ">": "<", ">=": "<=", "<": ">", "<=": ">="}
_NEGATED: Final = {"=": "<>", "<>": "=", ">": "<=", ">=": "<", "<": ">=", "<=": ">"}
_SET_OPERATORS: Final[tuple[tuple[type[Any], str], ...]] = (
    (exp.Union, "union"),
    (exp.Intersect, "intersect"),
    (exp.Except, "except"),
)


class _Normalizer:
    def __init__(self, names: QueryNames, dialect: str) -> None:
        self._names = names
        self._dialect = dialect
        self._open_aliases: set[int] = set()
        self._num_expansions = 0
        self._num_parts = 0
        # How often what is being read will stand in the normal form.
        self._num_copies = 1

    # ------------------------------------------------------------------ queries

    def query(self, node: exp.Expression, outer: _Scopes, place: str) -> Query:
        while isinstance(node, (exp.Subquery, exp.Paren)) and not _has_tail(node):
            node = node.this
        if isinstance(node, exp.Select):
            wrapped = _wrapped_query(node)
            if wrapped is not None:
                return self.query(wrapped, outer, place)
            return self._block(node, outer, place)
        if isinstance(node, exp.SetOperation):
            return self._set_operation(node, outer, place)
        if isinstance(node, (exp.Subquery, exp.Paren)):
            inner = self.query(node.this, outer, place)
            return replace(inner, **self._tail(node, inner, (), outer, place))
        if isinstance(node, exp.Lateral) and isinstance(node.this, exp.Subquery):
            return self.query(node.this, outer, place)
        # VALUES, functions that give rows, and whatever else may stand for a query; what it is
        # called does not matter.
        bare = node.copy()
        bare.set("alias", None)
        return Block((("other", get_text(bare).lower()),))

    def _set_operation(self, node: exp.SetOperation, outer: _Scopes, place: str) -> Query:
        operator = next(name for type_, name in _SET_OPERATORS if isinstance(node, type_))
        is_bag = node.args.get("distinct") is False
        operator += " all" if is_bag else ""
        inner_place = _Place.TABLE if is_bag else _Place.OPERAND
        operands: list[Query] = []
        for side in (node.this, node.expression):
            operand = self.query(side, outer, inner_place)
            if (
                isinstance(operand, SetOperation)
                and operand == SetOperation(operator, operand.operands)
                and operand.is_commutative
            ):
                operands += operand.operands
            else:
                operands.append(operand)
        made = SetOperation(operator, tuple(operands))
        return replace(made, **self._tail(node, made, (), outer, place))

    def _block(self, node: exp.Select, outer: _Scopes, place: str) -> Block:
        sources = self._names.sources(node)
        scopes: _Scopes = (_labels(sources), *outer)
        labels = scopes[0]
        where = node.args.get("where")
        conditions = [] if where is None else [self._condition(where.this, scopes)]
        equalities: set[tuple[Column, Column]] = set()
        optional: set[str] = set()
        for index, join in enumerate(node.args.get("joins") or [], start=1):
            self._join(join, index, sources, scopes, equalities, conditions, optional)
        having_clause = node.args.get("having")
        having = [] if having_clause is None else [self._condition(having_clause.this, scopes)]
        group = self._group(node, scopes)
        select = tuple(self._projections(node, scopes))
        rows: list[Expr] = []
        groups: list[Expr] = []
        for condition in _parts("and", conditions):
            if not _add_equality(condition, labels, equalities):
                rows.append(condition)
        for condition in _parts("and", having):
            # A condition on a key may stand in either clause.
            (groups if has_aggregate(condition) or not group else rows).append(condition)
        block = Block(
            select=() if place == _Place.EXISTS else select,
            tables=tuple(labels[id(source)] for source in sources),
            derived=tuple(
                # What is lateral sees the tables before it.
                self.query(
                    source.node,
                    scopes if isinstance(source.node, exp.Lateral) else outer,
                    _Place.TABLE,
                )
                if not isinstance(source.node, exp.Table)
                else self._cte(source.node, outer)
                for source in sources
                if labels[id(source)].startswith("@")
            ),
            optional=tuple(sorted(optional)),
            equalities=_sorted(equalities),
            where=_connect("and", rows),
            having=_connect("and", groups),
            group=group,
            distinct=node.args.get("distinct") is not None,
        )
        tail = self._tail(node, block, scopes, outer, place)
        return _without_idle_parts(replace(block, **tail), place)

    def _cte(self, table: exp.Table, outer: _Scopes) -> Query:
        cte = self._names.get_cte(table)
        assert cte is not None
        self._count_expansion()
        return self.query(cte.this, outer, _Place.TABLE)

    def _count_expansion(self) -> None:
        """Stop at queries that double with every name: `a AS (...), b AS (SELECT * FROM a, a)`."""
        self._num_expansions += 1
        if self._num_expansions > _MAX_EXPANSIONS:
            raise SQLNestingError(
                f"nested too deeply: more than {_MAX_EXPANSIONS} parts are named again"
            )

    def _count_parts(self, count: int = 1) -> None:
        """Stop at queries that double with every operator: `a BETWEEN 1 AND 2 BETWEEN 1 AND 2`."""
        self._num_parts += count * self._num_copies
        if self._num_parts > _MAX_PARTS:
            raise SQLNestingError(
                f"nested too deeply: written out it would have more than {_MAX_PARTS} parts"
            )

    def _copied_value(self, node: exp.Expression, num_copies: int, scopes: _Scopes) -> Expr:
        """A value that will stand in the normal form several times."""
        before = self._num_copies
        self._num_copies *= max(num_copies, 1)
        value = self._value(node, scopes)
        self._num_copies = before
        return value

    def _join(
        self,
        join: exp.Join,
        index: int,
        sources: tuple[Source, ...],
        scopes: _Scopes,
        equalities: set[tuple[Column, Column]],
        conditions: list[Expr],
        optional: set[str],
    ) -> None:
        # Each table is looked for among those before it.
        self._count_parts(index // 8)
        labels = scopes[0]
        own = next((s for s in sources if s.node is join.this), None)
        before = [s for s in sources[:index] if s is not own]
        side = str(join.args.get("side") or "").upper()
        if side in ("LEFT", "FULL") and own is not None:
            optional.add(labels[id(own)])
        if side in ("RIGHT", "FULL"):
            optional |= {labels[id(source)] for source in before}
        on = join.args.get("on")
        if on is not None:
            conditions.append(self._condition(on, scopes))
        shared = [name.name.lower() for name in join.args.get("using") or []]
        if str(join.args.get("method") or "").upper() == "NATURAL" and own is not None:
            others = {name for s in before for name in s.columns or ()}
            shared = [name for name in own.columns or () if name in others]
        for name in shared:
            # A table whose columns are not known may have any.
            partner = next((s for s in before if s.columns is None or name in s.columns), None)
            if own is not None and partner is not None:
                pair = ((labels[id(partner)], name), (labels[id(own)], name))
                equalities.add(_sorted_pair(*pair))

    def _group(self, node: exp.Select, scopes: _Scopes) -> tuple[Expr, ...]:
        group = node.args.get("group")
        if group is None:
            return ()
        keys = {self._key(key, node, scopes, aliases_first=False) for key in group.expressions}
        return tuple(sorted(keys, key=repr))

    def _projections(self, node: exp.Select, scopes: _Scopes) -> Iterator[Expr]:
        for projection in node.expressions:
            value = projection.unalias()
            is_star = isinstance(value, exp.Star)
            if is_star or (isinstance(value, exp.Column) and isinstance(value.this, exp.Star)):
                qualifier = "" if is_star else value.table.lower()
                yield from self._star(node, qualifier, scopes)
            else:
                yield self._value(value, scopes)

    def _star(self, node: exp.Select, qualifier: str, scopes: _Scopes) -> Iterator[Expr]:
        for source in self._names.sources(node):
            if qualifier and source.name != qualifier:
                continue
            label = scopes[0][id(source)]
            if source.columns is None:
                yield ("star", label)
            else:
                self._count_parts(len(source.columns))
                for position, name in enumerate(source.columns):
                    yield ("col", label, str(position) if label.startswith("@") else name)

    def _tail(
        self, node: exp.Expression, query: Query, scopes: _Scopes, outer: _Scopes, place: str
    ) -> dict[str, Any]:
        """ORDER BY, LIMIT and OFFSET of a query, where they change anything."""
        limit = node.args.get("limit")
        offset = node.args.get("offset")
        count = None if limit is None else limit.args.get("expression") or limit.args.get("count")
        found: dict[str, Any] = {
            "limit": None if count is None else self._value(count, scopes or outer),
            "offset": None if offset is None else self._value(offset.expression, scopes or outer),
        }
        order = node.args.get("order")
        if order is not None and (place == _Place.TOP or count is not None):
            found["order"] = tuple(
                (
                    self._order_key(ordered.this, node, query, scopes or outer),
                    bool(ordered.args.get("desc")),
                )
                for ordered in order.expressions
            )
        return {key: value for key, value in found.items() if value is not None}

    def _order_key(
        self, key: exp.Expression, node: exp.Expression, query: Query, scopes: _Scopes
    ) -> Expr:
        if isinstance(node, exp.Select):
            return self._key(key, node, scopes, aliases_first=True)
        # Behind a set operation, a key is a result column.
        select = node
        while not isinstance(select, exp.Select) and isinstance(select.this, exp.Expression):
            select = select.this
        for position, projection in enumerate(getattr(select, "expressions", [])):
            named = isinstance(key, exp.Column) and (
                projection.alias_or_name.lower() == key.name.lower()
            )
            if named or (isinstance(key, exp.Literal) and key.this == str(position + 1)):
                return ("result", position)
        return self._value(key, scopes)

    def _key(
        self, key: exp.Expression, node: exp.Select, scopes: _Scopes, *, aliases_first: bool
    ) -> Expr:
        """A key of ORDER BY or GROUP BY, which may name a result column by number or alias."""
        if isinstance(key, exp.Literal) and not key.is_string and key.this.isdecimal():
            position = int(key.this) - 1
            if 0 <= position < len(node.expressions):
                return self._value(node.expressions[position].unalias(), scopes)
        if aliases_first and isinstance(key, exp.Column) and not key.table:
            aliased = _aliased(node, key.name)
            if aliased is not None:
                return self._value(aliased, scopes)
        return self._value(key, scopes)

    # ------------------------------------------------------------------ expressions

    def _value(self, node: exp.Expression, scopes: _Scopes) -> Expr:
        self._count_parts()
        match node:
            case exp.Paren() | exp.Alias():
                return self._value(node.this, scopes)
            case exp.Column():
                return self._column(node, scopes)
            case exp.Literal():
                return _literal(node.this) if node.is_string else _number(node.this)
            case exp.Neg() if isinstance(node.this, exp.Literal) and not node.this.is_string:
                return _number("-" + node.this.this)
            case exp.Boolean():
                return ("lit", "1" if node.this else "0")
            case exp.Null():
                return ("null",)
            case exp.Star():
                return ("star",)
            case exp.Query():
                return ("query", self.query(node, scopes, _Place.VALUE))
            case exp.AggFunc() if not (isinstance(node, (exp.Min, exp.Max)) and node.expressions):
                return self._aggregate(node, scopes)
            case exp.Add() | exp.Mul():
                sides = [self._value(side, scopes) for side in (node.this, node.expression)]
                return (node.key, *sorted(sides, key=repr))
            case exp.If():
                return ("case", *self._parts(node, ("this", "true", "false"), scopes))
            case exp.Case() if node.this is None and len(node.args["ifs"]) == 1:
                choice = node.args["ifs"][0]
                return (
                    "case",
                    *self._parts(choice, ("this", "true"), scopes),
                    *self._parts(node, ("default",), scopes),
                )
            case exp.Condition() if isinstance(node, _CONDITIONS):
                return self._condition(node, scopes)
        return (node.key, *self._arguments(node, scopes))

    def _parts(
        self, node: exp.Expression, keys: tuple[str, ...], scopes: _Scopes
    ) -> Iterator[Expr]:
        for key in keys:
            part = node.args.get(key)
            if isinstance(part, exp.Expression):
                yield self._value(part, scopes)

    def _arguments(self, node: exp.Expression, scopes: _Scopes) -> Iterator[Any]:
        for value in node.args.values():
            for item in value if isinstance(value, list) else [value]:
                if isinstance(item, exp.DataType):
                    yield get_text(item).lower()
                elif isinstance(item, exp.Expression):
                    yield self._value(item, scopes)
                elif isinstance(item, str):
                    yield item.lower()

    def _aggregate(self, node: exp.AggFunc, scopes: _Scopes) -> Expr:
        argument = node.this
        is_distinct = isinstance(argument, exp.Distinct)
        arguments = argument.expressions if is_distinct else [argument, *node.expressions]
        values = [self._value(a, scopes) for a in arguments if isinstance(a, exp.Expression)]
        if isinstance(node, exp.Count) and not is_distinct and [v[0] for v in values] == ["lit"]:
            values = [("star",)]
        # Of equal values, the smallest is as small.
        is_distinct = is_distinct and not isinstance(node, (exp.Min, exp.Max))
        rest = [
            self._value(value, scopes)
            for key, value in node.args.items()
            if key not in ("this", "expressions") and isinstance(value, exp.Expression)
        ]
        return ("agg", node.key, is_distinct, *values, *rest)

    def _column(self, node: exp.Column, scopes: _Scopes) -> Expr:
        name = node.name.lower()
        if isinstance(node.this, exp.Star):
            return ("star",)
        source = self._names.resolve(node)
        if source is None:
            if self._names.is_string(node):
                return _literal(node.name)
            select = node.parent_select
            aliased = None if node.table or select is None else _aliased(select, name)
            if aliased is None or id(aliased) in self._open_aliases:
                return ("col", "?", name)
            self._count_expansion()
            self._open_aliases.add(id(aliased))
            try:
                return self._value(aliased, scopes)
            finally:
                self._open_aliases.discard(id(aliased))
        for depth, labels in enumerate(scopes):
            label = labels.get(id(source))
            if label is not None:
                if label.startswith("@") and source.columns and name in source.columns:
                    name = str(list(source.columns).index(name))
                return ("col", "^" * depth + label, name)
        return ("col", source.table or "?", name)

    # ------------------------------------------------------------------ conditions

    def _condition(self, node: exp.Expression, scopes: _Scopes, negate: bool = False) -> Expr:
        while isinstance(node, (exp.Paren, exp.Not)):
            negate ^= isinstance(node, exp.Not)
            node = node.this
        if node.args.get("negate"):
            negate = not negate
        match node:
            case exp.And() | exp.Or():
                is_and = isinstance(node, exp.And) is not negate
                parts = [self._condition(part, scopes, negate) for part in _chain(node)]
                return _connect("and" if is_and else "or", parts)
            case exp.EQ() | exp.NEQ() | exp.GT() | exp.GTE() | exp.LT() | exp.LTE():
                operator = _COMPARISONS[type(node)]
                left, right = self._value(node.this, scopes), self._value(node.expression, scopes)
                return _comparison(_NEGATED[operator] if negate else operator, left, right)
            case exp.Between():
                value = self._copied_value(node.this, 2, scopes)
                low, high = (self._value(node.args[part], scopes) for part in ("low", "high"))
                bounds = [("<", low), (">", high)] if negate else [(">=", low), ("<=", high)]
                atoms = [_comparison(operator, value, bound) for operator, bound in bounds]
                return _connect("or" if negate else "and", atoms)
            case exp.In():
                return self._membership(node, scopes, negate)
            case exp.Like() | exp.ILike():
                pattern = self._value(node.expression, scopes)
                if (self._dialect == "sqlite" or isinstance(node, exp.ILike)) and (
                    pattern[0] == "lit"
                ):
                    pattern = ("lit", pattern[1].lower(), *pattern[2:])
                return (_not("like", negate), self._value(node.this, scopes), pattern)
            case exp.Is():
                right = self._value(node.expression, scopes)
                left = self._value(node.this, scopes)
                if right != ("null",):
                    return _comparison("<>" if negate else "=", left, right)
                return (_not("is null", negate), left)
            case exp.Exists():
                query = self.query(node.this, scopes, _Place.EXISTS)
                return (_not("exists", negate), ("query", query))
        return (_not("holds", negate), self._value(node, scopes))

    def _membership(self, node: exp.In, scopes: _Scopes, negate: bool) -> Expr:
        left = self._copied_value(node.this, len(node.expressions), scopes)
        query = node.args.get("query")
        if query is not None:
            members = self.query(query, scopes, _Place.MEMBERS)
            return (_not("in", negate), left, ("query", members))
        if node.expressions:
            atoms = [
                _comparison("<>" if negate else "=", left, self._value(item, scopes))
                for item in node.expressions
            ]
            return _connect("and" if negate else "or", atoms)
        return (_not("in", negate), left, ("other", *self._arguments(node, scopes)))


_CONDITIONS: Final = (
    exp.And, exp.Or, exp.Not, exp.EQ, exp.NEQ, exp.GT, exp.GTE, exp.LT, exp.LTE, exp.Between,
    exp.In, exp.Like, exp.ILike, exp.Is, exp.Exists,
)  # fmt: skip


def _labels(sources: tuple[Source, ...]) -> _Labels:
    labels: _Labels = {}
    counts: dict[str, int] = {}
    for source in sources:
        # Subqueries have no name that counts.
        table = source.table or "@"
        counts[table] = counts.get(table, 0) + 1
        if table == "@":
            labels[id(source)] = f"@{counts[table]}"
        else:
            labels[id(source)] = table if counts[table] == 1 else f"{table}#{counts[table]}"
    return labels


def _wrapped_query(select: exp.Select) -> exp.Expression | None:
    """The query inside `SELECT * FROM (query)` and nothing else."""
    clause = get_from(select)
    others = [key for key, value in select.args.items() if value and key not in _FROM_AND_SELECT]
    if clause is None or others or not isinstance(clause.this, exp.Subquery):
        return None
    is_star = len(select.expressions) == 1 and isinstance(select.expressions[0], exp.Star)
    inner: exp.Expression = clause.this.this
    return inner if is_star and isinstance(inner, exp.Query) else None


_FROM_AND_SELECT: Final = frozenset({"from", "from_", "expressions"})


def _has_tail(node: exp.Expression) -> bool:
    return any(node.args.get(part) for part in ("order", "limit", "offset"))


def _aliased(select: exp.Expression, name: str) -> exp.Expression | None:
    for projection in select.expressions:
        if isinstance(projection, exp.Alias) and projection.alias.lower() == name.lower():
            aliased: exp.Expression = projection.this
            return aliased
    return None


def _without_idle_parts(block: Block, place: str) -> Block:
    """Drop the DISTINCT and GROUP BY that change no row."""
    values = (*block.select, block.having, *(key for key, _ in block.order))
    chosen = set(block.select)
    if block.group and not any(map(has_aggregate, values)) and chosen == set(block.group):
        block = replace(block, group=(), distinct=True)
    if block.distinct:
        # One row for each group, and the keys tell them apart.
        one_row = not block.group and any(has_aggregate(value) for value in block.select)
        if one_row or (block.group and set(block.group) <= chosen):
            block = replace(block, distinct=False)
    if place in _SETS and block.limit is None:
        block = replace(block, distinct=False)
    return block


def _add_equality(
    condition: Expr, labels: Mapping[int, str], equalities: set[tuple[Column, Column]]
) -> bool:
    """Take a condition for a join's if it equates columns of two tables of one FROM clause."""
    if condition[0] != "=":
        return False
    _, left, right = condition
    if left[0] != "col" or right[0] != "col" or left[1] == right[1]:
        return False
    own = labels.values()
    if left[1] not in own or right[1] not in own:
        return False
    equalities.add(_sorted_pair(left[1:], right[1:]))
    return True


def _sorted(equalities: set[tuple[Column, Column]]) -> tuple[tuple[Column, Column], ...]:
    return tuple(sorted(equalities))


def _sorted_pair(left: Column, right: Column) -> tuple[Column, Column]:
    return (left, right) if left <= right else (right, left)


def _chain(node: exp.Expression) -> list[exp.Expression]:
    """The operands of a chain of one connective. (Long chains are deep trees.)"""
    parts: list[exp.Expression] = []
    pending = [node]
    while pending:
        part = pending.pop()
        if type(part) is type(node):
            pending += [part.expression, part.this]
        else:
            parts.append(part)
    return parts


def _parts(connective: str, conditions: list[Expr]) -> tuple[Expr, ...]:
    whole = _connect(connective, conditions)
    return whole[1:] if whole[0] == connective else (whole,)


def _connect(connective: str, conditions: list[Expr]) -> Expr:
    parts: dict[Expr, None] = {}
    for condition in conditions:
        for part in condition[1:] if condition[0] == connective else (condition,):
            parts[part] = None
    if len(parts) == 1:
        return next(iter(parts))
    return (connective, *sorted(parts, key=repr))


def _comparison(operator: str, left: Expr, right: Expr) -> Expr:
    if _is_right(left, right):
        left, right, operator = right, left, _FLIPPED[operator]
    # SQLite compares a column of numbers with '5' as with 5.
    if left[0] == "col" and right[0] == "lit" and _NUMBER.fullmatch(right[1]):
        right = _number(right[1])
    return (operator, left, right)


def _is_right(left: Expr, right: Expr) -> bool:
    """Whether the left operand belongs on the right: constants and queries do."""
    rank = {"lit": 2, "null": 2, "query": 1}
    left_rank, right_rank = rank.get(left[0], 0), rank.get(right[0], 0)
    if left_rank != right_rank:
        return left_rank > right_rank
    return repr(left) > repr(right)


def _not(operator: str, negate: bool) -> str:
    return f"not {operator}" if negate else operator


def _literal(text: str) -> Expr:
    return ("lit", text, "text")


# "007" is a code, no number.
_NUMBER: Final = re.compile(r"-?(?:(?:0|[1-9][0-9]*)(?:\.[0-9]+)?|\.[0-9]+)")


def _number(text: str) -> Expr:
    """A number in one spelling; another text is kept."""
    if not _NUMBER.fullmatch(text):
        return ("lit", text.lower())
    whole, _, fraction = text.partition(".")
    fraction = fraction.rstrip("0")
    return ("lit", f"{whole or 0}.{fraction}" if fraction else whole or "0")
