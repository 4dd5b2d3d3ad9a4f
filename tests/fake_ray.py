"""A stand-in for Ray: the part of its API that `RayBackend` uses, with threads for actors.

What is put or sent is pickled, as for another process. A method that raises `ActorDies` ends its
actor. `free` is the number of CPUs on which actors start; others wait. That Ray itself behaves so
is for tests/backends/test_ray_backend.py, with a cluster.
"""

from __future__ import annotations

import pickle
import queue
import threading
from concurrent.futures import FIRST_COMPLETED, Future, wait
from types import ModuleType, SimpleNamespace
from typing import Any


class ActorDies(BaseException):
    """Ends the actor that raises it, as a signal would."""


class RayError(Exception):
    """Base class, as in `ray.exceptions`."""


class RayTaskError(RayError):
    """A method raised."""


class ActorDiedError(RayError):
    """An actor is gone."""


class _Actor:
    def __init__(self, ray: Any, kind: type) -> None:
        self._ray, self._object = ray, kind()
        self._calls: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self.is_dead = False
        ray.actors.append(self)
        ray.waiting.append(self)
        ray.start()

    def start(self) -> None:
        threading.Thread(target=self._run, daemon=True).start()

    def __getattr__(self, name: str) -> Any:
        return SimpleNamespace(remote=lambda *arguments: self._send(name, arguments))

    def _send(self, name: str, arguments: tuple[Any, ...]) -> Future[Any]:
        future: Future[Any] = Future()
        self._calls.put((future, name, pickle.dumps(arguments)))
        return future

    def _run(self) -> None:
        while True:
            future, name, arguments = self._calls.get()
            try:
                if self.is_dead:
                    raise ActorDies
                given = [
                    x() if callable(x) and hasattr(x, "is_object") else x
                    for x in pickle.loads(arguments)
                ]
                result = getattr(self._object, name)(*given)
                future.set_result(pickle.dumps(result))
            except ActorDies:
                self.is_dead = True
                future.set_exception(ActorDiedError("the actor died"))
            except Exception as error:
                future.set_exception(RayTaskError(str(error)))


class _Object:
    is_object = True

    def __init__(self, value: Any) -> None:
        self._data = pickle.dumps(value)

    def __call__(self) -> Any:
        return pickle.loads(self._data)


class FakeRay(ModuleType):
    """What `import ray` gives.

    Attributes:
        actors: all that were made.
        killed: those that were ended.
    """

    def __init__(self, num_cpus: int, free: int | None = None) -> None:
        super().__init__("ray")
        self._num_cpus = num_cpus
        self._free = num_cpus if free is None else free
        self._is_initialized = False
        self.actors: list[Any] = []
        self.killed: list[Any] = []
        self.waiting: list[Any] = []
        self.exceptions = SimpleNamespace(RayError=RayError, RayTaskError=RayTaskError)
        self.options: dict[str, Any] = {}
        self.put = _Object

    def start(self) -> None:
        """Start actors that wait, as CPUs allow."""
        alive = [a for a in self.actors if not a.is_dead and a not in self.waiting]
        while self.waiting and len(alive) < self._free:
            actor = self.waiting.pop(0)
            alive.append(actor)
            actor.start()

    def is_initialized(self) -> bool:
        return self._is_initialized

    def init(self, **options: Any) -> None:
        if options["address"] == "nowhere:1":
            raise ConnectionError("no cluster there")
        self.options, self._is_initialized = options, True

    def shutdown(self) -> None:
        self._is_initialized = False

    def cluster_resources(self) -> dict[str, float]:
        return {"CPU": float(self._num_cpus)}

    def available_resources(self) -> dict[str, float]:
        return {"CPU": float(self._free)}

    def remote(self, **options: Any) -> Any:
        assert options == {"num_cpus": 1, "max_restarts": 0, "max_task_retries": 0}
        return lambda kind: SimpleNamespace(remote=lambda: _Actor(self, kind))

    def wait(self, references: list[Any], timeout: float) -> tuple[list[Any], list[Any]]:
        done, rest = wait(references, timeout, FIRST_COMPLETED)
        return list(done)[:1], list(rest)

    def get(self, reference: Any) -> Any:
        return pickle.loads(reference.result())

    def kill(self, actor: Any) -> None:
        actor.is_dead = True
        self.killed.append(actor)
        self.start()
