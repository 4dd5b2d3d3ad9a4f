"""What `VLLMGenerator` asks of vLLM and makes of its answers; with a stand-in for vLLM."""

import json
import sys
from pathlib import Path

import fake_vllm
import pytest
from chat_server import write_answer

from sense_trl.errors import InputError, ModelError
from sense_trl.generation.generator import Completion, SamplingConfig, completion_seed
from sense_trl.generation.vllm_generator import VLLMGenerator
from sense_trl.prompts import get_prompt

SCHEMAS = ["concert(concert_id, year)", "singer(singer_id, name)", "stadium(stadium_id, name)"]
# Questions on one database are not neighbours.
PROMPTS = [get_prompt(f"Question {i}?", SCHEMAS[i % 3]) for i in range(9)]
SAMPLED = SamplingConfig(num_generations=3, temperature=0.7, top_p=0.9, max_new_tokens=40, seed=5)


@pytest.fixture(autouse=True)
def vllm(monkeypatch: pytest.MonkeyPatch) -> None:
    module = fake_vllm.build_module()
    for name in ("vllm", "vllm.lora", "vllm.lora.request"):
        monkeypatch.setitem(sys.modules, name, module)


def test_the_engine_caches_prefixes_and_takes_further_options() -> None:
    generator = VLLMGenerator(Path("models/qwen"), max_model_len=4096, dtype="bfloat16")
    assert generator.name == "qwen"
    assert generator.llm.options == {
        "enable_prefix_caching": True,
        "max_model_len": 4096,
        "dtype": "bfloat16",
    }
    assert VLLMGenerator("m", name="weak", enable_prefix_caching=False).llm.options == {
        "enable_prefix_caching": False
    }


def test_on_a_cpu_prompts_are_read_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    platform = sys.modules["vllm"].platforms.current_platform
    monkeypatch.setattr(platform, "is_cpu", lambda: True)
    assert VLLMGenerator("m").llm.options["enable_chunked_prefill"] is False
    assert VLLMGenerator("m", enable_chunked_prefill=True).llm.options["enable_chunked_prefill"]


def test_every_prompt_has_the_sampling_settings_and_a_seed_of_its_own() -> None:
    generator = VLLMGenerator("m")
    generator.generate(PROMPTS, SAMPLED)
    ((messages, params),) = generator.llm.calls
    for conversation, own in zip(messages, params, strict=True):
        seed = completion_seed(5, json.dumps(conversation), 0)
        assert own == fake_vllm.SamplingParams(
            n=3, temperature=0.7, top_p=0.9, max_tokens=40, seed=seed
        )
    assert len({own.seed for own in params}) == len(PROMPTS)


def test_prompts_on_one_database_are_neighbours_and_results_keep_their_order() -> None:
    generator = VLLMGenerator("m")
    results = generator.generate(PROMPTS, SAMPLED)
    ((messages, _),) = generator.llm.calls
    systems = [conversation[0]["content"] for conversation in messages]
    assert systems == sorted(systems)
    assert sorted(map(json.dumps, messages)) == sorted(map(json.dumps, PROMPTS))
    for prompt, group in zip(PROMPTS, results, strict=True):
        seed = completion_seed(5, json.dumps(prompt), 0)
        answers = [write_answer(prompt, seed + i, 0.7, 40) for i in range(3)]
        assert group == [
            Completion(text.strip(), num_tokens, reason == "stop")
            for text, num_tokens, reason in answers
        ]


@pytest.mark.parametrize(
    ("reason", "finished"), [("stop", True), ("length", False), ("abort", False)]
)
def test_only_an_answer_that_the_model_ended_is_finished(
    reason: str, finished: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    output = fake_vllm.CompletionOutput(0, " SELECT 1 ", [5, 6, 2], reason)
    monkeypatch.setattr(fake_vllm, "_output", lambda *args: output)
    (group,) = VLLMGenerator("m").generate(PROMPTS[:1], SamplingConfig())
    assert group == [Completion("SELECT 1", 3, finished)]


def test_what_vllm_refuses_is_an_input_error() -> None:
    generator = VLLMGenerator("m", max_model_len=64)
    with pytest.raises(InputError, match=r"longer than the maximum model length.*`max_model_len`"):
        generator.generate([get_prompt("Which?", "t(a, b)\n" * 50)], SAMPLED)
    with pytest.raises(InputError, match=r"`sampling` \(temperature must be in"):
        generator.generate(PROMPTS[:1], SamplingConfig(temperature=2.5))


def test_what_older_versions_raise_is_one_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fake_vllm, "VLLMValidationError", ValueError)
    monkeypatch.delattr(sys.modules["vllm"], "exceptions")
    with pytest.raises(InputError, match="temperature must be in"):
        VLLMGenerator("m").generate(PROMPTS[:1], SamplingConfig(temperature=2.5))


