"""`NameLinker`: which tables and columns a question is about, by names, kinds and keys."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Final

from sense_trl.linking.names import NAME_WEIGHTS, NameMatcher, get_names, get_rarity, get_structure
from sense_trl.linking.reading import split_question
from sense_trl.prompts.value_index import ValueMatch
from sense_trl.schema.formats import Descriptions
from sense_trl.schema.naming import ColumnKey, get_key, normalise, singular
from sense_trl.schema.schema import DatabaseSchema

# What a word of a description adds to a logit, times its rarity, and what a value adds: set by
# hand, for the questions that weights are learnt from have neither. A whole name adds some 4.
_DESCRIPTION_LOGIT: Final = 1.2
_VALUE_LOGIT: Final = 4.0


class NameLinker:
    """A `SchemaLinker` without a model: names, kinds, keys, descriptions and values.

    Names, kinds and keys are weighed as in `LinkerHead`, without its states, by numbers that were
    learnt from gold of Spider's training databases (`NAME_WEIGHTS`).

    Args:
        schema: the tables.
        descriptions: what tables and columns hold, by the schema's names.

    Example:
        >>> from sense_trl.database import ColumnInfo, TableInfo
        >>> columns = tuple(ColumnInfo(name, "", False, 0) for name in ("name", "age"))
        >>> tables = (TableInfo("pet", columns, (), False), TableInfo("log", columns, (), False))
        >>> scores = NameLinker(DatabaseSchema("d", "sqlite", tables)).score("ages of pets", ())
        >>> round(scores["pet", "age"], 2), round(scores["log", "name"], 2)
        (0.99, 0.1)
    """

    def __init__(self, schema: DatabaseSchema, descriptions: Descriptions | None = None) -> None:
        names = get_names(schema)
        self._items: Final = [get_key(*name) for name in names]
        self._structure: Final = get_structure(schema, self._items)
        self._matcher: Final = NameMatcher(names)
        size = math.log(max(1, sum(bool(column) for _, column in names)))
        self._base = [
            NAME_WEIGHTS[kind].bias - NAME_WEIGHTS[kind].size * size
            for kind in self._structure.kinds
        ]
        self._described: dict[str, list[int]] = defaultdict(list)
        for place, name in enumerate(names):
            for word in dict.fromkeys(_stem((descriptions or {}).get(name, ""))):
                self._described[word].append(place)

    def score(self, question: str, matches: Sequence[ValueMatch]) -> Mapping[ColumnKey, float]:
        """Probabilities that a question needs a table, as (table, ""), or a column."""
        text, spans = split_question(question)
        kinds, tables, linked = (
            self._structure.kinds,
            self._structure.tables,
            self._structure.linked,
        )
        logits = self._base.copy()
        for place, _, likeness in self._matcher.match([text[start:end] for start, end in spans]):
            values = zip(NAME_WEIGHTS[kinds[place]].likeness, likeness, strict=True)
            logits[place] += sum(weight * value for weight, value in values)
        for word in dict.fromkeys(_stem(text)):
            places = self._described.get(word, ())
            for place in places:
                logits[place] += _DESCRIPTION_LOGIT * get_rarity(len(places), len(self._items))
        named = {get_key(match.table, match.column) for match in matches}
        for place, item in enumerate(self._items):
            logits[place] += _VALUE_LOGIT * (item in named)
        scores = {}
        for place, item in enumerate(self._items):
            logit = logits[place]
            weights = NAME_WEIGHTS[kinds[place]]
            if item[1]:
                own = logits[tables[place]]
                ends = linked[place]
                logit += weights.parent * own
                if ends:
                    logit += weights.link * min(own, max(logits[end] for end in ends))
            scores[item] = 0.5 + 0.5 * math.tanh(logit / 2)
        return scores


def _stem(text: str) -> list[str]:
    return [singular(word) for word in normalise(text).split()]
