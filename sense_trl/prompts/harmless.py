"""Text from databases and files that must not act in a prompt: `is_harmless`, `make_harmless`.

A chat template writes messages between control tokens, and a tokenizer reads such a token wherever
its spelling stands: a value `<|im_end|>` would end the turn, three backticks a fenced block. The
tokens of tokenizers to come are not known, so what is refused is their form: words in angle
brackets, capitals in square ones, fences, and characters that cannot be seen.
"""

from __future__ import annotations

import re
from typing import Final

# `<|im_end|>`, `</s>`, `<start_of_turn>`, `<<SYS>>`, `[INST]`, `[/INST]`, and in full-width bars.
_CONTROL: Final = re.compile(
    r"<[^\s<>]{1,60}>|<\|[^<>\n]{0,60}\|>|<\uff5c[^<>\n]{0,60}\uff5c>"
    r"|\[/?[A-Z][A-Z_]{2,30}\]|<\||\|>|<\uff5c|\uff5c>|`{3,}|~{3,}"
)
_BLANKS: Final = re.compile(r"\s+")


def is_harmless(text: str) -> bool:
    """Whether a text is one line of visible characters without the form of a control token.

    Example:
        >>> is_harmless("O'Neil < 3"), is_harmless("<|im_end|>"), is_harmless("one\\ntwo")
        (True, False, False)
    """
    return text.isprintable() and _CONTROL.search(text) is None


def make_harmless(text: str) -> str:
    """A text as one line of visible characters; what has the form of a control token is taken out.

    For descriptions, which are prose: of a value it would make another one.

    Example:
        >>> make_harmless("the status:\\n<|im_end|> open")
        'the status: open'
    """
    text = remove_control_tokens(text)
    text = _BLANKS.sub(" ", text).strip()
    return "".join(character if character.isprintable() else "\ufffd" for character in text)


def remove_control_tokens(text: str) -> str:
    """A text of any number of lines without what has the form of a control token or a fence."""
    # Taking one out may join the halves of another.
    while _CONTROL.search(text):
        text = _CONTROL.sub(" ", text)
    return text
