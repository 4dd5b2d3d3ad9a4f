"""Two processes on a CPU: DistributedDataParallel sees an ordinary forward."""

from __future__ import annotations

from pathlib import Path

import pytest
import tiny_models
import torch
from datasets import Dataset
from peft import LoraConfig
from two_processes import run_two_processes

from sense_trl.trainers import KIDConfig, KIDTrainer

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def results(model_paths, tmp_path_factory):
    folder = tmp_path_factory.mktemp("distributed")
    script = Path(__file__).with_name("distributed_script.py")
    run_two_processes(script, model_paths["llama"], folder)
    return {path.stem: torch.load(path) for path in folder.glob("*.pt")}


def assert_same(found, expected, tolerance):
    assert found["num_processes"] == expected["num_processes"] == 2
    for name in ("loss", "grad_norm"):
        torch.testing.assert_close(found[name], expected[name], rtol=tolerance, atol=tolerance)
    for name, weight in expected["weights"].items():
        assert (found["weights"][name] - weight).norm() <= tolerance * weight.norm(), name


@pytest.mark.parametrize("kind", ["dpo", "sft"])
def test_two_processes_train_as_with_trl(results, kind):
    assert_same(results[f"{kind}-ours"], results[f"{kind}-trl"], 1e-3)


def test_two_processes_resume_within_an_epoch_in_the_same_order(results):
    grouped, resumed = results["sft-grouped"], results["sft-resumed"]
    assert grouped["loss"] == resumed["loss"]
    assert_same(grouped, resumed, 0)


def test_two_processes_cache_the_reference_of_a_dataset_in_memory(results):
    assert_same(results["dpo-cached"], results["dpo-ours"], 1e-4)


def test_two_processes_distil_as_one_with_the_whole_batch(results, model_paths, tmp_path):
    found = results["kid"]
    trainer = KIDTrainer(
        model=model_paths["llama"],
        teacher_model=tiny_models.build_tiny_model("llama", seed=1),
        args=KIDConfig(
            str(tmp_path),
            fill="sample",
            kd_weight=20.0,
            on_policy_fraction=0.5,
            on_policy_temperature=0.0,
            on_policy_max_new_tokens=3,
            per_device_train_batch_size=8,
            max_steps=4,
            learning_rate=1e-3,
            logging_steps=1,
            use_cpu=True,
            bf16=False,
            report_to="none",
            disable_tqdm=True,
            save_strategy="no",
        ),
        train_dataset=Dataset.from_list(tiny_models.QUESTIONS),
        processing_class=tiny_models.build_tiny_tokenizer(),
        peft_config=LoraConfig(r=4, target_modules="all-linear"),
    )
    trainer.train()
    expected = {
        "weights": tiny_models.get_weights(trainer),
        "num_processes": 2,
        **{name: tiny_models.get_history(trainer, name) for name in ("loss", "grad_norm")},
    }
    assert_same(found, expected, 1e-3)
    for name, key in (("kd", "losses/kd"), ("error_rate", "kid/effective_error_rate")):
        torch.testing.assert_close(
            found[name], tiny_models.get_history(trainer, key), rtol=1e-3, atol=1e-5
        )
    assert min(found["error_rate"]) > 0
