"""Strong data from start to finish."""

from __future__ import annotations

import dataclasses
import json
import sqlite3
import threading
from pathlib import Path

import pytest
from chat_server import Reply, Seen, completion, error, serve
from strong_model import (
    ANSWERS,
    BEES,
    EXPECTED_REMOVED,
    GOOD,
    StrongModel,
    answer_to,
    labelled,
)

from sense_trl.database.catalog import DatabaseCatalog
from sense_trl.errors import InputError
from sense_trl.generation import chat_endpoint
from sense_trl.generation.openai_generator import OpenAIGenerator
from sense_trl.prompts import Messages
from sense_trl.questions import Question, load_questions
from sense_trl.schema.schema import load_spider_schemas
from sense_trl.synthesis.example import load_examples
from sense_trl.synthesis.strong.config import StrongDataConfig
from sense_trl.synthesis.strong.data import StrongDataResult, build_strong_data
from sense_trl.synthesis.strong.domains import OVERUSED_DOMAINS, SUGGESTED_DOMAINS, DomainLedger
from sense_trl.synthesis.strong.prompt import SHOWN_DOMAIN

SHOWN = [Question(f"t-{i}", "pets", f"Question {i}?", f"SELECT {i}") for i in range(6)]
DEV = [Question("dev-1", "concert", "How many singers do we have?", "SELECT count(*) FROM singer")]
CONFIG = StrongDataConfig(num_calls=len(ANSWERS), calls_per_round=8)


def build(output: Path, model: object = None, config: StrongDataConfig = CONFIG, **changes: object) -> StrongDataResult:  # fmt: skip
    config = dataclasses.replace(config, **changes)
    model = model or StrongModel()
    return build_strong_data(model, SHOWN, output, config, excluded=DEV, num_workers=0)


def contents(output: Path) -> dict[str, object]:
    """Every file of a data set, databases by their rows."""
    found: dict[str, object] = {}
    for path in sorted(output.rglob("*")):
        if path.suffix == ".sqlite":
            connection = sqlite3.connect(path)
            found[path.name] = list(connection.iterdump())
            connection.close()
        elif path.is_file():
            found[path.name] = path.read_bytes()
    return found


def test_what_is_kept_runs_and_what_goes_out_is_counted(tmp_path: Path) -> None:
    result = build(tmp_path)
    assert result.account["removed"] == EXPECTED_REMOVED
    assert (result.account["num_examples"], result.account["num_kept"]) == (len(ANSWERS), len(GOOD))
    assert json.loads((tmp_path / "account.json").read_text(encoding="utf-8")) == result.account
    rejected = list(map(json.loads, (tmp_path / "rejected.jsonl").read_text().splitlines()))
    assert [record["call"] for record in rejected] == list(range(1, len(ANSWERS) - len(GOOD) + 1))
    assert all(record["removed_by"] and record["reason"] for record in rejected)
    assert load_examples(tmp_path / "questions.jsonl") == result.examples

    questions = load_questions(tmp_path / "questions.jsonl")
    schemas = load_spider_schemas(tmp_path / "tables.json")
    with DatabaseCatalog.from_path(tmp_path) as catalog:
        assert set(catalog.db_ids) == {q.db_id for q in questions} == set(schemas)
        for question in questions:
            engine = catalog.engine(question.db_id)
            assert engine.execute(question.gold_sql).rows
            declared = {t.name: [c.name for c in t.columns] for t in engine.get_tables()}
            written = schemas[question.db_id].tables
            assert declared == {t.name: [c.name for c in t.columns] for t in written}
    bees = schemas["beekeeping_00000"]
    assert [(t, k.columns, k.referenced_table) for t, k in bees.foreign_keys] == [
        ("hive", ("apiary_id",), "apiary")
    ]


def test_every_example_says_where_it_comes_from(tmp_path: Path) -> None:
    examples = build(tmp_path).examples
    assert [example.level for example in examples] == ["medium", "medium", "easy", "easy", "hard"]
    origin = examples[2].provenance
    assert (origin.method, origin.generator, origin.seed) == ("strong", "pretender", 0)
    assert origin.template == "SELECT COUNT(*) FROM specimen WHERE collected BETWEEN ? AND ?"
    assert list(origin.verdicts) == ["one_select", "contamination", "duplicate", "execution"]


