"""Questions written from syntax trees."""

from __future__ import annotations

import contextlib
import random
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest
from synthesis.concerts import FirstChoice, make_concerts

from sense_trl.database.sqlite_engine import SQLiteEngine
from sense_trl.schema.graph import ColumnName, SchemaGraph
from sense_trl.schema.schema import get_schema
from sense_trl.sql.mutation import mutate_sql
from sense_trl.synthesis.explore.facts import get_database_facts
from sense_trl.synthesis.explore.phrases import PhraseBook
from sense_trl.synthesis.explore.rendering import CannotPhraseError, QuestionWriter
from sense_trl.synthesis.explore.sql_sampler import SQLSampler

CASES = Path(__file__).resolve().parent / "cases" / "questions.sql"


def _cases() -> list[tuple[str, str]]:
    lines = [line for line in CASES.read_text().splitlines()[2:] if not line.startswith("---")]
    return [
        (sql, said.removeprefix("-- ")) for said, sql in zip(lines[::2], lines[1::2], strict=True)
    ]


@pytest.fixture
def graph(fresh_db: Callable[..., Path]) -> SchemaGraph:
    with SQLiteEngine(make_concerts(fresh_db)) as engine:
        return SchemaGraph(get_schema(engine))


@pytest.mark.parametrize(("sql", "expected"), _cases())
def test_a_question_says_what_the_query_does(graph: SchemaGraph, sql: str, expected: str) -> None:
    assert QuestionWriter(graph).write(sql, FirstChoice()) == f"What is {expected}"


@pytest.mark.parametrize(
    ("sql", "reason"),
    [
        ("SELECT a.name FROM singer AS a JOIN singer AS b ON a.id = b.id", "joined with itself"),
        ("SELECT name FROM singer JOIN stadium", "no equality of columns"),
        (
            "SELECT T1.name FROM singer AS T1 LEFT JOIN song AS T2 ON T1.id = T2.singer_id",
            "side of join",
        ),
        (
            "SELECT T1.name FROM singer AS T1 JOIN stadium AS T2 ON T1.id = T2.stadium_id",
            "no reference",
        ),
        ("SELECT T1.name FROM singer AS T1 JOIN song AS T2 ON T1.id > T2.singer_id", "no equality"),
        (
            "SELECT T1.name FROM singer AS T1 JOIN song AS T2 ON T1.id = T2.singer_id JOIN stadium AS T3 ON T1.id = T2.singer_id",
            "joined to none before",
        ),
        ("SELECT country FROM singer GROUP BY ROLLUP (country)", "no words"),
        (
            "SELECT title FROM (singer JOIN song ON singer.id = song.singer_id)",
            "joins in parentheses",
        ),
        ("SELECT name FROM singer LIMIT 3", "LIMIT without an order"),
        ("SELECT name FROM singer ORDER BY age LIMIT 3 OFFSET 1", "offset of select"),
        ("SELECT upper(name) FROM singer", "upper"),
        ("SELECT CASE WHEN age > 3 THEN 1 END FROM singer", "case"),
        ("SELECT x FROM (SELECT age AS x FROM singer)", "subquery"),
        ("WITH s AS (SELECT name FROM singer) SELECT name FROM s", "with_? of select|subquery"),
        ("SELECT name FROM singer WHERE NOT (age > 3)", "gt negated"),
        ("SELECT name FROM singer WHERE NOT (age > 3 AND id = 1)", "NOT before several"),
        ("SELECT name FROM singer WHERE name LIKE 'a_b'", "pattern"),
        ("SELECT name FROM singer WHERE EXISTS (SELECT 1 FROM song)", "no words"),
        (
            "SELECT name FROM singer WHERE age > (SELECT max(year) FROM song WHERE singer_id = singer.id)",
            "outer query",
        ),
        ("SELECT name FROM singer UNION ALL SELECT title FROM song", "ALL"),
        ("SELECT name FROM singer UNION SELECT title FROM song ORDER BY 1", "order of union"),
        ("SELECT sum(DISTINCT age) FROM singer", "sum of DISTINCT"),
        ("SELECT nothing FROM singer", "no column of a table"),
        ("SELECT rank() OVER (ORDER BY age) FROM singer", "window"),
        ("SELECT name FROM singer GROUP BY name HAVING", "cannot parse"),
        ("SELECT count(*) FROM singer HAVING count(*) > 3", "HAVING without GROUP BY"),
        (
            "SELECT name FROM singer WHERE id IN (SELECT singer_id FROM song WHERE title = 'a') AND age > (SELECT avg(age) FROM singer WHERE age > 3)",
            "after a subquery",
        ),
    ],
)
def test_what_has_no_words_is_refused(graph: SchemaGraph, sql: str, reason: str) -> None:
    with pytest.raises(CannotPhraseError, match=reason):
        QuestionWriter(graph).write(sql, random.Random(0))


