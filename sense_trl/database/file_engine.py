"""`OpenedEngine` and `FileEngine`: what engines have in common, and those over one file."""

from __future__ import annotations

import os
import threading
import time
from abc import abstractmethod
from collections.abc import Callable
from pathlib import Path
from typing import Final

from sense_trl._closing import Closing
from sense_trl.database.engine import ExecutionLimits, QueryResult
from sense_trl.database.location import DatabasePath
from sense_trl.errors import DatabaseError, InputError

# A cheap query takes 0.05 ms, and asking for the state of a file after it another 0.01 ms.
_FILE_CHECK_S: Final = 0.001
_MAX_REOPENS: Final = 3


class OpenedEngine(Closing):
    """Place, limits, and the thread that owns the engine.

    Args:
        path: where the database is.
        limits: the limits that hold where `execute` is given none.
    """

    def __init__(self, path: DatabasePath, limits: ExecutionLimits | None) -> None:
        self._path: DatabasePath = path
        self._limits = ExecutionLimits() if limits is None else limits
        self._owner = (os.getpid(), threading.get_ident())
        self._closed = False

    @property
    def path(self) -> DatabasePath:
        """The absolute path of the database file, or its place on a server."""
        return self._path

    @property
    def limits(self) -> ExecutionLimits:
        """The limits that hold where `execute` is given none."""
        return self._limits

    def __repr__(self) -> str:
        return f"{type(self).__name__}({str(self._path)!r})"

    def close(self) -> None:
        """Close the connections; the engine cannot be used afterwards.

        Closing twice is allowed, and so is closing from another thread while no query runs.
        """
        self._closed = True
        self._disconnect()

    @abstractmethod
    def _disconnect(self) -> None:
        """Close all connections; the next query opens them again."""

    def _check_usable(self) -> None:
        if self._closed:
            raise InputError(f"the engine of {self._path} is closed; open a new one")
        here = (os.getpid(), threading.get_ident())
        if here != self._owner:
            raise InputError(
                f"the engine of {self._path} was opened by thread {self._owner[1]} of process "
                f"{self._owner[0]} and is used by thread {here[1]} of process {here[0]}; "
                "open one engine per thread (`DatabaseCatalog.in_process_engine` does)"
            )


class FileEngine(OpenedEngine):
    """An engine over a file that may change under it.

    Args:
        path: the database file.
        limits: the limits that hold where `execute` is given none.
    """

    def __init__(self, path: str | os.PathLike[str], limits: ExecutionLimits | None) -> None:
        self._path: Path
        super().__init__(Path(path).absolute(), limits)
        self._file = str(self._path)
        self._fingerprint = _fingerprint(self._file)
        self._checked_at = time.perf_counter()

    @property
    def path(self) -> Path:
        """The absolute path of the database file."""
        return self._path

    def _run_on_unchanged_file(self, started: float, run: Callable[[], QueryResult]) -> QueryResult:
        """Run a query, and again on a new connection if the file has changed meanwhile.

        The file is looked at after every query, or after several that took less than 1 ms in all.
        """
        for _ in range(_MAX_REOPENS):
            result = run()
            now = started + result.elapsed_s
            if now - self._checked_at < _FILE_CHECK_S:
                return result
            self._checked_at = now
            found = _fingerprint(self._file)
            if found == self._fingerprint:
                return result
            self._disconnect()
            self._fingerprint = found
        raise DatabaseError(
            f"{self._path} changed during each of {_MAX_REOPENS} runs of a query; "
            "work on a copy that nobody writes to"
        )


def read_header(path: Path, num_bytes: int, kind: str) -> bytes:
    """The first bytes of a database file.

    Raises:
        DatabaseError: the file is missing, a folder, empty or unreadable.
    """
    try:
        with open(path, "rb") as file:
            header = file.read(num_bytes)
    except FileNotFoundError as error:
        raise DatabaseError(f"no database at {path}: the file does not exist") from error
    except IsADirectoryError as error:
        raise DatabaseError(
            f"{path} is a folder, not {kind}; `DatabaseCatalog.from_path` reads folders"
        ) from error
    except OSError as error:
        raise DatabaseError(f"cannot open {path}: {error}") from error
    if not header:
        raise DatabaseError(f"{path} is empty (0 bytes): not {kind}")
    return header


def _fingerprint(file: str) -> tuple[int, int, int, int, bool] | None:
    try:
        stat = os.stat(file)
    except OSError:
        return None
    try:
        # SQLite's log: what it holds is not in the file yet.
        has_log = os.stat(f"{file}-wal").st_size > 0
    except OSError:
        has_log = False
    return stat.st_dev, stat.st_ino, stat.st_size, stat.st_mtime_ns, has_log
