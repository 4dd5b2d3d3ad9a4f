"""Equality of values under `strict`: `values_equal`, and the same for whole tables."""

from __future__ import annotations

import datetime
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Any, Final, TypeAlias

from sense_trl.database.engine import MapValue, TypedText

Row: TypeAlias = tuple[object, ...]

# Far above what the order of a sum changes in double precision (some 1e-14), far below a second in
# a Julian day number (5e-12).
_RELATIVE_TOLERANCE: Final = 1e-12
_ABSOLUTE_TOLERANCE: Final = 1e-12
# A double of at least 2**-12 is a multiple of its last place, which is at least 2**-64; so is every
# sum and difference of such doubles, and hardly any smaller number that somebody wrote down.
_RESIDUE_UNIT: Final = 2.0**64
# The last place of 0.01 is 1.7e-18.
_MIN_RESIDUE: Final = 1e-18
# From here on there are integers that no float stands for.
_EXACT_BOUND: Final = 2**53
# What PostgreSQL keeps of a quotient of numerics has at least so many digits, and so many of them
# behind the point (for quotients below 1e12).
_QUOTIENT_DIGITS: Final = 17
_QUOTIENT_SCALE: Final = 8
# Chains of close values longer than this are not checked pair by pair.
_MAX_CHECKED_CHAIN: Final = 30


def values_equal(left: object, right: object) -> bool:
    """Whether two values are equal under `strict`.

    * NULL equals NULL and nothing else.
    * Numbers are exact or inexact. Exact are int, bool (0 and 1), Decimal, and floats that are
      integers below 2**53; inexact are floats with a fraction and floats from 2**53 on. A Decimal
      of 17 digits or more, 8 or more of them behind the point, is what PostgreSQL makes of a
      quotient or an average, and stands for the nearest float.

      1. Two exact numbers are equal if their values are: identifiers, counts, milliseconds and
         money differ by their last digit.
      2. An exact number and a float from 2**53 on (in magnitude) are equal if the float's value is
         exactly that number: 2**60 equals 2.0**60, 2**60 + 1 does not.
      3. Otherwise they are equal if they differ by at most 1e-12 of the larger magnitude: sums in
         another order are. There is no other tolerance for small numbers (1.6e-19 and 9.1e-31
         differ), except for what is left where a sum cancels: 0 equals an inexact number between
         1e-18 and 1e-12, and two numbers equal each other if they differ by at most 1e-12 and are
         multiples of 2**-64, as sums of doubles from 2**-12 on are.
      4. NaN equals NaN, an infinity equals itself, -0.0 equals 0.
    * Text equals text byte by byte (nothing is folded, stripped or normalised; what is not UTF-8
      counts as well); text never equals a number, a date or bytes, however it reads.
    * bytes equal bytes.
    * A date equals the same date and the timestamp at its midnight; timestamps with a time zone
      are equal if they are the same instant, and never equal one without. `infinity` equals
      itself, and the nanoseconds of a timestamp count.
    * Intervals are equal if they are equally long, a month taken as 30 days and a day as 24 hours,
      as DuckDB's own `=` takes them.
    * Lists and arrays are equal element by element, structs field by field (in any order of the
      fields), maps entry by entry (in any order of the entries), all by these rules. A map equals
      no struct.
    * Anything else (times, UUIDs, bit strings) equals a value of the same type with the same text.

    The tolerance is not transitive: 1, 1 + 8e-13 and 1 + 16e-13 are not one value.

    Example:
        >>> values_equal(0.1 + 0.2, 0.3), values_equal(1700000000001.0, 1700000000002.0)
        (True, False)
    """
    return _equal(canonical_value(left), canonical_value(right))


def canonical_value(value: object) -> object:
    """A hashable stand-in; stand-ins are equal exactly where `values_equal` needs no tolerance."""
    kind = type(value)
    if value is None or kind is int or kind is str or kind is bytes:
        return value
    if isinstance(value, float):
        return ("nan",) if value != value else value
    if isinstance(value, bool):
        return int(value)
    if isinstance(value, Decimal):
        if value.is_nan():
            return ("nan",)
        return _canonical_decimal(value) if value.is_finite() else float(value)
    if isinstance(value, (bytearray, memoryview)):
        return bytes(value)
    if isinstance(value, datetime.datetime):
        if value.tzinfo is not None:
            return ("instant", value.astimezone(datetime.UTC))
        return ("timestamp", value)
    if isinstance(value, datetime.date):
        return ("timestamp", datetime.datetime(value.year, value.month, value.day))
    if isinstance(value, TypedText):
        if value.type in ("DATE", "TIMESTAMP"):
            return ("timestamp", value.text.removesuffix(" 00:00:00"))
        return ("typed", value.type, value.text)
    if isinstance(value, (list, tuple)):
        return ("list", *map(canonical_value, value))
    if isinstance(value, MapValue):
        entries = [(canonical_value(k), canonical_value(v)) for k, v in value.items()]
        # Equal keys have equal hashes, 1 and 1.0 among them; their texts differ.
        return ("map", *sorted(entries, key=lambda entry: (hash(entry[0]), repr(entry[0]))))
    if isinstance(value, dict):
        fields = ((str(key), canonical_value(item)) for key, item in value.items())
        return ("struct", *sorted(fields, key=lambda field: field[0]))
    return ("other", type(value).__name__, str(value))


