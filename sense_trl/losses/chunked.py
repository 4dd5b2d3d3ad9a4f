"""Functions of the logits of many rows, a chunk at a time: never `[M, V]`."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from torch import Tensor

from sense_trl.errors import InputError
from sense_trl.losses.logprobs import scale_logits

_CHUNK_BYTES = 64 * 2**20
"""Size of one chunk of float32 logits; a few such chunks are alive at once."""

GetValues: TypeAlias = Callable[[Tensor, slice], Iterable[Tensor]]
"""Maps logits `[C, V]`, and the slice of all rows that they are, to values `[C]`."""

Gather: TypeAlias = Callable[[Tensor, Tensor | None], AbstractContextManager[Any]]
"""Maps the weight and the bias of an output layer to the context in which they are whole."""


def _gather_nothing(weight: Tensor, bias: Tensor | None) -> AbstractContextManager[Any]:
    return nullcontext()


@dataclass(frozen=True)
class LogitTransform:
    """Scale, soft-capping and temperature, applied to `hidden @ weight.T` in this order."""

    scale: float = 1.0
    softcap: float | None = None
    temperature: float = 1.0

    def __call__(self, projected: Tensor) -> Tensor:
        logits = projected if self.scale == 1.0 else projected * self.scale
        if self.softcap is not None:
            logits = self.softcap * torch.tanh(logits / self.softcap)
        return scale_logits(logits, self.temperature)


def compute_in_chunks(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    get_values: GetValues,
    get_metrics: GetValues | None = None,
    transform: LogitTransform | None = None,
    *,
    chunk_bytes: int = _CHUNK_BYTES,
    gather: Gather = _gather_nothing,
) -> tuple[Tensor, Tensor]:
    """Functions of the float32 logits of many rows, without holding the logits of all of them.

    With a trainable output layer, the backward pass projects each chunk again. With a frozen one,
    each value's gradient with respect to its own row of `hidden` is taken while the chunk's logits
    are there, and the backward pass projects nothing. That is `[K, M, H]` in float32 to keep, K H /
    V of the logits, for 0.6 of the time at K = 1 and 0.7 to 1 at K = 2.

    Autocast would round the logits to 16 bits, and is off inside. On a GPU its type is that of the
    factors all the same, as it is in every other layer, and the products stay in float32.

    Args:
        hidden: `[M, H]`.
        weight, bias: of the output layer, `[V, H]` and `[V]`; those that are frozen cost nothing
            in the backward pass.
        get_values: maps logits `[C, V]` and the slice of the M rows that they are to K tensors
            `[C]`, or to `[K, C]`, the value of a row a function of this row's logits alone.
        get_metrics: the same to J tensors, without gradient and in the forward pass only.
        transform: applied to the projection; None for a model without scale and soft-capping.
        chunk_bytes: size of the logits of one chunk.
        gather: context in which `weight` and `bias` are whole, for parameters that are sharded
            outside their module's forward (DeepSpeed's ZeRO-3); entered forward and backward.

    Returns:
        `[K, M]` with a gradient, and `[J, M]` without, `[0, M]` for None.
    """
    is_frozen = not (weight.requires_grad or (bias is not None and bias.requires_grad))
    return _ChunkedLogits.apply(
        hidden,
        weight,
        bias,
        get_values,
        get_metrics,
        transform or LogitTransform(),
        chunk_bytes,
        gather,
        is_frozen and hidden.requires_grad and torch.is_grad_enabled(),
    )


def chunked_divergence(
    student_hidden: Tensor,
    student_weight: Tensor,
    student_bias: Tensor | None,
    teacher_hidden: Tensor,
    teacher_weight: Tensor,
    teacher_bias: Tensor | None,
    divergence: Callable[[Tensor, Tensor], Tensor],
    *,
    temperature: float = 1.0,
    student_transform: LogitTransform | None = None,
    teacher_transform: LogitTransform | None = None,
    chunk_bytes: int = _CHUNK_BYTES,
    gather: Gather = _gather_nothing,
) -> Tensor:
    """A divergence of two models from their hidden states: never `[M, V]` for either of them.

    The gradient flows to the student's three tensors. With a frozen output layer of the student,
    both models are projected once; with a trainable one, again in the backward pass.

    Args:
        student_hidden: `[M, H]`.
        student_weight, student_bias: of the student's output layer, `[V, H]` and `[V]`.
        teacher_hidden: `[M, H_t]`, of the same positions.
        teacher_weight, teacher_bias: `[V, H_t]` and `[V]`, whole; cut to the student's vocabulary
            where they are padded further, or the student's to theirs.
        divergence: of student and teacher logits, `[C, V]` each, to `[C]`; see `get_divergence`.
        temperature: both models' logits are divided by it before `divergence` sees them; leave it
            at 1 where the divergence has its own.
        student_transform, teacher_transform: applied to the projections before that; None for a
            model without scale and soft-capping.
        chunk_bytes, gather: as in `compute_in_chunks`, of the student's logits and output layer.

    Returns:
        `[M]`.

    Raises:
        InputError: the models have different numbers of positions; or as `divergence`.

    Example:
        >>> from sense_trl.losses.divergence import reverse_kl
        >>> student, teacher = torch.zeros(3, 4), torch.ones(3, 2)
        >>> weight, teacher_weight = torch.ones(10, 4), torch.ones(10, 2)
        >>> chunked_divergence(student, weight, None, teacher, teacher_weight, None, reverse_kl)
        tensor([0., 0., 0.])
    """
    if len(teacher_hidden) != len(student_hidden):
        raise InputError(
            f"`teacher_hidden` has {len(teacher_hidden)} rows; expected one for each of the "
            f"{len(student_hidden)} positions of `student_hidden`."
        )
    project_teacher = get_projection(teacher_weight, teacher_bias, teacher_transform)

    def get_values(logits: Tensor, rows: slice) -> list[Tensor]:
        teacher_logits = project_teacher(teacher_hidden[rows])
        scaled = (scale_logits(each, temperature) for each in (logits, teacher_logits))
        return [divergence(*scaled)]

    values, _ = compute_in_chunks(
        student_hidden,
        student_weight,
        student_bias,
        get_values,
        transform=student_transform,
        chunk_bytes=chunk_bytes,
        gather=gather,
    )
    return values[0]


def get_projection(
    weight: Tensor, bias: Tensor | None, transform: LogitTransform | None = None
) -> Callable[[Tensor], Tensor]:
    """A frozen output layer: maps hidden states `[C, H]` to float32 logits `[C, V]`.

    What has to be converted of the layer is converted here, once for all chunks. The result carries
    no gradient, and autocast does not reach it.
    """
    with torch.no_grad():
        right = _convert_weight(weight).t()
    transform = transform or LogitTransform()

    def project(hidden: Tensor) -> Tensor:
        with torch.no_grad(), _full_precision(hidden):
            return transform(_project(hidden, right, bias))

    return project


class _ChunkedLogits(torch.autograd.Function):  # type: ignore[misc]
    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        get_values: GetValues,
        get_metrics: GetValues | None,
        transform: LogitTransform,
        chunk_bytes: int,
        gather: Gather,
        saves_gradients: bool,
    ) -> tuple[Tensor, Tensor]:
        values, metrics, gradients = [], [], []
        factor_dtype = _get_factor_dtype(hidden)
        # Under ZeRO-3, parameters have even their shapes only while they are gathered.
        with _full_precision(hidden), gather(weight, bias):
            matrix = _convert_weight(weight, factor_dtype)
            for rows in _get_chunks(hidden, weight, chunk_bytes):
                projected = _project(hidden[rows], matrix.t(), bias)
                with torch.set_grad_enabled(saves_gradients):
                    logits = transform(projected.requires_grad_(saves_gradients))
                    chunk_values = list(get_values(logits, rows))
                if saves_gradients:
                    gradients.append(_get_row_gradients(chunk_values, projected, matrix))
                values.append(torch.stack(chunk_values).detach())
                if get_metrics is not None:
                    metrics.append(torch.stack(list(get_metrics(logits.detach(), rows))))
        ctx.get_values, ctx.transform = get_values, transform
        ctx.chunk_bytes, ctx.gather, ctx.factor_dtype = chunk_bytes, gather, factor_dtype
        saved = torch.cat(gradients, dim=1) if saves_gradients else None
        ctx.save_for_backward(hidden, weight, bias, saved)
        all_values = torch.cat(values, dim=1)
        all_metrics = torch.cat(metrics, dim=1) if metrics else all_values.new_empty(0, len(hidden))
        ctx.mark_non_differentiable(all_metrics)
        return all_values, all_metrics

    @staticmethod
    def backward(ctx: Any, grad_values: Tensor, _: Any) -> tuple[Tensor | None, ...]:
        *inputs, saved = ctx.saved_tensors
        if saved is None:
            grads = _get_gradients(ctx, inputs, grad_values)
        else:
            grads = [(grad_values[:, :, None] * saved).sum(0), None, None]
        typed = (
            None if grad is None else grad.to(tensor.dtype)
            for grad, tensor in zip(grads, inputs, strict=True)
        )
        return (*typed, *[None] * 6)


def _get_row_gradients(values: list[Tensor], projected: Tensor, matrix: Tensor) -> Tensor:
    """Gradients `[K, C, H]` of K values `[C]` with respect to their own rows of hidden states."""
    gradients = []
    for value in values:
        # A value may be a constant: a loss that a chunk has no part in.
        if not value.requires_grad:
            gradients.append(torch.zeros(len(value), matrix.shape[1], device=matrix.device))
            continue
        (gradient,) = torch.autograd.grad(
            value, projected, torch.ones_like(value), retain_graph=value is not values[-1]
        )
        gradients.append(_matmul(gradient, matrix))
    return torch.stack(gradients)


def _get_gradients(ctx: Any, inputs: list[Any], grad_values: Tensor) -> list[Tensor | None]:
    """Gradients of hidden states, weight and bias, those that are needed, chunk by chunk."""
    hidden, weight, bias = inputs
    with _full_precision(hidden), ctx.gather(weight, bias):
        grads = [
            torch.zeros(tensor.shape, dtype=torch.float32, device=tensor.device)
            if is_needed
            else None
            for tensor, is_needed in zip(inputs, ctx.needs_input_grad[:3], strict=True)
        ]
        grad_hidden, grad_weight, grad_bias = grads
        matrix = _convert_weight(weight, ctx.factor_dtype)
        for rows in _get_chunks(hidden, weight, ctx.chunk_bytes):
            projected = _project(hidden[rows], matrix.t(), bias).requires_grad_()
            with torch.enable_grad():
                values = torch.stack(list(ctx.get_values(ctx.transform(projected), rows)))
            (grad,) = torch.autograd.grad(values, projected, grad_values[:, rows])
            if grad_hidden is not None:
                grad_hidden[rows] = _matmul(grad, matrix)
            if grad_weight is not None:
                _add_matmul(grad_weight, grad.t(), hidden[rows].to(matrix.dtype))
            if grad_bias is not None:
                grad_bias += grad.sum(0)
    return grads


def _get_chunks(hidden: Tensor, weight: Tensor, chunk_bytes: int) -> list[slice]:
    num_rows = max(1, chunk_bytes // (4 * weight.shape[0]))
    # One empty chunk where there is nothing, so that the results have their shapes.
    return [slice(start, start + num_rows) for start in range(0, max(1, len(hidden)), num_rows)]


def _full_precision(like: Tensor) -> Any:
    return torch.autocast(like.device.type, enabled=False)


def _get_factor_dtype(like: Tensor) -> torch.dtype | None:
    """The type to which autocast converts the factors of a product; None without it."""
    kind = like.device.type
    return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else None


def _convert_weight(weight: Tensor, factor_dtype: torch.dtype | None = None) -> Tensor:
    """The type in which `_matmul` takes the head: converted once, not once per chunk."""
    if factor_dtype in _SHORT_TYPES and _multiplies_short_types(weight.device):
        return weight.to(factor_dtype)
    return weight if _is_short(weight) else weight.float()


def _project(hidden: Tensor, right: Tensor, bias: Tensor | None) -> Tensor:
    projected = _matmul(hidden, right)
    return projected if bias is None else projected + bias.float()


def _matmul(left: Tensor, right: Tensor) -> Tensor:
    """`left @ right` in float32: products of 16-bit numbers are not rounded to 16 bits."""
    if _is_short(right):
        return _multiply_short(left.to(right.dtype), right)
    return left.float() @ right.float()


def _add_matmul(total: Tensor, left: Tensor, right: Tensor) -> None:
    """Add `left @ right` to a float32 matrix, without a second one of its size where possible."""
    if _is_short(right):
        total += _matmul(left, right)
    else:
        total.addmm_(left.float(), right.float())


_SHORT_TYPES = (torch.bfloat16, torch.float16)


def _is_short(matrix: Tensor) -> bool:
    return matrix.dtype in _SHORT_TYPES and _multiplies_short_types(matrix.device)


def _multiplies_short_types(device: torch.device) -> bool:
    # CUDA alone multiplies 16-bit matrices into float32, from torch 2.8 on.
    version = tuple(int(part) for part in torch.__version__.split(".")[:2])
    return device.type == "cuda" and version >= (2, 8)


def _multiply_short(left: Tensor, right: Tensor) -> Tensor:
    return torch.mm(left, right, out_dtype=torch.float32)
