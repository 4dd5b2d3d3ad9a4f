"""What a model is, read without its weights: transformers' config, and the type it loads in."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

from sense_trl.errors import ModelError

__all__ = ["get_config_dtype", "load_model_config"]

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


def get_config_dtype(config: Any, dtype: str | None) -> str:
    """The name of the type in which a checkpoint is loaded when asked for `dtype`.

    Args:
        config: transformers' config, which names the checkpoint's own type for `"auto"`.
        dtype: `"auto"`, None or the name of a type.
    """
    if dtype not in (None, "auto"):
        return str(dtype)
    return str(getattr(config, "dtype", None) or "float32").removeprefix("torch.")
