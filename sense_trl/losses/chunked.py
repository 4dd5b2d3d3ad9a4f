"""Functions of the logits of many rows, a chunk at a time: never `[M, V]`."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

_CHUNK_BYTES = 64 * 2**20
"""Size of one chunk of float32 logits; a few such chunks are alive at once."""

Gather = Callable[[Tensor, Tensor | None], AbstractContextManager[Any]]
"""Maps the weight and the bias of an output layer to the context in which they are whole."""


def _gather_nothing(weight: Tensor, bias: Tensor | None) -> AbstractContextManager[Any]:
    return nullcontext()


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


def compute_in_chunks(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    get_values: Callable[[Tensor, slice], Tensor],
    get_metrics: Callable[[Tensor, slice], Tensor],
    transform: LogitTransform | None = None,
    *,
    chunk_bytes: int = _CHUNK_BYTES,
    gather: Gather = _gather_nothing,
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
        gather: context in which `weight` and `bias` are whole, for parameters that are sharded
            outside their module's forward (DeepSpeed's ZeRO-3); entered forward and backward.

    Returns:
        `[K, M]` with a gradient, and `[J, M]` without.
    """
    transform = transform or LogitTransform()
    return _ChunkedLogits.apply(
        hidden, weight, bias, get_values, get_metrics, transform, chunk_bytes, gather
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
        gather: Gather,
    ) -> tuple[Tensor, Tensor]:
        ctx.save_for_backward(hidden, weight, bias)
        ctx.get_values, ctx.transform = get_values, transform
        ctx.chunk_bytes, ctx.gather = chunk_bytes, gather
        values, metrics = [], []
        # Under ZeRO-3, parameters have even their shapes only while they are gathered.
        with _full_precision(hidden), gather(weight, bias):
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
        with _full_precision(hidden), ctx.gather(weight, bias):
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
        return (*typed, None, None, None, None, None)


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
