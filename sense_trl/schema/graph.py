"""`SchemaGraph`: which columns belong together, to draw the part of a schema a query is about.

Nodes are columns. Two are neighbours if they are of one table, if one refers to the other, or if
seed queries use them together and their tables can be joined; the weight of an edge is the number
of seed queries that use both. After DB-Explore (arXiv 2503.04959), whose sizes, smoothing and
share of restarts are not published; the defaults here are ours.
"""

from __future__ import annotations

import random
from collections import Counter, deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Final, NamedTuple

from sqlglot import exp

from sense_trl.database.profile import ForeignKeyColumns
from sense_trl.errors import InputError
from sense_trl.schema.schema import DatabaseSchema
from sense_trl.sql.parsing import SQLParseError, parse_folded
from sense_trl.sql.resolution import QueryNames, SchemaNames

DEFAULT_RESTART: Final = 0.15


class ColumnName(NamedTuple):
    """A column and its table, as the schema writes them."""

    table: str
    column: str

    def __str__(self) -> str:
        return f"{self.table}.{self.column}"


@dataclass(frozen=True, slots=True)
class JoinEdge:
    """`columns` of `table` refer to `referenced_columns` of `referenced_table`, in this order."""

    table: str
    columns: tuple[str, ...]
    referenced_table: str
    referenced_columns: tuple[str, ...]

    @property
    def pairs(self) -> tuple[tuple[ColumnName, ColumnName], ...]:
        """The columns that a join on this edge sets equal."""
        return tuple(
            (ColumnName(self.table, own), ColumnName(self.referenced_table, other))
            for own, other in zip(self.columns, self.referenced_columns, strict=True)
        )

    def get_other(self, table: str) -> str:
        """The table at the other end."""
        return self.referenced_table if table == self.table else self.table


