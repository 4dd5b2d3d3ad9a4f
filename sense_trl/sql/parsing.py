"""Parsing SQL with sqlglot: the tree, a canonical text, and whether the outermost query orders."""

from __future__ import annotations

import functools
import logging
import re
from typing import Any, Final

from sqlglot import Dialect, exp
from sqlglot.errors import ErrorLevel, SqlglotError, UnsupportedError
from sqlglot.tokens import Token, TokenType

from sense_trl.errors import SenseTRLError
from sense_trl.sql.postgres_names import fold_name, is_plain_name
from sense_trl.sql.reading import count_flaws


def _is_worth_a_warning(record: logging.LogRecord) -> bool:
    # sqlglot warns of every text that begins like a command ("Create a table of ..."). Where texts
    # come from models, those are verdicts, and there are hundreds of them.
    return "Falling back to parsing as a 'Command'" not in record.getMessage()


logging.getLogger("sqlglot").addFilter(_is_worth_a_warning)


class SQLParseError(SenseTRLError):
    """A text is not one SQL statement that sqlglot can read in this dialect."""


class SQLNestingError(SQLParseError):
    """A statement is nested too deeply to be read, or stands for one that is."""


# Texts come from models that may write the same words without end. Within these caps reading takes
# a second at most and stays off the end of the stack, which compiled code would run over without an
# error. Of 3,674 predictions and gold queries of Spider and BIRD the longest has 181 tokens, the
# deepest tree 20 levels, and no more than 5 brackets are open at once.
_MAX_CHARS: Final = 100_000
_MAX_TOKENS: Final = 5_000
_MAX_BRACKETS: Final = 100
_MAX_DIGITS: Final = 4_000
# SQLite allows 200 levels, and a chain of AND or OR is one: those do not count for the first bound.
_MAX_LEVELS: Final = 100
_MAX_CHAINED_LEVELS: Final = 250
# The parser tries several readings and takes each back with all that is in it, which doubles the
# work with every `JOIN t` that has no ON. It counts the nodes it makes: real queries take one for
# each token.
_MIN_NODES: Final = 2_000
_NODES_PER_TOKEN: Final = 5
# No tree of so few tokens is too deep.
_FEW_TOKENS: Final = 50


def parse_sql(sql: str, dialect: str) -> exp.Expression:
    """Parse one statement; see `parse_statements` for what bounds it.

    Args:
        sql: one statement; a trailing semicolon is allowed.
        dialect: the dialect's name in sqlglot, such as "sqlite" or "duckdb".

    Raises:
        SQLParseError: the text is empty, holds several statements, is too long, or cannot be
            parsed.
        SQLNestingError: (a kind of it) it is nested too deeply.
    """
    statements = parse_statements(sql, dialect)
    if len(statements) != 1:
        raise SQLParseError(f"expected one statement, found {len(statements)} in {_shorten(sql)}")
    return statements[0]


def parse_folded(sql: str, dialect: str) -> exp.Expression:
    """`parse_sql`, with the names of PostgreSQL as the server reads them; see `QueryNames`.

    Raises:
        SQLParseError: see `parse_statements`.
    """
    tree = parse_sql(sql, dialect)
    if dialect == "postgres":
        fold_names(tree)
    return tree


def parse_statements(sql: str, dialect: str) -> list[exp.Expression]:
    """Parse a text into its statements.

    The time this takes is bounded whatever the text says: by caps on its length (100,000
    characters, 5,000 tokens), on what is open at once (100 brackets and CASE, 100 levels of the
    tree, 250 with the links of AND and OR) and on what the parser tries.

    Args:
        sql: statements with semicolons between them.
        dialect: the dialect's name in sqlglot, such as "sqlite" or "duckdb".

    Raises:
        SQLParseError: the text is too long, or cannot be parsed.
        SQLNestingError: (a kind of it) it is nested too deeply.
    """
    reader = Dialect.get_or_raise(dialect)
    if len(sql) > _MAX_CHARS:
        raise SQLParseError(
            f"{_shorten(sql)} has {len(sql)} characters; {_MAX_CHARS} are read at most"
        )
    try:
        tokens = reader.tokenize(sql)
        _check_tokens(tokens, sql)
        max_nodes = _MIN_NODES + _NODES_PER_TOKEN * len(tokens)
        statements = reader.parser(max_nodes=max_nodes).parse(tokens, sql)
    except MemoryError:
        raise
    except Exception as error:
        # sqlglot trips over its own nodes on some malformed texts, the compiled one by TypeError.
        raise _as_refusal(error, sql, dialect, "parse") from error
    # A lone semicolon that carries a comment is a statement to sqlglot.
    found = [
        tree for tree in statements if tree is not None and not isinstance(tree, exp.Semicolon)
    ]
    if len(tokens) > _FEW_TOKENS:
        for tree in found:
            _check_levels(tree, sql)
    return found


