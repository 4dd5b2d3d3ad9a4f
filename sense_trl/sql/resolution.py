"""What the names in a query mean: `QueryNames` resolves tables, aliases and columns by scope.

It reads a schema but does not insist on it: a query with unknown names, a hidden star or a
double-quoted string is resolved as far as it goes. (sqlglot's `qualify` refuses such queries.)
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Final

from sqlglot import exp

__all__ = ["NamedColumn", "QueryNames", "Source", "get_from", "get_type_class"]


@dataclass(frozen=True, slots=True)
class NamedColumn:
    """A column as the schema writes it, with its declared type ("" where it is not known)."""

    name: str
    type: str = ""


@dataclass(frozen=True, slots=True, eq=False)
class Source:
    """One entry of a FROM clause.

    Attributes:
        name: what its columns are qualified by, in lower case.
        table: the table's name in lower case; "" for a subquery or a common table expression.
        columns: its columns by lower-case name; `None` where they are not known.
        node: where it stands in the tree.
    """

    name: str
    table: str
    columns: Mapping[str, NamedColumn] | None
    node: exp.Expression


class QueryNames:
    """Resolves the names of one query.

    Args:
        tree: the parsed query. It must not change while this object is in use.
        columns: table to column to declared type; `None` if the schema is not known.

    Attributes:
        has_schema: whether the schema is known.
        tables: the schema's columns by lower-case names of table and column.
        table_names: how the schema writes each lower-case name of a table.
    """

    def __init__(
        self, tree: exp.Expression, columns: Mapping[str, Mapping[str, str]] | None = None
    ) -> None:
        self._tree = tree
        self.has_schema = columns is not None
        self.tables: Final = {
            table.lower(): {name.lower(): NamedColumn(name, type_) for name, type_ in own.items()}
            for table, own in (columns or {}).items()
        }
        self.table_names: Final = {table.lower(): table for table in columns or {}}
        self._ctes = {cte.alias.lower(): cte for cte in tree.find_all(exp.CTE)}
        self._sources: dict[int, tuple[Source, ...]] = {}
        self._open: set[int] = set()

    def sources(self, select: exp.Expression | None) -> tuple[Source, ...]:
        """The entries of the FROM clause of one SELECT, in the order they are written."""
        if not isinstance(select, exp.Select):
            return ()
        found = self._sources.get(id(select))
        if found is None:
            found = tuple(self._make_sources(select))
            self._sources[id(select)] = found
        return found

    def resolve(self, column: exp.Column) -> Source | None:
        """The source a column comes from: the innermost scope that has it.

        `None` for a string in double quotes, an alias of a result column and an unknown name. Of
        several sources that hold an unqualified name, the first (they may be joined by USING).
        """
        name, qualifier = column.name.lower(), column.table.lower()
        for select in _enclosing_selects(column):
            sources = self.sources(select)
            if qualifier:
                fitting = [source for source in sources if source.name == qualifier]
            else:
                fitting = [s for s in sources if s.columns is not None and name in s.columns]
                if not fitting and not self._is_quoted(column):
                    hidden = [s for s in sources if s.columns is None]
                    fitting = hidden if len(hidden) == 1 else []
            if fitting:
                return fitting[0]
        return None

    def is_string(self, column: exp.Expression) -> bool:
        """Whether SQLite takes this quoted word for a string, there being no such column."""
        return (
            isinstance(column, exp.Column)
            and self._is_quoted(column)
            and self.resolve(column) is None
            and not self.is_alias(column)
        )

    def is_alias(self, column: exp.Column) -> bool:
        """Whether an unqualified name is that of a result column of its own SELECT."""
        select = column.parent_select
        if column.table or not isinstance(select, exp.Select):
            return False
        name = column.name.lower()
        return any(
            isinstance(projection, exp.Alias) and projection.alias.lower() == name
            for projection in select.expressions
        )

    def type_class(self, column: exp.Expression) -> str:
        """The class of a column's declared type (see `get_type_class`); "" if unknown."""
        if not isinstance(column, exp.Column):
            return ""
        source = self.resolve(column)
        if source is None or source.columns is None:
            return ""
        found = source.columns.get(column.name.lower())
        return "" if found is None else get_type_class(found.type)

    def outputs(self, query: exp.Expression | None) -> dict[str, NamedColumn] | None:
        """The result columns of a query by lower-case name; `None` where a star hides them."""
        while isinstance(query, (exp.Subquery, exp.Paren, exp.SetOperation)):
            query = query.this
        if not isinstance(query, exp.Select) or id(query) in self._open:
            return None
        found: dict[str, NamedColumn] = {}
        # A recursive expression names itself.
        self._open.add(id(query))
        try:
            for projection in query.expressions:
                if projection.is_star and not isinstance(projection, exp.AggFunc):
                    for source in self.sources(query):
                        if source.columns is None:
                            return None
                        found.update(source.columns)
                    continue
                name = projection.alias_or_name or projection.sql()
                type_ = ""
                value = projection.unalias()
                if isinstance(value, exp.Column):
                    origin = self.resolve(value)
                    if origin is not None and origin.columns is not None:
                        type_ = origin.columns.get(value.name.lower(), NamedColumn("")).type
                found[name.lower()] = NamedColumn(name, type_)
        finally:
            self._open.discard(id(query))
        return found

    def _make_sources(self, select: exp.Select) -> Iterator[Source]:
        clause = get_from(select)
        nodes = [] if clause is None else [clause.this]
        for join in select.args.get("joins") or []:
            nodes.append(join.this)
        for node in nodes:
            yield from self._make_source(node)

    def _make_source(self, node: exp.Expression) -> Iterator[Source]:
        if isinstance(node, exp.Table):
            table = node.name.lower()
            name = (node.alias or table).lower()
            cte = self._ctes.get(table)
            if cte is not None and not self._is_inside(node, cte):
                yield Source(name, "", self._cte_columns(cte), node)
            elif self.has_schema:
                # An unknown table has no known columns, rather than none at all.
                yield Source(name, table, self.tables.get(table), node)
            else:
                yield Source(name, table, None, node)
            # "FROM (a JOIN b)" hangs the joins on the table.
            for join in node.args.get("joins") or []:
                yield from self._make_source(join.this)
        elif isinstance(node, (exp.Subquery, exp.Paren)):
            if isinstance(node.this, exp.Table):
                yield from self._make_source(node.this)
            else:
                yield Source(node.alias.lower(), "", self.outputs(node), node)

    def _cte_columns(self, cte: exp.Expression) -> dict[str, NamedColumn] | None:
        names = cte.args["alias"].args.get("columns") or []
        if names:
            return {name.name.lower(): NamedColumn(name.name) for name in names}
        return self.outputs(cte.this)

    @staticmethod
    def _is_inside(node: exp.Expression, ancestor: exp.Expression) -> bool:
        parent = node.parent
        while parent is not None and parent is not ancestor:
            parent = parent.parent
        return parent is ancestor

    @staticmethod
    def _is_quoted(column: exp.Column) -> bool:
        return (
            not column.table
            and isinstance(column.this, exp.Identifier)
            and bool(column.this.quoted)
        )


