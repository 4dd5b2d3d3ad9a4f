"""Keeping what is known about gold queries, in memory and on disk: `GoldCache`."""

from __future__ import annotations

import contextlib
import hashlib
import logging
import marshal
import os
import threading
from collections import OrderedDict
from pathlib import Path
from typing import Final, TypeAlias

from sense_trl._files import replacing
from sense_trl.database.digest import ResultDigest
from sense_trl.database.engine import ExecutionLimits, QueryResult, SQLEngine
from sense_trl.database.location import DatabasePath, get_content_hash, get_state
from sense_trl.database.messages import Message, decode, encode, pack_rows
from sense_trl.verification.comparison import Reason, Semantics
from sense_trl.verification.judging import GoldExamination, examine_gold, get_step_budget

logger = logging.getLogger(__name__)

# Part of every key: raise it when an entry or the examination of gold changes its meaning.
_FORMAT: Final = 6
# Gold that runs faster than this is run again: that costs less than reading a file.
_MIN_STORED_S: Final = 0.002
_MAX_STORED_BYTES: Final = 16 * 2**20
_SUFFIX: Final = ".gold"
_DIGEST_BYTES: Final = 32
_Key: TypeAlias = tuple[tuple[object, ...], str, Semantics]


class _Entry(Message, frozen=True):
    """What a file holds."""

    sql: str
    problem: Reason | None
    result: QueryResult
    digest: ResultDigest | None


class GoldCache:
    """Examines each gold query once and keeps what came of it.

    In memory the least recently used results go first when they exceed `max_memory_bytes` by a
    rough estimate. On disk there is one file per gold query, named by the hash of everything that
    the answer depends on: content of the database file, text, version of the engine, semantics
    and limits. Files are written aside and renamed, so several processes may share a folder; a
    file that is damaged is ignored and written anew. Where that fails (the disk is full, the folder
    is not writable) `write_problem` says why, and gold is examined once for each process. Not
    stored on disk: what took less than 2 ms (running it again is as fast), results above 16 MB,
    databases with a write-ahead log beside them, those of a server without the label of a
    `snapshot`, and what the wall clock stopped.

    Attributes:
        write_problem: why the last file could not be written; "" while all could.

    Args:
        semantics: of the comparison, where `get` is given none.
        limits: limits of each query.
        folder: where to keep files; `None` keeps nothing on disk. `prune_cache` bounds its size.
        max_memory_bytes: bound of the estimate of what is kept in memory.
    """

    def __init__(
        self,
        semantics: Semantics,
        limits: ExecutionLimits,
        *,
        folder: Path | None = None,
        max_memory_bytes: int = 128 * 2**20,
    ) -> None:
        self._semantics: Semantics = semantics
        self._limits = limits
        self._folder = folder
        self._max_memory_bytes = max_memory_bytes
        self._known: OrderedDict[_Key, tuple[GoldExamination, int]] = OrderedDict()
        self._used_bytes = 0
        self._lock = threading.Lock()
        self._timed_out: dict[_Key, GoldExamination] = {}
        self._database_hashes: dict[tuple[object, ...], str | None] = {}
        self.write_problem = ""

    def get(
        self, engine: SQLEngine, gold_sql: str, semantics: Semantics | None = None
    ) -> GoldExamination:
        """The examination of `gold_sql` on the database of `engine`, looked up or made.

        Raises:
            DatabaseError: the database cannot be read.
        """
        semantics = self._semantics if semantics is None else semantics
        # Another file under the same name has other answers.
        key = (get_state(engine.path), gold_sql, semantics)
        found = self._known.get(key)
        if found is not None:
            with contextlib.suppress(KeyError):  # another thread may just have dropped it
                self._known.move_to_end(key)
            return found[0]
        if key in self._timed_out:
            return self._timed_out[key]
        file = self._file(engine, gold_sql, semantics)
        gold = None if file is None else _read(file)
        if gold is None:
            gold = examine_gold(gold_sql, engine, semantics, self._limits)
            if file is not None:
                try:
                    _write(file, gold)
                except OSError as error:
                    # Gold is known, whether or not the next process will have to ask again.
                    self.write_problem = describe_failure(file, error)
        if gold.problem is Reason.GOLD_TIMEOUT:
            self._timed_out[key] = gold
        else:
            self._keep(key, gold)
        return gold

    def forget_timeouts(self) -> None:
        """Give gold that ran out of seconds another chance: seconds depend on the load."""
        self._timed_out.clear()

    def clear(self) -> None:
        """Forget everything in memory; files stay."""
        self._known.clear()
        self._timed_out.clear()
        self._used_bytes = 0

    def _keep(self, key: _Key, gold: GoldExamination) -> None:
        size = _estimate_bytes(gold.result)
        with self._lock:
            _, replaced = self._known.pop(key, (None, 0))
            self._known[key] = (gold, size)
            self._used_bytes += size - replaced
            while self._used_bytes > self._max_memory_bytes and len(self._known) > 1:
                _, (_, dropped) = self._known.popitem(last=False)
                self._used_bytes -= dropped

    def _file(self, engine: SQLEngine, gold_sql: str, semantics: Semantics) -> Path | None:
        if self._folder is None:
            return None
        content = self._database_hash(engine.path)
        if content is None:
            return None
        limits = self._limits
        parts = (
            _FORMAT,
            content,
            gold_sql,
            engine.version,
            semantics,
            limits.max_rows,
            limits.max_cell_bytes,
            limits.max_result_bytes,
            limits.memory_limit_bytes,
            get_step_budget(limits),
        )
        name = hashlib.sha256(marshal.dumps(parts, 2)).hexdigest()
        return self._folder / name[:2] / (name + _SUFFIX)

    def _database_hash(self, path: DatabasePath) -> str | None:
        try:
            if os.path.getsize(f"{path}-wal") > 0:
                return None
        except OSError:
            pass  # There is none, which is the usual case.
        key = get_state(path)
        if key not in self._database_hashes:
            self._database_hashes[key] = get_content_hash(path)
        return self._database_hashes[key]


