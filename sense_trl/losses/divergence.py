"""Divergences of a student's next-token distribution from its teacher's, one value per position.

Throughout, p is the teacher's distribution and q the student's: the softmax of their logits divided
by `temperature`, the same for both. The factor `temperature ** 2` of Hinton et al. (arXiv
1503.02531, section 2.1), which keeps the size of the gradient, is not applied.

All of them are 0 where p = q and positive elsewhere, up to rounding. They are computed in float32,
or in float64 where the logits are, and accept logits of -inf, as long as what one model rules out
the other does too. A vector of log-probabilities is a vector of logits, so they also take what
`reduce_to_top_k` leaves of a vocabulary. The gradient flows to both arguments: compute the teacher
without one.
"""

from __future__ import annotations

import functools
import inspect
import math
from collections.abc import Callable
from typing import TypeAlias

import torch
from torch import Tensor

from sense_trl.errors import InputError
from sense_trl.losses.logprobs import get_log_probs

Divergence: TypeAlias = Callable[[Tensor, Tensor], Tensor]
"""Maps the student's and the teacher's logits, `[..., V]` each, to `[...]`."""


def forward_kl(
    student_logits: Tensor, teacher_logits: Tensor, *, temperature: float = 1.0
) -> Tensor:
    """`KL(p || q)`: the student has to cover everything that the teacher may say.

    Args:
        student_logits: `[..., V]`.
        teacher_logits: same shape.
        temperature: divides both; finite, above 0.

    Returns:
        `[...]`, in nats. Huge, where it should be infinite, if a token that p allows is ruled out
        by a logit of -inf in q.

    Raises:
        InputError: the shapes differ, or `temperature` is not a finite number above 0.

    Example:
        >>> import torch
        >>> forward_kl(torch.tensor([0.5, 0.5]).log(), torch.tensor([0.75, 0.25]).log())
        tensor(0.1308)
    """
    log_q, log_p = _get_log_probs(student_logits, teacher_logits, temperature)
    return _kl(log_p, log_q)


def reverse_kl(
    student_logits: Tensor, teacher_logits: Tensor, *, temperature: float = 1.0
) -> Tensor:
    """`KL(q || p)`: the student has to say only what the teacher may say.

    Args, Returns, Raises: as `forward_kl`.

    Example:
        >>> import torch
        >>> reverse_kl(torch.tensor([0.5, 0.5]).log(), torch.tensor([0.75, 0.25]).log())
        tensor(0.1438)
    """
    log_q, log_p = _get_log_probs(student_logits, teacher_logits, temperature)
    return _kl(log_q, log_p)


def generalized_jsd(
    student_logits: Tensor, teacher_logits: Tensor, *, beta: float = 0.5, temperature: float = 1.0
) -> Tensor:
    """`beta KL(p || m) + (1 - beta) KL(q || m)` with `m = beta p + (1 - beta) q`.

    It is bounded by ln 2 in between, and near both ends it tends to 0. By convention, TRL's and the
    paper's, `beta = 0` stands for `KL(p || q)` and `beta = 1` for `KL(q || p)`: the limits of the
    divergence over `beta` and over `1 - beta`.

    Source: On-Policy Distillation of Language Models (GKD), arXiv 2306.13649, eq. 1.

    Args:
        student_logits, teacher_logits, temperature: as in `forward_kl`.
        beta: weight of the teacher in the mixture, in [0, 1].

    Returns:
        `[...]`, in nats.

    Raises:
        InputError: as `forward_kl`, or `beta` is outside [0, 1].
    """
    if not 0.0 <= beta <= 1.0:
        raise InputError(f"`beta` is {beta!r}; expected the teacher's share, in [0, 1].")
    log_q, log_p = _get_log_probs(student_logits, teacher_logits, temperature)
    if beta == 0.0:
        return _kl(log_p, log_q)
    if beta == 1.0:
        return _kl(log_q, log_p)
    log_m = _mix(log_p, log_q, beta)
    return beta * _kl(log_p, log_m) + (1 - beta) * _kl(log_q, log_m)


def skew_kl(
    student_logits: Tensor, teacher_logits: Tensor, *, skew: float = 0.1, temperature: float = 1.0
) -> Tensor:
    """`KL(p || skew p + (1 - skew) q)`: forward KL that stays below `-log(skew)`.

    Source: DistiLLM: Towards Streamlined Distillation for Large Language Models, arXiv 2402.03898,
    section 3.1, with its `alpha` as `skew`.

    Args:
        student_logits, teacher_logits, temperature: as in `forward_kl`.
        skew: share of p in the second distribution, in [0, 1); 0 is `forward_kl`.

    Returns:
        `[...]`, in nats.

    Raises:
        InputError: as `forward_kl`, or `skew` is outside [0, 1).
    """
    log_q, log_p = _get_log_probs(student_logits, teacher_logits, temperature)
    return _skewed_kl(log_p, log_q, skew)


def skew_reverse_kl(
    student_logits: Tensor, teacher_logits: Tensor, *, skew: float = 0.1, temperature: float = 1.0
) -> Tensor:
    """`KL(q || skew q + (1 - skew) p)`: reverse KL that stays below `-log(skew)`.

    Source, Args, Returns, Raises: as `skew_kl`, with p and q exchanged; 0 is `reverse_kl`.
    """
    log_q, log_p = _get_log_probs(student_logits, teacher_logits, temperature)
    return _skewed_kl(log_q, log_p, skew)


def total_variation(
    student_logits: Tensor, teacher_logits: Tensor, *, temperature: float = 1.0
) -> Tensor:
    """`1/2 sum |p - q|`: the largest difference in probability of any set of tokens.

    Source: f-Divergence Minimization for Sequence-Level Knowledge Distillation, arXiv 2307.15190,
    here per token.

    Args, Raises: as `forward_kl`.

    Returns:
        `[...]`, in [0, 1].
    """
    log_q, log_p = _get_log_probs(student_logits, teacher_logits, temperature)
    return 0.5 * (log_p.exp() - log_q.exp()).abs().sum(-1)


