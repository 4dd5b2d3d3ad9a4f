"""Attention on a prefix tree branch by branch, where a dense mask would waste most of the work.

With a dense mask every node is compared with every other node of its row, though it sees its
ancestors alone: of sixteen questions on one schema, each is compared with the fifteen others. On a
CPU, where no kernel skips what a mask hides, a branch (a run of nodes, each the parent of the next)
is compared with its ancestors and itself only. On a GPU a few large products beat many small ones,
and FlexAttention skips hidden blocks.
"""

from __future__ import annotations

import sys
from bisect import bisect_right
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any, Final

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.masking_utils import sdpa_mask
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from sense_trl.prefix_tree import PrefixTree

TREE_ATTENTION: Final = "sense_trl_tree_sdpa"
"""Implementation of attention, in transformers' sense, that attends by branches."""

_is_dense: ContextVar[bool] = ContextVar("is_dense", default=False)
_BRANCHES = "tree_branches"
# Options of transformers' own `sdpa` that change its result.
_NOT_TAKEN = ("position_bias", "softcap", "cache")
# What a branch costs beside its products, in compared pairs of nodes: its calls and their gradients
# take some 0.3 ms, in which a small model compares as many; and each key and value that it sees is
# copied, for the backward pass too.
_PAIRS_PER_BRANCH = 2000
_PAIRS_PER_COPY = 50
# Keys and values may be held so many times, for the backward pass.
_MAX_COPIES = 8


@dataclass(frozen=True)
class _Branch:
    """Nodes `start` to `end` of a row, and the pieces of the row that they see, own ones last."""

    start: int
    end: int
    pieces: tuple[int, ...]
    num_seen: int

    @property
    def size(self) -> int:
        return self.end - self.start


@dataclass(frozen=True)
class _Row:
    """A row cut into branches, and into pieces, of which each is seen as a whole or not at all."""

    branches: tuple[_Branch, ...]
    piece_sizes: tuple[int, ...]


@dataclass
class TreeBranches:
    """The branches of a tree's rows, with the masks that attention adds.

    Attributes:
        rows: one per row of the tree.
        num_pairs: compared pairs of nodes, and what branches cost beside them, in pairs.
        num_copies: keys that the branches see, all together.
    """

    rows: tuple[_Row, ...]
    num_pairs: int
    num_copies: int
    _masks: dict[tuple[int, int, torch.dtype], Tensor] = field(default_factory=dict)

    @classmethod
    def from_tree(cls, tree: PrefixTree) -> TreeBranches:
        """Cut the rows of a tree into branches."""
        rows = tuple(
            _cut_row(parents[:length], len(parents))
            for parents, length in zip(
                tree.on_host.parents.tolist(), tree.on_host.row_lengths.tolist(), strict=True
            )
        )
        branches = [branch for row in rows for branch in row.branches]
        num_copies = sum(branch.num_seen for branch in branches)
        num_pairs = sum(branch.size * branch.num_seen for branch in branches)
        num_pairs += _PAIRS_PER_BRANCH * len(branches) + _PAIRS_PER_COPY * num_copies
        return cls(rows, num_pairs, num_copies)

    def get_mask(self, branch: _Branch, dtype: torch.dtype) -> Tensor | None:
        """Mask that is added to the scores of a branch, `[size, num_seen]`; None for a root's."""
        if branch.num_seen == branch.size:
            return None
        key = (branch.size, branch.num_seen, dtype)
        if key not in self._masks:
            hidden = torch.full(key[:2], -torch.inf, dtype=dtype)
            self._masks[key] = hidden.triu(branch.num_seen - branch.size + 1)
        return self._masks[key]


def _cut_row(parents: list[int], width: int) -> _Row:
    length = len(parents)
    starts = [node for node, parent in enumerate(parents) if parent != node - 1 or node == 0]
    bounds = list(pairwise([*starts, length]))
    # A piece ends where a branch does, and after each node at which another branch begins.
    cuts = sorted({0, length, width, *starts, *(parents[start] + 1 for start in starts)})
    index = {cut: i for i, cut in enumerate(cuts)}
    branches: list[_Branch] = []
    for start, end in bounds:
        parent = parents[start]
        before: tuple[int, ...] = ()
        if parent >= 0:
            # The ancestors are the beginning of what the parent's branch sees.
            of_parent = branches[bisect_right(starts, parent) - 1]
            before = tuple(piece for piece in of_parent.pieces if piece < index[parent + 1])
        pieces = (*before, *range(index[start], index[end]))
        num_before = sum(cuts[piece + 1] - cuts[piece] for piece in before)
        branches.append(_Branch(start, end, pieces, num_before + end - start))
    return _Row(tuple(branches), tuple(b - a for a, b in pairwise(cuts)))


