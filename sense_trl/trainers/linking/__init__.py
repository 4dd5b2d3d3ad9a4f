"""Learning which items of a prefix a text is about, on the states of a causal language model.

It knows no SQL: items are spans of a prefix, words are spans of what comes behind it.
"""

from sense_trl.trainers.linking.head import ItemRelations, LinkerHead
from sense_trl.trainers.linking.reader import StateReader
from sense_trl.trainers.linking.state_cache import StateCache

__all__ = ["ItemRelations", "LinkerHead", "StateCache", "StateReader"]
