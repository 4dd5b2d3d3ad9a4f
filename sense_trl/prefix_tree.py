"""Token sequences with common prefixes as a tree: every shared token is computed once.

The answers to one question, and all questions about one database, begin with the same tokens. In a
tree of such sequences a node attends to its ancestors and itself, its position id is its depth, and
the output at a node predicts each of its children: what a causal model with explicit positions
computes for a sequence along its path is what it computes for the sequence alone. The module
knows tensors only; `sense_trl.trainers.heads` runs a model on a tree.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from sense_trl.errors import InputError

if TYPE_CHECKING:
    from torch.nn.attention.flex_attention import BlockMask

_EVEN_LENGTH = 4096
"""Row length at which attention with a dense mask costs about as much as the rest of a layer.

Per token and layer of width d, attention takes 4 d T operations and the rest 24 d^2, so this is 6 d
for a d of some 700; models that are wider gain from sharing sooner than assumed here.
"""


@dataclass(frozen=True)
class PrefixTree:
    """Sequences laid out as rows of tree nodes, in depth-first order. Build: `from_sequences`.

    R rows of T nodes (padded), N sequences of at most L tokens, M distinct nodes that are trained.
    "Flat" indices count the nodes of all rows, `row * T + node`.

    Attributes:
        input_ids: `[R, T]`, the token of each node.
        position_ids: `[R, T]`, its depth; 0 at roots.
        parents: `[R, T]`, index within the row of the node before it; -1 at roots and padding.
        subtree_ends: `[R, T]`, one past its last descendant: node j is an ancestor of node i, or
            i itself, exactly if `j <= i < subtree_ends[j]`.
        row_lengths: `[R]`, how many nodes of the row are no padding.
        sequence_nodes: `[N, L]`, flat index of each token of each sequence; -1 past its end.
        weights: `[N, L]`, float32 weight of each token in a loss; 0 where it is not trained.
        predicting_nodes: `[M]`, flat indices of the nodes whose output predicts a trained token.
        target_ids: `[M]`, those tokens.
        target_index: `[N, L]`, which of the M entries scores the token; M where none does.
        rows_are_paths: every row is one sequence from its beginning, as in an ordinary padded
            batch, so that a model needs neither the mask nor the positions of a tree.

    Example:
        >>> tree = PrefixTree.from_sequences(
        ...     [[5, 6, 7], [5, 6, 8, 9]], loss_masks=[[0, 0, 1], [0, 0, 1, 1]]
        ... )
        >>> tree.input_ids.tolist(), tree.position_ids.tolist()
        ([[5, 6, 7, 8, 9]], [[0, 1, 2, 2, 3]])
        >>> tree.get_attention_mask()[0, 0].int().tolist()[-1]  # 9 sees 5, 6, 8 and itself
        [1, 1, 0, 1, 1]
        >>> tree.to_sequences(torch.tensor([-1.0, -2.0, -3.0])).tolist()
        [[0.0, 0.0, -1.0, 0.0], [0.0, 0.0, -2.0, -3.0]]
    """

    input_ids: Tensor
    position_ids: Tensor
    parents: Tensor
    subtree_ends: Tensor
    row_lengths: Tensor
    sequence_nodes: Tensor
    weights: Tensor
    predicting_nodes: Tensor
    target_ids: Tensor
    target_index: Tensor
    rows_are_paths: bool

    @classmethod
    def from_sequences(
        cls,
        sequences: Sequence[Sequence[int]],
        loss_masks: Sequence[Sequence[int]] | None = None,
        weights: Sequence[Sequence[float]] | None = None,
        *,
        share: bool = True,
        max_row_tokens: int | None = None,
        pad_token_id: int = 0,
    ) -> PrefixTree:
        """Merge the common prefixes of `sequences` and lay the result out in rows.

        Sequences are put into one row where that takes less work than keeping them apart, which a
        short common prefix (a system prompt) does not: with a dense mask, nodes that cannot see
        each other cost attention all the same. For the same reason short rows are joined, and long
        ones are padded.

        Args:
            sequences: token ids, at least one sequence, none of them empty.
            loss_masks: per token, whether it is trained; left out, all are. The first token of a
                sequence is never trained: nothing predicts it.
            weights: per token, its weight in a loss; left out, 1. A trained token may weigh 0.
            share: False gives sequence i the whole of row i, shared prefixes or not: an ordinary
                padded batch, for models that are not exact on a tree.
            max_row_tokens: longest row; None for no limit.
            pad_token_id: token at nodes that only fill a row up. They see themselves alone.

        Raises:
            InputError: no sequences, an empty one, one longer than `max_row_tokens`, or masks or
                weights of other lengths.
        """
        _check_sequences(sequences, loss_masks, weights, max_row_tokens)
        if share:
            rows = _assign_rows(sequences, max_row_tokens)
        else:
            rows = [[[index]] for index in range(len(sequences))]
        layouts = [_RowLayout() for _ in rows]
        for layout, bundles in zip(layouts, rows, strict=True):
            for bundle in bundles:
                layout.add_bundle([(index, sequences[index]) for index in bundle])

        width = max(len(layout.tokens) for layout in layouts)
        length = max(len(sequence) for sequence in sequences)
        shape = (len(layouts), width)
        input_ids = torch.full(shape, pad_token_id)
        position_ids = torch.zeros(shape, dtype=torch.long)
        parents = torch.full(shape, -1)
        subtree_ends = torch.arange(1, width + 1).repeat(len(layouts), 1)
        sequence_nodes = torch.full((len(sequences), length), -1)
        for row, layout in enumerate(layouts):
            size = len(layout.tokens)
            input_ids[row, :size] = torch.tensor(layout.tokens)
            position_ids[row, :size] = torch.tensor(layout.positions)
            parents[row, :size] = torch.tensor(layout.parents)
            subtree_ends[row, :size] = torch.tensor(layout.ends)
            for index, path in layout.paths.items():
                sequence_nodes[index, : len(path)] = torch.tensor(path) + row * width

        is_trained = _pad(loss_masks, sequence_nodes, 1.0) != 0
        is_trained[:, 0] = False
        nodes, inverse = sequence_nodes[is_trained].unique(return_inverse=True)
        target_index = torch.full_like(sequence_nodes, len(nodes))
        target_index[is_trained] = inverse
        return cls(
            input_ids=input_ids,
            position_ids=position_ids,
            parents=parents,
            subtree_ends=subtree_ends,
            row_lengths=torch.tensor([len(layout.tokens) for layout in layouts]),
            sequence_nodes=sequence_nodes,
            weights=_pad(weights, sequence_nodes, 1.0) * is_trained,
            predicting_nodes=nodes - nodes % width + parents.view(-1)[nodes],
            target_ids=input_ids.view(-1)[nodes],
            target_index=target_index,
            rows_are_paths=all(layout.is_path for layout in layouts),
        )

    @property
    def num_nodes(self) -> int:
        """How many tokens are computed, without padding."""
        return int(self.row_lengths.sum())

    def get_attention_mask(self) -> Tensor:
        """Who sees whom, `[R, 1, T, T]`, boolean: query i may look at key j."""
        index = torch.arange(self.input_ids.shape[1], device=self.input_ids.device)
        query, key = index[:, None], index[None, :]
        return ((key <= query) & (query < self.subtree_ends[:, None, :]))[:, None]

    def get_block_mask(self) -> BlockMask:
        """The same for FlexAttention, which skips the blocks of 128 x 128 that nobody sees."""
        from torch.nn.attention.flex_attention import create_block_mask

        ends = self.subtree_ends
        num_rows, width = ends.shape

        def sees(row: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
            return (key <= query) & (query < ends[row, key])

        return create_block_mask(sees, num_rows, None, width, width, device=ends.device)

    def to_sequences(self, values: Tensor) -> Tensor:
        """Give the value of each trained node to every sequence that runs through it.

        Args:
            values: `[M]`, one value per entry of `target_ids`, differentiable.

        Returns:
            `[N, L]`, 0 where the token is not trained.
        """
        return torch.cat([values, values.new_zeros(1)])[self.target_index]

    def to(self, device: torch.device | str, non_blocking: bool = False) -> PrefixTree:
        """The same tree with its tensors on `device`."""
        values = {f.name: getattr(self, f.name) for f in fields(self)}
        return PrefixTree(
            **{
                name: value.to(device, non_blocking=non_blocking)
                if isinstance(value, Tensor)
                else value
                for name, value in values.items()
            }
        )


def _check_sequences(
    sequences: Sequence[Sequence[int]],
    loss_masks: Sequence[Sequence[int]] | None,
    weights: Sequence[Sequence[float]] | None,
    max_row_tokens: int | None,
) -> None:
    lengths = [len(sequence) for sequence in sequences]
    if not lengths or 0 in lengths:
        what = f"has an empty sequence at index {lengths.index(0)}" if lengths else "is empty"
        raise InputError(f"`sequences` {what}, expected one or more sequences of token ids.")
    if max_row_tokens is not None and max(lengths) > max_row_tokens:
        raise InputError(
            f"`max_row_tokens` is {max_row_tokens}, but sequence {lengths.index(max(lengths))} has "
            f"{max(lengths)} tokens. Raise it, or leave the sequence out: none is ever cut."
        )
    for name, values in (("loss_masks", loss_masks), ("weights", weights)):
        if values is not None and (found := [len(value) for value in values]) != lengths:
            raise InputError(
                f"`{name}` has the lengths {found}, expected one value per token: {lengths}."
            )


def _pad(values: Sequence[Sequence[float]] | None, like: Tensor, default: float) -> Tensor:
    """`values` as float32 `[N, L]`, `default` where they are left out, 0 past the ends."""
    if values is None:
        return torch.full(like.shape, default) * (like >= 0)
    padded = torch.zeros(like.shape)
    for row, value in zip(padded, values, strict=True):
        row[: len(value)] = torch.tensor(value, dtype=torch.float32)
    return padded


# ------------------------------------------------------------------------------------- layout


@dataclass
class _RowLayout:
    """The nodes of one row in depth-first order."""

    tokens: list[int] = field(default_factory=list)
    positions: list[int] = field(default_factory=list)
    parents: list[int] = field(default_factory=list)
    ends: list[int] = field(default_factory=list)
    paths: dict[int, list[int]] = field(default_factory=dict)

    def add_bundle(self, bundle: list[tuple[int, Sequence[int]]]) -> None:
        """Add `(index, sequence)` in lexicographic order, as a tree of its own."""
        path: list[int] = []
        previous: Sequence[int] = ()
        for index, sequence in bundle:
            shared = _get_common_length(previous, sequence)
            self._close(path[shared:])
            path = path[:shared]
            for position in range(shared, len(sequence)):
                self.parents.append(path[-1] if path else -1)
                path.append(len(self.tokens))
                self.tokens.append(sequence[position])
                self.positions.append(position)
                self.ends.append(-1)
            self.paths[index] = path
            previous = sequence
        self._close(path)

    @property
    def is_path(self) -> bool:
        """Whether each node's parent is the node before it."""
        return self.parents == list(range(-1, len(self.tokens) - 1))

    def _close(self, nodes: list[int]) -> None:
        for node in nodes:
            self.ends[node] = len(self.tokens)


