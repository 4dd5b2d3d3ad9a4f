"""Workers change nothing about verdicts, whatever happens to them."""

from __future__ import annotations

import asyncio
import gc
import os
import random
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from sense_trl.database import process as process_module
from sense_trl.database.catalog import DatabaseCatalog
from sense_trl.database.engine import ExecutionLimits, QueryStatus
from sense_trl.database.messages import decode, encode
from sense_trl.database.process import WorkerGoneError
from sense_trl.errors import DatabaseError
from sense_trl.verification.comparison import Reason, Verdict
from sense_trl.verification.judging import Verification, VerificationRequest
from sense_trl.verification.pool import VerificationPool
from sense_trl.verification.verifier import SQLVerifier
from sense_trl.verification.worker import Chunk, Results

SCRIPT = """
CREATE TABLE singer (id INTEGER PRIMARY KEY, name TEXT, age INT, land TEXT);
INSERT INTO singer VALUES
    (1, 'Joe', 52, 'NL'), (2, 'Ann', 32, 'US'), (3, 'Lee', 32, 'FR'), (4, 'Tim', 29, 'FR'),
    (5, 'Ron', NULL, 'FR');
CREATE TABLE nobody (a);
"""
# One call that SQLite cannot interrupt; it takes minutes.
HANGING = "SELECT instr(zeroblob(900000), zeroblob(450000) || x'01')"
ENDLESS = "WITH RECURSIVE r(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM r) SELECT count(*) FROM r"
QUERIES = [
    "SELECT name FROM singer",
    "SELECT name FROM singer ORDER BY age",
    "SELECT name FROM singer ORDER BY name",
    "SELECT name FROM singer LIMIT 2",
    "SELECT a FROM nobody",
    "SELECT count(*) FROM singer",
    "SELECT 5",
    "SELECT 5.0",
    "SELECT",
    "SELECT '\ud800'",
    "DROP TABLE singer",
    "CREATE TEMP TABLE singer (name)",
    "SELECT hex(zeroblob(600000))",
    "SELECT random()",
]


@pytest.fixture
def catalog(fresh_db, tmp_path: Path) -> Iterator[DatabaseCatalog]:
    fresh_db(SCRIPT, name="music")
    fresh_db(SCRIPT.replace("'Joe'", "'Jan'"), name="choir")
    with DatabaseCatalog.from_path(tmp_path) as catalog:
        yield catalog


def outcome(verification: Verification) -> tuple[object, ...]:
    return (
        verification.verdict,
        verification.reason,
        verification.predicted_status,
        verification.gold_status,
        verification.error,
    )


def _requests(num: int) -> list[VerificationRequest]:
    """Distinct requests whose verdict is known: correct if and only if the remainder is 0."""
    return [
        VerificationRequest(
            "music" if n % 2 else "choir",
            f"SELECT name FROM singer WHERE id = {n % 5 + 1} AND {n} >= 0",
            f"SELECT name FROM singer WHERE id = {n % 5 + 1 if n % 3 == 0 else (n + 1) % 5 + 1}",
        )
        for n in range(num)
    ]


@pytest.mark.parametrize("semantics", ["strict", "spider", "bird"])
def test_verdicts_do_not_depend_on_workers_order_or_repetition(
    catalog: DatabaseCatalog, semantics
) -> None:
    requests = [
        VerificationRequest(db_id, predicted, gold)
        for db_id in catalog.db_ids
        for predicted in QUERIES
        for gold in QUERIES
    ]
    with SQLVerifier(catalog, semantics=semantics, num_workers=0) as serial:
        expected = dict(zip(requests, map(outcome, serial.verify(requests)), strict=True))
    assert {verdict for verdict, *_ in expected.values()} == set(Verdict)
    rng = random.Random(0)
    for num_workers in (1, 2, 4):
        with SQLVerifier(catalog, semantics=semantics, num_workers=num_workers) as verifier:
            for _ in range(2):
                shuffled = requests + requests[:50]
                rng.shuffle(shuffled)
                got = map(outcome, verifier.verify(shuffled))
                assert list(got) == [expected[request] for request in shuffled]
            assert verifier.num_replaced_workers == 0
            assert 1 <= len(verifier.worker_process_ids) <= num_workers


