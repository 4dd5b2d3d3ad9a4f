"""One step of preference training on a model of a few kilobytes: does training run here at all?

    python -m sense_trl.jobs.tiny_training

Made in a temporary folder, without network, by the code of the stage `dpo`: 4-bit weights where
bitsandbytes is installed, an adapter, and bfloat16 where it is multiplied in hardware. A process of
its own, because a broken native library ends the one that calls it.
"""

from __future__ import annotations

import importlib.util
import json
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from sense_trl.errors import ModelError

_PROMPT = "Give the name of each singer ?"
_CHOSEN = "SELECT name FROM singer"
_REJECTED = "SELECT age FROM singer WHERE id = 1"
_WORDS = sorted({*_PROMPT.split(), *_CHOSEN.split(), *_REJECTED.split()})


def run_tiny_training() -> dict[str, Any]:
    """Train one step and look at the adapter that it wrote.

    Returns:
        The bits of the weights, the type of the products, the device and the seconds.

    Raises:
        ModelError: the adapter was not changed, or is not finite.
    """
    import torch
    from datasets import Dataset
    from trl import ModelConfig

    from sense_trl.checkpoints.starting_model import load_starting_model
    from sense_trl.steps.cpu import multiplies_bfloat16
    from sense_trl.steps.training import train_model
    from sense_trl.trainers import SenseDPOConfig

    started = time.monotonic()
    has_gpu = torch.cuda.is_available()
    has_4_bits = importlib.util.find_spec("bitsandbytes") is not None
    dtype = "bfloat16" if multiplies_bfloat16() else "float32"
    if has_gpu and dtype == "float32":
        dtype = "float16"
    with tempfile.TemporaryDirectory() as folder:
        model = _save_tiny_model(Path(folder) / "model")
        arguments = ModelConfig(
            model_name_or_path=model,
            dtype=dtype,
            load_in_4bit=has_4_bits,
            use_bnb_nested_quant=has_4_bits,
            use_peft=True,
            lora_target_modules=["all-linear"],
        )
        config = SenseDPOConfig(
            output_dir=str(Path(folder) / "out"),
            max_steps=1,
            learning_rate=1e-3,
            per_device_train_batch_size=2,
            use_cpu=not has_gpu,
            bf16=dtype == "bfloat16",
            fp16=dtype == "float16",
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
        )
        pair = {"prompt": _PROMPT, "chosen": _CHOSEN, "rejected": _REJECTED}
        start = load_starting_model(arguments, use_cpu=not has_gpu)
        train_model(start, Dataset.from_list([pair, pair]), config)
        _check_adapter(Path(folder) / "out")
    return {
        "bits": 4 if has_4_bits else 32 if dtype == "float32" else 16,
        "dtype": dtype,
        "device": "cuda" if has_gpu else "cpu",
        "seconds": round(time.monotonic() - started, 1),
    }


def _save_tiny_model(folder: Path) -> str:
    """A random two-layer model that knows a handful of words."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    tokens = ["<pad>", "<eos>", "<unk>", *_WORDS]
    vocabulary = {token: index for index, token in enumerate(tokens)}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", eos_token="<eos>", unk_token="<unk>"
    ).save_pretrained(folder)
    config = LlamaConfig(
        vocab_size=len(vocabulary),
        # A multiple of 64, the block size of 4-bit weights.
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=64,
        bos_token_id=None,
        eos_token_id=vocabulary["<eos>"],
        pad_token_id=vocabulary["<pad>"],
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    return str(folder)


def _check_adapter(output: Path) -> None:
    from safetensors.torch import load_file

    (file,) = output.rglob("adapter_model.safetensors")
    weights = load_file(file)
    # They start at zero.
    trained = [weight for name, weight in weights.items() if "lora_B" in name]
    if not all(weight.isfinite().all() for weight in weights.values()):
        raise ModelError("A step of training gave adapter weights that are not finite.")
    if not any(weight.any() for weight in trained):
        raise ModelError("A step of training changed no weight of the adapter.")


if __name__ == "__main__":
    sys.stdout.write(json.dumps(run_tiny_training()) + "\n")