def test_an_interrupted_build_ends_with_the_same_files(tmp_path: Path) -> None:
    whole = StrongModel()
    build(tmp_path / "whole", whole)

    def stop_in_the_third_round(count: int) -> None:
        if len(stopped.prompts) == 16:
            raise KeyboardInterrupt

    stopped = StrongModel(stop_in_the_third_round)
    with pytest.raises(KeyboardInterrupt):
        build(tmp_path / "parts", stopped)
    assert not (tmp_path / "parts" / "questions.jsonl").exists()
    rest = StrongModel()
    build(tmp_path / "parts", rest)
    assert stopped.prompts + rest.prompts == whole.prompts
    assert contents(tmp_path / "parts") == contents(tmp_path / "whole")
    # And again, with nothing left to ask.
    silent = StrongModel()
    build(tmp_path / "parts", silent)
    assert silent.prompts == []
    assert contents(tmp_path / "parts") == contents(tmp_path / "whole")


def test_more_calls_continue_a_build(tmp_path: Path) -> None:
    build(tmp_path / "parts", num_calls=10)
    build(tmp_path / "parts")
    build(tmp_path / "whole")
    parts, whole = contents(tmp_path / "parts"), contents(tmp_path / "whole")
    assert parts.pop("answers-pretender.jsonl") and whole.pop("answers-pretender.jsonl")
    assert parts == whole


def test_another_model_is_asked_anew(tmp_path: Path) -> None:
    build(tmp_path, num_calls=2)
    other = StrongModel()
    other.name = "Other/model"
    examples = build(tmp_path, other, num_calls=1).examples
    assert len(other.prompts) == 1
    assert examples[0].provenance.generator == "Other/model"
    assert (tmp_path / "answers-other_model.jsonl").exists()


def test_a_full_domain_is_named_in_later_prompts_and_left_out(tmp_path: Path) -> None:
    def about_bees(messages: Messages) -> tuple[str, str]:
        number = messages[-1]["content"].split("(number ")[1].split(")")[0]
        return BEES.replace("total honey", f"total honey {number * 20}"), "stop"

    model = StrongModel(answer=about_bees)
    result = build(tmp_path, model, num_calls=6, calls_per_round=2, max_per_domain=2)
    assert result.account["removed"]["domain"] == {"closed_domain": 4}
    assert result.account["domains"] == {"Beekeeping": 2}
    closed = ["Beekeeping" in prompt[-1]["content"] for prompt in model.prompts]
    assert closed == [False, False, True, True, True, True]


def test_a_copy_of_the_answer_that_the_prompt_shows_is_left_out(tmp_path: Path) -> None:
    def copy(messages: Messages) -> tuple[str, str]:
        shown = messages[-1]["content"].split("this example:\n\n")[1]
        return shown.split("\n\nThe schema has")[0], "stop"

    account = build(tmp_path, StrongModel(answer=copy), num_calls=2).account
    assert account["removed"]["domain"] == {"closed_domain": 2}


def test_each_prompt_may_name_a_domain_of_its_own(tmp_path: Path) -> None:
    model = StrongModel()
    build(tmp_path, model, num_calls=6, suggest_domains=True)
    named = [prompt[-1]["content"].split("Its domain is: ")[1] for prompt in model.prompts]
    domains = {text.split(".")[0] for text in named}
    assert len(domains) == 6 and domains <= {*SUGGESTED_DOMAINS}
    # What is closed is not mentioned.
    assert not any("healthcare" in prompt[-1]["content"] for prompt in model.prompts)


def test_suggested_domains_are_open_and_distinct() -> None:
    ledger = DomainLedger(1, closed=(*OVERUSED_DOMAINS, SHOWN_DOMAIN))
    assert all(map(ledger.admit, SUGGESTED_DOMAINS))


def test_prompts_show_two_examples_and_all_levels(tmp_path: Path) -> None:
    model = StrongModel()
    account = build(tmp_path, model, num_calls=20).account
    assert len({prompt[-1]["content"] for prompt in model.prompts}) == 20
    assert {prompt[-1]["content"].count("SELECT") for prompt in model.prompts} == {3}
    assert sum(level["asked"] for level in account["levels"].values()) == 20
    assert all(level["asked"] for level in account["levels"].values())


def test_other_rows_are_drawn_where_the_first_ones_tie(tmp_path: Path) -> None:
    # Of two pots one is the dearest in half of the draws; in the others they tie.
    schema = "CREATE TABLE pot (pot_id INTEGER PRIMARY KEY, price INTEGER CHECK (price IN (1, 2)))"
    sql = "SELECT pot_id FROM pot ORDER BY price DESC LIMIT 1"
    model = StrongModel(answer=lambda _: (labelled("Pots", schema, "Which?", sql), "stop"))
    one = build(tmp_path / "one", model, num_calls=1, num_rows=2, max_fills=1, seed=3)
    many = build(tmp_path / "many", model, num_calls=1, num_rows=2, max_fills=20, seed=3)
    assert one.account["removed"]["execution"] == {"gold_limit_tie": 1}
    assert many.account["num_kept"] == 1


