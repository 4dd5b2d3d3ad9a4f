"""The report page."""

import base64
import hashlib
import json
import re
import shutil
import subprocess
from collections.abc import Callable
from dataclasses import replace
from html.parser import HTMLParser
from importlib.resources import files
from pathlib import Path
from typing import Any

import pytest

from sense_trl.errors import InputError
from sense_trl.evaluation import (
    EvaluationRecord,
    EvaluationReport,
    ReportSection,
    write_html_report,
)
from sense_trl.evaluation.curves import TrainingLog
from sense_trl.evaluation.report import ResultPreview, describe_change, format_p_value
from sense_trl.verification.verifier import Verdict

CORRECT, WRONG, UNDETERMINED = Verdict.CORRECT, Verdict.WRONG, Verdict.UNDETERMINED
# What a model, a database and a questions file can hold, and a page must not take for its own.
HOSTILE = "</script><script>document.title='owned'</script><img src=x onerror=alert(1)><!--\u2028"


def _record(number: int, verdict: Verdict, **values: Any) -> EvaluationRecord:
    record = EvaluationRecord(
        question_id=f"q{number}",
        db_id="d1" if number < 3 else "d2",
        level=None,
        question=f"Question {number}?",
        gold_sql=f"SELECT a FROM t WHERE b = {number}",
        predicted_sql=f"SELECT a FROM t WHERE c = {number}",
        verdict=verdict,
        reason="results_equal" if verdict is CORRECT else "values_differ",
        error=None,
    )
    return replace(record, **values)


BEFORE = EvaluationReport(
    "before",
    (
        _record(1, WRONG, error_classes=("wrong_column", "extra_join")),
        _record(2, WRONG, error_classes=("wrong_column",)),
        _record(3, UNDETERMINED, reason="both_empty"),
    ),
)
AFTER = EvaluationReport(
    "after",
    (
        _record(1, CORRECT, hardness="easy", refuted_by="neighbour 4", suite=WRONG),
        _record(2, CORRECT, hardness="extra", suite=CORRECT),
        _record(3, WRONG, hardness="extra", suite=WRONG, predicted_sql="", soft_f1=0.25),
    ),
)


class _Page(HTMLParser):
    """Collects what a browser would fetch and show without a script, and whether tags nest."""

    VOID = ("meta", "input", "br", "wbr")

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.open: list[str] = []
        self.urls: list[str] = []
        self.ids: list[str] = []
        self.labelled_by: list[str] = []
        self.inline: dict[str, list[str]] = {"script": [], "style": []}
        self.policy = ""
        self.headings: list[int] = []
        self.shown = ""
        self.feed(path.read_text(encoding="utf-8"))
        assert self.open == []
        self.shown = " ".join(self.shown.split())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_startendtag(tag, attrs)
        if tag not in self.VOID:
            self.open.append(tag)
        if re.fullmatch("h[1-6]", tag):
            self.headings.append(int(tag[1]))

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = {name: value or "" for name, value in attrs}
        assert not any(name.startswith("on") or name == "style" for name in values)
        self.urls += [values[name] for name in ("src", "href", "data", "action") if name in values]
        self.ids += [values["id"]] if "id" in values else []
        self.labelled_by += [values["aria-labelledby"]] if "aria-labelledby" in values else []
        if "http-equiv" in values:
            self.policy = values["content"]

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] in self.inline:
            self.inline[self.open[-1]].append(data)
        else:
            self.shown += data + " "

    @property
    def data(self) -> Any:
        return json.loads(self.inline["script"][0])


Write = Callable[..., _Page]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    def write(*runs: EvaluationReport, title: str = "title", **options: Any) -> _Page:
        write_html_report(tmp_path / "report.html", runs, title=title, **options)
        return _Page(tmp_path / "report.html")

    return write


# ---------------------------------------------------------------------- comparing runs


def test_a_change_is_called_one_only_when_the_questions_can_show_it() -> None:
    assert "no difference that these questions can show" in describe_change(BEFORE, AFTER)
    assert "(2 questions gained, 0 lost, +66.7 points, p = 0.500)" in describe_change(BEFORE, AFTER)
    many = [EvaluationReport(run.name, run.records[:1] * 12) for run in (BEFORE, AFTER)]
    assert ": better (12 questions gained" in describe_change(*many)
    assert ": worse (" in describe_change(many[1], many[0])
    assert format_p_value(0.0004) == "p < 0.001"


