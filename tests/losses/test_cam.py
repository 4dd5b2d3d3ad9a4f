"""Losses of multi-label problems."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from sense_trl.errors import InputError
from sense_trl.losses import bernoulli_kl, cam_loss, masked_mean, multi_label_loss


def draw(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


MODES = [{}, {"is_normalized": False}, {"is_binarized": True}]


def slow_cam(student: Tensor, teacher: Tensor, mask: Tensor, **mode: bool) -> float:
    """One map at a time."""
    s, t = student[mask], teacher[mask]
    if mode.get("is_binarized"):
        t = torch.tensor([float(v > t.abs().mean()) for v in t], dtype=s.dtype)
    if mode.get("is_normalized", True):
        s, t = (v / v.norm() if v.norm() > 0 else v for v in (s, t))
        return float(((s - t) ** 2).sum())
    return float(((s - t) ** 2).mean())


@pytest.mark.parametrize("mode", MODES)
@settings(max_examples=15)
@given(seed=st.integers(0, 99), classes=st.integers(1, 4), places=st.integers(1, 6))
def test_the_distance_of_maps_is_that_of_one_at_a_time(
    mode: dict[str, bool], seed: int, classes: int, places: int
) -> None:
    student, teacher = draw(seed, 2, classes, places), draw(seed + 1, 2, classes, places)
    mask = draw(seed + 2, 2, places) > 0
    mask[:, 0] = True
    values = cam_loss(student, teacher, mask=mask, **mode)
    assert values.shape == (2, classes)
    for b in range(2):
        for c in range(classes):
            expected = slow_cam(student[b, c], teacher[b, c], mask[b], **mode)
            assert float(values[b, c]) == pytest.approx(expected)
    # Masked places may hold anything.
    student[~mask[:, None].expand_as(student)] = float("nan")
    torch.testing.assert_close(cam_loss(student, teacher, mask=mask, **mode), values)


@pytest.mark.parametrize("mode", MODES)
def test_gradients_of_maps(mode: dict[str, bool]) -> None:
    student, teacher = draw(0, 3, 4).requires_grad_(), draw(1, 3, 4)
    mask = torch.tensor([True, True, False, True])
    assert torch.autograd.gradcheck(lambda s: cam_loss(s, teacher, mask=mask, **mode), student)


@pytest.mark.parametrize("mode", MODES)
def test_where_nothing_counts_the_loss_is_zero_and_has_a_gradient(mode: dict[str, bool]) -> None:
    student = draw(0, 3, 4).requires_grad_()
    values = cam_loss(student, draw(1, 3, 4), mask=torch.zeros(4, dtype=torch.bool), **mode)
    masked_mean(values, torch.ones_like(values)).backward()  # type: ignore[no-untyped-call]
    assert torch.equal(values, torch.zeros(3, dtype=torch.float64))
    assert student.grad is not None
    assert torch.equal(student.grad, torch.zeros_like(student))


def test_normalised_maps_do_not_depend_on_the_scale_of_a_model() -> None:
    student, teacher = draw(0, 3, 4), draw(1, 3, 4)
    torch.testing.assert_close(cam_loss(7 * student, teacher), cam_loss(student, 0.1 * teacher))
    torch.testing.assert_close(
        cam_loss(3 * teacher, teacher), torch.zeros(3, dtype=torch.float64), atol=1e-12, rtol=0
    )
    torch.testing.assert_close(
        cam_loss(-teacher, teacher), torch.full((3,), 4.0, dtype=torch.float64)
    )


@settings(max_examples=15)
@given(st.integers(0, 99))
def test_distilled_logits_are_a_divergence_with_the_gradient_of_cross_entropy(seed: int) -> None:
    student, teacher = 3 * draw(seed, 5), 3 * draw(seed + 1, 5)
    assert torch.all(bernoulli_kl(student, teacher) >= -1e-12)
    torch.testing.assert_close(
        bernoulli_kl(teacher, teacher), torch.zeros(5, dtype=torch.float64), atol=1e-12, rtol=0
    )
    own = student.clone().requires_grad_()
    bernoulli_kl(own, teacher).sum().backward()  # type: ignore[no-untyped-call]
    # Of cross-entropy with logits: p_S - p_T.
    torch.testing.assert_close(own.grad, student.sigmoid() - teacher.sigmoid())


def test_a_focal_loss_by_hand() -> None:
    logits = torch.tensor([math.log(3.0), math.log(3.0)])  # p = 3/4
    labels = torch.tensor([1.0, 0.0])
    found = multi_label_loss(logits, labels, focal_gamma=2.0, focal_alpha=0.75)
    expected = [0.75 * (1 / 4) ** 2 * -math.log(3 / 4), 0.25 * (3 / 4) ** 2 * -math.log(1 / 4)]
    assert found.tolist() == pytest.approx(expected)


def test_gradients_of_labels() -> None:
    labels = torch.tensor([1.0, 0.0, 1.0], dtype=torch.float64)
    for options in ({"positive_weight": 6.0}, {"focal_gamma": 2.0, "focal_alpha": 0.75}):
        assert torch.autograd.gradcheck(
            lambda z, o=options: multi_label_loss(z, labels, **o), draw(0, 3).requires_grad_()
        )


def test_unusable_arguments_are_named() -> None:
    maps, row = draw(0, 2, 3), draw(0, 3)
    with pytest.raises(InputError, match=r"`teacher_maps` has shape \(3,\)"):
        cam_loss(maps, row)
    with pytest.raises(InputError, match=r"`mask` has shape \(2, 3\)"):
        cam_loss(maps, maps, mask=torch.ones(2, 3))
    with pytest.raises(InputError, match="`labels` has shape"):
        multi_label_loss(row, row[:2])
    for name, value in [("positive_weight", 0.0), ("focal_gamma", -1.0), ("focal_alpha", 1.0)]:
        with pytest.raises(InputError, match=f"`{name}` is {value}"):
            multi_label_loss(row, torch.ones_like(row), **{name: value})


@pytest.mark.parametrize("scale", [1e2, 1e-5])
def test_maps_whose_squares_leave_their_type_are_compared_all_the_same(scale: float) -> None:
    # Squares of half precision end at 65,504 and begin at 6e-8.
    student = (torch.tensor([[3.0, 4.0]]) * scale).half()
    teacher = (torch.tensor([[8.0, 6.0]]) * scale).half()
    assert float(cam_loss(student, teacher)) == pytest.approx(0.08, rel=0.05)
    assert cam_loss(torch.zeros(2, 0), torch.zeros(2, 0)).tolist() == [0.0, 0.0]
