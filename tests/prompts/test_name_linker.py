"""Scores of tables and columns by names, kinds, keys, descriptions and values."""

import math
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from schema_cases import make_table

from sense_trl.linking import names
from sense_trl.linking.names import NameWeights
from sense_trl.prompts import name_linker
from sense_trl.prompts.name_linker import NameLinker
from sense_trl.prompts.value_index import ValueMatch
from sense_trl.schema import DatabaseSchema

SCHEMA = DatabaseSchema(
    "shop",
    "sqlite",
    (
        make_table("Customer", "id HomeTown"),
        make_table("purchase", "id buyer day", buyer="Customer"),
        make_table("log", "entry"),
    ),
)


def get_logits(question: str, *matches: ValueMatch, **described: str) -> dict[str, float]:
    """By "table.column" in lower case."""
    texts = {tuple(name.split("__")): text for name, text in described.items()}
    scores = NameLinker(SCHEMA, texts).score(question, matches)  # type: ignore[arg-type]
    return {".".join(filter(None, key)): 2 * math.atanh(2 * s - 1) for key, s in scores.items()}


@pytest.fixture
def simple_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    weights = (
        NameWeights(-1.0, 0.5, 9.0, 9.0, (1.0, 0.0, 0.0, 0.0, 0.0, 0.25, 0.0)),
        NameWeights(-2.0, 0.0, 0.5, 9.0, (0.0, 3.0, 0.0, 4.0, 0.75, 0.0, 0.5)),
        NameWeights(-3.0, 0.0, 0.0, 9.0, (0.0,) * 7),
        NameWeights(0.5, 0.0, 0.1, 2.0, (0.0,) * 7),
    )
    monkeypatch.setattr(name_linker, "NAME_WEIGHTS", weights)


@pytest.mark.usefixtures("simple_weights")
def test_logits_are_the_weights_times_what_is_alike() -> None:
    found = get_logits("home of customers?")
    # Six columns. Of a table neither its parent nor keys count, for it has none.
    rare = math.log1p(9 / 1) / math.log1p(9)
    tables = {
        # Its name, and `home`, which is a word of a column of it.
        "customer": -1.0 - 0.5 * math.log(6) + 1.0 + 0.25 * rare,
        "purchase": -1.0 - 0.5 * math.log(6),
        "log": -1.0 - 0.5 * math.log(6),
    }
    joined = min(tables["customer"], tables["purchase"])
    assert found == pytest.approx(
        tables
        | {
            # One of its two words.
            "customer.hometown": -2.0 + 3.0 / 2 + 0.5 * tables["customer"],
            "log.entry": -2.0 + 0.5 * tables["log"],
            "purchase.day": -2.0 + 0.5 * tables["purchase"],
            "purchase.id": -3.0,
            # Both ends of the key by the less likely of the two tables.
            "customer.id": 0.5 + 0.1 * tables["customer"] + 2.0 * joined,
            "purchase.buyer": 0.5 + 0.1 * tables["purchase"] + 2.0 * joined,
        }
    )
    whole = (
        get_logits("home towns")["customer.hometown"] - 0.5 * get_logits("home towns")["customer"]
    )
    assert whole == pytest.approx(-2.0 + 2 * (3.0 / 2 + 4.0 / 2))
    # Its beginning, and a part of its word.
    begun = get_logits("entries; daytime")
    assert begun["log.entry"] == pytest.approx(-2.0 + 3.0 + 4.0 + 0.5 * begun["log"])
    part = get_logits("town metow")
    assert part["customer.hometown"] - 0.5 * part["customer"] == pytest.approx(-2.0 + 3.0 / 2 + 0.5)


@pytest.mark.usefixtures("simple_weights")
def test_values_and_descriptions_add_to_what_they_are_of() -> None:
    plain = get_logits("who?")
    match = ValueMatch("LOG", "Entry", "x", 1.0)
    assert get_logits("who?", match, match)["log.entry"] - plain["log.entry"] == pytest.approx(4.0)
    told = get_logits("who did this?", purchase__day="Who? Who!", log__="who")
    # Two of nine items are described by that word.
    rarity = 1.2 * math.log1p(9 / 2) / math.log1p(9)
    assert told["purchase.day"] - plain["purchase.day"] == pytest.approx(rarity)
    assert told["log"] - plain["log"] == pytest.approx(rarity)


def test_what_is_asked_for_comes_first() -> None:
    question = "In which home towns do customers live who purchased something?"
    found = get_logits(question)
    ranked = sorted(found, key=lambda item: -found[item])
    assert set(ranked[:5]) == {
        "customer", "customer.hometown", "purchase", "purchase.buyer", "customer.id",
    }  # fmt: skip
    # What joins two tables is asked for by no word, and where one is not needed, not needed either.
    alone = get_logits("home towns")
    assert alone["purchase.buyer"] < found["purchase.buyer"]
    assert len(names.NAME_WEIGHTS) == len(names.KINDS)
    assert {len(own.likeness) for own in names.NAME_WEIGHTS} == {len(names.FEATURES)}


def test_names_in_other_scripts_are_found() -> None:
    schema = DatabaseSchema("d", "sqlite", (make_table("t", "北京 Año"), make_table("u", "entry")))
    for question, column in (("在北京吗", "北京"), ("by ANO", "año")):
        scores = NameLinker(schema).score(question, ())
        columns = {key: score for key, score in scores.items() if key[1]}
        assert max(columns, key=columns.__getitem__) == ("t", column)


@settings(max_examples=30)
@given(st.text(max_size=60), st.text(max_size=20))
def test_any_text_gives_a_probability_of_every_item(question: str, description: str) -> None:
    scores = NameLinker(SCHEMA, {("log", "entry"): description}).score(question, ())
    assert len(scores) == 9
    assert all(0 <= score <= 1 for score in scores.values())


def test_a_hostile_question_on_ten_thousand_columns_takes_no_time() -> None:
    tables = [
        make_table(f"table_{i}", " ".join(f"column_{i}_{j}" for j in range(50))) for i in range(200)
    ]
    linker = NameLinker(DatabaseSchema("wide", "sqlite", tuple(tables)))
    started = time.process_time()
    linker.score(" ".join(f"column{i} table" for i in range(100_000)), ())
    linker.score("a" * 1_000_000, ())
    assert time.process_time() - started < 15
