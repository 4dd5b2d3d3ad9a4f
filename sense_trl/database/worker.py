"""SQLite in a process of its own, which can be killed: `SQLiteWorker`, `IsolatedSQLiteEngine`."""

from __future__ import annotations

import marshal
import os
import select
import signal
import struct
import subprocess
import sys
import threading
import time
from collections import OrderedDict
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

from sense_trl.database.engine import (
    ExecutionLimits,
    LimitKind,
    QueryResult,
    QueryStatus,
    TableInfo,
)
from sense_trl.database.sqlite_engine import SQLiteEngine, set_process_heap_limit
from sense_trl.errors import DatabaseError, ExecutionBackendError, InputError

__all__ = ["IsolatedSQLiteEngine", "SQLiteWorker"]

# A worker that has not answered this long after the query's own limit hangs in an operation that
# SQLite cannot interrupt, and is killed.
_GRACE_S: Final = 0.25
# Starting takes 0.1 s on an idle machine.
_START_TIMEOUT_S: Final = 60.0
_MAX_OPEN_ENGINES: Final = 64
_LENGTH: Final = struct.Struct("<Q")


class SQLiteWorker:
    """One process that runs queries for this one, replaced whenever it had to be killed.

    It keeps the engines it has opened (up to 64), limits its memory (SQLite's heap limit is per
    process, and this process does nothing else), and ends itself when its parent is gone. A
    worker serves one caller at a time; calls from several threads queue.

    Args:
        memory_limit_bytes: heap limit of SQLite in the worker.
    """

    def __init__(self, *, memory_limit_bytes: int = ExecutionLimits().memory_limit_bytes) -> None:
        self._memory_limit_bytes = memory_limit_bytes
        self._process: subprocess.Popen[bytes] | None = None
        self._lock = threading.Lock()
        self._closed = False
        self._num_kills = 0

    @property
    def num_kills(self) -> int:
        """How often a process had to be killed or was found dead."""
        return self._num_kills

    @property
    def process_id(self) -> int | None:
        """The id of the running process, `None` before the first query and after a kill."""
        return None if self._process is None else self._process.pid

    def execute(
        self, path: Path, sql: str, limits: ExecutionLimits, *, reverse: bool = False
    ) -> QueryResult:
        """Run one query on the database at `path`; see `SQLiteEngine.execute`.

        Raises:
            DatabaseError: the file cannot be read.
            ExecutionBackendError: no worker process can be started.
            InputError: the worker is closed.
        """
        request = marshal.dumps(
            (
                str(path),
                # Lone surrogates do not survive the pipe as text.
                sql.encode("utf-8", "surrogatepass"),
                limits.timeout_s,
                limits.max_rows,
                limits.max_cell_bytes,
                limits.max_result_bytes,
                limits.max_steps,
                reverse,
            )
        )
        with self._lock:
            if self._closed:
                raise InputError("the SQLite worker is closed; open a new one")
            started = time.perf_counter()
            # A worker may have been killed from outside; then the query is innocent and is asked
            # once more. A second death is its own doing.
            for _ in range(2):
                process = self._process or self._start()
                answer = self._ask(process, request, limits.timeout_s + _GRACE_S)
                if isinstance(answer, bytes):
                    return _unpack_result(answer, path)
                self._kill()
                if answer is LimitKind.WALL_CLOCK:
                    status, message = QueryStatus.TIMEOUT, f"stopped after {limits.timeout_s:g} s"
                    break
            else:
                answer = LimitKind.MEMORY
                status, message = QueryStatus.TOO_LARGE, "ended the worker process twice"
            elapsed_s = time.perf_counter() - started
            return QueryResult(status, (), (), message, elapsed_s, None, answer)

    def close(self) -> None:
        """End the process; closing twice is allowed."""
        with self._lock:
            self._closed = True
            if self._process is not None:
                self._kill()
                self._num_kills -= 1

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def _start(self) -> subprocess.Popen[bytes]:
        if os.name != "posix":
            raise ExecutionBackendError(
                "SQLite workers wait on pipes with a deadline, which this system cannot; use "
                "`SQLiteEngine`, and mind what it says about operations it cannot interrupt"
            )
        # Not multiprocessing: its spawn imports the caller's main module, and its fork copies a
        # process that may hold a GPU and threads.
        code = "from sense_trl.database.worker import _serve; _serve()"
        environment = dict(os.environ)
        root = str(Path(__file__).resolve().parents[2])
        environment["PYTHONPATH"] = os.pathsep.join(
            part for part in (root, environment.get("PYTHONPATH")) if part
        )
        try:
            process = subprocess.Popen(
                [sys.executable, "-c", code, str(os.getpid()), str(self._memory_limit_bytes)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                env=environment,
                bufsize=0,
            )
        except OSError as error:
            raise ExecutionBackendError(f"cannot start an SQLite worker: {error}") from error
        self._process = process
        ready = _read_message(process.stdout, time.perf_counter() + _START_TIMEOUT_S)
        if ready != b"ready":
            self._kill()
            raise ExecutionBackendError(
                f"the SQLite worker did not start (exit status {process.returncode}); "
                f"try `{sys.executable} -c 'import sense_trl.database.worker'`"
            )
        return process

    def _ask(
        self, process: subprocess.Popen[bytes], request: bytes, timeout_s: float
    ) -> bytes | LimitKind | None:
        """The answer, WALL_CLOCK if none came in time, `None` if the process is gone."""
        deadline = time.perf_counter() + timeout_s
        try:
            _write_message(process.stdin, request)
            answer = _read_message(process.stdout, deadline)
        except (BrokenPipeError, ConnectionResetError):
            return None
        except BaseException:
            # Interrupted between question and answer (Ctrl-C): the pipe is out of step.
            self._kill()
            raise
        if answer is None and time.perf_counter() >= deadline:
            return LimitKind.WALL_CLOCK
        return answer

    def _kill(self) -> None:
        process, self._process = self._process, None
        if process is None:
            return
        self._num_kills += 1
        process.kill()
        process.wait()
        for pipe in (process.stdin, process.stdout):
            if pipe is not None:
                pipe.close()


class IsolatedSQLiteEngine:
    """A `SQLiteEngine` in a worker process: what cannot be interrupted is killed.

    Everything said of `SQLiteEngine` holds, and what it cannot protect from is covered: a query
    that outlives `timeout_s` by 0.25 s takes its process with it (`TIMEOUT`), and SQLite's memory
    is limited to `memory_limit_bytes` of the worker (`TOO_LARGE`). A query costs some 50 µs more.

    Not protected: a bug of SQLite that runs foreign code runs it with the rights of this user;
    the worker is a process, not a container.

    Args:
        path: the database file.
        limits: the limits that hold where `execute` is given none.
        worker: a worker to share between engines; without one the engine starts its own and
            closes it.

    Raises:
        DatabaseError: `path` is missing, a directory, empty or not an SQLite database.
    """

    dialect: Final = "sqlite"

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        limits: ExecutionLimits | None = None,
        worker: SQLiteWorker | None = None,
    ) -> None:
        self._path = Path(path).absolute()
        self._limits = ExecutionLimits() if limits is None else limits
        # Fails here, and not at the first query, if the file is no database.
        SQLiteEngine(self._path).close()
        self._owns_worker = worker is None
        self._worker = worker or SQLiteWorker(memory_limit_bytes=self._limits.memory_limit_bytes)

    @property
    def path(self) -> Path:
        """The absolute path of the database file."""
        return self._path

    @property
    def limits(self) -> ExecutionLimits:
        """The limits that hold where `execute` is given none."""
        return self._limits

    @property
    def worker(self) -> SQLiteWorker:
        """The worker that runs the queries."""
        return self._worker

    def __repr__(self) -> str:
        return f"IsolatedSQLiteEngine({str(self._path)!r})"

    def execute(self, sql: str, *, limits: ExecutionLimits | None = None) -> QueryResult:
        """Run one reading statement; see `SQLiteEngine.execute`.

        `memory_limit_bytes` of `limits` is not used: the worker's limit was set at its start.

        Raises:
            DatabaseError: the file cannot be read.
            ExecutionBackendError: no worker process can be started.
            InputError: the engine is closed.
        """
        return self._worker.execute(self._path, sql, limits or self._limits)

    def execute_reordered(self, sql: str, *, limits: ExecutionLimits | None = None) -> QueryResult:
        """Run `sql` with scans reversed; see `SQLiteEngine.execute_reordered`."""
        return self._worker.execute(self._path, sql, limits or self._limits, reverse=True)

    def get_tables(self) -> tuple[TableInfo, ...]:
        """Read the tables and views; see `SQLiteEngine.get_tables`."""
        with SQLiteEngine(self._path) as engine:
            return engine.get_tables()

    def close(self) -> None:
        """End the worker if it is the engine's own; closing twice is allowed."""
        if self._owns_worker:
            self._worker.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()


