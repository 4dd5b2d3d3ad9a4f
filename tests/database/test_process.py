"""The worker process: what it imports is ours and Python's, wherever it is started."""

from pathlib import Path

import pytest
from conftest import FreshDB

from sense_trl.database import IsolatedEngine


def test_a_users_files_are_not_taken_for_pythons_modules(
    fresh_db: FreshDB, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    database = fresh_db("CREATE TABLE pet (name); INSERT INTO pet VALUES ('Rex');")
    folder = tmp_path / "project"
    folder.mkdir()
    for name in ("pathlib", "queue", "sqlglot", "sense_trl"):
        (folder / f"{name}.py").write_text("raise SystemExit(3)")
    monkeypatch.chdir(folder)
    with IsolatedEngine(database) as engine:
        assert engine.execute("SELECT name FROM pet").rows == (("Rex",),)
