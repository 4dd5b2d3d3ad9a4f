"""`make_value`: a plausible value for a column, from its name and type."""

from __future__ import annotations

import datetime
import random
import re
from collections.abc import Callable
from typing import Final, TypeAlias

from sense_trl.synthesis.strong.schema_design import ColumnKind

Value: TypeAlias = str | int | float

_WORDS: Final = re.compile(r"[A-Z]?[a-z]+|[A-Z]+(?![a-z])|\d+")


def _words(text: str) -> tuple[str, ...]:
    return tuple(text.split())


_FIRST_NAMES: Final = _words(
    """
    Ada Amir Bela Carla Chen Dara Elif Emeka Farah Goran Hana Ines Ivan Jonas Kofi Lena Luis
    Maya Nadia Noor Olga Omar Priya Rosa Sven Tariq Uma Vera Wei Yuki
    """
)
_LAST_NAMES: Final = _words(
    """
    Abbot Bauer Castro Dubois Eriksen Fischer Garcia Haddad Ito Jensen Kaya Lindqvist Moreau
    Nowak Okafor Patel Quinn Rossi Sato Torres Ueda Varga Weber Xu Yilmaz Zhou
    """
)
_CITIES: Final = _words(
    """
    Accra Bergen Cusco Dakar Essen Fukuoka Ghent Hanoi Izmir Jaipur Kyoto Lima Malmo Nairobi
    Oslo Porto Quito Riga Seville Tunis
    """
)
_COUNTRIES: Final = _words(
    """
    Brazil Canada Egypt France Ghana India Japan Kenya Mexico Norway Peru Spain Turkey Vietnam
    """
)
_ADJECTIVES: Final = _words(
    """
    Amber Bright Calm Deep Early Far Golden Hidden Iron Long North Old Quiet Red Silver Tall
    White
    """
)
_NOUNS: Final = _words(
    """
    Arrow Bridge Cedar Delta Ember Field Garden Harbor Island Junction Lake Meadow Orchard Peak
    River Stone Tower Valley Wave
    """
)
_COLORS: Final = ("black", "blue", "brown", "green", "red", "white", "yellow")
_STATUSES: Final = ("active", "pending", "completed", "cancelled")
_LEVELS: Final = ("low", "medium", "high")
_CATEGORIES: Final = ("Standard", "Special", "Basic", "Premium", "Mixed")
_PEOPLE: Final = re.compile(
    r"person|people|member|customer|client|employee|staff|worker|author|artist|player|owner|"
    r"manager|user|patron|visitor|guest|volunteer|trainer|keeper|driver|pilot|judge|guide|"
    r"technician|officer|inspector|breeder|curator|collector|founder|director|operator"
)


_LABELS: Final = re.compile(
    r"name|title|code|number|\bid\b|e ?mail|phone|address|url|website|description|notes?\b|serial"
)


def is_label(column: str) -> bool:
    """Whether a column of this name tells rows apart, so that few rows share a value of it.

    Example:
        >>> [is_label(name) for name in ("full_name", "ISBNCode", "kind", "city")]
        [True, True, False, False]
    """
    return _LABELS.search(_spaced(column)) is not None


def make_value(table: str, column: str, kind: ColumnKind, rng: random.Random) -> Value:
    """Draw a value.

    The first rule whose words are in the name of the column decides: an `email` looks like one, a
    `birth_date` is a date, a `price` is of money's size. A `name` is a person's where the table or
    the column speaks of people, and a thing's elsewhere.

    Args:
        table: name of the column's table.
        column: its name.
        kind: what it holds.
        rng: where the randomness comes from.

    Returns:
        Text for text, dates and times (ISO 8601); a number otherwise.
    """
    words = _spaced(column)
    for pattern, make in _RULES[kind]:
        if pattern.search(words):
            if make is _thing and _PEOPLE.search(f"{words} {table.lower()}"):
                return f"{rng.choice(_FIRST_NAMES)} {rng.choice(_LAST_NAMES)}"
            return make(rng)
    raise AssertionError(f"no rule for {kind}")


def _spaced(name: str) -> str:
    return " ".join(_WORDS.findall(name)).lower()


_Maker: TypeAlias = Callable[[random.Random], Value]


def _one_of(values: tuple[str, ...]) -> _Maker:
    return lambda rng: rng.choice(values)


def _whole(low: int, high: int) -> _Maker:
    return lambda rng: rng.randint(low, high)


def _decimal(low: float, high: float, digits: int = 2) -> _Maker:
    return lambda rng: round(rng.uniform(low, high), digits)


def _thing(rng: random.Random) -> str:
    return f"{rng.choice(_ADJECTIVES)} {rng.choice(_NOUNS)}"


def _email(rng: random.Random) -> str:
    first, last = rng.choice(_FIRST_NAMES), rng.choice(_LAST_NAMES)
    return f"{first}.{last}{rng.randint(1, 99)}@example.org".lower()


