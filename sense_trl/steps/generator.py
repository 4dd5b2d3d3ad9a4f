"""`load_generator`: a model that writes SQL, loaded here or at a server."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from sense_trl.checkpoints.starting_model import get_adapter_base, load_for_generation
from sense_trl.errors import InputError

if TYPE_CHECKING:
    from sense_trl.generation.generator import SQLGenerator


def load_generator(
    name: str,
    *,
    base_url: str | None = None,
    api_key_env: str | None = None,
    use_vllm: bool = False,
    dtype: str = "auto",
    load_in_4bit: bool = False,
    batch_size: int = 64,
    fold_system_message: bool = False,
) -> SQLGenerator:
    """A model to write SQL with.

    Args:
        name: model folder, adapter folder or hub id; with `base_url` the server's name for it.
        base_url: OpenAI-compatible server that runs the model.
        api_key_env: environment variable that holds the server's key.
        use_vllm: load it with vLLM.
        dtype: type of the weights.
        load_in_4bit: hold the weights in 4 bits.
        batch_size: completions written together.
        fold_system_message: put the system's text in front of the user's, for chat templates
            without a system role.

    Raises:
        InputError: options that do not go together.
        ModelError: there is no such model or tokenizer.
    """
    check_generator_options(base_url=base_url, use_vllm=use_vllm, load_in_4bit=load_in_4bit)
    if base_url is not None:
        from sense_trl.generation.openai_generator import OpenAIGenerator

        return OpenAIGenerator(
            name,
            base_url,
            api_key_env=api_key_env,
            concurrency=batch_size,
            fold_system_message=fold_system_message,
        )
    if use_vllm:
        from sense_trl.generation.vllm_generator import VLLMGenerator

        options = {} if dtype == "auto" else {"dtype": dtype}
        return VLLMGenerator(name, fold_system_message=fold_system_message, **options)
    from sense_trl.generation.transformers_generator import TransformersGenerator

    model: Any = name
    tokenizer = None
    if load_in_4bit or get_adapter_base(name) is not None:
        model, tokenizer = load_for_generation(name, dtype=dtype, load_in_4bit=load_in_4bit)
    return TransformersGenerator(
        model,
        tokenizer,
        batch_size=batch_size,
        dtype=dtype,
        name=Path(name).name,
        fold_system_message=fold_system_message,
    )


def check_generator_options(*, base_url: str | None, use_vllm: bool, load_in_4bit: bool) -> None:
    """Refuse options of which one would be ignored.

    Raises:
        InputError: there are such.
    """
    if use_vllm and base_url is not None:
        raise InputError(f"`use_vllm` is given with `base_url` {base_url!r}; choose one of them.")
    if load_in_4bit and (use_vllm or base_url is not None):
        raise InputError(
            "`load_in_4bit` is true, but with `use_vllm` or `base_url` the weights are loaded "
            "elsewhere. Leave it out, and name a quantised checkpoint there."
        )
