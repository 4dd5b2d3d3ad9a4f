"""Exploring a database without a model."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from synthesis.concerts import make_concerts

from sense_trl.database.catalog import DatabaseCatalog
from sense_trl.errors import InputError
from sense_trl.questions import Question
from sense_trl.sql.parsing import canonical_sql
from sense_trl.synthesis.example import Provenance, SynthesizedExample
from sense_trl.synthesis.explore import exploration
from sense_trl.synthesis.explore.config import ExplorationConfig
from sense_trl.synthesis.explore.exploration import (
    ExplorationAccount,
    ShapeCapFilter,
    explore_database,
)
from sense_trl.synthesis.explore.facts import DatabaseFacts, get_database_facts
from sense_trl.synthesis.explore.redundancy import is_redundant
from sense_trl.synthesis.explore.templates import mine_templates
from sense_trl.synthesis.filters.contamination import EvaluationIndex
from sense_trl.synthesis.filters.sql_template import get_sql_template
from sense_trl.verification.verifier import SQLVerifier

SEEDS = [
    ("concerts", "SELECT name FROM singer WHERE age > 30 ORDER BY name"),
    (
        "concerts",
        "SELECT T1.name, count(*) FROM singer AS T1 JOIN song AS T2 ON T1.id = T2.singer_id GROUP BY T1.id",
    ),
    ("concerts", "SELECT name FROM singer WHERE id NOT IN (SELECT singer_id FROM song)"),
    ("concerts", "SELECT theme FROM concert UNION SELECT name FROM stadium"),
]


@pytest.fixture
def verifier(fresh_db: Callable[..., Path]) -> Iterator[SQLVerifier]:
    path = make_concerts(fresh_db)
    with DatabaseCatalog.from_path(path) as catalog, SQLVerifier(catalog, num_workers=0) as made:
        yield made


@pytest.fixture
def facts(verifier: SQLVerifier) -> DatabaseFacts:
    return get_database_facts(
        verifier.catalog.engine("concerts"), seed_sql=[sql for _, sql in SEEDS]
    )


def test_queries_are_drawn_as_far_as_they_are_needed(
    verifier: SQLVerifier, facts: DatabaseFacts, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = {}
    for part in (8, 64):
        monkeypatch.setattr(exploration, "_MIN_PART", part)
        account = ExplorationAccount()
        config = ExplorationConfig(num_per_database=20, seed=3)
        examples = list(explore_database(facts, verifier, config, account=account))
        made[part] = ([e.sql for e in examples], account.num_attempts)
    assert made[8][0] == made[64][0]
    assert made[8][1] < made[64][1] == 64


def test_every_example_runs_returns_rows_and_says_where_it_comes_from(
    verifier: SQLVerifier, facts: DatabaseFacts
) -> None:
    templates = mine_templates(SEEDS, {"concerts": facts.graph})
    account = ExplorationAccount()
    config = ExplorationConfig(num_per_database=60, max_per_template=2, max_per_shape=3, seed=5)
    examples = list(explore_database(facts, verifier, config, templates=templates, account=account))
    assert len(examples) == 60
    engine = verifier.catalog.engine("concerts")
    for example in examples:
        assert engine.execute(example.sql).rows, example.sql
        assert not is_redundant(example.sql, "sqlite")
        assert example.provenance.subgraph and example.provenance.verdicts["execution"] == "passed"
        assert 3 <= len(example.provenance.subgraph) <= 8
    assert len({canonical_sql(e.sql, "sqlite") for e in examples}) == 60
    assert max(Counter(get_sql_template(e.sql, "sqlite") for e in examples).values()) <= 2
    shapes = Counter(e.provenance.template for e in examples)
    assert max(count for shape, count in shapes.items() if shape is not None) <= 3
    assert {e.level for e in examples} == {"1", "2", "3", "4"}
    assert {e.provenance.method for e in examples} == {"explore_template", "explore_grammar"}
    counted = account.as_json()
    assert counted["filters"]["num_kept"] == 60 + account.num_surplus
    assert account.num_attempts == counted["filters"]["num_examples"] + account.not_made.total()
    assert ExplorationAccount.from_json(counted).as_json() == counted


def test_the_same_seed_gives_the_same_examples(verifier: SQLVerifier, facts: DatabaseFacts) -> None:
    def explore(seed: int) -> list[SynthesizedExample]:
        return list(
            explore_database(facts, verifier, ExplorationConfig(num_per_database=15, seed=seed))
        )

    assert explore(1) == explore(1)
    assert explore(1) != explore(2)
    # Fewer are the beginning of more: what comes next depends on nothing that comes after.
    more = list(explore_database(facts, verifier, ExplorationConfig(num_per_database=20, seed=1)))
    assert more[:15] == explore(1)


def test_what_is_evaluated_on_is_left_out(verifier: SQLVerifier, facts: DatabaseFacts) -> None:
    config = ExplorationConfig(num_per_database=30)
    free = list(explore_database(facts, verifier, config))
    dev = [
        Question("d1", "other", free[3].question, "SELECT 1"),
        Question("d2", "other", "?", free[7].sql),
    ]
    account = ExplorationAccount()
    kept = list(
        explore_database(
            facts,
            verifier,
            config,
            evaluation=EvaluationIndex(dev, dialect="sqlite"),
            account=account,
        )
    )
    assert free[3].question not in {e.question for e in kept}
    assert free[7].sql not in {e.sql for e in kept}
    assert account.filters.removed["contamination"].total() >= 2


def test_a_database_that_gives_little_ends(fresh_db: Callable[..., Path]) -> None:
    path = fresh_db("CREATE TABLE t (a TEXT); INSERT INTO t VALUES ('x')", name="tiny")
    with (
        DatabaseCatalog.from_path(path) as catalog,
        SQLVerifier(catalog, num_workers=0) as verifier,
    ):
        facts = get_database_facts(catalog.engine("tiny"))
        account = ExplorationAccount()
        config = ExplorationConfig(num_per_database=20, max_attempts_per_question=10)
        examples = list(explore_database(facts, verifier, config, account=account))
    assert 0 < len(examples) < 20
    assert account.num_attempts == 200


def test_a_database_without_rows_is_given_up(fresh_db: Callable[..., Path]) -> None:
    path = fresh_db("CREATE TABLE t (a TEXT, n INT)", name="empty")
    with (
        DatabaseCatalog.from_path(path) as catalog,
        SQLVerifier(catalog, num_workers=0) as verifier,
    ):
        account = ExplorationAccount()
        facts = get_database_facts(catalog.engine("empty"))
        assert list(explore_database(facts, verifier, account=account)) == []
    assert account.num_attempts == 640


def test_shapes_are_capped_by_database_and_no_shape_is_not(verifier: SQLVerifier) -> None:
    def example(db_id: str, template: str | None) -> SynthesizedExample:
        return SynthesizedExample(
            "?", "SELECT 1", db_id, "1", Provenance("explore", None, 0, (), template)
        )

    given = [
        example(*key) for key in (("a", "x"), ("a", "x"), ("b", "x"), ("a", None), ("a", None))
    ]
    assert [v.passed for v in ShapeCapFilter(1).check(given)] == [True, False, True, True, True]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_per_database": 0}, "`num_per_database` is 0"),
        ({"max_per_shape": 0}, "`max_per_shape` is 0"),
        ({"template_share": 1.5}, "`template_share` is"),
    ],
)
def test_unusable_options_are_named(options: dict[str, float], message: str) -> None:
    with pytest.raises(InputError, match=message):
        ExplorationConfig(**options)  # type: ignore[arg-type]


def test_every_option_is_described() -> None:
    fields = ExplorationConfig.__dataclass_fields__.values()
    assert all(field.metadata["help"] for field in fields)
