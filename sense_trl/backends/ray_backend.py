"""`RayBackend`: shards on the machines of a Ray cluster, each worker an actor."""

from __future__ import annotations

import os
import socket
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final

from sense_trl._closing import Closing
from sense_trl._files import sampled_sha256_of
from sense_trl._version import __version__
from sense_trl.backends.backend import Key, Progress, Work
from sense_trl.database.catalog import DatabaseCatalog
from sense_trl.database.location import DatabasePath, ServerDatabase
from sense_trl.errors import ExecutionBackendError, InputError

# A shard may lose its worker so often: to a machine that goes, or to itself.
_MAX_DEATHS: Final = 3
_MAX_LOST_STARTS: Final = 16
# With so many failed ones no other is begun: they share their reason.
_MAX_FAILED: Final = 8
_MAX_NAMED: Final = 5
# Without a worker for so long, nothing of the cluster is free for us.
_START_TIMEOUT_S: Final = 300.0
# Shards and results pass through, and are seldom above a megabyte.
_OBJECT_STORE_BYTES: Final = 200 * 2**20


class RayBackend(Closing):
    """Does shards on a Ray cluster, in actors with one CPU each.

    A shard is sent to an actor, and what it gives is sent back: nothing is written on the way. An
    actor runs queries in a worker process of its own, as this process would, so that what ends
    such a process ends no actor. An actor that is lost, with its machine or without, is replaced,
    and its shard done again. A shard that fails keeps no other from being finished; its items are
    tried one by one, and those that fail are named in the error at the end.

    Every machine needs the same version of sense_trl, and the databases under the same paths.

    Args:
        catalog: the databases that a work reads.
        address: of a running cluster, as `ray.init` takes it; "local" starts one on this machine,
            with its CPUs, and ends it with `close`. A process that is connected to a cluster
            already stays with that.
        num_workers: actors; `None` for one CPU less than the cluster has.

    Raises:
        InputError: Ray is not installed, `num_workers` would take every CPU, or a database needs
            a password that only this process knows.
        ExecutionBackendError: there is no cluster at `address`, or it cannot be started.
    """

    verifier_workers: Final = 1

    def __init__(
        self, catalog: DatabaseCatalog, *, address: str = "local", num_workers: int | None = None
    ) -> None:
        _refuse_passwords(catalog)
        self._ray = _import_ray()
        self._catalog = catalog
        self._owns_connection = not self._ray.is_initialized()
        if self._owns_connection:
            _connect(self._ray, address)
        try:
            self._num_workers = _count_workers(self._ray, num_workers)
        except InputError:
            self.close()
            raise

    @property
    def num_workers(self) -> int:
        """Actors that are used at most."""
        return self._num_workers

    def close(self) -> None:
        """Leave the cluster; one that was started for this backend ends."""
        if self._owns_connection and self._ray.is_initialized():
            self._ray.shutdown()

    def map_shards(
        self,
        work: Work,
        shards: Iterable[tuple[Key, Sequence[Any]]],
        *,
        get_name: Callable[[Any], str],
        on_progress: Progress = None,
    ) -> Iterator[tuple[Key, Any]]:
        """See `Backend`; `work` and `get_name` are pickled, and progress comes shard by shard.

        Raises:
            ExecutionBackendError: a machine lacks a database or has another version of it or of
                sense_trl; no worker starts within 5 minutes; or shards failed: raised when the
                others are finished, with the names of what failed.
        """
        pool = _Pool(self._ray, self._num_workers, (work, get_name, _get_states(self._catalog)))
        source = iter(shards)
        failures: list[str] = []
        try:
            while True:
                while pool.has_room and len(failures) < _MAX_FAILED:
                    if (entry := next(source, None)) is None:
                        break
                    pool.add(_Task(*entry))
                if pool.is_empty:
                    break
                for task, outcome in pool.wait():
                    if isinstance(outcome, _Failed):
                        failures += outcome.reasons
                    elif outcome is not None and not task.is_probe:
                        if on_progress is not None:
                            on_progress(outcome.count)
                        yield task.key, outcome.result
        finally:
            pool.close()
        if failures:
            shown = "; ".join(failures[:_MAX_NAMED])
            more = f"; and {len(failures) - _MAX_NAMED} more" if failures[_MAX_NAMED:] else ""
            raise ExecutionBackendError(
                f"{len(failures)} parts of the work failed on the cluster: {shown}{more}. What is "
                "finished is kept; mend or leave out what is named, and run the same again."
            )


