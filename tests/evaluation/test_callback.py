"""Execution accuracy during training: what is logged, and that training does not notice."""

import random
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_models
import torch
from conftest import FreshDB
from datasets import Dataset
from peft import LoraConfig
from transformers import EarlyStoppingCallback
from trl import DPOConfig, DPOTrainer, SFTConfig, SFTTrainer

from sense_trl.database.catalog import DatabaseCatalog
from sense_trl.errors import InputError
from sense_trl.evaluation.callback import ExecutionAccuracyCallback
from sense_trl.generation.generator import Completion, SamplingConfig
from sense_trl.prompts import Messages, get_prompt
from sense_trl.questions import Question
from sense_trl.verification.verifier import SQLVerifier, Verdict

PETS = "CREATE TABLE pet (name TEXT, age INTEGER); INSERT INTO pet VALUES ('Rex', 3), ('Tom', 5);"
QUESTIONS = [
    Question("q1", "pets", "Name of the pets?", "SELECT name FROM pet"),
    Question("q2", "pets", "How old are they?", "SELECT age FROM pet"),
    Question("q3", "pets", "Who is 100?", "SELECT name FROM pet WHERE age = 100"),
    Question("q4", "pets", "How many are there?", "SELECT COUNT(*) FROM pet"),
]
OURS = ("execution_accuracy", "undetermined_share", "execution_runtime")


@pytest.fixture
def verifier(fresh_db: FreshDB) -> Iterator[SQLVerifier]:
    with DatabaseCatalog.from_path(fresh_db(PETS, name="pets")) as catalog:
        yield SQLVerifier(catalog, num_workers=0)


def _messages(question: Question) -> Messages:
    return get_prompt(question.question, "pet(name, age)")


def _rows(times: int = 1) -> list[dict[str, Any]]:
    return [
        {
            "prompt": _messages(question),
            "completion": [{"role": "assistant", "content": question.gold_sql}],
        }
        for question in QUESTIONS
    ] * times


def _trainer(folder: Path, *, lora: bool = True, **options: Any) -> SFTTrainer:
    defaults: dict[str, Any] = {
        "output_dir": str(folder),
        "per_device_train_batch_size": 2,
        "max_steps": 4,
        "logging_steps": 2,
        "learning_rate": 1e-3,
        "lr_scheduler_type": "constant",
        "use_cpu": True,
        "bf16": False,
        "gradient_checkpointing": False,
        "report_to": "none",
        "save_strategy": "no",
        "disable_tqdm": True,
        "dataloader_pin_memory": False,
    }
    return SFTTrainer(
        model=tiny_models.build_tiny_model("llama"),
        processing_class=tiny_models.build_tiny_tokenizer(),
        args=SFTConfig(**{**defaults, **options}),
        train_dataset=Dataset.from_list(_rows()),
        eval_dataset=Dataset.from_list(_rows()),
        peft_config=LoraConfig(lora_dropout=0.3, target_modules="all-linear") if lora else None,
    )


class _Dictated:
    """Answers each evaluation as it is told, and uses up random numbers on the way."""

    name = "dictated"

    def __init__(self, *answers: Sequence[str]) -> None:
        self._answers = list(answers)
        self.num_calls = 0

    def generate(
        self, prompts: Sequence[Messages], sampling: SamplingConfig, **_: Any
    ) -> list[list[Completion]]:
        random.random(), np.random.rand(), torch.rand(1)
        answers = self._answers[min(self.num_calls, len(self._answers) - 1)]
        self.num_calls += 1
        return [[Completion(sql, 1, True)] for sql in answers]


GOLD = [question.gold_sql for question in QUESTIONS]
HALF = [GOLD[0], "SELECT 1", GOLD[2], GOLD[3]]
NONE = ["SELECT 1", "", GOLD[2], "SELECT nme FROM pet"]


def _shares(trainer: Any) -> list[tuple[int, float, float]]:
    return [
        (log["step"], log["eval_execution_accuracy"], log["eval_undetermined_share"])
        for log in trainer.state.log_history
        if "eval_execution_accuracy" in log
    ]


def test_shares_are_logged_after_every_nth_step(verifier: SQLVerifier, tmp_path: Path) -> None:
    trainer = _trainer(tmp_path, max_steps=5)
    callback = ExecutionAccuracyCallback(
        trainer,
        QUESTIONS,
        verifier,
        _messages,
        every_n_steps=2,
        generator=_Dictated(NONE, HALF),
    )
    trainer.add_callback(callback)
    trainer.train()
    # A question whose gold is empty decides nothing where the answer is empty too.
    assert _shares(trainer) == [(2, 0.0, 0.25), (4, 0.5, 0.25)]
    # The trainer's own log of these steps is still there.
    assert [log["step"] for log in trainer.state.log_history if "loss" in log] == [2, 4]
    assert callback.report is not None
    assert callback.report.verdicts == (
        Verdict.CORRECT, Verdict.WRONG, Verdict.UNDETERMINED, Verdict.CORRECT,
    )  # fmt: skip


