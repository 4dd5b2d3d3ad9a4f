"""The tree against the obvious way: every sequence by itself."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sense_trl.errors import InputError
from sense_trl.prefix_tree import PrefixTree

# Few tokens and short sequences, so that prefixes, duplicates and whole prefixes meet often.
SEQUENCES = st.lists(st.lists(st.integers(1, 3), min_size=1, max_size=8), min_size=1, max_size=8)


@st.composite
def masked_sequences(draw):
    sequences = draw(SEQUENCES)
    masks = [draw(st.lists(st.booleans(), min_size=len(s), max_size=len(s))) for s in sequences]
    return sequences, masks


def get_visible(tree):
    """For every flat node, the flat nodes it sees, read off the dense mask."""
    width = tree.input_ids.shape[1]
    mask = tree.get_attention_mask()[:, 0]
    return {
        row * width + i: {row * width + j for j in mask[row, i].nonzero()[:, 0].tolist()}
        for row in range(len(mask))
        for i in range(width)
    }


# ------------------------------------------------------------------------------ by hand


def test_two_answers_to_one_prompt_by_hand():
    #   5 - 6 - 7
    #        \- 8 - 9
    tree = PrefixTree.from_sequences(
        [[5, 6, 8, 9], [5, 6, 7]],
        loss_masks=[[0, 0, 1, 1], [0, 0, 1]],
        weights=[[9, 9, 0.5, 0], [9, 9, 2]],
    )
    assert tree.input_ids.tolist() == [[5, 6, 7, 8, 9]]
    assert tree.position_ids.tolist() == [[0, 1, 2, 2, 3]]
    assert tree.parents.tolist() == [[-1, 0, 1, 1, 3]]
    assert tree.subtree_ends.tolist() == [[5, 5, 3, 5, 5]]
    assert tree.num_nodes == 5
    assert tree.sequence_nodes.tolist() == [[0, 1, 3, 4], [0, 1, 2, -1]]
    assert tree.get_attention_mask().int().tolist() == [
        [
            [
                [1, 0, 0, 0, 0],
                [1, 1, 0, 0, 0],
                [1, 1, 1, 0, 0],
                [1, 1, 0, 1, 0],
                [1, 1, 0, 1, 1],
            ]
        ]
    ]
    assert tree.predicting_nodes.tolist() == [1, 1, 3]
    assert tree.target_ids.tolist() == [7, 8, 9]
    assert tree.weights.tolist() == [[0, 0, 0.5, 0], [0, 0, 2, 0]]
    # A weight of 0 is still scored: the token is trained, only its weight is 0.
    assert tree.to_sequences(torch.tensor([-1.0, -2.0, -3.0])).tolist() == [
        [0, 0, -2, -3],
        [0, 0, -1, 0],
    ]


def test_a_sequence_that_ends_inside_another_and_one_that_is_there_twice():
    tree = PrefixTree.from_sequences([[1, 2, 3], [1, 2], [1, 2, 3]])
    assert tree.input_ids.tolist() == [[1, 2, 3]]
    assert tree.sequence_nodes.tolist() == [[0, 1, 2], [0, 1, -1], [0, 1, 2]]
    scores = tree.to_sequences(torch.tensor([-1.0, -2.0]))
    assert scores.tolist() == [[0, -1, -2], [0, -1, 0], [0, -1, -2]]


def test_gradients_of_shared_tokens_add_up():
    tree = PrefixTree.from_sequences([[1, 2, 3], [1, 2, 4]])
    values = torch.zeros(3, requires_grad=True)
    tree.to_sequences(values).sum().backward()
    assert values.grad.tolist() == [2, 1, 1]


def test_nothing_trained_gives_zeros_with_a_graph():
    tree = PrefixTree.from_sequences([[1, 2]], loss_masks=[[1, 0]])
    values = torch.zeros(0, requires_grad=True)
    scores = tree.to_sequences(values)
    scores.sum().backward()
    assert scores.tolist() == [[0, 0]]
    assert values.grad.shape == (0,)


# --------------------------------------------------------------------------- properties


@settings(max_examples=150)
@given(masked_sequences(), st.sampled_from([None, 8, 12]))
def test_every_path_is_its_sequence(data, max_row_tokens):
    sequences, masks = data
    tree = PrefixTree.from_sequences(sequences, masks, max_row_tokens=max_row_tokens)
    tokens, positions = tree.input_ids.view(-1), tree.position_ids.view(-1)
    visible = get_visible(tree)
    width = tree.input_ids.shape[1]
    parents = tree.parents.view(-1)
    for sequence, mask, nodes, targets, weights in zip(
        sequences,
        masks,
        tree.sequence_nodes.tolist(),
        tree.target_index.tolist(),
        tree.weights.tolist(),
        strict=True,
    ):
        path = nodes[: len(sequence)]
        assert nodes[len(sequence) :] == [-1] * (len(nodes) - len(sequence))
        assert tokens[path].tolist() == sequence
        assert positions[path].tolist() == list(range(len(sequence)))
        for position, node in enumerate(path):
            assert visible[node] == set(path[: position + 1])
            before = path[position - 1] % width if position else -1
            assert parents[node] == before
            target = targets[position]
            if position and mask[position]:
                assert tree.predicting_nodes[target] == path[position - 1]
                assert tree.target_ids[target] == sequence[position]
            else:
                assert target == len(tree.target_ids)
            assert weights[position] == (1 if position and mask[position] else 0)


@settings(max_examples=150)
@given(masked_sequences(), st.sampled_from([None, 8, 12]))
def test_rows_hold_what_is_needed_and_nothing_else(data, max_row_tokens):
    sequences, masks = data
    tree = PrefixTree.from_sequences(sequences, masks, max_row_tokens=max_row_tokens)
    num_rows, width = tree.input_ids.shape
    used = {node for nodes in tree.sequence_nodes.tolist() for node in nodes if node >= 0}
    real = {row * width + i for row in range(num_rows) for i in range(tree.row_lengths[row])}
    assert used == real
    assert tree.num_nodes == len(used)
    assert int(tree.row_lengths.max()) == width
    if max_row_tokens:
        assert width <= max_row_tokens
    # Padding sees itself alone, and nobody sees it.
    visible = get_visible(tree)
    for node in set(visible) - real:
        assert visible[node] == {node}
        assert not any(node in seen for other, seen in visible.items() if other != node)
    # Every trained token is scored once.
    assert len(set(tree.predicting_nodes.tolist())) <= len(tree.target_ids)
    scored = {t for row in tree.target_index.tolist() for t in row} - {len(tree.target_ids)}
    assert scored == set(range(len(tree.target_ids)))


@settings(max_examples=50)
@given(SEQUENCES, st.permutations(range(8)))
def test_the_order_of_the_sequences_does_not_matter(sequences, order):
    order = [i for i in order if i < len(sequences)]
    tree = PrefixTree.from_sequences(sequences)
    other = PrefixTree.from_sequences([sequences[i] for i in order])
    assert tree.num_nodes == other.num_nodes
    assert sorted(tree.input_ids[tree.parents >= 0].tolist()) == sorted(
        other.input_ids[other.parents >= 0].tolist()
    )


@settings(max_examples=50)
@given(SEQUENCES)
def test_one_tree_has_one_node_per_distinct_prefix(sequences):
    prompt = list(range(10, 40))
    tree = PrefixTree.from_sequences([prompt + sequence for sequence in sequences])
    prefixes = {tuple(s[:i]) for s in sequences for i in range(1, len(s) + 1)}
    assert tree.input_ids.shape == (1, len(prompt) + len(prefixes))


# ------------------------------------------------------------------------- rows, bounds


@settings(max_examples=50)
@given(masked_sequences())
def test_unshared_rows_are_the_sequences_in_their_order(data):
    sequences, masks = data
    tree = PrefixTree.from_sequences(sequences, masks, share=False, pad_token_id=9)
    width = max(map(len, sequences))
    assert tree.input_ids.tolist() == [s + [9] * (width - len(s)) for s in sequences]
    assert tree.row_lengths.tolist() == [len(s) for s in sequences]
    assert tree.rows_are_paths
    # Every trained token is scored on its own, also where two sequences agree.
    assert len(tree.target_ids) == sum(sum(mask[1:]) for mask in masks)
    for row, (sequence, nodes) in enumerate(zip(sequences, tree.sequence_nodes, strict=True)):
        assert nodes[: len(sequence)].tolist() == [row * width + i for i in range(len(sequence))]


def test_rows_are_paths_where_nothing_branches():
    for sequences, expected in [
        ([[1, 2, 3]], True),
        ([[1, 2, 3], [1, 2]], True),
        ([[1, 2], [1, 3]], False),
        ([[1, 2], [3], [4]], False),  # the short ones joined in one row
    ]:
        assert PrefixTree.from_sequences(sequences).rows_are_paths is expected, sequences


def test_prompts_with_little_in_common_get_rows_of_their_own():
    first, second = [1] * 20 + [2] * 1000, [1] * 20 + [3] * 1000
    tree = PrefixTree.from_sequences([first, second, [*first, 4], [*second, 4]])
    assert tree.input_ids.shape == (2, 1021)


def test_short_rows_are_joined_and_long_ones_padded():
    # Attention over 200 tokens is cheap, padding is not.
    tree = PrefixTree.from_sequences([[1] * 100, [2] * 40, [3] * 30, [4] * 30])
    assert tree.input_ids.shape in ((1, 200), (2, 100))
    # 3,000 nodes in one row would pay for attention between prompts that do not see each other.
    tree = PrefixTree.from_sequences([[1] * 1600, [2] * 1400])
    assert tree.input_ids.shape == (2, 1600)


@given(SEQUENCES)
def test_short_sequences_need_hardly_any_padding(sequences):
    # Attention over the 64 tokens that there are at most is worth one token.
    tree = PrefixTree.from_sequences(sequences)
    assert tree.input_ids.numel() <= tree.num_nodes + 1


def test_a_row_is_never_longer_than_its_bound():
    prompt = list(range(50))
    sequences = [prompt + [60 + i] * 10 for i in range(8)]
    tree = PrefixTree.from_sequences(sequences, max_row_tokens=90)
    # 50 + 4 x 10 fit into a row of 90.
    assert tree.input_ids.shape == (2, 90)


def test_unusable_input_is_refused_by_name():
    for match, arguments in {
        "`sequences` is empty": {"sequences": []},
        "`sequences` has an empty sequence at index 1": {"sequences": [[1], []]},
        "`loss_masks` has the lengths": {"sequences": [[1, 2]], "loss_masks": [[1]]},
        "`weights` has the lengths": {"sequences": [[1, 2]], "weights": [[1.0, 1.0], [1.0]]},
        "`max_row_tokens` is 2, but sequence 1 has 3": {
            "sequences": [[1], [1, 2, 3]],
            "max_row_tokens": 2,
        },
    }.items():
        with pytest.raises(InputError, match=match):
            PrefixTree.from_sequences(**arguments)


# ------------------------------------------------------------------------ masks, devices


def test_the_block_mask_sees_what_the_dense_mask_sees():
    prompt = list(range(100, 250))
    tree = PrefixTree.from_sequences(
        [prompt + [i] * 60 for i in range(4)] + [[7] * 300], max_row_tokens=400
    )
    block_mask = tree.get_block_mask()
    dense = tree.get_attention_mask()
    num_rows, _, width, _ = dense.shape
    assert block_mask.shape == (num_rows, 1, width, width)
    index = torch.arange(width)
    for row in range(num_rows):
        sees = block_mask.mask_mod(torch.tensor(row), None, index[:, None], index[None])
        assert torch.equal(sees, dense[row, 0])
        # Blocks that nobody sees are skipped, all others are there.
        blocks = torch.nn.functional.pad(dense[row, 0].float(), (0, -width % 128) * 2)
        blocks = blocks.unfold(0, 128, 128).unfold(1, 128, 128).amax((2, 3)) > 0
        assert torch.equal(block_mask.to_dense()[row, 0].bool(), blocks)


@settings(max_examples=30)
@given(
    st.lists(st.tuples(st.integers(0, 300), st.integers(1, 400)), min_size=1, max_size=5),
    st.sampled_from([None, 700]),
    st.sampled_from([1, 8, 128]),
)
def test_blocks_are_those_that_torch_finds_by_looking_at_all_pairs(parts, max_row_tokens, multiple):
    from torch.nn.attention.flex_attention import create_block_mask

    # A common beginning of some length, then an own end.
    sequences = [[7] * shared + [10 + i] * own for i, (shared, own) in enumerate(parts)]
    tree = PrefixTree.from_sequences(
        sequences, max_row_tokens=max_row_tokens, pad_to_multiple_of=multiple
    )
    found = tree.get_block_mask()
    num_rows, width = tree.input_ids.shape
    assert width % multiple == 0
    expected = create_block_mask(found.mask_mod, num_rows, None, width, width, device="cpu")
    for name in ("kv", "full_kv"):
        counts, other = (getattr(mask, f"{name}_num_blocks") for mask in (found, expected))
        assert torch.equal(counts, other), name
        indices, others = (getattr(mask, f"{name}_indices") for mask in (found, expected))
        for row, count in enumerate(counts[:, 0]):
            for query, number in enumerate(count.tolist()):
                listed, theirs = (
                    sorted(each[row, 0, query, :number].tolist()) for each in (indices, others)
                )
                assert listed == theirs
    assert torch.equal(found.to_dense(), expected.to_dense())


@given(SEQUENCES, st.integers(1, 9))
def test_rows_that_are_filled_up_hold_the_same_tree(sequences, multiple):
    tree = PrefixTree.from_sequences(sequences)
    filled = PrefixTree.from_sequences(sequences, pad_to_multiple_of=multiple)
    width = tree.input_ids.shape[1]
    assert filled.input_ids.shape[1] == -(-width // multiple) * multiple
    for name in ("input_ids", "position_ids", "parents", "subtree_ends"):
        assert torch.equal(getattr(filled, name)[:, :width], getattr(tree, name))
    for name in ("row_lengths", "weights", "target_ids", "target_index"):
        assert torch.equal(getattr(filled, name), getattr(tree, name))
    mask = filled.get_attention_mask()[:, 0]
    assert torch.equal(mask[:, :width, :width], tree.get_attention_mask()[:, 0])
    rest = mask.shape[1] - width
    assert torch.equal(
        mask[:, width:, width:], torch.eye(rest, dtype=torch.bool).expand(len(mask), -1, -1)
    )
    assert not mask[:, width:, :width].any() and not mask[:, :width, width:].any()


@given(masked_sequences())
def test_sequences_are_read_back_and_arrays_are_as_good_as_lists(data):
    sequences, masks = data
    tree = PrefixTree.from_sequences(sequences, masks)
    # Nothing predicts the first token.
    trained = [[False, *map(bool, mask[1:])] for mask in masks]
    assert tree.to("meta").get_sequences() == (sequences, trained)
    other = PrefixTree.from_sequences(
        [np.array(s, dtype=np.int32) for s in sequences], [np.array(m) for m in masks]
    )
    assert torch.equal(other.input_ids, tree.input_ids)
    assert torch.equal(other.target_index, tree.target_index)


def test_what_is_kept_is_made_once_and_not_taken_along():
    tree = PrefixTree.from_sequences([[1, 2]])
    made = []
    for _ in range(2):
        assert tree.keep("mask", lambda: made.append(1) or "m") == "m"
    assert made == [1]
    assert tree.to("cpu").keep("mask", lambda: "other") == "other"


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile:UserWarning")
def test_flex_attention_over_the_tree_equals_dense_attention():
    from torch.nn.attention.flex_attention import flex_attention

    tree = PrefixTree.from_sequences([[1] * 90 + [i] * 30 for i in range(3)])
    width = tree.input_ids.shape[1]
    query, key, value = torch.randn(3, 1, 2, width, 16, generator=torch.Generator().manual_seed(0))
    expected = torch.nn.functional.scaled_dot_product_attention(
        query, key, value, attn_mask=tree.get_attention_mask()
    )
    found = flex_attention(query, key, value, block_mask=tree.get_block_mask())
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


def test_a_tree_moves_between_devices_whole():
    tree = PrefixTree.from_sequences([[1, 2], [1, 3]])
    moved = tree.to("meta")
    tensors = [value for value in vars(moved).values() if isinstance(value, torch.Tensor)]
    # All but `rows_are_paths`, `host` and what was kept.
    assert len(tensors) == len(vars(tree)) - 3
    assert moved.on_host is tree.on_host is tree
    assert {tensor.device.type for tensor in tensors} == {"meta"}
    assert moved.rows_are_paths is False
    assert torch.equal(tree.to("cpu").input_ids, tree.input_ids)
