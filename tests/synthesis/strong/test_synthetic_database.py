"""Filling a schema with rows that obey it."""

from __future__ import annotations

import random
import re
import sqlite3
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sense_trl.errors import InputError
from sense_trl.synthesis.strong.column_values import make_value
from sense_trl.synthesis.strong.schema_design import ColumnKind, DesignError, parse_design
from sense_trl.synthesis.strong.synthetic_database import create_database
from sense_trl.synthesis.strong.value_hints import get_example_values, get_wanted_values


def rows(path: Path, sql: str) -> list[tuple[Any, ...]]:
    connection = sqlite3.connect(path)
    found = connection.execute(sql).fetchall()
    connection.close()
    return found


def build(path: Path, ddl: str, **arguments: Any) -> dict[str, int]:
    return create_database(path, parse_design(ddl), **arguments)


def test_tables_have_their_rows_and_keys_hold(tmp_path: Path) -> None:
    ddl = """CREATE TABLE toy (id INT PRIMARY KEY, pet_id INT NOT NULL REFERENCES pet (id));
             CREATE TABLE pet (id INT PRIMARY KEY, name TEXT NOT NULL UNIQUE)"""
    path = tmp_path / "x" / "pets.sqlite"
    assert build(path, ddl, num_rows=40) == {"pet": 40, "toy": 80}
    assert rows(path, "SELECT min(id), max(id), count(DISTINCT name) FROM pet") == [(1, 40, 40)]
    assert rows(path, "SELECT count(*) FROM toy JOIN pet ON pet.id = pet_id") == [(80,)]
    counts = rows(path, "SELECT count(*) FROM toy GROUP BY pet_id")
    assert max(counts)[0] >= 3 * min(counts)[0]


def test_a_conjunction_over_a_join_finds_rows(tmp_path: Path) -> None:
    ddl = """CREATE TABLE pet (id INT PRIMARY KEY, name TEXT, city TEXT, born DATE);
             CREATE TABLE toy (id INT PRIMARY KEY, pet_id INT REFERENCES pet (id), kind TEXT, price REAL)"""
    sql = """SELECT DISTINCT p.name FROM pet p JOIN toy t ON t.pet_id = p.id WHERE p.city = 'Ushuaia'
             AND t.kind = 'Rope' AND t.price BETWEEN 7 AND 7.5 AND p.born >= '2031-01-01'"""
    design = parse_design(ddl)
    found = {}
    for name, wanted in (("with", get_wanted_values(design, sql, "sqlite")), ("without", None)):
        create_database(tmp_path / f"{name}.sqlite", design, wanted=wanted)
        found[name] = rows(tmp_path / f"{name}.sqlite", sql)
    assert found["with"] and not found["without"]


def test_a_wanted_reference_exists_on_both_sides(tmp_path: Path) -> None:
    ddl = """CREATE TABLE pet (id INT PRIMARY KEY, name TEXT);
             CREATE TABLE toy (id INT PRIMARY KEY, pet_id INT REFERENCES pet (id))"""
    design = parse_design(ddl)
    wanted = get_wanted_values(design, "SELECT id FROM toy WHERE pet_id = 4711", "sqlite")
    create_database(tmp_path / "a.sqlite", design, wanted=wanted)
    assert rows(
        tmp_path / "a.sqlite", "SELECT 1 FROM toy JOIN pet p ON pet_id = p.id WHERE p.id = 4711"
    )


def test_examples_are_used(tmp_path: Path) -> None:
    ddl = "CREATE TABLE fish (\n id INT PRIMARY KEY,\n kind TEXT -- 'Guppy', 'Tetra'\n)"
    design = parse_design(ddl)
    create_database(tmp_path / "a.sqlite", design, examples=get_example_values(design, ddl))
    kinds = rows(
        tmp_path / "a.sqlite", "SELECT kind, count(*) FROM fish GROUP BY 1 ORDER BY 2 DESC"
    )
    assert {kinds[0][0], kinds[1][0]} == {"Guppy", "Tetra"}


