"""Resolves the names in a query: `QueryNames` knows tables, aliases and columns by scope.

It reads a schema but does not insist on it: a query with unknown names, a hidden star or a
double-quoted string is resolved as far as it goes. (sqlglot's `qualify` refuses such queries.)
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from sqlglot import exp

from sense_trl.sql.parsing import get_text


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


@dataclass(frozen=True, slots=True)
class SchemaNames:
    """The names of a schema, to be looked up without regard to case.

    Attributes:
        tables: columns by lower-case names of table and column.
        written: how the schema writes each lower-case name of a table.
    """

    tables: Mapping[str, Mapping[str, NamedColumn]]
    written: Mapping[str, str]

    @classmethod
    def of(cls, columns: Mapping[str, Mapping[str, str] | Sequence[str]]) -> SchemaNames:
        """From column names by table, with their declared types or without."""
        tables = {}
        for table, own in columns.items():
            types = own if isinstance(own, Mapping) else dict.fromkeys(own, "")
            tables[table.lower()] = {
                name.lower(): NamedColumn(name, type_) for name, type_ in types.items()
            }
        return cls(tables, {table.lower(): table for table in columns})


class QueryNames:
    """Resolves the names of one query.

    Args:
        tree: the parsed query. It must not change while this object is in use.
        schema: the names of the schema; `None` if it is not known.
        dialect: of the query. Of "postgres" the names have to be those that the server reads; see
            `fold_names`.
    """

    def __init__(
        self,
        tree: exp.Expression,
        schema: SchemaNames | None = None,
        *,
        dialect: str = "sqlite",
    ) -> None:
        self.schema: Final = schema
        self.dialect: Final = dialect
        self._ctes = {cte.alias.lower(): cte for cte in tree.find_all(exp.CTE)}
        self._sources: dict[int, tuple[Source, ...]] = {}
        self._resolved: dict[int, Source | None] = {}
        self._open: set[int] = set()
        self._cte_outputs: dict[int, dict[str, NamedColumn] | None] = {}
        self._num_open_ctes = 0

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
        if id(column) not in self._resolved:
            self._resolved[id(column)] = self._find_source(column)
        return self._resolved[id(column)]

    def get_cte(self, table: exp.Expression) -> exp.CTE | None:
        """The common table expression that a name in a FROM clause means."""
        cte = self._ctes.get(table.name.lower())
        # A recursive expression names itself; below, that is a table without known columns.
        return None if cte is None or self._is_inside(table, cte) else cte

    def is_string(self, column: exp.Expression) -> bool:
        """Whether SQLite takes this quoted word for a string, there being no such column."""
        return (
            self.dialect != "postgres"
            and isinstance(column, exp.Column)
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

    def is_unknown(self, column: exp.Column) -> bool:
        """Whether an engine would refuse the name: no table in reach has such a column.

        Not where a table itself is not known, and not for a quoted word (see `is_string`).
        """
        if isinstance(column.this, exp.Star):
            return False
        name = column.name.lower()
        source = self.resolve(column)
        if source is None:
            reach = [s for select in _enclosing_selects(column) for s in self.sources(select)]
            is_hidden = any(s.columns is None for s in reach) and not column.table
            # A whole row goes by the name of its table.
            is_row = self.dialect != "sqlite" and name in {s.name for s in reach}
            is_word = self.dialect != "postgres" and self._is_quoted(column)
            return not (
                is_hidden
                or is_word
                or (is_row and not column.table)
                or self._is_result_name(column)
                or (name in _SYSTEM_COLUMNS and self.dialect == "postgres")
            )
        if source.columns is None:
            return False
        found = source.columns.get(name)
        if self.dialect == "postgres":
            is_known = found is not None and found.name == column.name
            return not is_known and name not in _SYSTEM_COLUMNS
        return found is None and name not in _ROW_NUMBERS

    def is_table(self, table: exp.Table) -> bool:
        """Whether the schema has a table, or the query an expression, of this name."""
        name = table.name.lower()
        if self.dialect == "postgres":
            known = {cte.alias for cte in self._ctes.values()}
            known |= {*(self.schema.written.values() if self.schema else ())}
            return table.name in known
        return name in self._ctes or (self.schema is not None and name in self.schema.tables)

    def is_ambiguous(self, column: exp.Column) -> bool:
        """Whether an unqualified name is that of several columns of one FROM clause."""
        if column.table or isinstance(column.this, exp.Star) or self._is_result_name(column):
            return False
        name = column.name.lower()
        for select in _enclosing_selects(column):
            having = [s for s in self.sources(select) if name in (s.columns or {})]
            if having:
                merged = any(
                    join.args.get("using") or join.args.get("method")
                    for join in select.args.get("joins") or []
                )
                return len(having) > 1 and not merged
        return False

    def _is_result_name(self, column: exp.Column) -> bool:
        """Whether a name may be that of a result column, of a SELECT or of a set operation."""
        if self.is_alias(column):
            return True
        node = column.parent
        while node is not None and not isinstance(node, exp.Select):
            if isinstance(node, exp.SetOperation):
                outputs = self.outputs(node)
                return outputs is None or column.name.lower() in outputs
            node = node.parent
        return False

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
                name = projection.alias_or_name or get_text(projection)
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

    def _find_source(self, column: exp.Column) -> Source | None:
        name, qualifier = column.name.lower(), column.table.lower()
        may_be_inner = False
        for select in _enclosing_selects(column):
            sources = self.sources(select)
            if qualifier:
                fitting = [source for source in sources if source.name == qualifier]
            else:
                fitting = [s for s in sources if s.columns is not None and name in s.columns]
                if not fitting and not self._is_quoted(column):
                    hidden = [s for s in sources if s.columns is None]
                    # Of one of several unknown tables, rather than of one further out.
                    fitting = hidden if len(hidden) == 1 and not may_be_inner else []
                    may_be_inner |= bool(hidden)
            if fitting:
                return fitting[0]
        return None

    def _make_sources(self, select: exp.Select) -> Iterator[Source]:
        clause = get_from(select)
        nodes = [] if clause is None else [clause.this]
        for join in select.args.get("joins") or []:
            nodes.append(join.this)
        for node in nodes:
            yield from self._make_source(node)

    def _make_source(self, node: exp.Expression) -> Iterator[Source]:
        if isinstance(node, exp.Table):
            # A function that gives a table has no name of its own.
            table = (node.name or get_text(node.this)).lower()
            name = (node.alias or table).lower()
            cte = self.get_cte(node)
            if cte is not None:
                yield Source(name, "", self._cte_columns(cte), node)
            else:
                # An unknown table has unknown columns, rather than none.
                known = None if self.schema is None else self.schema.tables.get(table)
                yield Source(name, table, known, node)
            # "FROM (a JOIN b)" hangs the joins on the table.
            for join in node.args.get("joins") or []:
                yield from self._make_source(join.this)
        elif isinstance(node, (exp.Subquery, exp.Paren)):
            if isinstance(node.this, exp.Table):
                yield from self._make_source(node.this)
            else:
                yield Source(node.alias.lower(), "", self.outputs(node), node)
        elif isinstance(node, exp.Lateral) and isinstance(node.this, exp.Subquery):
            yield Source(node.alias.lower(), "", self.outputs(node.this), node)
        elif isinstance(node, exp.UDTF):
            # What a function gives has columns that only the engine knows.
            yield Source(node.alias.lower(), "", None, node)

    def _cte_columns(self, cte: exp.Expression) -> dict[str, NamedColumn] | None:
        names = cte.args["alias"].args.get("columns") or []
        if names:
            return {name.name.lower(): NamedColumn(name.name) for name in names}
        if id(cte) not in self._cte_outputs:
            if self._num_open_ctes >= _MAX_OPEN_CTES:
                # One that is made of another, which is made of another, and so on.
                return None
            self._num_open_ctes += 1
            try:
                self._cte_outputs[id(cte)] = self.outputs(cte.this)
            finally:
                self._num_open_ctes -= 1
        return self._cte_outputs[id(cte)]

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
    if upper.endswith("]"):
        # An array.
        return "other"
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


_MAX_OPEN_CTES: Final = 20

# SQLite has them in every table.
_ROW_NUMBERS: Final = frozenset({"rowid", "oid", "_rowid_"})
# PostgreSQL has these.
_SYSTEM_COLUMNS: Final = frozenset({"ctid", "tableoid", "xmin", "xmax", "cmin", "cmax"})


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
