"""`QuestionWriter`: a question in English that asks for what a query returns.

The wording follows the syntax tree clause by clause, so it is stilted, and it says everything the
query does. A query that it has no words for is refused rather than told in part: self-joins, joins
on anything but the references of the schema, subqueries in FROM, common table expressions, windows,
CASE, functions other than aggregates, and LIMIT without an order.
"""

from __future__ import annotations

import random
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from sqlglot import exp

from sense_trl.errors import SenseTRLError
from sense_trl.schema.graph import ColumnName, JoinEdge, SchemaGraph
from sense_trl.sql.parsing import SQLParseError, parse_sql
from sense_trl.sql.resolution import QueryNames, SchemaNames, Source
from sense_trl.synthesis.explore.facts import ColumnRole, get_roles
from sense_trl.synthesis.explore.phrases import PhraseBook, plural_phrase


class CannotPhraseError(SenseTRLError):
    """There are no words for a query; the message says for what of it."""


class QuestionWriter:
    """Writes questions for queries on one database.

    Args:
        graph: the schema and its references.
        phrases: what tables and columns are called.
        roles: of the columns; by their declared types if not given.
    """

    def __init__(
        self,
        graph: SchemaGraph,
        phrases: PhraseBook | None = None,
        *,
        roles: Mapping[ColumnName, ColumnRole] | None = None,
    ) -> None:
        self._graph = graph
        self._phrases = phrases or PhraseBook()
        self._roles = get_roles(graph) if roles is None else roles
        self._names = SchemaNames.of(
            {table.name: [c.name for c in table.columns] for table in graph.schema.tables}
        )

    def write(self, sql: str, rng: random.Random) -> str:
        """Write a question.

        Args:
            sql: one query in the dialect of the schema.
            rng: draws among phrasings; the same state gives the same question.

        Raises:
            CannotPhraseError: there are no words for something in the query.
        """
        try:
            tree = parse_sql(sql, self._graph.schema.dialect)
        except SQLParseError as error:
            raise CannotPhraseError(str(error)) from error
        names = QueryNames(tree, self._names)
        phrasing = _Phrasing(self._graph, self._phrases, self._roles, names, rng)
        opening, end = rng.choice(_OPENINGS)
        return f"{opening} {phrasing.query(tree)}{end}"


_OPENINGS: Final = (
    ("What is", "?"),
    ("List", "."),
    ("Show", "."),
    ("Find", "."),
    ("Give", "."),
    ("Tell me", "."),
    ("Return", "."),
    ("I would like to know", "."),
)


@dataclass(frozen=True, slots=True)
class _Rows:
    """Words for the rows of a FROM clause.

    Attributes:
        many: its rows, with what they are joined with.
        counted: the same in short.
        tables: so that a column of one of several is told by its table.
    """

    many: str
    counted: str
    tables: tuple[str, ...]

    @property
    def is_joined(self) -> bool:
        return len(self.tables) > 1