def test_names_of_rows_hardly_repeat(tmp_path: Path) -> None:
    ddl = "CREATE TABLE pet (\n id INT PRIMARY KEY,\n pet_name TEXT, -- 'Rex', 'Tom'\n kind TEXT -- 'cat'\n)"
    design = parse_design(ddl)
    wanted = get_wanted_values(design, "SELECT 1 FROM pet WHERE pet_name = 'Kim' AND kind = 'dog'", "sqlite")  # fmt: skip
    create_database(tmp_path / "a.sqlite", design, wanted=wanted, examples=get_example_values(design, ddl))  # fmt: skip
    found = dict(rows(tmp_path / "a.sqlite", "SELECT pet_name, count(*) FROM pet GROUP BY 1"))
    assert found["Kim"] == 2 and len(found) > 15
    kinds = dict(rows(tmp_path / "a.sqlite", "SELECT kind, count(*) FROM pet GROUP BY 1"))
    assert min(kinds["cat"], kinds["dog"]) >= 5
    assert rows(tmp_path / "a.sqlite", "SELECT 1 FROM pet WHERE pet_name = 'Kim' AND kind = 'dog'")


def test_checks_between_columns_hold(tmp_path: Path) -> None:
    ddl = """CREATE TABLE trip (id INT PRIMARY KEY, start_day INT CHECK (start_day > 5), end_day INT,
             level TEXT CHECK (level IN ('a', 'b')), CHECK (end_day > start_day))"""
    assert build(tmp_path / "a.sqlite", ddl) == {"trip": 30}
    assert rows(tmp_path / "a.sqlite", "SELECT 1 FROM trip WHERE end_day <= start_day OR start_day < 6 OR level NOT IN ('a', 'b')") == []  # fmt: skip


def test_contradictions_leave_a_table_empty_and_scarce_keys_end_it(tmp_path: Path) -> None:
    ddl = """CREATE TABLE none (a INT CHECK (a > 5 AND a < 3));
             CREATE TABLE two (a BOOLEAN PRIMARY KEY);
             CREATE TABLE child (a INT NOT NULL REFERENCES none (b), b INT)"""
    ddl = ddl.replace("(a INT CHECK", "(b INT PRIMARY KEY, a INT CHECK")
    assert build(tmp_path / "a.sqlite", ddl) == {"none": 0, "two": 2, "child": 0}


def test_the_first_row_of_a_tree_refers_to_itself(tmp_path: Path) -> None:
    ddl = "CREATE TABLE node (id INT PRIMARY KEY, parent_id INT NOT NULL REFERENCES node (id))"
    assert build(tmp_path / "a.sqlite", ddl) == {"node": 60}
    assert rows(tmp_path / "a.sqlite", "SELECT * FROM node WHERE id = 1") == [(1, 1)]


def test_equal_arguments_give_equal_rows_and_another_seed_others(tmp_path: Path) -> None:
    ddl = "CREATE TABLE pet (id INT PRIMARY KEY, name TEXT, price REAL)"
    contents = []
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        build(tmp_path / f"{name}.sqlite", ddl, seed=seed)
        contents.append(rows(tmp_path / f"{name}.sqlite", "SELECT * FROM pet"))
    assert contents[0] == contents[1] != contents[2]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.sqlite", "b.sqlite", "c.sqlite"]


def test_what_sqlite_cannot_hold_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DesignError) as caught:
        build(tmp_path / "a.sqlite", "CREATE TABLE t (a INT CHECK (length(a, 1) > 0))")
    assert caught.value.reason == "refused_by_sqlite"
    assert list(tmp_path.iterdir()) == []


def test_no_rows_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="num_rows"):
        build(tmp_path / "a.sqlite", "CREATE TABLE t (a INT)", num_rows=0)


@pytest.mark.parametrize(
    ("table", "column", "kind", "pattern"),
    [
        ("customer", "name", "TEXT", r"[A-Z]\w+ [A-Z]\w+"),
        ("customer", "email", "TEXT", r"\w+\.\w+@example\.org"),
        ("x", "BirthDate", "TEXT", r"(?:19|20)\d\d-\d\d-\d\d"),
        ("x", "launch_date", "DATE", r"20\d\d-\d\d-\d\d"),
        ("x", "founded_year", "INTEGER", r"19[89]\d|20[012]\d"),
        ("x", "is_open", "INTEGER", r"0|1"),
        ("x", "age", "INTEGER", r"\d\d"),
        ("x", "starts_at", "TIME", r"\d\d:\d\d:00"),
    ],
)
def test_names_of_columns_say_what_they_hold(
    table: str, column: str, kind: str, pattern: str
) -> None:
    rng = random.Random(0)
    for _ in range(30):
        value = make_value(table, column, ColumnKind(kind), rng)
        assert re.fullmatch(pattern, str(value)), value


