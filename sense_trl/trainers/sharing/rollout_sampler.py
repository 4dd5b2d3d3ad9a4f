"""TRL's order of prompts in online training, the same one for an epoch whenever it begins."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch

from sense_trl.trainers.compat.trl import RepeatSampler
from sense_trl.trainers.sharing.grouped_sampler import GroupedSampler


class RolloutSampler(RepeatSampler):  # type: ignore[misc]
    """Repeats prompts as TRL does, in an order that is a function of the seed and the epoch.

    TRL's own draws the order of an epoch from what earlier ones left of its generator, so that a
    run which is resumed in its second epoch sees the first one's again.

    Args:
        order: of the prompts, instead of a random one; then `shuffle` of `options` is False.
        options: of TRL's sampler, by name.
    """

    def __init__(self, *, order: GroupedSampler | None = None, **options: Any) -> None:
        super().__init__(**options)
        self._order = order
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Choose the order: the same one for the same epoch."""
        self.epoch = epoch

    def __iter__(self) -> Iterator[int]:
        if self._order is not None:
            self._order.set_epoch(self.epoch)
            order = list(self._order)
            return (order[place] for place in super().__iter__())
        if self.shuffle:
            self.generator.manual_seed(self.seed)
            for _ in range(self.epoch):
                torch.randperm(self.num_samples, generator=self.generator)
        return super().__iter__()