def _canonical_decimal(value: Decimal) -> object:
    """A finite number, as a float where it looks like a quotient, whose last digits are rounded."""
    _, digits, exponent = value.as_tuple()
    if len(digits) < _QUOTIENT_DIGITS or int(exponent) > -_QUOTIENT_SCALE:
        return value
    number = float(value)
    return number if number and math.isfinite(number) else value


def _equal(left: object, right: object) -> bool:
    """`values_equal` of stand-ins."""
    if left == right:
        return True
    if type(left) is tuple and type(right) is tuple:
        return len(left) == len(right) and all(map(_equal, left, right))
    if isinstance(left, float):
        return _is_close(left, right)
    return isinstance(right, float) and _is_close(right, left)


def _is_close(value: float, other: Any) -> bool:
    """Whether a float and another number that is not the same are equal."""
    if not is_inexact(value):
        return isinstance(other, float) and is_inexact(other) and _is_close(other, value)
    if not isinstance(other, (int, float, Decimal)):
        return False
    if not isinstance(other, float) or not is_inexact(other):
        magnitude: Any = abs(other)
        if abs(value) >= _EXACT_BOUND or magnitude >= _EXACT_BOUND:
            return False
        if other == 0 and _MIN_RESIDUE <= abs(value) <= _ABSOLUTE_TOLERANCE:
            return True
        other = float(other)
    return _is_relatively_close(value, other) or _are_residues(value, other)


def is_inexact(value: float) -> bool:
    """Whether a float may equal another number within a tolerance; see `values_equal`."""
    return math.isfinite(value) and (abs(value) >= _EXACT_BOUND or not value.is_integer())


def _is_relatively_close(left: float, right: float) -> bool:
    return abs(left - right) <= _RELATIVE_TOLERANCE * max(abs(left), abs(right))


def _are_residues(left: float, right: float) -> bool:
    return (
        abs(left - right) <= _ABSOLUTE_TOLERANCE
        and (left * _RESIDUE_UNIT).is_integer()
        and (right * _RESIDUE_UNIT).is_integer()
    )


class CanonicalTables:
    """Two tables with values replaced so that equal ones, as far as possible, are the same.

    Where closeness falls into groups whose members are all equal to each other, one member stands
    for all, and comparing what stands there is comparing by `values_equal`. Where it does not (a
    chain of values of which the first and the last are not equal), one member stands for the whole
    chain all the same: tables that differ then are different, and of tables that are the same then
    `rows_equal` has the last word.

    Attributes:
        exact: the rows of both tables, values as `canonical_value` gives them.
        merged: the rows of both tables, close values replaced by one of them.
        has_chains: whether equal rows of `merged` can be unequal.
    """

    def __init__(self, left: Sequence[Row], right: Sequence[Row]) -> None:
        floats: set[float] = set()
        others: set[Any] = set()
        plain = True
        for table in (left, right):
            for row in table:
                for value in row:
                    kind = type(value)
                    if kind is float:
                        floats.add(value)  # type: ignore[arg-type]
                    elif kind is int:
                        others.add(value)
                    elif kind is not str and value is not None and kind is not bytes:
                        plain = False
        if not plain or any(value != value for value in floats):
            left, right = ([tuple(map(canonical_value, row)) for row in t] for t in (left, right))
            floats, others = set(), set()
            for table in (left, right):
                for row in table:
                    for leaf in _leaves(row):
                        if isinstance(leaf, float):
                            floats.add(leaf)
                        elif isinstance(leaf, (int, Decimal)):
                            others.add(leaf)
        self.exact: tuple[Sequence[Row], Sequence[Row]] = (left, right)
        stands_for, self.has_chains = _merge_close(floats, others)
        self.merged = self.exact
        if stands_for:

            def replace(value: object) -> object:
                if type(value) is tuple:
                    return tuple(map(replace, value))
                return stands_for.get(value, value)

            left, right = ([tuple(map(replace, row)) for row in t] for t in self.exact)
            self.merged = (left, right)


def rows_equal(left: Row, right: Row) -> bool:
    """Whether two rows of `CanonicalTables.exact` are equal value by value."""
    return all(map(_equal, left, right))


def get_reach(magnitude: float) -> float:
    """Largest distance between two equal numbers, at this magnitude of the larger."""
    return _RELATIVE_TOLERANCE * magnitude if magnitude > 1 else _ABSOLUTE_TOLERANCE


def _leaves(value: object) -> Iterable[object]:
    if type(value) is tuple:
        for item in value:
            yield from _leaves(item)
    else:
        yield value


@dataclass(frozen=True, slots=True)
class _Number:
    """A number as it is compared: `place` is the float that it is, or nearest to it."""

    place: float
    value: Any
    is_inexact: bool


