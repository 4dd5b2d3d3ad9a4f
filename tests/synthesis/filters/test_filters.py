"""Filters of synthesised examples, one by one and in a row."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import duckdb
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sense_trl.database.catalog import DatabaseCatalog
from sense_trl.errors import InputError
from sense_trl.generation.generator import Completion, SamplingConfig
from sense_trl.prompts import Messages, get_prompt
from sense_trl.questions import Question
from sense_trl.synthesis.example import Provenance, SynthesizedExample
from sense_trl.synthesis.filters.agreement import RoundTripFilter, SelfConsistencyFilter
from sense_trl.synthesis.filters.contamination import EvaluationIndex
from sense_trl.synthesis.filters.filters import (
    ContaminationFilter,
    DuplicateFilter,
    ExampleFilter,
    ExecutionFilter,
    FilterAccount,
    FilterPipeline,
    FilterVerdict,
    OneSelectFilter,
    TemplateCapFilter,
)
from sense_trl.verification.judging import VerificationRequest
from sense_trl.verification.verifier import SQLVerifier

PETS = """
CREATE TABLE pet (name TEXT, age INTEGER, owner TEXT);
INSERT INTO pet VALUES ('Rex', 3, 'Ann'), ('Tom', 5, 'Bob'), ('Kim', 5, NULL);
"""


def example(sql: str, question: str = "Which pets are there?") -> SynthesizedExample:
    return SynthesizedExample(question, sql, "pets", "easy", Provenance("explore", None, 0))


@pytest.fixture
def verifier(fresh_db: Callable[..., Path]) -> Iterator[SQLVerifier]:
    path = fresh_db(PETS, name="pets")
    with DatabaseCatalog.from_path(path) as catalog, SQLVerifier(catalog, num_workers=0) as made:
        yield made


def test_sql_is_read_in_the_dialect_of_its_database() -> None:
    dialects = {"pets": "sqlite", "duck": "duckdb"}.__getitem__
    texts = [f"SELECT {x}.age // 2 FROM pet AS {x}" for x in "xy"]
    of_duck = [replace(example(sql, f"{sql}?"), db_id="duck") for sql in texts]

    def check(a_filter: ExampleFilter, examples: Sequence[SynthesizedExample]) -> list[str]:
        return [verdict.reason for verdict in a_filter.check(examples)]

    assert check(OneSelectFilter(dialects), [example(texts[0])]) == ["unparsable"]
    assert check(OneSelectFilter(dialects), of_duck) == ["passed", "passed"]
    assert check(DuplicateFilter(dialects), of_duck) == ["passed", "duplicate_sql"]
    assert check(TemplateCapFilter(dialects, 1), of_duck) == ["passed", "template_full"]
    dev = [Question("d", "duck", "Other?", texts[0])]
    index = EvaluationIndex(dev, dialect=dialects)
    assert check(ContaminationFilter(index), of_duck[1:]) == ["same_template"]
    assert check(ContaminationFilter(index), [example(texts[1])]) == ["passed"]


def reason(a_filter: ExampleFilter, sql: str, question: str = "Which pets are there?") -> str:
    (verdict,) = a_filter.check([example(sql, question)])
    assert verdict.passed == (verdict.reason == "passed")
    return verdict.reason


@pytest.mark.parametrize(
    ("sql", "expected"),
    [
        ("SELECT name FROM pet;", "passed"),
        ("WITH x AS (SELECT 1 AS a) SELECT a FROM x", "passed"),
        ("SELECT 1 UNION SELECT 2", "passed"),
        ("SELECT replace(name, 'a', 'b') FROM pet", "passed"),
        ("DELETE FROM pet", "not_a_query"),
        ("WITH x AS (SELECT 1) DELETE FROM pet", "not_a_query"),
        ("CREATE TABLE a AS SELECT 1", "not_a_query"),
        ("SELECT name INTO other FROM pet", "not_a_query"),
        ("ATTACH 'x.db' AS y", "not_a_query"),
        ("PRAGMA table_info(pet)", "not_a_query"),
        ("SELECT 1; SELECT 2", "unparsable"),
        ("SELECT 1; DROP TABLE pet", "unparsable"),
        ("SELECT FROM WHERE", "unparsable"),
        ("", "unparsable"),
    ],
)
def test_only_one_reading_query_passes(sql: str, expected: str) -> None:
    assert reason(OneSelectFilter("sqlite"), sql) == expected


@pytest.mark.parametrize(
    ("sql", "expected"),
    [
        ("SELECT name FROM pet WHERE age = 5", "passed"),
        ("SELECT count(*) FROM pet", "passed"),
        ("SELECT owner FROM pet", "passed"),
        ("SELECT nme FROM pet", "gold_execution_error"),
        ("SELECT FROM pet", "gold_syntax_error"),
        ("DROP TABLE pet", "gold_denied"),
        ("SELECT name FROM pet WHERE age > 90", "empty"),
        ("SELECT sum(age) FROM pet WHERE age > 90", "nothing_found"),
        ("SELECT count(*), max(age) FROM pet WHERE age > 90", "nothing_found"),
        ("SELECT NULL FROM pet", "nothing_found"),
        ("SELECT age - age FROM pet", "passed"),
        ("SELECT random() FROM pet", "gold_not_deterministic"),
        ("SELECT name FROM pet ORDER BY age DESC LIMIT 1", "gold_limit_tie"),
        ("SELECT name FROM pet LIMIT 1", "gold_not_deterministic"),
    ],
)
@pytest.mark.parametrize("is_trusted", [False, True])
def test_sql_must_give_one_answer_that_says_something(
    verifier: SQLVerifier, sql: str, expected: str, is_trusted: bool
) -> None:
    assert reason(ExecutionFilter(verifier, is_trusted=is_trusted), sql) == expected


def test_a_result_beyond_the_limits_goes_out_and_trusted_sql_is_not_verified_for_it(
    fresh_db: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    from sense_trl.database.engine import ExecutionLimits

    limits = ExecutionLimits(max_rows=2)
    queries = [example(sql) for sql in ("SELECT name FROM pet", "SELECT count(*) FROM pet")]
    with (
        DatabaseCatalog.from_path(fresh_db(PETS, name="pets"), limits=limits) as catalog,
        SQLVerifier(catalog, num_workers=0) as verifier,
    ):
        verified = []
        verify = verifier.verify

        def record(requests: list[VerificationRequest]) -> object:
            verified.extend(request.gold_sql for request in requests)
            return verify(requests)

        monkeypatch.setattr(verifier, "verify", record)
        for is_trusted in (False, True):
            verdicts = ExecutionFilter(verifier, is_trusted=is_trusted).check(queries)
            assert [verdict.reason for verdict in verdicts] == ["too_large", "passed"]
    assert verified == [queries[0].sql, queries[1].sql, queries[1].sql]


def test_lists_of_duckdb_say_something(tmp_path: Path) -> None:
    connection = duckdb.connect(str(tmp_path / "pets.duckdb"))
    connection.execute("CREATE TABLE pet AS SELECT ['a', 'b'] AS tags, NULL::INTEGER[] AS ages")
    connection.close()
    with (
        DatabaseCatalog.from_path(tmp_path) as catalog,
        SQLVerifier(catalog, num_workers=0) as verifier,
    ):
        assert reason(ExecutionFilter(verifier), "SELECT tags, ages FROM pet") == "passed"
        assert reason(ExecutionFilter(verifier), "SELECT ages FROM pet") == "nothing_found"


def test_an_error_comes_with_the_message_of_the_engine(verifier: SQLVerifier) -> None:
    (verdict,) = ExecutionFilter(verifier).check([example("SELECT nme FROM pet")])
    assert verdict.detail is not None and "nme" in verdict.detail


def test_a_query_that_never_ends_goes_out(fresh_db: Callable[..., Path]) -> None:
    from sense_trl.database.engine import ExecutionLimits

    limits = ExecutionLimits(max_steps=100_000)
    endless = "WITH RECURSIVE x(a) AS (SELECT 1 UNION ALL SELECT a + 1 FROM x) SELECT max(a) FROM x"
    with (
        DatabaseCatalog.from_path(fresh_db(PETS, name="pets"), limits=limits) as catalog,
        SQLVerifier(catalog, num_workers=0) as verifier,
    ):
        assert reason(ExecutionFilter(verifier), endless) == "gold_step_budget"


def test_the_second_of_equal_questions_or_queries_goes_out() -> None:
    duplicates = DuplicateFilter("sqlite")
    assert reason(duplicates, "SELECT name FROM pet", "Name all pets.") == "passed"
    assert reason(duplicates, "SELECT age FROM pet", "name all  pets") == "duplicate_question"
    assert reason(duplicates, "select Name from pet", "How are they called?") == "duplicate_sql"
    assert reason(duplicates, "SELECT age FROM pet", "How old are they?") == "passed"
    assert reason(duplicates, "SELECT 1 FROM pet", " ?!") == "empty_question"


def test_a_rejected_duplicate_blocks_nothing() -> None:
    duplicates = DuplicateFilter("sqlite")
    reason(duplicates, "SELECT name FROM pet", "Name all pets.")
    assert reason(duplicates, "SELECT age FROM pet", "Name all pets!") == "duplicate_question"
    assert reason(duplicates, "SELECT age FROM pet", "Ages?") == "passed"


def test_each_template_has_so_many_places() -> None:
    cap = TemplateCapFilter("sqlite", 2)
    reasons = [reason(cap, f"SELECT name FROM pet WHERE age > {age}") for age in range(4)]
    assert reasons == ["passed", "passed", "template_full", "template_full"]
    assert reason(cap, "SELECT name FROM pet WHERE age < 3") == "passed"


def test_a_cap_below_one_is_refused() -> None:
    with pytest.raises(InputError, match="max_per_template"):
        TemplateCapFilter("sqlite", 0)


class Answers:
    """A generator that answers each question from a table."""

    name = "answers"

    def __init__(self, answers: dict[str, list[str]]) -> None:
        self._answers = answers

    def generate(
        self,
        prompts: Sequence[Messages],
        sampling: SamplingConfig,
        *,
        on_progress: Callable[[int], None] | None = None,
    ) -> list[list[Completion]]:
        return [
            [Completion(t, 1, True) for t in self._answers[prompt[-1]["content"]]]
            for prompt in prompts
        ]


def ask(item: SynthesizedExample) -> Messages:
    return get_prompt(item.question, "pet(name, age)")


def test_one_agreeing_sample_confirms_and_most_make_it_consistent(verifier: SQLVerifier) -> None:
    right, wrong = "```sql\nSELECT name AS n FROM pet WHERE age >= 5\n```", "SELECT 'Rex'"
    answers = Answers({"A?": [wrong, right, wrong], "B?": [right, right, ""], "C?": [wrong] * 3})
    asked = [example("SELECT name FROM pet WHERE age = 5", f"{letter}?") for letter in "ABC"]
    sampling = SamplingConfig(3, temperature=1.0)
    round_trip = RoundTripFilter(answers, verifier, ask, sampling).check(asked)
    assert [(v.passed, v.detail) for v in round_trip] == [
        (True, "1 of 3 samples agree"),
        (True, "2 of 3 samples agree"),
        (False, "0 of 3 samples agree"),
    ]
    assert round_trip[2].reason == "no_sample_agrees"
    consistency = SelfConsistencyFilter(answers, verifier, ask, sampling).check(asked)
    assert [v.reason for v in consistency] == ["too_few_agree", "passed", "too_few_agree"]


def test_samples_that_fail_alike_do_not_agree(verifier: SQLVerifier) -> None:
    answers = Answers({"A?": ["SELECT nme FROM pet"]})
    check = RoundTripFilter(answers, verifier, ask, SamplingConfig()).check
    assert not check([example("SELECT nme FROM pet", "A?")])[0].passed


@pytest.mark.parametrize("share", [0.0, 1.5])
def test_a_share_out_of_range_is_refused(verifier: SQLVerifier, share: float) -> None:
    with pytest.raises(InputError, match="min_share"):
        SelfConsistencyFilter(Answers({}), verifier, ask, SamplingConfig(), min_share=share)


def test_a_pipeline_counts_by_filter_and_keeps_reasons(verifier: SQLVerifier) -> None:
    dev = [Question("dev-1", "zoo", "How many pets are there?", "SELECT max(age) FROM pet")]
    pipeline = FilterPipeline(
        [
            OneSelectFilter("sqlite"),
            ContaminationFilter(EvaluationIndex(dev, dialect="sqlite")),
            DuplicateFilter("sqlite"),
            ExecutionFilter(verifier),
        ]
    )
    examples = [
        example("SELECT name FROM pet", "Which names?"),
        example("DROP TABLE pet", "Remove the pets."),
        example("SELECT count(*) FROM pet", "How many pets are there"),
        example("SELECT name FROM pet", "Which names"),
        example("SELECT nme FROM pet", "Which nms?"),
        example("SELECT age FROM pet", "How old?"),
    ]
    result = pipeline.apply(examples)
    assert [item.question for item in result.kept] == ["Which names?", "How old?"]
    assert dict(result.kept[0].provenance.verdicts) == dict.fromkeys(
        ["one_select", "contamination", "duplicate", "execution"], "passed"
    )
    assert [(r.example.question, r.filter, r.reason) for r in result.rejected] == [
        ("Remove the pets.", "one_select", "not_a_query"),
        ("How many pets are there", "contamination", "same_question"),
        ("Which names", "duplicate", "duplicate_question"),
        ("Which nms?", "execution", "gold_execution_error"),
    ]
    assert result.rejected[1].as_json()["detail"] == "dev-1"
    assert pipeline.account.as_json() == {
        "num_examples": 6,
        "num_kept": 2,
        "removed": {
            "one_select": {"not_a_query": 1},
            "contamination": {"same_question": 1},
            "duplicate": {"duplicate_question": 1},
            "execution": {"gold_execution_error": 1},
        },
    }


def test_two_filters_of_one_name_are_refused() -> None:
    with pytest.raises(InputError, match="one name"):
        FilterPipeline([OneSelectFilter("sqlite"), OneSelectFilter("duckdb")])


class Table:
    """A filter with given answers."""

    def __init__(self, name: str, passes: set[str]) -> None:
        self.name = name
        self._passes = passes

    def check(self, examples: Sequence[SynthesizedExample]) -> list[FilterVerdict]:
        return [FilterVerdict(e.question in self._passes, "table") for e in examples]


names = st.sets(st.sampled_from("abcdef"))


@given(st.lists(st.sampled_from("abcdef")), st.lists(names, max_size=3), st.integers(0, 6))
def test_every_example_is_kept_or_counted_once(letters, tables, cut) -> None:
    filters = [Table(str(number), passes) for number, passes in enumerate(tables)]
    pipeline, parted = FilterPipeline(filters), FilterPipeline(filters)
    examples = [example("SELECT 1", letter) for letter in letters]
    result = pipeline.apply(examples)
    assert [e.question for e in result.kept] == [
        letter for letter in letters if all(letter in passes for passes in tables)
    ]
    account = pipeline.account
    removed = sum(reasons.total() for reasons in account.removed.values())
    assert account.num_examples == len(letters) == len(result.kept) + len(result.rejected)
    assert (account.num_kept, removed) == (len(result.kept), len(result.rejected))
    # Two batches give what one gives, and counts of parts add up.
    first, second = parted.apply(examples[:cut]), parted.apply(examples[cut:])
    assert (first.kept + second.kept, first.rejected + second.rejected) == (
        result.kept,
        result.rejected,
    )
    assert parted.account.as_json() == account.as_json()
    doubled = FilterAccount.from_json(account.as_json())
    doubled.add(account)
    assert doubled.num_examples == 2 * len(letters)
    assert sum(r.total() for r in doubled.removed.values()) == 2 * removed
