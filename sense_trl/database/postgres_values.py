"""Reading PostgreSQL's values without loss: `register_loaders`.

psycopg's Python objects refuse `infinity`, days before Christ and 24:00, take a year for 365 days
where PostgreSQL takes it for 12 months of 30, and are no hashable values for JSON, ranges and
records. What Python cannot hold is a `TypedText` here.
"""

from __future__ import annotations

import datetime
import json
import re
from decimal import Decimal
from typing import Any, Final

import psycopg
from psycopg.abc import Buffer, Loader
from psycopg.adapt import Loader as BaseLoader
from psycopg.types.array import ArrayLoader

from sense_trl.database.engine import TypedText

# Types that Python has no type for, by the name under which they are compared: what is true of a
# range of integers is true of one of longer integers.
_TYPED: Final = {
    **dict.fromkeys(("bit", "varbit"), "BIT"),
    **dict.fromkeys(("int4range", "int8range", "numrange"), "RANGE"),
    **dict.fromkeys(("daterange", "tsrange", "tstzrange"), "RANGE OF TIMES"),
    **dict.fromkeys(("int4multirange", "int8multirange", "nummultirange"), "MULTIRANGE"),
    **dict.fromkeys(("datemultirange", "tsmultirange", "tstzmultirange"), "MULTIRANGE OF TIMES"),
    **dict.fromkeys(("inet", "cidr"), "INET"),
    **dict.fromkeys(("macaddr", "macaddr8"), "MACADDR"),
    **{
        name: name.upper()
        for name in (
            "box", "circle", "line", "lseg", "path", "point", "polygon", "record", "tsvector",
            "tsquery", "jsonpath", "xml", "pg_lsn", "tid", "aclitem", "gtsvector", "txid_snapshot",
        )
    },
}  # fmt: skip
_TIMES: Final = {
    "date": "DATE",
    "time": "TIME",
    "timetz": "TIME",
    "timestamp": "TIMESTAMP",
    "timestamptz": "TIMESTAMP WITH TIME ZONE",
}
_MONEY: Final = re.compile(r"-?\$[\d,]+(?:\.\d+)?")
_NUMBER: Final = re.compile(r"(-?)(\d+)(?:\.(\d+))?(?:[eE]([+-]?\d+))?")
# As IntervalStyle 'postgres' writes it.
_INTERVAL: Final = re.compile(
    r"(?:(?P<years>-?\d+) years? ?)?(?:(?P<months>[+-]?\d+) mons? ?)?"
    r"(?:(?P<days>[+-]?\d+) days? ?)?"
    r"(?:(?P<sign>[+-])?(?P<hours>\d+):(?P<minutes>\d\d):(?P<seconds>\d\d)(?:\.(?P<rest>\d{1,6}))?)?"
)
# Types of this database that are no rows of its tables, with what their arrays hold.
_OWN_TYPES: Final = """
    SELECT t.oid::int8, t.typname::text, t.typtype::text, t.typcategory::text, t.typarray::int8,
           t.typbasetype::int8
    FROM pg_catalog.pg_type AS t
    WHERE t.oid >= 16384 AND t.typtype IN ('e', 'b', 'd', 'r', 'm') AND t.typelem = 0
    ORDER BY t.oid
"""


def register_loaders(connection: psycopg.Connection[Any]) -> None:
    """Let a connection read every value without loss, hashable but for arrays.

    The session must have DateStyle ISO, IntervalStyle 'postgres', TimeZone UTC and
    extra_float_digits of at least 1; asks the catalog once for the types of the database.

    * boolean is bool; the integers are int; real and double precision are float; numeric is
      Decimal, with NaN and Infinity; money is Decimal where the server writes it with a dollar;
    * text of every kind, the labels of an enum included, is str; char(n) comes without the blanks
      that fill it, as in PostgreSQL's own casts; what is not UTF-8 (in a SQL_ASCII database) has
      its bad bytes as lone surrogates;
    * dates and times are those of `datetime`, timestamps with a time zone aware; what Python has
      not (`infinity`, BC, years from 10000 on, 24:00) is a `TypedText`;
    * interval is a timedelta, a month of 30 days and a year of 12 months, as `=` takes them;
    * bytea is bytes, uuid UUID, an array a list of these;
    * json and jsonb are a `TypedText` "JSON" in one canonical text: keys sorted, of equal keys the
      last, numbers by value;
    * all else (ranges, records, network addresses, geometry, bit strings, types of extensions) is
      a `TypedText` as the server writes it.

    Example:
        >>> import psycopg
        >>> register_loaders(psycopg.connect("dbname=shop"))  # doctest: +SKIP
    """
    adapters, types = connection.adapters, psycopg.adapters.types
    is_utf8 = connection.info.parameter_status("server_encoding") != "SQL_ASCII"
    text = adapters.get_loader(types["text"].oid, psycopg.pq.Format.TEXT) if is_utf8 else _AnyText
    assert text is not None
    for name, kind in _TYPED.items():
        if types.get(name) is not None:
            adapters.register_loader(types[name].oid, _typed(kind))
    for name, kind in _TIMES.items():
        inner = adapters.get_loader(types[name].oid, psycopg.pq.Format.TEXT)
        assert inner is not None
        adapters.register_loader(types[name].oid, _or_typed(inner, kind))
    for name, loader in _OTHERS.items():
        adapters.register_loader(types[name].oid, loader)
    for name in ("text", "varchar", "name"):
        adapters.register_loader(types[name].oid, text)
    # An unknown type is the row of some table; a literal without a type is text.
    adapters.register_loader(0, _typed("RECORD"))
    for name in ("unknown", "cstring", "void"):
        adapters.register_loader(_PSEUDO_TYPES[name], text)
    for name in ('"char"', "refcursor"):
        adapters.register_loader(types[name].oid, text)
    for name in [info.name for info in types if info.name.startswith("reg")]:
        adapters.register_loader(types[name].oid, text)
    for oid, name, kind, category, array, base in connection.execute(_OWN_TYPES).fetchall():
        reader: type[Loader] | None
        if kind == "d":
            # A value of a domain has the type below it, unless it stands in an array.
            reader = adapters.get_loader(base, psycopg.pq.Format.TEXT)
        elif kind in "rm":
            reader = _typed("RANGE" if kind == "r" else "MULTIRANGE")
        else:
            reader = text if kind == "e" or category == "S" else _typed(name.upper())
        if reader is not None:
            adapters.register_loader(oid, reader)
        if array:
            adapters.register_loader(array, _array_of(oid))


