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


def test_all_of_spider_reads(shared_data: Path) -> None:
    schemas = load_spider_schemas(shared_data / "spider" / "tables.json")
    assert len(schemas) == 166
    concert = schemas["concert_singer"]
    assert {t.name for t in concert.tables} == {"stadium", "singer", "concert", "singer_in_concert"}
    assert len(concert.foreign_keys) == 3
