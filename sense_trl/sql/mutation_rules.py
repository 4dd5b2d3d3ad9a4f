"""The single steps by which a query goes wrong: one rule per idea, each yields edits of a tree."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Final, TypeAlias

from sqlglot import exp

from sense_trl.sql.parsing import get_text
from sense_trl.sql.resolution import QueryNames, SchemaNames, Source, get_from, get_type_class


class MutationKind(StrEnum):
    """The kind of change that a mutation makes."""

    WRONG_COLUMN = "wrong_column"
    SELECT_COLUMN_DROPPED = "select_column_dropped"
    SELECT_COLUMN_ADDED = "select_column_added"
    WRONG_TABLE = "wrong_table"
    WRONG_AGGREGATE = "wrong_aggregate"
    COUNT_ARGUMENT = "count_argument"
    WRONG_OPERATOR = "wrong_operator"
    NEGATION = "negation"
    AND_OR = "and_or"
    WRONG_LITERAL = "wrong_literal"
    CONDITION_DROPPED = "condition_dropped"
    CONDITION_ADDED = "condition_added"
    DISTINCT_DROPPED = "distinct_dropped"
    DISTINCT_ADDED = "distinct_added"
    JOIN_DROPPED = "join_dropped"
    JOIN_ADDED = "join_added"
    JOIN_SIDE = "join_side"
    WRONG_JOIN_KEY = "wrong_join_key"
    GROUP_DROPPED = "group_dropped"
    WRONG_GROUP_KEY = "wrong_group_key"
    ORDER_DROPPED = "order_dropped"
    ORDER_DIRECTION = "order_direction"
    WRONG_ORDER_KEY = "wrong_order_key"
    WRONG_LIMIT = "wrong_limit"
    SET_OPERATION = "set_operation"
    SET_OPERAND_DROPPED = "set_operand_dropped"

    @property
    def is_often_equivalent(self) -> bool:
        """Whether keys, foreign keys and NOT NULL commonly make such a mutant mean the same.

        DISTINCT over a key changes nothing, a JOIN along a foreign key finds exactly one partner,
        LEFT or not, and COUNT(*) and COUNT(id) agree.
        """
        return self in _OFTEN_EQUIVALENT


_OFTEN_EQUIVALENT: Final = frozenset(
    {
        MutationKind.COUNT_ARGUMENT,
        MutationKind.DISTINCT_ADDED,
        MutationKind.JOIN_ADDED,
        MutationKind.JOIN_SIDE,
    }
)


ForeignKey: TypeAlias = tuple[str, str, str, str]
"""Table, column, referenced table, referenced column."""

Setting: TypeAlias = tuple[exp.Expression, str, Any]
"""A node, the name of one of its arguments, and the argument's new value."""


@dataclass(frozen=True, slots=True)
class Edit:
    """One mutant as a change of the tree.

    The new values hold copies, never nodes that stand elsewhere in the tree, apart from lists
    that keep some of their elements; so setting the old values again undoes it.
    """

    kind: MutationKind
    settings: tuple[Setting, ...]


@dataclass(frozen=True, slots=True)
class Query:
    """A query as the rules read it: parsed, and below a root of its own.

    Attributes:
        tree: the query; its parent is not part of it.
        names: resolves its names.
        foreign_keys: in lower case.
        rng: draws alternatives where there are more than a rule wants.
    """

    tree: exp.Expression
    names: QueryNames
    foreign_keys: tuple[ForeignKey, ...]
    rng: random.Random

    @property
    def schema(self) -> SchemaNames:
        """Empty if the schema is not known."""
        return self.names.schema or SchemaNames({}, {})

    def selects(self) -> list[exp.Select]:
        return list(self.tree.find_all(exp.Select))

    def draw(self, items: Iterable[Any], count: int) -> list[Any]:
        """At most `count` of the items, at random."""
        found = list(items)
        return found if len(found) <= count else self.rng.sample(found, count)

    def is_string(self, node: exp.Expression) -> bool:
        if isinstance(node, exp.Literal):
            return bool(node.is_string)
        return self.names.is_string(node)

    def is_constant(self, node: exp.Expression) -> bool:
        return isinstance(node, exp.Literal) or self.is_string(node)

    def is_column(self, node: exp.Expression | None) -> bool:
        return isinstance(node, exp.Column) and self.names.resolve(node) is not None

    def key_neighbours(self, table: str) -> list[ForeignKey]:
        """Foreign keys from or to a table, turned so that the table comes first."""
        found = []
        for left, left_column, right, right_column in self.foreign_keys:
            if left == table:
                found.append((left, left_column, right, right_column))
            elif right == table:
                found.append((right, right_column, left, left_column))
        return found


