"""Sampling with a shared prefix must write what plain generation writes."""

from pathlib import Path

import pytest
import tiny_models
import torch

from sense_trl.errors import InputError, ModelError
from sense_trl.generation import shared_prefix
from sense_trl.generation import transformers_generator as generator_module
from sense_trl.generation.generator import SamplingConfig, completion_seed
from sense_trl.generation.shared_prefix import supports_shared_prefix
from sense_trl.generation.transformers_generator import (
    TransformersGenerator,
    _choose,
    load_model,
    load_tokenizer,
)
from sense_trl.prompts import get_prompt

SCHEMAS = [
    "singer(singer_id, name, age, country)\nconcert(concert_id, stadium_id, year)",
    "stadium(stadium_id, name)",
]
QUESTIONS = ["How many singers are there?", "Which?", "What is the average age of all of them?"]
PROMPTS = [get_prompt(q, s) for s in SCHEMAS for q in QUESTIONS]


def _generator(architecture: str, **options: object) -> TransformersGenerator:
    model = tiny_models.build_tiny_model(architecture, seed=1)
    model.config.max_position_embeddings = 2048
    # Fresh weights are so small that every answer is one repeated blank; larger ones write text.
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 2:
                parameter.mul_(8)
    return TransformersGenerator(
        model, tiny_models.build_tiny_tokenizer(), name=architecture, **options
    )


@pytest.fixture(params=tiny_models.ARCHITECTURES)
def architecture(request: pytest.FixtureRequest) -> str:
    return request.param


def _plain(generator: TransformersGenerator, prompt: list[dict[str, str]], length: int) -> str:
    """The slow obvious version: one prompt at a time, the whole text again for every token."""
    tokenizer = generator.tokenizer
    ids = tokenizer.apply_chat_template(
        prompt, add_generation_prompt=True, tokenize=True, return_dict=True
    )["input_ids"]
    written: list[int] = []
    with torch.no_grad():
        for _ in range(length):
            logits = generator.model(torch.tensor([[*ids, *written]])).logits[0, -1]
            written.append(int(logits.argmax()))
            if written[-1] == tokenizer.eos_token_id:
                break
    return tokenizer.decode(written, skip_special_tokens=True).strip()


def test_greedy_text_equals_plain_decoding(architecture: str) -> None:
    generator = _generator(architecture, batch_size=4)
    expected = [_plain(generator, prompt, 12) for prompt in PROMPTS]
    found = generator.generate(PROMPTS, SamplingConfig(max_new_tokens=12))
    assert [group[0].text for group in found] == expected
    assert any(text for text in expected)


def test_samples_do_not_depend_on_batch_size_or_company(architecture: str) -> None:
    sampling = SamplingConfig(num_generations=3, temperature=1.0, max_new_tokens=10, seed=3)
    whole = _generator(architecture, batch_size=32).generate(PROMPTS, sampling)
    small = _generator(architecture, batch_size=2).generate(PROMPTS, sampling)
    alone = [_generator(architecture).generate([p], sampling)[0] for p in PROMPTS]
    assert whole == small == alone
    assert len({completion.text for completion in whole[0]}) > 1
    other = _generator(architecture).generate(
        PROMPTS, SamplingConfig(num_generations=3, temperature=1.0, max_new_tokens=10, seed=4)
    )
    assert other != whole


