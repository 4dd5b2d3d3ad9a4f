"""Dropout that is switched off, also where it is no module."""

from __future__ import annotations

import math

import pytest
import torch
from tiny_models import build_tiny_model, build_tiny_tokenizer, get_history
from torch import nn

from sense_trl.trainers.compat.dropout import disable_functional_dropout, evaluating

# TRL 1.16 and peft 0.21 use names of this option that transformers 5.23 deprecates.
pytestmark = pytest.mark.filterwarnings("ignore:.*gradient_checkpointing:FutureWarning")


@pytest.fixture
def dropping(model_paths, tmp_path, monkeypatch):
    """A model whose attention drops half of its weights while it is trained."""
    model = build_tiny_model("llama")
    model.config.attention_dropout = 0.5
    folder = tmp_path / "dropping"
    model.save_pretrained(folder)
    build_tiny_tokenizer().save_pretrained(folder)
    monkeypatch.setitem(model_paths, "dropping", str(folder))
    return "dropping"


@pytest.mark.parametrize("sharing", [True, False], ids=["tree", "rows"])
@pytest.mark.parametrize("lora", [True, False], ids=["lora", "full"])
def test_a_policy_that_is_its_reference_has_a_loss_of_ln_2(train, dropping, lora, sharing):
    trainer = train(
        ["sigmoid"], architecture=dropping, lora=lora, prefix_sharing=sharing, max_steps=1
    )
    assert get_history(trainer, "loss")[0] == pytest.approx(math.log(2), abs=1e-6)
    assert get_history(trainer, "rewards/margins")[0] == pytest.approx(0, abs=1e-5)


def test_the_reference_has_none_even_if_the_policy_has(train, dropping):
    trainer = train(["sigmoid"], architecture=dropping, disable_dropout=False, start=False)
    batch = trainer.data_collator([trainer.train_dataset[i] for i in range(4)])
    trainer.model.train()
    first, second = (trainer.compute_ref_log_probs(trainer.model, batch)[0] for _ in range(2))
    assert torch.equal(first, second)
    assert trainer.model.training
    losses = {trainer.compute_loss(trainer.model, batch).item() for _ in range(2)}
    assert len(losses) == 2


def test_a_model_is_in_the_mode_it_was_in():
    model = nn.Sequential(nn.Linear(2, 2), nn.Dropout(0.5))
    model[0].eval()
    with evaluating(model):
        assert not any(module.training for module in model.modules())
        assert not torch.is_grad_enabled()
    assert [module.training for module in model.modules()] == [True, False, True]


def test_rates_that_modules_hold_are_set_to_0():
    model = build_tiny_model("qwen2").train()
    ids = torch.tensor([[5, 6, 7, 8, 9, 10]])
    for layer in model.base_model.layers:
        layer.self_attn.attention_dropout = 0.5
    assert not torch.equal(model(ids).logits, model(ids).logits)
    disable_functional_dropout(model)
    assert torch.equal(model(ids).logits, model(ids).logits)