def _assign_rows(
    sequences: Sequence[Sequence[int]], max_row_tokens: int | None
) -> list[list[list[int]]]:
    """Rows of bundles of sequence indices; a bundle shares its prefixes, a row is no longer."""
    bundles: list[list[int]] = []
    sizes: list[int] = []
    previous: Sequence[int] = ()
    # In lexicographic order, the longest prefix shared with any earlier sequence is the one shared
    # with the sequence just before.
    for index in sorted(range(len(sequences)), key=lambda i: list(sequences[i])):
        sequence = sequences[index]
        num_new = len(sequence) - _get_common_length(previous, sequence)
        if bundles and _is_worth_sharing(sizes[-1], num_new, len(sequence), max_row_tokens):
            bundles[-1].append(index)
            sizes[-1] += num_new
        else:
            bundles.append([index])
            sizes.append(len(sequence))
        previous = sequence
    return _fill_rows(bundles, sizes, max_row_tokens)


def _is_worth_sharing(size: int, num_new: int, length: int, max_row_tokens: int | None) -> bool:
    if max_row_tokens is not None and size + num_new > max_row_tokens:
        return False
    return _get_cost(size + num_new) - _get_cost(size) <= _get_cost(length)


def _get_cost(num_nodes: int) -> float:
    """Work for a row of that many nodes, in units of one token without attention."""
    return num_nodes + num_nodes**2 / _EVEN_LENGTH


