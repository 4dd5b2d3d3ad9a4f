"""The part of a wide schema that a question is about."""

import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from schema_cases import make_table

from sense_trl.database.engine import ColumnInfo, TableInfo
from sense_trl.prompts.linking import SchemaChoice, SchemaChooser, find_named_items
from sense_trl.prompts.name_linker import NameLinker
from sense_trl.prompts.value_index import ValueMatch
from sense_trl.schema import DatabaseSchema, format_schema

SCHEMA = DatabaseSchema(
    "shop",
    "sqlite",
    (
        make_table("customer", "id name city"),
        make_table("purchase", "id customer_id day", customer_id="customer"),
        make_table("purchase_item", "id purchase_id product_id", purchase_id="purchase", product_id="product"),
        make_table("product", "id title price"),
        make_table("weather", "id day rain wind"),
        make_table("audit_log", "id entry stamp"),
    ),
)  # fmt: skip


def count_words(text: str) -> int:
    return len(text.replace("(", " ").replace(",", " ").split())


def choose(question: str, max_tokens: int, **options: object) -> SchemaChoice:
    chooser = SchemaChooser(
        SCHEMA,
        NameLinker(SCHEMA, {("audit_log", ""): "who changed which record"}),
        max_tokens=max_tokens,
        count_tokens=count_words,
        write=format_schema,
    )
    return chooser.choose(question, **options)  # type: ignore[arg-type]


def shown(choice: SchemaChoice) -> list[str]:
    return [table.name for table in choice.schema.tables]


def test_a_schema_that_fits_is_shown_whole() -> None:
    choice = choose("how much rain fell?", 1_000)
    assert (choice.schema, choice.left_out_tables, choice.num_left_out_columns) == (SCHEMA, (), 0)


@pytest.mark.parametrize(
    ("question", "tables"),
    [
        ("How much rain fell?", ["weather"]),
        ("Which record was changed?", ["audit_log"]),
        # Both ends, and what lies between.
        ("Names of customers by title of product", ["customer", "purchase", "purchase_item", "product"]),
    ],
)  # fmt: skip
def test_tables_are_chosen_by_names_descriptions_and_keys(question: str, tables: list[str]) -> None:
    budget = {1: 5, 4: 25}[len(tables)]
    choice = choose(question, budget)
    assert shown(choice) == tables
    assert set(choice.left_out_tables) == {t.name for t in SCHEMA.tables} - set(tables)
    assert count_words(choice.text) <= budget


def test_a_value_that_is_named_brings_its_table() -> None:
    match = ValueMatch("product", "title", "Moby Dick", 1.0)
    assert shown(choose("how many of Moby Dick?", 5, matches=[match])) == ["product"]


def test_what_gold_needs_is_kept_whatever_it_takes() -> None:
    sql = "SELECT p.price, w.wind FROM product p, weather w"
    kept = find_named_items(sql, SCHEMA)
    choice = choose("names of customers", 6, kept=kept)
    assert shown(choice) == ["product", "weather"]
    assert {c.name for t in choice.schema.tables for c in t.columns} >= {"price", "wind"}


def test_names_in_a_query_are_found_with_blanks_and_in_any_case() -> None:
    schema = DatabaseSchema(
        "d", "sqlite", (make_table("Order_Item", "id"), make_table("other", "id"))
    )
    spaced = TableInfo("my table", (ColumnInfo("full name", "", False, 0),), (), False)
    schema = DatabaseSchema("d", "sqlite", (*schema.tables, spaced))
    assert find_named_items('SELECT "Full Name" FROM "My Table"', schema) == {
        ("my table", ""), ("my table", "full name"),
    }  # fmt: skip
    assert find_named_items("SELECT count(*) FROM order_item", schema) == {("order_item", "")}


def test_a_table_that_is_too_wide_shows_its_best_columns_and_keys() -> None:
    names = ["id", *(f"filler_{i}" for i in range(200)), "rainfall"]
    wide = DatabaseSchema("d", "sqlite", (make_table("measurement", " ".join(names)),))
    chooser = SchemaChooser(
        wide, NameLinker(wide), max_tokens=20, count_tokens=count_words, write=format_schema
    )
    choice = chooser.choose("average rainfall")
    columns = [column.name for column in choice.schema.tables[0].columns]
    assert columns[0] == "id"
    assert columns[-1] == "rainfall"
    assert count_words(choice.text) <= 20
    assert choice.num_left_out_columns == 202 - len(columns)


@settings(max_examples=60)
@given(
    st.integers(1, 60),
    st.lists(
        st.sampled_from(["customer", "city", "purchase", "day", "rain", "id", "product", "xyz"]),
        max_size=5,
    ),
    st.sets(st.sampled_from(["product", "weather", "purchase_item"])),
)
def test_the_budget_holds_and_gold_is_kept(budget: int, words: list[str], gold: set[str]) -> None:
    kept = {(name, "") for name in gold}
    choice = choose(" ".join(words), budget, kept=kept)
    assert gold <= set(shown(choice))
    if not gold and budget >= 4:
        assert count_words(choice.text) <= budget
    order = [t.name for t in SCHEMA.tables]
    assert shown(choice) == [name for name in order if name in shown(choice)]


def test_ten_thousand_columns_take_no_time() -> None:
    tables = [
        make_table(f"table_{i}", " ".join(f"column_{i}_{j}" for j in range(50)) + f" parent_{i}")
        for i in range(199)
    ]
    schema = DatabaseSchema("wide", "sqlite", (*tables, make_table("sale", "id amount region")))
    started = time.perf_counter()
    chooser = SchemaChooser(
        schema, NameLinker(schema), max_tokens=500, count_tokens=len, write=format_schema
    )
    for number in range(20):
        choice = chooser.choose(f"total amount of sales by region in table {number}")
        assert "sale" in shown(choice)
        assert len(choice.text) <= 500
    assert time.perf_counter() - started < 20