def test_every_request_is_counted_once_while_workers_are_killed(catalog: DatabaseCatalog) -> None:
    requests = _requests(10_000)
    progress: list[int] = []
    rng = random.Random(1)
    with SQLVerifier(catalog, num_workers=2) as verifier:
        stop = threading.Event()

        def kill_at_random() -> None:
            num_killed = 0
            # Bounded, so that a busy machine does not start workers only to see them killed.
            while num_killed < 20 and not stop.wait(rng.uniform(0.01, 0.06)):
                for process_id in verifier.worker_process_ids[: rng.randint(1, 2)]:
                    os.kill(process_id, signal.SIGKILL)
                    num_killed += 1

        killer = threading.Thread(target=kill_at_random)
        killer.start()
        try:
            verifications = verifier.verify(requests, on_progress=progress.append)
        finally:
            stop.set()
            killer.join()
        assert verifier.num_replaced_workers >= 3
        assert sum(progress) == len(requests)
        for number, verification in enumerate(verifications):
            right = Verdict.CORRECT if number % 3 == 0 else Verdict.WRONG
            assert verification.verdict is right, (number, verification)


def test_a_hanging_query_costs_its_limit_and_nobody_else_anything(
    catalog: DatabaseCatalog,
) -> None:
    requests = _requests(40)
    gold = "SELECT 1"
    hanging = [VerificationRequest("music", HANGING + f" + {n}", gold) for n in range(2)]
    hanging += [VerificationRequest("music", f"SELECT {n}", HANGING) for n in range(20)]
    limits = ExecutionLimits(timeout_s=0.4)
    with SQLVerifier(catalog, num_workers=1, limits=limits) as verifier:
        verifier.verify(requests[:1])
        started = time.perf_counter()
        verifications = verifier.verify(hanging + requests)
        elapsed_s = time.perf_counter() - started
    assert [v.reason for v in verifications[:2]] == [Reason.PREDICTION_TIMEOUT] * 2
    # Gold hangs once, not once for each of its twenty predictions.
    assert [v.reason for v in verifications[2:22]] == [Reason.GOLD_TIMEOUT] * 20
    assert all(v.predicted_status is None for v in verifications[2:22])
    assert verifications[0].predicted_status is QueryStatus.TIMEOUT
    for number, verification in enumerate(verifications[22:]):
        assert (verification.verdict is Verdict.CORRECT) == (number % 3 == 0)
    # Three kills of at most 0.9 s, and three starts.
    assert elapsed_s < 3 * (0.4 + 0.5) + 3 * 1.0


class _FragileProcess:
    """Stands for a worker that dies of every chunk with a poisoned prediction."""

    pid = 0
    num_started = 0

    def __init__(self, entry: str, arguments: list[str]) -> None:
        type(self).num_started += 1

    def send(self, message: bytes) -> None:
        self.groups = decode(message, Chunk).groups

    def receive(self, timeout_s: float) -> bytes:
        items = [item for _, items in self.groups for item in items]
        if any("poison" in sql for _, sql, _ in items):
            raise WorkerGoneError
        right = Verification(Verdict.CORRECT, Reason.RESULTS_EQUAL, None, None, None, 0.0)
        return encode(Results([(index, right) for index, *_ in items], "done"))

    def stop(self) -> None: ...

    def kill(self) -> None: ...


def test_the_one_item_that_ends_workers_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(process_module, "WorkerProcess", _FragileProcess)
    pool = VerificationPool(ExecutionLimits(), 2, None)
    items = [
        ("a.sqlite", f"gold {n // 3}", "poison" if n in (7, 93) else "", "strict")
        for n in range(150)
    ]
    finished: dict[int, Verification] = {}
    done = threading.Event()

    def emit(outcomes) -> None:
        for index, verification in outcomes:
            assert index not in finished
            finished[index] = verification
        if len(finished) == len(items):
            done.set()

    pool.submit(items, emit)
    assert done.wait(10)
    pool.close()
    died = {index for index, v in finished.items() if v.reason is Reason.WORKER_DIED}
    assert died == {7, 93}
    assert finished[7].verdict is Verdict.UNDETERMINED


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="memory is limited on Linux")
def test_results_that_do_not_fit_into_memory_take_nobody_with_them(
    catalog: DatabaseCatalog,
) -> None:
    numbers = "WITH RECURSIVE r(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM r LIMIT 90000) "
    wide = numbers + "SELECT " + ", ".join(f"x * 1000 + {n}" for n in range(30)) + " FROM r"
    huge = [VerificationRequest("music", wide + " " * n, wide) for n in range(2)]
    limits = ExecutionLimits(memory_limit_bytes=4_000_000)
    with SQLVerifier(catalog, num_workers=1, limits=limits) as verifier:
        verifications = verifier.verify([*huge, *_requests(40)])
    assert {v.verdict for v in verifications[:2]} == {Verdict.UNDETERMINED}
    for number, verification in enumerate(verifications[2:]):
        assert (verification.verdict is Verdict.CORRECT) == (number % 3 == 0)


