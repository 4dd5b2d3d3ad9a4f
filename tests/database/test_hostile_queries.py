"""Every hostile query ends in an acceptable way, in time, and leaves nothing behind."""

from __future__ import annotations

import hashlib
import json
import resource
import shutil
import sqlite3
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from sense_trl.database.duckdb_import import convert_sqlite
from sense_trl.database.engine import ExecutionLimits, QueryStatus
from sense_trl.database.worker import IsolatedEngine

_TIMEOUT_S = 1.0
_LATE_S = 0.5
_MEMORY_MB = 512
_OUTCOMES = {
    QueryStatus.SYNTAX_ERROR: "error",
    QueryStatus.EXECUTION_ERROR: "error",
}
_GOLD = "SELECT count(*), sum(rid), min(airline), count(DISTINCT codeshare) FROM routes"


@pytest.fixture(scope="module", params=["sqlite", "duckdb"])
def database(
    request: pytest.FixtureRequest,
    spider_databases: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> Path:
    source = spider_databases / "flight_4" / "flight_4.sqlite"
    copy = tmp_path_factory.mktemp("hostile") / f"flight_4.{request.param}"
    if request.param == "sqlite":
        shutil.copy(source, copy)
    else:
        convert_sqlite(source, copy)
    return copy


@pytest.fixture(scope="module")
def engine(database: Path) -> Iterator[IsolatedEngine]:
    with IsolatedEngine(database, limits=ExecutionLimits(timeout_s=_TIMEOUT_S)) as engine:
        assert engine.execute(_GOLD).ok
        yield engine


def _peak_memory_mb(process_id: int | None) -> float:
    for line in Path(f"/proc/{process_id}/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) / 1024
    raise AssertionError(f"no VmHWM in /proc/{process_id}/status")


def test_hostile_queries_end_well_and_do_no_harm(
    shared_data: Path, database: Path, engine: IsolatedEngine, tmp_path: Path
) -> None:
    lines = (shared_data / "hostile_queries.jsonl").read_text(encoding="utf-8").splitlines()
    corpus = [query for query in map(json.loads, lines) if query["dialect"] == engine.dialect]
    assert len(corpus) >= 40
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    other = tmp_path / "other.sqlite"
    with closing(sqlite3.connect(other)) as connection:
        connection.executescript("CREATE TABLE secret (x)")
    gold = engine.execute(_GOLD).rows
    assert gold[0][0] == 67_240
    digest = hashlib.sha256(database.read_bytes()).hexdigest()
    own_peak_mb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024

    wrong = []
    for query in corpus:
        sql = (
            query["sql"].replace("{scratch}", str(scratch)).replace("{other_database}", str(other))
        )
        started = time.perf_counter()
        result = engine.execute(sql)
        elapsed_s = time.perf_counter() - started
        outcome = _OUTCOMES.get(result.status, str(result.status))
        if outcome not in query["expect"]:
            wrong.append(f"{query['id']}: {outcome} ({result.error}), want {query['expect']}")
        if elapsed_s > _TIMEOUT_S + _LATE_S:
            wrong.append(f"{query['id']}: {elapsed_s:.2f} s")
        if engine.execute(_GOLD).rows != gold:
            wrong.append(f"{query['id']}: forged a later answer")
        if Path("/proc").is_dir() and _peak_memory_mb(engine.worker.process_id) > _MEMORY_MB:
            wrong.append(f"{query['id']}: {_peak_memory_mb(engine.worker.process_id):.0f} MB")
    assert wrong == []
    assert hashlib.sha256(database.read_bytes()).hexdigest() == digest
    assert list(scratch.iterdir()) == []
    assert [path.name for path in database.parent.iterdir()] == [database.name]
    peak_mb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    assert peak_mb - own_peak_mb < _MEMORY_MB