def write_sql(tree: exp.Expression, dialect: str, **options: Any) -> str:
    """Write a tree as text, with sqlglot's options.

    Raises:
        SQLParseError: sqlglot cannot write it; what it reads it cannot always write.
        SQLNestingError: (a kind of it) it is nested too deeply.
    """
    try:
        text: str = tree.sql(dialect=dialect, **options)
    except MemoryError:
        raise
    except Exception as error:
        raise _as_refusal(error, "a query", dialect, "write") from error
    return text


def fold_names(tree: exp.Expression) -> None:
    """Write the names of a tree as the server reads them, with quotes where theirs are needed."""
    for identifier in tree.find_all(exp.Identifier):
        if not identifier.quoted:
            # `user` is no column.
            identifier.set("this", fold_name(identifier.name))
        elif is_plain_name(identifier.name):
            identifier.set("quoted", False)


def quote_names(tree: exp.Expression) -> None:
    """Put the names of a tree, which are what they mean, in quotes where they need some."""
    for identifier in tree.find_all(exp.Identifier):
        identifier.set("quoted", not is_plain_name(identifier.name))


def get_text(node: exp.Expression) -> str:
    """A text of a node to compare it by, with what only some dialects have."""
    text: str = node.sql(unsupported_level=ErrorLevel.IGNORE)
    return text


def _as_refusal(error: Exception, sql: str, dialect: str, verb: str) -> SQLParseError:
    """Turn what sqlglot raised on a text into an error of ours."""
    if isinstance(error, SQLParseError):
        return error
    if isinstance(error, RecursionError):
        return SQLNestingError(f"cannot {verb} {_shorten(sql)}: nested too deeply")
    if isinstance(error, UnsupportedError):
        return SQLParseError(f"not {dialect}: {error}")
    return SQLParseError(f"cannot {verb} {_shorten(sql)} as {dialect}: {error}")


def _check_tokens(tokens: list[Token], sql: str) -> None:
    if len(tokens) > _MAX_TOKENS:
        raise SQLParseError(
            f"{_shorten(sql)} has {len(tokens)} tokens; {_MAX_TOKENS} are read at most"
        )
    if len(sql) > _MAX_DIGITS:
        # Python makes no integer of so many.
        for token in tokens:
            if token.token_type is TokenType.NUMBER and len(token.text) > _MAX_DIGITS:
                raise SQLParseError(f"{_shorten(token.text)} has more than {_MAX_DIGITS} digits")
    if len(tokens) <= _MAX_BRACKETS:
        return
    num_brackets = num_cases = num_in_row = 0
    before = tokens[0].token_type
    for token in tokens:
        kind = token.token_type
        if kind in _OPENING:
            num_brackets += 1
            # `a[0][0]` is as deep as `(a[0])[0]`, and the parser looks at all of it with each.
            num_in_row = num_in_row + 1 if before is TokenType.R_BRACKET else 0
        elif kind in _CLOSING:
            num_brackets -= 1
        elif kind is TokenType.CASE:
            num_cases += 1
        elif kind is TokenType.END and before is not TokenType.DOT:
            num_cases = max(num_cases - 1, 0)
        if max(num_brackets + num_cases, num_in_row) > _MAX_BRACKETS:
            raise SQLNestingError(
                f"{_shorten(sql)} is nested too deeply: more than {_MAX_BRACKETS} brackets or "
                "CASE are open at once"
            )
        before = kind


