"""Not one wrong label: in cases whose truth is known by construction, and of real models."""

from __future__ import annotations

import importlib.util
import itertools
import random
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import FreshDB

from sense_trl.database.catalog import DatabaseCatalog
from sense_trl.database.engine import ExecutionLimits
from sense_trl.pairs import Candidate, PreferencePairConfig, build_preference_pairs
from sense_trl.questions import Question
from sense_trl.task import make_task
from sense_trl.verification.verifier import SQLVerifier

ENDLESS = "WITH RECURSIVE c(x) AS (SELECT {k} UNION ALL SELECT x + 1 FROM c) SELECT SUM(x) FROM c"
# Gold queries over `pet`, whose ids are 1 to 60; the first kind alone can label anything.
GOLD = {
    "certain": "SELECT name FROM pet WHERE id > {k} AND id <= {m}",
    "empty": "SELECT name FROM pet WHERE id > {k} AND id < {k}",
    "fails": "SELECT nope{k} FROM pet",
    "never ends": ENDLESS,
    "several statements": "SELECT name FROM pet WHERE id > {k}; SELECT 1",
    "writes": "DELETE FROM pet WHERE id > {k}",
    "not deterministic": "SELECT name FROM pet WHERE id > {k} AND random() > 0",
    "ties": "SELECT name FROM pet WHERE id > {k} ORDER BY kind LIMIT 3",
}
# What may be made of a candidate beside a certain gold query: of others, nothing.
RIGHT = [
    "{gold} -- done",
    "/* first */ {gold}",
    "{gold};",
    "{gold} ;  \n",
    "select NAME from PET where ID>{k} and ID<={m}",
    "SELECT name FROM pet WHERE id BETWEEN {k} + 1 AND {m}",
    "SELECT p.name FROM pet p WHERE NOT (p.id <= {k} OR p.id > {m})",
    "WITH c AS ({gold}) SELECT * FROM c",
    "SELECT name FROM pet WHERE id > {k} AND id <= {m} ORDER BY id DESC -- 'quote",
]
WRONG = [
    "SELECT name FROM pet WHERE id > {k} AND id < {m}",
    "SELECT name FROM pet WHERE id > {k} AND id <= {m} + 1",
    "SELECT name, id FROM pet WHERE id > {k} AND id <= {m}",
    "SELECT id FROM pet WHERE id > {k} AND id <= {m}",
    "SELECT name FROM pet WHERE id < {k} AND id > {k}",
    "{gold} UNION ALL SELECT name FROM pet WHERE id = {m}",
    "SELECT nope{k} FROM pet",
    "SELECT name FROM pets WHERE id > {k}",
    "SELECT name FROM",
    "{gold}; SELECT 1",
    "{gold}; DROP TABLE pet",
    "{gold}\n\nThis query finds the names of pets.",
    "Sure! {gold}",
    "DELETE FROM pet WHERE id > {k}",
    "DELETE FROM pet WHERE id > {k} RETURNING name",
    "UPDATE pet SET name = 'x' WHERE id = {k}",
    "INSERT INTO pet SELECT * FROM pet",
    "-- {gold}",
    "/* {gold} */",
    "PRAGMA table_info(pet)",
    "ATTACH 'other.db' AS other",
    "I do not know.",
    ";",
]
NEITHER = [
    ENDLESS,
    "SELECT name FROM pet WHERE id > {k} AND id <= {m} AND random() IS NOT NULL",
    "SELECT name FROM pet WHERE id > {k} AND id <= {m} AND date('now') > 'a'",
    "",
    "  \n",
]


@pytest.fixture
def catalog(fresh_db: FreshDB) -> Iterator[DatabaseCatalog]:
    values = ", ".join(f"({i}, 'pet {i}', {i % 2})" for i in range(1, 61))
    path = fresh_db(
        "CREATE TABLE pet (id INTEGER PRIMARY KEY, name TEXT, kind INTEGER);"
        f"INSERT INTO pet VALUES {values};",
        name="pets",
    )
    # The step budget stops the endless ones, at once and on every machine.
    limits = ExecutionLimits(max_steps=20_000)
    with DatabaseCatalog.from_path(path, limits=limits) as opened:
        yield opened


def _make_cases(
    num_questions: int, rng: random.Random
) -> tuple[list[Question], list[Candidate], dict[str, str]]:
    """Questions with four candidates each, and what each candidate may be made of."""
    questions, candidates, truth = [], [], {}
    kinds = itertools.cycle(["certain", *GOLD])
    for number, kind in zip(range(num_questions), kinds, strict=False):
        k = rng.randrange(1, 40)
        values = {"k": k, "m": k + rng.randrange(2, 12)}
        gold = GOLD[kind].format(**values)
        question_id = f"q{number:05d}"
        questions.append(Question(question_id, "pets", "?", gold))
        # Gold's own text comes too: the same error, time-out or empty result on both sides.
        drawn = [(gold, "same text")]
        for label, templates in (("correct", RIGHT), ("wrong", WRONG), ("neither", NEITHER)):
            template = rng.choice(templates)
            drawn.append((template.format(gold=gold, **values), label))
        for sample, (sql, label) in enumerate(drawn):
            candidate = Candidate(question_id, sample, sql, sql, "weak", label)
            candidates.append(candidate)
            truth[candidate.candidate_id] = label if kind == "certain" else "no label"
    return questions, candidates, truth


@pytest.mark.parametrize("num_cases", [1_200, pytest.param(12_000, marks=pytest.mark.slow)])
def test_no_label_is_wrong(catalog: DatabaseCatalog, num_cases: int) -> None:
    questions, candidates, truth = _make_cases(num_cases // 4, random.Random(num_cases))
    assert len(candidates) == num_cases
    with SQLVerifier(catalog) as verifier:
        result = build_preference_pairs(
            make_task(catalog, questions),
            candidates,
            verifier,
            config=PreferencePairConfig(chosen_sources=("any",), limit=99),
        )
    rows = result.dataset.to_list()
    chosen = Counter(truth.get(r["chosen_candidate_id"], "gold") for r in rows)
    rejected = Counter(truth[r["rejected_candidate_id"]] for r in rows)
    assert set(chosen) == {"gold", "correct"}
    assert set(rejected) == {"wrong"}
    # And nothing certain is lost: each certain question has its wrong candidate, twice where the
    # right one is not spelled like gold.
    certain = -(-len(questions) // 9) * 2
    assert abs(chosen["gold"] - certain) <= 2
    assert chosen["correct"] > chosen["gold"] / 3


def test_labels_of_real_predictions_hold_by_plain_sqlite(
    shared_data: Path, spider_databases: Path
) -> None:
    file = Path(__file__).resolve().parents[2] / "recipes" / "benchmarks" / "pairs.py"
    spec = importlib.util.spec_from_file_location("benchmark_pairs", file)
    assert spec is not None and spec.loader is not None
    benchmark = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(benchmark)
    questions, candidates = benchmark.load_real(shared_data)
    some = {question.question_id for question in questions[::12]}
    with DatabaseCatalog.from_path(spider_databases) as catalog, SQLVerifier(catalog) as verifier:
        result = build_preference_pairs(
            make_task(catalog, [q for q in questions if q.question_id in some]),
            [candidate for candidate in candidates if candidate.question_id in some],
            verifier,
            config=PreferencePairConfig(chosen_sources=("any",), limit=99),
        )
    outcomes = benchmark.check_labels(result, spider_databases)
    assert sum(outcomes.values()) == len(result.dataset) > 100
    assert {name.split(":")[0] for name in outcomes} == {"holds"}
