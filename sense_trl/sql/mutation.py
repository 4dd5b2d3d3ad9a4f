"""Plausible wrong neighbours of a query: `mutate_sql`."""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from sqlglot import exp

from sense_trl.errors import InputError
from sense_trl.sql.mutation_rules import RULES, Edit, MutationKind, Query
from sense_trl.sql.parsing import (
    SQLParseError,
    canonical_sql,
    parse_folded,
    quote_names,
    write_sql,
)
from sense_trl.sql.resolution import QueryNames, SchemaNames

__all__ = ["Mutant", "MutationKind", "mutate_sql"]


# Of 3,674 queries of Spider and BIRD the largest has 107 nodes. Rules look at every node from every
# other one.
_MAX_NODES: Final = 1_000
# Over all mutants: some seconds.
_MAX_WRITTEN_NODES: Final = 500_000


@dataclass(frozen=True, slots=True)
class Mutant:
    """One wrong neighbour of a query.

    Attributes:
        sql: its text.
        kind: what was changed.
    """

    sql: str
    kind: MutationKind


def mutate_sql(
    sql: str,
    dialect: str,
    *,
    columns: Mapping[str, Mapping[str, str]] | None = None,
    foreign_keys: Sequence[tuple[str, str, str, str]] = (),
    seed: int = 0,
    max_mutants: int | None = None,
) -> list[Mutant]:
    """Change one thing in a query, in every way in which models get it wrong.

    Each mutant differs from the query by a single mistake: another column of the same type, a
    neighbouring operator or literal, a condition, join, DISTINCT or LIMIT too few or too many
    (see `MutationKind`). All parse, no two have the same canonical text, and none has that of the
    query. Whether a mutant also gives other rows is not examined: keys can make it equivalent
    (`MutationKind.is_often_equivalent`), and so can the data.

    A query of more than 1,000 nodes has no mutants.

    With a schema, tables and columns are drawn from it and nearly all mutants execute; without,
    only names that the query itself uses are exchanged.

    Args:
        sql: one query.
        dialect: its dialect, such as "sqlite" or "duckdb".
        columns: declared type of each column, by table and column.
        foreign_keys: `(table, column, referenced table, referenced column)`, for joins.
        seed: draws alternatives where there are many; the same seed gives the same mutants.
        max_mutants: how many at most, spread over the kinds; all by default.

    Raises:
        SQLParseError: the text is not one statement.
        InputError: `max_mutants` is negative.

    Example:
        >>> columns = {"singer": {"name": "text", "country": "text", "age": "int"}}
        >>> sql = "SELECT name FROM singer WHERE age > 30"
        >>> for mutant in mutate_sql(sql, "sqlite", columns=columns, max_mutants=3):
        ...     print(mutant.kind, "|", mutant.sql)
        wrong_literal | SELECT name FROM singer WHERE age > 31
        wrong_column | SELECT country FROM singer WHERE age > 30
        select_column_added | SELECT name, country FROM singer WHERE age > 30
    """
    if max_mutants is not None and max_mutants < 0:
        raise InputError(f"`max_mutants` is {max_mutants!r}; expected 0 or more, or None.")
    tree = parse_folded(sql, dialect)
    num_nodes = sum(1 for _ in tree.walk())
    if num_nodes > _MAX_NODES:
        return []
    # Every node has a parent below this one, so that all are replaced alike.
    root = exp.Paren(this=tree)
    keys = tuple((a.lower(), b.lower(), c.lower(), d.lower()) for a, b, c, d in foreign_keys)
    # A string seeds by its bytes: the same in every process.
    canonical_gold = canonical_sql(sql, dialect)
    rng = random.Random(f"{seed}:{canonical_gold}".encode(errors="surrogatepass"))
    schema = None if columns is None else SchemaNames.of(columns)
    query = Query(tree, QueryNames(tree, schema, dialect=dialect), keys, rng)
    edits: Iterable[Edit] = [edit for rule in RULES for edit in rule(query)]
    if max_mutants is not None:
        edits = _take_turns(list(edits), rng)
    mutants: list[Mutant] = []
    seen = {canonical_gold}
    for edit in itertools.islice(edits, _MAX_WRITTEN_NODES // num_nodes):
        if max_mutants is not None and len(mutants) >= max_mutants:
            break
        try:
            text = _apply(edit, root, dialect)
            canonical = canonical_sql(text, dialect)
        except SQLParseError:
            continue
        if canonical not in seen:
            seen.add(canonical)
            mutants.append(Mutant(text, edit.kind))
    return mutants


def _take_turns(edits: list[Edit], rng: random.Random) -> Iterator[Edit]:
    """One edit of each kind, then the second of each, in a random order."""
    rng.shuffle(edits)
    by_kind: dict[MutationKind, list[Edit]] = {}
    for edit in edits:
        by_kind.setdefault(edit.kind, []).append(edit)
    queues = list(by_kind.values())
    while queues:
        for queue in queues:
            yield queue.pop()
        queues = [queue for queue in queues if queue]


def _apply(edit: Edit, root: exp.Expression, dialect: str) -> str:
    """The text of the tree with an edit; the tree is as before afterwards."""
    old: list[Any] = []
    for node, key, value in edit.settings:
        old.append(node.args.get(key))
        node.set(key, value)
    try:
        if dialect == "postgres":
            quote_names(root)
        return write_sql(root.this, dialect)
    finally:
        for (node, key, _), value in reversed(list(zip(edit.settings, old, strict=True))):
            node.set(key, value)
