"""SQLite queries for DuckDB and PostgreSQL: `sqlite_to_duckdb`, `sqlite_to_postgres`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final, TypeAlias

from sqlglot import exp

from sense_trl.sql.parsing import SQLParseError, parse_sql
from sense_trl.sql.transpile_targets import (
    ASCII_UPPER,
    FORMAT_PART,
    INTEGER,
    DuckDBTarget,
    PostgresTarget,
    become,
    call,
    cast_to,
    refuse_options,
    wrap_aggregate,
)

ColumnTypes: TypeAlias = Mapping[str, Mapping[str, str]]
"""Type ("BIGINT", "DOUBLE", "VARCHAR", "BLOB") of each column, by table and column."""

# Kinds of values: the types of columns; BOOLEAN, an integer in SQLite; and NUMBER, an integer or
# a real number, which only the rows tell.
_INTEGERS: Final = frozenset({"BIGINT", "BOOLEAN"})
_NUMERIC: Final = _INTEGERS | {"DOUBLE", "NUMBER"}
_COMPARISONS: Final = (
    exp.EQ,
    exp.NEQ,
    exp.GT,
    exp.GTE,
    exp.LT,
    exp.LTE,
    exp.NullSafeEQ,
    exp.NullSafeNEQ,
)
_PREDICATES: Final = (
    *_COMPARISONS,
    exp.And,
    exp.Between,
    exp.Boolean,
    exp.Escape,
    exp.Exists,
    exp.Glob,
    exp.ILike,
    exp.In,
    exp.Is,
    exp.Like,
    exp.Not,
    exp.Or,
    exp.RegexpFullMatch,
    exp.RegexpLike,
)

_KIND_OF_CAST: Final = {
    "INTEGER": "BIGINT",
    "REAL": "DOUBLE",
    "NUMERIC": "NUMBER",
    "TEXT": "VARCHAR",
    "BLOB": "BLOB",
}


def sqlite_to_duckdb(sql: str, types: ColumnTypes) -> str:
    """Translate a query from SQLite to DuckDB so that it gives the same rows.

    Beyond sqlglot's translation, what SQLite does silently is written out:

    * a double-quoted word that names no column is a string;
    * dates are text, and what is no date gives NULL;
    * `lower` and `upper` change ASCII alone;
    * LIKE ignores case (of ASCII), GLOB has no escapes, and both take numbers as text;
    * a column that is neither grouped by nor aggregated has some value of its group, and beside a
      single MIN or MAX that of the row with the extremum;
    * a text column is compared with numbers as text, a numeric column with text as numbers where
      the whole text is one, and any other text is greater than every number;
    * arithmetic, SUM, AVG, TOTAL, casts and conditions take text as the number it begins with
      ("1,200" is 1), or as 0;
    * dividing integers truncates, and dividing by zero gives NULL;
    * casting to an integer truncates; the other types of a cast stand for text, bytes or numbers.

    What has no known type (columns of subqueries) is left as sqlglot translates it. A column that
    holds text and numbers counts as text.

    Args:
        sql: one query.
        types: the columns of the DuckDB database, as `convert_sqlite` reports them.

    Raises:
        SQLParseError: the text is not one statement, an operator has an option that is not known
            here, or so much would have to be written several times that the query outgrows all
            bounds.

    Example:
        >>> types = {"t": {"a": "BIGINT", "b": "VARCHAR"}}
        >>> sqlite_to_duckdb('SELECT a FROM t WHERE b NOT LIKE "x%"', types)
        "SELECT a FROM t WHERE b NOT ILIKE 'x%'"
    """
    return _translate(sql, types, DuckDBTarget())


def sqlite_to_postgres(sql: str, types: ColumnTypes) -> str:
    """Translate a query from SQLite to PostgreSQL so that it gives the same rows.

    What `sqlite_to_duckdb` says of SQLite holds here as well. What PostgreSQL refuses besides is
    written out: names in lower case, quoted only where they must be; columns of WHERE and HAVING
    that are names of results; an ORDER BY beside DISTINCT; several rows as one value; conditions
    that are numbers. NULLs come first, as in SQLite. A column that is neither grouped by nor
    aggregated has the largest value of its group.

    Args:
        sql: one query.
        types: the columns of the PostgreSQL schema, as `convert_sqlite` reports them.

    Raises:
        SQLParseError: see `sqlite_to_duckdb`; or a date is a number.

    Example:
        >>> types = {"t": {"a": "BIGINT", "b": "VARCHAR"}}
        >>> sqlite_to_postgres('SELECT A FROM T WHERE B NOT LIKE "x%"', types)
        "SELECT a FROM t WHERE b NOT ILIKE 'x%'"
    """
    return _translate(sql, types, PostgresTarget())


def _translate(sql: str, types: ColumnTypes, target: DuckDBTarget) -> str:
    tree = parse_sql(sql, "sqlite").copy()
    columns = _Columns.of(tree, types, target)
    for node in list(tree.find_all(exp.Column)):
        _literal_for_unknown_name(node, columns)
    # From the leaves to the root: what a rewritten node holds is rewritten already, and is moved
    # into its new place, not copied.
    nodes = list(tree.walk())
    for node in reversed(nodes):
        parent, name, index = node.parent, node.arg_key, node.index
        # What the values are in SQLite, whatever comes in the place of the node.
        operand = _Operand.of(node, columns)
        columns.remember(node, operand)
        _rewrite(node, columns)
        if parent is not None and name is not None:
            now = parent.args[name]
            columns.remember(now if index is None else now[index], operand)
    for select in list(tree.find_all(exp.Select)):
        _pick_values_of_groups(select, target)
    target.finish(tree)
    text: str = tree.sql(dialect=target.dialect)
    return text


def _rewrite(node: exp.Expression, columns: _Columns) -> None:
    match node:
        case exp.Literal():
            columns.target.write_real(node)
        case exp.Collate():
            _collate(node, columns)
        case exp.Like():
            _like(node, columns)
        case exp.Glob():
            _glob(node, columns)
        case exp.Sum() | exp.Avg():
            _sum(node, columns)
        case exp.Anonymous() if node.name.upper() == "TOTAL" and len(node.expressions) == 1:
            _total(node, columns)
        case exp.Round():
            _set_number(node, "this", columns)
            columns.target.round(node, columns.type_of(node.this))
        case exp.GroupConcat():
            columns.target.concatenate(node, lambda node: _concatenate(node, columns))
        case exp.Neg() | exp.Abs():
            _set_number(node, "this", columns)
        case exp.Add() | exp.Sub() | exp.Mul():
            _set_number(node, "this", columns)
            _set_number(node, "expression", columns)
        case exp.Div():
            _divide(node, columns)
        case exp.Mod():
            _remainder(node, columns)
        case exp.DPipe():
            _set_text(node, "this", columns)
            _set_text(node, "expression", columns)
        case exp.Length() | exp.Substring() | exp.Trim():
            _set_text(node, "this", columns)
        case exp.Upper() | exp.Lower():
            _set_text(node, "this", columns)
            letters = (ASCII_UPPER, ASCII_UPPER.lower())
            given, wanted = letters if isinstance(node, exp.Lower) else letters[::-1]
            node.replace(call("TRANSLATE", node.this, given, wanted))
        case exp.Date() if not node.expressions:
            refuse_options(node, "this")
            _date_as_text(node, node.this, "%Y-%m-%d", columns)
        case exp.TimeToStr() if isinstance(node.this, exp.TsOrDsToTimestamp):
            refuse_options(node, "this", "format")
            _date_as_text(node, node.this.this, _known_format(node, columns.target), columns)
        case exp.And() | exp.Or():
            _set_condition(node, "this", columns)
            _set_condition(node, "expression", columns)
        case exp.Not() | exp.Where() | exp.Having():
            _set_condition(node, "this", columns)
        case exp.If():
            # Of a CASE with an operand it is a value to compare with.
            if not (isinstance(node.parent, exp.Case) and node.parent.this):
                _set_condition(node, "this", columns)
        case exp.Cast():
            _cast(node, columns)
        case exp.Between():
            _between(node, columns)
        case exp.Case() if node.this is not None:
            _case(node, columns)
        case exp.In():
            _in(node, columns)
        case exp.Is():
            _is(node, columns)
        case _ if isinstance(node, _COMPARISONS):
            _align(node, columns)


@dataclass(frozen=True, slots=True)
class _Columns:
    """Resolves names of columns in one query, and the types of expressions."""

    target: DuckDBTarget
    by_table: dict[str, dict[str, str]]
    # Tables and subqueries of each FROM, by the identity of the SELECT.
    sources: dict[int, list[exp.Expression]]
    made_names: frozenset[str]
    # By identity: each part of a deep expression is looked at once. Holds the nodes as well, since
    # another one could get the identity of one that is gone.
    known: dict[int, tuple[exp.Expression, _Operand]]

    @classmethod
    def of(cls, tree: exp.Expression, types: ColumnTypes, target: DuckDBTarget) -> _Columns:
        known = {
            table.lower(): {column.lower(): type_ for column, type_ in columns.items()}
            for table, columns in types.items()
        }
        tables = list(tree.find_all(exp.Table))
        used = {table.name.lower() for table in tables}
        by_table = {name: columns for name, columns in known.items() if name in used}
        sources: dict[int, list[exp.Expression]] = {}
        for source in (*tables, *tree.find_all(exp.Subquery)):
            if isinstance(source.parent, (exp.From, exp.Join)):
                sources.setdefault(id(source.parent_select), []).append(source)
        made = {alias.alias.lower() for alias in tree.find_all(exp.Alias)}
        made |= {
            name.name.lower()
            for alias in tree.find_all(exp.TableAlias)
            for name in alias.args.get("columns") or []
        }
        return cls(target, by_table, sources, frozenset(made), {})

    def remember(self, node: exp.Expression, operand: _Operand) -> None:
        self.known[id(node)] = (node, operand)

    def knows(self, name: str) -> bool:
        name = name.lower()
        return name in self.made_names or any(name in c for c in self.by_table.values())

    def type_of(self, node: exp.Expression | None) -> str | None:
        """The kind of the values of an expression, or `None` where it is not obvious."""
        if id(node) in self.known:
            return self.known[id(node)][1].kind
        match node:
            case exp.Paren() | exp.Min() | exp.Max() | exp.AnyValue() | exp.Collate():
                return self.type_of(node.this)
            case exp.Filter() | exp.Window() | exp.Alias():
                return self.type_of(node.this)
            case exp.Distinct():
                return self.type_of(node.expressions[0]) if len(node.expressions) == 1 else None
            case exp.Literal():
                if node.is_string:
                    return "VARCHAR"
                return "BIGINT" if node.this.isdigit() else "DOUBLE"
            case exp.Case():
                values = [branch.args["true"] for branch in node.args["ifs"]]
                return self._common_type([*values, node.args.get("default")])
            case exp.If():
                return self._common_type([node.args["true"], node.args.get("false")])
            case exp.Coalesce() | exp.Greatest() | exp.Least():
                return self._common_type([node.this, *node.expressions])
            case exp.Count() | exp.Length() | exp.IntDiv() | exp.StrPosition() | exp.Unicode():
                return "BIGINT"
            case exp.Avg() | exp.Round():
                return "DOUBLE"
            case exp.Sum() | exp.Neg():
                return _type_of_sum({self.type_of(node.this)})
            case exp.Abs():
                kind = self.type_of(node.this)
                return "DOUBLE" if kind == "VARCHAR" else _type_of_sum({kind})
            case exp.Add() | exp.Sub() | exp.Mul() | exp.Div() | exp.Mod():
                return _type_of_sum({self.type_of(node.this), self.type_of(node.expression)})
            case exp.Cast():
                return _KIND_OF_CAST[_affinity_of_cast(node.to)]
            case exp.Subquery() | exp.Select():
                query = node.this if isinstance(node, exp.Subquery) else node
                if isinstance(query, exp.Select) and len(query.expressions) == 1:
                    return self.type_of(query.expressions[0].unalias())
                return None
            case exp.Substring() | exp.Upper() | exp.Lower() | exp.DPipe() | exp.Trim():
                return "VARCHAR"
            case exp.GroupConcat() | exp.Replace() | exp.Date() | exp.TimeToStr():
                return "VARCHAR"
            case exp.Nullif():
                return self.type_of(node.this)
            case _ if isinstance(node, _PREDICATES):
                return "BOOLEAN"
            case exp.Column():
                return self._column_type(node)
            case _:
                return None

    def _common_type(self, values: list[exp.Expression | None]) -> str | None:
        kinds = {self.type_of(v) for v in values if v is not None and not isinstance(v, exp.Null)}
        if len(kinds) == 1:
            return kinds.pop()
        return "NUMBER" if kinds and kinds <= _NUMERIC else None

    def affinity_of(self, node: exp.Expression) -> str | None:
        """ "TEXT" or "NUMERIC" where SQLite converts what is compared with it, else `None`."""
        if id(node) in self.known:
            return self.known[id(node)][1].affinity
        match node:
            case exp.Paren() | exp.Collate():
                return self.affinity_of(node.this)
            case exp.Column():
                kind = self.type_of(node)
                return "TEXT" if kind == "VARCHAR" else "NUMERIC" if kind in _NUMERIC else None
            case exp.Cast():
                affinity = _affinity_of_cast(node.to)
                return affinity if affinity == "TEXT" else None if affinity == "BLOB" else "NUMERIC"
            case exp.Subquery() | exp.Select():
                query = node.this if isinstance(node, exp.Subquery) else node
                if isinstance(query, exp.Select) and len(query.expressions) == 1:
                    return self.affinity_of(query.expressions[0].unalias())
        return None

    def _column_type(self, column: exp.Column) -> str | None:
        name, table = column.name.lower(), column.table.lower()
        if not table and name in self.made_names:
            return None
        select = column.parent_select
        while select is not None:
            sources = self.sources.get(id(select), [])
            if table:
                sources = [source for source in sources if source.alias_or_name.lower() == table]
            found = {
                self.by_table.get(source.name.lower(), {}).get(name)
                for source in sources
                if isinstance(source, exp.Table)
            } - {None}
            if found:
                return found.pop() if len(found) == 1 else None
            if table and sources:
                return None
            if any(source.name.lower() not in self.by_table for source in sources):
                # A subquery or a CTE may have it.
                return None
            select = select.parent_select
        return None


def _literal_for_unknown_name(column: exp.Column, columns: _Columns) -> None:
    identifier = column.this
    if (
        isinstance(identifier, exp.Identifier)
        and identifier.quoted
        and not column.table
        and not columns.knows(identifier.name)
    ):
        column.replace(exp.Literal.string(identifier.name))


def _type_of_sum(kinds: set[str | None]) -> str:
    if kinds <= _INTEGERS:
        return "BIGINT"
    # Text is an integer or a real number.
    return "DOUBLE" if "DOUBLE" in kinds or None in kinds else "NUMBER"


def _affinity_of_cast(to: exp.DataType) -> str:
    """The affinity that a type's name has in SQLite."""
    kind = to.this
    name = str(to.args.get("kind") or getattr(kind, "value", kind)).upper()
    if "INT" in name:
        return "INTEGER"
    if any(word in name for word in ("CHAR", "CLOB", "TEXT")):
        return "TEXT"
    if "BLOB" in name or "BINARY" in name:
        return "BLOB"
    if any(word in name for word in ("REAL", "FLOA", "DOUB")):
        return "REAL"
    return "NUMERIC"


