"""Evaluation records and the numbers over them."""

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from conftest import FreshDB

from sense_trl.database.catalog import DatabaseCatalog
from sense_trl.database.engine import ExecutionLimits, ForeignKeyInfo
from sense_trl.errors import InputError
from sense_trl.evaluation import (
    EvaluationRecord,
    EvaluationReport,
    bootstrap_interval,
    evaluate_sql,
)
from sense_trl.evaluation.predictions import load_predictions
from sense_trl.questions import Question, load_questions
from sense_trl.schema import DatabaseSchema, get_schema, load_spider_schemas
from sense_trl.verification.suite.verifier import SuiteVerifier
from sense_trl.verification.verifier import SQLVerifier, Verdict

SCRIPT = "CREATE TABLE t (a INTEGER, b TEXT); INSERT INTO t VALUES (1,'x'),(2,'<b>&'),(3,NULL);"
QUESTIONS = [
    Question("q1", "d", "How many?", "SELECT COUNT(*) FROM t", level="easy"),
    Question("q2", "d", "Which <b>?", "SELECT b FROM t", level="hard"),
    Question("q3", "d", "None?", "SELECT a FROM t WHERE a > 9", level="hard"),
]
BEFORE = {"q1": "SELECT 0", "q2": "SELECT c FROM t", "q3": "SELECT 1 WHERE 0"}
AFTER = {"q1": "SELECT 3", "q2": "SELECT b FROM t WHERE 1", "q3": ""}


@pytest.fixture
def catalog(fresh_db: FreshDB) -> Iterator[DatabaseCatalog]:
    with DatabaseCatalog.from_path(fresh_db(SCRIPT, name="d")) as catalog:
        yield catalog


@pytest.fixture
def runs(catalog: DatabaseCatalog) -> list[EvaluationReport]:
    with SQLVerifier(catalog) as verifier:
        return [
            evaluate_sql(QUESTIONS, predictions, verifier, name=name)
            for name, predictions in (("before", BEFORE), ("after", AFTER))
        ]


def test_verdicts_and_counts(runs: list[EvaluationReport]) -> None:
    before, after = runs
    assert before.verdicts == (Verdict.WRONG, Verdict.WRONG, Verdict.UNDETERMINED)
    # An answer without SQL is wrong even where gold is empty.
    assert after.verdicts == (Verdict.CORRECT, Verdict.CORRECT, Verdict.WRONG)
    assert after.execution_accuracy == pytest.approx(2 / 3)
    assert after.by_level() == {"easy": (1, 1), "hard": (1, 2)}
    assert sum(after.reasons.values()) == 3
    assert "no such column" in str(before.records[1].error)


def test_a_report_is_read_back_as_written(runs: list[EvaluationReport], tmp_path: Path) -> None:
    runs[0].save(tmp_path / "r.json")
    assert EvaluationReport.load(tmp_path / "r.json") == runs[0]


def test_a_damaged_report_is_named(runs: list[EvaluationReport], tmp_path: Path) -> None:
    path = tmp_path / "r.json"
    runs[0].save(path)
    path.write_text(path.read_text()[:100])
    for bad in (path, tmp_path / "none.json"):
        with pytest.raises(InputError, match="is no readable evaluation"):
            EvaluationReport.load(bad)


def test_missing_predictions_and_no_questions_are_refused(catalog: DatabaseCatalog) -> None:
    with SQLVerifier(catalog) as verifier:
        with pytest.raises(InputError, match=r"lacks 2 of 3 questions, first 'q2'"):
            evaluate_sql(QUESTIONS, {"q1": "SELECT 1"}, verifier)
        nothing = {**BEFORE, "q2": None}
        with pytest.raises(InputError, match=r"`predictions\['q2'\]` is None; expected SQL"):
            evaluate_sql(QUESTIONS, nothing, verifier)  # type: ignore[arg-type]
        with pytest.raises(InputError, match="`questions` is empty"):
            evaluate_sql([], {}, verifier)


