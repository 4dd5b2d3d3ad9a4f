"""What a GPU computes, holds and takes with these trainers: one command, one JSON file, one table.

    python recipes/benchmarks/gpu.py --output gpu.json
    python recipes/benchmarks/gpu.py --table gpu.json

Needs: one large GPU (written for 80 GB and more) and no network: weights are random, of the shapes
in random_models.py, and texts are random words. Under eight minutes on an H100 or H200 is what it
is laid out for; no part starts after `--minutes`. Each part runs in a process of its own, with a
timeout, and its result is in the JSON when it ends; a part that fails or takes too long is recorded
there, and the next one runs. The same command later does the parts that are not done. `--jobs`
parts import, build and estimate at a time; the device is one part's alone. Parts:

* `correctness/TYPE/ATTENTION`: losses and gradients of SFT, DPO, distillation and GRPO on prefix
  trees, with dense masks (`sdpa`) and FlexAttention, against TRL's on padded rows; in bfloat16 both
  against TRL's in float32. `correctness/4-bit`: a model in 4 bits against one of the same weights
  dequantised, forward and backward, and its adapter merged.
* `recipes/RECIPE/STAGE`: the first steps of each stage of each recipe for one GPU, with a hard cap
  at the memory that the recipe is for: fits or not, peak and tokens per second beside what
  `sense-trl estimate` says. Every example is as long as the stage allows, and has nothing in common
  with another one, as in the estimate. What does not fit is run again without the cap.
* `steps/TASK-TOKENS/SIDE`: time of a step against TRL's, at prompts of 1,024 and 4,096 tokens: with
  Liger's kernels, and without padding on FlashAttention, where these libraries are; SFT on
  questions of one schema, DPO on pairs. Utilisation is operations that were counted, per second,
  against the maker's figure of the card; none are counted with FlexAttention. Synchronisations are
  counted by place (CUDA's debug mode), and waiting is the time between a step's first and last
  kernel in which none ran, under a profiler, which itself slows the host.
* `generation/MODEL`: tokens per second of the shared-prefix decoder and of plain `generate`.

The machine needs this checkout on its path and, beside torch, transformers and what they need:
accelerate, datasets, peft, trl, msgspec and sqlglot; bitsandbytes for what is in 4 bits. What a
machine without a network lacks is taken along as wheels, some 50 MB (for Python 3.12 on x86-64):

    pip download --no-deps --only-binary=:all: --python-version 3.12 --implementation cp \\
        --platform manylinux_2_28_x86_64 --platform manylinux_2_24_x86_64 \\
        --platform manylinux2014_x86_64 -d wheels \\
        trl==1.16.0 datasets==5.2.0 dill multiprocess bitsandbytes==0.50.2 msgspec sqlglot
    pip install --no-index --no-deps --target site wheels/*.whl && export PYTHONPATH=site:.

On a CPU, in seconds, with tiny models of the same kinds, as the tests run it:

    python recipes/benchmarks/gpu.py --device cpu --size toy --in-process --output toy.json
"""

from __future__ import annotations

import argparse
import gc
import importlib.util
import json
import os
import random
import re
import statistics
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from threading import Lock
from typing import Any

RECIPES = Path(__file__).resolve().parents[1]
STAGES = ("sft", "dpo", "kd", "grpo")
SIDES = ("trl", "trl_liger", "trl_padding_free", "sense", "sense_flex")
# What a side cannot do without, and how a model attends there.
LIBRARIES = {"trl_liger": "liger_kernel", "trl_padding_free": "flash_attn"}
ATTENTION = {"trl_padding_free": "flash_attention_2", "sense_flex": "flex_attention"}
# Peak of dense bfloat16 products in TFLOP/s, by the makers' data sheets.
PEAKS = {"H200": 989.0, "H100": 989.0, "A100": 312.0, "L40S": 362.0, "L4": 121.0}
PACKAGES = ("torch", "transformers", "trl", "peft", "bitsandbytes", "liger_kernel", "flash_attn")
GIB = 2**30
# What the driver holds for a process, in GiB, as the part `device` found it.
CONTEXT = "SENSE_TRL_CONTEXT_GIB"
# Largest relative distance of gradients in float32, and of bfloat16 as a multiple of TRL's own.
TOLERANCE = 1e-3
BF16_FACTOR = 1.5


@dataclass(frozen=True)
class Size:
    """How large everything is."""

    is_toy: bool
    dtype: str
    model: str
    generation_models: tuple[str, ...]
    recipes: str
    # Of the compared losses: questions, tokens of a prompt and of an answer.
    compared: tuple[int, int, int]
    prompts: tuple[int, ...]
    num_questions: int
    answer_tokens: int
    num_steps: int
    samples: int


