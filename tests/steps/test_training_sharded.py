"""Two processes that hold half of weights, gradients or states each train as one does."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import pytest
import sharded_runs
import tiny_models
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM
from two_processes import run_two_processes

from sense_trl.errors import ModelError
from sense_trl.steps.training import _check_saved

pytestmark = pytest.mark.filterwarnings("ignore:.*gradient_checkpointing:FutureWarning")


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    tiny_models.save_tiny_model(folder, "llama")
    tiny_models.save_tiny_model(folder, "qwen2", seed=1)
    return folder


@pytest.fixture(scope="module")
def expected(models, tmp_path_factory):
    folder = tmp_path_factory.mktemp("one")
    for name in sharded_runs.RUNS:
        sharded_runs.train(name, models, folder / name)
    return folder


@pytest.fixture(scope="module", params=["fsdp", "zero2"])
def found(request, models, tmp_path_factory):
    if request.param == "zero2" and importlib.util.find_spec("deepspeed") is None:
        pytest.skip("DeepSpeed is not installed")
    folder = tmp_path_factory.mktemp(request.param)
    script = Path(__file__).with_name("sharded_script.py")
    run_two_processes(script, request.param, models, folder, timeout=1800)
    return folder


def load_weights(folder):
    """The trained weights; those of an adapter where one was trained, wherever it was written."""
    files = [folder / "adapter_model.safetensors", folder / "adapter" / "adapter_model.safetensors"]
    for path in files:
        if path.exists():
            return load_file(path)
    return AutoModelForCausalLM.from_pretrained(folder).state_dict()


def assert_close(found, expected, tolerance):
    assert found.keys() == expected.keys()
    for name, weight in expected.items():
        assert (found[name] - weight).norm() <= tolerance * weight.norm(), name


@pytest.mark.slow
@pytest.mark.parametrize("name", sharded_runs.RUNS)
def test_shards_train_and_save_what_one_process_does(name, found, expected):
    losses, whole = (json.loads((at / f"{name}.json").read_text()) for at in (found, expected))
    assert len(losses) == len(whole) == 2
    for entry, other in zip(losses, whole, strict=True):
        assert entry == pytest.approx(other, rel=1e-3)
    assert_close(load_weights(found / name), load_weights(expected / name), 1e-3)
    # Nothing that stands beside data in memory is left.
    assert not list((found / name).glob(".references*"))


@pytest.mark.slow
@pytest.mark.parametrize("name", sharded_runs.RESUMED)
def test_shards_resume_where_they_were(name, found):
    if name == "sft-full":
        # Checkpoints stay sharded; only what is trained in the end is put together.
        part = "pytorch_model_fsdp_0" if found.name.startswith("fsdp") else "global_step1"
        assert (found / name / "checkpoint-1" / part).is_dir()
    assert_close(load_weights(found / f"{name}-resumed"), load_weights(found / name), 1e-6)
    last = [
        json.loads((found / f"{run}.json").read_text())[-1] for run in (name, f"{name}-resumed")
    ]
    assert last[0] == pytest.approx(last[1], rel=1e-6)


def test_a_folder_without_weights_is_told_of(tmp_path):
    with pytest.raises(ModelError, match="no weights were written"):
        _check_saved(tmp_path)
    (tmp_path / "adapter_model.safetensors").write_bytes(b"")
    with pytest.raises(ModelError, match="no weights were written"):
        _check_saved(tmp_path)
    (tmp_path / "model-00001-of-00002.safetensors").write_bytes(b"x")
    _check_saved(tmp_path)
