"""Log-probabilities and gradients on a tree, against separate rows and full logits."""

from __future__ import annotations

import copy
from contextlib import nullcontext

import pytest
import torch
from tiny_models import ARCHITECTURES, VOCAB_SIZE, build_tiny_model
from torch import nn
from transformers import (
    CohereConfig,
    CohereForCausalLM,
    Gemma2Config,
    MistralConfig,
    MistralForCausalLM,
)
from trl.trainer.utils import add_fused_lm_head

from sense_trl.losses import chunked
from sense_trl.losses.chunked import LogitTransform
from sense_trl.prefix_tree import PrefixTree
from sense_trl.trainers.sharing import heads
from sense_trl.trainers.sharing.heads import (
    add_prefix_tree_head,
    get_logit_transform,
    get_vocab_size,
    transfer_term,
)

PROMPT, OTHER = list(range(5, 35)), list(range(40, 60))
SEQUENCES = [
    [*PROMPT, 7, 8, 9],
    [*PROMPT, 7, 10, 11, 12],
    [*PROMPT, 7, 8, 9],
    [*OTHER, 3, 4],
    [*OTHER, 5],
]
MASKS = [[0] * (len(s) - n) + [1] * n for s, n in zip(SEQUENCES, (3, 4, 3, 2, 1), strict=True)]
FIELDS = ("log_probs", "entropy", "log_sum_sq_probs", "mean_logits", "is_top1", "label_mask")
# A different factor for every sequence, so that gradients mixed up between them would show.
FACTORS = torch.tensor([[1.0], [-2.0], [0.5], [3.0], [-1.0]])


@pytest.fixture
def tree():
    # Two rows, the second one padded.
    return PrefixTree.from_sequences(SEQUENCES, MASKS, max_row_tokens=40)


@pytest.fixture
def batch():
    """The padded batch that TRL's trainers make of the same sequences, padded further to 40."""
    ids, attention, labels = torch.zeros(5, 40, dtype=torch.long), torch.zeros(5, 40), None
    labels = torch.full_like(ids, -100)
    for row, (sequence, mask) in enumerate(zip(SEQUENCES, MASKS, strict=True)):
        tokens, trained = torch.tensor(sequence), torch.tensor(mask).bool()
        ids[row, : len(tokens)], attention[row, : len(tokens)] = tokens, 1
        labels[row, : len(tokens)] = tokens.where(trained, -100)
    return {"input_ids": ids, "attention_mask": attention.long(), "labels": labels}


def prepare(model):
    add_fused_lm_head(model, outputs=FIELDS[:-1])
    add_prefix_tree_head(model)
    return model


def run(model, batch, **kwargs):
    """The output and the gradients of every parameter."""
    model.zero_grad()
    output = model(**batch, use_cache=False, fused_lm_head=True, **kwargs)
    (output.log_probs * FACTORS).sum().backward()
    return output, {
        name: parameter.grad.clone()
        for name, parameter in model.named_parameters()
        if parameter.grad is not None
    }


def assert_same(found, expected, tolerance=1e-5):
    (output, gradients), (expected_output, expected_gradients) = found, expected
    for field in FIELDS:
        torch.testing.assert_close(
            getattr(output, field), getattr(expected_output, field), rtol=tolerance, atol=tolerance
        )
    assert gradients.keys() == expected_gradients.keys()
    assert gradients
    for name, gradient in gradients.items():
        difference = (gradient - expected_gradients[name]).norm()
        assert difference <= tolerance * expected_gradients[name].norm(), name


# ------------------------------------------------------------------------- whole models


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_a_tree_gives_the_values_and_gradients_of_padded_rows(architecture, attention, tree, batch):
    model = prepare(build_tiny_model(architecture))
    model.set_attn_implementation(attention)
    assert tree.input_ids.shape == (2, 36)  # instead of five rows of 40
    assert_same(run(model, batch, prefix_tree=tree), run(model, batch))