# ---------------------------------------------------------------------- groups


def _pick_values_of_groups(select: exp.Select, target: DuckDBTarget) -> None:
    group = select.args.get("group")
    keys = list(group.expressions) if group is not None else []
    places = [*select.expressions, *_clauses(select)]
    aggregates = [
        node
        for place in places
        for node in place.find_all(exp.AggFunc)
        if node.parent_select is select and not isinstance(_outermost(node).parent, exp.Window)
    ]
    if group is None and not aggregates:
        return
    projected = {p.alias.lower(): p.this for p in select.expressions if isinstance(p, exp.Alias)}
    grouped: set[str] = set()
    for key in keys:
        if isinstance(key, exp.Literal) and key.this.isdigit():
            position = int(key.this) - 1
            if position < len(select.expressions):
                key = select.expressions[position].unalias()
        grouped.add(key.sql().lower())
        if isinstance(key, exp.Column) and not key.table and key.name.lower() in projected:
            grouped.add(projected[key.name.lower()].sql().lower())
    # Beside a single MIN or MAX, SQLite takes the other values from the row that has it.
    extremum = None
    if len({_outermost(node).sql().lower() for node in aggregates}) == 1 and isinstance(
        aggregates[0], (exp.Min, exp.Max)
    ):
        extremum = aggregates[0]
    own = {
        source.alias_or_name.lower()
        for source in select.find_all(exp.Table, exp.Subquery)
        if source.parent_select is select and isinstance(source.parent, (exp.From, exp.Join))
    }
    for place in places:
        for column in list(place.find_all(exp.Column)):
            if column.parent_select is not select or isinstance(column.this, exp.Star):
                continue
            if _is_inside(column, place, grouped):
                continue
            if column.table and column.table.lower() not in own:
                # A column of the query around this one has one value here.
                continue
            in_clause = place not in select.expressions
            if in_clause and not column.table and column.name.lower() in projected:
                continue
            value = target.any_value(target.copy(column))
            if extremum is not None:
                value = _value_beside(extremum, column, value, target)
            if column is place:
                # The name of the result column stays what it was: an outer query may use it.
                column.replace(exp.alias_(value, column.name, quoted=True))
            else:
                column.replace(value)


