"""Worker processes that verify predictions on instances, one gold query at a time: `SuitePool`."""

from __future__ import annotations

import os
import queue
import shutil
import tempfile
import threading
from collections import Counter, deque
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final, TypeAlias

from sense_trl.database.engine import ExecutionLimits
from sense_trl.database.process import WorkerGoneError, WorkerLateError, WorkerSupervisor
from sense_trl.verification.comparison import Reason
from sense_trl.verification.suite.instances import SuiteChoice, SuiteSettings
from sense_trl.verification.suite.worker import (
    Answer,
    Done,
    Settings,
    SuiteFinding,
    SuiteTask,
    SuiteTaskRunner,
    Task,
    pack_choice,
    unpack_choice,
)

Outcome: TypeAlias = tuple[int, tuple[int, SuiteFinding] | SuiteChoice | None]
"""Number of a task with the position and finding of one of its predictions, or at its end with the
choice of its instances (`None` if it was given up)."""

# A worker sends something after every prediction. The longest pause is the choice of instances
# before the first: a tenth of a second on small databases.
_SILENCE_S: Final = 120.0
# Deaths that one task may cause before its unfinished predictions are given up.
_MAX_DEATHS: Final = 3
_DIED: Final = SuiteFinding(None, Reason.WORKER_DIED, 0, 0)
_MEMORY_FOLDER: Final = Path("/dev/shm")


class SuitePool:
    """Runs tasks in worker processes, or in the calling thread if there are none.

    Workers start with the first task and stay until `close`. A prediction that ends its worker, or
    is silent for two minutes, is given up; the others of its task are run again.

    Args:
        settings: how many instances.
        limits: limits of each query.
        num_workers: processes; 0 for the calling thread.
    """

    def __init__(self, settings: SuiteSettings, limits: ExecutionLimits, num_workers: int) -> None:
        # Files in memory, where the system offers that: they live for milliseconds.
        parent = _MEMORY_FOLDER if os.access(_MEMORY_FOLDER, os.W_OK) else None
        self._folder = Path(tempfile.mkdtemp(prefix="sense-trl-suite-", dir=parent))
        self._settings = settings
        self._limits = limits
        self._workers: list[WorkerSupervisor[Answer]] = [
            WorkerSupervisor(
                "sense_trl.verification.suite.worker:serve",
                Settings(str(self._folder), settings, limits),
                Answer,
            )
            for _ in range(num_workers)
        ]
        self._runner: SuiteTaskRunner | None = None
        self._creator = os.getpid()

    @property
    def belongs_here(self) -> bool:
        """Whether this process made the pool."""
        return self._creator == os.getpid()

    def close(self) -> None:
        """Stop the workers and delete the files of instances; closing twice is allowed."""
        if not self.belongs_here:
            return
        for worker in self._workers:
            worker.kill()
        shutil.rmtree(self._folder, ignore_errors=True)

    def run(self, tasks: Sequence[SuiteTask]) -> Iterator[Outcome]:
        """Run all tasks; outcomes come as they are had, one per prediction and task.

        Raises:
            DatabaseError: a database cannot be read.
            ExecutionBackendError: workers cannot be started.
        """
        if not self._workers:
            yield from self._run_here(tasks)
            return
        waiting = deque(enumerate(tasks))
        outcomes: queue.SimpleQueue[Outcome | BaseException] = queue.SimpleQueue()
        stopped = threading.Event()
        threads = [
            threading.Thread(
                target=self._serve, args=(worker, waiting, outcomes, stopped), daemon=True
            )
            for worker in self._workers[: len(tasks)]
        ]
        for thread in threads:
            thread.start()
        num_open = sum(len(task.predictions) + 1 for task in tasks)
        try:
            while num_open:
                outcome = outcomes.get()
                if isinstance(outcome, BaseException):
                    raise outcome
                num_open -= 1
                yield outcome
        finally:
            stopped.set()
            if num_open:
                for worker in self._workers:
                    worker.stop()
            for thread in threads:
                thread.join()

    def _run_here(self, tasks: Sequence[SuiteTask]) -> Iterator[Outcome]:
        if self._runner is None:
            self._runner = SuiteTaskRunner(self._folder, self._settings, self._limits)
        for number, task in enumerate(tasks):
            found: list[tuple[int, SuiteFinding]] = []
            choice = self._runner.run(task, lambda *finding, found=found: found.append(finding))
            for finding in found:
                yield number, finding
            yield number, choice

    # ------------------------------------------------------------------ the threads of a call

    def _serve(
        self,
        worker: WorkerSupervisor[Answer],
        waiting: deque[tuple[int, SuiteTask]],
        outcomes: queue.SimpleQueue[Outcome | BaseException],
        stopped: threading.Event,
    ) -> None:
        while not stopped.is_set():
            try:
                number, task = waiting.popleft()
            except IndexError:
                return
            try:
                for outcome in self._run_task(worker, task, stopped):
                    outcomes.put((number, outcome))
            except BaseException as error:
                outcomes.put(error)
                return

    def _run_task(
        self, worker: WorkerSupervisor[Answer], task: SuiteTask, stopped: threading.Event
    ) -> Iterator[tuple[int, SuiteFinding] | SuiteChoice | None]:
        left = list(range(len(task.predictions)))
        deaths: Counter[int] = Counter()
        choice: SuiteChoice | None = None
        while left:
            asked = list(left)
            message = Task(
                task.path,
                task.gold_sql,
                tuple(task.predictions[position] for position in asked),
                task.foreign_keys,
                None if task.choice is None else pack_choice(task.choice),
            )
            try:
                worker.send(message)
                while not isinstance(answer := worker.receive(_SILENCE_S), Done):
                    left.remove(asked[answer.position])
                    yield asked[answer.position], answer.finding
                choice = unpack_choice(answer.choice)
            except (WorkerGoneError, WorkerLateError):
                worker.kill()
                if stopped.is_set():
                    return
                # Predictions run in their order: this one was at work, or is the next.
                guilty = left[0]
                deaths[guilty] += 1
                given_up = [guilty] if deaths[guilty] > 1 else []
                if deaths.total() >= _MAX_DEATHS:
                    given_up = list(left)
                for position in given_up:
                    left.remove(position)
                    yield position, _DIED
        yield choice
