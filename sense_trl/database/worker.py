"""Engines in a process of their own, which can be killed: `EngineWorker`, `IsolatedEngine`."""

from __future__ import annotations

import os
import threading
import time
import weakref
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Final, TypeAlias, TypeVar

from sense_trl._closing import Closing
from sense_trl.database.digest import ResultDigest
from sense_trl.database.engine import (
    DigestingEngine,
    ExecutionLimits,
    LimitKind,
    QueryResult,
    QueryStatus,
    ReorderingEngine,
    SQLEngine,
    TableInfo,
    failed,
)
from sense_trl.database.location import DatabasePath, ServerDatabase, locate
from sense_trl.database.messages import Message, pack_rows
from sense_trl.database.opening import dialect_of, open_engine
from sense_trl.database.process import (
    WorkerGoneError,
    WorkerLateError,
    WorkerSupervisor,
    limit_process_memory,
    read_settings,
    serve_messages,
)
from sense_trl.database.sqlite_engine import set_process_heap_limit
from sense_trl.database.watch import GRACE_S
from sense_trl.errors import DatabaseError, InputError

_MAX_OPEN_ENGINES: Final = 64
# A server has few connections, and others need them too.
_MAX_CONNECTIONS: Final = 2
# Opening a database and reading its schema take milliseconds, on a network's disk seconds.
_SCHEMA_TIMEOUT_S: Final = 60.0
# What the interpreter and the engine's own structures may use beyond `memory_limit_bytes`.
_MEMORY_SLACK_BYTES: Final = 160 * 2**20
_T = TypeVar("_T")


