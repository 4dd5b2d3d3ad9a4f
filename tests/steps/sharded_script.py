"""Trains under FSDP2 in the process group of the environment; see the test."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from accelerate.state import AcceleratorState, PartialState
from accelerate.utils import DistributedType, FullyShardedDataParallelPlugin
from sharded_runs import train_all
from torch.distributed import barrier

FSDP = {
    "ACCELERATE_USE_FSDP": "true",
    "FSDP_VERSION": "2",
    "FSDP_STATE_DICT_TYPE": "SHARDED_STATE_DICT",
    "FSDP_AUTO_WRAP_POLICY": "TRANSFORMER_BASED_WRAP",
    "FSDP_TRANSFORMER_CLS_TO_WRAP": "LlamaDecoderLayer",
    "FSDP_RESHARD_AFTER_FORWARD": "true",
}


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
    models, folder = map(Path, sys.argv[1:3])
    os.environ |= FSDP
    let_cpus_shard()
    is_main = os.environ["RANK"] == "0"
    train_all(models, folder, is_main, barrier, per_device_train_batch_size=2)


if __name__ == "__main__":
    main()
