"""Reading DuckDB's values without loss: `get_reader`.

DuckDB's Python objects cut nanoseconds, make 9999-12-31 of `infinity`, give bit strings and far
dates as if they were text and maps as if they were structs, and need `pytz` for time zones. What
Python cannot hold is therefore read as DuckDB's own text, and made a value here.
"""

from __future__ import annotations

import datetime
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

import duckdb

from sense_trl.database.engine import MapValue, TypedText
from sense_trl.database.text import quote_name

# Python's own digits of a second, further ones, and an offset.
_TIMESTAMP: Final = re.compile(
    r"(?P<whole>\d{4}-\d\d-\d\d \d\d:\d\d:\d\d(?:\.\d{1,6})?)(?P<rest>\d*)(?P<zone>[+-][\d:]+)?"
)
_TIME: Final = re.compile(
    r"(?P<whole>\d\d:\d\d:\d\d(?:\.\d{1,6})?)(?P<rest>\d*)(?P<zone>[+-][\d:]+)?"
)
_ITEM: Final = re.compile(r"\bitem(\d+)")
_DATE: Final = re.compile(r"\d{4}-\d\d-\d\d")
# Python refuses to read longer integers.
_MAX_DIGITS: Final = 4_000
# What DuckDB gives for infinity, which is a day that there is as well.
_EDGES: Final = frozenset(
    {
        datetime.date.min,
        datetime.date.max,
        datetime.datetime.min,
        datetime.datetime.max,
    }
)


@dataclass(frozen=True, slots=True)
class ValueReader:
    """Reads the values of one type: SQL to select them, and a function to convert them.

    Attributes:
        select: SQL that gives what `convert` takes, for the SQL that gives the value; `None` where
            the value itself is given.
        convert: makes the value of what DuckDB gives for it (never called for NULL); `None` where
            that is the value.
        may_be_infinite: whether DuckDB gives a day that there is for infinity.
    """

    select: Callable[[str], str] | None = None
    convert: Callable[[Any], object] | None = None
    may_be_infinite: bool = False


def get_reader(type_: Any, *, exactly: bool = False) -> ValueReader:
    """The reader of a column's type.

    Args:
        type_: a `DuckDBPyType`.
        exactly: whether dates and times are read as text, too, as they always are inside lists,
            structs and maps. It takes longer, and only those for which `is_infinite_day` holds
            need it.
    """
    kind = str(type_.id)
    if kind in ("date", "time", "timestamp", "timestamp_s", "timestamp_ms"):
        parse = _PARSERS["timestamp" if kind.startswith("timestamp") else kind]
        if exactly:
            return _as_text(parse)
        return ValueReader(None, _with_far_values(parse), may_be_infinite=kind != "time")
    if "timestamp" in kind:
        return _as_text(_parse_instant if "z" in kind or "tz" in kind else _parse_timestamp)
    if "time" in kind:
        return _as_text(_PARSERS["time"])
    if kind == "bit":
        return _as_text(lambda text: TypedText("BIT", text))
    if kind in ("bignum", "varint"):
        return _as_text(_parse_integer)
    if kind in ("list", "array"):
        return _get_list_reader(get_reader(type_.children[0][1], exactly=True))
    if kind in ("struct", "tuple"):
        return _get_struct_reader(type_, named=kind == "struct")
    if kind == "map":
        return _get_map_reader(type_)
    if kind == "union" and any(get_reader(member).select for _, member in type_.children[1:]):
        name = str(type_)
        return _as_text(lambda text: TypedText(name, text))
    return ValueReader()


def is_infinite_day(value: object) -> bool:
    """Whether a date or timestamp is what DuckDB gives for infinity, or that day itself."""
    return isinstance(value, datetime.date) and value in _EDGES


def select_with(readers: list[ValueReader], query: str) -> str:
    """The same rows as `query` gives, each column as its reader takes it."""
    columns = ", ".join(
        f"#{number}" if reader.select is None else reader.select(f"#{number}")
        for number, reader in enumerate(readers, start=1)
    )
    return f"SELECT {columns} FROM (\n{_without_semicolon(query)}\n)"


def _without_semicolon(query: str) -> str:
    """The statement in front of its semicolon, which comments may follow."""
    # Positions count bytes.
    data = query.encode()
    for position, kind in reversed(duckdb.tokenize(query)):
        if kind == duckdb.token_type.operator and data[position : position + 1] == b";":
            data = data[:position]
        elif kind != duckdb.token_type.comment:
            break
    return data.decode()


# ---------------------------------------------------------------------- single values


def _as_text(convert: Callable[[str], object]) -> ValueReader:
    return ValueReader(lambda value: f"{value}::VARCHAR", convert)


def _with_far_values(parse: Callable[[str], object]) -> Callable[[Any], object]:
    """Dates that Python has not, and 24:00, come as text among others."""
    return lambda value: parse(value) if isinstance(value, str) else value