# ---------------------------------------------------------------------- the wire
#
# marshal, not pickle: a worker that a query has taken over can send data, but no code.


def _read_message(pipe: Any, deadline: float | None) -> bytes | None:
    """One message, or `None` if the pipe ends or the deadline (of `perf_counter`) passes."""
    header = _read_exactly(pipe, _LENGTH.size, deadline)
    if header is None:
        return None
    return _read_exactly(pipe, _LENGTH.unpack(header)[0], deadline)


def _read_exactly(pipe: Any, size: int, deadline: float | None) -> bytes | None:
    parts: list[bytes] = []
    while size > 0:
        timeout_s = None if deadline is None else max(deadline - time.perf_counter(), 0.0)
        if not select.select([pipe], [], [], timeout_s)[0]:
            return None
        part = os.read(pipe.fileno(), min(size, 1 << 20))
        if not part:
            return None
        parts.append(part)
        size -= len(part)
    return b"".join(parts)


def _write_message(pipe: Any, message: bytes) -> None:
    view = memoryview(_LENGTH.pack(len(message)) + message)
    while view:
        view = view[pipe.write(view) :]


def _pack_result(result: QueryResult) -> bytes:
    exceeded = None if result.exceeded is None else str(result.exceeded)
    # SQLite's values are None, int, float, str and bytes: marshal has all of them.
    rows: Any = result.rows
    head = (str(result.status), result.columns, result.error, result.elapsed_s, result.steps)
    return marshal.dumps((*head, exceeded, rows))


