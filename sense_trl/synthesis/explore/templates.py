"""`SQLTemplate`: a seed query without its names and constants, and how it is filled anew.

    SELECT T2.name, count(*) FROM flight AS T1 JOIN aircraft AS T2 ON T1.aid = T2.aid
    WHERE T1.distance > 1000 GROUP BY T2.name

becomes

    SELECT T2.text1, COUNT(*) FROM table1 AS T1 JOIN table2 AS T2 ON T1.key1 = T2.key2
    WHERE T1.number1 > :value GROUP BY T2.text1

Tables are filled with tables that the same references connect, in the same direction; columns with
columns of the same role; constants with values of the column they are compared with.
"""

from __future__ import annotations

import hashlib
import random
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

from sqlglot import exp

from sense_trl.schema.formats import quote_name
from sense_trl.schema.graph import ColumnName, SchemaGraph
from sense_trl.sql.parsing import SQLParseError, parse_sql
from sense_trl.sql.resolution import QueryNames, SchemaNames
from sense_trl.synthesis.explore.facts import ColumnFacts, ColumnRole, DatabaseFacts, get_roles

_VALUE: Final = "value"
_MAX_ATTEMPTS: Final = 8
_MAX_GROUP_SIZE: Final = 3


@dataclass(frozen=True, slots=True)
class ColumnSlot:
    """A place for a column: its name in the text, its table's place, and the role it asks for."""

    name: str
    table: str
    role: ColumnRole


@dataclass(frozen=True, slots=True)
class SQLTemplate:
    """The shape of a query.

    Attributes:
        text: the query with places for tables, columns and constants.
        dialect: of the text.
        columns: the places for columns.
        references: pairs of columns that the query sets equal or looks up in each other: the first
            of a pair refers to the second.
        level: see `get_complexity`.
        num_seeds: how many seed queries have this shape.
    """

    text: str
    dialect: str
    columns: tuple[ColumnSlot, ...]
    references: tuple[tuple[str, str], ...]
    level: int
    num_seeds: int = 1

    @property
    def template_id(self) -> str:
        """The hash of the text and the references."""
        content = "\n".join([self.text, *map(str, self.references)])
        return hashlib.sha256(content.encode()).hexdigest()[:12]


def get_complexity(sql: str, dialect: str) -> int:
    """The complexity of a query, from 1 to 4.

    Each joined table, GROUP BY, HAVING, ORDER BY and each condition after the first counts 1, each
    subquery and each set operation 3, in all parts of the query. 0 is level 1, up to 2 is level 2,
    up to 4 is level 3, more is level 4.

    Raises:
        SQLParseError: the text is not one statement.

    Example:
        >>> [get_complexity(f"SELECT a FROM t {rest}", "sqlite") for rest in ("", "ORDER BY a")]
        [1, 2]
    """
    return _count_complexity(parse_sql(sql, dialect))


def _count_complexity(tree: exp.Expression) -> int:
    points = sum(1 for _ in tree.find_all(exp.Join, exp.Group, exp.Having, exp.Order))
    points += sum(1 for _ in tree.find_all(exp.And, exp.Or))
    # Beyond the first SELECT each is a subquery or the other side of a set operation.
    points += 3 * (sum(1 for _ in tree.find_all(exp.Select)) - 1)
    # The conditions of ON are the join's own.
    points -= sum(
        1
        for join in tree.find_all(exp.Join)
        for _ in (join.args["on"].find_all(exp.And) if join.args.get("on") else ())
    )
    return 1 + sum(points > least for least in (0, 2, 4))


# ---------------------------------------------------------------------- mining