@pytest.mark.slow  # compiles for some 15 s
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # torch's compiler uses torch.jit
def test_flex_attention_gives_the_same_values(tree, batch):
    """Forward alone: on a CPU, FlexAttention has no backward pass."""
    model = prepare(build_tiny_model("llama"))
    values = []
    for attention in ("sdpa", "flex_attention"):
        model.set_attn_implementation(attention)
        with torch.no_grad():
            values.append(model(**batch, fused_lm_head=True, prefix_tree=tree).log_probs)
    torch.testing.assert_close(*values, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("architecture", [*ARCHITECTURES, "sliding window"])
def test_an_unshared_tree_is_the_padded_batch_for_any_model(architecture, batch):
    if architecture == "sliding window":
        torch.manual_seed(0)
        sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2}
        heads = {"num_attention_heads": 4, "num_key_value_heads": 2}
        model = MistralForCausalLM(
            MistralConfig(vocab_size=VOCAB_SIZE, sliding_window=8, pad_token_id=0, **sizes, **heads)
        )
    else:
        model = build_tiny_model(architecture)
    tree = PrefixTree.from_sequences(SEQUENCES, MASKS, share=False)
    shapes = []
    prepare(model).base_model.register_forward_pre_hook(
        lambda _, args, kwargs: shapes.append((kwargs["attention_mask"].shape, sorted(kwargs))),
        with_kwargs=True,
    )
    found = run(model, batch, prefix_tree=tree)
    assert shapes == [((5, 34), ["attention_mask", "input_ids", "use_cache"])]
    assert_same(found, run(model, batch))


def test_preparing_a_model_twice_is_preparing_it_once():
    model = prepare(build_tiny_model("llama"))
    forward = model.forward
    add_prefix_tree_head(model)
    assert model.forward == forward


def test_log_probs_are_those_of_every_sequence_alone(tree, batch):
    model = prepare(build_tiny_model("llama"))
    output, _ = run(model, batch, prefix_tree=tree)
    for row, (sequence, mask) in enumerate(zip(SEQUENCES, MASKS, strict=True)):
        with torch.no_grad():
            logits = model(torch.tensor([sequence])).logits[0, :-1]
        targets = torch.tensor(sequence[1:])
        expected = logits.log_softmax(-1).gather(1, targets[:, None])[:, 0]
        expected = expected * torch.tensor(mask[1:])
        found = output.log_probs[row, : len(expected)]
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
        assert not output.log_probs[row, len(expected) :].any()


def test_a_large_vocabulary_costs_no_digits(tree, batch):
    vocab_size = 50_000
    model = build_tiny_model("llama")
    model.resize_token_embeddings(vocab_size, mean_resizing=False)
    with torch.no_grad():
        model.lm_head.weight.normal_(std=0.3, generator=torch.Generator().manual_seed(0))
    hidden = []
    prepare(model).base_model.register_forward_hook(
        lambda *args: hidden.append(args[-1].last_hidden_state)
    )
    output, _ = run(model, batch, prefix_tree=tree)
    logits = hidden[0].detach().double().flatten(0, 1)[tree.predicting_nodes]
    logits = logits @ model.lm_head.weight.double().t()
    expected = logits.log_softmax(-1).gather(1, tree.target_ids[:, None])[:, 0]
    expected = tree.to_sequences(expected)[:, 1:]
    errors = (output.log_probs[:, : expected.shape[1]] - expected).abs()
    assert errors.max() < 5e-6


@pytest.mark.parametrize("reentrant", [True, False])
def test_gradient_checkpointing_changes_nothing(tree, batch, reentrant):
    model = prepare(build_tiny_model("qwen2"))
    expected = run(model, batch)
    model.train()
    model.gradient_checkpointing_enable({"use_reentrant": reentrant})
    model.enable_input_require_grads()
    assert_same(run(model, batch, prefix_tree=tree), expected)


def test_without_a_tree_nothing_is_changed(batch):
    plain, patched = build_tiny_model("llama"), prepare(build_tiny_model("llama"))
    ids = batch["input_ids"]
    assert torch.equal(patched(ids).logits, plain(ids).logits)
    add_fused_lm_head(plain, outputs=FIELDS[:-1])
    assert_same(run(patched, batch), run(plain, batch), tolerance=0)
    options = {"max_new_tokens": 3, "do_sample": False, "pad_token_id": 0}
    expected = plain.generate(ids[:1, :5], **options)
    assert torch.equal(patched.generate(ids[:1, :5], **options), expected)


def test_logits_are_those_of_the_padded_batch_when_they_are_asked_for(tree, batch):
    model = prepare(build_tiny_model("llama"))
    expected = model(**batch).logits
    assert torch.equal(model(**batch, prefix_tree=tree).logits, expected)


def test_only_nodes_that_predict_are_projected_and_shared_ones_once(tree, batch, monkeypatch):
    rows = []
    original = chunked._project
    monkeypatch.setattr(
        chunked,
        "_project",
        lambda hidden, *rest: rows.append(len(hidden)) or original(hidden, *rest),
    )
    run(prepare(build_tiny_model("llama")), batch, prefix_tree=tree)
    # 7 8 9, 10 11 12 behind the shared 7; 3 4 and 5. Once forward and once backward.
    assert rows == [9, 9]


