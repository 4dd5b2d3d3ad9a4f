"""Attention over prefixes that rows of a batch share, each held once.

The keys and values of a prefix are not copied for every row: the queries of all its rows meet them
in one matrix product per head. Decoding is bound by memory traffic, and with a schema of a few
hundred tokens the prefix is most of it. Grouped-query heads are not expanded either.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from sense_trl.model_traits import has_full_attention

if TYPE_CHECKING:
    import torch

_NAME = "sense_trl_shared_prefix"
# Full causal attention with rotary positions through transformers' attention interface, nothing
# else (checked by comparing greedy texts with plain decoding).
_MODEL_TYPES = frozenset({"llama", "mistral", "qwen2", "qwen3"})
# Scores are computed for so many bytes at a time.
_MAX_SCORE_BYTES = 64 * 2**20


def supports_shared_prefix(model: Any) -> bool:
    """True for models that can be run inside `shared_prefix_attention`."""
    return model.config.model_type in _MODEL_TYPES and has_full_attention(model.config)


@contextmanager
def shared_prefix_attention(model: Any) -> Iterator[None]:
    """Within the block, `model(..., shared_prefixes=[(cache, n), ...])` attends to prefixes.

    The first n rows attend to the first cache before their own, the next rows to the next, and so
    on. A cache is a `DynamicCache` of batch size 1 that a call without prefixes has filled. The
    attention mask must be boolean, `[rows, 1, queries, own keys]`, true where a query may look; the
    prefix is always visible, and position ids count it.
    """
    from transformers import AttentionInterface

    AttentionInterface.register(_NAME, _attention)
    config = model.config
    before = config._attn_implementation
    config._attn_implementation = _NAME
    try:
        yield
    finally:
        config._attn_implementation = before


def _attention(
    module: Any,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor,
    scaling: float,
    shared_prefixes: Sequence[tuple[Any, int]],
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """`query` [rows, heads, queries, dim], `key` and `value` [rows, key heads, keys, dim]."""
    import torch

    _, heads, queries, _ = query.shape
    parts = []
    end = 0
    for cache, num_rows in shared_prefixes:
        layer = cache.layers[module.layer_idx]
        width = layer.keys.shape[2] + key.shape[2]
        step = max(1, _MAX_SCORE_BYTES // (4 * heads * queries * width))
        first, end = end, end + num_rows
        for start in range(first, end, step):
            rows = slice(start, min(start + step, end))
            parts.append(
                _attend(
                    query[rows],
                    key[rows],
                    value[rows],
                    attention_mask[rows],
                    layer.keys[0],
                    layer.values[0],
                    scaling,
                )
            )
    output = parts[0] if len(parts) == 1 else torch.cat(parts)
    return output.transpose(1, 2).contiguous(), None


def _attend(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    mask: torch.Tensor,
    prefix_key: torch.Tensor,
    prefix_value: torch.Tensor,
    scaling: float,
) -> torch.Tensor:
    import torch

    rows, heads, queries, dim = query.shape
    key_heads, prefix_length, _ = prefix_key.shape
    group = heads // key_heads
    own = query.reshape(rows, key_heads, group * queries, dim)
    # One product per key head for the queries of all rows.
    flat = own.transpose(0, 1).reshape(key_heads, rows * group * queries, dim)
    shape = (rows, key_heads, group, queries)
    on_prefix = torch.matmul(flat, prefix_key.transpose(1, 2))
    on_prefix = on_prefix.view(key_heads, rows, group, queries, prefix_length).transpose(0, 1)
    on_own = torch.matmul(own, key.transpose(2, 3)).view(*shape, key.shape[2])
    on_own = on_own.masked_fill(~mask[:, :, None], float("-inf"))
    scores = torch.cat([on_prefix, on_own], dim=-1) * scaling
    weights = scores.softmax(dim=-1, dtype=torch.float32).to(query.dtype)
    weights_prefix = weights[..., :prefix_length].transpose(0, 1)
    from_prefix = torch.matmul(
        weights_prefix.reshape(key_heads, rows * group * queries, prefix_length), prefix_value
    )
    from_prefix = from_prefix.view(key_heads, rows, group, queries, dim).transpose(0, 1)
    weights_own = weights[..., prefix_length:].reshape(rows, key_heads, group * queries, -1)
    from_own = torch.matmul(weights_own, value).view(*shape, dim)
    return (from_prefix + from_own).reshape(rows, heads, queries, dim)
