"""`DatabaseCatalog`: from a file, a folder, or the URL of a server to engines by `db_id`."""

from __future__ import annotations

import difflib
import os
import threading
import weakref
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Self

from sense_trl._closing import Closing
from sense_trl.database.engine import ExecutionLimits, SQLEngine
from sense_trl.database.location import DatabasePath, ServerDatabase, locate
from sense_trl.database.opening import (
    DATABASE_SUFFIXES,
    check_psycopg,
    dialect_of,
    is_database_file,
    open_engine,
)
from sense_trl.database.process import workers_are_supported
from sense_trl.database.worker import EngineWorker, IsolatedEngine
from sense_trl.errors import DatabaseError, InputError

# Where Spider (database, test_database) and BIRD (dev_databases, train_databases) keep theirs.
_ROOT_FOLDERS: Final = (
    "database",
    "databases",
    "test_database",
    "dev_databases",
    "train_databases",
)
_EXPECTED: Final = (
    f"expected a file ending in {', '.join(DATABASE_SUFFIXES)}, a folder of them, or "
    "postgresql://user@host/name"
)


class DatabaseCatalog(Closing):
    """Names every database of a data set and opens each when it is first asked for.

    What `engine` hands out runs its queries in a worker process, which can be killed: one for all
    databases that a thread asks for, so that threads do not wait for each other. Engines are
    cached per thread. An engine from the catalog stays the catalog's: `close` closes all of them.

    Args:
        paths: file or URL of each `db_id`; they are not opened before `engine` is called.
        source: what to name in error messages as the place that was searched.
        limits: limits of the engines that the catalog opens.

    Example:
        >>> import sqlite3, tempfile, pathlib
        >>> folder = pathlib.Path(tempfile.mkdtemp())
        >>> connection = sqlite3.connect(folder / "pets.sqlite")
        >>> _ = connection.execute("CREATE TABLE pet AS SELECT 'Rex' AS name")
        >>> connection.close()
        >>> with DatabaseCatalog.from_path(folder) as catalog:
        ...     catalog.db_ids
        ...     catalog.engine("pets").execute("SELECT count(*) FROM pet").rows
        ('pets',)
        ((1,),)
    """

    def __init__(
        self,
        paths: Mapping[str, DatabasePath | str],
        *,
        source: str = "the given paths",
        limits: ExecutionLimits | None = None,
    ) -> None:
        self._paths = {db_id: locate(paths[db_id]) for db_id in sorted(paths)}
        self._source = source
        self._limits = ExecutionLimits() if limits is None else limits
        self._local = threading.local()
        self._lock = threading.Lock()
        # What belongs to a thread ends with it.
        self._opened: weakref.WeakSet[Closing] = weakref.WeakSet()
        self._closed = False

    @classmethod
    def from_path(
        cls,
        path: str | os.PathLike[str] | ServerDatabase,
        *,
        limits: ExecutionLimits | None = None,
    ) -> Self:
        """Find the databases at `path`.

        Recognised are: one `.sqlite`, `.sqlite3`, `.db` or `.duckdb` file (its stem is the
        `db_id`); a folder of such files; a folder of folders `<db_id>/<db_id>.sqlite`; a root of
        Spider or BIRD that holds such folders as `database/`, `databases/`, `test_database/`,
        `dev_databases/` or `train_databases/`.

        `postgresql://user:password@host/name` is one database of a PostgreSQL server, with its name
        as `db_id`. Where `{db_id}` stands in place of the name, or in the parameter `schemas`, it
        is every database, or every schema, whose name fits and that the role may use; see
        `ServerDatabase` and docs/postgres.md.

        Raises:
            DatabaseError: `path` does not exist or holds no database; the server cannot be reached.
            InputError: two files claim the same `db_id`; a URL that cannot be read.
        """
        place = locate(path)
        if isinstance(place, ServerDatabase):
            check_psycopg()
            if place.find_part() is None:
                return cls({place.stem: place}, source=str(place), limits=limits)
            from sense_trl.database.postgres_listing import find_databases

            return cls(find_databases(place), source=str(place), limits=limits)
        root = place.absolute()
        if not root.exists():
            raise DatabaseError(f"the database {str(root)!r} does not exist; {_EXPECTED}")
        if root.is_file():
            if root.suffix.lower() not in DATABASE_SUFFIXES:
                raise DatabaseError(f"the file {str(root)!r} is no database; {_EXPECTED}")
            return cls({root.stem: root}, source=str(root), limits=limits)
        found: dict[str, Path] = {}
        for folder in (root, *(root / name for name in _ROOT_FOLDERS)):
            if folder.is_dir():
                for db_id, file in _scan(folder):
                    other = found.setdefault(db_id, file)
                    if other != file:
                        raise InputError(
                            f"two databases are called {db_id!r}: {other} and {file}; "
                            "name the folder of one of them"
                        )
        if not found:
            raise DatabaseError(
                f"no database under {root}: expected *.sqlite, *.db or *.duckdb files, "
                "<db_id>/<db_id>.sqlite, or a Spider or BIRD root with one of "
                f"{', '.join(name + '/' for name in _ROOT_FOLDERS)}"
            )
        return cls(found, source=str(root), limits=limits)

    @property
    def db_ids(self) -> tuple[str, ...]:
        """All database names, sorted."""
        return tuple(self._paths)

    @property
    def limits(self) -> ExecutionLimits:
        """The limits of the engines that the catalog opens."""
        return self._limits

    def __contains__(self, db_id: object) -> bool:
        return db_id in self._paths

    def __len__(self) -> int:
        return len(self._paths)

    def __repr__(self) -> str:
        return f"DatabaseCatalog({len(self)} databases of {self._source})"

    def path(self, db_id: str) -> DatabasePath:
        """The file of `db_id`, or its place on a server.

        Raises:
            InputError: no such database; the message names near matches.
        """
        try:
            return self._paths[db_id]
        except KeyError:
            near = difflib.get_close_matches(db_id, self._paths, n=3)
            hint = f"; did you mean {', '.join(map(repr, near))}?" if near else ""
            raise InputError(
                f"`db_id` {db_id!r} is not among the {len(self)} databases of {self._source}{hint}"
            ) from None

    def dialect(self, db_id: str) -> str:
        """The dialect of `db_id` as sqlglot spells it; the file is not opened.

        Raises:
            InputError: no such database.
        """
        return dialect_of(self.path(db_id))

    def engine(self, db_id: str) -> SQLEngine:
        """The calling thread's engine of `db_id`, opened on first use.

        It is an `IsolatedEngine`; where the system has no worker processes (other than POSIX), it
        is what `in_process_engine` gives.

        Raises:
            InputError: no such database, or the catalog is closed.
            DatabaseError: the file cannot be opened.
            ExecutionBackendError: no worker process can be started.
        """
        if not workers_are_supported():
            return self.in_process_engine(db_id)
        own = self._get_own()
        if db_id not in own.isolated:
            path = self.path(db_id)
            own.isolated[db_id] = IsolatedEngine(path, limits=self._limits, worker=own.worker)
        return own.isolated[db_id]

    def in_process_engine(self, db_id: str) -> SQLEngine:
        """The calling thread's engine of `db_id` inside this process, opened on first use.

        For SQL that is known to end: see `SQLiteEngine` and `DuckDBEngine` for what a process
        cannot protect itself from.

        Raises:
            InputError: no such database, or the catalog is closed.
            DatabaseError: the file cannot be opened.
        """
        own = self._get_own()
        if db_id not in own.in_process:
            engine = own.in_process[db_id] = open_engine(self.path(db_id), limits=self._limits)
            self._keep(engine)
        return own.in_process[db_id]

    def _get_own(self) -> _OfThread:
        """The worker and the engines of the calling thread, made on first use."""
        if self._closed:
            raise InputError(f"the catalog of {self._source} is closed; open a new one")
        own: _OfThread | None = getattr(self._local, "own", None)
        # A forked child must not use its parent's connections.
        if own is None or own.process_id != os.getpid():
            worker = EngineWorker(memory_limit_bytes=self._limits.memory_limit_bytes)
            own = self._local.own = _OfThread(os.getpid(), worker)
            self._keep(worker)
        return own

    def _keep(self, opened: Any) -> None:
        with self._lock:
            self._opened.add(opened)

    def close(self) -> None:
        """Close every engine of every thread; closing twice is allowed."""
        self._closed = True
        with self._lock:
            opened = list(self._opened)
            self._opened.clear()
        for each in opened:
            each.close()


@dataclass(slots=True)
class _OfThread:
    """Engines of one thread of one process: those that share its worker, and those without one.

    The worker starts no process before it is asked.
    """

    process_id: int
    worker: EngineWorker
    isolated: dict[str, SQLEngine] = field(default_factory=dict)
    in_process: dict[str, SQLEngine] = field(default_factory=dict)


def _scan(folder: Path) -> list[tuple[str, Path]]:
    found = []
    for entry in sorted(folder.iterdir()):
        if is_database_file(entry):
            found.append((entry.stem, entry))
        elif entry.is_dir() and entry.name not in _ROOT_FOLDERS:
            for suffix in DATABASE_SUFFIXES:
                file = entry / f"{entry.name}{suffix}"
                if is_database_file(file):
                    found.append((entry.name, file))
                    break
    return found
