"""Classes of a wrong query's differences from gold, in SQL and in rows: `classify_errors`,
`classify_results`."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from enum import StrEnum
from typing import Any, Final

from sqlglot import exp

from sense_trl.sql.normal_form import (
    Block,
    Column,
    Expr,
    Query,
    SetOperation,
    get_atoms,
    get_normal_form,
    get_queries,
    get_relabellings,
    has_aggregate,
    map_columns,
)
from sense_trl.sql.parsing import SQLNestingError, SQLParseError, parse_folded
from sense_trl.sql.resolution import QueryNames, SchemaNames


class ErrorClass(StrEnum):
    """One way in which a query differs from gold."""

    DOES_NOT_PARSE = "does_not_parse"
    NOT_A_QUERY = "not_a_query"
    """A statement of another kind, or nothing that could be compared."""
    UNKNOWN_TABLE = "unknown_table"
    UNKNOWN_COLUMN = "unknown_column"
    AMBIGUOUS_COLUMN = "ambiguous_column"
    """A name without its table that several tables of one FROM clause have."""
    MISUSED_AGGREGATE = "misused_aggregate"
    """An aggregate in WHERE, ON or GROUP BY, within another one, or in ORDER BY of plain rows."""

    WRONG_TABLE = "wrong_table"
    MISSING_JOIN = "missing_join"
    EXTRA_JOIN = "extra_join"
    WRONG_JOIN_KEY = "wrong_join_key"
    WRONG_JOIN_SIDE = "wrong_join_side"
    """LEFT JOIN for JOIN, or the other way round."""

    WRONG_COLUMN = "wrong_column"
    MISSING_SELECT_COLUMN = "missing_select_column"
    EXTRA_SELECT_COLUMN = "extra_select_column"
    SELECT_ORDER = "select_order"
    """The result columns of gold in another order (`strict` and `spider` accept that)."""
    WRONG_AGGREGATE = "wrong_aggregate"
    WRONG_COUNT_ARGUMENT = "wrong_count_argument"
    """COUNT(*) for COUNT(x), or COUNT of another column: the same where nothing is NULL."""
    MISSING_DISTINCT = "missing_distinct"
    EXTRA_DISTINCT = "extra_distinct"
    WRONG_EXPRESSION = "wrong_expression"
    """Computed in another way: other functions, arithmetic, CASE, CAST."""

    MISSING_CONDITION = "missing_condition"
    EXTRA_CONDITION = "extra_condition"
    WRONG_OPERATOR = "wrong_operator"
    WRONG_LITERAL = "wrong_literal"
    WRONG_CONNECTIVE = "wrong_connective"
    """The same conditions, connected by AND and OR in another way."""

    WRONG_GROUPING = "wrong_grouping"
    WRONG_ORDER = "wrong_order"
    WRONG_LIMIT = "wrong_limit"
    WRONG_SET_OPERATION = "wrong_set_operation"
    WRONG_NESTING = "wrong_nesting"
    """A subquery too few or too many, or in another place."""


class ResultClass(StrEnum):
    """One way in which the rows of a prediction differ from those of gold."""

    EMPTY = "empty"
    """No rows, where gold has some."""
    NOT_EMPTY = "not_empty"
    """Rows, where gold has none."""
    WRONG_ARITY = "wrong_arity"
    """Another number of columns; the rows cannot be compared then."""
    OTHER_ORDER = "other_order"
    """The same rows as often, in another order."""
    OTHER_COUNTS = "other_counts"
    """The same rows, but not each as often."""
    SUPERSET = "superset"
    """Every row of gold as often as there, and more."""
    SUBSET = "subset"
    """Only rows of gold, none more often than there, but not all."""
    OVERLAP = "overlap"
    """Some rows of gold, and others."""
    DISJOINT = "disjoint"
    """No row of gold."""


def classify_errors(
    predicted_sql: str,
    gold_sql: str,
    dialect: str,
    *,
    columns: Mapping[str, Sequence[str] | Mapping[str, str]],
) -> tuple[ErrorClass, ...]:
    """Name the ways in which a query differs from gold, by what both say.

    Aliases, qualification, spelling (`JOIN ... ON` or a comma and WHERE, `BETWEEN` or two
    comparisons, `IN` or `OR`, `<>` or `!=`), the order of conditions, tables and operands, and
    DISTINCT, GROUP BY and ORDER BY that change no row never count. Columns that gold's joins set
    equal are one column. What else may be equivalent (a subquery for a join, MAX for ORDER BY ...
    LIMIT 1) counts as different: this describes a query that is known to be wrong, it does not
    decide whether it is.

    Args:
        predicted_sql: the query to describe, of any quality.
        gold_sql: the right query.
        dialect: dialect of both.
        columns: the columns of each table.

    Returns:
        The classes in the order of `ErrorClass`; () if no difference is seen.

    A prediction that is too long for `parse_sql` does not parse; one that is nested too deeply, or
    would be immense if written out, is WRONG_NESTING and nothing else.

    Raises:
        SQLParseError: `gold_sql` is not one statement, or too long or too deep to be compared.

    Example:
        >>> columns = {"singer": ["id", "name", "age"], "song": ["title", "singer_id"]}
        >>> gold = "SELECT name FROM singer WHERE age > 30"
        >>> classify_errors("SELECT s.name FROM singer s WHERE 30 < s.age", gold, "sqlite",
        ...                 columns=columns)
        ()
        >>> [str(name) for name in classify_errors(
        ...     "SELECT title FROM singer JOIN song ON id = singer_id WHERE age >= 30",
        ...     gold, "sqlite", columns=columns)]
        ['extra_join', 'wrong_column', 'wrong_operator']
    """
    schema = SchemaNames.of(columns)
    gold_tree = parse_folded(gold_sql, dialect)
    gold_names = QueryNames(gold_tree, schema, dialect=dialect)
    gold = get_normal_form(gold_tree, gold_names, dialect=dialect)
    try:
        tree = parse_folded(predicted_sql, dialect)
    except SQLNestingError:
        return (ErrorClass.WRONG_NESTING,)
    except SQLParseError:
        return (ErrorClass.DOES_NOT_PARSE,)
    if not isinstance(tree, exp.Query):
        return (ErrorClass.NOT_A_QUERY,)
    if any(not select.expressions for select in tree.find_all(exp.Select)):
        # sqlglot reads a lone SELECT.
        return (ErrorClass.DOES_NOT_PARSE,)
    names = QueryNames(tree, schema, dialect=dialect)
    try:
        found = _find_invalid_names(tree, names)
        predicted = get_normal_form(tree, names, dialect=dialect)
        found |= _Comparison(predicted, gold).classes(predicted, gold, is_top=True)
    except (SQLNestingError, RecursionError):
        # Thousands of nested calls; gold is nothing like that.
        return (ErrorClass.WRONG_NESTING,)
    return tuple(name for name in ErrorClass if name in found)


def classify_results(
    predicted_rows: Sequence[Sequence[Any]], gold_rows: Sequence[Sequence[Any]]
) -> tuple[ResultClass, ...]:
    """Name the ways in which rows differ from gold's.

    Rows are compared as they are, columns in the order given, by Python's `==`; two floats that
    differ in the last bit are two values here. Whether rows count as wrong is for
    `results_match` to say.

    Returns:
        One class, or () if the rows are the same in the same order.

    Example:
        >>> classify_results([(1,), (2,)], [(1,)])
        (<ResultClass.SUPERSET: 'superset'>,)
    """
    predicted, gold = [[tuple(row) for row in rows] for rows in (predicted_rows, gold_rows)]
    if predicted == gold:
        return ()
    if not predicted:
        return (ResultClass.EMPTY,)
    if not gold:
        return (ResultClass.NOT_EMPTY,)
    if len(predicted[0]) != len(gold[0]):
        return (ResultClass.WRONG_ARITY,)
    ours, theirs = Counter(predicted), Counter(gold)
    if ours == theirs:
        return (ResultClass.OTHER_ORDER,)
    if ours.keys() == theirs.keys():
        return (ResultClass.OTHER_COUNTS,)
    if ours >= theirs:
        return (ResultClass.SUPERSET,)
    if ours <= theirs:
        return (ResultClass.SUBSET,)
    if ours.keys() & theirs.keys():
        return (ResultClass.OVERLAP,)
    return (ResultClass.DISJOINT,)


# ---------------------------------------------------------------------- what no engine accepts


def _find_invalid_names(tree: exp.Expression, names: QueryNames) -> set[ErrorClass]:
    found: set[ErrorClass] = set()
    for table in tree.find_all(exp.Table):
        # Functions that give tables have no name.
        if table.name and not names.is_table(table):
            found.add(ErrorClass.UNKNOWN_TABLE)
    for column in tree.find_all(exp.Column):
        if names.is_unknown(column):
            found.add(ErrorClass.UNKNOWN_COLUMN)
        elif names.is_ambiguous(column):
            found.add(ErrorClass.AMBIGUOUS_COLUMN)
    for aggregate in tree.find_all(exp.AggFunc):
        if _is_misused(aggregate):
            found.add(ErrorClass.MISUSED_AGGREGATE)
    return found


def _is_misused(aggregate: exp.Expression) -> bool:
    if isinstance(aggregate, (exp.Min, exp.Max)) and aggregate.expressions:
        # The scalar MIN and MAX of several values.
        return False
    node = aggregate.parent
    while node is not None and not isinstance(node, (exp.Query, exp.Window)):
        if isinstance(node, (exp.Where, exp.Join, exp.Group, exp.AggFunc)):
            return True
        if isinstance(node, exp.Order) and isinstance(node.parent, exp.Select):
            # Without groups, only a result that is itself aggregated can be ordered so.
            select = node.parent
            return select.args.get("group") is None and not any(
                projection.find(exp.AggFunc) for projection in select.expressions
            )
        node = node.parent
    return False


# ---------------------------------------------------------------------- comparison


class _Comparison:
    """Compares the normal forms of a prediction and of gold."""

    def __init__(self, predicted: Query, gold: Query) -> None:
        ours, theirs = Counter(_all_tables(predicted)), Counter(_all_tables(gold))
        # What one of them has more often anywhere: the rest only stands elsewhere.
        self._lost = theirs - ours
        self._gained = ours - theirs
        self._our_atoms = Counter(_all_atoms(predicted))
        self._their_atoms = Counter(_all_atoms(gold))
        self._num_steps = 0

    def _count(self, num_steps: int) -> None:
        """Stop where subqueries, each with its own tables to number, multiply the work."""
        self._num_steps += num_steps
        if self._num_steps > _MAX_STEPS:
            raise SQLNestingError(f"comparing takes more than {_MAX_STEPS} steps")

    def _match(
        self,
        ours: Sequence[Any],
        theirs: Sequence[Any],
        distance: Callable[[Any, Any], int],
        *,
        limit: int | None = None,
    ) -> list[tuple[Any, Any]]:
        self._count(len(ours) * len(theirs))
        return _match(ours, theirs, distance, limit=limit)

    def classes(self, ours: Query, theirs: Query, *, is_top: bool = False) -> set[ErrorClass]:
        self._count(1)
        if ours == theirs:
            return set()
        if isinstance(ours, Block) and isinstance(theirs, Block):
            return min(
                (self._blocks(version, theirs, is_top) for version in _relabelled(ours, theirs)),
                key=len,
            )
        if isinstance(ours, SetOperation) and isinstance(theirs, SetOperation):
            return self._set_operations(ours, theirs, is_top)
        found = {ErrorClass.WRONG_SET_OPERATION}
        if isinstance(ours, SetOperation):
            return found | min((self.classes(o, theirs) for o in ours.operands), key=len)
        assert isinstance(theirs, SetOperation)
        return found | min((self.classes(ours, o) for o in theirs.operands), key=len)

    def _set_operations(
        self, ours: SetOperation, theirs: SetOperation, is_top: bool
    ) -> set[ErrorClass]:
        found = self._tails(ours, theirs, is_top)
        if ours.operator != theirs.operator or len(ours.operands) != len(theirs.operands):
            found.add(ErrorClass.WRONG_SET_OPERATION)
        if ours.is_commutative and theirs.is_commutative:
            pairs = self._match(
                ours.operands, theirs.operands, lambda our, their: len(self.classes(our, their))
            )
        else:
            pairs = list(zip(ours.operands, theirs.operands, strict=False))
            swapped = list(zip(ours.operands, reversed(theirs.operands), strict=False))
            if self._all(swapped) < self._all(pairs) and not self._all(swapped):
                return found | {ErrorClass.WRONG_SET_OPERATION}
        for our, their in pairs:
            found |= self.classes(our, their)
        return found

    def _all(self, pairs: Iterable[tuple[Query, Query]]) -> set[ErrorClass]:
        return {name for our, their in pairs for name in self.classes(our, their)}

    def _blocks(self, ours: Block, theirs: Block, is_top: bool) -> set[ErrorClass]:
        self._count(_STEPS_PER_BLOCK)
        found, ours = self._tables(ours, theirs)
        found |= self._joins(ours, theirs)
        merged = _merged_columns(ours, theirs)
        ours, theirs = map_columns(ours, merged), map_columns(theirs, merged)
        selected, replaced = self._selects(ours, theirs)
        found |= selected
        if ours.distinct is not theirs.distinct:
            found.add(ErrorClass.MISSING_DISTINCT if theirs.distinct else ErrorClass.EXTRA_DISTINCT)
        found |= self._conditions(ours.where, theirs.where)
        found |= self._conditions(ours.having, theirs.having)
        group = {replaced.get(key, key) for key in ours.group}
        if group != set(theirs.group) and set(ours.group) != set(theirs.group):
            found.add(ErrorClass.WRONG_GROUPING)
        found |= self._tails(ours, theirs, is_top)
        for our, their in zip(ours.derived, theirs.derived, strict=False):
            found |= self.classes(our, their)
        if _count_queries(ours) != _count_queries(theirs):
            found.add(ErrorClass.WRONG_NESTING)
        return found

    # ------------------------------------------------------------------ FROM

    def _tables(self, ours: Block, theirs: Block) -> tuple[set[ErrorClass], Block]:
        """Compare the tables; the block comes back with gold's names for those it confused."""
        found: set[ErrorClass] = set()
        missing = _real_tables(Counter(theirs.tables) - Counter(ours.tables))
        extra = _real_tables(Counter(ours.tables) - Counter(theirs.tables))
        confused = dict(zip(extra, missing, strict=False))
        for our, their in confused.items():
            if self._lost[_table(their)] or self._gained[_table(our)]:
                found.add(ErrorClass.WRONG_TABLE)
            else:
                found.add(ErrorClass.WRONG_NESTING)
        # A subquery may stand for a table.
        surplus = len(ours.derived) - len(theirs.derived)
        for their in missing[len(confused) :]:
            if not self._lost[_table(their)]:
                found.add(ErrorClass.WRONG_NESTING)
            else:
                found.add(ErrorClass.WRONG_TABLE if surplus > 0 else ErrorClass.MISSING_JOIN)
        for our in extra[len(confused) :]:
            if not self._gained[_table(our)]:
                found.add(ErrorClass.WRONG_NESTING)
            else:
                found.add(ErrorClass.WRONG_TABLE if surplus < 0 else ErrorClass.EXTRA_JOIN)
        return found, _with_labels(ours, confused)

    def _joins(self, ours: Block, theirs: Block) -> set[ErrorClass]:
        found: set[ErrorClass] = set()
        shared = set(ours.tables) & set(theirs.tables)
        for one, other in ((ours, theirs), (theirs, ours)):
            merge = _merger(other.equalities)
            for left, right in one.equalities:
                if {left[0], right[0]} <= shared and merge(left) != merge(right):
                    found.add(ErrorClass.WRONG_JOIN_KEY)
        if set(ours.optional) & shared != set(theirs.optional) & shared:
            found.add(ErrorClass.WRONG_JOIN_SIDE)
        return found

    # ------------------------------------------------------------------ SELECT

    def _selects(self, ours: Block, theirs: Block) -> tuple[set[ErrorClass], dict[Expr, Expr]]:
        """Compare the result columns; also gold's column for each that was replaced."""
        if ours.select == theirs.select:
            return set(), {}
        found: set[ErrorClass] = set()
        our_rest = list((Counter(ours.select) - Counter(theirs.select)).elements())
        their_rest = list((Counter(theirs.select) - Counter(ours.select)).elements())
        if not our_rest and not their_rest:
            return {ErrorClass.SELECT_ORDER}, {}
        if len(ours.select) < len(theirs.select):
            found.add(ErrorClass.MISSING_SELECT_COLUMN)
        elif len(ours.select) > len(theirs.select):
            found.add(ErrorClass.EXTRA_SELECT_COLUMN)
        replaced = {}
        for our, their in self._match(our_rest, their_rest, self._distance):
            found |= self.expression_classes(our, their)
            replaced[our] = their
        return found, replaced

    def _distance(self, ours: Expr, theirs: Expr) -> int:
        return 2 * len(self.expression_classes(ours, theirs)) + bool(ours[0] != theirs[0])

    def expression_classes(self, ours: Expr, theirs: Expr) -> set[ErrorClass]:
        self._count(1)
        if ours == theirs:
            return set()
        heads = (ours[0], theirs[0])
        if heads == ("query", "query"):
            return self.classes(ours[1], theirs[1])
        if "query" in heads:
            return {ErrorClass.WRONG_NESTING}
        if "agg" in heads:
            return self._aggregates(ours, theirs)
        if heads == ("lit", "lit"):
            return {ErrorClass.WRONG_LITERAL}
        if set(heads) <= {"col", "star"}:
            return {ErrorClass.WRONG_COLUMN}
        parts = (ours[1:], theirs[1:])
        if heads[0] == heads[1] and len(ours) == len(theirs):
            found: set[ErrorClass] = set()
            for our, their in zip(*parts, strict=True):
                if isinstance(our, tuple) and isinstance(their, tuple) and our and their:
                    found |= self.expression_classes(our, their)
                elif our != their:
                    found.add(ErrorClass.WRONG_EXPRESSION)
            return found
        return {ErrorClass.WRONG_EXPRESSION}

    def _aggregates(self, ours: Expr, theirs: Expr) -> set[ErrorClass]:
        if ours[0] != theirs[0]:
            aggregate, other = (ours, theirs) if ours[0] == "agg" else (theirs, ours)
            if has_aggregate(other):
                return {ErrorClass.WRONG_EXPRESSION}
            inner = aggregate[3] if len(aggregate) > 3 else ("star",)
            found = {ErrorClass.WRONG_AGGREGATE}
            if inner[0] == other[0] == "col" and inner != other:
                found.add(ErrorClass.WRONG_COLUMN)
            return found
        found = set()
        (name, is_distinct), arguments = ours[1:3], ours[3:]
        (other_name, other_is_distinct), other_arguments = theirs[1:3], theirs[3:]
        stars = [("star",) in side for side in (arguments, other_arguments)]
        if name != other_name:
            found.add(ErrorClass.WRONG_AGGREGATE)
        elif is_distinct and not other_is_distinct:
            found.add(ErrorClass.EXTRA_DISTINCT)
        elif other_is_distinct and not is_distinct:
            found.add(ErrorClass.MISSING_DISTINCT)
        if arguments == other_arguments or (any(stars) and found):
            return found
        if name == other_name == "count" and not (is_distinct and other_is_distinct):
            return found | {ErrorClass.WRONG_COUNT_ARGUMENT}
        for our, their in itertools.zip_longest(arguments, other_arguments, fillvalue=("null",)):
            found |= self.expression_classes(our, their)
        return found

    # ------------------------------------------------------------------ WHERE and HAVING

    def _conditions(self, ours: Expr, theirs: Expr) -> set[ErrorClass]:
        if ours == theirs:
            return set()
        our_atoms, their_atoms = list(get_atoms(ours)), list(get_atoms(theirs))
        partner: dict[Expr, Expr] = {}
        found: set[ErrorClass] = set()
        shared = Counter(our_atoms) & Counter(their_atoms)
        for our, their in self._match(
            list((Counter(our_atoms) - shared).elements()),
            list((Counter(their_atoms) - shared).elements()),
            self._atom_distance,
            limit=_MAX_ATOM_DISTANCE,
        ):
            partner[our] = their
            found |= self._atom_classes(our, their)
        matched = set(shared) | set(partner.values())
        for atom in their_atoms:
            if atom not in matched:
                moved = self._is_moved(atom, self._lost, self._their_atoms, self._our_atoms)
                found.add(ErrorClass.WRONG_NESTING if moved else ErrorClass.MISSING_CONDITION)
        for atom in our_atoms:
            if atom not in shared and atom not in partner:
                moved = self._is_moved(atom, self._gained, self._our_atoms, self._their_atoms)
                found.add(ErrorClass.WRONG_NESTING if moved else ErrorClass.EXTRA_CONDITION)
        our_shape = _shape(ours, lambda atom: partner.get(atom, atom if atom in shared else None))
        their_shape = _shape(theirs, lambda atom: atom if atom in matched else None)
        if our_shape != their_shape:
            found.add(ErrorClass.WRONG_CONNECTIVE)
        return found

    @staticmethod
    def _is_moved(
        atom: Expr, surplus: Counter[str], own: Counter[Expr], other: Counter[Expr]
    ) -> bool:
        """Whether a condition of one query stands elsewhere in the other.

        A condition with a subquery does if the other query has the subquery's tables, too.

        Args:
            atom: the condition.
            surplus: tables that the one query has more often.
            own, other: all conditions of both queries.
        """
        queries = list(get_queries(atom))
        if queries:
            return not any(surplus[table] for query in queries for table in _all_tables(query))
        bare = _unlabelled(atom)
        return 0 < other[bare] >= own[bare]

    def _atom_classes(self, ours: Expr, theirs: Expr) -> set[ErrorClass]:
        found: set[ErrorClass] = set()
        keep = _as_is
        if ours[0] != theirs[0]:
            found.add(ErrorClass.WRONG_OPERATOR)
            if ours[0].endswith("like") or theirs[0].endswith("like"):
                # The normal form of LIKE keeps no case where the operator takes no account of it.
                keep = _lower_text
        for our, their in zip(ours[1:], theirs[1:], strict=False):
            found |= self.expression_classes(keep(our), keep(their))
        return found

    def _atom_distance(self, ours: Expr, theirs: Expr) -> int:
        distance = 0 if ours[0] == theirs[0] else 1
        if len(ours) != len(theirs):
            # "a IS NULL" beside "a = 1".
            return distance + (1 if ours[1] == theirs[1] else 2)
        for part, (our, their) in enumerate(zip(ours[1:], theirs[1:], strict=True)):
            if our == their:
                continue
            heads = (our[0], their[0])
            if heads == ("query", "query") or (heads == ("agg", "agg") and part == 0):
                distance += 1
            else:
                distance += 2 if part == 0 else 1
        return distance

    # ------------------------------------------------------------------ ORDER BY and LIMIT

    def _tails(self, ours: Query, theirs: Query, is_top: bool) -> set[ErrorClass]:
        found: set[ErrorClass] = set()
        if ours.limit != theirs.limit or ours.offset != theirs.offset:
            found.add(ErrorClass.WRONG_LIMIT)
        is_cut = ours.limit is not None or theirs.limit is not None
        # An order that gold does not ask for is no mistake, nor is one among gold's ties.
        if is_top and not is_cut and ours.order[: len(theirs.order)] == theirs.order:
            return found
        if len(ours.order) != len(theirs.order):
            return found | {ErrorClass.WRONG_ORDER}
        for (our, descends), (their, other_descends) in zip(ours.order, theirs.order, strict=True):
            classes = self.expression_classes(our, their)
            if classes - _MILD or descends is not other_descends:
                found.add(ErrorClass.WRONG_ORDER)
            found |= classes - {ErrorClass.WRONG_COLUMN, ErrorClass.WRONG_EXPRESSION}
        return found


