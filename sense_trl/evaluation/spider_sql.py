"""`read_spider_sql`: SQL as Spider's evaluation script understands it.

Exact-set match and Spider's hardness levels are defined on what one hand-written parser makes of a
query (`process_sql.py` of https://github.com/taoyds/spider and of
https://github.com/taoyds/test-suite-sql-eval). That parser reads a subset of SQL, and a prediction
outside the subset scores 0 however right it is, so published figures depend on the limits of the
parser as much as on the models. A full SQL parser would accept more and give other figures; this
reader therefore accepts what Spider's does and no more.

Valid SQL that Spider cannot read, among others: column aliases, table aliases without `AS`, tables
joined by a comma, `LEFT` or `INNER JOIN`, an alias of a subquery, `WITH`, `<>`, `=` without spaces
around it, `IS NULL`, `EXISTS`, `CASE`, `CAST`, scalar functions, `UNION ALL`, lists as in
`IN (1, 2)`, conditions in parentheses, numbers in arithmetic, `HAVING` without `GROUP BY`, and
quotes or backticks around names.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final, TypeAlias

from sense_trl.errors import InputError, SenseTRLError
from sense_trl.schema import DatabaseSchema

TableColumns: TypeAlias = Mapping[str, frozenset[str]]


class SpiderSQLError(SenseTRLError):
    """Spider's evaluation script could not parse the query."""


@dataclass(frozen=True, slots=True)
class ColumnUnit:
    """A column, perhaps aggregated.

    Attributes:
        aggregate: `none`, `max`, `min`, `count`, `sum` or `avg`.
        column: `table.column` in lower case, or `*`.
    """

    aggregate: str
    column: str
    distinct: bool


@dataclass(frozen=True, slots=True)
class ValueUnit:
    """A column or an operation on two of them."""

    operator: str
    left: ColumnUnit
    right: ColumnUnit | None


@dataclass(frozen=True, slots=True)
class Condition:
    """A comparison; only BETWEEN has an upper value."""

    negated: bool
    operator: str
    left: ValueUnit
    value: Value
    upper_value: Value


@dataclass(frozen=True, slots=True)
class Conditions:
    """Conditions of WHERE, HAVING or (of all joins together) ON, in the order of the text."""

    units: tuple[Condition, ...] = ()
    connectives: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class SpiderQuery:
    """One SELECT with the set operation that follows it.

    Attributes:
        select: pairs of an aggregate and what it is of.
        tables: names of tables in lower case, and subqueries.
        joins: conditions of all ON clauses.
        order_direction: `asc` or `desc`, the last that is written for all keys; `None` without
            ORDER BY.
        has_limit: whether there is a LIMIT. Its number is not read.
        set_operator: `union`, `intersect`, `except` or `None`; `set_query` is what follows it.
    """

    distinct: bool
    select: tuple[tuple[str, ValueUnit], ...]
    tables: tuple[str | SpiderQuery, ...]
    joins: Conditions
    where: Conditions
    group_by: tuple[ColumnUnit, ...]
    having: Conditions
    order_by: tuple[ValueUnit, ...]
    order_direction: str | None
    has_limit: bool
    set_operator: str | None
    set_query: SpiderQuery | None


Value: TypeAlias = SpiderQuery | ColumnUnit | str | float | None


def get_table_columns(schema: DatabaseSchema) -> TableColumns:
    """Tables (not views, as in Spider's script) to their columns, in lower case."""
    return {
        table.name.lower(): frozenset(column.name.lower() for column in table.columns)
        for table in schema.tables
        if not table.is_view
    }


def read_spider_sql(sql: str, table_columns: TableColumns) -> SpiderQuery:
    """Read a query within the limits of Spider's parser.

    What follows a complete query is ignored, as it is there.

    Args:
        sql: any text.
        table_columns: what `get_table_columns` gives.

    Raises:
        SpiderSQLError: Spider's parser would fail on this text.
    """
    return _Reader(_tokenize(sql), table_columns).query()


