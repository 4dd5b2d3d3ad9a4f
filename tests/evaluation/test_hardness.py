"""Spider's levels: hand-counted queries and the published counts."""

from __future__ import annotations

import json
import sqlite3
from collections import Counter
from pathlib import Path

import pytest
from sql_cases import FOLDER

from sense_trl.database import SQLiteEngine
from sense_trl.errors import InputError
from sense_trl.evaluation.hardness import Hardness, get_hardness
from sense_trl.schema import DatabaseSchema, get_schema, load_spider_schemas


@pytest.fixture(scope="module")
def schema(tmp_path_factory: pytest.TempPathFactory) -> DatabaseSchema:
    path = tmp_path_factory.mktemp("hardness") / "music.sqlite"
    connection = sqlite3.connect(path)
    connection.executescript((FOLDER / "schema.sql").read_text(encoding="utf-8"))
    connection.close()
    with SQLiteEngine(path) as engine:
        return get_schema(engine)


# Query and (clauses, nested, further parts), counted by hand, with the level that follows.
COUNTED = [
    ("SELECT name FROM singer", (0, 0, 0), "easy"),
    ("SELECT name FROM singer WHERE age > 3", (1, 0, 0), "easy"),
    ("SELECT count(*) FROM singer", (0, 0, 0), "easy"),
    # A second result column is a further part, so is a second condition; LIKE is a clause.
    ("SELECT name, age FROM singer", (0, 0, 1), "medium"),
    ("SELECT name, age FROM singer WHERE age > 3 AND id > 1", (1, 0, 2), "medium"),
    ("SELECT name FROM singer WHERE name LIKE 'a'", (2, 0, 0), "medium"),
    ("SELECT name FROM singer ORDER BY age LIMIT 1", (2, 0, 0), "medium"),
    ("SELECT T1.name FROM singer AS T1 JOIN song AS T2 WHERE T1.age > 3", (2, 0, 0), "medium"),
    # Both conditions hold OR: where, or.
    ("SELECT name FROM singer WHERE age > 3 OR id > 1", (2, 0, 1), "medium"),
    # NOT in WHERE passes for an aggregate, alone it is not several.
    ("SELECT max(name) FROM singer WHERE age NOT LIKE 3", (2, 0, 1), "medium"),
    ("SELECT name FROM singer WHERE age NOT LIKE 3", (2, 0, 0), "medium"),
    ("SELECT name, id FROM singer WHERE age > 3 ORDER BY age", (2, 0, 1), "medium"),
    ("SELECT name, id FROM singer WHERE age > 3 AND id > 1 ORDER BY age", (2, 0, 2), "extra"),
    ("SELECT name FROM singer WHERE age > 3 ORDER BY age LIMIT 1", (3, 0, 0), "hard"),
    (
        "SELECT max(age), max(id) FROM singer WHERE age > 3 AND id > 1 GROUP BY name",
        (2, 0, 3),
        "hard",
    ),
    ("SELECT name FROM singer WHERE id IN (SELECT singer_id FROM song)", (1, 1, 0), "hard"),
    ("SELECT name FROM singer UNION SELECT name FROM stadium", (0, 1, 0), "hard"),
    # What is nested does not add its own clauses.
    (
        "SELECT name FROM singer UNION SELECT name FROM stadium WHERE capacity > 3 LIMIT 1",
        (0, 1, 0),
        "hard",
    ),
    ("SELECT name, age FROM singer UNION SELECT name, capacity FROM stadium", (0, 1, 1), "extra"),
    (
        "SELECT name FROM singer WHERE id = (SELECT max(id) FROM singer) LIMIT 1",
        (2, 1, 0),
        "extra",
    ),
    (
        "SELECT name FROM singer GROUP BY name HAVING max(age) > (SELECT max(age) FROM singer)",
        (1, 1, 0),
        "hard",
    ),
    (
        "SELECT T1.id FROM singer AS T1 JOIN song AS T2 ON T1.id = (SELECT max(id) FROM singer)",
        (1, 1, 0),
        "hard",
    ),
    # A subquery in FROM does not count.
    ("SELECT count(*) FROM (SELECT name FROM singer WHERE age > 3)", (0, 0, 0), "easy"),
    # ON: two tables, OR, LIKE.
    (
        "SELECT T1.id FROM singer AS T1 JOIN song AS T2 ON T1.id = 1 OR T1.name LIKE 'a'",
        (3, 0, 0),
        "hard",
    ),
    (
        "SELECT T1.id FROM singer AS T1 JOIN song AS T2 ON T1.id = 1 WHERE T1.age > 3 ORDER BY T1.id LIMIT 1",
        (4, 0, 0),
        "extra",
    ),
    # AND in HAVING passes for an aggregate, as does that in ORDER BY: several.
    (
        "SELECT name FROM singer GROUP BY name, age HAVING age > 1 AND id > 1 ORDER BY max(id)",
        (2, 0, 2),
        "extra",
    ),
    ("SELECT name FROM singer GROUP BY name HAVING age > 1 AND id > 1", (1, 0, 0), "easy"),
    ("SELECT max(name) FROM singer GROUP BY name HAVING age > 1 AND id > 1", (1, 0, 1), "medium"),
    ("SELECT max(name) FROM singer GROUP BY name HAVING max(age) > 1", (1, 0, 0), "easy"),
    ("SELECT max(name) FROM singer GROUP BY name HAVING age NOT IN 1", (1, 0, 1), "medium"),
    ("SELECT name FROM singer ORDER BY max(id) - min(age)", (1, 0, 1), "medium"),
]


@pytest.mark.parametrize(("sql", "counts", "level"), COUNTED, ids=[sql for sql, _, _ in COUNTED])
def test_hand_counted_levels(
    sql: str, counts: tuple[int, int, int], level: str, schema: DatabaseSchema
) -> None:
    assert level_of(*counts) == level
    assert get_hardness(sql, schema) is Hardness(level)


def level_of(clauses: int, nested: int, parts: int) -> str:
    """The levels as a table: rows are clauses, columns further parts."""
    if nested:
        return "hard" if (clauses <= 1, nested, parts) == (True, 1, 0) else "extra"
    table = {
        0: ("easy", "medium", "medium", "hard", "hard"),
        1: ("easy", "medium", "medium", "hard", "hard"),
        2: ("medium", "medium", "extra", "hard", "hard"),
        3: ("hard", "hard", "hard", "extra", "extra"),
    }
    return table.get(clauses, ("extra",) * 5)[parts]


def test_gold_that_spider_cannot_read_is_an_error(schema: DatabaseSchema) -> None:
    with pytest.raises(InputError, match="`gold_sql` is 'SELECT 1'"):
        get_hardness("SELECT 1", schema)


def test_spiders_published_counts(shared_data: Path) -> None:
    schemas = load_spider_schemas(shared_data / "spider" / "tables.json")
    lines = (shared_data / "spider" / "dev.jsonl").read_text(encoding="utf-8").splitlines()
    questions = [json.loads(line) for line in lines]
    counts = Counter(get_hardness(q["query"], schemas[q["db_id"]]) for q in questions)
    assert counts == {"easy": 248, "medium": 446, "hard": 174, "extra": 166}