class _Phrasing:
    """One question in the making."""

    def __init__(
        self,
        graph: SchemaGraph,
        phrases: PhraseBook,
        roles: Mapping[ColumnName, ColumnRole],
        names: QueryNames,
        rng: random.Random,
    ) -> None:
        self._graph = graph
        self._phrases = phrases
        self._roles = roles
        self._names = names
        self._rng = rng
        self._spelling = {(c.table.lower(), c.column.lower()): c for c in graph.columns}
        # One name for a thing throughout a question.
        self._said: dict[Any, str] = {}
        self._owned: set[ColumnName] = set()

    # ------------------------------------------------------------------ queries

    def query(self, node: exp.Expression) -> str:
        """Name what a query returns by a noun phrase with its article."""
        while isinstance(node, (exp.Subquery, exp.Paren)):
            _refuse(node, {"this"})
            node = node.this
        if isinstance(node, exp.SetOperation):
            return self._set_operation(node)
        if isinstance(node, exp.Select):
            return self._select(node)
        raise CannotPhraseError(f"no words for {node.key}")

    def _set_operation(self, node: exp.SetOperation) -> str:
        _refuse(node, {"this", "expression", "distinct"})
        if node.args.get("distinct") is False:
            raise CannotPhraseError("no words for a set operation with ALL")
        left, right = self.query(node.this), self.query(node.expression)
        if isinstance(node, exp.Union):
            joined = self._choose("together with", "as well as", "combined with")
            return f"{left}, {joined} {right}, without repeats"
        if isinstance(node, exp.Intersect):
            return self._choose(
                f"what {left} and {right} have in common",
                f"{left}, but only values that are also among {right}, without repeats",
            )
        return self._choose(
            f"{left}, except those that are among {right}, without repeats",
            f"{left}, but only values that are not among {right}, without repeats",
        )

    def _select(self, select: exp.Select) -> str:
        _refuse(select, _SELECT_PARTS)
        rows = self._rows(select)
        items = [item.unalias() for item in select.expressions]
        keys = [] if select.args.get("group") is None else select.args["group"].expressions
        if keys:
            _refuse(select.args["group"], {"expressions"})
        elif select.args.get("having") is not None:
            raise CannotPhraseError("no words for HAVING without GROUP BY")
        # In the order of the sentence: what was said is not said again.
        if len(items) == 1 and _counts_rows(items[0]) and not keys:
            text = f"the {self._count(items[0], rows, rows.many)}"
        elif keys and items == keys and _is_inner_choice_of_groups(select):
            return self._chosen_groups(select, keys[0], rows)
        elif keys and items == keys:
            text = f"{self._each(keys, rows)} of {rows.many}"
        elif keys:
            values = self._projection(select, items, rows)
            text = f"{values} for {self._each(keys, rows)} of {rows.many}"
        else:
            values = self._projection(select, items, rows)
            is_of = not rows.is_joined and not any(map(_counts_rows, items))
            text = f"{values} {'of' if is_of else 'for'} {rows.many}"
        text += self._where(select, rows)
        return text + self._having(select, rows) + self._order(select, rows)

    def _chosen_groups(self, select: exp.Select, key: exp.Expression, rows: _Rows) -> str:
        """Keys of groups within a sentence, where "but only for groups" would be the sentence's."""
        if not isinstance(key, exp.Column):
            raise CannotPhraseError("no words for groups by no column in a subquery")
        text = f"those {self._columns(key, rows)} of {rows.many}{self._where(select, rows)}"
        return f"{text} for each of which {self._condition(select.args['having'].this, rows)}"

    def _each(self, keys: list[exp.Expression], rows: _Rows) -> str:
        return f"each {_join_words([self._value(key, rows) for key in keys])}"

    def _projection(self, select: exp.Select, items: list[exp.Expression], rows: _Rows) -> str:
        distinct = select.args.get("distinct")
        if any(isinstance(item, exp.Star) for item in items):
            if len(items) > 1 or distinct is not None:
                raise CannotPhraseError("no words for * beside other columns or with DISTINCT")
            return self._choose("all columns", "all details", "everything that is known")
        if distinct is not None and isinstance(items[0], exp.Column) and len(items) == 1:
            _refuse(distinct, set())
            return f"the {self._say('distinct', *_DIFFERENT)} {self._columns(items[0], rows)}"
        values = _join_words([self._value(item, rows) for item in items])
        if distinct is None:
            return f"the {values}"
        _refuse(distinct, set())
        return f"the {self._say('distinct', *_DIFFERENT)} combinations of {values}"

    # ------------------------------------------------------------------ FROM

    def _rows(self, select: exp.Select) -> _Rows:
        sources = self._names.sources(select)
        tables = [self._table_name(source) for source in sources]
        if not tables or len(set(tables)) < len(tables):
            raise CannotPhraseError("no words for a table joined with itself, or for no table")
        if len(tables) == 1:
            many = self._tables(tables[0])
            return _Rows(many, many, (tables[0],))
        edges = self._edges(select, tables)
        root = _find_root(tables, edges)
        others = [self._table(t) + self._way(t, edges) for t in tables if t != root]
        if root is None:
            many = f"matching combinations of {_join_words(others)}"
            return _Rows(many, "matching combinations", tuple(tables))
        counted = self._tables(root)
        return _Rows(f"{counted} with their {_join_words(others)}", counted, tuple(tables))

    def _edges(self, select: exp.Select, tables: Sequence[str]) -> list[JoinEdge]:
        """The references that the joins go along, each of a table with one before it."""
        edges = [self._edge(join) for join in select.args.get("joins") or []]
        if len(edges) != len(tables) - 1:
            raise CannotPhraseError("no words for joins in parentheses")
        for number, edge in enumerate(edges, start=1):
            ends = {edge.table, edge.referenced_table}
            if tables[number] not in ends or not ends.issubset(tables[: number + 1]):
                raise CannotPhraseError("no words for a table that is joined to none before it")
        return edges

    def _way(self, table: str, edges: Sequence[JoinEdge]) -> str:
        """By which of several references between the tables one of them was joined."""
        taken = [edge for edge in edges if edge.referenced_table == table]
        referring = {edge.table for edge in taken}
        joined = {end for edge in edges for end in (edge.table, edge.referenced_table)}
        rivals = [
            edge
            for edge in self._graph.get_join_edges(table)
            if edge.get_other(table) in (joined if edge.referenced_table == table else referring)
        ]
        if not taken or all(edge in edges for edge in rivals):
            return ""
        is_told = len({edge.table for edge in rivals}) > 1
        names = [
            self._column_word(ColumnName(edge.table, column))
            + (f" of the {self._table(edge.table)}" if is_told else "")
            for edge in taken
            for column in edge.columns
        ]
        return f" (matched on {_join_words(names)})"

    def _table_name(self, source: Source) -> str:
        written = self._names.schema.written.get(source.table) if self._names.schema else None
        if not isinstance(source.node, exp.Table) or written is None:
            raise CannotPhraseError("no words for a subquery or an unknown table in FROM")
        return written

    def _edge(self, join: exp.Join) -> JoinEdge:
        """The reference that a join goes along."""
        _refuse(join, {"this", "on", "kind"})
        if join.args.get("kind") not in (None, "", "INNER") or join.args.get("on") is None:
            raise CannotPhraseError("no words for an outer join, or one without ON")
        pairs = set()
        for condition in _conjuncts(join.args["on"]):
            sides = [condition.args.get("this"), condition.args.get("expression")]
            if not isinstance(condition, exp.EQ) or not all(
                isinstance(side, exp.Column) for side in sides
            ):
                raise CannotPhraseError("no words for a join that is no equality of columns")
            pairs.add(frozenset(self._column_name(side) for side in sides))
        for edge in self._graph.join_edges:
            if {frozenset(pair) for pair in edge.pairs} == pairs:
                return edge
        raise CannotPhraseError("no words for a join on no reference of the schema")

    # ------------------------------------------------------------------ conditions

    def _where(self, select: exp.Select, rows: _Rows) -> str:
        where = select.args.get("where")
        if where is None:
            return ""
        parts = _put_subqueries_last(_conjuncts(where.this))
        plain = not rows.is_joined and not any(
            isinstance(p.unnest(), (exp.Or, exp.Not)) for p in parts
        )
        if plain and self._rng.random() < 0.6:
            said = [self._condition(part, rows).removeprefix("the ") for part in parts]
            return " whose " + " and whose ".join(said)
        return f" {self._choose('where', 'for which')} {self._condition(where.this, rows)}"

    def _having(self, select: exp.Select, rows: _Rows) -> str:
        having = select.args.get("having")
        if having is None:
            return ""
        kept = self._choose("keeping only groups where", "but only for groups in which")
        return f", {kept} {self._condition(having.this, rows)}"

    def _condition(self, node: exp.Expression, rows: _Rows, *, negated: bool = False) -> str:
        """A clause that begins with what it is about."""
        match node:
            case exp.Paren():
                return self._condition(node.this, rows, negated=negated)
            case exp.Not():
                if isinstance(node.this.unnest(), (exp.And, exp.Or)):
                    raise CannotPhraseError("no words for NOT before several conditions")
                return self._condition(node.this, rows, negated=not negated)
            case exp.And() if not negated:
                return " and ".join(
                    ("either " if isinstance(part.unnest(), exp.Or) else "")
                    + self._condition(part, rows)
                    for part in _put_subqueries_last(_conjuncts(node))
                )
            case exp.Or() if not negated:
                return " or ".join(
                    ("both " if isinstance(side.unnest(), exp.And) else "")
                    + self._condition(side, rows)
                    for side in _put_subqueries_last([node.this, node.expression])
                )
        subject = "the " + self._value(node.this, rows)
        return f"{subject} {self._predicate(node, rows, negated)}"

    def _predicate(self, node: exp.Expression, rows: _Rows, negated: bool) -> str:
        _refuse(node, _PREDICATE_PARTS)
        # sqlglot has NOT LIKE in the predicate and NOT IN around it.
        negated ^= bool(node.args.get("negate"))
        no = "not " if negated else ""
        match node:
            case exp.EQ() | exp.NEQ():
                differs = isinstance(node, exp.NEQ) is not negated
                word = self._choose("is not", "differs from") if differs else "is"
                return f"{word} {self._operand(node.expression, rows)}"
            case exp.GT() | exp.GTE() | exp.LT() | exp.LTE() if not negated:
                is_time = self._role(node.this) is ColumnRole.TIME
                words = _TIME_COMPARISONS if is_time else _COMPARISONS
                word = self._rng.choice(words[type(node)])
                return f"is {word} {self._operand(node.expression, rows)}"
            case exp.Between():
                low, high = (self._operand(node.args[k], rows) for k in ("low", "high"))
                return f"is {no}between {low} and {high}"
            case exp.Like():
                return self._like(node, negated)
            case exp.Is() if isinstance(node.expression, exp.Null):
                return "is known" if negated else self._choose("is missing", "is not known")
            case exp.In():
                if node.args.get("query") is not None:
                    return f"is {no}among {self.query(node.args['query'])}"
                if node.expressions:
                    values = [self._operand(value, rows) for value in node.expressions]
                    return f"is {no}one of {_join_words(values)}"
        raise CannotPhraseError(f"no words for {node.key}{' negated' if negated else ''}")

    def _like(self, node: exp.Like, negated: bool) -> str:
        pattern = node.expression
        if not isinstance(pattern, exp.Literal) and not self._names.is_string(pattern):
            raise CannotPhraseError("no words for LIKE with no string")
        text = pattern.name
        word = text.strip("%")
        if not word or "%" in word or "_" in word:
            raise CannotPhraseError(f"no words for the pattern {text!r}")
        verbs = {
            (True, True): ("contains", "contain"),
            (False, True): ("starts with", "start with"),
            (True, False): ("ends with", "end with"),
            (False, False): ("reads", "read"),
        }[text.startswith("%"), text.endswith("%")]
        return (f"does not {verbs[1]} " if negated else f"{verbs[0]} ") + self._quote(word)

    def _operand(self, node: exp.Expression, rows: _Rows) -> str:
        """Words for the other side of a comparison."""
        if isinstance(node, exp.Literal):
            return self._quote(node.this) if node.is_string else str(node.this)
        if isinstance(node, exp.Neg) and isinstance(node.this, exp.Literal):
            return f"-{node.this.this}"
        if isinstance(node, (exp.Subquery, exp.Query)):
            return self.query(node)
        if isinstance(node, exp.Column) and self._names.is_string(node):
            return self._quote(node.name)
        return "the " + self._value(node, rows)

    # ------------------------------------------------------------------ values

    def _value(self, node: exp.Expression, rows: _Rows) -> str:
        """A value as a noun without its article."""
        match node:
            case exp.Paren():
                return self._value(node.this, rows)
            case exp.Star():
                return "columns"
            case exp.Column():
                return self._column(node, rows)
            case exp.Count():
                return self._count(node, rows, rows.counted)
            case exp.Avg() | exp.Sum() | exp.Min() | exp.Max():
                _refuse(node, {"this"})
                if isinstance(node.this, exp.Distinct):
                    raise CannotPhraseError(f"no words for {node.key} of DISTINCT")
                word = self._say(type(node), *_AGGREGATES[type(node)])
                return f"{word} {self._value(node.this, rows)}"
            case exp.Add() | exp.Sub() | exp.Mul() | exp.Div():
                left, right = (self._value(side, rows) for side in (node.this, node.expression))
                return f"{left} {_ARITHMETIC[type(node)]} {right}"
        raise CannotPhraseError(f"no words for {node.key}")

    def _count(self, node: exp.Expression, rows: _Rows, counted_rows: str) -> str:
        _refuse(node, {"this", "big_int"})
        counted = node.this
        if isinstance(counted, exp.Star):
            return f"number of {counted_rows}"
        if isinstance(counted, exp.Distinct) and len(counted.expressions) == 1:
            (column,) = counted.expressions
            if isinstance(column, exp.Column):
                word = self._say("distinct", *_DIFFERENT)
                return f"number of {word} {self._columns(column, rows)}"
        if isinstance(counted, exp.Column):
            if self._never_misses(counted):
                return f"number of {counted_rows}"
            return f"number of {counted_rows} with a known {self._column(counted, rows)}"
        raise CannotPhraseError("no words for what is counted")

    def _column(self, node: exp.Column, rows: _Rows) -> str:
        name = self._column_name(node)
        return self._column_word(name) + self._owner(node, name, rows)

    def _columns(self, node: exp.Column, rows: _Rows) -> str:
        name = self._column_name(node)
        return plural_phrase(self._column_word(name)) + self._owner(node, name, rows)

    def _owner(self, node: exp.Column, name: ColumnName, rows: _Rows) -> str:
        """The table of a column, where several are joined: at first, and where it takes it."""
        if self._names.resolve(node) not in self._names.sources(node.parent_select):
            raise CannotPhraseError("no words for a column of an outer query")
        if not rows.is_joined:
            return ""
        word = self._column_word(name)
        rivals = [
            other
            for other in self._graph.columns
            if other.table in rows.tables
            and other != name
            and self._phrases.get_column(other, self._rng) == word
        ]
        is_new = name not in self._owned
        self._owned.add(name)
        return f" of the {self._table(name.table)}" if rivals or is_new else ""

    def _never_misses(self, node: exp.Column) -> bool:
        name = self._column_name(node)
        return any(
            column.name == name.column and (column.not_null or column.primary_key)
            for table in self._graph.schema.tables
            if table.name == name.table
            for column in table.columns
        )

    def _column_name(self, node: exp.Expression) -> ColumnName:
        source = self._names.resolve(node) if isinstance(node, exp.Column) else None
        name = None
        if source is not None:
            name = self._spelling.get((source.table, node.name.lower()))
        if name is None:
            raise CannotPhraseError(f"no words for {node.sql()!r}, which is no column of a table")
        return name

    def _role(self, node: exp.Expression) -> ColumnRole | None:
        if not isinstance(node, exp.Column):
            return None
        return self._roles[self._column_name(node)]

    # ------------------------------------------------------------------ order

    def _order(self, select: exp.Select, rows: _Rows) -> str:
        order, limit = select.args.get("order"), select.args.get("limit")
        if order is None:
            if limit is not None:
                raise CannotPhraseError("no words for LIMIT without an order")
            return ""
        keys = [(key, bool(key.args.get("desc"))) for key in order.expressions]
        values = [self._value(key.this, rows) for key, _ in keys]
        said = _join_words(
            [
                f"the {value} in {'de' if falls else 'a'}scending order"
                for value, (_, falls) in zip(values, keys, strict=True)
            ]
        )
        sort = self._choose("sorted by", "ordered by")
        if limit is None:
            return f", {sort} {said}"
        count = limit.expression
        if not isinstance(count, exp.Literal) or not count.this.isdecimal():
            raise CannotPhraseError("no words for a LIMIT that is no number")
        few = "one" if count.this == "1" else count.this
        key, falls = keys[0]
        is_number = self._role(key.this) is ColumnRole.NUMBER or isinstance(key.this, exp.AggFunc)
        if len(keys) == 1 and is_number and self._rng.random() < 0.7:
            extreme = self._choose(*(("highest", "largest") if falls else ("lowest", "smallest")))
            return f", only for the {few} with the {extreme} {values[0]}"
        first = "only the first one" if few == "one" else f"only the first {few}"
        return f", {first} when {sort} {said}"

    # ------------------------------------------------------------------ words

    def _table(self, table: str) -> str:
        return self._said.setdefault(("table", table), self._phrases.get_table(table, self._rng))

    def _tables(self, table: str) -> str:
        return self._said.setdefault(("tables", table), self._phrases.get_tables(table, self._rng))

    def _column_word(self, column: ColumnName) -> str:
        word = self._said.setdefault(column, self._phrases.get_column(column, self._rng))
        if not word.strip():
            raise CannotPhraseError("no words for a column with a blank name")
        return word

    def _say(self, what: Any, *words: str) -> str:
        return self._said.setdefault(what, self._choose(*words))

    def _choose(self, *words: str) -> str:
        return self._rng.choice(words)

    def _quote(self, text: str) -> str:
        """A text as it stands where its ends are plain, in quotes otherwise."""
        if _PLAIN_TEXT.fullmatch(text) and self._say("quotes", "", '"') == "":
            return text
        return f'"{text}"'


