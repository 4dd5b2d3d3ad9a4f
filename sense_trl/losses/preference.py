"""Preference losses on summed log-probabilities, one value per pair.

All of them are functions of the margin

    x = beta * [(log pi(y_w) - log pi_ref(y_w)) - (log pi(y_l) - log pi_ref(y_l))]

with y_w the chosen and y_l the rejected answer to one prompt. Only what TRL's `DPOTrainer` does not
have, and the plain DPO loss that the others are built on and compared with, live here.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from sense_trl.errors import InputError, check_at_least, check_positive


def dpo_loss(
    chosen_logps: Tensor,
    rejected_logps: Tensor,
    ref_chosen_logps: Tensor,
    ref_rejected_logps: Tensor,
    *,
    beta: float,
    target_margin: Tensor | float = 0.0,
) -> Tensor:
    """Direct preference optimisation: `-log sigmoid(x - target_margin)`.

    Source: Direct Preference Optimization: Your Language Model is Secretly a Reward Model,
    arXiv 2305.18290, eq. 7; with a target margin, Direct Preference Optimization with an Offset,
    arXiv 2402.10571, eq. 6.

    Args:
        chosen_logps: `[...]`, log pi(y_w), summed over the tokens of the answer, in nats.
        rejected_logps: same shape, log pi(y_l).
        ref_chosen_logps: same shape, log pi_ref(y_w), without gradient.
        ref_rejected_logps: same shape, log pi_ref(y_l), without gradient.
        beta: weight of the reference, above 0; larger stays closer to it.
        target_margin: by how much x is to exceed 0 for the pair, a number or of the same shape:
            larger for a rejected answer that is further from right.

    Returns:
        `[...]`, one loss per pair; ln 2 where policy and reference agree.

    Raises:
        InputError: the shapes differ, or `beta` is not a finite number above 0.

    Example:
        >>> import torch
        >>> zero = torch.zeros(2)
        >>> dpo_loss(torch.tensor([0.0, 10.0]), zero, zero, zero, beta=0.1)
        tensor([0.6931, 0.3133])
    """
    logratio_margin = _get_logratio_margin(
        chosen_logps, rejected_logps, ref_chosen_logps, ref_rejected_logps, beta, target_margin
    )
    return -F.logsigmoid(beta * logratio_margin - target_margin)


def cdpo_loss(
    chosen_logps: Tensor,
    rejected_logps: Tensor,
    ref_chosen_logps: Tensor,
    ref_rejected_logps: Tensor,
    *,
    beta: float,
    label_smoothing: float,
    target_margin: Tensor | float = 0.0,
) -> Tensor:
    """Conservative DPO: `-(1 - eps) log sigmoid(x) - eps log sigmoid(-x)`.

    For pairs whose label is wrong with probability `eps = label_smoothing`. The loss is smallest at
    the finite margin `x = log((1 - eps) / eps)` (2.197 at 0.1), where DPO would push on for ever;
    `eps = 0` is DPO. It equals TRL's `robust` loss with label smoothing `-eps / (1 - 2 eps)`.

    Source: E. Mitchell, A note on DPO with noisy preferences and relationship to IPO (2023); it is
    the loss that the released code of SENSE, arXiv 2408.03256, trains with.

    Args:
        chosen_logps, rejected_logps, ref_chosen_logps, ref_rejected_logps, beta, target_margin: as
            in `dpo_loss`; x is less by the target margin wherever it stands above.
        label_smoothing: eps, in [0, 0.5).

    Returns:
        `[...]`, one loss per pair.

    Raises:
        InputError: as `dpo_loss`, or `label_smoothing` is outside [0, 0.5).

    Example:
        >>> import torch
        >>> zero = torch.zeros(2)
        >>> margin = torch.tensor([0.0, 21.972246])  # x = 0 and x = ln 9
        >>> cdpo_loss(margin, zero, zero, zero, beta=0.1, label_smoothing=0.1)
        tensor([0.6931, 0.3251])
    """
    if not 0.0 <= label_smoothing < 0.5:
        raise InputError(
            f"`label_smoothing` is {label_smoothing!r}; expected the probability that a pair's "
            "label is wrong, in [0, 0.5). At 0.5 the labels say nothing; above, swap chosen and "
            "rejected."
        )
    logratio_margin = _get_logratio_margin(
        chosen_logps, rejected_logps, ref_chosen_logps, ref_rejected_logps, beta, target_margin
    )
    x = beta * logratio_margin - target_margin
    return -(1 - label_smoothing) * F.logsigmoid(x) - label_smoothing * F.logsigmoid(-x)


def dpop_loss(
    chosen_logps: Tensor,
    rejected_logps: Tensor,
    ref_chosen_logps: Tensor,
    ref_rejected_logps: Tensor,
    *,
    beta: float,
    dpop_lambda: float,
    target_margin: Tensor | float = 0.0,
) -> Tensor:
    """DPO-Positive: DPO that also pays when the chosen answer falls below the reference.

    `-log sigmoid(x - beta * lambda * max(0, log pi_ref(y_w) - log pi(y_w)))`: the penalty is inside
    the bracket that `beta` multiplies. DPO widens the margin just as well by making both answers
    less likely, which is what happens when they differ in few tokens, as two SQL queries for one
    question do.

    Source: Smaug: Fixing Failure Modes of Preference Optimisation with DPO-Positive,
    arXiv 2402.13228, eq. 3.

    Args:
        chosen_logps, rejected_logps, ref_chosen_logps, ref_rejected_logps, beta, target_margin: as
            in `dpo_loss`.
        dpop_lambda: weight of the penalty, at least 0; 0 is DPO.

    Returns:
        `[...]`, one loss per pair, never below that of `dpo_loss`.

    Raises:
        InputError: as `dpo_loss`, or `dpop_lambda` is negative or not finite.

    Example:
        >>> import torch
        >>> zero = torch.zeros(2)
        >>> dpop_loss(torch.tensor([1.0, -1.0]), zero, zero, zero, beta=0.1, dpop_lambda=5.0)
        tensor([0.6444, 1.0375])
    """
    check_at_least(0, dpop_lambda=dpop_lambda)
    logratio_margin = _get_logratio_margin(
        chosen_logps, rejected_logps, ref_chosen_logps, ref_rejected_logps, beta, target_margin
    )
    shortfall = F.relu(ref_chosen_logps - chosen_logps)
    return -F.logsigmoid(beta * (logratio_margin - dpop_lambda * shortfall) - target_margin)


def _get_logratio_margin(
    chosen_logps: Tensor,
    rejected_logps: Tensor,
    ref_chosen_logps: Tensor,
    ref_rejected_logps: Tensor,
    beta: float,
    target_margin: Tensor | float,
) -> Tensor:
    """Check the arguments and return x / beta, `[...]`."""
    check_positive(beta=beta)
    named = {
        "rejected_logps": rejected_logps,
        "ref_chosen_logps": ref_chosen_logps,
        "ref_rejected_logps": ref_rejected_logps,
    }
    if isinstance(target_margin, Tensor):
        named["target_margin"] = target_margin
    for name, tensor in named.items():
        # Broadcasting [B] against [B, 1] would silently compare every pair with every other.
        if tensor.shape != chosen_logps.shape:
            raise InputError(
                f"`{name}` has shape {tuple(tensor.shape)}; expected the shape of `chosen_logps`, "
                f"{tuple(chosen_logps.shape)}. Expand the tensors explicitly."
            )
    # This order of the subtractions is TRL's, which keeps the two bit for bit equal.
    return (chosen_logps - ref_chosen_logps) - (rejected_logps - ref_rejected_logps)