# ---------------------------------------------------------------------- columns and tables


def wrong_columns(query: Query) -> Iterator[Edit]:
    """Another column of the same type, of the same table or of one that is joined to it.

    A grouped column changes in the result and in GROUP BY together: alone it would be an error
    in most dialects. The key that GROUP BY alone names is another mistake, and so is the key of
    ORDER BY. Join keys have a rule of their own.
    """
    for column in list(query.tree.find_all(exp.Column)):
        select = column.parent_select
        if not isinstance(select, exp.Select) or not query.is_column(column):
            continue
        clause = _clause_of(column)
        if clause == "joins" or _joins_sources(query, column.parent):
            continue
        together = [column]
        kind = MutationKind.WRONG_COLUMN
        if isinstance(column.parent, exp.Count):
            kind = MutationKind.COUNT_ARGUMENT
        elif clause == "order":
            kind = MutationKind.WRONG_ORDER_KEY
        elif clause == "group":
            kind = MutationKind.WRONG_GROUP_KEY
        elif clause == "expressions" and not _is_aggregated(column):
            together += _grouped_twins(query, column, select)
        for new in _other_columns(query, column, select):
            swaps = [(node, new.copy()) for node in together]
            yield Edit(kind, _swapped(swaps))


def select_columns(query: Query) -> Iterator[Edit]:
    """A result column too few or too many, in the outermost SELECT."""
    select = query.tree
    if not isinstance(select, exp.Select):
        return
    projections = select.expressions
    if len(projections) > 1:
        for projection in projections:
            if isinstance(projection, exp.Alias) and _is_named_elsewhere(select, projection):
                continue
            rest = [other for other in projections if other is not projection]
            yield Edit(MutationKind.SELECT_COLUMN_DROPPED, ((select, "expressions", rest),))
    if any(projection.is_star for projection in projections if not projection.find(exp.AggFunc)):
        return
    taken = {get_text(projection).lower() for projection in projections}
    columns = [
        column
        for source in query.names.sources(select)
        for column in _columns_of(query, source, select)
        if get_text(column).lower() not in taken
    ]
    for column in query.draw(columns, 2):
        yield Edit(
            MutationKind.SELECT_COLUMN_ADDED, ((select, "expressions", [*projections, column]),)
        )


def wrong_tables(query: Query) -> Iterator[Edit]:
    """Another table that has all the columns the query asks of this one."""
    for select in query.selects():
        sources = query.names.sources(select)
        used = {source.table for source in sources}
        for source in sources:
            if not source.table or not isinstance(source.node, exp.Table):
                continue
            columns = _columns_from(query, source, select)
            if any(isinstance(column.this, exp.Star) for column in columns):
                continue
            needed = {column.name.lower() for column in columns}
            fitting = [
                name
                for name, own in query.schema.tables.items()
                if name not in used and needed <= own.keys()
            ]
            near = {other for _, _, other, _ in query.key_neighbours(source.table)}
            preferred = [name for name in fitting if name in near] or fitting
            for name in query.draw(preferred, 2):
                written = _identifier(query.schema.written[name])
                settings: list[Setting] = [(source.node, "this", written)]
                if not source.node.alias:
                    settings += [
                        (column, "table", written.copy()) for column in columns if column.table
                    ]
                yield Edit(MutationKind.WRONG_TABLE, tuple(settings))


# ---------------------------------------------------------------------- aggregates


def wrong_aggregates(query: Query) -> Iterator[Edit]:
    """MIN for MAX, AVG for SUM, and the like."""
    for node in query.tree.find_all(exp.Min, exp.Max, exp.Sum, exp.Avg, exp.Count):
        argument = node.this
        if isinstance(node, exp.Count):
            if query.is_column(argument) and query.names.type_class(argument) == "number":
                yield _swap(MutationKind.WRONG_AGGREGATE, node, exp.Sum(this=argument.copy()))
            continue
        if argument is None or node.expressions:
            # Nothing to aggregate, or the scalar MIN and MAX of several values.
            continue
        for other in _OTHER_AGGREGATES[type(node)]:
            if other in (exp.Sum, exp.Avg) and query.names.type_class(argument) not in (
                "number",
                "",
            ):
                continue
            yield _swap(MutationKind.WRONG_AGGREGATE, node, other(this=argument.copy()))


