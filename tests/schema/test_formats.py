"""Schemas as prompt text."""

import contextlib
import sqlite3
from pathlib import Path

import duckdb
import pytest
from sqlglot import exp
from sqlglot.dialects import SQLite

from sense_trl.database.engine import ColumnInfo, ForeignKeyInfo, TableInfo
from sense_trl.database.sqlite_engine import SQLiteEngine
from sense_trl.errors import InputError
from sense_trl.schema import DatabaseSchema, format_schema, get_schema
from sense_trl.schema.formats import quote_name
from sense_trl.sql.parsing import parse_sql

SCHEMA = DatabaseSchema(
    "d",
    "sqlite",
    (
        TableInfo("singer", (ColumnInfo("id", "INTEGER", True, 1), ColumnInfo("full name", "TEXT", True, 0)), (), False),
        TableInfo(
            "order",
            (ColumnInfo("singer", "INT", False, 1), ColumnInfo("n", "", False, 2)),
            (ForeignKeyInfo(("singer",), "singer", ("id",)),),
            False,
        ),
    ),
)  # fmt: skip


def test_compact_is_names_and_keys() -> None:
    assert format_schema(SCHEMA) == (
        'singer(id, "full name")\n"order"(singer, n)\n"order".singer = singer.id'
    )


def test_codes_has_types_keys_and_values() -> None:
    text = format_schema(
        SCHEMA, style="codes", sample_values={("singer", "full name"): ["O'Neil", None]}
    )
    assert text.splitlines() == [
        "table singer, columns = [ id (integer | primary key), "
        "\"full name\" (text | values: 'O''Neil', NULL) ]",
        'table "order", columns = [ singer (int | primary key), n (primary key) ]',
        "foreign keys:",
        '"order".singer = singer.id',
    ]


def test_ddl_can_be_executed_and_gives_the_schema_back(tmp_path: Path) -> None:
    path = tmp_path / "d.sqlite"
    connection = sqlite3.connect(path)
    values = {("order", "n"): ["a\nb", 2]}
    connection.executescript(format_schema(SCHEMA, style="ddl", sample_values=values))
    connection.close()
    with SQLiteEngine(path) as engine:
        assert format_schema(get_schema(engine)) == format_schema(SCHEMA)
        assert get_schema(engine).foreign_keys == SCHEMA.foreign_keys


def test_names_that_need_quotes_work_in_a_query(tmp_path: Path) -> None:
    names = ["order", "a b", 'q"x', "1st", "plain", "Größe", "select", "autoincrement"]
    path = tmp_path / "n.sqlite"
    connection = sqlite3.connect(path)
    connection.execute(f"CREATE TABLE t ({', '.join(map(quote_name, names))})")
    connection.close()
    with SQLiteEngine(path) as engine:
        assert [c.name for c in engine.get_tables()[0].columns] == names
        assert engine.execute(f"SELECT {', '.join(map(quote_name, names))} FROM t").ok


@pytest.mark.parametrize("dialect", ["sqlite", "duckdb"])
def test_every_keyword_can_be_written_as_a_name_and_is_read_as_one(dialect: str) -> None:
    with duckdb.connect() as server:
        words = [
            w for (w,) in server.execute("SELECT keyword_name FROM duckdb_keywords()").fetchall()
        ]
        words += [w.lower() for w in SQLite.Tokenizer.KEYWORDS if w.isidentifier()]
        words += [
            "plan",
            "query",
            "glob",
            "regexp",
            "match",
            "indexed",
            "isnull",
            "map",
            "force",
            "install",
            "localtime",
        ]
        for word in sorted(set(words)):
            for table, column in (("of_word", word), (word, "a")):
                name, source = quote_name(column, dialect), quote_name(table, dialect)
                sql = (
                    f"SELECT max({name}), {name}, T1.{name} FROM {source} AS T1 "
                    f"WHERE {name} = 5 GROUP BY {name} ORDER BY {name}"
                )
                if dialect == "duckdb":
                    server.extract_statements(sql)
                else:
                    with contextlib.closing(sqlite3.connect(":memory:")) as connection:
                        connection.execute(f'CREATE TABLE "{table}" ("{column}")')
                        connection.execute(f'INSERT INTO "{table}" VALUES (5)')
                        assert connection.execute(sql).fetchall() == [(5, 5, 5)], sql
                tree = parse_sql(sql, dialect)
                assert {c.name for c in tree.find_all(exp.Column)} == {column}, sql
                assert [t.name for t in tree.find_all(exp.Table)] == [table], sql