QWEN = "Qwen/Qwen2.5-Coder-{}-Instruct"
SIZES = {
    "full": Size(
        is_toy=False,
        dtype="bfloat16",
        model=QWEN.format("1.5B"),
        generation_models=(QWEN.format("1.5B"), QWEN.format("7B")),
        recipes="*gb",
        compared=(8, 400, 48),
        prompts=(1024, 4096),
        num_questions=8,
        answer_tokens=64,
        num_steps=3,
        samples=8,
    ),
    "toy": Size(
        is_toy=True,
        dtype="float32",
        model=QWEN.format("0.5B"),
        generation_models=(QWEN.format("0.5B"),),
        recipes="qwen2.5-coder-0.5b-8gb",
        compared=(4, 24, 6),
        prompts=(24,),
        num_questions=3,
        answer_tokens=6,
        num_steps=1,
        samples=2,
    ),
}


@dataclass(frozen=True)
class Part:
    """Something that is measured by itself."""

    name: str
    timeout_s: float
    run: Callable[..., dict[str, Any]]
    arguments: tuple[Any, ...] = ()


def get_parts(size: Size, device: str) -> list[Part]:
    """All parts, what matters most first."""
    parts = [Part("device", 60, describe_device)]
    # On a CPU compiling FlexAttention takes minutes.
    attentions = ("sdpa",) if size.is_toy else ("sdpa", "flex_attention")
    sides = SIDES[:-1] if size.is_toy else SIDES
    for attention in attentions:
        for dtype in ("float32",) if size.is_toy else ("float32", "bfloat16"):
            name = f"correctness/{dtype}/{attention}"
            parts.append(Part(name, 120, compare_losses, (dtype, attention)))
    parts.append(Part("correctness/4-bit", 90, compare_4_bits))
    folders = sorted(path for path in RECIPES.glob(size.recipes) if "-2x" not in path.name)
    for folder in sorted(folders, key=lambda path: (get_cap_gib(path.name), path.name)):
        for stage in STAGES:
            if (folder / f"{stage}.yaml").is_file():
                arguments = (folder.name, stage)
                parts.append(Part(f"recipes/{'/'.join(arguments)}", 150, run_recipe, arguments))
    for tokens in size.prompts:
        for task in ("sft", "dpo"):
            for side in sides:
                name = f"steps/{task}-{tokens}/{side}"
                parts.append(Part(name, 120, time_steps, (task, tokens, side)))
    for model in size.generation_models:
        name = f"generation/{model.split('/')[1]}"
        parts.append(Part(name, 120, time_generation, (model,)))
    return parts


# -------------------------------------------------------------------------------- device


@contextmanager
def hold_device(lock: str | None) -> Iterator[None]:
    """The device is this process's alone meanwhile."""
    from filelock import FileLock

    if lock is None:
        yield
        return
    with FileLock(lock):
        yield


def describe_device(size: Size, device: str, lock: str | None) -> dict[str, Any]:
    """Name, memory, versions, and the speed of a large product in TFLOP/s."""
    import torch
    from training_steps import synchronize

    found: dict[str, Any] = {"name": device, "peak_tflops": None}
    if device == "cuda":
        name = torch.cuda.get_device_name()
        peaks = [peak for known, peak in PEAKS.items() if known in name]
        found = {"name": name, "peak_tflops": peaks[0] if peaks else None}
        free, total = torch.cuda.mem_get_info()
        # What the driver holds for a process; no other one is there yet.
        context = total - free - torch.cuda.memory_reserved()
        found |= {"memory_gib": total / GIB, "context_gib": context / GIB}
    found["versions"] = {name: get_version(name) for name in PACKAGES}
    width = 64 if size.is_toy else 8192
    with hold_device(lock):
        a = torch.randn(width, width, device=device, dtype=getattr(torch, size.dtype))
        for _ in range(3):
            a @ a
        synchronize()
        started = time.perf_counter()
        for _ in range(10):
            a @ a
        synchronize()
        found["product_tflops"] = 20 * width**3 / (time.perf_counter() - started) / 1e12
    return found


def get_version(package: str) -> str | None:
    """Of an installed package."""
    import importlib.metadata

    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


# --------------------------------------------------------------------------- correctness


def compare_losses(
    size: Size, device: str, lock: str | None, dtype: str, attention: str
) -> dict[str, Any]:
    """Loss and gradients of each stage against TRL's; distances are relative, in the 2-norm."""
    found = {}
    with hold_device(lock):
        for stage in STAGES:
            expected = get_gradient(size, device, stage, False, "float32", "sdpa")
            ours = get_gradient(size, device, stage, True, dtype, attention)
            entry = {
                "loss": ours[0],
                "trl_loss": expected[0],
                "distance": get_distance(ours[1], expected[1]),
            }
            bound = TOLERANCE
            if dtype != "float32":
                theirs = get_gradient(size, device, stage, False, dtype, "sdpa")
                entry["trl_distance"] = get_distance(theirs[1], expected[1])
                bound = BF16_FACTOR * entry["trl_distance"]
            found[stage] = {**entry, "agrees": entry["distance"] <= bound}
    return found