# A comma or an "and" within would be read as the question's.
_PLAIN_TEXT: Final = re.compile(r"[A-Z0-9][\w.-]*(?: [A-Z0-9][\w.-]*)*")
_DIFFERENT: Final = ("different", "distinct")
_SELECT_PARTS: Final = frozenset(
    {
        *("expressions", "from_", "from", "joins", "where"),
        *("group", "having", "order", "limit", "distinct"),
    }
)
_PREDICATE_PARTS: Final = frozenset(
    {"this", "expression", "negate", "low", "high", "query", "expressions"}
)
_COMPARISONS: Final[dict[type[Any], tuple[str, ...]]] = {
    exp.GT: ("greater than", "above", "more than"),
    exp.GTE: ("at least", "no less than"),
    exp.LT: ("less than", "below", "under"),
    exp.LTE: ("at most", "no more than"),
}
_TIME_COMPARISONS: Final[dict[type[Any], tuple[str, ...]]] = {
    exp.GT: ("after", "later than"),
    exp.GTE: ("on or after", "not before"),
    exp.LT: ("before", "earlier than"),
    exp.LTE: ("on or before", "not after"),
}
_AGGREGATES: Final[dict[type[Any], tuple[str, ...]]] = {
    exp.Avg: ("average", "mean"),
    exp.Sum: ("total", "sum of the"),
    exp.Min: ("minimum", "smallest"),
    exp.Max: ("maximum", "largest"),
}
_ARITHMETIC: Final[dict[type[Any], str]] = {
    exp.Add: "plus the",
    exp.Sub: "minus the",
    exp.Mul: "times the",
    exp.Div: "divided by the",
}


