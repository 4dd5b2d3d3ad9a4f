"""References that a database does not declare."""

import json
from pathlib import Path

import pytest

from sense_trl.database.catalog import DatabaseCatalog
from sense_trl.database.sqlite_engine import SQLiteEngine
from sense_trl.errors import InputError
from sense_trl.prompts.name_linker import NameLinker
from sense_trl.schema import get_schema, load_spider_schemas
from sense_trl.schema.foreign_keys import InferredForeignKey, infer_foreign_keys

SCRIPT = """
CREATE TABLE singer (singer_id INTEGER PRIMARY KEY, name TEXT, home_city TEXT, rank INT);
INSERT INTO singer VALUES (1, 'A', '10', 1), (2, 'B', '11', 2), (3, 'C', '10', 3);
CREATE TABLE city (id INTEGER PRIMARY KEY, city_name TEXT, rank INT);
INSERT INTO city VALUES (10, 'Oslo', 1), (11, 'Bergen', 2), (12, 'Voss', 3);
CREATE TABLE concert (concert_no INT, singer_id INT, host_city INT, place TEXT, number INT);
INSERT INTO concert VALUES (1, 1, 10, 'Oslo', 1), (2, 1, 11, 'Bergen', 2), (2, 3, 99, 'Voss', 3);
CREATE TABLE album (title TEXT, singer_id INT);
"""


def _infer(path: Path, **options: float) -> dict[tuple[str, str], InferredForeignKey]:
    with SQLiteEngine(path) as engine:
        found = infer_foreign_keys(engine, get_schema(engine), **options)
    return {(key.table, key.column): key for key in found}


def test_declared_keys_that_lead_nowhere_have_no_columns(fresh_db) -> None:
    path = fresh_db(
        "CREATE TABLE city (id INTEGER, part INTEGER, PRIMARY KEY (id, part));"
        # To no table, to a table without a primary key, and to one of two columns.
        "CREATE TABLE pet (a REFERENCES gone, b REFERENCES pet, c REFERENCES city);"
        "CREATE TABLE tree (d REFERENCES city (id))"
    )
    with SQLiteEngine(path) as engine:
        schema = get_schema(engine)
    assert len(schema.foreign_keys) == 4
    assert schema.foreign_key_columns == [("tree", "d", "city", "id")]
    # What goes by keys takes such a schema.
    assert NameLinker(schema, {}).score("Which d is in part 3?", ())


def test_names_types_and_values_tell(fresh_db) -> None:
    found = _infer(fresh_db(SCRIPT))
    assert {place: key.columns[2:] for place, key in found.items()} == {
        # The name, and values of another declared type.
        ("singer", "home_city"): ("city", "id"),
        ("concert", "singer_id"): ("singer", "singer_id"),
        # Two of its three cities are there.
        ("concert", "host_city"): ("city", "id"),
        # No rows: by its name.
        ("album", "singer_id"): ("singer", "singer_id"),
    }
    assert found["concert", "singer_id"] == InferredForeignKey(
        "concert", "singer_id", "singer", "singer_id", 1.0,
        ("same name", "2 of 2 distinct values found", "declared primary key"),
    )  # fmt: skip
    assert found["concert", "host_city"].confidence == pytest.approx(0.8 * 2 / 3, abs=1e-3)
    assert found["album", "singer_id"].confidence == 0.7


def test_numbers_without_a_name_say_nothing(fresh_db) -> None:
    # `rank` and `number` hold 1, 2, 3, as every column of ids does.
    assert not {"rank", "number"} & {
        column for _, column in _infer(fresh_db(SCRIPT), min_confidence=0)
    }


def test_texts_that_are_all_found_need_no_name(fresh_db) -> None:
    values = ", ".join(f"('word {i}')" for i in range(5))
    script = f"CREATE TABLE a (x TEXT); CREATE TABLE b (y TEXT); INSERT INTO a VALUES {values}; INSERT INTO b VALUES {values}, ('word 0');"
    path = fresh_db(script)
    assert _infer(path)["b", "y"].columns == ("b", "y", "a", "x")
    assert _infer(path, min_confidence=0.6) == {}
    fewer = script.replace(", ('word 4')", "")
    assert _infer(fresh_db(fewer, name="fewer")) == {}


def test_columns_that_cannot_hold_all_values_are_not_searched(
    fresh_db, monkeypatch: pytest.MonkeyPatch
) -> None:
    tables = [
        f"CREATE TABLE t{n} (c{n} TEXT);"
        f"INSERT INTO t{n} VALUES {', '.join(f'({value!r})' for value in 'abcdefghij'[: n + 5])};"
        for n in range(5)
    ]
    asked: list[str] = []
    execute = SQLiteEngine.execute
    monkeypatch.setattr(
        SQLiteEngine,
        "execute",
        lambda engine, sql, **options: asked.append(sql) or execute(engine, sql, **options),
    )
    found = _infer(fresh_db("".join(tables)))
    assert set(found) == {(f"t{n}", f"c{n}") for n in range(4)}
    assert sum(" IN (SELECT" in sql for sql in asked) == 4 + 3 + 2 + 1


def test_the_key_of_its_own_table_is_referred_to(fresh_db) -> None:
    script = (
        "CREATE TABLE person (person_id INT PRIMARY KEY); CREATE TABLE visit (person_id INT PRIMARY KEY, at TEXT);"
        "INSERT INTO person VALUES (1), (2); INSERT INTO visit VALUES (1, 'a'), (2, 'b');"
    )
    assert list(_infer(fresh_db(script))) == [("visit", "person_id")]


def test_a_share_out_of_range_is_refused(fresh_db) -> None:
    with pytest.raises(InputError, match=r"`min_confidence` is 1\.5"):
        _infer(fresh_db(SCRIPT), min_confidence=1.5)


@pytest.mark.slow
def test_most_hidden_keys_of_spider_are_found(shared_data: Path, spider_databases: Path) -> None:
    """Declared in tables.json, hidden here; keys of several columns and empty databases included."""
    schemas = load_spider_schemas(shared_data / "spider" / "tables.json")
    num_declared = num_found = num_right = 0
    with DatabaseCatalog.from_path(spider_databases) as catalog:
        for db_id in catalog.db_ids:
            engine = catalog.engine(db_id)
            declared = {
                (table, key.columns[0], key.referenced_table, key.referenced_columns[0])
                for table, key in schemas[db_id].foreign_keys
                if table.lower() != key.referenced_table.lower()
            }
            declared_lower = set(
                map(json.dumps, [[n.lower() for n in names] for names in declared])
            )
            inferred = infer_foreign_keys(engine, get_schema(engine))
            num_right += sum(
                json.dumps([n.lower() for n in key.columns]) in declared_lower for key in inferred
            )
            num_declared, num_found = num_declared + len(declared_lower), num_found + len(inferred)
    assert num_right / num_found > 0.88
    assert num_right / num_declared > 0.83
