"""Loading a task: every unusable input is named before anything is trained."""

import json
from pathlib import Path

import duckdb
import pytest
from conftest import FreshDB

from sense_trl.database.duckdb_import import convert_sqlite
from sense_trl.database.engine import ExecutionLimits
from sense_trl.errors import DatabaseError, InputError
from sense_trl.options import DataArguments
from sense_trl.task import load_task

SCRIPT = """
CREATE TABLE owner (id INTEGER PRIMARY KEY, name TEXT);
CREATE TABLE pet (id INTEGER PRIMARY KEY, owner_id INTEGER REFERENCES owner (id));
INSERT INTO owner VALUES (1, 'Ann'); INSERT INTO pet VALUES (1, 1), (2, 1);
"""


def _write(folder: Path, records: list[dict[str, object]]) -> str:
    path = folder / "questions.jsonl"
    path.write_text("".join(json.dumps(r) + "\n" for r in records), encoding="utf-8")
    return str(path)


def test_prompts_hold_schema_and_question(fresh_db: FreshDB, tmp_path: Path) -> None:
    questions = _write(
        tmp_path, [{"question": "How many?", "gold_sql": "SELECT COUNT(*) FROM pet"}]
    )
    task = load_task(DataArguments(str(fresh_db(SCRIPT, name="pets")), questions))
    (row,) = task.prompt_completion_rows(task.questions)
    assert row["prompt"][0]["content"].endswith(
        "owner(id, name)\npet(id, owner_id)\npet.owner_id = owner.id"
    )
    assert row["prompt"][1]["content"] == "How many?"
    assert row["completion"] == [{"role": "assistant", "content": "SELECT COUNT(*) FROM pet"}]
    assert task.questions[0].db_id == "pets"


def test_gold_is_looked_at_within_the_limits_of_the_run(fresh_db: FreshDB, tmp_path: Path) -> None:
    records: list[dict[str, object]] = [{"question": "?", "gold_sql": "SELECT id FROM pet"}]
    arguments = DataArguments(
        str(fresh_db(SCRIPT, name="pets")), _write(tmp_path, records), max_unusable_fraction=0.0
    )
    task = load_task(arguments, limits=ExecutionLimits(max_rows=2))
    assert task.catalog.limits.max_rows == 2
    with pytest.raises(InputError, match="more than 1 rows"):
        load_task(arguments, limits=ExecutionLimits(max_rows=1))


def test_unusable_gold_is_named_and_stops_above_the_threshold(
    fresh_db: FreshDB, tmp_path: Path
) -> None:
    records: list[dict[str, object]] = [
        {"question": "ok", "gold_sql": "SELECT 1"},
        {"question": "bad", "gold_sql": "SELECT nme FROM pet", "question_id": "bad-one"},
        {"question": "lost", "gold_sql": "SELECT 1", "db_id": "zoo"},
        {"question": "ok", "gold_sql": "SELECT 2"},
    ]
    database, questions = str(fresh_db(SCRIPT, name="pets")), _write(tmp_path, records)
    with pytest.raises(InputError) as caught:
        load_task(DataArguments(database, questions, max_unusable_fraction=0.4))
    for words in (
        "2 of 4",
        "bad-one",
        "no such column: nme",
        "SELECT nme",
        "'zoo' is not there",
        "database there: 'pets'.",
    ):
        assert words in str(caught.value)
    task = load_task(DataArguments(database, questions, max_unusable_fraction=0.5))
    assert len(task.questions) == 2
    assert set(task.unusable) == {"bad-one", "questions-00003"}