def _refuse(node: exp.Expression, known: frozenset[str] | set[str]) -> None:
    """Refuse a node that has a part besides those that are known."""
    for key, value in node.args.items():
        if key not in known and value not in (None, False, [], ""):
            raise CannotPhraseError(f"no words for {key} of {node.key}")


def _find_root(tables: Sequence[str], edges: Sequence[JoinEdge]) -> str | None:
    """The table of which each joined row is one row: all others are reached by references."""
    for root in tables:
        reached = {root}
        for _ in edges:
            reached |= {edge.referenced_table for edge in edges if edge.table in reached}
        if reached.issuperset(tables):
            return root
    return None


def _is_inner_choice_of_groups(select: exp.Select) -> bool:
    """Whether a subquery returns the one key of groups that its HAVING, its last clause, picks."""
    is_inner = select.parent_select is not None
    has_having = select.args.get("having") is not None
    is_last = select.args.get("order") is None and select.args.get("limit") is None
    return is_inner and has_having and is_last and len(select.expressions) == 1


def _counts_rows(node: exp.Expression) -> bool:
    return isinstance(node, exp.Count) and not isinstance(node.this, exp.Distinct)


def _conjuncts(node: exp.Expression) -> list[exp.Expression]:
    if isinstance(node, exp.And):
        return [*_conjuncts(node.this), *_conjuncts(node.expression)]
    return [node]


def _put_subqueries_last(conditions: list[exp.Expression]) -> list[exp.Expression]:
    """Conditions in an order in which none reads as one of the subquery before it."""
    ordered = sorted(conditions, key=lambda condition: condition.find(exp.Where) is not None)
    if any(condition.find(exp.Where) for condition in ordered[:-1]):
        raise CannotPhraseError("no words for a condition after a subquery with conditions")
    return ordered


def _join_words(words: Sequence[str]) -> str:
    """ "a", "a and b", "a, b and c"."""
    if len(words) < 2:
        return "".join(words)
    return f"{', '.join(words[:-1])} and {words[-1]}"
