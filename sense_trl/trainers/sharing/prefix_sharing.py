"""Prefix sharing in a trainer: whether it is exact there, and how a batch gets its tree."""

from __future__ import annotations

import logging
from typing import Any

import torch
from datasets import IterableDataset

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
from sense_trl.trainers.rows.several_rejected import EXAMPLE_INDEX
from sense_trl.trainers.sharing.grouped_sampler import CountGroups, GroupedSampler, SetSamplerEpoch
from sense_trl.trainers.sharing.heads import add_prefix_tree_head
from sense_trl.trainers.sharing.obstacles import (
    compare_with_rows,
    find_adapter_obstacle,
    find_sharing_obstacle,
    is_sharded,
)

logger = logging.getLogger(__name__)


def set_up_prefix_sharing(trainer: Any) -> bool:
    """Prepare the models and the collator of a trainer for trees, as `args.prefix_sharing` says.

    Call it once, after TRL has added its fused head to the models.

    Args:
        trainer: one of ours; its `model`, `ref_model`, `args`, `accelerator` and `data_collator`
            are read, and the collator is replaced.

    Returns:
        Whether batches get a tree; if not, the reason has been logged.

    Raises:
        InputError: `prefix_sharing` is True and a tree would not be exact.
    """
    setting = trainer.args.prefix_sharing
    if setting is False:
        return False
    models = [trainer.model, getattr(trainer, "ref_model", None)]
    models = [trainer.accelerator.unwrap_model(model) for model in models if model is not None]
    obstacle = _find_obstacle_in_options(trainer)
    if trainer.args.neftune_noise_alpha is not None:
        obstacle = obstacle or "`neftune_noise_alpha` asks for noise of its own in every row"
    for model in models:
        obstacle = obstacle or find_sharing_obstacle(model)
    if obstacle is None:
        if not any(isinstance(dataset, IterableDataset) for dataset in _get_datasets(trainer)):
            # With several processes, accelerate cuts the batches of a stream into pieces, which a
            # tree has not; `add_prefix_tree` makes one of each piece.
            trainer.data_collator = DataCollatorForPrefixTree(
                trainer.data_collator,
                is_required=False,
                pad_to_multiple_of=_get_row_multiple(trainer),
            )
        return True
    if setting is True:
        raise InputError(
            f"`prefix_sharing` is True, but {obstacle}. Set it to 'auto' to train without, or to "
            "False."
        )
    logger.warning("Common prefixes are computed once per row: %s.", obstacle)
    return False


def _get_row_multiple(trainer: Any) -> int:
    """What row lengths are a multiple of, for the kernels that attend.

    FlexAttention computes blocks of 128, and is compiled anew for other lengths. On a GPU `sdpa`
    takes its fast kernel only where rows of the mask begin at multiples of 16 bytes.
    """
    if trainer.model.config._attn_implementation == "flex_attention":
        return 128
    return 1 if trainer.accelerator.device.type == "cpu" else 8


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


def add_prefix_tree(trainer: Any, inputs: dict[str, Any]) -> dict[str, Any]:
    """The batch with its tree: the collator's, or one that is made now.

    A batch that a tree would not do justice to is returned as it is; the first one is logged.

    Raises:
        InputError: there is such a batch, and `prefix_sharing` is True.
    """
    if PREFIX_TREE in inputs:
        return inputs
    obstacle = find_tree_obstacle(inputs)
    if obstacle is None:
        return {**inputs, PREFIX_TREE: get_prefix_tree(inputs)}
    if trainer.args.prefix_sharing is True:
        raise InputError(
            f"`prefix_sharing` is True, but in a batch of the collator {obstacle}. Set it to "
            "'auto' to compute such batches row by row, or to False."
        )
    if not vars(trainer).get("_has_reported_rows"):
        trainer._has_reported_rows = True
        logger.warning("The common prefixes of a batch are computed once per row: %s.", obstacle)
    return inputs


