"""The record of a synthesised example."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sense_trl.errors import InputError
from sense_trl.questions import load_questions
from sense_trl.synthesis.example import (
    Provenance,
    SynthesizedExample,
    load_examples,
    write_examples,
)

EXAMPLE = SynthesizedExample(
    "How many pets are there?",
    "SELECT count(*) FROM pet",
    "pets",
    "easy",
    Provenance(
        "explore",
        "tiny-model",
        7,
        subgraph=("pet.name", "pet.age"),
        template="SELECT COUNT(*) FROM pet",
        verdicts={"execution": "passed"},
    ),
)


def test_the_questions_loader_reads_what_is_written(tmp_path: Path) -> None:
    write_examples(tmp_path / "questions.jsonl", [EXAMPLE])
    (question,) = load_questions(tmp_path / "questions.jsonl")
    assert question == EXAMPLE.as_question()
    assert (question.gold_sql, question.db_id, question.level) == (
        "SELECT count(*) FROM pet",
        "pets",
        "easy",
    )


def test_a_record_without_level_is_read_without_one(tmp_path: Path) -> None:
    example = SynthesizedExample("Q?", "SELECT 1", "pets", None, Provenance("strong", None, 0))
    write_examples(tmp_path / "q.jsonl", [example])
    assert load_questions(tmp_path / "q.jsonl")[0].level is None
    assert load_examples(tmp_path / "q.jsonl") == [example]


def test_equal_content_has_one_id_and_other_content_another() -> None:
    same = SynthesizedExample(
        EXAMPLE.question, EXAMPLE.sql, "pets", None, Provenance("explore", None, 8)
    )
    other = SynthesizedExample(EXAMPLE.question, "SELECT 1", "pets", None, same.provenance)
    assert same.question_id == EXAMPLE.question_id != other.question_id


texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)


@given(texts, texts, texts, st.none() | texts, st.lists(texts), st.dictionaries(texts, texts))
def test_json_holds_everything(question, sql, db_id, level, subgraph, verdicts) -> None:
    provenance = Provenance("strong", None, 3, tuple(subgraph), sql, verdicts)
    example = SynthesizedExample(question, sql, db_id, level, provenance)
    record = json.loads(json.dumps(example.as_json()))
    assert SynthesizedExample.from_json(record) == example


@pytest.mark.parametrize(
    "change",
    [
        {"gold_sql": None},
        {"provenance": "me"},
        {"provenance": {"method": "x", "generator": None, "seed": 0, "subgraph": []}},
        {"provenance": {**EXAMPLE.as_json()["provenance"], "colour": "red"}},
    ],
)
def test_another_record_is_refused_with_its_line(change, tmp_path: Path) -> None:
    lines = [json.dumps(EXAMPLE.as_json()), json.dumps({**EXAMPLE.as_json(), **change})]
    (tmp_path / "q.jsonl").write_text("\n".join(lines), encoding="utf-8")
    with pytest.raises(InputError, match=r"q\.jsonl, line 2: .* is no synthesised example"):
        load_examples(tmp_path / "q.jsonl")


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"nothing\.jsonl"):
        load_examples(tmp_path / "nothing.jsonl")
