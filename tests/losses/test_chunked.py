"""Logits a chunk at a time, against full logits."""

from __future__ import annotations

from contextlib import contextmanager

import pytest
import torch

from sense_trl.losses.chunked import LogitTransform, compute_in_chunks


@pytest.mark.parametrize("transform", [None, LogitTransform(0.25, None), LogitTransform(3.0, 2.0)])
@pytest.mark.parametrize("rows_per_chunk", [1, 3, 100])
@pytest.mark.parametrize("has_bias", [True, False])
def test_chunks_equal_full_logits(transform, rows_per_chunk, has_bias):
    generator = torch.Generator().manual_seed(0)
    hidden, weight, bias = (
        torch.randn(*shape, generator=generator).requires_grad_()
        for shape in ((7, 4), (11, 4), (11,))
    )
    inputs = (hidden, weight, bias) if has_bias else (hidden, weight)
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
    values, _ = compute_in_chunks(
        hidden, weight, None, lambda logits, rows: logits[:, :1].t(), lambda x, _: x[:, :1].t()
    )
    assert values.dtype == torch.float32
    expected = hidden.double() @ weight.double().t()
    torch.testing.assert_close(values[0].double(), expected[:, 0], rtol=1e-6, atol=1e-5)
    values.sum().backward()
    assert hidden.grad.dtype == torch.bfloat16


def test_parameters_are_read_only_while_they_are_gathered():
    """Sharded parameters have no shape outside of the context, forward or backward."""
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
        lambda logits, rows: logits.sum(-1)[None],
        lambda logits, rows: logits[:, :1].t(),
        gather=gather,
    )
    assert values.tolist() == [[10.0, 10.0, 10.0]]
    values.sum().backward()
    assert hidden.grad.tolist() == [[5.0, 5.0]] * 3