def test_two_references_between_two_tables_are_told_apart(fresh_db: Callable[..., Path]) -> None:
    script = (
        "CREATE TABLE team (id INTEGER PRIMARY KEY, name TEXT);"
        "CREATE TABLE game (home INT REFERENCES team (id), away INT REFERENCES team (id), score INT);"
    )
    with SQLiteEngine(fresh_db(script)) as engine:
        writer = QuestionWriter(SchemaGraph(get_schema(engine)))
    questions = [
        writer.write(
            f"SELECT T1.name FROM team AS T1 JOIN game AS T2 ON T1.id = T2.{column}", FirstChoice()
        )
        for column in ("home", "away")
    ]
    assert (
        questions[0] == "What is the name of the team for games with their team (matched on home)?"
    )
    assert (
        questions[1] == "What is the name of the team for games with their team (matched on away)?"
    )


def test_a_table_that_two_of_the_joined_refer_to_is_told_by_the_reference(
    fresh_db: Callable[..., Path],
) -> None:
    script = (
        "CREATE TABLE office (id INTEGER PRIMARY KEY, city TEXT);"
        "CREATE TABLE worker (id INTEGER PRIMARY KEY, office_id INT REFERENCES office (id));"
        "CREATE TABLE past_job (worker_id INT REFERENCES worker (id), office_id INT REFERENCES office (id));"
    )
    with SQLiteEngine(fresh_db(script)) as engine:
        writer = QuestionWriter(SchemaGraph(get_schema(engine)))
    sql = (
        "SELECT T3.city FROM past_job AS T1 JOIN worker AS T2 ON T1.worker_id = T2.id"
        " JOIN office AS T3 ON {}.office_id = T3.id"
    )
    for alias, table in (("T1", "past job"), ("T2", "worker")):
        assert writer.write(sql.format(alias), FirstChoice()) == (
            "What is the city of the office for past jobs with their worker and office"
            f" (matched on office id of the {table})?"
        )


def test_a_column_without_a_name_has_no_words(fresh_db: Callable[..., Path]) -> None:
    with SQLiteEngine(fresh_db('CREATE TABLE pet ("" TEXT, age INT)')) as engine:
        writer = QuestionWriter(SchemaGraph(get_schema(engine)))
    with pytest.raises(CannotPhraseError, match="blank name"):
        writer.write('SELECT "" FROM pet', FirstChoice())


def test_given_phrases_are_used(graph: SchemaGraph) -> None:
    phrases = PhraseBook(
        tables={"singer": ["artist"]}, columns={ColumnName("singer", "age"): ["years of age"]}
    )
    question = QuestionWriter(graph, phrases).write("SELECT max(age) FROM singer", FirstChoice())
    assert question == "What is the maximum years of age of artists?"


def test_a_seed_gives_one_question_and_seeds_give_several(graph: SchemaGraph) -> None:
    sql = "SELECT name FROM singer WHERE age > 30 ORDER BY age DESC LIMIT 1"
    writer = QuestionWriter(graph)
    questions = [writer.write(sql, random.Random(seed)) for seed in range(20)]
    assert questions == [writer.write(sql, random.Random(seed)) for seed in range(20)]
    assert len(set(questions)) > 10


def test_queries_with_other_answers_are_asked_for_in_other_words(
    fresh_db: Callable[..., Path],
) -> None:
    num_compared = 0
    with SQLiteEngine(make_concerts(fresh_db)) as engine:
        facts = get_database_facts(engine)
        columns = {t.name: {c.name: c.type for c in t.columns} for t in facts.schema.tables}
        writer, sampler = QuestionWriter(facts.graph), SQLSampler(facts)
        for seed in range(100):
            rng = random.Random(seed)
            sql = sampler.sample(seed % 4 + 1, facts.graph.sample(rng), rng)
            if sql is None:
                continue
            question = writer.write(sql, FirstChoice())
            rows = Counter(engine.execute(sql).rows)
            for mutant in mutate_sql(sql, "sqlite", columns=columns, seed=seed, max_mutants=12):
                if Counter(engine.execute(mutant.sql).rows) == rows:
                    continue
                with contextlib.suppress(CannotPhraseError):
                    num_compared += 1
                    assert writer.write(mutant.sql, FirstChoice()) != question, (sql, mutant)
    assert num_compared > 300
