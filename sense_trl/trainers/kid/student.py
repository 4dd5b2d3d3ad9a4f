"""The student on trees of answers, and in place of the model that TRL computes its loss with."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch

from sense_trl.collators import Answers
from sense_trl.prefix_tree import PrefixTree
from sense_trl.trainers.compat.dropout import evaluating
from sense_trl.trainers.compat.trl import FusedCausalLMOutput
from sense_trl.trainers.sharing.heads import LogitTerm


def lay_out_jointly(
    lay_out: Callable[..., PrefixTree], gold: Answers, judged: Answers
) -> tuple[PrefixTree, slice]:
    """The tree of the gold answers and the judged ones, and which sequences are the latter.

    The weight of a judged token makes an answer weigh as much as its gold one, whatever its length.

    Args:
        lay_out: makes a tree of answers and weights; see `PrefixSharing.lay_out`.
    """
    if judged is gold:
        return lay_out(gold), slice(None)
    weights = [
        [gold_length / max(length, 1)] * len(sequence)
        for gold_length, length, sequence in zip(
            gold.lengths, judged.lengths, judged.sequences, strict=True
        )
    ]
    both = Answers(gold.sequences + judged.sequences, gold.is_trained + judged.is_trained)
    weights = [[1.0] * len(sequence) for sequence in gold.sequences] + weights
    return lay_out(both, weights), slice(len(gold.sequences), None)


def run_student(model: Any, tree: PrefixTree, terms: Sequence[LogitTerm] = ()) -> Any:
    """The student's output on a tree, without gradient and without dropout."""
    with evaluating(model):
        return _run_on_tree(model, tree, terms)


class GoldRows:
    """Stands in for the model in `SFTTrainer.compute_loss`: runs it on the joint tree.

    TRL computes its loss and metrics of the gold answers from the first rows of the output; the
    rest of the output is kept.

    Args:
        model: what TRL would have been given.
        tree: of the gold answers, followed by others.
        term: the distillation term.
        num_gold: how many of the tree's sequences are gold.
    """

    def __init__(
        self, model: Callable[..., Any], tree: PrefixTree, term: LogitTerm, num_gold: int
    ) -> None:
        self._model = model
        self._tree = tree
        self._term = term
        self._num_gold = num_gold
        self.gold: Any = None
        self.kd_values: Any = None

    def __call__(self, **inputs: Any) -> Any:
        if not inputs.get("fused_lm_head"):
            # For `compute_metrics`, TRL wants the logits of the padded batch.
            return self._model(**inputs)
        output = _run_on_tree(self._model, self._tree, [self._term])
        (self.kd_values,) = output.logit_terms
        fields = ("log_probs", "entropy", "is_top1", "label_mask")
        self.gold = FusedCausalLMOutput(
            **{name: getattr(output, name)[: self._num_gold] for name in fields}
        )
        return self.gold


def _run_on_tree(model: Callable[..., Any], tree: PrefixTree, terms: Sequence[LogitTerm]) -> Any:
    return model(
        # Read for its width alone.
        labels=torch.empty_like(tree.sequence_nodes),
        fused_lm_head=True,
        use_cache=False,
        prefix_tree=tree,
        logit_terms=terms,
    )
