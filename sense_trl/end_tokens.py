"""`get_end_token_ids`: the tokens at which a model stops writing; `add_end_token` adds one."""

from __future__ import annotations

from typing import Any


def get_end_token_ids(model: Any, tokenizer: Any = None) -> list[int]:
    """Ids of the tokens that end an answer, without repetition; empty if there are none.

    Args:
        model: whose generation config names one or several, or none.
        tokenizer: whose `eos_token` counts as well, if given.
    """
    config = getattr(model, "generation_config", None)
    configured = getattr(config, "eos_token_id", None)
    named = [*configured] if isinstance(configured, list | tuple) else [configured]
    if tokenizer is not None:
        named.append(tokenizer.eos_token_id)
    return [int(token) for token in dict.fromkeys(named) if token is not None]


def add_end_token(model: Any, token_id: int) -> None:
    """Have generation stop at a token, too; what `save_pretrained` writes will say so.

    Args:
        model: whose generation config is changed; left alone if it has none.
    """
    config = getattr(model, "generation_config", None)
    if config is not None and token_id not in (known := get_end_token_ids(model)):
        config.eos_token_id = [token_id, *known] if known else token_id


def get_special_ids(tokenizer: Any) -> set[int]:
    """Ids of the tokens that are no text: ends, markers of a chat template, padding."""
    return {
        *tokenizer.all_special_ids,
        *(i for i, token in tokenizer.added_tokens_decoder.items() if token.special),
    }
