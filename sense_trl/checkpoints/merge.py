"""`merge_adapter`: an adapter and its base as one checkpoint, checked before it is in place."""

from __future__ import annotations

import itertools
import json
import tempfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from sense_trl.checkpoints.model_card import format_model_card
from sense_trl.checkpoints.starting_model import load_adapter, resize_to_adapter
from sense_trl.end_tokens import add_end_token
from sense_trl.errors import InputError, ModelError
from sense_trl.evaluation.records import EvaluationReport
from sense_trl.memory.simulation import ModelSettings, build_meta_model
from sense_trl.model_traits import load_model_config
from sense_trl.prompts import PromptStyle
from sense_trl.run_folder import check_new_folder
from sense_trl.trainers.linking.saving import copy_head

DTYPES: Final = ("bfloat16", "float16", "float32")

# Continuations of SQL and of prose: what an adapter changed shows in any text.
_PROBES: Final = (
    "CREATE TABLE singer (id INTEGER, name TEXT, age INTEGER)\nHow many singers are there?\nSELECT",
    "SELECT name FROM singer WHERE age > (SELECT AVG(age) FROM singer) ORDER BY name LIMIT 3",
    "The database holds the flights of a year, their delays and the weather of each hour.",
)
# Mean distance between next-token distributions that rounding the weights explains.
_TOLERANCES: Final = {"bfloat16": 0.05, "float16": 0.02, "float32": 0.001}

_MEMORY_MARGIN: Final = 1.25


# A smaller share of what the adapter does is not worth a word.
_NOTABLE_SHARE: Final = 0.1

# Of the training examples that a model is compared on, and of each its end.
_NUM_EXAMPLES: Final = 4
_NUM_READ: Final = 256
_NUM_COMPARED: Final = 32


@dataclass(frozen=True, slots=True)
class MergeCheck:
    """Comparison of a merged model with its base and adapter.

    Distances are the total variation between next-token distributions, 0 to 1, averaged over the
    tokens of a few texts.

    Attributes:
        distance: between the merged model and the base with its adapter.
        adapter_distance: between the base alone and with its adapter: what the adapter does.
        tolerance: the largest distance that rounding explains.
    """

    distance: float
    adapter_distance: float
    tolerance: float

    @property
    def rounds_adapter_away(self) -> bool:
        """True where rounding changes the outputs by more than half of what was learned."""
        return self.distance > self.adapter_distance / 2

    @property
    def is_notable(self) -> bool:
        """True where rounding changes the outputs by more than a tenth of what was learned."""
        return self.distance > _NOTABLE_SHARE * self.adapter_distance


def merge_in_place(model: Any, examples: Iterable[Sequence[int]]) -> tuple[Any, MergeCheck]:
    """Merge the adapter of a model in memory into its weights, in the type that they have.

    Args:
        model: a `PeftModel`, which is used up.
        examples: token ids on whose last tokens both are compared; the first few are read.

    Returns:
        The merged model, and how it differs.
    """
    import torch

    def get_distributions(compared: Any) -> list[Any]:
        with torch.inference_mode():
            return [
                compared(
                    input_ids=torch.tensor([ids[-_NUM_READ:]], device=compared.device),
                    logits_to_keep=_NUM_COMPARED,
                    use_cache=False,
                )
                .logits[0]
                .float()
                .softmax(-1)
                for ids in examples
            ]

    examples = [*itertools.islice(examples, _NUM_EXAMPLES)]
    model.eval()
    expected = get_distributions(model)
    with model.disable_adapter():
        before = get_distributions(model)
    merged = model.merge_and_unload()
    dtype = str(merged.get_input_embeddings().weight.dtype).removeprefix("torch.")
    return merged, MergeCheck(
        distance=_get_distance(get_distributions(merged), expected),
        adapter_distance=_get_distance(before, expected),
        tolerance=_TOLERANCES.get(dtype, 0.0),
    )


