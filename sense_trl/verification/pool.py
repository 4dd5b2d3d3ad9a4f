"""Worker processes that verify chunks of predictions: `VerificationPool`."""

from __future__ import annotations

import os
import threading
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, TypeAlias

from sense_trl.database.engine import (
    ExecutionLimits,
    LimitKind,
    QueryStatus,
    describe_exceeded,
)
from sense_trl.database.process import WorkerGoneError, WorkerLateError, WorkerSupervisor
from sense_trl.errors import ExecutionBackendError
from sense_trl.verification.comparison import Reason, Semantics
from sense_trl.verification.gold_cache import CacheReport
from sense_trl.verification.judging import Verification
from sense_trl.verification.worker import (
    Answer,
    CacheProblem,
    Chunk,
    Hung,
    Item,
    Outcomes,
    Settings,
)

# Pairs per message: enough to make the pipe's cost vanish, few enough to share the work.
_MIN_CHUNK: Final = 32
_MAX_CHUNK: Final = 200
_CHUNKS_PER_WORKER: Final = 4
# A worker says every second that it lives. One that is silent for so long has stopped for a
# reason that is not a query's (it is suspended, or a comparison hangs in one call).
_SILENCE_S: Final = 30.0
# A single item that ends this many workers is guilty.
_MAX_DEATHS: Final = 2
_MAX_OWNERS: Final = 500_000

Outcome: TypeAlias = Outcomes | BaseException


class Job:
    """One call: its outcomes arrive through `emit`, from the threads of the pool."""

    def __init__(self, num_items: int, emit: Callable[[Outcome], None]) -> None:
        self._emit = emit
        self._lock = threading.Lock()
        self._num_open = num_items
        self.cancelled = False

    def deliver(self, outcome: Outcome) -> None:
        """Hand on finished items, or the error that ends the job."""
        with self._lock:
            # After the last item nobody listens any more, not even to an error.
            if self.cancelled or not self._num_open:
                return
            if isinstance(outcome, BaseException):
                self.cancelled = True
            else:
                self._num_open -= len(outcome)
            try:
                self._emit(outcome)
            except RuntimeError:
                # The event loop that waited for it is closed: nobody wants the rest.
                self.cancelled = True


@dataclass(slots=True, eq=False)
class _Chunk:
    """Pairs of one database, grouped by gold."""

    job: Job
    path: str
    groups: list[tuple[str, list[Item]]]
    deaths: int = 0

    @property
    def num_items(self) -> int:
        return sum(len(items) for _, items in self.groups)

    def without(self, finished: set[int]) -> _Chunk:
        groups = [
            (gold, [item for item in items if item[0] not in finished])
            for gold, items in self.groups
        ]
        return _Chunk(self.job, self.path, [group for group in groups if group[1]])

    def halves(self) -> tuple[_Chunk, _Chunk]:
        flat = [(gold, item) for gold, items in self.groups for item in items]
        middle = len(flat) // 2
        first, second = (_group(part) for part in (flat[:middle], flat[middle:]))
        return _Chunk(self.job, self.path, first), _Chunk(self.job, self.path, second)


def _group(pairs: Sequence[tuple[str, Item]]) -> list[tuple[str, list[Item]]]:
    groups: list[tuple[str, list[Item]]] = []
    for gold, item in pairs:
        if not groups or groups[-1][0] != gold:
            groups.append((gold, []))
        groups[-1][1].append(item)
    return groups