def test_models_without_prefix_support_write_the_same(
    architecture: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    greedy = SamplingConfig(max_new_tokens=12)
    sampling = SamplingConfig(num_generations=3, temperature=1.0, max_new_tokens=12)
    generator = _generator(architecture, batch_size=5)
    assert supports_shared_prefix(generator.model)
    expected = [generator.generate(PROMPTS, s) for s in (greedy, sampling)]
    monkeypatch.setattr(generator_module, "supports_shared_prefix", lambda model: False)
    assert [generator.generate(PROMPTS, s) for s in (greedy, sampling)] == expected


def test_attention_in_small_pieces_writes_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    generator = _generator("qwen2")
    expected = generator.generate(PROMPTS, SamplingConfig(max_new_tokens=8))
    monkeypatch.setattr(shared_prefix, "_MAX_SCORE_BYTES", 1)
    assert generator.generate(PROMPTS, SamplingConfig(max_new_tokens=8)) == expected


def test_the_attention_implementation_is_restored_after_an_error() -> None:
    model = tiny_models.build_tiny_model("llama")
    before = model.config._attn_implementation
    with pytest.raises(ZeroDivisionError), shared_prefix.shared_prefix_attention(model):
        assert model.config._attn_implementation != before
        raise ZeroDivisionError
    assert model.config._attn_implementation == before


def test_sliding_windows_and_unknown_models_are_not_given_a_shared_prefix() -> None:
    model = tiny_models.build_tiny_model("qwen2")
    assert supports_shared_prefix(model)
    model.config.use_sliding_window, model.config.sliding_window = True, 64
    assert not supports_shared_prefix(model)
    model.config.use_sliding_window = False
    assert supports_shared_prefix(model)
    model.config.layer_types = ["full_attention", "sliding_attention"]
    assert not supports_shared_prefix(model)
    model = tiny_models.build_tiny_model("llama")
    model.config.model_type = "mamba"
    assert not supports_shared_prefix(model)


def test_finished_rows_end_and_the_rest_goes_on() -> None:
    generator = _generator("llama", batch_size=16)
    # Every second token or so is now an end token, so rows leave the batch at different steps.
    generator._end_ids = [generator.tokenizer.eos_token_id, *range(0, 380, 3)]
    sampling = SamplingConfig(num_generations=4, temperature=1.0, max_new_tokens=12)
    groups = generator.generate(PROMPTS, sampling)
    completions = [c for group in groups for c in group]
    assert {c.finished for c in completions} == {True, False} or all(
        c.finished for c in completions
    )
    assert len({c.num_tokens for c in completions}) > 3
    assert all(c.num_tokens == 12 or c.finished for c in completions)
    generator.batch_size = 1
    assert generator.generate(PROMPTS, sampling) == groups


def test_progress_counts_every_completion_and_training_mode_is_kept() -> None:
    generator = _generator("llama", batch_size=4)
    generator.model.train()
    seen: list[int] = []
    generator.generate(
        PROMPTS,
        SamplingConfig(num_generations=2, temperature=1.0, max_new_tokens=2),
        on_progress=seen.append,
    )
    assert sum(seen) == 12
    assert generator.model.training


def test_sampled_frequencies_follow_the_distribution() -> None:
    logits = torch.log(torch.tensor([[0.5, 0.3, 0.2]])).expand(4000, 3)
    draws = torch.rand(4000, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    sampling = SamplingConfig(temperature=1.0)
    shares = torch.bincount(_choose(logits, draws, sampling), minlength=3) / 4000
    assert torch.allclose(shares, torch.tensor([0.5, 0.3, 0.2]), atol=0.03)
    # The smallest nucleus with 0.6 of the mass is the first two tokens: 0.625 and 0.375.
    nucleus = _choose(logits, draws, SamplingConfig(temperature=1.0, top_p=0.6))
    shares = torch.bincount(nucleus, minlength=3) / 4000
    assert torch.allclose(shares, torch.tensor([0.625, 0.375, 0.0]), atol=0.03)
    # A temperature of one half squares the probabilities: 0.25, 0.09, 0.04 over 0.38.
    cold = torch.bincount(_choose(logits, draws, SamplingConfig(temperature=0.5)), minlength=3)
    assert torch.allclose(cold / 4000, torch.tensor([0.658, 0.237, 0.105]), atol=0.03)


def test_the_ends_of_the_uniform_interval_choose_real_tokens() -> None:
    logits = torch.tensor([[0.0, -float("inf"), 0.0, -float("inf")]]).expand(2, 4)
    draws = torch.tensor([0.0, 1.0 - 2**-53], dtype=torch.float64)
    assert _choose(logits, draws, SamplingConfig(temperature=1.0)).tolist() == [0, 2]


def test_seeds_differ_by_seed_prompt_and_sample() -> None:
    seeds = {completion_seed(s, p, i) for s in (0, 1) for p in ("a", "b") for i in (0, 1)}
    assert len(seeds) == 8
    assert completion_seed(0, "a", 0) == 7588792172602473380


def test_a_prompt_is_never_cut() -> None:
    generator = _generator("llama")
    generator.model.config.max_position_embeddings = 64
    with pytest.raises(InputError, match=r"Prompt 0 has \d+ tokens.*64 tokens that llama can read"):
        generator.generate(PROMPTS, SamplingConfig(max_new_tokens=8))


@pytest.mark.parametrize(
    ("options", "name"),
    [
        ({"num_generations": 0}, "num_generations"),
        ({"temperature": -1.0}, "temperature"),
        ({"top_p": 0.0}, "top_p"),
        ({"max_new_tokens": 0}, "max_new_tokens"),
        ({"num_generations": 2}, "greedy"),
    ],
)
def test_bad_settings_are_refused(options: dict[str, float], name: str) -> None:
    with pytest.raises(InputError, match=name):
        SamplingConfig(**options)  # type: ignore[arg-type]


def test_a_folder_without_tokenizer_or_model_is_refused_with_a_remedy(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"not a model folder: it has no config\.json"):
        load_tokenizer(tmp_path / "none")
    folder = Path(tiny_models.save_tiny_model(tmp_path, "llama"))
    for file in folder.glob("tokenizer*"):
        file.unlink()
    with pytest.raises(ModelError, match=r"has no usable tokenizer.*tokenizer\.json"):
        load_tokenizer(folder)
    (folder / "model.safetensors").unlink()
    with pytest.raises(ModelError, match="cannot be loaded"):
        load_model(folder)


def test_a_tokenizer_without_chat_template_is_refused() -> None:
    tokenizer = tiny_models.build_tiny_tokenizer()
    tokenizer.chat_template = None
    with pytest.raises(ModelError, match="'base' has no chat template"):
        TransformersGenerator(tiny_models.build_tiny_model("llama"), tokenizer, name="base")


def test_a_loaded_model_needs_its_tokenizer() -> None:
    with pytest.raises(InputError, match="`tokenizer` is None"):
        TransformersGenerator(tiny_models.build_tiny_model("llama"))