def test_a_batch_without_trained_tokens_trains_nothing(batch):
    model = prepare(build_tiny_model("llama"))
    tree = PrefixTree.from_sequences(SEQUENCES, [[0] * len(s) for s in SEQUENCES])
    output, gradients = run(model, batch, prefix_tree=tree)
    assert not output.log_probs.any()
    assert not output.label_mask.any()
    assert not any(gradient.any() for gradient in gradients.values())


def test_autocast_does_not_reach_the_head(tree, batch):
    model = prepare(build_tiny_model("llama"))
    hidden = []
    model.base_model.register_forward_hook(lambda *args: hidden.append(args[-1].last_hidden_state))
    with torch.autocast("cpu", torch.bfloat16):
        output, _ = run(model, batch, prefix_tree=tree)
    logits = hidden[0].detach().float().flatten(0, 1)[tree.predicting_nodes]
    logits = logits @ model.lm_head.weight.t()
    expected = logits.log_softmax(-1).gather(1, tree.target_ids[:, None])[:, 0]
    expected = tree.to_sequences(expected)[:, 1:]
    torch.testing.assert_close(output.log_probs[:, :33], expected, rtol=1e-6, atol=1e-6)


def test_on_a_gpu_the_factors_of_the_head_have_the_type_of_autocast(tree, batch, monkeypatch):
    """As if a CPU could multiply 16-bit matrices into float32."""
    monkeypatch.setattr(chunked, "_multiplies_short_types", lambda device: True)
    factors = []

    def multiply(left, right):
        factors.append((left.dtype, right.dtype))
        return left.float() @ right.float()

    monkeypatch.setattr(chunked, "_multiply_short", multiply)
    model = prepare(build_tiny_model("llama"))
    with torch.autocast("cpu", torch.bfloat16):
        output, gradients = run(model, batch, prefix_tree=tree)
    # Forward, and in the backward pass the logits again, and both gradients.
    assert factors == [(torch.bfloat16, torch.bfloat16)] * 4
    assert output.log_probs.dtype == torch.float32
    assert {gradient.dtype for gradient in gradients.values()} == {torch.float32}
    factors.clear()
    expected, others = run(model, batch, prefix_tree=tree)
    assert factors == []
    torch.testing.assert_close(output.log_probs, expected.log_probs, rtol=2e-2, atol=2e-2)
    for name, gradient in gradients.items():
        assert (gradient - others[name]).norm() <= 0.05 * others[name].norm(), name


def test_a_frozen_head_gets_no_gradient_and_costs_none(tree, batch, monkeypatch):
    # Untied, or the embedding would train the head.
    model = build_tiny_model("llama")
    model.config.tie_word_embeddings = False
    model.lm_head.weight = nn.Parameter(model.lm_head.weight.detach().clone())
    _, expected = run(prepare(copy.deepcopy(model)), batch)
    prepare(model).lm_head.weight.requires_grad_(False)
    shapes = []
    original = chunked._matmul
    monkeypatch.setattr(
        chunked,
        "_matmul",
        lambda left, right: shapes.append((len(left), right.shape[1])) or original(left, right),
    )
    _, gradients = run(model, batch, prefix_tree=tree)
    assert "lm_head.weight" in expected
    assert "lm_head.weight" not in gradients
    hidden_size = model.config.hidden_size
    assert shapes == [(9, VOCAB_SIZE), (9, hidden_size)]
    for name, gradient in gradients.items():
        assert (gradient - expected[name]).norm() <= 1e-5 * expected[name].norm(), name


def test_the_head_is_gathered_as_trl_gathers_it(tree, batch, monkeypatch):
    gathered = []
    monkeypatch.setattr(
        heads,
        "maybe_gather_lm_head_ctx",
        lambda weight, bias: gathered.append(weight) or nullcontext(),
    )
    model = prepare(build_tiny_model("llama"))
    run(model, batch, prefix_tree=tree)
    assert [weight is model.lm_head.weight for weight in gathered] == [True, True]


