"""The benchmarks of linkers, from the command line to their tables, on tiny models."""

import json
import re
import runpy
import sqlite3
import sys
from pathlib import Path

import pytest
import tiny_models

from sense_trl.linking.names import KINDS

BENCHMARKS = Path(__file__).resolve().parents[2] / "recipes" / "benchmarks"


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


def run(name: str, options: dict[str, object], monkeypatch: pytest.MonkeyPatch) -> None:
    script = str(BENCHMARKS / f"{name}.py")
    monkeypatch.syspath_prepend(BENCHMARKS)
    arguments = [f"--{option}={value}" for option, value in options.items()]
    monkeypatch.setattr(sys, "argv", [script, *arguments])
    runpy.run_path(script, run_name="__main__")


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
    run("schema_linking", options, monkeypatch)
    printed = capsys.readouterr().out
    assert "4 questions on 2 databases, 6 of dev" in printed
    for arm in ("gold alone", "gold, focal", "logits", "features", "cam", "binarized_cam"):
        assert printed.count(f"\n{arm}, seed 0: 6 questions: column PR-AUC") == 1
    assert "bytes of maps a question" in printed
    files = set((tmp_path / "states").iterdir())
    run("schema_linking", options, monkeypatch)
    assert set((tmp_path / "states").iterdir()) == files
    del options["teacher"]
    capsys.readouterr()
    run("schema_linking", {**options, "pooled-databases": 2}, monkeypatch)
    printed = capsys.readouterr().out
    for arm in ("gold alone", "gold, focal", "gold, wide schemas, too"):
        assert f"\n{arm}, seed 0: 6 questions: column PR-AUC" in printed
        assert f"\n{arm}, seed 0, dev in one schema: 6 questions: column PR-AUC" in printed


@pytest.fixture
def databases(tmp_path: Path) -> Path:
    """Two databases with a table of the same name each, and questions with gold."""
    databases = {"pets": ["id", "name", "age"], "songs": ["id", "title", "length"]}
    write_tables(tmp_path / "tables.json", databases)
    text = (tmp_path / "tables.json").read_text()
    (tmp_path / "tables.json").write_text(re.sub(r"\w+_table", "thing", text))
    rows = []
    for name, columns in databases.items():
        connection = sqlite3.connect(tmp_path / f"{name}.sqlite")
        connection.execute(f"CREATE TABLE thing ({', '.join(columns)})")
        connection.executemany("INSERT INTO thing VALUES (?, ?, ?)", [(1, name, 3), (2, "b", 3)])
        connection.commit()
        connection.close()
        gold = [f"SELECT thing.{column} FROM thing" for column in columns]
        rows += [{"db_id": name, "question": "Which?", "query": sql} for sql in gold]
    (tmp_path / "questions.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return tmp_path


def test_the_whole_schema_and_what_is_left_of_it_are_compared(
    databases: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    tiny_models.save_tiny_model(databases, "llama")
    options = {
        "model": databases / "llama",
        "questions": databases / "questions.jsonl",
        "database": databases,
        "tables-json": databases / "tables.json",
        "max-new-tokens": 4,
        "output": databases / "runs",
    }
    run("pooled_schema", options, monkeypatch)
    printed = capsys.readouterr().out
    assert printed.startswith("2 tables; 6 of 6 questions")
    for arm in ("whole", "names", "own"):
        assert printed.count(f"6 questions, {arm} ") == 1
        assert len((databases / "runs" / f"{arm}.jsonl").read_text().splitlines()) == 6
    assert "names: all that gold uses is shown for 6 questions" in printed
    pool = sqlite3.connect(databases / "runs" / "pool" / "pool.sqlite")
    rows = pool.execute("SELECT name FROM thing_pets UNION SELECT title FROM thing_songs")
    assert rows.fetchall() == [("b",), ("pets",), ("songs",)]
    pool.close()


def test_weights_of_names_are_learnt_again(
    databases: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    options = {
        "train": databases / "questions.jsonl",
        "dev": databases / "questions.jsonl",
        "tables-json": databases / "tables.json",
        "num-pools": 1,
    }
    run("name_weights", options, monkeypatch)
    printed = capsys.readouterr().out
    assert "dev in one schema: 6 questions: column PR-AUC" in printed
    assert "12 questions on 2 databases" in printed
    assert printed.count("    NameWeights(") == len(KINDS)