@dataclass(slots=True, eq=False)
class _Task:
    """A shard on its way; a probe is an item of one that is lost again and again."""

    key: Any
    shard: Sequence[Any]
    is_probe: bool = False
    num_deaths: int = 0


@dataclass(frozen=True, slots=True)
class _Done:
    result: Any
    count: int


@dataclass(frozen=True, slots=True)
class _Failed:
    reasons: list[str]


class _Worker:
    """An actor: does shards with the work that it was opened with."""

    def open(
        self,
        version: str,
        work: Work,
        get_name: Callable[[Any], str],
        states: Sequence[tuple[DatabasePath, str]],
    ) -> str | None:
        """Take the work; returns why this machine is unfit for it, if it is."""
        self._work, self._get_name = work, get_name
        host = socket.gethostname()
        if version != __version__:
            return f"sense_trl is {__version__} on {host}, and {version} here; install one version"
        for path, state in states:
            if _get_state(path) != state:
                return (
                    f"{str(path)!r} is not on {host}, or another one than here; every machine "
                    "needs the databases under the same paths, e.g. in a shared folder"
                )
        return None

    def run(self, shard: Sequence[Any]) -> _Done | _Failed:
        """Do a shard, or find the items for which it fails."""
        counts: list[int] = []
        try:
            return _Done(self._work(shard, counts.append), sum(counts))
        except Exception as error:
            guilty = []
            for item in shard if len(shard) > 1 else []:
                try:
                    self._work([item], None)
                except Exception as own:
                    guilty.append(_describe(self._get_name(item), own))
            return _Failed(guilty or [_describe(_name_ends(shard, self._get_name), error)])


def _describe(name: str, error: BaseException) -> str:
    return f"{name}: {type(error).__name__}: {error}"


def _name_ends(shard: Sequence[Any], get_name: Callable[[Any], str]) -> str:
    return " to ".join(dict.fromkeys(get_name(shard[place]) for place in (0, -1)))


class _Pool:
    """Actors, and the tasks that they have or wait for them."""

    def __init__(self, ray: Any, size: int, work: tuple[Work, Callable[[Any], str], Any]) -> None:
        self._ray = ray
        self._size = size
        # num_cpus, and no restarts by Ray: a lost shard is counted here.
        self._make = ray.remote(num_cpus=1, max_restarts=0, max_task_retries=0)(_Worker).remote
        self._get_name = work[1]
        # Once for all actors.
        self._arguments = [ray.put(part) for part in work]
        self._waiting: deque[_Task] = deque()
        self._idle: list[Any] = []
        self._opening: dict[Any, Any] = {}
        self._running: dict[Any, tuple[Any, _Task]] = {}
        self._num_lost_starts = 0

    @property
    def has_room(self) -> bool:
        """Whether another task would find an actor, or one that can be started."""
        return len(self._waiting) + len(self._running) < self._size

    @property
    def is_empty(self) -> bool:
        """Whether no task is left."""
        return not self._waiting and not self._running

    def add(self, task: _Task) -> None:
        """Take a task."""
        self._waiting.append(task)

    def wait(self) -> list[tuple[_Task, _Done | _Failed | None]]:
        """Go on until something has happened; returns tasks that ended, `None` for a lost one."""
        while self._waiting and self._idle:
            actor, task = self._idle.pop(), self._waiting.popleft()
            self._running[actor.run.remote(task.shard)] = actor, task
        missing = len(self._waiting) - len(self._opening)
        for _ in range(min(missing, self._size - len(self._running) - len(self._opening))):
            actor = self._make()
            self._opening[actor.open.remote(__version__, *self._arguments)] = actor
        ready, _ = self._ray.wait([*self._running, *self._opening], timeout=_START_TIMEOUT_S)
        if not ready and not self._running:
            free = self._ray.available_resources().get("CPU", 0)
            raise ExecutionBackendError(
                f"no worker was started within {_START_TIMEOUT_S:g} s: the cluster has {free:g} "
                "free CPUs. Wait for other jobs to end, or give it another machine."
            )
        ended = []
        for reference in ready:
            if reference in self._opening:
                self._admit(reference)
            else:
                ended.append(self._finish(reference))
        return ended

    def _admit(self, reference: Any) -> None:
        actor = self._opening.pop(reference)
        try:
            problem = self._ray.get(reference)
        except self._ray.exceptions.RayTaskError as error:
            problem = f"the work cannot be taken up there: {error}"
        except self._ray.exceptions.RayError as error:
            self._num_lost_starts += 1
            if "creation task" not in str(error) and self._num_lost_starts < _MAX_LOST_STARTS:
                # Lost before it began, with its machine: another one takes its place.
                return
            problem = f"a worker cannot be started: {error}"
        if problem is not None:
            raise ExecutionBackendError(f"The cluster does not fit: {problem}.")
        self._idle.append(actor)

    def _finish(self, reference: Any) -> tuple[_Task, _Done | _Failed | None]:
        actor, task = self._running.pop(reference)
        try:
            outcome: _Done | _Failed = self._ray.get(reference)
        except self._ray.exceptions.RayTaskError as error:
            # Not of the work, whose errors are values: e.g. a result that cannot be pickled.
            outcome = _Failed([_describe(self._get_name(task.shard[0]), error)])
        except self._ray.exceptions.RayError:
            # It may be alive, but out of reach.
            self._ray.kill(actor)
            return task, self._lose(task)
        self._idle.append(actor)
        return task, outcome

    def _lose(self, task: _Task) -> _Failed | None:
        """A task whose actor is gone: again, or item by item, or named."""
        task.num_deaths += 1
        if task.num_deaths < _MAX_DEATHS:
            self._waiting.appendleft(task)
            return None
        if len(task.shard) > 1:
            self._waiting.extend(_Task(task.key, [item], True) for item in task.shard)
        name = _name_ends(task.shard, self._get_name)
        return _Failed([f"{name}: {_MAX_DEATHS} workers were lost with it"])

    def close(self) -> None:
        """End all actors."""
        actors = [*self._idle, *self._opening.values(), *(a for a, _ in self._running.values())]
        if self._ray.is_initialized():
            for actor in actors:
                self._ray.kill(actor)