_OTHER_AGGREGATES: Final[dict[type[Any], tuple[type[Any], ...]]] = {
    exp.Min: (exp.Max,),
    exp.Max: (exp.Min, exp.Sum),
    exp.Sum: (exp.Avg, exp.Count),
    exp.Avg: (exp.Sum, exp.Max),
}


def count_arguments(query: Query) -> Iterator[Edit]:
    """COUNT(*), COUNT(x) and COUNT(DISTINCT x) for one another."""
    for node in query.tree.find_all(exp.Count):
        argument = node.this
        new: list[exp.Expression] = []
        if isinstance(argument, exp.Star):
            select = node.parent_select
            columns = [
                column
                for source in query.names.sources(select)
                for column in _columns_of(query, source, select)
            ]
            for column in query.draw(columns, 1):
                new = [column, exp.Distinct(expressions=[column.copy()])]
        elif isinstance(argument, exp.Distinct):
            new = [exp.Star()]
            if len(argument.expressions) == 1:
                new.append(argument.expressions[0].copy())
        elif argument is not None:
            new = [exp.Star(), exp.Distinct(expressions=[argument.copy()])]
        for other in new:
            yield Edit(MutationKind.COUNT_ARGUMENT, ((node, "this", other),))


# ---------------------------------------------------------------------- conditions


def wrong_operators(query: Query) -> Iterator[Edit]:
    """A neighbouring comparison."""
    for node in query.tree.find_all(*_OTHER_OPERATORS, exp.Between, *_LIKES):
        if _clause_of(node) == "joins" or _joins_sources(query, node):
            continue
        if isinstance(node, exp.Between):
            bounds = (
                exp.GT(this=node.this.copy(), expression=node.args["low"].copy()),
                exp.LT(this=node.this.copy(), expression=node.args["high"].copy()),
            )
            yield _swap(MutationKind.WRONG_OPERATOR, node, exp.paren(exp.and_(*bounds)))
            continue
        if isinstance(node, _LIKES):
            if not node.args.get("negate"):
                equal = exp.EQ(this=node.this.copy(), expression=node.expression.copy())
                yield _swap(MutationKind.WRONG_OPERATOR, node, equal)
            continue
        text = query.is_string(node.this) or query.is_string(node.expression)
        for other in _OTHER_OPERATORS[type(node)]:
            # An order of texts is nothing a question asks for.
            if text and other in (exp.GTE, exp.LTE) and isinstance(node, (exp.EQ, exp.NEQ)):
                continue
            new = other(this=node.this.copy(), expression=node.expression.copy())
            yield _swap(MutationKind.WRONG_OPERATOR, node, new)


_LIKES: Final = (exp.Like, exp.ILike)

_OTHER_OPERATORS: Final[dict[type[Any], tuple[type[Any], ...]]] = {
    exp.EQ: (exp.NEQ, exp.GTE),
    exp.NEQ: (exp.EQ,),
    exp.GT: (exp.GTE, exp.LT),
    exp.GTE: (exp.GT, exp.LTE),
    exp.LT: (exp.LTE, exp.GT),
    exp.LTE: (exp.LT, exp.GTE),
}


def negations(query: Query) -> Iterator[Edit]:
    """NOT IN for IN, and the same with EXISTS, LIKE, BETWEEN and IS NULL."""
    for node in query.tree.find_all(exp.In, exp.Exists, *_LIKES, exp.Between, exp.Is):
        if node.args.get("negate"):
            yield Edit(MutationKind.NEGATION, ((node, "negate", False),))
        elif isinstance(node.parent, exp.Not):
            yield _swap(MutationKind.NEGATION, node.parent, node.copy())
        else:
            yield _swap(MutationKind.NEGATION, node, exp.Not(this=node.copy()))


def and_or(query: Query) -> Iterator[Edit]:
    """OR for AND and the other way round, in WHERE and HAVING."""
    for node in query.tree.find_all(exp.And, exp.Or):
        if _clause_of(node) not in ("where", "having"):
            continue
        if any(_joins_sources(query, operand) for operand in _operands(node)):
            continue
        other = exp.Or if isinstance(node, exp.And) else exp.And
        left, right = node.this.copy(), node.expression.copy()
        if other is exp.And:
            left, right = (exp.paren(o) if isinstance(o, exp.Or) else o for o in (left, right))
        new: exp.Expression = other(this=left, expression=right)
        if other is exp.Or and isinstance(node.parent, (exp.And, exp.Not)):
            new = exp.paren(new)
        yield _swap(MutationKind.AND_OR, node, new)


