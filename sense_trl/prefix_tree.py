"""Token sequences with common prefixes as a tree: every shared token is computed once.

The answers to one question, and all questions about one database, begin with the same tokens. In a
tree of such sequences a node attends to its ancestors and itself, its position id is its depth, and
the output at a node predicts each of its children: what a causal model with explicit positions
computes for a sequence along its path is what it computes for the sequence alone. The module
knows tensors only; `sense_trl.trainers.sharing.heads` runs a model on a tree.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING, Any, TypeAlias, TypeVar

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from sense_trl.errors import InputError

if TYPE_CHECKING:
    from torch.nn.attention.flex_attention import BlockMask

_T = TypeVar("_T")
_Row: TypeAlias = "Sequence[float] | np.ndarray"

_BLOCK_SIZE = 128
"""Side of the blocks that FlexAttention computes or skips as a whole."""

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
        host: the tree that this one was moved from, None where it never was; see `on_host`.

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
    host: PrefixTree | None = field(default=None, repr=False, compare=False)
    _kept: dict[Any, Any] = field(default_factory=dict, repr=False, compare=False)

    @classmethod
    def from_sequences(
        cls,
        sequences: Sequence[_Row],
        loss_masks: Sequence[_Row] | None = None,
        weights: Sequence[_Row] | None = None,
        *,
        share: bool = True,
        max_row_tokens: int | None = None,
        pad_to_multiple_of: int = 1,
        pad_token_id: int = 0,
    ) -> PrefixTree:
        """Merge the common prefixes of `sequences` and lay the result out in rows.

        Sequences are put into one row where that takes less work than keeping them apart, which a
        short common prefix (a system prompt) does not: with a dense mask, nodes that cannot see
        each other cost attention all the same. For the same reason short rows are joined, and long
        ones are padded.

        Args:
            sequences: token ids, as lists or arrays, at least one sequence, none of them empty.
            loss_masks: per token, whether it is trained; left out, all are. The first token of a
                sequence is never trained: nothing predicts it.
            weights: per token, its weight in a loss; left out, 1. A trained token may weigh 0.
            share: False gives sequence i the whole of row i, shared prefixes or not: an ordinary
                padded batch, for models that are not exact on a tree.
            max_row_tokens: longest row before padding; None for no limit.
            pad_to_multiple_of: T is one of its multiples, where kernels want that.
            pad_token_id: token at nodes that only fill a row up. They see themselves alone.

        Raises:
            InputError: no sequences, an empty one, one longer than `max_row_tokens`, or masks or
                weights of other lengths.
        """
        _check_sequences(sequences, loss_masks, weights, max_row_tokens)
        tokens = [np.asarray(sequence, dtype=np.int64) for sequence in sequences]
        if share:
            rows = _assign_rows(tokens, max_row_tokens)
        else:
            rows = [[[index]] for index in range(len(tokens))]
        layouts = [_RowLayout(tokens, bundles) for bundles in rows]

        width = max(layout.size for layout in layouts)
        width += -width % pad_to_multiple_of
        length = max(map(len, tokens))
        shape = (len(layouts), width)
        input_ids = np.full(shape, pad_token_id, dtype=np.int64)
        position_ids = np.zeros(shape, dtype=np.int64)
        parents = np.full(shape, -1, dtype=np.int64)
        subtree_ends = np.tile(np.arange(1, width + 1, dtype=np.int64), (len(layouts), 1))
        nodes_of = np.full((len(tokens), length), -1, dtype=np.int64)
        for row, layout in enumerate(layouts):
            size = layout.size
            input_ids[row, :size] = np.concatenate(layout.tokens)
            position_ids[row, :size] = np.concatenate(layout.positions)
            parents[row, :size] = np.concatenate(layout.parents)
            for nodes, last in layout.closed:
                subtree_ends[row, nodes] = last
            for index, path in layout.paths.items():
                nodes_of[index, : len(path)] = path + row * width
        sequence_nodes = torch.from_numpy(nodes_of)

        is_trained = _pad(loss_masks, sequence_nodes, 1.0) != 0
        is_trained[:, 0] = False
        nodes, inverse = sequence_nodes[is_trained].unique(return_inverse=True)
        target_index = torch.full_like(sequence_nodes, len(nodes))
        target_index[is_trained] = inverse
        all_input_ids, all_parents = torch.from_numpy(input_ids), torch.from_numpy(parents)
        return cls(
            input_ids=all_input_ids,
            position_ids=torch.from_numpy(position_ids),
            parents=all_parents,
            subtree_ends=torch.from_numpy(subtree_ends),
            row_lengths=torch.tensor([layout.size for layout in layouts]),
            sequence_nodes=sequence_nodes,
            weights=_pad(weights, sequence_nodes, 1.0) * is_trained,
            predicting_nodes=nodes - nodes % width + all_parents.view(-1)[nodes],
            target_ids=all_input_ids.view(-1)[nodes],
            target_index=target_index,
            rows_are_paths=all(layout.is_path for layout in layouts),
        )

    @property
    def num_nodes(self) -> int:
        """Number of tokens that are computed, without padding."""
        return int(self.on_host.row_lengths.sum())

    @property
    def on_host(self) -> PrefixTree:
        """The same tree where it was made: what is read from it there waits for no device."""
        return self if self.host is None else self.host

    def get_attention_mask(self) -> Tensor:
        """Boolean mask `[R, 1, T, T]`: query i may look at key j."""
        index = torch.arange(self.input_ids.shape[1], device=self.input_ids.device)
        query, key = index[:, None], index[None, :]
        return ((key <= query) & (query < self.subtree_ends[:, None, :]))[:, None]

    def get_block_mask(self) -> BlockMask:
        """The same for FlexAttention, which skips the blocks of 128 x 128 that nobody sees.

        Which blocks are seen in part, or as a whole, follows from where subtrees end: no mask of
        all pairs of nodes is made on the way.
        """
        from torch.nn.attention.flex_attention import BlockMask

        ends = self.subtree_ends
        width = ends.shape[1]

        def sees(row: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
            return (key <= query) & (query < ends[row, key])

        blocks = [block.to(ends.device, non_blocking=True) for block in self.on_host._get_blocks()]
        return BlockMask.from_kv_blocks(
            *blocks, BLOCK_SIZE=_BLOCK_SIZE, mask_mod=sees, seq_lengths=(width, width)
        )

    def _get_blocks(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Blocks seen in part, and blocks seen as a whole: how many for each block of queries,
        `[R, 1, B]`, and which, `[R, 1, B, B]`, int32."""
        num_rows, width = self.subtree_ends.shape
        num_blocks = -(-width // _BLOCK_SIZE)
        # Keys past the end are seen by nobody.
        filled = F.pad(self.subtree_ends, (0, num_blocks * _BLOCK_SIZE - width))
        ends = filled.view(num_rows, 1, num_blocks, _BLOCK_SIZE)
        index = torch.arange(num_blocks)
        first_query = index[:, None] * _BLOCK_SIZE
        # A last block that is short has queries past the end, and is never seen as a whole.
        last_query = first_query + _BLOCK_SIZE - 1
        is_before = index < index[:, None]
        is_full = is_before & (ends.amin(-1)[:, :, None] > last_query)
        # On the diagonal every node sees itself.
        is_seen = (is_before & (ends.amax(-1)[:, :, None] > first_query)) | torch.eye(
            num_blocks, dtype=torch.bool
        )
        return (*_list_blocks(is_seen & ~is_full), *_list_blocks(is_full))

    def keep(self, key: Any, build: Callable[[], _T]) -> _T:
        """The result of `build`, made once per tree and key: a mask serves all models of a step."""
        if key not in self._kept:
            self._kept[key] = build()
        kept: _T = self._kept[key]
        return kept

    def get_sequences(self) -> tuple[list[list[int]], list[list[bool]]]:
        """The sequences, and which of their tokens are trained."""
        tree = self.on_host
        tokens = tree.input_ids.flatten()[tree.sequence_nodes.clamp(min=0)].tolist()
        is_trained = (tree.target_index < len(tree.target_ids)).tolist()
        lengths = (tree.sequence_nodes >= 0).sum(1).tolist()
        sequences = [row[:length] for row, length in zip(tokens, lengths, strict=True)]
        return sequences, [row[:length] for row, length in zip(is_trained, lengths, strict=True)]

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
        return self._replace(lambda tensor: tensor.to(device, non_blocking=non_blocking))

    def pin_memory(self) -> PrefixTree:
        """The same tree in memory from which a GPU copies by itself."""
        return self._replace(Tensor.pin_memory)

    def _replace(self, convert: Callable[[Tensor], Tensor]) -> PrefixTree:
        values = {f.name: getattr(self, f.name) for f in fields(self) if f.name != "_kept"}
        tensors = {k: convert(v) for k, v in values.items() if isinstance(v, Tensor)}
        return PrefixTree(**{**values, **tensors, "host": self.on_host})


def _list_blocks(is_listed: Tensor) -> tuple[Tensor, Tensor]:
    """Their number in the last dimension, and their indices there, followed by the others'."""
    order = is_listed.int().argsort(dim=-1, descending=True, stable=True)
    return is_listed.sum(-1, dtype=torch.int32), order.int()


def _check_sequences(
    sequences: Sequence[_Row],
    loss_masks: Sequence[_Row] | None,
    weights: Sequence[_Row] | None,
    max_row_tokens: int | None,
) -> None:
    lengths = [len(sequence) for sequence in sequences]
    if not lengths or 0 in lengths:
        what = f"has an empty sequence at index {lengths.index(0)}" if lengths else "is empty"
        raise InputError(f"`sequences` {what}; expected one or more sequences of token ids.")
    if max_row_tokens is not None and max(lengths) > max_row_tokens:
        raise InputError(
            f"`max_row_tokens` is {max_row_tokens}, but sequence {lengths.index(max(lengths))} has "
            f"{max(lengths)} tokens. Raise it, or leave the sequence out: none is ever cut."
        )
    for name, values in (("loss_masks", loss_masks), ("weights", weights)):
        if values is not None and (found := [len(value) for value in values]) != lengths:
            raise InputError(
                f"`{name}` has the lengths {found}; expected one value per token: {lengths}."
            )


def _pad(values: Sequence[_Row] | None, like: Tensor, default: float) -> Tensor:
    """`values` as float32 `[N, L]`, `default` where they are left out, 0 past the ends."""
    if values is None:
        return torch.full(like.shape, default) * (like >= 0)
    padded = np.zeros(tuple(like.shape), dtype=np.float32)
    for row, value in zip(padded, values, strict=True):
        row[: len(value)] = value
    return torch.from_numpy(padded)


# ------------------------------------------------------------------------------------- layout


class _RowLayout:
    """The nodes of one row in depth-first order.

    Attributes:
        size: number of nodes.
        tokens, positions, parents: of the nodes, in pieces.
        closed: nodes with the end of their subtrees.
        paths: nodes of each sequence, by its index.
        is_path: whether each node's parent is the node before it.
    """

    def __init__(self, sequences: list[np.ndarray], bundles: list[list[int]]) -> None:
        self.size = 0
        self.tokens: list[np.ndarray] = []
        self.positions: list[np.ndarray] = []
        self.parents: list[np.ndarray] = []
        self.closed: list[tuple[np.ndarray, int]] = []
        self.paths: dict[int, np.ndarray] = {}
        self.is_path = True
        for bundle in bundles:
            self._add_bundle(bundle, sequences)

    def _add_bundle(self, bundle: list[int], sequences: list[np.ndarray]) -> None:
        """Add sequences, by their index and in lexicographic order, as a tree of their own."""
        path = previous = np.empty(0, dtype=np.int64)
        for index in bundle:
            sequence = sequences[index]
            shared = get_common_length(previous, sequence)
            self.closed.append((path[shared:], self.size))
            parent = path[shared - 1] if shared else -1
            new = np.arange(self.size, self.size + len(sequence) - shared)
            if len(new):
                self.is_path &= parent == self.size - 1
                self.tokens.append(sequence[shared:])
                self.positions.append(np.arange(shared, len(sequence)))
                self.parents.append(np.concatenate([[parent], new[:-1]]))
                self.size += len(new)
            path = np.concatenate([path[:shared], new])
            self.paths[index] = path
            previous = sequence
        self.closed.append((path, self.size))


def _assign_rows(sequences: list[np.ndarray], max_row_tokens: int | None) -> list[list[list[int]]]:
    """Rows of bundles of sequence indices; a bundle shares its prefixes, a row is no longer."""
    bundles: list[list[int]] = []
    sizes: list[int] = []
    previous = np.empty(0, dtype=np.int64)
    # Bytes of equally wide numbers, highest first, are ordered as the sequences are. The longest
    # prefix shared with any earlier sequence is then the one shared with the one just before.
    keys = [sequence.astype(">i8").tobytes() for sequence in sequences]
    for index in sorted(range(len(sequences)), key=keys.__getitem__):
        sequence = sequences[index]
        num_new = len(sequence) - get_common_length(previous, sequence)
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


def get_common_length(first: Any, second: Any) -> int:
    """How many tokens two sequences of token ids, arrays or lists, begin with alike."""
    first, second = np.asarray(first), np.asarray(second)
    length = min(len(first), len(second))
    differs = first[:length] != second[:length]
    return int(differs.argmax()) if differs.any() else length
