"""`write_html_report`: evaluated runs as one self-contained page.

The page loads nothing: styles, script and plots are inline, so that it can be mailed, archived and
opened without a network. What models and databases wrote is data in it and never markup: the
template escapes, the script writes text nodes only, and a content security policy refuses every
other script, style and request.
"""

from __future__ import annotations

import base64
import hashlib
import itertools
import json
import string
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any, Final

from sense_trl._files import write_text_atomically
from sense_trl.errors import InputError
from sense_trl.evaluation.curves import TrainingLog, get_curves
from sense_trl.evaluation.evaluate import EvaluationRecord, EvaluationReport
from sense_trl.evaluation.metrics import GroupAccuracy, PairedComparison, Score, compare_paired
from sense_trl.evaluation.previews import ResultPreview, preview_results
from sense_trl.evaluation.sql_diff import mark_differences
from sense_trl.verification.verifier import Verdict

__all__ = [
    "ReportSection",
    "ResultPreview",
    "describe_change",
    "format_p_value",
    "preview_results",
    "write_html_report",
]

# A difference is called one only below this p-value of the paired test.
_SIGNIFICANCE: Final = 0.05


@dataclass(frozen=True, slots=True)
class ReportSection:
    """A table of the report.

    Attributes:
        title: heading.
        header: column names.
        rows: cells, as text.
        note: a paragraph above the table.
    """

    title: str
    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    note: str = ""


def write_html_report(
    path: str | Path,
    runs: Sequence[EvaluationReport],
    *,
    title: str,
    subtitle: str = "",
    sections: Sequence[ReportSection] = (),
    trainings: Sequence[TrainingLog] = (),
    previews: Mapping[tuple[str, str], ResultPreview] | None = None,
) -> None:
    """Write the report of runs on the same questions, in the order they were made.

    Summary, plots and tables can be read without JavaScript; the list of questions needs it.

    Args:
        path: the HTML file to write.
        runs: at least one; each is compared with the one before it, and the last with the first.
        title: heading.
        subtitle: one line under it.
        sections: further tables, shown after the results.
        trainings: logs of trainings, whose curves are shown beside the scores; one that is called
            as a run has its colour.
        previews: results to show beside each question, from `preview_results` of the runs whose
            results are to be shown.

    Raises:
        InputError: no runs, or runs on different questions.
    """
    import jinja2
    from markupsafe import Markup

    if not runs:
        raise InputError("`runs` is empty; a report needs at least one evaluated run.")
    first = _asked(runs[0])
    for run in runs[1:]:
        if _asked(run) != first:
            raise InputError(
                f"The runs {runs[0].name!r} and {run.name!r} answer different questions. Evaluate "
                "them on the same questions in the same order."
            )
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("sense_trl.evaluation"),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    templates = files("sense_trl.evaluation") / "templates"
    style, script = ((templates / f"report.{s}").read_text("utf-8") for s in ("css", "js"))
    page = environment.get_template("report.html").render(
        title=title,
        subtitle=subtitle,
        runs=runs,
        keys=[_get_key(i) for i in range(len(runs))],
        scores=_align_scores(runs),
        changes=[_Change(a, b) for a, b in _get_comparisons(runs)],
        plots=[
            plot
            for plot in (
                _plot_accuracy("hardness", "hardness", [r.by_hardness() for r in runs]),
                _plot_accuracy("level", "level", [r.by_level() for r in _with_own_levels(runs)]),
                _plot_accuracy("database", "db", [r.by_db_id() for r in runs], worst_first=True),
                _plot_error_classes(runs),
            )
            if len(plot.groups) > 1 or (plot.groups and not plot.has_intervals)
        ],
        trainings=[_Training(log, i, runs) for i, log in enumerate(trainings)],
        curves=get_curves(trainings),
        reasons=_align_reasons(runs),
        sections=sections,
        verdicts=list(Verdict),
        style=Markup(style),
        script=Markup(script),
        style_hash=_hash(style),
        script_hash=_hash(script),
        data=Markup(_embed(_get_data(runs, previews or {}))),
    )
    write_text_atomically(path, page)


def describe_change(before: EvaluationReport, after: EvaluationReport) -> str:
    """Say in one sentence whether `after` is better than `before`, and how sure that is."""
    comparison = compare_paired(before.correct, after.correct)
    points = 100 * (after.execution_accuracy - before.execution_accuracy)
    counts = (
        f"{comparison.gained} questions gained, {comparison.lost} lost, "
        f"{points:+.1f} points, {format_p_value(comparison.p_value)}"
    )
    return f"{after.name} against {before.name}: {_judgement(comparison)} ({counts})."


