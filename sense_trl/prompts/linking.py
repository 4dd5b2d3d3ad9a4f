"""`SchemaChooser`: the part of a wide schema that a question seems to be about.

A `SchemaLinker` scores tables and columns. Tables on the shortest path of foreign keys between
chosen ones come with them.
"""

from __future__ import annotations

import re
from collections import defaultdict, deque
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final, Protocol

from sense_trl.database.engine import TableInfo
from sense_trl.prompts.value_index import ValueMatch
from sense_trl.schema.naming import ColumnKey, get_key
from sense_trl.schema.schema import DatabaseSchema

# Columns whose scores make that of their table: more would favour wide tables.
_COUNTED_COLUMNS: Final = 3
# Tables between two chosen ones.
_MAX_BETWEEN: Final = 2
# A table that is cut to fewer tokens says little.
_MIN_TABLE_TOKENS: Final = 24
_IDENTIFIER: Final = re.compile(r"\w+")


class SchemaLinker(Protocol):
    """Says how much a question is about each part of a schema."""

    def score(self, question: str, matches: Sequence[ValueMatch]) -> Mapping[ColumnKey, float]:
        """Scores above 0 of columns, and of tables themselves as (table, ""), all in lower case.

        Args:
            question: with its evidence.
            matches: the values of the database that it names.
        """


@dataclass(frozen=True, slots=True)
class SchemaChoice:
    """A part of a schema.

    Attributes:
        schema: what is shown, in the order of the whole.
        text: as it is shown.
        left_out_tables: names of tables that are not shown at all.
        num_left_out_columns: of tables that are shown.
    """

    schema: DatabaseSchema
    text: str
    left_out_tables: tuple[str, ...] = ()
    num_left_out_columns: int = 0


class TableOrder:
    """The order in which tables of a schema are shown, by scores and foreign keys.

    Args:
        schema: the tables.
    """

    def __init__(self, schema: DatabaseSchema) -> None:
        self._neighbours: dict[str, set[str]] = {
            table.name.lower(): set() for table in schema.tables
        }
        for name, key in schema.foreign_keys:
            ends = name.lower(), key.referenced_table.lower()
            if ends[1] in self._neighbours:
                self._neighbours[ends[0]].add(ends[1])
                self._neighbours[ends[1]].add(ends[0])

    def sort(self, scores: Mapping[ColumnKey, float], needed: Sequence[str]) -> Iterable[str]:
        """Needed tables, then those with scores and what lies between, neighbours, and others.

        Args:
            scores: of columns, and of tables as (table, ""), in lower case.
            needed: names of tables, in lower case.
        """
        return (name for name, _ in self._sort(scores, needed))

    def choose(self, scores: Mapping[ColumnKey, float], limit: int) -> set[str]:
        """The first so many of `sort`, and besides them what lies between two of these."""
        chosen: set[str] = set()
        between: set[str] = set()
        for name, is_between in self._sort(scores, ()):
            if len(chosen) == limit:
                break
            if is_between:
                between.add(name)
            else:
                chosen |= {name, *between}
                limit += len(between)
                between = set()
        return chosen

    def _sort(
        self, scores: Mapping[ColumnKey, float], needed: Sequence[str]
    ) -> Iterator[tuple[str, bool]]:
        """Names of tables, and whether they come because they lie before the next one."""
        of_columns: dict[str, list[float]] = defaultdict(list)
        totals: dict[str, float] = {}
        for (table, column), score in scores.items():
            if table in self._neighbours:
                totals.setdefault(table, 0.0)
                if column:
                    of_columns[table].append(score)
                else:
                    totals[table] += score
        for table, found in of_columns.items():
            totals[table] += sum(sorted(found, reverse=True)[:_COUNTED_COLUMNS])
        yield from ((name, False) for name in needed)
        done = set(needed)
        for table in sorted(totals, key=lambda name: -totals[name]):
            for name in [*self._find_between(done, table), table]:
                if name not in done:
                    done.add(name)
                    yield name, name != table
        near = {other for name in done for other in self._neighbours[name]}
        yield from ((name, False) for name in self._neighbours if name in near - done)
        yield from ((name, False) for name in self._neighbours if name not in near | done)

    def _find_between(self, sources: Collection[str], target: str) -> list[str]:
        """The tables on a shortest path of keys from what is chosen; none if that is long."""
        if target in sources:
            return []
        came_by: dict[str, str | None] = dict.fromkeys(sources)
        lengths = dict.fromkeys(sources, 0)
        pending = deque(sorted(sources))
        while pending:
            name = pending.popleft()
            if lengths[name] > _MAX_BETWEEN:
                return []
            for other in sorted(self._neighbours[name]):
                if other == target:
                    path = []
                    at: str | None = name
                    while at is not None and at not in sources:
                        path.append(at)
                        at = came_by[at]
                    return path[::-1]
                if other not in came_by:
                    came_by[other] = name
                    lengths[other] = lengths[name] + 1
                    pending.append(other)
        return []


