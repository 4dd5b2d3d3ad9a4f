"""A dataset loads from its Parquet file straight into TRL's trainer and ours."""

from __future__ import annotations

from pathlib import Path

import datasets
import pytest
from conftest import FreshDB

from sense_trl.database.catalog import DatabaseCatalog
from sense_trl.pairs import Candidate, PreferencePairConfig, build_preference_pairs
from sense_trl.questions import Question
from sense_trl.task import make_task
from sense_trl.verification.verifier import SQLVerifier

# TRL 1.16 and peft 0.21 use names of this option that transformers 5.23 deprecates.
pytestmark = pytest.mark.filterwarnings("ignore:.*gradient_checkpointing:FutureWarning")


@pytest.mark.parametrize("prompt_format", ["conversational", "plain"])
def test_both_trainers_take_the_file_as_it_is(
    fresh_db: FreshDB, tmp_path: Path, prompt_format: str
) -> None:
    import tiny_models
    from trl import DPOConfig, DPOTrainer

    from sense_trl.trainers import SenseDPOConfig, SenseDPOTrainer

    path = fresh_db("CREATE TABLE pet (age INT); INSERT INTO pet VALUES (3), (5);", name="pets")
    questions = [Question(q, "pets", "Ages?", "SELECT age FROM pet") for q in ("q1", "q2")]
    candidates = [
        Candidate(q, i, f"SELECT age + {i} FROM pet", "", "weak", "m")
        for q, count in (("q1", 1), ("q2", 3))
        for i in range(1, count + 1)
    ]
    with (
        DatabaseCatalog.from_path(path) as catalog,
        SQLVerifier(catalog, num_workers=0) as verifier,
    ):
        build_preference_pairs(
            make_task(catalog, questions),
            candidates,
            verifier,
            config=PreferencePairConfig(
                num_rejected=3,
                prompt_format=prompt_format,  # type: ignore[arg-type]
                weighting="question",
            ),
        ).save(tmp_path)
    rows = datasets.Dataset.from_parquet(
        str(tmp_path / "pairs.parquet"), cache_dir=str(tmp_path / "cache")
    )
    assert rows["pair_weight"][:] == pytest.approx([2, 2 / 3, 2 / 3, 2 / 3])
    model = tiny_models.save_tiny_model(tmp_path, "llama")
    for trainer_class, config_class in (
        (DPOTrainer, DPOConfig),
        (SenseDPOTrainer, SenseDPOConfig),
    ):
        config = config_class(
            output_dir=str(tmp_path / trainer_class.__name__),
            per_device_train_batch_size=4,
            max_steps=1,
            use_cpu=True,
            bf16=False,
            gradient_checkpointing=False,
            report_to="none",
            disable_tqdm=True,
            save_strategy="no",
            dataloader_pin_memory=False,
        )
        trainer = trainer_class(model=model, args=config, train_dataset=rows)
        trainer.train()
        assert len(trainer.train_dataset) == 4
        # Nothing has moved yet, so each pair costs log 2 and weights with a mean of 1 leave that.
        assert trainer.state.log_history[-1]["train_loss"] == pytest.approx(0.6931, abs=1e-3)


def test_second_turns_train(fresh_db: FreshDB, tmp_path: Path) -> None:
    import tiny_models

    from sense_trl.trainers import SenseDPOConfig, SenseDPOTrainer

    path = fresh_db("CREATE TABLE pet (age INT); INSERT INTO pet VALUES (3), (5);", name="pets")
    questions = [Question(q, "pets", f"Ages {q}?", "SELECT age FROM pet") for q in ("q1", "q2")]
    candidates = [
        Candidate(question.question_id, 0, "SELECT agee FROM pet", "", "weak", "m")
        for question in questions
    ]
    with (
        DatabaseCatalog.from_path(path) as catalog,
        SQLVerifier(catalog, num_workers=0) as verifier,
    ):
        rows = build_preference_pairs(
            make_task(catalog, questions),
            candidates,
            verifier,
            config=PreferencePairConfig(repair=True),
        ).dataset
    trainer = SenseDPOTrainer(
        model=tiny_models.save_tiny_model(tmp_path, "qwen2"),
        args=SenseDPOConfig(
            output_dir=str(tmp_path / "out"),
            per_device_train_batch_size=2,
            max_steps=1,
            use_cpu=True,
            bf16=False,
            report_to="none",
            disable_tqdm=True,
            save_strategy="no",
            dataloader_pin_memory=False,
        ),
        train_dataset=rows,
    )
    trainer.train()
    texts = [trainer.processing_class.decode(row["prompt_ids"]) for row in trainer.train_dataset]
    for text in texts:
        assert text.index("SELECT agee FROM pet") < text.index("no such column: agee")
    assert trainer.state.log_history[-1]["train_loss"] == pytest.approx(0.6931, abs=1e-3)
