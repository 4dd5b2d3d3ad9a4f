"""Messages between a process and its workers: `encode`, `decode`, and what every worker may say.

They are MessagePack of a declared type, which holds data and no code, so what a worker sends that a
query has taken over is read as what it was declared to be, or refused. What MessagePack lacks has
extensions of its own: text that is not UTF-8, large integers, and values of databases.
"""

from __future__ import annotations

import datetime
import decimal
import functools
import uuid
from dataclasses import replace
from typing import Any, Final, TypeVar, cast

import msgspec

from sense_trl.database.engine import MapValue, QueryResult, TypedText

_T = TypeVar("_T")
_TEXT: Final = 1
_INTEGER: Final = 2
_VALUE: Final = 3
# No message of MessagePack begins so.
_HAS_EXTENSIONS: Final = b"\xc1"
_PLAIN: Final = frozenset({type(None), bool, int, float, str, bytes})


class Message(msgspec.Struct, frozen=True, array_like=True, tag=True):
    """Base of messages; the names of their classes tell them apart."""


class Failed(Message, frozen=True):
    """A `DatabaseError` in the worker."""

    error: str


def encode(message: object) -> bytes:
    """A message as bytes, for a pipe or a file; rows of a result need `pack_rows` before."""
    try:
        return msgspec.msgpack.encode(message)
    except (UnicodeEncodeError, OverflowError):
        known = (bytes, msgspec.msgpack.Ext)
        plain = msgspec.to_builtins(message, builtin_types=known)
        return _HAS_EXTENSIONS + msgspec.msgpack.encode(_extend(plain))


def decode(data: bytes, kind: type[_T]) -> _T:
    """The inverse of `encode`.

    Raises:
        ValueError: the bytes are no message of this kind.
    """
    try:
        if data.startswith(_HAS_EXTENSIONS):
            return msgspec.convert(_get_decoder(Any).decode(data[1:]), kind)
        found: _T = _get_decoder(cast(Any, kind)).decode(data)
        return found
    except (ArithmeticError, TypeError, LookupError, RecursionError) as error:
        raise ValueError(f"a message that nobody sends: {error}") from error


def pack_rows(result: QueryResult) -> QueryResult:
    """The result with the values for which MessagePack has no type as extensions."""
    # SQLite's values have all their types.
    if {type(value) for row in result.rows for value in row} <= _PLAIN:
        return result
    return replace(result, rows=tuple(tuple(map(_pack_value, row)) for row in result.rows))


@functools.cache
def _get_decoder(kind: Any) -> Any:
    return msgspec.msgpack.Decoder(kind, ext_hook=_read_extension)


def _extend(value: Any) -> Any:
    """The same with extensions for what MessagePack cannot hold."""
    match value:
        case bool():
            return value
        case int() if not -(2**63) <= value < 2**64:
            size = value.bit_length() // 8 + 1
            return msgspec.msgpack.Ext(_INTEGER, value.to_bytes(size, "big", signed=True))
        case str() if not value.isascii():
            data = value.encode("utf-8", "surrogatepass")
            return msgspec.msgpack.Ext(_TEXT, data)
        case list() | tuple():
            return [_extend(part) for part in value]
        case dict():
            return {key: _extend(part) for key, part in value.items()}
        case _:
            return value


def _pack_value(value: object) -> object:
    match value:
        case None | bool() | int() | float() | str() | bytes():
            return value
        case decimal.Decimal():
            parts: tuple[object, ...] = ("decimal", str(value))
        case datetime.datetime():
            parts = ("datetime", value.isoformat())
        case datetime.date():
            parts = ("date", value.isoformat())
        case datetime.time():
            parts = ("time", value.isoformat())
        case datetime.timedelta():
            parts = ("timedelta", value.days, value.seconds, value.microseconds)
        case uuid.UUID():
            parts = ("uuid", str(value))
        case list() | tuple():
            parts = (type(value).__name__, *map(_pack_value, value))
        case TypedText():
            parts = ("typed", value.type, value.text)
        case dict():
            kind = "map" if isinstance(value, MapValue) else "dict"
            pairs = ((_pack_value(key), _pack_value(part)) for key, part in value.items())
            parts = (kind, *pairs)
        case _:
            parts = ("text", str(value))
    return msgspec.msgpack.Ext(_VALUE, encode(parts))


def _read_extension(code: int, content: memoryview) -> object:
    data = bytes(content)
    if code == _TEXT:
        return data.decode("utf-8", "surrogatepass")
    if code == _INTEGER:
        return int.from_bytes(data, "big", signed=True)
    if code != _VALUE:
        raise ValueError(f"unknown extension {code}")
    kind, *parts = decode(data, list[Any])
    match kind:
        case "decimal":
            return decimal.Decimal(parts[0])
        case "datetime":
            return datetime.datetime.fromisoformat(parts[0])
        case "date":
            return datetime.date.fromisoformat(parts[0])
        case "time":
            return datetime.time.fromisoformat(parts[0])
        case "timedelta":
            return datetime.timedelta(*parts)
        case "uuid":
            return uuid.UUID(parts[0])
        case "list":
            return parts
        case "tuple":
            return tuple(parts)
        case "typed":
            return TypedText(*parts)
        case "map":
            return MapValue(parts)
        case "dict":
            return dict(parts)
        case "text":
            return parts[0]
    raise ValueError(f"unknown kind of value {kind!r}")
