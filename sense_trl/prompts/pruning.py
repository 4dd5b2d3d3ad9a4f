"""`prune_schema`: a schema without the tables and columns that a question does not seem to need."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Final

from sense_trl.database.engine import TableInfo
from sense_trl.errors import InputError
from sense_trl.prompts.linking import SchemaChoice, SchemaLinker, TableOrder, restrict_columns
from sense_trl.prompts.value_index import ValueMatch
from sense_trl.schema.naming import ColumnKey, get_key
from sense_trl.schema.schema import DatabaseSchema

MAX_TABLES: Final = 6
MAX_COLUMNS: Final = 10
"""Of each table; both are those of CodeS (arXiv 2402.16347)."""
_MIN_COLUMNS: Final = 30


def prune_schema(
    schema: DatabaseSchema,
    scores: Mapping[ColumnKey, float],
    *,
    max_tables: int = MAX_TABLES,
    max_columns: int = MAX_COLUMNS,
    threshold: float | None = None,
    matches: Sequence[ValueMatch] = (),
    kept: Collection[ColumnKey] = (),
    min_columns: int = _MIN_COLUMNS,
) -> DatabaseSchema:
    """Keep the tables and columns of the highest scores, and what joins them.

    Tables are ordered by their own score and those of their best columns; tables on a short path of
    foreign keys between two that stay come along. Of each table its best columns
    stay, and besides them primary keys and both ends of the foreign keys among what stays.

    Args:
        schema: the whole.
        scores: of columns, and of tables as (table, ""), in lower case; what has none has 0.
        max_tables: that stay, without `kept` and what lies between.
        max_columns: of each table, without keys, `matches` and `kept`.
        threshold: leave out tables and columns below this, too; the best table stays.
        matches: values that the question names: their columns stay.
        kept: columns, and tables as (table, ""), in lower case, that stay whatever their scores.
        min_columns: a schema of no more columns than this stays whole.

    Returns:
        Tables and columns in the order of the whole, with the keys among them.

    Raises:
        InputError: a number is below 1.

    Example:
        >>> from sense_trl.database import ColumnInfo, TableInfo
        >>> def table(name, *columns):
        ...     infos = tuple(ColumnInfo(c, "", False, int(c == "id")) for c in columns)
        ...     return TableInfo(name, infos, (), False)
        >>> tables = (table("pet", "id", "name", "age"), table("log", "id", "entry"))
        >>> pruned = prune_schema(
        ...     DatabaseSchema("d", "sqlite", tables),
        ...     {("pet", ""): 0.9, ("pet", "age"): 0.8},
        ...     max_tables=1,
        ...     max_columns=1,
        ...     min_columns=2,
        ... )
        >>> [(t.name, [c.name for c in t.columns]) for t in pruned.tables]
        [('pet', ['id', 'age'])]
    """
    for name, value in (("max_tables", max_tables), ("max_columns", max_columns)):
        if value < 1:
            raise InputError(f"`{name}` is {value}; expected at least 1.")
    if sum(len(table.columns) for table in schema.tables) <= min_columns:
        return schema
    names = [table.name.lower() for table in schema.tables]
    matched = {get_key(match.table, match.column) for match in matches}
    needed = {table for table, _ in kept}
    wanted = dict(scores)
    # A value that is named says as much as the best score.
    best = max(scores.values(), default=1.0)
    for key in matched:
        wanted[key] = max(wanted.get(key, 0.0), best)
    if threshold is not None:
        wanted = {key: score for key, score in wanted.items() if score >= threshold}
    limit = max_tables
    if threshold is not None:
        # Behind those with scores come neighbours and others.
        limit = min(max_tables, max(1, len({table for table, _ in wanted} & set(names))))
    chosen = TableOrder(schema).choose(wanted, limit) | needed
    forced = {*matched, *kept} | {
        end
        for table, column, other, referenced in schema.foreign_key_columns
        if {table.lower(), other.lower()} <= chosen
        for end in (get_key(table, column), get_key(other, referenced))
    }
    tables = []
    for table in schema.tables:
        if table.name.lower() in chosen:
            shown = _choose_columns(table, wanted, forced, max_columns, threshold is not None)
            tables.append(restrict_columns(table, shown))
    return replace(schema, tables=tuple(tables))


def _choose_columns(
    table: TableInfo,
    scores: Mapping[ColumnKey, float],
    forced: Collection[ColumnKey],
    max_columns: int,
    only_scored: bool,
) -> set[int]:
    """Positions of the columns that stay."""
    keys = [get_key(table.name, column.name) for column in table.columns]
    ranked = sorted(range(len(keys)), key=lambda i: -scores.get(keys[i], 0.0))
    shown = {i for i in ranked[:max_columns] if not only_scored or keys[i] in scores}
    return shown | {
        i
        for i, (key, column) in enumerate(zip(keys, table.columns, strict=True))
        if column.primary_key or key in forced
    }


class SchemaPruner:
    """Chooses the part of a schema for each question, by `prune_schema`.

    Args:
        schema: the whole.
        linker: what says how much a question is about a table or column.
        write: a schema as text.
        max_tables: see `prune_schema`.
        max_columns: likewise.
    """

    def __init__(
        self,
        schema: DatabaseSchema,
        linker: SchemaLinker,
        *,
        write: Callable[[DatabaseSchema], str],
        max_tables: int = MAX_TABLES,
        max_columns: int = MAX_COLUMNS,
    ) -> None:
        self._schema = schema
        self._linker = linker
        self._write = write
        self._prune = partial(prune_schema, schema, max_tables=max_tables, max_columns=max_columns)
        self._is_small = self._prune({}) is schema

    def choose(
        self,
        question: str,
        *,
        matches: Sequence[ValueMatch] = (),
        kept: Collection[ColumnKey] = (),
    ) -> SchemaChoice:
        """The part for a question; see `SchemaChooser.choose`."""
        if self._is_small:
            return SchemaChoice(self._schema, self._write(self._schema))
        scores = self._linker.score(question, matches)
        schema = self._prune(scores, matches=matches, kept=kept)
        shown = {table.name: len(table.columns) for table in schema.tables}
        left_out = tuple(t.name for t in self._schema.tables if t.name not in shown)
        num_columns = sum(
            len(table.columns) - shown[table.name]
            for table in self._schema.tables
            if table.name in shown
        )
        return SchemaChoice(schema, self._write(schema), left_out, num_columns)
