"""Trainings of tiny models: once in one process, and once in two that shard what they hold."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from peft import LoraConfig
from tiny_models import OPTIONS, PAIRS, QUESTIONS, build_tiny_tokenizer
from transformers import AutoModelForCausalLM

from sense_trl.checkpoints.starting_model import StartingModel
from sense_trl.steps.training import train_model
from sense_trl.trainers import KIDConfig, SenseDPOConfig, SenseSFTConfig

KINDS: dict[str, tuple[Any, list[dict[str, Any]], dict[str, Any]]] = {
    "sft": (SenseSFTConfig, QUESTIONS, {}),
    "dpo": (
        SenseDPOConfig,
        PAIRS,
        {"precompute_ref_log_probs": True, "loss_type": ["sigmoid"]},
    ),
    "kid": (KIDConfig, QUESTIONS, {"fill": "sample", "kd_weight": 20.0}),
}
RUNS = [f"{kind}-{form}" for kind in KINDS for form in ("full", "lora")]
RESUMED = ["sft-full", "dpo-lora", "kid-full"]


def train(name: str, models: Path, output: Path, *, seed: int = 0, **options: Any) -> None:
    """Train on the student in `models`; writes the logged losses to `<output>.json`.

    What is trained begins with other values for another `seed`, which matters to no run that
    resumes.
    """
    kind, form = name.split("-")
    config_class, rows, own = KINDS[kind]
    if kind == "kid":
        own = {**own, "teacher_model_name_or_path": str(models / "qwen2")}
    adapter = LoraConfig(r=4, target_modules="all-linear") if form == "lora" else None
    # What an adapter begins with.
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_pretrained(models / "llama")
    if seed and adapter is None:
        with torch.no_grad():
            for parameter in model.parameters():
                parameter += 0.1
    start = StartingModel(model, build_tiny_tokenizer(), adapter)
    config = config_class(str(output), **{**OPTIONS, **own, **options})
    metrics = train_model(start, Dataset.from_list(rows), config)
    history = [
        {key: entry[key] for key in ("loss", "grad_norm") if key in entry}
        for entry in metrics["log_history"]
    ]
    output.with_suffix(".json").write_text(json.dumps([entry for entry in history if entry]))


def train_all(models: Path, folder: Path, is_main: bool, barrier: Any, **options: Any) -> None:
    """Train all, and some again from their first checkpoint."""
    for name in RUNS:
        saves = {"save_strategy": "steps", "save_steps": 1} if name in RESUMED else {}
        train(name, models, folder / name, **options, **saves)
        if name not in RESUMED:
            continue
        resumed = folder / f"{name}-resumed"
        if is_main:
            shutil.copytree(folder / name / "checkpoint-1", resumed / "checkpoint-1")
        barrier()
        train(name, models, resumed, seed=1, **options)
