"""Autocast: weights that are converted once instead of in every forward pass."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch


@contextlib.contextmanager
def converting_once(model: Any, autocast: contextlib.AbstractContextManager[Any]) -> Iterator[None]:
    """Within `autocast`, convert each weight once for all forward passes of the block.

    Autocast keeps what it makes of weights that need a gradient, until its outermost block ends.
    A frozen weight in float32, such as the base of an adapter, it converts in every forward pass:
    of one that writes a token for each of 64 texts, half the time (Qwen2.5-Coder-0.5B on a CPU with
    AMX). So frozen weights seem to need a gradient here. The values are the same.

    No gradient is computed. Not in inference mode, where autocast keeps nothing, and not for
    weights that are in shards.

    Args:
        model: whose weights do not change within the block.
        autocast: entered for the block.
    """
    with torch.no_grad(), autocast:
        kind = next(model.parameters()).device.type
        is_on = torch.is_autocast_enabled(kind)
        frozen = [
            parameter
            for parameter in model.parameters()
            if is_on and parameter.dtype == torch.float32 and not parameter.requires_grad
        ]
        for parameter in frozen:
            parameter.requires_grad = True
        try:
            yield
        finally:
            for parameter in frozen:
                parameter.requires_grad = False