def get_tree_mask(tree: PrefixTree, dtype: torch.dtype = torch.float32) -> Tensor:
    """The dense mask of a tree, `[R, 1, T, T]`, for attention by `sdpa`; made once per tree.

    On a CPU it is boolean, and carries the branches where they save work; `TREE_ATTENTION` then
    attends by them. Elsewhere it is what is added to scores of type `dtype`: of a boolean mask,
    every layer would make such a one for itself and keep it for the backward pass.
    """
    if tree.input_ids.device.type != "cpu" or _is_dense.get():
        return get_additive_mask(tree, dtype)
    return tree.keep("branches", lambda: _get_mask_with_branches(tree))


def get_additive_mask(tree: PrefixTree, dtype: torch.dtype) -> Tensor:
    """Mask that is added to the scores of attention, `[R, 1, T, T]`: 0, or the lowest number.

    Made once per tree and type.
    """

    def build() -> Tensor:
        mask = tree.get_attention_mask()
        added = torch.zeros(mask.shape, dtype=dtype, device=mask.device)
        return added.masked_fill_(~mask, torch.finfo(dtype).min)

    return tree.keep(dtype, build)


def _get_mask_with_branches(tree: PrefixTree) -> Tensor:
    mask = tree.get_attention_mask()
    branches = TreeBranches.from_tree(tree)
    is_small = branches.num_copies <= _MAX_COPIES * tree.input_ids.numel()
    if is_small and branches.num_pairs < mask.numel():
        setattr(mask, _BRANCHES, branches)
    return mask


@contextmanager
def with_dense_masks() -> Iterator[None]:
    """Within the block no mask carries branches: as on a GPU, for simulating one."""
    token = _is_dense.set(True)
    try:
        yield
    finally:
        _is_dense.reset(token)


def attend_by_branches(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    branches: TreeBranches,
    *,
    dropout: float = 0.0,
    scaling: float | None = None,
) -> Tensor:
    """Scaled dot-product attention in which a node sees its ancestors and itself.

    Args:
        query, key, value: `[R, H, T, D]`, with as many heads in all of them.
        branches: of the tree with these R rows of T nodes.

    Returns:
        `[R, T, H, D]`; 0 at nodes that only fill a row up.
    """
    outputs = []
    for index, row in enumerate(branches.rows):
        keys = key[index : index + 1].split(row.piece_sizes, dim=2)
        values = value[index : index + 1].split(row.piece_sizes, dim=2)
        length = row.branches[-1].end
        sizes = [branch.size for branch in row.branches]
        queries = query[index : index + 1, :, :length].split(sizes, dim=2)
        found = []
        for branch, own in zip(row.branches, queries, strict=True):
            mask = branches.get_mask(branch, query.dtype)
            output = F.scaled_dot_product_attention(
                own,
                torch.cat([keys[piece] for piece in branch.pieces], dim=2),
                torch.cat([values[piece] for piece in branch.pieces], dim=2),
                attn_mask=mask,
                dropout_p=dropout,
                scale=scaling,
                is_causal=mask is None,
            )
            found.append(output)
        outputs.append(F.pad(torch.cat(found, dim=2), (0, 0, 0, query.shape[2] - length)))
    return torch.cat(outputs).transpose(1, 2)


def choose_tree_attention(model: Any) -> None:
    """Have a model that attends by `sdpa` do so under `TREE_ATTENTION`, which knows trees.

    With any mask but those of `get_tree_mask` the two are the same. Attention that a model does not
    choose by transformers' interface stays, and takes such a mask as a dense one.
    """
    code = sys.modules.get(get_own_class(model).__module__)
    if get_attention(model.config) == "sdpa" and hasattr(code, "ALL_ATTENTION_FUNCTIONS"):
        model.set_attn_implementation(TREE_ATTENTION)


def get_own_class(model: Any) -> type[Any]:
    """The class that a model was written as: FSDP puts one of its own in front."""
    return next(cls for cls in type(model).__mro__ if not cls.__module__.startswith("torch."))


def get_attention(config: Any) -> str:
    """Implementation of attention that a config names, by the name that transformers has for it."""
    implementation: str = config._attn_implementation
    return "sdpa" if implementation == TREE_ATTENTION else implementation


def _attend(
    module: Any, query: Tensor, key: Tensor, value: Tensor, attention_mask: Any, **options: Any
) -> tuple[Tensor, Any]:
    branches = getattr(attention_mask, _BRANCHES, None)
    if branches is None or any(options.get(name) is not None for name in _NOT_TAKEN):
        plain = ALL_ATTENTION_FUNCTIONS["sdpa"]
        result: tuple[Tensor, Any] = plain(module, query, key, value, attention_mask, **options)
        return result
    num_groups = query.shape[1] // key.shape[1]
    key, value = (states.repeat_interleave(num_groups, dim=1) for states in (key, value))
    output = attend_by_branches(
        query,
        key,
        value,
        branches,
        dropout=options.get("dropout") or 0.0,
        scaling=options.get("scaling"),
    )
    return output.contiguous(), None


AttentionInterface.register(TREE_ATTENTION, _attend)
AttentionMaskInterface.register(TREE_ATTENTION, sdpa_mask)
