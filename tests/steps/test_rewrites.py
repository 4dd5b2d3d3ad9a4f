"""KID's rewrites become rejected answers where they fail."""

from __future__ import annotations

import json

import pytest
import tiny_models
from datasets import Dataset

from sense_trl.options import DataArguments
from sense_trl.pairs import PreferencePairConfig, build_preference_pairs
from sense_trl.pairs.candidates import CandidateFile
from sense_trl.steps.rewrites import rewrite_gold
from sense_trl.task import load_task
from sense_trl.trainers import KIDConfig, KIDTrainer
from sense_trl.verification.verifier import SQLVerifier

# TRL 1.16 and peft 0.21 use names of this option that transformers 5.23 deprecates.
pytestmark = pytest.mark.filterwarnings("ignore:.*gradient_checkpointing:FutureWarning")


@pytest.fixture
def task(fresh_db, tmp_path):
    script = "CREATE TABLE singer (name TEXT, age INT); INSERT INTO singer VALUES ('Ann', 30);"
    database = fresh_db(script, name="concert")
    questions = tmp_path / "questions.jsonl"
    records = [
        {"question_id": "q1", "question": "Who?", "gold_sql": "SELECT name FROM singer"},
        {"question_id": "q2", "question": "How old?", "gold_sql": "SELECT age FROM singer"},
    ]
    questions.write_text("".join(json.dumps(record) + "\n" for record in records))
    return load_task(DataArguments(str(database), str(questions)))


@pytest.fixture
def build_trainer(task, tmp_path):
    def build(**options):
        return KIDTrainer(
            model=tiny_models.save_tiny_model(tmp_path, "llama"),
            teacher_model=tiny_models.build_tiny_model("llama", seed=1),
            args=KIDConfig(
                output_dir=str(tmp_path / "out"),
                use_cpu=True,
                bf16=False,
                report_to="none",
                disable_tqdm=True,
                **options,
            ),
            train_dataset=Dataset.from_list(task.prompt_completion_rows(task.questions)),
            processing_class=tiny_models.build_tiny_tokenizer(),
        )

    return build


def test_rewrites_that_fail_are_rejected_and_are_not_made_twice(task, build_trainer, tmp_path):
    trainer = build_trainer(mask_ratio=0.5)
    path = tmp_path / "candidates.jsonl"
    progress = []
    file = rewrite_gold(
        task, task.questions, trainer, path, chunk_size=1, on_progress=progress.append
    )
    assert progress == [1, 1]
    candidates = list(file)
    assert [candidate.question_id for candidate in candidates] == ["q1", "q2"]
    # Random weights predict nonsense, which cannot be executed.
    assert all(
        candidate.sql not in (q.gold_sql for q in task.questions) for candidate in candidates
    )
    with SQLVerifier(task.catalog, num_workers=0) as verifier:
        result = build_preference_pairs(task, candidates, verifier, config=PreferencePairConfig())
    rows = result.dataset.to_list()
    assert [row["chosen_sql"] for row in rows] == [q.gold_sql for q in task.questions]
    assert [row["rejected_sql"] for row in rows] == [candidate.sql for candidate in candidates]
    assert {row["rejected_model"] for row in rows} == {"llama, rewriting gold"}

    trainer.rewrite_completions = None
    assert list(rewrite_gold(task, task.questions, trainer, path)) == candidates
    assert list(CandidateFile(path)) == candidates


def test_whole_schema_items_are_rewritten(task, build_trainer, tmp_path):
    trainer = build_trainer(mask_ratio=0.01)
    trainer.args.mask_unit = "schema_item"
    seen = []
    original = trainer.rewrite_completions
    trainer.rewrite_completions = lambda rows: seen.extend(rows) or original(rows)
    rewrite_gold(task, task.questions, trainer, tmp_path / "candidates.jsonl")
    items = [
        [row["completion"][0]["content"][start:end] for start, end in row["mask_spans"]]
        for row in seen
    ]
    assert items == [["name", "singer"], ["age", "singer"]]