def describe_failure(file: Path, error: OSError) -> str:
    """Text for `CacheReport` about a file that could not be written."""
    return f"{file.parent}: {os.strerror(error.errno) if error.errno else error}"


class CacheReport:
    """Warns that a cache on disk cannot be written: once, whatever the number of its files."""

    def __init__(self) -> None:
        self._is_made = False

    def __call__(self, problem: str) -> None:
        """Log a warning with the reason, if this is the first."""
        if not self._is_made:
            self._is_made = True
            logger.warning(
                "`cache_dir` cannot be written (%s). Verdicts are the same, but the next run will "
                "do again what was to be kept there. Free space, or choose another folder.",
                problem,
            )


def prune_cache(folder: Path, max_bytes: int) -> int:
    """Delete the oldest entries of a cache folder until the rest fits into `max_bytes`.

    An entry that cannot be deleted stays; there may be none left to free.

    Returns:
        The number of entries deleted.
    """
    entries = []
    for file in folder.glob(f"*/*{_SUFFIX}"):
        with contextlib.suppress(OSError):  # pruned by another process
            stat = file.stat()
            entries.append((stat.st_mtime_ns, stat.st_size, file))
    excess = sum(size for _, size, _ in entries) - max_bytes
    deleted = 0
    for _, size, file in sorted(entries):
        if excess <= 0:
            break
        with contextlib.suppress(OSError):
            file.unlink(missing_ok=True)
            excess -= size
            deleted += 1
    return deleted


def _estimate_bytes(result: QueryResult) -> int:
    if not result.rows:
        return 500
    # The first rows stand for all; 50 is an object's own size.
    sample = result.rows[:20]
    cells = sum(
        50 + (len(value) if isinstance(value, (str, bytes)) else 0)
        for row in sample
        for value in row
    )
    return 500 + len(result.rows) * (60 + cells // len(sample))


def _write(file: Path, gold: GoldExamination) -> None:
    if gold.problem is Reason.GOLD_TIMEOUT or gold.result.elapsed_s < _MIN_STORED_S:
        return
    body = encode(_Entry(gold.sql, gold.problem, pack_rows(gold.result), gold.digest))
    if len(body) > _MAX_STORED_BYTES:
        return
    with replacing(file, is_shared=True, is_synced=False) as temporary:
        temporary.write_bytes(hashlib.sha256(body).digest() + body)


def _read(file: Path) -> GoldExamination | None:
    """The entry, or `None` if there is none or it is damaged."""
    try:
        data = file.read_bytes()
    except OSError:
        return None
    body = data[_DIGEST_BYTES:]
    if hashlib.sha256(body).digest() != data[:_DIGEST_BYTES]:
        return None
    try:
        entry = decode(body, _Entry)
    except ValueError:
        # Written by another version.
        return None
    return GoldExamination(entry.sql, entry.result, entry.problem, digest=entry.digest)
