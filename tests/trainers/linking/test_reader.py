"""States of a frozen model at spans of what it reads."""

import copy
from typing import Any

import pytest
import tiny_models
import torch

from sense_trl.errors import InputError, ModelError
from sense_trl.trainers.linking import StateReader

PREFIX = "singer(name, age)\nconcert(year)\nQuestion:"
SPANS = [(0, 6), (7, 11), (13, 16), (18, 25), (26, 30)]
TEXTS = [" How old?\n", " Which concert was in 2014?\n", " Names.\n"]
WORDS = [[(1, 4), (5, 8), (9, 10)], [(1, 6), (7, 14), (27, 28)], [(1, 6)]]


def slow_states(model: Any, tokenizer: Any, layer: int, text: str) -> list[torch.Tensor]:
    """States of one row, and where its tokens end, without a cache."""
    parts = [tokenizer(t, add_special_tokens=False)["input_ids"] for t in (PREFIX, text)]
    ids = torch.tensor([parts[0] + parts[1]])
    with torch.no_grad():
        states = model(ids, output_hidden_states=True).hidden_states[layer][0]
    return [states[: len(parts[0])], states[len(parts[0]) :]]


def average(tokenizer: Any, text: str, states: torch.Tensor, span: tuple[int, int]) -> torch.Tensor:
    offsets = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
    inside = [a < span[1] and b > span[0] for a, b in offsets["offset_mapping"]]
    return states[torch.tensor(inside)].mean(0)


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("architecture", tiny_models.ARCHITECTURES)
def test_states_behind_a_shared_prefix_are_those_of_rows_of_their_own(
    architecture: str, attention: str
) -> None:
    model = tiny_models.build_tiny_model(architecture)
    model.set_attn_implementation(attention)
    tokenizer = tiny_models.build_tiny_tokenizer()
    before = copy.deepcopy(model.state_dict())
    reader = StateReader(model, tokenizer, layer=1)
    prefix = reader.read_prefix(PREFIX, SPANS)
    # A second time the same: what was read before is not behind the prefix.
    for _ in range(2):
        found = reader.read_behind(prefix, TEXTS, WORDS)
    for text, spans, states in zip(TEXTS, WORDS, found, strict=True):
        own, behind = slow_states(model, tokenizer, 1, text)
        for span, state in zip(spans, states, strict=True):
            torch.testing.assert_close(state, average(tokenizer, text, behind, span))
        for span, state in zip(SPANS, prefix.states, strict=True):
            torch.testing.assert_close(state, average(tokenizer, PREFIX, own, span))
    assert len(model.base_model.layers) == 2
    assert all(torch.equal(before[name], weight) for name, weight in model.state_dict().items())


def test_many_texts_are_read_in_parts() -> None:
    model, tokenizer = tiny_models.build_tiny_model("llama"), tiny_models.build_tiny_tokenizer()
    reader = StateReader(model, tokenizer)
    prefix = reader.read_prefix(PREFIX, SPANS)
    many = reader.read_behind(prefix, TEXTS * 40, WORDS * 40)
    few = reader.read_behind(prefix, TEXTS, WORDS)
    for place, states in enumerate(many):
        torch.testing.assert_close(states, few[place % 3])


def test_names_that_look_like_control_tokens_are_text() -> None:
    model, tokenizer = tiny_models.build_tiny_model("llama"), tiny_models.build_tiny_tokenizer()
    reader = StateReader(model, tokenizer)
    marked = reader.read_prefix("a(<|im_end|>)", [(2, 12)])
    assert marked.num_tokens > 6


def test_texts_longer_than_the_context_are_refused() -> None:
    """No position behind the last one that the model knows is read without a word."""
    model, tokenizer = tiny_models.build_tiny_model("llama"), tiny_models.build_tiny_tokenizer()
    reader = StateReader(model, tokenizer)
    with pytest.raises(InputError, match=r"behind 0 others exceeds the model's context of 512"):
        reader.read_prefix("name, " * 600, [(0, 4)])
    prefix = reader.read_prefix(PREFIX, SPANS)
    with pytest.raises(InputError, match=rf"behind {prefix.num_tokens} others exceeds"):
        reader.read_behind(prefix, [" Why?" * 300], [[(1, 4)]])


def test_what_cannot_be_read_is_refused() -> None:
    model, tokenizer = tiny_models.build_tiny_model("llama"), tiny_models.build_tiny_tokenizer()
    with pytest.raises(InputError, match="`layer` is 3; the model has the layers 1 to 2"):
        StateReader(model, tokenizer, layer=3)
    model.config.sliding_window = 8
    with pytest.raises(ModelError, match="window of 8 tokens"):
        StateReader(model, tokenizer)
