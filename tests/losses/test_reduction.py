from __future__ import annotations

import pytest
import torch

from sense_trl.errors import InputError
from sense_trl.losses import masked_mean


def test_averages_the_selected_values_only():
    values = torch.tensor([[1.0, 2.0, 100.0], [6.0, 100.0, 100.0]])
    mask = torch.tensor([[1, 1, 0], [1, 0, 0]])
    assert masked_mean(values, mask).item() == 3.0
    assert masked_mean(values, mask.bool()).item() == 3.0


@pytest.mark.parametrize("garbage", [float("nan"), float("inf"), -float("inf")])
def test_masked_positions_may_hold_anything(garbage):
    values = torch.tensor([2.0, garbage], requires_grad=True)
    result = masked_mean(values, torch.tensor([1, 0]))
    result.backward()
    assert result.item() == 2.0
    assert values.grad.tolist() == [1.0, 0.0]


@pytest.mark.parametrize("num_items", [None, 0, 5, torch.tensor(5)])
def test_nothing_selected_is_zero_with_a_live_graph(num_items):
    values = torch.tensor([1.0, 2.0], requires_grad=True)
    result = masked_mean(values, torch.tensor([0, 0]), num_items)
    result.backward()
    assert result.item() == 0.0
    assert values.grad.tolist() == [0.0, 0.0]


@pytest.mark.parametrize("as_tensor", [False, True])
def test_micro_batches_of_unequal_length_add_up_to_the_large_batch(as_tensor):
    torch.manual_seed(0)
    values = torch.randn(8, 7, dtype=torch.float64)
    mask = torch.arange(7)[None, :] < torch.randint(0, 8, (8, 1))
    num_items = mask.sum() if as_tensor else int(mask.sum())
    parts = sum(masked_mean(v, m, num_items) for v, m in zip(values, mask, strict=True))
    torch.testing.assert_close(parts, masked_mean(values, mask))


def test_shapes_must_agree():
    with pytest.raises(InputError, match=r"`mask` has shape \(2, 1\).*\(2, 3\)"):
        masked_mean(torch.zeros(2, 3), torch.ones(2, 1))


def test_negative_number_of_items_is_refused():
    with pytest.raises(InputError, match="`num_items_in_batch` is -1"):
        masked_mean(torch.zeros(2), torch.ones(2), -1)