def _record(number: int, **values: Any) -> EvaluationRecord:
    return EvaluationRecord(
        **{
            "question_id": f"q{number}",
            "db_id": "d",
            "level": None,
            "question": "?",
            "gold_sql": "SELECT 1",
            "predicted_sql": "SELECT 2",
            "verdict": Verdict.WRONG,
            "reason": "values_differ",
            "error": None,
            **values,
        }
    )


CORRECT, WRONG, UNDETERMINED = Verdict.CORRECT, Verdict.WRONG, Verdict.UNDETERMINED
FULL = EvaluationReport(
    "full",
    (
        _record(
            1,
            **{"verdict": CORRECT, "executes": True, "spider": CORRECT, "bird": CORRECT},
            **{"suite": WRONG, "refuted_by": "neighbour 5", "hardness": "hard", "db_id": "b"},
            **{"exact_match": False, "soft_f1": 1.0, "soft_f1_unordered": 1.0, "time_ratio": 4.0},
        ),
        _record(
            2,
            **{"executes": False, "spider": WRONG, "bird": WRONG, "suite": WRONG, "db_id": "a"},
            **{"soft_f1": 0.0, "soft_f1_unordered": 0.5, "hardness": "easy"},
            error_classes=("extra_join", "wrong_column"),
        ),
        _record(
            3,
            **{"verdict": UNDETERMINED, "spider": CORRECT, "bird": CORRECT, "suite": UNDETERMINED},
            **{"exact_match": True, "time_ratio": 0.25, "db_id": "b"},
            error_classes=("extra_join",),
        ),
        _record(
            4,
            **{"verdict": CORRECT, "executes": True, "spider": WRONG, "bird": WRONG},
            **{"suite": CORRECT, "exact_match": True, "soft_f1": 0.5, "soft_f1_unordered": 0.75},
            **{"hardness": "easy", "db_id": "a"},
        ),
    ),
    {"suite": "Eight neighbours."},
)


def test_scores_by_hand() -> None:
    scores = {score.name: score for score in FULL.scores}
    assert {name: (score.value, score.num_questions) for name, score in scores.items()} == {
        "strict": (2 / 4, 4),
        "spider": (2 / 4, 4),
        "bird": (2 / 4, 4),
        "suite": (1 / 4, 4),
        "exact_match": (2 / 3, 3),
        "soft_f1": (0.5, 3),
        "soft_f1_unordered": (0.75, 3),
        # Roots of the ratios, 2 + 0 + 0.5 + 0, and of the rewards 1.25 and 0.5.
        "ves": (2.5 / 4, 4),
        "r_ves": (pytest.approx((1.25**0.5 + 0.5**0.5) / 4), 4),
        "validity": (2 / 3, 3),
        "undetermined": (1 / 4, 4),
    }
    assert scores["strict"].interval == FULL.interval
    assert scores["soft_f1"].interval == bootstrap_interval([1.0, 0.0, 0.5])
    assert scores["suite"].note == (
        "1 refuted by another instance of the database, 1 of them correct (strict) on the original. "
        "Eight neighbours."
    )
    none_refuted = tuple(replace(record, refuted_by=None) for record in FULL.records)
    suite = EvaluationReport("full", none_refuted, FULL.notes).get_score("suite")
    assert suite is not None
    assert suite.note.startswith("None refuted by another instance of the database.")
    met = (
        replace(FULL.records[0], suite=CORRECT, num_confirming=number) for number in (0, 8, None)
    )
    suite = EvaluationReport("met", tuple(met)).get_score("suite")
    assert suite is not None
    assert "1 of the 3 correct ones met no other instance that can tell" in suite.note
    assert scores["exact_match"].note.startswith("1 left out: Spider's parser")
    assert FULL.get_score("bird") == scores["bird"]