def format_p_value(p_value: float) -> str:
    """`p = 0.031`, or `p < 0.001` where three digits would show zero."""
    return f"p = {p_value:.3f}" if p_value >= 0.001 else "p < 0.001"


def _judgement(comparison: PairedComparison) -> str:
    if comparison.p_value >= _SIGNIFICANCE:
        return "no difference that these questions can show"
    return "better" if comparison.gained > comparison.lost else "worse"


def _asked(run: EvaluationReport) -> list[tuple[str, str, str, str | None]]:
    """Identity of each question of a run: its id alone may be a mere position in a file."""
    return [(r.question_id, r.db_id, r.gold_sql, r.level) for r in run.records]


# ---------------------------------------------------------------------- the summary


def _get_key(position: int) -> str:
    """A short name for a run beside its colour: A, B, ..."""
    letters = string.ascii_uppercase
    return letters[position] if position < len(letters) else str(position + 1)


def _align_scores(runs: Sequence[EvaluationReport]) -> list[tuple[Score, list[Score | None]]]:
    """Per score of any run: one that names it, and that of each run (`None`: not measured)."""
    of_runs = [{score.name: score for score in run.scores} for run in runs]
    # In the order of the run that has most.
    named: dict[str, Score] = {}
    for scores in sorted(of_runs, key=len):
        named = {**scores, **named}
    return [(score, [scores.get(name) for scores in of_runs]) for name, score in named.items()]


def _align_reasons(runs: Sequence[EvaluationReport]) -> list[tuple[str, list[int]]]:
    """`verdict: reason` with the predictions of each run."""
    of_runs = [run.reasons for run in runs]
    order = dict.fromkeys(reason for reasons in of_runs for reason in reasons)
    return [(reason, [reasons.get(reason, 0) for reasons in of_runs]) for reason in order]


def _get_comparisons(
    runs: Sequence[EvaluationReport],
) -> list[tuple[EvaluationReport, EvaluationReport]]:
    pairs = list(itertools.pairwise(runs))
    return [*pairs, (runs[0], runs[-1])] if len(runs) > 2 else pairs


class _Change:
    """Two runs compared question by question, for the template."""

    def __init__(self, before: EvaluationReport, after: EvaluationReport) -> None:
        self.before, self.after = before, after
        self.sentence = describe_change(before, after)
        comparison = compare_paired(before.correct, after.correct)
        self.gained, self.lost = comparison.gained, comparison.lost
        self.both = before.count(Verdict.CORRECT) - self.lost
        self.neither = len(before.records) - self.both - self.gained - self.lost


# ---------------------------------------------------------------------- the plots


class _Training:
    """A training in the legend of the curves, for the template."""

    def __init__(self, log: TrainingLog, place: int, runs: Sequence[EvaluationReport]) -> None:
        names = [run.name for run in runs]
        self.name = log.name
        self.key = _get_key(names.index(log.name)) if log.name in names else str(place + 1)
        self.colour = (names.index(log.name) if log.name in names else place) % 5


@dataclass(frozen=True, slots=True)
class _Bar:
    """The bar of a run's score in one group; positions in percent of the plot's width."""

    end: float
    low: float
    high: float
    text: str
    interval_text: str = ""
    counts_text: str = ""


@dataclass(frozen=True, slots=True)
class _Plot:
    """Groups of bars, one bar per run.

    Attributes:
        filter: the filter of the list of questions that a group's name sets.
        groups: name, label and bars (`None`: the run has none).
    """

    title: str
    column: str
    filter: str
    has_intervals: bool
    groups: tuple[tuple[str, str, tuple[_Bar | None, ...]], ...]


def _plot_accuracy(
    column: str,
    filter_name: str,
    tables: Sequence[Mapping[str, GroupAccuracy]],
    *,
    worst_first: bool = False,
) -> _Plot:
    def bar(group: GroupAccuracy | None) -> _Bar | None:
        if group is None:
            return None
        low, high = 100 * group.interval.low, 100 * group.interval.high
        return _Bar(
            end=100 * group.accuracy,
            low=low,
            high=high,
            text=f"{100 * group.accuracy:.1f} %",
            interval_text=f"{low:.0f} to {high:.0f}",
            counts_text=f"{group.num_correct} of {group.num_questions}",
        )

    names = list(dict.fromkeys(name for table in tables for name in table))
    if worst_first:
        last = tables[-1]
        names.sort(key=lambda name: last[name].accuracy if name in last else 1.0)
    groups = ((name, name, tuple(bar(table.get(name)) for table in tables)) for name in names)
    return _Plot(
        f"Execution accuracy by {column}",
        column=column,
        filter=filter_name,
        has_intervals=True,
        groups=tuple(groups),
    )