class SchemaGraph:
    """The columns of a database with what connects them.

    Args:
        schema: the database; views have no part in the graph.
        foreign_keys: references besides the declared ones, such as those of
            `infer_foreign_keys`. What names no column is an error.
        seed_sql: queries on this database, of the training split only: what an evaluation asks
            must not steer what is trained on. Texts that cannot be parsed count nothing.

    Raises:
        InputError: `foreign_keys` names a column that is not there, or the schema has no column.

    Example:
        >>> from sense_trl.database import ColumnInfo, ForeignKeyInfo, TableInfo
        >>> def table(name, columns, *keys):
        ...     infos = tuple(ColumnInfo(c, "int", False, c == "id") for c in columns)
        ...     return TableInfo(name, infos, keys, False)
        >>> key = ForeignKeyInfo(("owner",), "person", ("id",))
        >>> tables = (table("person", ["id", "age"]), table("pet", ["owner", "weight"], key))
        >>> graph = SchemaGraph(DatabaseSchema("pets", "sqlite", tables))
        >>> [str(column) for column in graph.get_neighbours(ColumnName("pet", "owner"))]
        ['person.id', 'pet.weight']
        >>> [edge.columns for edge in graph.get_join_tree(["person", "pet"])]
        [('owner',)]
    """

    def __init__(
        self,
        schema: DatabaseSchema,
        *,
        foreign_keys: Sequence[ForeignKeyColumns] = (),
        seed_sql: Iterable[str] = (),
    ) -> None:
        self.schema: Final = schema
        tables = [table for table in schema.tables if not table.is_view]
        self.columns: Final = tuple(
            ColumnName(table.name, column.name) for table in tables for column in table.columns
        )
        if not self.columns:
            raise InputError(f"`schema` {schema.db_id!r} has no table with a column.")
        self._spelling = {(c.table.lower(), c.column.lower()): c for c in self.columns}
        self.join_edges: Final = tuple(self._make_join_edges(foreign_keys))
        self._edges_of: dict[str, list[JoinEdge]] = {table.name: [] for table in tables}
        for edge in self.join_edges:
            self._edges_of[edge.table].append(edge)
            if edge.referenced_table != edge.table:
                self._edges_of[edge.referenced_table].append(edge)
        self._counts = count_cooccurrences(seed_sql, schema)
        self._neighbours = self._make_neighbours()
        self._start_weights = self._make_start_weights()

    def get_neighbours(self, column: ColumnName) -> tuple[ColumnName, ...]:
        """The columns next to one, in the order of the schema."""
        return self._neighbours[column]

    def get_weight(self, left: ColumnName, right: ColumnName) -> int:
        """The number of seed queries that use both columns."""
        return self._counts[min(left, right), max(left, right)]

    def get_join_edges(self, table: str) -> tuple[JoinEdge, ...]:
        """The edges that leave or reach a table."""
        return tuple(self._edges_of[table])

    # ------------------------------------------------------------------ sampling

    def sample_random_walk(
        self, rng: random.Random, num_columns: int, *, restart: float = DEFAULT_RESTART
    ) -> tuple[ColumnName, ...]:
        """Walk to neighbours drawn uniformly, from a column drawn uniformly.

        Args:
            rng: draws; the same state gives the same columns.
            num_columns: how many different columns to visit, >= 1; fewer where the walk cannot
                reach as many.
            restart: probability of going back to the start, in [0, 1).

        Returns:
            The columns in the order in which they were first visited.

        Raises:
            InputError: an argument is out of its range.
        """
        start = rng.choice(self.columns)
        return self._walk(rng, start, num_columns, restart, is_weighted=False)

    def sample_weighted(
        self, rng: random.Random, num_columns: int, *, restart: float = DEFAULT_RESTART
    ) -> tuple[ColumnName, ...]:
        """Walk to neighbours drawn by 1 + weight; see `sample_random_walk`.

        The start is drawn by 1 + the weights of all its edges. The 1 keeps what no seed query uses
        within reach (Laplace smoothing).
        """
        start = rng.choices(self.columns, self._start_weights)[0]
        return self._walk(rng, start, num_columns, restart, is_weighted=True)

    def sample(
        self,
        rng: random.Random,
        *,
        min_columns: int = 3,
        max_columns: int = 8,
        restart: float = DEFAULT_RESTART,
        weighted_share: float = 0.5,
    ) -> tuple[ColumnName, ...]:
        """Draw columns by one of the two walks.

        Args:
            rng: draws; the same state gives the same columns.
            min_columns: of the number of columns, which is drawn uniformly.
            max_columns: of the number of columns.
            restart: see `sample_random_walk`.
            weighted_share: probability of `sample_weighted`, in [0, 1].

        Raises:
            InputError: an argument is out of its range.
        """
        if not 1 <= min_columns <= max_columns:
            raise InputError(
                f"`min_columns` is {min_columns} and `max_columns` {max_columns}; expected "
                "1 <= min_columns <= max_columns."
            )
        if not 0 <= weighted_share <= 1:
            raise InputError(f"`weighted_share` is {weighted_share}; expected a share in [0, 1].")
        num_columns = rng.randint(min_columns, max_columns)
        walk = self.sample_weighted if rng.random() < weighted_share else self.sample_random_walk
        return walk(rng, num_columns, restart=restart)

    def _walk(
        self,
        rng: random.Random,
        start: ColumnName,
        num_columns: int,
        restart: float,
        *,
        is_weighted: bool,
    ) -> tuple[ColumnName, ...]:
        if num_columns < 1:
            raise InputError(f"`num_columns` is {num_columns}; expected at least 1.")
        if not 0 <= restart < 1:
            raise InputError(f"`restart` is {restart}; expected a probability in [0, 1).")
        wanted = self._count_reached(start, num_columns)
        visited = {start: None}
        here = start
        while len(visited) < wanted:
            if rng.random() < restart:
                here = start
                continue
            near = self._neighbours[here]
            weights = [1 + self.get_weight(here, other) for other in near] if is_weighted else None
            here = rng.choices(near, weights)[0]
            visited[here] = None
        return tuple(visited)

    def _count_reached(self, start: ColumnName, at_most: int) -> int:
        """Number of columns that a walk from one can visit, counted no further than `at_most`."""
        found = {start}
        pending = [start]
        while pending and len(found) < at_most:
            near = self._neighbours[pending.pop()]
            new = [other for other in near if other not in found]
            found.update(new)
            pending += new
        return min(len(found), at_most)

    # ------------------------------------------------------------------ joins

    def get_join_tree(
        self, tables: Sequence[str], rng: random.Random | None = None
    ) -> tuple[JoinEdge, ...] | None:
        """Edges that connect tables, by way of others where that is needed.

        The nearest of the tables that are left is attached first, by a shortest path, which takes
        at most twice as many edges as the smallest tree (Takahashi & Matsuyama, 1980).

        Args:
            tables: names as the schema writes them, at least one.
            rng: draws among several edges between two tables; the first one without it.

        Returns:
            Edges in an order in which each touches a table that is there already, the first of
            `tables` to begin with; () for one table, `None` if they are not connected.

        Raises:
            InputError: a table is not in the graph.
        """
        for table in tables:
            if table not in self._edges_of:
                raise InputError(f"`tables` names {table!r}; expected some of {[*self._edges_of]}.")
        if not tables:
            raise InputError("`tables` is empty; expected at least one name.")
        joined = {tables[0]}
        edges: list[JoinEdge] = []
        while not joined.issuperset(tables):
            path = self._find_path(joined, set(tables) - joined, rng)
            if path is None:
                return None
            edges += path
            joined |= {table for edge in path for table in (edge.table, edge.referenced_table)}
        return tuple(edges)

    def _find_path(
        self, sources: set[str], targets: set[str], rng: random.Random | None
    ) -> list[JoinEdge] | None:
        """A shortest path from one of `sources` to one of `targets`, in this direction."""
        came_by: dict[str, JoinEdge | None] = {
            table: None for table in self._edges_of if table in sources
        }
        pending = deque(came_by)
        while pending:
            table = pending.popleft()
            if table in targets:
                path = []
                while (edge := came_by[table]) is not None:
                    path.append(edge)
                    table = edge.get_other(table)
                return path[::-1]
            edges = list(self._edges_of[table])
            if rng is not None:
                rng.shuffle(edges)
            for edge in edges:
                other = edge.get_other(table)
                if other not in came_by:
                    came_by[other] = edge
                    pending.append(other)
        return None

    # ------------------------------------------------------------------ building

    def _make_join_edges(self, foreign_keys: Sequence[ForeignKeyColumns]) -> list[JoinEdge]:
        edges: dict[JoinEdge, None] = {}
        for table, key in self.schema.foreign_keys:
            edge = self._find_edge(table, key.columns, key.referenced_table, key.referenced_columns)
            # SQLite does not check what a declaration refers to.
            if edge is not None:
                edges[edge] = None
        for table, column, referenced_table, referenced in foreign_keys:
            edge = self._find_edge(table, (column,), referenced_table, (referenced,))
            if edge is None:
                raise InputError(
                    f"`foreign_keys` holds {table}.{column} -> {referenced_table}.{referenced}, "
                    f"which the schema of {self.schema.db_id!r} does not have."
                )
            edges[edge] = None
        return list(edges)

    def _find_edge(
        self, table: str, columns: Sequence[str], other: str, referenced: Sequence[str]
    ) -> JoinEdge | None:
        own = [self._spelling.get((table.lower(), column.lower())) for column in columns]
        far = [self._spelling.get((other.lower(), column.lower())) for column in referenced]
        own_found = [column for column in own if column is not None]
        far_found = [column for column in far if column is not None]
        if not own_found or len(own_found) < len(own) or len(far_found) < len(far):
            return None
        if len(own_found) != len(far_found):
            return None
        return JoinEdge(
            own_found[0].table,
            tuple(column.column for column in own_found),
            far_found[0].table,
            tuple(column.column for column in far_found),
        )

    def _make_neighbours(self) -> dict[ColumnName, tuple[ColumnName, ...]]:
        tables: dict[str, list[ColumnName]] = {}
        for column in self.columns:
            tables.setdefault(column.table, []).append(column)
        pairs = {pair for edge in self.join_edges for pair in edge.pairs}
        component = self._number_components()
        pairs |= {
            (left, right)
            for left, right in self._counts
            if component[left.table] == component[right.table]
        }
        far: dict[ColumnName, set[ColumnName]] = {column: set() for column in self.columns}
        for left, right in pairs:
            if left.table != right.table:
                far[left].add(right)
                far[right].add(left)
        order = {column: number for number, column in enumerate(self.columns)}
        neighbours = {}
        for column, others in far.items():
            near = [other for other in tables[column.table] if other != column]
            neighbours[column] = tuple(sorted([*near, *others], key=order.__getitem__))
        return neighbours

    def _make_start_weights(self) -> list[int]:
        """1 + the weights of all edges of each column."""
        totals = dict.fromkeys(self.columns, 1)
        for (left, right), count in self._counts.items():
            if right in self._neighbours[left]:
                totals[left] += count
                totals[right] += count
        return list(totals.values())

    def _number_components(self) -> dict[str, int]:
        """A number for each table, the same for those that joins connect."""
        numbers: dict[str, int] = {}
        for number, start in enumerate(self._edges_of):
            pending = [start]
            while pending:
                table = pending.pop()
                if table not in numbers:
                    numbers[table] = number
                    pending += [edge.get_other(table) for edge in self._edges_of[table]]
        return numbers


