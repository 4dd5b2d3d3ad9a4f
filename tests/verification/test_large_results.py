"""Gold with more rows than are kept is decided by fingerprints, and never wrongly."""

from __future__ import annotations

from pathlib import Path

import pytest

from sense_trl.database.catalog import DatabaseCatalog
from sense_trl.database.digest import DigestBuilder
from sense_trl.database.engine import ExecutionLimits
from sense_trl.database.sqlite_engine import SQLiteEngine
from sense_trl.verification.comparison import Reason, Verdict
from sense_trl.verification.judging import VerificationRequest, verify_sql
from sense_trl.verification.verifier import SQLVerifier

SCRIPT = """
CREATE TABLE t (a INT, b TEXT, c REAL);
WITH RECURSIVE r(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM r LIMIT 2000)
INSERT INTO t SELECT x, 'v' || (x % 7), x / 8.0 FROM r;
"""
LIMITS = ExecutionLimits(max_rows=500)


def _digest(*rows):
    builder = DigestBuilder(len(rows[0]))
    builder.add(rows)
    return builder.finish()


def test_a_digest_is_one_of_values_and_not_of_their_spelling() -> None:
    one = _digest((1, "a"), (2.0, None))
    assert one == _digest((1.0, "a"), (2, None))
    assert one.bag == _digest((2, None), (1, "a")).bag
    assert one.sequence != _digest((2, None), (1, "a")).sequence
    assert sorted(one.column_bags) == sorted(_digest(("a", 1), (None, 2)).column_bags)
    # Python's hash(-1) == hash(-2), and 1 == True.
    assert _digest((-1,)).bag != _digest((-2,)).bag
    assert _digest((1, "a"), (2, "b")).bag != _digest((1, "b"), (2, "a")).bag
    assert _digest(("1",)).bag != _digest((1,)).bag
    assert _digest((0.5,)).has_fractions and not one.has_fractions


@pytest.mark.parametrize(
    ("predicted", "gold", "reason"),
    [
        ("SELECT a, b FROM t WHERE 1", "SELECT a, b FROM t", Reason.RESULTS_EQUAL),
        ("SELECT a * 1.0, b FROM t", "SELECT a, b FROM t", Reason.RESULTS_EQUAL),
        ("SELECT a, b FROM t ORDER BY a DESC", "SELECT a, b FROM t", Reason.RESULTS_EQUAL),
        ("SELECT a + 1, b FROM t", "SELECT a, b FROM t", Reason.VALUES_DIFFER),
        ("SELECT a FROM t WHERE a > 1", "SELECT a FROM t", Reason.ROW_COUNT_DIFFERS),
        ("SELECT a FROM t, (VALUES (1), (2))", "SELECT a FROM t", Reason.ROW_COUNT_DIFFERS),
        ("SELECT a FROM t", "SELECT a, b FROM t", Reason.COLUMN_COUNT_DIFFERS),
        ("SELECT a FROM t ORDER BY a", "SELECT a FROM t ORDER BY a", Reason.RESULTS_EQUAL),
        ("SELECT a FROM t ORDER BY -a", "SELECT a FROM t ORDER BY a", Reason.ORDER_UNKNOWN),
        # Right in another order of columns, or perhaps within the tolerance: not told, not wrong.
        ("SELECT b, a FROM t", "SELECT a, b FROM t", Reason.PREDICTION_TOO_LARGE),
        ("SELECT c + 1e-15 FROM t", "SELECT c FROM t", Reason.PREDICTION_TOO_LARGE),
        ("SELECT nope FROM t", "SELECT a FROM t", Reason.PREDICTION_EXECUTION_ERROR),
        ("SELECT 1", "SELECT a FROM t LIMIT 600", Reason.GOLD_TOO_LARGE),
        ("SELECT 1", "SELECT a, random() FROM t", Reason.GOLD_TOO_LARGE),
    ],
)
def test_large_gold_is_decided_where_fingerprints_can(
    fresh_db, predicted: str, gold: str, reason: Reason
) -> None:
    path: Path = fresh_db(SCRIPT, name="large")
    with SQLiteEngine(path) as engine:
        assert verify_sql(predicted, gold, engine, limits=LIMITS).reason is reason
    with (
        DatabaseCatalog.from_path(path) as catalog,
        SQLVerifier(catalog, limits=LIMITS, num_workers=1) as verifier,
    ):
        isolated = catalog.engine("large")
        assert verify_sql(predicted, gold, isolated, limits=LIMITS).reason is reason
        (found,) = verifier.verify([VerificationRequest("large", predicted, gold)])
        assert found.reason is reason
        if not reason.startswith("gold_"):
            assert verifier.verify_gold("large", gold).verdict is Verdict.CORRECT


def test_bird_and_spider_keep_their_limits(fresh_db) -> None:
    with SQLiteEngine(fresh_db(SCRIPT)) as engine:
        for semantics in ("spider", "bird"):
            gold = "SELECT a FROM t"
            found = verify_sql(gold, gold, engine, semantics=semantics, limits=LIMITS)
            assert found.reason is Reason.GOLD_TOO_LARGE