def get_checked_answers(inputs: dict[str, Any]) -> Answers:
    """As `get_answers`, of a batch that says nothing else to the model.

    Raises:
        InputError: it does, or is laid out in another way.
    """
    # The collator has looked already.
    if ANSWERS not in inputs and (obstacle := find_tree_obstacle(inputs)):
        raise InputError(
            f"In a batch of the collator {obstacle}, expected what a teacher can be asked about: "
            "sequences of tokens, of which some are trained. Use TRL's collator, or train without "
            "a teacher."
        )
    return get_answers(inputs)


def log_tokens(trainer: Any, inputs: dict[str, Any]) -> None:
    """Add to the metrics what a micro-batch's tree computes, and what it saves.

    `tokens_computed` are its positions, all processes together; `tokens_saved` is the share of the
    padded batch's positions that it does without. A batch without a tree saves nothing.
    """
    input_ids = inputs["input_ids"]
    tree = inputs.get(PREFIX_TREE)
    num_tokens = (input_ids if tree is None else tree.input_ids).numel()
    computed: Any = num_tokens
    saved: Any = 1 - num_tokens / input_ids.numel()
    if trainer.accelerator.num_processes > 1:
        counts = torch.tensor([[computed, saved]])
        counts = counts.to(trainer.accelerator.device, non_blocking=True)
        counts = trainer.accelerator.gather(counts)
        computed, saved = counts[:, 0].sum(), counts[:, 1].mean()
    trainer._add_metric("prefix_sharing/tokens_computed", computed)
    trainer._add_metric("prefix_sharing/tokens_saved", saved)


def get_grouped_sampler(trainer: Any) -> GroupedSampler | None:
    """The sampler of a trainer's dataset, see `build_grouped_sampler`, told of its epochs."""
    sampler = build_grouped_sampler(trainer.train_dataset, trainer.args)
    if sampler is not None:
        trainer.add_callback(SetSamplerEpoch(sampler))
    if sampler is not None and trainer.args.group_by_columns:
        trainer.add_callback(CountGroups(sampler, trainer._metrics["train"]))
    return sampler


def build_grouped_sampler(dataset: Any, args: Any) -> GroupedSampler | None:
    """The sampler that `args.group_by_columns` asks for; None for the usual random order.

    Pairs that were one example with several rejected answers are grouped unasked.

    Args:
        dataset: for training.
        args: config of one of our trainers.

    Raises:
        InputError: the dataset has no such column, or is streamed.
    """
    columns = list(args.group_by_columns or [])
    # A stream is read in its own order.
    available = [] if isinstance(dataset, IterableDataset) else dataset.column_names
    if missing := set(columns) - set(available):
        raise InputError(
            f"`group_by_columns` names {sorted(missing)}, but the train dataset has no such "
            "columns, or is an IterableDataset. Name columns of a Dataset, e.g. ['db_id'], or "
            "leave the option out."
        )
    columns += [EXAMPLE_INDEX] if EXAMPLE_INDEX in available else []
    if not columns:
        return None
    values = [dataset.select_columns(column)[:][column] for column in columns]
    seed = args.seed if args.data_seed is None else args.data_seed
    keys = list(zip(*values, strict=True))
    return GroupedSampler(keys, args.group_size or args.per_device_train_batch_size, seed)


def _get_datasets(trainer: Any) -> list[Any]:
    evaluation = trainer.eval_dataset
    evaluations = evaluation.values() if isinstance(evaluation, dict) else [evaluation]
    return [trainer.train_dataset, *evaluations]


def _find_obstacle_in_options(trainer: Any) -> str | None:
    """What the trainer is set to do that neither a tree nor its head is made for."""
    parallelism = trainer.accelerator.parallelism_config
    obstacles = {
        "the dataset has images": trainer._is_vision_dataset,
        "the load-balancing loss of a mixture of experts counts the tokens of every row": (
            trainer.aux_loss_enabled
        ),
        "rows are split over devices by context or sequence parallelism": (
            parallelism is not None and (parallelism.cp_enabled or parallelism.sp_enabled)
        ),
        "`packing` and `padding_free` lay out rows of their own": (
            getattr(trainer.args, "packing", False) or trainer.padding_free
        ),
        "`compute_loss_func` and `label_smoothing_factor` need the logits of every row": (
            trainer.compute_loss_func is not None or trainer.label_smoother is not None
        ),
    }
    return next((obstacle for obstacle, is_there in obstacles.items() if is_there), None)