# ---------------------------------------------------------------------- the cluster


def _import_ray() -> Any:
    try:
        import ray
    except ImportError as error:
        raise InputError(
            "`backend` is 'ray', but Ray is not installed; `pip install 'sense-trl[ray]'`."
        ) from error
    return ray


def _connect(ray: Any, address: str) -> None:
    is_local = address == "local"
    own: dict[str, Any] = {}
    if is_local:
        own = {"include_dashboard": False, "object_store_memory": _OBJECT_STORE_BYTES}
        # It is nobody else's business that a cluster of this process starts.
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    try:
        ray.init(address=address, log_to_driver=False, logging_level="WARNING", **own)
    except Exception as error:
        what = "cannot be started on this machine" if is_local else "cannot be reached"
        raise ExecutionBackendError(
            f"`ray_address` is {address!r}: a Ray cluster {what} ({error})."
        ) from error


def _count_workers(ray: Any, wanted: int | None) -> int:
    total = int(ray.cluster_resources().get("CPU", 0))
    if wanted is None and total > 1:
        return total - 1
    if isinstance(wanted, int) and not isinstance(wanted, bool) and 0 < wanted < total:
        return wanted
    advice = f"give at most {total - 1}" if total > 1 else "use the backend 'local'"
    raise InputError(
        f"`num_workers` is {wanted!r} for a Ray cluster with {total} CPUs; expected 1 or more, and "
        "less than it has: a pool that takes every CPU keeps all other work of the cluster from "
        f"ending. Leave it out, or {advice}."
    )


# ---------------------------------------------------------------------- the databases


def _refuse_passwords(catalog: DatabaseCatalog) -> None:
    for db_id in catalog.db_ids:
        path = catalog.path(db_id)
        if isinstance(path, ServerDatabase) and path.secrets:
            raise InputError(
                f"`database` {str(path)!r} was given with a password, which is not sent to a "
                "cluster, where others may read it. Leave it out, and give it to every machine as "
                "PGPASSWORD, in a password file (~/.pgpass) or in a service file."
            )


def _get_states(catalog: DatabaseCatalog) -> list[tuple[DatabasePath, str]]:
    paths = [catalog.path(db_id) for db_id in catalog.db_ids]
    return [(path, _get_state(path)) for path in paths]


def _get_state(path: DatabasePath) -> str:
    """The content of a file, a part of it if it is large; "" where there is none."""
    if isinstance(path, ServerDatabase):
        return str(path)
    try:
        return sampled_sha256_of(path)
    except OSError:
        return ""