def test_cancelling_stops_what_runs(catalog: DatabaseCatalog) -> None:
    with SQLVerifier(catalog, num_workers=2, limits=ExecutionLimits(timeout_s=60)) as verifier:
        verifier.verify(_requests(4))

        def give_up(count: int) -> None:
            raise RuntimeError("enough")

        slow = [VerificationRequest("music", HANGING + f" + {n}", "SELECT 1") for n in range(70)]
        started = time.perf_counter()
        with pytest.raises(RuntimeError, match="enough"):
            verifier.verify([*slow, *_requests(40)], on_progress=give_up)
        again = verifier.verify(_requests(4))
        assert time.perf_counter() - started < 10
        assert [v.verdict for v in again] == ["correct", "wrong", "wrong", "correct"]


def test_a_database_that_cannot_be_read_raises_and_leaves_the_verifier_usable(
    catalog: DatabaseCatalog,
) -> None:
    with SQLVerifier(catalog, num_workers=2) as verifier:
        verifier.verify(_requests(4))
        catalog.path("choir").write_bytes(b"no database at all")
        with pytest.raises(DatabaseError, match=r"choir\.sqlite"):
            verifier.verify(_requests(100))
        music = [request for request in _requests(100) if request.db_id == "music"]
        assert len(verifier.verify(music)) == 50


def test_gold_is_verified_by_workers_too(catalog: DatabaseCatalog) -> None:
    with SQLVerifier(catalog, num_workers=1) as verifier:
        assert verifier.verify_gold("music", "SELECT 1").reason is Reason.RESULTS_EQUAL
        empty = verifier.verify_gold("music", "SELECT a FROM nobody")
        assert (empty.reason, empty.verdict) == (Reason.GOLD_EMPTY, Verdict.UNDETERMINED)


@pytest.mark.parametrize("num_workers", [0, 2])
def test_many_tasks_and_threads_share_a_verifier(
    catalog: DatabaseCatalog, num_workers: int
) -> None:
    requests = _requests(120)
    expected = ["correct" if n % 3 == 0 else "wrong" for n in range(120)]

    async def rewards() -> list[str]:
        parts = [requests[n : n + 8] for n in range(0, 120, 8)]
        answers = await asyncio.gather(*map(verifier.averify, parts))
        return [str(v.verdict) for answer in answers for v in answer]

    with SQLVerifier(catalog, num_workers=num_workers) as verifier:
        assert asyncio.run(rewards()) == expected
        results: dict[int, list[str]] = {}

        def verify(number: int) -> None:
            results[number] = [str(v.verdict) for v in verifier.verify(requests)]

        threads = [threading.Thread(target=verify, args=(n,)) for n in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert results == dict.fromkeys(range(4), expected)
        with pytest.raises(Exception, match="nowhere"):
            asyncio.run(verifier.averify([VerificationRequest("nowhere", "SELECT 1", "SELECT 1")]))
        assert asyncio.run(verifier.averify([])) == []


def test_a_cancelled_task_stops_its_work(catalog: DatabaseCatalog) -> None:
    with SQLVerifier(catalog, num_workers=1, limits=ExecutionLimits(timeout_s=60)) as verifier:
        verifier.verify(_requests(2))
        slow = [VerificationRequest("music", HANGING, "SELECT 1")]

        async def impatient() -> None:
            await asyncio.wait_for(verifier.averify(slow), timeout=0.2)

        started = time.perf_counter()
        with pytest.raises(TimeoutError):
            asyncio.run(impatient())
        assert len(verifier.verify(_requests(2))) == 2
        assert time.perf_counter() - started < 5


def test_no_process_outlives_its_verifier(catalog: DatabaseCatalog) -> None:
    def is_running(process_id: int) -> bool:
        try:
            os.kill(process_id, 0)
        except ProcessLookupError:
            return False
        return True

    forgotten = SQLVerifier(catalog, num_workers=1)
    forgotten.verify(_requests(2))
    closed = SQLVerifier(catalog, num_workers=1)
    closed.verify(_requests(2))
    process_ids = [*forgotten.worker_process_ids, *closed.worker_process_ids]
    assert len(process_ids) == 2 and all(map(is_running, process_ids))
    closed.close()
    closed.close()
    del forgotten
    gc.collect()
    assert not any(map(is_running, process_ids))
    # Closed is not over: the next call starts anew.
    assert len(closed.verify(_requests(2))) == 2
    closed.close()
