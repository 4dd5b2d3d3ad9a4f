"""From logits to log-probabilities that any divergence can take."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from sense_trl.errors import InputError


def scale_logits(logits: Tensor, temperature: float = 1.0) -> Tensor:
    """Logits divided by the temperature, in float32 or better.

    Args:
        logits: `[..., V]`.
        temperature: finite, above 0.

    Returns:
        `[..., V]`; float32, or float64 where `logits` is.

    Raises:
        InputError: `temperature` is not a finite number above 0.
    """
    if not (math.isfinite(temperature) and temperature > 0.0):
        raise InputError(
            f"`temperature` is {temperature!r}, expected a finite number above 0; 1 leaves the "
            "distributions as they are."
        )
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    if temperature != 1.0:
        logits = logits / temperature
    return logits


def get_log_probs(logits: Tensor, temperature: float = 1.0) -> Tensor:
    """Log-probabilities of the softmax of `logits / temperature`, never -inf.

    The entry of a logit of -inf is the lowest number of the type: its probability is 0, and 0 times
    its log-probability is 0 rather than NaN, forward and backward.

    Args:
        logits: `[..., V]`.
        temperature: finite, above 0.

    Returns:
        `[..., V]`, in nats; float32, or float64 where `logits` is. NaN where all logits are -inf.

    Raises:
        InputError: `temperature` is not a finite number above 0.

    Example:
        >>> import torch
        >>> get_log_probs(torch.tensor([0.0, 0.0, float("-inf")])).exp()
        tensor([0.5000, 0.5000, 0.0000])
    """
    logits = scale_logits(logits, temperature)
    # Not by `log_softmax`: on a CPU it adds the exponentials up one after the other, which is 1e-5
    # off with a vocabulary of 50,000.
    log_probs = logits - logits.logsumexp(-1, keepdim=True)
    return log_probs.clamp(min=torch.finfo(log_probs.dtype).min)