def get_distance(found: Any, expected: Any) -> float:
    """Relative, of two vectors."""
    return float((found - expected).norm() / expected.norm())


def get_gradient(
    size: Size, device: str, stage: str, is_ours: bool, dtype: str, attention: str
) -> tuple[float, Any]:
    """Loss of one batch, and its gradient for an adapter, as one vector in float32 on the CPU."""
    import datasets
    import torch
    from accelerate.utils import send_to_device
    from peft import LoraConfig
    from random_models import build_random_model, build_word_tokenizer, get_config, get_rows
    from training_steps import QUIET, TRAINERS

    config = get_config(QWEN.format("0.5B"), is_toy=size.is_toy)
    config.num_hidden_layers = min(config.num_hidden_layers, 6)
    config.layer_types = config.layer_types[: config.num_hidden_layers]

    def build(seed_shift: float) -> Any:
        # The weights are the same numbers in either type.
        model = build_random_model(config, device, torch.bfloat16, attention=attention)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.mul_(1 + seed_shift)
        return model.to(getattr(torch, dtype))

    number, prompt_tokens, answer_tokens = size.compared
    shared = prompt_tokens - prompt_tokens // 4
    rows = get_rows(stage, number, prompt_tokens, answer_tokens, shared_tokens=shared)
    trainer_class, config_class = TRAINERS[stage][is_ours]
    options: dict[str, Any] = {"bf16": False, "gradient_checkpointing": False}
    if device == "cpu":
        options["use_cpu"] = True
    if stage == "dpo":
        options["loss_type"] = ["sigmoid"]
    if stage != "grpo":
        options["max_length"] = None
    else:
        options |= {"num_generations": number, "max_completion_length": answer_tokens, "beta": 0.0}
        options["loss_type"] = "grpo"
    more: dict[str, Any] = {"reward_funcs": count_words} if stage == "grpo" else {}
    if is_ours:
        options["prefix_sharing"] = True
        if stage == "kd":
            options["imperfect_data"] = False
            more["teacher_model"] = build(0.5)
    with tempfile.TemporaryDirectory() as folder:
        trainer = trainer_class(
            model=build(0.0),
            args=config_class(
                output_dir=folder, per_device_train_batch_size=number, **QUIET, **options
            ),
            train_dataset=datasets.Dataset.from_list(rows),
            processing_class=build_word_tokenizer(),
            peft_config=LoraConfig(r=8, target_modules="all-linear"),
            **more,
        )
        perturb_adapter(trainer.model)
        trainer.model.to(device).train()
        trainer.current_gradient_accumulation_steps = 1
        if stage == "grpo":
            batch = build_completions(rows, answer_tokens, device)
        else:
            examples = [trainer.train_dataset[index] for index in range(number)]
            batch = send_to_device(trainer.data_collator(examples), trainer.accelerator.device)
        loss = trainer.compute_loss(trainer.model, batch)
        if stage == "kd" and not is_ours:
            loss = loss + compute_divergence(trainer.model, build(0.5), batch)
        loss.backward()
        return loss.item(), get_adapter_gradient(trainer.model)


def get_adapter_gradient(model: Any) -> Any:
    """Of all that is trained, as one vector."""
    import torch

    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    return torch.cat([parameter.grad.float().cpu().flatten() for parameter in trained])


def count_words(completions: list[str], **_: Any) -> list[float]:
    """A reward."""
    return [float(len(text.split())) for text in completions]


def perturb_adapter(model: Any) -> None:
    """Give an adapter the same weights on every device, none of them zero."""
    import torch

    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                noise = torch.randn(parameter.shape, generator=generator)
                parameter.copy_(0.05 * noise.to(parameter.dtype))


def build_completions(rows: list[dict[str, Any]], num_tokens: int, device: str) -> dict[str, Any]:
    """A batch of online training: completions of one prompt, with advantages."""
    import torch
    from random_models import build_word_tokenizer, get_text

    tokenizer, generator = build_word_tokenizer(), random.Random(2)
    prompt = tokenizer(rows[0]["prompt"], return_tensors="pt").input_ids
    texts = [get_text(generator, num_tokens) for _ in rows]
    completions = tokenizer(texts, return_tensors="pt").input_ids
    batch = {
        "prompt_ids": prompt.expand(len(rows), -1),
        "prompt_mask": torch.ones(len(rows), prompt.shape[1], dtype=torch.long),
        "completion_ids": completions,
        "completion_mask": torch.ones_like(completions),
        "advantages": torch.linspace(-1, 1, len(rows)),
        "num_items_in_batch": torch.tensor(completions.numel()),
    }
    return {name: tensor.to(device) for name, tensor in batch.items()}


