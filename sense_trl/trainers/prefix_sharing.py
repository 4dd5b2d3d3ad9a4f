"""Prefix sharing in a trainer: whether a tree is exact for a model, and how a batch gets one.

A tree gives a model's own values where every position sees all that came before it and knows its
position from `position_ids`. Both are checked before training: the settings that only show on long
texts by the config, everything else by comparing values on a few tokens.
"""

from __future__ import annotations

import logging
from typing import Any

import torch
from datasets import IterableDataset
from torch import Tensor
from torch.distributed.tensor import DTensor

from sense_trl.collators import PREFIX_TREE, DataCollatorForPrefixTree, get_prefix_tree
from sense_trl.errors import InputError
from sense_trl.prefix_tree import PrefixTree
from sense_trl.trainers.grouped_sampler import CountGroups, GroupedSampler, SetSamplerEpoch
from sense_trl.trainers.heads import add_prefix_tree_head
from sense_trl.trainers.several_rejected import EXAMPLE_INDEX

logger = logging.getLogger(__name__)

_ATTENTION_WITH_MASKS = ("sdpa", "eager", "flex_attention")
# Compared with separate rows in the tests, for models whose weights cannot be run on their own.
_EXACT_MODEL_TYPES = frozenset({"llama", "mistral", "qwen2", "qwen3"})
# Largest difference between log-probabilities in nats that counts as rounding. The logits of a
# 16-bit model are rounded to 0.06 where they are computed row by row.
_TOLERANCE_32_BITS = 1e-3
_TOLERANCE_16_BITS = 0.5


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
    for model in models:
        obstacle = obstacle or find_sharing_obstacle(model)
    if obstacle is None:
        if not any(isinstance(dataset, IterableDataset) for dataset in _get_datasets(trainer)):
            # With several processes, accelerate cuts the batches of a stream into pieces, which a
            # tree has not; `add_prefix_tree` makes one of each piece.
            trainer.data_collator = DataCollatorForPrefixTree(trainer.data_collator)
        return True
    if setting is True:
        raise InputError(
            f"`prefix_sharing` is True, but {obstacle}. Set it to 'auto' to train without, or to "
            "False."
        )
    logger.warning("Common prefixes are computed once per row: %s.", obstacle)
    return False


def require_trees(trainer: Any) -> None:
    """Let the model of a trainer run on trees, of shared prefixes or not, for values of its logits.

    Raises:
        InputError: a batch of the trainer is laid out in another way, with the reason.
    """
    model = trainer.accelerator.unwrap_model(trainer.model)
    adapters = getattr(model, "peft_config", None) or {}
    obstacle = _find_obstacle_in_options(trainer) or _find_obstacle_in_adapters(adapters)
    if obstacle is not None:
        raise InputError(
            f"Learning from a teacher needs one sequence per row and its hidden states, but "
            f"{obstacle}. Change that option, or train without a teacher."
        )
    add_prefix_tree_head(model.get_base_model() if adapters else model)


def add_prefix_tree(inputs: dict[str, Any]) -> dict[str, Any]:
    """The batch with its tree: the collator's, or one that is made now."""
    if PREFIX_TREE in inputs:
        return inputs
    return {**inputs, PREFIX_TREE: get_prefix_tree(inputs)}


def log_tokens(trainer: Any, inputs: dict[str, Any]) -> None:
    """Add to the metrics what a micro-batch's tree computes, and what it saves.

    `tokens_computed` are its positions, all processes together; `tokens_saved` is the share of the
    padded batch's positions that it does without.
    """
    input_ids = inputs["input_ids"]
    num_tokens = inputs[PREFIX_TREE].input_ids.numel()
    counts = torch.tensor([num_tokens, 1 - num_tokens / input_ids.numel()])
    counts = trainer.accelerator.gather(counts[None].to(input_ids.device))
    metrics = trainer._metrics["train" if trainer.model.training else "eval"]
    metrics["prefix_sharing/tokens_computed"].append(counts[:, 0].sum().item())
    metrics["prefix_sharing/tokens_saved"].append(counts[:, 1].mean().item())


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


# ---------------------------------------------------------------------------------- obstacles


