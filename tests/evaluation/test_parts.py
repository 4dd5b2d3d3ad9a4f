"""An evaluation in parts is the evaluation of the whole."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import FreshDB

from sense_trl.backends.backend import LocalBackend
from sense_trl.database.catalog import DatabaseCatalog
from sense_trl.errors import InputError
from sense_trl.evaluation import evaluate_sql
from sense_trl.evaluation.parts import evaluate_in_parts
from sense_trl.questions import Question
from sense_trl.verification.verifier import SQLVerifier

SCRIPT = "CREATE TABLE t (a INTEGER, b TEXT); INSERT INTO t VALUES (1,'x'),(2,'y'),(3,NULL);"
QUESTIONS = [
    Question(f"q{n}", "de"[n % 2], "?", f"SELECT a FROM t WHERE a > {n % 4}", level="easy")
    for n in range(9)
]
ANSWERS = {q.question_id: f"SELECT a FROM t WHERE a > {n % 3}" for n, q in enumerate(QUESTIONS)}


@pytest.fixture
def catalog(fresh_db: FreshDB, tmp_path: Path) -> Iterator[DatabaseCatalog]:
    for name in "de":
        fresh_db(SCRIPT, name=name)
    with DatabaseCatalog.from_path(tmp_path) as catalog:
        yield catalog


def test_parts_give_the_report_of_the_whole_and_are_not_made_twice(
    catalog: DatabaseCatalog, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sense_trl.evaluation.parts._QUESTIONS_PER_SHARD", 2)
    options = {
        "soft_f1": True,
        "samples": {key: (sql, "SELECT 1") for key, sql in ANSWERS.items()},
        # The text that Spider's script reads is another one.
        "spider_predictions": {"q0": "SELECT 0"},
        "name": "run",
    }
    shards, seen = tmp_path / "shards", []
    with SQLVerifier(catalog, num_workers=0) as verifier:
        whole = evaluate_sql(QUESTIONS, ANSWERS, verifier, **options)  # type: ignore[arg-type]

        def evaluate(**more: object) -> object:
            return evaluate_in_parts(
                QUESTIONS, ANSWERS, verifier, backend=LocalBackend(0), **options, **more
            )  # type: ignore[arg-type]

        assert evaluate() == whole
        assert evaluate(shard_folder=shards) == whole
        made = {path.name: path.stat().st_mtime_ns for path in shards.iterdir()}
        assert len(made) == 5
        lost = min(made)
        (shards / lost).unlink()
        assert evaluate(shard_folder=shards, on_progress=seen.append) == whole
        again = {path.name: path.stat().st_mtime_ns for path in shards.iterdir()}
        assert {name for name in made if again[name] != made[name]} == {lost}
        assert sum(seen) == len(QUESTIONS)
        # Other answers are other parts.
        other = {**ANSWERS, "q3": "SELECT 7"}
        found = evaluate_in_parts(
            QUESTIONS, other, verifier, backend=LocalBackend(0), shard_folder=shards, **options
        )  # type: ignore[arg-type]
    assert found.records[3].predicted_sql == "SELECT 7"
    assert found.records[4] == whole.records[4]


def test_parts_vote_like_the_whole(
    catalog: DatabaseCatalog, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sense_trl.evaluation.parts._QUESTIONS_PER_SHARD", 2)
    samples = {key: ("SELECT 7", sql, f"{sql} AND 1") for key, sql in ANSWERS.items()}
    with SQLVerifier(catalog, num_workers=0) as verifier:
        whole = evaluate_sql(QUESTIONS, None, verifier, samples=samples)
        found = evaluate_in_parts(
            QUESTIONS, None, verifier, backend=LocalBackend(0), samples=samples
        )
    assert found == whole
    assert {record.num_votes for record in found.records} == {2}


def test_what_cannot_be_evaluated_is_refused_before_anything_runs(
    catalog: DatabaseCatalog,
) -> None:
    with SQLVerifier(catalog, num_workers=0) as verifier:
        for answers, options, words in (
            ({}, {}, "lacks 9 of 9 questions"),
            (ANSWERS, {"efficiency_repetitions": 5}, "`efficiency_repetitions` is 5"),
            (ANSWERS, {"samples": {"q0": ("SELECT 1",)}}, "`samples` holds 0 to 1"),
        ):
            with pytest.raises(InputError, match=words):
                evaluate_in_parts(QUESTIONS, answers, verifier, backend=LocalBackend(0), **options)  # type: ignore[arg-type]
