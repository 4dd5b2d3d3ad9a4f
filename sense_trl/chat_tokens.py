"""`apply_chat_template`: prompts in which no text from data becomes a control token.

A table, a column, a value, a question or an answer may hold `<|im_end|>`. Tokenised with the chat
template around it, that would be the real end of a message. Training, sampling, evaluation and
`ask` all make their token ids here.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator, Sequence
from typing import Any, Final

from sense_trl.errors import InputError

# What such tokens look like in the families of models, whether or not a tokenizer marks them as
# special: Qwen's `<|fim_prefix|>` is not.
_PIPED: Final = re.compile("<[|\uff5c][^\\s<>]{1,60}[|\uff5c]>")
_LOOKS: Final = re.compile(
    rf"{_PIPED.pattern}|</?s>|<(?:bos|eos|pad|unk)>|<(?:start|end)_of_turn>|<</?SYS>>"
    r"|\[/?(?:INST|SYSTEM_PROMPT)\]|<\|(?:turn|channel|tool\w*)>|<(?:turn|channel|tool\w*)\|>"
)
# Tokens of one control string as text.
_MAX_PARTS: Final = 64
_SUPPORTED_FROM: Final = "5.23"


def apply_chat_template(tokenizer: Any, conversation: Any, **options: Any) -> Any:
    """`tokenizer.apply_chat_template`, with control strings in messages encoded as ordinary text.

    Without such strings the ids are those of the tokenizer's own method. With them only the control
    tokens that the template writes itself are real ones, and the text is the same: decoded, the ids
    give what was put in. Control strings are the special tokens of the tokenizer, other added
    tokens that the template holds, and those that look like `<|...|>`. What a template writes as
    ordinary text (`### Instruction:`, the `[INST]` of a tokenizer that has no such token) cannot be
    told from the same text in data.

    Args:
        tokenizer: a tokenizer or a processor of `transformers`.
        conversation: messages, or a list of conversations.
        **options: of the tokenizer's method.

    Raises:
        InputError: a control string cannot be encoded as text: with `return_assistant_tokens_mask`,
            by a tokenizer that makes the token of plain text too, or by an older `transformers`.
    """
    is_text = options.get("tokenize") is False
    found = () if is_text else find_control_strings(tokenizer, conversation, **options)
    if not found:
        return tokenizer.apply_chat_template(conversation, **options)
    known = inspect.signature(tokenizer.apply_chat_template).parameters
    if "sanitize_control_tokens" not in known:
        raise InputError(
            f"Messages hold {found[0]!r}, a control token of the tokenizer, which this version of "
            f"transformers cannot encode as text. Install transformers {_SUPPORTED_FROM} or newer, "
            "or take it out of the data."
        )
    owner = getattr(tokenizer, "tokenizer", tokenizer)
    before = owner.chat_control_tokens
    owner.chat_control_tokens = list(_get_control_strings(owner, options.get("chat_template")))
    try:
        return tokenizer.apply_chat_template(conversation, sanitize_control_tokens=True, **options)
    except ValueError as error:
        raise InputError(
            f"Messages hold {found[0]!r}, a control token of the tokenizer, which cannot be "
            f"encoded as text here ({error}). Leave these rows out, or take it out of the data."
        ) from error
    finally:
        owner.chat_control_tokens = before


def find_control_strings(tokenizer: Any, conversation: Any, **options: Any) -> tuple[str, ...]:
    """Strings in messages that the tokenizer would take for its control tokens, in order.

    Args:
        tokenizer: a tokenizer or a processor of `transformers`.
        conversation: messages.
        **options: of `apply_chat_template`; tools and documents are looked at, too.
    """
    owner = getattr(tokenizer, "tokenizer", tokenizer)
    strings = _get_control_strings(owner, options.get("chat_template"))
    data = [conversation, options.get("tools"), options.get("documents")]
    text = "\0".join(_find_texts(data))
    return tuple(sorted((s for s in strings if s in text), key=text.index))


def align_offsets(
    tokenizer: Any, text: str, encoded: Any, ids: Sequence[int]
) -> list[tuple[int, int]] | None:
    """Characters that each token of `apply_chat_template` stands for.

    Args:
        tokenizer: the tokenizer.
        text: what the template gives.
        encoded: `tokenizer(text, return_offsets_mapping=True)`, in which control strings of data
            are single tokens.
        ids: those of `apply_chat_template`, in which they are several.

    Returns:
        `[start, end)` in `text` for each of `ids`, for the tokens of a control string the whole
        string; `None` where the ids are of another text.
    """
    offsets: list[tuple[int, int]] = []
    for token, (start, end) in zip(encoded["input_ids"], encoded["offset_mapping"], strict=True):
        place, width = len(offsets), 1
        if ids[place : place + 1] != [token]:
            rest, wanted = ids[place : place + _MAX_PARTS], text[start:end]
            parts = range(2, len(rest) + 1)
            width = next((n for n in parts if tokenizer.decode(rest[:n]) == wanted), 0)
            if not width:
                return None
        offsets += [(start, end)] * width
    return offsets if len(offsets) == len(ids) else None


def looks_like_control(conversation: Any) -> str | None:
    """The first string in messages that is a control token in some family of models."""
    found = _LOOKS.search("\0".join(_find_texts(conversation)))
    return None if found is None else found.group()


class ChatTokenizer:
    """A tokenizer for the preparation of datasets, whose chat template is applied as above.

    TRL tokenises rows with the tokenizer that it is given.

    Args:
        tokenizer: what it stands for; everything else is asked of it.
    """

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer = tokenizer

    @classmethod
    def protect(cls, tokenizer: Any) -> Any:
        """Such a tokenizer; a processor of images or sound stays itself."""
        return tokenizer if hasattr(tokenizer, "tokenizer") else cls(tokenizer)

    def apply_chat_template(self, conversation: Any, **options: Any) -> Any:
        """See `apply_chat_template`."""
        return apply_chat_template(self.tokenizer, conversation, **options)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self.tokenizer(*args, **kwargs)

    def __getattr__(self, name: str) -> Any:
        # A copy asks for its state before it has any.
        if name == "tokenizer" or name.startswith("__"):
            raise AttributeError(name)
        return getattr(self.tokenizer, name)


def _get_control_strings(tokenizer: Any, chat_template: str | None) -> tuple[str, ...]:
    template = chat_template or getattr(tokenizer, "chat_template", None) or ""
    written = template if isinstance(template, str) else "\0".join(template.values())
    return tuple(
        token.content
        for token in getattr(tokenizer, "added_tokens_decoder", {}).values()
        if token.special
        or _PIPED.fullmatch(token.content)
        # A word or a line end is text, also where a template writes it.
        or (token.content in written and not (token.content.isalnum() or token.content.isspace()))
    )


def _find_texts(data: Any) -> Iterator[str]:
    if isinstance(data, str):
        yield data
    elif isinstance(data, dict):
        yield from (text for value in data.values() for text in _find_texts(value))
    elif isinstance(data, list | tuple):
        yield from (text for value in data for text in _find_texts(value))
