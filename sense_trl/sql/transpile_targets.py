"""How DuckDB and PostgreSQL write what SQLite does silently: `DuckDBTarget`, `PostgresTarget`.

`sense_trl.sql.transpile` knows what SQLite means by a node; a target writes it.
"""

from __future__ import annotations

import itertools
import re
import string
from collections.abc import Callable
from typing import Final

import sqlglot
from sqlglot import exp

from sense_trl.sql.ambiguity import has_one_row, may_be_scalar
from sense_trl.sql.parsing import SQLParseError, quote_names
from sense_trl.sql.postgres_names import fold_name

# What SQLite takes for a number at the start of a text, as both read it.
_SPACE: Final = r"[\s\v]*"
_FLOAT: Final = r"[+-]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][+-]?[0-9]+)?"
INTEGER: Final = "[+-]?[0-9]+"
_DATE: Final = "^[0-9]{4}-[0-9]{2}-[0-9]{2}(?:[ T].*)?$"
_INFINITY: Final = "inf"
# Each level of `a BETWEEN b AND c` inside of another may double what is inside of it.
_MAX_COPIED_NODES: Final = 20_000
FORMAT_PART: Final = re.compile("%.?", re.DOTALL)
ASCII_UPPER: Final = string.ascii_uppercase


# ---------------------------------------------------------------------- nodes


def call(name: str, *arguments: exp.Expression | str) -> exp.Expression:
    """A call of a function; strings are literals."""
    return exp.Anonymous(
        this=name,
        expressions=[exp.Literal.string(a) if isinstance(a, str) else a for a in arguments],
    )


def cast_to(value: exp.Expression, kind: str) -> exp.Expression:
    """CAST(value AS kind)."""
    return exp.Cast(this=value, to=exp.DataType.build(kind))


def refuse_options(node: exp.Expression, *known: str) -> None:
    """Make sure that a node has nothing that its rewriting would drop.

    Raises:
        SQLParseError: it has.
    """
    lost = {name for name, value in node.args.items() if name not in known and value}
    if lost:
        raise SQLParseError(
            f"cannot translate {node.sql('sqlite')!r}: nothing is known of {sorted(lost)}"
        )


def become(
    node: exp.Expression, kind: type[exp.Expression], **changes: exp.Expression | None
) -> None:
    """Replace `node` by one of another kind that keeps all its other arguments.

    Raises:
        SQLParseError: the other kind has no place for an argument that the node has.
    """
    refuse_options(node, *kind.arg_types, *changes)
    arguments = {**node.args, **changes}
    node.replace(kind(**{name: value for name, value in arguments.items() if value is not None}))


def wrap_aggregate(
    aggregate: exp.Expression,
    inner: exp.Expression,
    wrap: Callable[[exp.Expression], exp.Expression],
) -> None:
    """Put `inner` in the place of an aggregate, and something around its FILTER and OVER."""
    whole = aggregate
    while isinstance(whole.parent, (exp.Filter, exp.Window)) and whole.parent.this is whole:
        whole = whole.parent
    if whole is aggregate:
        aggregate.replace(wrap(inner))
        return
    aggregate.replace(inner)
    place = exp.Null()
    whole.replace(place)
    place.replace(wrap(whole))


# ---------------------------------------------------------------------- DuckDB


