"""Model that a stage starts from: a checkpoint or an adapter on its base, in 16, 32 or 4 bits."""

from __future__ import annotations

import json
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sense_trl.errors import InputError, ModelError

if TYPE_CHECKING:
    from peft import LoraConfig
    from trl import ModelConfig

_ADAPTER_CONFIG = "adapter_config.json"


@dataclass(frozen=True, slots=True)
class StartingModel:
    """A loaded model with what its training needs.

    Attributes:
        model: with its adapter, if `model_name_or_path` was the folder of one.
        tokenizer: its tokenizer.
        peft_config: of the new adapter to train; None to train the model's own, or all weights.
    """

    model: Any
    tokenizer: Any
    peft_config: LoraConfig | None

    @property
    def trains_adapter(self) -> bool:
        """True where an adapter is trained rather than all weights."""
        return self.peft_config is not None or hasattr(self.model, "peft_config")

    @property
    def is_quantized(self) -> bool:
        """True where the weights are held in 8 bits or fewer, so that nothing can be merged."""
        return getattr(self.model.config, "quantization_config", None) is not None


def load_starting_model(arguments: ModelConfig, *, use_cpu: bool) -> StartingModel:
    """Load the model that a training starts from, as `arguments` say.

    A folder that holds an adapter (adapter_config.json) gives its base with the adapter, which is
    then trained further. Any other checkpoint is trained whole, or with `use_peft` gets a new one.

    Args:
        arguments: TRL's. With `load_in_4bit` the 4-bit products are computed in `dtype`.
        use_cpu: that of the training arguments.

    Raises:
        InputError: the options do not go together (see `check_model_arguments`).
        ModelError: there is no such model or tokenizer.
    """
    from trl import get_peft_config, get_quantization_config

    check_model_arguments(arguments, use_cpu=use_cpu)
    path = str(arguments.model_name_or_path)
    options: dict[str, Any] = {"revision": arguments.model_revision}
    if arguments.attn_implementation is not None:
        options["attn_implementation"] = arguments.attn_implementation
    quantization = get_quantization_config(arguments)
    if quantization is not None:
        options["quantization_config"] = quantization
        if use_cpu:
            # Quantised weights go to a GPU unasked.
            options["device_map"] = {"": "cpu"}
    model, tokenizer = _load(path, arguments.dtype or "auto", is_trainable=True, **options)
    return StartingModel(model, tokenizer, get_peft_config(arguments))


def load_unquantized_model(
    path: str | Path, *, use_cpu: bool, lora_r: int | None = None
) -> StartingModel:
    """Load a model to train whole in 32 bits, or by a LoRA adapter on all linear layers.

    Args:
        path: model folder or hub id.
        use_cpu: as in `load_starting_model`.
        lora_r: rank of the adapter, which is scaled by 2; None to train all weights.

    Raises:
        ModelError: there is no such model or tokenizer.
    """
    from trl import ModelConfig

    if lora_r is None:
        arguments = ModelConfig(model_name_or_path=str(path), dtype="float32")
    else:
        # The base keeps its type; the adapter is trained in 32 bits anyway.
        arguments = ModelConfig(
            model_name_or_path=str(path),
            dtype="auto",
            use_peft=True,
            lora_r=lora_r,
            lora_alpha=2 * lora_r,
            lora_dropout=0.0,
            lora_target_modules=["all-linear"],
        )
    return load_starting_model(arguments, use_cpu=use_cpu)


def check_model_arguments(arguments: ModelConfig, *, use_cpu: bool) -> None:
    """Refuse options that would train something else than they seem to say.

    Raises:
        InputError: no model is named; quantised weights are to be trained without an adapter, or
            computed with in float32 on a GPU or in a type left open; an adapter is to be put on
            top of another one.
    """
    path = arguments.model_name_or_path
    if path is None:
        raise InputError(
            "`model_name_or_path` is missing; give a model folder, an adapter folder or a hub id."
        )
    has_adapter = get_adapter_base(path) is not None
    if has_adapter and arguments.use_peft:
        raise InputError(
            f"`use_peft` is true, but `model_name_or_path` {path!r} holds an adapter, which is "
            "trained further with the rank it has. Leave out `use_peft` and the `lora_*` options, "
            "or merge the adapter into its base first (`sense-trl merge`)."
        )
    if not (arguments.load_in_4bit or arguments.load_in_8bit):
        return
    option = "load_in_4bit" if arguments.load_in_4bit else "load_in_8bit"
    if not (arguments.use_peft or has_adapter):
        raise InputError(
            f"`{option}` is true without an adapter, but quantised weights cannot be trained "
            f"themselves. Set `use_peft: true`, or start from an adapter: {path!r} is not the "
            "folder of one."
        )
    if arguments.load_in_4bit and arguments.dtype not in ("bfloat16", "float16"):
        if arguments.dtype == "float32" and use_cpu:
            return
        raise InputError(
            f"`dtype` is {arguments.dtype!r} with `load_in_4bit`; expected bfloat16 (float16 on "
            "GPUs without it): it is the type that 4-bit weights are multiplied in, and float32, "
            "the default, takes several times as long on a GPU. On a CPU (`use_cpu: true`) float32 "
            "is accepted, and the fastest where there are no instructions for bfloat16."
        )


