"""What items of a schema are to each other, and how words of a question are like their names."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import Final

from sense_trl.linking.labels import ItemKey
from sense_trl.prompts.value_index import normalise
from sense_trl.prompts.values import get_key
from sense_trl.schema.naming import get_words, singular
from sense_trl.schema.schema import DatabaseSchema

KINDS: Final = ("table", "column", "primary key", "foreign key")
"""What an item may be; a foreign key is a column at either end of one."""

FEATURES: Final = ("is", "share", "rarity", "whole", "beginning", "relative", "inside")
"""How a word may be like a name; see `NameMatcher.match`."""

# Shorter ones begin alike, or stand in each other, by chance.
_MIN_CHARS: Final = 4
_SHARED_CHARS: Final = 5


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


def get_structure(schema: DatabaseSchema, items: Sequence[ItemKey]) -> ItemStructure:
    """Find what items of a schema are to each other; keys to what is not among them are left out.

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
        items: tables as (table, ""), and columns.
    """

    def __init__(self, items: Sequence[ItemKey]) -> None:
        self._words = [[singular(w) for w in get_words(column or table)] for table, column in items]
        self._joined = ["".join(get_words(column or table)) for table, column in items]
        self._of_word: dict[str, dict[int, None]] = defaultdict(dict)
        self._of_relative: dict[str, dict[int, None]] = defaultdict(dict)
        tables = {table: place for place, (table, column) in enumerate(items) if not column}
        for place, (table, column) in enumerate(items):
            for word in self._words[place]:
                self._of_word[word][place] = None
                if column:
                    self._of_relative[word][tables[table]] = None
            if column:
                for word in self._words[tables[table]]:
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
        stems = [singular(normalise(word)) for word in words]
        first = {stem: place for place, stem in reversed(list(enumerate(stems))) if stem}
        return [
            (item, place, values)
            for stem, place in sorted(first.items(), key=lambda pair: pair[1])
            for item, values in self._match(stem, first.keys())
        ]

    def _match(
        self, stem: str, question: Collection[str]
    ) -> Iterator[tuple[int, tuple[float, ...]]]:
        found: dict[int, list[float]] = defaultdict(lambda: [0.0] * len(FEATURES))
        own = self._of_word.get(stem, {})
        for item in own:
            words = self._words[item]
            share = 1 / len(words)
            is_whole = all(word in question for word in words)
            found[item][:4] = [1.0, share, self._get_rarity(own), share * is_whole]
        relatives = self._of_relative.get(stem, {})
        for item in relatives:
            found[item][5] = self._get_rarity(relatives)
        if len(stem) >= _MIN_CHARS:
            for word, items in self._of_word.items():
                shared = min(_SHARED_CHARS, len(stem), len(word))
                if shared >= _MIN_CHARS and word != stem and word[:shared] == stem[:shared]:
                    for item in items:
                        found[item][4] = 1.0
            for item, joined in enumerate(self._joined):
                if stem in joined and item not in own:
                    found[item][6] = 1.0
        for item in sorted(found):
            yield item, tuple(found[item])

    def _get_rarity(self, items: Collection[int]) -> float:
        count = len(self._words)
        return math.log1p(count / len(items)) / math.log1p(count)
