"""`sense-trl ask`: SQL and rows on the screen, nothing run that is not to be run."""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import tiny_models
from conftest import FreshDB

from sense_trl.cli.main import COMMANDS, main
from sense_trl.errors import InputError
from sense_trl.generation.generator import Completion
from sense_trl.prompts import writer
from sense_trl.schema import SCHEMA_STYLES

SCRIPT = """
CREATE TABLE pet (name TEXT, age INTEGER);
INSERT INTO pet VALUES ('Rex', 4), ('\x1b[31mTom', 2), (NULL, 9);
"""
Answer = Callable[[str], list[list[dict[str, str]]]]


@pytest.fixture
def answer(monkeypatch: pytest.MonkeyPatch) -> Answer:
    """Makes every model write one text; returns the prompts that it was given."""

    def make(text: str) -> list[list[dict[str, str]]]:
        asked: list[list[dict[str, str]]] = []

        class Fake:
            def generate(self, prompts: Sequence[Any], sampling: Any) -> list[list[Completion]]:
                asked.extend(prompts)
                return [[Completion(text, 9, True)] for _ in prompts]

        monkeypatch.setattr(
            "sense_trl.steps.generator.load_generator", lambda *args, **options: Fake()
        )
        return asked

    return make


def test_it_is_a_command_and_names_the_styles_of_schemas(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert "ask" in COMMANDS
    with pytest.raises(SystemExit):
        main(["ask", "--help"])
    printed = " ".join(capsys.readouterr().out.split())
    assert f"How a schema is written: {', '.join(SCHEMA_STYLES)}." in printed


def test_sql_and_rows_are_shown(
    answer: Answer, fresh_db: FreshDB, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = answer("```sql\nSELECT name, age FROM pet ORDER BY age\n```")
    database = str(fresh_db(SCRIPT, name="pets"))
    command = ["ask", "Which pets?", "--model", "m", "--database", database]
    assert main([*command, "--evidence", "Pets are animals.", "--max-rows", "2"]) == 0
    printed = [line.split() for line in capsys.readouterr().out.splitlines()]
    # What steers a terminal is written out; the third row is not shown.
    assert printed == [
        ["SELECT", "name,", "age", "FROM", "pet", "ORDER", "BY", "age"],
        ["3", "rows"],
        ["name", "age"],
        ["\\x1b[31mTom", "2"],
        ["Rex", "4"],
        ["…"],
        [],
    ]
    ((system, user),) = asked
    assert "pet(name, age)" in system["content"]
    assert "Pets are animals." in user["content"]
    assert "Which pets?" in user["content"]


@pytest.mark.parametrize(
    ("sql", "words"),
    [
        ("DELETE FROM pet", "denied: DELETE is not allowed"),
        ("SELECT nme FROM pet", "execution_error: no such column: nme"),
        ("I do not know.", "syntax_error"),
    ],
)
def test_what_does_not_run_says_why_and_changes_nothing(
    answer: Answer, fresh_db: FreshDB, capsys: pytest.CaptureFixture[str], sql: str, words: str
) -> None:
    answer(sql)
    database = Path(fresh_db(SCRIPT, name="pets"))
    before = database.read_bytes()
    assert main(["ask", "Which pets?", "--model", "m", "--database", str(database)]) == 1
    assert words in capsys.readouterr().out
    assert database.read_bytes() == before


def test_of_several_answers_that_with_most_votes_is_shown(
    monkeypatch: pytest.MonkeyPatch, fresh_db: FreshDB, capsys: pytest.CaptureFixture[str]
) -> None:
    texts = [
        "SELECT nme FROM pet",
        "SELECT age FROM pet",
        "SELECT MAX(age) FROM pet",
        "SELECT age FROM pet WHERE name IS NULL",
    ]
    seen: list[Any] = []

    class Fake:
        def generate(self, prompts: Sequence[Any], sampling: Any) -> list[list[Completion]]:
            seen.append(sampling)
            return [[Completion(text, 9, True) for text in texts[-sampling.num_generations :]]]

    def load(options: Any, *, batch_size: int) -> Fake:
        seen.append(batch_size)
        return Fake()

    monkeypatch.setattr("sense_trl.steps.generator.load_generator", load)
    database = str(fresh_db(SCRIPT, name="pets"))
    command = ["ask", "Oldest?", "--model", "m", "--database", database]
    sampled = [*command, "--temperature", "0.5", "--num_generations"]
    assert main([*sampled, "4"]) == 0
    assert (seen[0], seen[1].num_generations, seen[1].temperature) == (4, 4, 0.5)
    captured = capsys.readouterr()
    assert captured.out.split("\n")[0] == "SELECT MAX(age) FROM pet"
    assert "2 of 4 answers have this result." in captured.err
    texts[:] = ["SELECT nme FROM pet", "DROP TABLE pet"]
    assert main([*sampled, "2"]) == 1
    captured = capsys.readouterr()
    assert "no such column: nme" in captured.out
    assert "None of 2 answers runs and gives the same result each time" in captured.err
    for flags, words in (
        (["--num_generations", "4"], "at `temperature` 0"),
        (["--num_generations", "0"], "`num_generations` is 0"),
        (["--num_generations", "4", "--temperature", "1", "--revise", "1"], "about one answer"),
    ):
        assert main([*command, *flags]) == 2
        assert words in " ".join(capsys.readouterr().err.split())


def test_questions_come_from_the_standard_input(
    answer: Answer,
    fresh_db: FreshDB,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked = answer("SELECT nme FROM pet")
    monkeypatch.setattr("sys.stdin", io.StringIO("One?\n\n  Two?\n"))
    database = str(fresh_db(SCRIPT, name="pets"))
    # Somebody who goes on asking has seen that one failed.
    assert main(["ask", "--model", "m", "--database", database]) == 0
    assert [user["content"] for _, user in asked] == ["One?", "Two?"]
    assert capsys.readouterr().out.count("no such column: nme") == 2


def test_a_question_that_cannot_be_asked_does_not_end_the_others(
    answer: Answer,
    fresh_db: FreshDB,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked = answer("SELECT count(*) FROM pet")
    get_prompt = writer.get_prompt

    def refuse(question: str, *args: Any, **options: Any) -> Any:
        if question == "Long?":
            raise InputError("18175 tokens")
        return get_prompt(question, *args, **options)

    monkeypatch.setattr(writer, "get_prompt", refuse)
    monkeypatch.setattr("sys.stdin", io.StringIO("Long?\nShort?\n"))
    command = ["ask", "--model", "m", "--database", str(fresh_db(SCRIPT))]
    assert main(command) == 0
    assert [user["content"] for _, user in asked] == ["Short?"]
    assert "18175 tokens" in capsys.readouterr().err
    # The only question is an error of the command.
    assert main([*command, "Long?"]) == 2


def test_whoever_types_questions_may_leave(
    answer: Answer, fresh_db: FreshDB, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Typing(io.StringIO):
        def readline(self, *args: Any) -> str:
            raise KeyboardInterrupt

    answer("SELECT 1")
    command = ["ask", "--model", "m", "--database", str(fresh_db(SCRIPT))]
    monkeypatch.setattr("sys.stdin", Typing())
    assert main(command) == 130
    monkeypatch.setattr("sys.stdin", None)
    assert main(command) == 2


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--max-rows", "-1"], "`max_rows` is -1"),
        (["--base-url", "http://localhost:1", "--load-in-4bit"], "`load_in_4bit` is true"),
    ],
)
def test_options_that_mean_nothing_are_refused(
    fresh_db: FreshDB, capsys: pytest.CaptureFixture[str], options: list[str], words: str
) -> None:
    command = ["ask", "How many?", "--model", "m", "--database", str(fresh_db(SCRIPT))]
    assert main([*command, *options]) == 2
    assert words in capsys.readouterr().err


def test_one_database_of_a_folder_is_named(
    answer: Answer, fresh_db: FreshDB, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = answer("SELECT count(*) FROM pet")
    folder = Path(fresh_db(SCRIPT, name="cats")).parent
    fresh_db("CREATE TABLE shop (id INTEGER); INSERT INTO shop VALUES (1);", name="shops")
    command = ["ask", "How many?", "--model", "m", "--database", str(folder)]
    assert main(command) == 2
    assert "`db_id` is missing: there are 2 databases" in capsys.readouterr().err
    assert main([*command, "--db-id", "dogs"]) == 2
    assert "'dogs' is not among the 2" in capsys.readouterr().err
    assert not asked
    assert main([*command, "--db-id", "cats"]) == 0
    assert "3" in capsys.readouterr().out.split()


def test_a_real_model_is_asked(
    fresh_db: FreshDB, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = tiny_models.save_tiny_model(tmp_path / "model", "qwen2")
    command = ["ask", "How many?", "--database", str(fresh_db(SCRIPT)), "--max-new-tokens", "4"]
    # It has learnt nothing, so its answer does not run.
    assert main([*command, "--model", str(model)]) == 1
    assert "syntax_error" in capsys.readouterr().out
    assert main([*command, "--model", str(tmp_path / "nowhere")]) == 2
    assert "not a model folder" in capsys.readouterr().err


def test_the_embedded_database_is_asked_if_none_is_given(
    answer: Answer, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = answer("SELECT count(*) FROM airlines")
    assert main(["ask", "How many airlines?", "--model", "m"]) == 0
    assert "16" in capsys.readouterr().out.split()
    assert "flights(" in asked[0][0]["content"]