def test_an_unknown_style_and_unusable_values_are_refused() -> None:
    with pytest.raises(InputError, match="`style` is 'xml'"):
        format_schema(SCHEMA, style="xml")
    with pytest.raises(InputError, match="shows none"):
        format_schema(SCHEMA, sample_values={("singer", "id"): [1]})
    with pytest.raises(InputError, match="`descriptions` were given"):
        format_schema(SCHEMA, descriptions={("singer", "id"): "a number"})


@pytest.mark.parametrize(
    ("statements", "keys"),
    [
        ("CREATE TABLE c (x INT REFERENCES nope)", []),
        ("CREATE TABLE c (x INT REFERENCES nope (y))", []),
        ("CREATE TABLE p (a INT); CREATE TABLE c (x INT REFERENCES p)", []),
        ("CREATE TABLE p (a INT); CREATE TABLE c (x INT REFERENCES p (b))", []),
        (
            "CREATE TABLE p (a INT, b INT, PRIMARY KEY (a, b)); CREATE TABLE c (x INT REFERENCES p)",
            [],
        ),
        (
            "CREATE TABLE p (a INT, b INT, PRIMARY KEY (a, b));"
            "CREATE TABLE c (x INT, y INT, FOREIGN KEY (x, y) REFERENCES p)",
            ["c.x = p.a AND c.y = p.b"],
        ),
        (
            "CREATE TABLE P (A INTEGER PRIMARY KEY);"
            "CREATE TABLE c (x INT REFERENCES p (a), y REFERENCES nope)",
            ["c.x = P.a"],
        ),
    ],
)
def test_keys_that_refer_to_nothing_are_left_out(
    tmp_path: Path, statements: str, keys: list[str]
) -> None:
    path = tmp_path / "k.sqlite"
    connection = sqlite3.connect(path)
    connection.executescript(statements)
    connection.close()
    with SQLiteEngine(path) as engine:
        schema = get_schema(engine)
    for style in ("compact", "codes"):
        lines = format_schema(schema, style=style).splitlines()
        assert [line for line in lines if " = " in line and "[" not in line] == keys
    assert format_schema(schema, style="ddl").count("FOREIGN KEY") == len(keys)


def test_the_storage_of_virtual_tables_is_not_shown(tmp_path: Path) -> None:
    path = tmp_path / "v.sqlite"
    connection = sqlite3.connect(path)
    options = str(connection.execute("PRAGMA compile_options").fetchall())
    if not all(name in options for name in ("FTS5", "FTS3", "RTREE")):
        pytest.skip("this SQLite has no FTS3, FTS5 or R-tree module")
    connection.executescript(
        """
        CREATE TABLE film (id INTEGER PRIMARY KEY AUTOINCREMENT);
        CREATE TABLE film_data (id INT);
        CREATE TABLE film_content (id INT);
        INSERT INTO film DEFAULT VALUES;
        CREATE VIRTUAL TABLE five USING fts5 (a);
        CREATE VIRTUAL TABLE bare USING fts5 (a, content='');
        CREATE VIRTUAL TABLE four USING fts4 (a);
        CREATE VIRTUAL TABLE three USING fts3 (a);
        CREATE VIRTUAL TABLE box USING rtree (id, low, high);
        """
    )
    connection.close()
    with SQLiteEngine(path) as engine:
        names = {table.name for table in get_schema(engine).tables}
    assert names == {"film", "film_data", "film_content", "five", "bare", "four", "three", "box"}