class VerificationPool:
    """Worker processes, each with a thread that feeds it one chunk at a time.

    Workers start when there is work for them and stay. Only one chunk per worker is on its way
    (what waits are references to the caller's own texts), a worker prefers chunks whose gold it
    has already examined, and an idle one takes chunks from the longest queue.

    A worker that dies loses nothing: the unfinished part of its chunk is verified again in two
    halves, down to the single item, which is `WORKER_DIED` if it ends a worker twice. A query
    that hangs is ended by its worker together with the worker and is a time-out.

    All methods may be called from any thread.

    Args:
        limits: of each query.
        num_workers: processes, >= 1.
        cache_folder: where gold results are kept on disk, or `None`.
        cache_report: what is told where they cannot be; one of its own by default.
    """

    def __init__(
        self,
        limits: ExecutionLimits,
        num_workers: int,
        cache_folder: Path | None,
        cache_report: CacheReport | None = None,
    ) -> None:
        self._report_cache = CacheReport() if cache_report is None else cache_report
        settings = Settings(limits, None if cache_folder is None else str(cache_folder))
        self._limits = limits
        self._changed = threading.Condition()
        self._queues: list[deque[_Chunk]] = [deque() for _ in range(num_workers)]
        self._threads: list[threading.Thread | None] = [None] * num_workers
        self._workers: list[WorkerSupervisor[Answer]] = [
            WorkerSupervisor("sense_trl.verification.worker:serve", settings, Answer)
            for _ in range(num_workers)
        ]
        self._current: list[Job | None] = [None] * num_workers
        self._owners: dict[tuple[str, str], int] = {}
        self._num_replaced = 0
        self._closed = False
        self._creator = os.getpid()

    @property
    def num_replaced(self) -> int:
        """Workers that died or had to be killed because of a query."""
        return self._num_replaced

    @property
    def process_ids(self) -> tuple[int, ...]:
        """Ids of the running worker processes."""
        found = (worker.process_id for worker in self._workers)
        return tuple(process_id for process_id in found if process_id is not None)

    @property
    def belongs_here(self) -> bool:
        """Whether this process made the pool; a forked child has no threads to serve it."""
        return self._creator == os.getpid()

    def submit(
        self,
        items: Sequence[tuple[str, str, str | None, Semantics]],
        emit: Callable[[Outcome], None],
    ) -> Job:
        """Queue items; their outcomes are emitted under their positions, each exactly once.

        Args:
            items: path of the database, gold, prediction (`None` for gold itself) and semantics,
                sorted so that equal databases, gold and predictions are neighbours.
            emit: called from a thread of the pool with lists of (position, verification), or once
                with the error that ended the job.
        """
        job = Job(len(items), emit)
        num_workers = len(self._queues)
        size = -(-len(items) // (_CHUNKS_PER_WORKER * num_workers))
        size = min(max(size, _MIN_CHUNK), _MAX_CHUNK)
        chunks = []
        start = 0
        while start < len(items):
            path = items[start][0]
            end = start
            while end < len(items) and end - start < size and items[end][0] == path:
                end += 1
            part = [(items[i][1], (i, *items[i][2:])) for i in range(start, end)]
            chunks.append(_Chunk(job, path, _group(part)))
            start = end
        with self._changed:
            if len(self._owners) > _MAX_OWNERS:
                self._owners.clear()
            loads = [sum(chunk.num_items for chunk in queue) for queue in self._queues]
            for chunk in chunks:
                owner = self._owners.get((chunk.path, chunk.groups[0][0]))
                worker = loads.index(min(loads)) if owner is None else owner
                loads[worker] += chunk.num_items
                self._queues[worker].append(chunk)
            num_queued = sum(map(len, self._queues))
            idle = sum(
                thread is not None and self._current[worker] is None
                for worker, thread in enumerate(self._threads)
            )
            for worker, thread in enumerate(self._threads):
                if thread is None and num_queued > idle:
                    idle += 1
                    self._threads[worker] = threading.Thread(
                        target=self._run, args=(worker,), name=f"verify-{worker}", daemon=True
                    )
                    self._threads[worker].start()  # type: ignore[union-attr]
            self._changed.notify_all()
        return job

    def cancel(self, job: Job) -> None:
        """Drop what the job has queued and stop what of it runs."""
        with self._changed:
            job.cancelled = True
            for number, queue in enumerate(self._queues):
                self._queues[number] = deque(c for c in queue if c.job is not job)
            for worker, current in zip(self._workers, self._current, strict=True):
                if current is job:
                    worker.stop()

    def close(self) -> None:
        """Stop all workers; closing twice is allowed."""
        if not self.belongs_here:
            return
        with self._changed:
            self._closed = True
            waiting = {id(c.job): c.job for queue in self._queues for c in queue}
            waiting |= {id(job): job for job in self._current if job is not None}
            for queue in self._queues:
                queue.clear()
            for worker in self._workers:
                worker.stop()
            self._changed.notify_all()
        for job in waiting.values():
            job.deliver(ExecutionBackendError("the verifier was closed while it worked"))
        for thread in self._threads:
            if thread is not None and thread is not threading.current_thread():
                thread.join(timeout=10)

    # ------------------------------------------------------------------ the threads

    def _run(self, worker: int) -> None:
        while True:
            chunk = self._take(worker)
            if chunk is None:
                break
            try:
                self._verify(worker, chunk)
            except BaseException as error:
                self._workers[worker].kill()
                chunk.job.deliver(error)
                self.cancel(chunk.job)
        self._workers[worker].kill()

    def _take(self, worker: int) -> _Chunk | None:
        with self._changed:
            self._current[worker] = None
            while not self._closed:
                queue = self._queues[worker]
                if not queue:
                    queue = max(self._queues, key=len)
                if queue:
                    chunk = queue.popleft()
                    self._current[worker] = chunk.job
                    for gold, _ in chunk.groups:
                        self._owners[chunk.path, gold] = worker
                    return chunk
                self._changed.wait()
            return None

    def _requeue(self, worker: int, chunks: Sequence[_Chunk]) -> None:
        with self._changed:
            self._queues[worker].extendleft(
                chunk for chunk in reversed(chunks) if not chunk.job.cancelled
            )
            self._changed.notify_all()

    def _verify(self, worker: int, chunk: _Chunk) -> None:
        finished: set[int] = set()
        supervisor = self._workers[worker]
        try:
            supervisor.start()
            if self._closed:
                raise WorkerGoneError
            supervisor.send(Chunk(chunk.path, chunk.groups))
            while True:
                answer = supervisor.receive(_SILENCE_S)
                if isinstance(answer, CacheProblem):
                    self._report_cache(answer.problem)
                    continue
                finished.update(index for index, _ in answer.finished)
                if answer.finished:
                    chunk.job.deliver(answer.finished)
                if isinstance(answer, Hung):
                    supervisor.kill()
                    self._num_replaced += 1
                    hung = self._time_out(chunk, answer.index, answer.in_gold, finished)
                    finished.update(index for index, _ in hung)
                    chunk.job.deliver(hung)
                    self._requeue(worker, _present(chunk.without(finished)))
                    return
                if answer.then == "done":
                    return
                if answer.then == "restart":
                    supervisor.kill()
                    self._requeue(worker, [chunk.without(finished)])
                    return
        except (WorkerGoneError, WorkerLateError):
            supervisor.kill()
            if self._closed or chunk.job.cancelled:
                return
            self._num_replaced += 1
            rest = chunk.without(finished)
            if rest.num_items > 1:
                self._requeue(worker, rest.halves())
            elif rest.num_items == 1:
                rest.deaths = chunk.deaths + (chunk.num_items == 1)
                if rest.deaths < _MAX_DEATHS:
                    self._requeue(worker, [rest])
                else:
                    chunk.job.deliver([(rest.groups[0][1][0][0], _DIED)])

    def _time_out(
        self, chunk: _Chunk, index: int, in_gold: bool, finished: set[int]
    ) -> list[tuple[int, Verification]]:
        timeout, message = describe_exceeded(LimitKind.WALL_CLOCK, self._limits)
        predicted_status: QueryStatus | None
        if not in_gold:
            reason = Reason.PREDICTION_TIMEOUT
            predicted_status, gold_status = timeout, QueryStatus.OK
            timed_out = [index]
        else:
            # Gold would hang again for every prediction it is to judge.
            reason = Reason.GOLD_TIMEOUT
            predicted_status, gold_status = None, timeout
            timed_out = [
                number
                for _, items in chunk.groups
                if any(item[0] == index for item in items)
                for number, *_ in items
                if number not in finished
            ]
        verification = Verification(
            reason.verdict,
            reason,
            predicted_status,
            gold_status,
            message,
            self._limits.timeout_s,
        )
        return [(number, verification) for number in timed_out]


def _present(chunk: _Chunk) -> list[_Chunk]:
    return [chunk] if chunk.groups else []


_DIED: Final = Verification(
    Reason.WORKER_DIED.verdict,
    Reason.WORKER_DIED,
    None,
    None,
    f"ended its worker process {_MAX_DEATHS} times",
    0.0,
)
