"""A model asks and answers questions about a part of a database."""

from __future__ import annotations

import itertools
import json
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from chat_server import ChatServer, Reply, Seen, completion, error, serve
from synthesis.concerts import make_concerts

from sense_trl.database.catalog import DatabaseCatalog
from sense_trl.database.engine import ExecutionLimits
from sense_trl.generation.generator import SamplingConfig
from sense_trl.generation.openai_generator import OpenAIGenerator
from sense_trl.questions import Question
from sense_trl.schema.data_dictionary import ColumnEntry, DataDictionary, TableEntry
from sense_trl.synthesis.example import SynthesizedExample
from sense_trl.synthesis.explore.config import ExplorationConfig
from sense_trl.synthesis.explore.exploration import ExplorationAccount
from sense_trl.synthesis.explore.facts import DatabaseFacts, get_database_facts
from sense_trl.synthesis.explore.instructions import (
    Instruction,
    explore_with_model,
    get_instruction_prompt,
    parse_instructions,
)
from sense_trl.synthesis.explore.templates import mine_templates
from sense_trl.synthesis.filters.contamination import EvaluationIndex
from sense_trl.verification.verifier import SQLVerifier

GOOD = [
    {"level": 1, "question": "How many singers are there?", "sql": "SELECT count(*) FROM singer"},
    {
        "level": "4",
        "question": "Who is older than 30?",
        "sql": "SELECT name FROM singer WHERE age > 30;",
    },
    {
        "level": 3,
        "question": "Songs by country?",
        "sql": "SELECT T1.country, count(*) FROM singer AS T1 JOIN song AS T2 ON T1.id = T2.singer_id GROUP BY T1.country",
    },
]
LABELLED = """Here are the questions:

**Level 1**
Question: Which themes are there?
SQL:
```sql
SELECT DISTINCT theme
FROM concert;
```

2. **Question:** Name the largest stadium.
   **SQL query:** SELECT name FROM stadium ORDER BY capacity DESC LIMIT 1

Level 3:
Question: Which singers have no song?
SQL: SELECT name FROM singer WHERE id NOT IN (SELECT singer_id FROM song)"""


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (json.dumps(GOOD[0]), ["SELECT count(*) FROM singer"]),
        ("Sure:\n```json\n" + json.dumps(GOOD[:2], indent=1) + "\n```", ["SELECT count(*) FROM singer", "SELECT name FROM singer WHERE age > 30"]),
        (json.dumps({"questions": GOOD[:1]}), ["SELECT count(*) FROM singer"]),
        ('{"Question": "a?", "Query": "SELECT 1"}\n{"question": "b?", "sql": "SELECT 2"}', ["SELECT 1", "SELECT 2"]),
        ('[{"question": "a?"}, {"question": "", "sql": "SELECT 1"}, {"question": "b?", "sql": 3}, "x"]', []),
        (LABELLED, ["SELECT DISTINCT theme\nFROM concert", "SELECT name FROM stadium ORDER BY capacity DESC LIMIT 1", "SELECT name FROM singer WHERE id NOT IN (SELECT singer_id FROM song)"]),
        ("I'm sorry, I cannot do that.", []),
        ("SELECT count(*) FROM singer", []),
        ('[{"question": "a\\ud800?", "sql": "SELECT 1"}]'.replace("\\ud800", "\ud800"), []),
    ],
)  # fmt: skip
def test_answers_are_read_leniently(text: str, expected: list[str]) -> None:
    assert [instruction.sql for instruction in parse_instructions(text)] == expected


def test_levels_and_questions_are_read() -> None:
    assert [(i.level, i.question) for i in parse_instructions(LABELLED)] == [
        (1, "Which themes are there?"),
        (None, "Name the largest stadium."),
        (3, "Which singers have no song?"),
    ]
    assert [i.level for i in parse_instructions(json.dumps(GOOD))] == [1, 4, 3]


def test_of_an_answer_that_was_cut_off_only_whole_parts_count() -> None:
    cut = json.dumps(GOOD)[:-30]
    assert parse_instructions(cut, is_whole=False) == [
        Instruction("How many singers are there?", "SELECT count(*) FROM singer", 1),
        Instruction("Who is older than 30?", "SELECT name FROM singer WHERE age > 30", 4),
    ]
    assert len(parse_instructions(LABELLED[:-10], is_whole=False)) == 2


@pytest.fixture
def verifier(fresh_db: Callable[..., Path]) -> Iterator[SQLVerifier]:
    path = make_concerts(fresh_db)
    limits = ExecutionLimits(max_steps=100_000)
    with (
        DatabaseCatalog.from_path(path, limits=limits) as catalog,
        SQLVerifier(catalog, num_workers=0) as made,
    ):
        yield made


@pytest.fixture
def facts(verifier: SQLVerifier) -> DatabaseFacts:
    return get_database_facts(verifier.catalog.engine("concerts"))


