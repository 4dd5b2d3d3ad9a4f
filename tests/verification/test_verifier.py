from __future__ import annotations

import random
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sense_trl.database.catalog import DatabaseCatalog
from sense_trl.database.engine import ExecutionLimits, QueryStatus
from sense_trl.database.sqlite_engine import SQLiteEngine
from sense_trl.errors import InputError
from sense_trl.verification import judging
from sense_trl.verification.comparison import Reason, Verdict
from sense_trl.verification.judging import _spider_text, get_step_budget
from sense_trl.verification.verifier import (
    SQLVerifier,
    Verification,
    VerificationRequest,
    verify_sql,
)

SCRIPT = """
CREATE TABLE singer (id INTEGER PRIMARY KEY, name TEXT, age INT, land TEXT);
INSERT INTO singer VALUES
    (1, 'Joe', 52, 'NL'), (2, 'Ann', 32, 'US'), (3, 'Lee', 32, 'FR'), (4, 'Tim', 29, 'FR'),
    (5, 'Ron', NULL, 'FR');
CREATE TABLE nobody (a);
"""
ENDLESS = "WITH RECURSIVE r(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM r) SELECT count(*) FROM r"
SLOW = "SELECT count(*) FROM (SELECT 1 FROM " + ", ".join(f"singer s{i}" for i in range(9)) + ")"


@pytest.fixture
def engine(fresh_db):
    with SQLiteEngine(fresh_db(SCRIPT)) as engine:
        yield engine


def outcome(verification: Verification) -> tuple[object, ...]:
    """What has to be reproducible: everything but the seconds."""
    return (
        verification.verdict,
        verification.reason,
        verification.predicted_status,
        verification.gold_status,
        verification.error,
    )


@pytest.mark.parametrize(
    ("predicted", "gold", "reason"),
    [
        ("SELECT count(*) FROM singer", "SELECT COUNT(id) FROM singer", Reason.RESULTS_EQUAL),
        ("SELECT age, name FROM singer", "SELECT name, age FROM singer", Reason.RESULTS_EQUAL),
        ("SELECT name FROM singer", "SELECT land FROM singer", Reason.VALUES_DIFFER),
        ("SELECT DISTINCT land FROM singer", "SELECT land FROM singer", Reason.ROW_COUNT_DIFFERS),
        ("SELECT land FROM singer", "SELECT DISTINCT land FROM singer", Reason.ROW_COUNT_DIFFERS),
        ("SELECT id, id FROM singer", "SELECT id FROM singer", Reason.COLUMN_COUNT_DIFFERS),
        ("", "SELECT a FROM nobody", Reason.PREDICTION_SYNTAX_ERROR),
        ("-- none", "SELECT a FROM nobody", Reason.PREDICTION_SYNTAX_ERROR),
        ("SELECT name singer", "SELECT name FROM singer", Reason.PREDICTION_EXECUTION_ERROR),
        ("DELETE FROM nobody", "SELECT a FROM nobody", Reason.PREDICTION_DENIED),
        ("SELECT 1 WHERE 0", "SELECT a FROM nobody", Reason.BOTH_EMPTY),
        ("SELECT 1", "SELECT a FROM nobody", Reason.ROW_COUNT_DIFFERS),
        (ENDLESS, "SELECT count(*) FROM singer", Reason.PREDICTION_STEP_BUDGET),
        ("SELECT hex(zeroblob(600000))", "SELECT 1", Reason.PREDICTION_TOO_LARGE),
        (
            "SELECT name FROM singer ORDER BY random()",
            "SELECT name FROM singer",
            Reason.PREDICTION_NOT_DETERMINISTIC,
        ),
        ("SELECT 1", "", Reason.GOLD_SYNTAX_ERROR),
        ("SELECT 1", "SELECT nope FROM singer", Reason.GOLD_EXECUTION_ERROR),
        ("SELECT 1", "DROP TABLE singer", Reason.GOLD_DENIED),
        ("SELECT 1", "SELECT hex(zeroblob(600000))", Reason.GOLD_TOO_LARGE),
        ("SELECT 1", "SELECT random()", Reason.GOLD_NOT_DETERMINISTIC),
        ("SELECT 1", "SELECT date('now')", Reason.GOLD_NOT_DETERMINISTIC),
        ("SELECT 1", "SELECT name FROM singer LIMIT 2", Reason.GOLD_NOT_DETERMINISTIC),
        ("SELECT 1", "SELECT group_concat(name) FROM singer", Reason.GOLD_NOT_DETERMINISTIC),
        # Ann and Lee are both 32.
        ("SELECT 1", "SELECT name FROM singer ORDER BY age DESC LIMIT 2", Reason.GOLD_LIMIT_TIE),
        ("SELECT 'Ron'", "SELECT name FROM singer ORDER BY age LIMIT 1", Reason.RESULTS_EQUAL),
        # The tie at the cut is between equal rows: 32 and 32.
        (
            "SELECT age FROM singer WHERE name IN ('Joe', 'Ann') ORDER BY 1",
            "SELECT age FROM singer ORDER BY age DESC LIMIT 2",
            Reason.ORDER_DIFFERS,
        ),
        (
            "SELECT age FROM singer WHERE name IN ('Joe', 'Ann') ORDER BY 1 DESC",
            "SELECT age FROM singer ORDER BY age DESC LIMIT 2",
            Reason.RESULTS_EQUAL,
        ),
        # Gold's ties may swap although the sort key is not in the result.
        (
            "SELECT name FROM singer WHERE age > 0 ORDER BY age, name DESC",
            "SELECT name FROM singer WHERE age > 0 ORDER BY age",
            Reason.RESULTS_EQUAL,
        ),
        (
            "SELECT name FROM singer WHERE age > 0 ORDER BY age DESC",
            "SELECT name FROM singer WHERE age > 0 ORDER BY age",
            Reason.ORDER_DIFFERS,
        ),
        (
            "SELECT name FROM singer ORDER BY name",
            "SELECT DISTINCT name FROM singer ORDER BY age + 0",
            Reason.ORDER_UNKNOWN,
        ),
    ],
)
def test_strict_verdicts(engine: SQLiteEngine, predicted: str, gold: str, reason: Reason) -> None:
    verification = verify_sql(predicted, gold, engine)
    assert verification.reason is reason, verification.error
    assert verification.verdict is reason.verdict
    if reason.startswith("gold_"):
        assert verification.predicted_status is None


