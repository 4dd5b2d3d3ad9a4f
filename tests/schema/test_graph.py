"""The graph of columns: its edges, its walks, its joins."""

import json
import random
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sense_trl.database.engine import ColumnInfo, ForeignKeyInfo, TableInfo
from sense_trl.errors import InputError
from sense_trl.schema import DatabaseSchema, load_spider_schemas
from sense_trl.schema.graph import ColumnName, SchemaGraph, count_cooccurrences, get_used_columns


def _table(
    name: str, columns: str, *keys: tuple[str, str, str], is_view: bool = False
) -> TableInfo:
    infos = tuple(ColumnInfo(column, "", False, 0) for column in columns.split())
    return TableInfo(name, infos, tuple(ForeignKeyInfo((c,), t, (r,)) for c, t, r in keys), is_view)


SCHEMA = DatabaseSchema(
    "concerts",
    "sqlite",
    (
        _table("Singer", "id name age"),
        _table("concert", "id year place", ("place", "Stadium", "id")),
        _table("sings", "singer concert", ("singer", "singer", "ID"), ("concert", "concert", "id")),
        _table("Stadium", "id city"),
        _table("unrelated", "note"),
        _table("old", "note", is_view=True),
    ),
)
NAME, AGE = ColumnName("Singer", "name"), ColumnName("Singer", "age")


def test_neighbours_share_a_table_or_a_key() -> None:
    graph = SchemaGraph(SCHEMA)
    assert [str(c) for c in graph.get_neighbours(ColumnName("Singer", "id"))] == [
        "Singer.name",
        "Singer.age",
        "sings.singer",
    ]
    assert graph.get_neighbours(ColumnName("unrelated", "note")) == ()
    assert ColumnName("old", "note") not in graph.columns


def test_seed_queries_are_counted_by_pair_of_columns() -> None:
    queries = [
        "SELECT T1.NAME FROM singer AS T1 JOIN sings AS T2 ON T1.id = T2.singer WHERE T1.age > 3 AND T1.age < 9",
        "SELECT name FROM Singer WHERE age IN (SELECT max(age) FROM singer)",
        "SELECT nothing FROM",
    ]
    counts = count_cooccurrences(queries, SCHEMA)
    # Once for each query, however often a query names them.
    assert counts[AGE, NAME] == 2
    assert counts[NAME, ColumnName("sings", "singer")] == 1
    graph = SchemaGraph(SCHEMA, seed_sql=queries)
    assert graph.get_weight(NAME, AGE) == graph.get_weight(AGE, NAME) == 2
    assert ColumnName("sings", "singer") in graph.get_neighbours(NAME)


def test_columns_without_a_join_are_no_neighbours() -> None:
    query = "SELECT name FROM singer WHERE name IN (SELECT note FROM unrelated)"
    assert len(get_used_columns(query, SCHEMA)) == 2
    note = ColumnName("unrelated", "note")
    graph = SchemaGraph(SCHEMA, seed_sql=[query] * 100)
    assert graph.get_neighbours(note) == ()
    # What is no edge has no part in where a walk starts.
    rng = random.Random(0)
    starts = Counter(graph.sample_weighted(rng, 1)[0] for _ in range(300))
    assert starts[note] < 100


def test_columns_far_apart_are_neighbours_where_seeds_use_them_together() -> None:
    city, age = ColumnName("Stadium", "city"), ColumnName("Singer", "age")
    graph = SchemaGraph(SCHEMA, seed_sql=["SELECT city FROM stadium UNION SELECT age FROM singer"])
    assert age in graph.get_neighbours(city) and city in graph.get_neighbours(age)


def test_the_weighted_walk_goes_by_one_plus_the_count() -> None:
    # From name: id with weight 1, age with weight 1 + 2.
    graph = SchemaGraph(
        DatabaseSchema("d", "sqlite", SCHEMA.tables[:1]),
        seed_sql=["SELECT name, age FROM singer"] * 2,
    )
    seen: Counter[tuple[ColumnName, ...]] = Counter()
    rng = random.Random(0)
    for _ in range(3000):
        walk = graph.sample_weighted(rng, 2, restart=0.0)
        if walk[0] == NAME:
            seen[walk] += 1
    assert seen[NAME, AGE] / seen.total() == pytest.approx(3 / 4, abs=0.04)
    # The start: 1 + the weights of its edges, of 1 + 3 + 3.
    assert seen.total() / 3000 == pytest.approx(3 / 7, abs=0.04)


def test_the_random_walk_is_uniform() -> None:
    graph = SchemaGraph(
        DatabaseSchema("d", "sqlite", SCHEMA.tables[:1]),
        seed_sql=["SELECT name, age FROM singer"] * 9,
    )
    rng = random.Random(0)
    seen = Counter(graph.sample_random_walk(rng, 2)[1] for _ in range(3000))
    assert all(count / 3000 == pytest.approx(1 / 3, abs=0.04) for count in seen.values())