# Two conditions are one, changed, if they share the operand on the left, or all else.
_MAX_ATOM_DISTANCE: Final = 2

# Comparisons of two expressions, some microseconds each. That of two SELECTs is as long as 20.
_MAX_STEPS: Final = 100_000
_STEPS_PER_BLOCK: Final = 20

_MILD: Final = frozenset(
    {
        ErrorClass.WRONG_COUNT_ARGUMENT,
        ErrorClass.MISSING_DISTINCT,
        ErrorClass.EXTRA_DISTINCT,
    }
)


# ---------------------------------------------------------------------- helpers


def _lower_text(expression: Expr) -> Expr:
    return ("lit", expression[1].lower(), "text") if expression[2:] == ("text",) else expression


def _as_is(expression: Expr) -> Expr:
    return expression


def _all_tables(query: Query) -> Iterator[str]:
    """The tables of a query and of its subqueries, as often as they stand there."""
    if isinstance(query, SetOperation):
        inner: Iterable[Query] = query.operands
    else:
        yield from (_table(label) for label in query.tables if not label.startswith("@"))
        inner = [*query.derived, *_expression_queries(query)]
    for other in inner:
        yield from _all_tables(other)


def _all_atoms(query: Query) -> Iterator[Expr]:
    """The conditions of a query and of its subqueries, but for those that hold subqueries."""
    if isinstance(query, SetOperation):
        inner: Iterable[Query] = query.operands
    else:
        for atom in (*get_atoms(query.where), *get_atoms(query.having)):
            if next(get_queries(atom), None) is None:
                yield _unlabelled(atom)
        inner = [*query.derived, *_expression_queries(query)]
    for other in inner:
        yield from _all_atoms(other)


