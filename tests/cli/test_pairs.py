"""`sense-trl pairs`: build from files, resume, inspect and stats."""

from __future__ import annotations

import json
import os
from pathlib import Path

import datasets
import pytest
from conftest import FreshDB

from sense_trl.cli.main import EXIT_INPUT, EXIT_INTERRUPTED, EXIT_OK, main
from sense_trl.pairs import Candidate, CandidateFile
from sense_trl.prompts import PromptStyle

QUESTIONS = [
    {"question_id": "q1", "question": "names?", "gold_sql": "SELECT name FROM pet"},
    {"question_id": "q2", "question": "ages?", "gold_sql": "SELECT age FROM pet"},
    {"question_id": "q3", "question": "none?", "gold_sql": "SELECT age FROM pet WHERE age > 99"},
]
WEAK = "SELECT name FROM pet WHERE age > 3\nSELECT age FROM pet AS p\nSELECT 1\n"


@pytest.fixture
def folder(fresh_db: FreshDB, tmp_path: Path) -> Path:
    fresh_db(
        "CREATE TABLE pet (name TEXT, age INT); INSERT INTO pet VALUES ('Rex', 3), ('Tom', 5);",
        name="pets",
    )
    lines = (json.dumps(question) + "\n" for question in QUESTIONS)
    (tmp_path / "questions.jsonl").write_text("".join(lines))
    (tmp_path / "tiny").mkdir()
    (tmp_path / "tiny" / "predictions.sql").write_text(WEAK)
    return tmp_path


def _build(folder: Path, *flags: str, output: str = "out") -> int:
    paths = ["--questions", str(folder / "questions.jsonl"), "--database"]
    paths += [str(folder / "pets.sqlite"), "--output-dir", str(folder / output)]
    return main(["pairs", "build", *paths, "--num-workers", "0", *flags])


def _rows(folder: Path, output: str = "out") -> list[dict[str, object]]:
    path = folder / output / "pairs.parquet"
    return datasets.Dataset.from_parquet(str(path), cache_dir=str(folder / "cache")).to_list()


def test_the_parser_knows_every_policy_source_and_setting() -> None:
    from dataclasses import fields

    from sense_trl.cli.stages import PAIRS
    from sense_trl.pairs import PreferencePairConfig
    from sense_trl.pairs.policies import POLICY_NAMES

    def parse(*flags: str) -> PreferencePairConfig:
        required = ["--questions", "q", "--database", "d", "--output-dir", "o"]
        groups = PAIRS.make_parser().parse_args_and_config([*required, *flags])
        (config,) = (group for group in groups if isinstance(group, PreferencePairConfig))
        return config

    assert parse() == PreferencePairConfig()
    for policy in POLICY_NAMES:
        assert parse("--policy", policy).policy == policy
    flags = [f"--{field.name}" for field in fields(PreferencePairConfig) if field.type == "bool"]
    switched = parse(*flags)
    assert switched.classify_results and switched.repair
    assert not parse("--spread_rejected", "false").spread_rejected


def test_pairs_come_from_prediction_and_candidate_files(folder: Path, capsys) -> None:
    wrong = Candidate("q2", 3, "SELECT age + 1 FROM pet", "", "strong", "big", temperature=0.7)
    CandidateFile(folder / "c.jsonl").append("q2", [wrong])
    weak = str(folder / "tiny" / "predictions.sql")
    flags = ["--weak", weak, "--candidates", str(folder / "c.jsonl")]
    assert _build(folder, *flags, "--rejected-sources", "any") == EXIT_OK
    first, second = _rows(folder)
    assert (first["question_id"], first["rejected_model"]) == ("q1", "tiny")
    assert first["error_classes"] == ["extra_condition"]
    assert "Table pet" in str(first["prompt"]) or "pet(" in str(first["prompt"])
    assert (second["rejected_sql"], second["temperature"]) == (wrong.sql, 0.7)
    out = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert ["gold_undetermined", "1"] in out
    assert ["gold_empty", "1", "q3"] in out
    assert ["pairs", "2"] in out
    assert ["extra_condition", "1"] in out


def test_pairs_ask_as_those_who_answered_were_asked(folder: Path, capsys) -> None:
    PromptStyle(schema_style="codes", num_matched_values=0).save(folder / "tiny")
    wrong = Candidate("q2", 0, "SELECT age + 1 FROM pet", "", "weak", "big")
    CandidateFile(folder / "tiny" / "c.jsonl").append("q2", [wrong])
    flags = ["--candidates", str(folder / "tiny" / "c.jsonl")]
    assert _build(folder, *flags, "--num_matched_values", "5") == EXIT_INPUT
    assert "num_matched_values" in capsys.readouterr().err
    assert _build(folder, *flags) == EXIT_OK
    (row,) = _rows(folder)
    assert "table pet" in str(row["prompt"])
    assert PromptStyle.load(folder / "out").schema_style == "codes"


