"""A teacher's distribution as it is kept on disk: its likeliest tokens and the rest, or samples.

The pair of a teacher and a student reduced to the same k tokens and the rest is a pair of
distributions over k + 1 events. Every divergence applies to it, is never negative, and never
exceeds that of the full vocabulary (the data processing inequality; `adaptive_kl`, whose weights
depend on the vocabulary, may).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from sense_trl.errors import InputError
from sense_trl.losses.logprobs import get_log_probs, scale_logits


def reduce_to_top_k(logits: Tensor, token_ids: Tensor, *, temperature: float = 1.0) -> Tensor:
    """Log-probabilities of k tokens and, last, of all others together.

    The temperature belongs in here: that of the rest cannot be changed afterwards. Give none to the
    divergence that compares the results.

    Args:
        logits: `[..., V]`.
        token_ids: `[..., k]`, k different tokens; those that the teacher finds likeliest, for the
            student as well.
        temperature: divides the logits; finite, above 0.

    Returns:
        `[..., k + 1]`, in nats. The last entry is that of the smallest normal number of the type
        at least, also where k = V leaves nothing.

    Raises:
        InputError: the leading shapes differ, or `temperature` is not a finite number above 0.

    Example:
        >>> import torch
        >>> logits = torch.tensor([0.5, 0.2, 0.2, 0.1]).log()
        >>> reduce_to_top_k(logits, torch.tensor([0, 1])).exp()
        tensor([0.5000, 0.2000, 0.3000])
    """
    _check_leading_shape("token_ids", token_ids, logits)
    logits = scale_logits(logits, temperature)
    finfo = torch.finfo(logits.dtype)
    top = logits.gather(-1, token_ids)
    # Summed over the others: 1 minus the mass of the top cancels where the model is sure.
    rest = logits.scatter(-1, token_ids, finfo.min).logsumexp(-1, keepdim=True)
    floor = top.detach().logsumexp(-1, keepdim=True) + math.log(finfo.tiny)
    return get_log_probs(torch.cat([top, torch.maximum(rest, floor)], dim=-1))


def add_tail(top_logps: Tensor) -> Tensor:
    """The same of log-probabilities alone, when the mass of the rest was not stored.

    A rest below the rounding of `top_logps` cannot be told from none; it is taken to be the
    machine epsilon, 1.2e-7 in float32.

    Args:
        top_logps: `[..., k]`, of k different tokens, in nats. 16-bit values are taken in float32,
            but they are rounded: their mass may be wrong by 1e-3, and the rest with it.

    Returns:
        `[..., k + 1]`, in nats.

    Example:
        >>> import torch
        >>> add_tail(torch.tensor([0.5, 0.2]).log()).exp()
        tensor([0.5000, 0.2000, 0.3000])
    """
    top_logps = scale_logits(top_logps)
    largest = math.log1p(-torch.finfo(top_logps.dtype).eps)
    log_mass = top_logps.logsumexp(-1, keepdim=True).clamp(max=largest)
    return torch.cat([top_logps, (-log_mass.expm1()).log()], dim=-1)


def sampled_forward_kl(
    student_logits: Tensor, token_ids: Tensor, teacher_logps: Tensor, *, temperature: float = 1.0
) -> Tensor:
    """Unbiased estimate of `forward_kl` from tokens that were drawn from the teacher.

    The mean of `log p(x) - log q(x)` over draws x from p, with replacement. Its expectation, and
    that of its gradient, are those of the full divergence, where the top k alone teach a student
    that nothing else exists. One estimate may be negative.

    Source: Sparse Logit Sampling: Accelerating Knowledge Distillation in LLMs, arXiv 2503.16870,
    with p itself as the proposal.

    Args:
        student_logits: `[..., V]`.
        token_ids: `[..., S]`, the draws; a token that was drawn twice stands there twice.
        teacher_logps: `[..., S]`, log p of the draws, at the temperature they were drawn with.
        temperature: that temperature; divides the student's logits.

    Returns:
        `[...]`, in nats.

    Raises:
        InputError: shapes differ, or `temperature` is not a finite number above 0.
    """
    _check_leading_shape("token_ids", token_ids, student_logits)
    if teacher_logps.shape != token_ids.shape:
        raise InputError(
            f"`teacher_logps` has shape {tuple(teacher_logps.shape)}; expected the shape of "
            f"`token_ids`, {tuple(token_ids.shape)}: one log-probability per drawn token."
        )
    log_q = get_log_probs(student_logits, temperature).gather(-1, token_ids)
    return (teacher_logps - log_q).mean(-1)


def _check_leading_shape(name: str, tensor: Tensor, logits: Tensor) -> None:
    if tensor.shape[:-1] != logits.shape[:-1]:
        raise InputError(
            f"`{name}` has shape {tuple(tensor.shape)}; expected one dimension behind those of the "
            f"logits without the vocabulary, {tuple(logits.shape[:-1])}."
        )
