"""Ends what runs too long: `Interrupter` a query, `QueryWatch` a worker that it hangs in."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable
from functools import partial
from typing import Any, Final, TypeVar

from sense_trl.database.engine import ExecutionLimits, ForwardingEngine, SQLEngine

# A query that has not ended this long after its own limit hangs in an operation that the engine
# cannot interrupt; its process is ended.
GRACE_S: Final = 0.25
WATCH_S: Final = 0.05
_T = TypeVar("_T")


class Interrupter:
    """One thread that calls `interrupt` of the connections whose deadline has passed."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._watched: dict[int, tuple[float, Any, threading.Event]] = {}
        self._wakes_at = float("inf")
        self._process_id: int | None = None

    def watch(self, connection: Any, deadline: float) -> threading.Event:
        """Interrupt `connection` at `deadline`; the event tells afterwards whether it was."""
        late = threading.Event()
        with self._changed:
            # A forked child has no such thread.
            if self._process_id != os.getpid():
                self._process_id = os.getpid()
                self._watched.clear()
                threading.Thread(
                    target=self._run, daemon=True, name="sense_trl-interrupter"
                ).start()
            self._watched[id(connection)] = (deadline, connection, late)
            if deadline < self._wakes_at:
                self._changed.notify()
        return late

    def unwatch(self, connection: Any) -> None:
        """Leave `connection` alone from now on."""
        with self._changed:
            self._watched.pop(id(connection), None)

    def _run(self) -> None:
        with self._changed:
            while True:
                now = time.perf_counter()
                for deadline, connection, late in list(self._watched.values()):
                    if deadline <= now:
                        late.set()
                        # Again and again until `unwatch`: an interrupt can fall between the
                        # phases of a query, which then goes on.
                        connection.interrupt()
                    # A waiting thread must not keep it from being closed and freed.
                    del connection
                self._wakes_at = min(
                    (max(deadline, now + 0.02) for deadline, _, _ in self._watched.values()),
                    default=float("inf"),
                )
                wait_s = self._wakes_at - now
                self._changed.wait(None if wait_s == float("inf") else wait_s)


class QueryWatch:
    """Ends this process when a query outlives its limit in an operation that nothing interrupts.

    The database library runs without Python's lock, so a thread looks at the clock while a query
    hangs.
    """

    def __init__(self) -> None:
        self._deadline: float | None = None
        threading.Thread(target=self._run, daemon=True).start()

    def query_starts(self, timeout_s: float) -> None:
        """Begin to watch."""
        self._deadline = time.perf_counter() + timeout_s + GRACE_S

    def query_ends(self) -> None:
        """Watch no longer."""
        self._deadline = None

    def end_process(self, is_over: Callable[[], bool]) -> None:
        """Called when a query hangs, unless `is_over` says that it has ended meanwhile."""
        if not is_over():
            os._exit(3)

    def look(self) -> None:
        """Called 20 times a second."""

    def _is_over(self, deadline: float) -> bool:
        return self._deadline != deadline

    def _run(self) -> None:
        while True:
            time.sleep(WATCH_S)
            deadline = self._deadline
            if deadline is not None and time.perf_counter() > deadline:
                self.end_process(partial(self._is_over, deadline))
            self.look()


class WatchedEngine(ForwardingEngine):
    """An engine whose queries a watch knows about."""

    def __init__(self, engine: SQLEngine, watch: QueryWatch) -> None:
        self._watch = watch
        super().__init__(engine)
        self.execute = self._forward(engine.execute)

    def _forward(self, execute: Callable[..., _T]) -> Callable[..., _T]:
        watch = self._watch

        def run(sql: str, *, limits: ExecutionLimits | None = None, **settings: bool) -> _T:
            limits = self.limits if limits is None else limits
            watch.query_starts(limits.timeout_s)
            try:
                return execute(sql, limits=limits, **settings)
            finally:
                watch.query_ends()

        return run
