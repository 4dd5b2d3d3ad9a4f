"""The candidates file: what a crash leaves must read, and nothing else."""

import json
import random
from dataclasses import asdict
from pathlib import Path

import pytest

from sense_trl.errors import InputError
from sense_trl.pairs.candidates import Candidate, CandidateFile


def _group(question_id: str, size: int = 2) -> list[Candidate]:
    return [
        Candidate(question_id, i, f"SELECT {i}", f"SELECT 'ü\n{i}'", "weak", "m")
        for i in range(size)
    ]


def test_what_was_appended_is_read_back(tmp_path: Path) -> None:
    file = CandidateFile(tmp_path / "sub" / "c.jsonl")
    file.append("a", _group("a"))
    file.append("b", _group("b", 3))
    again = CandidateFile(tmp_path / "sub" / "c.jsonl")
    assert list(again) == list(file) == [*_group("a"), *_group("b", 3)]
    assert "a" in again
    assert "c" not in again
    assert len(again) == 5


def test_a_file_cut_anywhere_keeps_whole_questions_and_can_be_completed(tmp_path: Path) -> None:
    path = tmp_path / "c.jsonl"
    file = CandidateFile(path)
    for question_id in "abc":
        file.append(question_id, _group(question_id))
    whole = path.read_bytes()
    for cut in random.Random(0).sample(range(len(whole)), 40):
        path.write_bytes(whole[:cut])
        file = CandidateFile(path)
        assert len(file) == 2 * whole[:cut].count(b"\n")
        for question_id in "abc":
            if question_id not in file:
                file.append(question_id, _group(question_id))
        assert path.read_bytes() == whole


def test_damage_inside_and_foreign_files_are_refused_by_line(tmp_path: Path) -> None:
    path = tmp_path / "c.jsonl"
    CandidateFile(path).append("a", _group("a"))
    path.write_text(path.read_text() + "{oops\n")
    with pytest.raises(InputError, match=r"line 2: invalid JSON"):
        CandidateFile(path)
    path.write_text('{"question": "q"}\n')
    with pytest.raises(InputError, match=r"line 1: expected a list of candidates"):
        CandidateFile(path)


def test_the_id_follows_the_content() -> None:
    first, second = _group("a")
    assert first.candidate_id == _group("a")[0].candidate_id != second.candidate_id


def test_reading_changes_nothing_and_a_last_line_without_its_end_counts(tmp_path: Path) -> None:
    path = tmp_path / "c.jsonl"
    CandidateFile(path).append("a", _group("a"))
    whole = path.read_bytes()
    path.write_bytes(whole.removesuffix(b"\n"))
    file = CandidateFile(path)
    assert list(file) == _group("a")
    assert path.read_bytes() == whole.removesuffix(b"\n")
    file.append("b", _group("b"))
    assert list(CandidateFile(path)) == [*_group("a"), *_group("b")]
    # Half a line stays where nothing is appended.
    path.write_bytes(whole + whole[:20])
    assert list(CandidateFile(path)) == _group("a")
    assert path.read_bytes() == whole + whole[:20]


@pytest.mark.parametrize(
    ("name", "value"),
    [("sql", 5), ("sample", "0"), ("finished", 1), ("seed", 1.5), ("top_p", None), ("text", [])],
)
def test_a_field_of_another_type_is_named(tmp_path: Path, name: str, value: object) -> None:
    path = tmp_path / "c.jsonl"
    record = {**asdict(_group("a")[0]), name: value}
    path.write_text(json.dumps([record]) + "\n")
    with pytest.raises(InputError, match=rf"line 1: `{name}` is .*expected"):
        CandidateFile(path)


@pytest.mark.parametrize("line", [b"\xff\xfe[\x00", b'[{"sql": "\xe9"}]', b"[" * 100_000])
def test_bytes_that_nobody_wrote_are_refused_by_line(tmp_path: Path, line: bytes) -> None:
    path = tmp_path / "c.jsonl"
    path.write_bytes(line + b"\n")
    with pytest.raises(InputError, match="line 1"):
        CandidateFile(path)
