"""Recursive distillation on a tiny model and a tiny database, interrupted and continued."""

import io
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import tiny_models
from rich.console import Console

from sense_trl.errors import InputError
from sense_trl.generation.generator import Completion
from sense_trl.jobs.learner import TransformersLearner
from sense_trl.jobs.recursion import _load_data, run_recursion
from sense_trl.jobs.recursion_config import RecursionConfig
from sense_trl.steps import work
from sense_trl.steps.sampling import sample_candidates

pytestmark = pytest.mark.filterwarnings("ignore:.*gradient_checkpointing:FutureWarning")

SCRIPT = """
CREATE TABLE pet (id INTEGER PRIMARY KEY, name TEXT, age INTEGER);
INSERT INTO pet VALUES (1, 'Rex', 3), (2, 'Tom', 5), (3, 'Zoe', 9);
"""
TRAIN = [
    {"question": f"Who is older than {i}?", "gold_sql": f"SELECT name FROM pet WHERE age > {i}"}
    for i in range(3, 7)
]
DEV = [
    {"question": f"How old is {i}?", "gold_sql": f"SELECT age FROM pet WHERE id = {i}"}
    for i in (1, 2)
]


@pytest.fixture
def inputs(fresh_db: Any, tmp_path: Path) -> dict[str, Any]:
    paths = {}
    for name, questions in (("questions", TRAIN), ("dev_questions", DEV)):
        path = tmp_path / f"{name}.jsonl"
        path.write_text("".join(json.dumps(question) + "\n" for question in questions))
        paths[name] = str(path)
    model = Path(tiny_models.save_tiny_model(tmp_path / "model", "llama"))
    # An untrained model hardly ever ends an answer; with many end tokens it does.
    generation = json.loads((model / "generation_config.json").read_text())
    generation["eos_token_id"] = [2, *range(100, 200)]
    (model / "generation_config.json").write_text(json.dumps(generation))
    return {
        **paths,
        "database": str(fresh_db(SCRIPT, name="pets")),
        "model": str(model),
        "output_dir": str(tmp_path / "run"),
        "num_rounds": 1,
        "num_samples": 2,
        "max_new_tokens": 8,
        "batch_size": 4,
        "num_examples": 1,
        "prompts_per_database": 2,
        "suite_size": 1,
        "num_epochs": 2,
        "train_batch_size": 2,
    }


def test_unusable_questions_are_left_out_where_that_is_allowed(inputs: dict[str, Any]) -> None:
    broken = {"question": "Who?", "gold_sql": "SELECT nothing FROM nowhere"}
    with open(inputs["questions"], "a") as file:
        file.write(json.dumps(broken) + "\n")
    with pytest.raises(InputError, match=r"(?s)1 of 5 questions .*`max_unusable_fraction` \(now 0"):
        _load_data(RecursionConfig(**inputs))
    task, gold, _, dev = _load_data(RecursionConfig(**inputs, max_unusable_fraction=0.2))
    assert (len(gold), len(dev), len(task.unusable)) == (4, 2, 1)


def _run(inputs: dict[str, Any], **changes: Any) -> list[dict[str, Any]]:
    console = Console(file=io.StringIO())
    path = run_recursion(RecursionConfig(**{**inputs, **changes}), console)
    rounds: list[dict[str, Any]] = json.loads(path.read_text())["rounds"]
    return rounds


class _Fluent:
    """Writes what a trained model would: no tiny model does."""

    name = "fluent"

    def generate(self, prompts: Any, sampling: Any, **options: Any) -> list[list[Completion]]:
        return [
            [
                Completion(text, 9, True)
                for text in (
                    ["Name all pets.\nSQL: SELECT name FROM pet", "Hm.\nSQL: SELECT nme FROM pet"]
                    if prompt[-1]["content"] == "Question:"
                    else ["SELECT name FROM pet", "SELECT pet.name FROM pet WHERE age >= 4"]
                )
            ]
            for prompt in prompts
        ]


class _Stop(Exception):
    """Stands for a crash."""


