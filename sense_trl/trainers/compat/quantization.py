"""Remedies for what TRL and bitsandbytes do to 4-bit base models and their adapters."""

from __future__ import annotations

import importlib.util
import logging
import sys
from typing import Any

import torch
from torch import Tensor, nn

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


def get_float32_parameters(model: nn.Module | str) -> list[tuple[nn.Parameter, Tensor]]:
    """The trainable float32 parameters of a model with their data, before TRL rounds them.

    TRL rounds the adapters of a quantised PeftModel to bfloat16 by giving `.data` a new tensor. For
    an adapter that was trained before, upcasting afterwards would not bring the lost digits back,
    and the policy would start away from its own reference copy.

    Args:
        model: what the trainer is given; a model given by name has no adapter yet.
    """
    return [
        (parameter, parameter.data)
        for parameter in ([] if isinstance(model, str) else model.parameters())
        if parameter.requires_grad and parameter.dtype == torch.float32
    ]


def store_adapter_in_float32(
    model: Any, args: Any, before: list[tuple[nn.Parameter, Tensor]]
) -> None:
    """Do what `args.adapter_dtype` says to the adapter of a model that TRL has prepared.

    Args:
        model: a model without an adapter is left as it is.
        args: config of one of our trainers.
        before: what `get_float32_parameters` found before.
    """
    if args.adapter_dtype != "float32" or not hasattr(model, "peft_config"):
        return
    deepspeed_plugin = getattr(args, "deepspeed_plugin", None)
    if deepspeed_plugin is not None and deepspeed_plugin.zero_stage == 3:
        logger.warning(
            "`adapter_dtype` 'float32' is not applied under DeepSpeed ZeRO-3, which needs one type "
            "for all parameters; 'auto' is used."
        )
        return
    for parameter, data in before:
        if parameter.requires_grad and parameter.dtype != torch.float32:
            parameter.data = data.to(parameter.device)
    upcast_trainable_to_float32(model)
