"""`format_stage_help`: the options of a stage that recipes set, printed without importing TRL.

The parser of a stage has every option of TRL's configuration, some hundreds, and takes seconds to
import; most of them nobody sets.
"""

from __future__ import annotations

import textwrap
from collections.abc import Mapping
from typing import Final

__all__ = ["format_stage_help", "get_described_options"]

_WIDTH: Final = 100
_INDENT: Final = 30

_DATA: Final = {
    "database": "a database file, a folder of databases, or the root of Spider or BIRD",
    "questions": "questions with gold SQL (.jsonl or .json)",
    "tables_json": "Spider's tables.json, whose foreign keys many database files lack",
    "schema_style": "how schemas are written: compact, codes, ddl",
    "max_questions": "a random subset of so many",
    "subset_seed": "the seed of that subset",
    "max_unusable_fraction": "share of questions that may be left out because they cannot be used",
}
_MODEL: Final = {
    "model_name_or_path": "model folder, adapter folder or hub id",
    "dtype": "type of the weights, and of 4-bit products: bfloat16, float16, float32, auto",
    "load_in_4bit": "hold the weights in 4 bits (QLoRA)",
    "use_bnb_nested_quant": "quantise the scales of 4-bit weights too, 0.4 bits a weight less",
    "bnb_4bit_quant_storage": "type in which 4-bit weights are stored; FSDP wants that of `dtype`",
    "use_peft": "train a new LoRA adapter; an adapter folder is trained further without it",
    "lora_r": "rank of the adapter",
    "lora_alpha": "its scale, divided by the rank",
    "lora_dropout": "its dropout",
    "lora_target_modules": "layers that get one: all-linear, or names",
    "adapter_dtype": "type of the adapter's weights: float32, or auto",
}
_TRAINING: Final = {
    "output_dir": "folder for checkpoints and the trained model",
    "num_train_epochs": "epochs",
    "max_steps": "optimizer steps, instead of epochs",
    "learning_rate": "peak learning rate",
    "lr_scheduler_type": "cosine, linear, constant, ...",
    "warmup_steps": "steps until the peak; below 1 a share of all steps",
    "per_device_train_batch_size": "examples per device and micro-batch",
    "gradient_accumulation_steps": "micro-batches per optimizer step",
    "group_by_columns": "columns whose equal values share a batch, e.g. [db_id]: one schema, once",
    "group_size": "examples that share them; smaller than the batch, it mixes databases in a step",
    "max_length": "longest prompt plus answer in tokens; longer examples are named, not cut",
    "max_dropped_fraction": "share of too long examples that may be left out; more is an error",
    "optim": "adamw_torch, paged_adamw_8bit, ...",
    "gradient_checkpointing": "recompute activations: a third more time for much less memory",
    "bf16": "mixed precision in bfloat16",
    "use_cpu": "train on the CPU even if there is a GPU",
    "seed": "of everything random",
    "save_strategy": "steps, epoch or no",
    "save_steps": "steps between checkpoints, from which the same command continues",
    "save_total_limit": "checkpoints that are kept",
    "logging_steps": "steps between logs",
    "report_to": "trackio, wandb, tensorboard, ... or none",
    "disable_tqdm": "no second progress bar",
}
_SHARING: Final = {"prefix_sharing": "compute common beginnings once: auto, or false for TRL's way"}
_TEACHER: Final = {
    "teacher_model_name_or_path": "folder or hub id of the teacher",
    "teacher_model_init_kwargs": 'how it is loaded, e.g. \'{"dtype": "bfloat16"}\'',
    "teacher_adapter_name": "an adapter of the student's own model as the teacher",
    "teacher_cache": "folder of `sense-trl teacher cache`, so that no teacher is loaded",
    "kd_loss_type": "forward_kl, reverse_kl, generalized_jsd, skew_kl, skew_reverse_kl, "
    "total_variation, adaptive_kl",
    "kd_loss_kwargs": "its hyper-parameters, e.g. '{\"beta\": 0.5}'",
    "kd_temperature": "what the logits of both are divided by",
    "kd_weight": "weight of the distillation term",
}
_KID: Final = {
    "imperfect_data": "teach on imperfect copies of gold (KID); false for plain distillation",
    "mle_weight": "weight of the likelihood of gold",
    "mask_ratio": "share of an answer's tokens that are masked",
    "mask_strategy": "which tokens: random, uniform, hard or easy",
    "mask_unit": "token or schema_item",
    "fill": "what takes a masked token's place: argmax or sample of the student, or mask",
    "on_policy_fraction": "share of the examples that the student answers itself (GKD)",
}
_SENSE: Final = {
    "pairs": "pairs.parquet of the stage `pairs` (required)",
    "loss_type": "one or several, e.g. [cdpo, sft]; also dpop and all of TRL's",
    "loss_weights": "their weights",
    "beta": "how far the model may move from the reference",
    "label_smoothing": "cDPO's share of wrong labels",
    "precompute_ref_log_probs": "the reference once, before training",
    "reference_cache": "file that keeps the reference's log-probabilities for other runs",
}
_GENERATION: Final = {
    "output_dir": "folder for what the stage writes",
    "num_generations": "completions per question",
    "temperature": "0 decodes greedily",
    "top_p": "nucleus share of sampling",
    "max_new_tokens": "longest answer in tokens",
    "batch_size": "completions written together",
    "generation_seed": "the seed of sampling",
}
_SOURCE: Final = {
    "model_name_or_path": "model folder, adapter folder or hub id; a server's name for it",
    "generation_dtype": "type of the weights: auto, float32 (fastest on CPUs), bfloat16",
    "load_in_4bit": "hold the weights in 4 bits",
    "base_url": "an OpenAI-compatible server that runs the model",
    "use_vllm": "sample with vLLM in this process",
}
_PAIRS: Final = {
    "policy": "which pairs are built: grouped_any, nearest, farthest, ...",
    "limit": "pairs per question at most",
    "chosen_sources": "whose correct SQL is chosen: gold, strong, weak",
    "rejected_sources": "whose erroneous SQL is rejected: strong, weak",
    "num_rejected": "rejected queries per chosen one, a row each",
    "num_mutants": "mutants of gold where no sample is wrong",
    "pair_seed": "the seed of the policy",
}
_REPORT: Final = {
    "run_name": "label of this run in the report",
    "compare_with": "evaluation.json files of earlier runs on the same questions",
}
_LAUNCH: Final = {
    "accelerate_config": "start several processes: multi_gpu, zero2, fsdp_qlora or a YAML file",
    "num_processes": "how many, if not as that file says",
    "dry_run": "print settings, token counts and the memory estimate, and end",
}