def _fill_rows(
    bundles: list[list[int]], sizes: list[int], max_row_tokens: int | None
) -> list[list[list[int]]]:
    """Put several bundles into one row where that takes less work than padding them apart."""
    total = sum(sizes)
    lengths = {max(sizes)} | {math.ceil(total / num_rows) for num_rows in range(1, len(sizes))}
    fits = [
        length
        for length in sorted(lengths)
        if max(sizes) <= length and (max_row_tokens is None or length <= max_row_tokens)
    ]
    packings = [_pack(bundles, sizes, length) for length in fits]
    return min(packings, key=lambda packing: len(packing[0]) * _get_cost(packing[1]))[0]


def _pack(
    bundles: list[list[int]], sizes: list[int], length: int
) -> tuple[list[list[list[int]]], int]:
    """First fit, longest first, into rows of at most `length`; returns them and the longest."""
    rows: list[list[list[int]]] = []
    fills: list[int] = []
    for bundle, size in sorted(zip(bundles, sizes, strict=True), key=lambda pair: -pair[1]):
        row = next((i for i, fill in enumerate(fills) if fill + size <= length), None)
        if row is None:
            rows.append([])
            fills.append(0)
            row = -1
        rows[row].append(bundle)
        fills[row] += size
    return rows, max(fills)


def _get_common_length(first: Sequence[int], second: Sequence[int]) -> int:
    for index, (a, b) in enumerate(zip(first, second, strict=False)):
        if a != b:
            return index
    return min(len(first), len(second))
