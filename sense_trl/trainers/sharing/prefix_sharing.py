"""Prefix sharing in a trainer: the check that it is exact there, and the trees of batches."""

from __future__ import annotations

import logging
from typing import Any

import torch
from datasets import IterableDataset
from torch import Tensor

from sense_trl.collators import (
    ANSWERS,
    PREFIX_TREE,
    Answers,
    DataCollatorForPrefixTree,
    find_tree_obstacle,
    get_answers,
    get_prefix_tree,
)
from sense_trl.errors import InputError
from sense_trl.prefix_tree import PrefixTree
from sense_trl.trainers.rows.checks import get_column_names
from sense_trl.trainers.sharing.heads import add_prefix_tree_head
from sense_trl.trainers.sharing.obstacles import (
    compare_with_rows,
    find_adapter_obstacle,
    find_sharing_obstacle,
    is_sharded,
)
from sense_trl.trainers.sharing.tree_attention import get_attention

logger = logging.getLogger(__name__)


class PrefixSharing:
    """Prefix sharing in one trainer: how its batches get trees, and what is logged of them.

    The models are prepared for trees where `args.prefix_sharing` asks for it and a tree gives their
    own values; otherwise the reason is logged, and batches stay as they are. Make it once, after
    TRL has added its fused head to the models.

    Attributes:
        is_on: True where batches get a tree.

    Args:
        trainer: one of ours; its `model`, `ref_model`, `args`, `accelerator` and datasets are read.

    Raises:
        InputError: `prefix_sharing` is True and a tree would not be exact.
    """

    def __init__(self, trainer: Any) -> None:
        self._trainer = trainer
        self._has_reported_rows = False
        setting = trainer.args.prefix_sharing
        obstacle = None if setting is False else _prepare_models(trainer)
        self.is_on = setting is not False and obstacle is None
        if obstacle is None:
            return
        if setting is True:
            raise InputError(
                f"`prefix_sharing` is True, but {obstacle}. Set it to 'auto' to train without, or "
                "to False."
            )
        logger.warning("Common prefixes are computed once per row: %s.", obstacle)

    def wrap_collator(self, collator: Any) -> Any:
        """The collator, with the tree of each batch where trees are made before training asks."""
        if not self.is_on or has_streams(self._trainer):
            return collator
        return DataCollatorForPrefixTree(
            collator, is_required=False, pad_to_multiple_of=self.row_multiple
        )

    def add_tree(self, inputs: dict[str, Any]) -> dict[str, Any]:
        """The batch with its tree: the collator's, or one that is made now.

        A batch that a tree would not do justice to is returned as it is; the first one is logged.

        Raises:
            InputError: there is such a batch, and `prefix_sharing` is True.
        """
        if not self.is_on or PREFIX_TREE in inputs:
            return inputs
        obstacle = find_tree_obstacle(inputs)
        if obstacle is None:
            tree = get_prefix_tree(inputs, pad_to_multiple_of=self.row_multiple)
            return {**inputs, PREFIX_TREE: tree}
        if self._trainer.args.prefix_sharing is True:
            raise InputError(
                f"`prefix_sharing` is True, but in a batch of the collator {obstacle}. Set it to "
                "'auto' to compute such batches row by row, or to False."
            )
        if not self._has_reported_rows:
            self._has_reported_rows = True
            logger.warning(
                "The common prefixes of a batch are computed once per row: %s.", obstacle
            )
        return inputs

    def lay_out(self, answers: Answers, weights: Any = None) -> PrefixTree:
        """The tree of some answers on the trainer's device; of rows, where nothing is shared.

        Args:
            answers: to lay out.
            weights: of their tokens, as `PrefixTree.from_sequences` takes them.
        """
        tree = PrefixTree.from_sequences(
            answers.sequences, answers.is_trained, weights, share=self.is_on
        )
        return tree.to(self._trainer.accelerator.device, non_blocking=True)

    def log_tokens(self, padded: Tensor, tree: PrefixTree | None) -> None:
        """Add to the metrics what a micro-batch's tree computes, and what it saves.

        `tokens_computed` are its positions, all processes together; `tokens_saved` is the share of
        the padded batch's positions that it does without.

        Args:
            padded: a tensor with an element for each position of the padded batch.
            tree: of the batch; one without saves nothing.
        """
        if not self.is_on:
            return
        trainer = self._trainer
        num_tokens = (padded if tree is None else tree.input_ids).numel()
        computed: Any = num_tokens
        saved: Any = 1 - num_tokens / padded.numel()
        if trainer.accelerator.num_processes > 1:
            counts = torch.tensor([[computed, saved]])
            counts = counts.to(trainer.accelerator.device, non_blocking=True)
            counts = trainer.accelerator.gather(counts)
            computed, saved = counts[:, 0].sum(), counts[:, 1].mean()
        trainer._add_metric("prefix_sharing/tokens_computed", computed)
        trainer._add_metric("prefix_sharing/tokens_saved", saved)

    @property
    def row_multiple(self) -> int:
        """Number of which row lengths are multiples, for the kernels that attend.

        FlexAttention computes blocks of 128, and is compiled anew for other lengths. On a GPU
        `sdpa` takes its fast kernel only where rows of the mask begin at multiples of 16 bytes.
        """
        if get_attention(self._trainer.model.config) == "flex_attention":
            return 128
        return 1 if self._trainer.accelerator.device.type == "cpu" else 8


