"""Gold is examined once; the cache on disk is never believed where it may be wrong."""

from __future__ import annotations

import os
import resource
import sqlite3
import time
from pathlib import Path

import pytest

from sense_trl.database.catalog import DatabaseCatalog
from sense_trl.database.engine import ExecutionLimits
from sense_trl.database.sqlite_engine import SQLiteEngine
from sense_trl.verification import gold_cache, judging
from sense_trl.verification.comparison import Reason
from sense_trl.verification.gold_cache import GoldCache, prune_cache
from sense_trl.verification.judging import GoldExamination, examine_gold
from sense_trl.verification.verifier import SQLVerifier, VerificationRequest

SCRIPT = "CREATE TABLE t (a, b); INSERT INTO t VALUES (1, 'x'), (2.5, x'00ff'), (NULL, 'y');"
GOLD = "SELECT * FROM t"


@pytest.fixture
def path(fresh_db) -> Path:
    return fresh_db(SCRIPT)


@pytest.fixture
def examined(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Texts that were really run; everything is worth storing."""
    texts: list[str] = []

    def examine(gold_sql, *arguments) -> GoldExamination:
        texts.append(gold_sql)
        return examine_gold(gold_sql, *arguments)

    monkeypatch.setattr(gold_cache, "examine_gold", examine)
    monkeypatch.setattr(gold_cache, "_MIN_STORED_S", 0.0)
    return texts


def _get(path: Path, folder: Path | None, sql: str = GOLD, **settings) -> GoldExamination:
    limits = settings.pop("limits", ExecutionLimits())
    with SQLiteEngine(path) as engine:
        return GoldCache(settings.get("semantics", "strict"), limits, folder=folder).get(
            engine, sql
        )


def _entries(folder: Path) -> list[Path]:
    return sorted(folder.glob("*/*.gold"))


def test_memory_is_asked_before_the_engine(path: Path, examined: list[str]) -> None:
    cache = GoldCache("strict", ExecutionLimits())
    with SQLiteEngine(path) as engine:
        assert cache.get(engine, GOLD) is cache.get(engine, GOLD)
        cache.get(engine, GOLD + " ")
    assert examined == [GOLD, GOLD + " "]


def test_what_another_process_stored_is_used(
    path: Path, tmp_path: Path, examined: list[str]
) -> None:
    folder = tmp_path / "cache"
    first = _get(path, folder)
    again = _get(path, folder)
    assert examined == [GOLD]
    assert again == first
    assert again.result.rows == ((1, "x"), (2.5, b"\x00\xff"), (None, "y"))
    for sql, reason in (("SELECT", "gold_syntax_error"), ("SELECT random()", "gold_not_det")):
        assert str(_get(path, folder, sql).problem).startswith(reason)
        assert _get(path, folder, sql) == _get(path, folder, sql)
    assert len(_entries(folder)) == 3
    assert not list(folder.glob("*/*.tmp"))
    # As any other file: users may share a folder.
    (tmp_path / "file").touch()
    assert {entry.stat().st_mode for entry in _entries(folder)} == {
        (tmp_path / "file").stat().st_mode
    }


def test_everything_the_answer_depends_on_is_in_the_key(
    path: Path, tmp_path: Path, examined: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "cache"
    _get(path, folder)
    _get(path, folder, semantics="bird")
    _get(path, folder, limits=ExecutionLimits(max_rows=7))
    _get(path, folder, limits=ExecutionLimits(timeout_s=7))  # seconds are not
    assert len(examined) == 3
    monkeypatch.setattr(SQLiteEngine, "version", "sqlite 99")
    _get(path, folder)
    assert len(examined) == 4
    with sqlite3.connect(path) as connection:
        connection.execute("DELETE FROM t WHERE a = 1")
    connection.close()
    assert len(_get(path, folder).result.rows) == 2
    assert len(examined) == 5


@pytest.mark.parametrize("damage", ["empty", "short", "flipped", "foreign"])
def test_a_damaged_entry_is_ignored_and_written_anew(
    path: Path, tmp_path: Path, examined: list[str], damage: str
) -> None:
    folder = tmp_path / "cache"
    first = _get(path, folder)
    (entry,) = _entries(folder)
    whole = entry.read_bytes()
    flipped = bytearray(whole)
    flipped[-3] ^= 1
    entry.write_bytes(
        {"empty": b"", "short": whole[:-1], "flipped": bytes(flipped), "foreign": b"x" * 99}[damage]
    )
    assert _get(path, folder).result.rows == first.result.rows
    assert len(examined) == 2
    assert _get(path, folder).result.rows == first.result.rows
    assert len(examined) == 2


def test_a_changed_file_has_new_answers_in_memory_too(path: Path) -> None:
    cache = GoldCache("strict", ExecutionLimits())
    with SQLiteEngine(path) as engine:
        assert len(cache.get(engine, GOLD).result.rows) == 3
        with sqlite3.connect(path) as connection:
            connection.execute("DELETE FROM t WHERE a = 1")
        connection.close()
        os.utime(path, ns=(0, time.time_ns()))
        assert len(cache.get(engine, GOLD).result.rows) == 2


def test_rows_in_a_write_ahead_log_are_not_stored_under_the_hash_of_the_file(
    path: Path, tmp_path: Path, examined: list[str]
) -> None:
    writer = sqlite3.connect(path)
    writer.execute("PRAGMA journal_mode = WAL")
    writer.execute("INSERT INTO t VALUES (3, 'z')")
    writer.commit()
    assert len(_get(path, tmp_path / "cache").result.rows) == 4
    assert _entries(tmp_path / "cache") == []
    writer.close()


def test_what_the_clock_stopped_gets_another_chance(path: Path, tmp_path: Path) -> None:
    endless = "WITH RECURSIVE r(x) AS (SELECT 1 UNION ALL SELECT x FROM r) SELECT count(*) FROM r"
    cache = GoldCache("strict", ExecutionLimits(timeout_s=0.05), folder=tmp_path / "cache")
    with SQLiteEngine(path) as engine:
        first = cache.get(engine, endless)
        assert first.problem is Reason.GOLD_TIMEOUT
        assert cache.get(engine, endless) is first
        cache.forget_timeouts()
        assert cache.get(engine, endless) is not first
    assert _entries(tmp_path / "cache") == []


def test_a_gold_query_that_was_stopped_is_run_again_once_it_may_take_longer(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(judging, "_GOLD_STEPS", 1_000_000)
    slow = "WITH RECURSIVE r(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM r WHERE x < 200000) "
    slow += "SELECT count(*) FROM r"
    problems = []
    for timeout_s in (30.0, 31.0):
        limits = ExecutionLimits(timeout_s=timeout_s)
        cache = GoldCache("strict", limits, folder=tmp_path / "cache")
        with SQLiteEngine(path) as engine:
            problems.append(cache.get(engine, slow).problem)
    assert problems == [Reason.GOLD_STEP_BUDGET, None]
    assert len(_entries(tmp_path / "cache")) == 2


def test_memory_is_bounded(path: Path, examined: list[str]) -> None:
    cache = GoldCache("strict", ExecutionLimits(), max_memory_bytes=5_000)
    texts = [f"SELECT {n}" for n in range(50)]
    with SQLiteEngine(path) as engine:
        for sql in texts:
            cache.get(engine, sql)
        assert len(examined) == 50
        cache.get(engine, texts[-1])
        assert len(examined) == 50
        cache.get(engine, texts[0])
        assert len(examined) == 51


def test_the_oldest_entries_are_pruned(path: Path, tmp_path: Path, examined: list[str]) -> None:
    folder = tmp_path / "cache"
    for n in range(5):
        _get(path, folder, f"SELECT {n}")
        newest = max(_entries(folder), key=lambda file: file.stat().st_mtime_ns)
        os.utime(newest, ns=(n * 10**9 + 1, n * 10**9 + 1))
    # os.utime above renumbers one file per turn, so ages are 0 to 4 s after the epoch.
    sizes = [file.stat().st_size for file in _entries(folder)]
    assert prune_cache(folder, sum(sizes)) == 0
    assert prune_cache(folder, 2 * max(sizes)) == 3
    assert len(_entries(folder)) == 2
    assert prune_cache(folder, 0) == 2


# ---------------------------------------------------------------------- where nothing can be written


def _limit_file_sizes(size: int) -> None:
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))


# Long enough to be worth a file.
SLOW_GOLD = (
    "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < {}) "
    "SELECT max(i) FROM n"
)


def _verify(path: Path, folder: Path, num_workers: int) -> list[str]:
    requests = [
        VerificationRequest(path.stem, f"SELECT {answer}", SLOW_GOLD.format(top))
        for top in range(30_000, 30_005)
        for answer in (top, 1)
    ]
    with (
        DatabaseCatalog.from_path(path) as catalog,
        SQLVerifier(catalog, num_workers=num_workers, cache_dir=folder) as verifier,
    ):
        verifications = verifier.verify(requests)
        assert verifier.num_replaced_workers == 0
    return [str(verification.verdict) for verification in verifications]


@pytest.mark.parametrize("num_workers", [0, 1])
@pytest.mark.parametrize("obstacle", ["a file for the folder", "a full disk", "no obstacle"])
def test_a_cache_that_cannot_be_written_is_one_warning_and_costs_no_verdict(
    path: Path,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    obstacle: str,
    num_workers: int,
) -> None:
    folder = tmp_path / "cache"
    if obstacle == "a file for the folder":
        folder.write_text("no folder")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        if obstacle == "a full disk":
            # Workers inherit it; less than an entry, more than nothing.
            _limit_file_sizes(40)
        assert _verify(path, folder, num_workers) == ["correct", "wrong"] * 5
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    warned = [record.getMessage() for record in caplog.records]
    assert len(warned) == (obstacle != "no obstacle")
    assert all("`cache_dir` cannot be written" in text and str(folder) in text for text in warned)
    assert len(_entries(folder)) == (5 if obstacle == "no obstacle" else 0)
    assert not list(folder.glob("*/*.tmp"))


def test_an_entry_that_cannot_be_deleted_ends_nothing(path: Path, tmp_path: Path) -> None:
    folder = tmp_path / "cache"
    (folder / "ab" / "entry.gold").mkdir(parents=True)
    assert prune_cache(folder, 0) == 0
    assert _verify(path, folder, 0) == ["correct", "wrong"] * 5


def test_a_cache_that_cannot_be_read_is_none(
    path: Path, tmp_path: Path, examined: list[str]
) -> None:
    folder = tmp_path / "cache"
    _get(path, folder)
    (entry,) = _entries(folder)
    entry.unlink()
    entry.mkdir()
    assert _get(path, folder).result.rows == ((1, "x"), (2.5, b"\x00\xff"), (None, "y"))
    assert examined == [GOLD, GOLD]
