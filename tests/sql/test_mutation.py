from __future__ import annotations

import functools
import json
import os
import random
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sql_cases import SQLCase, load_cases, load_schema

from sense_trl.database import SQLiteEngine
from sense_trl.database.engine import QueryStatus
from sense_trl.errors import InputError
from sense_trl.sql.mutation import Mutant, MutationKind, mutate_sql
from sense_trl.sql.parsing import SQLParseError, canonical_sql

COLUMNS, FOREIGN_KEYS = load_schema()
CASES = load_cases("mutations.sql")
GOLDS = sorted({case.gold for case in CASES})


def mutants_of(sql: str, **options: object) -> list[Mutant]:
    return mutate_sql(sql, "sqlite", columns=COLUMNS, foreign_keys=FOREIGN_KEYS, **options)  # type: ignore[arg-type]


@functools.cache
def kinds_by_text(gold: str) -> dict[str, set[str]]:
    """The kinds of mutants by canonical text, over several seeds: some alternatives are drawn."""
    found: dict[str, set[str]] = {}
    for seed in range(8):
        for mutant in mutants_of(gold, seed=seed):
            found.setdefault(canonical_sql(mutant.sql, "sqlite"), set()).add(str(mutant.kind))
    return found


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case.labels[0]}: {case.sql}")
def test_a_mistake_that_models_make_is_among_the_mutants(case: SQLCase) -> None:
    assert kinds_by_text(case.gold).get(canonical_sql(case.sql, "sqlite")) == set(case.labels)


def test_every_kind_has_a_case() -> None:
    # Which column or condition is added is drawn from many, so no case can name one.
    drawn = {MutationKind.SELECT_COLUMN_ADDED, MutationKind.CONDITION_ADDED}
    assert {label for case in CASES for label in case.labels} == set(MutationKind) - drawn
    assert drawn <= {mutant.kind for mutant in mutants_of("SELECT name FROM singer")}


# Two edits of the first give one text, and an edit of the second gives the query again.
REPETITIVE = [
    "SELECT name, name FROM singer",
    "SELECT id FROM singer EXCEPT SELECT id FROM singer",
]


@pytest.mark.parametrize("gold", GOLDS + REPETITIVE)
def test_mutants_are_distinct_and_none_is_the_query(gold: str) -> None:
    texts = [canonical_sql(mutant.sql, "sqlite") for mutant in mutants_of(gold)]
    assert texts
    assert len(set(texts)) == len(texts)
    assert canonical_sql(gold, "sqlite") not in texts


@given(st.sampled_from(GOLDS), st.integers(), st.integers(min_value=0, max_value=60))
@settings(max_examples=60)
def test_a_limit_takes_some_of_the_mutants_of_that_seed(gold: str, seed: int, limit: int) -> None:
    everything = mutants_of(gold, seed=seed)
    some = mutants_of(gold, seed=seed, max_mutants=limit)
    assert len(some) == min(limit, len(everything))
    # One text may be reached by two mistakes; the kind then depends on which came first.
    assert {mutant.sql for mutant in some} <= {mutant.sql for mutant in everything}
    if limit >= len({mutant.kind for mutant in everything}):
        assert len({mutant.kind for mutant in some}) > 1 or len(some) < 2


def test_a_limit_spreads_over_the_kinds() -> None:
    gold = "SELECT name FROM singer WHERE age > 30 ORDER BY age LIMIT 3"
    assert len({mutant.kind for mutant in mutants_of(gold, max_mutants=8)}) == 8


def test_the_same_seed_gives_the_same_mutants_in_another_process() -> None:
    gold = "SELECT name, country FROM singer WHERE age > 30 AND country = 'France'"
    code = (
        "from sense_trl.sql.mutation import mutate_sql; import sys;"
        f"print([m.sql for m in mutate_sql({gold!r}, 'sqlite', columns={COLUMNS!r}, seed=3)])"
    )
    found = {
        subprocess.run(
            [sys.executable, "-c", code],
            env={**os.environ, "PYTHONHASHSEED": salt},
            capture_output=True,
            text=True,
            check=True,
        ).stdout.strip()
        for salt in ("1", "2")
    }
    assert found == {str([m.sql for m in mutate_sql(gold, "sqlite", columns=COLUMNS, seed=3)])}
    assert {m.sql for m in mutants_of(gold, seed=3)} != {m.sql for m in mutants_of(gold, seed=4)}


