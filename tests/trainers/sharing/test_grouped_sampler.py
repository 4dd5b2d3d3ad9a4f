from __future__ import annotations

import itertools
from collections import Counter
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sense_trl.errors import InputError
from sense_trl.trainers.sharing.grouped_sampler import CountGroups, GroupedSampler, SetSamplerEpoch

KEYS = st.lists(st.tuples(st.sampled_from("abc"), st.integers(0, 3)), min_size=1, max_size=60)


def get_runs(sampler, size):
    order = list(sampler)
    return [order[start : start + size] for start in range(0, len(order), size)]


@given(KEYS, st.integers(1, 9), st.integers(0, 5))
def test_every_example_comes_once_and_groups_fill_as_many_runs_as_they_can(keys, size, epoch):
    sampler = GroupedSampler(keys, size)
    sampler.set_epoch(epoch)
    order = list(sampler)
    assert sorted(order) == list(range(len(keys)))
    assert len(sampler) == len(keys)
    pure = Counter(
        keys[run[0]][0]
        for run in get_runs(sampler, size)
        if len(run) == size and len({keys[i][0] for i in run}) == 1
    )
    for key, count in Counter(key for key, _ in keys).items():
        assert pure[key] >= count // size


def test_within_a_group_examples_of_the_same_second_key_stand_together():
    keys = [("db", i % 4) for i in range(32)]
    order = list(GroupedSampler(keys, 8))
    seconds = [keys[i][1] for i in order]
    for start in range(0, 32, 8):
        # 8 examples of each question: every run is one of them.
        assert len(set(seconds[start : start + 8])) == 1


def test_the_order_is_random_and_the_same_for_the_same_seed_and_epoch():
    keys = [(i % 10,) for i in range(200)]

    def draw(seed, epoch):
        sampler = GroupedSampler(keys, 5, seed)
        sampler.set_epoch(epoch)
        return list(sampler)

    assert draw(1, 3) == draw(1, 3)
    assert draw(1, 3) != draw(1, 4)
    assert draw(1, 3) != draw(2, 3)
    # Neither the groups nor the examples within them come in the order of the dataset.
    groups = [keys[i][0] for i in draw(0, 0)[::5]]
    assert len(set(groups[:10])) > 3
    assert groups != sorted(groups)


def test_consecutive_runs_are_about_different_groups():
    keys = [(i // 50,) for i in range(500)]
    runs = get_runs(GroupedSampler(keys, 5), 5)
    same = sum(keys[a[0]] == keys[b[0]] for a, b in itertools.pairwise(runs))
    assert same < 30  # 10 are expected, 90 without shuffling


def test_a_group_size_of_zero_is_refused():
    with pytest.raises(InputError, match="`group_size` is 0"):
        GroupedSampler([("a",)], 0)


@pytest.mark.parametrize("epoch, expected", [(None, 0), (0.0, 0), (1.0, 1), (2.75, 2)])
def test_the_epoch_is_set_also_within_one(epoch, expected):
    sampler = GroupedSampler([("a",)], 1)
    SetSamplerEpoch(sampler).on_epoch_begin(None, SimpleNamespace(epoch=epoch), None)
    assert sampler.epoch == expected


def test_groups_are_counted_step_by_step():
    # Two runs of two examples of each database; steps of four examples are of one or two of them.
    keys = [("a",)] * 4 + [("b",)] * 4
    counts = {tuple(GroupedSampler(keys, 2, seed).count_groups(4)) for seed in range(20)}
    assert counts == {(1, 1), (2, 2)}
    assert GroupedSampler(keys, 8).count_groups(8) == [2]
    # The last step is short.
    assert GroupedSampler([*keys, ("c",)], 1).count_groups(8)[-1] == 1


@given(KEYS, st.integers(1, 4), st.integers(1, 4), st.integers(1, 3))
def test_the_count_of_a_step_is_that_of_its_examples(keys, group_size, runs_per_step, epoch):
    sampler = GroupedSampler(keys, group_size)
    sampler.set_epoch(epoch)
    step_size = group_size * runs_per_step
    steps = get_runs(sampler, step_size)
    assert sampler.count_groups(step_size) == [len({keys[i][0] for i in step}) for step in steps]


def test_the_counter_follows_steps_epochs_and_a_resumed_run():
    keys = [(i % 3,) for i in range(12)]
    sampler = GroupedSampler(keys, 2)
    args = SimpleNamespace(train_batch_size=2, gradient_accumulation_steps=2, world_size=1)

    def count(first_step):
        metrics = {"groups_per_step": []}
        counter = CountGroups(sampler, metrics)
        for global_step in range(first_step, 7):
            sampler.set_epoch((global_step - 1) // 3)
            counter.on_step_end(args, SimpleNamespace(global_step=global_step), None)
        return metrics["groups_per_step"]

    expected = []
    for epoch in range(2):
        sampler.set_epoch(epoch)
        expected += sampler.count_groups(4)
    assert count(1) == expected
    assert count(3) == expected[2:]  # resumed within the first epoch