class SchemaChooser:
    """Chooses the part of a schema that fits into a number of tokens.

    Args:
        schema: the whole.
        linker: what says how much a question is about a table or column.
        max_tokens: of the text, > 0. Only what has to be kept may exceed it.
        count_tokens: the number of tokens of a text.
        write: a schema as text.
    """

    def __init__(
        self,
        schema: DatabaseSchema,
        linker: SchemaLinker,
        *,
        max_tokens: int,
        count_tokens: Callable[[str], int],
        write: Callable[[DatabaseSchema], str],
    ) -> None:
        self._schema = schema
        self._linker = linker
        self._max_tokens = max_tokens
        self._count_tokens = count_tokens
        self._write = write
        self._whole = SchemaChoice(schema, write(schema))
        self.num_tokens: Final = count_tokens(self._whole.text)
        self._tables = {table.name.lower(): table for table in schema.tables}
        self._order = TableOrder(schema)
        self._costs: dict[str, int] = {}
        self._column_costs: dict[str, list[int]] = {}

    @property
    def fits(self) -> bool:
        """Whether the whole schema does."""
        return self.num_tokens <= self._max_tokens

    def choose(
        self,
        question: str,
        *,
        matches: Sequence[ValueMatch] = (),
        kept: Collection[ColumnKey] = (),
    ) -> SchemaChoice:
        """The part for a question; the whole schema if it fits.

        Args:
            question: with its evidence.
            matches: values of the database that it names.
            kept: columns, and tables as (table, ""), in lower case, that are shown whatever it
                takes: those of the gold query, in training.
        """
        if self.fits:
            return self._whole
        scores = self._linker.score(question, matches)
        chosen = self._choose_tables(scores, frozenset(kept))
        while True:
            tables = tuple(chosen[name] for name in self._tables if name in chosen)
            schema = replace(self._schema, tables=tables)
            text = self._write(schema)
            excess = self._count_tokens(text) - self._max_tokens
            if excess <= 0 or not self._shrink(chosen, excess, scores, kept):
                break
        left_out = tuple(t.name for name, t in self._tables.items() if name not in chosen)
        num_columns = sum(len(self._tables[name].columns) for name in chosen)
        shown = sum(len(table.columns) for table in tables)
        return SchemaChoice(schema, text, left_out, num_columns - shown)

    # ------------------------------------------------------------------ tables

    def _choose_tables(
        self, scores: Mapping[ColumnKey, float], kept: Collection[ColumnKey]
    ) -> dict[str, TableInfo]:
        """Tables by name in the order of their importance, cut to columns where they have to be."""
        room = self._max_tokens
        scored = {table for table, _ in scores}
        chosen: dict[str, TableInfo] = {}
        needed = [name for name in self._tables if any(table == name for table, _ in kept)]
        for name in self._order.sort(scores, needed):
            if name in chosen:
                continue
            is_needed = name in needed
            cost = self._get_cost(name)
            table = self._tables[name]
            if cost > room:
                is_wanted = name in scored and room >= _MIN_TABLE_TOKENS
                if not (is_needed or is_wanted or not chosen):
                    continue
                table = self._cut(name, max(room, 0), scores, kept)
                cost = min(cost, max(room, 0))
                if not table.columns and not is_needed:
                    continue
            chosen[name] = table
            room -= cost
        return chosen

    def _get_cost(self, name: str) -> int:
        """Tokens of one table alone."""
        if name not in self._costs:
            alone = replace(self._schema, tables=(self._tables[name],))
            self._costs[name] = self._count_tokens(self._write(alone)) + 1
        return self._costs[name]

    # ------------------------------------------------------------------ columns

    def _cut(
        self,
        name: str,
        room: int,
        scores: Mapping[ColumnKey, float],
        kept: Collection[ColumnKey],
    ) -> TableInfo:
        """A table with as many columns as there is room for, the most important ones."""
        table = self._tables[name]
        costs = self._get_column_costs(name)
        keys = {column.lower() for key in table.foreign_keys for column in key.columns}
        ranks = []
        for position, column in enumerate(table.columns):
            key = get_key(name, column.name)
            is_key = bool(column.primary_key) or key[1] in keys
            ranks.append((key not in kept, -scores.get(key, 0.0) - is_key, position))
        shown = set()
        used = costs[-1]
        for rank in sorted(ranks):
            used += costs[rank[2]]
            if used > room and rank[0]:
                break
            shown.add(rank[2])
        return restrict_columns(table, shown)

    def _get_column_costs(self, name: str) -> list[int]:
        """Tokens of each column, and last those of the table without any."""
        if name not in self._column_costs:
            table = self._tables[name]

            def count(columns: Sequence[int]) -> int:
                part = restrict_columns(table, columns)
                return self._count_tokens(self._write(replace(self._schema, tables=(part,))))

            empty = count([])
            own = [max(1, count([i]) - empty + 1) for i in range(len(table.columns))]
            self._column_costs[name] = [*own, empty]
        return self._column_costs[name]

    def _shrink(
        self,
        chosen: dict[str, TableInfo],
        excess: int,
        scores: Mapping[ColumnKey, float],
        kept: Collection[ColumnKey],
    ) -> bool:
        """Take the least important part away; whether there was something that may go."""
        needed = {table for table, _ in kept}
        for name in reversed(list(chosen)):
            if name not in needed and len(chosen) > 1:
                del chosen[name]
                return True
        for name in reversed(list(chosen)):
            table = chosen[name]
            costs = self._get_column_costs(name)
            position = {column.name: i for i, column in enumerate(self._tables[name].columns)}
            used = costs[-1] + sum(costs[position[column.name]] for column in table.columns)
            smaller = self._cut(name, max(0, used - excess - 1), scores, kept)
            if len(smaller.columns) < len(table.columns):
                chosen[name] = smaller
                return True
        return False


def restrict_columns(table: TableInfo, positions: Collection[int]) -> TableInfo:
    """A table with some of its columns, by their positions, and the keys that these make."""
    columns = tuple(table.columns[position] for position in sorted(positions))
    names = {column.name.lower() for column in columns}
    keys = tuple(
        key for key in table.foreign_keys if names.issuperset(c.lower() for c in key.columns)
    )
    return replace(table, columns=columns, foreign_keys=keys)


def find_named_items(sql: str, schema: DatabaseSchema) -> set[ColumnKey]:
    """The tables, as (table, ""), and columns whose names stand in a query, in lower case.

    Too many rather than too few: a name counts wherever it stands.
    """
    text = sql.lower()
    words = set(_IDENTIFIER.findall(text))

    def is_named(name: str) -> bool:
        return name in words or (_IDENTIFIER.fullmatch(name) is None and name in text)

    found: set[ColumnKey] = set()
    for table in schema.tables:
        if is_named(table.name.lower()):
            found.add(get_key(table.name, ""))
            found |= {
                get_key(table.name, column.name)
                for column in table.columns
                if is_named(column.name.lower())
            }
    return found
