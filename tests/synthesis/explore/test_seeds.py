"""Which training questions an exploration may learn from."""

from __future__ import annotations

from pathlib import Path

import pytest

from sense_trl.errors import InputError
from sense_trl.questions import Question, load_questions
from sense_trl.synthesis.explore.seeds import SortedSeeds, sort_seeds
from sense_trl.synthesis.filters.contamination import find_evaluated

DEV = [Question("d1", "pets", "How old is Rex?", "SELECT age FROM pet WHERE name = 'Rex'")]


def _sort(*seeds: Question, **settings: float) -> SortedSeeds:
    return sort_seeds(seeds, DEV, {"pets": "sqlite", "zoo": "sqlite"}.get, **settings)


def _seed(question: str, sql: str, db_id: str = "pets") -> Question:
    return Question("s1", db_id, question, sql)


@pytest.mark.parametrize(
    "seed",
    [
        _seed("how old IS Rex", "SELECT 1"),
        _seed("Age?", "SELECT age FROM pet WHERE name = 'Rex'"),
        _seed("Age?", "SELECT p.age FROM pet AS p WHERE 'Rex' = p.name"),
        _seed("Age?", 'SELECT pet.age FROM pet WHERE pet.name IN ("Rex")'),
    ],
)
def test_an_evaluation_question_in_any_spelling_is_refused(seed: Question) -> None:
    with pytest.raises(InputError, match="`seeds` holds s1, which `excluded` has as d1"):
        _sort(seed)


def test_seeds_close_to_an_evaluation_question_of_their_database_are_left_out() -> None:
    free = Question("s2", "pets", "Names?", "SELECT name FROM pet")
    sorted_seeds = _sort(_seed("Age?", "SELECT age FROM pet AS p WHERE p.name = 'Bo'"), free)
    assert sorted_seeds.usable == (free,)
    assert sorted_seeds.too_close == {"s1": "same_template: d1"}
    elsewhere = _seed("How old is Rex?", DEV[0].gold_sql, "zoo")
    assert _sort(elsewhere).usable == (elsewhere,)


def test_unreadable_seeds_are_named_and_too_many_are_refused() -> None:
    bad = [
        _seed("Who?", "I do not know"),
        Question("s2", "pets", "Drop it", "DROP TABLE pet"),
    ]
    good = [Question(f"g{i}", "zoo", f"Number {i}?", "SELECT 1") for i in range(6)]
    unknown = [Question(f"u{i}", "moon", "What?", "no SQL") for i in range(92)]
    # 2 of the 8 that have a schema.
    with pytest.raises(InputError, match=r"2 of 8 questions in `seeds` cannot be used:\n  s1: .*"):
        _sort(*bad, *good, *unknown, max_unusable_fraction=0.24)
    sorted_seeds = _sort(*bad, *good, *unknown, max_unusable_fraction=0.25)
    assert sorted_seeds.usable == tuple(good)
    record = sorted_seeds.as_json()
    assert (record["num_usable"], record["num_without_schema"]) == (6, 92)
    assert record["unreadable"]["s2"] == "no query: 'DROP TABLE pet'"
    with pytest.raises(InputError, match="2 of 2"):
        _sort(*bad)


def test_the_message_stays_short() -> None:
    seeds = [Question(f"s{i}", "pets", f"{i}?", "nothing here") for i in range(30)]
    with pytest.raises(InputError, match=r"\.\.\. and 20 more"):
        _sort(*seeds)


def test_other_constants_and_databases_make_another_question() -> None:
    others = [
        _seed("Age?", "SELECT age FROM pet WHERE name = 'Bo'"),
        _seed("Age?", DEV[0].gold_sql, "zoo"),
        _seed("...", "SELECT 1"),
    ]
    for other in others:
        assert find_evaluated([other], DEV, dialect="sqlite") == {}
    wordless = [Question("d2", "pets", "?", "SELECT 2")]
    assert find_evaluated([others[2]], wordless, dialect="sqlite") == {}
    assert find_evaluated(DEV, DEV, dialect="sqlite") == {"d1": "d1"}


def test_spiders_training_questions_are_no_dev_questions(shared_data: Path) -> None:
    train, dev = (load_questions(shared_data / "spider" / f"{x}.jsonl") for x in ("train", "dev"))
    result = sort_seeds(train[::10], dev, lambda db_id: "sqlite")
    assert len(result.usable) == len(train[::10])
    assert (result.unreadable, result.too_close, result.num_without_schema) == ({}, {}, 0)
