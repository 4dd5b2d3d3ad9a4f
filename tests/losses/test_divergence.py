from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from losses.random_logits import draw_logits, logit_pairs, thirty_examples

from sense_trl.errors import InputError
from sense_trl.losses import (
    DIVERGENCES,
    adaptive_kl,
    forward_kl,
    generalized_jsd,
    get_divergence,
    masked_mean,
    reverse_kl,
    skew_kl,
    skew_reverse_kl,
    total_variation,
)

every_divergence = pytest.mark.parametrize("name", DIVERGENCES)


# ---------------------------------------------------------------------------- by hand


@pytest.mark.parametrize(
    "name, expected",
    [
        # 3/4 ln(3/2) + 1/4 ln(1/2) = 0.304099 - 0.173287
        ("forward_kl", 0.130812),
        # 1/2 ln(2/3) + 1/2 ln(2) = -0.202733 + 0.346574
        ("reverse_kl", 0.143841),
        # m = (5/8, 3/8): half of 3/4 ln(6/5) + 1/4 ln(2/3) and of 1/2 ln(4/5) + 1/2 ln(4/3)
        ("generalized_jsd", 0.033822),
        # 1/10 p + 9/10 q = (0.525, 0.475): 3/4 ln(10/7) + 1/4 ln(10/19)
        ("skew_kl", 0.107043),
        # 1/10 q + 9/10 p = (0.725, 0.275): 1/2 ln(20/29) + 1/2 ln(20/11)
        ("skew_reverse_kl", 0.113137),
        # half of 1/4 + 1/4
        ("total_variation", 0.25),
        # The head is the first token, with half of the gap: the mean of forward and reverse KL.
        ("adaptive_kl", 0.137327),
    ],
)
def test_two_tokens_by_hand(name, expected):
    student = torch.tensor([0.5, 0.5], dtype=torch.float64).log()
    teacher = torch.tensor([0.75, 0.25], dtype=torch.float64).log()
    value = get_divergence(name)(student, teacher)
    assert value.dtype == torch.float64
    assert value.item() == pytest.approx(expected, abs=5e-7)


def test_temperature_divides_both_logits_and_scales_nothing_else():
    # At temperature 2, (0, 2 ln 3) becomes (1/4, 3/4) and the student stays at one half each.
    teacher = torch.tensor([[0.0, 2 * math.log(3)]], dtype=torch.float64)
    student = torch.zeros_like(teacher)
    value = forward_kl(student, teacher, temperature=2.0)
    assert value.item() == pytest.approx(0.130812, abs=5e-7)


def test_adaptive_kl_by_hand_with_a_head_of_two():
    # p sorted: 0.3 0.2 0.2 0.2 0.1. At 0.6 the head is 0.3 and 0.2, whatever 0.2 is taken, as q
    # does not tell them apart: gap 0.2 + 0.05 of 0.2 + 3 * 0.05 + 0.05 = 0.4, so h = 0.625.
    p = torch.tensor([0.2, 0.1, 0.3, 0.2, 0.2], dtype=torch.float64)
    q = torch.tensor([0.25, 0.15, 0.1, 0.25, 0.25], dtype=torch.float64)
    forward, reverse = (p * (p / q).log()).sum(), (q * (q / p).log()).sum()
    found = adaptive_kl(q.log(), p.log(), head_mass=0.6)
    torch.testing.assert_close(found, 0.625 * forward + 0.375 * reverse)


# ------------------------------------------------------------------------- properties


@every_divergence
@thirty_examples
@given(logit_pairs())
def test_nothing_is_negative_and_equal_distributions_are_at_zero(name, logits):
    student, teacher = logits
    divergence = get_divergence(name)
    assert (divergence(student, teacher) >= -1e-14).all()
    # A constant added to the logits does not change the distribution.
    torch.testing.assert_close(
        divergence(teacher + 3.0, teacher), torch.zeros(len(teacher), dtype=torch.float64)
    )


@every_divergence
@thirty_examples
@given(logit_pairs(), st.floats(0.3, 4.0))
def test_temperature_is_a_division_of_the_logits(name, logits, temperature):
    student, teacher = logits
    torch.testing.assert_close(
        get_divergence(name, temperature=temperature)(student, teacher),
        get_divergence(name)(student / temperature, teacher / temperature),
        rtol=1e-9,
        atol=1e-9,
    )