def test_the_prompt_shows_tables_values_meanings_and_shapes(facts: DatabaseFacts) -> None:
    columns = [c for c in facts.graph.columns if c in (("singer", "name"), ("concert", "theme"))]
    dictionary = DataDictionary(
        "concerts", {"singer": TableEntry("an artist", (), {"age": ColumnEntry("years")})}
    )
    prompt = get_instruction_prompt(facts, columns, dictionary=dictionary, shapes=["SELECT 1"])[-1][
        "content"
    ]
    for part in (
        "CREATE TABLE singer_in_concert", "'Ann Lee'", "What the columns mean:\nsinger: an artist\nsinger.age: years",
        "singer.name, concert.theme", "may look like these:\nSELECT 1\n", "4. several of",
    ):  # fmt: skip
        assert part in prompt
    assert "stadium (" not in prompt.replace("REFERENCES stadium (", "")
    assert "What the columns mean" not in get_instruction_prompt(facts, columns)[-1]["content"]


def _explore(
    facts: DatabaseFacts, verifier: SQLVerifier, server: ChatServer, num: int, **options: object
) -> tuple[list[SynthesizedExample], ExplorationAccount]:
    account = ExplorationAccount()
    generator = OpenAIGenerator(
        "m", server.url, api_key="k", concurrency=1, max_retries=3, max_wait_s=2.0
    )
    examples = explore_with_model(
        facts, verifier, generator, SamplingConfig(), ExplorationConfig(num_per_database=num), account=account, **options,
    )  # fmt: skip
    return list(examples), account


def test_good_answers_are_kept_and_the_others_counted_by_reason(
    verifier: SQLVerifier, facts: DatabaseFacts
) -> None:
    bad_sql = [
        {"question": "Delete?", "sql": "DELETE FROM singer"},
        {"question": "Other file?", "sql": "ATTACH 'x.db' AS x"},
        {"question": "Read a file?", "sql": "SELECT readfile('/etc/passwd')"},
        {"question": "Broken?", "sql": "SELECT FROM"},
        {"question": "Unknown?", "sql": "SELECT shoe_size FROM singer"},
        {"question": "Nobody?", "sql": "SELECT name FROM singer WHERE age > 99"},
        {"question": "Any?", "sql": "SELECT random() FROM singer"},
        {
            "question": "Endless?",
            "sql": "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n) SELECT count(*) FROM n",
        },
    ]
    answers = itertools.chain(
        [
            Reply(error("slow down"), status=429, headers={"Retry-After": "0"}),
            Reply(completion((json.dumps(GOOD), "stop"))),
            Reply(completion((LABELLED, "stop"))),
            Reply(completion(("I'm sorry, but I can't help with that.", "stop"))),
            Reply(completion(("Let me think about the schema first.", "stop"))),
            Reply(completion(('[{"question": "How', "length"))),
            Reply(completion((json.dumps(bad_sql), "stop"))),
        ],
        itertools.repeat(Reply(completion((json.dumps(GOOD), "stop")))),
    )
    with serve(lambda request: next(answers)) as server:
        examples, account = _explore(facts, verifier, server, 12)
    assert Counter(e.level for e in examples) == {"1": 3, "2": 2, "3": 1}
    assert account.not_made == {"refusal": 1, "malformed": 1, "unfinished": 1}
    removed = {name: dict(reasons) for name, reasons in account.filters.removed.items() if reasons}
    assert removed.pop("one_select") == {"not_a_query": 2, "unparsable": 1}
    # What the server repeats to the end of its nine calls.
    assert removed.pop("duplicate") == {"duplicate_question": 9}
    assert removed == {
        "execution": {
            "gold_execution_error": 2, "empty": 1, "gold_not_deterministic": 1, "gold_step_budget": 1,
        }
    }  # fmt: skip
    example = examples[0]
    assert (example.provenance.method, example.provenance.generator) == ("explore_model", "m")
    assert example.provenance.subgraph and example.provenance.template
    # The level is that of the SQL.
    assert examples[1].level == "1"


def test_calls_end_when_there_are_enough(verifier: SQLVerifier, facts: DatabaseFacts) -> None:
    with serve(lambda request: Reply(completion((json.dumps(GOOD), "stop")))) as server:
        examples, account = _explore(facts, verifier, server, 2)
        assert len(server.seen) == 1
    assert len(examples) == 2
    assert account.num_surplus == 1


def test_templates_are_shown_and_evaluation_sets_do_not_leak(
    verifier: SQLVerifier, facts: DatabaseFacts
) -> None:
    prompts = []

    def reply(request: Seen) -> Reply:
        prompts.append(request.body["messages"][-1]["content"])
        return Reply(completion((json.dumps(GOOD), "stop")))

    templates = mine_templates([("c", "SELECT name FROM singer WHERE age > 3")], {"c": facts.graph})
    dev = EvaluationIndex(
        [Question("d", "x", "How many singers are there?", "SELECT 1")], dialect="sqlite"
    )
    with serve(reply) as server:
        examples, account = _explore(
            facts, verifier, server, 8, templates=templates, evaluation=dev
        )
    assert any("may look like these:\nSELECT " in prompt for prompt in prompts)
    assert "How many singers are there?" not in {e.question for e in examples}
    assert account.filters.removed["contamination"]["same_question"] >= 1