class DuckDBTarget:
    """Writes for DuckDB. Kinds of values are those of `sense_trl.sql.transpile`."""

    dialect: str = "duckdb"
    known_parts: frozenset[str] = frozenset(f"%{part}" for part in "dHjmMSwWY%")
    truth_type: str = "BIGINT"
    _num_copied: int = 0

    def copy(self, node: exp.Expression) -> exp.Expression:
        """A copy of a node that has to stand in two places.

        Raises:
            SQLParseError: too much was copied for one query.
        """
        self._num_copied += sum(1 for _ in node.walk())
        if self._num_copied > _MAX_COPIED_NODES:
            raise SQLParseError(
                f"Translated to {self.dialect}, the query would be longer than it was by more than "
                f"{_MAX_COPIED_NODES:,} nodes, as what it compares has to be written several times."
            )
        return node.copy()

    def number(
        self, text: exp.Expression, number: str = _FLOAT, kind: str = "DOUBLE"
    ) -> exp.Expression:
        """The number that a text begins with, 0 without one, NULL for NULL."""
        found = call("REGEXP_EXTRACT", text, f"^{_SPACE}({number})", exp.Literal.number(1))
        return cast_to(call("REGEXP_REPLACE", found, "^$", "0"), kind)

    def whole_number(self, text: exp.Expression) -> exp.Expression:
        """The number that a text is as a whole, else infinity: text is above all numbers."""
        if isinstance(text, exp.Literal):
            found = re.fullmatch(rf"[ \t\n\v\f\r]*({_FLOAT})[ \t\n\v\f\r]*", text.this)
            if found is None:
                return cast_to(exp.Literal.string(_INFINITY), "DOUBLE")
            if re.fullmatch("[0-9]{1,18}", found[1]):
                return exp.Literal.number(int(found[1]))
            return cast_to(exp.Literal.string(found[1]), "DOUBLE")
        return self._whole_number_of(text)

    def _whole_number_of(self, text: exp.Expression) -> exp.Expression:
        pattern = f"^{_SPACE}({_FLOAT}){_SPACE}$"
        number = call("REGEXP_EXTRACT", text, pattern, exp.Literal.number(1))
        return cast_to(call("REGEXP_REPLACE", number, "^$", _INFINITY), "DOUBLE")

    def beyond_numbers(self, text: exp.Expression) -> exp.Expression:
        """Infinity for every text, NULL for NULL."""
        if isinstance(text, exp.Literal):
            return cast_to(exp.Literal.string(_INFINITY), "DOUBLE")
        return cast_to(call("REGEXP_REPLACE", text, "(?s)^.*$", _INFINITY), "DOUBLE")

    def number_as_text(self, number: exp.Expression, kind: str | None) -> exp.Expression:
        """What SQLite prints; a number made of text that is whole is an integer."""
        text = cast_to(number, "VARCHAR")
        return call("REGEXP_REPLACE", text, r"\.0$", "") if kind == "NUMBER" else text

    def truth(self, value: exp.Expression, kind: str | None) -> exp.Expression:
        """A value as a condition."""
        if kind != "VARCHAR":
            return value
        is_true = exp.NEQ(this=self.number(value), expression=exp.Literal.number(0))
        return exp.Paren(this=is_true)

    def write_real(self, node: exp.Literal) -> None:
        """A number with a point: a DECIMAL in DuckDB, a floating-point number in SQLite."""
        if not node.is_string and "." in node.this and "e" not in node.this.lower():
            node.set("this", f"{node.this}e0")

    def no_zero(self, divisor: exp.Expression) -> exp.Expression:
        """A divisor, NULL where it is zero."""
        return exp.Nullif(this=divisor, expression=exp.Literal.number(0))

    def divide_integers(self, node: exp.Div) -> None:
        """Divide two integers and truncate."""
        divisor = self.no_zero(node.expression)
        become(node, exp.IntDiv, expression=divisor, typed=None, safe=None)

    def begins_with_real(self, text: exp.Expression) -> exp.Expression:
        """Whether the number that a text begins with is written as no integer."""
        found = call("REGEXP_EXTRACT", text, f"^{_SPACE}({_FLOAT})")
        return call("REGEXP_MATCHES", found, "[.eE]")

    def sum_distinct_texts(self, node: exp.Sum | exp.Avg) -> None:
        """SUM or AVG over texts that are distinct and can begin with the same number."""
        refuse_options(node, "this")
        element = exp.to_identifier("v")
        to_number = exp.Lambda(this=self.number(element), expressions=[self.copy(element)])
        total = "LIST_SUM" if isinstance(node, exp.Sum) else "LIST_AVG"
        wrap_aggregate(
            node,
            exp.AnonymousAggFunc(this="LIST", expressions=[node.this]),
            lambda values: call(total, call("LIST_TRANSFORM", values, to_number)),
        )

    def as_bytes(self, text: exp.Expression) -> exp.Expression:
        """The bytes of a text."""
        return call("ENCODE", text)

    def date_as_text(
        self, node: exp.Expression, value: exp.Expression, date_format: str, kind: str | None
    ) -> exp.Expression:
        """A date in a format; to SQLite every date is a text, and what is none gives NULL."""
        moment: exp.Expression
        if _is_now(value):
            moment = exp.CurrentTimestamp()
        else:
            if kind == "VARCHAR":
                # DuckDB reads more as a date.
                value = call("REGEXP_EXTRACT", value, _DATE)
            moment = exp.TryCast(this=value, to=exp.DataType.build("TIMESTAMP"))
        return call("STRFTIME", moment, date_format)

    def like(self, node: exp.Like) -> None:
        """LIKE over texts, which ignores the case of ASCII."""
        pattern = node.expression
        if isinstance(pattern, exp.Literal) and pattern.this.isascii():
            become(node, exp.ILike)
            return
        # ILIKE ignores the case of all letters, LIKE of SQLite that of ASCII only.
        for part in ("this", "expression"):
            node.set(part, call("TRANSLATE", node.args[part], ASCII_UPPER, ASCII_UPPER.lower()))

    def glob(self, node: exp.Glob) -> None:
        """GLOB over texts."""
        if isinstance(node.expression, exp.Literal):
            pattern = _regex_of_glob(node.expression.this, _escaped, r"[^\x00-\x{10FFFF}]")
            become(node, exp.RegexpFullMatch, expression=exp.Literal.string(f"(?s){pattern}"))

    def round(self, node: exp.Round, kind: str | None) -> None:
        """ROUND of a number of some kind."""

    def concatenate(self, node: exp.GroupConcat, to_text: Callable[[exp.Expression], None]) -> None:
        """GROUP_CONCAT, whose values need not be texts."""

    def any_value(self, column: exp.Expression) -> exp.Expression:
        """Some value of a group."""
        return exp.AnyValue(this=column)

    def value_beside(
        self, extremum: exp.Expression, column: exp.Expression, condition: exp.Expression | None
    ) -> exp.Expression:
        """The column in the row that has the extremum, NULL or not."""
        name = "ARG_MAX_NULL" if isinstance(extremum, exp.Max) else "ARG_MIN_NULL"
        chosen: exp.Expression = exp.Anonymous(
            this=name, expressions=[column, self.copy(_key_of(extremum))]
        )
        return chosen if condition is None else exp.Filter(this=chosen, expression=condition)

    def finish(self, tree: exp.Expression) -> None:
        """What concerns whole queries."""