def _unlabelled(expression: Expr) -> Expr:
    """An expression whose columns only say which table they are of."""
    if expression[0] == "col":
        return ("col", _table(expression[1].lstrip("^")), expression[2])
    return tuple(
        _unlabelled(part) if isinstance(part, tuple) and part else part for part in expression
    )


def _expression_queries(block: Block) -> Iterator[Query]:
    for expression in (*block.select, block.where, block.having, *(key for key, _ in block.order)):
        yield from get_queries(expression)


def _count_queries(block: Block) -> int:
    return len(block.derived) + sum(1 for _ in _expression_queries(block))


def _table(label: str) -> str:
    return label.partition("#")[0]


def _real_tables(labels: Counter[str]) -> list[str]:
    return sorted(label for label in labels.elements() if not label.startswith("@"))


def _relabelled(ours: Block, theirs: Block) -> Iterator[Block]:
    """The block under every assignment of the occurrences of a table to gold's."""
    for names in get_relabellings((*ours.tables, *theirs.tables)):
        yield _with_labels(ours, names)


def _with_labels(block: Block, names: Mapping[str, str]) -> Block:
    if all(old == new for old, new in names.items()):
        return block
    changed = map_columns(block, lambda column: (names.get(column[0], column[0]), column[1]))
    return replace(
        changed,
        tables=tuple(names.get(label, label) for label in block.tables),
        optional=tuple(sorted(names.get(label, label) for label in block.optional)),
    )


