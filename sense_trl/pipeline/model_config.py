"""`load_model_config`: what a model is, read without its weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

from sense_trl.errors import ModelError

__all__ = ["load_model_config"]

_ADAPTER_CONFIG: Final = "adapter_config.json"


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
        adapter = (
            PeftConfig.from_pretrained(path) if (Path(path) / _ADAPTER_CONFIG).is_file() else None
        )
        base = path if adapter is None else adapter.base_model_name_or_path
        return AutoConfig.from_pretrained(base), adapter
    # What a missing or broken file raises is up to the library that reads it.
    except Exception as error:
        raise ModelError(
            f"The config of the model {path!r} cannot be read: {error}. Expected a folder with "
            "config.json, the folder of an adapter that names its base, or a model on the hub."
        ) from error