def mine_templates(
    seeds: Iterable[tuple[str, str]], graphs: Mapping[str, SchemaGraph]
) -> list[SQLTemplate]:
    """The templates of seed queries, the most frequent first.

    Args:
        seeds: `(db_id, sql)` of the training split only.
        graphs: schema and references by `db_id`; queries on other databases are passed over, and
            so are those that `TemplateMiner.mine` has no template for.
    """
    miners: dict[str, TemplateMiner] = {}
    counts: Counter[SQLTemplate] = Counter()
    for db_id, sql in seeds:
        if db_id not in graphs:
            continue
        if db_id not in miners:
            miners[db_id] = TemplateMiner(graphs[db_id])
        template = miners[db_id].mine(sql)
        if template is not None:
            counts[template] += 1
    return [replace(template, num_seeds=count) for template, count in counts.most_common()]


class TemplateMiner:
    """Takes names and constants out of queries on one database.

    Args:
        graph: the schema and its references.
    """

    def __init__(self, graph: SchemaGraph) -> None:
        self._dialect = graph.schema.dialect
        self._roles = get_roles(graph)
        self._schema = SchemaNames.of(
            {table.name: [c.name for c in table.columns] for table in graph.schema.tables}
        )
        self._spelling = {(c.table.lower(), c.column.lower()): c for c in graph.columns}
        self._references = {pair for edge in graph.join_edges for pair in edge.pairs}

    def mine(self, sql: str) -> SQLTemplate | None:
        """The template of one query.

        `None` for what is not filled anew: texts that do not parse, no query, a name that the
        schema does not have, common table expressions, subqueries in FROM, joins without ON,
        columns of an outer query, set operations on what is ordered or cut, and columns set equal
        along no reference.
        """
        try:
            tree = parse_sql(sql, self._dialect)
        except SQLParseError:
            return None
        if not isinstance(tree, exp.Query) or _is_unusual(tree):
            return None
        names = QueryNames(tree, self._schema)
        columns = self._find_columns(tree, names)
        tables = _find_tables(tree, names)
        references = None if columns is None else self._find_references(tree, columns)
        if columns is None or tables is None or references is None:
            return None
        strings = [c for c in tree.find_all(exp.Column) if id(c) not in columns]
        table_slots: dict[str, str] = {}
        for name, _, _ in tables.values():
            table_slots.setdefault(name, f"table{len(table_slots) + 1}")
        slots = self._make_slots(columns.values(), table_slots)
        # Nothing is looked up from here on: the tree changes.
        qualifiers = {
            id(column): tables[id(source.node)][1]
            for column in tree.find_all(exp.Column)
            if (source := names.resolve(column)) is not None
        }
        for name, alias, table in tables.values():
            table.set("this", exp.to_identifier(table_slots[name]))
            table.set("alias", alias and exp.TableAlias(this=exp.to_identifier(alias)))
        for column in list(tree.find_all(exp.Column)):
            if id(column) in columns:
                column.set("this", exp.to_identifier(slots[columns[id(column)]].name))
                qualifier = qualifiers[id(column)]
                column.set("table", qualifier and exp.to_identifier(qualifier))
        for string in strings:
            string.replace(exp.Literal.string(string.name))
        _abstract_constants(tree)
        pairs = {(slots[left].name, slots[right].name) for left, right in references}
        text = write_sql(tree, self._dialect)
        places, level = tuple(slots.values()), _count_complexity(tree)
        return SQLTemplate(text, self._dialect, places, tuple(sorted(pairs)), level)

    def _find_columns(
        self, tree: exp.Expression, names: QueryNames
    ) -> dict[int, ColumnName] | None:
        """Resolve the columns of a tree but for quoted strings; `None` if one is unknown."""
        columns = {}
        for column in tree.find_all(exp.Column):
            if names.is_string(column):
                continue
            source = names.resolve(column)
            if source is None or source not in names.sources(column.parent_select):
                return None
            name = self._spelling.get((source.table, column.name.lower()))
            if name is None:
                return None
            columns[id(column)] = name
        return columns

    def _find_references(
        self, tree: exp.Expression, columns: Mapping[int, ColumnName]
    ) -> list[tuple[ColumnName, ColumnName]] | None:
        """The references that the query goes along; `None` where it leaves them."""
        found = []
        pairs = [(columns.get(id(left)), columns.get(id(right))) for left, right in _equated(tree)]
        # Set operations compare what they align: names with names, but keys of one thing only.
        pairs += [
            (first, second)
            for left, right in _aligned(tree)
            if (first := columns.get(id(left))) is not None
            and (second := columns.get(id(right))) is not None
            and {self._roles[first], self._roles[second]} == {ColumnRole.KEY}
        ]
        for first, second in pairs:
            if first is None or second is None or first == second:
                continue
            if (first, second) in self._references:
                found.append((first, second))
            elif (second, first) in self._references:
                found.append((second, first))
            else:
                return None
        return found

    def _make_slots(
        self, columns: Iterable[ColumnName], tables: Mapping[str, str]
    ) -> dict[ColumnName, ColumnSlot]:
        slots: dict[ColumnName, ColumnSlot] = {}
        for name in columns:
            if name not in slots:
                role = self._roles[name]
                number = 1 + sum(slot.role is role for slot in slots.values())
                slots[name] = ColumnSlot(f"{role}{number}", tables[name.table.lower()], role)
        return slots