def _key_of(extremum: exp.Expression) -> exp.Expression:
    key: exp.Expression = extremum.this
    return key.expressions[0] if isinstance(key, exp.Distinct) else key


def _is_now(value: exp.Expression) -> bool:
    return isinstance(value, exp.Literal) and value.this.lower() == "now"


# ---------------------------------------------------------------------- PostgreSQL

_DAY: Final = (
    "^([0-9]{4}-(?:0[1-9]|1[0-2])-(?:0[1-9]|[12][0-9]|3[01])"
    "(?:[ T][0-2][0-9]:[0-5][0-9](?::[0-5][0-9](?:[.][0-9]+)?)?)?)$"
)
_TO_CHAR: Final = {
    "%Y": "YYYY",
    "%m": "MM",
    "%d": "DD",
    "%H": "HH24",
    "%M": "MI",
    "%S": "SS",
    "%j": "DDD",
    "%%": '"%"',
}


class PostgresTarget(DuckDBTarget):
    """Writes for PostgreSQL, from 15 on, and the names and types of `load_sqlite`."""

    dialect = "postgres"
    known_parts = frozenset(_TO_CHAR)
    # bigint has no cast from boolean.
    truth_type = "INT"

    def number(
        self, text: exp.Expression, number: str = _FLOAT, kind: str = "DOUBLE"
    ) -> exp.Expression:
        found = call("SUBSTRING", text, f"^{_SPACE}((?:{number})?)")
        return cast_to(call("REGEXP_REPLACE", found, "^$", "0"), kind)

    def _whole_number_of(self, text: exp.Expression) -> exp.Expression:
        no_number = f"^(?!{_SPACE}{_FLOAT}{_SPACE}$).*$"
        return cast_to(call("REGEXP_REPLACE", text, no_number, _INFINITY), "DOUBLE")

    def number_as_text(self, number: exp.Expression, kind: str | None) -> exp.Expression:
        if isinstance(number, exp.Literal) and number.this.isdigit():
            return exp.Literal.string(number.this)
        text = cast_to(number, "TEXT")
        if kind != "DOUBLE":
            return text
        # A whole one is printed as an integer.
        return call("REGEXP_REPLACE", text, "^(-?[0-9]+)(e.*)?$", r"\1.0\2")

    def truth(self, value: exp.Expression, kind: str | None) -> exp.Expression:
        if kind in ("BIGINT", "DOUBLE", "NUMBER"):
            return exp.Paren(this=exp.NEQ(this=value, expression=exp.Literal.number(0)))
        return super().truth(value, kind)

    def write_real(self, node: exp.Literal) -> None:
        pass

    def no_zero(self, divisor: exp.Expression) -> exp.Expression:
        is_literal = isinstance(divisor, exp.Literal) and float(divisor.this) != 0
        return divisor if is_literal else super().no_zero(divisor)

    def divide_integers(self, node: exp.Div) -> None:
        operands = (node.this, self.no_zero(node.expression))
        if node.find(exp.Sum):
            # A sum of bigint is numeric.
            node.replace(call("DIV", *operands))
        else:
            become(node, exp.Div, expression=operands[1], typed=exp.true(), safe=None)

    def begins_with_real(self, text: exp.Expression) -> exp.Expression:
        found = call("SUBSTRING", text, f"^{_SPACE}({_FLOAT})")
        return exp.RegexpLike(this=found, expression=exp.Literal.string("[.eE]"))

    def sum_distinct_texts(self, node: exp.Sum | exp.Avg) -> None:
        refuse_options(node, "this")
        (text,) = node.this.expressions
        if text.find(exp.Column) is None:
            # One text; the array of it would belong to the query inside.
            node.this.set("expressions", [self.number(text)])
            return
        total = type(node)(this=self.number(exp.column("v")))
        wrap_aggregate(
            node,
            exp.ArrayAgg(this=node.this),
            lambda values: exp.Subquery(
                this=exp.Select(expressions=[total]).from_(
                    exp.Unnest(
                        expressions=[values],
                        alias=exp.TableAlias(
                            this=exp.to_identifier("u"), columns=[exp.to_identifier("v")]
                        ),
                    ),
                    copy=False,
                )
            ),
        )

    def as_bytes(self, text: exp.Expression) -> exp.Expression:
        return call("CONVERT_TO", text, "UTF8")

    def date_as_text(
        self, node: exp.Expression, value: exp.Expression, date_format: str, kind: str | None
    ) -> exp.Expression:
        moment: exp.Expression
        if _is_now(value):
            moment = exp.CurrentTimestamp()
        elif kind in (None, "VARCHAR"):
            text = value if kind else cast_to(value, "TEXT")
            moment = cast_to(call("SUBSTRING", text, _DAY), "TIMESTAMP")
        else:
            raise SQLParseError(
                f"cannot translate {node.sql('sqlite')!r}: a date that is a number means a Julian "
                "day to SQLite"
            )
        parts = (_TO_CHAR.get(part, f'"{part}"') for part in re.findall("%.|[^%]", date_format))
        # What is no letter needs no quotes.
        text_format = re.sub('"([^"A-Za-z])"', r"\1", "".join(parts))
        return call("TO_CHAR", moment, text_format)

    def like(self, node: exp.Like) -> None:
        is_escaped = isinstance(node.parent, exp.Escape)
        pattern = node.expression
        if is_escaped or (isinstance(pattern, exp.Literal) and "\\" not in pattern.this):
            super().like(node)
            return
        # Without ESCAPE nothing escapes in SQLite, and a backslash does here.
        place = exp.Null()
        node.replace(place)
        escape = exp.Escape(this=node, expression=exp.Literal.string(""))
        place.replace(escape)
        super().like(node)

    def glob(self, node: exp.Glob) -> None:
        if isinstance(node.expression, exp.Literal):
            pattern = _regex_of_glob(node.expression.this, _escaped_for_postgres, "$.")
            become(node, exp.RegexpLike, expression=exp.Literal.string(f"^(?:{pattern})$"))

    def round(self, node: exp.Round, kind: str | None) -> None:
        # There is none of a double precision to so many digits, and the one of whole numbers
        # takes halves to the even neighbour.
        if kind != "BIGINT" and not isinstance(node.this, exp.Literal):
            node.set("this", cast_to(node.this, "DECIMAL"))

    def concatenate(self, node: exp.GroupConcat, to_text: Callable[[exp.Expression], None]) -> None:
        to_text(node)

    def any_value(self, column: exp.Expression) -> exp.Expression:
        return exp.Max(this=column)

    def value_beside(
        self, extremum: exp.Expression, column: exp.Expression, condition: exp.Expression | None
    ) -> exp.Expression:
        ordered = exp.Ordered(
            this=self.copy(_key_of(extremum)), desc=isinstance(extremum, exp.Max), nulls_first=False
        )
        chosen: exp.Expression = exp.ArrayAgg(this=exp.Order(this=column, expressions=[ordered]))
        if condition is not None:
            chosen = exp.Filter(this=chosen, expression=condition)
        first: exp.Expression = sqlglot.parse_one("(a)[1]", read="postgres")
        first.this.set("this", chosen)
        return first

    def finish(self, tree: exp.Expression) -> None:
        for select in list(tree.find_all(exp.Select)):
            _write_out_aliases(select, self)
            _order_distinct_rows(select)
        names = {node.name.lower() for node in tree.find_all(exp.Identifier)}
        free = (name for name in map("q{}".format, itertools.count(1)) if name not in names)
        for subquery in list(tree.find_all(exp.Subquery)):
            if isinstance(subquery.parent, (exp.From, exp.Join)) and not subquery.alias:
                # It must have one before PostgreSQL 16.
                subquery.set("alias", exp.TableAlias(this=exp.to_identifier(next(free))))
            # The first of several rows counts, and none of them is an error.
            query = subquery.this
            if (
                may_be_scalar(subquery)
                and not has_one_row(query)
                and isinstance(query, exp.Query)
                and query.args.get("limit") is None
            ):
                query.set("limit", exp.Limit(expression=exp.Literal.number(1)))
        for ordered in tree.find_all(exp.Ordered):
            if isinstance(ordered.this, exp.Count):
                # It is never NULL.
                ordered.set("nulls_first", bool(ordered.args.get("desc")))
        for identifier in tree.find_all(exp.Identifier):
            identifier.set("this", fold_name(identifier.name))
        quote_names(tree)