def _merge_close(floats: set[float], others: set[Any]) -> tuple[dict[object, object], bool]:
    """Map each number that is close to another to the one that stands for it; tell of chains."""
    inexact = {value for value in floats if is_inexact(value)}
    if not inexact:
        return {}, False
    small = [value for value in others if abs(value) < _EXACT_BOUND]
    stands_for: dict[object, object] = {}
    has_chains = False
    at_place: dict[float, list[Any]] | None = None
    # Integers beyond 2**53 that are the value of a float, which may be close to other floats.
    doubled = {value for value in inexact & others if abs(value) >= _EXACT_BOUND}
    finite = floats - {math.inf, -math.inf}
    for run in _find_runs(sorted([*finite, *map(float, small)]), inexact):
        if len(run) == 2 and _is_alone(run, inexact, others):
            # What rounding does to one number, which is nearly all that there is.
            stands_for[run[1]] = run[0]
            continue
        if at_place is None:
            at_place = {}
            for value in small:
                at_place.setdefault(float(value), []).append(value)
        numbers = []
        for place in dict.fromkeys(run):
            exact = at_place.get(place, ())
            if place in inexact:
                numbers.append(_Number(place, place, True))
            elif not exact:
                numbers.append(_Number(place, place, False))
            numbers += [_Number(place, value, False) for value in exact]
        for chain in _find_chains(numbers):
            # What is exact stays: it cannot become another exact number.
            first = min(chain, key=lambda number: number.is_inexact)
            is_chain = any(n.value in doubled for n in chain) or not _are_all_equal(chain)
            has_chains |= is_chain
            for number in chain:
                if number.value != first.value:
                    stands_for[number.value] = first.value
    return stands_for, has_chains


def _find_runs(places: Sequence[float], inexact: set[float]) -> list[list[float]]:
    """The parts of an ascending list in which numbers may be close; hardly ever are there any."""
    runs: list[list[float]] = []
    run_start = 0
    before = places[0]
    for position, place in enumerate(places):
        # Of any two that are close, those between them are all this close.
        largest = place if place > -before else -before
        reach = _RELATIVE_TOLERANCE * largest if largest > 1 else _ABSOLUTE_TOLERANCE
        if place - before > reach:
            if position - run_start > 1:
                runs.append(list(places[run_start:position]))
            run_start = position
        before = place
    if len(places) - run_start > 1:
        runs.append(list(places[run_start:]))
    return [run for run in runs if not inexact.isdisjoint(run)]


def _is_alone(run: Sequence[float], inexact: set[float], others: set[Any]) -> bool:
    """Whether two neighbours are equal inexact numbers that no other number can stand beside."""
    low, high = run
    return (
        low != high
        and low in inexact
        and high in inexact
        and low not in others
        and high not in others
        and _is_relatively_close(low, high)
    )


def _find_chains(numbers: Sequence[_Number]) -> list[list[_Number]]:
    """Numbers that closeness connects, each set in ascending order; single ones are left out."""
    parents = list(range(len(numbers)))

    def find(index: int) -> int:
        while parents[index] != index:
            parents[index] = parents[parents[index]]
            index = parents[index]
        return index

    def connect(members: Sequence[int], is_close: Callable[[float, float], bool]) -> None:
        # Each inexact number with all in its reach, which both ends of follow as it moves up.
        low = high = 0
        joined = 0
        for position, index in enumerate(members):
            number = numbers[index]
            if not number.is_inexact:
                continue
            low, high = max(low, 0), max(high, position)
            while not is_close(numbers[members[low]].place, number.place):
                low += 1
            while high + 1 < len(members) and is_close(
                numbers[members[high + 1]].place, number.place
            ):
                high += 1
            for other in range(max(low, joined), high):
                parents[find(members[other + 1])] = find(members[other])
            joined = max(joined, high)

    connect(range(len(numbers)), _is_relatively_close)
    small = [i for i, number in enumerate(numbers) if abs(number.place) < 1]
    units = [i for i in small if (numbers[i].place * _RESIDUE_UNIT).is_integer()]
    connect(units, _are_residues)
    zero = next((i for i in small if numbers[i].place == 0), None)
    if zero is not None:
        for i in small:
            if numbers[i].is_inexact and _is_close(numbers[i].place, 0):
                parents[find(i)] = find(zero)
    chains: dict[int, list[_Number]] = {}
    for index, number in enumerate(numbers):
        chains.setdefault(find(index), []).append(number)
    return [chain for chain in chains.values() if len(chain) > 1]


def _are_all_equal(chain: Sequence[_Number]) -> bool:
    low, high = chain[0].place, chain[-1].place
    num_exact = sum(not number.is_inexact for number in chain)
    if _is_relatively_close(low, high):
        return num_exact == 0 or (num_exact == 1 and max(-low, high) < _EXACT_BOUND)
    if len(chain) > _MAX_CHECKED_CHAIN:
        return False
    return all(
        _equal(left.value, right.value)
        for position, left in enumerate(chain)
        for right in chain[position + 1 :]
    )
