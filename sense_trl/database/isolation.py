"""`IsolatedCatalog`: a catalog's databases, queried in a worker process."""

from __future__ import annotations

from sense_trl._closing import Closing
from sense_trl.database.catalog import DatabaseCatalog
from sense_trl.database.engine import SQLEngine
from sense_trl.database.process import workers_are_supported
from sense_trl.database.worker import EngineWorker, IsolatedEngine

__all__ = ["IsolatedCatalog"]


class IsolatedCatalog(Closing):
    """Engines over a catalog's databases that run queries in one worker process.

    For SQL of which nothing is known: neither the time nor the memory that it takes to its end.
    Where there are no worker processes, the engines are the catalog's.

    Args:
        catalog: the databases, and the limits.
    """

    def __init__(self, catalog: DatabaseCatalog) -> None:
        self._catalog = catalog
        self._worker = EngineWorker(memory_limit_bytes=catalog.limits.memory_limit_bytes)
        self._engines: dict[str, SQLEngine] = {}

    def close(self) -> None:
        """End the worker process; the catalog stays open."""
        self._worker.close()

    def engine(self, db_id: str) -> SQLEngine:
        """The engine of one database."""
        if not workers_are_supported():
            return self._catalog.engine(db_id)
        if db_id not in self._engines:
            path, limits = self._catalog.path(db_id), self._catalog.limits
            self._engines[db_id] = IsolatedEngine(path, limits=limits, worker=self._worker)
        return self._engines[db_id]
