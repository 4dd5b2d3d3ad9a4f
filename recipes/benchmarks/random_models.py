"""Models of the recipes' shapes with random weights, and texts of so many tokens, without a hub."""

from __future__ import annotations

import copy
import random
from typing import Any

import torch
from tokenizers import AddedToken, Tokenizer, models, pre_tokenizers
from transformers import (
    LlamaConfig,
    PreTrainedTokenizerFast,
    Qwen2Config,
)
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING

_NUM_WORDS = 1000
_TEMPLATE = (
    "{% for message in messages %}{{ message['content'] + ' ' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'w0 ' }}{% endif %}"
)

# Width, width of the MLP, layers, heads, heads of keys and values, rows of the vocabulary, whether
# the output layer is the embedding: of the models' config.json.
_QWEN = {
    "0.5B": (896, 4864, 24, 14, 2, 151936, True),
    "1.5B": (1536, 8960, 28, 12, 2, 151936, True),
    "3B": (2048, 11008, 36, 16, 2, 151936, True),
    "7B": (3584, 18944, 28, 28, 4, 152064, False),
    "14B": (5120, 13824, 48, 40, 8, 152064, False),
}
_CODELLAMA = {
    "7b": (4096, 11008, 32, 32, 32, 32016, False),
    "13b": (5120, 13824, 40, 40, 40, 32016, False),
}
_NAMES = (
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "vocab_size",
    "tie_word_embeddings",
)
_TOY = (64, 128, 2, 4, 2, 2 + _NUM_WORDS)

SHAPES: dict[str, tuple[Any, tuple[Any, ...]]] = {
    **{f"Qwen/Qwen2.5-Coder-{k}-Instruct": (Qwen2Config, v) for k, v in _QWEN.items()},
    **{f"codellama/CodeLlama-{k}-Instruct-hf": (LlamaConfig, v) for k, v in _CODELLAMA.items()},
}
"""Class of the config and shape by the model's name on the hub."""


def get_config(name: str, *, is_toy: bool = False) -> Any:
    """transformers' config of a model of the recipes, or of a tiny one of its kind."""
    config_class, shape = SHAPES[name]
    shape = (*_TOY, shape[-1]) if is_toy else shape
    return config_class(
        **dict(zip(_NAMES, shape, strict=True)),
        max_position_embeddings=32768,
        rope_parameters={"rope_type": "default", "rope_theta": 1_000_000.0},
        bos_token_id=None,
        pad_token_id=0,
        eos_token_id=1,
    )


def build_random_model(
    config: Any, device: str, dtype: torch.dtype, *, quantization: Any = None, attention: str = ""
) -> Any:
    """A model with normal weights (standard deviation 0.02), made where it is to be.

    Args:
        config: of the model.
        device: of the weights.
        dtype: of those that are not quantised.
        quantization: transformers' config of it.
        attention: implementation, `sdpa` by default.
    """
    config = copy.deepcopy(config)
    model_class = MODEL_FOR_CAUSAL_LM_MAPPING[type(config)]
    with torch.device("meta"):
        shapes = {name: tensor.shape for name, tensor in model_class(config).state_dict().items()}
    if config.tie_word_embeddings:
        del shapes["lm_head.weight"]
    torch.manual_seed(0)
    weights = {}
    for name, shape in shapes.items():
        weight = torch.ones(shape, dtype=dtype, device=device)
        weights[name] = weight if name.endswith("norm.weight") else weight.normal_(0, 0.02)
    return model_class.from_pretrained(
        None,
        config=config,
        state_dict=weights,
        dtype=dtype,
        quantization_config=quantization,
        attn_implementation=attention or "sdpa",
        device_map={"": 0 if device == "cuda" else device},
    )


def build_word_tokenizer() -> PreTrainedTokenizerFast:
    """A tokenizer of which every word of `get_text` is one token."""
    words = ["<pad>", "<eos>", *(f"w{i}" for i in range(_NUM_WORDS))]
    vocabulary = {word: index for index, word in enumerate(words)}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<pad>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    special = {"normalized": False, "special": True}
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=AddedToken("<pad>", **special),
        eos_token=AddedToken("<eos>", **special),
        chat_template=_TEMPLATE,
    )


def get_text(generator: random.Random, num_tokens: int) -> str:
    """Random words, each a token of `build_word_tokenizer`, with a blank behind each."""
    return "".join(f"w{generator.randrange(_NUM_WORDS)} " for _ in range(num_tokens))


def get_rows(
    stage: str, num_rows: int, prompt_tokens: int, answer_tokens: int, *, shared_tokens: int = 0
) -> list[dict[str, Any]]:
    """Rows of a training stage; an answer has `answer_tokens` with the token that ends it.

    Args:
        stage: `sft`, `dpo`, `kd` or `grpo`.
        num_rows: how many; each is on another database, or all are on one with `shared_tokens`.
        prompt_tokens, answer_tokens: lengths.
        shared_tokens: of the prompts, which begin alike.
    """
    generator = random.Random(0)
    schema = get_text(generator, shared_tokens)
    rows = []
    for number in range(num_rows):
        prompt = schema + get_text(generator, prompt_tokens - shared_tokens)
        row = {"prompt": prompt, "db_id": "one" if shared_tokens else f"db{number}"}
        names = {"dpo": ("chosen", "rejected"), "grpo": ()}.get(stage, ("completion",))
        # The trainers put an end behind it.
        rows.append(row | {name: get_text(generator, answer_tokens - 1) for name in names})
    return rows