def compute_divergence(model: Any, teacher: Any, batch: dict[str, Any]) -> Any:
    """Reverse KL per trained token from whole logits: what TRL has no trainer for."""
    import torch

    inputs = {name: batch[name] for name in ("input_ids", "attention_mask") if name in batch}
    is_trained = batch["labels"][:, 1:] != -100
    with torch.no_grad():
        expected = teacher(**inputs).logits[:, :-1][is_trained].float().log_softmax(-1)
    found = model(**inputs).logits[:, :-1][is_trained].float().log_softmax(-1)
    return (found.exp() * (found - expected)).sum(-1).mean()


def compare_4_bits(size: Size, device: str, lock: str | None) -> dict[str, Any]:
    """A model in 4 bits against its dequantised weights: outputs, gradients, merge."""
    import torch
    from peft import LoraConfig, get_peft_model
    from random_models import build_random_model, get_config
    from transformers import BitsAndBytesConfig

    from sense_trl.checkpoints.merge import merge_in_place
    from sense_trl.trainers.compat.quantization import disable_cpu_weight_repacking

    if get_version("bitsandbytes") is None:
        return {"missing": "bitsandbytes"}
    config = get_config(QWEN.format("0.5B"), is_toy=size.is_toy)
    dtype = getattr(torch, size.dtype)
    quantization = get_quantization(BitsAndBytesConfig, size.dtype)
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(2, 1000, (4, 16 if size.is_toy else 256), generator=generator).to(device)
    outputs, gradients, distances = [], [], {}
    with hold_device(lock):
        for is_dequantised in (False, True):
            model = build_random_model(config, device, dtype, quantization=quantization)
            disable_cpu_weight_repacking(model)
            if is_dequantised:
                model = model.dequantize().to(dtype)
            torch.manual_seed(0)
            model = get_peft_model(model, LoraConfig(r=8, target_modules="all-linear"))
            perturb_adapter(model)
            logits = model(input_ids=ids).logits.float()
            logits.log_softmax(-1)[..., 7].mean().backward()
            outputs.append(logits.detach().flatten())
            gradients.append(get_adapter_gradient(model))
        _, check = merge_in_place(model, ids.tolist())
        distances = {
            "logits": get_distance(*outputs),
            "gradients": get_distance(*gradients),
            "merge": check.distance,
            "adapter": check.adapter_distance,
        }
    # Rounding of products in 16 bits, where the kernels differ; nothing in 32.
    bound = 1e-3 if size.dtype == "float32" else 0.05
    agrees = max(distances["logits"], distances["gradients"]) < bound
    return {**distances, "agrees": agrees and check.distance <= check.tolerance}


def get_quantization(config_class: Any, dtype: str) -> Any:
    """What the recipes hold weights in."""
    return config_class(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=dtype,
    )


# ------------------------------------------------------------------------------- recipes


def get_cap_gib(recipe: str) -> int:
    """The memory that a recipe is for, by its name."""
    return int(re.findall(r"(\d+)gb", recipe)[-1])


def get_trained_model(name: str, recipe: str = "") -> tuple[str, dict[str, Any]]:
    """The model at the bottom of a chain of stages, and the adapter that the chain trains."""
    import yaml

    chain = name.split("/")[1] if name.startswith("runs/") else recipe
    values = yaml.safe_load((RECIPES / chain / "sft.yaml").read_text(encoding="utf-8"))
    adapter = {key: value for key, value in values.items() if key.startswith(("lora_", "use_peft"))}
    return values["model_name_or_path"], adapter


def read_stage(recipe: str, stage: str, size: Size, device: str, folder: str) -> tuple[Any, Any]:
    """Model and training arguments of a stage, for two steps of at most two micro-batches."""
    import yaml

    from sense_trl.cli.stages import STAGES as COMMANDS

    path = RECIPES / recipe / f"{stage}.yaml"
    values = yaml.safe_load(path.read_text(encoding="utf-8"))
    given: dict[str, Any] = {
        "output_dir": folder,
        "max_steps": 2,
        "gradient_accumulation_steps": min(2, values.get("gradient_accumulation_steps", 1)),
        **{"logging_steps": 1, "save_strategy": "no"},
    }
    if values["model_name_or_path"].startswith("runs/"):
        given["model_name_or_path"], adapter = get_trained_model(values["model_name_or_path"])
        given |= adapter
    if "reference_cache" in values:
        given["reference_cache"] = f"{folder}/reference.parquet"
    if device == "cpu":
        given |= {"use_cpu": True, "bf16": False, "dtype": "float32"}
    if size.is_toy:
        given |= {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 1}
        short = {"max_completion_length": 8, "num_generations": 2}
        given |= short if stage == "grpo" else {"max_length": 32}
    flags: list[str] = []
    for name, value in given.items():
        flags += [f"--{name}", *map(str, value if isinstance(value, list) else [value])]
    parser = next(command for command in COMMANDS if command.name == stage).make_parser()
    groups = parser.parse_args_and_config(["--config", str(path), *flags])
    model = next(group for group in groups if hasattr(group, "load_in_4bit"))
    return model, next(group for group in groups if hasattr(group, "optim"))


