"""Several databases as one: names, keys, and which of them are joined."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sense_trl.database.engine import ColumnInfo, ForeignKeyInfo, TableInfo
from sense_trl.errors import InputError
from sense_trl.linking.pooling import draw_pools, join_schemas
from sense_trl.schema import DatabaseSchema


def make(db_id: str, *tables: str, dialect: str = "sqlite", **keys: str) -> DatabaseSchema:
    """Tables of one column, some with a key to another one."""
    column = (ColumnInfo("Id", "", False, 1),)
    return DatabaseSchema(
        db_id,
        dialect,
        tuple(
            TableInfo(
                name,
                column,
                (ForeignKeyInfo(("Id",), keys[name], ("Id",)),) if name in keys else (),
                False,
            )
            for name in tables
        ),
    )


def test_tables_of_one_name_get_that_of_their_database_and_keys_follow() -> None:
    pool = join_schemas(
        {
            "a": make("a", "Pet", "Owner", "sqlite_sequence", Pet="owner"),
            "b": make("b", "owner", "owner_a", "Visit", Visit="owner", owner="gone"),
        },
        "both",
    )
    assert [table.name for table in pool.schema.tables] == [
        "Pet", "Owner_a_", "owner_b", "owner_a", "Visit"
    ]  # fmt: skip
    assert pool.schema.foreign_key_columns == [
        ("Pet", "Id", "Owner_a_", "Id"),
        ("Visit", "Id", "owner_b", "Id"),
    ]
    assert (pool.schema.db_id, pool.schema.dialect) == ("both", "sqlite")
    items = [("owner", ""), ("owner", "id"), ("pet", "id"), ("sqlite_sequence", "")]
    assert pool.rename("a", items) == {("owner_a_", ""), ("owner_a_", "id"), ("pet", "id")}


@given(
    count=st.integers(2, 12),
    size=st.integers(2, 14),
    seed=st.integers(0, 3),
    tables=st.integers(1, 2),
)
def test_each_database_is_asked_about_in_one_pool_and_pools_are_as_wide(
    count: int, size: int, seed: int, tables: int
) -> None:
    names = [f"t{number}" for number in range(tables)]
    schemas = {f"d{number}": make(f"d{number}", *names) for number in range(count)}
    drawn = list(draw_pools(schemas, size, seed=seed))
    assert sorted(name for _, own in drawn for name in own) == sorted(schemas)
    for pool, own in drawn:
        joined = {db_id for db_id, _ in pool.names}
        assert joined >= set(own)
        assert len(joined) == min(size, count)
        found = [table.name.lower() for table in pool.schema.tables]
        assert len(set(found)) == len(found) == tables * len(joined)
    again = list(draw_pools(dict(reversed(schemas.items())), size, seed=seed))
    assert [pool.schema for pool, _ in again] == [pool.schema for pool, _ in drawn]
    assert len({pool.schema.db_id for pool, _ in drawn}) == len(drawn)


def test_databases_of_one_dialect_are_joined() -> None:
    schemas = {name: make(name, "t") for name in "ab"}
    others = {name: make(name, "t", dialect="duckdb") for name in "cd"}
    drawn = {pool.schema.dialect: set(own) for pool, own in draw_pools(schemas | others, 3)}
    assert drawn == {"sqlite": {"a", "b"}, "duckdb": {"c", "d"}}
    with pytest.raises(InputError, match="'c' is the only database for duckdb that the questions"):
        list(draw_pools(schemas | {"c": replace(others["c"])}, 2))
    with pytest.raises(InputError, match="`pooled_databases` is 1; expected 0, or at least 2"):
        list(draw_pools(schemas, 1))