_PSEUDO_TYPES: Final = {"unknown": 705, "cstring": 2275, "void": 2278}


# ---------------------------------------------------------------------- loaders


def _typed(kind: str) -> type[Loader]:
    class TypedLoader(BaseLoader):
        def load(self, data: Buffer) -> TypedText:
            return TypedText(kind, _decode(data))

    return TypedLoader


def _or_typed(inner: type[Loader], kind: str) -> type[Loader]:
    class FarLoader(BaseLoader):
        def __init__(self, oid: int, context: Any = None) -> None:
            super().__init__(oid, context)
            self._load = inner(oid, context).load

        def load(self, data: Buffer) -> object:
            try:
                return self._load(data)
            except (psycopg.DataError, ValueError, OverflowError):
                return TypedText(kind, _decode(data))

    return FarLoader


def _array_of(oid: int) -> type[Loader]:
    class OwnArrayLoader(ArrayLoader):
        base_oid = oid

    return OwnArrayLoader


class _AnyText(BaseLoader):
    def load(self, data: Buffer) -> str:
        return _decode(data)


class _Blanked(BaseLoader):
    def load(self, data: Buffer) -> str:
        return _decode(data).rstrip(" ")


class _Money(BaseLoader):
    def load(self, data: Buffer) -> object:
        text = _decode(data)
        if _MONEY.fullmatch(text) is None:
            return TypedText("MONEY", text)
        return Decimal(text.replace("$", "").replace(",", ""))


class _Interval(BaseLoader):
    def load(self, data: Buffer) -> object:
        text = _decode(data)
        found = _INTERVAL.fullmatch(text)
        if found is None:
            return TypedText("INTERVAL", text)
        years, months, days, hours, minutes, seconds = (
            int(found[part] or 0)
            for part in ("years", "months", "days", "hours", "minutes", "seconds")
        )
        time = datetime.timedelta(
            microseconds=((hours * 60 + minutes) * 60 + seconds) * 1_000_000
            + int((found["rest"] or "").ljust(6, "0"))
        )
        try:
            whole = datetime.timedelta(days=(years * 12 + months) * 30 + days)
            return whole - time if found["sign"] == "-" else whole + time
        except OverflowError:
            return TypedText("INTERVAL", text)


class _JSON(BaseLoader):
    def load(self, data: Buffer) -> TypedText:
        text = _decode(data)
        try:
            value = json.loads(text, parse_int=_Number, parse_float=_Number)
            return TypedText("JSON", _write_json(value))
        except (ValueError, RecursionError):
            # Deeper than Python reads; jsonb is canonical but for its numbers.
            return TypedText("JSON", text)


_OTHERS: Final[dict[str, type[Loader]]] = {
    "bpchar": _Blanked,
    "money": _Money,
    "interval": _Interval,
    "json": _JSON,
    "jsonb": _JSON,
}


class _Number(str):
    """A number of JSON, of any length, as it is written."""


def _write_json(value: object) -> str:
    if isinstance(value, _Number):
        return _plain_number(value)
    if isinstance(value, dict):
        fields = (f"{json.dumps(key)}: {_write_json(value[key])}" for key in sorted(value))
        return f"{{{', '.join(fields)}}}"
    if isinstance(value, list):
        return f"[{', '.join(map(_write_json, value))}]"
    return json.dumps(value, ensure_ascii=False)


def _plain_number(text: str) -> str:
    """One text for numbers of one value: 1.50 and 15e-1 are 1.5, -0.0 is 0."""
    found = _NUMBER.fullmatch(text)
    if found is None:
        return text
    sign, whole, fraction, power = found.groups()
    fraction = fraction or ""
    digits = (whole + fraction).lstrip("0")
    if not digits:
        return "0"
    shortened = digits.rstrip("0")
    exponent = int(power or 0) - len(fraction) + len(digits) - len(shortened)
    if 0 <= exponent <= 20:
        return f"{sign}{shortened}{'0' * exponent}"
    if -20 <= exponent < 0:
        padded = shortened.rjust(1 - exponent, "0")
        return f"{sign}{padded[:exponent]}.{padded[exponent:]}"
    return f"{sign}{shortened}e{exponent}"


def _decode(data: Buffer) -> str:
    return bytes(data).decode("utf-8", "surrogateescape")
