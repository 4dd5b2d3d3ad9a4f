"""`format_markdown`: evaluated runs as tables for a model card, and the tables themselves."""

from __future__ import annotations

import itertools
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Final

from sense_trl.evaluation.metrics import GroupAccuracy, Score
from sense_trl.evaluation.records import EvaluationReport
from sense_trl.evaluation.report import ReportSection, describe_change

_NOT_MEASURED: Final = "-"
_SEMANTICS: Final = (
    "`strict` compares rows as bags, ordered where gold orders, and counts no prediction as "
    "correct that the data cannot tell from a wrong one; Spider's and BIRD's figures are those of "
    "their official scripts."
)


def format_markdown(runs: Sequence[EvaluationReport], *, title: str) -> str:
    """Write scores, groups, error classes and comparisons of runs as Markdown (GitHub's tables).

    Args:
        runs: at least one, all on the same questions; each is compared with the one before it.
        title: heading.
    """
    tables = [
        get_score_table(runs),
        get_hardness_table(runs),
        _get_group_table("Accuracy by level", "level", [run.by_level() for run in runs], runs),
        _get_group_table("Accuracy by database", "database", [r.by_db_id() for r in runs], runs),
        get_error_table(runs),
    ]
    parts = [
        f"# {_escape(title)}",
        f"{len(runs[0].records)} questions on {len(runs[0].by_db_id())} databases. {_SEMANTICS}",
        *(_format_table(table) for table in tables if table.rows),
    ]
    changes = get_changes(runs)
    if changes:
        parts += ["## Comparison", "\n".join(f"- {_escape(change)}" for change in changes)]
    return "\n\n".join(parts) + "\n"


def get_changes(runs: Sequence[EvaluationReport]) -> list[str]:
    """A sentence for each run after the first: whether it is better than the one before it."""
    return [describe_change(before, after) for before, after in itertools.pairwise(runs)]


def get_score_table(runs: Sequence[EvaluationReport]) -> ReportSection:
    """A row for each score that a run has, a column for each run."""
    by_run = [{score.name: score for score in run.scores} for run in runs]
    labels = {score.name: score.label for scores in by_run for score in scores.values()}
    rows = tuple(
        (label, *(_score_text(scores.get(name)) for scores in by_run))
        for name, label in labels.items()
    )
    notes = [
        f"{score.label}{f' of {run.name}' if len(runs) > 1 else ''}: {score.note}"
        for run, scores in zip(runs, by_run, strict=True)
        for score in scores.values()
        if score.note
    ]
    note = "\n".join(["In brackets: the 95 % interval.", *notes])
    return ReportSection("Scores", _header("score", runs), rows, note)


def get_hardness_table(runs: Sequence[EvaluationReport]) -> ReportSection:
    """Execution accuracy by Spider's levels; without rows if none was measured."""
    tables = [run.by_hardness() for run in runs]
    table = _get_group_table("Accuracy by hardness", "hardness", tables, runs)
    if any("unspecified" in run for run in tables):
        note = f"{table.note} Unspecified: Spider's parser cannot read the gold query."
        table = replace(table, note=note)
    return table


def get_error_table(
    runs: Sequence[EvaluationReport], *, max_classes: int | None = None
) -> ReportSection:
    """Predictions by error class, the most frequent of the last run first."""
    by_run = [run.by_error_class() for run in runs]
    names = dict.fromkeys(name for classes in reversed(by_run) for name in classes)
    rows = tuple(
        (name.replace("_", " "), *(str(classes.get(name, 0)) for classes in by_run))
        for name in itertools.islice(names, max_classes)
    )
    totals = ", ".join(
        f"{sum(not correct for correct in run.correct)} of {run.name}" for run in runs
    )
    note = f"Of the predictions that are not correct: {totals}. One may have several classes."
    return ReportSection("Error classes", _header("class", runs), rows, note)


def _get_group_table(
    title: str,
    group: str,
    tables: Sequence[Mapping[str, GroupAccuracy]],
    runs: Sequence[EvaluationReport],
) -> ReportSection:
    names = dict.fromkeys(name for table in tables for name in table)
    if names.keys() == {"unspecified"}:
        names = {}
    rows = tuple((name, *(_group_text(table.get(name)) for table in tables)) for name in names)
    note = "Execution accuracy (strict), its 95 % interval, correct predictions of all."
    return ReportSection(title, _header(group, runs), rows, note)


def _header(first: str, runs: Sequence[EvaluationReport]) -> tuple[str, ...]:
    return (first, *(run.name for run in runs))


def _score_text(score: Score | None) -> str:
    return _NOT_MEASURED if score is None else f"{score.text} ({score.interval_text})"


def _group_text(group: GroupAccuracy | None) -> str:
    if group is None:
        return _NOT_MEASURED
    counts = f"{group.num_correct} of {group.num_questions}"
    return f"{100 * group.accuracy:.1f} % ({group.interval.text}), {counts}"


# ---------------------------------------------------------------------- Markdown


def _format_table(table: ReportSection) -> str:
    lines = [table.header, ("---", *["---:"] * (len(table.header) - 1))]
    lines += [tuple(map(_escape, row)) for row in table.rows]
    lines[0] = tuple(map(_escape, table.header))
    rows = "\n".join(f"| {' | '.join(line)} |" for line in lines)
    notes = map(_escape, table.note.split("\n"))
    return "\n\n".join([f"## {table.title}", *notes, rows])


def _escape(text: str) -> str:
    """Keep what a name may hold from being read as Markdown or HTML."""
    return re.sub(r"([\\`*_\[\]<>|#])", r"\\\1", " ".join(text.split()))
