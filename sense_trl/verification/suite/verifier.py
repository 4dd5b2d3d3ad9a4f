"""Suite accuracy: predictions that stay right on neighbours of the database: `SuiteVerifier`."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import weakref
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import astuple, dataclass, replace
from pathlib import Path
from typing import Final

from sense_trl._closing import Closing
from sense_trl._files import sha256_of, write_text_atomically
from sense_trl.database.catalog import DatabaseCatalog
from sense_trl.database.engine import ExecutionLimits
from sense_trl.database.opening import dialect_of, is_database_file, version_of
from sense_trl.database.profile import ForeignKeyColumns
from sense_trl.errors import InputError
from sense_trl.verification.comparison import Reason, Semantics, Verdict
from sense_trl.verification.gold_cache import describe_failure
from sense_trl.verification.judging import Verification, VerificationRequest
from sense_trl.verification.suite.instances import SuiteChoice, SuiteSettings
from sense_trl.verification.suite.pool import Outcome, SuitePool
from sense_trl.verification.suite.worker import (
    SuiteFinding,
    SuiteTask,
    pack_choice,
    unpack_choice,
)
from sense_trl.verification.verifier import SQLVerifier

__all__ = [
    "SuiteSettings",
    "SuiteVerification",
    "SuiteVerifier",
    "get_suite_files",
    "suite_accuracy",
]

# Changed whenever other instances are drawn or chosen: it is part of the key of what is kept.
_FORMAT: Final = 3
_MAX_KEPT_CHOICES: Final = 20_000
# What the original cannot tell because of its rows, not because of the query's cost: another
# database may tell.
_WORTH_A_SUITE: Final = frozenset(
    {Reason.RESULTS_EQUAL, Reason.BOTH_EMPTY, Reason.GOLD_LIMIT_TIE, Reason.GOLD_NOT_DETERMINISTIC}
)


@dataclass(frozen=True, slots=True)
class SuiteVerification:
    """The verdict on one prediction after all instances.

    Attributes:
        verdict: correct if it is on the original and no instance refutes it; wrong if the
            original or an instance refutes it; else undetermined.
        reason: why; of the original, or of the instance that refutes it.
        original: the verification on the original database.
        refuted_by: the instance that refutes it: "neighbour 5", or the file's name in an official
            suite; `None` if none does.
        num_equal: instances on which it answered as gold.
        num_undetermined: instances that could not tell (both empty, gold without one answer).
    """

    verdict: Verdict
    reason: Reason
    original: Verification
    refuted_by: str | None = None
    num_equal: int = 0
    num_undetermined: int = 0


def suite_accuracy(verifications: Sequence[SuiteVerification]) -> float:
    """Share of predictions that are correct on the original and on every instance, in [0, 1].

    Undetermined ones stay in the denominator, as in `execution_accuracy`.

    Raises:
        InputError: no verifications.
    """
    if not verifications:
        raise InputError("`verifications` is empty; accuracy over no question is undefined.")
    return sum(v.verdict is Verdict.CORRECT for v in verifications) / len(verifications)


def get_suite_files(path: str | os.PathLike[str]) -> dict[str, tuple[Path, ...]]:
    """Find the instances of an official test suite: `<db_id>/*.sqlite`, sorted by name.

    Raises:
        InputError: there is no such folder, or no database in it.
    """
    root = Path(path).absolute()
    if not root.is_dir():
        raise InputError(f"`path` {root} is no folder; expected one with <db_id>/*.sqlite")
    found = {}
    for folder in sorted(entry for entry in root.iterdir() if entry.is_dir()):
        files = sorted(filter(is_database_file, folder.iterdir()))
        if files:
            found[folder.name] = tuple(files)
    if not found:
        raise InputError(f"`path` {root} holds no <db_id>/*.sqlite")
    return found


def check_suite_databases(catalog: DatabaseCatalog) -> None:
    """Refuse a suite of what is on a server.

    Raises:
        InputError: a database is.
    """
    if on_server := [name for name in catalog.db_ids if catalog.dialect(name) == "postgres"]:
        raise InputError(
            f"a suite is asked for, and {on_server[0]!r} is on a PostgreSQL server: neighbours "
            "are databases that are created, filled and queried by hundreds, which is no work "
            "for a server that others use. Leave the suite out; or copy the database to a file "
            "of SQLite or DuckDB, translate the queries (`transpile`), and verify them there."
        )


class SuiteVerifier(Closing):
    """Verifies predictions on the original database and on neighbours of it.

    Each gold query has its own neighbours (see `DatabaseFuzzer`), chosen to tell it from its
    mutants (see `mutate_sql`) where the original does not. Gold has one answer on each of them.
    Only predictions that the original cannot refute are run there.

    A refutation is strong evidence and no proof: an instance keeps keys, references and types,
    not every rule that the data may obey. `undetermined` on the original stays so unless an
    instance refutes. Verdicts do not depend on the number of workers or the order of requests.

    The instances are small files in a temporary folder (in memory where the system has
    `/dev/shm`), at most some 25 per worker at a time, deleted at once and again by `close`.
    Protection against hostile SQL is that of `SQLVerifier`, except that a prediction that hangs or
    ends a worker on an instance is tried twice, and then undetermined (`WORKER_DIED`).

    Args:
        catalog: where the original databases are.
        settings: how many instances, and how they are chosen.
        foreign_keys: references by `db_id` that a database does not declare.
        suite_files: instances by `db_id` to use instead, as `get_suite_files` finds them.
        semantics: of the comparison, with `suite_files` only; neighbours are `strict`.
        limits: limits of each query; the catalog's by default.
        num_workers: as in `SQLVerifier`.
        cache_dir: folder for what is known about gold and for the choice of instances; `None`
            keeps both in memory only.

    Raises:
        InputError: an argument does not fit.

    Example:
        >>> import sqlite3, tempfile, pathlib
        >>> folder = pathlib.Path(tempfile.mkdtemp())
        >>> connection = sqlite3.connect(folder / "pets.sqlite")
        >>> _ = connection.execute("CREATE TABLE pet (id INTEGER PRIMARY KEY, age INTEGER)")
        >>> _ = connection.execute("INSERT INTO pet VALUES (1, 3), (2, 9)")
        >>> connection.commit()
        >>> request = VerificationRequest(
        ...     "pets", "SELECT id FROM pet WHERE age > 4", "SELECT id FROM pet WHERE age > 3"
        ... )
        >>> with DatabaseCatalog.from_path(folder) as catalog:
        ...     with SuiteVerifier(catalog, num_workers=0) as verifier:
        ...         [found] = verifier.verify([request])
        >>> str(found.original.verdict), str(found.verdict)
        ('correct', 'wrong')
    """

    def __init__(
        self,
        catalog: DatabaseCatalog,
        *,
        settings: SuiteSettings | None = None,
        foreign_keys: Mapping[str, Sequence[ForeignKeyColumns]] | None = None,
        suite_files: Mapping[str, Sequence[Path]] | None = None,
        semantics: Semantics = "strict",
        limits: ExecutionLimits | None = None,
        num_workers: int | None = None,
        cache_dir: str | os.PathLike[str] | None = None,
    ) -> None:
        if suite_files is None and semantics != "strict":
            raise InputError(
                f"`semantics` {semantics!r} needs `suite_files`: neighbours are made for the "
                "strict comparison"
            )
        check_suite_databases(catalog)
        self._catalog = catalog
        self._settings = SuiteSettings() if settings is None else settings
        self._foreign_keys = {db_id: tuple(keys) for db_id, keys in (foreign_keys or {}).items()}
        self._suite_files = suite_files
        self._limits = catalog.limits if limits is None else limits
        self._cache_folder = None if cache_dir is None else Path(cache_dir).absolute()
        self._verifier = SQLVerifier(
            catalog,
            semantics=semantics,
            limits=self._limits,
            num_workers=num_workers,
            cache_dir=cache_dir,
        )
        self._semantics: Semantics = semantics
        self._choices: dict[str, SuiteChoice] = {}
        self._hashes: dict[tuple[Path, int, int, int], str] = {}
        self._pool: SuitePool | None = None
        self._finalizer: weakref.finalize[..., SuiteVerifier] | None = None

    def close(self) -> None:
        """End the workers and delete temporary files; the next call would start them again."""
        if self._finalizer is not None:
            self._finalizer()
        self._finalizer = self._pool = None
        self._choices.clear()
        self._verifier.close()

    def verify(
        self,
        requests: Iterable[VerificationRequest],
        *,
        on_progress: Callable[[int], None] | None = None,
    ) -> list[SuiteVerification]:
        """Verify all requests.

        Args:
            requests: in any order; equal ones are verified once.
            on_progress: called in this thread with the number of requests that are finished since
                the last call. An exception from it, or Ctrl-C, ends the call and leaves the
                verifier usable.

        Returns:
            One verification per request, in the order of the requests.

        Raises:
            InputError: a `db_id` is unknown, or a request names other semantics than neighbours
                are made for; raised before anything runs.
            DatabaseError: a database cannot be read.
            ExecutionBackendError: workers cannot be started.
        """
        requests = list(requests)
        named = {request.semantics for request in requests} - {None, "strict"}
        if named and self._suite_files is None:
            raise InputError(
                f"`semantics` {min(map(str, named))!r} of a request needs `suite_files`: "
                "neighbours are made for the strict comparison"
            )
        originals = self._verifier.verify(requests)
        found = {
            request: SuiteVerification(original.verdict, original.reason, original)
            for request, original in zip(requests, originals, strict=True)
        }
        repeats = Counter(requests)
        still_open = [r for r, known in found.items() if known.reason in _WORTH_A_SUITE]

        def finish(finished: Iterable[VerificationRequest]) -> None:
            count = sum(repeats[request] for request in finished)
            if on_progress is not None and count:
                on_progress(count)

        finish(found.keys() - set(still_open))
        if self._suite_files is not None:
            self._verify_on_files(still_open, found)
            finish(still_open)
        else:
            self._verify_on_neighbours(still_open, found, finish)
        return [found[request] for request in requests]

    # ------------------------------------------------------------------ official suites

    def _verify_on_files(
        self,
        requests: Sequence[VerificationRequest],
        found: dict[VerificationRequest, SuiteVerification],
    ) -> None:
        assert self._suite_files is not None
        for db_id in sorted({request.db_id for request in requests}):
            if not self._suite_files.get(db_id):
                raise InputError(f"`suite_files` holds no instance of `db_id` {db_id!r}")
            own = [request for request in requests if request.db_id == db_id]
            files = {file.name: file for file in self._suite_files[db_id]}
            with (
                DatabaseCatalog(files, limits=self._limits) as catalog,
                SQLVerifier(
                    catalog,
                    semantics=self._semantics,
                    limits=self._limits,
                    num_workers=self._verifier.num_workers,
                ) as verifier,
            ):
                asked = [replace(r, db_id=name) for r in own for name in files]
                answers = iter(verifier.verify(asked))
                for request in own:
                    known = found[request]
                    for name in files:
                        known = _add_answer(known, name, next(answers))
                    found[request] = known

    # ------------------------------------------------------------------ neighbours

    def _verify_on_neighbours(
        self,
        requests: Sequence[VerificationRequest],
        found: dict[VerificationRequest, SuiteVerification],
        finish: Callable[[Iterable[VerificationRequest]], None],
    ) -> None:
        groups: dict[tuple[str, str], list[VerificationRequest]] = {}
        for request in sorted(
            requests, key=lambda r: (r.db_id, r.predicted_sql, r.gold_sql, r.semantics or "")
        ):
            groups.setdefault((request.db_id, request.gold_sql), []).append(request)
        tasks = [self._make_task(*key, group) for key, group in groups.items()]
        members = list(groups.values())
        for number, outcome in self._run(tasks):
            if isinstance(outcome, SuiteChoice):
                self._keep_choice(tasks[number], outcome)
            elif outcome is not None:
                position, finding = outcome
                request = members[number][position]
                found[request] = _add_finding(found[request], finding)
                finish([request])

    def _run(self, tasks: Sequence[SuiteTask]) -> Iterator[Outcome]:
        if self._pool is None or not self._pool.belongs_here:
            if self._finalizer is not None:
                # A fork's copy of the parent's pool: not ours to close.
                self._finalizer.detach()
            self._pool = SuitePool(self._settings, self._limits, self._verifier.num_workers)
            self._finalizer = weakref.finalize(self, self._pool.close)
        return self._pool.run(tasks)

    def _make_task(
        self, db_id: str, gold_sql: str, requests: Sequence[VerificationRequest]
    ) -> SuiteTask:
        task = SuiteTask(
            str(self._catalog.path(db_id)),
            gold_sql,
            tuple(request.predicted_sql for request in requests),
            self._foreign_keys.get(db_id, ()),
        )
        return replace(task, choice=self._find_choice(task))

    # ------------------------------------------------------------------ kept choices

    def _choice_key(self, task: SuiteTask) -> str:
        """Names everything that the choice of instances depends on."""
        path = Path(task.path)
        stat = path.stat()
        state = (path, stat.st_ino, stat.st_size, stat.st_mtime_ns)
        if state not in self._hashes:
            self._hashes[state] = sha256_of(path)
        parts = (
            _FORMAT,
            self._hashes[state],
            version_of(dialect_of(path)),
            task.gold_sql,
            [list(key) for key in task.foreign_keys],
            astuple(self._settings),
        )
        return hashlib.sha256(json.dumps(parts).encode()).hexdigest()

    def _choice_file(self, key: str) -> Path | None:
        folder = self._cache_folder
        return None if folder is None else folder / "suite" / key[:2] / f"{key}.json"

    def _find_choice(self, task: SuiteTask) -> SuiteChoice | None:
        key = self._choice_key(task)
        file = self._choice_file(key)
        if key not in self._choices and file is not None:
            # A file that is damaged is written anew.
            with contextlib.suppress(OSError, ValueError, TypeError):
                self._choices[key] = unpack_choice(json.loads(file.read_text(encoding="utf-8")))
        return self._choices.get(key)

    def _keep_choice(self, task: SuiteTask, choice: SuiteChoice) -> None:
        if task.choice is not None:
            return
        key = self._choice_key(task)
        if len(self._choices) >= _MAX_KEPT_CHOICES:
            self._choices.clear()
        self._choices[key] = choice
        file = self._choice_file(key)
        if file is not None:
            try:
                write_text_atomically(file, json.dumps(pack_choice(choice)), is_shared=True)
            except OSError as error:
                self._verifier.cache_report(describe_failure(file, error))


def _add_finding(known: SuiteVerification, finding: SuiteFinding) -> SuiteVerification:
    known = replace(known, num_equal=finding.num_equal, num_undetermined=finding.num_undetermined)
    if finding.reason is None:
        return known
    name = None if finding.refuted_by is None else f"neighbour {finding.refuted_by}"
    return replace(known, verdict=finding.reason.verdict, reason=finding.reason, refuted_by=name)


def _add_answer(known: SuiteVerification, name: str, answer: Verification) -> SuiteVerification:
    """Take the answer of one more file; the first that refutes decides."""
    if known.refuted_by is not None:
        return known
    if answer.verdict is Verdict.WRONG:
        return replace(known, verdict=Verdict.WRONG, reason=answer.reason, refuted_by=name)
    if answer.verdict is Verdict.CORRECT:
        return replace(known, num_equal=known.num_equal + 1)
    return replace(known, num_undetermined=known.num_undetermined + 1)