def _unpack_result(answer: bytes, path: Path) -> QueryResult:
    status, columns, error, elapsed_s, steps, exceeded, rows = marshal.loads(answer)
    if status == "database_error":
        raise DatabaseError(error)
    return QueryResult(
        QueryStatus(status),
        columns,
        rows,
        error,
        elapsed_s,
        steps,
        None if exceeded is None else LimitKind(exceeded),
    )


# ---------------------------------------------------------------------- inside the worker


def _serve() -> None:
    """Answer queries on standard input until it ends (the main function of the worker)."""
    parent_id, memory_limit_bytes = int(sys.argv[1]), int(sys.argv[2])
    # Answers go to a private copy of standard output, so that nothing else can write between.
    output = os.fdopen(os.dup(1), "wb", buffering=0)
    os.dup2(2, 1)
    source = os.fdopen(os.dup(0), "rb", buffering=0)
    threading.Thread(target=_end_with_parent, args=(parent_id,), daemon=True).start()
    # Ctrl-C in a terminal reaches the whole group; the parent decides what it means.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    set_process_heap_limit(memory_limit_bytes)
    engines: OrderedDict[str, SQLiteEngine] = OrderedDict()
    _write_message(output, b"ready")
    while (request := _read_message(source, None)) is not None:
        try:
            answer = _pack_result(_answer(marshal.loads(request), engines))
        except DatabaseError as error:
            answer = marshal.dumps(("database_error", (), str(error), 0.0, None, None, ()))
        _write_message(output, answer)


def _answer(request: tuple[Any, ...], engines: OrderedDict[str, SQLiteEngine]) -> QueryResult:
    path, sql_bytes, timeout_s, max_rows, max_cell, max_result, max_steps, reverse = request
    sql = sql_bytes.decode("utf-8", "surrogatepass")
    limits = ExecutionLimits(
        timeout_s=timeout_s,
        max_rows=max_rows,
        max_cell_bytes=max_cell,
        max_result_bytes=max_result,
        max_steps=max_steps,
    )
    engine = engines.get(path)
    if engine is None:
        engine = engines[path] = SQLiteEngine(path)
        if len(engines) > _MAX_OPEN_ENGINES:
            engines.popitem(last=False)[1].close()
    engines.move_to_end(path)
    if reverse:
        return engine.execute_reordered(sql, limits=limits)
    return engine.execute(sql, limits=limits)


def _end_with_parent(parent_id: int) -> None:
    """End this process when its parent is gone, even in the middle of a query."""
    while os.getppid() == parent_id:
        time.sleep(1.0)
    os._exit(1)
