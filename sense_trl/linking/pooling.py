"""Schemas of several databases as one, as wide as those that a linker is needed for."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from sense_trl.errors import InputError
from sense_trl.linking.labels import ItemKey
from sense_trl.schema.schema import DatabaseSchema


@dataclass(frozen=True)
class Pool:
    """Databases as one.

    Attributes:
        schema: of all.
        names: the name in it of each table, by database and the name that it has there, in lower
            case.
    """

    schema: DatabaseSchema
    names: Mapping[tuple[str, str], str]

    def rename(self, db_id: str, items: Iterable[ItemKey]) -> set[ItemKey]:
        """Tables and columns of a database as they are called in the pool, those that are there."""
        return {
            (self.names[db_id, table].lower(), column)
            for table, column in items
            if (db_id, table) in self.names
        }


def join_schemas(schemas: Mapping[str, DatabaseSchema], name: str = "pool") -> Pool:
    """Databases as one; a table whose name is taken gets that of its database behind it.

    SQLite's own tables, which tables.json lists too, are left out.

    Args:
        schemas: at least one, of one dialect.
        name: of the pool.

    Example:
        >>> from sense_trl.database import TableInfo
        >>> pets = DatabaseSchema("pets", "sqlite", (TableInfo("Owner", (), (), False),))
        >>> cars = replace(pets, db_id="cars")
        >>> [table.name for table in join_schemas({"pets": pets, "cars": cars}).schema.tables]
        ['Owner_pets', 'Owner_cars']
    """
    tables = [
        (db_id, table)
        for db_id, schema in schemas.items()
        for table in schema.tables
        if not table.name.lower().startswith("sqlite_")
    ]
    count = Counter(table.name.lower() for _, table in tables)
    taken = {name for name, number in count.items() if number == 1}
    names: dict[tuple[str, str], str] = {}
    for db_id, table in tables:
        new = table.name
        if count[new.lower()] > 1:
            new = f"{new}_{db_id}"
            # A database may have such a table itself.
            while new.lower() in taken:
                new += "_"
            taken.add(new.lower())
        names[db_id, table.name.lower()] = new
    joined = tuple(
        replace(
            table,
            name=names[db_id, table.name.lower()],
            foreign_keys=tuple(
                replace(key, referenced_table=names[db_id, key.referenced_table.lower()])
                for key in table.foreign_keys
                # SQLite declares keys to tables that are not there.
                if (db_id, key.referenced_table.lower()) in names
            ),
        )
        for db_id, table in tables
    )
    dialect = next(iter(schemas.values())).dialect
    return Pool(DatabaseSchema(name, dialect, joined), names)


def draw_pools(
    schemas: Mapping[str, DatabaseSchema], size: int, *, seed: int = 0
) -> Iterator[tuple[Pool, Sequence[str]]]:
    """Join databases at random, each with its questions in one pool.

    Databases of one dialect are joined. Where they do not come out even, the last pool is filled up
    with databases that have been drawn already, so that all are as wide.

    Args:
        schemas: of the databases that are asked about.
        size: databases of a pool, at least 2; all where there are fewer.
        seed: of the order.

    Yields:
        Each pool, and the databases whose questions are for it.

    Raises:
        InputError: `size` is below 2, or a dialect has one database alone.
    """
    if size < 2:
        raise InputError(f"`pooled_databases` is {size}; expected 0, or at least 2.")
    for dialect in sorted({schema.dialect for schema in schemas.values()}):
        names = sorted(name for name, schema in schemas.items() if schema.dialect == dialect)
        if len(names) == 1:
            raise InputError(
                f"`pooled_databases` is {size}, but {names[0]!r} is the only database for "
                f"{dialect} that the questions ask about. Set it to 0, or add questions on others, "
                "such as those of Spider."
            )
        random.Random(seed).shuffle(names)
        for start in range(0, len(names), size):
            own = names[start : start + size]
            joined = [*own, *names[: max(0, min(size, len(names)) - len(own))]]
            pool = join_schemas({name: schemas[name] for name in joined}, f"pool {start}")
            yield pool, own
