from __future__ import annotations

import sys

import pytest
import tiny_models
import torch
from peft import LoraConfig, get_peft_model
from torch import nn
from transformers import AutoModelForCausalLM, BitsAndBytesConfig

from sense_trl.trainers.compat.quantization import (
    disable_cpu_weight_repacking,
    upcast_trainable_to_float32,
)

# TRL 1.16 and peft 0.21 use names of this option that transformers 5.23 deprecates.
pytestmark = pytest.mark.filterwarnings("ignore:.*gradient_checkpointing:FutureWarning")

NF4 = {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4", "bnb_4bit_compute_dtype": torch.float32}


@pytest.fixture
def load_4bit(tmp_path):
    pytest.importorskip("bitsandbytes", reason="4-bit weights need bitsandbytes")
    path = tiny_models.save_tiny_model(tmp_path, "llama")
    return lambda: AutoModelForCausalLM.from_pretrained(
        path, dtype=torch.float32, quantization_config=BitsAndBytesConfig(**NF4)
    )


def test_upcasts_what_is_trained_and_nothing_else():
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2)).to(torch.bfloat16)
    model[0].requires_grad_(False)
    before = model[1].weight.detach().clone()
    parameter = model[1].weight
    assert upcast_trainable_to_float32(model) == 2
    assert [p.dtype for p in model[0].parameters()] == [torch.bfloat16] * 2
    assert [p.dtype for p in model[1].parameters()] == [torch.float32] * 2
    # The same parameter object, or an optimiser built on it would train nothing.
    assert model[1].weight is parameter
    assert torch.equal(parameter, before.float())
    assert upcast_trainable_to_float32(model) == 0


def test_a_model_without_4bit_layers_is_left_alone():
    assert disable_cpu_weight_repacking(nn.Linear(2, 2)) == 0


def test_without_bitsandbytes_the_guard_does_nothing(monkeypatch):
    monkeypatch.delitem(sys.modules, "bitsandbytes", raising=False)
    assert disable_cpu_weight_repacking(nn.Linear(2, 2)) == 0
    assert "bitsandbytes" not in sys.modules


def get_gradients(model, ids):
    model.zero_grad()
    model.train()
    model(ids, labels=ids).loss.backward()
    return {n: p.grad.clone() for n, p in model.named_parameters() if p.requires_grad}


def test_gradients_after_evaluation_are_those_of_before(load_4bit):
    torch.manual_seed(0)
    model = get_peft_model(load_4bit(), LoraConfig(r=4, target_modules=["q_proj", "down_proj"]))
    assert disable_cpu_weight_repacking(model) == 14  # 7 linear layers in each of 2 blocks
    ids = torch.arange(3, 43)[None]
    before = get_gradients(model, ids)
    weights = model.state_dict()
    weights = {name: weights[name].clone() for name in weights}
    model.eval()
    with torch.no_grad():
        model(ids)
    after = get_gradients(model, ids)
    assert any(gradient.any() for gradient in before.values())
    for name in before:
        torch.testing.assert_close(after[name], before[name], rtol=1e-5, atol=1e-7)
    for name, weight in model.state_dict().items():
        assert torch.equal(weight, weights[name]), name
