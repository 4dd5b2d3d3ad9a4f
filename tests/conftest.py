"""Fixtures shared by the tests: real data where it is, and small databases made on the spot."""

from __future__ import annotations

import gc
import os
import sqlite3
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path

import hypothesis
import pytest
from postgres_server import NoServerError, PostgresServer, run_server

_DEFAULT_DATA = Path(__file__).resolve().parents[2] / "shared" / "data"

# How long an example takes says nothing on a machine that is shared.
hypothesis.settings.register_profile("shared", hypothesis.settings(), deadline=None)
hypothesis.settings.load_profile("shared")


def pytest_collection_finish() -> None:
    """Leave what the imports made out of later garbage collections.

    accelerate collects at the end of every training, and looking through the objects of torch,
    transformers and trl takes longer than a training of a tiny model.
    """
    gc.collect()
    gc.freeze()


def pytest_sessionfinish() -> None:
    """Let the end of Python clear what libraries would report as leaked."""
    gc.unfreeze()


@pytest.fixture(scope="session", autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Indices of databases of tests stay out of the user's cache."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SENSE_TRL_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real data; tests that need it are skipped where it is absent."""
    path = Path(os.environ.get("SENSE_TRL_DATA", _DEFAULT_DATA))
    if not path.is_dir():
        pytest.skip(f"no real data at {path} (set SENSE_TRL_DATA to its folder)")
    return path


@pytest.fixture(scope="session")
def spider_databases(shared_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Spider's databases as <db_id>/<db_id>.sqlite, unpacked once per session."""
    archive = shared_data / "spider" / "databases.tar.xz"
    if not archive.is_file():
        pytest.skip(f"no Spider databases at {archive}")
    target = tmp_path_factory.mktemp("spider")
    with tarfile.open(archive) as tar:
        tar.extractall(target, filter="data")
    found = next(path for path in target.rglob("*.sqlite"))
    return found.parents[1]


@pytest.fixture(scope="session")
def postgres_server() -> Iterator[PostgresServer]:
    """A PostgreSQL server; see `postgres_server.py`. Its tests are skipped where there is none."""
    try:
        with run_server() as server:
            yield server
    except NoServerError as error:
        if os.environ.get("SENSE_TRL_CI"):
            raise
        pytest.skip(str(error))


FreshDB = Callable[..., Path]


@pytest.fixture
def fresh_db(tmp_path: Path) -> FreshDB:
    """Builds an SQLite file from a script: `fresh_db("CREATE TABLE ...", name="pets")`."""

    def build(script: str, *, name: str = "fresh") -> Path:
        path = tmp_path / f"{name}.sqlite"
        connection = sqlite3.connect(path)
        connection.executescript(script)
        connection.close()
        return path

    return build