def _check_levels(tree: exp.Expression, sql: str) -> None:
    pending = [(tree, 1, 1)]
    while pending:
        node, level, chained_level = pending.pop()
        if level > _MAX_LEVELS or chained_level > _MAX_CHAINED_LEVELS:
            raise SQLNestingError(
                f"{_shorten(sql)} is nested too deeply: more than {_MAX_LEVELS} levels, or "
                f"{_MAX_CHAINED_LEVELS} with the links of AND and OR"
            )
        is_connector = isinstance(node, exp.Connector)
        for child in node.iter_expressions():
            is_link = is_connector and type(child) is type(node)
            pending.append((child, level + (not is_link), chained_level + 1))


@functools.lru_cache(maxsize=4)
def read_sql(sql: str, dialect: str) -> exp.Expression:
    """The tree of `parse_sql`, which several readers of one text share: it must not be changed."""
    return parse_sql(sql, dialect)


def canonical_sql(sql: str, dialect: str) -> str:
    """Write a query in one canonical way, to recognise spellings of the same query.

    Unified: white space, comments, case of keywords, functions and identifiers (in PostgreSQL of
    those without quotes), quotes around table names and qualified columns, `AS`, names of table
    aliases (numbered as they appear, unless one is also the name of a table), `INNER`, `<>` and
    `!=`, `a > b` and `b < a`, and parentheses around a name, a literal or a call.

    Not unified: an unqualified quoted word (the schema decides whether SQLite takes it for a
    column or for a string); a table with and without an alias; names of column aliases; the order
    of conditions, joins and columns; anything that needs the schema or algebra. Two queries with
    one canonical text give the same rows; the converse does not hold.

    Raises:
        SQLParseError: the text is not one statement, or holds what the dialect does not have, such
            as the comma of `SELECT , a`, which sqlglot forgives.

    Example:
        >>> canonical_sql("select T1.Name from singer as T1 where 3 < T1.age", "sqlite")
        'SELECT t1.name FROM singer AS t1 WHERE t1.age > 3'
        >>> canonical_sql("SELECT x.name FROM Singer x WHERE x.age>3 -- old", "sqlite")
        'SELECT t1.name FROM singer AS t1 WHERE t1.age > 3'
    """
    tree = parse_sql(sql, dialect)
    if isinstance(tree, exp.Query) and count_flaws(sql, dialect):
        # Read leniently, it would be one with a query that runs.
        raise SQLParseError(f"sqlglot reads {_shorten(sql)}, but {dialect} does not")
    for node in tree.walk():
        node.comments = None
    if dialect == "postgres":
        # Where the case of a name in quotes counts, and no name is a string.
        fold_names(tree)
    else:
        for identifier in tree.find_all(exp.Identifier):
            name = identifier.name
            # A quoted name that would not survive without its quotes keeps them.
            if not _is_maybe_string(identifier) and _PLAIN_NAME.fullmatch(name):
                identifier.set("this", name.lower())
                identifier.set("quoted", False)
    _rename_table_aliases(tree, dialect)
    try:
        tree = tree.transform(_canonical_node, copy=False)
    except RecursionError as error:
        raise _as_refusal(error, sql, dialect, "rewrite") from error
    return write_sql(
        tree,
        dialect,
        normalize_functions="upper",
        comments=False,
        copy=False,
        # Left out with a warning, what the dialect cannot write would make two queries one.
        unsupported_level=ErrorLevel.RAISE,
    )


def order_matters(sql: str, dialect: str) -> bool:
    """Whether the outermost query asks for an order of its rows.

    An ORDER BY in a subquery, a CTE, a window or an aggregate does not count; one behind a set
    operation orders the whole result and does; parentheses around the query are looked through.

    Raises:
        SQLParseError: the text is not one statement. (Texts without the word ORDER are answered
            without parsing.)

    Example:
        >>> order_matters("SELECT a FROM t ORDER BY a", "sqlite")
        True
        >>> order_matters("SELECT a FROM (SELECT a FROM t ORDER BY a LIMIT 3)", "sqlite")
        False
    """
    if not _ORDER.search(sql):
        return False
    return _outer_order(read_sql(sql, dialect)) is not None