def test_right_answers_in_fences_are_not_rejected(folder: Path, capsys) -> None:
    chat = folder / "chat.jsonl"
    lines = [
        {"question_id": q["question_id"], "sql": f"```sql\n{q['gold_sql']}\n```\nThat's it."}
        for q in map(json.loads, (folder / "questions.jsonl").read_text().splitlines())
    ]
    chat.write_text("\n".join(map(json.dumps, lines)))
    weak = ["--weak", f"chat={chat}"]
    assert _build(folder, *weak, output="as_they_are") == EXIT_OK
    assert "--extract" in capsys.readouterr().err
    assert _rows(folder, "as_they_are")
    assert _build(folder, *weak, "--extract") == EXIT_OK
    assert "hint" not in capsys.readouterr().err
    assert json.loads((folder / "out" / "pairs.json").read_text())["num_pairs"] == 0
    # The folder knows what it was built from.
    assert _build(folder, *weak) == EXIT_INPUT


def test_the_card_tells_counts_classes_and_settings(folder: Path) -> None:
    weak = f"a-model={folder / 'tiny' / 'predictions.sql'}"
    assert _build(folder, "--weak", weak, "--num-mutants", "4", "--limit", "2") == EXIT_OK
    card = (folder / "out" / "README.md").read_text()
    assert card.startswith("---\nconfigs:\n- config_name: default\n  data_files: pairs.parquet\n")
    assert "| gold_empty | 1 |" in card
    assert "| extra_condition |" in card
    assert "| mutation |" in card
    settings = json.loads(card.split("```json\n")[1].split("```")[0])
    assert (settings["num_mutants"], settings["limit"]) == (4, 2)
    assert {row["rejected_model"] for row in _rows(folder) if row["question_id"] == "q1"} == {
        "a-model"
    }


def test_a_second_call_does_nothing_and_other_settings_are_refused(folder: Path, capsys) -> None:
    weak = ["--weak", str(folder / "tiny" / "predictions.sql")]
    assert _build(folder, *weak) == EXIT_OK
    before = {path.name: path.stat().st_mtime_ns for path in (folder / "out").iterdir()}
    assert set(before) == {
        *("pairs.parquet", "pairs.json", "README.md", "settings.json", "sense_prompt.json")
    }
    assert _build(folder, *weak) == EXIT_OK
    assert {path.name: path.stat().st_mtime_ns for path in (folder / "out").iterdir()} == before
    assert _build(folder, *weak, "--limit", "2") == EXIT_INPUT
    assert "limit was 1, now 2" in capsys.readouterr().err


def test_a_database_restored_from_elsewhere_is_the_same_and_a_changed_one_is_not(
    folder: Path, capsys
) -> None:
    weak = ["--weak", str(folder / "tiny" / "predictions.sql")]
    assert _build(folder, *weak) == EXIT_OK
    file = folder / "pets.sqlite"
    content = file.read_bytes()
    file.unlink()
    file.write_bytes(content)
    os.utime(file, ns=(1, 1))
    assert _build(folder, *weak) == EXIT_OK
    # As long as before, with the same time of change.
    file.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    os.utime(file, ns=(1, 1))
    assert _build(folder, *weak) == EXIT_INPUT
    assert "databases was" in capsys.readouterr().err