def test_the_metrics_choose_the_best_model_and_stop_the_training(
    verifier: SQLVerifier, tmp_path: Path
) -> None:
    trainer = _trainer(
        tmp_path,
        max_steps=8,
        eval_strategy="steps",
        eval_steps=1,
        save_strategy="best",
        metric_for_best_model="execution_accuracy",
        load_best_model_at_end=True,
    )
    generator = _Dictated(NONE, HALF, NONE)
    trainer.add_callback(
        ExecutionAccuracyCallback(trainer, QUESTIONS, verifier, _messages, generator=generator)
    )
    trainer.add_callback(EarlyStoppingCallback(early_stopping_patience=2))
    trainer.train()
    assert trainer.state.best_metric == 0.5
    assert trainer.state.best_global_step == 2
    assert trainer.state.global_step == 4
    assert [accuracy for _, accuracy, _ in _shares(trainer)] == [0.0, 0.5, 0.0, 0.0]
    # Outside of training nothing is taken from the last evaluation.
    assert trainer.evaluate()["eval_execution_accuracy"] == 0.0
    assert generator.num_calls == 5


def test_several_evaluation_sets_ask_the_questions_once(
    verifier: SQLVerifier, tmp_path: Path
) -> None:
    trainer = _trainer(
        tmp_path,
        max_steps=1,
        eval_strategy="steps",
        eval_steps=1,
        save_strategy="best",
        metric_for_best_model="execution_accuracy",
    )
    trainer.eval_dataset = {"a": trainer.eval_dataset, "b": trainer.eval_dataset}
    generator = _Dictated(HALF)
    trainer.add_callback(
        ExecutionAccuracyCallback(trainer, QUESTIONS, verifier, _messages, generator=generator)
    )
    trainer.train()
    assert generator.num_calls == 1
    assert trainer.state.best_metric == 0.5


@pytest.mark.parametrize("when", ["every step", "at evaluation"])
@pytest.mark.parametrize("answers", ["model", "dictated"])
def test_training_is_the_same_to_the_bit(
    answers: str, when: str, verifier: SQLVerifier, tmp_path: Path
) -> None:
    options: dict[str, Any] = {"gradient_checkpointing": when == "every step", "logging_steps": 1}
    if when == "at evaluation":
        options |= {"eval_strategy": "steps", "eval_steps": 1}
    # One after the other: building a trainer seeds the generators that its training then uses.
    alone = _trainer(tmp_path / "a", **options)
    alone.train()
    watched = _trainer(tmp_path / "b", **options)
    watched.add_callback(
        ExecutionAccuracyCallback(
            watched,
            QUESTIONS,
            verifier,
            _messages,
            every_n_steps=1 if when == "every step" else None,
            sampling=SamplingConfig(max_new_tokens=4, temperature=1.0),
            generator=None if answers == "model" else _Dictated(HALF),
        )
    )
    watched.train()
    assert len(_shares(watched)) == 4
    tiny_models.assert_same_weights(alone, watched)

    def logs(trainer: Any) -> list[dict[str, float]]:
        rest = [
            {k: v for k, v in log.items() if k.removeprefix("eval_") not in OURS}
            for log in tiny_models.get_comparable_logs(trainer)
        ]
        return [log for log in rest if log.keys() - {"step", "epoch"}]

    assert logs(alone) == logs(watched)


def test_modules_keep_the_mode_they_were_in(verifier: SQLVerifier, tmp_path: Path) -> None:
    trainer = _trainer(tmp_path)
    trainer.model.train()
    frozen = next(module for module in trainer.model.modules() if not list(module.children()))
    frozen.eval()
    callback = ExecutionAccuracyCallback(
        trainer, QUESTIONS, verifier, _messages, sampling=SamplingConfig(max_new_tokens=2)
    )
    metrics: dict[str, float] = {}
    callback.on_evaluate(trainer.args, trainer.state, trainer.control, metrics)
    assert set(metrics) == {f"eval_{name}" for name in OURS}
    assert not frozen.training
    assert all(module.training for module in trainer.model.modules() if module is not frozen)


def test_a_model_that_learns_the_answers_is_seen_to(verifier: SQLVerifier, tmp_path: Path) -> None:
    trainer = _trainer(
        tmp_path, lora=False, max_steps=60, learning_rate=5e-3, per_device_train_batch_size=4
    )
    questions = [question for question in QUESTIONS if question.question_id != "q3"]
    trainer.add_callback(
        ExecutionAccuracyCallback(
            trainer,
            questions,
            verifier,
            _messages,
            every_n_steps=20,
            sampling=SamplingConfig(max_new_tokens=16),
        )
    )
    trainer.train()
    accuracies = [accuracy for _, accuracy, _ in _shares(trainer)]
    assert accuracies[0] < accuracies[-1] == 1.0


