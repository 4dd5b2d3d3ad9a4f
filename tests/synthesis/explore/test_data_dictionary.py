"""What tables and columns mean: asked of a model, edited by people, used later."""

from __future__ import annotations

import json
import random
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from chat_server import Reply, Seen, completion, serve
from synthesis.concerts import FirstChoice, make_concerts

from sense_trl.database.sqlite_engine import SQLiteEngine
from sense_trl.errors import InputError
from sense_trl.generation.generator import SamplingConfig
from sense_trl.generation.openai_generator import OpenAIGenerator
from sense_trl.schema.data_dictionary import ColumnEntry, DataDictionary, TableEntry
from sense_trl.schema.graph import ColumnName
from sense_trl.synthesis.explore.data_dictionary import extract_dictionary, get_phrases
from sense_trl.synthesis.explore.facts import DatabaseFacts, get_database_facts

SINGER = {
    "meaning": "a person who sings",
    "synonyms": ["artist", "artist", "  vocalist "],
    "columns": {
        "id": {"meaning": "number of the singer", "format": "", "synonyms": []},
        "singer.NAME": {
            "meaning": "full\nname",
            "format": "first name and last name",
            "synonyms": ["artist name"],
        },
        "country": "where the singer is from",
        "shoe_size": {"meaning": "made up"},
    },
}
ANSWERS = {
    "singer": f"Here is the documentation:\n```json\n{json.dumps(SINGER)}\n```\nLet me know if you need more.",
    "song": "- **song_id**: number of the song\n- `title`: what the song is called\n1. year: when it came out",
    "stadium": "I'm sorry, but I cannot help with that request.",
    "concert": "The table holds concerts.",
}


def _reply(request: Seen) -> Reply:
    prompt = request.body["messages"][-1]["content"]
    table = prompt.split("CREATE TABLE ")[1].split()[0]
    if table not in ANSWERS:
        return Reply(completion(('{"columns": {"concert_id": {"mean', "length")))
    return Reply(completion((ANSWERS[table], "stop")))


@pytest.fixture
def facts(fresh_db: Callable[..., Path]) -> Iterator[DatabaseFacts]:
    with SQLiteEngine(make_concerts(fresh_db)) as engine:
        yield get_database_facts(engine)


def test_a_model_describes_each_table_as_well_as_it_can(facts: DatabaseFacts) -> None:
    problems: Counter[str] = Counter()
    with serve(_reply) as server:
        generator = OpenAIGenerator("m", server.url, api_key="k")
        dictionary = extract_dictionary(facts, generator, SamplingConfig(), problems=problems)
        prompt = next(
            r.body["messages"][-1]["content"]
            for r in server.seen
            if "TABLE singer (" in r.body["messages"][-1]["content"]
        )
    assert "country TEXT,  -- 'France', 'Spain', 'Italy'" in prompt
    assert "song" not in prompt
    singer = dictionary.tables["singer"]
    assert (singer.meaning, singer.synonyms) == ("a person who sings", ("artist", "vocalist"))
    assert singer.columns["name"] == ColumnEntry(
        "full name", "first name and last name", ("artist name",)
    )
    assert singer.columns["country"] == ColumnEntry("where the singer is from")
    assert dictionary.tables["song"].columns["title"].meaning == "what the song is called"
    assert dictionary.tables["song"].columns["year"].meaning == "when it came out"
    # Every table and column can be edited, whatever the model said.
    assert {t: list(e.columns) for t, e in dictionary.tables.items()} == {
        t.name: [c.name for c in t.columns] for t in facts.schema.tables
    }
    assert problems == {
        "unknown_column": 1, "missing_column": 2, "refusal": 1, "malformed": 1, "unfinished": 1,
    }  # fmt: skip


def test_an_edited_file_is_read_back(tmp_path: Path, facts: DatabaseFacts) -> None:
    dictionary = DataDictionary(
        "d", {"t": TableEntry("a row", ("thing",), {"c": ColumnEntry("é", "x", ("y", "z"))})}
    )
    path = tmp_path / "d.json"
    dictionary.save(path)
    assert DataDictionary.load(path) == dictionary
    path.write_text(
        '{"db_id": "d", "tables": {"t": {"columns": {"c": {"synonyms": ["age in years"]}}}}}'
    )
    edited = DataDictionary.load(path)
    assert edited.tables["t"].columns["c"] == ColumnEntry(synonyms=("age in years",))
    phrases = get_phrases(edited)
    said = {phrases.get_column(ColumnName("t", "c"), random.Random(seed)) for seed in range(20)}
    assert said == {"c", "age in years"}
    assert phrases.get_table("t", FirstChoice()) == "t"


def test_what_is_known_is_described_by_column() -> None:
    columns = {"a": ColumnEntry("first", "yyyy", ("x", "y")), "b": ColumnEntry("second")}
    dictionary = DataDictionary("d", {"t": TableEntry("a row", (), columns)})
    wanted = [ColumnName("t", "a"), ColumnName("t", "c"), ColumnName("u", "a")]
    assert dictionary.describe(wanted) == "t: a row\nt.a: first; format: yyyy; also called x, y"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "invalid JSON"),
        ("[]", "expected an object"),
        ('{"tabels": {}}', "unknown field 'tabels'"),
        ('{"tables": {"t": {"meaning": 3}}}', r"tables\.t\.meaning: expected a string, got 3"),
        (
            '{"tables": {"t": {"columns": {"c": {"synonyms": "x"}}}}}',
            r"tables\.t\.columns\.c\.synonyms: expected a list",
        ),
        ('{"tables": {"t": {"columns": {"c": {"synonyms": [1]}}}}}', "expected a string, got 1"),
    ],
)
def test_a_slip_of_the_editor_is_named(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "d.json"
    path.write_text(text)
    with pytest.raises(InputError, match=message):
        DataDictionary.load(path)
    with pytest.raises(InputError, match="not a file"):
        DataDictionary.load(tmp_path / "gone.json")
