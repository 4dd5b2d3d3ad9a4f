from __future__ import annotations

import shutil
import threading
from pathlib import Path

import pytest

from sense_trl.database.catalog import DatabaseCatalog
from sense_trl.database.engine import ExecutionLimits
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
    with pytest.raises(DatabaseError, match="does not exist"):
        DatabaseCatalog.from_path(tmp_path / "nowhere")
    with pytest.raises(DatabaseError, match="no database under"):
        DatabaseCatalog.from_path(tmp_path)
    with pytest.raises(DatabaseError, match="is no database"):
        DatabaseCatalog.from_path(tmp_path / "notes.txt")


def test_a_thread_gets_one_engine_of_its_own(pets: Path) -> None:
    limits = ExecutionLimits(max_rows=7)
    catalog = DatabaseCatalog.from_path(pets, limits=limits)
    here = catalog.engine("pets")
    assert catalog.engine("pets") is here
    assert here.limits == limits
    answers: list[object] = []

    def use() -> None:
        engine = catalog.engine("pets")
        answers.append(engine is here)
        answers.append(engine.execute("SELECT count(*) FROM pet").rows)

    thread = threading.Thread(target=use)
    thread.start()
    thread.join()
    assert answers == [False, ((1,),)]
    catalog.close()
    catalog.close()
    with pytest.raises(InputError, match="closed"):
        catalog.engine("pets")
    with pytest.raises(InputError, match="closed"):
        here.execute("SELECT 1")


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
