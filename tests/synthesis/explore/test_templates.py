"""Templates taken out of seed queries and filled anew."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from pathlib import Path

import pytest
from synthesis.concerts import make_concerts

from sense_trl.database.sqlite_engine import SQLiteEngine
from sense_trl.schema import load_spider_schemas
from sense_trl.schema.graph import SchemaGraph
from sense_trl.sql.parsing import parse_sql
from sense_trl.synthesis.explore.facts import DatabaseFacts, get_database_facts
from sense_trl.synthesis.explore.templates import (
    TemplateMiner,
    fill_template,
    get_complexity,
    mine_templates,
    write_sql,
)


@pytest.fixture
def facts(fresh_db: Callable[..., Path]) -> DatabaseFacts:
    with SQLiteEngine(make_concerts(fresh_db)) as engine:
        return get_database_facts(engine)


@pytest.mark.parametrize(
    ("sql", "text"),
    [
        ("select NAME from Singer", "SELECT text1 FROM table1"),
        ("SELECT s.name FROM singer AS s WHERE s.age > 3 -- old", "SELECT text1 FROM table1 WHERE number1 > :value"),
        ('SELECT age FROM singer WHERE name = "Bo" AND country != \'a\' AND age NOT IN (1, -2)',
         "SELECT number1 FROM table1 WHERE text1 = :value AND text2 != :value AND number1 NOT IN (:value, :value)"),
        ("SELECT name FROM singer WHERE name LIKE '%Lee' OR name NOT LIKE 'x' ORDER BY age DESC LIMIT 3",
         "SELECT text1 FROM table1 WHERE text1 LIKE '%value' OR text1 NOT LIKE 'value' ORDER BY number1 DESC LIMIT 3"),
        ("SELECT song.title, x.name FROM singer AS x JOIN song ON song.singer_id = id GROUP BY name HAVING count(*) > 2",
         "SELECT T2.text1, T1.text2 FROM table1 AS T1 JOIN table2 AS T2 ON T2.key1 = T1.key2 GROUP BY T1.text2 HAVING COUNT(*) > :value"),
        ("SELECT name FROM singer WHERE id NOT IN (SELECT singer_id FROM song WHERE year = 2004)",
         "SELECT text1 FROM table1 WHERE key1 NOT IN (SELECT key2 FROM table2 WHERE number1 = :value)"),
        ("SELECT name FROM singer EXCEPT SELECT name FROM singer WHERE held > 3", None),
        ("SELECT T1.name FROM singer AS T1 JOIN song AS T2 ON T1.id = T2.song_id", None),
        ("SELECT name FROM singer, song WHERE id = singer_id", None),
        ("SELECT id FROM singer EXCEPT SELECT singer_id FROM song", "SELECT key1 FROM table1 EXCEPT SELECT key2 FROM table2"),
        ("SELECT id FROM singer EXCEPT SELECT song_id FROM song", None),
        ("SELECT name FROM singer UNION SELECT title FROM song", "SELECT text1 FROM table1 UNION SELECT text2 FROM table2"),
        ("SELECT name FROM (SELECT name FROM singer)", None),
        ("SELECT name FROM singer WHERE age > (SELECT max(year) FROM song WHERE singer_id = id)", None),
        ("WITH s AS (SELECT 1 AS a) SELECT a FROM s", None),
        ("SELECT nothing FROM singer", None),
        ("DELETE FROM singer", None),
        ("SELECT FROM", None),
    ],
)  # fmt: skip
def test_names_and_constants_become_places(
    facts: DatabaseFacts, sql: str, text: str | None
) -> None:
    template = TemplateMiner(facts.graph).mine(sql)
    assert (None if template is None else template.text) == text


def test_references_have_a_direction(facts: DatabaseFacts) -> None:
    miner = TemplateMiner(facts.graph)
    template = miner.mine("SELECT count(*) FROM singer JOIN song ON id = singer_id GROUP BY id")
    assert template is not None
    assert template.references == (("key2", "key1"),)
    filled = {
        fill_template(template, facts, facts.graph.columns, random.Random(seed))
        for seed in range(30)
    }
    # The singer is referred to, whatever refers to it.
    assert (
        "SELECT COUNT(*) FROM singer AS T1 JOIN song AS T2 ON T1.id = T2.singer_id GROUP BY T1.id"
        in filled
    )
    assert (
        "SELECT COUNT(*) FROM stadium AS T1 JOIN concert AS T2 ON T1.stadium_id = T2.stadium_id GROUP BY T1.stadium_id"
        in filled
    )
    assert len(filled) == 4


def test_templates_are_counted_by_shape(facts: DatabaseFacts) -> None:
    seeds = [
        ("a", "SELECT name FROM singer"),
        ("a", "SELECT title FROM song AS T1"),
        ("a", "SELECT age FROM singer"),
        ("b", "SELECT 1"),
    ]
    found = mine_templates(seeds, {"a": facts.graph})
    assert [(t.num_seeds, t.text) for t in found] == [
        (2, "SELECT text1 FROM table1"),
        (1, "SELECT number1 FROM table1"),
    ]
    assert found[0].template_id != found[1].template_id
    assert found[0].level == 1


def test_constants_are_values_of_what_they_stand_beside(facts: DatabaseFacts) -> None:
    miner = TemplateMiner(facts.graph)
    seeds = {
        "SELECT name FROM singer WHERE country = 'x'": {"France", "Spain", "Italy"},
        "SELECT name FROM singer WHERE age > 7": {"31", "25", "44", "52"},
        "SELECT country FROM singer GROUP BY country HAVING count(*) > 9": {"1", "2", "3"},
    }
    focus = [c for c in facts.graph.columns if c.table == "singer"]
    for seed_sql, values in seeds.items():
        template = miner.mine(seed_sql)
        assert template is not None
        for seed in range(20):
            sql = fill_template(template, facts, focus, random.Random(seed))
            assert sql is not None
            constant = sql.replace("'", "").split()[-1]
            assert constant in values | {"Lee", "Ann", "Bo", "Cy", "Di", "Ed"}, sql


def test_bounds_come_in_order(facts: DatabaseFacts) -> None:
    template = TemplateMiner(facts.graph).mine("SELECT name FROM singer WHERE age BETWEEN 3 AND 1")
    assert template is not None
    for seed in range(20):
        sql = fill_template(template, facts, facts.graph.columns, random.Random(seed))
        if sql is not None:
            between = parse_sql(sql, "sqlite").args["where"].this
            assert float(between.args["low"].name) <= float(between.args["high"].name), sql


def test_constants_of_a_function_that_is_not_known_have_no_column(facts: DatabaseFacts) -> None:
    sql = "SELECT name FROM singer WHERE instr(name, zeroblob(9)) > 1 AND age > 3"
    template = TemplateMiner(facts.graph).mine(sql)
    assert template is not None
    assert fill_template(template, facts, facts.graph.columns, random.Random(0)) is None


def test_what_does_not_fit_is_not_filled(
    facts: DatabaseFacts, fresh_db: Callable[..., Path]
) -> None:
    template = TemplateMiner(facts.graph).mine(
        "SELECT name FROM singer JOIN song ON id = singer_id WHERE age > 3"
    )
    assert template is not None
    with SQLiteEngine(fresh_db("CREATE TABLE t (a TEXT, n INT)", name="small")) as engine:
        small = get_database_facts(engine)
    assert fill_template(template, small, small.graph.columns, random.Random(0)) is None


@pytest.mark.parametrize(
    ("sql", "level"),
    [
        ("SELECT a FROM t WHERE b > 1", 1),
        ("SELECT a FROM t WHERE b > 1 AND c > 1", 2),
        ("SELECT a FROM t JOIN u ON x = y AND z = w ORDER BY a", 2),
        ("SELECT a FROM t JOIN u ON x = y GROUP BY a ORDER BY a", 3),
        ("SELECT a FROM t WHERE a IN (SELECT b FROM u)", 3),
        ("SELECT a FROM t UNION SELECT b FROM u JOIN v ON x = y", 3),
        ("SELECT a FROM t WHERE x > (SELECT b FROM u) INTERSECT SELECT c FROM v ORDER BY 1", 4),
    ],
)
def test_levels_count_what_is_there(sql: str, level: int) -> None:
    assert get_complexity(sql, "sqlite") == level


def test_written_queries_read_back(shared_data: Path) -> None:
    lines = (shared_data / "spider" / "train.jsonl").read_text().splitlines()[:3000:10]
    for sql in (json.loads(line)["query"] for line in lines):
        tree = parse_sql(sql, "sqlite")
        text = write_sql(tree, "sqlite")
        assert "<>" not in text
        # Not changed, and the same query.
        assert tree == parse_sql(sql, "sqlite")
        assert parse_sql(text, "sqlite").sql("sqlite") == tree.sql("sqlite")


def test_templates_of_spider_fill_other_databases(
    shared_data: Path, spider_databases: Path
) -> None:
    schemas = load_spider_schemas(shared_data / "spider" / "tables.json")
    lines = (shared_data / "spider" / "train.jsonl").read_text().splitlines()[::40]
    seeds = [(record["db_id"], record["query"]) for record in map(json.loads, lines)]
    templates = mine_templates(
        seeds, {db_id: SchemaGraph(schema) for db_id, schema in schemas.items()}
    )
    assert sum(t.num_seeds for t in templates) > 0.85 * len(seeds)
    num_filled = 0
    with SQLiteEngine(spider_databases / "concert_singer" / "concert_singer.sqlite") as engine:
        facts = get_database_facts(engine, schema=schemas["concert_singer"])
        for number, template in enumerate(templates):
            sql = fill_template(template, facts, facts.graph.columns, random.Random(number))
            if sql is not None:
                num_filled += 1
                assert engine.execute(sql).ok, (sql, template)
    assert num_filled > 0.5 * len(templates)
