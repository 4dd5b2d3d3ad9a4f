"""Exploring many databases into a folder."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from chat_server import Reply, Seen, completion, serve
from synthesis.concerts import ROWS, SCHEMA

from sense_trl.database.catalog import DatabaseCatalog
from sense_trl.errors import InputError
from sense_trl.generation.generator import SamplingConfig
from sense_trl.generation.openai_generator import OpenAIGenerator
from sense_trl.questions import Question, load_questions
from sense_trl.schema.data_dictionary import DataDictionary
from sense_trl.synthesis.example import load_examples
from sense_trl.synthesis.explore.config import ExplorationConfig
from sense_trl.synthesis.explore.folder import ModelOptions, explore_databases

CONFIG = ExplorationConfig(num_per_database=8)
SEEDS = [Question("s1", "concerts", "Who?", "SELECT name FROM singer WHERE age > 30 ORDER BY name")]
UNDECLARED = """
CREATE TABLE owner (owner_id INTEGER, name TEXT); INSERT INTO owner VALUES (1, 'Ann'), (2, 'Bob');
CREATE TABLE pet (owner_id INT, kind TEXT, age INT);
INSERT INTO pet VALUES (1, 'cat', 3), (1, 'dog', 4), (2, 'cat', 9);
"""


@pytest.fixture
def catalog(fresh_db: Callable[..., Path]) -> Iterator[DatabaseCatalog]:
    fresh_db(UNDECLARED, name="pets")
    with DatabaseCatalog.from_path(fresh_db(SCHEMA + ROWS, name="concerts").parent) as made:
        yield made


def test_a_folder_holds_questions_and_what_became_of_the_others(
    catalog: DatabaseCatalog, tmp_path: Path
) -> None:
    output, steps = tmp_path / "out", []
    result = explore_databases(
        catalog, output, CONFIG, seeds=SEEDS, num_workers=0, on_progress=steps.append
    )
    assert result.num_examples == {"concerts": 8, "pets": 8} and steps == [1, 1]
    examples = load_examples(result.questions_path)
    assert [q.gold_sql for q in load_questions(result.questions_path)] == [e.sql for e in examples]
    assert [e.db_id for e in examples] == ["concerts"] * 8 + ["pets"] * 8
    account = json.loads((output / "account.json").read_text())
    assert account["num_examples"] == account["filters"]["num_kept"] - account["num_surplus"] == 16
    assert account["databases"]["concerts"]["inferred_foreign_keys"] == []
    (key,) = account["databases"]["pets"]["inferred_foreign_keys"]
    assert (key["table"], key["referenced_table"], key["confidence"]) == ("pet", "owner", 1.0)


def test_an_interrupted_exploration_continues_to_the_same_files(
    catalog: DatabaseCatalog, tmp_path: Path
) -> None:
    whole = explore_databases(catalog, tmp_path / "whole", CONFIG, num_workers=0)

    def interrupt(num: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        explore_databases(catalog, tmp_path / "cut", CONFIG, num_workers=0, on_progress=interrupt)
    part = tmp_path / "cut" / "parts" / "concerts.json"
    before = part.stat().st_mtime_ns
    resumed = explore_databases(catalog, tmp_path / "cut", CONFIG, num_workers=0)
    assert part.stat().st_mtime_ns == before
    assert resumed.questions_path.read_bytes() == whole.questions_path.read_bytes()
    assert (tmp_path / "cut" / "account.json").read_text() == (
        tmp_path / "whole" / "account.json"
    ).read_text()
    # Other settings, other questions.
    other = explore_databases(
        catalog, tmp_path / "cut", ExplorationConfig(num_per_database=3), num_workers=0
    )
    assert other.num_examples == {"concerts": 3, "pets": 3}
    assert (resumed.replaced, other.replaced) == ((), ("concerts", "pets"))


def test_an_edited_dictionary_is_used_without_a_model(
    catalog: DatabaseCatalog, tmp_path: Path
) -> None:
    first = explore_databases(catalog, tmp_path, CONFIG, db_ids=["pets"], num_workers=0)
    before = first.questions_path.read_text()
    assert "animal" not in before
    (tmp_path / "dictionary").mkdir()
    (tmp_path / "dictionary" / "pets.json").write_text(
        '{"tables": {"pet": {"synonyms": ["animal"]}}}'
    )
    second = explore_databases(catalog, tmp_path, CONFIG, db_ids=["pets"], num_workers=0)
    assert "animal" in second.questions_path.read_text()


def test_a_model_is_asked_nothing_twice(catalog: DatabaseCatalog, tmp_path: Path) -> None:
    answer = json.dumps(
        [
            {"level": 1, "question": "How many pets are there?", "sql": "SELECT count(*) FROM pet"},
            {
                "level": 2,
                "question": "Which owner has a dog?",
                "sql": "SELECT T1.name FROM owner AS T1 JOIN pet AS T2 ON T1.owner_id = T2.owner_id WHERE T2.kind = 'dog'",
            },
        ]
    )

    def reply(request: Seen) -> Reply:
        prompt = request.body["messages"][-1]["content"]
        if prompt.startswith("CREATE TABLE") and "synonyms" in prompt:
            return Reply(completion(('{"meaning": "an animal", "columns": {}}', "stop")))
        if "How many pets" in prompt:
            return Reply(completion(("SELECT 3", "stop")))
        if "Which owner" in prompt:
            return Reply(completion(("SELECT 'Bob'", "stop")))
        return Reply(completion((answer, "stop")))

    def explore(output: Path, url: str) -> list[str]:
        generator = OpenAIGenerator("m", url, api_key="k")
        model = ModelOptions(generator, SamplingConfig(temperature=0.5), num_round_trip_samples=2)
        result = explore_databases(
            catalog,
            output,
            ExplorationConfig(num_per_database=2),
            db_ids=["pets"],
            model=model,
            num_workers=0,
        )
        return [e.question for e in load_examples(result.questions_path)]

    with serve(reply) as server:
        # The other question is not what its SQL answers, says the round trip.
        assert explore(tmp_path / "a", server.url) == ["How many pets are there?"]
        num_asked = len(server.seen)
        (tmp_path / "a" / "parts" / "pets.json").unlink()
        assert explore(tmp_path / "a", server.url) == ["How many pets are there?"]
        assert len(server.seen) == num_asked
    dictionary = DataDictionary.load(tmp_path / "a" / "dictionary" / "pets.json")
    assert dictionary.tables["pet"].meaning == "an animal"
    account = json.loads((tmp_path / "a" / "account.json").read_text())
    assert account["databases"]["pets"]["filters"]["removed"]["round_trip"] == {
        "no_sample_agrees": 1
    }


def test_seeds_that_are_evaluated_on_and_unknown_databases_are_refused(
    catalog: DatabaseCatalog, tmp_path: Path
) -> None:
    with pytest.raises(InputError, match="`seeds` holds s1, which `excluded` has"):
        explore_databases(catalog, tmp_path, CONFIG, seeds=SEEDS, excluded=SEEDS)
    with pytest.raises(InputError, match="'cats' is not among"):
        explore_databases(catalog, tmp_path, CONFIG, db_ids=["cats"])
    with pytest.raises(InputError, match="`max_unusable_fraction` is 2"):
        ExplorationConfig(max_unusable_fraction=2)


def test_seeds_that_cannot_be_read_are_named_in_the_account(
    catalog: DatabaseCatalog, tmp_path: Path
) -> None:
    seeds = [*SEEDS, Question("s2", "concerts", "Which?", "no idea"), Question("s3", "x", "?", "?")]
    with pytest.raises(InputError, match="1 of 2 questions in `seeds` cannot be used"):
        explore_databases(catalog, tmp_path / "out", CONFIG, seeds=seeds)
    assert not (tmp_path / "out").exists()
    config = ExplorationConfig(num_per_database=2, max_unusable_fraction=0.5)
    explore_databases(catalog, tmp_path / "out", config, seeds=seeds, num_workers=0)
    account = json.loads((tmp_path / "out" / "account.json").read_text())["seeds"]
    assert (account["num_usable"], account["num_without_schema"]) == (1, 1)
    assert list(account["unreadable"]) == ["s2"]


def test_odd_names_views_and_duckdb_are_explored(
    fresh_db: Callable[..., Path], tmp_path: Path
) -> None:
    import duckdb

    path = fresh_db(
        """
        CREATE TABLE "order" ("full name" TEXT, "select" INT, "a""b" REAL, "größe" TEXT, id INTEGER PRIMARY KEY, data BLOB);
        INSERT INTO "order" VALUES ('Bo', 3, 1.5, 'x', 1, x'00ff'), ('Cy', 4, 2.5, 'y', 2, x'00'), ('Di', 4, 3.0, 'x', 3, NULL);
        CREATE TABLE "line item" ("order" INT REFERENCES "order" (id), note TEXT);
        INSERT INTO "line item" VALUES (1, 'O''Neil'), (1, '100%'), (2, 'a"b'), (3, 'plain');
        CREATE TABLE staff (id INTEGER PRIMARY KEY, boss INT REFERENCES staff (id));
        CREATE VIEW seen AS SELECT * FROM "order";
        CREATE VIRTUAL TABLE found USING fts5 (body);
        """,
        name="odd",
    )
    with duckdb.connect(str(path.parent / "duck.duckdb")) as connection:
        connection.execute(
            "CREATE TABLE singer (id INTEGER PRIMARY KEY, name VARCHAR, born DATE, pay DECIMAL(8, 2))"
        )
        connection.execute(
            "INSERT INTO singer VALUES (1, 'Ann', '1990-01-01', 10.5), (2, 'Bo', '1995-01-01', 3.25)"
        )
        connection.execute(
            "CREATE TABLE song (title VARCHAR, singer_id INTEGER REFERENCES singer (id))"
        )
        connection.execute("INSERT INTO song VALUES ('Blue', 1), ('Red', 1), ('Sun', 2)")
    seeds = [
        Question(
            "1",
            "odd",
            "?",
            'SELECT T1.note FROM "line item" AS T1 JOIN "order" AS T2 ON T1."order" = T2.id WHERE T2."größe" = \'x\'',
        )
    ]
    with DatabaseCatalog.from_path(path.parent) as catalog:
        result = explore_databases(
            catalog,
            tmp_path / "out",
            ExplorationConfig(num_per_database=15),
            seeds=seeds,
            num_workers=0,
        )
        assert result.num_examples == {"duck": 15, "odd": 15}
        examples = load_examples(result.questions_path)
        assert all(catalog.engine(e.db_id).execute(e.sql).rows for e in examples)
    assert any('"line item"' in e.sql for e in examples)
    assert result.account.filters.removed["execution"]["gold_execution_error"] == 0


def test_a_database_without_a_table_gives_nothing_and_stops_nothing(tmp_path: Path) -> None:
    for name, script in (
        ("a_empty", "CREATE VIEW v AS SELECT 1 AS one"),
        ("b_pets", "CREATE TABLE pet (name TEXT, age INTEGER); INSERT INTO pet VALUES ('Rex', 3)"),
    ):
        with sqlite3.connect(tmp_path / f"{name}.sqlite") as connection:
            connection.executescript(script)
        connection.close()
    with DatabaseCatalog.from_path(tmp_path) as catalog:
        config = ExplorationConfig(num_per_database=2)
        result = explore_databases(catalog, tmp_path / "out", config, num_workers=0)
    assert result.num_examples == {"a_empty": 0, "b_pets": 2}
    account = json.loads((tmp_path / "out" / "account.json").read_text())
    assert [part["has_table"] for part in account["databases"].values()] == [False, True]