def test_the_same_question_with_other_gold_is_named(
    fresh_db: FreshDB, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    rows = [
        ("a", "How many pets?", "SELECT COUNT(*) FROM pet", None),
        ("b", "How many  pets?", "SELECT COUNT(id) FROM pet", None),
        ("c", "How many pets? ", "SELECT COUNT(*) FROM owner", None),
        ("d", "How many pets?", "SELECT COUNT(*) FROM owner", "pets are owners"),
        ("e", "How many owners?", "SELECT COUNT(*) FROM owner", None),
    ]
    fields = ("question_id", "question", "gold_sql", "evidence")
    records = [dict(zip(fields, row, strict=True)) for row in rows]
    database = str(fresh_db(SCRIPT))
    task = load_task(DataArguments(database, _write(tmp_path, records)))
    assert len(task.questions) == 5
    assert "1 of the questions in" in caplog.text
    assert "another result: a and c." in caplog.text
    caplog.clear()
    load_task(DataArguments(database, _write(tmp_path, records[:2])))
    assert not caplog.text


def test_a_database_without_tables_is_refused(fresh_db: FreshDB, tmp_path: Path) -> None:
    questions = _write(tmp_path, [{"question": "How many?", "gold_sql": "SELECT 1"}])
    database = str(fresh_db("CREATE TABLE t (a); DROP TABLE t;"))
    with pytest.raises(DatabaseError, match="has no tables"):
        load_task(DataArguments(database, questions))
    duckdb.connect(str(tmp_path / "shop.duckdb")).execute(
        "CREATE SCHEMA public; CREATE TABLE public.bill (id INTEGER)"
    ).close()
    with pytest.raises(DatabaseError, match=r"no tables in the schema `main`.* copy them there"):
        load_task(DataArguments(str(tmp_path / "shop.duckdb"), questions))


def test_a_task_has_a_usable_question(fresh_db: FreshDB, tmp_path: Path) -> None:
    questions = _write(tmp_path, [{"question": "bad", "gold_sql": "SELECT nme FROM pet"}])
    database = str(fresh_db(SCRIPT, name="pets"))
    with pytest.raises(InputError, match=r"None of the 1 questions .*-00001: .*: nme"):
        load_task(DataArguments(database, questions, max_unusable_fraction=1.0))


def test_splits_and_subsets(fresh_db: FreshDB, tmp_path: Path) -> None:
    records: list[dict[str, object]] = [
        {"question": "q", "gold_sql": f"SELECT {i}", "split": "train" if i % 2 else "test"}
        for i in range(10)
    ]
    database, questions = str(fresh_db(SCRIPT, name="pets")), _write(tmp_path, records)
    train = load_task(DataArguments(database, questions, split="train")).questions
    assert [q.gold_sql for q in train] == [f"SELECT {i}" for i in (1, 3, 5, 7, 9)]
    subsets = [
        load_task(DataArguments(database, questions, max_questions=4, subset_seed=s)).questions
        for s in (0, 0, 1)
    ]
    assert subsets[0] == subsets[1] != subsets[2]
    assert all(len(s) == 4 for s in subsets)
    with pytest.raises(InputError, match=r"`split` is 'dev'.*\['test', 'train'\]"):
        load_task(DataArguments(database, questions, split="dev"))
    with pytest.raises(InputError, match="`max_questions` is 0"):
        load_task(DataArguments(database, questions, max_questions=0))
    with pytest.raises(InputError, match="`schema_style` is 'xml'"):
        load_task(DataArguments(database, questions, schema_style="xml"))


def test_a_file_that_is_no_database_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.sqlite"
    path.write_text("hello, this is not a database, however long it may be " * 30)
    questions = _write(tmp_path, [{"question": "q", "gold_sql": "SELECT 1"}])
    with pytest.raises((DatabaseError, InputError), match=r"x\.sqlite"):
        load_task(DataArguments(str(path), questions))
    with pytest.raises((DatabaseError, InputError), match=r"none\.sqlite"):
        load_task(DataArguments(str(tmp_path / "none.sqlite"), questions))


def test_spider_layout_uses_the_keys_of_tables_json(
    shared_data: Path, spider_databases: Path
) -> None:
    spider = shared_data / "spider"
    task = load_task(
        DataArguments(
            str(spider_databases),
            str(spider / "dev.jsonl"),
            tables_json=str(spider / "tables.json"),
            max_questions=40,
            max_unusable_fraction=0.1,
        )
    )
    text = task.get_messages(next(q for q in task.questions if q.db_id == "world_1"))[0]["content"]
    assert "city.CountryCode = country.Code" in text


def test_a_whole_answer_is_trained_on_where_a_question_has_one(
    fresh_db: FreshDB, tmp_path: Path
) -> None:
    text = "<reasoning>Pets are in pet.</reasoning>\nSELECT COUNT(*) FROM pet"
    record = {"question": "How many?", "gold_sql": "SELECT COUNT(*) FROM pet", "completion": text}
    questions = _write(tmp_path, [record])
    task = load_task(DataArguments(str(fresh_db(SCRIPT, name="pets")), questions))
    (row,) = task.prompt_completion_rows(task.questions)
    assert row["completion"] == [{"role": "assistant", "content": text}]
    with pytest.raises(InputError, match="has a `completion`, in which schema items are not"):
        task.prompt_completion_rows(task.questions, mask_spans=True)


def test_each_database_has_its_dialect(fresh_db: FreshDB, tmp_path: Path) -> None:
    lite = fresh_db(SCRIPT, name="pets")
    convert_sqlite(lite, tmp_path / "shop.duckdb")
    records: list[dict[str, object]] = [
        {"question": "lite", "gold_sql": "SELECT id / 2 FROM pet", "db_id": "pets"},
        # SQLite knows no `//`.
        {"question": "duck", "gold_sql": "SELECT id // 2 FROM pet", "db_id": "shop"},
    ]
    tables = {
        "db_id": "shop", "table_names_original": ["pet"], "column_types": ["text", "number"],
        "column_names_original": [[-1, "*"], [0, "id"]], "primary_keys": [], "foreign_keys": [],
    }  # fmt: skip
    tables_json = tmp_path / "tables.json"
    tables_json.write_text(json.dumps([tables]))
    questions = _write(tmp_path, records)
    task = load_task(DataArguments(str(tmp_path), questions, tables_json=str(tables_json)))
    assert {db_id: schema.dialect for db_id, schema in task.schemas.items()} == {
        "pets": "sqlite",
        "shop": "duckdb",
    }
    lite_row, duck_row = task.prompt_completion_rows(task.questions, mask_spans=True)
    assert lite_row["mask_spans"] == [[7, 9], [12, 13], [19, 22]]
    assert duck_row["mask_spans"] == [[7, 9], [13, 14], [20, 23]]
    only = task.select(task.questions[1:])
    assert [q.question for q in only.questions] == ["duck"]
    assert only.get_messages(task.questions[1]) == duck_row["prompt"]
