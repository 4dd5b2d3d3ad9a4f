"""Reading what models write around what they were asked for: `find_json`, `is_refusal`."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any, Final

# Brackets tried as the beginning of a value; an answer of nothing else must not take minutes.
_MAX_TRIES: Final = 1_000
# Characters read in vain, by tries that each go on to the end.
_MAX_TRIED_CHARS: Final = 1_000_000
_BRACKET: Final = re.compile(r"[{\[]")
_DECODER: Final = json.JSONDecoder(strict=False)
_TRAILING_COMMA: Final = re.compile(r",(\s*[}\]])")
_NOT_TEXT: Final = re.compile("[\x00\ud800-\udfff]")
_REFUSAL: Final = re.compile(
    r"\b(?:sorry|apologi[sz]e|(?:can(?:no|['\u2019])?t|cannot|unable to|not able to|won['\u2019]t)"
    r" (?:help|assist|do|provide|create|comply|generate|write)|as an ai)\b",
    re.I,
)


def find_json(text: str) -> Iterator[Any]:
    """The JSON objects and arrays in a text, outermost ones only, in their order.

    Prose, code fences and line breaks within strings do no harm; a comma before a closing bracket
    is passed over. What is cut off in the middle is not found, but the whole values within it are.
    Only the first 1,000 brackets that begin a value, or seem to, are looked at, and fewer where
    each takes in most of a long text.

    Example:
        >>> list(find_json('Here it is: ```json\\n[{"a": 1,}]``` and [2]. {"b": [3'))
        [[{'a': 1}], [2]]
    """
    text = _TRAILING_COMMA.sub(r"\1", text)
    position = num_tried_chars = 0
    for _ in range(_MAX_TRIES):
        start = _BRACKET.search(text, position)
        if start is None or num_tried_chars > _MAX_TRIED_CHARS:
            return
        try:
            value, position = _DECODER.raw_decode(text, start.start())
        except json.JSONDecodeError as error:
            num_tried_chars += error.pos - start.start()
            position = start.end()
        except (ValueError, RecursionError):
            num_tried_chars += _MAX_TRIED_CHARS // _MAX_TRIES
            position = start.end()
        else:
            yield value


def is_refusal(text: str) -> bool:
    """Whether an answer begins by saying that it will be none."""
    return _REFUSAL.search(text[:300]) is not None


def is_text(text: str) -> bool:
    """Whether a file can hold a text: no half of a surrogate pair, no NUL."""
    return _NOT_TEXT.search(text) is None