def _crash_in_training(bar: Any) -> Any:
    from transformers import TrainerCallback

    class Crash(TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            # One step after the first checkpoint.
            if state.global_step == state.save_steps + 1:
                raise _Stop

    return Crash()


def _crash_in_prediction(*arguments: Any, **options: Any) -> Any:
    sample_candidates(*arguments, **options)
    raise _Stop


def _files(folder: Path) -> dict[str, bytes]:
    """Everything a run decides; metrics.json holds times."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.suffix in (".jsonl", ".safetensors") or path.name == "rounds.json"
    }


def test_a_crash_in_training_and_prediction_of_any_round_changes_nothing(
    inputs: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(TransformersLearner, "get_generator", lambda self, model: _Fluent())
    rounds = _run(inputs)
    assert [finished["num_synthesized_rows"] for finished in rounds] == [0, 2]
    assert rounds[1]["inventions"]["self_consistency"] == 1
    whole = tmp_path / "run"
    assert not list(whole.rglob("checkpoint-*"))
    # What was kept has changed the model.
    weights = [(whole / f"round-{i}" / "model" / "model.safetensors").read_bytes() for i in (0, 1)]
    assert weights[0] != weights[1]

    crashed = tmp_path / "crashed"
    for number in range(2):
        with monkeypatch.context() as patch, pytest.raises(_Stop):
            patch.setattr(work, "progress_callback", _crash_in_training)
            _run(inputs, output_dir=str(crashed))
        assert list((crashed / f"round-{number}" / "model").glob("checkpoint-*"))
        with monkeypatch.context() as patch, pytest.raises(_Stop):
            patch.setattr(work, "sample_candidates", _crash_in_prediction)
            _run(inputs, output_dir=str(crashed))
    assert _run(inputs, output_dir=str(crashed)) == rounds
    assert _files(crashed) == _files(whole)

    # A finished run is not done again, and belongs to its settings and files.
    before = {path: path.stat().st_mtime_ns for path in whole.rglob("*.safetensors")}
    # Nor does it keep what a kill at the very end of a training left.
    (whole / "round-1" / "model" / "checkpoint-9").mkdir()
    assert _run(inputs) == rounds
    assert not list(whole.rglob("checkpoint-*"))
    assert {path: path.stat().st_mtime_ns for path in whole.rglob("*.safetensors")} == before
    with pytest.raises(InputError, match=r"gold_mix was 1\.0, now 2\.0"):
        _run(inputs, gold_mix=2.0)
    questions = Path(inputs["dev_questions"])
    questions.write_text(questions.read_text().replace("How old", "How aged"))
    with pytest.raises(InputError, match="dev_questions was"):
        _run(inputs)


def test_the_table_has_a_column_per_round(
    inputs: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(TransformersLearner, "get_generator", lambda self, model: _Fluent())
    out = io.StringIO()
    run_recursion(
        RecursionConfig(**{**inputs, "skip_warm_up": True}),
        Console(file=out, width=120),
    )
    text = out.getvalue()
    assert "4 training questions on 1 database(s), 2 dev questions" in text
    assert "Round 1: 4 gold and 2 synthesised rows, dev accuracy 0.0 %" in text
    lines = [" ".join(line.replace("│", " ").split()) for line in text.splitlines()]
    assert "inventions: written 4" in lines
    assert "inventions: execution 2" in lines
    assert "answers: execution 2" in lines
    assert "gold rows 0 4" in lines
    assert "synthesised rows 0 2" in lines
    assert "dev EX 0.0 % 0.0 %" in lines
    assert f"Ended: all rounds are done. Best: round 0, {inputs['model']}" in text.replace("\n", "")


def test_without_dev_questions_a_share_is_held_out(inputs: dict[str, Any]) -> None:
    (start, *_) = _run(inputs, dev_questions=None, dev_fraction=0.25)
    assert (start["num_gold_rows"], start["dev"]["num_questions"]) == (3, 1)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"database": None}, "`questions` is given without `database`"),
        ({"questions": None, "database": None}, "`dev_questions` is given without `questions`"),
        ({"num_samples": 0}, "`num_samples` is 0"),
        ({"temperature": 0.0}, "`temperature` is 0"),
        ({"suite_size": 0}, "`suite_size` is 0"),
        ({"lora_r": 0}, "`lora_r` is 0"),
        ({"learning_rate": 0.0}, "`learning_rate` is 0"),
        ({"seed": -1}, "`seed` is -1"),
    ],
)
def test_unusable_settings_are_named(
    inputs: dict[str, Any], changes: dict[str, Any], words: str
) -> None:
    with pytest.raises(InputError, match=words):
        RecursionConfig(**{**inputs, **changes})


@pytest.mark.parametrize("spelling", ["wording", "sql"])
def test_what_is_trained_on_is_not_evaluated_on(inputs: dict[str, Any], spelling: str) -> None:
    repeated = {
        "wording": {**TRAIN[1], "question": "who is older than 4"},
        "sql": {**TRAIN[1], "question": "Name them.", "gold_sql": _respell(TRAIN[1]["gold_sql"])},
    }
    with Path(inputs["dev_questions"]).open("a") as file:
        file.write(json.dumps(repeated[spelling]) + "\n")
    with pytest.raises(InputError, match="which `dev_questions` has as dev_questions-00003"):
        run_recursion(RecursionConfig(**inputs), Console(file=io.StringIO()))
    assert not Path(inputs["output_dir"]).exists()


def _respell(sql: str) -> str:
    """`SELECT a FROM t WHERE ...` with an alias for the table."""
    found = re.fullmatch(r"SELECT (\w+) FROM (\w+) WHERE (\w+ .*)", sql)
    assert found is not None
    return f"SELECT T1.{found[1]} FROM {found[2]} AS T1 WHERE T1.{found[3]}"


@pytest.mark.slow
def test_a_process_that_is_killed_anywhere_continues_to_the_same_files(
    inputs: dict[str, Any], tmp_path: Path
) -> None:
    inputs["num_rounds"] = 2
    _run(inputs)
    killed = tmp_path / "killed"
    command = [sys.executable, "-m", "sense_trl", "recurse"]
    for name, value in {**inputs, "output_dir": killed}.items():
        command += ["--" + name.replace("_", "-"), str(value)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    watched = [
        "round-0/model/checkpoint-*",
        "round-0/predictions.jsonl",
        "round-1/samples.jsonl",
        "round-1/kept.jsonl",
        "round-1/model/checkpoint-*",
        "round-2/samples.jsonl",
        "round-2/model/model.safetensors",
    ]
    for pattern in watched:
        process = subprocess.Popen(command, env=environment, stderr=subprocess.DEVNULL)
        while process.poll() is None and not list(killed.glob(pattern)):
            time.sleep(0.005)
        process.send_signal(signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL, pattern
    subprocess.run(command, env=environment, check=True, capture_output=True)
    assert _files(killed) == _files(tmp_path / "run")
