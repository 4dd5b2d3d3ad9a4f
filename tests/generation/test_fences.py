"""Answers end where the block with their query is closed."""

from __future__ import annotations

import time
from typing import Any

import pytest
import tiny_models
from hypothesis import given, settings
from hypothesis import strategies as st

from sense_trl.decoding.decoder import PrefixDecoder
from sense_trl.generation.fences import close_at_fence, find_block_end
from sense_trl.generation.generator import Completion, SamplingConfig
from sense_trl.generation.transformers_generator import TransformersGenerator
from sense_trl.prompts import get_prompt

BLOCK = "```sql\nSELECT 1\n```"
PROMPTS = [get_prompt(question, "t(a, b)") for question in ("How many?", "Which of them?")]


@pytest.mark.parametrize(
    ("text", "ended"),
    [
        (f"{BLOCK}\nIt counts.", BLOCK),
        (f"Sure:\n{BLOCK}\nOr:\n```sql\nSELECT 2\n```", f"Sure:\n{BLOCK}"),
        ("~~~\nWITH x AS (SELECT 1) SELECT 1\n~~~ \n.", "~~~\nWITH x AS (SELECT 1) SELECT 1\n~~~ "),
        ("```sql\n-- first\n(SELECT 1)\n```\n.", "```sql\n-- first\n(SELECT 1)\n```"),
        # Of something else; then the query.
        (f"```\nsinger(id)\n```\n{BLOCK}\n.", f"```\nsinger(id)\n```\n{BLOCK}"),
        (f"<think>\n{BLOCK}\n</think>\n{BLOCK}\n.", f"<think>\n{BLOCK}\n</think>\n{BLOCK}"),
        # Longer fences are closed by long ones.
        ("````\nSELECT 1\n```\n````\n.", "````\nSELECT 1\n```\n````"),
    ],
)
def test_an_answer_ends_with_its_first_query_in_a_block(text: str, ended: str) -> None:
    completion = close_at_fence(Completion(text, 9, finished=False))
    assert completion == Completion(ended, 9, finished=True)


@pytest.mark.parametrize(
    "text",
    [
        "SELECT 1",
        "```sql\nSELECT 1",
        "```sql\nSELECT 1\n``",
        "```sql\nSELECT 1\n```sql",
        f"<think>\n{BLOCK}\n",
        "```\nINSERT INTO t VALUES (1)\n```",
        "",
    ],
)
def test_nothing_else_ends_it(text: str) -> None:
    completion = Completion(text, 9, finished=False)
    assert close_at_fence(completion) is completion


@given(
    st.lists(st.sampled_from([BLOCK, "```", "\n", "~~~", "SELECT 1", "<think>", "`"]), max_size=8)
)
@settings(max_examples=60)
def test_what_stands_behind_changes_nothing(parts: list[str]) -> None:
    text = "".join(parts)
    end = find_block_end(text)
    if end is not None:
        assert find_block_end(text[:end]) == end


@pytest.mark.parametrize("text", ["```x\n" * 40_000, f"<think>\n{BLOCK}\n" + f"{BLOCK}\n" * 9_000])
def test_hostile_texts_are_read_in_time(text: str) -> None:
    begin = time.process_time()
    assert find_block_end(text) is None
    assert time.process_time() - begin < 5


def _make_generator() -> TransformersGenerator:
    model = tiny_models.build_tiny_model("llama", seed=1)
    model.config.max_position_embeddings = 2048
    return TransformersGenerator(model, tiny_models.build_tiny_tokenizer(), name="tiny")


def test_a_row_that_is_complete_leaves_the_batch_and_changes_no_other() -> None:
    generator = _make_generator()
    ids = [generator._encode(prompt) for prompt in PROMPTS]
    sampling = SamplingConfig(num_generations=3, temperature=1.0, max_new_tokens=8)

    def write(**options: Any) -> list[list[list[int]]]:
        return PrefixDecoder.write(generator, ids, ["a", "b"], sampling, **options)

    whole = write()
    stopped = write(is_complete=lambda tokens: len(tokens) == 1 + tokens[0] % 5)
    lengths = set()
    for group, own in zip(whole, stopped, strict=True):
        for tokens, kept in zip(group, own, strict=True):
            assert kept == tokens[: 1 + tokens[0] % 5]
            lengths.add(len(kept))
    assert len(lengths) > 1


class _Scripted:
    """A tokenizer whose tokens are the characters of a text, whatever they are."""

    def __init__(self, tokenizer: Any, text: str) -> None:
        self._tokenizer, self._text = tokenizer, text

    def __getattr__(self, name: str) -> Any:
        return getattr(self._tokenizer, name)

    def decode(self, tokens: list[int], **_: Any) -> str:
        return self._text[: len(tokens)]


def test_a_model_stops_writing_there() -> None:
    generator = _make_generator()
    generator.tokenizer = _Scripted(generator.tokenizer, f"{BLOCK}\nThis query counts them all.")
    plain, stopping = (
        SamplingConfig(max_new_tokens=30, stop_at_fence=stops) for stops in (False, True)
    )
    for (completion,) in generator.generate(PROMPTS, stopping):
        assert completion == Completion(BLOCK, len(BLOCK), finished=True)
    for (completion,) in generator.generate(PROMPTS, plain):
        assert (completion.num_tokens, completion.finished) == (30, False)
