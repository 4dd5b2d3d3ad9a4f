"""Reading what a model answered."""

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sense_trl.errors import InputError
from sense_trl.evaluation.predictions import load_predictions
from sense_trl.pairs import Candidate, CandidateFile
from sense_trl.questions import Question

QUESTIONS = [Question(f"q{n}", "pets", "?", "SELECT 1") for n in (1, 2, 3)]


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "predictions.txt"


def test_lines_are_taken_in_order_and_without_what_belongs_to_the_layout(file: Path) -> None:
    file.write_bytes(b"SELECT 1\r\n\nSELECT\tname FROM pet\tpets")
    assert load_predictions(file, QUESTIONS) == ["SELECT 1", "", "SELECT\tname FROM pet"]
    # The official script reads up to the first tab, and so does what reproduces it.
    assert load_predictions(file, QUESTIONS, semantics="spider") == ["SELECT 1", "", "SELECT"]
    file.write_text("\ufeffSELECT 1\t----- bird -----\tpets\nSELECT 2\tother\n\tSELECT 3\n")
    assert load_predictions(file, QUESTIONS, semantics="bird") == [
        "SELECT 1",
        "SELECT 2\tother",
        "\tSELECT 3",
    ]
    assert load_predictions(file, QUESTIONS, semantics="spider")[2] == "SELECT 3"


def test_records_are_matched_by_id(file: Path) -> None:
    records = [
        {"question_id": "q3", "prediction": "SELECT 3\tpets"},
        {"question_id": "q1", "sql": None, "predicted_sql": "SELECT 1"},
        {"question_id": "q2", "sql": "", "prediction": "not this"},
    ]
    file.write_text("\n\n" + "\n".join(map(json.dumps, records)))
    for semantics in ("strict", "spider", "bird"):
        answers = load_predictions(file, QUESTIONS, semantics=semantics)
        assert answers == ["SELECT 1", "", "SELECT 3\tpets"]


def test_the_predictions_of_a_stage_are_read(file: Path) -> None:
    candidates = CandidateFile(file)
    for question_id in ("q2", "q3", "q1"):
        sql = f"SELECT '{question_id}'"
        candidates.append(
            question_id, [Candidate(question_id, 0, sql, f"It is {sql}", "weak", "m")]
        )
    assert load_predictions(file, QUESTIONS) == ["SELECT 'q1'", "SELECT 'q2'", "SELECT 'q3'"]
    several = [Candidate("q1", sample, "SELECT 1", "", "weak", "m") for sample in (0, 1)]
    file.unlink()
    CandidateFile(file).append("q1", several)
    with pytest.raises(InputError, match="line 1: 2 candidates for one question"):
        load_predictions(file, QUESTIONS)


LINES = st.lists(
    st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\n\r\t\ufeff")),
    min_size=3,
    max_size=3,
)


@given(lines=LINES.filter(lambda lines: not "".join(lines).lstrip().startswith(("{", "[{"))))
def test_any_line_comes_back_as_it_was_written(
    lines: list[str], tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.mktemp("lines") / "predictions.txt"
    path.write_bytes("".join(line + "\n" for line in lines).encode())
    assert load_predictions(path, QUESTIONS) == lines


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"SELECT 1\nSELECT 2\n", "has 2 lines for 3 questions"),
        (b"\xff\n", "is not UTF-8 text \\(byte 0\\)"),
        (b'{"question_id": "q1", "sql": "SELECT 1"}\n{', "line 2: invalid JSON .*column 2"),
        (b'{"question_id": ' + b"[" * 100_000, "line 1: invalid JSON"),
        (b'{"question_id": ' + b"9" * 5000, "line 1: invalid JSON"),
        (b'{"question_id": "q1"}\n', "line 1: no field `sql`"),
        (b'{"sql": ""}\n', "line 1: expected an object with a `question_id`"),
        (b'{"question_id": "q9", "sql": ""}\n', "'q9' is not among the questions"),
        (b'{"question_id": "q1", "sql": ""}\n' * 2, "line 2: .*already answered in line 1"),
        (b'{"question_id": "q1", "sql": ""}\n', "answers 1 of 3 questions, .*'q2'"),
    ],
    ids=range(10),
)
def test_what_cannot_be_read_is_named(file: Path, content: bytes, words: str) -> None:
    file.write_bytes(content)
    with pytest.raises(InputError, match=words):
        load_predictions(file, QUESTIONS)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"`predictions` is .*gone\.txt', which is not a file"):
        load_predictions(tmp_path / "gone.txt", QUESTIONS)