def test_a_join_tree_goes_by_way_of_other_tables() -> None:
    tree = SchemaGraph(SCHEMA).get_join_tree(["Singer", "Stadium"])
    assert tree is not None
    assert [edge.table for edge in tree] == ["sings", "sings", "concert"]
    assert SchemaGraph(SCHEMA).get_join_tree(["Singer"]) == ()
    assert SchemaGraph(SCHEMA).get_join_tree(["Singer", "unrelated"]) is None


def test_foreign_keys_may_be_given() -> None:
    graph = SchemaGraph(
        SCHEMA,
        foreign_keys=[("UNRELATED", "NOTE", "singer", "name"), ("sings", "singer", "singer", "id")],
    )
    assert len(graph.join_edges) == 4
    assert len(graph.get_join_tree(["unrelated", "Singer"]) or ()) == 1


def test_unusable_arguments_are_named() -> None:
    graph, rng = SchemaGraph(SCHEMA), random.Random(0)
    with pytest.raises(InputError, match=r"sings\.singr -> singer\.id"):
        SchemaGraph(SCHEMA, foreign_keys=[("sings", "singr", "singer", "id")])
    with pytest.raises(InputError, match="no table with a column"):
        SchemaGraph(DatabaseSchema("d", "sqlite", SCHEMA.tables[-1:]))
    with pytest.raises(InputError, match="`num_columns` is 0"):
        graph.sample_random_walk(rng, 0)
    with pytest.raises(InputError, match="`restart` is 1"):
        graph.sample_weighted(rng, 2, restart=1)
    with pytest.raises(InputError, match="`min_columns` is 5"):
        graph.sample(rng, min_columns=5, max_columns=4)
    with pytest.raises(InputError, match="`weighted_share` is 2"):
        graph.sample(rng, weighted_share=2)
    with pytest.raises(InputError, match="'nowhere'"):
        graph.get_join_tree(["nowhere"])
    with pytest.raises(InputError, match="`tables` is empty"):
        graph.get_join_tree([])


@st.composite
def _graphs(draw: st.DrawFn) -> SchemaGraph:
    """Tables of one to three columns with keys drawn at random."""
    num_tables = draw(st.integers(1, 6))
    columns = [draw(st.integers(1, 3)) for _ in range(num_tables)]
    tables = []
    for table in range(num_tables):
        keys = draw(
            st.lists(
                st.tuples(st.integers(0, columns[table] - 1), st.integers(0, num_tables - 1)),
                max_size=2,
            )
        )
        tables.append(
            _table(
                f"t{table}",
                " ".join(f"c{i}" for i in range(columns[table])),
                *((f"c{own}", f"t{other}", "c0") for own, other in keys),
            )
        )
    return SchemaGraph(DatabaseSchema("d", "sqlite", tuple(tables)))


def _connected(graph: SchemaGraph) -> dict[str, set[str]]:
    """The slow obvious way: grow each table's set until nothing is added."""
    sets = {c.table: {c.table} for c in graph.columns}
    for _ in range(len(sets)):
        for edge in graph.join_edges:
            union = sets[edge.table] | sets[edge.referenced_table]
            for table in union:
                sets[table] = sets[table] | union
    return sets


@settings(max_examples=60)
@given(_graphs(), st.integers(0, 1000), st.data())
def test_samples_are_connected_and_trees_connect(
    graph: SchemaGraph, seed: int, data: st.DataObject
) -> None:
    drawn = graph.sample(random.Random(seed))
    assert drawn == graph.sample(random.Random(seed))
    assert len(set(drawn)) == len(drawn) <= 8
    sets = _connected(graph)
    assert sets[drawn[0].table].issuperset(c.table for c in drawn)
    tables = data.draw(st.lists(st.sampled_from(sorted(sets)), min_size=1, max_size=4, unique=True))
    tree = graph.get_join_tree(tables, random.Random(seed))
    assert (tree is not None) == sets[tables[0]].issuperset(tables)
    if tree is not None:
        joined = {tables[0]}
        for edge in tree:
            ends = {edge.table, edge.referenced_table}
            # Each edge adds one table: no cycle, nothing apart.
            assert len(ends & joined) == 1 and len(ends) == 2
            joined |= ends
        assert joined.issuperset(tables)


def test_seed_queries_of_spider_resolve(shared_data: Path) -> None:
    schemas = load_spider_schemas(shared_data / "spider" / "tables.json")
    lines = (shared_data / "spider" / "train.jsonl").read_text().splitlines()
    queries = [r["query"] for r in map(json.loads, lines) if r["db_id"] == "department_management"]
    graph = SchemaGraph(schemas["department_management"], seed_sql=queries)
    weight = graph.get_weight(
        ColumnName("department", "Department_ID"), ColumnName("management", "department_ID")
    )
    # Four joins, and one NOT IN (SELECT department_id FROM management).
    assert weight == 5