def wrong_literals(query: Query) -> Iterator[Edit]:
    """A neighbouring number, another case, a wildcard lost, the last word lost."""
    for node in query.tree.find_all(exp.Literal, exp.Column):
        if not query.is_constant(node) or _clause_of(node) not in ("where", "having"):
            continue
        is_string = query.is_string(node)
        text = node.this if isinstance(node, exp.Literal) else node.name
        make = exp.Literal.string if is_string else exp.Literal.number
        others = _other_texts(text, is_string)
        if isinstance(node.parent, _LIKES):
            # SQLite takes no account of case there.
            others = [other for other in others if other.lower() != text.lower()]
        for other in query.draw(others, 3):
            yield _swap(MutationKind.WRONG_LITERAL, node, make(other))


def _other_texts(text: str, is_string: bool) -> list[str]:
    numbers = _other_numbers(text)
    if numbers or not is_string:
        return numbers
    others = [text.lower(), text.upper(), text.capitalize()]
    if "%" in text:
        others += [text.strip("%"), text.lstrip("%"), text.rstrip("%")]
    else:
        others += [text.rsplit(" ", 1)[0], text[:-1]]
    return [other for other in dict.fromkeys(others) if other and other != text]


def _other_numbers(text: str) -> list[str]:
    whole, dot, fraction = text.partition(".")
    if not whole.isdecimal() or not whole.isascii() or (dot and not fraction.isdecimal()):
        return []
    # A year or an identifier keeps its width.
    value = int(whole + fraction)
    width = len(whole) + len(fraction)
    found = []
    for other in (value + 1, value - 1, value * 10):
        if other < 0 or other == value:
            continue
        digits = str(other).rjust(width, "0") if text[0] == "0" or dot else str(other)
        found.append(digits[: -len(fraction)] + "." + digits[-len(fraction) :] if dot else digits)
    return found


def dropped_conditions(query: Query) -> Iterator[Edit]:
    """One condition of WHERE or HAVING less."""
    for select in query.selects():
        for clause in ("where", "having"):
            holder = select.args.get(clause)
            if holder is None:
                continue
            if not isinstance(holder.this, (exp.And, exp.Or)):
                if not _joins_sources(query, holder.this):
                    yield Edit(MutationKind.CONDITION_DROPPED, ((select, clause, None),))
                continue
            for node in holder.find_all(exp.And, exp.Or):
                if node.parent_select is not select:
                    continue
                for kept, lost in (
                    (node.this, node.expression),
                    (node.expression, node.this),
                ):
                    # An inner connective is dropped condition by condition.
                    if isinstance(lost, (exp.And, exp.Or)) or _joins_sources(query, lost):
                        continue
                    yield _swap(MutationKind.CONDITION_DROPPED, node, kept.copy())


def added_conditions(query: Query) -> Iterator[Edit]:
    """One more condition, on a column of the query's tables."""
    for select in query.selects():
        columns = [
            column
            for source in query.names.sources(select)
            for column in _columns_of(query, source, select)
        ]
        for column in query.draw(columns, 1):
            kind = _column_type_class(query, column, select)
            if kind == "number":
                new: exp.Expression = exp.GT(
                    this=column, expression=exp.Literal.number(query.rng.choice((1, 2, 5, 10)))
                )
            elif query.names.dialect == "postgres" and kind != "text":
                # LIKE is for text alone.
                continue
            else:
                pattern = f"%{query.rng.choice('aeiost')}%"
                new = exp.Like(this=column, expression=exp.Literal.string(pattern))
            where = select.args.get("where")
            if where is not None:
                old = where.this.copy()
                new = exp.And(
                    this=exp.paren(old) if isinstance(old, exp.Or) else old, expression=new
                )
            yield Edit(MutationKind.CONDITION_ADDED, ((select, "where", exp.Where(this=new)),))


# ---------------------------------------------------------------------- clauses


