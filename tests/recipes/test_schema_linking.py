"""The benchmark of linkers, from the command line to its table, on tiny models."""

import json
import runpy
import sys
from pathlib import Path

import pytest
import tiny_models

SCRIPT = Path(__file__).resolve().parents[2] / "recipes" / "benchmarks" / "schema_linking.py"


def write_tables(path: Path, databases: dict[str, list[str]]) -> None:
    """Spider's tables.json of databases of one table each."""
    entries = []
    for name, columns in databases.items():
        places = [[-1, "*"], *([0, column] for column in columns)]
        entries.append(
            {
                "db_id": name,
                "table_names": [f"{name} table"],
                "table_names_original": [f"{name}_table"],
                "column_names": places,
                "column_names_original": places,
                "column_types": ["text"] * len(places),
                "primary_keys": [1],
                "foreign_keys": [],
            }
        )
    path.write_text(json.dumps(entries))


def test_each_arm_is_measured_and_a_second_run_reads_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    databases = {"pets": ["id", "name", "age"], "songs": ["id", "title", "length"]}
    write_tables(tmp_path / "tables.json", databases)
    rows = [
        {
            "db_id": name,
            "question": f"Which {c} has each?",
            "query": f"SELECT {c} FROM {name}_table",
        }
        for name, columns in databases.items()
        for c in columns
    ]
    (tmp_path / "questions.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    for name in ("llama", "qwen2"):
        tiny_models.save_tiny_model(tmp_path, name)
    options = {
        "student": tmp_path / "llama",
        "teacher": tmp_path / "qwen2",
        "train": tmp_path / "questions.jsonl",
        "dev": tmp_path / "questions.jsonl",
        "tables-json": tmp_path / "tables.json",
        "states": tmp_path / "states",
        "per-database": 2,
        "num-epochs": 1,
        "seeds": 1,
    }
    arguments = [str(SCRIPT)]
    for name, value in options.items():
        arguments += [f"--{name}", str(value)]
    monkeypatch.setattr(sys, "argv", arguments)
    runpy.run_path(str(SCRIPT), run_name="__main__")
    printed = capsys.readouterr().out
    assert "4 questions on 2 databases, 6 of dev" in printed
    for arm in ("gold alone", "gold, focal", "logits", "features", "cam", "binarized_cam"):
        assert printed.count(f"\n{arm}, seed 0: 6 questions: column PR-AUC") == 1
    assert "bytes of maps a question" in printed
    files = set((tmp_path / "states").iterdir())
    monkeypatch.setattr(sys, "argv", arguments)
    runpy.run_path(str(SCRIPT), run_name="__main__")
    assert set((tmp_path / "states").iterdir()) == files
