"""A training that is killed, three times, ends with the weights of one that was not."""

import json
import random
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

from sense_trl.cli.main import main

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore:.*gradient_checkpointing:FutureWarning"),
    pytest.mark.filterwarnings("ignore:.*:UserWarning:bitsandbytes"),
]

_NUM_STEPS = 30


def _start(stage: str, folder: str) -> subprocess.Popen[bytes]:
    flags: dict[str, Any] = {
        "output_dir": folder, "max_steps": _NUM_STEPS, "save_steps": 1, "save_total_limit": 2,
        "logging_steps": 1, "group_by_columns": "db_id", "model_name_or_path": "sft",
        # Only matrices of 4096 numbers or more, which rank 64 gives, are kept in 8 bits.
        "optim": "paged_adamw_8bit",
    }  # fmt: skip
    if stage == "dpo":
        flags["precompute_ref_log_probs"] = True
    command = [sys.executable, "-m", "sense_trl", stage, "--config", f"{stage}.yaml"]
    command += [word for name, value in flags.items() for word in (f"--{name}", str(value))]
    return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def _last_step(folder: Path) -> int:
    steps = [int(path.name.split("-")[1]) for path in folder.glob("checkpoint-*")]
    return max(steps, default=0)


def _kill_after(step: int, stage: str, folder: str, delay_s: float) -> None:
    process = _start(stage, folder)
    while _last_step(Path(folder)) < step:
        assert process.poll() is None, "it ended before it was to be killed"
        time.sleep(0.005)
    # Anywhere in a step, or in the middle of writing a checkpoint.
    time.sleep(delay_s)
    process.kill()
    process.wait()
    assert not (Path(folder) / "metrics.json").exists()


def _losses(folder: str) -> list[tuple[int, float]]:
    history = json.loads((Path(folder) / "metrics.json").read_text())["log_history"]
    return [(entry["step"], entry["loss"]) for entry in history if "loss" in entry]


def _assert_equal_files(first: str, second: str) -> None:
    weights, others = (load_file(Path(f) / "adapter_model.safetensors") for f in (first, second))
    assert weights.keys() == others.keys()
    for name, weight in weights.items():
        assert weight.equal(others[name]), name


@pytest.mark.parametrize("stage", ["sft", "dpo", "kd"])
def test_three_kills_change_nothing(stage: str, recipe: Path, monkeypatch: Any) -> None:
    pytest.importorskip("bitsandbytes", reason="4-bit weights need bitsandbytes")
    monkeypatch.chdir(recipe)
    # An adapter that every stage trains further; its dropout draws what a checkpoint has to keep.
    adapter = ["--lora_r", "64", "--lora_dropout", "0.2"]
    assert main(["sft", "--config", "sft.yaml", *adapter]) == 0
    assert main(["pairs", "--config", "pairs.yaml"]) == 0
    (recipe / "sft.yaml").write_text(
        (recipe / "sft.yaml").read_text().replace("use_peft: true", "use_peft: false")
    )
    generator = random.Random(stage)
    assert _start(stage, "whole").wait() == 0
    for first, last in ((1, 6), (8, 13), (15, 20)):
        _kill_after(generator.randint(first, last), stage, "killed", generator.uniform(0, 0.3))
    assert _start(stage, "killed").wait() == 0
    _assert_equal_files("whole", "killed")
    assert _losses("killed") == _losses("whole")
    assert len(_losses("whole")) == _NUM_STEPS