class EngineWorker(Closing):
    """One process that runs queries for this one, replaced whenever it had to be killed.

    It keeps the engines it has opened (up to 64), limits its memory (SQLite's heap limit is per
    process, and this process does nothing else), and ends itself when its parent is gone. A
    worker serves one caller at a time; calls from several threads queue. It ends with `close`, or
    when nobody holds it any more.

    Args:
        memory_limit_bytes: heap limit of SQLite in the worker; the whole process may use 160 MB
            more where the system can limit it (Linux).
    """

    def __init__(self, *, memory_limit_bytes: int = ExecutionLimits().memory_limit_bytes) -> None:
        self._process: WorkerSupervisor[_Answer] = WorkerSupervisor(
            "sense_trl.database.worker:serve", memory_limit_bytes, _Answer
        )
        weakref.finalize(self, self._process.kill)
        self._lock = threading.Lock()
        self._closed = False
        self._num_kills = 0
        # Of the process that runs now.
        self._num_answers = 0
        self._start_s = 0.0
        self._connected: set[DatabasePath] = set()

    @property
    def num_kills(self) -> int:
        """Number of times that a process had to be killed or was found dead."""
        return self._num_kills

    @property
    def process_id(self) -> int | None:
        """The id of the running process, `None` before the first query and after a kill."""
        return self._process.process_id

    def execute(
        self, path: DatabasePath, sql: str, limits: ExecutionLimits, *, reverse: bool = False
    ) -> QueryResult:
        """Run one query on the database at `path`; see `SQLEngine.execute`.

        Raises:
            DatabaseError: the file cannot be read.
            ExecutionBackendError: no worker process can be started.
            InputError: the worker is closed.
        """
        return self._run(path, sql, limits, reverse=reverse, digest=False)[0]

    def execute_digest(
        self, path: DatabasePath, sql: str, limits: ExecutionLimits, *, reverse: bool = False
    ) -> tuple[QueryResult, ResultDigest | None]:
        """Run one query and keep fingerprints of its rows; see `DigestingEngine`.

        A query on DuckDB, whose engine takes none, is not run.

        Raises:
            As `execute`.
        """
        return self._run(path, sql, limits, reverse=reverse, digest=True)

    def _run(
        self, path: DatabasePath, sql: str, limits: ExecutionLimits, *, reverse: bool, digest: bool
    ) -> tuple[QueryResult, ResultDigest | None]:
        with self._lock:
            self._check_open()
            started = time.perf_counter()
            # A worker may have been killed from outside; then the query is innocent and is asked
            # once more with all its time. A second death is its own doing, and so is one that
            # nobody sent: then the second attempt gets the time that is left.
            first: QueryResult | None = None
            for _ in range(2):
                if first is not None and _left_s(limits, started) <= self._start_s:
                    return first, None
                self._start()
                # Only after the start, which is part of what the caller waits for.
                own = limits
                if first is not None:
                    own = replace(limits, timeout_s=max(_left_s(limits, started), 0.01))
                try:
                    self._connect(path)
                    self._process.send(Execute(str(path), sql, own, reverse, digest))
                    answer = self._process.receive(own.timeout_s + GRACE_S)
                    if not isinstance(answer, Executed):
                        raise WorkerGoneError
                    result = answer.result
                    self._num_answers += 1
                    if first is not None and result.exceeded is LimitKind.WALL_CLOCK:
                        # It had less than its time, so what it ran into before stands.
                        return first, None
                    if result.exceeded is not LimitKind.MEMORY or self._num_answers == 1:
                        return result, answer.digest
                    # Allocators keep what earlier queries needed. A new process decides, so that
                    # the answer depends on this query alone.
                    self._kill()
                    self._num_kills -= 1
                    first = result
                except WorkerLateError:
                    self._kill()
                    if first is not None:
                        return first, None
                    message = f"stopped after {limits.timeout_s:g} s"
                    ended = failed(QueryStatus.TIMEOUT, message, started, LimitKind.WALL_CLOCK)
                    return ended, None
                except WorkerGoneError:
                    was_killed = self._process.was_killed
                    self._kill()
                    died = failed(
                        QueryStatus.TOO_LARGE,
                        "ended the worker process",
                        started,
                        LimitKind.MEMORY,
                    )
                    if first is None and not was_killed:
                        first = died
                except DatabaseError:
                    raise
                except BaseException:
                    # Interrupted between question and answer (Ctrl-C): the pipe is out of step.
                    self._kill()
                    raise
            return first or died, None

    def open(self, path: DatabasePath) -> str:
        """Open the database at `path`, which the first query would do as well.

        Returns:
            Name and version of what runs its queries.

        Raises:
            DatabaseError: it cannot be opened.
            ExecutionBackendError: no worker process can be started.
            InputError: the worker is closed.
        """
        return self._ask(Open(str(path)), Opened).version

    def get_tables(self, path: DatabasePath) -> tuple[TableInfo, ...]:
        """The tables and views of the database at `path`; see `SQLEngine.get_tables`.

        Raises:
            DatabaseError: the schema cannot be read, or not within a minute.
            ExecutionBackendError: no worker process can be started.
            InputError: the worker is closed.
        """
        return self._ask(GetTables(str(path)), Tables).tables

    def _ask(self, request: Open | GetTables, kind: type[_T]) -> _T:
        """Ask about a database what needs no limits, once more if the process has died."""
        with self._lock:
            self._check_open()
            for _ in range(2):
                self._start()
                try:
                    self._process.send(request)
                    answer = self._process.receive(_SCHEMA_TIMEOUT_S)
                    if not isinstance(answer, kind):
                        raise WorkerGoneError
                    return answer
                except DatabaseError:
                    raise
                except WorkerGoneError:
                    self._kill()
                    continue
                except WorkerLateError:
                    self._kill()
                    break
                except BaseException:
                    # Interrupted between question and answer, as above.
                    self._kill()
                    raise
        raise DatabaseError(
            f"{request.path} cannot be read: reading its schema took more than "
            f"{_SCHEMA_TIMEOUT_S:g} s, or ended the process that did"
        )

    def _connect(self, path: DatabasePath) -> None:
        """Let a new process connect to a server before the clock of a query begins."""
        if isinstance(path, ServerDatabase) and path not in self._connected:
            self._process.send(Open(str(path)))
            self._process.receive(_SCHEMA_TIMEOUT_S)
            self._connected.add(path)

    def _check_open(self) -> None:
        if self._closed:
            raise InputError("the worker of this engine is closed; open a new one")

    def close(self) -> None:
        """End the process; closing twice is allowed."""
        with self._lock:
            self._closed = True
            self._process.kill()

    def _start(self) -> None:
        started = time.perf_counter()
        if self._process.start():
            self._start_s = time.perf_counter() - started
            self._num_answers = 0
            self._connected.clear()

    def _kill(self) -> None:
        self._num_kills += self._process.kill()