def _plot_error_classes(runs: Sequence[EvaluationReport]) -> _Plot:
    tables = [run.by_error_class() for run in runs]
    names = sorted(
        {name for table in tables for name in table},
        key=lambda name: (-sum(table.get(name, 0) for table in tables), name),
    )
    most = max((count for table in tables for count in table.values()), default=0)

    def bar(count: int) -> _Bar:
        return _Bar(100 * count / most, 0.0, 0.0, str(count))

    return _Plot(
        "How predictions that are not correct differ from gold",
        column="error class",
        filter="class",
        has_intervals=False,
        groups=tuple(
            (name, _in_words(name), tuple(bar(table.get(name, 0)) for table in tables))
            for name in names
        ),
    )


def _with_own_levels(runs: Sequence[EvaluationReport]) -> Sequence[EvaluationReport]:
    """The runs, or none where the file has no levels, or Spider's hardness, which is shown."""
    has_own = any(r.level not in (None, r.hardness) for run in runs for r in run.records)
    return runs if has_own else ()


def _in_words(name: str) -> str:
    return name.replace("_", " ")


# ---------------------------------------------------------------------- the list of questions


def _get_data(
    runs: Sequence[EvaluationReport], previews: Mapping[tuple[str, str], ResultPreview]
) -> dict[str, Any]:
    """The data that the page's script shows, as plain JSON data without what is `None`."""
    results: dict[ResultPreview, int] = {}

    def get_result(db_id: str, sql: str) -> int | None:
        preview = previews.get((db_id, sql))
        # Equal results are written once: most predictions return what gold returns.
        return None if preview is None else results.setdefault(preview, len(results))

    has_own_levels = bool(_with_own_levels(runs))
    questions = []
    for records in zip(*(run.records for run in runs), strict=True):
        asked = records[-1]
        questions.append(
            _without_none(
                id=asked.question_id,
                db=asked.db_id,
                level=(asked.level or "unspecified") if has_own_levels else None,
                hardness=asked.hardness,
                question=asked.question,
                result=get_result(asked.db_id, asked.gold_sql),
                answers=[_get_answer(record, get_result) for record in records],
            )
        )
    return {
        "runs": [run.name for run in runs],
        "keys": [_get_key(i) for i in range(len(runs))],
        "questions": questions,
        "results": [
            _without_none(
                columns=preview.columns,
                rows=preview.rows,
                numRows=preview.num_rows,
                numColumns=preview.num_columns,
                error=preview.error,
            )
            for preview in results
        ],
    }


def _get_answer(
    record: EvaluationRecord, get_result: Callable[[str, str], int | None]
) -> dict[str, Any]:
    gold, predicted = mark_differences(record.gold_sql, record.predicted_sql)
    return _without_none(
        verdict=record.verdict,
        reason=_in_words(record.reason),
        error=record.error,
        gold=gold,
        sql=predicted,
        result=get_result(record.db_id, record.predicted_sql),
        classes=record.error_classes or None,
        refuted=record.refuted_by,
        facts=[*_get_facts(record)],
    )


def _get_facts(record: EvaluationRecord) -> Iterable[tuple[str, str]]:
    """Labels and values of all that was measured of a prediction besides its verdict."""
    for label, verdict in (
        ("by Spider's rules", record.spider),
        ("by BIRD's rules", record.bird),
        ("suite", record.suite),
    ):
        if verdict is not None:
            yield label, str(verdict)
    if record.exact_match is not None:
        yield "exact-set match", "yes" if record.exact_match else "no"
    for label, value in (
        ("Soft-F1", record.soft_f1),
        ("Soft-F1 (any order)", record.soft_f1_unordered),
        ("gold's time / its time", record.time_ratio),
    ):
        if value is not None:
            yield label, f"{value:.2f}"


def _without_none(**values: Any) -> dict[str, Any]:
    return {name: value for name, value in values.items() if value is not None}


def _embed(data: dict[str, Any]) -> str:
    """JSON that holds nothing an HTML parser could take for the end of the script element."""
    return json.dumps(data, separators=(",", ":")).replace("<", "\\u003c")


def _hash(text: str) -> str:
    """The name of an inline script or style in a content security policy."""
    return f"sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}"