def get_from(select: exp.Expression) -> exp.From | None:
    """The FROM clause of a SELECT, under the name that this version of sqlglot gives it."""
    clause = select.args.get("from_") or select.args.get("from")
    return clause if isinstance(clause, exp.From) else None


def get_type_class(declared: str) -> str:
    """ "number", "text", "time", "boolean" or "other" for a declared type.

    Example:
        >>> [get_type_class(name) for name in ("VARCHAR(20)", "int", "NUMERIC(4,2)", "datetime")]
        ['text', 'number', 'number', 'time']
    """
    upper = declared.upper()
    for name, words in _TYPE_WORDS:
        if any(word in upper for word in words):
            return name
    return "other"


# In this order: DATETIME before the INT of "POINT", BOOLEAN before anything else.
_TYPE_WORDS: Final = (
    ("boolean", ("BOOL", "BIT")),
    ("time", ("DATE", "TIME", "YEAR")),
    ("text", ("CHAR", "TEXT", "CLOB", "STRING", "UUID")),
    ("number", ("INT", "REAL", "FLOA", "DOUB", "NUM", "DEC", "MONEY")),
)


def _enclosing_selects(node: exp.Expression) -> Iterator[exp.Expression]:
    """The SELECTs whose sources a column may mean, from the innermost outwards."""
    parent = node.parent
    is_visible = True
    while parent is not None and not isinstance(parent, exp.CTE):
        if isinstance(parent, exp.Select):
            if is_visible:
                yield parent
            is_visible = True
        elif isinstance(parent, exp.Subquery) and isinstance(parent.parent, (exp.From, exp.Join)):
            # A subquery in FROM does not see the tables beside it.
            is_visible = False
        parent = parent.parent
