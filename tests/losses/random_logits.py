"""Logits of a student and a teacher: drawn once, or by hypothesis."""

from __future__ import annotations

import torch
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

# The first call of a torch function can be slow; time says nothing about properties. Each example
# is several rows of its own.
thirty_examples = settings(max_examples=30)


@st.composite
def logit_pairs(draw, largest=30.0):
    """Student's and teacher's logits, float64, `[rows, vocabulary]` each."""
    shape = draw(st.tuples(st.integers(1, 3), st.integers(2, 9)))
    logits = st.floats(-largest, largest, allow_subnormal=False)
    return tuple(torch.from_numpy(draw(arrays("float64", shape, elements=logits))) for _ in "qp")


def draw_logits(*shape, seed=0, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    return 3.0 * torch.randn(shape, generator=generator, dtype=dtype)