def test_runs_on_different_questions_are_refused(write: Write) -> None:
    other = EvaluationReport("other", BEFORE.records[:2])
    with pytest.raises(InputError, match="'before' and 'other' answer different questions"):
        write(BEFORE, other)
    moved = EvaluationReport("moved", tuple(replace(r, db_id="x") for r in BEFORE.records))
    with pytest.raises(InputError, match="'before' and 'moved' answer different questions"):
        write(BEFORE, moved)
    with pytest.raises(InputError, match="`runs` is empty"):
        write()


def test_the_last_of_three_runs_is_compared_with_the_first_too(write: Write) -> None:
    runs = [replace(run, name=name) for run, name in ((BEFORE, "x"), (AFTER, "y"), (AFTER, "z"))]
    shown = write(*runs).shown
    for sentence in ("y against x: no", "z against y: no", "z against x: no"):
        assert shown.count(sentence) == 1
    assert "both answer 0, only z answers 2, only x answers 0, and neither answers 1" in shown


# ---------------------------------------------------------------------- what the page shows


def test_the_summary_can_be_read_without_a_script(write: Write) -> None:
    section = ReportSection("Pairs & more", ("what", "n"), (("<i>", "3"),), "a note")
    shown = write(BEFORE, AFTER, title="T <1>", subtitle="two & two", sections=[section]).shown
    for text in ("T <1>", "two & two", "Pairs & more", "<i>", "a note", "66.7 %"):
        assert text in shown
    assert "95 % interval 20.8 to 93.9" in shown
    # Verdicts, a score that only one run has, hardness, databases, error classes, reasons.
    assert "A before 0 (0.0 %) 2 (66.7 %) 1 (33.3 %)" in shown
    assert "Suite accuracy" in shown
    assert "not measured 33.3 % 6.1 to 79.2" in shown
    assert "extra A \u2013 B 50.0 %" in shown
    assert "d1 A 0.0 % 0 to 66 0 of 2 B 100.0 % 34 to 100 2 of 2" in shown
    assert "wrong column A 2 B 0" in shown
    assert "undetermined : both empty 1 0" in shown


def test_what_was_not_measured_has_no_plot(write: Write) -> None:
    shown = write(EvaluationReport("one", (_record(1, CORRECT),))).shown
    for title in ("by hardness", "by level", "by database", "differ from gold"):
        assert title not in shown


@pytest.mark.parametrize(("level", "expected"), [(None, False), ("easy", False), ("simple", True)])
def test_levels_are_shown_where_they_are_not_hardness_again(
    write: Write, level: str | None, expected: bool
) -> None:
    records = (
        _record(1, CORRECT, hardness="easy", level=level),
        _record(2, WRONG, hardness="extra", level=level and level.replace("easy", "extra") + "?"),
    )
    if level == "easy":
        records = (records[0], replace(records[1], level="extra"))
    page = write(EvaluationReport("one", records))
    assert ("by level" in page.shown) is expected
    assert ("level" in page.data["questions"][0]) is expected


def test_the_list_has_every_question_with_its_differences(write: Write) -> None:
    shown = ResultPreview(("a",), (("1",),), 7, 1)
    previews = {("d1", AFTER.records[0].gold_sql): shown, ("d2", ""): ResultPreview(error="no")}
    previews["d1", AFTER.records[0].predicted_sql] = ResultPreview(("a",), (("1",),), 7, 1)
    data = write(BEFORE, AFTER, previews=previews).data
    assert data["runs"] == ["before", "after"]
    assert [q["id"] for q in data["questions"]] == ["q1", "q2", "q3"]
    first, _, last = data["questions"]
    before, after = first["answers"]
    assert before["gold"] == ["SELECT a FROM t WHERE ", "b", " = 1"]
    assert before["sql"] == ["SELECT a FROM t WHERE ", "c", " = 1"]
    assert before["classes"] == ["wrong_column", "extra_join"]
    assert (before["verdict"], before["reason"]) == ("wrong", "values differ")
    assert (after["verdict"], after["refuted"]) == ("correct", "neighbour 4")
    assert ["Soft-F1", "0.25"] in last["answers"][1]["facts"]
    # Equal results are there once.
    assert first["result"] == after["result"]
    assert data["results"][first["result"]]["rows"] == [["1"]]
    assert data["results"][last["answers"][1]["result"]]["error"] == "no"
    assert "result" not in last


# ---------------------------------------------------------------------- hostile and self-contained


