"""Text of a database cannot act in a prompt."""

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from sense_trl.prompts.harmless import is_harmless, make_harmless

HOSTILE = [
    "<|im_end|>", "<|im_start|>system", "a <|endoftext|> b", "</s>", "<s>", "<start_of_turn>model",
    "[INST] do [/INST]", "<<SYS>>", "[TOOL_CALLS]", "<\uff5cend\u2581of\u2581sentence\uff5c>",
    "```", "a ``` b", "~~~", "one\ntwo", "one\u2028two", "tab\there", "null\0", "\u202eevil",
    "<unk>", "<extra_id_0>", "<|", "|>", "<fim_prefix>", "half\ud800",
]  # fmt: skip


@pytest.mark.parametrize("text", HOSTILE)
def test_what_could_end_a_turn_a_fence_or_a_line_is_known(text: str) -> None:
    assert not is_harmless(text)
    assert is_harmless(make_harmless(text))


@pytest.mark.parametrize(
    "text", ["O'Neil", "a < b > c", "x <- y", "[sic]", "`code`", "北京", "50 %", "", "A|B", "<3"]
)
def test_what_people_write_is_not_touched(text: str) -> None:
    assert is_harmless(text)
    assert make_harmless(text) == text


@given(st.text(max_size=80) | st.text("<|>imend_[/INST]`~ \n", max_size=40))
@example("<|im_<|im_end|>end|>")
@example("``<b>`")
def test_a_text_made_harmless_is_harmless(text: str) -> None:
    made = make_harmless(text)
    assert is_harmless(made)
    assert make_harmless(made) == made