_GROUPS: Final[Mapping[str, Mapping[str, Mapping[str, str]]]] = {
    "sft": {"Data": _DATA, "Model": _MODEL, "Training": _TRAINING | _SHARING},
    "dpo": {
        "SENSE": _SENSE,
        "Model": _MODEL,
        "Training": _TRAINING | _SHARING,
        "A teacher beside it (kd_weight above 0)": _TEACHER,
    },
    "kd": {
        "Data": _DATA,
        "Model": _MODEL,
        "Teacher": _TEACHER,
        "KID": _KID,
        "Training": _TRAINING | _SHARING,
    },
    "pairs": {"Data": _DATA, "Model": _SOURCE, "Sampling": _GENERATION, "Pairs": _PAIRS},
    "evaluate": {"Data": _DATA, "Model": _SOURCE, "Sampling": _GENERATION, "Report": _REPORT},
}


def get_described_options(stage: str) -> dict[str, str]:
    """Names and one-line descriptions of the options that a stage's short help lists."""
    groups = [*_GROUPS[stage].values(), _LAUNCH]
    return {name: text for group in groups for name, text in group.items()}


def format_stage_help(stage: str, purpose: str) -> str:
    """The short help of a stage.

    Args:
        stage: name of the stage.
        purpose: one line that says what it does.
    """
    text = (
        f"{purpose[0].upper()}{purpose[1:]}. The options stand in a YAML file, as FILE or as "
        f"RECIPE/{stage} of the recipes in the package (`sense-trl recipes` lists them); a flag "
        "given here wins over it."
    )
    lines = [
        f"usage: sense-trl {stage} --config FILE_OR_RECIPE [--option VALUE ...]",
        "",
        *textwrap.wrap(text, _WIDTH),
    ]
    for title, group in {**_GROUPS[stage], "Where it runs": _LAUNCH}.items():
        lines += ["", f"{title}:"]
        for name, text in group.items():
            first, *more = textwrap.wrap(text, _WIDTH - _INDENT)
            flag = f"  --{name}"
            lines += [f"{flag:<{_INDENT - 1}} {first}"] if len(flag) < _INDENT else [flag]
            more = more if len(flag) < _INDENT else [first, *more]
            lines += [" " * _INDENT + part for part in more]
    lines += ["", f"All options, those of the libraries too: sense-trl {stage} --config --help_all"]
    return "\n".join(lines)
