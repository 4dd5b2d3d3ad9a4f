"""A pruned model is its model without some layers, and can be saved, loaded and generated from."""

from pathlib import Path

import pytest
import tiny_models
import torch
from transformers import AutoModelForCausalLM

from sense_trl.checkpoints.pruning import prune_layers
from sense_trl.errors import InputError


def _build(architecture: str, num_layers: int) -> torch.nn.Module:
    model = tiny_models.build_tiny_model(architecture)
    config = model.config
    config.num_hidden_layers = num_layers
    if getattr(config, "layer_types", None):
        config.layer_types = ["full_attention"] * num_layers
    torch.manual_seed(0)
    return type(model)(config).eval()


@pytest.mark.parametrize("architecture", tiny_models.ARCHITECTURES)
def test_the_middle_layers_are_dropped_and_the_rest_survives_saving(
    architecture: str, tmp_path: Path
) -> None:
    model = _build(architecture, 5)
    before = {name: weight.clone() for name, weight in model.state_dict().items()}
    student = prune_layers(model, 3)
    for index, original in enumerate([0, 1, 4]):
        for name, weight in student.model.layers[index].state_dict().items():
            assert torch.equal(weight, before[f"model.layers.{original}.{name}"])
    student.save_pretrained(tmp_path)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path).eval()
    ids = torch.tensor([[5, 6, 7, 8]])
    assert torch.equal(loaded(ids).logits, student.eval()(ids).logits)
    # With a cache, whose entries are by layer, generation reads what it wrote.
    written = student.generate(ids, max_new_tokens=4, min_new_tokens=4, do_sample=False)
    assert torch.equal(student(written[:, :-1]).logits[0, 3:].argmax(-1), written[0, 4:])


def test_the_model_is_left_as_it_was() -> None:
    model = _build("llama", 4)
    model.requires_grad_(False)
    ids = torch.tensor([[5, 6, 7]])
    expected = model(ids).logits
    student = prune_layers(model, 4)
    assert all(weight.requires_grad for weight in student.parameters())
    assert torch.equal(student(ids).logits, expected)
    with torch.no_grad():
        for weight in student.parameters():
            weight.add_(1.0)
    prune_layers(model, 1)
    assert torch.equal(model(ids).logits, expected)
    assert not any(weight.requires_grad for weight in model.parameters())
    assert (model.config.num_hidden_layers, len(model.model.layers)) == (4, 4)


@pytest.mark.parametrize("num_layers", [0, 3])
def test_another_number_of_layers_is_refused(num_layers: int) -> None:
    with pytest.raises(InputError, match=f"`num_layers` is {num_layers}"):
        prune_layers(_build("llama", 2), num_layers)


def test_another_kind_of_model_is_refused() -> None:
    with pytest.raises(InputError, match="`model` is a Linear"):
        prune_layers(torch.nn.Linear(2, 2), 1)