def _merged_columns(ours: Block, theirs: Block) -> Callable[[Column], Column]:
    """One name for the columns that gold's joins set equal.

    A table that gold does not join brings its own equalities. What an outer join may fill with
    NULL equals nothing.
    """
    optional = {*ours.optional, *theirs.optional}
    equalities = [
        *theirs.equalities,
        *(
            (left, right)
            for left, right in ours.equalities
            if not {left[0], right[0]} <= set(theirs.tables)
        ),
    ]
    return _merger(
        [(left, right) for left, right in equalities if not {left[0], right[0]} & optional]
    )


def _merger(equalities: Iterable[tuple[Column, Column]]) -> Callable[[Column], Column]:
    """Maps each column to the first of those it equals."""
    parent: dict[Column, Column] = {}

    def find(column: Column) -> Column:
        first = column
        while first in parent:
            first = parent[first]
        # Each on the way points there from now on: chains are as long as joins are many.
        while column != first:
            parent[column], column = first, parent[column]
        return first

    for left, right in equalities:
        first, second = sorted((find(left), find(right)))
        if first != second:
            parent[second] = first
    return find


def _match(
    ours: Sequence[Any],
    theirs: Sequence[Any],
    distance: Callable[[Any, Any], int],
    *,
    limit: int | None = None,
) -> list[tuple[Any, Any]]:
    """Pair the items of two lists, the nearest first; those farther than `limit` stay alone."""
    if len(ours) == len(theirs) == 1 and limit is None:
        return [(ours[0], theirs[0])]
    distances = sorted(
        (distance(our, their), i, j) for i, our in enumerate(ours) for j, their in enumerate(theirs)
    )
    pairs, ours_left, theirs_left = [], set(range(len(ours))), set(range(len(theirs)))
    for far, i, j in distances:
        if i in ours_left and j in theirs_left and (limit is None or far <= limit):
            pairs.append((ours[i], theirs[j]))
            ours_left.discard(i)
            theirs_left.discard(j)
    return pairs


def _shape(condition: Expr, name: Callable[[Expr], Expr | None]) -> Any:
    """A tree of AND and OR over named atoms, without those that have no name."""
    if condition[0] not in ("and", "or"):
        return name(condition)
    parts = {part for part in (_shape(part, name) for part in condition[1:]) if part is not None}
    if len(parts) <= 1:
        return next(iter(parts), None)
    return (condition[0], frozenset(parts))
