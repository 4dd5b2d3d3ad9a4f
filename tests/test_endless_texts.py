"""Texts that repeat themselves go through a whole run as any other wrong answer does."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from repetition import LOOPS, repeat

from sense_trl.database.catalog import DatabaseCatalog
from sense_trl.evaluation.evaluate import evaluate_sql
from sense_trl.pairs import Candidate, PreferencePairConfig, build_preference_pairs
from sense_trl.questions import Question
from sense_trl.rewards import get_sql_execution_reward
from sense_trl.task import make_task
from sense_trl.verification.verifier import SQLVerifier, Verdict

SCRIPT = """
CREATE TABLE t (a int, b text); INSERT INTO t VALUES (1, 'x'), (5, 'x'), (NULL, 'y');
CREATE TABLE u (a int, c text); INSERT INTO u VALUES (5, 'y');
"""
GOLD = "SELECT a, b FROM t"
# Each takes milliseconds; all of them took hours.
TEXTS = [repeat(name, 250) for name in list(LOOPS)[::5]]
# A run on a machine that is shared.
MAX_CPU_S = 30.0


@pytest.fixture
def path(fresh_db: Any) -> Path:
    found: Path = fresh_db(SCRIPT, name="pets")
    return found


@pytest.fixture
def verifier(path: Path) -> Iterator[SQLVerifier]:
    with DatabaseCatalog.from_path(path) as catalog, SQLVerifier(catalog, num_workers=1) as found:
        yield found


def test_an_evaluation_scores_them(verifier: SQLVerifier) -> None:
    started = time.process_time()
    questions = [Question(f"q{i}", "pets", "Which?", GOLD) for i in range(len(TEXTS))]
    predictions = {f"q{i}": text for i, text in enumerate(TEXTS)}
    report = evaluate_sql(questions, predictions, verifier)
    assert report.count(Verdict.UNDETERMINED) == 0
    assert all(r.error_classes for r in report.records if r.verdict is Verdict.WRONG)
    assert verifier.num_replaced_workers == 0
    assert time.process_time() - started < MAX_CPU_S


@pytest.mark.parametrize(
    "settings",
    [
        {"policy": "nearest", "limit": 40, "deduplicate_by": "result"},
        {"policy": "farthest", "deduplicate_by": "normal_form"},
        {"policy": "one_per_error_class", "limit": 40, "classify_results": True},
    ],
)
def test_pairs_are_built_from_them(verifier: SQLVerifier, settings: dict[str, Any]) -> None:
    started = time.process_time()
    built = build_preference_pairs(
        make_task(verifier.catalog, [Question("q", "pets", "Which?", GOLD)]),
        [
            Candidate(question_id="q", sample=i, sql=text, text=text, source="weak", model="m")
            for i, text in enumerate(TEXTS)
        ],
        verifier,
        config=PreferencePairConfig(**settings),
    )
    assert len(built.dataset) >= 1
    assert built.num_candidates == len(TEXTS)
    assert time.process_time() - started < MAX_CPU_S


def test_a_reward_is_given_for_each(path: Path) -> None:
    with get_sql_execution_reward(path, error=-1.0, num_workers=1) as reward:
        rewards = reward(
            prompts=["Which?"] * len(TEXTS),
            completions=TEXTS,
            db_id=["pets"] * len(TEXTS),
            gold_sql=[GOLD] * len(TEXTS),
        )
    assert set(rewards) <= {-1.0, 0.0}
    assert -1.0 in rewards