def get_adapter_base(path: str | Path) -> str | None:
    """The base model that an adapter folder names; None for anything else.

    Raises:
        ModelError: the folder's adapter_config.json is broken or names no base.
    """
    file = Path(path) / _ADAPTER_CONFIG
    if not file.is_file():
        return None
    try:
        base = json.loads(file.read_text(encoding="utf-8"))["base_model_name_or_path"]
        if not isinstance(base, str):
            raise ValueError(f"`base_model_name_or_path` is {base!r}")
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise ModelError(
            f"`model_name_or_path` {str(path)!r} holds an adapter whose {_ADAPTER_CONFIG} does not "
            f"name its base model ({error!r}). Write the base's folder or hub id into "
            "`base_model_name_or_path` there."
        ) from error
    return base


def load_stage_tokenizer(path: str) -> Any:
    """The tokenizer of a model or an adapter.

    Raises:
        ModelError: there is none; an adapter's is the one in its own folder.
    """
    from sense_trl.generation.transformers_generator import load_tokenizer

    if get_adapter_base(path) is None:
        return load_tokenizer(path)
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(path)
    # What a missing or broken file raises is up to the library that reads it; here and below.
    except Exception as error:
        raise ModelError(
            f"The adapter in {path!r} has no usable tokenizer ({error}). Copy tokenizer.json and "
            "tokenizer_config.json there from its base model."
        ) from error


def load_for_generation(path: str, *, dtype: str, load_in_4bit: bool) -> tuple[Any, Any]:
    """A model and its tokenizer for `TransformersGenerator`, on the GPU if there is one.

    An adapter is merged into its base for speed, except into one of 4 bits, where it would be
    rounded.

    Raises:
        InputError: `dtype` is float32 with `load_in_4bit` on a GPU.
        ModelError: there is no such model or tokenizer.
    """
    import torch

    has_gpu = torch.cuda.is_available()
    options: dict[str, Any] = {}
    if load_in_4bit:
        from transformers import BitsAndBytesConfig

        if dtype == "auto" or (dtype == "float32" and has_gpu):
            raise InputError(
                f"`generation_dtype` is {dtype!r} with `load_in_4bit`; expected bfloat16 or, on a "
                "CPU, float32: the type that 4-bit weights are multiplied in."
            )
        options["quantization_config"] = BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=dtype,
        )
    model, tokenizer = _load(path, dtype, is_trainable=False, **options)
    if not load_in_4bit:
        model = model.merge_and_unload() if hasattr(model, "peft_config") else model
        model = model.to("cuda" if has_gpu else "cpu")
    return model, tokenizer


def resize_to_adapter(model: Any, path: str | Path) -> None:
    """Give a base the vocabulary that an adapter was trained with, whose embeddings it holds.

    A tokenizer with added tokens goes with longer embeddings than the base's.

    Args:
        model: the base; changed where the adapter's folder has embeddings of another length.
        path: folder of the adapter.
    """
    from safetensors import safe_open

    file = Path(path) / "adapter_model.safetensors"
    if not file.is_file():
        return
    embeddings = model.get_input_embeddings()
    num_rows, width = embeddings.weight.shape
    place = next(name for name, module in model.named_modules() if module is embeddings)
    with safe_open(file, framework="pt") as weights:
        shapes = [
            tuple(weights.get_slice(name).get_shape())
            for name in weights.keys()  # noqa: SIM118 - no mapping
            if f".{place}." in name and name.endswith(".weight") and ".lora_" not in name
        ]
    sizes = {rows for rows, columns in shapes if columns == width} - {num_rows}
    if len(sizes) == 1:
        # Whatever new rows begin with, the adapter's weights are put in their place.
        model.resize_token_embeddings(sizes.pop(), mean_resizing=False)


def load_adapter(model: Any, path: str | Path, *, is_trainable: bool = False) -> Any:
    """Put the adapter of a folder on a model.

    Returns:
        The `PeftModel`.

    Raises:
        ValueError: the folder's low-rank weights are not those that the model has a place for.
            peft itself leaves out what it cannot place, and the rest at its random beginning.
    """
    from peft import PeftModel, get_peft_model_state_dict
    from peft.utils import load_peft_weights

    resize_to_adapter(model, path)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Found missing adapter keys")
        model = PeftModel.from_pretrained(model, str(path), is_trainable=is_trainable)
    places = get_peft_model_state_dict(model, save_embedding_layers=False)
    different = {name for name in {*places} ^ {*load_peft_weights(str(path))} if ".lora_" in name}
    if different:
        raise ValueError(
            f"the adapter and the layers of this base differ in {len(different)} weights, such as "
            f"{min(different)!r}: it was trained on another model"
        )
    return model


def _load(path: str, dtype: str, *, is_trainable: bool, **options: Any) -> tuple[Any, Any]:
    """A model, with its adapter if `path` is one's folder, and the tokenizer beside it."""
    from transformers import AutoModelForCausalLM

    tokenizer = load_stage_tokenizer(path)
    base = get_adapter_base(path)
    try:
        model = AutoModelForCausalLM.from_pretrained(base or path, dtype=dtype, **options)
        if base is not None:
            model = load_adapter(model, path, is_trainable=is_trainable)
    except Exception as error:
        where = f" with the base {base!r}" if base else ""
        remedy = f" If the base moved, write its folder into {_ADAPTER_CONFIG}." if base else ""
        raise ModelError(
            f"`model_name_or_path` {path!r}{where} cannot be loaded with `dtype` {dtype!r}: "
            f"{error}. Expected the folder of a model or of an adapter, or a hub id.{remedy}"
        ) from error
    return model, tokenizer