def read_gold_sql(sql: str, table_columns: TableColumns) -> SpiderQuery:
    """`read_spider_sql` for a gold query, without which Spider's script has nothing to compare.

    Raises:
        InputError: Spider's parser would fail on this query; the script ends there.
    """
    try:
        return read_spider_sql(sql, table_columns)
    except SpiderSQLError as error:
        raise InputError(
            f"`gold_sql` is {sql!r}, which Spider's evaluation script cannot parse ({error}); "
            "exact-set match and hardness are defined only for the SQL it reads. Leave this "
            "question out of them, or rewrite its gold query."
        ) from error


# -------------------------------------------------------------------- tokens

# Spider splits English, not SQL (NLTK's word_tokenize, after string literals are set aside), so a
# token ends at white space, brackets and most punctuation, but not at `=`, `+` or `/`, nor at a
# comma or colon before a digit. Sentences are not looked for: only the last full stop is a token.
_TOKEN: Final = re.compile(
    r"""
    (?: "[^"]*"
      | [^\s";@\#$%&?!*\[\](){}<>`\xab\xbb\u2018-\u201e,:.-]
      | [,:](?=\d)
      | -(?!-)
      | \.(?!\.)(?![\])}>\xbb\u2019\u201d\s]*\Z)
    )+
    | -- | \.{2,} | `+ | \S
    """,
    re.VERBOSE,
)


def _tokenize(sql: str) -> list[str]:
    text = sql.replace("'", '"')
    if text.count('"') % 2:
        raise SpiderSQLError("a quote is not closed")
    tokens: list[str] = []
    for token in _TOKEN.findall(text):
        if token == "=" and tokens and tokens[-1] in ("!", "<", ">"):
            tokens[-1] += token
        else:
            tokens.append(token if token[0] == '"' else token.lower())
    return tokens


def _is_string(token: str) -> bool:
    # A string that touches other characters is no string to Spider: 'O''Brien' is none.
    return token.startswith('"') and token.find('"', 1) == len(token) - 1


# -------------------------------------------------------------------- grammar

_SET_OPERATORS: Final = ("intersect", "union", "except")
_CLAUSES: Final = frozenset(("select", "from", "where", "group", "order", "limit", *_SET_OPERATORS))
_CLAUSE_ENDS: Final = _CLAUSES | {")", ";"}
_CONDITION_ENDS: Final = _CLAUSE_ENDS | {"join", "on", "as"}
_VALUE_ENDS: Final = (_CONDITION_ENDS | {",", "and"}) - {";"}
# "none" is a word of the grammar there, too.
_AGGREGATES: Final = ("none", "max", "min", "count", "sum", "avg")
_ARITHMETIC: Final = ("none", "-", "+", "*", "/")
_COMPARISONS: Final = frozenset(
    ("not", "between", "=", ">", "<", ">=", "<=", "!=", "in", "like", "is", "exists")
)
# Spider's gold nests three deep. The bound keeps hostile text off Python's recursion limit.
_MAX_DEPTH: Final = 50


