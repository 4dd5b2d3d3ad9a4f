"""Online runs that are stopped again and again end as one that was left alone."""

from __future__ import annotations

import json
from pathlib import Path
from signal import SIGINT, SIGKILL, SIGTERM
from typing import Any

import pytest
import tiny_models
import yaml
from interrupted_run import Moment, run_until

from sense_trl.cli.main import EXIT_INTERRUPTED

pytestmark = pytest.mark.slow


@pytest.fixture
def data(fresh_db: Any, tmp_path: Path) -> dict[str, str]:
    script = "CREATE TABLE pet (name TEXT, age INTEGER); INSERT INTO pet VALUES ('Rex', 3);"
    questions = [
        {"question": f"Older than {i}?", "gold_sql": f"SELECT name FROM pet WHERE age > {i}"}
        for i in range(3)
    ]
    path = tmp_path / "q.jsonl"
    path.write_text("".join(json.dumps(q) + "\n" for q in questions))
    return {"database": str(fresh_db(script, name="pets")), "questions": str(path)}


def _stop_and_go_on(arguments: list[str], moments: list[Moment]) -> None:
    for moment in moments:
        code = EXIT_INTERRUPTED if moment.signal == SIGINT else -moment.signal
        assert run_until(arguments, moment) == code, moment
    assert run_until(arguments) == 0


def _read(folder: Path, *patterns: str) -> dict[str, bytes]:
    """The files of a folder by name; what was read from or written to it is left out."""
    paths = (path for pattern in patterns for path in folder.glob(pattern) if path.is_file())
    return {
        str(path.relative_to(folder)): path.read_bytes().replace(str(folder).encode(), b"")
        for path in paths
    }


def _assert_same(stopped: dict[str, bytes], whole: dict[str, bytes]) -> None:
    assert whole
    assert stopped.keys() == whole.keys()
    for name in whole.keys() - {name for name in whole if name.endswith(("metrics.json", ".bin"))}:
        assert stopped[name] == whole[name], name


def test_online_rounds(data: dict[str, str], tmp_path: Path) -> None:
    model = tiny_models.save_tiny_model(tmp_path / "model", "llama")
    options = {**data, "model": model, "num-rounds": 2, "num-samples": 2, "batch-size": 2}
    options |= {"num-epochs": 3, "train-batch-size": 1, "lora-r": 2, "learning-rate": 0.01}
    command = ["online", *(str(w) for n, v in options.items() for w in (f"--{n}", v))]
    folders = tmp_path / "whole", tmp_path / "stopped"
    whole, stopped = ([*command, "--output-dir", str(folder)] for folder in folders)
    assert run_until(whole) == 0
    moments = [
        Moment("interrupted_run:FixedWriter.generate", 2, SIGINT),
        Moment("sense_trl.steps.work:pair", 1, SIGTERM),
        # The last file of the pairs.
        Moment("sense_trl.pairs.builder:write_text_atomically", 1, SIGKILL),
        # Between two checkpoints of nine steps.
        Moment("sense_trl.trainers:SenseDPOTrainer.training_step", 6, SIGTERM),
        Moment("sense_trl.trainers:SenseDPOTrainer.training_step", 3, SIGINT),
        # Between the rounds.
        Moment("sense_trl.jobs.online:write_text_atomically", 1, SIGKILL),
        Moment("sense_trl.prompts.style:PromptStyle.save", 1, SIGKILL),
        # Trained, and not saved yet.
        Moment("sense_trl.steps.training:merge_in_place", 1, SIGKILL),
    ]
    _stop_and_go_on(stopped, moments)
    patterns = ("rounds.json", "round-*/*", "round-*/pairs/*", "round-*/model/**/*")
    _assert_same(*(_read(folder, *patterns) for folder in reversed(folders)))
    weights = [
        (path / "model.safetensors").read_bytes()
        for path in (Path(model), *(folders[0] / f"round-{n}" / "model" for n in (1, 2)))
    ]
    assert len({*weights}) == 3


def test_grpo(data: dict[str, str], tmp_path: Path) -> None:
    model = tiny_models.save_tiny_model(tmp_path / "model", "qwen2")
    options = {**data, "model_name_or_path": model, "use_peft": True, "lora_r": 2, "max_steps": 6}
    options |= {"per_device_train_batch_size": 4, "num_generations": 2, "num_iterations": 2}
    options |= {"max_completion_length": 4, "learning_rate": 0.01, "save_steps": 3}
    options |= {"use_cpu": True, "bf16": False, "report_to": "none", "disable_tqdm": True}
    options |= {"save_strategy": "steps", "gradient_checkpointing": False, "num_workers": 0}
    config = tmp_path / "grpo.yaml"
    config.write_text(yaml.safe_dump(options))
    folders = tmp_path / "whole", tmp_path / "stopped"
    whole, stopped = (
        ["grpo", "--config", str(config), "--output_dir", str(folder)] for folder in folders
    )
    assert run_until(whole) == 0
    trainer = "sense_trl.trainers:SenseGRPOTrainer"
    moments = [
        Moment(f"{trainer}._generate_single_turn", 2, SIGINT),
        # Step 4 learns again from what step 3 wrote; step 5 writes anew.
        Moment("sense_trl.steps.rollouts:RolloutRecorder.__call__", 3, SIGTERM),
        Moment(f"{trainer}.training_step", 2, SIGKILL),
        # In the middle of a checkpoint.
        Moment(f"{trainer}._save_rng_state", 1, SIGKILL),
        Moment("sense_trl.steps.training:merge_in_place", 1, SIGTERM),
        # What was written is in the files of its steps.
        Moment("sense_trl.steps.rollouts:write_candidates", 1, SIGKILL),
        Moment("sense_trl.steps.rollouts:pair_rollouts", 1, SIGKILL),
        Moment("sense_trl.prompts.style:PromptStyle.save", 1, SIGKILL),
    ]
    _stop_and_go_on(stopped, moments)
    patterns = ("rollouts.jsonl", "*.safetensors", "adapter/*", "pairs/*", "*.json")
    _assert_same(*(_read(folder, *patterns) for folder in reversed(folders)))
    assert (folders[0] / "model.safetensors").read_bytes() != (
        Path(model) / "model.safetensors"
    ).read_bytes()