def test_a_term_over_some_sequences_is_moved_to_a_larger_tree(tree, batch):
    """A teacher reads a tree of its own, with other rows and an order of its own."""
    own = PrefixTree.from_sequences(SEQUENCES[1:4], MASKS[1:4], share=False)
    weights = own.target_ids.float()
    rows_seen = []

    def term(logits, rows):
        rows_seen.append(rows)
        return weights[rows] * logits.logsumexp(-1)

    model = prepare(build_tiny_model("llama"))
    moved = transfer_term(term, own, tree, slice(1, 4))
    output = model(**batch, fused_lm_head=True, prefix_tree=tree, logit_terms=[moved])
    (found,) = output.logit_terms
    for row, (sequence, mask) in enumerate(zip(SEQUENCES[1:4], MASKS[1:4], strict=True), start=1):
        logits = model(torch.tensor([sequence])).logits[0, :-1]
        targets = own.target_index[row - 1, 1 : len(sequence)]
        is_trained = torch.tensor(mask[1:]).bool()
        expected = weights[targets[is_trained]] * logits.logsumexp(-1)[is_trained]
        if row == 2:
            # The same sequence as the first one, at nodes that a shared tree has once.
            assert torch.equal(found[row], found[0])
        torch.testing.assert_close(
            found[row, : len(is_trained)][is_trained], expected, rtol=1e-5, atol=1e-5
        )
    # The last sequence is not asked about, and its nodes never reach the term.
    assert not found[4].any()
    assert sum(map(len, rows_seen)) == 8
    found.sum().backward()
    assert model.lm_head.weight.grad.isfinite().all()


def test_a_term_of_the_logits_is_computed_per_token_and_trains(tree, batch):
    """What a distillation loss needs: the whole distribution at every trained token."""
    model = prepare(build_tiny_model("llama"))
    teacher = torch.randn(len(tree.target_ids), VOCAB_SIZE).softmax(-1)

    def get_cross_entropy(logits, rows):
        return -(teacher[rows] * logits.log_softmax(-1)).sum(-1)

    output = model(**batch, fused_lm_head=True, prefix_tree=tree, logit_terms=[get_cross_entropy])
    (term,) = output.logit_terms
    (term * FACTORS).sum().backward()
    found = {n: p.grad.clone() for n, p in model.named_parameters()}
    model.zero_grad()
    expected_term = torch.zeros_like(term)
    for row, (sequence, mask) in enumerate(zip(SEQUENCES, MASKS, strict=True)):
        log_probs = model(torch.tensor([sequence])).logits[0].log_softmax(-1)
        for position in range(1, len(sequence)):
            if mask[position]:
                target = teacher[tree.target_index[row, position]]
                expected_term[row, position - 1] = -(target * log_probs[position - 1]).sum()
    torch.testing.assert_close(term, expected_term, rtol=1e-5, atol=1e-5)
    (expected_term * FACTORS).sum().backward()
    for name, parameter in model.named_parameters():
        assert (found[name] - parameter.grad).norm() <= 1e-5 * parameter.grad.norm(), name


# ---------------------------------------------------------------- scaled logits


def test_scale_and_soft_capping_are_read_from_the_config():
    assert get_logit_transform(Gemma2Config(final_logit_softcapping=30.0)).softcap == 30.0
    assert get_logit_transform(CohereConfig(logit_scale=0.0625)).scale == 0.0625
    assert get_logit_transform(build_tiny_model("llama").config) == LogitTransform()


def test_a_model_with_scaled_logits_gives_the_log_probs_of_its_own_logits(tree, batch):
    config = CohereConfig(
        vocab_size=VOCAB_SIZE,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=2,
        logit_scale=4.0,
        pad_token_id=0,
        eos_token_id=2,
        bos_token_id=1,
    )
    model = prepare(CohereForCausalLM(config))
    output, _ = run(model, batch, prefix_tree=tree)
    with torch.no_grad():
        logits = model(torch.tensor(SEQUENCES[1:2])).logits[0, -5:-1]
    expected = logits.log_softmax(-1).gather(1, torch.tensor([[7], [10], [11], [12]]))[:, 0]
    torch.testing.assert_close(output.log_probs[1, 29:33], expected, rtol=1e-5, atol=1e-5)


def test_the_size_of_a_head_is_that_of_the_whole():
    model = build_tiny_model("llama")
    assert get_vocab_size(model) == VOCAB_SIZE
    # As ZeRO-3 leaves a parameter that is not gathered.
    weight = torch.nn.Parameter(torch.empty(0))
    weight.ds_shape = torch.Size([VOCAB_SIZE, 64])
    model.lm_head.weight = weight
    assert get_vocab_size(model) == VOCAB_SIZE
