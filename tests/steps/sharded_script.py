"""Trains under FSDP in the process group of the environment; see the test."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from accelerate.state import AcceleratorState, PartialState
from accelerate.utils import DistributedType, FullyShardedDataParallelPlugin
from datasets import Dataset
from peft import LoraConfig
from tiny_models import OPTIONS, PAIRS, QUESTIONS, build_tiny_tokenizer
from transformers import AutoModelForCausalLM

from sense_trl.checkpoints.starting_model import StartingModel
from sense_trl.steps.training import train_model
from sense_trl.trainers import SenseDPOConfig, SenseSFTConfig


def let_cpus_shard() -> None:
    """Accelerate reads the settings of FSDP for accelerators only; torch shards on CPUs as well."""
    original = AcceleratorState.__init__

    def initialise(self: Any, *args: Any, **kwargs: Any) -> None:
        is_first = not AcceleratorState._shared_state
        original(self, *args, **kwargs)
        if is_first:
            self.distributed_type = DistributedType.FSDP
            PartialState._shared_state["distributed_type"] = DistributedType.FSDP
            self.fsdp_plugin = kwargs.get("fsdp_plugin") or FullyShardedDataParallelPlugin()

    AcceleratorState.__init__ = initialise


def main() -> None:
    path, folder = sys.argv[1:3]
    os.environ |= {
        "ACCELERATE_USE_FSDP": "true",
        "FSDP_VERSION": "2",
        "FSDP_STATE_DICT_TYPE": "SHARDED_STATE_DICT",
        "FSDP_AUTO_WRAP_POLICY": "TRANSFORMER_BASED_WRAP",
        "FSDP_TRANSFORMER_CLS_TO_WRAP": "LlamaDecoderLayer",
        "FSDP_RESHARD_AFTER_FORWARD": "true",
    }
    let_cpus_shard()
    runs = {
        "sft": (
            SenseSFTConfig,
            QUESTIONS,
            None,
            {"save_strategy": "steps", "save_steps": 1},
        ),
        "dpo": (
            SenseDPOConfig,
            PAIRS,
            LoraConfig(r=4, target_modules="all-linear"),
            {"precompute_ref_log_probs": True, "loss_type": ["sigmoid"]},
        ),
    }
    for name, (config_class, rows, adapter, options) in runs.items():
        start = StartingModel(
            AutoModelForCausalLM.from_pretrained(path), build_tiny_tokenizer(), adapter
        )
        config = config_class(
            f"{folder}/{name}", **{**OPTIONS, "per_device_train_batch_size": 2, **options}
        )
        train_model(start, Dataset.from_list(rows), config)


if __name__ == "__main__":
    main()
