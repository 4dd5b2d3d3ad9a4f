"""What items of a schema are to each other, and how words of a question are like their names."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from sense_trl.linking.labels import ItemKey
from sense_trl.schema.naming import get_key, get_words, normalise, singular
from sense_trl.schema.schema import DatabaseSchema

KINDS: Final = ("table", "column", "primary key", "foreign key")
"""What an item may be; a foreign key is a column at either end of one."""

FEATURES: Final = ("is", "share", "rarity", "whole", "beginning", "relative", "inside")
"""How a word may be like a name; see `NameMatcher.match`."""

# Shorter ones begin alike, or stand in each other, by chance.
_MIN_CHARS: Final = 4
_SHARED_CHARS: Final = 5
# Pairs of words and items that are held, some 100 bytes each.
_MAX_KNOWN: Final = 200_000


@dataclass(frozen=True, slots=True)
class ItemStructure:
    """What items are to each other, by their positions.

    Attributes:
        kinds: of each item, as in `KINDS`.
        tables: the table of each item; of a table, itself.
        linked: for each column, the tables at the other ends of its foreign keys.
    """

    kinds: tuple[int, ...]
    tables: tuple[int, ...]
    linked: tuple[tuple[int, ...], ...]


def get_names(schema: DatabaseSchema) -> list[ItemKey]:
    """The names of tables, as (table, ""), each with its columns behind it."""
    return [
        (table.name, column)
        for table in schema.tables
        for column in ("", *(column.name for column in table.columns))
    ]


def get_structure(schema: DatabaseSchema, items: Sequence[ItemKey]) -> ItemStructure:
    """Find what items of a schema are to each other; keys to what is not among them are left out.

    Args:
        schema: the whole.
        items: tables as (table, ""), and columns, in lower case.

    Example:
        >>> from sense_trl.database import ColumnInfo, ForeignKeyInfo, TableInfo
        >>> key = ForeignKeyInfo(("owner",), "person", ("id",))
        >>> pet = TableInfo("Pet", (ColumnInfo("owner", "", False, 0),), (key,), False)
        >>> person = TableInfo("Person", (ColumnInfo("id", "", False, 1),), (), False)
        >>> items = [("pet", ""), ("pet", "owner"), ("person", ""), ("person", "id")]
        >>> get_structure(DatabaseSchema("d", "sqlite", (pet, person)), items)
        ItemStructure(kinds=(0, 3, 0, 3), tables=(0, 0, 2, 2), linked=((), (2,), (), (0,)))
    """
    # A wide table stands in several parts; its first place is that of all its columns.
    places = {item: place for place, item in reversed(list(enumerate(items)))}
    linked: dict[ItemKey, dict[int, None]] = defaultdict(dict)
    for table, column, other, referenced in schema.foreign_key_columns:
        ends = get_key(table, column), get_key(other, referenced)
        for own, far in (ends, ends[::-1]):
            if (far[0], "") in places:
                linked[own][places[far[0], ""]] = None
    primary = {
        get_key(table.name, column.name)
        for table in schema.tables
        for column in table.columns
        if column.primary_key
    }
    return ItemStructure(
        tuple(
            0 if not item[1] else 3 if linked.get(item) else 2 if item in primary else 1
            for item in items
        ),
        tuple(places[table, ""] for table, _ in items),
        tuple(tuple(linked.get(item, ())) for item in items),
    )


class NameMatcher:
    """Says how words of a question are like the names of items.

    Args:
        items: tables as (table, ""), and columns, spelt as they are: humps part words.
    """

    def __init__(self, items: Sequence[ItemKey]) -> None:
        names = [normalise(" ".join(get_words(column or table))).split() for table, column in items]
        self._words = [[singular(word) for word in name] for name in names]
        self._joined = ["".join(name) for name in names]
        self._of_word: dict[str, dict[int, None]] = defaultdict(dict)
        self._of_relative: dict[str, dict[int, None]] = defaultdict(dict)
        self._known: dict[str, Mapping[int, tuple[float, ...]]] = {}
        self._num_known = 0
        # By lower case, as items are told apart: PostgreSQL may have two tables of one.
        tables = {t.lower(): place for place, (t, column) in enumerate(items) if not column}
        for place, (table, column) in enumerate(items):
            for word in self._words[place]:
                self._of_word[word][place] = None
                if column:
                    self._of_relative[word][tables[table.lower()]] = None
            if column:
                for word in self._words[tables[table.lower()]]:
                    self._of_relative[word][place] = None

    def match(self, words: Sequence[str]) -> list[tuple[int, int, tuple[float, ...]]]:
        """Pairs of items and words that are alike, with the values of `FEATURES`.

        * is: the word is one of the name, in the singular;
        * share: the same, divided by the number of words of the name;
        * rarity: the same, by how few items have the word: 1 if one has;
        * whole: like share, if all words of the name are in the question;
        * beginning: the word begins as one of the name does;
        * relative: like rarity, with the name of a column's table, or those of a table's columns;
        * inside: the word stands in the name, but is none of its words.

        Args:
            words: of the question. One that is there twice counts where it is first.

        Returns:
            Position of the item, that of the word, and the values, of which one is not 0.

        Example:
            >>> matcher = NameMatcher([("pet", ""), ("pet", "PetAge"), ("pet", "name")])
            >>> [found[:2] for found in matcher.match(["old", "pets"])]
            [(0, 1), (1, 1), (2, 1)]
            >>> for found in matcher.match(["names"]):  # the column, and its table as a relative
            ...     print(found)
            (0, 0, (0.0, 0.0, 0.0, 0.0, 0.0, 1.0, 0.0))
            (2, 0, (1.0, 1.0, 1.0, 1.0, 0.0, 0.0, 0.0))
        """
        first: dict[str, int] = {}
        for place, word in enumerate(words):
            for part in normalise(word).split():
                first.setdefault(singular(part), place)
        found = []
        for stem, place in first.items():
            for item, values in self._find(stem).items():
                is_whole = values[0] and all(word in first for word in self._words[item])
                found.append((item, place, (*values[:3], values[1] * is_whole, *values[4:])))
        return found

    def _find(self, stem: str) -> Mapping[int, tuple[float, ...]]:
        """The items that a word is like, in order, and how; `whole` is left at 0."""
        if (known := self._known.get(stem)) is not None:
            return known
        found: dict[int, list[float]] = defaultdict(lambda: [0.0] * len(FEATURES))
        own = self._of_word.get(stem, {})
        for item in own:
            rarity = get_rarity(len(own), len(self._words))
            found[item][:3] = [1.0, 1 / len(self._words[item]), rarity]
        relatives = self._of_relative.get(stem, {})
        for item in relatives:
            found[item][5] = get_rarity(len(relatives), len(self._words))
        if len(stem) >= _MIN_CHARS:
            for word, items in self._of_word.items():
                shared = min(_SHARED_CHARS, len(stem), len(word))
                if shared >= _MIN_CHARS and word != stem and word[:shared] == stem[:shared]:
                    for item in items:
                        found[item][4] = 1.0
            for item, joined in enumerate(self._joined):
                if stem in joined and item not in own:
                    found[item][6] = 1.0
        if self._num_known > _MAX_KNOWN:
            self._known.clear()
            self._num_known = 0
        self._num_known += len(found) + 1
        known = {item: tuple(found[item]) for item in sorted(found)}
        self._known[stem] = known
        return known


def get_rarity(count: int, total: int) -> float:
    """How rare a word is that so many of all items have: 1 if one has, falling to near 0.

    Example:
        >>> get_rarity(1, 9), round(get_rarity(9, 9), 2)
        (1.0, 0.3)
    """
    return math.log1p(total / count) / math.log1p(total)


@dataclass(frozen=True, slots=True)
class NameWeights:
    """What one kind of items goes by, as numbers of a `LinkerHead` without states.

    Attributes:
        bias: of the logit.
        size: taken from it for each unit of the logarithm of the number of columns.
        parent: share of the table's logit that a column gets.
        link: share that a column gets of the smaller of that and of the likeliest table at the
            other end of its foreign keys.
        likeness: of the values of `FEATURES`, summed over the words of a question.
    """

    bias: float
    size: float
    parent: float
    link: float
    likeness: tuple[float, ...]


# Learnt with seed 0 by recipes/benchmarks/name_weights.py from 3,634 questions on the 140 databases
# of Spider's training split train_spider, 953 of them put to schemas of 3 to 20 of these databases.
# Kind by kind, in the order of `KINDS`.
NAME_WEIGHTS: Final = (
    NameWeights(0.16, 0.76, 0.0, 0.0, (-0.04, 1.35, 1.63, 2.01, 3.03, 1.74, -0.59)),
    NameWeights(-1.35, 0.62, 0.13, 0.0, (-0.78, 1.1, 2.48, 1.98, 1.72, 3.04, 2.08)),
    NameWeights(-1.14, 0.49, 0.22, 0.0, (0.04, 0.22, -0.25, 2.41, 1.39, 0.96, -0.24)),
    NameWeights(-0.07, 0.11, 0.09, 0.71, (-1.02, 0.24, 1.44, 0.58, 0.81, 1.37, -0.19)),
)
"""What a linker without a model goes by, for each of `KINDS`."""
