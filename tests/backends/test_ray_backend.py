"""A Ray cluster gives what this process gives, whatever happens to its workers and machines."""

from __future__ import annotations

import json
import os
import signal
import sqlite3
import subprocess
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import fake_ray
import pytest

from sense_trl.backends import ray_backend
from sense_trl.backends.backend import LocalBackend
from sense_trl.backends.ray_backend import RayBackend, _get_state, _name_ends
from sense_trl.cli.main import EXIT_OK, main
from sense_trl.database.catalog import DatabaseCatalog
from sense_trl.errors import ExecutionBackendError, InputError
from sense_trl.evaluation import evaluate_sql, parts
from sense_trl.evaluation.parts import evaluate_in_parts
from sense_trl.pairs import Candidate, build_preference_pairs, builder
from sense_trl.questions import Question
from sense_trl.steps.arguments import EvaluationArguments
from sense_trl.synthesis.explore.config import ExplorationConfig
from sense_trl.synthesis.explore.folder import explore_databases
from sense_trl.task import make_task
from sense_trl.verification.verifier import SQLVerifier

NUM_QUESTIONS = 40
_QUESTIONS_PER_SHARD = 16
QUESTIONS = [
    Question(f"q{n:03}", "ab"[n % 2], f"Above {n}?", f"SELECT name FROM t WHERE age > {n % 7}")
    for n in range(NUM_QUESTIONS)
]
CANDIDATES = [
    Candidate(q.question_id, k, sql, sql, "weak", "m")
    for n, q in enumerate(QUESTIONS)
    for k, sql in enumerate(
        [f"SELECT name FROM t WHERE age > {(n + 1) % 7}", f"SELECT nme FROM t WHERE {n}"]
    )
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("databases")
    for name in "ab":
        connection = sqlite3.connect(folder / f"{name}.sqlite")
        connection.execute("CREATE TABLE t (name TEXT, age INTEGER)")
        connection.executemany("INSERT INTO t VALUES (?, ?)", [(f"n{i}", i) for i in range(9)])
        connection.commit()
        connection.close()
    return folder


# ---------------------------------------------------------------------- without a cluster


def test_the_state_of_a_file_changes_with_its_content_and_is_empty_without_one(
    folder: Path, tmp_path: Path
) -> None:
    assert _get_state(tmp_path / "none.sqlite") == ""
    first, copy = folder / "a.sqlite", tmp_path / "a.sqlite"
    copy.write_bytes(first.read_bytes())
    assert _get_state(copy) == _get_state(first) != ""
    connection = sqlite3.connect(copy)
    connection.execute("UPDATE t SET age = 99 WHERE age = 8")
    connection.commit()
    connection.close()
    assert copy.stat().st_size == first.stat().st_size
    assert _get_state(copy) != _get_state(first)


def test_a_shard_is_named_by_its_ends() -> None:
    assert _name_ends(["x"], str) == "x"
    assert _name_ends(["x", "y", "z"], str) == "x to z"


def test_without_ray_the_command_to_install_it_is_named(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with DatabaseCatalog.from_path(folder) as catalog, pytest.raises(InputError, match=r"\[ray\]"):
        RayBackend(catalog)


def test_a_password_is_not_sent_to_a_cluster() -> None:
    catalog = DatabaseCatalog({"shop": "postgresql://reader:hush-hush@db.example/shop"})
    with pytest.raises(InputError, match="PGPASSWORD") as error:
        RayBackend(catalog)
    assert "hush-hush" not in str(error.value)


def test_times_are_not_measured_on_a_cluster() -> None:
    with pytest.raises(InputError, match="`efficiency` is 5"):
        EvaluationArguments(efficiency=5, backend="ray")


# ---------------------------------------------------------------------- works


def _double(shard: Sequence[int], on_progress: Any, *, before: Callable[[int], None]) -> list[int]:
    for item in shard:
        before(item)
        if on_progress is not None:
            on_progress(1)
    return [2 * item for item in shard]


def _fail(item: int) -> None:
    if item in (4, 11):
        raise ValueError(f"no such thing as {item}")


def _die(item: int, *, end: Callable[[], None], folder: Path | None = None) -> None:
    """End the worker at item 4; with a folder, once, and once at item 5."""
    mark = None if folder is None else folder / f"died-{item}"
    if item == 4 and mark is None:
        end()
    if item in (4, 5) and mark is not None and not mark.exists():
        mark.touch()
        end()


def _end_actor() -> None:
    raise fake_ray.ActorDies


def _end_process() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def _name(item: int) -> str:
    return f"row {item}"


SHARDS = [[3 * n, 3 * n + 1, 3 * n + 2] for n in range(6)]
DOUBLED = {n: [2 * item for item in shard] for n, shard in enumerate(SHARDS)}


def _map(
    backend: Any, before: Callable[[int], None], found: dict[int, list[int]] | None = None
) -> dict[int, list[int]]:
    seen: list[int] = []
    found = {} if found is None else found
    work = partial(_double, before=before)
    shards = enumerate(SHARDS)
    for key, result in backend.map_shards(work, shards, get_name=_name, on_progress=seen.append):
        assert key not in found
        found[key] = result
    assert sum(seen) == sum(map(len, SHARDS))
    return found


def _build(catalog: DatabaseCatalog, target: Path, **options: Any) -> tuple[bytes, ...]:
    with SQLVerifier(catalog, num_workers=1) as verifier:
        task = make_task(catalog, QUESTIONS)
        result = build_preference_pairs(task, CANDIDATES, verifier, **options)
    result.save(target)
    return tuple((target / name).read_bytes() for name in ("pairs.parquet", "pairs.json"))


@pytest.fixture(autouse=True)
def small_shards(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (builder, parts):
        monkeypatch.setattr(module, "_QUESTIONS_PER_SHARD", _QUESTIONS_PER_SHARD)


@pytest.fixture
def catalog(folder: Path) -> Iterator[DatabaseCatalog]:
    with DatabaseCatalog.from_path(folder) as catalog:
        yield catalog


# What holds of any cluster, the stand-in and a real one.


def check_equality(catalog: DatabaseCatalog, tmp_path: Path) -> None:
    here = _build(catalog, tmp_path / "here")
    predictions = {c.question_id: c.sql for c in CANDIDATES if c.sample == 0}
    shards = tmp_path / "shards"
    with RayBackend(catalog, num_workers=1) as backend, SQLVerifier(catalog, num_workers=1) as own:
        assert _build(catalog, tmp_path / "there", backend=backend, shard_folder=shards) == here
        assert len(list(shards.iterdir())) == 3
        report = evaluate_in_parts(QUESTIONS, predictions, own, backend=backend, soft_f1=True)
        assert not own.worker_process_ids, "nothing runs here"
        assert report == evaluate_sql(QUESTIONS, predictions, own, soft_f1=True)
        config = ExplorationConfig(num_per_database=8)
        explore_databases(catalog, tmp_path / "explored-there", config, backend=backend)
    explore_databases(catalog, tmp_path / "explored-here", config, num_workers=1)
    for name in ("questions.jsonl", "account.json", "parts/a.json", "parts/b.jsonl"):
        found, expected = (tmp_path / f"explored-{at}" / name for at in ("there", "here"))
        assert found.read_bytes() == expected.read_bytes()


def check_failures(backend: Any, end: Callable[[], None], folder: Path) -> None:
    found: dict[int, list[int]] = {}
    with pytest.raises(ExecutionBackendError) as error:
        _map(backend, _fail, found)
    assert found == {key: DOUBLED[key] for key in (0, 2, 4, 5)}
    for item in (4, 11):
        assert f"row {item}: ValueError: no such thing as {item}" in str(error.value)
    found = {}
    with pytest.raises(ExecutionBackendError) as error:
        _map(backend, partial(_die, end=end), found)
    assert found == {key: DOUBLED[key] for key in (0, 2, 3, 4, 5)}
    assert "row 3 to row 5: 3 workers were lost with it; row 4: 3 workers" in str(error.value)
    assert _map(backend, partial(_die, end=end, folder=folder)) == DOUBLED
    assert len(list(folder.glob("died-*"))) == 2


# ---------------------------------------------------------------------- with a stand-in


@pytest.fixture
def make_ray(monkeypatch: pytest.MonkeyPatch) -> Callable[..., fake_ray.FakeRay]:
    def make(*numbers: int) -> fake_ray.FakeRay:
        ray = fake_ray.FakeRay(*numbers)
        monkeypatch.setitem(sys.modules, "ray", ray)
        return ray

    return make


def test_parts_are_those_of_this_process(
    make_ray: Any, catalog: DatabaseCatalog, tmp_path: Path
) -> None:
    make_ray(4)
    check_equality(catalog, tmp_path)


def test_the_commands_give_the_same_files(
    make_ray: Any, catalog: DatabaseCatalog, folder: Path, tmp_path: Path
) -> None:
    make_ray(3)
    questions, answers = tmp_path / "questions.json", tmp_path / "weak" / "predictions.sql"
    rows = [
        {
            "question_id": q.question_id,
            "db_id": q.db_id,
            "question": q.question,
            "query": q.gold_sql,
        }
        for q in QUESTIONS
    ]
    questions.write_text(json.dumps(rows))
    answers.parent.mkdir()
    answers.write_text("".join(f"{c.sql}\n" for c in CANDIDATES if c.sample == 0))
    given = ["--questions", str(questions), "--database", str(folder), "--num_workers", "2"]
    for backend in ("local", "ray"):
        where = ["--backend", backend, "--output_dir"]
        out = str(tmp_path / backend)
        assert main(["evaluate", str(answers), *given, *where, f"{out}-evaluation"]) == EXIT_OK
        assert main(["pairs", "--weak", str(answers), *given, *where, f"{out}-pairs"]) == EXIT_OK
    for kind in ("evaluation", "pairs"):
        here, there = (tmp_path / f"{backend}-{kind}" for backend in ("local", "ray"))
        files = {path.name: path.read_bytes() for path in here.iterdir()}
        assert {path.name: path.read_bytes() for path in there.iterdir()} == files


def test_bad_rows_are_named_and_lost_workers_replaced(
    make_ray: Any, catalog: DatabaseCatalog, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match="no such thing as 4"):
        _map(LocalBackend(), _fail)
    ray = make_ray(4)
    with RayBackend(catalog) as backend:
        assert backend.num_workers == 3
        check_failures(backend, _end_actor, tmp_path)
    assert len(ray.killed) >= len(ray.actors), "no actor is left"
    assert not ray.is_initialized()


def test_no_more_is_begun_when_all_fails(make_ray: Any, catalog: DatabaseCatalog) -> None:
    make_ray(3)
    taken = []

    def take() -> Iterator[tuple[int, list[int]]]:
        for number in range(1000):
            taken.append(number)
            yield number, [4]

    with RayBackend(catalog) as backend, pytest.raises(ExecutionBackendError, match="and 4 more"):
        list(backend.map_shards(partial(_double, before=_fail), take(), get_name=_name))
    assert len(taken) < 12


def test_a_machine_that_does_not_fit_is_named(
    make_ray: Any, catalog: DatabaseCatalog, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_ray(2)
    states = [(catalog.path("a"), "of another file")]
    with RayBackend(catalog) as backend:
        with monkeypatch.context() as patched:
            patched.setattr("sense_trl.backends.ray_backend._get_states", lambda _: states)
            with pytest.raises(
                ExecutionBackendError, match=r"a\.sqlite' is not on .* shared folder"
            ):
                _map(backend, _fail)
        monkeypatch.setattr(ray_backend._Worker, "open", partial(_open_as, version="0.0"))
        with pytest.raises(ExecutionBackendError, match=r"sense_trl is .*, and 0\.0 here"):
            _map(backend, _fail)


def _open_as(_: str, *arguments: Any, version: str) -> str | None:
    return _OPEN(ray_backend._Worker(), version, *arguments)


_OPEN = ray_backend._Worker.open


def test_a_cluster_without_a_free_cpu_is_not_waited_for_without_end(
    make_ray: Any, catalog: DatabaseCatalog, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sense_trl.backends.ray_backend._START_TIMEOUT_S", 0.2)
    make_ray(4, 0)
    with RayBackend(catalog) as backend:
        with pytest.raises(ExecutionBackendError, match=r"within 0\.2 s: the cluster has 0 free"):
            _map(backend, _fail)
        assert backend.num_workers == 3
    # One is enough, whatever is waited for besides.
    make_ray(4, 1)
    with RayBackend(catalog) as backend:
        assert _map(backend, _nothing) == DOUBLED


def _nothing(item: int) -> None:
    pass


def test_a_pool_that_would_take_every_cpu_is_refused(
    make_ray: Any, catalog: DatabaseCatalog
) -> None:
    make_ray(4)
    for number in (4, 0, 9, True):
        with pytest.raises(InputError, match=rf"`num_workers` is {number} .* 4 CPUs.*at most 3"):
            RayBackend(catalog, num_workers=number)
    ray = make_ray(1)
    with pytest.raises(InputError, match=r"with 1 CPUs.* use the backend 'local'"):
        RayBackend(catalog)
    assert not ray.is_initialized()
    with pytest.raises(ExecutionBackendError, match=r"`ray_address` is 'nowhere:1'.*no cluster"):
        RayBackend(catalog, address="nowhere:1")


def test_a_connection_of_the_caller_is_used_and_left(
    make_ray: Any, catalog: DatabaseCatalog
) -> None:
    ray = make_ray(2)
    ray.init(address="auto")
    with RayBackend(catalog, address="elsewhere:1") as backend:
        assert _map(backend, _nothing) == DOUBLED
    assert ray.is_initialized() and ray.options == {"address": "auto"}


# ---------------------------------------------------------------------- with a cluster


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    """A machine of two CPUs, as Ray sees it."""
    pytest.importorskip("ray", reason="Ray is not installed: pip install 'sense-trl[ray]'")
    os.environ |= {
        "RAY_USAGE_STATS_ENABLED": "0",
        # Whatever else this machine does, no worker is to be ended for its memory.
        "RAY_memory_monitor_refresh_ms": "0",
        # Ray offers it in a warning of its own.
        "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    }
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import ray
        from ray.cluster_utils import Cluster

        # Ray gives its helpers 15 s to start: no more of them than are needed.
        few = {"include_dashboard": False, "no_monitor": True, "include_log_monitor": False}
        node = {"num_cpus": 2, "object_store_memory": 80 * 2**20, **few}
        cluster = Cluster(initialize_head=True, head_node_args=node)
        ray.init(address=cluster.address, log_to_driver=False)
        for module in (__name__, "fake_ray"):
            ray.cloudpickle.register_pickle_by_value(sys.modules[module])
        yield cluster
        ray.shutdown()
        cluster.shutdown()


@pytest.mark.slow
def test_a_cluster_gives_what_this_process_gives(
    cluster: Any, catalog: DatabaseCatalog, tmp_path: Path
) -> None:
    check_equality(catalog, tmp_path)
    with RayBackend(catalog) as backend:
        assert backend.num_workers == 1
        check_failures(backend, _end_process, tmp_path)


def _wait(item: int, *, folder: Path) -> None:
    """Item 7 lasts until the machine that it may be on has gone."""
    while item == 7 and not (folder / "gone").exists():
        time.sleep(0.05)
    time.sleep(0.2)


@pytest.mark.slow
def test_a_machine_that_goes_costs_nothing(
    cluster: Any, catalog: DatabaseCatalog, tmp_path: Path
) -> None:
    second = cluster.add_node(num_cpus=1, object_store_memory=80 * 2**20)
    cluster.wait_for_nodes()
    found: dict[int, list[int]] = {}
    work = partial(_double, before=partial(_wait, folder=tmp_path))
    with RayBackend(catalog, num_workers=2) as backend:
        for key, result in backend.map_shards(work, enumerate(SHARDS), get_name=_name):
            if not found:
                cluster.remove_node(second, allow_graceful=False)
                (tmp_path / "gone").touch()
            found[key] = result
    assert found == DOUBLED


@pytest.mark.slow
def test_a_driver_that_is_killed_goes_on_where_it_was(
    cluster: Any, catalog: DatabaseCatalog, folder: Path, tmp_path: Path
) -> None:
    here = _build(catalog, tmp_path / "here")
    shards = tmp_path / "shards"
    script, tests = tmp_path / "driver.py", Path(__file__).parents[1]
    script.write_text(
        f"import sys; sys.path[:0] = [{str(Path(__file__).parent)!r}, {str(tests)!r}]\n"
        "from pathlib import Path\n"
        "import ray\n"
        "import test_ray_backend as own\n"
        "own.builder._QUESTIONS_PER_SHARD = own._QUESTIONS_PER_SHARD\n"
        f"ray.init(address={cluster.address!r}, log_to_driver=False)\n"
        f"with own.DatabaseCatalog.from_path({str(folder)!r}) as catalog:\n"
        "    with own.RayBackend(catalog, num_workers=1) as backend:\n"
        f"        own._build(catalog, Path({str(tmp_path)!r}) / 'killed', backend=backend,\n"
        f"                   shard_folder={str(shards)!r})\n"
    )
    driver = subprocess.Popen([sys.executable, script], stderr=subprocess.PIPE)
    deadline = time.monotonic() + 300
    while not list(shards.glob("*.arrow")) and driver.poll() is None:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    driver.kill()
    _, errors = driver.communicate()
    assert driver.returncode == -signal.SIGKILL, errors
    before = {path.name: path.stat().st_mtime_ns for path in shards.glob("*.arrow")}
    assert 1 <= len(before) < 3
    with RayBackend(catalog, num_workers=1) as backend:
        assert _build(catalog, tmp_path / "there", backend=backend, shard_folder=shards) == here
    after = {path.name: path.stat().st_mtime_ns for path in shards.glob("*.arrow")}
    assert len(after) == 3
    assert {name: after[name] for name in before} == before
