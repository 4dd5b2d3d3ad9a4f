"""From a question to the messages."""

import os
import sqlite3
from collections.abc import Callable
from pathlib import Path

import pytest

from sense_trl.database.catalog import DatabaseCatalog
from sense_trl.prompts import PromptStyle, get_prompt
from sense_trl.prompts.writer import PromptWriter
from sense_trl.schema import format_schema, get_schema

MakeWriter = Callable[..., PromptWriter]


@pytest.fixture
def make_writer(make_database: Callable[..., Path], tmp_path: Path) -> MakeWriter:
    """A writer for the database of `make_database`."""

    def make(path: Path | None = None, **fields: object) -> PromptWriter:
        catalog = DatabaseCatalog.from_path(path or make_database())
        style = PromptStyle(**fields)  # type: ignore[arg-type]
        return PromptWriter(catalog, style, cache_dir=tmp_path / "cache")

    return make


@pytest.mark.parametrize("style", ["compact", "codes", "ddl"])
@pytest.mark.parametrize("evidence", [None, " A means active \n"])
def test_without_values_the_prompt_is_that_of_names_alone(
    make_writer: MakeWriter, style: str, evidence: str | None
) -> None:
    writer = make_writer(schema_style=style)
    text = format_schema(get_schema(writer.catalog.engine("shop")), style=style)
    assert writer.get_messages("shop", "How many?", evidence=evidence) == get_prompt(
        "How many?", text, dialect="sqlite", evidence=evidence
    )


def test_values_stand_with_the_schema_and_matches_with_the_question(
    make_writer: MakeWriter,
) -> None:
    writer = make_writer(num_values=2, num_matched_values=3)
    first = writer.get_messages("shop", "Who lives in new york?")
    second = writer.get_messages("shop", "Who is inactive?", evidence="inactive means status I")
    assert first[0] == second[0]
    assert first[0]["content"].splitlines()[-4:] == [
        "values:",
        "customer.status: 'A', 'I'",
        "customer.city: 'New York', 'York'",
        "login.used: '2024-03-01', '2024-04-01'",
    ]
    assert first[1]["content"] == (
        "Values that may be meant: customer.city = 'New York'\nWho lives in new york?"
    )
    assert second[1]["content"] == (
        "inactive means status I\nValues that may be meant: customer.status = 'I'\nWho is inactive?"
    )
    assert writer.get_left_out("shop") == {"personal": 2, "secret": 1, "unsafe": 1}


@pytest.mark.parametrize("style", ["codes", "ddl"])
def test_other_styles_show_values_beside_their_column(make_writer: MakeWriter, style: str) -> None:
    text = make_writer(schema_style=style, num_values=1).get_schema_text("shop")
    [line] = [line for line in text.splitlines() if "'A'" in line]
    assert "status" in line
    assert "example.org" not in text
    assert "hunter2" not in text


def test_a_persons_data_is_shown_to_who_has_typed_all_of_it(make_writer: MakeWriter) -> None:
    writer = make_writer(num_matched_values=5)
    assert writer.find_values("shop", "orders of lovelace or ada@") == []
    [match] = writer.find_values("shop", "orders of Ada Lovelace")
    assert (match.column, match.value) == ("name", "Ada Lovelace")
    # A secret is none, however much of it is known.
    assert writer.find_values("shop", "whose password is 'correct horse'?") == []
    assert writer.find_values("shop", "whose password is 'hunter2'?") == []
    index = next((writer._cache_dir or Path()).rglob("*.sqlite"))
    assert b"hunter2" not in index.read_bytes()


def test_hostile_values_reach_no_message(make_writer: MakeWriter) -> None:
    writer = make_writer(num_values=9, num_matched_values=9)
    messages = writer.get_messages("shop", "who lives in im_end york")
    assert "<|im_end|>" not in str(messages)


def test_a_changed_database_is_read_again(
    make_writer: MakeWriter, make_database: Callable[..., Path]
) -> None:
    path = make_database()
    writer = make_writer(path, num_values=1, num_matched_values=3)
    assert "oslo" not in str(writer.get_messages("shop", "from Oslo?"))
    connection = sqlite3.connect(path)
    connection.execute("UPDATE customer SET city = 'oslo'")
    connection.commit()
    connection.close()
    os.utime(path, ns=(1, 1))
    messages = writer.get_messages("shop", "from Oslo?")
    assert "customer.city: 'oslo'" in messages[0]["content"]
    assert "customer.city = 'oslo'" in messages[1]["content"]
    assert len(list((writer._cache_dir or Path()).rglob("*.sqlite"))) == 2


def test_an_index_is_used_again_and_a_damaged_one_made_anew(
    make_writer: MakeWriter, make_database: Callable[..., Path]
) -> None:
    path = make_database()
    first = make_writer(path, num_matched_values=3)
    first.find_values("shop", "york")
    [index] = (first._cache_dir or Path()).rglob("*.sqlite")
    first.close()
    made = index.stat().st_mtime_ns
    second = make_writer(path, num_matched_values=3)
    assert [m.value for m in second.find_values("shop", "york")] == ["York"]
    second.close()
    assert index.stat().st_mtime_ns == made
    index.write_bytes(b"cut")
    third = make_writer(path, num_matched_values=3)
    assert [m.value for m in third.find_values("shop", "york")] == ["York"]


def test_values_of_a_schema_in_other_spelling_are_found(
    make_database: Callable[..., Path], tmp_path: Path
) -> None:
    """Spider's tables.json writes some names otherwise than the database."""
    catalog = DatabaseCatalog.from_path(
        make_database("CREATE TABLE Place (City TEXT); INSERT INTO Place VALUES ('Bonn'), ('Bonn')")
    )
    other = DatabaseCatalog.from_path(
        make_database("CREATE TABLE place (CITY TEXT)", name="other.sqlite")
    )
    schema = get_schema(other.engine("other"), "shop")
    style = PromptStyle(num_values=1, num_matched_values=1)
    writer = PromptWriter(catalog, style, schemas={"shop": schema}, cache_dir=tmp_path)
    messages = writer.get_messages("shop", "in bonn?")
    assert messages[0]["content"].endswith("values:\nplace.CITY: 'Bonn'")
    assert "place.CITY = 'Bonn'" in messages[1]["content"]
