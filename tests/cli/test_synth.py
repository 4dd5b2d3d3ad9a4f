"""`sense-trl synth`."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from chat_server import Reply, Seen, completion, error, serve
from strong_model import ANSWERS, EXPECTED_REMOVED, GOOD, answer_to

from sense_trl.cli.main import main
from sense_trl.questions import load_questions


def _reply(request: Seen) -> Reply:
    return Reply(completion(answer_to(request.body["messages"]), num_tokens=100))


@pytest.fixture
def files(tmp_path: Path) -> dict[str, Path]:
    rows = {
        "train": [{"question": f"Question {i}?", "query": f"SELECT {i}"} for i in range(4)],
        "dev": [{"db_id": "sing", "question": "How many singers do we have?", "query": "SELECT 0"}],
    }  # fmt: skip
    for name, records in rows.items():
        text = "\n".join(json.dumps(record) for record in records)
        (tmp_path / f"{name}.jsonl").write_text(text, encoding="utf-8")
    return {name: tmp_path / f"{name}.jsonl" for name in rows}


def _strong(url: str, files: dict[str, Path], output: Path, *more: str) -> int:
    flags = ["--model", "m", "--base-url", url, "--examples", str(files["train"])]
    flags += ["--exclude", str(files["dev"]), "--output", str(output), "--num-workers", "0"]
    return main(["synth", "strong", *flags, *more])


def test_strong_writes_a_data_set_and_says_what_went_out(
    files: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with serve(_reply) as server:
        code = _strong(server.url, files, tmp_path / "out", "--num-calls", str(len(ANSWERS)))
    assert code == 0
    assert len(load_questions(tmp_path / "out" / "questions.jsonl")) == len(GOOD)
    printed = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert ["calls", str(len(ANSWERS))] in printed
    assert ["kept", str(len(GOOD)), "25.0", "%"] in printed
    for name, reasons in EXPECTED_REMOVED.items():
        assert [name, str(sum(reasons.values()))] in printed
        assert all([reason, str(count)] in printed for reason, count in reasons.items())


def test_strong_asks_nothing_twice(files: dict[str, Path], tmp_path: Path) -> None:
    with serve(_reply) as server:
        _strong(server.url, files, tmp_path / "out", "--num-calls", "3")
        assert len(server.seen) == 3
        assert _strong(server.url, files, tmp_path / "out", "--num-calls", "3") == 0
        assert len(server.seen) == 3


def test_a_server_that_refuses_ends_the_command(
    files: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with serve(lambda _: Reply(error("no such model", "model_not_found"), status=404)) as server:
        assert _strong(server.url, files, tmp_path / "out") == 2
    assert "no such model" in capsys.readouterr().err


def test_settings_out_of_range_end_the_command(
    files: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    url = "http://127.0.0.1:9/v1"
    assert _strong(url, files, tmp_path / "out", "--num-calls", "0") == 2
    assert "num_calls" in capsys.readouterr().err
