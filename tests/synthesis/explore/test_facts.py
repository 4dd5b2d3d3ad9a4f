"""What is known of a database before queries are drawn from it."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path

import pytest
from synthesis.concerts import make_concerts

from sense_trl.database.duckdb_engine import DuckDBEngine
from sense_trl.database.engine import ColumnInfo, ForeignKeyInfo, TableInfo
from sense_trl.database.sqlite_engine import SQLiteEngine
from sense_trl.schema.graph import ColumnName
from sense_trl.schema.schema import DatabaseSchema
from sense_trl.synthesis.explore.facts import ColumnFacts, ColumnRole, get_database_facts


def test_roles_values_and_repeats(fresh_db: Callable[..., Path]) -> None:
    with SQLiteEngine(make_concerts(fresh_db)) as engine:
        facts = get_database_facts(engine)
    assert facts.num_rows == {
        "singer": 5,
        "song": 4,
        "stadium": 3,
        "concert": 4,
        "singer_in_concert": 6,
    }
    age = facts.columns[ColumnName("singer", "age")]
    assert (age.role, age.values, age.repeats) == (ColumnRole.NUMBER, (31, 25, 44, 52), True)
    assert not facts.columns[ColumnName("singer", "name")].repeats
    roles = {
        str(name): str(f.role)
        for name, f in facts.columns.items()
        if name.table in ("concert", "song")
    }
    assert roles == {
        "concert.concert_id": "key", "concert.theme": "text", "concert.held": "time", "concert.stadium_id": "key",
        "song.song_id": "key", "song.title": "text", "song.year": "number", "song.singer_id": "key",
    }  # fmt: skip


def test_values_tell_more_than_declared_types(fresh_db: Callable[..., Path]) -> None:
    script = (
        "CREATE TABLE t (a TEXT, b INT, c, quoted TEXT);"
        """INSERT INTO t VALUES ('2014-01-01', 'word', 2.5, "O'Neil"), ('2015-01-01', 'other', 3.0, 'plain'), (NULL, 'x', 1, ' spaced');"""
    )
    with SQLiteEngine(fresh_db(script)) as engine:
        facts = get_database_facts(engine)
    assert [(str(f.role), f.values) for f in facts.columns.values()] == [
        ("time", ("2014-01-01", "2015-01-01")),
        ("text", ("word", "other", "x")),
        ("number", (2.5, 3, 1)),
        # What a question would not give back is left out.
        ("text", ("plain",)),
    ]


def test_generated_columns_have_values(fresh_db: Callable[..., Path]) -> None:
    script = (
        "CREATE TABLE t (id INTEGER PRIMARY KEY, code TEXT AS ('S' || id), n INT);"
        "INSERT INTO t (id, n) VALUES (1, 5), (2, 7);"
    )
    with SQLiteEngine(fresh_db(script)) as engine:
        facts = get_database_facts(engine)
    assert [(str(name), f.values) for name, f in facts.columns.items()] == [
        ("t.id", (1, 2)),
        ("t.code", ("S1", "S2")),
        ("t.n", (5, 7)),
    ]


def test_a_list_or_a_struct_of_numbers_is_no_number(tmp_path: Path) -> None:
    duckdb = pytest.importorskip("duckdb")
    path = tmp_path / "nested.duckdb"
    with duckdb.connect(str(path)) as connection:
        connection.execute("CREATE TABLE t AS SELECT 3 AS n, [1, 2] AS l, {'a': 1} AS s")
    with DuckDBEngine(path) as engine:
        facts = get_database_facts(engine)
    assert [str(f.role) for f in facts.columns.values()] == ["number", "text", "text"]


def test_a_key_of_a_table_that_is_read_in_part_does_not_repeat(
    fresh_db: Callable[..., Path],
) -> None:
    script = (
        "CREATE TABLE t (id INTEGER PRIMARY KEY, rest INT);"
        "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 5000) INSERT INTO t SELECT i, i % 3 FROM n;"
    )
    with SQLiteEngine(fresh_db(script)) as engine:
        facts = get_database_facts(engine)
    assert [f.repeats for f in facts.columns.values()] == [False, True]


def test_known_foreign_keys_are_added_unless_they_are_a_part_of_one(
    fresh_db: Callable[..., Path],
) -> None:
    script = (
        "CREATE TABLE section (course INT, semester INT); INSERT INTO section VALUES (1, 1), (1, 2), (2, 1);"
        "CREATE TABLE takes (semester INT, room INT); INSERT INTO takes VALUES (1, 1), (2, 2);"
        "CREATE TABLE room (no INT); INSERT INTO room VALUES (1), (2);"
    )

    def table(name: str, columns: str, *keys: ForeignKeyInfo) -> TableInfo:
        return TableInfo(
            name, tuple(ColumnInfo(c, "", False, 0) for c in columns.split()), keys, False
        )

    schema = DatabaseSchema(
        "d",
        "sqlite",
        (
            table("section", "course semester"),
            table("Room", "no"),
            table(
                "takes",
                "semester room",
                ForeignKeyInfo(("semester",), "section", ("semester",)),
                ForeignKeyInfo(("ROOM",), "Room", ("no",)),
                ForeignKeyInfo(("gone",), "Room", ("no",)),
            ),
        ),
    )
    with SQLiteEngine(fresh_db(script)) as engine:
        graph = get_database_facts(engine, schema=schema).graph
    assert [[str(c) for c in pair] for edge in graph.join_edges for pair in edge.pairs] == [
        ["takes.room", "room.no"]
    ]


@pytest.mark.parametrize("seed", range(20))
def test_drawn_values_occur_and_bounds_leave_some_on_both_sides(seed: int) -> None:
    facts = ColumnFacts(ColumnName("t", "c"), ColumnRole.NUMBER, tuple(range(100)), repeats=False)
    rng = random.Random(seed)
    assert facts.draw_value(rng) in facts.values
    bound = facts.draw_bound(rng)
    assert isinstance(bound, int) and 20 <= bound < 80
    assert facts.draw_word(rng) is None
    texts = ColumnFacts(ColumnName("t", "c"), ColumnRole.TEXT, ("Old Hall", "a b"), repeats=False)
    assert texts.draw_word(rng) in (None, "Old", "Hall")
    empty = ColumnFacts(ColumnName("t", "c"), ColumnRole.TEXT, (), repeats=False)
    assert empty.draw_value(rng) is empty.draw_bound(rng) is empty.draw_word(rng) is None