def run_recipe(
    size: Size, device: str, lock: str | None, recipe: str, stage: str
) -> dict[str, Any]:
    """A stage of a recipe under the cap of its card, beside the estimate."""
    import torch
    from random_models import get_config

    from sense_trl.memory.cards import Card, estimate_step_seconds
    from sense_trl.memory.estimate import estimate_memory
    from sense_trl.memory.training_setup import get_training_setup

    prompt_tokens = 24 if size.is_toy else 1024
    with tempfile.TemporaryDirectory() as folder:
        model, training = read_stage(recipe, stage, size, device, folder)
        config = get_config(model.model_name_or_path, is_toy=size.is_toy)
        teacher_name = getattr(training, "teacher_model_name_or_path", None)
        teacher_config = None
        if teacher_name is not None:
            if teacher_name.startswith("runs/"):
                teacher_name, _ = get_trained_model(teacher_name)
            teacher_config = get_config(teacher_name, is_toy=size.is_toy)
        setup = get_training_setup(
            stage,
            training,
            model,
            config,
            on_gpu=device == "cuda",
            prompt_tokens=prompt_tokens if stage == "grpo" else None,
            teacher_config=teacher_config,
        )
        estimate = estimate_memory(setup, config, teacher_config=teacher_config)
        cap_gib = get_cap_gib(recipe)
        found: dict[str, Any] = {
            "cap_gib": cap_gib,
            "estimate_gib": estimate.total_bytes / GIB,
            "tokens": estimate.tokens * setup.accumulation_steps,
        }
        if device == "cuda" and any(p in torch.cuda.get_device_name() for p in ("H100", "H200")):
            card = Card("Hopper", 141, 989, 4800)
            found["estimate_step_s"] = estimate_step_seconds(setup, estimate, card)
        arguments = (size, device, stage, model, training, setup, config, teacher_config, folder)
        with hold_device(lock):
            try:
                measured = train_capped(cap_gib, *arguments)
                found |= {"fits": True, **measured}
            except torch.OutOfMemoryError as error:
                found |= {"fits": False, "error": str(error).splitlines()[0]}
                traceback.clear_frames(error.__traceback__)
            if not found["fits"]:
                gc.collect()
                torch.cuda.empty_cache()
                found |= train_capped(None, *arguments)
    return {**found, "tokens_per_s": found["tokens"] / found["step_s"]}


def train_capped(
    cap_gib: float | None,
    size: Size,
    device: str,
    stage: str,
    arguments: Any,
    training: Any,
    setup: Any,
    config: Any,
    teacher_config: Any,
    folder: str,
) -> dict[str, Any]:
    """Two steps; seconds of the second one, and the memory that the device had to give.

    Raises:
        torch.OutOfMemoryError: the cap is too low.
    """
    import datasets
    import torch
    from random_models import build_random_model, build_word_tokenizer, get_rows
    from training_steps import TRAINERS, StepClock
    from trl import get_peft_config, get_quantization_config

    if device == "cuda":
        # Whole weights are on the device while they are quantised.
        torch.cuda.set_per_process_memory_fraction(1.0)
    quantization = get_quantization_config(arguments)
    dtype = getattr(torch, arguments.dtype)
    model = build_random_model(config, device, dtype, quantization=quantization)
    tokenizer = build_word_tokenizer()
    more: dict[str, Any] = {}
    if stage == "grpo":
        more["reward_funcs"] = count_words
        training.reward_weights = None
    if teacher_config is not None:
        teacher = build_random_model(teacher_config, device, dtype, quantization=quantization)
        # Where it is looked up that its tokens are the student's.
        tokenizer.save_pretrained(f"{folder}/teacher")
        teacher.config.name_or_path = f"{folder}/teacher"
        more["teacher_model"] = teacher
        training.teacher_model_name_or_path = training.teacher_model_init_kwargs = None
    context_gib = float(os.environ.get(CONTEXT, "0"))
    if device == "cuda":
        gc.collect()
        torch.cuda.empty_cache()
        total_gib = torch.cuda.mem_get_info()[1] / GIB
        share = 1.0 if cap_gib is None else (cap_gib - context_gib) / total_gib
        torch.cuda.set_per_process_memory_fraction(share)
        torch.cuda.reset_peak_memory_stats()
    clock = StepClock(num_steps=1)
    number = 2 * training.per_device_train_batch_size * training.gradient_accumulation_steps
    rows = get_rows(stage, number, setup.prompt_tokens, setup.completion_tokens)
    trainer = TRAINERS[stage][True][0](
        model=model,
        args=training,
        train_dataset=datasets.Dataset.from_list(rows),
        processing_class=tokenizer,
        peft_config=get_peft_config(arguments),
        callbacks=[clock],
        **more,
    )
    trainer.train()
    found = {"step_s": clock.get_results()["step_s"]}
    if device == "cuda":
        found["peak_gib"] = torch.cuda.max_memory_reserved() / GIB + context_gib
        found["allocated_gib"] = torch.cuda.max_memory_allocated() / GIB
    return found