def adaptive_kl(
    student_logits: Tensor,
    teacher_logits: Tensor,
    *,
    head_mass: float = 0.5,
    temperature: float = 1.0,
) -> Tensor:
    """`h KL(p || q) + (1 - h) KL(q || p)`, with h the share of `|p - q|` that lies in p's head.

    The head is the teacher's most likely token and those after it while their mass together is at
    most `head_mass`. Forward KL learns the head first and reverse KL the tail, so each gets the
    weight of what is left to learn there. No gradient flows through h.

    Source: Rethinking Kullback-Leibler Divergence in Knowledge Distillation for Large Language
    Models (AKL), arXiv 2404.02657, section 4; the edge of the head as in the released code.

    Args:
        student_logits, teacher_logits, temperature: as in `forward_kl`.
        head_mass: mu, in (0, 1).

    Returns:
        `[...]`, in nats.

    Raises:
        InputError: as `forward_kl`, or `head_mass` is outside (0, 1).
    """
    if not 0.0 < head_mass < 1.0:
        raise InputError(f"`head_mass` is {head_mass!r}; expected a probability in (0, 1).")
    log_q, log_p = _get_log_probs(student_logits, teacher_logits, temperature)
    share = _get_head_share(log_p.detach().exp(), log_q.detach().exp(), head_mass)
    return share * _kl(log_p, log_q) + (1 - share) * _kl(log_q, log_p)


DIVERGENCES: dict[str, Callable[..., Tensor]] = {
    "forward_kl": forward_kl,
    "reverse_kl": reverse_kl,
    "generalized_jsd": generalized_jsd,
    "skew_kl": skew_kl,
    "skew_reverse_kl": skew_reverse_kl,
    "total_variation": total_variation,
    "adaptive_kl": adaptive_kl,
}
"""The divergences by the name that configs know them by."""


def get_divergence(name: str, **hyperparameters: float) -> Divergence:
    """A divergence by its name, with its settings filled in and checked.

    Args:
        name: a key of `DIVERGENCES`.
        hyperparameters: keyword arguments of the divergence, such as `beta` or `temperature`.

    Raises:
        InputError: there is no such divergence, it has no such setting, or not with this value.

    Example:
        >>> import torch
        >>> skew = get_divergence("skew_kl", skew=0.1)
        >>> skew(torch.tensor([0.5, 0.5]).log(), torch.tensor([0.75, 0.25]).log())
        tensor(0.1070)
    """
    if name not in DIVERGENCES:
        raise InputError(f"`name` is {name!r}; expected one of {', '.join(DIVERGENCES)}.")
    divergence = DIVERGENCES[name]
    parameters = inspect.signature(divergence).parameters.values()
    known = [parameter.name for parameter in parameters if parameter.kind is parameter.KEYWORD_ONLY]
    for hyperparameter in hyperparameters:
        if hyperparameter not in known:
            raise InputError(
                f"`{hyperparameter}` is not a setting of {name}; expected {', '.join(known)}."
            )
    configured = functools.partial(divergence, **hyperparameters)
    # A value out of range fails here rather than in the first batch.
    configured(torch.zeros(2), torch.zeros(2))
    return configured


def _get_log_probs(
    student_logits: Tensor, teacher_logits: Tensor, temperature: float
) -> tuple[Tensor, Tensor]:
    """log q and log p, `[..., V]` each."""
    if student_logits.shape != teacher_logits.shape:
        raise InputError(
            f"`teacher_logits` has shape {tuple(teacher_logits.shape)}; expected the shape of "
            f"`student_logits`, {tuple(student_logits.shape)}. Where one tokenizer has two models "
            "whose vocabularies are padded to different sizes, cut both to the smaller one."
        )
    return get_log_probs(student_logits, temperature), get_log_probs(teacher_logits, temperature)


def _kl(log_a: Tensor, log_b: Tensor) -> Tensor:
    return (log_a.exp() * (log_a - log_b)).sum(-1)


def _mix(log_a: Tensor, log_b: Tensor, share: float) -> Tensor:
    """log(share a + (1 - share) b), for a share in (0, 1)."""
    return torch.logaddexp(log_a + math.log(share), log_b + math.log1p(-share))


def _skewed_kl(log_a: Tensor, log_b: Tensor, skew: float) -> Tensor:
    if not 0.0 <= skew < 1.0:
        raise InputError(
            f"`skew` is {skew!r}; expected a share in [0, 1). At 1 the divergence is always 0."
        )
    return _kl(log_a, log_b if skew == 0.0 else _mix(log_a, log_b, skew))


def _get_head_share(p: Tensor, q: Tensor, head_mass: float) -> Tensor:
    """Share of `sum |p - q|` in the head of p, `[...]`; 0 where p = q."""
    vocab_size = p.shape[-1]
    # The head is a handful of tokens as a rule, and sorting 150,000 costs more than projecting.
    num_sorted = min(64, vocab_size)
    while True:
        head, ids = p.topk(num_sorted)
        mass = head.cumsum(-1)
        if num_sorted == vocab_size or bool((mass[..., -1] > head_mass).all()):
            break
        num_sorted = min(8 * num_sorted, vocab_size)
    is_head = mass <= head_mass
    is_head[..., 0] = True
    head_gap = ((head - q.gather(-1, ids)).abs() * is_head).sum(-1)
    gap = (p - q).abs().sum(-1).clamp(min=torch.finfo(p.dtype).tiny)
    return (head_gap / gap).clamp(max=1.0)
