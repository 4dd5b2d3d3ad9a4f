"""One execution for several comparisons: `SharingEngine`."""

from __future__ import annotations

from dataclasses import replace
from typing import Final

from sense_trl.database.engine import (
    ExecutionLimits,
    ForwardingEngine,
    LimitKind,
    QueryResult,
    SQLEngine,
    describe_exceeded,
)
from sense_trl.sql.volatility import is_volatile

_MAX_ROWS: Final = 10_000
_MAX_RESULTS: Final = 64


class SharingEngine(ForwardingEngine):
    """An engine that gives the result of a text again instead of running it again.

    For judging a prediction under several semantics, which seldom change the text and which change
    of the limits only `max_steps` and `max_rows`. What it gives is what the engine would give: a
    known result is used only if it is complete, and is cut as the later call would cut it.

    It never forgets, so it should not live longer than the predictions of one question.

    Args:
        engine: runs the queries.
    """

    def __init__(self, engine: SQLEngine) -> None:
        super().__init__(engine)
        self._known: dict[str, QueryResult] = {}

    def execute(self, sql: str, *, limits: ExecutionLimits | None = None) -> QueryResult:
        """Run one reading statement; see `SQLEngine.execute`."""
        limits = self.limits if limits is None else limits
        known = self._known.get(sql)
        if known is not None and _is_within(known, limits):
            if len(known.rows) <= limits.max_rows:
                return known
            status, message = describe_exceeded(LimitKind.ROWS, limits)
            return replace(
                known,
                status=status,
                columns=(),
                rows=(),
                error=message,
                exceeded=LimitKind.ROWS,
            )
        result = self._engine.execute(sql, limits=limits)
        if (
            result.ok
            and len(result.rows) <= _MAX_ROWS
            and len(self._known) < _MAX_RESULTS
            and not is_volatile(sql, self.dialect)
        ):
            self._known[sql] = result
        return result


def _is_within(known: QueryResult, limits: ExecutionLimits) -> bool:
    """Whether the limits would have let the query run as far as it ran."""
    return limits.max_steps is None or known.steps is None or known.steps < limits.max_steps
