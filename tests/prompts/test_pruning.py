"""A schema without what a question does not seem to need."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from schema_cases import make_table

from sense_trl.errors import InputError
from sense_trl.prompts.name_linker import NameLinker
from sense_trl.prompts.pruning import SchemaPruner, prune_schema
from sense_trl.prompts.value_index import ValueMatch
from sense_trl.schema import DatabaseSchema, format_schema

FILLER = " ".join(f"filler_{i}" for i in range(12))
SCHEMA = DatabaseSchema(
    "shop",
    "sqlite",
    (
        make_table("Customer", f"id name City {FILLER}"),
        make_table("purchase", f"id customer_id day {FILLER}", customer_id="customer"),
        make_table("item", f"id purchase_id product_id {FILLER}", purchase_id="purchase", product_id="product"),
        make_table("product", f"id title price {FILLER}"),
        make_table("weather", f"id day rain {FILLER}"),
    ),
)  # fmt: skip
ITEMS = [
    (t.name.lower(), c) for t in SCHEMA.tables for c in ("", *(c.name.lower() for c in t.columns))
]


def shown(schema: DatabaseSchema) -> dict[str, list[str]]:
    return {t.name: [c.name for c in t.columns] for t in schema.tables}


def test_the_best_tables_and_columns_stay_with_their_keys() -> None:
    scores = {("product", ""): 0.9, ("product", "price"): 0.8, ("item", "filler_3"): 0.3}
    pruned = prune_schema(SCHEMA, scores, max_tables=2, max_columns=1)
    # Of `item` its column, its key, and the one to `product`; the one to `purchase` joins nothing.
    assert shown(pruned) == {"item": ["id", "product_id", "filler_3"], "product": ["id", "price"]}
    assert [key.columns for _, key in pruned.foreign_keys] == [("product_id",)]


def test_tables_between_come_along() -> None:
    scores = {("customer", "name"): 0.9, ("product", "title"): 0.8}
    # They do not take the places of tables that a question is about.
    for limit in (2, 3, 4):
        pruned = prune_schema(SCHEMA, scores, max_tables=limit, max_columns=1)
        names = ["Customer", "purchase", "item", "product"]
        # Beyond those with scores and what lies between, a third brings what is left.
        assert list(shown(pruned)) == names + ["weather"] * (limit > 2)
    assert list(shown(prune_schema(SCHEMA, scores, max_tables=1))) == ["Customer"]


def test_below_a_threshold_only_the_best_table_stays() -> None:
    scores = {("product", ""): 0.9, ("product", "price"): 0.8, ("weather", "rain"): 0.4}
    assert shown(prune_schema(SCHEMA, scores, threshold=0.5)) == {"product": ["id", "price"]}
    everything = prune_schema(SCHEMA, scores, threshold=0.1)
    assert shown(everything) == {"product": ["id", "price"], "weather": ["id", "rain"]}
    assert len(prune_schema(SCHEMA, {}, threshold=0.5).tables) == 1


def test_small_schemas_stay_whole() -> None:
    assert prune_schema(SCHEMA, {}, min_columns=75) is SCHEMA
    assert prune_schema(SCHEMA, {}, min_columns=74) is not SCHEMA


def test_named_values_and_what_gold_needs_stay() -> None:
    match = ValueMatch("weather", "filler_7", "storm", 1.0)
    kept = [("purchase", ""), ("purchase", "filler_9")]
    scores = {("product", "price"): 0.5}
    pruned = prune_schema(
        SCHEMA, scores, max_tables=2, max_columns=1, matches=[match], kept=kept
    )  # fmt: skip
    assert set(shown(pruned)) == {"purchase", "product", "weather"}
    assert "filler_7" in shown(pruned)["weather"]
    assert "filler_9" in shown(pruned)["purchase"]


@settings(max_examples=40)
@given(
    st.dictionaries(st.sampled_from(ITEMS), st.floats(0, 1), max_size=12),
    st.integers(1, 5),
    st.integers(1, 6),
    st.none() | st.floats(0, 1),
    st.sets(st.sampled_from(ITEMS), max_size=4),
)
def test_what_stays_is_a_part_with_all_that_is_kept(
    scores: dict[tuple[str, str], float],
    max_tables: int,
    max_columns: int,
    threshold: float | None,
    kept: set[tuple[str, str]],
) -> None:
    pruned = prune_schema(
        SCHEMA,
        scores,
        max_tables=max_tables,
        max_columns=max_columns,
        threshold=threshold,
        kept=kept,
    )
    there = {(t.name.lower(), c.name.lower()) for t in pruned.tables for c in t.columns}
    tables = {t.name.lower() for t in pruned.tables}
    assert there <= set(ITEMS)
    assert {key for key in kept if key[1]} <= there
    assert {name for name, _ in kept} <= tables
    # Two more lie between two at most.
    assert 1 <= len(tables) <= 3 * max_tables - 2 + len({name for name, _ in kept})
    assert all((name, "id") in there for name in tables)
    # Every key that is left has both ends.
    for name, column, other, referenced in pruned.foreign_key_columns:
        if other in tables:
            assert {(name.lower(), column), (other, referenced)} <= there


def test_a_pruner_says_what_it_leaves_out() -> None:
    pruner = SchemaPruner(
        SCHEMA, NameLinker(SCHEMA), write=format_schema, max_tables=1, max_columns=2
    )
    choice = pruner.choose("how much rain fell on that day?")
    assert shown(choice.schema) == {"weather": ["id", "day", "rain"]}
    assert choice.text == "weather(id, day, rain)"
    assert choice.left_out_tables == ("Customer", "purchase", "item", "product")
    assert choice.num_left_out_columns == 12
    small = DatabaseSchema("d", "sqlite", SCHEMA.tables[:2])
    assert (
        SchemaPruner(small, NameLinker(small), write=format_schema).choose("rain").schema == small
    )


@pytest.mark.parametrize("name", ["max_tables", "max_columns"])
def test_limits_are_checked(name: str) -> None:
    with pytest.raises(InputError, match=f"`{name}` is 0"):
        prune_schema(SCHEMA, {}, **{name: 0})  # type: ignore[arg-type]
