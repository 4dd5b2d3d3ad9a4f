"""Traits of a model that its config or its class tells: attention, layers, type, cache."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from sense_trl.errors import ModelError


def holds_adapter(path: str | Path) -> bool:
    """True for the folder of an adapter of PEFT."""
    return (Path(path) / "adapter_config.json").is_file()


def load_model_config(path: str) -> tuple[Any, Any | None]:
    """transformers' config of a model folder, an adapter folder or a hub id, without weights.

    Returns:
        The config, and the adapter's own config where `path` is the folder of one.

    Raises:
        ModelError: there is no such config.
    """
    from peft import PeftConfig
    from transformers import AutoConfig

    try:
        adapter = PeftConfig.from_pretrained(path) if holds_adapter(path) else None
        base = path if adapter is None else adapter.base_model_name_or_path
        return AutoConfig.from_pretrained(base), adapter
    # What a missing or broken file raises is up to the library that reads it.
    except Exception as error:
        raise ModelError(
            f"The config of the model {path!r} cannot be read: {error}. Expected a folder with "
            "config.json, the folder of an adapter that names its base, or a model on the hub."
        ) from error


def get_config_dtype(config: Any, dtype: str | None) -> str:
    """The name of the type in which a checkpoint is loaded when asked for `dtype`.

    Args:
        config: transformers' config, which names the checkpoint's own type for `"auto"`.
        dtype: `"auto"`, None or the name of a type.
    """
    if dtype not in (None, "auto"):
        return str(dtype)
    return str(getattr(config, "dtype", None) or "float32").removeprefix("torch.")


def find_partial_attention(config: Any) -> str | None:
    """The reason why positions do not see all tokens before them; None where they do.

    Args:
        config: transformers' config. Models that read images as well keep the settings of their
            text part apart, and these count.
    """
    text = config.get_text_config(decoder=True)
    others = set(getattr(text, "layer_types", None) or []) - {"full_attention"}
    if others:
        return f"the model has layers of other kinds than full attention: {sorted(others)}"
    # Qwen2 names a window that it uses only if `use_sliding_window` says so.
    window = getattr(text, "sliding_window", None) or getattr(text, "attention_chunk_size", None)
    if window and getattr(text, "use_sliding_window", True):
        return f"the model sees a window of {window} tokens, not all that came before"
    return None


def has_full_attention(config: Any) -> bool:
    """True where every layer of a config's model sees all tokens that came before."""
    return find_partial_attention(config) is None


def keep_layers(config: Any, kept: Sequence[int]) -> None:
    """Make a config that of the model with some of its layers, by their indices; changes it."""
    config.num_hidden_layers = len(kept)
    # Qwen2 and others list the kind of each layer.
    if getattr(config, "layer_types", None):
        config.layer_types = [config.layer_types[index] for index in kept]


def get_cache_argument(model: Any) -> str:
    """The name of the argument of `forward` that takes keys and values of what was read before.

    Args:
        model: transformers' model, or peft's around it.

    Raises:
        ModelError: there is none, and what else it were given would be ignored.
    """
    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    known = inspect.signature(type(base).forward).parameters
    # transformers 5.24 gave its own models the new name; others keep the old one.
    for name in ("cache", "past_key_values"):
        if name in known:
            return name
    raise ModelError(
        f"Models of the type {base.config.model_type!r} cannot be sampled: their `forward` takes "
        "no keys and values of what was read before, but a recurrent state or nothing. Use a model "
        "that is a transformer throughout."
    )