def _is_unusual(tree: exp.Expression) -> bool:
    """Whether a query has a part that templates do not have."""
    if tree.find(exp.With, exp.Window) is not None:
        return True
    if any(join.args.get("on") is None for join in tree.find_all(exp.Join)):
        return True
    return any(
        not isinstance(side, exp.Query)
        or isinstance(side, exp.Subquery)
        or side.args.get("order") is not None
        for operation in tree.find_all(exp.SetOperation)
        for side in (operation, operation.this, operation.expression)
    )


def _find_tables(
    tree: exp.Expression, names: QueryNames
) -> dict[int, tuple[str, str | None, exp.Expression]] | None:
    """Name, new alias and node of each table in a tree; `None` for anything else in a FROM.

    Where a SELECT has one table it takes no alias; several are T1, T2, ...
    """
    found: dict[int, tuple[str, str | None, exp.Expression]] = {}
    for select in tree.find_all(exp.Select):
        sources = names.sources(select)
        for number, source in enumerate(sources, start=1):
            if not isinstance(source.node, exp.Table) or source.columns is None:
                return None
            alias = f"T{number}" if len(sources) > 1 else None
            found[id(source.node)] = (source.table, alias, source.node)
    return found if len(found) == len(list(tree.find_all(exp.Table))) else None


def _equated(tree: exp.Expression) -> Iterator[tuple[exp.Expression, exp.Expression]]:
    """Pairs of columns that are set equal, or looked up in each other by IN."""
    for equality in tree.find_all(exp.EQ):
        if isinstance(equality.this, exp.Column) and isinstance(equality.expression, exp.Column):
            yield equality.this, equality.expression
    for membership in tree.find_all(exp.In):
        query = membership.args.get("query")
        inner = None if query is None else query.find(exp.Select)
        if inner is not None and len(inner.expressions) == 1:
            yield membership.this, inner.expressions[0].unalias()


def _aligned(tree: exp.Expression) -> Iterator[tuple[exp.Expression, exp.Expression]]:
    """Pairs of result columns that a set operation puts under one another."""
    for operation in tree.find_all(exp.SetOperation):
        left, right = operation.this.find(exp.Select), operation.expression.find(exp.Select)
        for first, second in zip(left.expressions, right.expressions, strict=False):
            yield first.unalias(), second.unalias()


def _abstract_constants(tree: exp.Expression) -> None:
    """Replace each constant but the counts of LIMIT; a pattern keeps its wildcards."""
    for node in tree.walk():
        node.comments = None
    for literal in list(tree.find_all(exp.Literal)):
        if literal.find_ancestor(exp.Limit, exp.Offset) is not None:
            continue
        if isinstance(literal.parent, (exp.Ordered, exp.Group)):
            continue
        if isinstance(literal.parent, exp.Neg):
            literal.parent.replace(exp.Placeholder(this=_VALUE))
        elif isinstance(literal.parent, exp.Like):
            text = literal.name
            start, end = "%" * text.startswith("%"), "%" * text.endswith("%")
            literal.replace(exp.Literal.string(f"{start}{_VALUE}{end}"))
        else:
            literal.replace(exp.Placeholder(this=_VALUE))


