"""The one reduction: from per-token or per-sequence values to a scalar."""

from __future__ import annotations

import torch
from torch import Tensor

from sense_trl.errors import InputError


def masked_mean(
    values: Tensor, mask: Tensor, num_items_in_batch: int | Tensor | None = None
) -> Tensor:
    """Average `values` over the positions that `mask` selects.

    Masked positions never reach the sum, so they may hold anything, including NaN and infinities.
    When the mask selects nothing the result is 0 and still carries a graph, so that `backward()` of
    a batch without a single completion token works and gives zero gradients.

    Args:
        values: `[...]`, floating point.
        mask: same shape as `values`; boolean, or numbers of which the non-zero ones select.
        num_items_in_batch: divisor to use instead of the number of selected positions. Under
            gradient accumulation it is the number of items in *all* micro-batches of the
            optimiser step, which makes one batch of 8 equal 8 batches of 1.

    Returns:
        Scalar of the dtype of `values`.

    Raises:
        InputError: the shapes differ, or `num_items_in_batch` is negative.

    Example:
        >>> import torch
        >>> masked_mean(torch.tensor([1.0, 3.0, float("nan")]), torch.tensor([1, 1, 0]))
        tensor(2.)
        >>> masked_mean(torch.tensor([1.0, 3.0]), torch.tensor([1, 1]), num_items_in_batch=8)
        tensor(0.5000)
    """
    if values.shape != mask.shape:
        raise InputError(
            f"`mask` has shape {tuple(mask.shape)}; expected the shape of `values`, "
            f"{tuple(values.shape)}. Expand it explicitly: broadcasting would count a position "
            "several times."
        )
    selected = mask.bool()
    # `where` rather than a product: 0 * inf is NaN.
    total = torch.where(selected, values, torch.zeros_like(values)).sum()
    if num_items_in_batch is None:
        return total / selected.sum().clamp(min=1)
    # A count on a GPU is not looked at: the host would wait for it.
    if not (isinstance(num_items_in_batch, Tensor) and num_items_in_batch.is_cuda) and (
        num_items_in_batch < 0
    ):
        raise InputError(
            f"`num_items_in_batch` is {int(num_items_in_batch)}; expected a count of at least 0."
        )
    if isinstance(num_items_in_batch, Tensor):
        return total / num_items_in_batch.to(total.device).clamp(min=1)
    return total / max(num_items_in_batch, 1)
