"""The measurements for a GPU: their parts at toy size on a CPU, and how they are run and recorded."""

from __future__ import annotations

import importlib
import json
import sys
from argparse import Namespace
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

# What libraries warn of is not what is measured.
pytestmark = pytest.mark.filterwarnings("ignore")

BENCHMARKS = Path(__file__).resolve().parents[2] / "recipes" / "benchmarks"


@pytest.fixture(autouse=True)
def path(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(BENCHMARKS)


@pytest.fixture
def gpu() -> ModuleType:
    return importlib.import_module("gpu")


@pytest.fixture
def random_models() -> ModuleType:
    return importlib.import_module("random_models")


@pytest.fixture
def training_steps() -> ModuleType:
    return importlib.import_module("training_steps")


# ---------------------------------------------------------------------------------- all of it


def test_every_part_has_a_result_at_toy_size(
    gpu: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "gpu.json"
    command = ["--device", "cpu", "--size", "toy", "--in-process", "--minutes", "30"]
    assert gpu.main([*command, "--output", str(output)]) == 0
    entries = json.loads(output.read_text())
    assert [*entries] == [part.name for part in gpu.get_parts(gpu.SIZES["toy"], "cpu")]
    found = {name: entry["result"] for name, entry in entries.items()}
    compared = found["correctness/float32/sdpa"]
    assert [*compared] == ["sft", "dpo", "kd", "grpo"]
    for stage, values in compared.items():
        assert values["distance"] < 1e-5, stage
        assert values["loss"] == pytest.approx(values["trl_loss"], rel=1e-5, abs=1e-6)
    assert found["correctness/4-bit"]["agrees"]
    assert found["correctness/4-bit"]["adapter"] > 1e-3
    for stage in gpu.STAGES:
        recipe = found[f"recipes/qwen2.5-coder-0.5b-8gb/{stage}"]
        assert recipe["fits"]
        assert recipe["tokens_per_s"] > 0
    ours, theirs = (found[f"steps/dpo-24/{side}"] for side in ("sense", "trl"))
    # Two pairs on prompts that have all but one token in common.
    assert ours["computed"] < 0.5 < theirs["computed"] == 1
    assert ours["tflop"] < theirs["tflop"]
    assert ours["loss"] == pytest.approx(theirs["loss"], rel=1e-3)
    assert ours["mask_bytes"] > 0
    assert found["steps/sft-24/trl_liger"] == {"missing": "liger_kernel"}
    # The same command has nothing more to do, and shows the same.
    shown = capsys.readouterr().out
    assert gpu.main([*command, "--output", str(output)]) == 0
    again = capsys.readouterr().out
    assert again.startswith("Device: ") and again in shown
    assert gpu.main(["--table", str(output)]) == 0
    assert capsys.readouterr().out == again
    assert "| float32/sdpa, dpo | yes |" in again
    assert "| sft-24/trl_liger | no liger_kernel |" in again


# ------------------------------------------------------------------------------- running


def _run(gpu: ModuleType, output: Path, parts: list[Any], minutes: float = 1.0) -> dict[str, Any]:
    arguments = Namespace(
        output=str(output), minutes=minutes, in_process=True, size="toy", device="cpu", jobs=1
    )
    return gpu.run_parts(arguments, parts)


def test_a_part_that_fails_is_recorded_and_run_again(gpu: ModuleType, tmp_path: Path) -> None:
    calls: list[str] = []

    def measure(size: Any, device: str, lock: str | None, name: str) -> dict[str, Any]:
        calls.append(name)
        if name == "b" and calls.count("b") == 1:
            raise RuntimeError("no memory")
        return {"name": name}

    parts = [gpu.Part(name, 1, measure, (name,)) for name in "abc"]
    output = tmp_path / "gpu.json"
    entries = _run(gpu, output, parts)
    assert [entry["status"] for entry in entries.values()] == ["done", "failed", "done"]
    assert "no memory" in entries["b"]["error"]
    assert "b: failed" in gpu.format_tables(entries)
    entries = _run(gpu, output, parts)
    assert calls == ["a", "b", "c", "b"]
    assert json.loads(output.read_text()) == entries
    assert entries["b"]["result"] == {"name": "b"}


def test_no_part_starts_when_the_time_is_over(gpu: ModuleType, tmp_path: Path) -> None:
    part = gpu.Part("a", 1, lambda *_: {})
    assert _run(gpu, tmp_path / "gpu.json", [part], minutes=0) == {}


@pytest.mark.parametrize(
    ("code", "status", "text"),
    [
        ("print('log'); print('{\"x\": 1}')", "done", ""),
        ("raise SystemExit('broken')", "failed", "broken"),
        ("import time; time.sleep(60)", "timeout", "no result after 2 s"),
    ],
)
def test_a_process_ends_with_a_record(gpu: ModuleType, code: str, status: str, text: str) -> None:
    entry = gpu.run_in_process([sys.executable, "-c", code], 2.0 if status == "timeout" else 60.0)
    assert entry["status"] == status
    assert text in entry.get("error", "")
    assert entry.get("result") == ({"x": 1} if status == "done" else None)


# ------------------------------------------------------------------------------- recipes


def test_every_recipe_for_one_gpu_is_a_part_of_known_shapes(
    gpu: ModuleType, random_models: ModuleType
) -> None:
    names = [part.name for part in gpu.get_parts(gpu.SIZES["full"], "cuda")]
    recipes = Path(gpu.RECIPES)
    stages = [
        path
        for path in recipes.glob("*gb/*.yaml")
        if path.stem in gpu.STAGES and "-2x" not in path.parent.name
    ]
    assert len(stages) > 20
    for path in stages:
        assert f"recipes/{path.parent.name}/{path.stem}" in names
        assert gpu.get_cap_gib(path.parent.name) in (8, 12, 16, 24)
        name, adapter = (
            gpu.get_trained_model(f"runs/{path.parent.name}/x")
            if (path.parent / "sft.yaml").is_file()
            else ("Qwen/Qwen2.5-Coder-0.5B-Instruct", {"lora_r": 64})
        )
        assert name in random_models.SHAPES
        assert adapter["lora_r"] >= 16


@pytest.mark.parametrize(
    ("name", "billions"),
    [
        ("Qwen/Qwen2.5-Coder-0.5B-Instruct", 0.494),
        ("Qwen/Qwen2.5-Coder-1.5B-Instruct", 1.544),
        ("Qwen/Qwen2.5-Coder-3B-Instruct", 3.086),
        ("Qwen/Qwen2.5-Coder-7B-Instruct", 7.616),
        ("Qwen/Qwen2.5-Coder-14B-Instruct", 14.770),
        ("codellama/CodeLlama-7b-Instruct-hf", 6.739),
        ("codellama/CodeLlama-13b-Instruct-hf", 13.016),
    ],
)
def test_shapes_have_the_published_numbers_of_parameters(
    random_models: ModuleType, name: str, billions: float
) -> None:
    def count(num_layers: int) -> int:
        config = random_models.get_config(name)
        config.num_hidden_layers = num_layers
        if getattr(config, "layer_types", None):
            config.layer_types = config.layer_types[:num_layers]
        with torch.device("meta"):
            return AutoModelForCausalLM.from_config(config).num_parameters()

    num_layers = random_models.get_config(name).num_hidden_layers
    # All layers are alike.
    total = count(1) + (num_layers - 1) * (count(2) - count(1))
    assert total / 1e9 == pytest.approx(billions, abs=6e-4)


def test_rows_have_the_lengths_that_were_asked_for(random_models: ModuleType) -> None:
    tokenizer = random_models.build_word_tokenizer()
    rows = random_models.get_rows("dpo", 3, 20, 6, shared_tokens=15)
    prompts = [tokenizer(row["prompt"]).input_ids for row in rows]
    assert [len(ids) for ids in prompts] == [20] * 3
    assert len({tuple(ids[:15]) for ids in prompts}) == 1
    assert len({tuple(ids) for ids in prompts}) == 3
    # The trainers add the token that ends an answer.
    assert len(tokenizer(rows[0]["prompt"] + rows[0]["chosen"] + "<eos>").input_ids) == 26
    assert {row["db_id"] for row in rows} == {"one"}


# ------------------------------------------------------------------------------- figures


@pytest.mark.parametrize(
    ("intervals", "expected"),
    [
        ([], (0, 0)),
        ([(5, 7)], (2, 0)),
        # From 1 to 10, with nothing from 4 to 6 and from 8 to 9.
        ([(6, 8), (1, 3), (2, 4), (1, 2), (9, 10)], (6, 3)),
    ],
)
def test_busy_and_waiting_time_of_a_device(
    training_steps: ModuleType, intervals: list[tuple[float, float]], expected: tuple[int, int]
) -> None:
    assert training_steps.get_busy_and_waiting(intervals) == expected


def test_columns_of_the_table(gpu: ModuleType) -> None:
    entries = {
        "device": {"status": "done", "result": {"peak_tflops": 989.0}},
        "steps/sft-1024/sense": {
            "status": "done",
            "result": {"step_s": 0.25, "tflops": 98.9, "syncs": {"a.py:3": 2, "b.py:4": 1}},
        },
        "recipes/x-8gb/sft": {
            "status": "done",
            "result": {"fits": False, "cap_gib": 8, "peak_gib": 10.0, "estimate_gib": 8.0},
        },
        "recipes/x-8gb/dpo": {"status": "timeout", "error": "no result after 9 s"},
    }
    text = gpu.format_tables(entries)
    assert "| sft-1024/sense | 250 |  |  | 98.9 | 10 | 3 |  |  |" in text
    assert "| x-8gb/sft | **no** | 8 | 10 | 8 | 0.8 |  |  |  |" in text
    assert "| x-8gb/dpo | timeout |" in text
    assert text.endswith("recipes/x-8gb/dpo: timeout: no result after 9 s")
