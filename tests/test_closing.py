"""What holds files and processes goes into other processes as what it was made of."""

import copy
import pickle
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import datasets
import pytest
from conftest import FreshDB

from sense_trl._closing import Closing
from sense_trl.backends.ray_backend import RayBackend
from sense_trl.database.catalog import DatabaseCatalog
from sense_trl.database.duckdb_engine import DuckDBEngine
from sense_trl.database.duckdb_import import convert_sqlite
from sense_trl.database.engine import ExecutionLimits
from sense_trl.database.postgres_engine import PostgresEngine
from sense_trl.database.sqlite_engine import SQLiteEngine
from sense_trl.database.worker import EngineWorker, IsolatedEngine
from sense_trl.errors import DatabaseError
from sense_trl.prompts import PromptStyle
from sense_trl.prompts.value_index import ValueIndex, build_value_index
from sense_trl.prompts.writer import PromptWriter
from sense_trl.rewards import get_sql_execution_reward, get_sql_partial_rewards
from sense_trl.verification.suite.verifier import SuiteSettings, SuiteVerifier
from sense_trl.verification.verifier import SQLVerifier, VerificationRequest

LIMITS = ExecutionLimits(timeout_s=7)
GOLD = "SELECT name FROM pet WHERE age > 4"
REQUESTS = [VerificationRequest("pets", GOLD, GOLD), VerificationRequest("pets", "SELECT 1", GOLD)]


@pytest.fixture
def database(fresh_db: FreshDB) -> Path:
    return fresh_db(
        "CREATE TABLE pet (id INTEGER PRIMARY KEY, name TEXT, age INTEGER);"
        "INSERT INTO pet VALUES (1, 'Rex', 3), (2, 'Tom', 5);",
        name="pets",
    )


@pytest.fixture
def catalog(database: Path) -> Iterator[DatabaseCatalog]:
    with DatabaseCatalog.from_path(database, limits=LIMITS) as catalog:
        yield catalog


def _verdicts(verifier: Any) -> list[str]:
    return [str(found.verdict) for found in verifier.verify(REQUESTS)]


def _rows(engine: Any) -> Any:
    return engine.execute("SELECT name FROM pet ORDER BY 1").rows


def _duckdb(database: Path) -> DuckDBEngine:
    convert_sqlite(database, database.with_suffix(".duckdb"))
    return DuckDBEngine(database.with_suffix(".duckdb"), limits=LIMITS)


MAKERS: dict[str, tuple[Callable[[Path, DatabaseCatalog], Any], Callable[[Any], Any]]] = {
    "catalog": (lambda path, catalog: catalog, lambda found: _rows(found.engine("pets"))),
    "sqlite": (lambda path, catalog: SQLiteEngine(path, limits=LIMITS), _rows),
    "duckdb": (lambda path, catalog: _duckdb(path), _rows),
    "isolated": (lambda path, catalog: IsolatedEngine(path, limits=LIMITS), _rows),
    "worker": (
        lambda path, catalog: (EngineWorker(), path),
        lambda found: found[0].execute(found[1], "SELECT 1", LIMITS).rows,
    ),
    "catalog in process": (
        lambda path, catalog: catalog,
        lambda found: _rows(found.in_process_engine("pets")),
    ),
    "verifier": (lambda path, catalog: SQLVerifier(catalog, num_workers=1), _verdicts),
    "verifier here": (
        lambda path, catalog: SQLVerifier(catalog, num_workers=0, semantics="bird"),
        _verdicts,
    ),
    "suite": (
        lambda path, catalog: SuiteVerifier(
            catalog, num_workers=0, settings=SuiteSettings(num_instances=2)
        ),
        _verdicts,
    ),
    "reward": (
        lambda path, catalog: get_sql_execution_reward(path, error=-1.0, num_workers=0),
        lambda found: found(["?"], ["SELECT nme"], db_id=["pets"], gold_sql=[GOLD]),
    ),
    "partial reward": (
        lambda path, catalog: get_sql_partial_rewards(path, ["columns"])[0],
        lambda found: found(["?"], ["SELECT age, id FROM pet"], db_id=["pets"], gold_sql=[GOLD]),
    ),
}