def distinct(query: Query) -> Iterator[Edit]:
    """DISTINCT of a SELECT lost or added, where it may change the rows."""
    for select in query.selects():
        if _is_read_as_set(select) or _has_distinct_rows(select):
            continue
        if select.args.get("distinct") is not None:
            yield Edit(MutationKind.DISTINCT_DROPPED, ((select, "distinct", None),))
        else:
            yield Edit(MutationKind.DISTINCT_ADDED, ((select, "distinct", exp.Distinct()),))


def _is_read_as_set(select: exp.Select) -> bool:
    """Whether IN, EXISTS or a set operation without ALL reads the rows."""
    parent = select.parent
    while isinstance(parent, exp.Subquery):
        parent = parent.parent
    if isinstance(parent, exp.SetOperation):
        return parent.args.get("distinct") is not False
    return isinstance(parent, (exp.In, exp.Exists))


def _has_distinct_rows(select: exp.Select) -> bool:
    """Whether the rows are one row, or one for each group with all its keys."""
    group = select.args.get("group")
    if group is None:
        return any(projection.find(exp.AggFunc) is not None for projection in select.expressions)
    chosen = {get_text(projection.unalias()).lower() for projection in select.expressions}
    return all(get_text(key).lower() in chosen for key in group.expressions)


def groups(query: Query) -> Iterator[Edit]:
    """GROUP BY lost (with its HAVING), or one of its keys, or keyed by another column."""
    for select in query.selects():
        group = select.args.get("group")
        if group is None:
            continue
        order = select.args.get("order")
        aggregates = any(p.find(exp.AggFunc) is not None for p in select.expressions)
        # Without groups, an aggregate in ORDER BY alone is an error.
        if aggregates or order is None or order.find(exp.AggFunc) is None:
            yield Edit(
                MutationKind.GROUP_DROPPED, ((select, "group", None), (select, "having", None))
            )
        keys = group.expressions
        if len(keys) > 1:
            for key in keys:
                rest = [other for other in keys if other is not key]
                yield Edit(MutationKind.WRONG_GROUP_KEY, ((group, "expressions", rest),))


def orders(query: Query) -> Iterator[Edit]:
    """ORDER BY lost or turned round."""
    for order in query.tree.find_all(exp.Order):
        parent = order.parent
        if not isinstance(parent, exp.Query):
            continue
        yield Edit(MutationKind.ORDER_DROPPED, ((parent, "order", None),))
        for ordered in order.expressions:
            # Where NULL goes follows the direction in SQLite; said twice, it would be printed.
            turned = None if ordered.args.get("desc") else True
            settings = ((ordered, "desc", turned), (ordered, "nulls_first", not turned))
            yield Edit(MutationKind.ORDER_DIRECTION, settings)


def limits(query: Query) -> Iterator[Edit]:
    """LIMIT off by one, or lost."""
    for limit in query.tree.find_all(exp.Limit):
        parent, count = limit.parent, limit.expression
        yield Edit(MutationKind.WRONG_LIMIT, ((parent, "limit", None),))
        if isinstance(count, exp.Literal) and count.this.isdecimal():
            for other in (int(count.this) + 1, int(count.this) - 1):
                if other > 0:
                    new = exp.Literal.number(other)
                    yield Edit(MutationKind.WRONG_LIMIT, ((limit, "expression", new),))


def set_operations(query: Query) -> Iterator[Edit]:
    """UNION, INTERSECT and EXCEPT for one another, an operand lost, operands exchanged."""
    for node in query.tree.find_all(exp.Union, exp.Intersect, exp.Except):
        shared = {key: value for key, value in node.args.items() if key not in _OPERATION_PARTS}
        tail = {
            key: value.copy() for key, value in shared.items() if isinstance(value, exp.Expression)
        }
        operands = (node.this, node.expression)
        for other in (exp.Union, exp.Intersect, exp.Except):
            left, right = (operand.copy() for operand in operands)
            if not isinstance(node, other):
                new = other(this=left, expression=right, distinct=True, **tail)
                yield _swap(MutationKind.SET_OPERATION, node, new)
            elif other is exp.Except:
                new = other(this=right, expression=left, distinct=True, **tail)
                yield _swap(MutationKind.SET_OPERATION, node, new)
        if not tail:
            for operand in operands:
                yield _swap(MutationKind.SET_OPERAND_DROPPED, node, operand.copy())


_OPERATION_PARTS: Final = frozenset({"this", "expression", "distinct"})


# ---------------------------------------------------------------------- joins


