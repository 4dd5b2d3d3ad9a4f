from __future__ import annotations

import itertools
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from losses.random_logits import draw_logits, logit_pairs, thirty_examples

from sense_trl.errors import InputError
from sense_trl.losses import (
    DIVERGENCES,
    add_tail,
    forward_kl,
    get_divergence,
    reduce_to_top_k,
    reverse_kl,
    sampled_forward_kl,
)


def test_reduction_by_hand():
    # Of 0.4 0.3 0.2 0.1, the tokens 2 and 0, and 0.3 + 0.1 = 0.4 for the rest.
    logits = torch.tensor([0.4, 0.3, 0.2, 0.1], dtype=torch.float64).log() + 7.0
    expected = torch.tensor([0.2, 0.4, 0.4], dtype=torch.float64)
    found = reduce_to_top_k(logits, torch.tensor([2, 0]))
    torch.testing.assert_close(found.exp(), expected)
    torch.testing.assert_close(add_tail(found[:2]).exp(), expected)


def test_reduction_at_a_temperature_by_hand():
    # Square roots of 0.64 0.16 0.04 0.16 are 0.8 0.4 0.2 0.4, of 1.8 together.
    logits = torch.tensor([0.64, 0.16, 0.04, 0.16], dtype=torch.float64).log()
    found = reduce_to_top_k(logits, torch.tensor([0]), temperature=2.0)
    expected = torch.tensor([0.8, 1.0], dtype=torch.float64) / 1.8
    torch.testing.assert_close(found.exp(), expected)


@pytest.mark.parametrize("name", [name for name in DIVERGENCES if name != "adaptive_kl"])
@thirty_examples
@given(logit_pairs(), st.data())
def test_a_reduced_divergence_is_never_negative_and_never_larger(name, logits, data):
    student, teacher = logits
    k = data.draw(st.integers(1, student.shape[1]))
    ids = teacher.topk(k).indices
    divergence = get_divergence(name)
    reduced = divergence(reduce_to_top_k(student, ids), reduce_to_top_k(teacher, ids))
    full = divergence(student, teacher)
    assert (reduced >= -1e-14).all()
    assert (reduced <= full * (1 + 1e-9) + 1e-12).all()
    if k >= student.shape[1] - 1:
        torch.testing.assert_close(reduced, full, rtol=1e-9, atol=1e-12)


@thirty_examples
@given(logit_pairs(), st.data())
def test_the_reduction_is_a_distribution_and_tells_the_rest_to_every_digit(logits, data):
    logits, _ = logits
    k = data.draw(st.integers(1, logits.shape[1] - 1))
    ids = logits.topk(k).indices
    found = reduce_to_top_k(logits, ids)
    torch.testing.assert_close(found.exp().sum(-1), torch.ones(len(logits), dtype=torch.float64))
    log_probs = logits.log_softmax(-1)
    torch.testing.assert_close(found[:, :-1], log_probs.gather(1, ids))
    rest = log_probs.scatter(1, ids, -math.inf).logsumexp(-1)
    torch.testing.assert_close(found[:, -1], rest, rtol=1e-12, atol=1e-12)


def test_the_rest_of_a_sure_model_keeps_its_digits_in_float32():
    # Its mass, e^-30, is a millionth of what float32 can tell from 0 in 1 - sum.
    logits = torch.tensor([30.0, 0.0])
    found = reduce_to_top_k(logits, torch.tensor([0]))
    assert found[1].item() == pytest.approx(-30.0, abs=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_rest_lost_to_rounding_is_small_and_finite(dtype):
    finfo = torch.finfo(dtype)
    for top_logps in ([0.0, -800.0], [1e-3, -9.0]):
        tail = add_tail(torch.tensor(top_logps, dtype=dtype))[-1]
        assert tail.item() == pytest.approx(math.log(finfo.eps), abs=0.1)


@pytest.mark.parametrize("divergence", [forward_kl, reverse_kl])
def test_a_teacher_without_a_stored_rest_is_finite_where_nothing_is_left(divergence):
    student, teacher = (draw_logits(5, 7, seed=s, dtype=torch.float32) for s in (1, 2))
    ids = teacher.topk(7).indices
    cached = add_tail(reduce_to_top_k(teacher, ids)[:, :-1])
    found = divergence(reduce_to_top_k(student, ids), cached)
    torch.testing.assert_close(found, divergence(student, teacher), rtol=1e-4, atol=5e-5)


def test_16_bit_log_probs_are_taken_in_float32():
    top_logps = torch.tensor([0.5, 0.25]).log().half()
    tail = add_tail(top_logps)
    assert tail.dtype == torch.float32
    torch.testing.assert_close(tail.exp(), torch.tensor([0.5, 0.25, 0.25]), rtol=0, atol=1e-3)


@pytest.mark.parametrize("k", [1, 3, 7])
def test_gradients_of_the_reduction(k):
    student, teacher = draw_logits(3, 7, seed=1).requires_grad_(), draw_logits(3, 7, seed=2)
    ids = teacher.topk(k).indices
    target = reduce_to_top_k(teacher, ids)
    assert torch.autograd.gradcheck(
        lambda logits: reverse_kl(reduce_to_top_k(logits, ids, temperature=1.3), target), student
    )


def test_all_draws_together_give_the_full_divergence_and_gradient():
    """The expectation over every pair of draws, each with its probability."""
    student, teacher = draw_logits(5, seed=1).requires_grad_(), draw_logits(5, seed=2)
    temperature = 1.3
    log_p = (teacher / temperature).log_softmax(-1)
    expectation = torch.zeros((), dtype=torch.float64)
    for draws in itertools.product(range(5), repeat=2):
        ids = torch.tensor(draws)
        estimate = sampled_forward_kl(student, ids, log_p[ids], temperature=temperature)
        expectation = expectation + log_p[ids].sum().exp() * estimate
    expected = forward_kl(student, teacher, temperature=temperature)
    torch.testing.assert_close(expectation, expected)
    found_gradient, gradient = (
        torch.autograd.grad(value, student)[0] for value in (expectation, expected)
    )
    torch.testing.assert_close(found_gradient, gradient)


def test_shapes_are_checked():
    logits, ids = torch.zeros(4, 7), torch.zeros(4, 2, dtype=torch.long)
    with pytest.raises(InputError, match=r"`token_ids` has shape \(3, 2\); .* \(4,\)"):
        reduce_to_top_k(logits, ids[:3])
    with pytest.raises(InputError, match=r"`token_ids` has shape \(2,\); .* \(4,\)"):
        sampled_forward_kl(logits, ids[0], torch.zeros(2))
    with pytest.raises(InputError, match=r"`teacher_logps` has shape \(4, 1\); .* \(4, 2\)"):
        sampled_forward_kl(logits, ids, torch.zeros(4, 1))
