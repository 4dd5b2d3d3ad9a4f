"""Trains under FSDP2 or DeepSpeed in the process group of the environment; see the test."""

from __future__ import annotations

import importlib
import os
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch
from accelerate.state import AcceleratorState, PartialState
from accelerate.utils import DistributedType, FullyShardedDataParallelPlugin
from sharded_runs import train_all

FSDP = {
    "ACCELERATE_USE_FSDP": "true",
    "FSDP_VERSION": "2",
    "FSDP_STATE_DICT_TYPE": "SHARDED_STATE_DICT",
    "FSDP_AUTO_WRAP_POLICY": "TRANSFORMER_BASED_WRAP",
    "FSDP_TRANSFORMER_CLS_TO_WRAP": "LlamaDecoderLayer",
    "FSDP_RESHARD_AFTER_FORWARD": "true",
}
ZERO_2 = {
    "zero_optimization": {"stage": 2},
    "train_micro_batch_size_per_gpu": "auto",
    "gradient_accumulation_steps": "auto",
    "gradient_clipping": "auto",
    "zero_force_ds_cpu_optimizer": False,
}


def let_cpus_shard(kind: DistributedType) -> None:
    """Accelerate reads these settings for accelerators only; CPUs can shard as well."""
    original = AcceleratorState.__init__

    def initialise(self: Any, *args: Any, **kwargs: Any) -> None:
        is_first = not AcceleratorState._shared_state
        original(self, *args, **kwargs)
        if not is_first:
            return
        self.distributed_type = kind
        PartialState._shared_state["distributed_type"] = kind
        if kind == DistributedType.FSDP:
            self.fsdp_plugin = kwargs.get("fsdp_plugin") or FullyShardedDataParallelPlugin()
        else:
            plugin = kwargs["deepspeed_plugin"]
            plugin.set_mixed_precision(self._mixed_precision)
            plugin.select(_from_accelerator_state=True)
            self.deepspeed_plugins = plugin

    AcceleratorState.__init__ = initialise


def main() -> None:
    way, models, folder = sys.argv[1:4]
    options: dict[str, Any] = {"per_device_train_batch_size": 2}
    if way == "fsdp":
        os.environ |= FSDP
        let_cpus_shard(DistributedType.FSDP)
    else:
        os.environ |= {"DS_ACCELERATOR": "cpu", "DS_BUILD_OPS": "0"}
        import deepspeed

        # It would compile a kernel for shared memory, for minutes; gloo does without.
        backend = importlib.import_module("deepspeed.comm.torch")
        backend.build_shm_op = lambda: None
        torch.distributed.init_process_group("gloo")
        deepspeed.init_distributed("gloo", auto_mpi_discovery=False)
        let_cpus_shard(DistributedType.DEEPSPEED)
        options["deepspeed"] = ZERO_2
    is_main = os.environ["RANK"] == "0"
    train_all(Path(models), Path(folder), is_main, torch.distributed.barrier, **options)


if __name__ == "__main__":
    main()
