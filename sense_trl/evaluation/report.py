"""`write_html_report`: evaluated runs as one self-contained page.

The page loads nothing: styles and plots are inline, so that it can be mailed, archived and opened
without a network.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from sense_trl.database.catalog import DatabaseCatalog
from sense_trl.errors import InputError
from sense_trl.evaluation.evaluate import EvaluationReport
from sense_trl.evaluation.metrics import PairedComparison, compare_paired
from sense_trl.verification.verifier import Verdict

# A difference is called one only below this p-value of the paired test.
_SIGNIFICANCE = 0.05


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


@dataclass(frozen=True, slots=True)
class ResultPreview:
    """The first rows of a query's result, or why there is none."""

    columns: tuple[str, ...] = ()
    rows: tuple[tuple[str, ...], ...] = ()
    num_rows: int = 0
    error: str | None = None


def preview_results(
    report: EvaluationReport, catalog: DatabaseCatalog, *, max_rows: int = 5, max_chars: int = 60
) -> dict[tuple[str, str], ResultPreview]:
    """Execute gold and prediction of every question again, for showing side by side.

    Predictions that did not run to their end when they were verified are not run again.

    Returns:
        `(db_id, sql)` to the first `max_rows` rows, values cut to `max_chars` characters.
    """
    previews: dict[tuple[str, str], ResultPreview] = {}
    for record in report.records:
        gold, predicted = (record.db_id, record.gold_sql), (record.db_id, record.predicted_sql)
        if gold not in previews:
            previews[gold] = _preview(catalog, *gold, max_rows, max_chars)
        if record.reason.startswith("prediction_"):
            # It failed or had to be stopped, perhaps by killing its process: not run again here.
            previews[predicted] = ResultPreview(error=record.error or record.reason)
        elif predicted not in previews:
            previews[predicted] = _preview(catalog, *predicted, max_rows, max_chars)
    return previews


def _preview(
    catalog: DatabaseCatalog, db_id: str, sql: str, max_rows: int, max_chars: int
) -> ResultPreview:
    result = catalog.engine(db_id).execute(sql)
    if not result.ok:
        return ResultPreview(error=f"{result.status}: {result.error}")

    def text(value: object) -> str:
        shown = "NULL" if value is None else str(value)
        return shown if len(shown) <= max_chars else shown[: max_chars - 1] + "…"

    rows = tuple(tuple(text(value) for value in row) for row in result.rows[:max_rows])
    return ResultPreview(tuple(map(str, result.columns)), rows, len(result.rows))


def write_html_report(
    path: str | Path,
    runs: Sequence[EvaluationReport],
    *,
    title: str,
    subtitle: str = "",
    sections: Sequence[ReportSection] = (),
    previews: Mapping[tuple[str, str], ResultPreview] | None = None,
) -> None:
    """Write the report of runs on the same questions, in the order they were made.

    Args:
        path: the HTML file to write.
        runs: at least one; each is compared with the one before it.
        title: heading.
        subtitle: one line under it.
        sections: further tables, shown after the results.
        previews: results to show beside each question of the last run, from `preview_results`.

    Raises:
        InputError: no runs, or runs on different questions.
    """
    import jinja2

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
    comparisons = [None, *(compare_paired(a.correct, b.correct) for a, b in _successive(runs))]
    page = environment.get_template("report.html").render(
        title=title,
        subtitle=subtitle,
        runs=runs,
        comparisons=comparisons,
        conclusions=[describe_change(a, b) for a, b in _successive(runs)],
        levels=list(dict.fromkeys(level for run in runs for level in run.by_level())),
        sections=sections,
        questions=list(zip(*(run.records for run in runs), strict=True)),
        previews=previews or {},
        Verdict=Verdict,
        format_p_value=format_p_value,
    )
    Path(path).write_text(page, encoding="utf-8")


def _asked(run: EvaluationReport) -> list[tuple[str, str, str, str | None]]:
    """What identifies the questions of a run; ids alone may be mere positions in a file."""
    return [(r.question_id, r.db_id, r.gold_sql, r.level) for r in run.records]


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


def _successive(
    runs: Sequence[EvaluationReport],
) -> list[tuple[EvaluationReport, EvaluationReport]]:
    return list(itertools.pairwise(runs))