def test_a_tie_further_behind_the_cut_is_found(fresh_db) -> None:
    """The two rows around the cut are equal; the one that differs ties three rows later."""
    path = fresh_db(
        "CREATE TABLE t (a, k); INSERT INTO t VALUES ('x', 1), ('x', 1), ('x', 1), ('y', 1);"
    )
    with SQLiteEngine(path) as engine:
        gold = "SELECT a FROM t ORDER BY k LIMIT 1"
        assert verify_sql(gold, gold, engine).reason is Reason.GOLD_LIMIT_TIE


@pytest.mark.parametrize("semantics", ["strict", "spider", "bird"])
def test_slow_sql_is_right_if_its_answer_is(engine: SQLiteEngine, semantics) -> None:
    # 5**9 rows are counted: millions of instructions where gold takes a handful.
    verification = verify_sql(SLOW, "SELECT 1953125", engine, semantics=semantics)
    assert verification.verdict is Verdict.CORRECT


def test_an_exhausted_step_budget_decides_nothing_unless_the_rows_do(engine: SQLiteEngine) -> None:
    exhausted = verify_sql(ENDLESS, "SELECT 5", engine)
    assert exhausted.reason is Reason.PREDICTION_STEP_BUDGET
    assert exhausted.verdict is Verdict.UNDETERMINED
    assert exhausted.predicted_status is QueryStatus.TIMEOUT
    # The same endless recursion, but it gives a second row long before the budget is gone.
    endless_rows = ENDLESS.replace("count(*)", "x")
    assert verify_sql(endless_rows, "SELECT 1", engine).reason is Reason.ROW_COUNT_DIFFERS


def test_what_the_clock_stops_is_never_wrong(engine: SQLiteEngine) -> None:
    hasty = ExecutionLimits(timeout_s=0.02)
    gold_too = verify_sql(ENDLESS, ENDLESS, engine, limits=hasty)
    assert gold_too.reason is Reason.GOLD_TIMEOUT
    for semantics in ("strict", "spider", "bird"):
        stopped = verify_sql(ENDLESS, SLOW, engine, limits=ExecutionLimits(timeout_s=0.6),
                             semantics=semantics)  # fmt: skip
        assert stopped.reason is Reason.PREDICTION_TIMEOUT
        assert stopped.verdict is Verdict.UNDETERMINED