def wrong_join_keys(query: Query) -> Iterator[Edit]:
    """One side of a join condition names another column of its table."""
    for node in query.tree.find_all(exp.EQ):
        if not _joins_sources(query, node):
            continue
        select = node.parent_select
        for column in (node.this, node.expression):
            source = query.names.resolve(column)
            if source is None:
                continue
            others = [
                other
                for other in _columns_of(query, source, select)
                if other.name.lower() != column.name.lower()
            ]
            wanted = query.names.type_class(column)
            fitting = [o for o in others if _column_type_class(query, o, select) == wanted]
            for other in query.draw(fitting or others, 1):
                yield _swap(MutationKind.WRONG_JOIN_KEY, column, other)


def join_sides(query: Query) -> Iterator[Edit]:
    """LEFT JOIN for JOIN and the other way round."""
    for join in query.tree.find_all(exp.Join):
        if join.args.get("kind") == "CROSS" or not (join.args.get("on") or join.args.get("using")):
            continue
        if join.args.get("side"):
            yield Edit(MutationKind.JOIN_SIDE, ((join, "side", None), (join, "kind", None)))
        else:
            yield Edit(MutationKind.JOIN_SIDE, ((join, "side", "LEFT"), (join, "kind", None)))


def dropped_joins(query: Query) -> Iterator[Edit]:
    """A joined table less.

    What the query asked of it is asked of the column it was joined by where it can be; conditions
    on its other columns go with it. Where it is needed for more than that, it stays.
    """
    for select in query.selects():
        sources = query.names.sources(select)
        joins = select.args.get("joins") or []
        if not joins or len(sources) != len(joins) + 1:
            continue
        for index, lost in enumerate(sources):
            edit = _without_source(query, select, sources, index, lost)
            if edit is not None:
                yield edit


def _without_source(
    query: Query, select: exp.Select, sources: Sequence[Source], index: int, lost: Source
) -> Edit | None:
    joins = select.args["joins"]
    clause = get_from(select)
    # The join whose condition goes; the first join's if the first table does.
    join = joins[max(index - 1, 0)]
    if clause is None or not isinstance(join.args.get("on"), exp.EQ):
        return None
    on = join.args["on"]
    key = {
        left.name.lower(): right
        for left, right in ((on.this, on.expression), (on.expression, on.this))
        if _joins_sources(query, on) and query.names.resolve(left) is lost
    }
    remaining = [other for other in joins if other is not join]
    inside_join = {id(node) for node in join.walk()}
    swaps: list[tuple[exp.Expression, exp.Expression]] = []
    conditions: list[exp.Expression] = []
    for column in _columns_from(query, lost, select):
        if id(column) in inside_join:
            continue
        if column.name.lower() in key:
            swaps.append((column, key[column.name.lower()].copy()))
            continue
        condition = _conjunct_of(column, select)
        if condition is None:
            return None
        conditions.append(condition)
    settings: list[Setting] = [(select, "joins", remaining)]
    if index == 0:
        settings.append((clause, "this", joins[0].this.copy()))
    if conditions:
        dropped = {id(condition) for condition in conditions}
        where = select.args["where"]
        kept = [c.copy() for c in _conjuncts(where.this) if id(c) not in dropped]
        inside = {id(node) for c in conditions for node in c.walk()}
        if any(_is_within(node, where) and id(node) not in inside for node, _ in swaps):
            return None
        swaps = [(node, new) for node, new in swaps if id(node) not in inside]
        new_where = exp.Where(this=exp.and_(*kept, copy=False)) if kept else None
        settings.append((select, "where", new_where))
    return Edit(MutationKind.JOIN_DROPPED, (*settings, *_swapped(swaps)))


def added_joins(query: Query) -> Iterator[Edit]:
    """One more table, along a foreign key, of which nothing is asked."""
    for select in query.selects():
        sources = query.names.sources(select)
        if get_from(select) is None or any(p.is_star for p in select.expressions):
            continue
        used = {source.table for source in sources}
        loose = {c.name.lower() for c in select.find_all(exp.Column) if not c.table}
        found = []
        for source in sources:
            for _, own_column, table, column in query.key_neighbours(source.table):
                columns = query.schema.tables.get(table, {})
                own = (source.columns or {}).get(own_column)
                if own is None or column not in columns or table in used:
                    continue
                if not loose & columns.keys():
                    found.append((source, own, table, columns[column]))
        for source, own_column, table, column in query.draw(found, 1):
            written = query.schema.written[table]
            on = exp.EQ(
                this=_column(own_column.name, _qualifier(source)),
                expression=_column(column.name, written),
            )
            join = exp.Join(this=exp.Table(this=_identifier(written)), on=on)
            joins = [*(select.args.get("joins") or []), join]
            yield Edit(MutationKind.JOIN_ADDED, ((select, "joins", joins),))


