"""What items are to each other, and how words are like their names."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from schema_cases import make_table

from sense_trl.linking.names import FEATURES, NameMatcher, get_names, get_structure
from sense_trl.linking.reading import write_blocks
from sense_trl.schema import DatabaseSchema
from sense_trl.schema.naming import get_key

SCHEMA = DatabaseSchema(
    "shop",
    "sqlite",
    (
        make_table("Customer", "id Name homeTown"),
        make_table("order_line", "id customer part", customer="customer", part="Part"),
        make_table("part", "id name"),
    ),
)
ITEMS = [(t.name.lower(), c) for t in SCHEMA.tables
         for c in ("", *(c.name.lower() for c in t.columns))]  # fmt: skip


def test_kinds_tables_and_keys() -> None:
    structure = get_structure(SCHEMA, ITEMS)
    #                            customer    order_line  part
    assert structure.kinds == (0, 3, 1, 1, 0, 2, 3, 3, 0, 3, 1)
    assert structure.tables == (0,) * 4 + (4,) * 4 + (8,) * 3
    linked = {ITEMS[i]: own for i, own in enumerate(structure.linked) if own}
    assert linked == {
        ("customer", "id"): (4,),
        ("order_line", "customer"): (0,),
        ("order_line", "part"): (8,),
        ("part", "id"): (4,),
    }
    # Of a part of the schema only what is there.
    first = get_structure(SCHEMA, ITEMS[:4])
    assert first.kinds == (0, 2, 1, 1)
    assert not any(first.linked)


def test_tables_that_differ_in_case_alone_are_one() -> None:
    # PostgreSQL has "Pet" and pet, with other columns each.
    schema = DatabaseSchema("d", "postgres", (make_table("Pet", "age"), make_table("pet", "name")))
    (block,) = write_blocks(schema)
    spelling = {get_key(*name): name for name in get_names(schema)}
    matcher = NameMatcher([spelling[item] for item in block.items])
    assert {block.items[found[0]] for found in matcher.match(["age", "name"])} >= {
        ("pet", "age"),
        ("pet", "name"),
    }


def test_a_wide_table_in_several_lines_has_one_place() -> None:
    wide = DatabaseSchema(
        "w", "sqlite", (make_table("log", " ".join(f"entry_{i}" for i in range(9))),)
    )
    (block,) = write_blocks(wide, max_chars=60)[:1]
    lines = get_structure(wide, [*block.items, *block.items])
    assert set(lines.tables) == {0}


def match(question: str) -> dict[tuple[str, str, str], dict[str, float]]:
    """By table, column and word, the features that are not 0."""
    words = question.split()
    return {
        (*ITEMS[item], words[word]): {
            name: value for name, value in zip(FEATURES, values, strict=True) if value
        }
        for item, word, values in NameMatcher(
            [(t.name.lower(), c) for t in SCHEMA.tables for c in ("", *(c.name for c in t.columns))]
        ).match(words)
    }


def test_words_are_like_names() -> None:
    found = match("towns of customers")
    assert found["customer", "hometown", "towns"] == pytest.approx(
        {"is": 1.0, "share": 0.5, "rarity": 1.0}
    )
    # Of eleven items two have the word: a table, and a column.
    rarity = {"is": 1.0, "share": 1.0, "whole": 1.0, "rarity": 0.7539}
    own = found["customer", "", "customers"]
    assert {k: own[k] for k in rarity} == pytest.approx(rarity, abs=1e-3)
    assert set(found["customer", "name", "customers"]) == {"relative"}
    # `towns` is a word of a column of its table.
    assert set(found["customer", "", "towns"]) == {"relative"}
    assert match("home towns")["customer", "hometown", "home"]["whole"] == 0.5
    assert set(match("ordering")["order_line", "", "ordering"]) == {"beginning"}
    assert set(match("parts parts")) == set(match("parts"))
    assert set(match("stom")["customer", "", "stom"]) == {"inside"}
    assert not match("? , is")


@settings(max_examples=30)
@given(st.lists(st.text(max_size=12), max_size=8))
def test_any_words_are_matched_within_bounds(words: list[str]) -> None:
    for item, word, values in NameMatcher(ITEMS).match(words):
        assert 0 <= item < len(ITEMS)
        assert 0 <= word < len(words)
        assert any(values)
        assert all(0 <= value <= 1 for value in values)
