"""One pass over a prefix tree inside a model's forward, and its logits a chunk at a time.

DDP, FSDP and DeepSpeed wrap a module's forward and see an ordinary one here: parameters are
gathered, hooks run, gradients synchronise. What comes out has the shape that TRL's trainers expect
of a padded batch, so that all of their losses and metrics work on a tree as they are.
"""

from __future__ import annotations

import functools
import types
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.distributed.tensor import DTensor

from sense_trl.prefix_tree import PrefixTree
from sense_trl.trainers._trl_compat import FusedCausalLMOutput, maybe_gather_lm_head_ctx

LogitTerm = Callable[[Tensor, slice], Tensor]
"""Maps logits `[C, V]`, float32, to one differentiable value each, `[C]`.

The slice says which of the tree's M trained nodes (`PrefixTree.target_ids`) the C rows are. A term
must not keep the logits: they exist for one chunk at a time, and again in the backward pass.
"""

_CHUNK_BYTES = 64 * 2**20
"""Size of one chunk of float32 logits; a few such chunks are alive at once."""


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
    float32 whatever the autocast type, in chunks that the backward pass computes again, and a
    frozen head gets no gradient. Of the batch, `labels` is read for its width; `input_ids` and
    `attention_mask` are not read. Without `prefix_tree` the forward is the one there was.

    `logit_terms=[...]` adds further values of the same logits, such as a distillation loss.

    Args:
        model: causal language model of transformers, to which TRL has added its fused head; below
            PEFT, DDP, FSDP and DeepSpeed, as TRL patches it.
    """
    original_forward = model.forward

    # `generate` validates its arguments against the signature of the model's own forward.
    @functools.wraps(type(model).forward)
    def forward(
        self: Any,
        *args: Any,
        prefix_tree: PrefixTree | None = None,
        logit_terms: Sequence[LogitTerm] = (),
        **kwargs: Any,
    ) -> Any:
        # Without the fused head, TRL wants the logits of the padded batch, for `compute_metrics`.
        if prefix_tree is None or not kwargs.get("fused_lm_head"):
            return original_forward(*args, **kwargs)
        return _forward_tree(self, prefix_tree, kwargs["labels"].shape[1], logit_terms)

    model.forward = types.MethodType(forward, model)


def _forward_tree(
    model: Any, tree: PrefixTree, seq_len: int, logit_terms: Sequence[LogitTerm]
) -> PrefixTreeOutput:
    # Looked up on every call: FSDP and PEFT replace backbone and head after the patch.
    hidden = model.base_model(
        input_ids=tree.input_ids,
        position_ids=tree.position_ids,
        attention_mask=_get_mask(model, tree),
        use_cache=False,
    ).last_hidden_state
    head = model.get_output_embeddings()
    weight, bias = head.weight, getattr(head, "bias", None)
    if isinstance(weight, DTensor):
        weight, bias = weight.full_tensor(), None if bias is None else bias.full_tensor()
    # A model split over devices may end on another one than its head.
    predicting = hidden.flatten(0, 1)[tree.predicting_nodes].to(weight.device)
    targets = tree.target_ids.to(weight.device)

    def get_values(logits: Tensor, rows: slice) -> Tensor:
        # Not by `log_softmax`: on a CPU it adds the exponentials up one after the other, which is
        # 1e-5 off with a vocabulary of 50,000, for all tokens in the same direction.
        log_probs = logits.gather(1, targets[rows][:, None])[:, 0] - logits.logsumexp(-1)
        return torch.stack([log_probs, *(term(logits, rows) for term in logit_terms)])

    def get_metrics(logits: Tensor, rows: slice) -> Tensor:
        log_probs = logits - logits.logsumexp(-1, keepdim=True)
        entropy = -(log_probs.exp() * log_probs).sum(-1)
        log_sum_sq_probs = (2 * log_probs).logsumexp(-1)
        is_top1 = logits.argmax(-1) == targets[rows]
        return torch.stack([entropy, log_sum_sq_probs, logits.mean(-1), is_top1.float()])

    values, metrics = compute_in_chunks(
        predicting,
        weight,
        bias,
        get_values,
        get_metrics,
        get_logit_transform(model.config.get_text_config()),
    )

    def spread(value: Tensor) -> Tensor:
        on_sequences = tree.to_sequences(value.to(tree.target_index.device))[:, 1:]
        # A batch padded to a multiple is wider than its longest sequence.
        return F.pad(on_sequences, (0, seq_len - 1 - on_sequences.shape[1]))

    log_probs, *terms = (spread(value) for value in values)
    entropy, log_sum_sq_probs, mean_logits, is_top1 = (spread(metric) for metric in metrics)
    return PrefixTreeOutput(
        log_probs=log_probs,
        entropy=entropy,
        log_sum_sq_probs=log_sum_sq_probs,
        mean_logits=mean_logits,
        is_top1=is_top1.bool(),
        label_mask=spread(torch.ones_like(values[0].detach())).bool(),
        logit_terms=tuple(terms),
    )


def _get_mask(model: Any, tree: PrefixTree) -> Any:
    implementation = model.config._attn_implementation
    if implementation == "flex_attention":
        return tree.get_block_mask()
    mask = tree.get_attention_mask()
    if implementation == "sdpa":
        return mask
    # Eager attention adds the mask to its scores.
    lowest = torch.finfo(model.dtype).min
    return torch.zeros(mask.shape, dtype=model.dtype, device=mask.device).masked_fill(~mask, lowest)


# ---------------------------------------------------------------------------------- logits


@dataclass(frozen=True)
class LogitTransform:
    """What a model does to `hidden @ weight.T` before the softmax."""

    scale: float = 1.0
    softcap: float | None = None

    def __call__(self, projected: Tensor) -> Tensor:
        logits = projected if self.scale == 1.0 else projected * self.scale
        if self.softcap is not None:
            logits = self.softcap * torch.tanh(logits / self.softcap)
        return logits


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


def compute_in_chunks(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    get_values: Callable[[Tensor, slice], Tensor],
    get_metrics: Callable[[Tensor, slice], Tensor],
    transform: LogitTransform | None = None,
    *,
    chunk_bytes: int = _CHUNK_BYTES,
) -> tuple[Tensor, Tensor]:
    """Functions of the float32 logits of many rows, without holding the logits of all of them.

    Only `hidden` is kept for the backward pass, which projects each chunk again. Autocast is off
    inside: it would round the logits to 16 bits.

    Args:
        hidden: `[M, H]`.
        weight, bias: of the output layer, `[V, H]` and `[V]`; those that are frozen cost nothing
            in the backward pass.
        get_values: maps logits `[C, V]` and the slice of the M rows that they are to `[K, C]`.
        get_metrics: the same to `[J, C]`, without gradient and in the forward pass only.
        transform: applied to the projection; None for a model without scale and soft-capping.
        chunk_bytes: size of the logits of one chunk.

    Returns:
        `[K, M]` with a gradient, and `[J, M]` without.
    """
    transform = transform or LogitTransform()
    return _ChunkedLogits.apply(
        hidden, weight, bias, get_values, get_metrics, transform, chunk_bytes
    )


class _ChunkedLogits(torch.autograd.Function):  # type: ignore[misc]
    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        get_values: Callable[[Tensor, slice], Tensor],
        get_metrics: Callable[[Tensor, slice], Tensor],
        transform: LogitTransform,
        chunk_bytes: int,
    ) -> tuple[Tensor, Tensor]:
        ctx.save_for_backward(hidden, weight, bias)
        ctx.get_values, ctx.transform, ctx.chunk_bytes = get_values, transform, chunk_bytes
        values, metrics = [], []
        # DeepSpeed's ZeRO-3 shows parameters only while they are gathered, their shapes as well.
        with _full_precision(hidden), maybe_gather_lm_head_ctx(weight, bias):
            right = _convert_weight(weight).t()
            for rows in _get_chunks(hidden, weight, chunk_bytes):
                logits = transform(_project(hidden[rows], right, bias))
                values.append(get_values(logits, rows))
                metrics.append(get_metrics(logits, rows))
        all_metrics = torch.cat(metrics, dim=1)
        ctx.mark_non_differentiable(all_metrics)
        return torch.cat(values, dim=1), all_metrics

    @staticmethod
    def backward(ctx: Any, grad_values: Tensor, _: Any) -> tuple[Tensor | None, ...]:
        inputs = hidden, weight, bias = ctx.saved_tensors
        with _full_precision(hidden), maybe_gather_lm_head_ctx(weight, bias):
            grads = [
                torch.zeros(tensor.shape, dtype=torch.float32, device=tensor.device)
                if is_needed
                else None
                for tensor, is_needed in zip(inputs, ctx.needs_input_grad[:3], strict=True)
            ]
            grad_hidden, grad_weight, grad_bias = grads
            matrix = _convert_weight(weight)
            for rows in _get_chunks(hidden, weight, ctx.chunk_bytes):
                projected = _project(hidden[rows], matrix.t(), bias).requires_grad_()
                with torch.enable_grad():
                    values = ctx.get_values(ctx.transform(projected), rows)
                (grad,) = torch.autograd.grad(values, projected, grad_values[:, rows])
                if grad_hidden is not None:
                    grad_hidden[rows] = _matmul(grad, matrix)
                if grad_weight is not None:
                    grad_weight += _matmul(grad.t(), hidden[rows])
                if grad_bias is not None:
                    grad_bias += grad.sum(0)
        typed = (
            None if grad is None else grad.to(tensor.dtype)
            for grad, tensor in zip(grads, inputs, strict=True)
        )
        return (*typed, None, None, None, None)


def _get_chunks(hidden: Tensor, weight: Tensor, chunk_bytes: int) -> list[slice]:
    num_rows = max(1, chunk_bytes // (4 * weight.shape[0]))
    # One empty chunk where there is nothing, so that the results have their shapes.
    return [slice(start, start + num_rows) for start in range(0, max(1, len(hidden)), num_rows)]


def _full_precision(like: Tensor) -> Any:
    return torch.autocast(like.device.type, enabled=False)


def _convert_weight(weight: Tensor) -> Tensor:
    """The type in which `_matmul` takes the head: converted once, not once per chunk."""
    return weight if _multiplies_16_bits(weight) else weight.float()


def _project(hidden: Tensor, right: Tensor, bias: Tensor | None) -> Tensor:
    projected = _matmul(hidden, right)
    return projected if bias is None else projected + bias.float()


def _matmul(left: Tensor, right: Tensor) -> Tensor:
    """`left @ right` in float32: products of 16-bit numbers are not rounded to 16 bits."""
    if _multiplies_16_bits(right):
        return torch.mm(left.to(right.dtype), right, out_dtype=torch.float32)
    return left.float() @ right.float()


def _multiplies_16_bits(matrix: Tensor) -> bool:
    # CUDA alone multiplies 16-bit matrices into float32, from torch 2.8 on.
    return (
        matrix.is_cuda
        and matrix.dtype in (torch.bfloat16, torch.float16)
        and tuple(int(part) for part in torch.__version__.split(".")[:2]) >= (2, 8)
    )