def test_what_was_not_measured_has_no_score() -> None:
    report = EvaluationReport("plain", (_record(1),))
    assert [score.name for score in report.scores] == ["strict", "undetermined"]
    assert report.get_score("suite") is None
    assert report.by_hardness() == {}
    assert report.by_error_class() == {}


def test_tables_by_group() -> None:
    assert list(FULL.by_hardness().items()) == [
        ("easy", (1, 2)),
        ("hard", (1, 1)),
        ("unspecified", (0, 1)),
    ]
    assert list(FULL.by_db_id().items()) == [("a", (1, 2)), ("b", (1, 2))]
    assert FULL.by_level() == {"unspecified": (2, 4)}
    assert list(FULL.by_error_class().items()) == [("extra_join", 2), ("wrong_column", 1)]


def test_a_full_report_is_read_back_and_summed_up(tmp_path: Path) -> None:
    FULL.save(tmp_path / "full.json")
    assert EvaluationReport.load(tmp_path / "full.json") == FULL
    summary = json.loads((tmp_path / "full.json").read_text())["summary"]
    assert summary["scores"]["suite"]["value"] == 0.25
    assert summary["scores"]["suite"]["interval_95"][0] > 0
    assert summary["by_hardness"]["easy"] == [1, 2]
    assert summary["error_classes"] == {"extra_join": 2, "wrong_column": 1}


def test_a_file_from_before_the_further_scores_is_read(tmp_path: Path) -> None:
    path = tmp_path / "old.json"
    FULL.save(path)
    data = json.loads(path.read_text())
    old = ["question_id", "db_id", "level", "question", "gold_sql", "predicted_sql", "verdict"]
    old += ["reason", "error"]
    records = [{name: record[name] for name in old} for record in data["records"]]
    path.write_text(json.dumps({"summary": {"name": "old"}, "records": records}))
    report = EvaluationReport.load(path)
    assert report.verdicts == FULL.verdicts
    assert [score.name for score in report.scores] == ["strict", "undetermined"]


def test_the_mean_of_samples_and_whether_one_is_right(
    catalog: DatabaseCatalog, tmp_path: Path
) -> None:
    samples = {
        "q1": ["SELECT 0", "SELECT 3", "SELECT COUNT(*) FROM t", "SELECT x FROM t"],
        "q2": ["SELECT b FROM t"] * 4,
        # Gold is empty, so nothing is known to be right.
        "q3": ["SELECT a FROM t WHERE a > 9", "SELECT 1", "", "SELECT a FROM t WHERE a > 8"],
    }
    first = {question_id: group[0] for question_id, group in samples.items()}
    with SQLVerifier(catalog) as verifier:
        report = evaluate_sql(QUESTIONS, first, verifier, samples=samples)
        for bad in ({**samples, "q2": ["SELECT 1"]}, {}):
            with pytest.raises(InputError, match="`samples`"):
                evaluate_sql(QUESTIONS, first, verifier, samples=bad)
    values = {score.name: score.value for score in report.scores}
    # (2/4 + 4/4 + 0/4) / 3, and two of three.
    assert values["sample_mean"] == pytest.approx(0.5)
    assert values["sample_pass"] == pytest.approx(2 / 3)
    assert [score.label for score in report.scores if "sample" in score.name] == [
        "Mean of 4 samples (strict)",
        "pass@4 (strict)",
    ]
    report.save(tmp_path / "evaluation.json")
    assert EvaluationReport.load(tmp_path / "evaluation.json") == report


