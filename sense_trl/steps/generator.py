"""`load_generator`: a model that writes SQL, loaded here or at a server."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from sense_trl.checkpoints.starting_model import get_adapter_base, load_for_generation
from sense_trl.options import GeneratorOptions

if TYPE_CHECKING:
    from sense_trl.generation.generator import SQLGenerator


def load_generator(options: GeneratorOptions, *, batch_size: int) -> SQLGenerator:
    """A model to write SQL with.

    Args:
        options: which model, and how it is loaded.
        batch_size: completions written together.

    Raises:
        InputError: options that do not go together.
        ModelError: there is no such model or tokenizer.
    """
    options.check()
    name, dtype = options.model_name_or_path, options.generation_dtype
    folds = options.fold_system_message
    if options.base_url is not None:
        from sense_trl.generation.openai_generator import OpenAIGenerator

        return OpenAIGenerator(
            name,
            options.base_url,
            api_key_env=options.api_key_env,
            concurrency=batch_size,
            fold_system_message=folds,
        )
    if options.use_vllm:
        from sense_trl.generation.vllm_generator import VLLMGenerator

        dtypes = {} if dtype == "auto" else {"dtype": dtype}
        return VLLMGenerator(name, fold_system_message=folds, **dtypes)
    from sense_trl.generation.transformers_generator import TransformersGenerator

    model: Any = name
    tokenizer = None
    if options.load_in_4bit or get_adapter_base(name) is not None:
        model, tokenizer = load_for_generation(name, dtype=dtype, load_in_4bit=options.load_in_4bit)
    return TransformersGenerator(
        model,
        tokenizer,
        batch_size=batch_size,
        dtype=dtype,
        name=Path(name).name,
        fold_system_message=folds,
    )