def get_used_columns(sql: str, schema: DatabaseSchema) -> frozenset[ColumnName]:
    """The columns of a schema's tables that a query uses, in any of its parts.

    Raises:
        SQLParseError: the text is not one statement.
    """
    tables = [table for table in schema.tables if not table.is_view]
    spelling = {
        (table.name.lower(), column.name.lower()): ColumnName(table.name, column.name)
        for table in tables
        for column in table.columns
    }
    tree = parse_folded(sql, schema.dialect)
    known = SchemaNames.of({t.name: [c.name for c in t.columns] for t in tables})
    names = QueryNames(tree, known, dialect=schema.dialect)
    found = set()
    for column in tree.find_all(exp.Column):
        source = names.resolve(column)
        if source is not None and (source.table, column.name.lower()) in spelling:
            found.add(spelling[source.table, column.name.lower()])
    return frozenset(found)


def count_cooccurrences(
    queries: Iterable[str], schema: DatabaseSchema
) -> Counter[tuple[ColumnName, ColumnName]]:
    """Count the queries that use both columns of a pair.

    Texts that cannot be parsed count nothing.

    Returns:
        Counts by pair; the columns of a pair are in alphabetical order.
    """
    counts: Counter[tuple[ColumnName, ColumnName]] = Counter()
    for sql in queries:
        try:
            used = get_used_columns(sql, schema)
        except SQLParseError:
            continue
        counts.update(combinations(sorted(used), 2))
    return counts
