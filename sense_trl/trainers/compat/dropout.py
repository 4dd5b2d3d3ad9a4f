"""Dropout: where it is not wanted, and where TRL does not find it."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch


@contextlib.contextmanager
def evaluating(model: Any) -> Iterator[None]:
    """Without gradient and dropout; afterwards every module is in the mode it was in."""
    trained = [module for module in model.modules() if module.training]
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        for module in trained:
            module.training = True


def disable_functional_dropout(model: Any) -> None:
    """Set to 0 what modules hand to functions as a dropout rate while they are trained.

    TRL's `disable_dropout` finds `nn.Dropout` only. Attention draws its dropout by a number that a
    module holds (`attention_dropout` of Llama, Qwen and most others).
    """
    for module in model.modules():
        for name, value in vars(module).items():
            if "drop" in name and isinstance(value, float) and value:
                setattr(module, name, 0.0)