def _outermost(aggregate: exp.Expression) -> exp.Expression:
    """The aggregate with its FILTER."""
    parent = aggregate.parent
    return parent if isinstance(parent, exp.Filter) and parent.this is aggregate else aggregate


def _value_beside(
    extremum: exp.Expression,
    column: exp.Expression,
    otherwise: exp.Expression,
    target: DuckDBTarget,
) -> exp.Expression:
    """The column in the row that has the extremum, NULL or not."""
    whole = _outermost(extremum)
    condition = None if whole is extremum else target.copy(whole.expression)
    chosen = target.value_beside(extremum, target.copy(column), condition)
    # A group without values has no extremum, and still a row.
    nothing = exp.Is(this=target.copy(whole), expression=exp.Null())
    return exp.Case(ifs=[exp.If(this=nothing, true=otherwise)], default=chosen)


def _clauses(select: exp.Select) -> list[exp.Expression]:
    having = select.args.get("having")
    order = select.args.get("order")
    found = [] if having is None else [having]
    return found + ([] if order is None else list(order.expressions))


def _is_inside(column: exp.Expression, place: exp.Expression, grouped: set[str]) -> bool:
    """Whether the column is part of a grouping key or of an aggregate or window."""
    node: exp.Expression | None = column
    while node is not None:
        if isinstance(node, (exp.AggFunc, exp.Filter, exp.Window)) or node.sql().lower() in grouped:
            return True
        if isinstance(node, exp.Column) and _short(node) in {_last(key) for key in grouped}:
            return True
        if node is place:
            return False
        node = node.parent
    return False


