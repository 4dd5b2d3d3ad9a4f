"""A student's tokens by their part in KID: text, ends of text, the mask."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import Any

import numpy as np

from sense_trl.end_tokens import get_end_token_ids, get_special_ids
from sense_trl.errors import InputError
from sense_trl.trainers.rows.checks import refuse_rows

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class StudentTokens:
    """The tokens of a student by what they are to KID.

    Attributes:
        special_ids: those that are no text, neither masked nor predicted.
        end_ids: those that end an answer.
        mask_id: what stands in for a masked token.
        num_tokens: one more than the largest id; not their number, since some tokenizers leave ids
            out.
    """

    special_ids: frozenset[int]
    end_ids: frozenset[int]
    mask_id: int
    num_tokens: int

    @classmethod
    def read(cls, model: Any, tokenizer: Any, mask_token: str | None) -> StudentTokens:
        """Read them off a model that generates, and its tokenizer.

        Args:
            mask_token: None for the first that the tokenizer has of its padding, end and unknown
                tokens, which the log names.

        Raises:
            InputError: `mask_token` is no token.
        """
        special_ids = {*get_special_ids(tokenizer), *get_end_token_ids(model, tokenizer)}
        return cls(
            special_ids=frozenset(special_ids),
            # Text may hold the unknown token; any other special one ends it.
            end_ids=frozenset(special_ids - {tokenizer.unk_token_id}),
            mask_id=_get_mask_id(tokenizer, mask_token),
            num_tokens=max(tokenizer.get_vocab().values()) + 1,
        )


def refuse_unknown_answers(dataset: Any, tokenizer: Any) -> Any:
    """Refuse rows of which the prompt is trained as well, wholly or by its end.

    Args:
        dataset: with `input_ids` and `labels`; returned as it is.
        tokenizer: that made them.

    Raises:
        InputError: counts such rows and names the first.
    """
    # An answer may hold nothing but its end.
    special_ids = get_special_ids(tokenizer) - {tokenizer.unk_token_id, tokenizer.eos_token_id}

    def begins_in_prompt(ids: np.ndarray, labels: np.ndarray) -> bool:
        is_trained = labels != -100
        return bool(is_trained[0] or int(ids[is_trained.argmax()]) in special_ids)

    return refuse_rows(
        dataset,
        ("input_ids", "labels"),
        begins_in_prompt,
        lambda found: (
            f"Tokens in front of the answer are trained in {found}, so that nothing says where "
            "the answer begins, and `imperfect_data` and `on_policy_fraction` would put the "
            "prompt and the schema in doubt. Use the columns `prompt` and `completion` without "
            "`completion_only_loss=False`, or `messages` with `assistant_only_loss=True`, and "
            "a chat template that ends a prompt with what begins an answer "
            "(`add_generation_prompt`). With `imperfect_data=False` and `on_policy_fraction=0` "
            "all trained tokens are distilled as they are."
        ),
        noun="rows",
    )


def _get_mask_id(tokenizer: Any, mask_token: str | None) -> int:
    if mask_token is None:
        candidates = (tokenizer.pad_token, tokenizer.eos_token, tokenizer.unk_token)
        # TRL needs a padding token too, so there is always one.
        mask_token = next(token for token in candidates if token is not None)
    if mask_token not in tokenizer.get_vocab():
        raise InputError(
            f"`mask_token` is {mask_token!r}, which is no token of the tokenizer. Name one, e.g. "
            f"{tokenizer.pad_token!r}, or leave the option out."
        )
    logger.info("Answers are masked with the token %r.", mask_token)
    mask_id: int = tokenizer.convert_tokens_to_ids(mask_token)
    return mask_id