@pytest.mark.parametrize(
    ("limits", "budget"),
    [
        ({}, 200_000_000),
        ({"timeout_s": 1.0}, 200_000_000),
        ({"timeout_s": 30}, 200_000_000),
        ({"timeout_s": 60.0}, 6_000_000_000),
        ({"timeout_s": 60.0, "max_steps": 7}, 7),
        ({"max_steps": 9_000_000_000}, 9_000_000_000),
    ],
)
def test_the_budget_of_instructions_follows_from_the_limits_alone(limits, budget: int) -> None:
    assert get_step_budget(ExecutionLimits(**limits)) == budget


@pytest.mark.parametrize("semantics", ["strict", "spider", "bird"])
@pytest.mark.parametrize("raised", [{"timeout_s": 31.0}, {"max_steps": 100_000_000}])
def test_who_asks_for_slower_queries_gets_them(
    engine: SQLiteEngine, monkeypatch: pytest.MonkeyPatch, semantics, raised: dict[str, float]
) -> None:
    # As 200 M instructions would, but in less time: SLOW takes some 15 M.
    monkeypatch.setattr(judging, "_GOLD_STEPS", 1_000_000)
    predicted = SLOW.replace("count(*)", "count(1)")

    def verify(predicted: str, gold: str, **limits) -> Verification:
        return verify_sql(
            predicted, gold, engine, semantics=semantics, limits=ExecutionLimits(**limits)
        )

    stopped = verify(predicted, SLOW)
    assert stopped.reason is Reason.GOLD_STEP_BUDGET
    assert stopped.error == "stopped after 1000000 instructions; raise `max_steps`"
    assert verify(predicted, SLOW, **raised).verdict is Verdict.CORRECT
    assert verify(predicted, "SELECT 1953125").reason is Reason.PREDICTION_STEP_BUDGET
    assert verify(predicted, "SELECT 1953125", **raised).verdict is Verdict.CORRECT


@pytest.mark.parametrize(
    ("sql", "limits", "name"),
    [
        (ENDLESS, {"timeout_s": 0.05}, "timeout_s"),
        (ENDLESS, {"max_steps": 20_000}, "max_steps"),
        ("SELECT name FROM singer LIMIT 5", {"max_rows": 2}, "max_rows"),
        ("SELECT zeroblob(1000)", {"max_cell_bytes": 500}, "max_cell_bytes"),
        ("SELECT name FROM singer LIMIT 5", {"max_result_bytes": 10, "max_cell_bytes": 99},
         "max_result_bytes"),
    ],
)  # fmt: skip
def test_stopped_gold_names_the_limit_to_raise(
    engine: SQLiteEngine, sql: str, limits: dict[str, float], name: str
) -> None:
    for semantics in ("strict", "bird"):
        stopped = verify_sql(
            "SELECT 1", sql, engine, semantics=semantics, limits=ExecutionLimits(**limits)
        )
        assert stopped.verdict is Verdict.UNDETERMINED
        assert stopped.error is not None and stopped.error.endswith(f"raise `{name}`")


@pytest.mark.parametrize(
    ("text", "changed"),
    [
        ("SELECT DISTINCT a FROM t", "SELECT  a FROM t"),
        ("SELECT count(distinct a), 'distinct' FROM t", "SELECT count( a), 'distinct' FROM t"),
        ('SELECT "DISTINCT" FROM t', 'SELECT "DISTINCT" FROM t'),
        ("SELECT distinct_a FROM t", "SELECT distinct_a FROM t"),
        ("SELECT a FROM t WHERE b > = 1 AND c ! = 2", "SELECT a FROM t WHERE b >= 1 AND c != 2"),
        ("SELECT 1; DROP TABLE t", "SELECT 1;"),
        ("SELECT ';'; SELECT 2", "SELECT ';';"),
        ("SELECT year ( CURDATE() ) - b FROM t", "SELECT 2020- b FROM t"),
        ("SELECT 'it''s; ' FROM t", "SELECT 'it''s; ' FROM t"),
    ],
)
def test_spider_changes_the_text_before_running_it(text: str, changed: str) -> None:
    assert _spider_text(text) == changed