def _left_s(limits: ExecutionLimits, started: float) -> float:
    return limits.timeout_s - (time.perf_counter() - started)


class IsolatedEngine(Closing):
    """An engine in a worker process of its own: what cannot be interrupted is killed.

    Everything said of the engine itself holds, and what it cannot protect from is covered: a
    query that outlives `timeout_s` by 0.25 s takes its process with it (`TIMEOUT`), and the
    memory of the process is limited (`TOO_LARGE`). A query costs some 50 µs more.

    Not protected: a bug of the database library that runs foreign code runs it with the rights of
    this user. The worker is a process, not a container: it sees the same files, network and
    devices.

    Args:
        path: the database file; its suffix decides the engine, `.duckdb` is DuckDB's. Or the URL of
            a database on a PostgreSQL server.
        limits: the limits that hold where `execute` is given none.
        worker: a worker to share between engines; without one the engine starts its own and
            closes it.

    Raises:
        DatabaseError: `path` is missing, a directory, empty or not a database, or its server cannot
            be reached.
    """

    def __init__(
        self,
        path: str | os.PathLike[str] | ServerDatabase,
        *,
        limits: ExecutionLimits | None = None,
        worker: EngineWorker | None = None,
    ) -> None:
        place = locate(path)
        self._path = place.absolute() if isinstance(place, Path) else place
        self._limits = ExecutionLimits() if limits is None else limits
        self._owns_worker = worker is None
        self._worker = worker or EngineWorker(memory_limit_bytes=self._limits.memory_limit_bytes)
        try:
            # Fails here, and not at the first query, if the file is no database.
            self._version = self._worker.open(self._path)
        except BaseException:
            self.close()
            raise

    @property
    def dialect(self) -> str:
        """The name of the dialect as sqlglot spells it."""
        return dialect_of(self._path)

    @property
    def version(self) -> str:
        """Name and version of the library, or of the server."""
        return self._version

    @property
    def path(self) -> DatabasePath:
        """The absolute path of the database file, or its place on a server."""
        return self._path

    @property
    def limits(self) -> ExecutionLimits:
        """The limits that hold where `execute` is given none."""
        return self._limits

    @property
    def worker(self) -> EngineWorker:
        """The worker that runs the queries."""
        return self._worker

    def __repr__(self) -> str:
        return f"IsolatedEngine({str(self._path)!r})"

    def execute(self, sql: str, *, limits: ExecutionLimits | None = None) -> QueryResult:
        """Run one reading statement; see `SQLEngine.execute`.

        `memory_limit_bytes` of `limits` does not change the limit of SQLite's heap: that of the
        worker was set at its start.

        Raises:
            DatabaseError: the file cannot be read.
            ExecutionBackendError: no worker process can be started.
            InputError: the engine is closed.
        """
        return self._worker.execute(self._path, sql, limits or self._limits)

    def execute_reordered(self, sql: str, *, limits: ExecutionLimits | None = None) -> QueryResult:
        """Run `sql` in another allowed order; see `ReorderingEngine.execute_reordered`."""
        return self._worker.execute(self._path, sql, limits or self._limits, reverse=True)

    def execute_digest(
        self, sql: str, *, limits: ExecutionLimits | None = None, reverse: bool = False
    ) -> tuple[QueryResult, ResultDigest | None]:
        """Run `sql` and keep only fingerprints of its rows; see `DigestingEngine`.

        DuckDB's engine takes none: there is no digest then, and the query does not run.
        """
        return self._worker.execute_digest(self._path, sql, limits or self._limits, reverse=reverse)

    def get_tables(self) -> tuple[TableInfo, ...]:
        """Read the tables and views; see `SQLEngine.get_tables`."""
        return self._worker.get_tables(self._path)

    def close(self) -> None:
        """End the worker if it is the engine's own; closing twice is allowed."""
        if self._owns_worker:
            self._worker.close()


