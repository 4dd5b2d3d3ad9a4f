"""What configs tell of models, for one of each kind of attention."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
from transformers import (
    CLIPTextConfig,
    Gemma2Config,
    Gemma3Config,
    LlamaConfig,
    MistralConfig,
    Qwen2Config,
)

from sense_trl.errors import ModelError
from sense_trl.model_traits import (
    find_partial_attention,
    get_cache_argument,
    has_full_attention,
    keep_layers,
)


@pytest.mark.parametrize(
    "config, reason",
    [
        (LlamaConfig(), None),
        (MistralConfig(sliding_window=None), None),
        (MistralConfig(sliding_window=4096), "a window of 4096 tokens"),
        # A window that is named and not used.
        (Qwen2Config(sliding_window=64, use_sliding_window=False), None),
        (Gemma2Config(num_hidden_layers=2), "['sliding_attention']"),
        # The settings of the text part count.
        (Gemma3Config(), "['sliding_attention']"),
        (LlamaConfig(attention_chunk_size=8192), "a window of 8192 tokens"),
        (CLIPTextConfig(), None),
    ],
    ids=lambda value: getattr(value, "model_type", ""),
)
def test_partial_attention_is_named(config, reason) -> None:
    found = find_partial_attention(config)
    assert (found is None) == (reason is None) == has_full_attention(config)
    assert reason is None or reason in found


def test_the_kinds_of_layers_go_with_the_layers() -> None:
    config = Gemma2Config(num_hidden_layers=4)
    kinds = list(config.layer_types)
    keep_layers(config, [0, 3])
    assert config.num_hidden_layers == 2
    assert config.layer_types == [kinds[0], kinds[3]]
    plain = LlamaConfig(num_hidden_layers=4)
    keep_layers(plain, range(3))
    assert plain.num_hidden_layers == 3


def test_the_cache_has_the_name_that_forward_gives_it() -> None:
    class Old:
        def forward(self, input_ids: object, past_key_values: object = None) -> None: ...

    class New:
        def forward(self, input_ids: object, cache: object = None) -> None: ...

    class Wrapped:
        def forward(self, *args: object, **options: object) -> None: ...

        def get_base_model(self) -> New:
            return New()

    found = [get_cache_argument(model) for model in (Old(), New(), Wrapped())]
    assert found == ["past_key_values", "cache", "cache"]


def test_a_model_that_takes_no_cache_is_refused() -> None:
    class Recurrent:
        config = SimpleNamespace(model_type="mamba")

        def forward(self, input_ids: object, cache_params: object = None) -> None: ...

    with pytest.raises(ModelError, match=r"'mamba' cannot be sampled.*recurrent state"):
        get_cache_argument(Recurrent())