def test_without_a_schema_only_the_names_of_the_query_are_exchanged() -> None:
    texts = {m.sql for m in mutate_sql("SELECT a FROM t WHERE b = 1", "sqlite")}
    assert "SELECT b FROM t WHERE b = 1" in texts
    assert "SELECT a FROM t WHERE a = 1" in texts
    words = {word for text in texts for word in text.replace("(", " ").replace(")", " ").split()}
    assert not {word for word in words if word.isalpha() and word.islower()} - {"a", "b", "t"}


@pytest.mark.parametrize(
    ("gold", "wanted"),
    [
        ("SELECT DISTINCT country FROM singer", ["SELECT country FROM singer"]),
        ("SELECT country FROM singer", ["SELECT DISTINCT country FROM singer"]),
        ("SELECT count(DISTINCT country) FROM singer", []),
        ("SELECT country, count(*) FROM singer GROUP BY country", []),
        ("SELECT id FROM singer UNION SELECT DISTINCT singer_id FROM song", []),
        (
            "SELECT id FROM singer WHERE id IN (SELECT singer_id FROM song)",
            ["SELECT DISTINCT id FROM singer WHERE id IN (SELECT singer_id FROM song)"],
        ),
    ],
)
def test_distinct_changes_only_where_it_matters(gold: str, wanted: list[str]) -> None:
    kinds = (MutationKind.DISTINCT_ADDED, MutationKind.DISTINCT_DROPPED)
    assert [mutant.sql for mutant in mutants_of(gold) if mutant.kind in kinds] == wanted


def test_columns_that_a_join_sets_equal_are_not_exchanged() -> None:
    gold = "SELECT singer.id FROM singer JOIN song ON singer.id = song.singer_id"
    texts = {mutant.sql for seed in range(8) for mutant in mutants_of(gold, seed=seed)}
    join = "FROM singer JOIN song ON singer.id = song.singer_id"
    assert f"SELECT song.singer_id {join}" not in texts
    assert f"SELECT song.year {join}" in texts


def test_duckdb_gives_mutants_in_its_own_dialect() -> None:
    gold = "SELECT name FROM singer WHERE name ILIKE 'a%' QUALIFY row_number() OVER () = 1"
    mutants = mutate_sql(gold, "duckdb", columns=COLUMNS)
    assert "SELECT country FROM singer" in {m.sql.partition(" WHERE")[0] for m in mutants}
    assert all("ILIKE" in m.sql for m in mutants if m.kind is MutationKind.WRONG_COLUMN)
    assert all(" QUALIFY " in m.sql for m in mutants)


def test_what_only_the_parser_takes_is_mutated_as_far_as_it_goes() -> None:
    assert mutate_sql("SELECT max()", "duckdb", columns=COLUMNS) == []
    assert mutate_sql("SELECT name FROM f(1) JOIN g(2)", "sqlite", columns=COLUMNS)


def test_what_cannot_be_mutated_says_so() -> None:
    with pytest.raises(SQLParseError, match="cannot parse"):
        mutate_sql("SELECT FROM WHERE", "sqlite")
    with pytest.raises(InputError, match="`max_mutants` is -1; expected 0 or more"):
        mutate_sql("SELECT 1", "sqlite", max_mutants=-1)


def test_nearly_all_mutants_of_real_queries_execute(
    shared_data: Path, spider_databases: Path
) -> None:
    from sense_trl.schema.schema import load_spider_schemas

    schemas = load_spider_schemas(shared_data / "spider" / "tables.json")
    lines = (shared_data / "spider" / "dev.jsonl").read_text(encoding="utf-8").splitlines()
    questions = random.Random(0).sample([json.loads(line) for line in lines], 60)
    count = 0
    failed: Counter[MutationKind] = Counter()
    for question in sorted(questions, key=lambda question: question["db_id"]):
        db_id = question["db_id"]
        schema = schemas[db_id]
        columns = {t.name: {c.name: c.type for c in t.columns} for t in schema.tables}
        keys = [
            (table, key.columns[0], key.referenced_table, key.referenced_columns[0])
            for table, key in schema.foreign_keys
        ]
        mutants = mutate_sql(question["query"], "sqlite", columns=columns, foreign_keys=keys)
        assert mutants
        with SQLiteEngine(spider_databases / db_id / f"{db_id}.sqlite") as engine:
            for mutant in mutants:
                count += 1
                if engine.execute(mutant.sql).status is not QueryStatus.OK:
                    failed[mutant.kind] += 1
    assert count > 600
    # Of 98,013 mutants of 4,998 queries, 4 do not execute.
    assert failed.total() <= 0.005 * count, failed
