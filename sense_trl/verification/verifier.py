"""Verifying many predictions at once: `SQLVerifier`."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import os
import queue
import threading
import weakref
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple

from sense_trl._closing import Closing
from sense_trl.database.catalog import DatabaseCatalog
from sense_trl.database.engine import ExecutionLimits
from sense_trl.database.process import workers_are_supported
from sense_trl.errors import InputError
from sense_trl.verification.comparison import Reason, Semantics, Verdict
from sense_trl.verification.gold_cache import CacheReport, GoldCache, prune_cache
from sense_trl.verification.judging import (
    Verification,
    VerificationRequest,
    check_semantics,
    verify_against,
    verify_gold_itself,
    verify_sql,
)
from sense_trl.verification.pool import Outcome, VerificationPool
from sense_trl.verification.sharing import SharingEngine

__all__ = [
    "Reason",
    "SQLVerifier",
    "Verdict",
    "Verification",
    "VerificationRequest",
    "verify_sql",
]

_MAX_DEFAULT_WORKERS: Final = 2


class SQLVerifier(Closing):
    """Verifies many predictions in worker processes, doing no work twice.

    Gold is examined once per database and text, equal requests are verified once. Verdicts do not
    depend on the number of workers, the order of the requests or what was verified before; what
    depends on the machine (seconds, memory) gives `UNDETERMINED` and nothing else.

    With workers, queries run and results are compared in processes of their own, which are
    replaced when they die: no query outlives `timeout_s` by more than half a second, and
    `memory_limit_bytes` holds. With `num_workers=0` everything runs in the calling thread, and
    what `SQLiteEngine` says about operations that cannot be interrupted and about memory applies.

    What the workers do not protect from: a bug in the database library that lets a query run code
    runs it with the rights of this user. They are processes, not containers; run the whole
    program in a container or under another user where the SQL may be written to attack you.

    Methods may be called from several threads at once. Processes start with the first call and
    end with `close`, with the verifier, or when this process is gone. A pickled copy, e.g. in
    `Dataset.map(num_proc=2)`, has processes of its own.

    Args:
        catalog: where the databases are.
        semantics: "strict", "spider" or "bird", see `results_match`; of the requests that name
            none.
        limits: limits of each query; the catalog's by default.
        num_workers: worker processes; `None` is one per CPU and at most 2, and 0 on systems other
            than POSIX, where there are no workers.
        cache_dir: folder for what is known about gold, shared between runs and processes (see
            `GoldCache`); `None` keeps it in memory only. Where it cannot be written a warning is
            logged, once, and verdicts are the same.
        max_cache_bytes: `close` deletes the oldest files of `cache_dir` beyond this size.

    Attributes:
        cache_report: what is told where `cache_dir` cannot be written.

    Raises:
        InputError: `semantics` is unknown, `num_workers` is negative, or workers are asked for
            where there are none.

    Example:
        >>> import sqlite3, tempfile, pathlib
        >>> folder = pathlib.Path(tempfile.mkdtemp())
        >>> connection = sqlite3.connect(folder / "pets.sqlite")
        >>> _ = connection.execute("CREATE TABLE pet AS SELECT 'Rex' AS name, 3 AS age")
        >>> connection.close()
        >>> gold = "SELECT name FROM pet"
        >>> predictions = ["SELECT name FROM pet WHERE age > 2", "SELECT age FROM pet"]
        >>> with DatabaseCatalog.from_path(folder) as catalog, SQLVerifier(catalog) as verifier:
        ...     requests = [VerificationRequest("pets", sql, gold) for sql in predictions]
        ...     [str(verification.verdict) for verification in verifier.verify(requests)]
        ['correct', 'wrong']
    """

    def __init__(
        self,
        catalog: DatabaseCatalog,
        *,
        semantics: Semantics = "strict",
        limits: ExecutionLimits | None = None,
        num_workers: int | None = None,
        cache_dir: str | os.PathLike[str] | None = None,
        max_cache_bytes: int = 2**30,
    ) -> None:
        check_semantics(semantics)
        if num_workers is None:
            cpus = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 2
            num_workers = min(cpus, _MAX_DEFAULT_WORKERS) if workers_are_supported() else 0
        if not isinstance(num_workers, int) or isinstance(num_workers, bool) or num_workers < 0:
            raise InputError(
                f"`num_workers` is {num_workers!r}; expected an integer >= 0 (0: in the calling "
                "thread)."
            )
        if num_workers and not workers_are_supported():
            raise InputError(
                f"`num_workers` is {num_workers}, but this system has no worker processes; use 0"
            )
        if max_cache_bytes < 0:
            raise InputError(f"`max_cache_bytes` is {max_cache_bytes!r}; expected 0 or more.")
        self._catalog = catalog
        self._semantics: Semantics = semantics
        self._limits = catalog.limits if limits is None else limits
        self._num_workers = num_workers
        self._cache_folder = None if cache_dir is None else Path(cache_dir).absolute()
        self._max_cache_bytes = max_cache_bytes
        self._cache = GoldCache(semantics, self._limits, folder=self._cache_folder)
        self._lock = threading.Lock()
        self.cache_report: Final = CacheReport()
        self._pool: VerificationPool | None = None
        self._finalizer: weakref.finalize[..., SQLVerifier] | None = None

    @property
    def catalog(self) -> DatabaseCatalog:
        """The databases that predictions are executed on."""
        return self._catalog

    @property
    def limits(self) -> ExecutionLimits:
        """The limits of each query."""
        return self._limits

    @property
    def num_workers(self) -> int:
        """Worker processes that are used; 0 if everything runs in the calling thread."""
        return self._num_workers

    @property
    def num_replaced_workers(self) -> int:
        """Workers that died or were killed because of a query since the last `close`."""
        return 0 if self._pool is None else self._pool.num_replaced

    @property
    def worker_process_ids(self) -> tuple[int, ...]:
        """Ids of the worker processes that run now."""
        return () if self._pool is None else self._pool.process_ids

    def close(self) -> None:
        """End the workers and forget cached gold; the next call would start them again.

        The catalog stays open: it is the caller's.
        """
        if self._finalizer is not None:
            self._finalizer()
        self._pool = None
        self._cache.clear()
        if self._cache_folder is not None:
            # What cannot be pruned is no reason to lose what was verified.
            with contextlib.suppress(OSError):
                prune_cache(self._cache_folder, self._max_cache_bytes)

    def verify(
        self,
        requests: Iterable[VerificationRequest],
        *,
        on_progress: Callable[[int], None] | None = None,
    ) -> list[Verification]:
        """Verify all requests.

        Args:
            requests: in any order; equal ones are verified once, and a prediction that is to be
                judged under several semantics is run once.
            on_progress: called in this thread with the number of requests verified since the last
                call. An exception from it, or Ctrl-C, ends the call and leaves the verifier
                usable.

        Returns:
            One verification per request, in the order of the requests.

        Raises:
            InputError: a `db_id` or `semantics` is unknown; raised before anything runs.
            DatabaseError: a database cannot be read.
            ExecutionBackendError: workers cannot be started.
        """
        return self._verify(self._plan(requests), on_progress)

    def _verify(
        self, plan: _Plan, on_progress: Callable[[int], None] | None = None
    ) -> list[Verification]:
        if not plan.distinct:
            return []
        if self._num_workers == 0:
            self._cache.forget_timeouts()
            for number, verification in enumerate(self._verify_here(plan.distinct)):
                count = plan.store([(number, verification)])
                if on_progress is not None:
                    on_progress(count)
            return plan.results()
        outcomes: queue.SimpleQueue[Outcome] = queue.SimpleQueue()
        pool = self._get_pool()
        job = pool.submit(plan.items(self._catalog), outcomes.put)
        try:
            while plan.num_open:
                outcome = outcomes.get()
                if isinstance(outcome, BaseException):
                    raise outcome
                count = plan.store(outcome)
                if on_progress is not None:
                    on_progress(count)
        except BaseException:
            pool.cancel(job)
            raise
        return plan.results()

    async def averify(self, requests: Iterable[VerificationRequest]) -> list[Verification]:
        """Verify all requests without blocking the event loop; see `verify`.

        Cancelling the task stops the work. With `num_workers=0` a thread of the loop's default
        executor runs the queries, and cancelling only stops the waiting.
        """
        plan = self._plan(requests)
        if not plan.distinct:
            return []
        if self._num_workers == 0:
            return await asyncio.to_thread(self._verify, plan)
        loop = asyncio.get_running_loop()
        done: asyncio.Future[None] = loop.create_future()

        def receive(outcome: Outcome) -> None:
            if done.done():
                return
            if isinstance(outcome, BaseException):
                done.set_exception(outcome)
                return
            plan.store(outcome)
            if not plan.num_open:
                done.set_result(None)

        pool = self._get_pool()

        def emit(outcome: Outcome) -> None:
            loop.call_soon_threadsafe(receive, outcome)

        job = pool.submit(plan.items(self._catalog), emit)
        try:
            await done
        except BaseException:
            pool.cancel(job)
            raise
        return plan.results()

    def verify_gold(self, db_id: str, gold_sql: str) -> Verification:
        """Verify gold against itself.

        Correct if it runs, has one answer and that answer has rows; otherwise undetermined with
        the reason (`GOLD_EMPTY` where everything else is well).

        Raises:
            InputError: `db_id` is unknown.
            DatabaseError: the database cannot be read.
        """
        return self.verify_all_gold([(db_id, gold_sql)])[0]

    def verify_all_gold(self, queries: Iterable[tuple[str, str]]) -> list[Verification]:
        """Verify each gold query, a `db_id` and a text, against itself; see `verify_gold`.

        Returns:
            One verification per query, in their order.

        Raises:
            InputError: a `db_id` is unknown; raised before anything runs.
            DatabaseError: a database cannot be read.
            ExecutionBackendError: workers cannot be started.
        """
        items = [_Item(db_id, gold_sql, None, self._semantics) for db_id, gold_sql in queries]
        return self._verify(_Plan(items, self._catalog))

    def _plan(self, requests: Iterable[VerificationRequest]) -> _Plan:
        items = [
            _Item(r.db_id, r.gold_sql, r.predicted_sql, r.semantics or self._semantics)
            for r in requests
        ]
        return _Plan(items, self._catalog)

    def _verify_here(self, items: Sequence[_Item]) -> Iterator[Verification]:
        of_one_gold = itertools.groupby(items, key=lambda item: (item.db_id, item.gold_sql))
        for (db_id, gold_sql), group in of_one_gold:
            engine: Any = SharingEngine(self._catalog.in_process_engine(db_id))
            for item in group:
                gold = self._cache.get(engine, gold_sql, item.semantics)
                if self._cache.write_problem:
                    self.cache_report(self._cache.write_problem)
                if item.predicted_sql is None:
                    yield verify_gold_itself(gold)
                else:
                    yield verify_against(
                        item.predicted_sql, gold, engine, item.semantics, self._limits
                    )

    def _get_pool(self) -> VerificationPool:
        with self._lock:
            pool = self._pool
            if pool is None or not pool.belongs_here:
                pool = VerificationPool(
                    self._limits, self._num_workers, self._cache_folder, self.cache_report
                )
                if self._finalizer is not None:
                    # A fork's copy of the parent's pool: not ours to close.
                    self._finalizer.detach()
                self._pool = pool
                self._finalizer = weakref.finalize(self, pool.close)
            return pool


class _Item(NamedTuple):
    """A prediction to verify, or gold itself where that is `None`."""

    db_id: str
    gold_sql: str
    predicted_sql: str | None
    semantics: Semantics


class _Plan:
    """The distinct items of a call, and the verdict on each so far."""

    def __init__(self, items: Sequence[_Item], catalog: DatabaseCatalog) -> None:
        self._asked = items
        repeats = Counter(items)
        for db_id in sorted({item.db_id for item in repeats}):
            catalog.path(db_id)
        for named in {item.semantics for item in repeats}:
            check_semantics(named)
        # One database and one gold query after the other: caches of pages and results stay warm.
        # Of one prediction the comparisons follow each other: its result is there.
        self.distinct = sorted(repeats, key=lambda item: (*item[:2], item[2] or "", item[3]))
        self._repeats = repeats
        self._verified: dict[_Item, Verification] = {}

    @property
    def num_open(self) -> int:
        return len(self.distinct) - len(self._verified)

    def items(self, catalog: DatabaseCatalog) -> list[tuple[str, str, str | None, Semantics]]:
        paths = {db_id: str(catalog.path(db_id)) for db_id in {i.db_id for i in self.distinct}}
        return [(paths[item[0]], *item[1:]) for item in self.distinct]

    def store(self, outcome: Sequence[tuple[int, Verification]]) -> int:
        """Take finished items; returns how many requests they answer."""
        count = 0
        for number, verification in outcome:
            item = self.distinct[number]
            assert item not in self._verified, "one item was verified twice"
            self._verified[item] = verification
            count += self._repeats[item]
        return count

    def results(self) -> list[Verification]:
        return [self._verified[item] for item in self._asked]
