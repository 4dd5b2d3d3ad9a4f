"""`preview_results`: the first rows of what gold and predictions return, for showing."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Final

from sense_trl.database.catalog import DatabaseCatalog
from sense_trl.database.engine import QueryResult
from sense_trl.database.text import show_text
from sense_trl.evaluation.evaluate import EvaluationReport
from sense_trl.verification.verifier import Reason

_MAX_COLUMNS: Final = 20


@dataclass(frozen=True, slots=True)
class ResultPreview:
    """The first rows of a query's result, or why there is none.

    Attributes:
        columns: names of the first columns.
        rows: values of these columns, as text.
        num_rows: rows of the whole result.
        num_columns: columns of the whole result.
        error: why there is no result to show.
    """

    columns: tuple[str, ...] = ()
    rows: tuple[tuple[str, ...], ...] = ()
    num_rows: int = 0
    num_columns: int = 0
    error: str | None = None


def preview_results(
    runs: EvaluationReport | Sequence[EvaluationReport],
    catalog: DatabaseCatalog,
    *,
    max_rows: int = 5,
    max_chars: int = 60,
    timeout_s: float = 2.0,
) -> dict[tuple[str, str], ResultPreview]:
    """Execute gold and predictions of every question again, for showing side by side.

    Predictions that failed or were stopped when they were verified are not run again. Of the
    others one that has too many rows was never run to its end, so nothing is known about how long
    it takes.

    Args:
        runs: one run or several on the same questions; equal queries are executed once.
        catalog: where the databases are.
        max_rows: rows to keep of each result.
        max_chars: characters to keep of each value and column name.
        timeout_s: seconds for each query, where the catalog's limits do not allow less.

    Returns:
        `(db_id, sql)` to the first rows, of 20 columns at most.

    Raises:
        DatabaseError: a database cannot be read.
    """
    limits = replace(catalog.limits, timeout_s=min(timeout_s, catalog.limits.timeout_s))
    previews: dict[tuple[str, str], ResultPreview] = {}
    for run in [runs] if isinstance(runs, EvaluationReport) else runs:
        for record in run.records:
            engine = catalog.engine(record.db_id)
            if record.reason.startswith("prediction_") or record.reason == Reason.WORKER_DIED:
                stopped = ResultPreview(error=record.error or record.reason)
                previews[record.db_id, record.predicted_sql] = stopped
            for sql in (record.gold_sql, record.predicted_sql):
                if (record.db_id, sql) not in previews:
                    result = engine.execute(sql, limits=limits)
                    previews[record.db_id, sql] = _preview(result, max_rows, max_chars)
    return previews


def _preview(result: QueryResult, max_rows: int, max_chars: int) -> ResultPreview:
    if not result.ok:
        return ResultPreview(error=f"{result.status}: {result.error}")

    def text(value: object) -> str:
        shown = "NULL" if value is None else show_text(str(value))
        return shown if len(shown) <= max_chars else shown[: max_chars - 1] + "…"

    return ResultPreview(
        columns=tuple(text(name) for name in result.columns[:_MAX_COLUMNS]),
        rows=tuple(
            tuple(text(value) for value in row[:_MAX_COLUMNS]) for row in result.rows[:max_rows]
        ),
        num_rows=len(result.rows),
        num_columns=len(result.columns),
    )
