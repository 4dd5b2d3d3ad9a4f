"""`get_linking_labels`: the tables and columns that a query uses, as labels of its question."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from sqlglot import exp

from sense_trl.schema.schema import DatabaseSchema
from sense_trl.sql.parsing import parse_folded
from sense_trl.sql.resolution import QueryNames, SchemaNames, Source

ItemKey = tuple[str, str]
"""A table and a column of it, or a table and "", in lower case."""

# A star of a star of a star, and so on.
_MAX_DEPTH: Final = 20

# A query by identity, and the name that is looked for in it.
_Place = tuple[int, str]


@dataclass(frozen=True, slots=True)
class LinkingLabels:
    """What a query uses of a schema; all names in lower case.

    Attributes:
        tables: names of tables and views.
        columns: as (table, column).
        unresolved: names in the query that the schema does not have.
    """

    tables: frozenset[str]
    columns: frozenset[ItemKey]
    unresolved: tuple[str, ...] = ()

    @property
    def items(self) -> frozenset[ItemKey]:
        """Tables as (table, ""), and columns."""
        return self.columns | {(table, "") for table in self.tables}


def get_linking_labels(sql: str, schema: DatabaseSchema) -> LinkingLabels:
    """Find the tables and columns that a query uses, in any of its parts.

    Keys of joins count like other columns, also those of USING and NATURAL JOIN. A star needs its
    table and no column by name; a column that is read out of the star of a subquery or a common
    table expression is the one of the table inside. Views count as tables do: what they are made of
    is not looked at. Double-quoted words that are no columns are strings.

    Args:
        sql: the query, in the schema's dialect.
        schema: the database.

    Raises:
        SQLParseError: the text is not one statement.

    Example:
        >>> from sense_trl.database import ColumnInfo, TableInfo
        >>> columns = tuple(ColumnInfo(name, "", False, 0) for name in ("id", "name", "age"))
        >>> schema = DatabaseSchema("d", "sqlite", (TableInfo("pet", columns, (), False),))
        >>> labels = get_linking_labels("SELECT count(*) FROM pet WHERE age > 3", schema)
        >>> sorted(labels.items)
        [('pet', ''), ('pet', 'age')]
    """
    tree = parse_folded(sql, schema.dialect)
    known = {table.name: [column.name for column in table.columns] for table in schema.tables}
    return _Labeller(tree, SchemaNames.of(known), schema.dialect).label()


class _Labeller:
    def __init__(self, tree: exp.Expression, schema: SchemaNames, dialect: str) -> None:
        self._tree = tree
        self._schema = schema
        self._names = QueryNames(tree, schema, dialect=dialect)
        self._tables: set[str] = set()
        self._columns: set[ItemKey] = set()
        self._unresolved: dict[str, None] = {}

    def label(self) -> LinkingLabels:
        for select in self._tree.find_all(exp.Select):
            self._add_sources(select)
            self._add_joins(select)
        for column in self._tree.find_all(exp.Column):
            if not isinstance(column.this, exp.Star):
                self._add_column(column)
        # A column alone does not bring its table into a query, its FROM clause does.
        return LinkingLabels(
            frozenset(self._tables), frozenset(self._columns), tuple(self._unresolved)
        )

    def _add_sources(self, select: exp.Select) -> None:
        for source in self._names.sources(select):
            if source.table in self._schema.tables:
                self._tables.add(source.table)
            elif source.table and source.node.name:
                # A function has no name.
                self._unresolved[source.table] = None

    def _add_joins(self, select: exp.Select) -> None:
        """The columns of USING and NATURAL JOIN, on both sides."""
        sources = self._names.sources(select)
        for join in select.args.get("joins") or []:
            joined = [s for s in sources if s.node is join.this]
            if not joined:
                continue
            place = sources.index(joined[0])
            before = sources[:place]
            names = [identifier.name.lower() for identifier in join.args.get("using") or []]
            if str(join.args.get("method") or "").upper() == "NATURAL":
                own = joined[0].columns or {}
                names = [n for n in own if any(n in (s.columns or {}) for s in before)]
            for name in names:
                for source in [*joined, *before]:
                    if name in (source.columns or {}):
                        self._columns.update(self._trace(source, name))

    def _add_column(self, column: exp.Column) -> None:
        source = self._names.resolve(column)
        if source is None:
            if self._names.is_unknown(column):
                self._unresolved[column.sql()] = None
            return
        found = list(self._trace(source, column.name.lower()))
        self._columns.update(found)
        if not found and self._names.is_unknown(column):
            self._unresolved[column.sql()] = None

    def _trace(
        self, source: Source, name: str, depth: int = 0, seen: set[_Place] | None = None
    ) -> Iterator[ItemKey]:
        """The column of a table that a name of a source means, through the stars of queries."""
        if source.table:
            if name in self._schema.tables.get(source.table, {}):
                yield source.table, name
            return
        query = self._get_query(source)
        # Each query is looked into once, however many ways lead to it.
        seen = set() if seen is None else seen
        if depth >= _MAX_DEPTH or (id(query), name) in seen:
            return
        seen.add((id(query), name))
        for select in _get_selects(query):
            # What stands in a query by name is found there.
            if name in {p.alias_or_name.lower() for p in select.expressions if not p.is_star}:
                continue
            for projection in select.expressions:
                if not projection.is_star or isinstance(projection, exp.AggFunc):
                    continue
                qualifier = projection.table.lower() if isinstance(projection, exp.Column) else ""
                for inner in self._names.sources(select):
                    if not qualifier or inner.name == qualifier:
                        yield from self._trace(inner, name, depth + 1, seen)

    def _get_query(self, source: Source) -> exp.Expression | None:
        if isinstance(source.node, exp.Table):
            cte = self._names.get_cte(source.node)
            return None if cte is None else cte.this
        return source.node.this if isinstance(source.node, exp.Subquery) else None


def _get_selects(query: exp.Expression | None) -> list[exp.Select]:
    """A query without its parentheses; of a UNION and the like, both sides."""
    found, pending = [], [query]
    while pending:
        part = pending.pop()
        if isinstance(part, exp.SetOperation):
            pending += [part.expression, part.this]
        elif isinstance(part, exp.Subquery | exp.Paren):
            pending.append(part.this)
        elif isinstance(part, exp.Select):
            found.append(part)
    return found