def outer_limit(sql: str, dialect: str) -> int | None:
    """The number of rows the outermost query is cut to, or `None` if it is not cut to a literal.

    Raises:
        SQLParseError: the text is not one statement. (Texts without LIMIT or FETCH are answered
            without parsing.)
    """
    if not _LIMIT.search(sql):
        return None
    return _literal_limit(unwrap(read_sql(sql, dialect)))


def is_cut(sql: str, dialect: str) -> bool:
    """Whether LIMIT, OFFSET or FETCH stands at the outermost query, with whatever value.

    Raises:
        SQLParseError: the text is not one statement. (Texts without the words are answered
            without parsing.)
    """
    if not _CUT.search(sql):
        return False
    query = unwrap(read_sql(sql, dialect))
    return query.args.get("limit") is not None or query.args.get("offset") is not None


def get_offset(sql: str, dialect: str) -> str:
    """The expression behind the OFFSET of the outermost query, "0" where it has none.

    Raises:
        SQLParseError: the text is not one statement.

    Example:
        >>> get_offset("SELECT a FROM t LIMIT 2, 3", "sqlite")
        '2'
    """
    offset = unwrap(read_sql(sql, dialect)).args.get("offset")
    return "0" if offset is None else write_sql(offset.expression, dialect)


def visible_sort_columns(sql: str, dialect: str) -> tuple[int, ...] | None:
    """Result columns (0-based) that hold the sort keys of the outermost query, in order.

    `None` where it does not order, where a key is not among the result columns, or where a
    collation lets unequal values tie.

    Raises:
        SQLParseError: the text is not one statement.
    """
    if not _ORDER.search(sql):
        return None
    query = unwrap(read_sql(sql, dialect))
    order = _outer_order(query)
    if order is None or next(query.find_all(exp.Collate), None) is not None:
        return None
    projections = _output_projections(query)
    if projections is None:
        return None
    if _orders_by_all(order, dialect):
        return tuple(range(len(projections)))
    found = []
    for ordered in order.expressions:
        index = _projection_index(ordered.this, projections)
        if index is None:
            return None
        found.append(index)
    return tuple(found)


def get_tie_query(
    sql: str, dialect: str, *, limit: int | None, keeps_offset: bool = True
) -> str | None:
    """Rewrite an ordered query so that its last column tells which rows tie.

    The rewritten query gives the same rows in an allowed order, with one more column at the end:
    the dense rank of the row under the sort keys of the outermost query, so two rows tie if and
    only if their last values are equal, collations and NULL included.

    Args:
        sql: the query.
        dialect: its dialect.
        limit: rows to keep instead of the query's own LIMIT; `None` for all.
        keeps_offset: whether the query's own OFFSET stays.

    Returns:
        The text, or `None` where the query does not order or cannot be rewritten this way
        (DISTINCT, set operations and VALUES whose keys are not result columns, ORDER BY ALL).

    Raises:
        SQLParseError: the text is not one statement.
    """
    query = unwrap(read_sql(sql, dialect)).copy()
    order = _outer_order(query)
    if order is None or _orders_by_all(order, dialect):
        return None
    projections = _output_projections(query)
    if isinstance(query, exp.Select) and query.args.get("distinct") is None:
        keys = []
        for ordered in order.expressions:
            key = ordered.copy()
            index = None if projections is None else _named_index(key.this, projections)
            if index is not None and projections is not None:
                key.set("this", projections[index].unalias().copy())
            elif _is_ordinal(key.this):
                return None
            keys.append(key)
        rank = exp.Window(this=exp.DenseRank(), order=exp.Order(expressions=keys))
        query.append("expressions", exp.alias_(rank, "_tie_rank"))
        if not keeps_offset:
            query.set("offset", None)
        _set_limit(query, limit)
        return write_sql(query, dialect)
    return None


def get_unlimited_query(sql: str, dialect: str) -> str:
    """Rewrite a query without the LIMIT and OFFSET of its outermost query.

    Raises:
        SQLParseError: the text is not one statement.

    Example:
        >>> get_unlimited_query("SELECT a FROM t LIMIT 3 OFFSET 1", "duckdb")
        'SELECT a FROM t'
    """
    query = unwrap(read_sql(sql, dialect)).copy()
    query.set("limit", None)
    query.set("offset", None)
    return write_sql(query, dialect)