def test_an_interrupted_build_continues(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sense_trl.pairs.builder._QUESTIONS_PER_SHARD", 1)
    weak = ["--weak", str(folder / "tiny" / "predictions.sql")]
    assert _build(folder, *weak, output="whole") == EXIT_OK

    def interrupt(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr("sense_trl.pairs.builder.make_dataset", interrupt)
        assert _build(folder, *weak) == EXIT_INTERRUPTED
    assert len(list((folder / "out" / "shards").iterdir())) == 3
    assert _build(folder, *weak) == EXIT_OK
    for name in ("pairs.parquet", "pairs.json", "README.md"):
        ours, whole = (folder / output / name for output in ("out", "whole"))
        assert ours.read_bytes() == whole.read_bytes()


def test_inspect_shows_both_results_and_disarms_escape_sequences(
    folder: Path, capsys, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "100")
    sql = "SELECT name, '\x1b[2J' FROM pet\n\n\n"
    (folder / "tiny" / "predictions.sql").write_text(sql)
    assert _build(folder, "--weak", str(folder / "tiny" / "predictions.sql")) == EXIT_OK
    capsys.readouterr()
    database = ["--database", str(folder / "pets.sqlite")]
    assert main(["pairs", "inspect", str(folder / "out"), *database, "--max-rows", "1"]) == EXIT_OK
    out = capsys.readouterr().out
    assert "\x1b" not in out and "\\x1b[2J" in out
    assert "column_count_differs; extra_select_column" in out
    assert "2 rows" in out and "Rex" in out and "Tom" not in out
    flags = ["--question-id", "q2"]
    assert main(["pairs", "inspect", str(folder / "out"), *flags]) == EXIT_OK
    assert "q1" not in capsys.readouterr().out


def test_inspect_and_stats_read_lists_of_rejected_queries(folder: Path, capsys) -> None:
    (folder / "other.sql").write_text("SELECT 5\n\n\n")
    weak = ["--weak", str(folder / "tiny" / "predictions.sql"), f"other={folder / 'other.sql'}"]
    assert _build(folder, *weak, "--num-rejected", "2", "--spread_rejected=false") == EXIT_OK
    assert ["weak", "2"] in [line.split() for line in capsys.readouterr().out.splitlines()]
    flags = ["--error-class", "extra_condition"]
    assert main(["pairs", "inspect", str(folder / "out"), *flags]) == EXIT_OK
    out = capsys.readouterr().out
    assert "other" in out and "tiny" in out


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--weak", "no-such-file"], "no-such-file"),
        (["--candidates", "no-such-file"], "`candidates` is 'no-such-file'"),
        (["--schema-style", "json"], "`schema_style` is 'json'"),
        (["--limit", "0"], "`limit` is 0"),
    ],
)
def test_unusable_input_is_named(folder: Path, capsys, flags: list[str], words: str) -> None:
    assert _build(folder, *flags) == EXIT_INPUT
    assert words in capsys.readouterr().err
    assert main(["pairs", "stats", str(folder)]) == EXIT_INPUT


def test_questions_without_a_database_are_left_out_if_asked_for(folder: Path, capsys) -> None:
    other = {"question_id": "q4", "db_id": "cats", "question": "?", "gold_sql": "SELECT 1"}
    with (folder / "questions.jsonl").open("a") as file:
        file.write(json.dumps(other) + "\n")
    (folder / "tiny" / "predictions.sql").write_text(WEAK + "SELECT 2\n")
    weak = ["--weak", str(folder / "tiny" / "predictions.sql")]
    assert _build(folder, *weak) == EXIT_INPUT
    assert "'cats'" in capsys.readouterr().err
    assert _build(folder, *weak, "--skip-missing-databases") == EXIT_OK
    account = json.loads((folder / "out" / "pairs.json").read_text())
    assert account["unusable_questions"] == {"q4": "the database 'cats' is not there"}


def _answer(folder: Path, *flags: str) -> int:
    paths = ["--questions", str(folder / "questions.jsonl"), "--database"]
    paths += [str(folder / "pets.sqlite"), "--weak", str(folder / "tiny" / "predictions.sql")]
    output = ["--output", str(folder / "own" / "answers.jsonl")]
    return main(["pairs", "answers", *paths, *output, "--num-workers", "0", *flags])


def test_right_answers_become_questions_to_train_on(folder: Path, capsys) -> None:
    from sense_trl.questions import load_questions

    assert _answer(folder) == EXIT_OK
    assert "1 of 3 questions have a right answer" in " ".join(capsys.readouterr().err.split())
    path = folder / "own" / "answers.jsonl"
    assert [q.gold_sql for q in load_questions(path)] == ["SELECT age FROM pet AS p"]
    assert _answer(folder, "--gold", "instead") == EXIT_OK
    assert [q.gold_sql for q in load_questions(path)] == ["SELECT age FROM pet"]
    assert _answer(folder, "--gold", "rest") == EXIT_OK
    assert [q.question_id for q in load_questions(path)] == ["q2", "q1", "q3"]


def test_whole_answers_are_written_on_request(folder: Path, capsys) -> None:
    from sense_trl.questions import load_questions

    assert _answer(folder, "--completion", "text") == EXIT_OK
    (question,) = load_questions(folder / "own" / "answers.jsonl")
    assert question.completion == question.gold_sql == "SELECT age FROM pet AS p"
    capsys.readouterr()
    assert _answer(folder, "--completion", "text", "--gold", "rest") == EXIT_INPUT
    assert "`completion` is 'text', but `gold` is 'rest'" in capsys.readouterr().err


def test_no_right_answer_is_an_error_that_keeps_what_was_there(folder: Path, capsys) -> None:
    assert _answer(folder) == EXIT_OK
    (folder / "tiny" / "predictions.sql").write_text("SELECT 1\nSELECT 2\nSELECT 3\n")
    assert _answer(folder) == EXIT_INPUT
    assert "nothing to train on" in " ".join(capsys.readouterr().err.split())
    assert "AS p" in (folder / "own" / "answers.jsonl").read_text()
