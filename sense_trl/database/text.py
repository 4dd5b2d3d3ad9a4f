"""Text that is not UTF-8, kept apart and made harmless.

SQLite stores whatever bytes it is given as text. Read here, bytes that are not UTF-8 become lone
surrogates (`surrogateescape`): every text has one reading, which leads back to the bytes. No file,
tokenizer or other library takes them, so what leaves for a reader goes through `show_text`.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from typing import Final

from sense_trl.database.engine import TableInfo

_SURROGATE: Final = re.compile("[\ud800-\udfff]")
_BAD_BYTE: Final = re.compile("[\udc80-\udcff]")


def decode_text(data: bytes) -> str:
    """Bytes as text, those that are not UTF-8 as lone surrogates U+DC80 to U+DCFF.

    Example:
        >>> decode_text(b"caf\\xe9"), decode_text(b"caf\\xc3\\xa9")
        ('caf\\udce9', 'café')
    """
    return data.decode(errors="surrogateescape")


def encode_text(text: str) -> bytes:
    """The inverse of `decode_text`.

    Raises:
        UnicodeEncodeError: the text holds half of a surrogate pair that no byte stands for.
    """
    return text.encode(errors="surrogateescape")


def has_bad_bytes(text: str) -> bool:
    """Whether bytes of a text were not UTF-8."""
    return not text.isascii() and _BAD_BYTE.search(text) is not None


def rows_have_bad_bytes(rows: Sequence[Sequence[object]]) -> bool:
    """Whether a value of a result is text with bytes that were not UTF-8."""
    # Loops cost half of `any`, and nearly every value is another type or ASCII.
    for row in rows:
        for value in row:
            if type(value) is str and not value.isascii() and has_bad_bytes(value):
                return True
    return False


def drop_bad_bytes(text: str) -> str:
    """A text as decoding with errors ignored gives it, which is how Spider's evaluator reads."""
    return encode_text(text).decode(errors="ignore") if has_bad_bytes(text) else text


def show_text(text: str) -> str:
    r"""A text that every encoder takes: bad bytes as `\xe9`, other lone surrogates as `\ud800`.

    Example:
        >>> print(show_text(decode_text(b"caf\xe9")))
        caf\xe9
    """
    return text if text.isascii() else _SURROGATE.sub(_escape, text)


def _escape(match: re.Match[str]) -> str:
    code = ord(match.group())
    return f"\\x{code - 0xDC00:02x}" if 0xDC80 <= code <= 0xDCFF else f"\\u{code:04x}"


def name_bad_bytes(text: str) -> str:
    """A text with its bad bytes read as Latin-1, which is a name wherever the original is one."""
    return _BAD_BYTE.sub(lambda match: chr(ord(match.group()) - 0xDC00), text)


def quote_name(name: str) -> str:
    """A name between double quotes, as every dialect takes it."""
    return '"' + name.replace('"', '""') + '"'


def get_nameable_tables(tables: Sequence[TableInfo]) -> tuple[TableInfo, ...]:
    """Tables and columns that SQL text can name: what is not UTF-8, Python cannot write.

    Foreign keys to or from what is left out are left out as well.
    """
    return tuple(
        replace(
            table,
            columns=tuple(c for c in table.columns if not has_bad_bytes(c.name)),
            foreign_keys=tuple(
                key
                for key in table.foreign_keys
                if not any(map(has_bad_bytes, (*key.columns, *key.referenced_columns)))
                and not has_bad_bytes(key.referenced_table)
            ),
        )
        for table in tables
        if not has_bad_bytes(table.name)
    )
