"""Reading the schemas that models write."""

from __future__ import annotations

import sqlite3
import time

import pytest

from sense_trl.synthesis.strong.schema_design import (
    ColumnKind,
    DesignError,
    parse_design,
    write_design,
)

APIARY = """
-- Beekeeping
CREATE TABLE IF NOT EXISTS hive (
    hive_id INTEGER PRIMARY KEY AUTOINCREMENT, -- 1, 2
    apiary_id INT NOT NULL REFERENCES Apiary ON DELETE CASCADE,
    "queen year" YEAR DEFAULT 2020,
    kind VARCHAR(20) COLLATE NOCASE CHECK (kind IN ('Langstroth', 'Top bar')),
    mother_id INTEGER,
    UNIQUE (apiary_id, kind),
    CONSTRAINT lineage FOREIGN KEY (mother_id) REFERENCES hive (hive_id)
);
CREATE TABLE `Apiary` (apiary_id INT, name TEXT NOT NULL UNIQUE, opened DATETIME, PRIMARY KEY (apiary_id));
"""


def reason(ddl: str) -> str:
    with pytest.raises(DesignError) as caught:
        parse_design(ddl)
    return caught.value.reason


def test_the_parts_that_count_are_taken_over() -> None:
    apiary, hive = parse_design(APIARY).tables
    assert (apiary.name, apiary.primary_key, apiary.unique) == (
        "Apiary",
        ("apiary_id",),
        (("name",),),
    )
    assert [column.kind for column in apiary.columns] == ["INTEGER", "TEXT", "DATETIME"]
    assert [column.name for column in hive.columns if column.not_null] == ["apiary_id"]
    assert hive.primary_key == ("hive_id",)
    assert hive.unique == (("apiary_id", "kind"),)
    assert [(k.columns, k.referenced_table, k.referenced_columns) for k in hive.foreign_keys] == [
        (("apiary_id",), "Apiary", ("apiary_id",)),
        (("mother_id",), "hive", ("hive_id",)),
    ]


def test_what_is_written_anew_is_the_same_schema_in_sqlite() -> None:
    design = parse_design(APIARY)
    statements = write_design(design)
    connection = sqlite3.connect(":memory:")
    for statement in statements:
        connection.execute(statement)
    columns = connection.execute("SELECT name, type FROM pragma_table_info('hive')").fetchall()
    assert columns[2] == ("queen year", "INTEGER")
    keys = connection.execute("SELECT \"table\" FROM pragma_foreign_key_list('hive')").fetchall()
    assert sorted(keys) == [("Apiary",), ("hive",)]
    connection.execute("INSERT INTO Apiary VALUES (1, 'Fjord', NULL)")
    with pytest.raises(sqlite3.IntegrityError, match="CHECK"):
        connection.execute("INSERT INTO hive VALUES (1, 1, 2020, 'Skep', NULL)")
    connection.close()
    assert write_design(parse_design(";".join(statements))) == statements


@pytest.mark.parametrize(
    ("declared", "kind"),
    [
        ("INTEGER", "INTEGER"),
        ("BIGINT UNSIGNED", "INTEGER"),
        ("SERIAL", "INTEGER"),
        ("NUMERIC(8, 2)", "REAL"),
        ("DOUBLE PRECISION", "REAL"),
        ("CHARACTER VARYING(10)", "TEXT"),
        ("ENUM('a', 'b')", "TEXT"),
        ("", "TEXT"),
        ("TIMESTAMP WITH TIME ZONE", "DATETIME"),
        ("DATE", "DATE"),
        ("TIME", "TIME"),
        ("BOOLEAN", "BOOLEAN"),
    ],
)
def test_types_are_read_by_what_they_hold(declared: str, kind: str) -> None:
    assert parse_design(f"CREATE TABLE t (a {declared})").tables[0].columns[0].kind == kind
    assert kind in list(ColumnKind)


def test_statements_need_no_semicolon_between_them() -> None:
    written = "CREATE TABLE keeper (\n  name TEXT\n)\n\ncreate table lamp (\n  kind TEXT\n)"
    assert [table.name for table in parse_design(written).tables] == ["keeper", "lamp"]
    started = time.process_time()
    with pytest.raises(DesignError):
        parse_design("CREATE TABLE keeper (name TEXT)" + 19_000 * "\n" + "CREATE")
    assert time.process_time() - started < 5


def test_the_words_of_an_enum_are_kept() -> None:
    mysql = "CREATE TABLE t (id INT AUTO_INCREMENT PRIMARY KEY, k ENUM('a', 'b'), KEY (k)) ENGINE=InnoDB"
    assert parse_design(mysql).tables[0].column("K").choices == ("a", "b")