@pytest.mark.parametrize(
    ("predicted", "gold", "semantics", "verdict"),
    [
        ("SELECT DISTINCT land FROM singer", "SELECT land FROM singer", "spider", "correct"),
        ("SELECT DISTINCT land FROM singer", "SELECT land FROM singer", "bird", "correct"),
        ("SELECT name FROM singer WHERE id = value", "SELECT name FROM singer WHERE id = 1",
         "spider", "correct"),
        ("SELECT id, name FROM singer", "SELECT name, id FROM singer", "bird", "wrong"),
        ("SELECT id, name FROM singer", "SELECT name, id FROM singer", "spider", "correct"),
        ("SELECT id FROM singer ORDER BY id DESC", "SELECT id FROM singer ORDER BY id", "bird",
         "correct"),
        ("SELECT 1 WHERE 0", "SELECT a FROM nobody", "spider", "correct"),
        ("SELECT 1 WHERE 0", "SELECT a FROM nobody", "bird", "correct"),
        # Not as the official ones: no statement and a writing one are no empty result.
        ("", "SELECT a FROM nobody", "bird", "wrong"),
        ("DELETE FROM singer", "SELECT a FROM nobody", "bird", "wrong"),
        ("DELETE FROM singer", "SELECT a FROM nobody", "spider", "wrong"),
        ("SELECT 1", "SELECT nope FROM singer", "spider", "undetermined"),
        ("SELECT name FROM singer LIMIT 1", "SELECT 'Joe'", "spider", "correct"),
    ],
)  # fmt: skip
def test_official_verdicts(
    engine: SQLiteEngine, predicted: str, gold: str, semantics, verdict: str
) -> None:
    assert verify_sql(predicted, gold, engine, semantics=semantics).verdict == verdict


def test_gold_is_verified_against_itself(fresh_db) -> None:
    with DatabaseCatalog.from_path(fresh_db(SCRIPT, name="music")) as catalog:
        verifier = SQLVerifier(catalog)
        assert verifier.verify_gold("music", "SELECT name FROM singer").verdict is Verdict.CORRECT
        for sql, reason in (
            ("SELECT a FROM nobody", Reason.GOLD_EMPTY),
            ("SELECT a FROM", Reason.GOLD_SYNTAX_ERROR),
            ("SELECT name FROM singer LIMIT 1", Reason.GOLD_NOT_DETERMINISTIC),
        ):
            verification = verifier.verify_gold("music", sql)
            assert (verification.verdict, verification.reason) == (Verdict.UNDETERMINED, reason)


class _CountingEngine(SQLiteEngine):
    executed: list[str]

    def execute(self, sql, *, limits=None):
        self.executed.append(sql)
        return super().execute(sql, limits=limits)


def test_gold_and_duplicates_run_once(fresh_db, monkeypatch: pytest.MonkeyPatch) -> None:
    executed: list[str] = []
    monkeypatch.setattr(_CountingEngine, "executed", executed, raising=False)
    monkeypatch.setattr("sense_trl.database.opening.SQLiteEngine", _CountingEngine)
    path = fresh_db(SCRIPT, name="music")
    gold = "SELECT name FROM singer"
    predictions = ["SELECT name FROM singer WHERE 1", "SELECT land FROM singer"] * 10
    progress: list[int] = []
    with (
        DatabaseCatalog.from_path(path) as catalog,
        SQLVerifier(catalog, num_workers=0) as verifier,
    ):
        requests = [VerificationRequest("music", sql, gold) for sql in predictions]
        verdicts = verifier.verify(requests, on_progress=progress.append)
        assert [v.verdict for v in verdicts] == [Verdict.CORRECT, Verdict.WRONG] * 10
        assert sorted(executed) == sorted([gold, *set(predictions)])
        assert sum(progress) == len(requests)
        verifier.verify([VerificationRequest("music", "SELECT 3", gold)])
        assert executed.count(gold) == 1


POOL = [
    "SELECT name FROM singer",
    "SELECT name FROM singer ORDER BY age",
    "SELECT name FROM singer ORDER BY name",
    "SELECT name FROM singer LIMIT 2",
    "SELECT a FROM nobody",
    "SELECT count(*) FROM singer",
    "SELECT 5",
    "SELECT",
    "DROP TABLE singer",
    "CREATE TEMP TABLE singer (name)",
    "PRAGMA reverse_unordered_selects = 1",
    SLOW,
]


