"""Gold and predictions that nothing can interrupt end every command within its limit."""

from __future__ import annotations

import itertools
import json
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from chat_server import Reply, completion, serve
from conftest import FreshDB
from strong_model import BEES

from sense_trl.cli.main import EXIT_INPUT, EXIT_OK, main
from sense_trl.database.engine import ExecutionLimits
from sense_trl.database.sqlite_engine import SQLiteEngine
from sense_trl.pairs import Candidate, CandidateFile
from sense_trl.questions import load_questions

# One call of a function of the library, which SQLite cannot interrupt: a minute for each row.
HANGS = " + ".join(["instr(zeroblob(900000 - age), zeroblob(450000) || x'01')"] * 4)
HANGING = f"SELECT {HANGS} FROM pet"
# More rows than gold has, which decides; whoever reads on hangs.
HANGING_LATE = (
    f"SELECT name FROM pet UNION ALL SELECT name FROM pet UNION ALL SELECT {HANGS} FROM pet"
)
GOLD = {"names?": "SELECT name FROM pet", "ages?": "SELECT age FROM pet", "bad?": HANGING}
LIMIT_S = "0.25"
# Of a command on a machine that is shared; one query in the wrong place takes longer.
MAX_S = 40.0


@pytest.fixture(autouse=True)
def _in_workers_and_in_time(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Fail if a query runs in this process, or if the test takes as long as one that hangs."""

    def refuse(engine: SQLiteEngine, sql: str, **settings: Any) -> None:
        pytest.fail(f"executed in the calling process: {sql}")

    for name in ("execute", "execute_reordered", "execute_digest"):
        monkeypatch.setattr(SQLiteEngine, name, refuse)
    # Where a command has no flag for it.
    short = partial(ExecutionLimits, timeout_s=float(LIMIT_S))
    monkeypatch.setattr("sense_trl.database.catalog.ExecutionLimits", short)
    started = time.perf_counter()
    yield
    assert time.perf_counter() - started < MAX_S


@pytest.fixture
def files(fresh_db: FreshDB, tmp_path: Path) -> list[str]:
    """The flags of a database and of questions; the gold query of the last one hangs."""
    database = fresh_db(
        "CREATE TABLE pet (name TEXT, age INT); INSERT INTO pet VALUES ('Rex', 3), ('Tom', 5);",
        name="pets",
    )
    rows = [{"question_id": text, "question": text, "gold_sql": sql} for text, sql in GOLD.items()]
    _write_lines(tmp_path / "questions.jsonl", rows)
    return ["--database", str(database), "--questions", str(tmp_path / "questions.jsonl")]


def _write_predictions(folder: Path, **changes: str) -> str:
    path = folder / "model" / "predictions.jsonl"
    path.parent.mkdir()
    texts = {"names?": HANGING, "ages?": HANGING_LATE, "bad?": "SELECT 1", **changes}
    _write_lines(path, [{"question_id": name, "sql": sql} for name, sql in texts.items()])
    return str(path)


def _write_lines(path: Path, rows: list[dict[str, str]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


@pytest.fixture
def model() -> Iterator[list[str]]:
    """The flags of a model that writes SQL that hangs, another text each time."""
    numbers = itertools.count()

    def answer(request: Any) -> Reply:
        sql = HANGING_LATE if "ages?" in str(request.body["messages"]) else HANGING
        texts = [f"{sql} WHERE age < {next(numbers) + 9}" for _ in range(request.body.get("n", 1))]
        return Reply(completion(*((text, "stop") for text in texts)))

    with serve(answer) as server:
        yield ["--model", "m", "--base-url", server.url]


def _reasons(records: list[dict[str, Any]]) -> dict[str, str]:
    return {record["question_id"]: record["reason"] for record in records}


REASONS = {
    "names?": "prediction_timeout",
    "ages?": "row_count_differs",
    "bad?": "gold_timeout",
}


def test_verify(files: list[str], tmp_path: Path) -> None:
    output = tmp_path / "verdicts.jsonl"
    flags = ["--timeout-s", LIMIT_S, "--output", str(output)]
    assert main(["verify", _write_predictions(tmp_path), *files, *flags]) == EXIT_OK
    assert _reasons([json.loads(line) for line in output.read_text().splitlines()]) == REASONS


def test_evaluate_with_rows(files: list[str], tmp_path: Path) -> None:
    predictions = _write_predictions(tmp_path, **{"names?": GOLD["names?"]})
    flags = ["--timeout-s", LIMIT_S, "--soft-f1", "--efficiency", "2", "--output"]
    assert main(["evaluate", predictions, *files, *flags, str(tmp_path / "out")]) == EXIT_OK
    report = json.loads((tmp_path / "out" / "evaluation.json").read_text())
    assert _reasons(report["records"]) == {**REASONS, "names?": "results_equal"}
    # The rows of the results are shown.
    assert "timeout" in (tmp_path / "out" / "report.html").read_text()


def test_pairs_are_built_and_inspected(
    files: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    candidates = tmp_path / "candidates.jsonl"
    texts = [HANGING, HANGING_LATE, f"{HANGING_LATE} WHERE age < 9"]
    found = [Candidate("names?", i, sql, sql, "weak", "m") for i, sql in enumerate(texts)]
    CandidateFile(candidates).append("names?", found)
    output = str(tmp_path / "pairs")
    flags = ["--candidates", str(candidates), "--timeout-s", LIMIT_S, "--output-dir", output]
    flags += ["--deduplicate-by", "result", "--classify-results"]
    assert main(["pairs", "build", *files, *flags]) == EXIT_OK
    account = json.loads((Path(output) / "pairs.json").read_text())
    assert account["verdicts"] == {"undetermined": 1, "wrong": 2}
    # What does not run to its end has no result that another could have, too.
    assert account["dropped_candidates"] == {"candidate_undetermined": 1}
    assert account["num_pairs"] == 1
    assert account["gold_problems"]["bad?"].startswith("gold_timeout")
    capsys.readouterr()
    assert main(["pairs", "inspect", output, *files[:2], "--timeout-s", LIMIT_S]) == EXIT_OK
    assert "timeout" in capsys.readouterr().out


def test_ask(files: list[str], model: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    command = ["ask", "names?", *model, *files[:2], "--timeout-s", LIMIT_S]
    assert main(command) == 1
    assert f"stopped after {LIMIT_S} s" in capsys.readouterr().out


def test_a_model_that_explores(
    files: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    answers = [{"question": "Which?", "sql": HANGING}, {"question": "All?", "sql": GOLD["names?"]}]
    text = "\n".join(map(json.dumps, answers))
    output = tmp_path / "out"
    flags = ["--seed-questions", files[3], "--output", str(output), "--num-per-database", "1"]
    with serve(lambda request: Reply(completion((text, "stop")))) as server:
        model = ["--model", "m", "--base-url", server.url, "--round-trip-samples", "0"]
        assert main(["synth", "explore", *files[:2], *flags, *model]) == EXIT_OK
    (question,) = load_questions(output / "questions.jsonl")
    assert question.gold_sql == GOLD["names?"]
    assert "gold_timeout" in capsys.readouterr().out


def test_a_model_that_designs_databases(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    train = tmp_path / "train.jsonl"
    _write_lines(train, [{"question": f"{i}?", "gold_sql": HANGING} for i in range(4)])
    schema, _ = BEES.split("SQL:")
    sql = HANGING.replace("age", "hive_id").replace("pet", "hive")
    reply = Reply(completion((f"{schema}SQL:\n```sql\n{sql}\n```", "stop")))
    with serve(lambda request: reply) as server:
        flags = ["--examples", str(train), "--exclude", str(train), "--num-calls", "1"]
        flags += ["--output", str(tmp_path / "out"), "--timeout-s", LIMIT_S]
        model = ["--model", "m", "--base-url", server.url]
        assert main(["synth", "strong", *flags, *model]) == EXIT_OK
    assert "gold_timeout" in capsys.readouterr().out


@pytest.mark.parametrize(
    "command",
    [
        ["sft", "--config", "STAGE", "--use_cpu", "--bf16", "false"],
        ["kd", "--config", "STAGE", "--use_cpu", "--bf16", "false", "--mask_unit", "schema_item"],
        ["pairs", "--config", "STAGE"],
        ["evaluate", "--config", "STAGE"],
        ["teacher", "cache", "--model", "m", "--output", "OUT"],
        ["quickstart", "--output-dir", "OUT"],
        ["recurse", "--output-dir", "OUT"],
    ],
    ids=lambda command: command[0],
)
def test_questions_whose_gold_hangs_are_named(
    command: list[str], files: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    paths = {"OUT": str(tmp_path / "out"), "STAGE": _write_stage(tmp_path, "m")}
    assert main([*(paths.get(part, part) for part in command), *files]) == EXIT_INPUT
    message = " ".join(capsys.readouterr().err.split())
    assert "1 of 3 questions" in message and "the gold query gives timeout" in message


def _write_stage(folder: Path, model: str, **settings: Any) -> str:
    path = folder / "stage.yaml"
    settings |= {"model_name_or_path": model, "output_dir": str(folder / "out")}
    path.write_text(json.dumps(settings))
    return str(path)


@pytest.mark.slow
def test_stages_on_what_a_model_writes(files: list[str], model: list[str], tmp_path: Path) -> None:
    settings = {"base_url": model[-1], "max_unusable_fraction": 0.5}
    for stage in ("pairs", "evaluate"):
        config = _write_stage(tmp_path, "m", **settings)
        flags = ["--output_dir", str(tmp_path / stage), "--timeout_s", LIMIT_S]
        if stage == "pairs":
            flags += ["--num_generations", "2", "--temperature", "1", "--deduplicate_by", "result"]
        assert main([stage, "--config", config, *files, *flags]) == EXIT_OK
    account = json.loads((tmp_path / "pairs" / "pairs.json").read_text())
    assert account["verdicts"] == {"undetermined": 2, "wrong": 2}
    assert list(account["unusable_questions"]) == ["bad?"]
    evaluation = tmp_path / "evaluate"
    report = json.loads((evaluation / "evaluation.json").read_text())
    assert _reasons(report["records"]) == {name: REASONS[name] for name in ("names?", "ages?")}
    assert "timeout" in (evaluation / "report.html").read_text()