def _code(rng: random.Random) -> str:
    letters = "".join(rng.choice("ABCDEFGHKLMNPRSTVWXZ") for _ in range(2))
    return f"{letters}-{rng.randint(100, 999)}"


def _phone(rng: random.Random) -> str:
    return f"555-{rng.randint(0, 9999):04d}"


def _url(rng: random.Random) -> str:
    return f"https://example.org/{rng.choice(_NOUNS).lower()}/{rng.randint(1, 999)}"


def _address(rng: random.Random) -> str:
    return f"{rng.randint(1, 200)} {rng.choice(_NOUNS)} Street"


def _sentence(rng: random.Random) -> str:
    return f"{rng.choice(_ADJECTIVES)} {rng.choice(_NOUNS).lower()} near {rng.choice(_CITIES)}"


def _date(rng: random.Random) -> str:
    return str(datetime.date(2015, 1, 1) + datetime.timedelta(rng.randrange(3650)))


def _birth_date(rng: random.Random) -> str:
    return str(datetime.date(1950, 1, 1) + datetime.timedelta(rng.randrange(20_000)))


def _time(rng: random.Random) -> str:
    return f"{rng.randrange(24):02d}:{rng.randrange(60):02d}:00"


def _datetime(rng: random.Random) -> str:
    return f"{_date(rng)} {_time(rng)}"


def _rules(*rules: tuple[str, _Maker]) -> tuple[tuple[re.Pattern[str], _Maker], ...]:
    return tuple((re.compile(words), make) for words, make in rules)


_RULES: Final = {
    ColumnKind.BOOLEAN: _rules((r"", _whole(0, 1))),
    ColumnKind.INTEGER: _rules(
        (r"\b(?:is|has|can|was)\b|\bflag\b", _whole(0, 1)),
        (r"birth year", _whole(1940, 2010)),
        (r"\byear\b|founded|established", _whole(1985, 2024)),
        (r"\bmonth\b", _whole(1, 12)),
        (r"\bday\b", _whole(1, 28)),
        (r"\bhour\b", _whole(0, 23)),
        (r"\bage\b", _whole(18, 80)),
        (r"rating|stars|rank|priority|grade", _whole(1, 10)),
        (r"percent|\bpct\b|score|humidity", _whole(0, 100)),
        (r"price|cost|fee|amount", _whole(5, 2000)),
        (r"salary|income|revenue|budget|wage|sales|profit|population", _whole(20_000, 900_000)),
        (r"temperature", _whole(-10, 40)),
        (r"quantity|count|number|\bnum\b|capacity|stock|seats", _whole(1, 300)),
        (r"", _whole(1, 1000)),
    ),
    ColumnKind.REAL: _rules(
        (r"rating|stars|grade", _decimal(1, 10, 1)),
        (r"percent|\bpct\b|score|rate|share|humidity", _decimal(0, 100, 1)),
        (r"latitude|\blat\b", _decimal(-90, 90, 4)),
        (r"longitude|\blon\b|\blng\b", _decimal(-180, 180, 4)),
        (r"price|cost|fee|amount", _decimal(5, 2000)),
        (r"salary|income|revenue|budget|wage|sales|profit", _decimal(20_000, 900_000)),
        (r"temperature", _decimal(-10, 40, 1)),
        (r"", _decimal(0, 500)),
    ),
    ColumnKind.DATE: _rules((r"birth|\bdob\b", _birth_date), (r"", _date)),
    ColumnKind.DATETIME: _rules((r"", _datetime)),
    ColumnKind.TIME: _rules((r"", _time)),
    ColumnKind.TEXT: _rules(
        (r"e ?mail", _email),
        (r"phone|mobile|\bfax\b", _phone),
        (r"\burl\b|website|link", _url),
        (r"first name|given name", _one_of(_FIRST_NAMES)),
        (r"last name|surname|family name", _one_of(_LAST_NAMES)),
        (r"birth|\bdob\b", _birth_date),
        (r"\bdate\b", _date),
        (r"timestamp|\bdatetime\b|\bcreated\b|\bupdated\b", _datetime),
        (r"\btime\b", _time),
        (r"\bcity\b|\btown\b|location|place|region|origin|hometown", _one_of(_CITIES)),
        (r"country|nation", _one_of(_COUNTRIES)),
        (r"address|street", _address),
        (r"colou?r", _one_of(_COLORS)),
        (r"gender|\bsex\b", _one_of(("F", "M"))),
        (r"status|state|stage", _one_of(_STATUSES)),
        (r"priority|severity|difficulty|level|risk", _one_of(_LEVELS)),
        (r"type|kind|category|class|genre|style|format", _one_of(_CATEGORIES)),
        (r"\bid\b|code|number|\bnum\b|serial|\bno\b|identifier|sku", _code),
        (r"description|notes?\b|comment|remark|summary|detail|bio", _sentence),
        (r"", _thing),
    ),
}
