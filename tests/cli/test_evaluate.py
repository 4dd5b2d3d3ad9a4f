"""`sense-trl evaluate`: a table, a report, and errors that name file and line."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from sense_trl.cli.main import EXIT_INPUT, EXIT_OK, main
from sense_trl.errors import InputError
from sense_trl.evaluation import EvaluationReport
from sense_trl.verification.suite.verifier import SuiteVerifier

GOLD = {
    "q1": "SELECT name FROM pet",
    "q2": "SELECT name FROM pet WHERE age > 3",
    "q3": "SELECT age, name FROM pet ORDER BY age LIMIT 1",
}
WEAK = ["SELECT nme FROM pet", "SELECT name FROM pet", "SELECT name, age FROM pet WHERE id = 1"]
STRONG = ["SELECT name FROM pet", "SELECT name FROM pet WHERE age > 4", GOLD["q3"]]


@pytest.fixture
def folder(fresh_db, tmp_path: Path) -> Path:
    fresh_db(
        "CREATE TABLE pet (id INTEGER PRIMARY KEY, name TEXT, age INT);"
        "INSERT INTO pet VALUES (1, 'Rex', 3), (2, 'Tom', 5);",
        name="pets",
    )
    lines = (
        json.dumps({"question_id": key, "question": "?", "gold_sql": sql}) + "\n"
        for key, sql in GOLD.items()
    )
    (tmp_path / "questions.jsonl").write_text("".join(lines))
    for name, answers in (("weak", WEAK), ("strong", STRONG)):
        (tmp_path / f"{name}.sql").write_text("".join(sql + "\n" for sql in answers))
    return tmp_path


def _evaluate(folder: Path, *arguments: str) -> int:
    paths = ["--questions", str(folder / "questions.jsonl")]
    paths += ["--database", str(folder / "pets.sqlite"), "--num-workers", "0"]
    return main(["evaluate", *arguments, *paths])


def test_scores_hardness_and_errors_are_printed(folder: Path, capsys) -> None:
    assert _evaluate(folder, str(folder / "weak.sql")) == EXIT_OK
    lines = capsys.readouterr().out.splitlines()
    cells = {line[:28].strip(): line[28:].split() for line in lines if line}
    # q3 has its columns in another order, which BIRD does not accept.
    assert cells["Execution accuracy (strict)"][:2] == ["33.3", "%"]
    assert cells["Execution accuracy (Spider)"][:2] == ["33.3", "%"]
    assert cells["Execution accuracy (BIRD)"][:2] == ["0.0", "%"]
    assert cells["Predictions that execute"][:2] == ["66.7", "%"]
    text = "\n".join(lines)
    assert "missing condition     1" in text
    assert "Of the predictions that are not correct: 2 of weak." in text
    assert "official figures take those of tables.json" in text
    assert "easy          0.0 % (0.0 to 65.8), 0 of 2" in text
    assert "against" not in text


def test_a_report_is_written_and_read_again_for_comparison(folder: Path, capsys) -> None:
    first, second = folder / "first", folder / "second"
    assert _evaluate(folder, str(folder / "weak.sql"), "--output", str(first)) == EXIT_OK
    assert sorted(path.name for path in first.iterdir()) == [
        "evaluation.json",
        "report.html",
        "report.md",
    ]
    weak = EvaluationReport.load(first / "evaluation.json")
    assert weak.name == "weak"
    flags = ["--compare", str(first / "evaluation.json"), "--output", str(second)]
    flags += ["--name", "after", "--soft-f1"]
    assert _evaluate(folder, str(folder / "strong.sql"), *flags) == EXIT_OK
    assert "after against weak: no difference" in capsys.readouterr().out
    assert EvaluationReport.load(second / "evaluation.json").get_score("soft_f1").value == 1.0
    for name in ("report.html", "report.md"):
        text = (second / name).read_text()
        assert "weak" in text and "after" in text


def test_several_files_are_several_runs(folder: Path, capsys) -> None:
    output = folder / "out"
    files = [str(folder / "weak.sql"), str(folder / "strong.sql")]
    assert _evaluate(folder, *files, "--output", str(output)) == EXIT_OK
    assert "strong against weak: no difference" in capsys.readouterr().out
    assert EvaluationReport.load(output / "evaluation-weak.json").execution_accuracy < 1
    assert EvaluationReport.load(output / "evaluation-strong.json").execution_accuracy == 1


def test_files_of_one_name_are_named_after_their_folders(folder: Path, capsys) -> None:
    files = []
    for name in ("weak", "strong"):
        (folder / name).mkdir()
        (folder / f"{name}.sql").rename(folder / name / "dev.sql")
        files.append(str(folder / name / "dev.sql"))
    assert _evaluate(folder, *files) == EXIT_OK
    assert "strong against weak" in capsys.readouterr().out


def test_generated_neighbours_refute_a_lucky_prediction(folder: Path, capsys) -> None:
    flags = ["--suite", "4", "--output", str(folder / "out")]
    assert _evaluate(folder, str(folder / "strong.sql"), *flags) == EXIT_OK
    report = EvaluationReport.load(folder / "out" / "evaluation.json")
    assert [str(record.suite) for record in report.records] == ["correct", "wrong", "correct"]
    assert "4 generated neighbours" in capsys.readouterr().out


def test_an_official_suite_is_read(folder: Path, fresh_db, capsys) -> None:
    (folder / "suite" / "pets").mkdir(parents=True)
    other = fresh_db(
        "CREATE TABLE pet (id INTEGER PRIMARY KEY, name TEXT, age INT);"
        "INSERT INTO pet VALUES (1, 'Rex', 4), (2, 'Tom', 5), (3, 'Tom', 4);",
        name="other",
    )
    other.rename(folder / "suite" / "pets" / "pets_v1.sqlite")
    # There, DISTINCT leaves out a row; Spider's script would delete the word.
    (folder / "strong.sql").write_text("\n".join(["SELECT DISTINCT name FROM pet", *STRONG[1:]]))
    output = folder / "out"
    flags = ["--suite-dir", str(folder / "suite"), "--output", str(output)]
    assert _evaluate(folder, str(folder / "strong.sql"), *flags) == EXIT_OK
    report = EvaluationReport.load(output / "evaluation.json")
    assert [record.refuted_by for record in report.records] == [None, "pets_v1.sqlite", None]
    assert "as Spider compares" in capsys.readouterr().out


def test_keys_of_tables_json_are_taken(folder: Path, capsys, monkeypatch) -> None:
    given = []

    class Recording(SuiteVerifier):
        def __init__(self, *arguments, foreign_keys, **options) -> None:
            given.append(foreign_keys)
            super().__init__(*arguments, foreign_keys=foreign_keys, **options)

    monkeypatch.setattr("sense_trl.steps.verification.SuiteVerifier", Recording)
    tables = [
        {
            "db_id": "pets",
            "table_names_original": ["pet"],
            "column_names_original": [[-1, "*"], [0, "id"], [0, "name"], [0, "age"]],
            "column_types": ["text", "number", "text", "number"],
            "primary_keys": [1],
            "foreign_keys": [[2, 3]],
        }
    ]
    (folder / "tables.json").write_text(json.dumps(tables))
    (folder / "odd.sql").write_text("SELECT age FROM pet\n\n\n")
    flags = ["--tables", str(folder / "tables.json"), "--suite", "1"]
    assert _evaluate(folder, str(folder / "odd.sql"), *flags) == EXIT_OK
    out = capsys.readouterr().out
    # name and age are one column by that key.
    assert "Exact-set match              33.3 %" in out
    assert "tables.json" not in out
    assert given == [{"pets": [("pet", "name", "pet", "age")]}]


def test_tabs_are_cut_where_the_official_script_cuts(folder: Path) -> None:
    (folder / "tabs.sql").write_text(
        "SELECT name FROM pet\tpets\nSELECT\tname FROM pet WHERE age > 3\n\n"
    )
    output = folder / "out"
    assert _evaluate(folder, str(folder / "tabs.sql"), "--output", str(output)) == EXIT_OK
    first, second, _ = EvaluationReport.load(output / "evaluation.json").records
    assert (str(first.verdict), str(first.spider)) == ("correct", "correct")
    assert (str(second.verdict), str(second.spider)) == ("correct", "wrong")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["gone.sql"], "gone.sql"),
        (["questions.jsonl"], "line 1: no field `sql`, `predicted_sql`, `prediction`"),
        (["weak.sql", "--name", "a", "b"], "`run_name` has 2 labels for 1 prediction files"),
        (["weak.sql", "weak.sql"], "do not tell the runs apart"),
        (["weak.sql", "--suite", "0"], "`suite` is 0; expected at least 1"),
        (["weak.sql", "--suite-dir", "gone"], "gone is no folder"),
        (["weak.sql", "--tables", "gone.json"], "gone.json"),
        (["weak.sql", "--efficiency", "1"], "`efficiency` is 1; expected at least 2"),
        (["weak.sql", "--compare", "gone.json"], "is no readable evaluation"),
        (["weak.sql", "--timeout-s", "0"], "`timeout_s`"),
        (["weak.sql", "--output", "weak.sql"], "`output_dir` 'weak.sql' is a file"),
    ],
)
def test_unusable_input_is_named(
    folder: Path, capsys, monkeypatch, arguments: list[str], words: str
) -> None:
    monkeypatch.chdir(folder)
    assert _evaluate(folder, *arguments) == EXIT_INPUT
    message = " ".join(capsys.readouterr().err.split())
    assert "error:" in message
    assert words in message


def test_runs_on_other_questions_are_not_compared(folder: Path, capsys) -> None:
    output = folder / "out"
    assert _evaluate(folder, str(folder / "weak.sql"), "--output", str(output)) == EXIT_OK
    questions = folder / "questions.jsonl"
    questions.write_text(questions.read_text().replace("age > 3", "age > 2"))
    flags = ["--compare", str(output / "evaluation.json")]
    assert _evaluate(folder, str(folder / "strong.sql"), *flags) == EXIT_INPUT
    assert "answers other questions" in " ".join(capsys.readouterr().err.split())


def test_a_disk_that_fills_up_costs_the_files_and_not_the_scores(
    folder: Path, capsys, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    output = folder / "out"
    written = EvaluationReport.save

    def fill_up(self: EvaluationReport, path: Path) -> None:
        with monkeypatch.context() as full:
            full.setattr(os, "fsync", refuse)
            written(self, path)

    monkeypatch.setattr(EvaluationReport, "save", fill_up)
    assert _evaluate(folder, str(folder / "weak.sql"), "--output", str(output)) == EXIT_INPUT
    printed = capsys.readouterr()
    assert "Execution accuracy (strict)" in printed.out
    assert "evaluation.json' cannot be written (No space left on device)" in printed.err
    assert not list(output.iterdir())


def test_a_folder_that_takes_nothing_is_refused_before_anything_runs(
    folder: Path, capsys, monkeypatch: pytest.MonkeyPatch
) -> None:
    def run(*_: object, **__: object) -> None:
        raise AssertionError("evaluated")

    monkeypatch.setattr("sense_trl.evaluation.evaluate.evaluate_sql", run)
    (folder / "file").touch()
    for output in (folder / "file", folder / "file" / "deeper"):
        assert _evaluate(folder, str(folder / "weak.sql"), "--output", str(output)) == EXIT_INPUT
        assert f"`output_dir` '{output}' is " in capsys.readouterr().err


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full")
def test_scores_that_cannot_be_printed_are_written(folder: Path) -> None:
    command = [sys.executable, "-m", "sense_trl", "evaluate", str(folder / "weak.sql")]
    command += ["--questions", str(folder / "questions.jsonl"), "--num-workers", "0"]
    command += ["--database", str(folder / "pets.sqlite"), "--output", str(folder / "out")]
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True)
    assert done.returncode == EXIT_INPUT, done.stderr
    assert "No space left on device" in done.stderr
    assert "Traceback" not in done.stderr
    assert EvaluationReport.load(folder / "out" / "evaluation.json").records


@pytest.mark.parametrize("content", [b"", b'{"records": [1]}', b"[]", b"\xff", b"[" * 99_999])
def test_a_damaged_evaluation_is_named(folder: Path, content: bytes) -> None:
    (folder / "old.json").write_bytes(content)
    with pytest.raises(InputError, match=r"old\.json' is no readable evaluation.*delete it"):
        EvaluationReport.load(folder / "old.json")


def test_answers_of_a_chat_model_are_hinted_at_and_extracted(folder: Path, capsys) -> None:
    records = [
        {"question_id": question_id, "sql": f"Sure:\n```sql\n{sql}\n```"}
        for question_id, sql in zip(GOLD, STRONG, strict=True)
    ]
    chat = folder / "chat.json"
    chat.write_text(json.dumps(records, indent=1))
    assert _evaluate(folder, str(chat)) == EXIT_OK
    assert f"hint: 3 of 3 predictions in {chat}" in capsys.readouterr().err
    assert _evaluate(folder, str(folder / "strong.sql")) == EXIT_OK
    plain = capsys.readouterr()
    assert _evaluate(folder, str(chat), "--extract", "--name", "strong") == EXIT_OK
    extracted = capsys.readouterr()
    assert extracted.out == plain.out
    assert "hint" not in plain.err + extracted.err