def test_it_reads_the_model_that_dpo_trains(verifier: SQLVerifier, tmp_path: Path) -> None:
    trainer = DPOTrainer(
        model=tiny_models.build_tiny_model("qwen2"),
        processing_class=tiny_models.build_tiny_tokenizer(),
        args=DPOConfig(
            output_dir=str(tmp_path),
            max_steps=2,
            logging_steps=2,
            use_cpu=True,
            bf16=True,
            gradient_checkpointing=True,
            report_to="none",
            save_strategy="no",
            disable_tqdm=True,
            dataloader_pin_memory=False,
        ),
        train_dataset=Dataset.from_list(tiny_models.PAIRS),
        peft_config=LoraConfig(r=4, target_modules="all-linear"),
    )
    callback = ExecutionAccuracyCallback(
        trainer,
        QUESTIONS,
        verifier,
        _messages,
        every_n_steps=1,
        sampling=SamplingConfig(max_new_tokens=4),
    )
    trainer.add_callback(callback)
    trainer.train()
    assert [step for step, _, _ in _shares(trainer)] == [1, 2]
    # TRL averages what it has gathered since its last log: two steps, not one.
    losses = [log for log in trainer.state.log_history if "rewards/margins" in log]
    assert [log["step"] for log in losses] == [2]
    assert not any("eval_rewards/margins" in log for log in trainer.state.log_history)


def test_unusable_arguments_are_refused(verifier: SQLVerifier, tmp_path: Path) -> None:
    trainer = _trainer(tmp_path)

    def build(questions: Sequence[Question] = QUESTIONS, **options: Any) -> None:
        ExecutionAccuracyCallback(trainer, questions, verifier, _messages, **options)

    with pytest.raises(InputError, match="`questions` is empty"):
        build([])
    with pytest.raises(InputError, match="`every_n_steps` is 0"):
        build(every_n_steps=0)
    with pytest.raises(InputError, match=r"`sampling.num_generations` is 2"):
        build(sampling=SamplingConfig(num_generations=2, temperature=1.0))
    trainer.is_fsdp_enabled = True
    with pytest.raises(InputError, match=r"splits the weights over processes \(FSDP\)"):
        build()
    build(generator=_Dictated(HALF))


def test_an_error_comes_out_as_it_is(verifier: SQLVerifier, tmp_path: Path) -> None:
    trainer = _trainer(tmp_path)
    stranger = [Question("q", "cats", "?", "SELECT 1")]
    callback = ExecutionAccuracyCallback(
        trainer, stranger, verifier, _messages, generator=_Dictated(["SELECT 1"])
    )
    with pytest.raises(InputError, match="`db_id` 'cats' is not among"):
        callback.on_evaluate(trainer.args, trainer.state, trainer.control, {})


# Run by two processes: prints what each of them knows at the end.
_TWO_PROCESSES = """
import sys
from pathlib import Path
import test_callback as t
folder, database, fails = Path(sys.argv[1]), sys.argv[2], sys.argv[3] == "fails"
trainer = t._trainer(folder, max_steps=2, eval_strategy="steps", eval_steps=1, ddp_backend="gloo",
    save_strategy="best", metric_for_best_model="execution_accuracy")
verifier = t.SQLVerifier(t.DatabaseCatalog.from_path(database), num_workers=0)
questions = [t.Question("q", "cats", "?", "SELECT 1")] if fails else t.QUESTIONS
generator = t._Dictated(["SELECT 1"]) if fails else None
callback = t.ExecutionAccuracyCallback(trainer, questions, verifier, t._messages,
    sampling=t.SamplingConfig(max_new_tokens=4), generator=generator)
trainer.add_callback(callback)
rank = trainer.accelerator.process_index
try:
    trainer.train()
    text = f"{t._shares(trainer)} best {trainer.state.best_metric}"
except Exception as error:
    text = f"{type(error).__name__}: {error}"
(folder / f"{rank}.txt").write_text(f"{trainer.accelerator.num_processes} {text}")
"""


@pytest.mark.slow
@pytest.mark.parametrize("outcome", ["ends", "fails"])
def test_two_processes_agree(outcome: str, fresh_db: FreshDB, tmp_path: Path) -> None:
    script = tmp_path / "run.py"
    paths = [str(Path(__file__).parent), str(Path(tiny_models.__file__).parent)]
    script.write_text(f"import sys; sys.path[:0] = {paths!r}\n{_TWO_PROCESSES}")
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    database = fresh_db(PETS, name="pets")
    subprocess.run(
        [*launcher, str(script), str(tmp_path), str(database), outcome],
        check=True,
        timeout=300,
        capture_output=True,
    )
    texts = [(tmp_path / f"{rank}.txt").read_text() for rank in (0, 1)]
    if outcome == "ends":
        assert texts == ["2 [(1, 0.0, 0.0), (2, 0.0, 0.0)] best 0.0"] * 2
    else:
        assert texts[0].startswith("2 InputError: `db_id` 'cats' is not among")
        assert texts[1].startswith("2 ModelError: The evaluation in the main process failed (Input")