def test_samples_may_choose_the_prediction(catalog: DatabaseCatalog) -> None:
    samples = {
        # Two right ones in different words, beside one that fails as often.
        "q1": ["SELECT x FROM t", "SELECT 3", "SELECT COUNT(*) FROM t", "SELECT x FROM t"],
        # Nobody agrees: the first that runs.
        "q2": ["SELECT c FROM t", "SELECT a FROM t", "SELECT b FROM t", "DROP TABLE t"],
        "q3": ["", "", "", ""],
    }
    with SQLVerifier(catalog) as verifier:
        report = evaluate_sql(QUESTIONS, None, verifier, samples=samples)
        chosen = {record.question_id: record.predicted_sql for record in report.records}
        assert chosen == {"q1": "SELECT 3", "q2": "SELECT a FROM t", "q3": ""}
        assert [record.num_votes for record in report.records] == [2, 1, 0]
        # Everything else is as if it had been the prediction from the start.
        given = evaluate_sql(QUESTIONS, chosen, verifier, samples=samples)
        for bad in ("SELECT 1", ["SELECT 1", None, "", ""]):
            with pytest.raises(
                InputError, match=r"`samples\['q1'\]` is .*; expected a list of SQL"
            ):
                evaluate_sql(QUESTIONS, None, verifier, samples={**samples, "q1": bad})  # type: ignore[dict-item]
        with pytest.raises(InputError, match="`predictions` is None without `samples`"):
            evaluate_sql(QUESTIONS, None, verifier)
        with pytest.raises(InputError, match="`efficiency_repetitions` is 1"):
            evaluate_sql(QUESTIONS, chosen, verifier, efficiency_repetitions=1)
    assert tuple(replace(record, num_votes=None) for record in report.records) == given.records