def _parse_date(text: str) -> object:
    return datetime.date.fromisoformat(text) if _DATE.fullmatch(text) else TypedText("DATE", text)


def _parse_timestamp(text: str) -> object:
    found = _TIMESTAMP.fullmatch(text)
    if found is None or found["rest"].strip("0") or found["zone"]:
        return TypedText("TIMESTAMP", text)
    return datetime.datetime.fromisoformat(found["whole"])


def _parse_instant(text: str) -> object:
    found = _TIMESTAMP.fullmatch(text)
    if found is None or found["rest"].strip("0") or not found["zone"]:
        return TypedText("TIMESTAMP WITH TIME ZONE", text)
    return datetime.datetime.fromisoformat(found["whole"] + found["zone"])


def _parse_time(text: str) -> object:
    found = _TIME.fullmatch(text)
    if found is None or found["rest"].strip("0") or found["whole"].startswith("24"):
        return TypedText("TIME", text)
    return datetime.time.fromisoformat(found["whole"] + (found["zone"] or ""))


def _parse_integer(text: str) -> object:
    return int(text) if len(text) <= _MAX_DIGITS else TypedText("BIGNUM", text)


_PARSERS: Final = {"date": _parse_date, "time": _parse_time, "timestamp": _parse_timestamp}


# ---------------------------------------------------------------------- values of values


def _get_list_reader(item: ValueReader) -> ValueReader:
    if item == ValueReader():
        return item
    convert = _or_null(item)
    return ValueReader(
        None
        if item.select is None
        else lambda value: _transform(value, lambda name: _apply(item, name)),
        lambda values: [convert(value) for value in values],
    )


def _get_struct_reader(type_: Any, *, named: bool) -> ValueReader:
    names = [name for name, _ in type_.children]
    readers = [get_reader(child, exactly=True) for _, child in type_.children]
    if all(reader == ValueReader() for reader in readers):
        return ValueReader()

    def select(value: str) -> str:
        if named:
            fields = ", ".join(
                f"{quote_name(name)} := "
                f"{_apply(reader, f'struct_extract({value}, {_literal(name)})')}"
                for name, reader in zip(names, readers, strict=True)
            )
            made = f"struct_pack({fields})"
        else:
            fields = ", ".join(
                _apply(reader, f"struct_extract_at({value}, {number})")
                for number, reader in enumerate(readers, start=1)
            )
            made = f"row({fields})"
        return f"CASE WHEN {value} IS NULL THEN NULL ELSE {made} END"

    converters = [_or_null(reader) for reader in readers]

    def convert(value: Any) -> object:
        if named:
            return {
                name: change(value[name]) for name, change in zip(names, converters, strict=True)
            }
        return tuple(change(item) for change, item in zip(converters, value, strict=True))

    is_native = all(reader.select is None for reader in readers)
    return ValueReader(None if is_native else select, convert)


def _get_map_reader(type_: Any) -> ValueReader:
    key_type, value_type = (child for _, child in type_.children)
    key, value = (get_reader(child, exactly=True) for child in (key_type, value_type))
    # Python's dict takes no lists as keys, and DuckDB then gives one of keys and of values.
    has_plain_keys = str(key_type.id) not in ("list", "array", "struct", "tuple", "map", "union")
    change_key, change_value = _or_null(key), _or_null(value)
    if has_plain_keys and key == ValueReader() and value.select is None:
        return ValueReader(
            None, lambda found: MapValue({k: change_value(v) for k, v in found.items()})
        )

    def select(entry: str) -> str:
        parts = _apply(key, f"{entry}.key"), _apply(value, f"{entry}.value")
        return "struct_pack(k := {}, v := {})".format(*parts)

    return ValueReader(
        lambda found: _transform(f"map_entries({found})", select),
        lambda entries: MapValue(
            {_freeze(change_key(entry["k"])): change_value(entry["v"]) for entry in entries}
        ),
    )


def _apply(reader: ValueReader, value: str) -> str:
    return value if reader.select is None else reader.select(value)


def _or_null(reader: ValueReader) -> Callable[[Any], object]:
    convert = reader.convert
    if convert is None:
        return lambda value: value
    return lambda value: None if value is None else convert(value)


def _transform(value: str, make: Callable[[str], str]) -> str:
    # One within another needs a name of its own.
    name = f"item{max(map(int, _ITEM.findall(value)), default=0) + 1}"
    return f"list_transform({value}, lambda {name}: {make(name)})"


def _freeze(value: object) -> object:
    """A key that Python's dict takes."""
    if isinstance(value, (list, tuple)):
        return tuple(map(_freeze, value))
    if isinstance(value, dict):
        return tuple((name, _freeze(item)) for name, item in value.items())
    return value


def _literal(text: str) -> str:
    return "'" + text.replace("'", "''") + "'"
