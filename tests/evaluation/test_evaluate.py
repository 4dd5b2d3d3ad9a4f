"""Evaluation records and the report page."""

import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import pytest
from conftest import FreshDB

from sense_trl.database.catalog import DatabaseCatalog
from sense_trl.errors import InputError
from sense_trl.evaluation import (
    EvaluationReport,
    ReportSection,
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
