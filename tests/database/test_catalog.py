from __future__ import annotations

import gc
import os
import shutil
import threading
from pathlib import Path

import pytest

from sense_trl.database.catalog import DatabaseCatalog
from sense_trl.database.engine import ExecutionLimits
from sense_trl.database.sqlite_engine import SQLiteEngine
from sense_trl.database.worker import IsolatedEngine
from sense_trl.errors import DatabaseError, InputError


@pytest.fixture
def pets(fresh_db) -> Path:
    return fresh_db("CREATE TABLE pet AS SELECT 'Rex' AS name", name="pets")


def _put(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copy(source, target)


def test_one_file_is_called_by_its_stem(pets: Path) -> None:
    with DatabaseCatalog.from_path(pets) as catalog:
        assert catalog.db_ids == ("pets",)
        assert catalog.engine("pets").execute("SELECT name FROM pet").rows == (("Rex",),)


@pytest.mark.parametrize(
    "layout",
    [
        "{db}.sqlite",
        "{db}.db",
        "{db}/{db}.sqlite",
        "database/{db}/{db}.sqlite",
        "databases/{db}/{db}.sqlite",
        "dev_databases/{db}/{db}.sqlite",
        "train_databases/{db}/{db}.sqlite",
    ],
)
def test_each_layout_is_found(pets: Path, tmp_path: Path, layout: str) -> None:
    root = tmp_path / "root"
    for db_id in ("zoo", "airline"):
        _put(pets, root / layout.format(db=db_id))
    (root / "notes.txt").write_text("not a database")
    with DatabaseCatalog.from_path(root) as catalog:
        assert catalog.db_ids == ("airline", "zoo")
        assert len(catalog) == 2 and "zoo" in catalog and "Zoo" not in catalog
        assert catalog.path("zoo") == root / layout.format(db="zoo")


def test_hidden_files_are_no_databases(pets: Path, tmp_path: Path) -> None:
    # As macOS leaves them in archives, and editors beside files.
    root = tmp_path / "root"
    for name in ("zoo.sqlite", "database/air/air.sqlite"):
        _put(pets, root / name)
    hidden = ("._zoo.sqlite", ".x.db", "database/air/._air.sqlite", "__MACOSX/air/._air.sqlite",
              "Thumbs.db", "database/ehthumbs.db",
              ".git/.git.sqlite", "._air/._air.sqlite", "database/._air")  # fmt: skip
    for name in hidden:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(b"\x00\x05\x16\x07")
    (root / "folder.sqlite").mkdir()
    assert DatabaseCatalog.from_path(root).db_ids == ("air", "zoo")
    with pytest.raises(DatabaseError, match="no database under"):
        DatabaseCatalog.from_path(root / "__MACOSX" / "air")


def test_an_unknown_name_is_answered_with_near_ones(pets: Path, tmp_path: Path) -> None:
    root = tmp_path / "root"
    _put(pets, root / "concert_singer" / "concert_singer.sqlite")
    catalog = DatabaseCatalog.from_path(root)
    with pytest.raises(InputError, match=r"concert_singers.*did you mean 'concert_singer'") as info:
        catalog.engine("concert_singers")
    assert str(root) in str(info.value)


def test_two_databases_of_one_name_are_refused(pets: Path, tmp_path: Path) -> None:
    root = tmp_path / "root"
    _put(pets, root / "database" / "pets" / "pets.sqlite")
    _put(pets, root / "test_database" / "pets" / "pets.sqlite")
    with pytest.raises(InputError, match="two databases are called 'pets'"):
        DatabaseCatalog.from_path(root)


def test_places_without_databases_are_refused(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("hello")
    with pytest.raises(DatabaseError, match=r"nowhere' does not exist; expected a file"):
        DatabaseCatalog.from_path(tmp_path / "nowhere")
    with pytest.raises(DatabaseError, match="no database under"):
        DatabaseCatalog.from_path(tmp_path)
    with pytest.raises(DatabaseError, match=r"notes\.txt' is no database; expected a file"):
        DatabaseCatalog.from_path(tmp_path / "notes.txt")


@pytest.mark.parametrize("method", ["engine", "in_process_engine"])
def test_a_thread_gets_one_engine_of_its_own(pets: Path, method: str) -> None:
    limits = ExecutionLimits(max_rows=7)
    catalog = DatabaseCatalog.from_path(pets, limits=limits)
    open_engine = getattr(catalog, method)
    here = open_engine("pets")
    assert open_engine("pets") is here
    assert here.limits == limits
    answers: list[object] = []

    def use() -> None:
        engine = open_engine("pets")
        answers.append(engine is here)
        answers.append(engine.execute("SELECT count(*) FROM pet").rows)

    thread = threading.Thread(target=use)
    thread.start()
    thread.join()
    assert answers == [False, ((1,),)]
    catalog.close()
    catalog.close()
    with pytest.raises(InputError, match="closed"):
        open_engine("pets")
    with pytest.raises(InputError, match="closed"):
        here.execute("SELECT 1")


def test_an_engine_is_isolated_unless_it_is_asked_for_by_name(pets: Path, tmp_path: Path) -> None:
    root = tmp_path / "root"
    for db_id in ("zoo", "air"):
        _put(pets, root / f"{db_id}.sqlite")
    with DatabaseCatalog.from_path(root) as catalog:
        zoo, air = catalog.engine("zoo"), catalog.engine("air")
        assert isinstance(zoo, IsolatedEngine) and isinstance(air, IsolatedEngine)
        # One process for all databases of a thread.
        assert zoo.worker is air.worker
        assert isinstance(catalog.in_process_engine("zoo"), SQLiteEngine)


def test_a_dialect_is_told_without_opening_the_file(tmp_path: Path) -> None:
    for name in ("a.sqlite", "b.duckdb", "c.db"):
        (tmp_path / name).touch()
    catalog = DatabaseCatalog.from_path(tmp_path)
    assert [catalog.dialect(db_id) for db_id in "abc"] == ["sqlite", "duckdb", "sqlite"]
    with pytest.raises(InputError, match="'d'"):
        catalog.dialect("d")
    with pytest.raises(DatabaseError, match="0 bytes"):
        catalog.engine("a")


def _is_alive(process_id: int) -> bool:
    try:
        os.kill(process_id, 0)
    except ProcessLookupError:
        return False
    return True


def test_a_worker_ends_with_the_thread_or_the_catalog_that_it_works_for(pets: Path) -> None:
    catalog = DatabaseCatalog.from_path(pets)
    processes: list[int | None] = []

    def use(catalog: DatabaseCatalog) -> None:
        engine = catalog.engine("pets")
        assert isinstance(engine, IsolatedEngine)
        processes.append(engine.worker.process_id)

    use(catalog)
    thread = threading.Thread(target=use, args=(catalog,))
    thread.start()
    thread.join()
    del thread
    here, there = processes
    assert here is not None and there is not None and here != there
    gc.collect()
    assert _is_alive(here) and not _is_alive(there)
    # Not closed, as where a function loads a task and returns its rows.
    del catalog
    gc.collect()
    assert not _is_alive(here)


def test_a_fork_leaves_the_workers_of_its_parent_alone(pets: Path) -> None:
    with DatabaseCatalog.from_path(pets) as catalog:
        engine = catalog.engine("pets")
        assert isinstance(engine, IsolatedEngine)
        process = engine.worker.process_id
        child = os.fork()
        if child == 0:
            rows = catalog.engine("pets").execute("SELECT count(*) FROM pet").rows
            catalog.close()
            del engine
            gc.collect()
            os._exit(0 if rows == ((1,),) else 1)
        assert os.waitpid(child, 0)[1] == 0
        assert engine.execute("SELECT name FROM pet").rows == (("Rex",),)
        assert engine.worker.process_id == process


def test_spider_databases_all_open(spider_databases: Path) -> None:
    with DatabaseCatalog.from_path(spider_databases) as catalog:
        assert len(catalog) == 164
        for db_id in catalog.db_ids:
            engine = catalog.engine(db_id)
            tables = engine.get_tables()
            assert tables, db_id
            for table in tables:
                quoted = table.name.replace('"', '""')
                assert engine.execute(f'SELECT * FROM "{quoted}" LIMIT 1').ok, (db_id, table.name)