def _hostile_runs() -> tuple[EvaluationReport, EvaluationReport]:
    values: dict[str, Any] = dict.fromkeys(
        ("question_id", "question", "db_id", "gold_sql", "level"), HOSTILE
    )
    answer: dict[str, Any] = dict.fromkeys(
        ("predicted_sql", "reason", "error", "refuted_by"), HOSTILE
    )
    lone_surrogate = _record(1, WRONG, predicted_sql="\ud800")
    record = _record(2, WRONG, **values, **answer, error_classes=(HOSTILE,), hardness=HOSTILE)
    run = EvaluationReport(HOSTILE, (lone_surrogate, record))
    return run, replace(run, notes={"strict": HOSTILE})


def _write_hostile(write: Write) -> _Page:
    preview = ResultPreview((HOSTILE,), ((HOSTILE,),), 1, 1)
    return write(
        *_hostile_runs(),
        title=HOSTILE,
        subtitle=HOSTILE,
        sections=[ReportSection(HOSTILE, (HOSTILE,), ((HOSTILE,),), HOSTILE)],
        previews={(HOSTILE, HOSTILE): preview},
    )


def test_hostile_text_stays_text(write: Write, tmp_path: Path) -> None:
    page = _write_hostile(write)
    text = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert len(page.inline["script"]) == 2
    assert text.count("<script") == text.count("</script") == 2
    assert "<img" not in text
    assert "<!--" not in text
    question = page.data["questions"][1]
    assert question["question"] == HOSTILE
    assert "".join(question["answers"][0]["sql"]) == HOSTILE
    assert "".join(page.data["questions"][0]["answers"][0]["sql"]) == "\ud800"
    assert page.data["results"][0]["rows"] == [[HOSTILE]]


def test_the_page_loads_nothing_and_runs_nothing_else(write: Write, tmp_path: Path) -> None:
    page = write(BEFORE, AFTER)
    assert page.urls == []
    text = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert not re.search(r"https?://|@import|url\(|innerHTML|outerHTML|insertAdjacent", text)
    policy = dict(part.split(" ", 1) for part in page.policy.split("; "))
    assert policy["default-src"] == "'none'"
    for kind, name in (("script", "script-src"), ("style", "style-src")):
        inline = page.inline[kind][-1].encode()
        digest = base64.b64encode(hashlib.sha256(inline).digest()).decode()
        assert policy[name] == f"'sha256-{digest}'"


# ---------------------------------------------------------------------- for every reader


def test_curves_of_trainings_stand_beside_the_scores(write: Write, tmp_path: Path) -> None:
    rows = tuple({"step": step, "loss": 2.0 / step, f"losses/{HOSTILE}": 1.0} for step in (1, 2, 4))
    page = write(
        BEFORE, AFTER, trainings=[TrainingLog("after", rows), TrainingLog(HOSTILE, rows[:2])]
    )
    assert page.shown.index("All scores") < page.shown.index("Training") < page.shown.index("Why")
    assert "after: 2 to 0.5 at step 4" in " ".join(page.shown.split())
    text = (tmp_path / "report.html").read_text("utf-8")
    # In the colour of the run that came out of it.
    assert 'class="line s1" d="M75.0 0.0L150.0 66.7L300.0 100.0"' in text
    assert HOSTILE not in text
    assert "Training" not in write(BEFORE).shown


def test_headings_and_labels(write: Write) -> None:
    page = write(BEFORE, AFTER)
    assert page.headings[0] == 1
    assert page.headings.count(1) == 1
    assert all(b - a <= 1 for a, b in zip(page.headings, page.headings[1:], strict=False))
    assert len(page.ids) == len(set(page.ids))
    assert page.labelled_by
    assert set(page.labelled_by) <= set(page.ids)