@pytest.mark.parametrize(
    ("ddl", "expected"),
    [
        ("", "no_table"),
        ("-- nothing", "no_table"),
        ("I am sorry, but I cannot help with that.", "unparsable_ddl"),
        ("CREATE TABLE t (a INT", "unparsable_ddl"),
        ("CREATE TABLE t (a INT) -- " + "x" * 20_000, "too_long"),
        ("CREATE TABLE t (a INT);" * 2, "duplicate_name"),
        ("".join(f"CREATE TABLE t{i} (a INT);" for i in range(21)), "too_wide"),
        (f"CREATE TABLE t ({', '.join(f'c{i} INT' for i in range(51))})", "too_wide"),
        ("CREATE TABLE t (PRIMARY KEY (a))", "too_wide"),
        ("CREATE TABLE t (a INT, A INT)", "duplicate_name"),
        ("CREATE TABLE t (a BLOB)", "type_not_supported"),
        ("CREATE TABLE t (a INT[])", "type_not_supported"),
        ("CREATE TABLE t (a INT PRIMARY KEY, b INT PRIMARY KEY)", "two_primary_keys"),
        ("CREATE TABLE t (a INT, UNIQUE (b))", "unknown_column"),
        ("CREATE TABLE t (a INT CHECK (b > 1))", "unknown_column"),
        ("CREATE TABLE t (a INT REFERENCES x (y))", "broken_foreign_key"),
        ("CREATE TABLE x (y INT); CREATE TABLE t (a INT REFERENCES x (y))", "broken_foreign_key"),
        ("CREATE TABLE x (y INT UNIQUE); CREATE TABLE t (a TEXT REFERENCES x (y))", "broken_foreign_key"),
        ("CREATE TABLE a (x INT PRIMARY KEY REFERENCES b); CREATE TABLE b (x INT PRIMARY KEY REFERENCES a)", "cyclic_foreign_keys"),
    ],
)  # fmt: skip
def test_a_schema_that_cannot_be_built_is_refused(ddl: str, expected: str) -> None:
    assert reason(ddl) == expected


@pytest.mark.parametrize(
    "statement",
    [
        "ATTACH DATABASE '/tmp/x.db' AS x",
        "DROP TABLE t",
        "PRAGMA writable_schema = 1",
        "INSERT INTO t VALUES (1)",
        "CREATE VIEW v AS SELECT 1",
        "CREATE INDEX i ON t (a)",
        "CREATE TEMP TABLE u (a INT)",
        "CREATE TABLE u AS SELECT * FROM sqlite_master",
        "CREATE TABLE other.u (a INT)",
        "CREATE VIRTUAL TABLE u USING fts5 (a)",
        "CREATE TRIGGER r AFTER INSERT ON t BEGIN DELETE FROM t; END",
        "SELECT load_extension('x')",
        "VACUUM INTO '/tmp/x.db'",
    ],
)
def test_nothing_but_plain_tables_is_created(statement: str) -> None:
    ddl = f"CREATE TABLE t (a INT); {statement};"
    assert reason(ddl) in ("statement_not_allowed", "unparsable_ddl")


@pytest.mark.parametrize(
    ("ddl", "expected"),
    [
        ('CREATE TABLE "t""; DROP TABLE u; --" (a INT)', "bad_name"),
        ('CREATE TABLE t ("a\nb" INT)', "bad_name"),
        ("CREATE TABLE sqlite_sequence (name TEXT)", "bad_name"),
        (f"CREATE TABLE {'t' * 65} (a INT)", "bad_name"),
        ("CREATE TABLE t (a INT CHECK (load_extension('x')))", "constraint_not_supported"),
        ("CREATE TABLE t (a INT CHECK (a IN (SELECT 1)))", "constraint_not_supported"),
        ("CREATE TABLE t (a TEXT CHECK (a = randomblob(1000000000)))", "constraint_not_supported"),
        ("CREATE TABLE t (a TEXT CHECK (a LIKE '%a%a%a%a%a%a%b'))", "constraint_not_supported"),
        ("CREATE TABLE t (a TEXT, b TEXT CHECK (a LIKE b))", "constraint_not_supported"),
        ("CREATE TABLE t (a INT, b INT GENERATED ALWAYS AS (a + 1))", "constraint_not_supported"),
    ],
)
def test_names_and_conditions_that_do_harm_are_refused(ddl: str, expected: str) -> None:
    assert reason(ddl) == expected
