"""This process among several of one program, and waiting for the others."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta

# The others may sample for hours; NCCL gives up after ten minutes.
_TIMEOUT = timedelta(days=7)


@dataclass(frozen=True, slots=True)
class Processes:
    """A process among several that run the same program.

    Attributes:
        index: which one this is, from 0.
        count: how many there are.
        wait: returns when every process has called it as often.
    """

    index: int = 0
    count: int = 1
    wait: Callable[[], None] = lambda: None

    @property
    def is_main(self) -> bool:
        """Whether this one writes what there is one of."""
        return self.index == 0


def get_processes() -> Processes:
    """This process among those of `accelerate launch` or `torchrun`; alone, it is the only one.

    Each process gets its GPU as the current device.
    """
    # Accelerate imports torch, which a server or a file of predictions does without.
    if int(os.environ.get("WORLD_SIZE", "1")) <= 1:
        return Processes()
    from accelerate import PartialState

    state = PartialState(timeout=_TIMEOUT)
    return Processes(state.process_index, state.num_processes, state.wait_for_everyone)
