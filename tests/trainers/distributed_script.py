"""Trains ours and TRL's trainers in the process group of the environment; see the test."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch
from datasets import Dataset
from peft import LoraConfig
from tiny_models import (
    PAIRS,
    QUESTIONS,
    build_tiny_model,
    build_tiny_tokenizer,
    get_history,
    get_weights,
)
from trl import DPOConfig, DPOTrainer, SFTConfig, SFTTrainer

from sense_trl.trainers import (
    KIDConfig,
    KIDTrainer,
    SenseDPOConfig,
    SenseDPOTrainer,
    SenseSFTConfig,
    SenseSFTTrainer,
)

OPTIONS = {
    "per_device_train_batch_size": 4,
    "max_steps": 4,
    "learning_rate": 1e-3,
    "logging_steps": 1,
    "use_cpu": True,
    "bf16": False,
    "report_to": "none",
    "disable_tqdm": True,
    "save_strategy": "steps",
}


def main() -> None:
    model, folder = sys.argv[1:3]
    runs = {
        "dpo-ours": (SenseDPOTrainer, SenseDPOConfig, PAIRS, {"prefix_sharing": True}),
        "dpo-trl": (DPOTrainer, DPOConfig, PAIRS, {}),
        # TRL fails here: the dataset is in memory, and a rank looks for the other's file.
        "dpo-cached": (
            SenseDPOTrainer,
            SenseDPOConfig,
            PAIRS,
            {"precompute_ref_log_probs": True, "reference_cache": f"{folder}/reference.parquet"},
        ),
        "sft-ours": (SenseSFTTrainer, SenseSFTConfig, QUESTIONS, {"prefix_sharing": True}),
        "sft-trl": (SFTTrainer, SFTConfig, QUESTIONS, {}),
        "sft-grouped": (
            SenseSFTTrainer,
            SenseSFTConfig,
            QUESTIONS,
            # 4 steps are an epoch: step 6 is within the second one.
            {
                "group_by_columns": ["db_id"],
                "per_device_train_batch_size": 2,
                "max_steps": 8,
                "save_steps": 6,
            },
        ),
    }
    runs["sft-resumed"] = runs["sft-grouped"]
    # The student's own answers, greedy, so that they are the same ones in one process.
    own = {"on_policy_fraction": 0.5, "on_policy_temperature": 0.0, "on_policy_max_new_tokens": 3}
    runs["kid"] = KIDTrainer, KIDConfig, QUESTIONS, {"fill": "sample", "kd_weight": 20.0, **own}
    for name, (trainer_class, config_class, rows, options) in runs.items():
        if "dpo" in name:
            options = {**options, "loss_type": ["sigmoid"]}
        trainer = trainer_class(
            model=model,
            args=config_class(f"{folder}/{name}", **{**OPTIONS, **options}),
            train_dataset=Dataset.from_list(rows),
            processing_class=build_tiny_tokenizer(),
            peft_config=LoraConfig(r=4, target_modules="all-linear"),
            **({"teacher_model": build_tiny_model("llama", seed=1)} if name == "kid" else {}),
        )
        checkpoint = f"{folder}/sft-grouped/checkpoint-6" if name == "sft-resumed" else None
        trainer.train(resume_from_checkpoint=checkpoint)
        if trainer.accelerator.is_main_process:
            torch.save(
                {
                    "weights": get_weights(trainer),
                    "loss": get_history(trainer, "loss"),
                    "grad_norm": get_history(trainer, "grad_norm"),
                    "kd": get_history(trainer, "losses/kd"),
                    "error_rate": get_history(trainer, "kid/effective_error_rate"),
                    "num_processes": trainer.accelerator.num_processes,
                },
                f"{folder}/{name}.pt",
            )


if __name__ == "__main__":
    main()
