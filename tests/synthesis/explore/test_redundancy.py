"""Queries with a part that says nothing."""

from __future__ import annotations

import pytest

from sense_trl.synthesis.explore.redundancy import is_redundant


@pytest.mark.parametrize(
    "sql",
    [
        "SELECT name FROM pet WHERE name = 'a'",
        "SELECT age FROM pet WHERE name != 'a' AND name = 'b'",
        "SELECT age FROM pet WHERE name = 'a' AND name = 'b'",
        "SELECT age FROM pet WHERE kind = 'a' ORDER BY kind",
        "SELECT count(*) FROM pet WHERE kind = -1 GROUP BY kind",
        "SELECT T1.age FROM pet AS T1 JOIN shop AS T2 ON T1.shop = T2.id WHERE T1.age = 3",
        "SELECT name FROM pet EXCEPT SELECT name FROM pet WHERE name = 'a'",
        "SELECT name FROM pet WHERE age > 3 AND age >= 5",
        "SELECT name FROM pet WHERE (age < 3) AND (kind = 'a' AND age <= 5)",
        "SELECT name FROM pet WHERE kind != 'a' OR kind = 'b'",
        "SELECT name FROM pet WHERE age > 3 OR age != 5",
        "SELECT kind FROM pet GROUP BY kind HAVING count(*) >= 1",
        "SELECT kind FROM pet GROUP BY kind HAVING count(*) > 0",
    ],
)
def test_a_part_that_says_nothing_is_seen(sql: str) -> None:
    assert is_redundant(sql, "sqlite")


@pytest.mark.parametrize(
    "sql",
    [
        "SELECT name FROM pet WHERE kind = 'a'",
        "SELECT name FROM pet WHERE kind = 'a' OR kind = 'b'",
        "SELECT kind FROM pet WHERE kind = 'a' OR age > 3",
        "SELECT name FROM pet WHERE name LIKE '%a%'",
        "SELECT name FROM pet WHERE age > 3 AND age < 5",
        "SELECT name FROM pet WHERE kind != 'a' AND kind != 'b'",
        "SELECT name FROM pet WHERE age > 3 AND age > (SELECT avg(age) FROM pet)",
        "SELECT name FROM pet WHERE kind = 'a' AND age = (SELECT max(age) FROM pet WHERE kind = 'a')",
        "SELECT T2.city FROM pet AS T1 JOIN shop AS T2 ON T1.shop = T2.id WHERE T2.id = 3",
        "SELECT kind FROM pet GROUP BY kind HAVING count(*) > 1",
        "SELECT name FROM pet UNION SELECT name FROM pet WHERE kind = 'a'",
    ],
)
def test_what_each_part_narrows_is_kept(sql: str) -> None:
    assert not is_redundant(sql, "sqlite")
