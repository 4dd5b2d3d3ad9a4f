"""Results to show beside a question."""

import time
from collections.abc import Iterator
from dataclasses import replace

import pytest
from conftest import FreshDB

from sense_trl.database.catalog import DatabaseCatalog
from sense_trl.evaluation import EvaluationRecord, EvaluationReport
from sense_trl.evaluation.previews import ResultPreview, preview_results
from sense_trl.verification.verifier import Reason

GOLD = "SELECT a, b FROM t"
ENDLESS = "WITH RECURSIVE c(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM c) SELECT count(*) FROM c"


@pytest.fixture
def catalog(fresh_db: FreshDB) -> Iterator[DatabaseCatalog]:
    script = "CREATE TABLE t (a INTEGER, b TEXT); INSERT INTO t VALUES (1, 'xxxxxxxx'), (2, NULL);"
    with DatabaseCatalog.from_path(fresh_db(script, name="d")) as catalog:
        yield catalog


def _run(sql: str, reason: Reason = Reason.VALUES_DIFFER, **values: str) -> EvaluationReport:
    record = EvaluationRecord(
        question_id="q",
        db_id="d",
        level=None,
        question="?",
        gold_sql=GOLD,
        predicted_sql=sql,
        verdict=reason.verdict,
        reason=str(reason),
        error=None,
    )
    return EvaluationReport("run", (replace(record, **values),))


def test_the_first_rows_of_gold_and_prediction(catalog: DatabaseCatalog) -> None:
    previews = preview_results(_run("SELECT a FROM t"), catalog, max_rows=1, max_chars=4)
    assert previews == {
        ("d", GOLD): ResultPreview(("a", "b"), (("1", "xxx…"),), num_rows=2, num_columns=2),
        ("d", "SELECT a FROM t"): ResultPreview(("a",), (("1",),), num_rows=2, num_columns=1),
    }


def test_without_worker_processes_queries_run_here(
    catalog: DatabaseCatalog, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = _run("SELECT a FROM t")
    expected = preview_results(run, catalog)
    monkeypatch.setattr("sense_trl.database.catalog.workers_are_supported", lambda: False)
    assert preview_results(run, catalog) == expected
    run = _run(ENDLESS)
    error = preview_results(run, catalog, timeout_s=0.2)["d", ENDLESS].error
    assert error is not None
    assert error.startswith("timeout")


def test_null_is_shown_as_such(catalog: DatabaseCatalog) -> None:
    sql = "SELECT b FROM t WHERE a = 2"
    assert preview_results(_run(sql), catalog)["d", sql].rows == (("NULL",),)


def test_several_runs_are_executed_in_one_go(catalog: DatabaseCatalog) -> None:
    previews = preview_results([_run("SELECT 1"), _run("SELECT 2")], catalog)
    assert [*previews] == [("d", GOLD), ("d", "SELECT 1"), ("d", "SELECT 2")]


def test_many_columns_and_long_names_are_cut(catalog: DatabaseCatalog) -> None:
    sql = "SELECT " + ", ".join(f"{i}" for i in range(100)) + f", '{'y' * 500}'"
    preview = preview_results(_run(sql), catalog)["d", sql]
    assert (len(preview.columns), len(preview.rows[0]), preview.num_columns) == (20, 20, 101)
    wide = f"SELECT '{'y' * 500}'"
    assert len(preview_results(_run(wide), catalog)["d", wide].columns[0]) == 60


@pytest.mark.parametrize(
    "reason",
    [Reason.PREDICTION_TIMEOUT, Reason.PREDICTION_STEP_BUDGET, Reason.WORKER_DIED],
)
def test_what_was_stopped_is_not_run_again(catalog: DatabaseCatalog, reason: Reason) -> None:
    started = time.perf_counter()
    previews = preview_results(_run(ENDLESS, reason), catalog, timeout_s=60.0)
    assert previews["d", ENDLESS] == ResultPreview(error=str(reason))
    assert time.perf_counter() - started < 30
    previews = preview_results(_run(ENDLESS, reason, error="stopped"), catalog, timeout_s=60.0)
    assert previews["d", ENDLESS].error == "stopped"


def test_what_never_ended_is_stopped(catalog: DatabaseCatalog) -> None:
    # Verification reads one row more than gold has and knows enough: it never saw the end.
    run = _run(ENDLESS, Reason.ROW_COUNT_DIFFERS)
    started = time.perf_counter()
    error = preview_results(run, catalog, timeout_s=0.2)["d", ENDLESS].error
    assert time.perf_counter() - started < 30
    assert error is not None
    assert error.startswith("timeout")


def test_a_failing_query_says_why(catalog: DatabaseCatalog) -> None:
    preview = preview_results(_run("SELECT c FROM t"), catalog)["d", "SELECT c FROM t"]
    assert preview.error == "execution_error: no such column: c"
