"""Losses of multi-label problems: labels, a teacher's logits, and its class activation maps.

A map has one value for each class and place; here classes are items of a schema, and places the
words of a question. All functions return one value per class.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from sense_trl.errors import InputError, check_at_least, check_positive


def cam_loss(
    student_maps: Tensor,
    teacher_maps: Tensor,
    *,
    mask: Tensor | None = None,
    is_normalized: bool = True,
    is_binarized: bool = False,
) -> Tensor:
    """Distance of class activation maps: `|| A_S/||A_S|| - A_T/||A_T|| ||^2` for each class.

    Source: Class Attention Transfer Based Knowledge Distillation, arXiv 2304.12777; the norm
    is over places. A map without any activation counts as zeros, so that a teacher's 1 and a
    student's 0 are 1 apart. Without normalisation it is the mean of squared differences over places
    (which the paper uses for models of one family). A binarized teacher map is 1 where the
    activation is above the map's mean magnitude and 0 elsewhere: what is left of it is positions.

    Args:
        student_maps: `[..., classes, places]`.
        teacher_maps: same shape, without gradient.
        mask: `[..., places]`, boolean, true for the places that count; all if not given. The others
            may hold anything.
        is_normalized: divide each map by its norm.
        is_binarized: reduce the teacher's to positions.

    Returns:
        `[..., classes]`, in [0, 4] for normalised maps; 0 with a live graph where the mask selects
        nothing.

    Raises:
        InputError: the shapes differ.

    Example:
        >>> import torch
        >>> student, teacher = torch.tensor([[3.0, 4.0]]), torch.tensor([[8.0, 6.0]])
        >>> cam_loss(student, teacher)  # (0.6 - 0.8)^2 + (0.8 - 0.6)^2
        tensor([0.0800])
        >>> cam_loss(student, teacher, is_normalized=False)  # (25 + 4) / 2
        tensor([14.5000])
        >>> cam_loss(student, teacher, is_binarized=True)  # 0.6 - 1 and 0.8 - 0
        tensor([0.8000])
    """
    _check_shape("teacher_maps", teacher_maps, student_maps)
    places = student_maps.shape[:-2] + student_maps.shape[-1:]
    if mask is None:
        selected = torch.ones_like(student_maps, dtype=torch.bool)
    elif mask.shape != places:
        raise InputError(
            f"`mask` has shape {tuple(mask.shape)}; expected that of `student_maps` without its "
            f"classes, {tuple(places)}."
        )
    else:
        selected = mask.bool().unsqueeze(-2).expand_as(student_maps)
    zeros = torch.zeros_like(student_maps)
    student = torch.where(selected, student_maps, zeros)
    teacher = torch.where(selected, teacher_maps.detach().to(student.dtype), zeros)
    count = selected.sum(-1).clamp(min=1)
    if is_binarized:
        mean = teacher.abs().sum(-1, keepdim=True) / count.unsqueeze(-1)
        teacher = (selected & (teacher > mean)).to(student.dtype)
    if not is_normalized:
        return (student - teacher).square().sum(-1) / count
    return (_normalize(student) - _normalize(teacher)).square().sum(-1)


def multi_label_loss(
    logits: Tensor,
    labels: Tensor,
    *,
    positive_weight: float = 1.0,
    focal_gamma: float = 0.0,
    focal_alpha: float | None = None,
) -> Tensor:
    """Binary cross-entropy of each class, weighted or focal.

    `-w y log p - (1 - y) log(1 - p)` with p the probability of the class. Focal: what the model is
    sure of counts less, by `(1 - p_t)^gamma` with p_t the probability of the label, and positives
    by alpha, negatives by 1 - alpha.

    Source: Focal Loss for Dense Object Detection, arXiv 1708.02002, eq. 5; RESDSQL
    (arXiv 2302.05965) and CodeS (arXiv 2402.16347) link schemas with gamma 2 and alpha 0.75.

    Args:
        logits: `[...]`, one per class.
        labels: same shape, 0 or 1.
        positive_weight: w, above 0.
        focal_gamma: gamma, at least 0.
        focal_alpha: alpha, in (0, 1); no such factor if not given.

    Returns:
        `[...]`.

    Raises:
        InputError: the shapes differ, or an option is out of its range.

    Example:
        >>> import torch
        >>> logits, labels = torch.tensor([0.0, 0.0]), torch.tensor([1.0, 0.0])
        >>> multi_label_loss(logits, labels, positive_weight=6.0)  # 6 ln 2 and ln 2
        tensor([4.1589, 0.6931])
        >>> multi_label_loss(logits, labels, focal_gamma=2.0, focal_alpha=0.75)  # ln 2 / 4 * alpha
        tensor([0.1300, 0.0433])
    """
    _check_shape("labels", labels, logits)
    check_positive(positive_weight=positive_weight)
    check_at_least(0, focal_gamma=focal_gamma)
    if focal_alpha is not None and not 0 < focal_alpha < 1:
        raise InputError(f"`focal_alpha` is {focal_alpha!r}; expected a share in (0, 1).")
    wanted = labels.to(logits.dtype)
    losses = F.binary_cross_entropy_with_logits(logits, wanted, reduction="none")
    weights = 1 + (positive_weight - 1) * wanted
    if focal_alpha is not None:
        weights = weights * (focal_alpha * wanted + (1 - focal_alpha) * (1 - wanted))
    if focal_gamma:
        # exp(-loss) is the probability of the label.
        weights = weights * (1 - torch.exp(-losses)) ** focal_gamma
    return weights * losses


def bernoulli_kl(student_logits: Tensor, teacher_logits: Tensor) -> Tensor:
    """One-vs-all logit distillation: `KL(p_T || p_S)` of each class, a yes or no, in nats.

    Binary cross-entropy to the teacher's probabilities, less what no student can do better: 0 where
    both agree, with the same gradient.

    Source: Multi-Label Knowledge Distillation, arXiv 2308.06453 (multi-label logits
    distillation).

    Args:
        student_logits: `[...]`, one per class.
        teacher_logits: same shape, without gradient.

    Returns:
        `[...]`.

    Raises:
        InputError: the shapes differ.

    Example:
        >>> import torch
        >>> bernoulli_kl(torch.tensor([0.0]), torch.tensor([1.0986123]))  # 3/4 ln 3/2 + 1/4 ln 1/2
        tensor([0.1308])
    """
    _check_shape("teacher_logits", teacher_logits, student_logits)
    teacher = teacher_logits.detach().to(student_logits.dtype)
    probabilities = teacher.sigmoid()
    cross = F.binary_cross_entropy_with_logits(student_logits, probabilities, reduction="none")
    own = F.binary_cross_entropy_with_logits(teacher, probabilities, reduction="none")
    return cross - own


def _normalize(maps: Tensor) -> Tensor:
    """Maps divided by their norms; those of zeros stay, with a gradient of 0."""
    if not maps.shape[-1]:
        return maps
    # Of numbers whose squares are too large or too small for their type; it changes no gradient.
    largest = maps.detach().abs().amax(-1, keepdim=True)
    is_empty = largest == 0
    scaled = maps / largest.masked_fill(is_empty, 1)
    squares = scaled.square().sum(-1, keepdim=True)
    return scaled / torch.where(is_empty, torch.ones_like(squares), squares).sqrt()


def _check_shape(name: str, tensor: Tensor, like: Tensor) -> None:
    # Broadcasting would silently compare every class with every other.
    if tensor.shape != like.shape:
        raise InputError(
            f"`{name}` has shape {tuple(tensor.shape)}; expected the shape of the student's, "
            f"{tuple(like.shape)}."
        )
