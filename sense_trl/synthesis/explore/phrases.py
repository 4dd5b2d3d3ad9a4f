"""`PhraseBook`: what tables and columns are called in questions."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence

from sense_trl.schema.graph import ColumnName
from sense_trl.schema.naming import get_words, plural, singular


class PhraseBook:
    """Names for tables and columns: the words of the identifier, or one of the given phrases.

    Args:
        tables: phrases for a table, in the singular, by its name.
        columns: phrases for a column.

    Example:
        >>> book = PhraseBook()
        >>> rng = random.Random(0)
        >>> book.get_table("race_tracks", rng), book.get_tables("race_tracks", rng)
        ('race track', 'race tracks')
        >>> book.get_column(ColumnName("singer", "Song_release_year"), rng)
        'song release year'
    """

    def __init__(
        self,
        *,
        tables: Mapping[str, Sequence[str]] | None = None,
        columns: Mapping[ColumnName, Sequence[str]] | None = None,
    ) -> None:
        self._tables = tables or {}
        self._columns = columns or {}

    def get_table(self, table: str, rng: random.Random) -> str:
        """One row of a table."""
        given = self._tables.get(table)
        return rng.choice(given) if given else _change_last(table, singular)

    def get_tables(self, table: str, rng: random.Random) -> str:
        """Several rows of a table."""
        return plural_phrase(self.get_table(table, rng))

    def get_column(self, column: ColumnName, rng: random.Random) -> str:
        """The value of a column."""
        given = self._columns.get(column)
        if given:
            return rng.choice(given)
        return " ".join(get_words(column.column)) or column.column


def plural_phrase(phrase: str) -> str:
    """A phrase with its last word in the plural."""
    return _change_last(phrase, plural)


def _change_last(name: str, change: Callable[[str], str]) -> str:
    words = get_words(name)
    return " ".join([*words[:-1], change(words[-1])]) if words else name