def _write_out_aliases(select: exp.Select, target: DuckDBTarget) -> None:
    """Names of result columns in expressions that cannot use them here."""
    made = {p.alias.lower(): p.this for p in select.expressions if isinstance(p, exp.Alias)}
    if not made:
        return
    places = [select.args.get("where"), select.args.get("having")]
    order = select.args.get("order")
    # Alone it may stand in an ORDER BY.
    if order is not None:
        places += [o.this for o in order.expressions if not isinstance(o.this, exp.Column)]
    for place in places:
        for column in [] if place is None else list(place.find_all(exp.Column)):
            value = made.get(column.name.lower())
            if value is None or column.table or column.parent_select is not select:
                continue
            if not any(c.name.lower() == column.name.lower() for c in value.find_all(exp.Column)):
                written = target.copy(value)
                column.replace(exp.paren(written) if value.args else written)


def _order_distinct_rows(select: exp.Select) -> None:
    """Order distinct rows by what they do not show: by the first of what each stands for."""
    order, distinct = select.args.get("order"), select.args.get("distinct")
    if order is None or distinct is None or distinct.args.get("on") is not None:
        return
    values = [p.unalias() for p in select.expressions]
    if any(value.is_star for value in values) or select.args.get("group") is not None:
        return
    shown = {value.sql().lower() for value in values} | {p.alias_or_name.lower() for p in values}
    shown |= {p.alias.lower() for p in select.expressions if p.alias}
    hidden = [
        key
        for key in order.expressions
        if key.this.sql().lower() not in shown
        and not isinstance(key.this, exp.Literal)
        and not (isinstance(key.this, exp.Column) and key.this.name.lower() in shown)
    ]
    if not hidden or any(value.find(exp.AggFunc, exp.Window) for value in values):
        return
    for key in hidden:
        extremum = exp.Max if key.args.get("desc") else exp.Min
        key.set("this", extremum(this=key.this))
    select.set("distinct", None)
    group = exp.Group(expressions=[v.copy() for v in values if not isinstance(v, exp.Literal)])
    select.set("group", group)


