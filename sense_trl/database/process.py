"""Child processes that answer messages and can be killed, and their other end."""

from __future__ import annotations

import contextlib
import os
import select
import signal
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import IO, Any, Final, Generic, TypeVar

from sense_trl.database.location import PASSWORDS_VARIABLE, dump_passwords
from sense_trl.database.messages import Failed, decode, encode
from sense_trl.errors import DatabaseError, ExecutionBackendError

# Starting takes 0.1 s on an idle machine.
_START_TIMEOUT_S: Final = 60.0
_LENGTH: Final = struct.Struct("<Q")
_READY: Final = b"ready"
_MAX_STARTS: Final = 3
# No verdict and no result within the limits of queries is so long.
_MAX_MESSAGE_BYTES: Final = 2**30
_T = TypeVar("_T")


class WorkerGoneError(Exception):
    """The process ended without answering."""


class WorkerLateError(Exception):
    """The process did not answer in time; it still runs."""


def workers_are_supported() -> bool:
    """Whether this system can wait on a pipe with a deadline, as workers need."""
    return os.name == "posix"


class WorkerProcess:
    """One child of this interpreter, started at once, that exchanges messages over pipes.

    It ends by itself when its parent is gone. A message is bytes.

    Args:
        entry: what the child runs, as "package.module:function"; the function ends in
            `serve_messages`.
        arguments: strings that the child finds in `sys.argv[2:]`.

    Raises:
        ExecutionBackendError: the process cannot be started.
    """

    def __init__(self, entry: str, arguments: Sequence[str] = ()) -> None:
        if not workers_are_supported():
            raise ExecutionBackendError(
                "worker processes wait on pipes with a deadline, which this system cannot; run "
                "queries in the calling process (`SQLiteEngine`, `num_workers=0`), and mind what "
                "`SQLiteEngine` says about operations it cannot interrupt"
            )
        self._creator = os.getpid()
        # Not multiprocessing: its spawn imports the caller's main module, and its fork copies a
        # process that may hold a GPU and threads.
        module, function = entry.split(":")
        code = f"from {module} import {function}; {function}()"
        environment = dict(os.environ)
        environment[PASSWORDS_VARIABLE] = dump_passwords()
        root = str(Path(__file__).resolve().parents[2])
        environment["PYTHONPATH"] = os.pathsep.join(
            part for part in (root, environment.get("PYTHONPATH")) if part
        )
        try:
            self._process = subprocess.Popen(
                # -P: a user's own `queue.py` in this folder is none of the worker's modules.
                [sys.executable, "-P", "-c", code, str(os.getpid()), *arguments],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                env=environment,
                bufsize=0,
            )
        except OSError as error:
            raise ExecutionBackendError(f"cannot start a worker process: {error}") from error
        try:
            ready = self.receive(_START_TIMEOUT_S)
        except (WorkerGoneError, WorkerLateError):
            ready = b""
        except BaseException:
            self.kill()
            raise
        if ready != _READY:
            self.kill()
            raise ExecutionBackendError(
                f"a worker process did not start (exit status {self._process.returncode}); "
                f"try `{sys.executable} -c 'import {module}'`"
            )

    @property
    def pid(self) -> int:
        """The id of the process."""
        return self._process.pid

    @property
    def was_killed(self) -> bool:
        """Whether the process was ended from outside (SIGKILL, SIGTERM), once it has ended."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            # Its pipes close a moment before it is gone.
            self._process.wait(1.0)
        return self._process.returncode in (-signal.SIGKILL, -signal.SIGTERM)

    def send(self, message: bytes) -> None:
        """Send one message.

        Raises:
            WorkerGoneError: the process has ended.
        """
        try:
            _write_message(self._process.stdin, message)
        except (BrokenPipeError, ConnectionResetError, ValueError) as error:
            raise WorkerGoneError from error

    def receive(self, timeout_s: float) -> bytes:
        """The next message of the process.

        Raises:
            WorkerGoneError: the process has ended (or was killed by another thread), or begins a
                message of more than 1 GiB.
            WorkerLateError: no complete message came within `timeout_s`.
        """
        deadline = time.perf_counter() + timeout_s
        try:
            header = _read_exactly(self._process.stdout, _LENGTH.size, deadline)
            [size] = _LENGTH.unpack(header)
            if size > _MAX_MESSAGE_BYTES:
                raise WorkerGoneError
            return _read_exactly(self._process.stdout, size, deadline)
        except (OSError, ValueError) as error:
            raise WorkerGoneError from error

    def stop(self) -> None:
        """Kill the process and leave its pipes open: safe while another thread waits on them."""
        with contextlib.suppress(ProcessLookupError):
            self._process.kill()

    def kill(self) -> None:
        """End the process at once and free what belongs to it.

        In a fork of its parent only the pipes are closed: the process is the parent's.
        """
        if self._creator == os.getpid():
            self._process.kill()
            self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                with contextlib.suppress(OSError):
                    pipe.close()


class WorkerSupervisor(Generic[_T]):
    """One worker process: started when it is needed, and anew after it was ended.

    Messages are typed both ways. An answer that is none of the declared ones counts as the death of
    the process: whoever has taken it over can send data, but neither code nor anything else.

    Args:
        entry: what the process runs, as "package.module:function"; the function ends in
            `serve_messages`.
        settings: a message that the process finds with `read_settings`.
        answers: the type of its answers.
    """

    def __init__(self, entry: str, settings: object, answers: Any) -> None:
        self._entry = entry
        self._arguments = [encode(settings).hex()]
        self._answers = answers
        self._process: WorkerProcess | None = None

    @property
    def process_id(self) -> int | None:
        """The id of the process, `None` while there is none."""
        process = self._process
        return None if process is None else process.pid

    @property
    def was_killed(self) -> bool:
        """See `WorkerProcess`."""
        return self._process is not None and self._process.was_killed

    def start(self) -> bool:
        """Start the process unless it runs.

        Returns:
            Whether it was started.

        Raises:
            ExecutionBackendError: it cannot be, in three attempts.
        """
        if self._process is not None:
            return False
        for attempt in range(1, _MAX_STARTS + 1):
            try:
                self._process = WorkerProcess(self._entry, self._arguments)
                break
            except ExecutionBackendError:
                if attempt == _MAX_STARTS or not workers_are_supported():
                    raise
        return True

    def send(self, message: object) -> None:
        """Send one message, to a process that is started for it if there is none.

        Raises:
            ExecutionBackendError: it cannot be started.
            WorkerGoneError: it has ended.
        """
        self.start()
        if (process := self._process) is None:
            raise WorkerGoneError
        process.send(encode(message))

    def receive(self, timeout_s: float) -> _T:
        """The next answer.

        Raises:
            DatabaseError: the worker met one.
            WorkerGoneError: it has ended, or sent what is no answer.
            WorkerLateError: no answer came within `timeout_s`; the process still runs.
        """
        if (process := self._process) is None:
            raise WorkerGoneError
        data = process.receive(timeout_s)
        try:
            answer: Any = decode(data, Failed | self._answers)
        except ValueError as error:
            raise WorkerGoneError from error
        if isinstance(answer, Failed):
            raise DatabaseError(answer.error)
        return answer  # type: ignore[no-any-return]

    def stop(self) -> None:
        """Kill the process, from any thread; one that waits for its answer gets WorkerGoneError."""
        if (process := self._process) is not None:
            process.stop()

    def kill(self) -> bool:
        """End the process and free what belongs to it; whether there was one."""
        process, self._process = self._process, None
        if process is not None:
            process.kill()
        return process is not None


def read_settings(kind: type[_T]) -> _T:
    """The settings that a supervisor has given this process (runs in the child)."""
    return decode(bytes.fromhex(sys.argv[2]), kind)


def serve_messages(kind: Any, answer: Callable[[Any, Callable[[object], None]], None]) -> None:
    """Answer the messages on standard input until it ends (runs in the child).

    Args:
        kind: the type of the messages.
        answer: called with each message and a function that sends one back. A `DatabaseError` that
            it raises is one for the parent.
    """
    # Answers go to a private copy of standard output, so that nothing else can write between.
    output = os.fdopen(os.dup(1), "wb", buffering=0)
    os.dup2(2, 1)
    source = os.fdopen(os.dup(0), "rb", buffering=0)
    threading.Thread(target=_end_with_parent, args=(int(sys.argv[1]),), daemon=True).start()
    # Ctrl-C in a terminal reaches the whole group; the parent decides what it means.
    signal.signal(signal.SIGINT, signal.SIG_IGN)

    def send(message: object) -> None:
        _write_message(output, encode(message))

    _write_message(output, _READY)
    while True:
        try:
            header = _read_exactly(source, _LENGTH.size, None)
            message = _read_exactly(source, _LENGTH.unpack(header)[0], None)
        except WorkerGoneError:
            return
        try:
            try:
                answer(decode(message, kind), send)
            except DatabaseError as error:
                send(Failed(str(error)))
        except BrokenPipeError:
            return


def limit_process_memory(extra_bytes: int) -> None:
    """Let this process allocate at most `extra_bytes` more than it has now, for good.

    Data segments and private mappings count (`RLIMIT_DATA`); where the system has no such limit
    nothing is limited.
    """
    try:
        import resource
    except ImportError:  # Windows
        return
    try:
        with open("/proc/self/status", encoding="ascii") as file:
            used = next(int(line.split()[1]) for line in file if line.startswith("VmData:"))
    except (OSError, StopIteration):
        # Without /proc there is no telling what is in use; macOS does not enforce it either.
        return
    limit = used * 1024 + extra_bytes
    _, hard = resource.getrlimit(resource.RLIMIT_DATA)
    if hard != resource.RLIM_INFINITY:
        limit = min(limit, hard)
    resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))


def _read_exactly(pipe: IO[bytes] | None, size: int, deadline: float | None) -> bytes:
    assert pipe is not None
    parts: list[bytes] = []
    # poll, because select refuses descriptors above 1023.
    poll = None
    if deadline is not None:
        poll = select.poll()
        poll.register(pipe, select.POLLIN)
    while size > 0:
        if poll is not None and deadline is not None:
            left_ms = max(deadline - time.perf_counter(), 0.0) * 1000
            if not poll.poll(left_ms):
                raise WorkerLateError
        part = os.read(pipe.fileno(), min(size, 1 << 20))
        if not part:
            raise WorkerGoneError
        parts.append(part)
        size -= len(part)
    return b"".join(parts)


def _write_message(pipe: Any, message: bytes) -> None:
    view = memoryview(_LENGTH.pack(len(message)) + message)
    while view:
        view = view[pipe.write(view) :]


def _end_with_parent(parent_id: int) -> None:
    """End this process when its parent is gone, even in the middle of a query."""
    while os.getppid() == parent_id:
        time.sleep(1.0)
    os._exit(1)