def test_a_schema_that_sqlite_refuses_goes_out(tmp_path: Path) -> None:
    # Another number of arguments than SQLite's function takes.
    schema = "CREATE TABLE pot (pot_id INTEGER PRIMARY KEY, p INTEGER CHECK (length(p, 1) > 0))"
    answer = labelled("Pots", schema, "Which?", "SELECT pot_id FROM pot")
    result = build(tmp_path, StrongModel(answer=lambda _: (answer, "stop")), num_calls=1)
    assert result.account["removed"]["schema"] == {"refused_by_sqlite": 1}
    assert not list((tmp_path / "databases").rglob("*.sqlite*"))


def test_other_settings_leave_no_old_database(tmp_path: Path) -> None:
    build(tmp_path)
    leaks = [Question("dev-2", "x", "How many specimens were collected in 2021?", "SELECT 1")]
    result = build_strong_data(StrongModel(), SHOWN, tmp_path, CONFIG, excluded=leaks + DEV, num_workers=0)  # fmt: skip
    assert result.account["removed"]["contamination"] == {"same_question": 2}
    folders = {path.name for path in (tmp_path / "databases").iterdir()}
    assert folders == {example.db_id for example in result.examples}
    assert len(folders) == len(GOOD) - 1


def test_a_round_trip_keeps_what_the_model_answers_again(tmp_path: Path) -> None:
    def answer(messages: Messages) -> tuple[str, str]:
        if "specimens" in messages[-1]["content"]:
            assert "CREATE TABLE specimen" in messages[0]["content"]
            return "SELECT count(id) FROM specimen WHERE collected LIKE '2021%'", "stop"
        return answer_to(messages)

    result = build(tmp_path, StrongModel(answer=answer), num_round_trip_samples=2)
    assert [example.db_id for example in result.examples] == ["lichen_herbarium_00017"]
    assert result.examples[0].provenance.verdicts["round_trip"] == "2 of 2 samples agree"
    assert result.account["removed"]["round_trip"] == {"no_sample_agrees": len(GOOD) - 1}
    assert [path.name for path in (tmp_path / "databases").iterdir()] == ["lichen_herbarium_00017"]


def test_a_server_with_bad_days_gives_the_same_data(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(chat_endpoint, "_FIRST_WAIT_S", 0.01)
    lock = threading.Lock()
    troubles = [
        Reply(error("slow down"), status=429, headers={"Retry-After": "0"}),
        Reply(error("overloaded"), status=503),
        Reply(b"<html>bad gateway</html>", status=502),
        Reply(resets=True),
        Reply(delay_s=3),
        Reply(b"{not json"),
    ]

    def reply(request: Seen) -> Reply:
        with lock:
            if troubles:
                return troubles.pop()
        text, reason = answer_to(request.body["messages"])
        return Reply(completion((text, reason), num_tokens=100))

    with serve(reply) as server:
        generator = OpenAIGenerator("pretender", server.url, timeout_s=0.5, concurrency=4)
        result = build(tmp_path / "served", generator)
    assert server.most_at_once > 1
    assert generator.usage.num_retries == 6
    assert result.account["removed"] == EXPECTED_REMOVED
    build(tmp_path / "plain")
    served, plain = contents(tmp_path / "served"), contents(tmp_path / "plain")
    assert served.pop("answers-pretender.jsonl") and plain.pop("answers-pretender.jsonl")
    assert served == plain


def test_worker_processes_change_nothing(tmp_path: Path) -> None:
    build(tmp_path / "here")
    build_strong_data(StrongModel(), SHOWN, tmp_path / "there", CONFIG, excluded=DEV, num_workers=1)
    assert contents(tmp_path / "there") == contents(tmp_path / "here")


def test_one_example_is_too_few(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="`examples` has 1"):
        build_strong_data(StrongModel(), SHOWN[:1], tmp_path)


@pytest.mark.parametrize(
    "change", [{"num_calls": 0}, {"calls_per_round": 0}, {"max_fills": 0}, {"num_round_trip_samples": -1}, {"timeout_s": 0.0}]
)  # fmt: skip
def test_settings_out_of_range_are_refused(change: dict[str, int]) -> None:
    with pytest.raises(InputError, match=next(iter(change))):
        StrongDataConfig(**change)


def test_every_setting_is_described() -> None:
    assert all(
        field.metadata["help"].endswith(".") for field in dataclasses.fields(StrongDataConfig)
    )


def test_no_call_is_paid_for_that_cannot_be_written_down(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    model = StrongModel()
    with pytest.raises(InputError, match="no folder that can be written to"):
        build(tmp_path / "file", model)
    assert not model.prompts
