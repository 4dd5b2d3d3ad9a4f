"""Logits a chunk at a time, against full logits."""

from __future__ import annotations

from contextlib import contextmanager

import pytest
import torch
from losses.random_logits import draw_logits

from sense_trl.errors import InputError
from sense_trl.losses import DIVERGENCES, chunked, chunked_divergence, get_divergence
from sense_trl.losses.chunked import LogitTransform, compute_in_chunks, get_projection


@pytest.mark.parametrize("transform", [None, LogitTransform(0.25, None), LogitTransform(3.0, 2.0)])
@pytest.mark.parametrize("rows_per_chunk", [1, 3, 100])
@pytest.mark.parametrize("has_bias", [True, False])
@pytest.mark.parametrize("is_frozen", [True, False])
def test_chunks_equal_full_logits(transform, rows_per_chunk, has_bias, is_frozen):
    generator = torch.Generator().manual_seed(0)
    hidden, weight, bias = (
        torch.randn(*shape, generator=generator).requires_grad_()
        for shape in ((7, 4), (11, 4), (11,))
    )
    inputs = (hidden, weight, bias) if has_bias else (hidden, weight)
    if is_frozen:
        weight, bias, inputs = weight.detach(), bias.detach(), (hidden,)
    targets = torch.arange(7)
    factors = torch.randn(2, 7, generator=generator)

    def get_values(logits, rows):
        chosen = targets[rows]
        log_probs = logits.log_softmax(-1).gather(1, chosen[:, None])[:, 0]
        return torch.stack([log_probs, logits.square().sum(-1)])

    found, metrics = compute_in_chunks(
        hidden,
        weight,
        bias if has_bias else None,
        get_values,
        lambda logits, rows: logits.amax(-1)[None],
        transform,
        chunk_bytes=4 * 11 * rows_per_chunk,
    )
    gradients = torch.autograd.grad((found * factors).sum(), inputs)

    logits = hidden @ weight.t() + (bias if has_bias else 0)
    if transform is not None:
        logits = logits * transform.scale
        if transform.softcap is not None:
            logits = transform.softcap * (logits / transform.softcap).tanh()
    expected = get_values(logits, slice(None))
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(metrics[0], logits.amax(-1))
    assert not metrics.requires_grad
    expected_gradients = torch.autograd.grad((expected * factors).sum(), inputs)
    for gradient, expected_gradient in zip(gradients, expected_gradients, strict=True):
        torch.testing.assert_close(gradient, expected_gradient, rtol=1e-4, atol=1e-5)


def test_a_16_bit_head_is_multiplied_in_float32():
    generator = torch.Generator().manual_seed(0)
    hidden, weight = (torch.randn(n, 64, generator=generator).bfloat16() for n in (3, 50))
    hidden.requires_grad_()
    values, _ = compute_in_chunks(hidden, weight, None, lambda logits, rows: [logits[:, 0]])
    assert values.dtype == torch.float32
    expected = hidden.double() @ weight.double().t()
    torch.testing.assert_close(values[0].double(), expected[:, 0], rtol=1e-6, atol=1e-5)
    values.sum().backward()
    assert hidden.grad.dtype == torch.bfloat16


def test_parameters_are_read_only_while_they_are_gathered():
    """Sharded parameters have no shape outside of the context."""
    hidden, weight = torch.ones(3, 2, requires_grad=True), torch.ones(5, 2)
    whole = weight.clone()

    @contextmanager
    def gather(shard, bias):
        assert shard is weight
        assert bias is None
        weight.data = whole
        yield
        weight.data = whole[:0]

    weight.data = whole[:0]
    values, _ = compute_in_chunks(
        hidden,
        weight,
        None,
        lambda logits, rows: [logits.sum(-1)],
        gather=gather,
    )
    assert values.tolist() == [[10.0, 10.0, 10.0]]
    values.sum().backward()
    assert hidden.grad.tolist() == [[5.0, 5.0]] * 3


@pytest.fixture
def products(monkeypatch):
    """The shapes (rows, columns) of the results of all matrix products."""
    shapes = []
    original = chunked._matmul
    monkeypatch.setattr(
        chunked,
        "_matmul",
        lambda left, right: shapes.append((len(left), right.shape[1])) or original(left, right),
    )
    return shapes


def test_a_frozen_head_is_left_alone_by_the_backward_pass(products):
    hidden, weight = draw_logits(5, 4, seed=1).requires_grad_(), draw_logits(9, 4, seed=2)
    compute_in_chunks(
        hidden, weight, None, lambda logits, rows: [logits.logsumexp(-1)], chunk_bytes=2 * 4 * 9
    )[0].sum().backward()
    # Chunks of 2, 2 and 1 rows: the projection and the gradient of each.
    assert products == [(2, 9), (2, 4), (2, 9), (2, 4), (1, 9), (1, 4)]


def test_without_a_gradient_none_is_computed(products):
    hidden, weight = draw_logits(5, 4, seed=1), draw_logits(9, 4, seed=2)
    with torch.no_grad():
        compute_in_chunks(
            hidden.requires_grad_(), weight, None, lambda logits, rows: [logits.logsumexp(-1)]
        )
    compute_in_chunks(hidden.detach(), weight, None, lambda logits, rows: [logits.logsumexp(-1)])
    assert products == [(5, 9), (5, 9)]


