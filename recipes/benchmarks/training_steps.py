"""Timed training steps of TRL's trainers and ours, for the benchmarks that compare them."""

from __future__ import annotations

import statistics
import tempfile
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import datasets
import psutil
import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import TrainerCallback
from trl import DPOConfig, DPOTrainer, GRPOConfig, GRPOTrainer, SFTConfig, SFTTrainer

from sense_trl import trainers
from sense_trl.steps.progress import peak_memory_bytes

# Of TRL, and of ours.
TRAINERS: dict[str, tuple[tuple[Any, Any], tuple[Any, Any]]] = {
    "sft": ((SFTTrainer, SFTConfig), (trainers.SenseSFTTrainer, trainers.SenseSFTConfig)),
    "dpo": ((DPOTrainer, DPOConfig), (trainers.SenseDPOTrainer, trainers.SenseDPOConfig)),
    "kd": ((SFTTrainer, SFTConfig), (trainers.KIDTrainer, trainers.KIDConfig)),
    "grpo": ((GRPOTrainer, GRPOConfig), (trainers.SenseGRPOTrainer, trainers.SenseGRPOConfig)),
}

QUIET: dict[str, Any] = {"save_strategy": "no", "report_to": "none", "disable_tqdm": True}
"""Training arguments of every measured training."""

Probe = Callable[[dict[str, Any]], AbstractContextManager[None]]
"""What is measured of a step that is not timed, and put into a dictionary."""


class StepClock(TrainerCallback):
    """Times all steps but the first one, from the end of the step before, and probes further ones.

    Attributes:
        found: what the probes found.
        times: wall and CPU seconds (all threads) of each timed step.
        memory: bytes that were held before the first step, and the most until the last timed one.
    """

    def __init__(self, num_steps: int, probes: Iterable[Probe] = ()) -> None:
        self.found: dict[str, Any] = {}
        self.times: list[tuple[float, float]] = []
        self.memory: list[int] = []
        self._num_steps = num_steps
        self._probes = [*probes]
        self._opened: AbstractContextManager[None] | None = None

    @property
    def total_steps(self) -> int:
        """Steps that the training needs: one to warm up, those that are timed, one per probe."""
        return 1 + self._num_steps + len(self._probes)

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        on_gpu = torch.cuda.is_available()
        self.memory.append(torch.cuda.memory_allocated() if on_gpu else get_resident_bytes())

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self._opened is not None:
            self._opened.__exit__(None, None, None)
        synchronize()
        if self._opened is None and state.global_step > 1:
            wall, cpu = self._started
            self.times.append((time.monotonic() - wall, time.process_time() - cpu))
        next_probe = state.global_step - 1 - self._num_steps
        if next_probe == 0:
            # Before the probes: counting operations keeps tensors alive.
            self.memory.append(get_peak_bytes())
        if 0 <= next_probe < len(self._probes):
            self._opened = self._probes[next_probe](self.found)
            self._opened.__enter__()
        self._started = time.monotonic(), time.process_time()

    def get_results(self) -> dict[str, Any]:
        """Mean seconds, memory above the loaded model in GiB, and what the probes found."""
        return {
            "step_s": statistics.mean(wall for wall, _ in self.times),
            "cpu_s": statistics.mean(cpu for _, cpu in self.times),
            "activations_gib": (self.memory[1] - self.memory[0]) / 2**30,
            **self.found,
        }


def time_training(
    task: str,
    is_ours: bool,
    model: Any,
    tokenizer: Any,
    rows: list[dict[str, Any]],
    *,
    num_steps: int,
    probes: Iterable[Probe],
    options: dict[str, Any],
    **trainer_options: Any,
) -> dict[str, Any]:
    """Train on one batch, step after step, and time the steps.

    Args:
        task: of `TRAINERS`.
        is_ours: whose trainer it is.
        model, tokenizer: what is trained.
        rows: the batch.
        num_steps: that are timed.
        probes: of further steps, one each.
        options: training arguments.
        trainer_options: further arguments of the trainer.

    Returns:
        `StepClock.get_results` with the last loss, the share of positions that were computed and
        the tokens of a step.
    """
    trainer_class, config_class = TRAINERS[task][is_ours]
    clock = StepClock(num_steps, probes)
    warnings.simplefilter("ignore")
    with tempfile.TemporaryDirectory() as folder:
        config = config_class(
            output_dir=folder,
            max_steps=clock.total_steps,
            per_device_train_batch_size=len(rows),
            logging_steps=1,
            **QUIET,
            **options,
        )
        trainer = trainer_class(
            model=model,
            args=config,
            train_dataset=datasets.Dataset.from_list(rows),
            processing_class=tokenizer,
            callbacks=[clock],
            **trainer_options,
        )
        trainer.train()
    logs = [entry for entry in trainer.state.log_history if "loss" in entry]
    return {
        **clock.get_results(),
        "loss": float(logs[-1]["loss"]),
        "computed": 1.0 - float(logs[-1].get("prefix_sharing/tokens_saved", 0.0)),
        "tokens": float(logs[0]["num_tokens"]),
    }


# -------------------------------------------------------------------------------- probes


@contextmanager
def count_operations(found: dict[str, Any]) -> Iterator[None]:
    """Matrix products and attention, as `tflop`."""
    with FlopCounterMode(display=False) as counter:
        yield
    found["tflop"] = counter.get_total_flops() / 1e12


@contextmanager
def count_synchronisations(found: dict[str, Any]) -> Iterator[None]:
    """Where the host waited for the device, as `syncs`: how often by file and line.

    Nothing is found without a GPU.
    """
    if not torch.cuda.is_available():
        yield
        return
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        try:
            yield
        finally:
            torch.cuda.set_sync_debug_mode("default")
    places = [
        f"{'/'.join(warning.filename.split('/')[-3:])}:{warning.lineno}"
        for warning in caught
        if "synchronizing" in str(warning.message)
    ]
    found["syncs"] = dict(Counter(places).most_common())


@contextmanager
def measure_waiting(found: dict[str, Any]) -> Iterator[None]:
    """Milliseconds in which the device did nothing between its first and last kernel.

    As `waiting_ms`, beside `busy_ms`. Nothing is found without a GPU.
    """
    if not torch.cuda.is_available():
        yield
        return
    activities = torch.profiler.ProfilerActivity
    with torch.profiler.profile(activities=[activities.CPU, activities.CUDA]) as profile:
        yield
    on_device = torch.autograd.DeviceType.CUDA
    kernels = [
        (event.time_range.start, event.time_range.end)
        for event in profile.events()
        if event.device_type == on_device
    ]
    busy, waiting = get_busy_and_waiting(kernels)
    found |= {"busy_ms": busy / 1000, "waiting_ms": waiting / 1000}


def get_busy_and_waiting(intervals: list[tuple[float, float]]) -> tuple[float, float]:
    """Length of the union of intervals, and of the gaps between them."""
    busy, end = 0.0, -float("inf")
    for start, stop in sorted(intervals):
        busy += max(0.0, stop - max(start, end))
        end = max(end, stop)
    span = end - min(start for start, _ in intervals) if intervals else 0.0
    return busy, span - busy


def synchronize() -> None:
    """Wait for the GPU, if there is one."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def get_resident_bytes() -> int:
    """Memory that this process holds now."""
    return int(psutil.Process().memory_info().rss)


def get_peak_bytes() -> int:
    """The most it has held: tensors on the GPU, else the process."""
    on_gpu = torch.cuda.is_available()
    return torch.cuda.max_memory_allocated() if on_gpu else peak_memory_bytes()
