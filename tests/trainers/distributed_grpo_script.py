"""Trains GRPO by ours and by TRL's trainer in the process group of the environment; see the test."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch
from datasets import Dataset
from peft import LoraConfig
from test_sense_grpo_trainer import DISTRIBUTED, PROMPTS, reward, write_fixed
from tiny_models import get_history, get_weights
from trl import GRPOConfig, GRPOTrainer

from sense_trl.trainers import SenseGRPOConfig, SenseGRPOTrainer


def main() -> None:
    folder, *models = sys.argv[1:]
    kinds = {
        "ours": (SenseGRPOTrainer, SenseGRPOConfig, {"prefix_sharing": True}),
        "trl": (GRPOTrainer, GRPOConfig, {}),
    }
    for model in models:
        for case, options in DISTRIBUTED.items():
            for kind, (trainer_class, config_class, own) in kinds.items():
                trainer = trainer_class(
                    model=model,
                    reward_funcs=reward,
                    args=config_class(f"{folder}/out", **options, **own),
                    train_dataset=Dataset.from_list(PROMPTS),
                    peft_config=LoraConfig(r=4, target_modules="all-linear"),
                )
                write_fixed(trainer)
                trainer.train()
                if trainer.accelerator.is_main_process:
                    names = ("loss", "grad_norm", "reward", "groups/without_signal")
                    found = {name: get_history(trainer, name) for name in names}
                    found |= {"weights": get_weights(trainer)}
                    found |= {"num_processes": trainer.accelerator.num_processes}
                    torch.save(found, f"{folder}/{Path(model).name}-{case}-{kind}.pt")


if __name__ == "__main__":
    main()
