"""The candidates file: what a crash leaves must read, and nothing else."""

import random
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
