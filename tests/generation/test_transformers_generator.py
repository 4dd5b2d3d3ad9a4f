"""Sampling with a shared prefix must write what plain generation writes."""

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import huggingface_hub
import pytest
import tiny_models
import torch
from huggingface_hub.errors import (
    EntryNotFoundError,
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
)
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    MambaConfig,
    MambaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
)

from sense_trl.chat_template import check_chat_template
from sense_trl.decoding import decoder as decoder_module
from sense_trl.decoding import shared_prefix
from sense_trl.decoding.decoder import _choose, _Row
from sense_trl.decoding.shared_prefix import supports_shared_prefix
from sense_trl.errors import InputError, ModelError
from sense_trl.generation.generator import SamplingConfig, completion_seed
from sense_trl.generation.transformers_generator import (
    TransformersGenerator,
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
    monkeypatch.setattr(decoder_module, "supports_shared_prefix", lambda model: False)
    assert [generator.generate(PROMPTS, s) for s in (greedy, sampling)] == expected


def test_questions_on_many_databases_share_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    prompts = [get_prompt(QUESTIONS[i % 3], f"t{i}({'abc'[: 1 + i % 3]}_{i})") for i in range(12)]
    generator = _generator("llama", batch_size=8)
    sampling = SamplingConfig(num_generations=2, temperature=1.0, max_new_tokens=5)
    sizes: list[int] = []
    decode = generator._decode

    def counting(rows: list[object], *rest: object) -> None:
        sizes.append(len(rows))
        decode(rows, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(generator, "_decode", counting)
    together = generator.generate(prompts, sampling)
    assert sizes == [8, 8, 8]
    assert together == [generator.generate([prompt], sampling)[0] for prompt in prompts]
    sizes.clear()
    monkeypatch.setattr(decoder_module, "_MAX_PREFILL_TOKENS", 1)
    assert generator.generate(prompts, sampling) == together
    assert sizes == [2] * 12


@pytest.mark.parametrize("architecture", tiny_models.ARCHITECTURES)
def test_rows_of_several_databases_are_decoded_together(
    architecture: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each behind the prefix of its own database, also once rows have left the batch."""
    schemas = [f"t{i}({', '.join(f'{c}_{i}' for c in 'abcdefgh'[: 4 + 2 * i])})" for i in range(3)]
    prompts = [
        get_prompt(f"{question} {j}", schema)
        for schema in schemas
        for j, question in enumerate(QUESTIONS)
    ]
    generator = _generator(architecture, batch_size=64)
    batches = []
    decode = generator._decode

    def recording(rows: list[_Row], keys: list[str], prefixes: list[Any], *rest: Any) -> None:
        batches.append((len(rows), [prefix.length for prefix in prefixes]))
        decode(rows, keys, prefixes, *rest)

    monkeypatch.setattr(generator, "_decode", recording)
    for sampling in (
        SamplingConfig(max_new_tokens=10),
        SamplingConfig(num_generations=2, temperature=1.0, max_new_tokens=10),
    ):
        batches.clear()
        # The rest of a batch may be rounded in another way; an answer may not depend on it.
        monkeypatch.setattr(decoder_module, "_MIN_GROUP_SHARE", 0.0)
        together = generator.generate(prompts, sampling)
        ((num_rows, lengths),) = batches
        assert num_rows == len(prompts) * sampling.num_generations
        assert len(set(lengths)) == len(schemas)
        assert together == [generator.generate([prompt], sampling)[0] for prompt in prompts]


def test_long_prompts_are_not_mixed_with_short_ones() -> None:
    rows = [
        _Row(i, 0, group, [1] * length)
        for i, (group, length) in enumerate([(0, 9), (0, 8), (1, 10), (2, 400), (3, 9), (4, 12)])
    ]
    generator = _generator("llama", batch_size=8)
    assert [[row.prompt for row in batch] for batch in generator._batches(rows)] == [
        [0, 1, 2], [3], [4, 5],
    ]  # fmt: skip


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


def _windowed() -> TransformersGenerator:
    config = MistralConfig(
        vocab_size=tiny_models.VOCAB_SIZE,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        sliding_window=16,
        bos_token_id=None,
        eos_token_id=2,
        pad_token_id=0,
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = MistralForCausalLM(config)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 2:
                parameter.mul_(3)
    return TransformersGenerator(model, tiny_models.build_tiny_tokenizer(), batch_size=8)


def test_with_a_sliding_window_no_row_is_padded() -> None:
    generator = _windowed()
    prompts = [*PROMPTS[:3], get_prompt("x", SCHEMAS[0]), PROMPTS[0]]
    expected = [_plain(generator, prompt, 12) for prompt in prompts]
    found = generator.generate(prompts, SamplingConfig(max_new_tokens=12))
    assert [group[0].text for group in found] == expected
    sampling = SamplingConfig(num_generations=3, temperature=1.0, max_new_tokens=8)
    together = generator.generate(prompts, sampling)
    assert together == [generator.generate([prompt], sampling)[0] for prompt in prompts]


def test_batches_mix_lengths_only_without_a_window() -> None:
    rows = [_Row(i, 0, 0, [1] * length) for i, length in enumerate([5, 5, 5, 3, 3, 2])]
    generator = _generator("llama", batch_size=2)
    assert [[len(r.suffix) for r in b] for b in generator._batches(rows)] == [
        [5, 5],
        [5, 3],
        [3, 2],
    ]
    generator = _windowed()
    generator.batch_size = 2
    assert [[len(r.suffix) for r in b] for b in generator._batches(rows)] == [
        [5, 5], [5], [3, 3], [2],
    ]  # fmt: skip


def test_a_recurrent_model_is_refused_with_the_reason() -> None:
    model = MambaForCausalLM(
        MambaConfig(
            vocab_size=tiny_models.VOCAB_SIZE, hidden_size=64, num_hidden_layers=1, eos_token_id=2
        )
    )
    generator = TransformersGenerator(model, tiny_models.build_tiny_tokenizer())
    with pytest.raises(ModelError, match=r"'mamba' cannot be sampled.*recurrent state"):
        generator.generate(PROMPTS[:1], SamplingConfig(max_new_tokens=2))


def test_a_short_prompt_does_not_take_the_prefix_from_a_group() -> None:
    generator = _generator("llama")
    instruction, schema, other = list(range(20)), list(range(100, 300)), list(range(400, 600))

    def prompt(body: list[int], question: int, length: int = 5) -> list[int]:
        return [*instruction, *body, *range(question, question + length)]

    one = [prompt(schema, 1000 + 10 * i) for i in range(3)]
    two = [prompt(other, 1000 + 10 * i) for i in range(3)]
    for first in (90, 350, 700):  # sorted before, between and behind the two databases
        lone = prompt([first], 2000, 3)
        groups = generator._groups([*one, lone, *two])
        shared = {tuple(sorted(members)): len(prefix) for prefix, members in groups}
        assert shared == {(0, 1, 2): 220, (3,): 23, (4, 5, 6): 220}, first
    # Questions that begin alike do not keep the others on their database out.
    alike = [prompt(schema[:10], 1000, 25), prompt(schema[:10], 1000, 28)]
    groups = generator._groups([*alike, prompt(schema[:10], 3000), prompt(schema[:10], 4000)])
    assert [(len(prefix), sorted(members)) for prefix, members in groups] == [(30, [0, 1, 2, 3])]


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


def test_an_end_that_is_no_special_token_is_no_text() -> None:
    generator = _generator("llama")
    end = generator.tokenizer("SELECT", add_special_tokens=False)["input_ids"][-1]
    generator._end_ids = [end]
    assert generator._completion([*generator.tokenizer("a")["input_ids"], end]).text == "a"
    assert not generator._completion([end, *generator.tokenizer("a")["input_ids"]]).finished


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


@pytest.mark.parametrize("temperature", [1e-300, 1e-40, 1e-6, 1e-4])
def test_tiny_temperatures_are_greedy(temperature: float) -> None:
    logits = torch.tensor([[0.1, 30.0, -float("inf"), 29.0]]).expand(2, 4)
    draws = torch.tensor([0.0, 1.0 - 2**-53], dtype=torch.float64)
    sampling = SamplingConfig(temperature=temperature, top_p=0.9)
    assert _choose(logits, draws, sampling).tolist() == [1, 1]


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_probabilities_that_are_not_finite_name_the_model(temperature: float, value: float) -> None:
    generator = _generator("llama")
    with torch.no_grad():
        generator.model.get_output_embeddings().weight[7].fill_(value)
    with pytest.raises(ModelError, match="'llama' gives probabilities that are not finite"):
        generator.generate(PROMPTS[:1], SamplingConfig(temperature=temperature, max_new_tokens=2))


def test_seeds_differ_by_seed_prompt_and_sample() -> None:
    seeds = {completion_seed(s, p, i) for s in (0, 1) for p in ("a", "b") for i in (0, 1)}
    assert len(seeds) == 8
    assert completion_seed(0, "a", 0) == 7588792172602473380


def test_a_prompt_is_never_cut() -> None:
    generator = _generator("llama")
    generator.model.config.max_position_embeddings = 64
    with pytest.raises(InputError, match="Prompt 0") as caught:
        generator.generate(PROMPTS, SamplingConfig(max_new_tokens=8))
    assert "('How many singers are there?') has " in str(caught.value)
    assert "64 tokens that llama can read" in str(caught.value)
    with pytest.raises(InputError, match=r"Prompt 0 \('x{77}\.{3}'\) has"):
        generator.generate([get_prompt("x" * 200, SCHEMAS[0])], SamplingConfig(max_new_tokens=8))


@pytest.mark.parametrize(
    ("options", "name"),
    [
        ({"num_generations": 0}, "num_generations"),
        ({"temperature": -1.0}, "temperature"),
        ({"temperature": float("nan")}, "temperature"),
        ({"temperature": float("inf")}, "temperature"),
        ({"top_p": 0.0}, "top_p"),
        ({"top_p": float("nan")}, "top_p"),
        ({"max_new_tokens": 0}, "max_new_tokens"),
        ({"num_generations": 2}, "greedy"),
    ],
)
def test_bad_settings_are_refused(options: dict[str, float], name: str) -> None:
    with pytest.raises(InputError, match=name):
        SamplingConfig(**options)  # type: ignore[arg-type]


def test_a_folder_without_tokenizer_or_model_is_refused_with_a_remedy(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(ModelError, match=r"not a model folder: it has no config\.json"):
        load_tokenizer(tmp_path / "empty")
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


@pytest.mark.parametrize(
    ("template", "words"),
    [
        ("{% if messages %}", "cannot be used .*[Uu]nexpected end of template"),
        ("{{ raise_exception('no way') }}", "cannot be used .*no way"),
        ("{{ messages[0].nothing.at_all }}", "cannot be used"),
        (
            "{% if messages[0]['role'] == 'system' %}{{ raise_exception('System role not "
            "supported') }}{% endif %}{{ messages[0]['content'] }}",
            "refuses the system message.*System role not supported.*in front of the user's",
        ),
        ("{{ messages[-1]['content'] }}", "leaves out the system or the user message"),
    ],
)
def test_a_chat_template_that_cannot_hold_a_prompt_is_refused(template: str, words: str) -> None:
    tokenizer = tiny_models.build_tiny_tokenizer()
    check_chat_template(tokenizer, "odd")
    tokenizer.chat_template = template
    with pytest.raises(ModelError, match=f"'odd' {words}"):
        check_chat_template(tokenizer, "odd")


@pytest.mark.parametrize("load", [load_model, load_tokenizer])
def test_a_path_that_does_not_exist_is_not_looked_for_on_the_hub(
    load: Callable[[str], object], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def ask(*args: object, **options: object) -> None:
        raise EntryNotFoundError("the hub was asked")

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", ask)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs").mkdir()
    names = ["runs/x", "./x", "../x", "~/x", "C:/x", "C:\\x", str(tmp_path / "x"), "x", "a/b/c"]
    for name in names:
        with pytest.raises(ModelError, match="not a model folder: there is no such folder"):
            load(name)
    # This one may be on the hub.
    monkeypatch.setattr(AutoModelForCausalLM, "from_pretrained", lambda *args, **options: "it")
    monkeypatch.setattr(AutoTokenizer, "from_pretrained", lambda *args, **options: "it")
    assert load("owner/name") == "it"


def _answer(error: type[HfHubHTTPError]) -> HfHubHTTPError:
    response: Any = SimpleNamespace(headers={}, request=None)
    return error("Client Error.\nMore.", response=response)


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (LocalEntryNotFoundError("Offline."), r"hub cannot be reached.*hf download owner/n"),
        (_answer(GatedRepoError), "gated on the hub.*hf auth login"),
        (_answer(RepositoryNotFoundError), "neither a folder here nor a model on the hub.*spell"),
        (_answer(HfHubHTTPError), r"the hub does not give it \(Client Error\.\)"),
        (HFValidationError("A bad name."), r"the hub does not give it \(A bad name\.\)"),
        (RuntimeError("No protocol."), r"the hub does not give it \(No protocol\.\)"),
    ],
)
@pytest.mark.parametrize("load", [load_model, load_tokenizer])
def test_why_the_hub_gives_no_model_is_said(
    load: Callable[[str], object],
    error: Exception,
    words: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def fail(*args: object, **options: object) -> None:
        raise error

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", fail)
    with pytest.raises(ModelError, match=words):
        load("owner/name")


def test_an_adapter_on_the_hub_is_left_to_transformers(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*args: object, **options: object) -> None:
        raise EntryNotFoundError("No config.json.")

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", fail)
    monkeypatch.setattr(AutoModelForCausalLM, "from_pretrained", lambda *args, **options: "model")
    assert load_model("owner/name") == "model"


def test_broken_files_are_model_errors(tmp_path: Path) -> None:
    folder = Path(tiny_models.save_tiny_model(tmp_path, "llama"))
    with pytest.raises(ModelError, match="cannot be loaded with `dtype` 'float99'"):
        load_model(folder, dtype="float99")
    with pytest.raises(ModelError, match=r"`device` 'nowhere' cannot be used.*\"cpu\""):
        TransformersGenerator(folder, device="nowhere")
    config = (folder / "config.json").read_text()
    for text in ("{", "null"):
        (folder / "config.json").write_text(text)
        for load in (load_model, load_tokenizer):
            with pytest.raises(ModelError, match=r"has a broken config\.json"):
                load(folder)
    (folder / "config.json").write_text(config)
    weights = (folder / "model.safetensors").read_bytes()
    for damaged in (b"", weights[: len(weights) // 2]):
        (folder / "model.safetensors").write_bytes(damaged)
        with pytest.raises(ModelError, match="cannot be loaded"):
            load_model(folder)
    (folder / "config.json").write_text(config.replace('"hidden_size": 64', '"hidden_size": 32'))
    (folder / "model.safetensors").write_bytes(weights)
    with pytest.raises(ModelError, match="cannot be loaded"):
        load_model(folder)
