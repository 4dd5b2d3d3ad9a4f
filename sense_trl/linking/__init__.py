"""Schema linking: which tables and columns a question needs.

Labels out of gold SQL, the text in which a model reads a schema, and measures; no torch. What
learns from them stands in `losses/`, `trainers/linking/` and `steps/linking.py`; what prompts do
with scores, in `prompts/linking.py` and `prompts/pruning.py`.
"""

from sense_trl.linking.labels import LinkingLabels, get_linking_labels
from sense_trl.linking.measures import average_precision, recall_at

__all__ = ["LinkingLabels", "average_precision", "get_linking_labels", "recall_at"]
