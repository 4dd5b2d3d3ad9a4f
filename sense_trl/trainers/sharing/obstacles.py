"""Reasons for which a prefix tree would not give a model's own values, found before training.

It does where every position sees all that came before it and knows its position from
`position_ids`. Windows show on long texts only and a few tokens cannot find them, so the kinds of
models are listed whose code was read for it; their settings, adapters and values are checked too.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from accelerate.utils import recursively_apply
from torch import Tensor
from torch.distributed.tensor import DTensor

from sense_trl.model_traits import find_partial_attention
from sense_trl.prefix_tree import PrefixTree
from sense_trl.trainers.sharing.heads import add_prefix_tree_head
from sense_trl.trainers.sharing.tree_attention import get_attention, get_own_class

_ATTENTION_WITH_MASKS = ("sdpa", "eager", "flex_attention")

# Of the 189 types of causal models in transformers 5.23: their attention is full but for the
# settings that `find_config_obstacle` reads, takes a mask of four dimensions as it is, and
# counts positions by `position_ids` alone. Each was compared with separate rows of 240 tokens in
# float32. Left out are encoders and decoders of pairs of models, models of images and sound,
# attention that is linear, recurrent, sparse or biased by distance, and types that are too rare to
# read. Others fall back to rows.
_EXACT_MODEL_TYPES = """
    apertus arcee biogpt bitnet codegen cohere deepseek_v3 diffllama ernie4_5 ernie4_5_moe exaone4
    falcon flex_olmo gemma glm glm4 glm4_moe gpt2 gpt_bigcode gpt_neox gptj granite granitemoe
    granitemoeshared helium hunyuan_v1_dense hunyuan_v1_moe hyperclovax internlm3 iquestcoder jais2
    jetmoe llama minicpm3 minimax_m2 ministral3 mistral mixtral nanochat olmo olmo2 olmoe opt
    persimmon phi phi3 phimoe qwen2 qwen2_moe qwen3 qwen3_moe seed_oss smollm3 solar_open stablelm
    starcoder2 xglm youtu
"""
EXACT_MODEL_TYPES = frozenset(_EXACT_MODEL_TYPES.split())
"""Types of models, as their configs name them, that a tree is exact for."""

# Adapters that do the same to every position, whatever row it is in.
_EXACT_ADAPTER_TYPES = """
    ADALORA BOFT C3A FOURIERFT HRA IA3 LN_TUNING LOHA LOKR LORA MISS OFT RANDLORA ROAD SHIRA
    TRAINABLE_TOKENS VBLORA VERA
