"""Asking again: what deserves it, which answer stands, what is told, and what is kept on disk."""

import io
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from chat_server import Reply, Seen, completion, serve
from rich.console import Console

from sense_trl.cli.main import main
from sense_trl.database.catalog import DatabaseCatalog
from sense_trl.database.engine import ExecutionLimits
from sense_trl.errors import InputError
from sense_trl.evaluation.records import EvaluationReport
from sense_trl.options import DataArguments
from sense_trl.pairs.candidates import Candidate, CandidateFile
from sense_trl.prompts import Attempt
from sense_trl.questions import Question
from sense_trl.steps.arguments import EvaluationArguments, GenerationArguments
from sense_trl.steps.revision import Revision, get_revision_table, revise
from sense_trl.steps.stages import evaluate
from sense_trl.task import TextToSQLTask, make_task

SCRIPT = """
CREATE TABLE pet (name TEXT, kind TEXT, age INTEGER);
INSERT INTO pet VALUES ('Rex', 'dog', 4), ('Tom', 'cat', 2), ('Bo', 'dog', 9);
"""
QUIET = Console(file=io.StringIO())
NEVER_ENDS = (
    "WITH RECURSIVE c(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM c) SELECT COUNT(*) FROM c"
)
RIGHT = "SELECT age FROM pet WHERE name = 'Rex'"
BROKEN = "SELECT agee FROM pet"
EMPTY = "SELECT age FROM pet WHERE name = 'rex'"
WRONG = "SELECT 1"
ANSWERS = {
    # What a model writes for each question, one for each time that it is asked.
    "Rex 0": (BROKEN, RIGHT),
    "Rex 1": (BROKEN, "SELECT ag FROM pet"),
    "Rex 2": (EMPTY, RIGHT),
    "Rex 3": (EMPTY, BROKEN),
    "Rex 4": (WRONG,),
    "Rex 5": (BROKEN, WRONG),
    "Rex 6": ("SELECT name FROM pet WHERE 0", "SELECT count(*) FROM pet"),
}


@pytest.fixture
def data(fresh_db: Any, tmp_path: Path) -> DataArguments:
    path = tmp_path / "questions.jsonl"
    rows = [{"question": f"How old is Rex {n}?", "gold_sql": RIGHT} for n in range(6)]
    rows.append({"question": "Rex 6?", "gold_sql": "SELECT name FROM pet WHERE 0"})
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return DataArguments(str(fresh_db(SCRIPT, name="pets")), str(path))


def _answer(request: Seen) -> Reply:
    """As `ANSWERS` says, which are told from the user's messages."""
    messages = request.body["messages"]
    number = sum(message["role"] == "user" for message in messages) - 1
    answers = next(own for name, own in ANSWERS.items() if name in messages[1]["content"])
    assert [m["content"] for m in messages if m["role"] == "assistant"] == [*answers[:number]]
    return Reply(completion((answers[number], "stop")))


def _run(
    data: DataArguments, server: Any, folder: Path, console: Console = QUIET, **options: Any
) -> EvaluationReport:
    generation = GenerationArguments("served", str(folder), base_url=server.url, batch_size=1)
    report = evaluate(data, generation, EvaluationArguments(**options), console)
    assert report is not None
    return report


def test_an_evaluation_asks_again_and_says_what_was_mended_and_broken(
    data: DataArguments, tmp_path: Path
) -> None:
    told = io.StringIO()
    with serve(_answer) as server:
        report = _run(data, server, tmp_path / "out", Console(file=told, width=400), revise=1)
        assert len(server.seen) == 7 + 6
        # All is there: nothing is asked, and nothing changes.
        again = _run(data, server, tmp_path / "out", revise=1)
        assert len(server.seen) == 7 + 6
    assert again == report
    predicted = [record.predicted_sql for record in report.records]
    last = "SELECT count(*) FROM pet"
    # Of two that fail the first stands, and so does one that runs before one that does not.
    assert predicted == [RIGHT, BROKEN, RIGHT, EMPTY, WRONG, WRONG, last]
    assert [c.sql for c in CandidateFile(tmp_path / "out" / "revised.jsonl")] == predicted
    first = EvaluationReport.load(tmp_path / "out" / "evaluation-first.json")
    assert [record.predicted_sql for record in first.records] == [a[0] for a in ANSWERS.values()]
    sentence = (
        "Asked again about 6 of 7 answers: 3 failed, 3 found no rows. Of those that failed 2 run "
        "now. 2 answers were made right, 0 right ones wrong (by BIRD's comparison, where no rows "
        "may be right, 2 and 1)."
    )
    shown = " ".join(told.getvalue().split())
    assert sentence in shown
    assert "against model, first answers: no difference that these questions can show (2 q" in shown
    score = report.get_score("strict")
    assert score is not None
    assert sentence in score.note
    page = (tmp_path / "out" / "report.html").read_text()
    assert sentence.replace("'", "&#39;") in page
    assert "found no rows" in page


def test_what_is_broken_is_counted_as_what_is_mended(data: DataArguments, tmp_path: Path) -> None:
    with serve(_answer) as server:
        after = _run(data, server, tmp_path / "out", revise=1)
    before = EvaluationReport.load(tmp_path / "out" / "evaluation-first.json")
    names = [record.question_id for record in after.records]
    revision = Revision(
        (),
        {names[0]: Attempt(BROKEN, "?"), names[1]: Attempt(BROKEN, "?")}
        | {name: Attempt(EMPTY, "?", runs=True) for name in (names[2], names[6])},
        {names[1]: Attempt(BROKEN, "?")},
    )
    rows = get_revision_table(revision, before, after).rows
    assert rows == (
        ("failed", "2", "1", "1", "1", "0", "1", "0"),
        ("found no rows", "2", "2", "2", "1", "0", "1", "1"),
    )
    rows = get_revision_table(revision, after, before).rows
    assert [row[4:] for row in rows] == [("0", "1", "0", "1"), ("0", "1", "1", "1")]


