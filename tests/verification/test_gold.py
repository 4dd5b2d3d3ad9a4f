"""Gold queries are looked at in one place: what fails, contradicts another or decides nothing."""

from __future__ import annotations

import pytest
from conftest import FreshDB

from sense_trl.database.catalog import DatabaseCatalog
from sense_trl.errors import InputError
from sense_trl.questions import Question
from sense_trl.verification.comparison import Reason
from sense_trl.verification.gold import (
    find_contradictory_gold,
    find_missing_databases,
    find_undetermined_gold,
    find_unusable_gold,
)
from sense_trl.verification.verifier import SQLVerifier

SCRIPT = """
CREATE TABLE owner (id INTEGER PRIMARY KEY, name TEXT);
CREATE TABLE pet (id INTEGER PRIMARY KEY, owner_id INTEGER REFERENCES owner (id));
INSERT INTO owner VALUES (1, 'Ann'); INSERT INTO pet VALUES (1, 1), (2, 1);
"""


def test_unusable_gold_is_named_with_its_reason(fresh_db: FreshDB) -> None:
    questions = [
        Question("ok", "pets", "?", "SELECT count(*) FROM pet"),
        Question("empty", "pets", "?", "SELECT id FROM pet WHERE id > 9"),
        Question("bad", "pets", "?", "SELECT nme FROM pet"),
        Question("writes", "pets", "?", "DELETE FROM pet"),
        Question("lost", "zoo", "?", "SELECT 1"),
    ]
    with DatabaseCatalog.from_path(fresh_db(SCRIPT, name="pets")) as catalog:
        unusable = find_unusable_gold(catalog, questions)
        assert find_missing_databases(catalog, questions) == {"lost": unusable["lost"]}
    assert list(unusable) == ["bad", "writes", "lost"]
    assert unusable["bad"] == (
        "the gold query gives execution_error (no such column: nme): SELECT nme FROM pet"
    )
    assert unusable["writes"].startswith("the gold query gives denied (DELETE is not allowed")
    assert unusable["lost"] == "the database 'zoo' is not there"


@pytest.mark.parametrize(
    ("gold", "expected"),
    [
        # Only one of them orders.
        (["SELECT id FROM pet ORDER BY id DESC", "SELECT id FROM pet"], []),
        (["SELECT id FROM pet", "SELECT id FROM pet ORDER BY id DESC"], []),
        (["SELECT id FROM pet ORDER BY id DESC", "SELECT id FROM pet ORDER BY id"], ["0 1"]),
        # The first decides nothing, the others differ; the last says what the second does.
        (
            [
                "SELECT id FROM pet ORDER BY owner_id LIMIT 1",
                "SELECT count(*) FROM pet",
                "SELECT 'x'",
                "SELECT count(*) FROM pet",
            ],
            ["1 2"],
        ),
        ([f"SELECT {number}" for number in range(9)], ["0 1", "0 2", "0 3", "0 4"]),
    ],
)
def test_every_query_of_the_same_words_is_compared(
    fresh_db: FreshDB, gold: list[str], expected: list[str]
) -> None:
    questions = [Question(str(i), "fresh", "Which?", sql) for i, sql in enumerate(gold)]
    with (
        DatabaseCatalog.from_path(fresh_db(SCRIPT)) as catalog,
        SQLVerifier(catalog, num_workers=1, semantics="bird") as verifier,
    ):
        found = find_contradictory_gold(verifier, questions)
    assert [" ".join(pair) for pair in found] == expected


@pytest.mark.parametrize("num_workers", [0, 2])
def test_gold_that_decides_nothing_is_listed(fresh_db: FreshDB, num_workers: int) -> None:
    questions = [
        Question("a", "pets", "?", "SELECT COUNT(*) FROM pet"),
        Question("b", "pets", "?", "SELECT id FROM pet WHERE id > 9"),
        Question("c", "pets", "?", "SELECT nme FROM pet"),
        Question("d", "pets", "?", "SELECT id FROM pet ORDER BY owner_id LIMIT 1"),
        Question("e", "pets", "?", "SELECT COUNT(*) FROM pet"),
    ]
    with (
        DatabaseCatalog.from_path(fresh_db(SCRIPT, name="pets")) as catalog,
        SQLVerifier(catalog, num_workers=num_workers) as verifier,
    ):
        found = find_undetermined_gold(verifier, questions)
        for question in questions:
            alone = verifier.verify_gold(question.db_id, question.gold_sql)
            assert (question.question_id in found) == (alone.reason is not Reason.RESULTS_EQUAL)
        with pytest.raises(InputError, match="'zoo'"):
            find_undetermined_gold(verifier, [Question("x", "zoo", "?", "SELECT 1")])
    assert {name: str(gold.reason) for name, gold in found.items()} == {
        "b": "gold_empty",
        "c": "gold_execution_error",
        "d": "gold_limit_tie",
    }
    assert found["c"].error == "no such column: nme"
