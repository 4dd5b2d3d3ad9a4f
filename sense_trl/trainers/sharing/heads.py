"""One pass over a prefix tree inside a model's forward, and its logits a chunk at a time.

DDP, FSDP and DeepSpeed wrap a module's forward and see an ordinary one here: parameters are
gathered, hooks run, gradients synchronise. What comes out has the shape that TRL's trainers expect
of a padded batch, so that all of their losses and metrics work on a tree as they are.
"""

from __future__ import annotations

import functools
import types
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.distributed.tensor import DTensor

from sense_trl.errors import InputError
from sense_trl.losses.chunked import LogitTransform, compute_in_chunks
from sense_trl.prefix_tree import PrefixTree
from sense_trl.trainers.compat.trl import FusedCausalLMOutput, maybe_gather_lm_head_ctx
from sense_trl.trainers.sharing.tree_attention import (
    choose_tree_attention,
    get_additive_mask,
    get_attention,
    get_tree_mask,
)

LogitTerm = Callable[[Tensor, slice | Tensor], Tensor]
"""Maps logits `[C, V]`, float32, to one differentiable value each, `[C]`.

A slice or an index tensor `[C]` says which of the tree's M trained nodes (`PrefixTree.target_ids`)
the C rows are: `values_of_all_nodes[rows]` picks theirs. A term must not keep the logits: they
exist for one chunk at a time, and again in the backward pass.
"""


TOKEN_METRICS: Final = ("entropy", "log_sum_sq_probs", "mean_logits", "is_top1")
"""What `_forward_tree` says of each token beside its log-probability."""


@dataclass
class PrefixTreeOutput(FusedCausalLMOutput):  # type: ignore[misc]
    """TRL's output of a padded batch, and the values of `logit_terms`, `[N, L - 1]` each."""

    logit_terms: tuple[Tensor, ...] | None = None


def add_prefix_tree_head(model: Any) -> None:
    """Let `model(..., labels=, fused_lm_head=True, prefix_tree=tree)` run on the tree.

    The result is what TRL's fused head gives for the padded batch (`log_probs`, `entropy`,
    `log_sum_sq_probs`, `mean_logits`, `is_top1`, `label_mask`: `[N, L - 1]`, 0 where nothing is
    trained; only `log_probs` carries a gradient), with every shared token computed once and only
    the nodes that predict a trained token projected onto the vocabulary. The projection is done in
    float32 whatever the autocast type, in chunks; the backward pass computes them again for a head
    that is trained, and not for a frozen one. Of the batch, `labels` is read for its width;
    `input_ids` and `attention_mask` are not read. Without `prefix_tree` the forward is the one
    there was. A tree whose rows are paths (`PrefixTree.from_sequences(..., share=False)`) reaches
    the backbone as a padded batch with an ordinary mask, which any causal model takes.

    `logit_terms=[...]` adds further values of the same logits, such as a distillation loss;
    `logit_temperature=` divides them, for all that is computed; `token_metrics=[...]` names those
    of the fields above that are wanted, where it is not all.

    Args:
        model: causal language model of transformers, to which TRL has added its fused head; below
            PEFT, DDP, FSDP and DeepSpeed, as TRL patches it. A model that has been prepared before
            is left as it is.
    """
    choose_tree_attention(model)
    if hasattr(model.forward, "runs_on_trees"):
        return
    original_forward = model.forward

    # `generate` validates its arguments against the signature of the model's own forward.
    @functools.wraps(type(model).forward)
    def forward(
        self: Any,
        *args: Any,
        prefix_tree: PrefixTree | None = None,
        logit_terms: Sequence[LogitTerm] = (),
        logit_temperature: float = 1.0,
        token_metrics: Sequence[str] = TOKEN_METRICS,
        **kwargs: Any,
    ) -> Any:
        # Without the fused head, TRL wants the logits of the padded batch, for `compute_metrics`.
        if prefix_tree is None or not kwargs.get("fused_lm_head"):
            return original_forward(*args, **kwargs)
        seq_len = kwargs["labels"].shape[1]
        transform = get_logit_transform(self.config.get_text_config())
        transform = replace(transform, temperature=logit_temperature)
        return _forward_tree(self, prefix_tree, seq_len, transform, logit_terms, token_metrics)

    forward.runs_on_trees = True  # type: ignore[attr-defined]
    model.forward = types.MethodType(forward, model)


