"""Identity of a model: all that decides its values, by which what it said is found again."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from sense_trl.trainers.sharing.tree_attention import get_attention

_NUM_SAMPLED = 1024
_WORDS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
# Of configs: names, how a model was made and is trained, and how it writes. Types are those of the
# weights.
_NOT_DECISIVE = re.compile(
    r"_name_or_path|base_model_name_or_path|.*_version|architectures|auto_map|(torch_)?dtype"
    r"|tokenizer_class|revision|task_type|inference_mode|return_dict|output_\w+|use_cache"
    r"|id2label|label2id|problem_type|.*dropout\w*|.*_?pdrop|.*layerdrop|init\w*"
    r"|\w+_token_id"
)


def describe_settings(model: Any, *, adapters: Iterable[str] | None = None) -> dict[str, Any]:
    """The settings that a model's values depend on beside its weights, as JSON data.

    Those of the config (norms, rotary embeddings, how heads are split, quantisation), the
    attention that was chosen, and those of adapters (their scale, where they are).

    Args:
        model: of transformers, with or without adapters of PEFT.
        adapters: which of its adapters are on; those that are active, if not given.
    """
    known = getattr(model, "peft_config", None) or {}
    base = model.get_base_model() if known else model
    settings = _clean(base.config.to_dict())
    settings["attn_implementation"] = get_attention(base.config)
    names = (model.active_adapters if known else []) if adapters is None else adapters
    if active := [_clean(known[name].to_dict()) for name in names]:
        settings["adapters"] = active
    described: dict[str, Any] = json.loads(json.dumps(settings, sort_keys=True, default=_name))
    return described


def describe_differences(before: dict[str, Any], now: dict[str, Any]) -> list[str]:
    """Settings in which two models differ, as a message names them."""
    return [
        f"{name} was {before.get(name)!r}, now {now.get(name)!r}"
        for name in sorted(before.keys() | now.keys())
        if before.get(name) != now.get(name)
    ]


def get_weights_digest(parameters: Iterable[tuple[str, Tensor]]) -> str:
    """Identity of weights and their types.

    A sample of each tensor, and the sum of the bits of all of its numbers as integers: exact in
    whatever order they are added, and another if only one of a million rows was trained.

    Args:
        parameters: with their names, in any order.
    """
    parts = sorted(f"{name} {_describe_tensor(tensor)}" for name, tensor in parameters)
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()


def _describe_tensor(tensor: Tensor) -> str:
    flat = tensor.detach().flatten()
    sample = flat[:: max(1, flat.numel() // _NUM_SAMPLED)][:_NUM_SAMPLED].float().cpu()
    digest = hashlib.sha256(sample.numpy().tobytes()).hexdigest()
    total = int(flat.view(_WORDS[flat.element_size()]).sum(dtype=torch.int64))
    description = f"{tuple(tensor.shape)} {tensor.dtype} {digest} {total}"
    # bitsandbytes keeps the scales of 4-bit weights beside them.
    state = getattr(tensor, "quant_state", None)
    if state is not None:
        description += f" {_describe_tensor(state.absmax)}"
    return description


def _name(value: Any) -> str:
    """Of something that JSON has not, the same in every process."""
    return re.sub(r" at 0x[0-9a-f]+", "", str(value))


def _clean(settings: Any) -> Any:
    if isinstance(settings, dict):
        return {
            str(name): _clean(value)
            for name, value in settings.items()
            if not _NOT_DECISIVE.fullmatch(str(name))
        }
    if isinstance(settings, set | frozenset):
        return sorted(map(str, settings))
    if isinstance(settings, list | tuple):
        return [_clean(value) for value in settings]
    return settings