@thirty_examples
@given(logit_pairs())
def test_order_of_the_divergences(logits):
    """Pinsker's inequality, and that mixing in the other side only brings them closer."""
    student, teacher = logits
    slack = 1e-12
    kl, reverse = forward_kl(student, teacher), reverse_kl(student, teacher)
    assert (2 * total_variation(student, teacher) ** 2 <= torch.minimum(kl, reverse) + slack).all()
    assert (skew_kl(student, teacher) <= 0.9 * kl + slack).all()
    assert (skew_reverse_kl(student, teacher) <= 0.9 * reverse + slack).all()
    assert (skew_kl(student, teacher) <= -math.log(0.1) + slack).all()
    assert (generalized_jsd(student, teacher) <= math.log(2) + slack).all()


@thirty_examples
@given(logit_pairs(largest=5.0))
def test_the_ends_of_the_generalized_jsd_are_its_limits(logits):
    student, teacher = logits
    small = 1e-6
    for end, near, kl in ((0.0, small, forward_kl), (1.0, 1 - small, reverse_kl)):
        expected = kl(student, teacher)
        assert torch.equal(generalized_jsd(student, teacher, beta=end), expected)
        rate = generalized_jsd(student, teacher, beta=near) / small
        torch.testing.assert_close(rate, expected, rtol=0.1, atol=1e-6)


@thirty_examples
@given(logit_pairs(largest=5.0), st.floats(0.05, 0.95))
def test_adaptive_kl_equals_the_slow_one(logits, head_mass):
    student, teacher = logits
    # Ties in p have no order of their own.
    teacher = teacher + 1e-3 * torch.arange(teacher.shape[1])
    expected = []
    for row in range(len(teacher)):
        p, q = teacher[row].softmax(-1), student[row].softmax(-1)
        head_gap, mass = 0.0, 0.0
        for place, token in enumerate(p.argsort(descending=True).tolist()):
            mass += p[token].item()
            if place == 0 or mass <= head_mass:
                head_gap += abs(p[token] - q[token]).item()
        gap = (p - q).abs().sum().item()
        share = head_gap / gap if gap else 0.0
        expected.append(share * (p * (p / q).log()).sum() + (1 - share) * (q * (q / p).log()).sum())
    found = adaptive_kl(student, teacher, head_mass=head_mass)
    torch.testing.assert_close(found, torch.stack(expected), rtol=1e-9, atol=1e-9)


def test_adaptive_kl_finds_a_head_of_thousands_of_tokens():
    # 2,000 equal tokens: 1,000 of them are the head, and the student has all mass on another.
    p = torch.full((1, 2001), 1 / 2000, dtype=torch.float64)
    p[0, 2000] = 1e-9
    q = torch.full((1, 2001), 1e-9, dtype=torch.float64)
    q[0, 2000] = 1.0
    found = adaptive_kl(q.log(), p.log(), head_mass=0.5000001)
    share = 0.5 / 2
    expected = share * forward_kl(q.log(), p.log()) + (1 - share) * reverse_kl(q.log(), p.log())
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=0)


def test_no_gradient_flows_through_the_weight_of_adaptive_kl():
    # Two tokens gain and two lose: where all of the gain is the head's, the share is one half for
    # any student, and has no gradient anyway.
    teacher = torch.tensor([[0.5, 0.2, 0.2, 0.1]], dtype=torch.float64).log()
    student = torch.tensor([[0.3, 0.1, 0.4, 0.2]], dtype=torch.float64).log().requires_grad_()
    value = adaptive_kl(student, teacher)
    forward, reverse = forward_kl(student, teacher), reverse_kl(student, teacher)
    share = ((value - reverse) / (forward - reverse)).item()
    assert share == pytest.approx(0.2 / 0.6)
    (found,) = torch.autograd.grad(value, student)
    (expected,) = torch.autograd.grad(share * forward + (1 - share) * reverse, student)
    torch.testing.assert_close(found, expected)


# --------------------------------------------------------------- against other libraries


def test_kl_equals_torch():
    student, teacher = draw_logits(4, 5, 11, seed=1), draw_logits(4, 5, 11, seed=2)
    log_q, log_p = student.log_softmax(-1), teacher.log_softmax(-1)
    for divergence, first, second in ((forward_kl, log_q, log_p), (reverse_kl, log_p, log_q)):
        expected = F.kl_div(first, second, log_target=True, reduction="none").sum(-1)
        torch.testing.assert_close(divergence(student, teacher), expected)


@pytest.mark.parametrize("beta", [0.0, 0.3, 0.5, 1.0])
def test_generalized_jsd_equals_trl(beta):
    from trl.kernels.chunked_divergence import ChunkedDivergenceFunction

    vocab_size = 13
    student, teacher = (draw_logits(6, vocab_size, seed=s, dtype=torch.float32) for s in (1, 2))
    # Logits as hidden states, under a head that changes nothing.
    head = torch.eye(vocab_size)
    student.requires_grad_()
    expected, _ = ChunkedDivergenceFunction.apply(
        student, head, None, teacher, head, None, beta, 1.7
    )
    found = generalized_jsd(student, teacher, beta=beta, temperature=1.7)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)
    gradients = [torch.autograd.grad(values.sum(), student)[0] for values in (found, expected)]
    torch.testing.assert_close(*gradients, rtol=1e-5, atol=1e-6)