def _short(column: exp.Column) -> str:
    # `name` and `t.name` are one key if either is unqualified.
    name: str = column.sql() if column.table else column.name
    return name.lower()


def _last(key: str) -> str:
    last: str = key.rsplit(".", 1)[-1].strip('"')
    return last


def _as_number(operand: exp.Expression, columns: _Columns) -> exp.Expression:
    match columns.type_of(operand):
        case "VARCHAR":
            return columns.target.number(operand)
        case "BOOLEAN":
            return cast_to(operand, columns.target.truth_type)
        case _:
            return operand


def _as_text(operand: exp.Expression, columns: _Columns) -> exp.Expression:
    kind = columns.type_of(operand)
    if kind == "VARCHAR":
        return operand
    return columns.target.number_as_text(_as_number(operand, columns), kind)


def _set_number(node: exp.Expression, part: str, columns: _Columns) -> None:
    node.set(part, _as_number(node.args[part], columns))


def _set_text(node: exp.Expression, part: str, columns: _Columns) -> None:
    if columns.type_of(node.args[part]) in _NUMERIC:
        node.set(part, _as_text(node.args[part], columns))


def _set_condition(node: exp.Expression, part: str, columns: _Columns) -> None:
    condition = node.args[part]
    node.set(part, columns.target.truth(condition, columns.type_of(condition)))