class _Reader:
    """Reads one query by recursive descent.

    Clause methods take the names of the tables in scope: a bare column belongs to the first of
    them that has it.
    """

    def __init__(self, tokens: Sequence[str], table_columns: TableColumns) -> None:
        # An empty token marks the end.
        self._tokens = (*tokens, "")
        self._position = 0
        self._depth = 0
        self._table_columns = table_columns
        self._aliases = self._get_aliases()

    # ---------------------------------------------------------------- names

    def _get_aliases(self) -> dict[str, str]:
        # One map for the whole text: an alias means the same in every subquery, its last meaning.
        aliases = {}
        for index, token in enumerate(self._tokens):
            if token == "as":
                aliases[self._tokens[index + 1]] = self._tokens[index - 1]
        if "" in aliases:
            raise SpiderSQLError("nothing follows AS")
        for table in self._table_columns:
            if table in aliases:
                raise SpiderSQLError(f"the alias {table} is the name of a table")
            aliases[table] = table
        return aliases

    def _table(self) -> str:
        name = self._aliases.get(self._take(), "")
        if name not in self._table_columns:
            raise SpiderSQLError(f"no table at token {self._position}")
        if self._skip("as"):
            self._take()
        return name

    def _column(self, token: str, scope: Sequence[str]) -> str:
        if token == "*":
            return token
        if "." in token:
            alias, _, column = token.partition(".")
            tables: Sequence[str] = (self._aliases.get(alias, ""),)
        else:
            column, tables = token, scope
        for table in tables:
            if column in self._table_columns.get(table, ()):
                return f"{table}.{column}"
        raise SpiderSQLError(f"no column {token!r}")

    # --------------------------------------------------------------- tokens

    @property
    def _token(self) -> str:
        return self._tokens[self._position]

    def _take(self) -> str:
        token = self._token
        if not token:
            raise SpiderSQLError("the text ends too early")
        self._position += 1
        return token

    def _skip(self, token: str) -> bool:
        if self._token != token:
            return False
        self._position += 1
        return True

    def _expect(self, token: str) -> None:
        if not self._skip(token):
            raise SpiderSQLError(f"expected {token!r}, found {self._token!r}")

    # -------------------------------------------------------------- clauses

    def query(self) -> SpiderQuery:
        self._depth += 1
        if self._depth > _MAX_DEPTH:
            raise SpiderSQLError(f"nested more than {_MAX_DEPTH} deep")
        in_parentheses = self._skip("(")
        select_position = self._position
        while self._token != "from":
            self._take()
        self._take()
        tables, joins, scope = self._from()
        next_position = self._position
        self._position = select_position
        distinct, select = self._select(scope)
        self._position = next_position
        where = self._conditions(scope) if self._skip("where") else Conditions()
        group_by = self._group_by(scope)
        having = self._conditions(scope) if self._skip("having") else Conditions()
        order_by, order_direction = self._order_by(scope)
        has_limit = self._skip("limit")
        if has_limit:
            self._take()
        self._skip_semicolons()
        if in_parentheses:
            self._expect(")")
        self._skip_semicolons()
        set_operator = self._take() if self._token in _SET_OPERATORS else None
        set_query = self.query() if set_operator else None
        self._depth -= 1
        return SpiderQuery(
            distinct=distinct,
            select=select,
            tables=tables,
            joins=joins,
            where=where,
            group_by=group_by,
            having=having,
            order_by=order_by,
            order_direction=order_direction,
            has_limit=has_limit,
            set_operator=set_operator,
            set_query=set_query,
        )

    def _skip_semicolons(self) -> None:
        while self._skip(";"):
            pass

    def _from(self) -> tuple[tuple[str | SpiderQuery, ...], Conditions, list[str]]:
        tables: list[str | SpiderQuery] = []
        scope: list[str] = []
        units: list[Condition] = []
        connectives: list[str] = []
        while self._token:
            in_parentheses = self._skip("(")
            if self._token == "select":
                tables.append(self.query())
            else:
                self._skip("join")
                table = self._table()
                tables.append(table)
                scope.append(table)
            if self._skip("on"):
                conditions = self._conditions(scope)
                connectives += ("and",) if units else ()
                units += conditions.units
                connectives += conditions.connectives
            if in_parentheses:
                self._expect(")")
            if self._token in _CLAUSE_ENDS:
                break
        return tuple(tables), Conditions(tuple(units), tuple(connectives)), scope

    def _select(self, scope: Sequence[str]) -> tuple[bool, tuple[tuple[str, ValueUnit], ...]]:
        self._expect("select")
        distinct = self._skip("distinct")
        items = []
        while self._token and self._token not in _CLAUSES:
            aggregate = self._take() if self._token in _AGGREGATES else "none"
            items.append((aggregate, self._value_unit(scope)))
            # Spider does not insist on the comma.
            self._skip(",")
        return distinct, tuple(items)

    def _group_by(self, scope: Sequence[str]) -> tuple[ColumnUnit, ...]:
        units = []
        if self._skip("group"):
            self._expect("by")
            while self._token and self._token not in _CLAUSE_ENDS:
                units.append(self._column_unit(scope))
                if not self._skip(","):
                    break
        return tuple(units)

    def _order_by(self, scope: Sequence[str]) -> tuple[tuple[ValueUnit, ...], str | None]:
        if not self._skip("order"):
            return (), None
        self._expect("by")
        units = []
        direction = "asc"
        while self._token and self._token not in _CLAUSE_ENDS:
            units.append(self._value_unit(scope))
            if self._token in ("asc", "desc"):
                direction = self._take()
            if not self._skip(","):
                break
        return tuple(units), direction

    # ---------------------------------------------------------- expressions

    def _conditions(self, scope: Sequence[str]) -> Conditions:
        units: list[Condition] = []
        connectives: list[str] = []
        while self._token:
            if len(connectives) < len(units):
                # Spider's parser goes on; its comparison then crashes or cannot hold.
                raise SpiderSQLError(f"no AND or OR before {self._token!r}")
            units.append(self._condition(scope))
            if self._token in _CONDITION_ENDS:
                break
            if self._token in ("and", "or"):
                connectives.append(self._take())
        return Conditions(tuple(units), tuple(connectives))

    def _condition(self, scope: Sequence[str]) -> Condition:
        left = self._value_unit(scope)
        negated = self._skip("not")
        operator = self._take()
        if operator not in _COMPARISONS:
            raise SpiderSQLError(f"no comparison: {operator!r}")
        value = self._value(scope)
        upper_value: Value = None
        if operator == "between":
            self._expect("and")
            upper_value = self._value(scope)
        return Condition(negated, operator, left, value, upper_value)

    def _value(self, scope: Sequence[str]) -> Value:
        in_parentheses = self._skip("(")
        value: Value
        if self._token == "select":
            value = self.query()
        elif _is_string(self._token):
            value = self._take()
        else:
            try:
                value = float(self._token)
                self._position += 1
            except ValueError:
                if in_parentheses:
                    raise SpiderSQLError("a column in parentheses as a value") from None
                return self._column_value(scope)
        if in_parentheses:
            self._expect(")")
        return value

    def _column_value(self, scope: Sequence[str]) -> ColumnUnit:
        words = []
        while self._token and self._token not in _VALUE_ENDS:
            words.append(self._take())
        distinct = words[:1] == ["distinct"]
        if len(words) <= distinct or words[0] in _AGGREGATES:
            raise SpiderSQLError("no value")
        # Spider skips the words behind the column, so `a = b OR c = d` is read as `a = b`.
        return ColumnUnit("none", self._column(words[distinct], scope), distinct)

    def _value_unit(self, scope: Sequence[str]) -> ValueUnit:
        in_parentheses = self._skip("(")
        left = self._column_unit(scope)
        operator, right = "none", None
        if self._token in _ARITHMETIC:
            operator = self._take()
            right = self._column_unit(scope)
        if in_parentheses:
            self._expect(")")
        return ValueUnit(operator, left, right)

    def _column_unit(self, scope: Sequence[str]) -> ColumnUnit:
        in_parentheses = self._skip("(")
        aggregate = "none"
        if self._token in _AGGREGATES:
            # The parenthesis before an aggregate stays open, as in Spider's parser.
            aggregate, in_parentheses = self._take(), True
            self._expect("(")
        distinct = self._skip("distinct")
        column = self._column(self._take(), scope)
        if in_parentheses:
            self._expect(")")
        return ColumnUnit(aggregate, column, distinct)