RULES: Final[tuple[Callable[[Query], Iterator[Edit]], ...]] = (
    wrong_columns,
    select_columns,
    wrong_tables,
    wrong_aggregates,
    count_arguments,
    wrong_operators,
    negations,
    and_or,
    wrong_literals,
    dropped_conditions,
    added_conditions,
    distinct,
    groups,
    orders,
    limits,
    set_operations,
    wrong_join_keys,
    join_sides,
    dropped_joins,
    added_joins,
)


# ---------------------------------------------------------------------- helpers


def _swap(kind: MutationKind, old: exp.Expression, new: exp.Expression) -> Edit:
    return Edit(kind, _swapped([(old, new)]))


def _swapped(swaps: Sequence[tuple[exp.Expression, exp.Expression]]) -> tuple[Setting, ...]:
    """The settings that put each second node in the place of the first."""
    settings: list[Setting] = []
    lists: dict[tuple[int, str], tuple[exp.Expression, dict[int, exp.Expression]]] = {}
    for old, new in swaps:
        parent, key, index = old.parent, old.arg_key, old.index
        if index is None:
            settings.append((parent, key, new))
        else:
            lists.setdefault((id(parent), key), (parent, {}))[1][index] = new
    for (_, key), (parent, new_items) in lists.items():
        items = [new_items.get(i, item) for i, item in enumerate(parent.args[key])]
        settings.append((parent, key, items))
    return tuple(settings)


def _clause_of(node: exp.Expression) -> str:
    """The argument of its own SELECT that a node stands in: "where", "group", "expressions"."""
    while node.parent is not None and not isinstance(node.parent, exp.Select):
        node = node.parent
        if isinstance(node, exp.SetOperation):
            return "order"
    return str(node.arg_key)


def _is_aggregated(column: exp.Expression) -> bool:
    node = column.parent
    while node is not None and not isinstance(node, exp.Select):
        if isinstance(node, exp.AggFunc):
            return True
        node = node.parent
    return False


def _grouped_twins(query: Query, column: exp.Column, select: exp.Select) -> list[exp.Expression]:
    """The same column in GROUP BY."""
    group = select.args.get("group")
    source = query.names.resolve(column)
    return [
        key
        for key in ([] if group is None else group.expressions)
        if isinstance(key, exp.Column)
        and key.name.lower() == column.name.lower()
        and query.names.resolve(key) is source
    ]


def _joins_sources(query: Query, node: exp.Expression | None) -> bool:
    """Whether a condition equates columns of two tables."""
    if not isinstance(node, exp.EQ):
        return False
    left, right = node.this, node.expression
    if not (query.is_column(left) and query.is_column(right)):
        return False
    return query.names.resolve(left) is not query.names.resolve(right)


def _operands(node: exp.Expression) -> list[exp.Expression]:
    """The conditions that a tree of AND and OR connects."""
    if isinstance(node, exp.Paren):
        return _operands(node.this)
    if isinstance(node, (exp.And, exp.Or)):
        return _operands(node.this) + _operands(node.expression)
    return [node]


def _conjuncts(node: exp.Expression) -> list[exp.Expression]:
    if isinstance(node, exp.And):
        return _conjuncts(node.this) + _conjuncts(node.expression)
    return [node]


def _conjunct_of(node: exp.Expression, select: exp.Select) -> exp.Expression | None:
    """The condition of the WHERE clause that a node stands in, between its ANDs."""
    while node.parent is not None and node.parent is not select:
        if isinstance(node.parent, exp.Where) and node.parent.parent is select:
            return node
        if isinstance(node.parent, exp.And) and _clause_of(node.parent) == "where":
            top: exp.Expression = node.parent
            while isinstance(top.parent, exp.And):
                top = top.parent
            if isinstance(top.parent, exp.Where) and top.parent.parent is select:
                return node
        node = node.parent
    return None


def _is_within(node: exp.Expression, ancestor: exp.Expression) -> bool:
    parent: exp.Expression | None = node
    while parent is not None and parent is not ancestor:
        parent = parent.parent
    return parent is ancestor