@settings(max_examples=25, suppress_health_check=list(HealthCheck))
@given(
    st.lists(st.tuples(st.sampled_from(POOL), st.sampled_from(POOL)), min_size=1, max_size=12),
    st.sampled_from(["strict", "spider", "bird"]),
    st.randoms(use_true_random=False),
)
def test_verdicts_do_not_depend_on_order_repetition_or_company(
    tmp_path_factory: pytest.TempPathFactory, pairs, semantics, rng: random.Random
) -> None:
    import sqlite3

    path = tmp_path_factory.mktemp("verdicts") / "music.sqlite"
    with sqlite3.connect(path) as connection:
        connection.executescript(SCRIPT)
    connection.close()
    requests = [VerificationRequest("music", *pair) for pair in pairs]
    with DatabaseCatalog.from_path(path) as catalog:
        verifier = SQLVerifier(catalog, semantics=semantics, num_workers=0)
        first = dict(zip(requests, map(outcome, verifier.verify(requests)), strict=True))
        shuffled = requests * 2
        rng.shuffle(shuffled)
        again = SQLVerifier(catalog, semantics=semantics, num_workers=0).verify(shuffled)
        assert [outcome(v) for v in again] == [first[request] for request in shuffled]
        alone = requests[0]
        with SQLiteEngine(path) as engine:
            single = verify_sql(alone.predicted_sql, alone.gold_sql, engine, semantics=semantics)
        assert outcome(single) == first[alone]


@pytest.mark.parametrize("num_workers", [0, 2])
def test_an_interrupted_call_leaves_the_verifier_usable(fresh_db, num_workers: int) -> None:
    with DatabaseCatalog.from_path(fresh_db(SCRIPT, name="music")) as catalog:
        verifier = SQLVerifier(catalog, num_workers=num_workers)
        requests = [VerificationRequest("music", f"SELECT {n}", "SELECT 5") for n in range(9)]

        def interrupt(count: int) -> None:
            raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            verifier.verify(requests, on_progress=interrupt)
        assert [v.verdict == "correct" for v in verifier.verify(requests)] == [
            n == 5 for n in range(9)
        ]


def test_unknown_names_are_refused_before_anything_runs(fresh_db) -> None:
    with DatabaseCatalog.from_path(fresh_db(SCRIPT, name="music")) as catalog:
        seen: list[int] = []
        requests = [
            VerificationRequest("music", "SELECT 1", "SELECT 1"),
            VerificationRequest("musik", "SELECT 1", "SELECT 1"),
        ]
        with pytest.raises(InputError, match="did you mean 'music'"):
            SQLVerifier(catalog).verify(requests, on_progress=seen.append)
        assert seen == []
        with pytest.raises(InputError, match="`semantics`"):
            SQLVerifier(catalog, semantics="exact")
        with pytest.raises(InputError, match="`num_workers`"):
            SQLVerifier(catalog, num_workers=-1)


def test_neither_torch_nor_transformers_is_loaded() -> None:
    code = (
        "import sys, sense_trl.database, sense_trl.sql.parsing, sense_trl.verification\n"
        "assert not {'torch', 'transformers', 'trl'} & set(sys.modules)"
    )
    root = Path(__file__).resolve().parents[2]
    subprocess.run([sys.executable, "-c", code], check=True, cwd=root)


@pytest.mark.parametrize("num_workers", [0, 2])
def test_several_semantics_in_one_call_give_what_each_gives_alone(fresh_db, num_workers) -> None:
    gold = "SELECT land, name FROM singer WHERE age > 30 ORDER BY age"
    predicted = [
        gold,
        "SELECT name, land FROM singer WHERE age > 30 ORDER BY age",
        "SELECT land, name FROM singer WHERE age > 30 ORDER BY age DESC",
        "SELECT DISTINCT land, name FROM singer WHERE age > 30",
        "SELECT land, name FROM singer UNION ALL SELECT land, name FROM singer",
        "SELECT a FROM nobody",
        "SELECT nonsense FROM singer",
        "SELECT land, value FROM singer",
        SLOW,
        "",
    ]
    golds = [gold, "SELECT DISTINCT land FROM singer", "SELECT a FROM nobody", "SELECT oops"]
    semantics = ("strict", "spider", "bird")
    requests = [
        VerificationRequest("fresh", sql, gold_sql, each)
        for sql in predicted
        for gold_sql in golds
        for each in semantics
    ]
    catalog = DatabaseCatalog({"fresh": fresh_db(SCRIPT)})
    random.Random(1).shuffle(requests)
    with catalog, SQLVerifier(catalog, num_workers=num_workers) as verifier:
        together = verifier.verify(requests)
        with pytest.raises(InputError, match="semantics"):
            verifier.verify([VerificationRequest("fresh", gold, gold, "lenient")])  # type: ignore[arg-type]
    with SQLiteEngine(fresh_db(SCRIPT, name="again")) as engine:
        for request, found in zip(requests, together, strict=True):
            alone = verify_sql(
                request.predicted_sql, request.gold_sql, engine, semantics=request.semantics
            )
            assert outcome(found) == outcome(alone), request