def merge_adapter(
    adapter: str | Path,
    output: str | Path,
    *,
    base: str | None = None,
    dtype: str = "bfloat16",
    evaluation: str | Path | None = None,
    training_data: str | None = None,
) -> MergeCheck:
    """Add an adapter to its 16-bit base and write a checkpoint with tokenizer and model card.

    An adapter that was trained on 4-bit weights goes onto the base in 16 bits, too: merged into
    the dequantised weights, the rounding to 4 bits would stay in the model for good. The sum is
    made and checked in float32 where the computer has the memory for it, else in `dtype`. The
    folder appears only after its content was read back and gave the outputs of base and adapter.

    Args:
        adapter: folder with adapter_config.json.
        output: folder to write; must not exist, or be empty.
        base: folder or hub id of the base; the one that the adapter names, if not given.
        dtype: of the merged weights: `"bfloat16"`, `"float16"` or `"float32"`.
        evaluation: an evaluation.json, whose tables go into the model card.
        training_data: a sentence about it for the model card.

    Raises:
        InputError: an argument is unusable; the base is held in 4 or 8 bits.
        ModelError: the model cannot be read, or the merged one gives other outputs.
    """
    import torch

    if dtype not in DTYPES:
        raise InputError(f"`dtype` is {dtype!r}; expected one of {', '.join(DTYPES)}.")
    target = Path(output)
    check_new_folder(target)
    base = base or _get_base(adapter)
    if Path(base).is_absolute() and not Path(base).exists():
        raise InputError(
            f"The base {base!r} of `adapter` {str(adapter)!r} is not there. Give the folder "
            "that it has now as `base`."
        )
    report = None if evaluation is None else EvaluationReport.load(evaluation)
    working_dtype = _get_working_dtype(base, dtype)
    model = _load_base(base, working_dtype)
    tokenizer = _load_tokenizer(adapter, base)
    resize_to_adapter(model, adapter)
    before = _get_distributions(model, tokenizer)
    model = _add_adapter(model, adapter, base)
    expected = _get_distributions(model, tokenizer)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(
            f"`output` {str(output)!r} cannot be made a folder ({error.strerror}). Choose another "
            "path."
        ) from error
    with tempfile.TemporaryDirectory(dir=target.parent) as temporary:
        folder = Path(temporary) / "merged"
        merged = model.merge_and_unload(safe_merge=True)
        # Training may have taught it another end than the base's; the tokenizer says so.
        if tokenizer.eos_token_id is not None:
            add_end_token(merged, tokenizer.eos_token_id)
        merged.to(getattr(torch, dtype)).save_pretrained(folder)
        del model, merged
        tokenizer.save_pretrained(folder)
        found = _get_distributions(_load_base(folder, working_dtype), tokenizer)
        check = MergeCheck(
            distance=_get_distance(found, expected),
            adapter_distance=_get_distance(before, expected),
            tolerance=_TOLERANCES[dtype],
        )
        if not check.distance <= check.tolerance:
            raise ModelError(
                f"The merged model gives other outputs than {str(adapter)!r} on {base!r}: their "
                f"next-token distributions differ by {check.distance:.3f}, and rounding to {dtype} "
                f"explains {check.tolerance}. Nothing was written. Try `dtype` float32; if it "
                "differs there as well, the adapter has parts that cannot be merged."
            )
        summary = (
            f"`{base}` with an adapter merged into its weights ({dtype}). Read back from disk, its "
            f"next-token distributions differ from those of base and adapter by "
            f"{check.distance:.4f} (total variation, mean); the adapter changes them by "
            f"{check.adapter_distance:.4f}."
        )
        card = format_model_card(
            target.name,
            base,
            summary,
            training_data=training_data,
            run_folders=(Path(adapter), Path(adapter).resolve().parent),
            evaluation=report,
        )
        (folder / "README.md").write_text(card, encoding="utf-8")
        if (style := PromptStyle.find(adapter)) is not None:
            style.save(folder)
        copy_head(adapter, folder)
        if target.exists():
            target.rmdir()
        folder.rename(target)
    return check


# ------------------------------------------------------------------------------- models


def _get_base(adapter: str | Path) -> str:
    file = Path(adapter) / "adapter_config.json"
    if not file.is_file():
        raise InputError(
            f"`adapter` {str(adapter)!r} is not the folder of an adapter: it has no "
            "adapter_config.json. Give the folder that training wrote, e.g. OUTPUT_DIR/adapter."
        )
    try:
        base = json.loads(file.read_text(encoding="utf-8")).get("base_model_name_or_path")
    except (OSError, ValueError, AttributeError) as error:
        raise InputError(f"`adapter`: {str(file)!r} cannot be read ({error}).") from error
    if not base:
        raise InputError(
            f"`adapter` {str(adapter)!r} does not name its base model. Give the folder or hub id "
            "of the model that it was trained on as `base`."
        )
    return str(base)


def _get_working_dtype(base: str, dtype: str) -> str:
    """float32 if a model of that size fits into memory, so that only its weights are rounded."""
    import psutil

    config, _ = load_model_config(base)
    num_parameters = build_meta_model(config, ModelSettings()).num_parameters()
    needed = _MEMORY_MARGIN * 4 * num_parameters
    return "float32" if needed <= psutil.virtual_memory().available else dtype


def _load_base(path: str | Path, dtype: str) -> Any:
    from sense_trl.generation.transformers_generator import load_model

    config, adapter = load_model_config(str(path))
    if adapter is not None:
        raise InputError(
            f"`base` {str(path)!r} is the folder of an adapter itself. Merge that one first and "
            "give the result."
        )
    if getattr(config, "quantization_config", None) is not None:
        raise InputError(
            f"`base` {str(path)!r} is a quantised checkpoint; merged there, the adapter would be "
            "rounded as coarsely. Give the same model in 16 bits as `base`."
        )
    return load_model(path, dtype=dtype).eval()


def _load_tokenizer(adapter: str | Path, base: str) -> Any:
    """That of the adapter, which training may have changed, or else that of the base."""
    from transformers import AutoTokenizer

    from sense_trl.generation.transformers_generator import load_tokenizer

    if not (Path(adapter) / "tokenizer_config.json").is_file():
        return load_tokenizer(base)
    try:
        return AutoTokenizer.from_pretrained(str(adapter))
    # What a broken file raises is up to the library that reads it.
    except Exception as error:
        raise ModelError(
            f"`adapter` {str(adapter)!r} has a tokenizer that cannot be read ({error}). Delete its "
            "files there to use the base's."
        ) from error


def _add_adapter(model: Any, adapter: str | Path, base: str) -> Any:
    try:
        return load_adapter(model, adapter).eval()
    # What does not match is up to peft and torch to say.
    except Exception as error:
        raise ModelError(
            f"`adapter` {str(adapter)!r} does not fit on the base {base!r} ({error}). Give the "
            "model that it was trained on as `base`."
        ) from error


def _get_distributions(model: Any, tokenizer: Any) -> list[Any]:
    """Next-token probabilities `[T, V]`, float32, for each of a few texts."""
    import torch

    with torch.inference_mode():
        inputs = [tokenizer(text, return_tensors="pt")["input_ids"] for text in _PROBES]
        return [model(input_ids=ids).logits[0].float().softmax(-1) for ids in inputs]


def _get_distance(first: list[Any], second: list[Any]) -> float:
    import torch

    distances = [(one - other).abs().sum(-1) / 2 for one, other in zip(first, second, strict=True)]
    return float(torch.cat(distances).mean())