# --------------------------------------------------------------------------------- steps


def time_steps(
    size: Size, device: str, lock: str | None, task: str, prompt_tokens: int, side: str
) -> dict[str, Any]:
    """Steps of a side, its operations, synchronisations, waiting and masks."""
    import torch
    from peft import LoraConfig
    from random_models import build_random_model, build_word_tokenizer, get_config, get_rows
    from training_steps import (
        count_operations,
        count_synchronisations,
        measure_waiting,
        time_training,
    )

    library = LIBRARIES.get(side)
    if library is not None and importlib.util.find_spec(library) is None:
        return {"missing": library}
    is_ours = side.startswith("sense")
    options: dict[str, Any] = {
        **{"max_length": None, "learning_rate": 1e-5, "gradient_checkpointing": False},
        **{"use_cpu": device == "cpu", "bf16": size.dtype == "bfloat16"},
    }
    if task == "dpo":
        options["loss_type"] = ["sigmoid"]
    if is_ours:
        options["prefix_sharing"] = True
    if side == "trl_liger":
        options["use_liger_kernel"] = True
    if side == "trl_padding_free":
        options["padding_free"] = True
    shared = prompt_tokens - prompt_tokens // 32
    number = size.num_questions if task == "sft" else 2
    rows = get_rows(task, number, prompt_tokens, size.answer_tokens, shared_tokens=shared)
    dtype = getattr(torch, size.dtype)
    probes = [count_synchronisations, measure_waiting]
    # Compiled attention is not run while operations are counted.
    probes += [] if side == "sense_flex" else [count_operations]
    with hold_device(lock):
        model = build_random_model(
            get_config(size.model, is_toy=size.is_toy),
            device,
            dtype,
            attention=ATTENTION.get(side, "sdpa"),
        )
        masks = watch_masks(model)
        found = time_training(
            task,
            is_ours,
            model,
            build_word_tokenizer(),
            rows,
            num_steps=size.num_steps,
            probes=probes,
            options=options,
            peft_config=LoraConfig(r=16, lora_alpha=32, target_modules="all-linear"),
        )
    found["mask_bytes"] = max(masks)
    if "tflop" in found:
        found["tflops"] = found["tflop"] / found["step_s"]
    return found


def watch_masks(model: Any) -> list[int]:
    """The bytes of each mask that the first layer attends with, as they come."""
    import torch

    found = [0]

    def note(module: Any, args: Any, kwargs: dict[str, Any]) -> None:
        mask = kwargs.get("attention_mask")
        parts = [mask] if mask is None or isinstance(mask, torch.Tensor) else vars(mask).values()
        found.append(
            sum(p.numel() * p.element_size() for p in parts if isinstance(p, torch.Tensor))
        )

    attention = next(m for name, m in model.named_modules() if name.endswith("self_attn"))
    attention.register_forward_pre_hook(note, with_kwargs=True)
    return found


# ---------------------------------------------------------------------------- generation