def test_several_semantics_run_a_prediction_once(fresh_db, monkeypatch) -> None:
    ran: list[str] = []
    execute = SQLiteEngine.execute

    def counted(self, sql, *, limits=None):
        ran.append(sql)
        return execute(self, sql, limits=limits)

    monkeypatch.setattr(SQLiteEngine, "execute", counted)
    sql, gold = "SELECT name FROM singer WHERE age > 1", "SELECT name FROM singer WHERE age > 2"
    requests = [VerificationRequest("fresh", sql, gold, s) for s in ("strict", "spider", "bird")]
    catalog = DatabaseCatalog({"fresh": fresh_db(SCRIPT)})
    with catalog, SQLVerifier(catalog, num_workers=0) as verifier:
        assert {v.verdict for v in verifier.verify(requests)} == {Verdict.CORRECT}
    assert ran == [gold, sql]


# ---------------------------------------------------------------------- texts without end

HOSTILE = {
    "valid to SQLite": "SELECT name FROM singer WHERE id" + " IS NOT NULL" * 198,
    "too deep for SQLite": "SELECT name FROM singer WHERE id" + " IS NOT NULL" * 2_000,
    "doubles": "SELECT name FROM singer WHERE age" + " BETWEEN 20 AND age" * 22,
    "lists": "SELECT name FROM singer WHERE age" + " IN (1, 2)" * 40,
    "joins": "SELECT name FROM singer" + " JOIN singer" * 30,
    "brackets": "SELECT " + "(" * 20_000 + "1",
    "dots": "SELECT " + "T1." * 200 + "name FROM singer",
    "comments": "select 1 as query " + "/**/" * 40,
    "open comments": "SELECT name FROM singer " + "/* " * 66_000,
    "quotes": "SELECT name FROM singer " + "' \" ` [" * 20_000,
    "conditions": "SELECT name FROM singer WHERE id = 1" + " OR id = 1" * 3_000,
}


@pytest.mark.parametrize("num_workers", [0, 1])
def test_no_text_hangs_or_kills_a_verifier(fresh_db, num_workers: int) -> None:
    path = fresh_db(SCRIPT)
    gold = "SELECT name FROM singer"
    requests = [
        VerificationRequest(path.stem, predicted, gold, semantics)
        for predicted, gold in [
            *((sql, gold) for sql in HOSTILE.values()),
            *((gold, sql) for sql in HOSTILE.values()),
            *((sql, sql) for sql in HOSTILE.values()),
        ]
        for semantics in ("strict", "spider", "bird")
    ]
    with (
        DatabaseCatalog.from_path(path) as catalog,
        SQLVerifier(catalog, num_workers=num_workers) as verifier,
    ):
        found = verifier.verify(requests)
        assert verifier.num_replaced_workers == 0
    reasons = {verification.reason for verification in found}
    assert not reasons & {Reason.WORKER_DIED, Reason.PREDICTION_TIMEOUT, Reason.GOLD_TIMEOUT}
    by_request = dict(zip(requests, found, strict=True))
    valid = VerificationRequest(path.stem, HOSTILE["valid to SQLite"], gold, "strict")
    assert by_request[valid].verdict is Verdict.CORRECT


@settings(max_examples=60)
@given(
    st.lists(
        st.sampled_from(
            ["/*", "*/", "'", '"', "`", "--", "#", "\n", ";", "(", ")", " distinct ", "\\", "a"]
        ),
        max_size=14,
    )
)
def test_open_comments_are_looked_for_once_and_read_as_before(parts: list[str]) -> None:
    text = "".join(parts)
    whole = judging._TOKEN.findall(text)
    assert list(judging._spider_tokens(text)) == whole
