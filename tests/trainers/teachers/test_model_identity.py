"""What makes a model another one for those who keep what it said."""

from __future__ import annotations

import pytest
import torch
from peft import LoraConfig, get_peft_model
from tiny_models import build_tiny_model
from transformers import AutoModelForCausalLM, BitsAndBytesConfig

from sense_trl.trainers.teachers.model_identity import (
    describe_differences,
    describe_settings,
    get_weights_digest,
)


def get_digest(model):
    return get_weights_digest(model.named_parameters())


def test_weights_are_known_by_their_values_names_shapes_and_types():
    tensors = {"a": torch.arange(6.0), "b": torch.ones(2, 3)}
    digests = {
        get_weights_digest(tensors.items()),
        get_weights_digest({**tensors, "a": torch.arange(6.0) + 1}.items()),
        get_weights_digest({**tensors, "a": torch.arange(6.0).view(2, 3)}.items()),
        get_weights_digest({**tensors, "a": torch.arange(6.0).bfloat16()}.items()),
        get_weights_digest({"c": tensors["a"], "b": tensors["b"]}.items()),
    }
    assert len(digests) == 5
    assert get_weights_digest(reversed(tensors.items())) in digests


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.uint8])
def test_one_number_among_many_is_seen(dtype):
    """A sample of a thousand numbers does not hold it: as where only new tokens were trained."""
    weight = torch.ones(300_000, 2, dtype=dtype)
    other = weight.clone()
    other[123_457, 1] = 2
    first, second = (get_weights_digest([("weight", each)]) for each in (weight, other))
    assert first != second


def test_scales_of_4_bit_weights_are_part_of_them(model_paths):
    config = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4")
    model = AutoModelForCausalLM.from_pretrained(model_paths["llama"], quantization_config=config)
    before = get_digest(model)
    model.base_model.layers[0].mlp.down_proj.weight.quant_state.absmax *= 2
    assert get_digest(model) != before


def test_what_does_not_change_values_is_left_out():
    first, second = build_tiny_model("llama"), build_tiny_model("llama")
    second.config._name_or_path = "elsewhere"
    second.config.attention_dropout = 0.5
    second.config.pad_token_id = 7
    second.config.use_cache = False
    assert describe_settings(first) == describe_settings(second)
    second.config.rms_norm_eps = 1e-5
    assert describe_differences(describe_settings(first), describe_settings(second)) == [
        "rms_norm_eps was 1e-06, now 1e-05"
    ]


def test_adapters_that_are_on_are_part_of_the_settings():
    model = get_peft_model(
        build_tiny_model("llama"), LoraConfig(r=4, target_modules=["q_proj", "k_proj", "v_proj"])
    )
    model.add_adapter("other", LoraConfig(r=4, lora_alpha=99, target_modules=["q_proj"]))
    settings = describe_settings(model)
    assert settings["adapters"][0]["lora_alpha"] == 8
    assert settings["adapters"][0]["target_modules"] == ["k_proj", "q_proj", "v_proj"]
    model.set_adapter("other")
    assert describe_settings(model)["adapters"][0]["lora_alpha"] == 99
    assert "adapters" not in describe_settings(model, adapters=[])
    base = describe_settings(build_tiny_model("llama"))
    assert describe_settings(model, adapters=[]) == base