# ---------------------------------------------------------------------- messages


class Open(Message, frozen=True):
    """Open a database; answered by `Opened`."""

    path: str


class Opened(Message, frozen=True):
    """Name and version of what runs the queries of a database."""

    version: str


class GetTables(Message, frozen=True):
    """Read the schema of a database; answered by `Tables`."""

    path: str


class Tables(Message, frozen=True):
    """The tables and views of a database."""

    tables: tuple[TableInfo, ...]


class Execute(Message, frozen=True):
    """Run a query, for its rows or for fingerprints of them; answered by `Executed`."""

    path: str
    sql: str
    limits: ExecutionLimits
    reverse: bool
    digest: bool


class Executed(Message, frozen=True):
    """The result of a query."""

    result: QueryResult
    digest: ResultDigest | None = None


_Answer: TypeAlias = Opened | Tables | Executed


# ---------------------------------------------------------------------- inside the worker


class EngineCache:
    """The engines that a worker keeps open, the least recently used closed first.

    Args:
        open_one: opens the engine over a file.
    """

    def __init__(self, open_one: Callable[[DatabasePath], SQLEngine] = open_engine) -> None:
        self._open_one = open_one
        self._engines: OrderedDict[str, SQLEngine] = OrderedDict()
        self._servers: OrderedDict[str, None] = OrderedDict()

    def get(self, path: str) -> SQLEngine:
        """The engine over the file at `path`.

        Raises:
            DatabaseError: the file cannot be opened.
        """
        engine = self._engines.get(path)
        if engine is None:
            place = locate(path)
            # Before another is opened: the server may not allow one more.
            is_server = isinstance(place, ServerDatabase)
            if is_server and len(self._servers) >= _MAX_CONNECTIONS:
                self._engines.pop(self._servers.popitem(last=False)[0]).close()
            engine = self._engines[path] = self._open_one(place)
            if is_server:
                self._servers[path] = None
            elif len(self._engines) - len(self._servers) > _MAX_OPEN_ENGINES:
                oldest = next(name for name in self._engines if name not in self._servers)
                self._engines.pop(oldest).close()
        self._engines.move_to_end(path)
        if path in self._servers:
            self._servers.move_to_end(path)
        return engine


def limit_worker_memory(memory_limit_bytes: int) -> None:
    """Limit SQLite's heap and the whole process (runs once, in the child)."""
    set_process_heap_limit(memory_limit_bytes)
    limit_process_memory(memory_limit_bytes + _MEMORY_SLACK_BYTES)


def _answer(engine: SQLEngine, request: Open | GetTables | Execute) -> _Answer:
    if isinstance(request, Open):
        return Opened(engine.version)
    if isinstance(request, GetTables):
        return Tables(engine.get_tables())
    sql, limits = request.sql, request.limits
    if request.digest:
        if isinstance(engine, DigestingEngine):
            return Executed(*engine.execute_digest(sql, limits=limits, reverse=request.reverse))
        return Executed(_NO_DIGEST)
    if request.reverse and isinstance(engine, ReorderingEngine):
        return Executed(pack_rows(engine.execute_reordered(sql, limits=limits)))
    return Executed(pack_rows(engine.execute(sql, limits=limits)))


_NO_DIGEST: Final = QueryResult(
    QueryStatus.EXECUTION_ERROR, (), (), "this engine takes no digests", 0.0, None
)


def serve() -> None:
    """Answer queries on standard input until it ends (the main function of the worker)."""
    limit_worker_memory(read_settings(int))
    engines = EngineCache()

    def answer(request: Open | GetTables | Execute, send: Callable[[object], None]) -> None:
        send(_answer(engines.get(request.path), request))

    serve_messages(Open | GetTables | Execute, answer)
