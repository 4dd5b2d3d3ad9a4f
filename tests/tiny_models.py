"""Tiny tokenizers and models built offline, for the tests of the tensor half.

Importing this module pins the environment that such tests need: no network, no telemetry, no
tokenizer threads, one torch thread. Llama and Qwen2 differ in the biases of their attention
projections.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("TQDM_DISABLE", "1")

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    AutoModelForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen2ForCausalLM,
)
from trl.trainer.utils import add_fused_lm_head

# With so little work per operation a second thread only waits, for seconds on a busy machine.
torch.set_num_threads(1)

ARCHITECTURES = ("llama", "qwen2")
VOCAB_SIZE = 384
# A multiple of 64, the block size of 4-bit weights.
HIDDEN_SIZE = 64

OPTIONS: dict[str, Any] = {
    "per_device_train_batch_size": 4,
    "max_steps": 2,
    "learning_rate": 1e-3,
    "lr_scheduler_type": "constant",
    "logging_steps": 1,
    "use_cpu": True,
    "bf16": False,
    "gradient_checkpointing": False,
    "report_to": "none",
    "disable_tqdm": True,
    "save_strategy": "no",
    "dataloader_pin_memory": False,
}
"""Training arguments of a short run."""

CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n"
    "{% if message['role'] == 'assistant' %}{% generation %}{{ message['content'] }}<|im_end|>"
    "{% endgeneration %}{% else %}{{ message['content'] }}<|im_end|>{% endif %}\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)

_CORPUS = [
    "SELECT name, age FROM singer WHERE country = 'France' ORDER BY age DESC LIMIT 1",
    "SELECT COUNT(*) FROM concert GROUP BY stadium_id HAVING COUNT(*) > 1",
    "CREATE TABLE singer (singer_id INTEGER PRIMARY KEY, name TEXT, age INTEGER, country TEXT)",
    "How many singers are there in each country? What is the average age?",
]


def build_tiny_tokenizer() -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer of at most `VOCAB_SIZE` tokens, with a ChatML template."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.train_from_iterator(
        _CORPUS,
        trainers.BpeTrainer(
            vocab_size=VOCAB_SIZE,
            special_tokens=["<|endoftext|>", "<|im_start|>", "<|im_end|>"],
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        ),
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        chat_template=CHAT_TEMPLATE,
    )


def build_tiny_model(architecture: str, *, seed: int = 0) -> PreTrainedModel:
    """A two-layer float32 model with random weights, the same ones for the same seed."""
    config_class, model_class = {
        "llama": (LlamaConfig, LlamaForCausalLM),
        "qwen2": (Qwen2Config, Qwen2ForCausalLM),
    }[architecture]
    config = config_class(
        vocab_size=VOCAB_SIZE,
        hidden_size=HIDDEN_SIZE,
        intermediate_size=2 * HIDDEN_SIZE,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=512,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=2,
        pad_token_id=0,
    )
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return model_class(config)


def save_tiny_model(folder: Path, architecture: str, *, seed: int = 0) -> str:
    """Write model and tokenizer to `folder / architecture`; returns that path for `model=`."""
    path = folder / architecture
    build_tiny_model(architecture, seed=seed).save_pretrained(path)
    build_tiny_tokenizer().save_pretrained(path)
    return str(path)


SMALL: dict[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
}
"""Options of a small model of most kinds."""


def build_small_model(config_class: Any, **options: Any) -> PreTrainedModel:
    """A small model in float32, whatever its kind, with TRL's fused head."""
    config = config_class(**{"vocab_size": VOCAB_SIZE, "pad_token_id": 0, **options})
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    # Weights large enough for attention to matter.
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter *= 3
    add_fused_lm_head(model)
    return model


# Preference pairs of text-to-SQL, of different lengths.
PAIRS = [
    {
        "question_id": f"q{i}",
        "prompt": f"CREATE TABLE {table} (id INTEGER, name TEXT, age INTEGER)\nHow many?\n",
        "chosen": f"SELECT COUNT(*) FROM {table}" + (" WHERE age > 20" if i % 2 else ""),
        "rejected": f"SELECT name FROM {table} ORDER BY age" + (" LIMIT 1" if i % 3 else ""),
    }
    for i, table in enumerate(
        ["singer", "concert", "stadium", "country", "album", "song", "band", "city"]
    )
]

# Two questions about each of several schemas.
QUESTIONS = [
    {
        "question_id": f"q{i}-{j}",
        "db_id": pair["prompt"].split()[2],
        "prompt": pair["prompt"].replace("How many?", question),
        "completion": pair[side],
    }
    for i, pair in enumerate(PAIRS)
    for j, (question, side) in enumerate([("How many?", "chosen"), ("Who is old?", "rejected")])
]


def get_weights(trainer: Any) -> dict[str, torch.Tensor]:
    """Copies of the trainable parameters by name."""
    return {
        name: parameter.detach().clone()
        for name, parameter in trainer.model.named_parameters()
        if parameter.requires_grad
    }


def assert_same_weights(first: Any, second: Any, **tolerance: float) -> None:
    """Equal bit for bit, unless `rtol` and `atol` are given."""
    weights, others = get_weights(first), get_weights(second)
    assert weights.keys() == others.keys()
    assert weights
    for name in weights:
        if tolerance:
            torch.testing.assert_close(weights[name], others[name], **tolerance)
        else:
            assert torch.equal(weights[name], others[name]), name


def get_history(trainer: Any, key: str) -> list[float]:
    """The logged values of one metric, in order."""
    return [entry[key] for entry in trainer.state.log_history if key in entry]


def get_comparable_logs(trainer: Any) -> list[dict[str, float]]:
    """All logged values but those that measure time."""
    timing = ("runtime", "per_second", "total_flos")
    return [
        {k: v for k, v in entry.items() if not any(t in k for t in timing)}
        for entry in trainer.state.log_history
    ]
