"""Queries that have several right answers: what to look for in the text of a query."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from typing import Final

import sqlglot
from sqlglot import exp

from sense_trl.sql.parsing import read_sql, unwrap, write_sql
from sense_trl.sql.plain_query import read_plain_query

_AGGREGATE: Final = re.compile(r"\b(?:avg|count|max|min|sum|total)\s*\(", re.IGNORECASE)
_GROUP: Final = re.compile(r"\bgroup\b", re.IGNORECASE)
# Aggregates whose value is the same in whatever order they see the rows of a group, but for the
# last bits of a sum of floats.
_ORDERLESS: Final = (
    exp.Avg, exp.Count, exp.Max, exp.Min, exp.Sum, exp.Median, exp.Stddev, exp.StddevPop,
    exp.StddevSamp, exp.Variance, exp.VariancePop, exp.CountIf, exp.LogicalAnd, exp.LogicalOr,
    exp.PercentileCont, exp.PercentileDisc, exp.Quantile,
)  # fmt: skip
# Window functions that give one value to rows that tie.
_RANKS: Final = (exp.Rank, exp.DenseRank, exp.PercentRank, exp.CumeDist)
# Functions that sqlglot does not count among the aggregates, or does not know.
_PICKING: Final = (exp.Anonymous, exp.JSONArrayAgg, exp.JSONObjectAgg, exp.JSONBObjectAgg)
# The nodes that `depends_on_scan_order` has a look at.
_CHOOSING: Final = (
    exp.Limit, exp.Offset, exp.Fetch, exp.Distinct, exp.Window, *_PICKING, exp.AggFunc, exp.Select,
    exp.Subquery,
)  # fmt: skip
_ORDER_BY: Final = re.compile(r"\border\s+by\b", re.IGNORECASE)
_LIMIT: Final = re.compile(r"\blimit\b", re.IGNORECASE)
# Where these stand, the end of a text does not tell what its outermost query orders by.
_STRING: Final = re.compile(r"'[^']*'|\"[^\"]*\"|`[^`]*`")
_NOT_PLAIN: Final = re.compile(
    r"--|/\*|'|\"|`|\[|\b(?:over|offset|fetch|values|with|window)\b", re.IGNORECASE
)


def depends_on_scan_order(
    sql: str, dialect: str, *, but_for_outer_limit: bool = False, but_for_bare_columns: bool = False
) -> bool:
    """Whether the bag of rows may depend on the order in which tables are read.

    Answers no only where that is plain: no LIMIT (but for one in EXISTS), no DISTINCT ON, no
    window whose rows that tie have different values (`row_number`, `lag`, a sum by ROWS), no
    aggregate that keeps an order or picks a row (`group_concat`, `any_value`), no function that
    sqlglot does not know, no column that is neither grouped by nor aggregated, and no scalar
    subquery that could have several rows.

    Args:
        sql: the query.
        dialect: its dialect.
        but_for_outer_limit: leave LIMIT and OFFSET of the outermost query out of account.
        but_for_bare_columns: leave the columns out of account that `get_bare_column_queries`
            bounds.

    Raises:
        SQLParseError: the text is not one statement.

    Example:
        >>> depends_on_scan_order("SELECT a, count(*) FROM t GROUP BY a", "sqlite")
        False
        >>> depends_on_scan_order("SELECT a, b, count(*) FROM t GROUP BY a", "sqlite")
        True
    """
    plain = read_plain_query(sql)
    if plain is not None:
        # Only SQLite has bare columns.
        has_bare_columns = dialect == "sqlite" and bool(plain.bare_columns)
        return (plain.is_cut and not but_for_outer_limit) or (
            has_bare_columns and not but_for_bare_columns
        )
    tree = read_sql(sql, dialect)
    outermost = unwrap(tree)
    for node in tree.walk():
        if not isinstance(node, _CHOOSING):
            continue
        if isinstance(node, (exp.Limit, exp.Offset, exp.Fetch)):
            if isinstance(node.parent.parent, exp.Exists) and isinstance(node.parent, exp.Select):
                # One of the rows that are there, or none where there are none.
                continue
            if not (but_for_outer_limit and node.parent is outermost):
                return True
        elif isinstance(node, exp.Distinct):
            if node.args.get("on") is not None:
                return True
        elif isinstance(node, exp.Window):
            if _gives_tied_rows_different_values(node):
                return True
        elif isinstance(node, _PICKING):
            return True
        elif isinstance(node, exp.AggFunc):
            if _window_of(node) is None and not _is_orderless(node):
                return True
        elif isinstance(node, exp.Select):
            is_bounded = but_for_bare_columns and _is_bounded(node)
            # Only SQLite has them.
            if dialect == "sqlite" and not is_bounded and _has_bare_columns(node):
                return True
        elif isinstance(node, exp.Subquery) and may_be_scalar(node) and not has_one_row(node.this):
            return True
    return False


def get_choosing_subqueries(sql: str, dialect: str) -> list[str] | None:
    """The queries inside a query that take one of several rows, where nothing else does.

    Where each, run alone, has one answer in whatever order its tables are read, so has the whole.
    LIMIT and OFFSET of the outermost query are left out of account, and so are the columns that
    `get_bare_column_queries` bounds.

    Returns:
        Their texts; `None` where a query inside may mean something else alone, as it uses a CTE or
        a quoted word, or where a window, an aggregate, a bare column or DISTINCT ON may choose as
        well. One that uses columns of the query around it fails alone.

    Raises:
        SQLParseError: the text is not one statement.

    Example:
        >>> get_choosing_subqueries("SELECT a FROM t WHERE b = (SELECT b FROM u)", "sqlite")
        ['SELECT b FROM u']
    """
    tree = read_sql(sql, dialect)
    outermost = unwrap(tree)
    if tree.find(exp.With, exp.Window, *_PICKING) is not None or any(
        _is_string(column) for column in tree.find_all(exp.Column)
    ):
        return None
    found = []
    for node in tree.find_all(exp.Query, exp.AggFunc, exp.Distinct):
        if (
            (isinstance(node, exp.AggFunc) and not _is_orderless(node))
            or (isinstance(node, exp.Distinct) and node.args.get("on") is not None)
            or (isinstance(node, exp.Select) and _has_bare_columns(node) and not _is_bounded(node))
        ):
            return None
        if isinstance(node, (exp.Select, exp.SetOperation)) and (
            node is not outermost and _takes_the_first(node)
        ):
            found.append(write_sql(node, dialect))
    return found


def get_tie_breaking_queries(
    sql: str,
    dialect: str,
    *,
    but_for_outer_limit: bool = False,
    num_ordered_columns: int | None = None,
) -> tuple[str, str] | None:
    """Rewrite a query so that two answers show whether it decides between rows that tie.

    Where a query inside it is cut (LIMIT, OFFSET, DISTINCT ON, the first row of a scalar
    subquery), rows that tie under its ORDER BY, or all where it has none, come by their values:
    from the smallest on in the first text, from the largest on in the second. So do the rows of
    windows that number rows or look at their neighbours, and in DuckDB, where no order of reading
    shows it, the distinct values that an aggregate keeps and the most frequent ones that `mode`
    picks from.

    Args:
        sql: the query.
        dialect: its dialect.
        but_for_outer_limit: leave the cut of the outermost query as it is.
        num_ordered_columns: how many result columns the query has, to order the rows of the
            outermost query as well, whether it is cut or not.

    Returns:
        The two texts; `None` where there is nothing to break. What is selected by a star breaks no
        tie.

    Raises:
        SQLParseError: the text is not one statement.

    Example:
        >>> sql = "SELECT a FROM t WHERE b = (SELECT b FROM t ORDER BY c LIMIT 1)"
        >>> low, high = get_tie_breaking_queries(sql, "sqlite")
        >>> high
        'SELECT a FROM t WHERE b = (SELECT b FROM t ORDER BY c, 1 DESC LIMIT 1)'
    """
    if num_ordered_columns is not None and dialect == "sqlite":
        plain = _order_plain_text(sql, num_ordered_columns)
        if plain is not None:
            return plain
    tree = read_sql(sql, dialect)
    texts = []
    for largest_first in (False, True):
        rewritten = tree.copy()
        outermost = unwrap(rewritten)
        nodes = list(rewritten.find_all(exp.Query, exp.Window))
        picks = list(rewritten.find_all(exp.AggFunc)) if dialect == "duckdb" else []
        broken = [
            _break_ties(node, largest_first)
            for node in nodes
            if node is not outermost or not (but_for_outer_limit or num_ordered_columns)
        ]
        # From the inside out, as an aggregate may be replaced.
        broken += [_break_pick(node, largest_first) for node in reversed(picks)]
        if num_ordered_columns is not None:
            ordering = _find_ordering_query(outermost)
            columns = [None] * num_ordered_columns
            if ordering is not outermost:
                columns = _get_columns(ordering) or []
            keys = [exp.Literal.number(place) for place, _ in enumerate(columns, start=1)]
            _append_keys(ordering, keys, largest_first)
            broken.append(bool(keys))
        if not any(broken):
            return None
        texts.append(write_sql(rewritten, dialect))
    return texts[0], texts[1]


def _order_plain_text(sql: str, num_columns: int) -> tuple[str, str] | None:
    """Answer of `get_tie_breaking_queries` for a query that is plain enough to append to.

    Most predictions that are asked about are, and parsing takes far longer than running one.
    """
    text = sql.rstrip().rstrip(";")
    order, limit = list(_ORDER_BY.finditer(text)), list(_LIMIT.finditer(text))
    if len(order) > 1 or len(limit) > 1:
        return None
    clauses = min((found[0].start() for found in (order, limit) if found), default=len(text))
    end = limit[0].start() if limit else len(text)
    tail = text[clauses:]
    # In a subquery, or behind one that could take any of several rows.
    if tail.count("(") != tail.count(")") or text.lower().count("select") != 1:
        return None
    if _NOT_PLAIN.search(tail) or _NOT_PLAIN.search(_STRING.sub("", text)):
        return None
    if order and order[0].start() > end:
        return None
    texts = []
    for direction in ("", " DESC"):
        keys = ", ".join(f"{place}{direction}" for place in range(1, num_columns + 1))
        joint = ", " if order else " ORDER BY "
        texts.append(f"{text[:end].rstrip()}{joint}{keys} {text[end:]}".rstrip())
    return texts[0], texts[1]


def _break_ties(node: exp.Expression, largest_first: bool) -> bool:
    """Let rows that tie come by their values; whether there was something to do."""
    keys: list[exp.Expression]
    if isinstance(node, exp.Window):
        select = node.find_ancestor(exp.Select)
        if select is None or not _gives_tied_rows_different_values(node):
            return False
        values = [p.unalias() for p in select.expressions if p.find(exp.Window) is None]
        if not _is_grouped(select):
            values += _own(select, exp.Column)
        spelled = {_spelled(value): value for value in values if not value.is_star}
        keys = [v.copy() for v in spelled.values() if not isinstance(v, exp.Literal)]
    elif isinstance(node, (exp.Select, exp.SetOperation)) and _takes_the_first(node):
        recursive = node.find_ancestor(exp.With)
        columns = _get_columns(node)
        if columns is None or (recursive is not None and recursive.recursive):
            return False
        keys = [exp.Literal.number(place + 1) for place in range(len(columns))]
    else:
        return False
    if keys:
        _append_keys(node, keys, largest_first)
    return bool(keys)


def _break_pick(aggregate: exp.AggFunc, largest_first: bool) -> bool:
    """Let an aggregate of DuckDB that goes by its hash table go by values."""
    if _window_of(aggregate) is not None:
        return False
    values = aggregate.this
    if isinstance(values, exp.Distinct) and not _is_orderless(aggregate):
        ordered = exp.Order(this=values.copy(), expressions=[])
        for value in values.expressions:
            ordered.append(
                "expressions",
                exp.Ordered(this=value.copy(), desc=largest_first, nulls_first=not largest_first),
            )
        values.replace(ordered)
        return True
    if not isinstance(aggregate, exp.Mode) or values is None:
        return False
    value = values.this if isinstance(values, exp.Order) else values
    counts: exp.Expression = exp.Anonymous(this="HISTOGRAM", expressions=[value.copy()])
    whole = aggregate.parent if isinstance(aggregate.parent, exp.Filter) else aggregate
    if whole is not aggregate:
        counts = exp.Filter(this=counts, expression=whole.expression.copy())
    counted = f"({counts.sql('duckdb')})"
    most_frequent = (
        f"LIST_FILTER(MAP_KEYS{counted}, "
        f"LAMBDA picked: {counted}[picked] = LIST_MAX(MAP_VALUES{counted}))"
    )
    pick = "LIST_MAX" if largest_first else "LIST_MIN"
    whole.replace(sqlglot.parse_one(f"{pick}({most_frequent})", read="duckdb"))
    return True


def _find_ordering_query(query: exp.Expression) -> exp.Expression:
    """The query whose order the rows come in, where the outermost one just passes them on.

    SQL lets an ORDER BY inside a query go; SQLite and DuckDB keep it.
    """
    ctes = {cte.alias.lower(): cte.this for cte in query.find_all(exp.CTE)}
    seen: set[int] = set()
    while isinstance(query, exp.Select) and id(query) not in seen:
        seen.add(id(query))
        if query.args.get("order") is not None or any(
            query.args.get(part) for part in ("joins", "group", "distinct", "limit", "windows")
        ):
            break
        if next(_own(query, exp.AggFunc), None) or query.find(exp.Window):
            break
        source = query.args.get("from_")
        inner = source.this if source is not None else None
        if isinstance(inner, exp.Table):
            inner = ctes.get(inner.name.lower())
        elif isinstance(inner, exp.Subquery):
            inner = unwrap(inner.this)
        if inner is None or _has_no_order(inner, ctes):
            break
        query = inner
    return query


def _has_no_order(query: exp.Expression, ctes: dict[str, exp.Expression]) -> bool:
    return query.find(exp.Order) is None and not any(
        table.name.lower() in ctes for table in query.find_all(exp.Table)
    )


def _append_keys(node: exp.Expression, keys: Iterable[exp.Expression], largest_first: bool) -> None:
    order = node.args.get("order") or exp.Order(expressions=[])
    for key in keys:
        order.append(
            "expressions",
            exp.Ordered(this=key, desc=largest_first, nulls_first=not largest_first),
        )
    node.set("order", order)


def _takes_the_first(query: exp.Select | exp.SetOperation) -> bool:
    if query.args.get("limit") is not None or query.args.get("offset") is not None:
        return not isinstance(query.parent, exp.Exists)
    distinct = query.args.get("distinct")
    if isinstance(distinct, exp.Distinct) and distinct.args.get("on") is not None:
        return True
    around = query.parent
    return isinstance(around, exp.Subquery) and may_be_scalar(around) and not has_one_row(query)


def _get_columns(query: exp.Expression) -> list[exp.Expression] | None:
    """The result columns; `None` where a star hides how many there are."""
    while isinstance(query, (exp.SetOperation, exp.Subquery)):
        query = query.this
    columns = query.expressions if isinstance(query, exp.Select) else []
    return None if not columns or any(column.is_star for column in columns) else columns


def _gives_tied_rows_different_values(window: exp.Window) -> bool:
    function = window.this
    while isinstance(function, (exp.IgnoreNulls, exp.RespectNulls, exp.Filter)):
        function = function.this
    # The definition of a window with a name gives no value.
    if isinstance(function, (exp.Identifier, *_RANKS)):
        return False
    if not (isinstance(function, exp.AggFunc) and _is_orderless(function)):
        return True
    # A frame by RANGE or GROUPS, which is the default, ends behind the last row that ties.
    return any(_is_by_rows(definition) for definition in _get_definitions(window))


def _get_definitions(window: exp.Window) -> Iterator[exp.Expression]:
    """The window and those that it names, directly or through another."""
    yield window
    select = window.find_ancestor(exp.Select)
    named = {} if select is None else {w.name: w for w in select.args.get("windows") or []}
    found = named.pop(window.alias, None)
    while found is not None:
        yield found
        found = named.pop(found.alias, None)


def _is_by_rows(window: exp.Expression) -> bool:
    spec = window.args.get("spec")
    return spec is not None and str(spec.args.get("kind")).upper() == "ROWS"


def _window_of(node: exp.Expression) -> exp.Window | None:
    parent = node.parent
    while isinstance(parent, (exp.IgnoreNulls, exp.RespectNulls, exp.Filter)):
        parent = parent.parent
    return parent if isinstance(parent, exp.Window) else None


def _is_bounded(select: exp.Select) -> bool:
    """Whether `get_bare_column_queries` finds all there is to choose in a grouped query."""
    if _takes_the_row_of_an_extreme(select) or next(_own(select, exp.Query), None) is not None:
        return False
    has_star = any(column.is_star for column in select.expressions)
    return not has_star and not any(map(_is_string, _own(select, exp.Column)))


def get_bare_column_queries(sql: str, dialect: str) -> tuple[str, str] | None:
    """Rewrite a query so that two answers show whether its bare columns have one value per group.

    SQLite takes a column that is neither grouped by nor aggregated from any one row of its group.
    The rewritten queries take the smallest and the largest value instead (NULL and the largest
    where the group has NULL and something else): where they give the same rows, every choice
    gives them.

    Returns:
        The two texts; `None` where there is no such column, where a query's only aggregate is one
        MIN or MAX, whose row SQLite then takes the columns from, and in other dialects, which
        refuse such columns.

    Raises:
        SQLParseError: the text is not one statement. (Texts without aggregates and GROUP BY are
            answered without parsing.)

    Example:
        >>> low, high = get_bare_column_queries("SELECT a, b FROM t GROUP BY a", "sqlite")
        >>> low
        'SELECT a, CASE WHEN COUNT(b) = COUNT(*) THEN MIN(b) END FROM t GROUP BY a'
        >>> high
        'SELECT a, MAX(b) FROM t GROUP BY a'
    """
    if dialect != "sqlite" or not (_GROUP.search(sql) or _AGGREGATE.search(sql)):
        return None
    plain = read_plain_query(sql)
    if plain is not None:
        return _choose_by_text(sql, plain.bare_columns) if plain.bare_columns else None
    tree = read_sql(sql, dialect)
    if next(_all_bare_columns(tree), None) is None:
        return None
    texts = []
    for lowest in (True, False):
        rewritten = tree.copy()
        for column in list(_all_bare_columns(rewritten)):
            _replace(column, _smallest(column) if lowest else exp.Max(this=column.copy()))
        texts.append(write_sql(rewritten, dialect))
    return texts[0], texts[1]


def _choose_by_text(sql: str, columns: Sequence[tuple[int, int]]) -> tuple[str, str]:
    low = high = ""
    done = 0
    for start, end in columns:
        name, before = sql[start:end], sql[done:start]
        low += f"{before}CASE WHEN COUNT({name}) = COUNT(*) THEN MIN({name}) END"
        high += f"{before}MAX({name})"
        done = end
    return low + sql[done:], high + sql[done:]


def _smallest(column: exp.Expression) -> exp.Expression:
    complete = exp.EQ(this=exp.Count(this=column.copy()), expression=exp.Count(this=exp.Star()))
    return exp.Case(ifs=[exp.If(this=complete, true=exp.Min(this=column.copy()))])


def _replace(column: exp.Expression, value: exp.Expression) -> None:
    select = column.parent
    if isinstance(select, exp.Select) and select.parent is not None:
        # A result column keeps its name, which an outer query may use.
        value = exp.alias_(value, column.name, quoted=True)
    column.replace(value)


def _all_bare_columns(tree: exp.Expression) -> Iterator[exp.Expression]:
    for select in list(tree.find_all(exp.Select)):
        if not _takes_the_row_of_an_extreme(select):
            yield from _bare_columns(select)


def _takes_the_row_of_an_extreme(select: exp.Select) -> bool:
    aggregates = list(_own(select, exp.AggFunc))
    if not all(isinstance(aggregate, (exp.Max, exp.Min)) for aggregate in aggregates):
        return False
    # One that stands in the HAVING or ORDER BY as well is the same one, with a table or without.
    columns = [column for each in aggregates for column in each.find_all(exp.Column)]
    tables = {column.table.lower() for column in columns} - {""}
    bare = {
        _spelled(aggregate).replace(f"{next(iter(tables), '')}.", "") for aggregate in aggregates
    }
    return len(bare) == 1 and len(tables) < 2


def _has_bare_columns(select: exp.Select) -> bool:
    if not _is_grouped(select):
        return False
    if next(_bare_columns(select), None) is not None or next(_own(select, exp.Query), None):
        # A query inside may use columns of this one.
        return True
    # Which columns a star stands for, the schema says, and whether a quoted word is a column.
    has_star = any(column.is_star for column in select.expressions)
    return has_star or any(map(_is_string, _own(select, exp.Column)))


def _is_grouped(select: exp.Select) -> bool:
    return select.args.get("group") is not None or next(_own(select, exp.AggFunc), None) is not None


def _bare_columns(select: exp.Select) -> Iterator[exp.Expression]:
    """Columns outside aggregates that the grouping does not name (a subquery's are its own)."""
    if not _is_grouped(select):
        return
    group = select.args.get("group")
    keys = [] if group is None else [key.unnest() for key in group.expressions]
    names = {projection.alias.lower() for projection in select.expressions if projection.alias}
    # A key may be a number or an alias of a result column.
    for key in list(keys):
        if isinstance(key, exp.Literal) and key.this.isdigit():
            position = int(key.this) - 1
            if position < len(select.expressions):
                keys.append(select.expressions[position].unalias())
        elif isinstance(key, exp.Column) and key.name.lower() in names:
            keys += [p.unalias() for p in select.expressions if p.alias.lower() == key.name.lower()]
    columns = [key for key in keys if isinstance(key, exp.Column)]
    spelled = {_spelled(key) for key in keys if not isinstance(key, (exp.Column, exp.Literal))}
    for part in ("expressions", "having", "order"):
        for column in _own_in(select, select.args.get(part), exp.Column):
            if column.is_star or _is_string(column):
                continue
            if any(_may_be_one(column, key) for key in columns):
                continue
            if _stands_in(column, select, spelled):
                continue
            if part != "expressions" and not column.table and column.name.lower() in names:
                continue
            yield column


def _may_be_one(left: exp.Column, right: exp.Column) -> bool:
    """Whether two spellings may name one column: `a` may be `t.a`."""
    tables = {left.table.lower(), right.table.lower()} - {""}
    return left.name.lower() == right.name.lower() and len(tables) < 2


def _is_string(column: exp.Expression) -> bool:
    """A quoted word without a table may be a string to SQLite."""
    identifier = column.this
    return not column.table and isinstance(identifier, exp.Identifier) and bool(identifier.quoted)


def _stands_in(node: exp.Expression, select: exp.Select, spelled: set[str]) -> bool:
    """Whether a grouping expression or an aggregate of `select` stands around `node`."""
    inner: exp.Expression | None = node
    while inner is not None and inner is not select:
        if isinstance(inner, exp.AggFunc) or (spelled and _spelled(inner) in spelled):
            return True
        inner = inner.parent
    return False


def _spelled(node: exp.Expression) -> str:
    text: str = node.sql()
    return text.lower()


def _own(select: exp.Select, kind: type[exp.Expression]) -> Iterator[exp.Expression]:
    for part in ("expressions", "having", "order"):
        yield from _own_in(select, select.args.get(part), kind)


def _own_in(
    select: exp.Select, part: object, kind: type[exp.Expression]
) -> Iterator[exp.Expression]:
    """Nodes of a kind below `part` that do not belong to a query inside it."""
    for root in part if isinstance(part, list) else [part]:
        if isinstance(root, exp.Expression):
            for node in root.walk(prune=lambda node: isinstance(node, exp.Query)):
                if isinstance(node, kind) and _window_of(node) is None:
                    yield node


def _is_orderless(node: exp.AggFunc) -> bool:
    return isinstance(node, _ORDERLESS) and (
        # Over several columns: not an aggregate to SQLite.
        not node.expressions or isinstance(node, exp.Count)
    )


def may_be_scalar(subquery: exp.Subquery) -> bool:
    parent, part = subquery.parent, str(subquery.arg_key)
    if isinstance(parent, exp.In):
        # `a IN ((SELECT b FROM t))` takes one row.
        return part != "query" or isinstance(subquery.this, exp.Subquery)
    if isinstance(parent, exp.Join):
        return part != "this"
    return not isinstance(parent, (exp.From, exp.Exists, exp.SetOperation, exp.Subquery))


def has_one_row(query: exp.Expression) -> bool:
    return (
        isinstance(query, exp.Select)
        and query.args.get("group") is None
        and next(_own_in(query, query.expressions, exp.AggFunc), None) is not None
    )
