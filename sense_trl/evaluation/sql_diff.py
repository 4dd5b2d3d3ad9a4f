"""`mark_differences`: where two queries differ, word by word, for showing side by side."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable
from typing import Final

# A string or quoted name, a word or number, an operator. Blanks and semicolons are none.
_WORD: Final = re.compile(
    r"'(?:[^']|'')*'|\"[^\"]*\"|`[^`]*`|\w+(?:\.\d+)?|[<>!=]=|<>|\|\||[^\s\w;]"
)
# Texts that are longer are not compared: the time grows with the product of both lengths.
_MAX_WORDS: Final = 300
_MAX_CHARS: Final = 100_000


def mark_differences(gold_sql: str, predicted_sql: str) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Split both texts into what they share and what only one of them has.

    Upper and lower case count as equal outside of quotes. This compares words, not meaning: an
    alias or an operand on the other side of `=` is a difference.

    Returns:
        Gold and prediction, each as pieces that join to the whole text and are by turns shared
        (first) and marked. Texts of more than 300 words, or 100,000 characters, come back as one
        shared piece.

    Example:
        >>> mark_differences("SELECT a FROM t", "select b, a from t;")
        (('SELECT a FROM t',), ('select ', 'b,', ' a from t;'))
    """
    if max(len(gold_sql), len(predicted_sql)) > _MAX_CHARS:
        return (gold_sql,), (predicted_sql,)
    gold, predicted = list(_WORD.finditer(gold_sql)), list(_WORD.finditer(predicted_sql))
    if max(len(gold), len(predicted)) > _MAX_WORDS:
        return (gold_sql,), (predicted_sql,)
    matcher = difflib.SequenceMatcher(
        None, [*map(_key, gold)], [*map(_key, predicted)], autojunk=False
    )
    differences = [codes for codes in matcher.get_opcodes() if codes[0] != "equal"]
    return (
        _pieces(gold_sql, (gold[i:j] for _, i, j, _, _ in differences)),
        _pieces(predicted_sql, (predicted[i:j] for _, _, _, i, j in differences)),
    )


def _key(word: re.Match[str]) -> str:
    text = word.group()
    return text if text[0] in "'\"`" else text.lower()


def _pieces(text: str, marked: Iterable[list[re.Match[str]]]) -> tuple[str, ...]:
    pieces, end = [], 0
    for words in marked:
        if words:
            start = words[0].start()
            pieces += [text[end:start], text[start : words[-1].end()]]
            end = words[-1].end()
    if end < len(text) or not pieces:
        pieces.append(text[end:])
    return tuple(pieces)