@pytest.mark.parametrize("is_frozen", [True, False])
def test_a_value_may_be_constant_in_a_chunk(is_frozen):
    hidden = torch.ones(3, 2, requires_grad=True)
    weight = torch.ones(5, 2, requires_grad=not is_frozen)

    def get_values(logits, rows):
        term = logits.sum(-1) if rows.start == 1 else torch.zeros(len(logits))
        return [term, 2 * logits.sum(-1)]

    values, metrics = compute_in_chunks(hidden, weight, None, get_values, chunk_bytes=4 * 5)
    assert values.tolist() == [[0.0, 10.0, 0.0], [20.0, 20.0, 20.0]]
    assert metrics.shape == (0, 3)
    (values * torch.tensor([[1.0], [10.0]])).sum().backward()
    assert hidden.grad[:, 0].tolist() == [100.0, 105.0, 100.0]


def draw_heads(is_frozen, num_rows=6, vocab_size=11):
    """Hidden states, weight and bias of a student and of a wider teacher, float32."""
    shapes = ((num_rows, 4), (vocab_size, 4), (vocab_size,))
    student = [draw_logits(*shape, seed=1, dtype=torch.float32) / 3 for shape in shapes]
    shapes = ((num_rows, 7), (vocab_size, 7), (vocab_size,))
    teacher = [draw_logits(*shape, seed=2, dtype=torch.float32) / 3 for shape in shapes]
    for tensor in student[:1] if is_frozen else student:
        tensor.requires_grad_()
    return student, teacher


@pytest.mark.parametrize("is_frozen", [True, False])
@pytest.mark.parametrize("name", DIVERGENCES)
def test_a_divergence_in_chunks_equals_that_of_full_logits(name, is_frozen):
    student, teacher = draw_heads(is_frozen)
    divergence = get_divergence(name)
    softcap, scale = LogitTransform(softcap=5.0), LogitTransform(0.5)
    found = chunked_divergence(
        *student,
        *teacher,
        divergence,
        temperature=1.5,
        student_transform=softcap,
        teacher_transform=scale,
        chunk_bytes=2 * 4 * 11,
    )
    (hidden, weight, bias), (teacher_hidden, teacher_weight, teacher_bias) = student, teacher
    student_logits = 5 * ((hidden @ weight.t() + bias) / 5).tanh()
    teacher_logits = 0.5 * (teacher_hidden @ teacher_weight.t() + teacher_bias)
    expected = divergence(student_logits / 1.5, teacher_logits / 1.5)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)
    factors = torch.arange(6) - 2.0
    inputs = [tensor for tensor in student if tensor.requires_grad]
    assert len(inputs) == (1 if is_frozen else 3)
    gradients = torch.autograd.grad((found * factors).sum(), inputs)
    expected_gradients = torch.autograd.grad((expected * factors).sum(), inputs)
    for gradient, expected_gradient in zip(gradients, expected_gradients, strict=True):
        torch.testing.assert_close(gradient, expected_gradient, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("is_frozen, passes", [(True, 1), (False, 2)])
def test_both_models_are_projected_in_chunks_and_once_for_a_frozen_head(
    products, is_frozen, passes
):
    student, teacher = draw_heads(is_frozen)
    divergence = get_divergence("reverse_kl")
    chunked_divergence(*student, *teacher, divergence, chunk_bytes=3 * 4 * 11).sum().backward()
    projections = [shape for shape in products if shape[1] == 11]
    # Two chunks of three rows, of two models.
    assert projections == [(3, 11)] * 4 * passes


def test_a_divergence_in_chunks_equals_that_of_trl():
    from trl.kernels.chunked_divergence import ChunkedDivergenceFunction

    student, teacher = draw_heads(is_frozen=False)
    found = chunked_divergence(
        *student, *teacher, get_divergence("generalized_jsd", beta=0.3), temperature=0.7
    )
    expected, _ = ChunkedDivergenceFunction.apply(*student, *teacher, 0.3, 0.7)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)
    gradients, expected_gradients = (
        torch.autograd.grad(values.square().sum(), student) for values in (found, expected)
    )
    for gradient, expected_gradient in zip(gradients, expected_gradients, strict=True):
        torch.testing.assert_close(gradient, expected_gradient, rtol=1e-4, atol=1e-6)


def test_models_must_have_the_same_positions_and_vocabulary():
    student, teacher = draw_heads(is_frozen=True)
    divergence = get_divergence("forward_kl")
    with pytest.raises(InputError, match=r"`teacher_hidden` has 5 rows; expected .* 6 positions"):
        chunked_divergence(*student, teacher[0][:5], *teacher[1:], divergence)
    with pytest.raises(InputError, match=r"`teacher_logits` has shape \(6, 8\)"):
        chunked_divergence(*student, teacher[0], teacher[1][:8], teacher[2][:8], divergence)


def test_a_projection_is_not_rounded_by_autocast_and_has_no_gradient():
    hidden = draw_logits(3, 64, seed=1, dtype=torch.float32)
    weight = draw_logits(50, 64, seed=2, dtype=torch.float32).requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        logits = get_projection(weight, None, LogitTransform(0.5))(hidden)
    assert not logits.requires_grad
    expected = 0.5 * (hidden.double() @ weight.detach().double().t())
    torch.testing.assert_close(logits.double(), expected, rtol=1e-5, atol=1e-4)