# ---------------------------------------------------------------------- arithmetic and aggregates


def _divide(node: exp.Div, columns: _Columns) -> None:
    operands = (node.this, node.expression)
    kinds = [columns.type_of(operand) for operand in operands]
    texts = [
        columns.target.copy(operand)
        for operand, kind in zip(operands, kinds, strict=True)
        if kind == "VARCHAR"
    ]
    _set_number(node, "this", columns)
    _set_number(node, "expression", columns)
    if set(kinds) <= _INTEGERS:
        columns.target.divide_integers(node)
        return
    node.set("expression", columns.target.no_zero(node.expression))
    node.set("typed", False)
    node.set("safe", False)
    if not texts or not set(kinds) <= _INTEGERS | {"VARCHAR"}:
        return
    # A text that begins with an integer divides as one.
    points = list(map(columns.target.begins_with_real, texts))
    quotient = exp.Case(
        ifs=[exp.If(this=exp.or_(*points), true=columns.target.copy(node))],
        default=call("TRUNC", columns.target.copy(node)),
    )
    node.replace(cast_to(quotient, "DOUBLE"))


def _remainder(node: exp.Mod, columns: _Columns) -> None:
    for part in ("this", "expression"):
        operand = node.args[part]
        kind = columns.type_of(operand)
        if kind == "VARCHAR":
            node.set(part, columns.target.number(operand, INTEGER, "BIGINT"))
        elif kind in _NUMERIC:
            number = _as_number(operand, columns)
            node.set(part, number if kind in _INTEGERS else _truncated(number))
    node.set("expression", columns.target.no_zero(node.expression))


