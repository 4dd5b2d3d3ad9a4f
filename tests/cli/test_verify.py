"""`sense-trl verify`: counts, verdicts as JSON Lines, and errors that name file and line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from sense_trl.cli.main import EXIT_INPUT, EXIT_OK, main

QUESTIONS = [
    {"question_id": "q1", "question": "names?", "gold_sql": "SELECT name FROM pet"},
    {"question_id": "q2", "question": "ages?", "gold_sql": "SELECT age FROM pet"},
    {"question_id": "q3", "question": "none?", "gold_sql": "SELECT age FROM pet WHERE age > 99"},
]


@pytest.fixture
def folder(fresh_db, tmp_path: Path) -> Path:
    fresh_db(
        "CREATE TABLE pet (name TEXT, age INT); INSERT INTO pet VALUES ('Rex', 3), ('Tom', 5);",
        name="pets",
    )
    lines = (json.dumps(question) + "\n" for question in QUESTIONS)
    (tmp_path / "questions.jsonl").write_text("".join(lines))
    return tmp_path


def _verify(folder: Path, predictions: str, *flags: str) -> int:
    (folder / "predictions.txt").write_text(predictions)
    paths = ["--questions", str(folder / "questions.jsonl")]
    paths += ["--database", str(folder / "pets.sqlite")]
    return main(["verify", str(folder / "predictions.txt"), *paths, *flags])


def test_predictions_by_line_are_counted_by_verdict_and_reason(folder: Path, capsys) -> None:
    sql = "SELECT name FROM pet ORDER BY age\nSELECT nope FROM pet\nSELECT 1 WHERE 0\n"
    assert _verify(folder, sql) == EXIT_OK
    lines = capsys.readouterr().out.splitlines()
    assert [line.split() for line in lines] == [
        ["predictions", "3"],
        ["correct", "1", "33.3", "%"],
        ["wrong", "1", "33.3", "%"],
        ["prediction_execution_error", "1"],
        ["undetermined", "1", "33.3", "%"],
        ["both_empty", "1"],
    ]


@pytest.mark.parametrize("num_workers", ["0", "2"])
def test_verdicts_are_written_in_the_order_of_the_questions(
    folder: Path, capsys, num_workers: str
) -> None:
    records = [
        {"question_id": "q3", "sql": "DROP TABLE pet"},
        {"question_id": "q1", "predicted_sql": "SELECT DISTINCT name FROM pet"},
        {"question_id": "q2", "prediction": ""},
    ]
    text = "\n\n".join(map(json.dumps, records))
    output = folder / "out" / "verdicts.jsonl"
    assert _verify(folder, text, "--output", str(output), "--num-workers", num_workers) == EXIT_OK
    verdicts = [json.loads(line) for line in output.read_text().splitlines()]
    assert [(v["question_id"], v["verdict"], v["reason"]) for v in verdicts] == [
        ("q1", "correct", "results_equal"),
        ("q2", "wrong", "prediction_syntax_error"),
        ("q3", "wrong", "prediction_denied"),
    ]
    assert verdicts[0]["db_id"] == "pets" and verdicts[2]["sql"] == "DROP TABLE pet"
    assert "DROP is not allowed" in verdicts[2]["error"]


def test_semantics_are_passed_on(folder: Path, capsys) -> None:
    sql = "SELECT name FROM pet\nSELECT age FROM pet\tscore 0.3\nSELECT 'x' WHERE 0\n"
    assert _verify(folder, sql, "--semantics", "spider") == EXIT_OK
    assert "correct                               3   100.0 %" in capsys.readouterr().out


def test_every_limit_can_be_raised_and_lowered(folder: Path, capsys) -> None:
    sql = "SELECT name FROM pet\nSELECT age FROM pet\nSELECT 1 WHERE 0\n"
    flags = ["--query-limit", "max_rows=1", "--query-limit", "max-steps=9_000_000_000"]
    assert _verify(folder, sql, "--semantics", "bird", *flags) == EXIT_OK
    assert "gold_too_large                      2" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["max_row=1"], ["`query_limit` is 'max_row=1'", "max_rows"]),
        (["max_rows"], ["`query_limit` is 'max_rows'", "a whole number"]),
        (["max_rows=many"], ["a whole number"]),
        (["max_rows=1", "max_rows=2"], ["at most once"]),
        (["max_rows=-1"], ["`max_rows` is -1; expected an integer >= 0"]),
    ],
)
def test_an_unusable_limit_is_named(folder: Path, capsys, flags: list[str], words) -> None:
    given = [part for flag in flags for part in ("--query-limit", flag)]
    assert _verify(folder, "SELECT 1\n" * 3, *given) == EXIT_INPUT
    message = " ".join(capsys.readouterr().err.split())
    assert all(word in message for word in words), message


@pytest.mark.parametrize(
    ("predictions", "words"),
    [
        ("SELECT 1\nSELECT 2\n", ["predictions.txt has 2 lines for 3 questions"]),
        ("", ["0 lines for 3 questions"]),
        ('{"question_id": "q1", "sql": "SELECT 1"}\n{"question_id"', ["line 2", "invalid JSON"]),
        ('{"question_id": "q1"}\n', ["line 1", "`sql`"]),
        ('{"sql": "SELECT 1"}\n', ["line 1", "`question_id`"]),
        ('{"question_id": "q9", "sql": ""}\n', ["line 1", "'q9'", "not among the questions"]),
        ('{"question_id": "q1", "sql": ""}\n' * 2, ["line 2", "already answered in line 1"]),
        ('{"question_id": "q1", "sql": ""}\n', ["answers 1 of 3", "'q2'"]),
    ],
)
def test_unusable_predictions_are_named_with_file_and_line(
    folder: Path, capsys, predictions: str, words: list[str]
) -> None:
    assert _verify(folder, predictions) == EXIT_INPUT
    message = " ".join(capsys.readouterr().err.split())
    assert message.startswith("error:")
    for word in words:
        assert word in message


def test_missing_files_and_databases_are_named(folder: Path, capsys) -> None:
    questions = str(folder / "questions.jsonl")
    for arguments, words in (
        (["nowhere.txt", "--questions", questions, "--database", str(folder)], "nowhere.txt"),
        ([questions, "--questions", questions, "--database", "/nowhere"], "/nowhere"),
        ([questions, "--questions", "gone.jsonl", "--database", str(folder)], "gone.jsonl"),
    ):
        assert main(["verify", *arguments]) == EXIT_INPUT
        assert words in capsys.readouterr().err


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full")
def test_counts_are_printed_where_verdicts_cannot_be_written(folder: Path, capsys) -> None:
    assert _verify(folder, "SELECT 1\n" * 3, "--output", "/dev/full") == EXIT_INPUT
    printed = capsys.readouterr()
    assert printed.out.startswith("predictions  ")
    assert "'/dev/full' cannot be written (No space left on device)" in printed.err
    assert _verify(folder, "SELECT 1\n" * 3, "--output", str(folder)) == EXIT_INPUT
    assert "`output`" in capsys.readouterr().err


CHAT = [
    "```sql\nSELECT name\n\nFROM pet;\n```\nIt doesn't filter.",
    "<think>SELECT 1?</think>SELECT age FROM pet</s>",
    "SELECT age FROM pet WHERE age > 99",
]


def test_answers_of_a_chat_model_are_hinted_at_and_extracted(folder: Path, capsys) -> None:
    records = [{"question_id": f"q{n}", "sql": text} for n, text in enumerate(CHAT, start=1)]
    text = "\n".join(map(json.dumps, records))
    assert _verify(folder, text) == EXIT_OK
    output = capsys.readouterr()
    assert "correct                               0" in output.out
    assert "hint: 2 of 3 predictions" in output.err and "--extract" in output.err
    verdicts = folder / "verdicts.jsonl"
    assert _verify(folder, text, "--extract", "--output", str(verdicts)) == EXIT_OK
    output = capsys.readouterr()
    assert "correct                               2" in output.out and "hint" not in output.err
    assert json.loads(verdicts.read_text().splitlines()[0])["sql"] == "SELECT name\n\nFROM pet"
    # Plain SQL is no chat.
    assert _verify(folder, "SELECT 1;\nSELECT 2\n\n") == EXIT_OK
    assert "hint" not in capsys.readouterr().err


def test_predictions_on_another_database_are_refused(folder: Path, capsys) -> None:
    lines = "SELECT name FROM pet\tpets\nSELECT 1\tcars\nSELECT 1\tcars\n"
    assert _verify(folder, lines) == EXIT_INPUT
    message = capsys.readouterr().err
    assert "line 2: 'cars', but question 'q2' is asked of 'pets'" in message
