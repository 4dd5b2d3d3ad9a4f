"""Reference log-probabilities that are kept for other runs."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from datasets import Dataset
from peft import LoraConfig, get_peft_model
from tiny_models import PAIRS, assert_same_weights, build_tiny_model, build_tiny_tokenizer
from transformers import AutoModelForCausalLM
from trl import DPOTrainer

from sense_trl.errors import InputError
from sense_trl.prefix_tree import PrefixTree
from sense_trl.trainers import SenseDPOTrainer
from sense_trl.trainers.teachers import reference_cache
from sense_trl.trainers.teachers.reference_cache import (
    load_cache,
    save_cache,
    shared_by_processes,
    take_reference_logps,
)

# TRL 1.16 and peft 0.21 use names of this option that transformers 5.23 deprecates.
pytestmark = pytest.mark.filterwarnings("ignore:.*gradient_checkpointing:FutureWarning")


@pytest.fixture
def precompute(train, tmp_path, monkeypatch):
    """Builds a trainer with a cache; returns it and how many pairs the reference was run on."""

    def run(pairs=PAIRS, path=None, **options):
        counts = []
        original = SenseDPOTrainer.compute_ref_log_probs

        def counting(self, model, inputs):
            counts.append(len(inputs["input_ids"]) // 2)
            return original(self, model, inputs)

        monkeypatch.setattr(SenseDPOTrainer, "compute_ref_log_probs", counting)
        cache = {"reference_cache": str(path or tmp_path / "folder" / "reference.parquet")}
        defaults = {"precompute_ref_log_probs": True, "start": False, **cache}
        trainer = train(["sigmoid"], pairs=pairs, **{**defaults, **options})
        monkeypatch.setattr(SenseDPOTrainer, "compute_ref_log_probs", original)
        return trainer, sum(counts)

    return run


def get_columns(trainer):
    return [list(trainer.train_dataset[f"ref_{side}_logps"]) for side in ("chosen", "rejected")]


@pytest.mark.parametrize("lora", [True, False], ids=["lora", "full"])
def test_the_columns_are_trl_s(precompute, train, lora):
    ours, _ = precompute(lora=lora)
    trls = train(
        ["sigmoid"],
        trainer_class=DPOTrainer,
        precompute_ref_log_probs=True,
        lora=lora,
        start=False,
        per_device_train_batch_size=3,
    )
    torch.testing.assert_close(get_columns(ours), get_columns(trls), rtol=1e-5, atol=1e-4)


def test_a_second_run_computes_nothing_and_trains_alike(precompute):
    first, computed = precompute()
    second, again = precompute()
    assert (computed, again) == (len(PAIRS), 0)
    assert get_columns(first) == get_columns(second)
    first.train()
    second.train()
    assert_same_weights(first, second)


def test_only_new_pairs_are_computed_in_whatever_order(precompute):
    _, computed = precompute(PAIRS[:5])
    new = {**PAIRS[5], "rejected": "SELECT 1"}
    trainer, again = precompute([new, *reversed(PAIRS[:5]), new])
    assert (computed, again) == (5, 1)
    whole, _ = precompute([new, *reversed(PAIRS[:5]), new], path="other", reference_cache=None)
    torch.testing.assert_close(get_columns(trainer), get_columns(whole), rtol=1e-5, atol=1e-4)


def test_another_adapter_on_the_same_base_finds_them_and_another_model_does_not(precompute):
    _, computed = precompute(lora=True)
    _, full = precompute(lora=False)
    assert (computed, full) == (len(PAIRS), 0)
    _, other = precompute(architecture="qwen2")
    assert other == len(PAIRS)
    _, explicit = precompute(ref_model=build_tiny_model("llama", seed=1))
    assert explicit == len(PAIRS)
    _, same = precompute(ref_model=build_tiny_model("llama"))
    assert same == 0
    _, tail = precompute(ld_alpha=0.5)
    assert tail == len(PAIRS)


def test_a_trained_adapter_is_part_of_the_reference(precompute, monkeypatch, model_paths):
    """TRL keeps a frozen copy of an adapter that is trained further, and so must the key."""
    counts = []
    for scale in (0.1, 0.1, 0.2):
        base = AutoModelForCausalLM.from_pretrained(model_paths["llama"])
        with torch.random.fork_rng():
            torch.manual_seed(0)
            model = get_peft_model(base, LoraConfig(r=4, target_modules=["q_proj"]))
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if "lora_B" in name:
                    parameter.fill_(scale)
        monkeypatch.setitem(model_paths, "adapter", model)
        counts.append(precompute(architecture="adapter", lora=False)[1])
    assert counts == [len(PAIRS), 0, len(PAIRS)]


@pytest.mark.parametrize(
    "changes",
    [
        {"rms_norm_eps": 1e-2},
        {"rope_parameters": {"rope_type": "linear", "factor": 4.0, "rope_theta": 10000.0}},
        {"num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 32},
        {"hidden_act": "gelu"},
    ],
    ids=lambda changes: next(iter(changes)),
)
@pytest.mark.parametrize("lora", [True, False], ids=["lora", "full"])
def test_the_same_weights_under_another_config_are_another_reference(
    precompute, monkeypatch, model_paths, tmp_path, changes, lora
):
    _, first = precompute(lora=lora)
    model = build_tiny_model("llama")
    for name, value in changes.items():
        setattr(model.config, name, value)
    model.save_pretrained(tmp_path / "changed")
    build_tiny_tokenizer().save_pretrained(tmp_path / "changed")
    monkeypatch.setitem(model_paths, "changed", str(tmp_path / "changed"))
    _, second = precompute(architecture="changed", lora=lora)
    assert (first, second) == (len(PAIRS), len(PAIRS))


def test_another_attention_is_another_reference(precompute):
    _, first = precompute()
    _, second = precompute(model_init_kwargs={"attn_implementation": "eager"})
    assert (first, second) == (len(PAIRS), len(PAIRS))


def test_the_scale_of_a_trained_adapter_is_part_of_the_reference(
    precompute, monkeypatch, model_paths
):
    counts = []
    for alpha in (8, 8, 16):
        base = AutoModelForCausalLM.from_pretrained(model_paths["llama"])
        with torch.random.fork_rng():
            torch.manual_seed(0)
            options = {"r": 4, "target_modules": ["q_proj"], "lora_alpha": alpha}
            model = get_peft_model(base, LoraConfig(**options, init_lora_weights=False))
        monkeypatch.setitem(model_paths, "adapter", model)
        counts.append(precompute(architecture="adapter", lora=False)[1])
    assert counts == [len(PAIRS), 0, len(PAIRS)]


def test_evaluation_data_are_cached_as_well(precompute):
    _, computed = precompute(PAIRS[:4], eval_pairs=PAIRS[4:6])
    trainer, again = precompute(PAIRS[:4], eval_pairs=PAIRS[4:6])
    assert (computed, again) == (6, 0)
    assert "ref_chosen_logps" in trainer.eval_dataset.column_names


def test_what_was_saved_survives_an_interruption(precompute, monkeypatch):
    monkeypatch.setattr(reference_cache, "_BATCHES_PER_SAVING", 1)
    original = reference_cache._compute
    calls = []

    def failing(*args):
        calls.append(args)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return original(*args)

    monkeypatch.setattr(reference_cache, "_compute", failing)
    with pytest.raises(KeyboardInterrupt):
        precompute(per_device_train_batch_size=2)
    monkeypatch.setattr(reference_cache, "_compute", original)
    _, computed = precompute(per_device_train_batch_size=2)
    assert computed == len(PAIRS) - 4


def test_a_cache_is_read_as_it_was_written(tmp_path):
    path = tmp_path / "a" / "cache.parquet"
    assert load_cache(path) == {}
    save_cache(path, {"x": (-1.5, -2.25), "y": (0.0, -3.0)})
    assert load_cache(path) == {"x": (-1.5, -2.25), "y": (0.0, -3.0)}
    assert [p.name for p in path.parent.iterdir()] == ["cache.parquet"]


@pytest.mark.parametrize("content", ["text", "other columns"])
def test_another_file_is_refused(tmp_path, content):
    path = tmp_path / "cache.parquet"
    if content == "text":
        path.write_text("no parquet")
    else:
        pq.write_table(pa.table({"key": ["x"]}), path)
    with pytest.raises(InputError, match=r"`reference_cache` is .*cache\.parquet"):
        load_cache(path)


def test_a_cache_without_precomputing_is_refused(train):
    with pytest.raises(InputError, match="`reference_cache` is 'x', but `precompute_ref"):
        train(["sigmoid"], reference_cache="x")


def test_data_in_memory_are_given_to_all_processes_as_the_same_files(tmp_path):
    accelerator = SimpleNamespace(
        num_processes=2, is_main_process=True, wait_for_everyone=lambda: None
    )
    trainer = SimpleNamespace(
        accelerator=accelerator, args=SimpleNamespace(output_dir=str(tmp_path))
    )
    dataset = Dataset.from_dict({"prompt_ids": [[1], [2, 3]]})
    with shared_by_processes(trainer, dataset, "train") as shared:
        assert shared.to_dict() == dataset.to_dict()
        folder = {str(Path(file["filename"]).parent) for file in shared.cache_files}
        accelerator.is_main_process = False
        with shared_by_processes(trainer, dataset, "train") as others:
            assert {str(Path(f["filename"]).parent) for f in others.cache_files} == folder
        # One that has files is used as it is.
        with shared_by_processes(trainer, shared, "train") as same:
            assert same is shared
        ready = shared.add_column("ref_chosen_logps", [-1.0, -2.0])
        ready = ready.add_column("ref_rejected_logps", [-3.0, -4.0])
        found = take_reference_logps(dataset, ready)
        accelerator.is_main_process = True
    assert list(found["ref_chosen_logps"]) == [-1.0, -2.0]
    assert list(found["ref_rejected_logps"]) == [-3.0, -4.0]
    assert list(tmp_path.iterdir()) == []


def test_all_of_a_batch_goes_where_the_model_is() -> None:
    tree = PrefixTree.from_sequences([[5, 6, 7], [5, 6, 8]])
    seen = {}

    def compute(model, inputs):
        seen.update(inputs)
        return torch.tensor([-1.0]), torch.tensor([-2.0])

    trainer = SimpleNamespace(
        model=None,
        ref_model=None,
        accelerator=SimpleNamespace(device=torch.device("meta")),
        data_collator=lambda rows: {"input_ids": torch.ones(2, 3), "prefix_tree": tree},
        compute_ref_log_probs=compute,
    )
    assert reference_cache._compute(trainer, [{}], ["key"], [0]) == [("key", (-1.0, -2.0))]
    assert seen["input_ids"].is_meta
    assert seen["prefix_tree"].input_ids.is_meta
