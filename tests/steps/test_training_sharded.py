"""Two processes that hold half of the weights each end with a whole model."""

from __future__ import annotations

from pathlib import Path

import pytest
import tiny_models
from datasets import Dataset
from transformers import AutoModelForCausalLM
from two_processes import run_two_processes

from sense_trl.checkpoints.starting_model import StartingModel
from sense_trl.errors import ModelError
from sense_trl.steps.training import _check_saved, train_model
from sense_trl.trainers import SenseSFTConfig


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sharded")
    path = tiny_models.save_tiny_model(folder, "llama")
    run_two_processes(Path(__file__).with_name("sharded_script.py"), path, folder)
    return folder


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*gradient_checkpointing:FutureWarning")
def test_a_sharded_training_writes_the_model_that_one_process_does(folder):
    # Sharded checkpoints, for resuming, stay what they were.
    assert (folder / "sft" / "checkpoint-1" / "pytorch_model_fsdp_0").is_dir()
    found = AutoModelForCausalLM.from_pretrained(folder / "sft").state_dict()
    start = StartingModel(
        AutoModelForCausalLM.from_pretrained(folder / "llama"),
        tiny_models.build_tiny_tokenizer(),
        None,
    )
    config = SenseSFTConfig(str(folder / "one"), **tiny_models.OPTIONS)
    train_model(start, Dataset.from_list(tiny_models.QUESTIONS), config)
    expected = AutoModelForCausalLM.from_pretrained(folder / "one").state_dict()
    assert found.keys() == expected.keys()
    for name, weight in expected.items():
        assert (found[name] - weight).norm() <= 1e-3 * weight.norm(), name


@pytest.mark.slow
def test_a_sharded_reference_is_precomputed_for_data_in_memory(folder):
    assert (folder / "dpo" / "adapter_model.safetensors").stat().st_size
    assert not list(folder.glob("dpo/.references*"))


def test_a_folder_without_weights_is_told_of(tmp_path):
    with pytest.raises(ModelError, match="no weights were written"):
        _check_saved(tmp_path)
    (tmp_path / "adapter_model.safetensors").write_bytes(b"")
    with pytest.raises(ModelError, match="no weights were written"):
        _check_saved(tmp_path)
    (tmp_path / "model-00001-of-00002.safetensors").write_bytes(b"x")
    _check_saved(tmp_path)