def find_sharing_obstacle(model: Any) -> str | None:
    """Why a tree would not give the values of separate rows; None where it gives them.

    Args:
        model: causal language model of transformers, with or without adapters of PEFT, to which TRL
            has added its fused head. It is prepared for trees, and run on a few tokens.
    """
    peft_config = getattr(model, "peft_config", None) or {}
    if obstacle := _find_obstacle_in_adapters(peft_config):
        return obstacle
    base = model.get_base_model() if peft_config else model
    obstacle = _find_obstacle_in_config(base.config)
    if obstacle is not None:
        return obstacle
    add_prefix_tree_head(base)
    if any(is_sharded(parameter) for parameter in base.parameters()):
        if base.config.model_type in _EXACT_MODEL_TYPES:
            return None
        return (
            f"models of type {base.config.model_type!r} are compared with separate rows before "
            "training, which their sharded parameters do not allow"
        )
    return _find_obstacle_in_values(base)


def _find_obstacle_in_options(trainer: Any) -> str | None:
    """What the trainer is set to do that needs every row."""
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


def _find_obstacle_in_adapters(peft_config: dict[str, Any]) -> str | None:
    if any(getattr(adapter, "is_prompt_learning", False) for adapter in peft_config.values()):
        return "the adapter puts virtual tokens before every row"
    return None


def _find_obstacle_in_config(config: Any) -> str | None:
    implementation = config._attn_implementation
    if implementation not in _ATTENTION_WITH_MASKS:
        return (
            f"the attention implementation {implementation!r} takes no mask of a tree; load the "
            "model with attn_implementation 'sdpa' or 'flex_attention'"
        )
    # Models that read images as well keep the settings of their text part apart.
    text = config.get_text_config(decoder=True)
    others = set(getattr(text, "layer_types", None) or []) - {"full_attention"}
    if others:
        return f"the model has layers of other kinds than full attention: {sorted(others)}"
    # Qwen2 names a window that it uses only if `use_sliding_window` says so.
    window = getattr(text, "sliding_window", None) or getattr(text, "attention_chunk_size", None)
    if window and getattr(text, "use_sliding_window", True):
        return f"the model sees a window of {window} tokens, not all that came before"
    return None


def is_sharded(parameter: Tensor) -> bool:
    """Whether this process holds a part of a parameter only (FSDP, ZeRO-3), or its shape."""
    return isinstance(parameter, DTensor) or parameter.is_meta or hasattr(parameter, "ds_id")


@torch.no_grad()  # type: ignore[untyped-decorator]
def _find_obstacle_in_values(model: Any) -> str | None:
    """Compare a tree with separate rows: positions, masks and logits that are not what we take."""
    vocab_size = model.get_input_embeddings().num_embeddings
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(vocab_size, (40,), generator=generator).tolist()
    # Three answers to a prompt, the last two with a common beginning.
    sequences = [
        tokens[:20],
        tokens[:12] + tokens[20:30],
        tokens[:12] + tokens[20:24] + tokens[30:],
    ]
    tree = PrefixTree.from_sequences(sequences).to(model.device)
    was_training = model.training
    model.eval()
    try:
        labels = torch.zeros(tree.sequence_nodes.shape, dtype=torch.long, device=model.device)
        found = model(labels=labels, fused_lm_head=True, prefix_tree=tree).log_probs
        difference = 0.0
        for row, sequence in enumerate(sequences):
            ids = torch.tensor([sequence], device=model.device)
            logits = model(input_ids=ids, use_cache=False).logits[0, :-1].float()
            expected = logits.log_softmax(-1).gather(1, ids[0, 1:, None])[:, 0]
            error = (found[row, : len(expected)] - expected.to(found.device)).abs().max()
            difference = max(difference, error.item())
    except Exception as error:  # whatever a model of an unknown kind makes of a tree
        return f"the model cannot be run on a tree ({type(error).__name__}: {error})"
    finally:
        model.train(was_training)
    is_32_bits = model.dtype == torch.float32 and not torch.is_autocast_enabled(model.device.type)
    if not difference <= (_TOLERANCE_32_BITS if is_32_bits else _TOLERANCE_16_BITS):
        return (
            f"the model gives other values on a tree than on separate rows (log-probabilities "
            f"differ by {difference:.2g})"
        )
    return None
