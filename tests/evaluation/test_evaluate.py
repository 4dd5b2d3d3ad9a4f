"""Evaluation records and the report page."""

import json
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from conftest import FreshDB

from sense_trl.database.catalog import DatabaseCatalog
from sense_trl.errors import InputError
from sense_trl.evaluation import (
    EvaluationRecord,
    EvaluationReport,
    ReportSection,
    bootstrap_interval,
    evaluate_sql,
    write_html_report,
)
from sense_trl.evaluation.report import describe_change, preview_results
from sense_trl.questions import Question
from sense_trl.verification.verifier import SQLVerifier, Verdict

SCRIPT = "CREATE TABLE t (a INTEGER, b TEXT); INSERT INTO t VALUES (1,'x'),(2,'<b>&'),(3,NULL);"
QUESTIONS = [
    Question("q1", "d", "How many?", "SELECT COUNT(*) FROM t", level="easy"),
    Question("q2", "d", "Which <b>?", "SELECT b FROM t", level="hard"),
    Question("q3", "d", "None?", "SELECT a FROM t WHERE a > 9", level="hard"),
]
BEFORE = {"q1": "SELECT 0", "q2": "SELECT c FROM t", "q3": "SELECT 1 WHERE 0"}
AFTER = {"q1": "SELECT 3", "q2": "SELECT b FROM t WHERE 1", "q3": ""}


@pytest.fixture
def catalog(fresh_db: FreshDB) -> DatabaseCatalog:
    return DatabaseCatalog.from_path(fresh_db(SCRIPT, name="d"))


@pytest.fixture
def runs(catalog: DatabaseCatalog) -> list[EvaluationReport]:
    with SQLVerifier(catalog) as verifier:
        return [
            evaluate_sql(QUESTIONS, predictions, verifier, name=name)
            for name, predictions in (("before", BEFORE), ("after", AFTER))
        ]


def test_verdicts_and_counts(runs: list[EvaluationReport]) -> None:
    before, after = runs
    assert before.verdicts == (Verdict.WRONG, Verdict.WRONG, Verdict.UNDETERMINED)
    # An answer without SQL is wrong even where gold is empty.
    assert after.verdicts == (Verdict.CORRECT, Verdict.CORRECT, Verdict.WRONG)
    assert after.execution_accuracy == pytest.approx(2 / 3)
    assert after.by_level() == {"easy": (1, 1), "hard": (1, 2)}
    assert sum(after.reasons.values()) == 3
    assert "no such column" in str(before.records[1].error)


def test_a_report_is_read_back_as_written(runs: list[EvaluationReport], tmp_path: Path) -> None:
    runs[0].save(tmp_path / "r.json")
    assert EvaluationReport.load(tmp_path / "r.json") == runs[0]


def test_a_damaged_report_is_named(runs: list[EvaluationReport], tmp_path: Path) -> None:
    path = tmp_path / "r.json"
    runs[0].save(path)
    path.write_text(path.read_text()[:100])
    for bad in (path, tmp_path / "none.json"):
        with pytest.raises(InputError, match="is no readable evaluation"):
            EvaluationReport.load(bad)


def test_missing_predictions_and_no_questions_are_refused(catalog: DatabaseCatalog) -> None:
    with SQLVerifier(catalog) as verifier:
        with pytest.raises(InputError, match=r"lacks 2 of 3 questions, first 'q2'"):
            evaluate_sql(QUESTIONS, {"q1": "SELECT 1"}, verifier)
        nothing = {**BEFORE, "q2": None}
        with pytest.raises(InputError, match=r"`predictions\['q2'\]` is None; expected SQL"):
            evaluate_sql(QUESTIONS, nothing, verifier)  # type: ignore[arg-type]
        with pytest.raises(InputError, match="`questions` is empty"):
            evaluate_sql([], {}, verifier)


def test_a_change_is_called_one_only_when_the_questions_can_show_it(
    runs: list[EvaluationReport],
) -> None:
    assert "no difference that these questions can show" in describe_change(*runs)
    assert "(2 questions gained, 0 lost, +66.7 points, p = 0.500)" in describe_change(*runs)
    many = [EvaluationReport(run.name, run.records[:1] * 12) for run in runs]
    assert ": better (12 questions gained" in describe_change(*many)
    assert ": worse (" in describe_change(many[1], many[0])


