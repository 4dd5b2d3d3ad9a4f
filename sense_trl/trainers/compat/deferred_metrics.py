"""Metrics that stay on the device until they are logged."""

from __future__ import annotations

import functools
from collections import defaultdict
from typing import Any

import torch
from torch import Tensor


class DeferredMetrics:
    """Base of our trainers, in front of TRL's: a metric may be a tensor until it is logged.

    Reading a number of a GPU's waits until all that was asked of it is done. So what a micro-batch
    logs is kept as it is, and read for all micro-batches together when the trainer logs.
    """

    model: Any
    accelerator: Any

    @functools.cached_property
    def own_metrics(self) -> dict[str, dict[str, list[Any]]]:
        """Values by mode (`train`, `eval`) and name since they were last logged."""
        return {"train": defaultdict(list), "eval": defaultdict(list)}

    def _add_metric(self, name: str, value: Tensor | float) -> None:
        """Append a value, a scalar, to the metrics of the mode that the model is in."""
        mode = "train" if self.model.training else "eval"
        value = value.detach() if isinstance(value, Tensor) else value
        self.own_metrics[mode][name].append(value)

    def _add_ratios(self, numerators: dict[str, Any], denominator: Any) -> None:
        """Append quotients of sums over all processes; a denominator below 1 counts as 1."""
        parts = [*numerators.values(), denominator]
        if self.accelerator.num_processes > 1:
            device = self.accelerator.device
            tensors = [torch.as_tensor(part, dtype=torch.float32).detach() for part in parts]
            sums = torch.stack([tensor.to(device, non_blocking=True) for tensor in tensors])
            parts = list(self.accelerator.reduce(sums, "sum"))
        *numbers, total = parts
        total = total.clamp(min=1) if isinstance(total, Tensor) else max(total, 1)
        for name, number in zip(numerators, numbers, strict=True):
            self._add_metric(name, number / total)

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """TRL's `log`, with the means of our metrics in `logs` too, after `eval_` in evaluation."""
        mode, prefix = ("train", "") if self.model.training else ("eval", "eval_")
        metrics = self.own_metrics[mode]
        read_metrics(metrics)
        means = {f"{prefix}{name}": sum(v) / len(v) for name, v in metrics.items()}
        metrics.clear()
        # In place, as TRL adds its own: `evaluate` returns them.
        logs.update(means)
        super().log(logs, start_time)  # type: ignore[misc]


def read_metrics(metrics: dict[str, list[Any]]) -> None:
    """Make numbers of all tensors in the lists of `metrics`, in one transfer."""
    places = [
        (values, index)
        for values in metrics.values()
        for index, value in enumerate(values)
        if isinstance(value, Tensor)
    ]
    if not places:
        return
    tensors = [values[index] for values, index in places]
    device = tensors[0].device
    numbers = torch.stack([tensor.float().to(device) for tensor in tensors]).tolist()
    for (values, index), number in zip(places, numbers, strict=True):
        values[index] = number