def write_sql(tree: exp.Expression, dialect: str) -> str:
    """A query as text, as people write it: `!=`, and NOT beside its operator.

    sqlglot writes `<>` and `NOT a IN (...)`, which Spider's own parser cannot read. The tree is
    left as it is.

    Example:
        >>> tree = parse_sql("SELECT a FROM t WHERE a <> 1 AND b NOT IN (2)", "sqlite")
        >>> write_sql(tree, "sqlite")
        'SELECT a FROM t WHERE a != 1 AND b NOT IN (2)'
    """
    text: str = tree.transform(_in_plain_words, dialect).sql(dialect=dialect)
    return text


def _in_plain_words(node: exp.Expression, dialect: str) -> exp.Expression:
    if isinstance(node, exp.NEQ):
        left, right = (write_sql(side, dialect) for side in (node.this, node.expression))
        return exp.Var(this=f"{left} != {right}")
    inner = node.this if isinstance(node, exp.Not) else None
    if isinstance(inner, (exp.In, exp.Like, exp.Between)):
        changed = inner.copy()
        changed.set("this", exp.Var(this=write_sql(inner.this, dialect) + " NOT"))
        return exp.Var(this=write_sql(changed, dialect))
    return node


# ---------------------------------------------------------------------- filling


def fill_template(
    template: SQLTemplate,
    facts: DatabaseFacts,
    columns: Sequence[ColumnName],
    rng: random.Random,
) -> str | None:
    """Write a query of the template's shape on another database.

    Args:
        template: the shape.
        facts: the database.
        columns: what the query is about: tables and columns among these come first.
        rng: draws; the same state gives the same query.

    Returns:
        The text, `None` where no tables, columns or values that fit were found.
    """
    for _ in range(_MAX_ATTEMPTS):
        filled = _Filling(template, facts, columns, rng)
        if filled.choose():
            return filled.write()
    return None