def _as_integer(number: exp.Expression, columns: _Columns) -> exp.Expression:
    return cast_to(_as_number(number, columns), "BIGINT")


def _truncated(number: exp.Expression) -> exp.Expression:
    return cast_to(call("TRUNC", number), "BIGINT")


def _sum(node: exp.Sum | exp.Avg, columns: _Columns) -> None:
    distinct = node.this
    if not isinstance(distinct, exp.Distinct):
        _set_number(node, "this", columns)
        return
    (value,) = distinct.expressions
    if columns.type_of(value) != "VARCHAR":
        distinct.set("expressions", [_as_number(value, columns)])
        return
    columns.target.sum_distinct_texts(node)


def _total(node: exp.Anonymous, columns: _Columns) -> None:
    total = exp.Sum(this=node.expressions[0])
    zero = exp.Literal.number("0e0")
    wrap_aggregate(node, total, lambda value: exp.Coalesce(this=value, expressions=[zero]))
    _sum(total, columns)


def _cast(node: exp.Cast, columns: _Columns) -> None:
    refuse_options(node, "this", "to")
    value, kind = node.this, columns.type_of(node.this)
    is_text = kind in (None, "VARCHAR")
    if kind is None:
        value = cast_to(value, "VARCHAR")
    match _affinity_of_cast(node.to):
        case "INTEGER" if is_text:
            node.replace(columns.target.number(value, INTEGER, "BIGINT"))
        case "INTEGER" if kind in _NUMERIC:
            node.replace(_as_integer(value, columns) if kind in _INTEGERS else _truncated(value))
        case "REAL" | "NUMERIC" if is_text:
            node.replace(columns.target.number(value))
        case "REAL" if kind in _NUMERIC:
            node.replace(cast_to(_as_number(value, columns), "DOUBLE"))
        case "NUMERIC" if kind in _NUMERIC:
            whole = kind in _INTEGERS
            node.replace(_as_integer(value, columns) if whole else cast_to(value, "DOUBLE"))
        case "TEXT" if kind != "BLOB":
            node.replace(
                _as_text(value, columns) if kind in _NUMERIC else cast_to(value, "VARCHAR")
            )
        case "BLOB" if kind == "VARCHAR":
            node.replace(columns.target.as_bytes(value))