def _value_index(database: Path) -> ValueIndex:
    file = database.with_name("values.sqlite")
    with SQLiteEngine(database) as engine:
        build_value_index(engine, file)
    return ValueIndex(file)


MAKERS["index"] = (
    lambda path, catalog: _value_index(path),
    lambda found: found.find("is tom old?", max_matches=2),
)
MAKERS["writer"] = (
    lambda path, catalog: PromptWriter(
        catalog, PromptStyle(num_matched_values=2), cache_dir=path.parent
    ),
    lambda found: found.get_messages("pets", "is tom old?"),
)


def _close(thing: Any) -> None:
    (thing[0] if isinstance(thing, tuple) else thing).close()


@pytest.mark.parametrize("name", MAKERS)
def test_a_copy_does_what_the_original_does_and_is_closed_by_itself(
    name: str, database: Path, catalog: DatabaseCatalog
) -> None:
    make, use = MAKERS[name]
    original = make(database, catalog)
    expected = use(original)
    assert expected
    copies = [pickle.loads(pickle.dumps(original)), copy.deepcopy(original)]
    for found in copies:
        assert use(found) == expected
        _close(found)
    assert use(original) == expected
    _close(original)
    catalog.close()


def test_settings_go_along(catalog: DatabaseCatalog) -> None:
    verifier = SQLVerifier(catalog, num_workers=0, semantics="bird", cache_dir="c")
    with pickle.loads(pickle.dumps(verifier)) as found:
        assert found.num_workers == 0
        assert found.catalog.limits == LIMITS
        assert (found._semantics, found._cache_folder) == ("bird", verifier._cache_folder)


def test_two_that_share_a_catalog_share_its_copy(catalog: DatabaseCatalog) -> None:
    pair = (SQLVerifier(catalog, num_workers=0), SuiteVerifier(catalog, num_workers=0))
    first, second = pickle.loads(pickle.dumps(pair))
    assert first.catalog is second._catalog is not catalog


def test_a_database_that_is_gone_is_named_where_it_is_opened(
    database: Path, catalog: DatabaseCatalog
) -> None:
    data = pickle.dumps((catalog, SQLVerifier(catalog, num_workers=0)))
    database.unlink()
    found, _ = pickle.loads(data)
    with pytest.raises(DatabaseError, match=r"pets\.sqlite"):
        found.engine("pets")


def test_every_class_that_closes_is_among_these() -> None:
    def below(cls: type) -> set[str]:
        own = {cls.__name__} if cls.__module__.startswith("sense_trl.") else set()
        return own.union(*map(below, cls.__subclasses__()))

    tried = {
        "DatabaseCatalog", "SQLiteEngine", "DuckDBEngine", "IsolatedEngine", "EngineWorker",
        "SQLVerifier", "SuiteVerifier", "SQLExecutionReward", "SQLPartialReward", "PromptWriter",
        "ValueIndex",
        # In tests/database/test_postgres.py, where there is a server, and in tests/backends.
        PostgresEngine.__name__, RayBackend.__name__,
    }  # fmt: skip
    names = {name for name in below(Closing) if not name.startswith("_")}
    assert names - {"Closing", "OpenedEngine", "FileEngine"} == tried


@pytest.mark.parametrize("num_workers", [0, 1])
def test_a_closure_over_a_verifier_maps_a_dataset_in_several_processes(
    catalog: DatabaseCatalog, num_workers: int
) -> None:
    rows = datasets.Dataset.from_list([{"sql": sql} for sql in (GOLD, "SELECT 1", "SELECT nme")])
    with SQLVerifier(catalog, num_workers=num_workers) as verifier:
        # Its processes run and its connections are open when it is copied.
        assert _verdicts(verifier) == ["correct", "wrong"]

        def judge(row: dict[str, str]) -> dict[str, str]:
            (found,) = verifier.verify([VerificationRequest("pets", row["sql"], GOLD)])
            return {"verdict": str(found.verdict)}

        datasets.disable_progress_bars()
        found = rows.map(judge, num_proc=2, load_from_cache_file=False)
    assert found["verdict"] == ["correct", "wrong", "wrong"]
