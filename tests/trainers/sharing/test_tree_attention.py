"""Attention by branches, against attention with the dense mask of the tree."""

from __future__ import annotations

import contextlib

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_models import ARCHITECTURES, build_small_model, build_tiny_model

from sense_trl.prefix_tree import PrefixTree
from sense_trl.trainers.sharing import tree_attention
from sense_trl.trainers.sharing.tree_attention import (
    TreeBranches,
    attend_by_branches,
    get_tree_mask,
    with_dense_masks,
)

# Two answers to each of two questions on one schema.
SEQUENCES = [[1, 2, 3, 4, 5], [1, 2, 3, 4, 6, 7], [1, 2, 8, 9], [1, 2, 8, 10]]


def test_the_branches_of_a_small_tree_by_hand() -> None:
    tree = PrefixTree.from_sequences(SEQUENCES)
    # Nodes: 1 2 3 4 5 | 6 7 | 8 9 | 10, in one row.
    assert tree.input_ids.tolist() == [[1, 2, 3, 4, 5, 6, 7, 8, 9, 10]]
    (row,) = TreeBranches.from_tree(tree).rows
    # Cut before each branch, after 4 (where 6 begins), 2 (where 8 begins) and 8 (where 10 begins).
    assert row.piece_sizes == (2, 2, 1, 2, 1, 1, 1)
    assert [(b.start, b.end, b.pieces, b.num_seen) for b in row.branches] == [
        (0, 5, (0, 1, 2), 5),
        (5, 7, (0, 1, 3), 6),
        (7, 9, (0, 4, 5), 4),
        (9, 10, (0, 4, 6), 4),
    ]


def get_dense(query, key, value, tree):
    return F.scaled_dot_product_attention(query, key, value, attn_mask=tree.get_attention_mask())


tokens = st.lists(st.integers(0, 2), min_size=1, max_size=9)


@settings(max_examples=60)
@given(
    st.lists(tokens, min_size=1, max_size=8),
    st.lists(st.integers(3, 5), max_size=6),
    st.integers(10, 40),
)
def test_values_and_gradients_are_those_of_the_dense_mask(sequences, prefix, max_row_tokens):
    tree = PrefixTree.from_sequences(
        [[*prefix, *sequence] for sequence in sequences],
        max_row_tokens=max(max_row_tokens, 15),
    )
    generator = torch.Generator().manual_seed(0)
    num_rows, width = tree.input_ids.shape
    shape = (num_rows, 2, width, 4)
    states = [torch.randn(shape, generator=generator, dtype=torch.float64) for _ in range(3)]
    states = [state.requires_grad_() for state in states]
    weights = torch.randn(shape, generator=generator, dtype=torch.float64)
    # What fills a row up is compared with nobody.
    is_node = torch.arange(width) < tree.row_lengths[:, None]
    weights = weights * is_node[:, None, :, None]
    found = attend_by_branches(*states, TreeBranches.from_tree(tree)).transpose(1, 2)
    dense = get_dense(*states, tree)
    torch.testing.assert_close(found * weights, dense * weights, rtol=1e-12, atol=1e-12)
    gradients = torch.autograd.grad((found * weights).sum(), states, retain_graph=True)
    expected = torch.autograd.grad((dense * weights).sum(), states)
    for gradient, other in zip(gradients, expected, strict=True):
        torch.testing.assert_close(gradient, other, rtol=1e-11, atol=1e-11)


