"""Weights that autocast converts once for several forward passes."""

import contextlib

import pytest
import torch
from torch.profiler import ProfilerActivity, profile

from sense_trl.trainers.compat.autocast import converting_once


@pytest.fixture
def model() -> torch.nn.Sequential:
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.Linear(8, 2, bias=False))
    model[0].requires_grad_(False)
    return model


def _autocast(enabled: bool = True) -> torch.autocast:
    return torch.autocast("cpu", torch.bfloat16, enabled=enabled)


def _count_conversions(model: torch.nn.Module, block: contextlib.AbstractContextManager) -> int:
    with profile(activities=[ProfilerActivity.CPU]) as found, block:
        for _ in range(5):
            # As `accelerate` wraps every forward pass.
            with _autocast():
                model(torch.ones(3, 4))
    return sum(event.count for event in found.key_averages() if event.key == "aten::_to_copy")


def test_every_weight_is_converted_once(model: torch.nn.Sequential) -> None:
    # Two weights, a bias and the input; in the block only the input each time.
    assert _count_conversions(model, torch.no_grad()) == 5 * 4
    assert _count_conversions(model, converting_once(model, _autocast())) == 3 + 5


def test_values_and_weights_stay_as_they_are(model: torch.nn.Sequential) -> None:
    value = torch.randn(3, 4)
    with torch.no_grad(), _autocast():
        expected = model(value)
    with converting_once(model, _autocast()):
        assert torch.equal(model(value), expected)
    needs = [parameter.requires_grad for parameter in model.parameters()]
    assert needs == [False, False, True]
    with pytest.raises(KeyError), converting_once(model, _autocast()):
        raise KeyError
    assert [parameter.requires_grad for parameter in model.parameters()] == needs


def test_without_autocast_nothing_is_touched(model: torch.nn.Sequential) -> None:
    for block in (_autocast(enabled=False), contextlib.nullcontext()):
        with converting_once(model, block):
            assert not model[0].weight.requires_grad
            assert not model(torch.ones(3, 4)).requires_grad