class _Page(HTMLParser):
    """Collects what a browser would fetch, and whether tags nest."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.urls: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.urls += [v or "" for k, v in attrs if k in ("src", "href", "data")]
        if tag not in ("meta", "input", "line", "rect", "br"):
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.urls += [v or "" for k, v in attrs if k in ("src", "href", "data")]

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def test_the_page_is_whole_self_contained_and_escaped(
    runs: list[EvaluationReport], catalog: DatabaseCatalog, tmp_path: Path
) -> None:
    path = tmp_path / "report.html"
    section = ReportSection("Pairs & more", ("what", "n"), (("<i>", "3"),), "a note")
    previews = preview_results(runs[-1], catalog)
    write_html_report(path, runs, title="T <1>", sections=[section], previews=previews)
    text = path.read_text(encoding="utf-8")
    page = _Page()
    page.feed(text)
    assert page.open == []
    assert page.urls == []
    assert not re.search(r"https?://|@import|url\(", text)
    assert "Which &lt;b&gt;?" in text
    assert "<b>" not in text
    assert "T &lt;1&gt;" in text
    assert "Pairs &amp; more" in text
    assert "66.7 %" in text
    assert "no such column" in text
    assert text.count('class="question"') == 3


def test_runs_on_different_questions_are_refused(
    runs: list[EvaluationReport], tmp_path: Path
) -> None:
    other = EvaluationReport("other", runs[0].records[:2])
    with pytest.raises(InputError, match="'before' and 'other' answer different questions"):
        write_html_report(tmp_path / "r.html", [runs[0], other], title="t")
    moved = EvaluationReport("moved", tuple(replace(r, db_id="x") for r in runs[0].records))
    with pytest.raises(InputError, match="'before' and 'moved' answer different questions"):
        write_html_report(tmp_path / "r.html", [runs[0], moved], title="t")
    with pytest.raises(InputError, match="`runs` is empty"):
        write_html_report(tmp_path / "r.html", [], title="t")


def _record(number: int, **values: Any) -> EvaluationRecord:
    return EvaluationRecord(
        **{
            "question_id": f"q{number}",
            "db_id": "d",
            "level": None,
            "question": "?",
            "gold_sql": "SELECT 1",
            "predicted_sql": "SELECT 2",
            "verdict": Verdict.WRONG,
            "reason": "values_differ",
            "error": None,
            **values,
        }
    )


CORRECT, WRONG, UNDETERMINED = Verdict.CORRECT, Verdict.WRONG, Verdict.UNDETERMINED
FULL = EvaluationReport(
    "full",
    (
        _record(
            1,
            **{"verdict": CORRECT, "executes": True, "spider": CORRECT, "bird": CORRECT},
            **{"suite": WRONG, "refuted_by": "neighbour 5", "hardness": "hard", "db_id": "b"},
            **{"exact_match": False, "soft_f1": 1.0, "soft_f1_unordered": 1.0, "time_ratio": 4.0},
        ),
        _record(
            2,
            **{"executes": False, "spider": WRONG, "bird": WRONG, "suite": WRONG, "db_id": "a"},
            **{"soft_f1": 0.0, "soft_f1_unordered": 0.5, "hardness": "easy"},
            error_classes=("extra_join", "wrong_column"),
        ),
        _record(
            3,
            **{"verdict": UNDETERMINED, "spider": CORRECT, "bird": CORRECT, "suite": UNDETERMINED},
            **{"exact_match": True, "time_ratio": 0.25, "db_id": "b"},
            error_classes=("extra_join",),
        ),
        _record(
            4,
            **{"verdict": CORRECT, "executes": True, "spider": WRONG, "bird": WRONG},
            **{"suite": CORRECT, "exact_match": True, "soft_f1": 0.5, "soft_f1_unordered": 0.75},
            **{"hardness": "easy", "db_id": "a"},
        ),
    ),
    {"suite": "Eight neighbours."},
)


def test_scores_by_hand() -> None:
    scores = {score.name: score for score in FULL.scores}
    assert {name: (score.value, score.num_questions) for name, score in scores.items()} == {
        "strict": (2 / 4, 4),
        "spider": (2 / 4, 4),
        "bird": (2 / 4, 4),
        "suite": (1 / 4, 4),
        "exact_match": (2 / 3, 3),
        "soft_f1": (0.5, 3),
        "soft_f1_unordered": (0.75, 3),
        # Roots of the ratios, 2 + 0 + 0.5 + 0, and of the rewards 1.25 and 0.5.
        "ves": (2.5 / 4, 4),
        "r_ves": (pytest.approx((1.25**0.5 + 0.5**0.5) / 4), 4),
        "validity": (2 / 3, 3),
        "undetermined": (1 / 4, 4),
    }
    assert scores["strict"].interval == FULL.interval
    assert scores["soft_f1"].interval == bootstrap_interval([1.0, 0.0, 0.5])
    assert scores["suite"].note == (
        "1 predictions are refuted by another instance of the database. Eight neighbours."
    )
    assert scores["exact_match"].note.startswith("1 left out: Spider's parser")
    assert FULL.get_score("bird") == scores["bird"]


def test_what_was_not_measured_has_no_score() -> None:
    report = EvaluationReport("plain", (_record(1),))
    assert [score.name for score in report.scores] == ["strict", "undetermined"]
    assert report.get_score("suite") is None
    assert report.by_hardness() == {}
    assert report.by_error_class() == {}


def test_tables_by_group() -> None:
    assert list(FULL.by_hardness().items()) == [
        ("easy", (1, 2)),
        ("hard", (1, 1)),
        ("unspecified", (0, 1)),
    ]
    assert list(FULL.by_db_id().items()) == [("a", (1, 2)), ("b", (1, 2))]
    assert FULL.by_level() == {"unspecified": (2, 4)}
    assert list(FULL.by_error_class().items()) == [("extra_join", 2), ("wrong_column", 1)]


def test_a_full_report_is_read_back_and_summed_up(tmp_path: Path) -> None:
    FULL.save(tmp_path / "full.json")
    assert EvaluationReport.load(tmp_path / "full.json") == FULL
    summary = json.loads((tmp_path / "full.json").read_text())["summary"]
    assert summary["scores"]["suite"]["value"] == 0.25
    assert summary["scores"]["suite"]["interval_95"][0] > 0
    assert summary["by_hardness"]["easy"] == [1, 2]
    assert summary["error_classes"] == {"extra_join": 2, "wrong_column": 1}


def test_a_file_from_before_the_further_scores_is_read(tmp_path: Path) -> None:
    path = tmp_path / "old.json"
    FULL.save(path)
    data = json.loads(path.read_text())
    old = ["question_id", "db_id", "level", "question", "gold_sql", "predicted_sql", "verdict"]
    old += ["reason", "error"]
    records = [{name: record[name] for name in old} for record in data["records"]]
    path.write_text(json.dumps({"summary": {"name": "old"}, "records": records}))
    report = EvaluationReport.load(path)
    assert report.verdicts == FULL.verdicts
    assert [score.name for score in report.scores] == ["strict", "undetermined"]