class _Filling:
    """One attempt."""

    def __init__(
        self,
        template: SQLTemplate,
        facts: DatabaseFacts,
        focus: Sequence[ColumnName],
        rng: random.Random,
    ) -> None:
        self._template = template
        self._facts = facts
        self._focus = set(focus)
        self._focus_tables = list(dict.fromkeys(column.table for column in focus))
        self._rng = rng
        self._slots = {slot.name: slot for slot in template.columns}
        self._tables: dict[str, str] = {}
        self._columns: dict[str, ColumnName] = {}

    def choose(self) -> bool:
        """Choose tables and columns; whether that worked."""
        pairs = list(self._template.references)
        while pairs:
            # A reference with a table that is chosen, else any.
            known = [
                pair for pair in pairs if any(self._slots[s].table in self._tables for s in pair)
            ]
            pair = (known or pairs)[0]
            pairs.remove(pair)
            if not self._choose_reference(*pair):
                return False
        return all(map(self._choose_column, self._template.columns)) and self._choose_tables()

    def _choose_reference(self, child: str, parent: str) -> bool:
        own, other = self._slots[child], self._slots[parent]
        fitting = [
            (left, right)
            for edge in self._facts.graph.join_edges
            if len(edge.columns) == 1
            for left, right in edge.pairs
            if self._tables.get(own.table, left.table) == left.table
            and self._tables.get(other.table, right.table) == right.table
            and (own.table == other.table) == (left.table == right.table)
            and self._columns.get(child, left) == left
            and self._columns.get(parent, right) == right
            and self._is_free(own.table, left.table)
            and self._is_free(other.table, right.table)
        ]
        near = [
            pair
            for pair in fitting
            if self._tables or {c.table for c in pair} & set(self._focus_tables)
        ]
        if not near:
            return False
        left, right = self._rng.choice(near)
        self._tables |= {own.table: left.table, other.table: right.table}
        self._columns |= {child: left, parent: right}
        return True

    def _is_free(self, slot: str, table: str) -> bool:
        """Whether no other place has this table."""
        return all(other == slot or taken != table for other, taken in self._tables.items())

    def _choose_column(self, slot: ColumnSlot) -> bool:
        if slot.name in self._columns:
            return True
        if slot.table not in self._tables and not self._choose_table(slot.table):
            return False
        taken = set(self._columns.values())
        fitting = [
            facts.name
            for facts in self._facts.of_table(self._tables[slot.table])
            if facts.role is slot.role and facts.name not in taken
        ]
        near = [name for name in fitting if name in self._focus] or fitting
        if not near:
            return False
        self._columns[slot.name] = self._rng.choice(near)
        return True

    def _choose_table(self, slot: str) -> bool:
        free = [table for table in self._focus_tables if self._is_free(slot, table)]
        if not free:
            return False
        self._tables[slot] = self._rng.choice(free)
        return True

    def _choose_tables(self) -> bool:
        """The tables that no column is asked of: `SELECT count(*) FROM table1`."""
        tree = parse_sql(self._template.text, self._template.dialect)
        names = {table.name for table in tree.find_all(exp.Table)}
        return all(map(self._choose_table, sorted(names - set(self._tables))))

    def write(self) -> str | None:
        """The text; `None` where a column has no value to compare with."""
        tree = parse_sql(self._template.text, self._template.dialect)
        for place in list(tree.find_all(exp.Placeholder, exp.Literal)):
            if isinstance(place, exp.Placeholder) or isinstance(place.parent, exp.Like):
                value = self._draw(place)
                if value is None:
                    return None
                place.replace(value)
        for between in tree.find_all(exp.Between):
            _put_in_order(between)
        for table in tree.find_all(exp.Table):
            table.set("this", _quoted(self._tables[table.name], self._template.dialect))
        for column in tree.find_all(exp.Column):
            column.set("this", _quoted(self._columns[column.name].column, self._template.dialect))
        return write_sql(tree, self._template.dialect)

    def _draw(self, place: exp.Expression) -> exp.Expression | None:
        """A constant for a place, from the values of what it is compared with."""
        comparison: Any = place.parent
        left = (
            comparison.this if comparison.this is not place else comparison.args.get("expression")
        )
        if isinstance(left, exp.Count):
            return exp.Literal.number(self._rng.randint(1, _MAX_GROUP_SIZE))
        # An argument of a function that sqlglot does not know has a text beside it.
        column = left.find(exp.Column) if isinstance(left, exp.Expression) else None
        facts = None if column is None else self._facts.columns[self._columns[column.name]]
        if facts is None:
            return None
        value = self._draw_value(facts, comparison)
        if value is None:
            return None
        if isinstance(place, exp.Literal):
            return exp.Literal.string(place.name.replace(_VALUE, str(value)))
        if isinstance(value, str):
            return exp.Literal.string(value)
        return exp.Literal.number(value)

    def _draw_value(
        self, facts: ColumnFacts, comparison: exp.Expression
    ) -> int | float | str | None:
        if isinstance(comparison, exp.Like):
            return facts.draw_word(self._rng)
        if isinstance(comparison, (exp.EQ, exp.NEQ, exp.In)):
            return facts.draw_value(self._rng)
        # The alphabet is no order that people ask by.
        return None if facts.role is ColumnRole.TEXT else facts.draw_bound(self._rng)


def _put_in_order(between: exp.Between) -> None:
    """Put the lower bound first."""
    low, high = between.args["low"], between.args["high"]
    if isinstance(low, exp.Literal) and isinstance(high, exp.Literal):
        is_falling = low.this > high.this if low.is_string else float(low.this) > float(high.this)
        if is_falling:
            between.set("low", high.copy())
            between.set("high", low.copy())


def _quoted(name: str, dialect: str) -> exp.Identifier:
    return exp.to_identifier(name, quoted=quote_name(name, dialect) != name)