# ---------------------------------------------------------------------- text and dates


def _known_format(node: exp.TimeToStr, target: DuckDBTarget) -> str:
    """The format of a date, where each of its parts means the same to both."""
    text = node.args["format"]
    if (
        not isinstance(text, exp.Literal)
        or set(FORMAT_PART.findall(text.this)) - target.known_parts
    ):
        raise SQLParseError(
            f"cannot translate {node.sql('sqlite')!r} to {target.dialect}: in the format of a date "
            f"only {' '.join(sorted(target.known_parts))} are known to mean the same"
        )
    found: str = text.this
    return found


def _date_as_text(
    node: exp.Expression, value: exp.Expression, date_format: str, columns: _Columns
) -> None:
    kind = columns.type_of(value)
    node.replace(columns.target.date_as_text(node, value, date_format, kind))


# ---------------------------------------------------------------------- comparison


@dataclass(frozen=True, slots=True)
class _Operand:
    """One side of a comparison: the kind of its values, and what SQLite would convert to."""

    kind: str | None
    affinity: str | None

    @classmethod
    def of(cls, node: exp.Expression, columns: _Columns) -> _Operand:
        return cls(columns.type_of(node), columns.affinity_of(node))


def _whole_number(text: exp.Expression, columns: _Columns) -> exp.Expression:
    return columns.target.whole_number(text)


def _beyond_numbers(text: exp.Expression, columns: _Columns) -> exp.Expression:
    return columns.target.beyond_numbers(text)


_Conversion: TypeAlias = Callable[[exp.Expression, _Columns], exp.Expression]


def _conversion(own: _Operand, other: _Operand) -> _Conversion | None:
    """The conversion of one side before it is compared with the other; `None` if none is needed."""
    if own.kind == "BOOLEAN" and other.kind in _NUMERIC and other.kind != "BOOLEAN":
        return _as_number
    if own.kind in _NUMERIC and other.kind == "VARCHAR":
        return _as_text if own.affinity is None and other.affinity == "TEXT" else None
    if own.kind == "VARCHAR" and other.kind in _NUMERIC:
        if other.affinity == "NUMERIC":
            return _whole_number
        # SQLite converts neither, and a number is less than a text.
        return None if own.affinity == "TEXT" else _beyond_numbers
    return None


def _converted(
    node: exp.Expression, own: _Operand, other: _Operand, columns: _Columns
) -> exp.Expression:
    convert = _conversion(own, other)
    return node if convert is None else convert(node, columns)


def _align(node: exp.Expression, columns: _Columns) -> None:
    left, right = _Operand.of(node.this, columns), _Operand.of(node.expression, columns)
    node.set("this", _converted(node.this, left, right, columns))
    node.set("expression", _converted(node.expression, right, left, columns))


