"""Recipes for GPUs are one recipe at several sizes: whatever else differs is a slip."""

from pathlib import Path
from typing import Any

import pytest
import yaml

RECIPES = Path(__file__).resolve().parents[2] / "recipes"
REFERENCE = "qwen2.5-coder-7b-24gb"
STAGES = ("sft", "pairs", "dpo", "kd", "evaluate")
TRAINED = ("sft", "dpo", "kd")

# What depends on the size of the model and of the card.
_SIZE = {
    "model_name_or_path", "teacher_model_name_or_path", "per_device_train_batch_size",
    "gradient_accumulation_steps", "group_size", "batch_size",
}  # fmt: skip
_SAMPLING_IN_4_BITS = {("pairs", "load_in_4bit"), ("evaluate", "load_in_4bit")}
# What a CPU without instructions for bfloat16 needs, and as much data as it can take.
_CPU = {
    "dtype", "generation_dtype", "bf16", "use_cpu", "teacher_model_init_kwargs", "max_questions",
    "warmup_steps",
}  # fmt: skip
_SHARDED = {"bnb_4bit_quant_storage", "adapter_dtype", "reference_cache"}
MAY_DIFFER: dict[str, set[Any]] = {
    "qwen2.5-coder-0.5b-8gb": set(),
    "qwen2.5-coder-1.5b-8gb": set(),
    "qwen2.5-coder-3b-12gb": set(),
    "qwen2.5-coder-7b-16gb": _SAMPLING_IN_4_BITS,
    "codellama-7b-sense-24gb": set(),
    # The published settings of KID, for a new adapter.
    "kid-7b-to-0.5b-24gb": {
        "use_peft", "lora_r", "lora_alpha", "lora_dropout", "lora_target_modules", "learning_rate",
        "num_train_epochs",
    },
    "qwen2.5-coder-7b-2x24gb-zero2": _SHARDED,
    "qwen2.5-coder-32b-2x24gb-fsdp": _SHARDED | _SAMPLING_IN_4_BITS,
    "spider-smollm2-4bit-cpu": _CPU,
}  # fmt: skip
RECIPES_IN_4_BITS = (REFERENCE, *MAY_DIFFER)


def _read(recipe: str, stage: str) -> dict[str, Any] | None:
    path = RECIPES / recipe / f"{stage}.yaml"
    return yaml.safe_load(path.read_text()) if path.exists() else None


def test_every_recipe_is_compared() -> None:
    folders = {path.parent.name for path in RECIPES.glob("*/*.yaml")}
    on_a_cpu = {"spider-smollm2", "spider-qwen2.5-coder", "own-database-qwen2.5-coder"}
    assert folders == {*RECIPES_IN_4_BITS, *on_a_cpu}


@pytest.mark.parametrize("recipe", MAY_DIFFER)
def test_a_recipe_differs_from_its_siblings_in_size_alone(recipe: str) -> None:
    for stage in STAGES:
        config, reference = _read(recipe, stage), _read(REFERENCE, stage)
        assert reference is not None
        if config is None:
            continue
        # Each writes to folders of its own name.
        config = {
            name: value.replace(recipe, REFERENCE) if isinstance(value, str) else value
            for name, value in config.items()
        }
        differing = {
            name
            for name in {*config, *reference}
            if (name in config) != (name in reference) or config[name] != reference[name]
        }
        allowed = _SIZE | MAY_DIFFER[recipe]
        assert {n for n in differing if n not in allowed and (stage, n) not in allowed} == set()


@pytest.mark.parametrize("recipe", RECIPES_IN_4_BITS)
def test_paths_lead_from_stage_to_stage(recipe: str) -> None:
    run = f"runs/{recipe}"
    expected = {"pairs": f"{run}/sft", "dpo": f"{run}/sft", "evaluate": f"{run}/model"}
    for stage in STAGES:
        config = _read(recipe, stage)
        if config is None:
            continue
        assert config["output_dir"] == f"{run}/{stage}"
        assert config["model_name_or_path"] == expected.get(stage, config["model_name_or_path"])
        assert config.get("pairs", f"{run}/pairs/pairs.parquet") == f"{run}/pairs/pairs.parquet"
        if stage == "kd" and _read(recipe, "dpo") is not None:
            assert config["model_name_or_path"] == f"{run}/dpo"


@pytest.mark.parametrize("recipe", RECIPES_IN_4_BITS)
def test_training_in_4_bits_is_set_up_as_the_readme_says(recipe: str) -> None:
    num_processes = 2 if "2x24gb" in recipe else 1
    for stage in TRAINED:
        config = _read(recipe, stage)
        if config is None:
            continue
        assert config["load_in_4bit"]
        assert config["use_bnb_nested_quant"]
        assert config["gradient_checkpointing"]
        assert config["optim"] == "paged_adamw_8bit"
        assert config["dtype"] == ("float32" if config.get("use_cpu") else "bfloat16")
        assert config["bf16"] == (config["dtype"] == "bfloat16")
        # What a step learns from is the same on every card.
        batch = config["per_device_train_batch_size"] * config["gradient_accumulation_steps"]
        assert batch * num_processes == 16