def _luminance(colour: str) -> float:
    digits = colour.lstrip("#")
    digits = "".join(2 * d for d in digits) if len(digits) == 3 else digits
    channels = [int(digits[i : i + 2], 16) / 255 for i in (0, 2, 4)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def _contrast(a: str, b: str) -> float:
    """The contrast ratio of WCAG 2.2."""
    low, high = sorted((_luminance(a), _luminance(b)))
    return (high + 0.05) / (low + 0.05)


def test_contrast_of_black_and_white() -> None:
    assert _contrast("#000", "#ffffff") == pytest.approx(21)
    assert _contrast("#777777", "#fff") == pytest.approx(4.48, abs=0.01)


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_colours_have_contrast(scheme: str) -> None:
    style = (files("sense_trl.evaluation") / "templates" / "report.css").read_text("utf-8")
    schemes = re.findall(r":root \{(.*?)\}", style, re.DOTALL)
    assert len(schemes) == 2
    pairs = re.findall(r"--([\w-]+):(#\w+)", schemes[scheme == "dark"])
    colours: dict[str, str] = dict(pairs)
    runs = [name for name in colours if name.startswith("run")]
    assert len(runs) == 5
    # 4.5 for text, 3 for the outlines of controls and what a plot is made of (WCAG 2.2, AA).
    texts = [
        *((text, back) for text in ("fg", "soft", "good", "bad", "open", "link")
          for back in ("bg", "panel")),
        *(("fg", back) for back in ("missing", "extra")),
        *(("on-run", run) for run in runs),
    ]  # fmt: skip
    shapes = [(shape, back) for shape in ("control", *runs) for back in ("bg", "panel")]
    for least, group in ((4.5, texts), (3.0, shapes)):
        for front, back in group:
            assert _contrast(colours[front], colours[back]) >= least, (front, back)


# ---------------------------------------------------------------------- real size, real browser


def test_spider_dev_is_no_large_file(shared_data: Path, tmp_path: Path) -> None:
    lines = (shared_data / "spider" / "dev.jsonl").read_text("utf-8").splitlines()
    asked = [json.loads(line) for line in lines]
    runs = []
    for model in ("chatgpt_zero_shot", "dail_sql_gpt4"):
        predictions = (shared_data / "predictions" / model / "spider_dev.sql").read_text("utf-8")
        records = (
            _record(i, WRONG, db_id=q["db_id"], question=q["question"], gold_sql=q["query"],
                    predicted_sql=sql, error_classes=("wrong_column",))
            for i, (q, sql) in enumerate(zip(asked, predictions.splitlines(), strict=True))
        )  # fmt: skip
        runs.append(EvaluationReport(model, tuple(records)))
    previews = {
        (record.db_id, sql): ResultPreview(("name", "n"), ((f"name {i}", "1"),) * 5, 9, 2)
        for i, record in enumerate(runs[1].records)
        for sql in (record.gold_sql, record.predicted_sql)
    }
    path = tmp_path / "report.html"
    write_html_report(path, runs, title="Spider dev", previews=previews)
    assert len(_Page(path).data["questions"]) == 1034
    assert path.stat().st_size < 2_000_000


def _get_dom(path: Path, position: int) -> str:
    """The page after its script ran, with one question opened by its link."""
    names = ("chromium", "chromium-browser", "google-chrome")
    browser = next(filter(None, map(shutil.which, names)), None)
    if browser is None:
        pytest.skip(f"no browser: none of {', '.join(names)} is installed")
    options = ["--headless", "--no-sandbox", "--disable-gpu", "--virtual-time-budget=3000"]
    url = f"{path.as_uri()}#q{position}"
    done = subprocess.run(
        [browser, *options, f"--user-data-dir={path.parent / 'profile'}", "--dump-dom", url],
        capture_output=True,
        text=True,
        timeout=120,
    )
    return done.stdout


@pytest.mark.slow
def test_a_browser_lists_the_questions(write: Write, tmp_path: Path) -> None:
    previews = {
        (r.db_id, sql): ResultPreview(("column",), (("value",),), 1, 1)
        for r in AFTER.records
        for sql in (r.gold_sql, r.predicted_sql)
    }
    write(BEFORE, AFTER, previews=previews)
    dom = _get_dom(tmp_path / "report.html", 1)
    assert "all (3)" in dom
    assert "not correct in the last run (1)" in dom
    assert "changed between runs (3)" in dom
    assert "refuted by the suite only (1)" in dom
    assert '<mark class="missing">b</mark>' in dom
    assert '<mark class="extra">c</mark>' in dom
    assert "but by neighbour 4" in dom
    assert dom.count("<td>value</td>") == 4


@pytest.mark.slow
def test_a_browser_takes_hostile_text_as_text(write: Write, tmp_path: Path) -> None:
    _write_hostile(write)
    dom = _get_dom(tmp_path / "report.html", 2)
    assert 'id="q2"' in dom
    assert "<title>owned" not in dom
    assert "<img" not in dom
    # The title, the list and the opened question show it.
    assert dom.count("&lt;img src=x onerror=alert(1)&gt;") > 10
