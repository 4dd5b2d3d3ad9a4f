"""`sense-trl synth explore`."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from chat_server import Reply, completion, serve
from synthesis.concerts import make_concerts

from sense_trl.cli.main import main
from sense_trl.questions import load_questions


@pytest.fixture
def files(fresh_db: Callable[..., Path], tmp_path: Path) -> list[str]:
    database = make_concerts(fresh_db)
    seeds = tmp_path / "train.jsonl"
    seeds.write_text(
        json.dumps({"question": "Who is old?", "query": "SELECT name FROM singer WHERE age > 30"})
    )
    dev = tmp_path / "dev.jsonl"
    dev.write_text(
        json.dumps({"db_id": "x", "question": "What?", "query": "SELECT count(*) FROM singer"})
    )
    flags = ["--database", str(database), "--output", str(tmp_path / "out"), "--num-workers", "0"]
    return ["synth", "explore", *flags, "--seed-questions", str(seeds), "--exclude", str(dev)]


def test_explore_writes_a_data_set_and_says_what_went_out(
    files: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*files, "--per-database", "40"]) == 0
    questions = load_questions(tmp_path / "out" / "questions.jsonl")
    assert len(questions) == 40
    assert "SELECT count(*) FROM singer" not in {question.gold_sql for question in questions}
    printed = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert ["databases", "1"] in printed and ["questions", "40"] in printed
    assert any(line[:1] == ["columns_do_not_fit"] for line in printed)


def test_seeds_that_are_left_out_are_named(
    files: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with (tmp_path / "train.jsonl").open("a") as file:
        file.write("\n" + json.dumps({"question": "How?", "query": "SELECT FROM WHERE"}))
    flags = ["--per-database", "2"]
    assert main([*files, *flags]) == 2
    assert "max_unusable_fraction" in capsys.readouterr().err
    assert main([*files, *flags, "--max-unusable-fraction", "0.5"]) == 0
    out = capsys.readouterr().out
    assert "left out: 1 seed questions that cannot be read: train-00002" in out
    assert "replaced:" not in out
    assert main([*files, "--per-database", "3", "--max-unusable-fraction", "0.5"]) == 0
    assert "replaced: what the folder held about 1 databases" in capsys.readouterr().out


def test_a_model_may_explore(files: list[str], tmp_path: Path) -> None:
    answer = '{"question": "How many songs are there?", "sql": "SELECT count(*) FROM song"}'
    with serve(lambda request: Reply(completion((answer, "stop")))) as server:
        code = main([*files, "--num-per-database", "1", "--model", "m", "--base-url", server.url])
    assert code == 0
    (question,) = load_questions(tmp_path / "out" / "questions.jsonl")
    assert question.question == "How many songs are there?"


def test_unusable_flags_exit_with_2(files: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*files, "--model", "m"]) == 2
    assert "`base_url` is missing" in capsys.readouterr().err
    assert main([*files, "--per-database", "0"]) == 2
    assert "`num_per_database` is 0" in capsys.readouterr().err


def test_a_database_without_a_question_is_named_and_excluded_questions_need_no_database(
    fresh_db: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    database = fresh_db("CREATE VIEW v AS SELECT 1 AS one", name="seen")
    dev = tmp_path / "dev.jsonl"
    dev.write_text(json.dumps({"question": "What?", "query": "SELECT 1"}))
    flags = ["--database", str(database), "--output", str(tmp_path / "out"), "--num-workers", "0"]
    assert main(["synth", "explore", *flags, "--exclude", str(dev)]) == 0
    assert "no question about seen: without rows or tables" in capsys.readouterr().out
    assert (
        main(["synth", "explore", *flags, "--exclude", str(dev), "--seed-questions", str(dev)]) == 2
    )
    assert "templates come from training questions only" in " ".join(
        capsys.readouterr().err.split()
    )
