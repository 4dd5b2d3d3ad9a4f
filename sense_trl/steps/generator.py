"""`load_generator`: a model that writes SQL, loaded here or at a server."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, Final
from weakref import WeakValueDictionary

from sense_trl.checkpoints.starting_model import get_adapter_base, load_for_generation
from sense_trl.options import GeneratorOptions
from sense_trl.run_folder import fingerprint_model

if TYPE_CHECKING:
    from sense_trl.generation.generator import SQLGenerator
    from sense_trl.generation.transformers_generator import TransformersGenerator

# While they are held elsewhere.
_LOADED: Final[WeakValueDictionary[str, TransformersGenerator]] = WeakValueDictionary()


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
            timeout_s=options.request_timeout_s,
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
    generator = TransformersGenerator(
        model,
        tokenizer,
        batch_size=batch_size,
        dtype=dtype,
        name=Path(name).name,
        fold_system_message=folds,
    )
    if not options.load_in_4bit:
        _LOADED[fingerprint_model(name)] = generator
    return generator


def find_loaded(model: str) -> TransformersGenerator | None:
    """The generator of a model, by its folder or hub id, that this process holds already."""
    return _LOADED.get(fingerprint_model(model))