def _is_named_elsewhere(select: exp.Select, projection: exp.Alias) -> bool:
    name = projection.alias.lower()
    return any(
        not column.table and column.name.lower() == name and not _is_within(column, projection)
        for column in select.find_all(exp.Column)
    )


def _identifier(name: str) -> exp.Identifier:
    return exp.to_identifier(name, quoted=True if name.upper() in _RESERVED else None)


# Of the words that SQLite or DuckDB reserve, those that schemas use for names.
_RESERVED: Final = frozenset((
    "ALL", "AND", "ANY", "AS", "ASC", "BETWEEN", "BY", "CASE", "CAST", "CHECK", "COLUMN",
    "CROSS", "DEFAULT", "DESC", "DISTINCT", "END", "EXCEPT", "FOR", "FROM", "FULL", "GROUP",
    "HAVING", "IN", "INDEX", "INNER", "INTO", "IS", "JOIN", "LEFT", "LIKE", "LIMIT", "NOT",
    "NULL", "ON", "OR", "ORDER", "PRIMARY", "REFERENCES", "RIGHT", "SELECT", "SET", "TABLE",
    "THEN", "TO", "UNION", "UNIQUE", "USING", "VALUES", "WHEN", "WHERE",
))  # fmt: skip


def _column(name: str, table: str | None) -> exp.Column:
    return exp.Column(this=_identifier(name), table=_identifier(table) if table else None)


def _qualifier(source: Source) -> str:
    """The name of a source as the query writes it."""
    node = source.node
    return str(node.alias or (node.name if isinstance(node, exp.Table) else source.name))


def _columns_from(query: Query, source: Source, select: exp.Select) -> list[exp.Column]:
    """Every column below a SELECT that comes from one of its sources."""
    return [
        column
        for column in select.find_all(exp.Column)
        if query.names.resolve(column) is source
        or (isinstance(column.this, exp.Star) and column.table.lower() == source.name)
    ]


def _columns_of(query: Query, source: Source, select: exp.Expression | None) -> list[exp.Column]:
    """The columns of a source, written so that the SELECT takes them for that source's.

    Without a schema, those that the query itself names.
    """
    if not isinstance(select, exp.Select):
        return []
    if source.columns is not None:
        names = [column.name for column in source.columns.values()]
    else:
        names = [c.name for c in _columns_from(query, source, select) if c.name != "*"]
    several = len(query.names.sources(select)) > 1
    # Or it writes tables before columns though it need not.
    qualifies = several or any(column.table for column in select.find_all(exp.Column))
    table = _qualifier(source) if qualifies else None
    return [_column(name, table) for name in dict.fromkeys(names)]


def _other_columns(query: Query, column: exp.Column, select: exp.Select) -> list[exp.Column]:
    own = query.names.resolve(column)
    wanted = query.names.type_class(column)
    same = _joined_columns(query, select, (own, column.name.lower()))
    near: list[exp.Column] = []
    far: list[exp.Column] = []
    for source in query.names.sources(select):
        for other in _columns_of(query, source, select):
            if (source, other.name.lower()) in same:
                continue
            if _source_type_class(source, other.name) == wanted:
                (near if source is own else far).append(other)
    return query.draw(near, 2) + query.draw(far, 1)


def _joined_columns(
    query: Query, select: exp.Select, column: tuple[Source | None, str]
) -> set[tuple[Source | None, str]]:
    """A column and those that the joins of a SELECT set equal to it."""
    pairs = []
    for equality in select.find_all(exp.EQ):
        if equality.parent_select is select and _joins_sources(query, equality):
            left, right = equality.this, equality.expression
            pairs.append(
                {
                    (query.names.resolve(left), left.name.lower()),
                    (query.names.resolve(right), right.name.lower()),
                }
            )
    found = {column}
    for _ in pairs:
        for pair in pairs:
            if found & pair:
                found |= pair
    return found


def _source_type_class(source: Source, name: str) -> str:
    found = (source.columns or {}).get(name.lower())
    return "" if found is None else get_type_class(found.type)


def _column_type_class(query: Query, column: exp.Column, select: exp.Expression | None) -> str:
    """The type class of a column that does not stand in the tree yet."""
    for source in query.names.sources(select):
        if not column.table or column.table.lower() == source.name:
            found = _source_type_class(source, column.name)
            if found:
                return found
    return ""
