"""Spider's tables.json."""

import json
from pathlib import Path

import pytest

from sense_trl.errors import InputError
from sense_trl.schema import format_schema, load_spider_schemas

RECORD = {
    "db_id": "pets",
    "table_names_original": ["owner", "pet"],
    "column_names_original": [[-1, "*"], [0, "id"], [1, "pid"], [1, "owner_id"]],
    "column_types": ["text", "number", "number", "number"],
    "primary_keys": [1, [2, 3]],
    "foreign_keys": [[3, 1]],
}


def test_tables_columns_and_keys_are_read(tmp_path: Path) -> None:
    path = tmp_path / "tables.json"
    path.write_text(json.dumps([RECORD]))
    schema = load_spider_schemas(path)["pets"]
    assert format_schema(schema) == "owner(id)\npet(pid, owner_id)\npet.owner_id = owner.id"
    assert [[c.primary_key for c in t.columns] for t in schema.tables] == [[1], [1, 2]]


def test_damage_is_named(tmp_path: Path) -> None:
    path = tmp_path / "tables.json"
    path.write_text(json.dumps([RECORD, {"db_id": "x"}]))
    with pytest.raises(InputError, match=r"record 2: not a Spider schema.*table_names_original"):
        load_spider_schemas(path)
    path.write_text("[1,")
    with pytest.raises(InputError, match="invalid JSON"):
        load_spider_schemas(path)
    with pytest.raises(InputError, match="not a file"):
        load_spider_schemas(tmp_path / "none.json")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"foreign_keys": [[1, 2, 3]]}, "not a Spider schema.*too many values"),
        ({"foreign_keys": [[3, 9]]}, "not a Spider schema.*column 9, of 4 columns"),
        ({"foreign_keys": [[-1, 1]]}, "not a Spider schema.*column -1, of 4 columns"),
        ({"primary_keys": [9]}, "not a Spider schema.*column 9, of 4 columns"),
        ({"column_names_original": [["a", "b"]]}, "not a Spider schema.*'a'"),
        ({"column_names_original": [[7, "b"]]}, "not a Spider schema.*table 7, of 2 tables"),
        ({"table_names_original": [None, "pet"]}, "not a Spider schema.*None is not a string"),
        ({"table_names_original": ["owner", "dog"]}, "record 2: `db_id` 'pets' occurs twice"),
    ],
)
def test_a_damaged_record_is_refused(tmp_path: Path, change: dict[str, object], words: str) -> None:
    path = tmp_path / "tables.json"
    path.write_text(json.dumps([RECORD, {**RECORD, **change}]))
    with pytest.raises(InputError, match=words):
        load_spider_schemas(path)


@pytest.mark.parametrize(
    ("text", "encoding", "words"),
    [
        (json.dumps([RECORD]), "utf-16", "not UTF-8 text"),
        ("null", "utf-8", "expected a JSON array.*NoneType"),
        ("5", "utf-8", "expected a JSON array.*int"),
        (json.dumps(RECORD), "utf-8", "expected a JSON array.*dict"),
        ("[" * 100_000, "utf-8", "invalid JSON"),
    ],
)
def test_a_file_that_is_no_array_is_refused(
    tmp_path: Path, text: str, encoding: str, words: str
) -> None:
    path = tmp_path / "tables.json"
    path.write_text(text, encoding=encoding)
    with pytest.raises(InputError, match=words):
        load_spider_schemas(path)


def test_a_byte_order_mark_is_read_over_and_a_key_to_the_star_left_out(tmp_path: Path) -> None:
    path = tmp_path / "tables.json"
    record = {**RECORD, "foreign_keys": [[3, 0], [3, 1], [0, 1]]}
    path.write_text(json.dumps([record]), encoding="utf-8-sig")
    keys = load_spider_schemas(path)["pets"].foreign_keys
    assert [(table, key.columns, key.referenced_columns) for table, key in keys] == [
        ("pet", ("owner_id",), ("id",))
    ]


def test_all_of_spider_reads(shared_data: Path) -> None:
    schemas = load_spider_schemas(shared_data / "spider" / "tables.json")
    assert len(schemas) == 166
    concert = schemas["concert_singer"]
    assert {t.name for t in concert.tables} == {"stadium", "singer", "concert", "singer_in_concert"}
    assert len(concert.foreign_keys) == 3
