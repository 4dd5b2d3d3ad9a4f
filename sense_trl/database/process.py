"""A child process that answers messages and can be killed: `WorkerProcess`, and its other end."""

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
from typing import IO, Any, Final

from sense_trl.database.location import PASSWORDS_VARIABLE, dump_passwords
from sense_trl.errors import ExecutionBackendError

# Starting takes 0.1 s on an idle machine.
_START_TIMEOUT_S: Final = 60.0
_LENGTH: Final = struct.Struct("<Q")
_READY: Final = b"ready"


class WorkerGoneError(Exception):
    """The process ended without answering."""


class WorkerLateError(Exception):
    """The process did not answer in time; it still runs."""


def workers_are_supported() -> bool:
    """Whether this system can wait on a pipe with a deadline, as workers need."""
    return os.name == "posix"


class WorkerProcess:
    """One child of this interpreter, started at once, that exchanges messages over pipes.

    It ends by itself when its parent is gone. A message is bytes of any length; both sides encode
    with marshal rather than pickle, because a worker that a query has taken over can then send
    data, but no code.

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
            WorkerGoneError: the process has ended (or was killed by another thread).
            WorkerLateError: no complete message came within `timeout_s`.
        """
        deadline = time.perf_counter() + timeout_s
        try:
            header = _read_exactly(self._process.stdout, _LENGTH.size, deadline)
            return _read_exactly(self._process.stdout, _LENGTH.unpack(header)[0], deadline)
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


def serve_messages(answer: Callable[[bytes, Callable[[bytes], None]], None]) -> None:
    """Answer the messages on standard input until it ends (runs in the child).

    Args:
        answer: called with each message and a function that sends one back.
    """
    # Answers go to a private copy of standard output, so that nothing else can write between.
    output = os.fdopen(os.dup(1), "wb", buffering=0)
    os.dup2(2, 1)
    source = os.fdopen(os.dup(0), "rb", buffering=0)
    threading.Thread(target=_end_with_parent, args=(int(sys.argv[1]),), daemon=True).start()
    # Ctrl-C in a terminal reaches the whole group; the parent decides what it means.
    signal.signal(signal.SIGINT, signal.SIG_IGN)

    def send(message: bytes) -> None:
        _write_message(output, message)

    send(_READY)
    while True:
        try:
            header = _read_exactly(source, _LENGTH.size, None)
            message = _read_exactly(source, _LENGTH.unpack(header)[0], None)
        except WorkerGoneError:
            return
        try:
            answer(message, send)
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
