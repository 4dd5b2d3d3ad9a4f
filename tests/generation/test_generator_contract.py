"""What every `SQLGenerator` promises, so that pairs can be built from any of them."""

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import fake_vllm
import pytest
import tiny_models
import torch
from chat_server import answer_well, serve

from sense_trl.generation.fences import close_at_fence
from sense_trl.generation.generator import (
    Completion,
    ResumableGenerator,
    SamplingConfig,
    SQLGenerator,
)
from sense_trl.generation.openai_generator import OpenAIGenerator
from sense_trl.generation.transformers_generator import TransformersGenerator
from sense_trl.generation.vllm_generator import VLLMGenerator
from sense_trl.pairs.candidates import CandidateFile
from sense_trl.prompts import extract_sql, get_prompt
from sense_trl.questions import Question
from sense_trl.steps.sampling import sample_candidates

PROMPTS = [get_prompt(f"Question {i}?", f"t{i % 2}(a, b, c)") for i in range(5)]
SAMPLED = SamplingConfig(num_generations=3, temperature=1.0, max_new_tokens=12, seed=1)


@pytest.fixture(params=["transformers", "vllm", "openai", "openai without n"])
def generator(
    request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> Iterator[SQLGenerator]:
    if request.param == "transformers":
        model = tiny_models.build_tiny_model("llama", seed=1)
        model.config.max_position_embeddings = 2048
        # Fresh weights write one repeated blank.
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.dim() == 2:
                    parameter.mul_(8)
        yield TransformersGenerator(model, tiny_models.build_tiny_tokenizer(), name="weak")
    elif request.param == "vllm":
        monkeypatch.setitem(sys.modules, "vllm", fake_vllm.build_module())
        yield VLLMGenerator("m", name="weak")
    else:
        knows_n = request.param == "openai"
        with serve(lambda seen: answer_well(seen, knows_n=knows_n)) as server:
            yield OpenAIGenerator("m", server.url, name="weak")


def test_answers_end_where_their_block_is_closed(generator: SQLGenerator) -> None:
    options = {"num_generations": 4, "temperature": 1.0, "max_new_tokens": 24, "seed": 1}
    plain, stopping = (
        generator.generate(PROMPTS, SamplingConfig(**options, stop_at_fence=stops))
        for stops in (False, True)
    )
    for group, own in zip(plain, stopping, strict=True):
        expected = [close_at_fence(completion) for completion in group]
        assert [(c.text, c.finished) for c in own] == [(c.text, c.finished) for c in expected]
    # The tiny model in this process writes no block.
    assert (plain == stopping) is isinstance(generator, TransformersGenerator)


def test_there_is_one_list_per_prompt_with_all_samples(generator: SQLGenerator) -> None:
    progress: list[int] = []
    results = generator.generate(PROMPTS, SAMPLED, on_progress=progress.append)
    assert [len(group) for group in results] == [3] * len(PROMPTS)
    assert sum(progress) == 3 * len(PROMPTS)
    completions = [completion for group in results for completion in group]
    assert all(type(completion) is Completion for completion in completions)
    assert all(completion.text == completion.text.strip() for completion in completions)
    assert len({completion.text for completion in completions}) > 3
    assert generator.name == "weak"
    assert generator.generate([], SAMPLED) == []


def test_samples_depend_on_their_prompt_and_the_seed_alone(generator: SQLGenerator) -> None:
    whole = generator.generate(PROMPTS, SAMPLED)
    assert generator.generate(PROMPTS[::-1], SAMPLED) == whole[::-1]
    assert [generator.generate([prompt], SAMPLED)[0] for prompt in PROMPTS] == whole
    reseeded = SamplingConfig(num_generations=3, temperature=1.0, max_new_tokens=12, seed=2)
    assert generator.generate(PROMPTS, reseeded) != whole


def test_greedy_decoding_does_not_depend_on_the_seed(generator: SQLGenerator) -> None:
    first, second = (SamplingConfig(max_new_tokens=12, seed=seed) for seed in (1, 2))
    assert generator.generate(PROMPTS, first) == generator.generate(PROMPTS, second)


def test_an_answer_that_reaches_the_limit_is_unfinished(generator: SQLGenerator) -> None:
    for group in generator.generate(PROMPTS, SamplingConfig(max_new_tokens=2)):
        assert [(c.num_tokens, c.finished) for c in group] == [(2, False)]


def test_candidates_are_the_same_file_after_an_interruption(
    generator: SQLGenerator, tmp_path: Path
) -> None:
    questions = [Question(f"q{i}", "db", f"Question {i}?", "SELECT 1") for i in range(len(PROMPTS))]
    task = SimpleNamespace(get_messages=lambda question: PROMPTS[questions.index(question)])
    whole, broken = tmp_path / "whole.jsonl", tmp_path / "broken.jsonl"
    options = {"source": "weak", "chunk_size": 2}
    file = sample_candidates(task, questions, generator, SAMPLED, whole, **options)

    def crash(done: int) -> None:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        sample_candidates(task, questions, generator, SAMPLED, broken, on_progress=crash, **options)
    if isinstance(generator, ResumableGenerator):
        # Answers are kept one by one: those of the question that was reported, and others.
        (kept,) = tmp_path.glob("broken.answers-*")
        records = map(json.loads, kept.read_text().splitlines())
        assert sum(len(record["completions"]) for record in records) >= 3
    else:
        assert len(CandidateFile(broken)) == 6
    sample_candidates(task, questions, generator, SAMPLED, broken, **options)
    assert broken.read_bytes() == whole.read_bytes()
    for candidate in file:
        assert (candidate.model, candidate.seed, candidate.temperature) == ("weak", 1, 1.0)
        assert candidate.sql == extract_sql(candidate.text)