def without_end(sql: str, dialect: str) -> str:
    """A query without the semicolons and comments behind it, to stand inside another one.

    Example:
        >>> without_end("SELECT ';' AS a; -- once", "sqlite")
        "SELECT ';' AS a"
    """
    if ";" not in sql:
        return sql
    try:
        tokens: list[Token] = Dialect.get_or_raise(dialect).tokenize(sql)
    except SqlglotError:
        return sql.rstrip().rstrip(";")
    while tokens and tokens[-1].token_type is TokenType.SEMICOLON:
        tokens.pop()
    return sql[: tokens[-1].end + 1] if tokens else ""


# ---------------------------------------------------------------------- helpers

_ORDER: Final = re.compile(r"\border\b", re.IGNORECASE)
_LIMIT: Final = re.compile(r"\b(limit|fetch)\b", re.IGNORECASE)
_CUT: Final = re.compile(r"\b(limit|fetch|offset)\b", re.IGNORECASE)
_PLAIN_NAME: Final = re.compile(r"[A-Za-z_][A-Za-z_0-9]*")
_FLIPPED: Final[dict[type[Any], type[Any]]] = {exp.LT: exp.GT, exp.LTE: exp.GTE}


_OPENING: Final = frozenset({TokenType.L_PAREN, TokenType.L_BRACKET, TokenType.L_BRACE})
_CLOSING: Final = frozenset({TokenType.R_PAREN, TokenType.R_BRACKET, TokenType.R_BRACE})


def _shorten(sql: str) -> str:
    return repr(sql if len(sql) <= 200 else sql[:200] + "…")


def unwrap(tree: exp.Expression) -> exp.Expression:
    """Look through parentheses around the whole query that carry no clause of their own."""
    while isinstance(tree, (exp.Subquery, exp.Paren)):
        if any(tree.args.get(part) for part in ("order", "limit", "offset", "alias")):
            return tree
        tree = tree.this
    return tree


def _outer_order(tree: exp.Expression) -> exp.Expression | None:
    tree = unwrap(tree)
    order: exp.Expression | None = tree.args.get("order")
    if order is None and isinstance(tree, exp.Subquery):
        # "(SELECT ... ORDER BY a) LIMIT 3": the outer clause keeps the inner order.
        return _outer_order(tree.this)
    return order


def _orders_by_all(order: exp.Expression, dialect: str) -> bool:
    """Whether it is DuckDB's ORDER BY ALL: by every result column."""
    key = order.expressions[0].this
    return dialect == "duckdb" and isinstance(key, exp.Var) and key.name.upper() == "ALL"


def _literal_limit(query: exp.Expression) -> int | None:
    limit = query.args.get("limit")
    if limit is None:
        return None
    count = limit.args.get("expression") or limit.args.get("count")
    if isinstance(count, exp.Literal) and not count.is_string:
        try:
            return int(count.this)
        except ValueError:
            return None
    return None


def _set_limit(query: exp.Expression, limit: int | None) -> None:
    if limit is not None:
        query.set("limit", exp.Limit(expression=exp.Literal.number(limit)))
    elif query.args.get("offset") is not None:
        # SQLite has no OFFSET without LIMIT.
        query.set("limit", exp.Limit(expression=exp.Literal.number(2**62)))
    else:
        query.set("limit", None)


def _output_projections(query: exp.Expression) -> list[exp.Expression] | None:
    """The result columns in order, or `None` where a star hides them."""
    while isinstance(query, exp.SetOperation):
        query = unwrap(query.this)
    if not isinstance(query, exp.Select):
        return None
    projections: list[exp.Expression] = query.expressions
    if any(projection.is_star for projection in projections):
        return None
    return projections


def _is_ordinal(key: exp.Expression) -> bool:
    return isinstance(key, exp.Literal) and not key.is_string