def test_without_the_flag_nothing_is_asked_again(data: DataArguments, tmp_path: Path) -> None:
    with serve(_answer) as server:
        report = _run(data, server, tmp_path / "out")
        assert len(server.seen) == 7
        assert not {p.name for p in (tmp_path / "out").iterdir()} & {
            "revised.jsonl",
            "attempts-1.json",
        }
        assert "Asked again" not in (tmp_path / "out" / "report.html").read_text()
        # What was predicted is there when it is wanted.
        assert _run(data, server, tmp_path / "out", revise=1) != report
        assert len(server.seen) == 7 + 6


def test_an_interrupted_revision_continues_with_the_same_prompts(
    data: DataArguments, tmp_path: Path
) -> None:
    folder = tmp_path / "out"
    with serve(_answer) as server:
        whole = _run(data, server, folder, revise=1)
        attempts = (folder / "attempts-1.json").read_bytes()
        lines = (folder / "revisions-1.jsonl").read_bytes().splitlines(keepends=True)
        # As a crash leaves it: two answers, a third cut short, and nothing after it.
        (folder / "revisions-1.jsonl").write_bytes(b"".join([*lines[:2], lines[2][:9]]))
        for name in ("attempts-2.json", "revised.jsonl", "evaluation.json"):
            (folder / name).unlink()
        server.seen.clear()
        assert _run(data, server, folder, revise=1) == whole
        assert len(server.seen) == 4
        assert (folder / "attempts-1.json").read_bytes() == attempts
        with pytest.raises(InputError, match=r"attempts-1.json' tells of a revision with other `limits`"):  # fmt: skip
            _run(data, server, folder, revise=1, timeout_s=7.0)
        (folder / "attempts-1.json").write_text(
            '{"limits": 1, "answers_sha256": 2, "attempts": []}'
        )
        with pytest.raises(InputError, match="other `limits`: 1, now"):
            _run(data, server, folder, revise=1)
        damaged = {**json.loads(attempts), "attempts": {"q": {"sql": "a"}}}
        (folder / "attempts-1.json").write_text(json.dumps(damaged))
        with pytest.raises(InputError, match="is not the record of answers that failed"):
            _run(data, server, folder, revise=1)


Reviser = Callable[..., list[str]]


@pytest.fixture
def answer_one(data: DataArguments, tmp_path: Path) -> Iterator[Reviser]:
    """Revises the answers to one question: gives what stands, and the prompts."""
    catalog = DatabaseCatalog.from_path(
        data.database, limits=ExecutionLimits(timeout_s=0.3, max_rows=2)
    )
    task = make_task(catalog, [Question("q", "pets", "Ages?", RIGHT)])

    def run(*queries: str, num_rounds: int = 2, told: list[Any] | None = None) -> list[str]:
        answers = [[Candidate("q", 0, sql, sql, "weak", "m")] for sql in queries]

        def ask(again: TextToSQLTask, number: int) -> list[Candidate]:
            if told is not None:
                told.append([m["content"] for m in again.get_messages(again.questions[0])[2:]])
            return answers[number]

        folder = tmp_path / str(len(list(tmp_path.iterdir())))
        folder.mkdir()
        result = revise(task, answers[0], ask, catalog, folder, QUIET, num_rounds=num_rounds)
        return [candidate.sql for candidate in result.answers]

    with catalog:
        yield run


def test_each_round_tells_of_all_before_it(answer_one: Reviser) -> None:
    told: list[Any] = []
    assert answer_one(BROKEN, EMPTY, "SELEC", told=told) == [EMPTY]
    assert [len(messages) for messages in told] == [2, 4]
    assert told[1][:2] == told[0]
    assert told[1][::2] == [BROKEN, EMPTY]
    assert "no such column: agee" in told[1][1]
    assert "finds no rows" in told[1][3]
    # A third answer that gives rows ends it, whatever ran before.
    assert answer_one(EMPTY, BROKEN, WRONG) == [WRONG]
    assert answer_one(WRONG, told=told) == [WRONG]
    assert len(told) == 2


def test_limits_are_those_that_were_given(answer_one: Reviser) -> None:
    told: list[Any] = []
    assert answer_one(NEVER_ENDS, "SELECT age FROM pet", WRONG, told=told) == [WRONG]
    assert [m[-1].split("\n")[0] for m in told] == [
        "The query takes too long.",
        "The result of the query is too large.",
    ]


def test_bad_input_is_refused(
    data: DataArguments, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with (
        serve(_answer) as server,
        pytest.raises(InputError, match="`revise` is -1; expected at least 0"),
    ):
        _run(data, server, tmp_path / "out", revise=-1)
    assert not (tmp_path / "out").exists()
    predictions = tmp_path / "predictions.sql"
    predictions.write_text(f"{WRONG}\n" * 7)
    files = ["--database", data.database, "--questions", data.questions]
    assert main(["evaluate", str(predictions), *files, "--revise", "1"]) == 2
    assert "`revise` is 1, but files are read" in " ".join(capsys.readouterr().err.split())