def _forward_tree(
    model: Any,
    tree: PrefixTree,
    seq_len: int,
    transform: LogitTransform,
    logit_terms: Sequence[LogitTerm],
    token_metrics: Sequence[str],
) -> PrefixTreeOutput:
    # Looked up on every call: FSDP and PEFT replace backbone and head after the patch.
    hidden = model.base_model(**get_model_inputs(model, tree), use_cache=False).last_hidden_state
    head = model.get_output_embeddings()
    weight, bias = head.weight, getattr(head, "bias", None)
    if isinstance(weight, DTensor):
        weight, bias = weight.full_tensor(), None if bias is None else bias.full_tensor()
    # A model split over devices may end on another one than its head.
    predicting = hidden.flatten(0, 1)[tree.predicting_nodes].to(weight.device)
    targets = tree.target_ids.to(weight.device)

    def get_values(logits: Tensor, rows: slice) -> list[Tensor]:
        # Not by `log_softmax`: on a CPU it adds the exponentials up one after the other, which is
        # 1e-5 off with a vocabulary of 50,000, for all tokens in the same direction.
        log_probs = logits.gather(1, targets[rows][:, None])[:, 0] - logits.logsumexp(-1)
        return [log_probs, *(term(logits, rows) for term in logit_terms)]

    def get_metrics(logits: Tensor, rows: slice) -> list[Tensor]:
        log_probs = logits - logits.logsumexp(-1, keepdim=True)
        probs = log_probs.exp()
        compute = {
            # The logits have been read often enough: no second `logsumexp`. A sum of squares of
            # probabilities is 1 / V or more, so it has a logarithm.
            "entropy": lambda: -torch.linalg.vecdot(probs, log_probs),
            "log_sum_sq_probs": lambda: torch.linalg.vecdot(probs, probs).log(),
            "mean_logits": lambda: logits.mean(-1),
            "is_top1": lambda: (logits.argmax(-1) == targets[rows]).float(),
        }
        return [compute[name]() for name in token_metrics]

    values, metrics = compute_in_chunks(
        predicting,
        weight,
        bias,
        get_values,
        get_metrics if token_metrics else None,
        transform,
        gather=maybe_gather_lm_head_ctx,
    )

    def spread(value: Tensor) -> Tensor:
        on_sequences = tree.to_sequences(value.to(tree.target_index.device))[:, 1:]
        # A batch padded to a multiple is wider than its longest sequence.
        return F.pad(on_sequences, (0, seq_len - 1 - on_sequences.shape[1]))

    log_probs, *terms = (spread(value) for value in values)
    known = {name: spread(metric) for name, metric in zip(token_metrics, metrics, strict=True)}
    if "is_top1" in known:
        known["is_top1"] = known["is_top1"].bool()
    return PrefixTreeOutput(
        log_probs=log_probs,
        **known,
        label_mask=spread(torch.ones_like(values[0].detach())).bool(),
        logit_terms=tuple(terms),
    )


def get_model_inputs(model: Any, tree: PrefixTree) -> dict[str, Any]:
    """Keywords with which a model's backbone is called to run on a tree."""
    if tree.rows_are_paths:
        index = torch.arange(tree.input_ids.shape[1], device=tree.input_ids.device)
        is_token = index < tree.row_lengths[:, None]
        return {"input_ids": tree.input_ids, "attention_mask": is_token.long()}
    return {
        "input_ids": tree.input_ids,
        "position_ids": tree.position_ids,
        "attention_mask": _get_mask(model, tree),
    }


