"""Reading what models write around what they were asked for."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sense_trl.synthesis.answers import find_json, is_refusal, is_text

JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.text(st.characters(exclude_categories=("Cs",)), max_size=8),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text("abc", max_size=3), inner, max_size=3)
    ),
    max_leaves=8,
)


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("", []),
        ("no json here", []),
        ('{"a": 1}', [{"a": 1}]),
        ('Sure!\n```json\n[{"a": "x\ny"}]\n```\nAnything else?', [[{"a": "x\ny"}]]),
        ('{"a": [1, 2,], }', [{"a": [1, 2]}]),
        ('[{"a": 1}, {"b": ', [{"a": 1}]),
        ("{not json} then [1]", [[1]]),
    ],
)
def test_json_is_found_in_prose(text: str, found: list[Any]) -> None:
    assert list(find_json(text)) == found


@given(JSON.filter(lambda value: isinstance(value, (list, dict))), st.text("abc .\n`", max_size=20))
def test_any_value_is_found_again(value: Any, prose: str) -> None:
    assert list(find_json(f"{prose}{json.dumps([value, 'end'])}{prose}")) == [[value, "end"]]


def test_deep_nesting_ends() -> None:
    assert list(find_json("[" * 3_000)) == []


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("I'm sorry, but I cannot help with that.", True),
        ("I can\u2019t assist with this request.", True),
        ("As an AI language model, ...", True),
        ("Which singers cannot sing?", False),
        ('[{"question": "How many?"}]', False),
    ],
)
def test_refusals_are_told_from_answers(text: str, expected: bool) -> None:
    assert is_refusal(text) is expected


def test_what_no_file_can_hold_is_no_text() -> None:
    assert is_text("Ærø \U0001f600")
    assert not is_text("a\ud800")
    assert not is_text("a\x00")
