"""Fingerprints of results that are too large to keep: `ResultDigest`."""

from __future__ import annotations

import hashlib
import marshal
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

_HASH_BYTES: Final = 16
# Longer texts are not remembered: they would be held, and seldom come again.
_MAX_KNOWN_LENGTH: Final = 100
_MODULUS: Final = 1 << (8 * _HASH_BYTES)


@dataclass(frozen=True, slots=True)
class ResultDigest:
    """Fingerprints of a result; equal results have equal ones, others differ but for chance.

    Numbers count by value (1 and 1.0 are one value), everything else by type and content. The
    chance that two different results meet is below 2**-100 unless someone searches for them.

    Attributes:
        num_rows: number of rows.
        num_columns: number of columns.
        bag: sum of the hashes of all rows, so their order does not matter.
        sequence: hash of all rows in their order.
        column_bags: the same sum for each column alone.
        has_fractions: whether a number is not an integer: such numbers may be equal within a
            tolerance and still have other hashes.
    """

    num_rows: int
    num_columns: int
    bag: int
    sequence: bytes
    column_bags: tuple[int, ...]
    has_fractions: bool


class DigestBuilder:
    """Takes rows in portions and holds none of them."""

    def __init__(self, num_columns: int) -> None:
        self._num_rows = 0
        self._bag = 0
        self._sequence = hashlib.blake2b(digest_size=_HASH_BYTES)
        self._columns = [0] * num_columns
        # Columns repeat their values; a bounded memory of their hashes saves most of the work.
        self._known: dict[object, int] = {}
        self._has_fractions = False

    def add(self, rows: Iterable[tuple[object, ...]]) -> None:
        """Take the next rows."""
        for row in rows:
            self._num_rows += 1
            row = tuple(self._canonical(value) if type(value) is float else value for value in row)
            digest = hashlib.blake2b(_dump(row), digest_size=_HASH_BYTES).digest()
            self._sequence.update(digest)
            self._bag += int.from_bytes(digest, "little")
            for column, value in enumerate(row):
                self._columns[column] += self._hash(value)

    def finish(self) -> ResultDigest:
        """The fingerprints of all rows taken."""
        return ResultDigest(
            self._num_rows,
            len(self._columns),
            self._bag % _MODULUS,
            self._sequence.digest(),
            tuple(total % _MODULUS for total in self._columns),
            self._has_fractions,
        )

    def _canonical(self, value: object) -> object:
        assert isinstance(value, float)
        if value.is_integer() and abs(value) <= 2**53:
            return int(value)
        self._has_fractions = True
        return value

    def _hash(self, value: object) -> int:
        if isinstance(value, (str, bytes)) and len(value) > _MAX_KNOWN_LENGTH:
            digest = hashlib.blake2b(_dump(value), digest_size=_HASH_BYTES).digest()
            return int.from_bytes(digest, "little")
        known = self._known.get(value)
        if known is None:
            if len(self._known) > 100_000:
                self._known.clear()
            digest = hashlib.blake2b(_dump(value), digest_size=_HASH_BYTES).digest()
            known = self._known[value] = int.from_bytes(digest, "little")
        return known


def _dump(value: object) -> bytes:
    # Version 2 writes no references, so equal values give equal bytes.
    return marshal.dumps(value, 2)  # type: ignore[arg-type]