# ---------------------------------------------------------------------- any schema

TYPES = ["INTEGER", "REAL", "TEXT", "DATE", "DATETIME", "TIME", "BOOLEAN"]
CHECKS = {
    "INTEGER": ["{} BETWEEN 3 AND 40", "{} > 100", "{} IN (1, 2, 3)", "{} <> 7"],
    "REAL": ["{} >= 0.5", "{} < 2", "{} IS NOT NULL"],
    "TEXT": ["{} IN ('x', 'y', 'z')", "LENGTH({}) > 3", "{} LIKE '%a%' OR {} IS NULL"],
}


@st.composite
def schemas(draw: st.DrawFn) -> str:
    """DDL with keys, references (also of several columns, to itself and overlapping) and checks."""
    keys: list[tuple[str, list[str], list[str]]] = []
    statements = []
    for number in range(draw(st.integers(1, 4))):
        name = f"t{number}"
        columns = {f"c{i}": draw(st.sampled_from(TYPES)) for i in range(draw(st.integers(1, 4)))}
        constraints = []
        for index in range(draw(st.integers(0, 2)) if keys else 0):
            table, key, types = draw(st.sampled_from(keys))
            own = [f"r{index}_{i}" for i in range(len(key))]
            fitting = [c for c, kind in columns.items() if kind == types[0]]
            if fitting and draw(st.booleans()):
                own[0] = draw(st.sampled_from(fitting))
            columns.update(zip(own, types, strict=True))
            constraints.append(
                f"FOREIGN KEY ({', '.join(own)}) REFERENCES {table} ({', '.join(key)})"
            )
        groups = st.lists(st.sampled_from(sorted(columns)), min_size=1, max_size=2, unique=True)
        for word, unique in zip(
            ("PRIMARY KEY", "UNIQUE"), draw(st.lists(groups, max_size=2)), strict=False
        ):
            constraints.append(f"{word} ({', '.join(unique)})")
            keys.append((name, unique, [columns[c] for c in unique]))
            if word == "PRIMARY KEY" and draw(st.booleans()):
                own = [f"self_{i}" for i in range(len(unique))]
                columns.update(zip(own, (columns[c] for c in unique), strict=True))
                constraints.append(f"FOREIGN KEY ({', '.join(own)}) REFERENCES {name}")
        for column, kind in columns.items():
            if kind in CHECKS and draw(st.integers(0, 3)) == 0:
                constraints.append(
                    f"CHECK ({draw(st.sampled_from(CHECKS[kind])).replace('{}', column)})"
                )
        items = [
            f"{c} {kind}{draw(st.sampled_from(['', ' NOT NULL']))}" for c, kind in columns.items()
        ]
        statements.append(f"CREATE TABLE {name} ({', '.join(items + constraints)})")
    return ";\n".join(statements)


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])  # fmt: skip
@given(schemas(), st.integers(0, 3))
def test_every_constraint_of_any_schema_holds(tmp_path: Path, ddl: str, seed: int) -> None:
    design = parse_design(ddl)
    path = tmp_path / "any.sqlite"
    counts = create_database(path, design, num_rows=8, seed=seed)
    connection = sqlite3.connect(path)
    assert connection.execute("PRAGMA foreign_key_check").fetchall() == []
    assert connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
    for table in design.tables:
        assert connection.execute(f"SELECT count(*) FROM {table.name}").fetchone() == (
            counts[table.name],
        )
        # SQLite lets NULL into primary keys; a key is none with it.
        for name in {*table.primary_key, *(c.name for c in table.columns if c.not_null)}:
            assert (
                connection.execute(f"SELECT 1 FROM {table.name} WHERE {name} IS NULL").fetchall()
                == []
            )
    connection.close()