def test_pairs_are_compared_only_where_one_sees_the_other() -> None:
    prefix, answers = list(range(400)), [[500 + i] * 60 for i in range(16)]
    tree = PrefixTree.from_sequences([prefix + answer for answer in answers])
    branches = TreeBranches.from_tree(tree)
    # The first answer goes on from the prefix; fifteen others see it and themselves.
    compared = 460 * 460 + 15 * 60 * 460
    assert branches.num_copies == 16 * 460
    assert branches.num_pairs == (
        compared + 16 * tree_attention._PAIRS_PER_BRANCH + 16 * 460 * tree_attention._PAIRS_PER_COPY
    )
    assert tree.input_ids.numel() ** 2 > 1.5 * branches.num_pairs
    assert hasattr(get_tree_mask(tree), "tree_branches")
    with with_dense_masks():
        dense = get_tree_mask(tree, torch.bfloat16)
    assert not hasattr(dense, "tree_branches")
    # What layers add to their scores as it is, in two bytes an entry.
    assert dense.dtype == torch.bfloat16
    assert torch.equal(dense == 0, tree.get_attention_mask())
    assert dense.max() == 0 and (dense[dense < 0] < -1e30).all()
    # Many short answers would hold a copy of the long prefix each.
    many = PrefixTree.from_sequences([[*prefix, *prefix, 500 + i, 7] for i in range(64)])
    assert not hasattr(get_tree_mask(many), "tree_branches")
    # Branches of a few nodes would cost more than they save.
    assert not hasattr(get_tree_mask(PrefixTree.from_sequences(SEQUENCES)), "tree_branches")


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_a_model_on_a_tree_attends_by_branches(architecture, monkeypatch) -> None:
    from trl.trainer.utils import add_fused_lm_head

    from sense_trl.trainers.sharing.heads import add_prefix_tree_head

    prefix = [7 + i % 50 for i in range(120)]
    sequences = [[*prefix, 60 + i, *range(10, 40)] for i in range(12)]
    model = build_tiny_model(architecture)
    add_fused_lm_head(model, outputs=("log_probs",))
    add_prefix_tree_head(model)
    labels = torch.zeros(len(sequences), len(sequences[0]), dtype=torch.long)
    calls = []

    def counting(*args, **options):
        calls.append(1)
        return attend_by_branches(*args, **options)

    monkeypatch.setattr(tree_attention, "attend_by_branches", counting)
    monkeypatch.setattr(tree_attention, "_MAX_COPIES", 100)
    results = []
    for pairs_per_branch in (-(10**9), 10**9):
        monkeypatch.setattr(tree_attention, "_PAIRS_PER_BRANCH", pairs_per_branch)
        model.zero_grad()
        tree = PrefixTree.from_sequences(sequences)
        log_probs = model(labels=labels, fused_lm_head=True, prefix_tree=tree).log_probs
        log_probs.sum().backward()
        gradients = [parameter.grad.clone() for parameter in model.parameters()]
        results.append((log_probs.detach(), gradients))
    assert len(calls) == model.config.num_hidden_layers
    (found, gradients), (dense, expected) = results
    torch.testing.assert_close(found, dense, rtol=1e-5, atol=1e-5)
    for gradient, other in zip(gradients, expected, strict=True):
        torch.testing.assert_close(gradient, other, rtol=1e-3, atol=1e-4)
    # Text without a tree, and its cache, go the ordinary way.
    written = model.generate(torch.tensor([prefix[:9]]), max_new_tokens=3, do_sample=False)
    assert written.shape[1] > 9
    assert len(calls) == model.config.num_hidden_layers


def test_only_a_prepared_model_attends_otherwise_than_before() -> None:
    from transformers import AttentionInterface, FalconConfig
    from transformers.integrations.sdpa_attention import sdpa_attention_forward
    from trl.trainer.utils import add_fused_lm_head

    from sense_trl.trainers.sharing.heads import add_prefix_tree_head
    from sense_trl.trainers.teachers.model_identity import describe_settings

    falcon = build_small_model(FalconConfig, hidden_size=32, num_attention_heads=4)
    prepared, other = (build_tiny_model("llama") for _ in range(2))
    eager = build_tiny_model("llama")
    eager.set_attn_implementation("eager")
    settings = describe_settings(prepared)
    ids = torch.tensor([[5, 6, 7, 8, 1], [9, 5, 1, 1, 1]])
    batch = {"input_ids": ids, "attention_mask": (ids != 1).long()}
    expected = prepared(**batch).logits
    for model in (falcon, prepared, eager):
        add_fused_lm_head(model)
        add_prefix_tree_head(model)
    assert AttentionInterface()["sdpa"] is sdpa_attention_forward
    assert prepared.config._attn_implementation == tree_attention.TREE_ATTENTION
    assert other.config._attn_implementation == "sdpa"
    assert eager.config._attn_implementation == "eager"
    # Its code does not look attention up.
    assert falcon.config._attn_implementation == "sdpa"
    # Batches without a tree have the values that they had, and caches are found again.
    assert torch.equal(prepared(**batch).logits, expected)
    assert describe_settings(prepared) == settings
    assert "sense_trl" not in prepared.config.to_json_string()


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("autocast", [False, True])
def test_the_mask_of_a_gpu_is_made_once_for_all_models_and_gives_the_same_values(
    architecture, autocast, monkeypatch
) -> None:
    from trl.trainer.utils import add_fused_lm_head

    from sense_trl.trainers.sharing.heads import add_prefix_tree_head

    sequences = [[*range(7, 60), 60 + i, *range(10, 40)] for i in range(6)]
    labels = torch.zeros(len(sequences), len(sequences[0]), dtype=torch.long)
    policy, reference = (build_tiny_model(architecture, seed=seed) for seed in (0, 1))
    for model in (policy, reference):
        add_fused_lm_head(model, outputs=("log_probs",))
        add_prefix_tree_head(model)
    made = []
    original = PrefixTree.get_attention_mask
    monkeypatch.setattr(
        PrefixTree, "get_attention_mask", lambda tree: made.append(1) or original(tree)
    )
    results = []
    for context in (with_dense_masks(), contextlib.nullcontext()):
        tree = PrefixTree.from_sequences(sequences)
        with context, torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            outputs = [
                model(labels=labels, fused_lm_head=True, prefix_tree=tree)
                for model in (policy, reference)
            ]
        results.append([output.log_probs for output in outputs])
    assert made == [1, 1]  # one for each of the two trees
    tolerance = 5e-2 if autocast else 1e-4
    for dense, branches in zip(*results, strict=True):
        torch.testing.assert_close(dense, branches, rtol=tolerance, atol=tolerance)
