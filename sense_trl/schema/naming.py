"""Identifiers as English: their words, and the singular and plural of the last one."""

from __future__ import annotations

import re
import unicodedata
from typing import Final

_SMALL: Final = r"(?:(?![A-Z])[^\W\d_])"
_WORDS: Final = re.compile(rf"[A-Z]+(?!{_SMALL})|[A-Z]?{_SMALL}+|\d+")
_IRREGULAR: Final = {
    "person": "people",
    "child": "children",
    "man": "men",
    "woman": "women",
    "foot": "feet",
    "staff": "staff",
    "series": "series",
    "species": "species",
    "aircraft": "aircraft",
    "news": "news",
}
_SINGULARS: Final = {many: one for one, many in _IRREGULAR.items()}
_HISSING: Final = ("s", "x", "z", "ch", "sh")
_CJK: Final = "\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\uac00-\ud7af"
# Scripts without spaces: each character is a word.
_WORD: Final = re.compile(rf"[{_CJK}]|[^\W_{_CJK}]+")

ColumnKey = tuple[str, str]
"""A table and a column of it, in lower case."""


def get_key(table: str, column: str) -> ColumnKey:
    """The name under which a column is looked up, however it is spelt."""
    return table.lower(), column.lower()


def get_words(identifier: str) -> list[str]:
    """The words of an identifier in lower case, split at underscores, spaces and humps.

    Example:
        >>> get_words("Song_release_year"), get_words("DepartmentID"), get_words("first name")
        (['song', 'release', 'year'], ['department', 'id'], ['first', 'name'])
    """
    return [word.lower() for word in _WORDS.findall(identifier)]


def singular(word: str) -> str:
    """The singular of an English noun, by rule; a word that is one stays.

    Example:
        >>> [singular(word) for word in ("singers", "cities", "campuses", "campus", "people")]
        ['singer', 'city', 'campus', 'campus', 'person']
    """
    if word in _SINGULARS:
        return _SINGULARS[word]
    if word.endswith("ies") and len(word) > 4:
        return word[:-3] + "y"
    if word.endswith("es") and word[:-2].endswith(("us", "ss", "x", "ch", "sh")):
        return word[:-2]
    if word.endswith("s") and not word.endswith(("ss", "us", "is")):
        return word[:-1]
    return word


def plural(word: str) -> str:
    """The plural of an English noun, by rule; a word that is one stays.

    Example:
        >>> [plural(word) for word in ("singer", "city", "campus", "singers", "person", "day")]
        ['singers', 'cities', 'campuses', 'singers', 'people', 'days']
    """
    if word in _SINGULARS or singular(word) != word:
        return word
    if word in _IRREGULAR:
        return _IRREGULAR[word]
    if word.endswith("y") and word[-2:-1] not in "aeiou":
        return word[:-1] + "ies"
    return word + ("es" if word.endswith(_HISSING) else "s")


def normalise(text: str) -> str:
    """The words of a text in lower case and without accents, one space between.

    Example:
        >>> normalise("  São_Paulo,  U.S."), normalise("北京 city")
        ('sao paulo u s', '北 京 city')
    """
    return " ".join(_WORD.findall(_fold(text)))


def _fold(text: str) -> str:
    if text.isascii():
        return text.lower()
    # What is taken apart may have another lower case than the whole.
    text = unicodedata.normalize("NFKD", unicodedata.normalize("NFKD", text.casefold()).casefold())
    if any(map(unicodedata.combining, text)):
        text = "".join(c for c in text if not unicodedata.combining(c))
    # Hangul is taken apart as well.
    return unicodedata.normalize("NFC", text)
