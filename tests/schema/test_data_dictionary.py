"""Descriptions of tables and columns from every source."""

from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import FreshDB

from sense_trl.database.opening import open_engine
from sense_trl.errors import InputError
from sense_trl.schema import DatabaseSchema, get_schema
from sense_trl.schema.data_dictionary import (
    ColumnEntry,
    DataDictionary,
    TableEntry,
    find_dictionary,
)

SCRIPT = "CREATE TABLE Customer (id INTEGER PRIMARY KEY, Status TEXT, joined DATE)"
YAML = """
tables:
  customer:
    meaning: a person who has bought something
    synonyms: [client]
    columns:
      status: "A is active, I is inactive"
      joined: {meaning: first order, format: YYYY-MM-DD, synonyms: [member since]}
"""
BIRD = """\ufefforiginal_column_name,column_name,column_description,data_format,value_description
id,,the number of the customer,integer,
Status ,account status,whether one may buy,text,"A: active
I: inactive"
joined,joined,,date,
"""


def open_schema(path: Path) -> DatabaseSchema:
    with open_engine(path) as engine:
        return get_schema(engine)


def test_yaml_is_read_with_a_text_for_a_meaning(tmp_path: Path) -> None:
    path = tmp_path / "d.yaml"
    path.write_text(YAML)
    assert DataDictionary.load(path).tables == {
        "customer": TableEntry(
            "a person who has bought something",
            ("client",),
            {
                "status": ColumnEntry("A is active, I is inactive"),
                "joined": ColumnEntry("first order", "YYYY-MM-DD", ("member since",)),
            },
        )
    }
    path.write_text("tables: {pet: an animal}")
    assert DataDictionary.load(path).tables == {"pet": TableEntry("an animal")}


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("tables: [", "invalid YAML"),
        ("", "expected an object, got None"),
        ("tabels: {}", "unknown field 'tabels'"),
        ("tables: {t: {columns: {no: x}}}", "the name False is no text"),
        ("tables: {t: {columns: {1: x}}}", "the name 1 is no text"),
        ("tables: {t: {columns: {a: 3}}}", r"tables\.t\.columns\.a: expected an object, got 3"),
        ("tables: {t: {1: x}}", "unknown field '1'"),
        ("x: !!python/object/apply:os.system [id]", "invalid YAML"),
        ("- " * 5000 + "x", "invalid YAML|expected an object"),
    ],
)
def test_a_slip_in_yaml_is_named(tmp_path: Path, text: str, told: str) -> None:
    path = tmp_path / "d.yml"
    path.write_text(text)
    with pytest.raises(InputError, match=told):
        DataDictionary.load(path)


@pytest.mark.parametrize("encoding", ["utf-8", "cp1252"])
def test_birds_files_are_read(tmp_path: Path, encoding: str) -> None:
    text = BIRD.replace("number", "numéro")
    if encoding == "cp1252":
        text = text.removeprefix("\ufeff")
    (tmp_path / "customer.csv").write_bytes(text.encode(encoding))
    assert DataDictionary.from_bird(tmp_path).tables == {
        "customer": TableEntry(
            columns={
                "id": ColumnEntry("the numéro of the customer"),
                "Status": ColumnEntry(
                    "whether one may buy", "A: active I: inactive", ("account status",)
                ),
                "joined": ColumnEntry("joined"),
            }
        )
    }


@pytest.mark.parametrize("text", ["", "a,b\n1,2\n", "column_name\n"])
def test_a_csv_file_of_another_kind_is_refused(tmp_path: Path, text: str) -> None:
    with pytest.raises(InputError, match="holds no CSV file"):
        DataDictionary.from_bird(tmp_path)
    (tmp_path / "t.csv").write_text(text)
    with pytest.raises(InputError, match=r"the field 'original_column_name' is missing"):
        DataDictionary.from_bird(tmp_path)


def test_comments_of_duckdb_are_read(tmp_path: Path) -> None:
    import duckdb

    path = tmp_path / "d.duckdb"
    with duckdb.connect(str(path)) as database:
        database.execute(
            "CREATE TABLE t (a INT, b INT); COMMENT ON TABLE t IS 'one row of t';"
            "COMMENT ON COLUMN t.b IS 'it''s b'; CREATE TABLE u (c INT)"
        )
    found = find_dictionary(open_schema(path), path)
    assert found.tables == {"t": TableEntry("one row of t", (), {"b": ColumnEntry("it's b")})}


def test_what_the_database_does_not_have_is_an_error(fresh_db: FreshDB, tmp_path: Path) -> None:
    path = fresh_db(SCRIPT, name="shop")
    source = tmp_path / "d.yaml"
    source.write_text("tables: {customer: {columns: {statsu: x, joined: y}}, order: {}}")
    with pytest.raises(InputError) as raised:
        find_dictionary(open_schema(path), path, source)
    message = str(raised.value)
    assert str(source) in message
    assert "customer.'statsu' (did you mean 'status'?)" in message
    assert "the table 'order'" in message
    assert "joined" not in message


def test_sources_are_found_and_the_given_one_wins(tmp_path: Path, fresh_db: FreshDB) -> None:
    folder = tmp_path / "shop"
    bird = folder / "database_description"
    bird.mkdir(parents=True)
    path = folder / "shop.sqlite"
    fresh_db(SCRIPT, name="made").rename(path)
    schema = open_schema(path)
    (bird / "Customer.csv").write_text(BIRD, encoding="utf-8")
    beside = find_dictionary(schema, path).tables["Customer"].columns
    assert beside["Status"].meaning == "whether one may buy"

    def meaning(source: Path) -> ColumnEntry:
        return find_dictionary(schema, path, source).tables["Customer"].columns["Status"]

    yaml = tmp_path / "files" / "shop.yaml"
    yaml.parent.mkdir()
    yaml.write_text(YAML)
    expected = ColumnEntry(
        "A is active, I is inactive", "A: active I: inactive", ("account status",)
    )
    assert meaning(yaml) == meaning(yaml.parent) == expected
    # A folder need not have every database.
    yaml.unlink()
    assert meaning(yaml.parent).meaning == meaning(bird).meaning == "whether one may buy"
    dictionary = DataDictionary(
        "shop", {"customer": TableEntry("", (), {"status": ColumnEntry("x")})}
    )
    dictionary.save(yaml.parent / "shop.json")
    assert meaning(yaml.parent).meaning == "x"
    with pytest.raises(InputError, match="which does not exist"):
        meaning(tmp_path / "gone")


def test_bird_folders_of_a_root_are_found(tmp_path: Path, fresh_db: Callable[..., Path]) -> None:
    path = fresh_db(SCRIPT, name="shop")
    folder = tmp_path / "root" / "shop" / "database_description"
    folder.mkdir(parents=True)
    (folder / "customer.csv").write_text(BIRD, encoding="utf-8")
    found = find_dictionary(open_schema(path), path, tmp_path / "root")
    assert found.tables["Customer"].columns["id"].meaning == "the number of the customer"