def test_an_adapter_goes_with_every_request(tmp_path: Path) -> None:
    config = {"r": 4, "rank_pattern": {"q_proj": 12}}
    (tmp_path / "adapter_config.json").write_text(json.dumps(config))
    generator = VLLMGenerator("m", adapter=tmp_path)
    assert generator.name == tmp_path.name
    assert generator.llm.options["enable_lora"]
    # vLLM has room for certain ranks.
    assert generator.llm.options["max_lora_rank"] == 16
    generator.generate(PROMPTS, SAMPLED)
    generator.generate([get_prompt("What is <|im_end|>?", SCHEMAS[0])], SAMPLED)
    assert generator.llm.adapters == 2 * [fake_vllm.LoRARequest("adapter", 1, str(tmp_path))]
    for text in ("", "{}", '{"r": "four"}', "[]"):
        (tmp_path / "adapter_config.json").write_text(text)
        with pytest.raises(ModelError, match=r"`adapter` is .*holds no LoRA adapter"):
            VLLMGenerator("m", adapter=tmp_path)


def test_a_model_that_cannot_be_loaded_is_a_model_error() -> None:
    with pytest.raises(ModelError, match=r"`model` 'no/such-model'.*not a valid model identifier"):
        VLLMGenerator("no/such-model")
    with pytest.raises(ModelError, match="no_such_option"):
        VLLMGenerator("m", no_such_option=1)


def test_a_tokenizer_without_a_template_is_refused_and_one_of_another_kind_is_not(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    tokenizer = VLLMGenerator("m").llm.tokenizer
    tokenizer.chat_template = None
    monkeypatch.setattr(fake_vllm.LLM, "get_tokenizer", lambda self: tokenizer)
    with pytest.raises(ModelError, match="no chat template"):
        VLLMGenerator("m")
    monkeypatch.setattr(fake_vllm.LLM, "get_tokenizer", lambda self: object())
    assert VLLMGenerator("m").name == "m"


def test_the_system_s_text_goes_into_the_question_where_that_is_asked_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    generator = VLLMGenerator("m", fold_system_message=True)
    chat, asked = generator.llm.chat, []
    monkeypatch.setattr(
        generator.llm, "chat", lambda m, *a, **o: asked.extend(m) or chat(m, *a, **o)
    )
    generator.generate(PROMPTS[:1], SamplingConfig())
    system, user = PROMPTS[0]
    assert asked == [[{"role": "user", "content": f"{system['content']}\n\n{user['content']}"}]]


def test_without_vllm_the_error_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "vllm", None)
    with pytest.raises(ModelError, match=r"pip install vllm.*OpenAIGenerator"):
        VLLMGenerator("m")


def test_control_strings_of_data_are_not_left_to_vllm() -> None:
    generator = VLLMGenerator("m")
    prompts = [*PROMPTS[:2], get_prompt("What is <|im_end|>?", SCHEMAS[0])]
    results = generator.generate(prompts, SAMPLED)
    assert [len(group) for group in results] == [3, 3, 3]
    assert not generator.llm.calls
    ((*ids,),) = generator.llm.generated
    tokenizer = generator.llm.tokenizer
    assert all(row.count(tokenizer.eos_token_id) == 2 for row in ids)
    # The order is that of the schemas, in which `PROMPTS[1]` is the last.
    expected = tokenizer.apply_chat_template(PROMPTS[1], add_generation_prompt=True)["input_ids"]
    assert ids[2] == expected
