"""A random order of the examples in which those with a common prefix stand together."""

from __future__ import annotations

import random
from collections.abc import Hashable, Iterator, Sequence
from typing import Any

from datasets import IterableDataset
from torch.utils.data import Sampler
from transformers import TrainerCallback

from sense_trl.errors import InputError, check_at_least
from sense_trl.trainers.rows.several_rejected import EXAMPLE_INDEX


class GroupedSampler(Sampler[int]):  # type: ignore[misc]
    """Shuffles examples so that every run of `group_size` of them agrees as far as possible.

    Examples with the same keys (a database, then a question) are shuffled within their group and
    dealt out in runs of `group_size`, and the runs are shuffled: a batch shares its schema, or a
    few schemas where several runs fill it, and consecutive runs are about different ones. What is
    left over from the groups makes mixed runs. A group may fill many runs, so no batch is ever
    larger than asked for. Within an epoch every example comes once.

    The order is a function of `seed` and the epoch, and there is no other state: a run that is
    resumed with `SetSamplerEpoch` among its callbacks continues in the same order.

    Args:
        keys: one tuple per example, the coarsest key first, all of the same length.
        group_size: examples per run; the batch size of one device, or a part of it.
        seed: of the shuffling.

    Raises:
        InputError: `group_size` is below 1.

    Example:
        >>> keys = [("concert",), ("pets",), ("concert",), ("pets",)]
        >>> [keys[i][0] for i in GroupedSampler(keys, group_size=2)]
        ['pets', 'pets', 'concert', 'concert']
    """

    def __init__(
        self, keys: Sequence[tuple[Hashable, ...]], group_size: int, seed: int = 0
    ) -> None:
        check_at_least(1, group_size=group_size)
        self._keys = keys
        self._group_size = group_size
        self._seed = seed
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Choose the order: the same one for the same epoch."""
        self.epoch = epoch

    def __len__(self) -> int:
        return len(self._keys)

    def count_groups(self, step_size: int) -> list[int]:
        """Number of groups (different first keys) in each `step_size` examples of this epoch."""
        order = list(self)
        steps = (order[start : start + step_size] for start in range(0, len(order), step_size))
        return [len({self._keys[index][0] for index in step}) for step in steps]

    def __iter__(self) -> Iterator[int]:
        rng = random.Random(f"{self._seed}-{self.epoch}")
        runs: list[list[int]] = []
        left_over: list[list[int]] = []
        for _, group in self._split(list(range(len(self._keys))), 0):
            for run in self._cut(self._shuffle(group, 1, rng)):
                (runs if len(run) == self._group_size else left_over).append(run)
        rng.shuffle(left_over)
        mixed = self._cut([index for run in left_over for index in run])
        # The last run may be short. Anywhere but at the end it would shift all that follow against
        # the batches.
        short = mixed.pop() if mixed and len(mixed[-1]) < self._group_size else []
        runs += mixed
        rng.shuffle(runs)
        return iter([index for run in [*runs, short] for index in run])

    def _shuffle(self, indices: list[int], depth: int, rng: random.Random) -> list[int]:
        """Shuffle within groups of equal keys from `depth` on, and the groups among themselves."""
        if len(indices) < 2 or depth == len(self._keys[indices[0]]):
            return rng.sample(indices, len(indices))
        groups = [self._shuffle(group, depth + 1, rng) for _, group in self._split(indices, depth)]
        rng.shuffle(groups)
        return [index for group in groups for index in group]

    def _split(self, indices: list[int], depth: int) -> list[tuple[Hashable, list[int]]]:
        groups: dict[Hashable, list[int]] = {}
        for index in indices:
            groups.setdefault(self._keys[index][depth], []).append(index)
        return list(groups.items())

    def _cut(self, indices: list[int]) -> list[list[int]]:
        size = self._group_size
        return [indices[start : start + size] for start in range(0, len(indices), size)]


class SetSamplerEpoch(TrainerCallback):  # type: ignore[misc]
    """Tells a sampler of the epoch before its first example is drawn, resumed or not.

    accelerate 1.15 does so too, but does not reach the sampler when several processes resume within
    an epoch.
    """

    def __init__(self, sampler: GroupedSampler) -> None:
        self._sampler = sampler

    def on_epoch_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        # A fraction where a run is resumed within an epoch.
        self._sampler.set_epoch(int(state.epoch or 0))


class CountGroups(TrainerCallback):  # type: ignore[misc]
    """Logs `groups_per_step`: from how many groups (databases) an optimizer step learns.

    The number follows from the sampler's order alone, so it takes part in no step: processes draw
    consecutive batches in turn, and a step is made of all of them.

    Args:
        sampler: draws the examples.
        metrics: of training, by name; the trainer logs and empties them.
    """

    def __init__(self, sampler: GroupedSampler, metrics: dict[str, list[float]]) -> None:
        self._sampler = sampler
        self._metrics = metrics
        self._counts: list[int] = []

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        step_size = args.train_batch_size * args.gradient_accumulation_steps * args.world_size
        num_steps = max(1, -(-len(self._sampler) // step_size))
        step = (state.global_step - 1) % num_steps
        if step == 0 or not self._counts:
            self._counts = self._sampler.count_groups(step_size)
        self._metrics["groups_per_step"].append(self._counts[step])


def get_grouped_sampler(trainer: Any) -> GroupedSampler | None:
    """The sampler of a trainer's dataset, see `build_grouped_sampler`, told of its epochs."""
    sampler = build_grouped_sampler(trainer.train_dataset, trainer.args)
    if sampler is not None:
        trainer.add_callback(SetSamplerEpoch(sampler))
    if sampler is not None and trainer.args.group_by_columns:
        trainer.add_callback(CountGroups(sampler, trainer.own_metrics["train"]))
    return sampler


def build_grouped_sampler(
    dataset: Any, args: Any, batch_size: int | None = None
) -> GroupedSampler | None:
    """The sampler that `args.group_by_columns` asks for; None for the usual random order.

    Pairs that were one example with several rejected answers are grouped unasked.

    Args:
        dataset: for training.
        args: config of one of our trainers.
        batch_size: rows of the dataset per device and micro-batch, if not as `args` says.

    Raises:
        InputError: the dataset has no such column, or is streamed; or `train_sampling_strategy`
            asks for another order.
    """
    columns = list(args.group_by_columns or [])
    # A stream is read in its own order.
    available = [] if isinstance(dataset, IterableDataset) else dataset.column_names
    if missing := set(columns) - set(available):
        raise InputError(
            f"`group_by_columns` names {sorted(missing)}, but the train dataset has no such "
            "columns, or is an IterableDataset. Name columns of a Dataset, e.g. ['db_id'], or "
            "leave the option out."
        )
    columns += [EXAMPLE_INDEX] if EXAMPLE_INDEX in available else []
    if not columns:
        return None
    if args.train_sampling_strategy != "random":
        raise InputError(
            f"`train_sampling_strategy` is {args.train_sampling_strategy!r}, but "
            "`group_by_columns`, or several rejected answers, say which rows are drawn together. "
            "Leave one of them out."
        )
    values = [dataset.select_columns(column)[:][column] for column in columns]
    seed = args.seed if args.data_seed is None else args.data_seed
    keys = list(zip(*values, strict=True))
    size = args.group_size or batch_size or args.per_device_train_batch_size
    return GroupedSampler(keys, size, seed)