def _get_mask(model: Any, tree: PrefixTree) -> Any:
    # Policy, reference and teacher may run on the same tree.
    implementation = get_attention(model.config)
    if implementation == "flex_attention":
        return tree.keep("blocks", tree.get_block_mask)
    if implementation == "sdpa":
        return get_tree_mask(tree, _get_computing_dtype(model))
    # Eager attention adds the mask to its scores.
    return get_additive_mask(tree, model.dtype)


def _get_computing_dtype(model: Any) -> torch.dtype:
    """Type of the model's queries and keys."""
    kind = model.device.type
    return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else model.dtype


def get_logit_transform(config: Any) -> LogitTransform:
    """Scale and soft-capping of the logits as the text part of a model's config states them.

    The same settings are read as by TRL's fused head: `logit_scale` (Cohere), `output_multiplier`
    (Muse Glimmer), `lm_head_multiplier` (Falcon-H1), `logits_scaling` (a divisor in Granite and
    MiniCPM3, a factor in HyperCLOVA X), and `final_logit_softcapping` (Gemma).
    """
    scale = None
    for name in ("logit_scale", "output_multiplier", "lm_head_multiplier"):
        if scale is None:
            scale = getattr(config, name, None)
    if scale is None and (scaling := getattr(config, "logits_scaling", None)) is not None:
        scale = scaling if config.model_type == "hyperclovax" else 1 / scaling
    return LogitTransform(
        scale=1.0 if scale is None else scale,
        softcap=getattr(config, "final_logit_softcapping", None),
    )


def get_vocab_size(model: Any) -> int:
    """Number of rows of a model's head, whole.

    Args:
        model: of transformers; under DeepSpeed's ZeRO-3, whose parameters have no rows while they
            are not gathered, as well.
    """
    weight = model.get_output_embeddings().weight
    return int(getattr(weight, "ds_shape", weight.shape)[0])


def transfer_term(
    term: LogitTerm, source: PrefixTree, target: PrefixTree, sequences: slice
) -> LogitTerm:
    """A term over one tree as a term over another tree that holds its sequences among others.

    A teacher then reads no more than it is asked about, in whatever rows suit it.

    Args:
        term: over `source`.
        source: its N sequences are those of `target` that `sequences` picks, in the same order, and
            train the same tokens.
        target: the tree that the new term is over; nodes that none of those sequences trains get 0.
        sequences: of `target`.

    Raises:
        InputError: the term gives other than one value per row, when it is asked.
    """
    # Which rows a term is asked about is known where the trees were made: no device is waited for.
    own, whole = source.on_host, target.on_host
    is_trained = own.target_index < len(own.target_ids)
    indices = whole.target_index[sequences, : own.target_index.shape[1]]
    nodes = torch.full_like(whole.target_ids, -1)
    nodes[indices[is_trained]] = own.target_index[is_trained]

    def transferred(logits: Tensor, rows: slice | Tensor) -> Tensor:
        asked = nodes[rows.cpu() if isinstance(rows, Tensor) else rows]
        (places,) = (asked >= 0).nonzero(as_tuple=True)
        asked, places = (
            index.to(logits.device, non_blocking=True) for index in (asked[places], places)
        )
        is_whole = len(places) == len(logits)
        values = term(logits if is_whole else logits[places], asked)
        if values.shape != places.shape:
            raise InputError(
                f"The divergence from the teacher has the shape {list(values.shape)} for the "
                f"logits of {len(places)} tokens; expected one value per token, "
                f"{[len(places)]}: reduce the last dimension, that of the vocabulary, alone."
            )
        if is_whole:
            return values
        zeros = torch.zeros(len(logits), dtype=values.dtype, device=logits.device)
        return zeros.index_copy(0, places, values)

    return transferred
