"""The style of prompts: its checks, its file and its identity."""

import dataclasses
import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sense_trl.errors import InputError
from sense_trl.prompts import PromptStyle, extract_sql
from sense_trl.schema import SCHEMA_STYLES

STYLES = st.builds(
    PromptStyle,
    schema_style=st.sampled_from(SCHEMA_STYLES),
    num_values=st.integers(0, 9),
    num_matched_values=st.integers(0, 9),
    descriptions=st.booleans(),
    max_schema_tokens=st.none() | st.integers(1, 10_000),
    shown_columns=st.lists(st.text(max_size=8), max_size=2).map(tuple),
    instruction=st.text(min_size=1, max_size=30).filter(str.strip),
    answer_form=st.sampled_from(["sql", "reasoning"]),
)


@given(STYLES, STYLES)
def test_a_style_is_read_as_it_was_written_and_known_by_its_hash(
    tmp_path_factory: pytest.TempPathFactory, style: PromptStyle, other: PromptStyle
) -> None:
    folder = tmp_path_factory.mktemp("model")
    style.save(folder)
    read = PromptStyle.load(folder)
    assert read == style
    assert read.hash == style.hash
    assert (style.hash == other.hash) == (style == other)
    assert (style.conflicts_with(other) == {}) == (style == other)


def test_a_field_left_at_its_default_has_no_part_in_the_hash() -> None:
    """Fields to come must not change what a model was trained with, nor a default that changes."""
    assert PromptStyle(num_matched_values=0).hash == "7674a781fc38e94c"
    assert PromptStyle(num_values=3, num_matched_values=0).hash == "4a1438b6e152a656"
    assert PromptStyle().explicit == {"num_matched_values": 5}


def test_a_file_means_what_it_meant_when_it_was_written(tmp_path: Path) -> None:
    """Values that a question names came to be shown by default later."""
    written = {"format": 1, "style": {"num_values": 3}, "hash": "4a1438b6e152a656"}
    (tmp_path / "sense_prompt.json").write_text(json.dumps(written))
    read = PromptStyle.load(tmp_path)
    assert read == PromptStyle(num_values=3, num_matched_values=0)
    assert read.hash == written["hash"]


def test_every_field_says_what_it_is_for() -> None:
    assert all(item.metadata["help"] for item in dataclasses.fields(PromptStyle))


def test_a_conflict_names_both_values() -> None:
    own, saved = PromptStyle(schema_style="ddl", num_values=3), PromptStyle(num_values=2)
    with pytest.raises(InputError) as raised:
        own.check_equals(saved, "models/sft")
    message = str(raised.value)
    assert "'models/sft'" in message
    assert "`schema_style` is 'ddl', the model's is 'compact'" in message
    assert "`num_values` is 3, the model's is 2" in message
    assert "--force_style" in message
    saved.check_equals(PromptStyle(num_values=2), "models/sft")


@pytest.mark.parametrize(
    ("fields", "told"),
    [
        ({"schema_style": "xml"}, "expected one of compact, codes, ddl"),
        ({"answer_form": "poem"}, "expected one of sql, reasoning"),
        ({"num_values": -1}, "`num_values` is -1; expected at least 0"),
        ({"num_values": True}, "`num_values` is True; expected a whole number"),
        ({"num_values": "3"}, "`num_values` is '3'; expected a whole number"),
        ({"max_schema_tokens": 0}, "expected at least 1"),
        ({"descriptions": 1}, "expected true or false"),
        ({"shown_columns": "a.b"}, "expected a list of texts"),
        ({"instruction": " "}, "`instruction` is empty"),
    ],
)
def test_what_makes_no_prompt_is_refused(fields: dict[str, object], told: str) -> None:
    with pytest.raises(InputError, match=told):
        PromptStyle(**fields)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("content", "told"),
    [
        ("{", "cannot be read"),
        ("[" * 100_000, "cannot be read"),
        ("[]", "is no prompt style"),
        ('{"format": 1, "style": 3}', "is no prompt style"),
        ('{"format": 99, "style": {}}', "has the format 99"),
        ('{"format": 1, "style": {"shema_style": "ddl"}}', "unknown field 'shema_style'"),
        ('{"format": 1, "style": {"num_values": -4}}', "`num_values` is -4"),
    ],
)
def test_a_file_that_is_none_is_refused(tmp_path: Path, content: str, told: str) -> None:
    (tmp_path / "sense_prompt.json").write_text(content)
    with pytest.raises(InputError, match=told) as raised:
        PromptStyle.load(tmp_path)
    assert "sense_prompt.json" in str(raised.value)


def test_a_folder_without_one_has_no_style(tmp_path: Path) -> None:
    assert PromptStyle.find(tmp_path) is None
    with pytest.raises(InputError, match=r"holds no sense_prompt\.json"):
        PromptStyle.load(tmp_path)
    PromptStyle(shown_columns=("a.*",)).save(tmp_path)
    assert PromptStyle.find(tmp_path) == PromptStyle(shown_columns=("a.*",))
    record = json.loads((tmp_path / "sense_prompt.json").read_text())
    assert (record["format"], record["style"]["num_values"]) == (1, 0)


def test_reasoning_before_the_query_is_read() -> None:
    assert "<reasoning>" in PromptStyle(answer_form="reasoning").full_instruction
    answer = (
        "<reasoning>We need t. SELECT comes from t.a, so SELECT b FROM u is wrong.</reasoning>\n"
        "SELECT a FROM t"
    )
    assert extract_sql(answer) == "SELECT a FROM t"
