"""Queries drawn from the grammar."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from sqlglot import exp
from synthesis.concerts import make_concerts

from sense_trl.database.sqlite_engine import SQLiteEngine
from sense_trl.errors import InputError
from sense_trl.schema.graph import ColumnName, get_used_columns
from sense_trl.sql.parsing import parse_sql
from sense_trl.synthesis.explore.facts import DatabaseFacts, get_database_facts
from sense_trl.synthesis.explore.sql_sampler import LEVELS, SQLSampler, format_literal
from sense_trl.synthesis.explore.templates import get_complexity

NUM_DRAWS = 400


@pytest.fixture
def engine(fresh_db: Callable[..., Path]) -> Iterator[SQLiteEngine]:
    with SQLiteEngine(make_concerts(fresh_db)) as made:
        yield made


@pytest.fixture
def facts(engine: SQLiteEngine) -> DatabaseFacts:
    return get_database_facts(engine)


def _draw(facts: DatabaseFacts, level: int) -> list[str]:
    drawn = []
    for seed in range(NUM_DRAWS // 4):
        rng = random.Random(seed)
        sql = SQLSampler(facts).sample(level, facts.graph.sample(rng), rng)
        if sql is not None:
            drawn.append(sql)
    return drawn


@pytest.mark.parametrize("level", LEVELS)
def test_nearly_all_queries_execute_and_most_return_something(
    engine: SQLiteEngine, facts: DatabaseFacts, level: int
) -> None:
    results = [(sql, engine.execute(sql)) for sql in _draw(facts, level)]
    assert [(sql, result.error) for sql, result in results if not result.ok] == []
    assert (
        sum(bool(result.rows) for _, result in results) > 0.5 * len(results) > 0.2 * NUM_DRAWS / 4
    )


def test_levels_climb(facts: DatabaseFacts) -> None:
    means = []
    for level in LEVELS:
        found = [get_complexity(sql, "sqlite") for sql in _draw(facts, level)]
        means.append(sum(found) / len(found))
    assert means[0] == 1
    assert means == sorted(means)
    assert means[-1] > 2.5


def test_every_clause_is_drawn(facts: DatabaseFacts) -> None:
    found: Counter[type[exp.Expression]] = Counter()
    for level in LEVELS:
        for sql in _draw(facts, level):
            found.update({type(node) for node in parse_sql(sql, "sqlite").walk()})
    wanted = {
        exp.Join, exp.Where, exp.Group, exp.Having, exp.Order, exp.Limit, exp.Distinct, exp.Union,
        exp.Intersect, exp.Except, exp.In, exp.Not, exp.Like, exp.Between, exp.Or, exp.And,
        exp.Count, exp.Avg, exp.Max, exp.Min, exp.Sum,
    }  # fmt: skip
    assert wanted <= set(found)


def test_columns_come_from_the_part_that_is_asked_about(facts: DatabaseFacts) -> None:
    focus = [
        ColumnName("singer", "country"),
        ColumnName("singer", "age"),
        ColumnName("singer", "name"),
    ]
    for level in (1, 2):
        for seed in range(60):
            sql = SQLSampler(facts).sample(level, focus, random.Random(seed))
            if sql is not None and " JOIN " not in sql:
                assert get_used_columns(sql, facts.schema) <= set(focus), sql


def test_a_seed_draws_the_same_query(facts: DatabaseFacts) -> None:
    assert _draw(facts, 4) == _draw(facts, 4)


def test_a_table_alone_allows_no_join(fresh_db: Callable[..., Path]) -> None:
    with SQLiteEngine(
        fresh_db("CREATE TABLE t (a TEXT, n INT); INSERT INTO t VALUES ('x', 1), ('y', 2)")
    ) as engine:
        facts = get_database_facts(engine)
    drawn = {sql for level in LEVELS for sql in _draw(facts, level)}
    assert drawn
    assert not any("JOIN" in sql or " IN (" in sql for sql in drawn)


def test_unusable_arguments_are_named(facts: DatabaseFacts) -> None:
    with pytest.raises(InputError, match="`level` is 5"):
        SQLSampler(facts).sample(5, facts.graph.columns, random.Random(0))
    with pytest.raises(InputError, match="`columns` is empty"):
        SQLSampler(facts).sample(1, [], random.Random(0))


def test_a_literal_is_read_back() -> None:
    for value in ("O'Neil", "", "a", 3, -2.5):
        literal = parse_sql(f"SELECT {format_literal(value)}", "sqlite").expressions[0]
        assert literal.to_py() == value