# ---------------------------------------------------------------------- patterns


def _regex_of_glob(pattern: str, escape: Callable[[str], str], nothing: str) -> str:
    """SQLite's GLOB, in which nothing escapes, as a regular expression."""
    parts = []
    position = 0

    def write_part(found: re.Match[str]) -> str:
        first, last, single = found.groups()
        if single is not None:
            return escape(single)
        # A range that ends before it begins holds nothing; its first character counts nevertheless.
        return f"{escape(first)}-{escape(last)}" if first <= last else escape(first)

    while position < len(pattern):
        character = pattern[position]
        position += 1
        if character in "*?":
            parts.append(".*" if character == "*" else ".")
        elif character != "[":
            parts.append(escape(character))
        else:
            inverted = pattern[position : position + 1] == "^"
            start = position + inverted
            # A bracket that stands first is one of the characters.
            end = pattern.find("]", start + 1)
            if end < 0:
                return nothing
            inside = re.sub("(.)-(.)|(.)", write_part, pattern[start:end], flags=re.DOTALL)
            parts.append(f"[{'^' if inverted else ''}{inside}]")
            position = end + 1
    return "".join(parts)


def _escaped(character: str) -> str:
    return character if character.isalnum() or character == "_" else f"\\x{{{ord(character):x}}}"


def _escaped_for_postgres(character: str) -> str:
    if character.isascii() and (character.isalnum() or character == "_"):
        return character
    code = ord(character)
    return f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"
