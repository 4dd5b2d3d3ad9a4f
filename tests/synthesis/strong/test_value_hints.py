"""Values read out of queries, checks and comments."""

from __future__ import annotations

import pytest

from sense_trl.synthesis.strong.schema_design import parse_design
from sense_trl.synthesis.strong.value_hints import (
    ColumnLimits,
    get_example_values,
    get_limits,
    get_wanted_values,
)

DESIGN = parse_design(
    "CREATE TABLE pet (id INT PRIMARY KEY, name TEXT, age INT, weight REAL, born DATE, seen DATETIME);"
    "CREATE TABLE toy (id INT PRIMARY KEY, pet_id INT REFERENCES pet, name TEXT)"
)


def wanted(condition: str, table: str = "pet") -> dict:
    found = get_wanted_values(DESIGN, f"SELECT 1 FROM {table} WHERE {condition}", "sqlite")
    return {f"{owner}.{column}": set(values) for (owner, column), values in found.items()}


@pytest.mark.parametrize(
    ("condition", "expected"),
    [
        ("name = 'Rex'", {"pet.name": {"Rex"}}),
        ('name = "Rex"', {"pet.name": {"Rex"}}),
        ("'Rex' = LOWER(name)", {"pet.name": {"Rex"}}),
        ("name IN ('Rex', 'Tom')", {"pet.name": {"Rex", "Tom"}}),
        ("name LIKE '%ex'", {"pet.name": {"ex"}}),
        ("name LIKE 'R_x%'", {"pet.name": {"Rax", "Rax Bay"}}),
        ("weight = 3", {"pet.weight": {3.0}}),
        ("age = '3'", {"pet.age": {3}}),
        ("age = 'old'", {}),
        ("age = -3", {"pet.age": {-3}}),
        ("born LIKE '2023-05%'", {"pet.born": {"2023-05-15"}}),
        ("strftime('%Y', born) = '2023'", {"pet.born": {"2023-06-15"}}),
        ("seen = '2023-05-01'", {"pet.seen": {"2023-05-01 12:00:00"}}),
        ("age > 4 AND age < 6", {"pet.age": {5}}),
        ("age BETWEEN 5 AND 6", {"pet.age": {5, 6}}),
        ("name = 'Rex' OR name = 'Tom'", {"pet.name": {"Rex", "Tom"}}),
        ("age = weight", {}),
        ("LENGTH(name) > 3", {}),
        ("(SELECT count(id) FROM toy) = 3", {}),
        ("nme = 'Rex'", {}),
        ("age = 99999999999999999999999", {}),
    ],
)
def test_conditions_say_what_is_wanted(condition: str, expected: dict) -> None:
    assert wanted(condition) == expected


def test_values_beyond_a_bound_are_wanted() -> None:
    (values,) = wanted("weight >= 10").values()
    assert min(values) == 10 < max(values)
    (dates,) = wanted("born < '2023-03-01'").values()
    assert max(dates) == "2023-02-28"


def test_aliases_and_groups_are_looked_through() -> None:
    sql = """SELECT p.name FROM pet AS p JOIN toy AS t ON t.pet_id = p.id
             WHERE t.name = 'Ball' GROUP BY p.id HAVING AVG(p.age) = 4 AND COUNT(t.id) > 7"""
    assert get_wanted_values(DESIGN, sql, "sqlite") == {
        ("toy", "name"): ("Ball",),
        ("pet", "age"): (4,),
    }


def test_a_text_that_is_no_query_wants_nothing() -> None:
    assert get_wanted_values(DESIGN, "Sorry!", "sqlite") == {}


@pytest.mark.parametrize(
    ("check", "expected"),
    [
        ("a IN ('x', 'y')", ColumnLimits(("x", "y"))),
        ("n > 0 AND n <= 9", ColumnLimits(None, 1, 9)),
        ("n BETWEEN -1 AND 5", ColumnLimits(None, -1, 5)),
        ("(n >= 3) AND (n >= 2)", ColumnLimits(None, 3, None)),
        ("r > 0", ColumnLimits(None, 0.01, None)),
        ("a = 'x' OR a = 'y'", None),
        ("a < b", None),
        ("LENGTH(a) = 3", None),
    ],
)
def test_simple_checks_limit_a_column(check: str, expected: ColumnLimits | None) -> None:
    (table,) = parse_design(
        f"CREATE TABLE t (a TEXT, b TEXT, n INT, r REAL, CHECK ({check}))"
    ).tables
    limits = get_limits(table)
    assert list(limits.values()) == ([] if expected is None else [expected])


def test_comments_give_examples() -> None:
    ddl = """CREATE TABLE pet (
        id INT PRIMARY KEY,  -- 1
        name TEXT NOT NULL, -- e.g. 'Rex', "Tom", 'O''Neil'
        age INT,            -- years, such as 3 or 11
        born DATE           -- 'soon', '2020-01-31'
    );
    CREATE TABLE toy (name TEXT) -- 'Ball'
    """
    assert get_example_values(parse_design(ddl), ddl) == {
        ("pet", "id"): (1,),
        ("pet", "name"): ("Rex", "Tom", "O'Neil"),
        ("pet", "age"): (3, 11),
        ("pet", "born"): ("2020-01-31",),
    }