def has_streams(trainer: Any) -> bool:
    """True for a trainer with a streamed dataset.

    With several processes, accelerate cuts the batches of a stream into pieces, which what a
    collator adds to a batch as a whole has not: it is made of each piece.
    """
    evaluation = trainer.eval_dataset
    evaluations = evaluation.values() if isinstance(evaluation, dict) else [evaluation]
    datasets = [trainer.train_dataset, *evaluations]
    return any(isinstance(dataset, IterableDataset) for dataset in datasets)


def _prepare_models(trainer: Any) -> str | None:
    """Prepare a trainer's models for trees; returns the reason where these are not exact."""
    obstacle = _find_obstacle_in_options(trainer)
    if trainer.args.neftune_noise_alpha is not None:
        obstacle = obstacle or "`neftune_noise_alpha` asks for noise of its own in every row"
    for model in (trainer.model, getattr(trainer, "ref_model", None)):
        if model is not None:
            model = trainer.accelerator.unwrap_model(model)
            obstacle = obstacle or find_sharing_obstacle(model)
    return obstacle


def require_trees(trainer: Any) -> None:
    """Let the model of a trainer run on trees, of shared prefixes or not, for values of its logits.

    Raises:
        InputError: a batch of the trainer is laid out in another way, or the model's logits are not
            what we take them for, with the reason.
    """
    model = trainer.accelerator.unwrap_model(trainer.model)
    adapters = getattr(model, "peft_config", None) or {}
    base = model.get_base_model() if adapters else model
    add_prefix_tree_head(base)
    obstacle = _find_obstacle_in_options(trainer) or find_adapter_obstacle(adapters, share=False)
    if obstacle is None and not any(is_sharded(parameter) for parameter in base.parameters()):
        obstacle = compare_with_rows(base, share=False)
    if obstacle is not None:
        raise InputError(
            f"Learning from a teacher needs one sequence per row and its hidden states, but "
            f"{obstacle}. Change that, or train without a teacher."
        )


def get_checked_answers(inputs: dict[str, Any]) -> Answers:
    """As `get_answers`, of a batch that says nothing else to the model.

    Raises:
        InputError: it does, or is laid out in another way.
    """
    # The collator has looked already.
    if ANSWERS not in inputs and (obstacle := find_tree_obstacle(inputs)):
        raise InputError(
            f"In a batch of the collator {obstacle}; expected what a teacher can be asked about: "
            "sequences of tokens, of which some are trained. Use TRL's collator, or train without "
            "a teacher."
        )
    return get_answers(inputs)


def _has_images(dataset: Any) -> bool:
    return dataset is not None and not {"image", "images"}.isdisjoint(get_column_names(dataset))


def _find_obstacle_in_options(trainer: Any) -> str | None:
    """A setting of the trainer that neither a tree nor its head is made for, as a reason."""
    parallelism = trainer.accelerator.parallelism_config
    obstacles = {
        "the dataset has images": _has_images(trainer.train_dataset),
        "the load-balancing loss of a mixture of experts counts the tokens of every row": (
            trainer.aux_loss_enabled
        ),
        "rows are split over devices by context or sequence parallelism": (
            parallelism is not None and (parallelism.cp_enabled or parallelism.sp_enabled)
        ),
        "`packing` and `padding_free` lay out rows of their own": (
            getattr(trainer.args, "packing", False) or getattr(trainer, "padding_free", False)
        ),
        "`compute_loss_func` and `label_smoothing_factor` need the logits of every row": (
            # For transformers before 5.19 TRL puts a text there.
            callable(trainer.compute_loss_func) or trainer.label_smoother is not None
        ),
    }
    return next((obstacle for obstacle, is_there in obstacles.items() if is_there), None)