def time_generation(size: Size, device: str, lock: str | None, name: str) -> dict[str, Any]:
    """Tokens per second of both decoders, in turns, on questions about one schema."""
    import torch
    from generation import generate_plainly
    from random_models import build_random_model, build_word_tokenizer, get_config, get_text
    from training_steps import synchronize

    from sense_trl.generation.generator import SamplingConfig
    from sense_trl.generation.transformers_generator import TransformersGenerator

    words = random.Random(3)
    prompt_tokens = size.prompts[0]
    schema = get_text(words, prompt_tokens - prompt_tokens // 16)
    prompts = [
        [
            {"role": "system", "content": schema.strip()},
            {"role": "user", "content": get_text(words, prompt_tokens // 16).strip()},
        ]
        for _ in range(size.num_questions)
    ]
    found: dict[str, Any] = {}
    with hold_device(lock):
        config = get_config(name, is_toy=size.is_toy)
        model = build_random_model(config, device, getattr(torch, size.dtype)).eval()
        generator = TransformersGenerator(model, build_word_tokenizer(), batch_size=64)
        sampling = SamplingConfig(
            num_generations=size.samples, temperature=1.0, max_new_tokens=2 * size.answer_tokens
        )
        sides = {
            "plain": lambda: generate_plainly(generator, prompts, sampling),
            "shared_prefix": lambda: generator.generate(prompts, sampling),
        }
        rates: dict[str, list[float]] = {side: [] for side in sides}
        # The first round warms up.
        for number in range(1 + (1 if size.is_toy else 2)):
            for side, write in sides.items():
                synchronize()
                started = time.perf_counter()
                completions = [c for group in write() for c in group]
                seconds = time.perf_counter() - started
                if number:
                    rates[side].append(sum(c.num_tokens for c in completions) / seconds)
    for side, values in rates.items():
        found[f"{side}_tokens_per_s"] = statistics.median(values)
    return found


# ------------------------------------------------------------------------------- running


def run_in_process(
    command: list[str], timeout_s: float, *, environment: dict[str, str] | None = None
) -> dict[str, Any]:
    """Run a part; what it printed as its last line, or how it failed.

    Returns:
        `status` (`done`, `failed` or `timeout`), `seconds`, and `result` or `error`.
    """
    started = time.monotonic()
    entry: dict[str, Any] = {"status": "done"}
    try:
        done = subprocess.run(
            command,
            capture_output=True,
            text=True,
            timeout=timeout_s,
            check=False,
            env={**os.environ, **(environment or {})},
        )
        if done.returncode == 0:
            entry["result"] = json.loads(done.stdout.splitlines()[-1])
        else:
            entry |= {"status": "failed", "error": (done.stderr or done.stdout)[-4000:]}
            entry["exit_code"] = done.returncode
    except subprocess.TimeoutExpired:
        entry |= {"status": "timeout", "error": f"no result after {timeout_s:.0f} s"}
    return {**entry, "seconds": round(time.monotonic() - started, 1)}


def run_here(part: Part, size: Size, device: str) -> dict[str, Any]:
    """As `run_in_process`, in this process and without a timeout."""
    started = time.monotonic()
    try:
        entry = {"status": "done", "result": part.run(size, device, None, *part.arguments)}
    # Whatever it is belongs into the record; the next part runs.
    except Exception:
        entry = {"status": "failed", "error": traceback.format_exc()[-4000:]}
    return {**entry, "seconds": round(time.monotonic() - started, 1)}


def run_parts(arguments: argparse.Namespace, parts: list[Part]) -> dict[str, Any]:
    """Run the parts that are not done, and write each result as it comes."""
    from sense_trl._files import write_text_atomically

    path = Path(arguments.output)
    entries: dict[str, Any] = {}
    if path.is_file():
        entries = json.loads(path.read_text(encoding="utf-8"))
    deadline = time.monotonic() + 60 * arguments.minutes
    writing = Lock()

    def run(part: Part) -> None:
        if time.monotonic() >= deadline:
            return
        if arguments.in_process:
            entry = run_here(part, SIZES[arguments.size], arguments.device)
        else:
            command = [sys.executable, __file__, "--part", part.name, "--output", str(path)]
            command += ["--device", arguments.device, "--size", arguments.size]
            # Of this time others hold the device for a while.
            context = entries.get("device", {}).get("result", {}).get("context_gib", 0.0)
            timeout_s = part.timeout_s * arguments.jobs
            entry = run_in_process(command, timeout_s, environment={CONTEXT: str(context)})
        with writing:
            entries[part.name] = entry
            write_text_atomically(path, json.dumps(entries, indent=1))
            print(f"{part.name}: {entry['status']}, {entry['seconds']} s", flush=True)

    missing = [part for part in parts if entries.get(part.name, {}).get("status") != "done"]
    # Alone, as it measures what a process costs.
    if missing and missing[0].name == "device":
        run(missing.pop(0))
    with ThreadPoolExecutor(1 if arguments.in_process else arguments.jobs) as pool:
        list(pool.map(run, missing))
    return entries


# --------------------------------------------------------------------------------- table


def format_tables(entries: dict[str, Any]) -> str:
    """What was measured, as Markdown."""
    found = {name: entry.get("result") for name, entry in entries.items()}
    device = found.get("device") or {}
    lines = [f"Device: {json.dumps(device)}"]
    for title, prefix, columns in TABLES:
        rows = [
            (name.removeprefix(prefix), result if isinstance(result, dict) else {}, entries[name])
            for name, result in found.items()
            if name.startswith(prefix)
        ]
        if prefix == "correctness/":
            rows = [
                (f"{name}, {stage}", values, entry)
                for name, result, entry in rows
                for stage, values in (
                    result.items() if "4-bit" not in name and result else [("", result)]
                )
            ]
        if not rows:
            continue
        lines += ["", f"## {title}", "", f"| | {' | '.join(columns)} |"]
        lines.append("|---" * (len(columns) + 1) + "|")
        for name, values, entry in rows:
            cells = [format_cell(column(values, device)) for column in columns.values()]
            if entry["status"] != "done":
                cells[0] = entry["status"]
            elif "missing" in values:
                cells[0] = f"no {values['missing']}"
            lines.append(f"| {name} | {' | '.join(cells)} |")
    failed = [(name, e) for name, e in entries.items() if e["status"] != "done"]
    lines += [f"\n{name}: {e['status']}: {e['error'].strip()[-300:]}" for name, e in failed]
    return "\n".join(lines)


def format_cell(value: Any) -> str:
    """Short."""
    if value is None:
        return ""
    if isinstance(value, bool):
        return "yes" if value else "**no**"
    return f"{value:.3g}" if isinstance(value, float) and value < 1000 else f"{value:,.0f}"


Column = Callable[[dict[str, Any], dict[str, Any]], Any]


def pick(name: str, factor: float = 1.0) -> Column:
    """The column of a figure."""

    def get(values: dict[str, Any], device: dict[str, Any]) -> Any:
        value = values.get(name)
        return value if value is None or isinstance(value, bool) else factor * value

    return get


def divide(numerator: str, denominator: str) -> Column:
    """The column of a ratio of two figures."""

    def get(values: dict[str, Any], device: dict[str, Any]) -> Any:
        known = numerator in values and denominator in values
        return values[numerator] / values[denominator] if known else None

    return get


def get_utilisation(values: dict[str, Any], device: dict[str, Any]) -> float | None:
    """Share of the card's peak, in percent."""
    peak = device.get("peak_tflops")
    return 100 * values["tflops"] / peak if peak and "tflops" in values else None


def count_syncs(values: dict[str, Any], device: dict[str, Any]) -> int | None:
    """All places together."""
    return sum(values["syncs"].values()) if "syncs" in values else None


TABLES: tuple[tuple[str, str, dict[str, Column]], ...] = (
    (
        "Correctness",
        "correctness/",
        {
            "agrees": pick("agrees"),
            "loss": pick("loss"),
            "TRL's": pick("trl_loss"),
            "distance of gradients": lambda v, d: v.get("distance", v.get("gradients")),
            "TRL's own": pick("trl_distance"),
        },
    ),
    (
        "Recipes",
        "recipes/",
        {
            "fits": pick("fits"),
            "cap, GiB": pick("cap_gib"),
            "peak, GiB": pick("peak_gib"),
            "estimated, GiB": pick("estimate_gib"),
            "estimated / peak": divide("estimate_gib", "peak_gib"),
            "tokens/s": pick("tokens_per_s"),
            "s per step": pick("step_s"),
            "estimated, s": pick("estimate_step_s"),
        },
    ),
    (
        "Steps",
        "steps/",
        {
            "ms": pick("step_s", 1000),
            "memory, GiB": pick("activations_gib"),
            "positions": pick("computed"),
            "TFLOP/s": pick("tflops"),
            "utilisation, %": get_utilisation,
            "syncs": count_syncs,
            "waiting, ms": pick("waiting_ms"),
            "masks, MiB": pick("mask_bytes", 1 / 2**20),
        },
    ),
    (
        "Generation, tokens/s",
        "generation/",
        {
            "plain": pick("plain_tokens_per_s"),
            "shared prefix": pick("shared_prefix_tokens_per_s"),
            "ratio": divide("shared_prefix_tokens_per_s", "plain_tokens_per_s"),
        },
    ),
)


def make_parser() -> argparse.ArgumentParser:
    """Options."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", default="gpu.json", help="results, part by part")
    parser.add_argument("--table", metavar="FILE", help="only print the table of results")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--size", choices=SIZES, default="full")
    parser.add_argument("--only", nargs="+", default=[""], help="parts whose names begin so")
    parser.add_argument("--minutes", type=float, default=8.0, help="no part starts later")
    parser.add_argument("--jobs", type=int, default=4, help="parts that are prepared at a time")
    parser.add_argument("--in-process", action="store_true", help="all parts in this process")
    parser.add_argument("--part", help=argparse.SUPPRESS)
    return parser


def main(argv: list[str] | None = None) -> int:
    """Run what is missing, and print the table; 1 if a part has no result."""
    arguments = make_parser().parse_args(argv)
    if arguments.table:
        print(format_tables(json.loads(Path(arguments.table).read_text(encoding="utf-8"))))
        return 0
    parts = get_parts(SIZES[arguments.size], arguments.device)
    if arguments.part:
        part = next(part for part in parts if part.name == arguments.part)
        lock = f"{arguments.output}.lock"
        result = part.run(SIZES[arguments.size], arguments.device, lock, *part.arguments)
        print(json.dumps(result))
        return 0
    wanted = [part for part in parts if part.name.startswith(tuple(arguments.only))]
    entries = run_parts(arguments, wanted)
    print(format_tables(entries))
    return int(any(entries.get(part.name, {}).get("status") != "done" for part in wanted))


if __name__ == "__main__":
    sys.exit(main())
