"""How long a caller of an `EngineWorker` waits, and what it is told, when a process ends early."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import pytest
from conftest import FreshDB

from sense_trl.database import process as process_module
from sense_trl.database.engine import ExecutionLimits, LimitKind, QueryResult, QueryStatus
from sense_trl.database.messages import encode
from sense_trl.database.process import WorkerGoneError, WorkerLateError
from sense_trl.database.worker import GRACE_S, EngineWorker, Executed, IsolatedEngine

OK = QueryResult(QueryStatus.OK, ("a",), ((1,),), None, 0.0, None)
MEMORY = QueryResult(QueryStatus.TOO_LARGE, (), (), "memory", 0.0, None, LimitKind.MEMORY)
CLOCK = QueryResult(QueryStatus.TIMEOUT, (), (), "clock", 0.0, None, LimitKind.WALL_CLOCK)
LIMITS = ExecutionLimits(timeout_s=1.0)
START_S = 0.2
RUN_S = 0.1


class Script:
    """Stands for the worker processes: what each message gets, and the time it was given."""

    def __init__(self, *answers: QueryResult | str) -> None:
        self.answers = list(answers)
        self.timeouts: list[float] = []
        self.num_starts = 0

    def __call__(self, entry: str, arguments: list[str]) -> Script:
        self.num_starts += 1
        time.sleep(START_S)
        return self

    def send(self, message: bytes) -> None:
        pass

    def receive(self, timeout_s: float) -> bytes:
        self.timeouts.append(timeout_s - GRACE_S)
        time.sleep(RUN_S)
        answer = self.answers.pop(0)
        if isinstance(answer, QueryResult):
            return encode(Executed(answer))
        if answer == "late":
            raise WorkerLateError
        self.was_killed = answer == "killed"
        raise WorkerGoneError

    def kill(self) -> None:
        pass


def run(
    monkeypatch: pytest.MonkeyPatch, *answers: QueryResult | str, limits: ExecutionLimits = LIMITS
) -> tuple[QueryResult, Script]:
    """The result of a query that ends so in a worker that has answered before."""
    script = Script(OK, *answers)
    monkeypatch.setattr(process_module, "WorkerProcess", script)
    with EngineWorker() as worker:
        assert worker.execute(Path("x"), "SELECT 1", LIMITS).ok
        result = worker.execute(Path("x"), "SELECT 1", limits)
    del script.timeouts[0]
    return result, script


@pytest.mark.parametrize("first", [MEMORY, "died"])
@pytest.mark.parametrize(
    ("second", "status"),
    [
        (OK, QueryStatus.OK),
        (MEMORY, QueryStatus.TOO_LARGE),
        # It had less than its time: that it needs too much memory is all that is known.
        (CLOCK, QueryStatus.TOO_LARGE),
        ("late", QueryStatus.TOO_LARGE),
        ("died", QueryStatus.TOO_LARGE),
    ],
)
def test_a_second_attempt_has_the_time_that_is_left(
    monkeypatch: pytest.MonkeyPatch,
    first: QueryResult | str,
    second: QueryResult | str,
    status: QueryStatus,
) -> None:
    result, script = run(monkeypatch, first, second)
    assert result.status is status
    # What the first took and the start of the process in between are gone.
    assert script.timeouts[0] == pytest.approx(1.0)
    assert script.timeouts[1] <= 1.0 - RUN_S - START_S


@pytest.mark.parametrize("first", [MEMORY, "died"])
def test_no_process_is_started_for_which_there_is_no_time(
    monkeypatch: pytest.MonkeyPatch, first: QueryResult | str
) -> None:
    limits = ExecutionLimits(timeout_s=RUN_S + START_S / 2)
    result, script = run(monkeypatch, first, limits=limits)
    assert result.exceeded is LimitKind.MEMORY
    assert script.num_starts == 1


def test_a_query_whose_worker_was_killed_has_all_its_time_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    result, script = run(monkeypatch, "killed", OK)
    assert result.ok
    assert script.timeouts == pytest.approx([1.0, 1.0])
    result, _ = run(monkeypatch, "killed", "killed")
    assert (result.status, result.exceeded) == (QueryStatus.TOO_LARGE, LimitKind.MEMORY)


@pytest.mark.parametrize(
    ("number", "was_killed"), [(signal.SIGKILL, True), (signal.SIGTERM, True), (6, False)]
)
def test_a_signal_from_outside_is_told_from_an_abort(
    fresh_db: FreshDB, number: int, was_killed: bool
) -> None:
    with IsolatedEngine(fresh_db("CREATE TABLE t (a)")) as engine:
        assert engine.execute("SELECT 1").ok
        process = engine.worker._process
        assert process.process_id is not None
        os.kill(process.process_id, number)
        assert process.was_killed is was_killed
        assert engine.execute("SELECT 1").ok