def _named_index(key: exp.Expression, projections: list[exp.Expression]) -> int | None:
    """Index of the result column that `key` names by number or by alias."""
    if _is_ordinal(key):
        position = int(key.this) if key.this.isdigit() else 0
        return position - 1 if 1 <= position <= len(projections) else None
    if isinstance(key, exp.Column) and not key.table:
        for index, projection in enumerate(projections):
            if isinstance(projection, exp.Alias) and projection.alias.lower() == key.name.lower():
                return index
    return None


def _projection_index(key: exp.Expression, projections: list[exp.Expression]) -> int | None:
    index = _named_index(key, projections)
    if index is not None:
        return index
    for index, projection in enumerate(projections):
        if _same(projection.unalias(), key):
            return index
    return None


def _same(left: exp.Expression, right: exp.Expression) -> bool:
    """Whether two expressions are written alike up to the case of names."""
    if left == right:
        return True
    is_same = get_text(left).lower() == get_text(right).lower()
    return is_same and not list(left.find_all(exp.Literal))


def _is_maybe_string(identifier: exp.Identifier) -> bool:
    """A quoted, unqualified column may be a string literal to SQLite."""
    column = identifier.parent
    return bool(identifier.quoted) and isinstance(column, exp.Column) and not column.table


def _rename_table_aliases(tree: exp.Expression, dialect: str) -> None:
    """Number the aliases t1, t2, ... as they are written.

    One name gets one number wherever it stands, so scopes keep shadowing each other as before.
    """
    aliases = [
        node
        for node in tree.dfs()
        if isinstance(node, exp.TableAlias)
        and isinstance(node.parent, (exp.Table, exp.Subquery))
        and node.name
    ]
    names = list(dict.fromkeys(alias.name for alias in aliases))
    renamed = {name: f"t{position}" for position, name in enumerate(names, start=1)}
    taken = {table.name for table in tree.find_all(exp.Table)}
    taken |= {cte.alias for cte in tree.find_all(exp.CTE)}
    if dialect != "sqlite":
        # There `x` may mean a whole row of x, or what a function called x gives.
        taken |= {column.name for column in tree.find_all(exp.Column) if not column.table}
    # Where an alias or its new name is also a table's, `x.a` may mean either.
    if taken & (set(names) | set(renamed.values())):
        return
    for alias in aliases:
        alias.set("this", exp.to_identifier(renamed[alias.name]))
    for column in tree.find_all(exp.Column):
        if column.table in renamed:
            column.set("table", exp.to_identifier(renamed[column.table]))


def _canonical_node(node: exp.Expression) -> exp.Expression:
    for less, greater in _FLIPPED.items():
        # Beside another comparison, or NOT, the sides only bind as they are written.
        if type(node) is less and not any(
            isinstance(side, exp.Predicate) or _ends_in_not(side)
            for side in (node.this, node.expression)
        ):
            return greater(this=node.expression, expression=node.this)
    if (
        isinstance(node, exp.Not)
        and isinstance(node.parent, (exp.Binary, exp.Predicate))
        and not isinstance(node.parent, exp.Connector)
    ):
        # `a NOT IN (1) = b` is written `NOT a IN (1) = b`, which means another thing.
        return exp.Paren(this=node.copy())
    if isinstance(node, exp.Join) and node.args.get("kind") == "INNER":
        node.set("kind", None)
    while (
        isinstance(node, exp.Paren)
        and _stands_alone(node.this)
        and not isinstance(node.parent, (exp.Any, exp.All))
    ):
        node = node.this
    return node


def _ends_in_not(node: exp.Expression) -> bool:
    """Whether NOT is the last operator: it takes in a comparison that is written behind it."""
    while not isinstance(node, (exp.Not, exp.Paren)):
        last = node.args.get("expression" if isinstance(node, exp.Binary) else "this")
        if not isinstance(node, (exp.Binary, exp.Unary)) or not isinstance(last, exp.Expression):
            return False
        node = last
    return isinstance(node, exp.Not)


def _stands_alone(node: exp.Expression) -> bool:
    """Whether a node needs no parentheses, whatever stands beside it."""
    if isinstance(node, (exp.Binary, exp.Concat, exp.ConcatWs)):
        # AND, OR and some others are functions to sqlglot, and operators as written.
        return False
    return isinstance(node, (exp.Column, exp.Literal, exp.Func, exp.Paren))