"""
# Largest difference between log-probabilities, in nats, that counts as rounding: in float32; of
# weights that are held in integers and multiplied in 16 bits; and of such weights where only the
# head can be wrong, which shows more.
_TOLERANCE = 1e-3
_TOLERANCE_QUANTIZED = 0.05
_TOLERANCE_QUANTIZED_HEAD = 0.5
_SIXTEEN_BITS = (torch.bfloat16, torch.float16)


def find_sharing_obstacle(model: Any) -> str | None:
    """The reason why a tree would not give the values of separate rows; None where it does.

    Args:
        model: causal language model of transformers, with or without adapters of PEFT, to which TRL
            has added its fused head. It is prepared for trees, and run on a few tokens.
    """
    adapters = getattr(model, "peft_config", None) or {}
    base = model.get_base_model() if adapters else model
    obstacle = (
        find_adapter_obstacle(adapters)
        or find_config_obstacle(base.config, get_attention(base.config))
        or _find_obstacle_in_code(base)
    )
    if obstacle is not None:
        return obstacle
    add_prefix_tree_head(base)
    # Of sharded parameters a process has parts, which run only once they are wrapped.
    if any(is_sharded(parameter) for parameter in base.parameters()):
        return None
    return compare_with_rows(base)


def find_adapter_obstacle(adapters: dict[str, Any], *, share: bool = True) -> str | None:
    """The reason why a model with adapters cannot be run on a tree; None where it can.

    Args:
        adapters: `peft_config` of a PeftModel; empty for a model without.
        share: False asks about a tree whose rows are sequences.
    """
    for adapter in adapters.values():
        kind = getattr(adapter.peft_type, "value", adapter.peft_type)
        if getattr(adapter, "is_prompt_learning", False):
            return "the adapter puts virtual tokens before every row"
        if getattr(adapter, "alora_invocation_tokens", None) is not None:
            return "the adapter is switched on by tokens that it looks for in every row (aLoRA)"
        if share and kind not in _EXACT_ADAPTER_TYPES.split():
            return f"adapters of type {kind} have not been compared with separate rows"
    return None


def is_sharded(parameter: Tensor) -> bool:
    """True where this process holds a part of a parameter only (FSDP, ZeRO-3), or its shape."""
    return isinstance(parameter, DTensor) or parameter.is_meta or hasattr(parameter, "ds_id")


def find_config_obstacle(config: Any, implementation: str) -> str | None:
    """The reason, in a config, why its model gives other values on a tree, or None.

    Args:
        config: of transformers.
        implementation: of attention.
    """
    if implementation not in _ATTENTION_WITH_MASKS:
        return (
            f"the attention implementation {implementation!r} takes no mask of a tree; load the "
            "model with attn_implementation 'sdpa' or 'flex_attention'"
        )
    if partial := find_partial_attention(config):
        return partial
    if getattr(config.get_text_config(decoder=True), "alibi", False):
        return "the model counts positions along the row (ALiBi)"
    if config.model_type not in EXACT_MODEL_TYPES:
        return (
            f"models of type {config.model_type!r} are not among those whose attention is known "
            "to be full"
        )
    return None


def _find_obstacle_in_code(model: Any) -> str | None:
    own = get_own_class(model)
    if not own.__module__.startswith("transformers."):
        return (
            f"the model's class {own.__name__} is not one of transformers, and whether its "
            "attention sees all tokens is not known"
        )
    return None


# ------------------------------------------------------------------------------------- values


@torch.no_grad()  # type: ignore[untyped-decorator]
def compare_with_rows(model: Any, *, share: bool = True) -> str | None:
    """Compare a model on a tree with its own logits for separate rows; what is wrong, or None.

    16-bit models are compared in float32: their rounding would hide a wrong position or mask.

    Args:
        model: prepared by `add_prefix_tree_head`.
        share: False compares an ordinary padded batch, whose logits our head computes all the same.
    """
    was_training = model.training
    model.eval()
    try:
        with torch.autocast(model.device.type, enabled=False):
            difference = _get_difference(model, share)
            if not difference <= _TOLERANCE:
                with _computing_in_float32(model):
                    difference = _get_difference(model, share)
    except Exception as error:  # whatever a model of an unknown kind makes of a tree
        return f"the model cannot be run on a tree ({type(error).__name__}: {error})"
    finally:
        model.train(was_training)
    is_quantized = not all(
        _is_plain(parameter) and parameter.is_floating_point() for parameter in model.parameters()
    )
    tolerance = _TOLERANCE
    if is_quantized:
        tolerance = _TOLERANCE_QUANTIZED if share else _TOLERANCE_QUANTIZED_HEAD
    if not difference <= tolerance:
        what = "on a tree than on separate rows" if share else "than its own logits say"
        return f"the model gives other values {what} (log-probabilities differ by {difference:.2g})"
    return None


def _get_difference(model: Any, share: bool) -> float:
    """The largest one between log-probabilities of tokens of three answers to a prompt."""
    # The embeddings may be wrapped by an adapter, which knows no size.
    vocab_size = model.config.get_text_config(decoder=True).vocab_size
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(vocab_size, (40,), generator=generator).tolist()
    # The last two have a common beginning.
    sequences = [
        tokens[:20],
        tokens[:12] + tokens[20:30],
        tokens[:12] + tokens[20:24] + tokens[30:],
    ]
    tree = PrefixTree.from_sequences(sequences, share=share).to(model.device)
    labels = torch.zeros(tree.sequence_nodes.shape, dtype=torch.long, device=model.device)
    found = model(labels=labels, fused_lm_head=True, prefix_tree=tree).log_probs
    differences = []
    for row, sequence in zip(found, sequences, strict=True):
        ids = torch.tensor([sequence], device=model.device)
        logits = model(input_ids=ids, use_cache=False).logits[0, :-1].float()
        expected = logits.log_softmax(-1).gather(1, ids[0, 1:, None])[:, 0]
        differences.append((row[: len(expected)] - expected.to(row.device)).abs().max())
    # Not Python's `max`, which does not see NaN.
    return torch.stack(differences).max().item()


@contextlib.contextmanager
def _computing_in_float32(model: Any) -> Iterator[None]:
    """Within the block a 16-bit model computes in float32.

    Weights are converted as a layer is run, and are what they were afterwards: beside the model
    there is one layer in 32 bits.
    """
    changed: list[tuple[Any, str, Any]] = []
    # How much was changed before each of the modules that are running.
    marks: list[int] = []

    def replace(target: Any, name: str, value: Any) -> None:
        changed.append((target, name, getattr(target, name)))
        setattr(target, name, value)

    def enter(module: Any, args: Any, kwargs: Any) -> Any:
        is_layer = module in layers
        marks.append(len(changed))
        for tensor in (*module.parameters(is_layer), *module.buffers(is_layer)):
            if tensor.dtype in _SIXTEEN_BITS and _is_plain(tensor):
                replace(tensor, "data", tensor.data.float())
        for part in module.modules() if is_layer else [module]:
            # Of bitsandbytes' 4-bit layers.
            if getattr(part, "compute_dtype", None) in _SIXTEEN_BITS:
                replace(part, "compute_dtype", torch.float32)
        return recursively_apply(_to_float32, args), recursively_apply(_to_float32, kwargs)

    def leave(*_: Any) -> None:
        restore(marks.pop())

    def restore(mark: int) -> None:
        while len(changed) > mark:
            setattr(*changed.pop())

    layers = {
        layer
        for stack in model.modules()
        if isinstance(stack, torch.nn.ModuleList)
        for layer in stack
    }
    hooks = []
    for module in model.modules():
        has_tensors = any(True for _ in (*module.parameters(False), *module.buffers(False)))
        if has_tensors or module in layers:
            hooks.append(module.register_forward_pre_hook(enter, with_kwargs=True, prepend=True))
            hooks.append(module.register_forward_hook(leave))
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
        restore(0)


def _is_plain(tensor: Tensor) -> bool:
    """True for a tensor that is what its type says; quantised weights may be packed into any."""
    return type(tensor) in (Tensor, torch.nn.Parameter, torch.nn.Buffer)


def _to_float32(tensor: Tensor) -> Tensor:
    return tensor.float() if tensor.dtype in _SIXTEEN_BITS else tensor