def _between(node: exp.Between, columns: _Columns) -> None:
    own = _Operand.of(node.this, columns)
    bounds = [_Operand.of(node.args[part], columns) for part in ("low", "high")]
    for part, bound in zip(("low", "high"), bounds, strict=True):
        node.set(part, _converted(node.args[part], bound, own, columns))
    if _conversion(own, bounds[0]) is _conversion(own, bounds[1]):
        node.set("this", _converted(node.this, own, bounds[0], columns))
        return
    refuse_options(node, "this", "low", "high")
    low, high = (
        _converted(columns.target.copy(node.this), own, bound, columns) for bound in bounds
    )
    both = exp.And(
        this=exp.GTE(this=low, expression=node.args["low"]),
        expression=exp.LTE(this=high, expression=node.args["high"]),
    )
    node.replace(exp.Paren(this=both))


def _in(node: exp.In, columns: _Columns) -> None:
    own = _Operand.of(node.this, columns)
    query = node.args.get("query")
    if query is not None:
        _in_query(node, own, query, columns)
        return
    if node.args.get("field") is not None or node.args.get("unnest") is not None:
        return
    refuse_options(node, "this", "expressions")
    # Each item stands as +item: it is converted, and converts nothing.
    items = [(item, _Operand(columns.type_of(item), None)) for item in node.expressions]
    if not items:
        node.replace(exp.Boolean(this=False))
        return
    if any(_conversion(own, operand) is not None for _, operand in items):
        # What is looked for would be something else beside each item.
        equalities = [
            exp.EQ(
                this=_converted(columns.target.copy(node.this), own, operand, columns),
                expression=_converted(item, operand, own, columns),
            )
            for item, operand in items
        ]
        node.replace(exp.paren(exp.or_(*equalities, copy=False), copy=False))
        return
    converted = [_converted(item, operand, own, columns) for item, operand in items]
    node.set("expressions", converted)


def _in_query(node: exp.In, own: _Operand, query: exp.Expression, columns: _Columns) -> None:
    found = _Operand.of(query, columns)
    node.set("this", _converted(node.this, own, found, columns))
    convert = _conversion(found, own)
    if convert is not None:
        value = exp.column("value", table="found")
        columns.remember(value, found)
        # Around the query, whose ORDER BY and LIMIT may use what it selects.
        source = exp.Subquery(
            this=query.this if isinstance(query, exp.Subquery) else query,
            alias=exp.TableAlias(
                this=exp.to_identifier("found"), columns=[exp.to_identifier("value")]
            ),
        )
        select = exp.Select(expressions=[convert(value, columns)]).from_(source, copy=False)
        node.set("query", exp.Subquery(this=select))


def _case(node: exp.Case, columns: _Columns) -> None:
    own = _Operand.of(node.this, columns)
    for branch in node.args["ifs"]:
        operand = _Operand.of(branch.this, columns)
        branch.set("this", _converted(branch.this, operand, own, columns))


def _is(node: exp.Is, columns: _Columns) -> None:
    if isinstance(node.expression, exp.Null):
        return
    if isinstance(node.expression, exp.Boolean):
        _set_condition(node, "this", columns)
        return
    kind = exp.NullSafeNEQ if node.args.get("negate") else exp.NullSafeEQ
    _align(node, columns)
    become(node, kind, negate=None)


# ---------------------------------------------------------------------- patterns


def _like(node: exp.Like, columns: _Columns) -> None:
    for part in ("this", "expression"):
        node.set(part, _as_text(node.args[part], columns))
    columns.target.like(node)


def _collate(node: exp.Collate, columns: _Columns) -> None:
    match node.expression.name.upper():
        case "BINARY":
            node.replace(node.this)
        case "NOCASE" if columns.target.dialect == "postgres":
            node.replace(call("TRANSLATE", node.this, ASCII_UPPER, ASCII_UPPER.lower()))


def _concatenate(node: exp.GroupConcat, columns: _Columns) -> None:
    values = node.this
    if not isinstance(values, exp.Distinct):
        node.set("this", _as_text(values, columns))
    else:
        values.set("expressions", [_as_text(value, columns) for value in values.expressions])


def _glob(node: exp.Glob, columns: _Columns) -> None:
    for part in ("this", "expression"):
        node.set(part, _as_text(node.args[part], columns))
    columns.target.glob(node)
