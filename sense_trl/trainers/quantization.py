"""What 4-bit base models and their adapters need beyond what TRL does for them."""

from __future__ import annotations

import importlib.util
import logging
import sys

import torch
from torch import nn

logger = logging.getLogger(__name__)


def disable_cpu_weight_repacking(model: nn.Module) -> int:
    """Keep bitsandbytes from repacking 4-bit weights in place on CPUs with AVX512-BF16.

    On such a CPU, `Linear4bit.forward` in eval mode rewrites its weight into another layout
    (bitsandbytes 0.50.2). Training that goes on afterwards gets wrong gradients, without an error
    in models whose linear layers have no bias (Llama), and the weights that are saved or merged
    are wrong. Evaluating during training and precomputing reference log-probabilities both enter
    eval mode. Call this before the first forward; it costs the faster CPU kernel and changes
    nothing on a GPU.

    Args:
        model: any module; without 4-bit layers, or without bitsandbytes, nothing happens.

    Returns:
        How many 4-bit layers the model has.
    """
    # A model with 4-bit layers has imported bitsandbytes already. Importing it here would cost
    # seconds for everybody else.
    if "bitsandbytes" not in sys.modules or importlib.util.find_spec("bitsandbytes") is None:
        return 0
    linear_4bit = sys.modules["bitsandbytes"].nn.Linear4bit
    layers = [module for module in model.modules() if isinstance(module, linear_4bit)]
    for layer in layers:
        layer.support_avx512bf16_for_cpu = False
    return len(layers)


def upcast_trainable_to_float32(model: nn.Module) -> int:
    """Store the trainable 16-bit parameters of `model` as float32, in place.

    TRL casts the adapters of quantised models to bfloat16, which has 8 bits of mantissa: at the
    learning rates of preference training AdamW's updates are rounded away, and most adapter weights
    never change (97 % of them over 60 steps at 5e-6). Frozen parameters keep their type.

    Call it before the optimiser is created. Not for ZeRO-3 or FSDP with flattened parameters,
    which need one type for all of them.

    Returns:
        How many parameter tensors were converted.
    """
    converted = 0
    for parameter in model.parameters():
        if parameter.requires_grad and parameter.dtype in (torch.bfloat16, torch.float16):
            parameter.data = parameter.data.float()
            converted += 1
    if converted:
        logger.info("Upcast %d trainable parameter tensors to float32.", converted)
    return converted
