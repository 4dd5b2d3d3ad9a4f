"""The verification worker: runs and compares whole chunks of predictions.

Only texts and verdicts cross the pipe; results stay where they were read.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final, Literal, TypeAlias

from sense_trl.database.engine import OUT_OF_MEMORY, ExecutionLimits
from sense_trl.database.messages import Failed, Message
from sense_trl.database.process import read_settings, serve_messages
from sense_trl.database.watch import QueryWatch, WatchedEngine
from sense_trl.database.worker import EngineCache, limit_worker_memory
from sense_trl.errors import DatabaseError
from sense_trl.verification.comparison import Semantics
from sense_trl.verification.gold_cache import GoldCache
from sense_trl.verification.judging import (
    GoldExamination,
    Verification,
    verify_against,
    verify_gold_itself,
)
from sense_trl.verification.sharing import SharingEngine

# Results are sent when this much time has passed since the last ones, and at the end of a chunk.
_FLUSH_S: Final = 0.1
_ALIVE_S: Final = 1.0


Item: TypeAlias = tuple[int, str | None, Semantics]
"""The item's number, the prediction (`None` verifies gold itself) and how to compare."""
Outcomes: TypeAlias = list[tuple[int, Verification]]


class Settings(Message, frozen=True):
    """What a worker is started with."""

    limits: ExecutionLimits
    cache_folder: str | None


class Chunk(Message, frozen=True):
    """Items of one database, grouped by gold; answered by `Results` until they are the last."""

    path: str
    groups: list[tuple[str, list[Item]]]


class Results(Message, frozen=True):
    """Items that are finished, and what comes next."""

    finished: Outcomes
    then: Literal["more", "done", "restart"]


class Hung(Message, frozen=True):
    """Items that are finished, and the one that hangs, in its gold or in its prediction."""

    finished: Outcomes
    index: int
    in_gold: bool


class CacheProblem(Message, frozen=True):
    """Why gold cannot be kept on disk."""

    problem: str


Answer: TypeAlias = Results | Hung | CacheProblem


class _Watch(QueryWatch):
    """Sends what is finished, and says every second that this process lives.

    When a query hangs it first delivers what is finished and names the item that hangs.
    """

    def __init__(self, send: Callable[[object], None]) -> None:
        self._send = send
        self._lock = threading.Lock()
        self._finished: Outcomes = []
        self._flushed_at = 0.0
        self._busy = False
        # The item in work, and whether gold or the prediction runs.
        self.index = -1
        self.in_gold = False
        super().__init__()

    def begin(self) -> None:
        with self._lock:
            self._busy = True
            self._flushed_at = time.perf_counter()

    def finish(self, index: int, verification: Verification) -> None:
        self._finished.append((index, verification))
        if time.perf_counter() - self._flushed_at > _FLUSH_S:
            self._flush("more")

    def report_cache(self, problem: str) -> None:
        """Say that gold cannot be kept on disk."""
        with self._lock:
            self._send(CacheProblem(problem))

    def end(self) -> None:
        self._flush("done")

    def restart(self) -> None:
        """Deliver what is finished and end the process; the rest goes to a new one."""
        with self._lock:
            self._send(Results(self._finished, "restart"))
            os._exit(0)

    def fail(self, message: str) -> None:
        with self._lock:
            self._busy = False
            self._finished.clear()
            self._send(Failed(message))

    def _flush(self, then: Literal["more", "done"]) -> None:
        with self._lock:
            finished, self._finished = self._finished, []
            self._flushed_at = time.perf_counter()
            self._busy = then != "done"
            self._send(Results(finished, then))

    def end_process(self, is_over: Callable[[], bool]) -> None:
        with self._lock:
            # Asked under the lock: the query may have ended meanwhile.
            if not is_over():
                self._send(Hung(self._finished, self.index, self.in_gold))
                os._exit(3)

    def look(self) -> None:
        now = time.perf_counter()
        with self._lock:
            if self._busy and now - self._flushed_at > _ALIVE_S:
                self._flushed_at = now
                finished, self._finished = self._finished, []
                self._send(Results(finished, "more"))


def serve() -> None:
    """Verify chunks from standard input until it ends (the main function of the worker)."""
    settings = read_settings(Settings)
    limits, folder = settings.limits, settings.cache_folder
    limit_worker_memory(limits.memory_limit_bytes)
    engines = EngineCache()
    cache = GoldCache("strict", limits, folder=None if folder is None else Path(folder))
    watch: _Watch | None = None
    is_fresh = True
    is_reported = False

    def answer(chunk: Chunk, send: Callable[[object], None]) -> None:
        nonlocal watch, is_fresh, is_reported
        if watch is None:
            watch = _Watch(send)
        watch.begin()
        cache.forget_timeouts()
        try:
            watched: Any = WatchedEngine(engines.get(chunk.path), watch)
            for gold_sql, items in chunk.groups:
                several = any(item[2] != items[0][2] for item in items)
                engine: Any = SharingEngine(watched) if several else watched
                golds: dict[Semantics, GoldExamination] = {}
                for index, predicted_sql, semantics in items:
                    watch.index = index
                    gold = golds.get(semantics)
                    if gold is None:
                        watch.in_gold = True
                        gold = golds[semantics] = cache.get(engine, gold_sql, semantics)
                        watch.in_gold = False
                        if cache.write_problem and not is_reported:
                            is_reported = True
                            watch.report_cache(cache.write_problem)
                    if predicted_sql is None:
                        verification = verify_gold_itself(gold)
                    else:
                        verification = verify_against(
                            predicted_sql, gold, engine, semantics, limits
                        )
                    if verification.error == OUT_OF_MEMORY and not is_fresh:
                        # Allocators keep what earlier queries needed. A new process decides, so
                        # that the verdict depends on this item alone.
                        watch.restart()
                    is_fresh = False
                    watch.finish(index, verification)
        except DatabaseError as error:
            watch.fail(str(error))
        except MemoryError:
            # Comparing took more than there is. Alone in a new process it may fit; if not, the
            # parent learns from the death of this one that it does not.
            if is_fresh:
                os._exit(4)
            watch.restart()
        else:
            watch.end()

    serve_messages(Chunk, answer)