def test_gold_has_no_part_in_the_vote(
    catalog: DatabaseCatalog, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A right answer that runs much longer than gold is stopped as a prediction, and votes."""
    monkeypatch.setattr("sense_trl.verification.judging._GOLD_STEPS", 40_000)
    slow = (
        "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 2000) "
        "SELECT COUNT(*) - 1997 FROM n"
    )
    samples = {"q1": ["SELECT 4", slow, slow]}
    with SQLVerifier(catalog, num_workers=0) as verifier:
        report = evaluate_sql(QUESTIONS[:1], None, verifier, samples=samples)
    (record,) = report.records
    assert record.sample_verdicts == (Verdict.WRONG, Verdict.UNDETERMINED, Verdict.UNDETERMINED)
    assert (record.predicted_sql, record.num_votes) == (slow, 2)


def test_votes_keep_the_limits_of_the_verifier(fresh_db: FreshDB) -> None:
    samples = {"q2": ["SELECT a FROM t", "SELECT b FROM t", "SELECT b FROM t ORDER BY b"]}
    path = fresh_db(SCRIPT, name="d")
    narrow = ExecutionLimits(max_cell_bytes=2)
    for own, wide, chosen in ((narrow, None, 1), (ExecutionLimits(), narrow, 0)):
        with (
            DatabaseCatalog.from_path(path, limits=own) as catalog,
            SQLVerifier(catalog, limits=wide or ExecutionLimits()) as verifier,
        ):
            report = evaluate_sql(QUESTIONS[1:2], None, verifier, samples=samples)
        assert report.records[0].predicted_sql == samples["q2"][chosen]


# ---------------------------------------------------------------------- evaluate_sql

PETS = """
CREATE TABLE pet (id INTEGER PRIMARY KEY, name TEXT, age INTEGER);
INSERT INTO pet VALUES (1, 'Rex', 3), (2, 'Tom', 3), (3, 'Ada', 9);
"""
ASKED = {
    # Another order of columns: right but for BIRD. Soft-F1 does not mind.
    "columns": ("SELECT name, age FROM pet", "SELECT age, name FROM pet"),
    # Without the DISTINCT that Spider deletes, duplicates are one row to BIRD alone.
    "duplicates": ("SELECT age FROM pet", "SELECT DISTINCT age FROM pet"),
    # Right here, not where a pet is 4 years old.
    "lucky": ("SELECT id FROM pet WHERE age > 3", "SELECT id FROM pet WHERE age > 4"),
    # One name of two right, in the place of the other.
    "half": ("SELECT name FROM pet WHERE age = 3", "SELECT name FROM pet WHERE id > 1"),
    "fails": ("SELECT name FROM pet", "SELECT nme FROM pet"),
    "denied": ("SELECT name FROM pet", "DROP TABLE pet"),
    "gold_fails": ("SELECT nme FROM pet", "SELECT name FROM pet"),
    "not_spiders": ("SELECT name FROM pet WHERE age IS NOT NULL", "SELECT name FROM pet"),
}


@pytest.fixture
def pets(fresh_db: FreshDB) -> Iterator[DatabaseCatalog]:
    with DatabaseCatalog.from_path(fresh_db(PETS, name="pets")) as catalog:
        yield catalog


def _evaluate(
    catalog: DatabaseCatalog, asked: dict[str, tuple[str, str]], **options: Any
) -> dict[str, EvaluationRecord]:
    questions = [Question(key, "pets", "?", gold) for key, (gold, _) in asked.items()]
    predictions = {key: sql for key, (_, sql) in asked.items()}
    with SQLVerifier(catalog, num_workers=0) as verifier:
        report = evaluate_sql(questions, predictions, verifier, **options)
    return {record.question_id: record for record in report.records}


def test_every_semantics_is_in_the_record(pets: DatabaseCatalog) -> None:
    records = _evaluate(pets, ASKED)
    found = {key: (r.verdict, r.spider, r.bird, r.executes) for key, r in records.items()}
    assert found == {
        "columns": (CORRECT, CORRECT, WRONG, True),
        "duplicates": (WRONG, CORRECT, CORRECT, True),
        "lucky": (CORRECT, CORRECT, CORRECT, True),
        "half": (WRONG, WRONG, WRONG, True),
        "fails": (WRONG, WRONG, WRONG, False),
        "denied": (WRONG, WRONG, WRONG, False),
        "gold_fails": (UNDETERMINED, UNDETERMINED, UNDETERMINED, None),
        "not_spiders": (CORRECT, CORRECT, CORRECT, True),
    }


def test_a_verifier_with_other_semantics_gives_the_same_report(pets: DatabaseCatalog) -> None:
    questions = [Question(key, "pets", "?", gold) for key, (gold, _) in ASKED.items()]
    predictions = {key: sql for key, (_, sql) in ASKED.items()}
    reports = []
    for semantics in ("strict", "spider", "bird"):
        with SQLVerifier(pets, semantics=semantics, num_workers=0) as verifier:
            reports.append(evaluate_sql(questions, predictions, verifier))
    assert reports[0] == reports[1] == reports[2]


def test_what_is_not_correct_is_classified(pets: DatabaseCatalog) -> None:
    records = _evaluate(pets, {**ASKED, "two_golds": ("SELECT 1; SELECT 2", "SELECT 3")})
    assert {key: r.error_classes for key, r in records.items() if r.error_classes} == {
        "duplicates": ("extra_distinct",),
        "half": ("missing_condition", "extra_condition"),
        "fails": ("unknown_column", "wrong_column"),
        "denied": ("not_a_query",),
        # Gold cannot be trusted, which does not make it another query.
        "gold_fails": ("wrong_column",),
    }


def test_hardness_and_exact_match_where_spider_can_read_gold(pets: DatabaseCatalog) -> None:
    records = _evaluate(pets, ASKED)
    assert (records["columns"].hardness, records["columns"].exact_match) == ("medium", True)
    assert (records["duplicates"].hardness, records["duplicates"].exact_match) == ("easy", True)
    assert (records["half"].hardness, records["half"].exact_match) == ("easy", False)
    assert records["fails"].exact_match is False
    assert (records["not_spiders"].hardness, records["not_spiders"].exact_match) == (None, None)


def test_keys_of_the_given_schemas_count(pets: DatabaseCatalog) -> None:
    # Linked by a foreign key that the database does not declare.
    asked = {"q": ("SELECT id FROM pet", "SELECT age FROM pet")}
    table = get_schema(pets.engine("pets")).tables[0]
    linked = replace(table, foreign_keys=(ForeignKeyInfo(("age",), "pet", ("id",)),))
    schemas = {"pets": DatabaseSchema("pets", "sqlite", (linked,))}
    assert _evaluate(pets, asked)["q"].exact_match is False
    assert _evaluate(pets, asked, schemas=schemas)["q"].exact_match is True
    with pytest.raises(InputError, match="`schemas` has no 'pets'"):
        _evaluate(pets, asked, schemas={"dogs": schemas["pets"]})


def test_spiders_script_may_read_another_text(pets: DatabaseCatalog) -> None:
    asked = {"q": ("SELECT name FROM pet", "SELECT\tname FROM pet")}
    as_written = _evaluate(pets, asked)["q"]
    assert (as_written.verdict, as_written.spider, as_written.exact_match) == (CORRECT, CORRECT, 1)
    cut = _evaluate(pets, asked, spider_predictions={"q": "SELECT"})["q"]
    assert (cut.verdict, cut.spider, cut.bird) == (CORRECT, WRONG, CORRECT)
    assert cut.exact_match is False
    assert cut.predicted_sql == asked["q"][1]


def test_soft_f1_of_every_question(pets: DatabaseCatalog) -> None:
    records = _evaluate(pets, ASKED, soft_f1=True)
    scores = {key: (r.soft_f1, r.soft_f1_unordered) for key, r in records.items()}
    assert scores == {
        "columns": (1.0, 1.0),
        # BIRD's drops repeated rows; else 2 rows of 3 and 2.
        "duplicates": (1.0, pytest.approx(4 / 5)),
        "lucky": (1.0, 1.0),
        # Rex, Tom against Tom, Ada.
        "half": (0.0, 0.5),
        "fails": (0.0, 0.0),
        "denied": (0.0, 0.0),
        "gold_fails": (None, None),
        "not_spiders": (1.0, 1.0),
    }


def test_a_suite_refutes_what_was_right_by_luck(pets: DatabaseCatalog) -> None:
    asked = {key: ASKED[key] for key in ("lucky", "half", "not_spiders")}
    with SuiteVerifier(pets, num_workers=0) as suite_verifier:
        records = _evaluate(pets, asked, suite_verifier=suite_verifier)
    assert records["lucky"].verdict is CORRECT
    assert records["lucky"].suite is WRONG
    assert records["lucky"].refuted_by is not None
    assert (records["half"].suite, records["half"].refuted_by) == (WRONG, None)
    assert records["not_spiders"].num_confirming == 8


def test_times_of_what_bird_calls_correct(pets: DatabaseCatalog) -> None:
    questions = [Question(key, "pets", "?", gold) for key, (gold, _) in ASKED.items()]
    predictions = {key: sql for key, (_, sql) in ASKED.items()}
    with SQLVerifier(pets, num_workers=0) as verifier:
        report = evaluate_sql(questions, predictions, verifier, efficiency_repetitions=3)
    timed = {record.question_id for record in report.records if record.time_ratio is not None}
    assert timed == {"duplicates", "lucky", "not_spiders"}
    score = report.get_score("ves")
    assert score is not None and score.value > 0 and "3 of them timed" in score.note


@pytest.mark.parametrize("num_parts", range(4))
def test_progress_ends_at_the_number_of_questions(pets: DatabaseCatalog, num_parts: int) -> None:
    with SuiteVerifier(pets, num_workers=0) as suite:
        options = {"soft_f1": True, "suite_verifier": suite, "efficiency_repetitions": 2}
        steps: list[int] = []
        some = dict(list(options.items())[:num_parts])
        _evaluate(pets, {**ASKED, "again": ASKED["half"]}, on_progress=steps.append, **some)
    assert sum(steps) == len(ASKED) + 1
    assert min(steps) > 0


@pytest.mark.parametrize(
    "sql",
    ["", ";", "\x00", "\ud800", "(" * 9_000, "SELECT " + "-" * 9_000 + "1", "PRAGMA user_version"],
    ids=range(7),
)
def test_any_text_is_evaluated(pets: DatabaseCatalog, sql: str, tmp_path: Path) -> None:
    record = _evaluate(pets, {"q": (ASKED["half"][0], sql)}, soft_f1=True)["q"]
    assert record.verdict is not CORRECT
    report = EvaluationReport("odd", (record,))
    report.save(tmp_path / "odd.json")
    assert EvaluationReport.load(tmp_path / "odd.json") == report


# ---------------------------------------------------------------------- real data

# Predictions that are correct under `strict`, and exact-set matches, of 1,034.
SPIDER_DEV = [
    ("chatgpt_zero_shot", 659, 392),
    pytest.param("dbgpt_codellama13b_lora", 551, 540, marks=pytest.mark.slow),
    pytest.param("codex_few_shot", 678, 519, marks=pytest.mark.slow),
    pytest.param("dail_sql_gpt4", 781, 724, marks=pytest.mark.slow),
    pytest.param("codes_1b_sft", 725, 741, marks=pytest.mark.slow),
]


@pytest.mark.parametrize(("model", "num_correct", "num_matches"), SPIDER_DEV)
def test_spider_dev_is_scored_as_by_the_official_script(
    model: str, num_correct: int, num_matches: int, shared_data: Path, spider_databases: Path
) -> None:
    questions = load_questions(shared_data / "spider" / "dev.jsonl")
    folder = shared_data / "predictions" / model
    answers = load_predictions(folder / "spider_dev.sql", questions)
    with DatabaseCatalog.from_path(spider_databases) as catalog, SQLVerifier(catalog) as verifier:
        report = evaluate_sql(
            questions,
            {q.question_id: sql for q, sql in zip(questions, answers, strict=True)},
            verifier,
            schemas=load_spider_schemas(shared_data / "spider" / "tables.json"),
        )
    official = json.loads((folder / "spider_dev.verdicts.json").read_text())
    verdicts = [record.spider is CORRECT for record in report.records]
    assert verdicts == [verdict == "ok" for verdict in official]
    assert report.count(CORRECT) == num_correct
    score = report.get_score("exact_match")
    assert score is not None
    assert (round(score.value * score.num_questions), score.num_questions) == (num_matches, 1034)
    # What follows a first statement fails as it is written; the script does not run it.
    texts = [r.predicted_sql for r in report.records if r.executes is False]
    assert official.count("error") == sum("; ###" not in text for text in texts)


@pytest.mark.parametrize(
    ("model", "num_correct", "soft_f1"),
    [
        ("gpt4", 40, 81.396),
        pytest.param("llama3_8b", 26, 54.520, marks=pytest.mark.slow),
        pytest.param("mixtral_8x7b", 12, 24.699, marks=pytest.mark.slow),
    ],
)
def test_bird_is_scored_as_by_the_official_scripts(
    model: str, num_correct: int, soft_f1: float, shared_data: Path
) -> None:
    folder = shared_data / "bird_superhero"
    questions = load_questions(folder / "mini_dev.jsonl")
    answers = load_predictions(folder / "predictions" / f"{model}.sql", questions)
    predictions = {q.question_id: sql for q, sql in zip(questions, answers, strict=True)}
    with (
        DatabaseCatalog.from_path(folder / "superhero.sqlite") as catalog,
        SQLVerifier(catalog) as verifier,
    ):
        report = evaluate_sql(questions, predictions, verifier, soft_f1=True)
    scores = {score.name: score for score in report.scores}
    assert round(scores["bird"].value * 52) == num_correct
    assert 100 * scores["soft_f1"].value == pytest.approx(soft_f1, abs=5e-4)