# --------------------------------------------------------------------------- numerics


@every_divergence
def test_gradients(name):
    logits = [draw_logits(3, 7, seed=seed).requires_grad_() for seed in (1, 2)]
    # The weight of adaptive KL counts as a constant, which finite differences do not know.
    name = "forward_kl" if name == "adaptive_kl" else name
    assert torch.autograd.gradcheck(get_divergence(name, temperature=1.3), logits)


@every_divergence
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_extreme_logits_stay_finite(name, dtype):
    ends = torch.tensor([200.0, -200.0, 0.0], dtype=dtype)
    logits = torch.cartesian_prod(ends, ends, ends)
    student = logits[:, None].repeat(1, 27, 1).requires_grad_()
    found = get_divergence(name)(student, logits[None].expand(27, -1, -1))
    assert found.dtype == torch.float32
    assert found.isfinite().all()
    # The normaliser of logits of 200 is rounded by 1e-5.
    assert (found >= -3e-5).all()
    found.sum().backward()
    assert student.grad.isfinite().all()


@every_divergence
def test_tokens_that_both_models_rule_out_do_not_count(name):
    student, teacher = draw_logits(4, 6, seed=1), draw_logits(4, 6, seed=2)
    expected = get_divergence(name)(student, teacher)
    impossible = torch.full((4, 2), -math.inf, dtype=torch.float64)
    masked = torch.cat([impossible, student], dim=1).requires_grad_()
    found = get_divergence(name)(masked, torch.cat([impossible, teacher], dim=1))
    torch.testing.assert_close(found, expected)
    found.sum().backward()
    assert not masked.grad[:, :2].any()
    assert masked.grad[:, 2:].any()
    assert masked.grad.isfinite().all()


@every_divergence
def test_everything_masked_gives_zero_and_no_gradient(name):
    student = draw_logits(3, 5, seed=1).requires_grad_()
    values = get_divergence(name)(student, draw_logits(3, 5, seed=2))
    loss = masked_mean(values, torch.zeros(3))
    assert loss.item() == 0.0
    loss.backward()
    assert student.grad is not None
    assert not student.grad.any()


@every_divergence
def test_one_value_per_position_of_any_shape(name):
    student, teacher = draw_logits(4, 3, 2, 7, seed=1), draw_logits(4, 3, 2, 7, seed=2)
    divergence = get_divergence(name)
    values = divergence(student, teacher)
    assert values.shape == (4, 3, 2)
    torch.testing.assert_close(values[1, 2], divergence(student[1, 2], teacher[1, 2]))
    assert divergence(student[:0], teacher[:0]).shape == (0, 3, 2)


@pytest.mark.parametrize("name", ["forward_kl", "reverse_kl", "generalized_jsd"])
def test_a_large_vocabulary_costs_no_digits(name):
    student, teacher = (draw_logits(4, 50_000, seed=s, dtype=torch.float32) for s in (1, 2))
    expected = get_divergence(name)(student.double(), teacher.double())
    found = get_divergence(name)(student, teacher)
    torch.testing.assert_close(found.double(), expected, rtol=2e-6, atol=0)


# ------------------------------------------------------------------------------ errors


@every_divergence
def test_shapes_must_agree(name):
    with pytest.raises(InputError, match=r"`teacher_logits` has shape \(3, 6\); .* \(3, 5\)"):
        get_divergence(name)(torch.zeros(3, 5), torch.zeros(3, 6))


@pytest.mark.parametrize(
    "name, setting",
    [
        ("forward_kl", {"temperature": 0.0}),
        ("reverse_kl", {"temperature": math.nan}),
        ("generalized_jsd", {"beta": 1.1}),
        ("skew_kl", {"skew": 1.0}),
        ("skew_reverse_kl", {"skew": -0.1}),
        ("adaptive_kl", {"head_mass": 1.0}),
        ("total_variation", {"beta": 0.5}),
    ],
)
def test_a_bad_setting_is_refused_before_the_first_batch(name, setting):
    with pytest.raises(InputError, match=f"`{next(iter(setting))}` is "):
        get_divergence(name, **setting)


def test_an_unknown_divergence_names_the_known_ones():
    with pytest.raises(InputError, match=r"'wasserstein'; expected one of forward_kl, reverse_kl"):
        get_divergence("wasserstein")
