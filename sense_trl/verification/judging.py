"""Deciding whether one predicted query answers as gold does: `verify_sql`."""

from __future__ import annotations

import functools
import re
import time
from collections.abc import Hashable, Iterator
from dataclasses import dataclass, field, replace
from typing import Final, get_args

from sense_trl.database.digest import ResultDigest
from sense_trl.database.engine import (
    DigestingEngine,
    ExecutionLimits,
    LimitKind,
    QueryResult,
    QueryStatus,
    ReorderingEngine,
    SQLEngine,
)
from sense_trl.database.sqlite_engine import without_empty_statements
from sense_trl.database.text import rows_have_bad_bytes
from sense_trl.errors import InputError
from sense_trl.sql.ambiguity import (
    depends_on_scan_order,
    get_bare_column_queries,
    get_choosing_subqueries,
    get_tie_breaking_queries,
)
from sense_trl.sql.parsing import (
    SQLParseError,
    canonical_sql,
    get_offset,
    get_tie_query,
    get_unlimited_query,
    is_cut,
    order_matters,
    outer_limit,
    visible_sort_columns,
    without_end,
)
from sense_trl.sql.volatility import get_clock_queries, is_volatile
from sense_trl.verification.comparison import (
    Reason,
    Semantics,
    Verdict,
    bags_equal,
    hashable_rows,
    results_match,
)
from sense_trl.verification.reordering import get_reordered_queries

# Work of a prediction relative to gold's, in instructions of the virtual machine. Of 3,666 distinct
# predictions of five models on Spider dev, 9 take more than 1 M and the heaviest takes 18 M (2,300
# times gold's, 0.2 s); a right one takes 210 times gold's. The floor is five times the heaviest,
# some 1 to 2 s: half of what gold may use.
_STEPS_PER_GOLD_STEP: Final = 30
_GOLD_STEPS: Final = 200_000_000
_DEFAULT_TIMEOUT_S: Final = ExecutionLimits().timeout_s
# More than SQLite does on most machines (30 to 70 M on the one that this was measured on).
_STEPS_PER_S: Final = 100_000_000
MAX_DIGESTED_ROWS: Final = 10**9
# A query that takes more is looked at before it is run to its end: its columns are counted and its
# text is compared with those whose answer is known. That costs some 0.3 ms, which at this number of
# instructions is about as long as the query has run.
_LONG_STEPS: Final = 20_000
_MAX_KNOWN: Final = 1_000


@dataclass(frozen=True, slots=True)
class Verification:
    """The verdict on one prediction, its reason, and how both queries ended.

    Attributes:
        verdict: correct, wrong or undetermined.
        reason: why; belongs to exactly one verdict.
        predicted_status: how the prediction ended; `None` if it was not run because gold already
            decided. OK also where reading stopped one row past gold's number of rows.
        gold_status: how gold ended; `None` if the worker died before it could tell.
        error: the message of the query that failed (the prediction's, or gold's if gold failed).
        elapsed_s: seconds the prediction ran; the only field that is not reproducible.
    """

    verdict: Verdict
    reason: Reason
    predicted_status: QueryStatus | None
    gold_status: QueryStatus | None
    error: str | None
    elapsed_s: float


@dataclass(frozen=True, slots=True)
class VerificationRequest:
    """One prediction to verify against `gold_sql` on the database `db_id`.

    `semantics` is that of the comparison; `None` is the verifier's.
    """

    db_id: str
    predicted_sql: str
    gold_sql: str
    semantics: Semantics | None = None


def verify_sql(
    predicted_sql: str,
    gold_sql: str,
    engine: SQLEngine,
    *,
    semantics: Semantics = "strict",
    limits: ExecutionLimits | None = None,
) -> Verification:
    """Run a prediction and gold on one database and compare what they return.

    Gold is looked at first. It must run within the limits and `get_step_budget`; under `strict`
    it must also have one answer: it may not call `random` or read the clock (also not through a
    'now' in its data), must give the same rows when tables are scanned backwards, may not pick a
    column from a group that has several values of it, and its LIMIT and OFFSET may not cut between
    differing rows that tie. If its text takes one of several rows in any other way (a LIMIT inside,
    `row_number`, `group_concat`, DISTINCT ON), it must give the same rows with ties broken in both
    directions and with its tables read in up to 16 other orders. Otherwise the verdict is
    undetermined and the prediction is not run.

    A prediction that answers as gold does by the order of storage alone is wrong: where gold orders
    and it does not, or its own LIMIT or window takes any of several rows, it is run again with
    those in the order of their values and in the reverse, and wherever it may take one of several
    rows, with its tables read in another order (`strict`).

    A prediction that differs from gold in white space and the case of words alone is not run. One
    that takes more than 20,000 instructions is wrong without running to its end if it has another
    number of columns than gold has, and decided by its canonical text (`canonical_sql`) if that
    is gold's or was decided before.

    It may use 30 times the instructions that gold used, at least half of `get_step_budget` (all of
    it under `spider` and `bird`): the same verdict on every machine. What needs more is
    undetermined (`PREDICTION_STEP_BUDGET`), because slow SQL can be right; so is what the wall
    clock stops (`timeout_s`). A result with more rows or bytes than gold can have is wrong under
    `strict` and `spider`; one that exceeds a limit in any other way (a huge value, memory; any
    excess under `bird`, which ignores duplicates) is undetermined. Gold with more rows or bytes
    than the limits allow is read once and only its fingerprints are kept (`strict`, SQLite): they
    tell an equal result and a different one, and leave those undetermined that are equal by
    another order of columns or within the tolerance.

    `spider` changes the texts as the official script does before running them: "value" becomes
    "1" in the prediction, `> =` is closed up, DISTINCT is deleted from both, everything behind
    the first statement is dropped, and YEAR(CURDATE()) becomes 2020. Differences that remain, on
    purpose: a text without a statement and a statement that writes are wrong here even where gold
    is empty (the official ones count them as an empty result, and let the write happen), and gold
    that fails is undetermined (Spider's script aborts, BIRD's counts 0). A result with text that is
    not UTF-8 is a failed query under `bird`, as for its script; `spider` leaves the bad bytes out.

    Args:
        predicted_sql: the model's text.
        gold_sql: the reference.
        engine: an engine over the database.
        semantics: "strict", "spider" or "bird", see `results_match`.
        limits: limits of each query instead of the engine's.

    Raises:
        DatabaseError: the database cannot be read.
        InputError: `semantics` is unknown.

    Example:
        >>> import sqlite3, tempfile, pathlib
        >>> from sense_trl.database.sqlite_engine import SQLiteEngine
        >>> file = pathlib.Path(tempfile.mkdtemp()) / "pets.sqlite"
        >>> connection = sqlite3.connect(file)
        >>> _ = connection.execute("CREATE TABLE pet AS SELECT 'Rex' AS name, 3 AS age")
        >>> connection.close()
        >>> with SQLiteEngine(file) as engine:
        ...     verify_sql("SELECT age, name FROM pet", "SELECT name, age FROM pet", engine).verdict
        ...     verify_sql("SELECT name FROM pet", "SELECT age FROM pet", engine).reason
        <Verdict.CORRECT: 'correct'>
        <Reason.VALUES_DIFFER: 'values_differ'>
    """
    check_semantics(semantics)
    gold = examine_gold(gold_sql, engine, semantics, limits)
    return verify_against(predicted_sql, gold, engine, semantics, limits)


# ---------------------------------------------------------------------- gold


@dataclass(slots=True)
class GoldExamination:
    """The result of a gold query, and what has been found out about it.

    Attributes:
        sql: the text as it is run.
        result: what it gave.
        problem: why it cannot decide about predictions, `None` if it can.
        tie_groups: one value per row, equal for rows that tie; `None` if that cannot be known.
        ties_known: whether `tie_groups` has been looked for.
        decided: what was decided about long predictions, by canonical text.
        digest: fingerprints of a result that is too large to keep, which then decide (`strict`).
        plain_text: `sql` without what does not matter in it, once that has been asked for.
        is_ordered: whether its outermost query orders, once that has been asked for.
    """

    sql: str
    result: QueryResult
    problem: Reason | None
    tie_groups: tuple[Hashable, ...] | None = None
    ties_known: bool = False
    digest: ResultDigest | None = None
    decided: dict[str, Reason] = field(default_factory=dict)
    plain_text: str | None = None
    is_ordered: bool | None = None

    def remember(self, canonical: str, reason: Reason) -> None:
        """Keep what was decided about one canonical text."""
        if len(self.decided) < _MAX_KNOWN:
            self.decided[canonical] = reason


_GOLD_PROBLEMS: Final = {
    QueryStatus.SYNTAX_ERROR: Reason.GOLD_SYNTAX_ERROR,
    QueryStatus.EXECUTION_ERROR: Reason.GOLD_EXECUTION_ERROR,
    QueryStatus.DENIED: Reason.GOLD_DENIED,
    QueryStatus.TOO_LARGE: Reason.GOLD_TOO_LARGE,
}
_PREDICTION_PROBLEMS: Final = {
    QueryStatus.SYNTAX_ERROR: Reason.PREDICTION_SYNTAX_ERROR,
    QueryStatus.EXECUTION_ERROR: Reason.PREDICTION_EXECUTION_ERROR,
    QueryStatus.DENIED: Reason.PREDICTION_DENIED,
}


def get_step_budget(limits: ExecutionLimits) -> int:
    """Instructions of SQLite's virtual machine that a gold query may use.

    `max_steps` where it is given; otherwise 200 M, some 3 to 6 s, which every machine does within
    the default `timeout_s`. A longer `timeout_s` asks for slower queries, and brings 100 M for
    each of its seconds.

    Example:
        >>> get_step_budget(ExecutionLimits()), get_step_budget(ExecutionLimits(timeout_s=60))
        (200000000, 6000000000)
    """
    if limits.max_steps is not None:
        return limits.max_steps
    if limits.timeout_s <= _DEFAULT_TIMEOUT_S:
        return _GOLD_STEPS
    return int(limits.timeout_s * _STEPS_PER_S)


def _gold_limits(engine: SQLEngine, limits: ExecutionLimits | None) -> ExecutionLimits:
    limits = engine.limits if limits is None else limits
    return replace(limits, max_steps=get_step_budget(limits))


def examine_gold(
    gold_sql: str, engine: SQLEngine, semantics: Semantics, limits: ExecutionLimits | None
) -> GoldExamination:
    """Run gold and look for what makes it unfit; see `verify_sql`."""
    sql = _spider_text(gold_sql) if semantics == "spider" else gold_sql
    gold_limits = _gold_limits(engine, limits)
    result = engine.execute(sql, limits=gold_limits)
    problem = None
    if result.status is QueryStatus.TIMEOUT:
        problem = (
            Reason.GOLD_STEP_BUDGET if result.exceeded is LimitKind.STEPS else Reason.GOLD_TIMEOUT
        )
    elif not result.ok:
        problem = _GOLD_PROBLEMS[result.status]
        if semantics == "strict" and result.exceeded in (LimitKind.ROWS, LimitKind.RESULT_BYTES):
            return _examine_large_gold(sql, result, engine, gold_limits)
    elif semantics == "bird" and _has_empty_statements(sql, engine):
        problem = _GOLD_PROBLEMS[QueryStatus.DENIED]
        result = _SEVERAL_STATEMENTS
    elif semantics == "bird" and rows_have_bad_bytes(result.rows):
        problem = Reason.GOLD_EXECUTION_ERROR
        result = _as_undecodable(result)
    elif semantics == "strict":
        problem = _find_ambiguity(sql, result, engine, gold_limits)
    return GoldExamination(sql, result, problem)


# What BIRD's script has of a query with a second `;`, as Python's module refuses to run it.
_SEVERAL_STATEMENTS: Final = QueryResult(
    QueryStatus.DENIED, (), (), "more than one statement", 0.0, 0
)


def _has_empty_statements(sql: str, engine: SQLEngine) -> bool:
    return (
        sql.count(";") > 1 and engine.dialect == "sqlite" and without_empty_statements(sql) != sql
    )


def _as_undecodable(result: QueryResult) -> QueryResult:
    """A result as BIRD's script has it, whose connection decodes strictly."""
    message = "the result holds text that is not UTF-8"
    return replace(result, status=QueryStatus.EXECUTION_ERROR, columns=(), rows=(), error=message)


def _examine_large_gold(
    sql: str, result: QueryResult, engine: SQLEngine, limits: ExecutionLimits
) -> GoldExamination:
    too_large = GoldExamination(sql, result, Reason.GOLD_TOO_LARGE)
    if not isinstance(engine, DigestingEngine) or is_volatile(sql, engine.dialect):
        return too_large
    # Whether a cut falls into a tie, or what a choice changes, would take the rows.
    if _may_choose(sql, engine, limits) or _reads_the_clock(sql, engine, limits):
        return too_large
    unbounded = replace(limits, max_rows=MAX_DIGESTED_ROWS)
    read, digest = engine.execute_digest(sql, limits=unbounded)
    if read.exceeded is LimitKind.WALL_CLOCK:
        return GoldExamination(sql, read, Reason.GOLD_TIMEOUT)
    backwards, reordered = engine.execute_digest(sql, limits=unbounded, reverse=True)
    if backwards.exceeded is LimitKind.WALL_CLOCK:
        return GoldExamination(sql, backwards, Reason.GOLD_TIMEOUT)
    if digest is None or reordered is None:
        return too_large
    if digest.bag != reordered.bag:
        # With fractions the sums of a group may only have been added up in another order.
        return (
            too_large
            if digest.has_fractions
            else GoldExamination(sql, read, Reason.GOLD_NOT_DETERMINISTIC)
        )
    return GoldExamination(sql, read, None, digest=digest)


def _verify_by_digest(
    predicted_sql: str, gold: GoldExamination, engine: SQLEngine, limits: ExecutionLimits
) -> tuple[QueryResult, Reason | None]:
    """Decide from fingerprints; the reason is `None` where the prediction did not run to its end.

    What is right by another order of columns, or within the tolerance of numbers only, is not
    seen and undetermined.
    """
    assert isinstance(engine, DigestingEngine) and gold.digest is not None
    result, digest = engine.execute_digest(predicted_sql, limits=limits)
    if digest is None:
        return result, None
    wanted = gold.digest
    if digest.num_rows != wanted.num_rows:
        return result, Reason.ROW_COUNT_DIFFERS
    if digest.num_columns != wanted.num_columns:
        return result, Reason.COLUMN_COUNT_DIFFERS
    if digest.bag == wanted.bag:
        try:
            ordered = order_matters(gold.sql, engine.dialect)
        except SQLParseError:
            ordered = True
        if not ordered or digest.sequence == wanted.sequence:
            return result, Reason.RESULTS_EQUAL
        return result, Reason.ORDER_UNKNOWN
    fractions = digest.has_fractions or wanted.has_fractions
    if not fractions and sorted(digest.column_bags) != sorted(wanted.column_bags):
        return result, Reason.VALUES_DIFFER
    return result, Reason.PREDICTION_TOO_LARGE


def _find_ambiguity(
    sql: str, result: QueryResult, engine: SQLEngine, limits: ExecutionLimits
) -> Reason | None:
    if is_volatile(sql, engine.dialect):
        return Reason.GOLD_NOT_DETERMINISTIC
    # Twice the budget: another order of reading can take a few instructions more.
    generous = replace(limits, max_steps=2 * get_step_budget(limits))
    if isinstance(engine, ReorderingEngine) and not _is_plainly_orderless(
        sql, result, engine, generous
    ):
        problem = _tell_apart(engine.execute_reordered(sql, limits=generous), result)
        if problem is not None:
            return problem
    if _reads_the_clock(sql, engine, generous) or _has_ambiguous_columns(sql, engine, generous):
        return Reason.GOLD_NOT_DETERMINISTIC
    problem, is_decided = _find_cut_tie(sql, result, engine, generous)
    if problem is not None:
        return problem
    if not _may_choose(
        sql,
        engine,
        generous,
        but_for_outer_limit=is_decided,
        but_for_bare_columns=engine.dialect == "sqlite",
    ):
        return None
    if _breaks_ties_inside(sql, engine, generous, but_for_outer_limit=is_decided):
        return Reason.GOLD_NOT_DETERMINISTIC
    for other in _reread(sql, engine, generous):
        problem = _tell_apart(other, result)
        if problem is not None:
            return problem
    return None


def _breaks_ties_inside(
    sql: str, engine: SQLEngine, limits: ExecutionLimits, *, but_for_outer_limit: bool
) -> bool:
    """Whether breaking ties both ways gives two answers.

    It reads no copies of tables, and sees what no order of reading shows: GROUP BY sorts its rows
    before they tie.
    """
    try:
        queries = get_tie_breaking_queries(
            sql, engine.dialect, but_for_outer_limit=but_for_outer_limit
        )
    except SQLParseError:
        return False
    return _answers_differ(queries, engine, limits)


def _choose_nothing(queries: list[str] | None, engine: SQLEngine, limits: ExecutionLimits) -> bool:
    """Whether each of the queries has one answer, and that is known from few runs of it alone."""
    if queries is None:
        return False
    for query in queries:
        result = engine.execute(query, limits=limits)
        # As a scalar subquery, the first row of several is taken.
        if not result.ok or len(result.rows) > 1:
            return False
        if _find_cut_tie(query, result, engine, limits) != (None, True):
            return False
    return True


def _reread(sql: str, engine: SQLEngine, limits: ExecutionLimits) -> Iterator[QueryResult]:
    """The results of a query with its tables read in other orders, as many as the budget allows."""
    spent = 0
    for query in get_reordered_queries(sql, engine.get_tables(), engine.dialect):
        other = engine.execute(query, limits=limits)
        yield other
        spent += other.steps or 0
        if spent > get_step_budget(limits) // 2:
            return


def _tell_apart(other: QueryResult, result: QueryResult) -> Reason | None:
    """The problem of gold that gives `other` when its tables are read in another order, if any."""
    if other.exceeded is LimitKind.WALL_CLOCK:
        return Reason.GOLD_TIMEOUT
    # As bags: rows that tie may come in another order.
    if not other.ok or not bags_equal(other.rows, result.rows):
        return Reason.GOLD_NOT_DETERMINISTIC
    return None


def _answers_differ(
    queries: tuple[str, str] | None, engine: SQLEngine, limits: ExecutionLimits
) -> bool:
    """Whether two ways to write gold that have one answer, if gold has one, have two."""
    if queries is None:
        return False
    one, other = (engine.execute(query, limits=limits) for query in queries)
    # Compared with each other and not with gold: sqlglot may have spelled something otherwise.
    return one.ok and other.ok and not bags_equal(one.rows, other.rows)


def _reads_the_clock(sql: str, engine: SQLEngine, limits: ExecutionLimits) -> bool:
    """Whether a date function finds 'now' in the data, and the answer shows it."""
    return _answers_differ(get_clock_queries(sql, engine.dialect), engine, limits)


# Without one of them a query has no function, no subquery and no cut: nothing to choose by.
_CHOOSING: Final = re.compile(r"\(|\b(?:limit|fetch|offset|group|distinct)\b", re.IGNORECASE)


def _may_choose(sql: str, engine: SQLEngine, limits: ExecutionLimits, **but_for: bool) -> bool:
    """Whether some part of gold may take one of several rows, none of which has a right to it.

    `but_for` names the parts that have been looked at; see `depends_on_scan_order`.
    """
    if _CHOOSING.search(sql) is None:
        return False
    try:
        if depends_on_scan_order(sql, engine.dialect, **but_for):
            return True
    except SQLParseError:
        return True
    return _MERGING.search(sql) is not None and _has_collations(engine, limits)


def _has_collations(engine: SQLEngine, limits: ExecutionLimits) -> bool:
    """Whether the schema of a SQLite database names one, so that unequal texts can tie."""
    return engine.dialect == "sqlite" and bool(engine.execute(_COLLATIONS, limits=limits).rows)


# Which of equal spellings these keep, a collation in the schema decides.
_MERGING: Final = re.compile(
    r"\b(?:group|distinct|union|intersect|except|min|max)\b", re.IGNORECASE
)
_COLLATIONS: Final = "SELECT 1 FROM sqlite_master WHERE sql LIKE '%collate%' LIMIT 1"
_VIEWS_AND_COLLATIONS: Final = (
    "SELECT 1 FROM sqlite_master WHERE type = 'view' OR sql LIKE '%collate%' LIMIT 1"
)


def _is_plainly_orderless(
    sql: str, result: QueryResult, engine: SQLEngine, limits: ExecutionLimits
) -> bool:
    """Whether text and schema tell of a long query that reading backwards changes nothing.

    A short one is read backwards in less time than its text is parsed.
    """
    if result.steps is None or result.steps < _LONG_STEPS:
        return False
    try:
        if depends_on_scan_order(sql, engine.dialect):
            return False
    except SQLParseError:
        return False
    # Which of equal spellings DISTINCT keeps, and what a view does, the text does not tell.
    hidden = engine.execute(_VIEWS_AND_COLLATIONS, limits=limits)
    return hidden.ok and not hidden.rows


def _has_ambiguous_columns(sql: str, engine: SQLEngine, limits: ExecutionLimits) -> bool:
    """Whether a column is picked from a group that has several values of it."""
    try:
        queries = get_bare_column_queries(sql, engine.dialect)
    except SQLParseError:
        return False
    return _answers_differ(queries, engine, limits)


def _find_cut_tie(
    sql: str, result: QueryResult, engine: SQLEngine, limits: ExecutionLimits
) -> tuple[Reason | None, bool]:
    """Look for a cut by LIMIT or OFFSET between rows that tie and differ; tell if that is sure."""
    dialect = engine.dialect
    try:
        if not is_cut(sql, dialect) or not result.rows:
            return None, True
        offset = _evaluate(get_offset(sql, dialect), engine, limits)
        if offset is None:
            return None, False
        end = offset + len(result.rows)
        if not order_matters(sql, dialect):
            whole = engine.execute(get_unlimited_query(sql, dialect), limits=limits)
            differs = len(set(map(repr, whole.rows))) > 1
            if not whole.ok or (differs and len(whole.rows) > len(result.rows)):
                return Reason.GOLD_NOT_DETERMINISTIC, True
            return None, True
        for rows_read in (end + 1, None):
            tie_sql = get_tie_query(sql, dialect, limit=rows_read, keeps_offset=False)
            ranked = None if tie_sql is None else engine.execute(tie_sql, limits=limits)
            if ranked is None or (not ranked.ok and rows_read is not None):
                return None, False
            if not ranked.ok:
                return Reason.GOLD_LIMIT_TIE, True
            ranks = [row[-1] for row in ranked.rows]
            cut_ranks = [
                ranks[cut]
                for cut in (offset, end)
                if 0 < cut < len(ranks) and ranks[cut] == ranks[cut - 1]
            ]
            if not cut_ranks:
                return None, True
            for rank in cut_ranks:
                if len({repr(row[:-1]) for row in ranked.rows if row[-1] == rank}) > 1:
                    return Reason.GOLD_LIMIT_TIE, True
    except SQLParseError:
        # SQLite reads a little more than sqlglot.
        return None, False
    return None, True


def _evaluate(expression: str, engine: SQLEngine, limits: ExecutionLimits) -> int | None:
    """The value of an OFFSET, `None` where it cannot be had."""
    if expression.isdigit():
        return int(expression)
    rows = engine.execute(f"SELECT {expression}", limits=limits).rows
    value = rows[0][0] if rows else None
    return max(value, 0) if isinstance(value, int) else None


def _get_tie_groups(
    gold: GoldExamination, engine: SQLEngine, limits: ExecutionLimits | None
) -> tuple[Hashable, ...] | None:
    """Tie groups of gold's rows from its sort keys; `None` if they cannot be had."""
    if not gold.ties_known:
        limit = outer_limit(gold.sql, engine.dialect)
        tie_sql = get_tie_query(gold.sql, engine.dialect, limit=limit)
        if tie_sql is not None:
            ranked = engine.execute(tie_sql, limits=_gold_limits(engine, limits))
            bare = tuple(row[:-1] for row in ranked.rows)
            if ranked.ok and bags_equal(bare, gold.result.rows):
                # The ranks come in order, so they fit gold's rows position by position.
                gold.tie_groups = tuple(row[-1] for row in ranked.rows)
        elif not _has_collations(engine, _gold_limits(engine, limits)):
            columns = visible_sort_columns(gold.sql, engine.dialect)
            if columns is not None:
                rows = hashable_rows(gold.result.rows)
                gold.tie_groups = tuple(tuple(row[c] for c in columns) for row in rows)
        # Last, because another thread may read it.
        gold.ties_known = True
    return gold.tie_groups


# ---------------------------------------------------------------------- prediction


def verify_against(
    predicted_sql: str,
    gold: GoldExamination,
    engine: SQLEngine,
    semantics: Semantics,
    limits: ExecutionLimits | None,
) -> Verification:
    """Decide about one prediction whose gold is known; see `verify_sql`."""
    gold_status = gold.result.status
    if gold.problem is not None:
        return Verification(
            gold.problem.verdict, gold.problem, None, gold_status, gold.result.error, 0.0
        )
    started = time.perf_counter()
    if semantics == "spider":
        predicted_sql = _spider_text(predicted_sql.replace("value", "1"))
    short_limits, own_limits = _prediction_limits(gold, engine, semantics, limits)
    decided: Reason | None = None
    canonical: str | None = None
    if semantics == "bird" and _has_empty_statements(predicted_sql, engine):
        result = _SEVERAL_STATEMENTS
    elif gold.digest is not None:
        result, decided = _verify_by_digest(predicted_sql, gold, engine, own_limits)
        if decided is Reason.RESULTS_EQUAL:
            decided = _judge_luck(predicted_sql, result, gold, engine, own_limits)
    elif _is_same_text(predicted_sql, gold) and not is_volatile(gold.sql, engine.dialect):
        result = gold.result
    else:
        result = engine.execute(predicted_sql, limits=short_limits)
        if result.exceeded is LimitKind.STEPS and short_limits is not own_limits:
            canonical = _canonical_text(predicted_sql, engine.dialect)
            decided = _decide_by_text(predicted_sql, canonical, gold, engine, own_limits, semantics)
            if decided is None:
                result = engine.execute(predicted_sql, limits=own_limits)
    if semantics == "bird" and rows_have_bad_bytes(result.rows):
        result = _as_undecodable(result)
    status = result.status
    if decided is not None and not is_volatile(predicted_sql, engine.dialect):
        reason, status = decided, QueryStatus.OK
    elif result.ok:
        if semantics == "strict" and is_volatile(predicted_sql, engine.dialect):
            reason = Reason.PREDICTION_NOT_DETERMINISTIC
        else:
            reason = _compare(result, gold, engine, semantics, limits)
            if reason is Reason.RESULTS_EQUAL and semantics == "strict":
                reason = _judge_luck(predicted_sql, result, gold, engine, own_limits)
            if canonical is not None and reason.verdict is not Verdict.UNDETERMINED:
                gold.remember(canonical, reason)
    elif status is QueryStatus.TIMEOUT:
        out_of_steps = result.exceeded is LimitKind.STEPS
        reason = Reason.PREDICTION_STEP_BUDGET if out_of_steps else Reason.PREDICTION_TIMEOUT
    elif status is QueryStatus.TOO_LARGE:
        reason = Reason.PREDICTION_TOO_LARGE
        if semantics != "bird" and result.exceeded is LimitKind.ROWS:
            reason, status = Reason.ROW_COUNT_DIFFERS, QueryStatus.OK
        elif semantics != "bird" and result.exceeded is LimitKind.RESULT_BYTES:
            reason = Reason.VALUES_DIFFER
    else:
        reason = _PREDICTION_PROBLEMS[status]
    elapsed_s = time.perf_counter() - started
    error = None if status is QueryStatus.OK else result.error
    return Verification(reason.verdict, reason, status, gold_status, error, elapsed_s)


# What may take one of several rows.
_TAKING: Final = re.compile(r"\b(?:limit|fetch|offset|over)\b", re.IGNORECASE)
_ORDER_BY: Final = re.compile(r"\border\s+by\b")
# What does not matter in it: the names of tables, the default direction, and spaces.
_IN_TAIL: Final = re.compile(r"\b\w+\.|\basc\b|\s+")


def _judge_luck(
    predicted_sql: str,
    result: QueryResult,
    gold: GoldExamination,
    engine: SQLEngine,
    limits: ExecutionLimits,
) -> Reason:
    """Judge whether a prediction that answered as gold does so however its tables are read.

    Gold has one answer, and a right prediction gives it in every order of reading. Where it asks
    for no order of its rows, or lets rows tie, it is run again with the rows that it leaves free
    in an order of their values, and in the reverse.
    """
    if _hangs_on_reading(predicted_sql, result, gold, engine, limits):
        return Reason.VALUES_DIFFER
    if gold.is_ordered is None:
        try:
            gold.is_ordered = order_matters(gold.sql, engine.dialect)
        except SQLParseError:
            gold.is_ordered = False
    num_rows = len(result.rows) if gold.digest is None else gold.digest.num_rows
    is_ordered = gold.is_ordered and num_rows > 1
    reason = Reason.RESULTS_EQUAL
    if not is_ordered and _TAKING.search(predicted_sql) is None:
        return reason
    tail = _order_tail(predicted_sql)
    if tail and tail == _order_tail(gold.sql):
        # What gold's ORDER BY leaves free has been looked at.
        return reason
    try:
        queries = get_tie_breaking_queries(
            predicted_sql, engine.dialect, num_ordered_columns=len(result.columns)
        )
    except SQLParseError:
        return reason
    found: list[Reason | None] = []
    if gold.digest is not None:
        found = [_verify_by_digest(query, gold, engine, limits)[1] for query in queries or ()]
    else:
        others = [engine.execute(query, limits=limits) for query in queries or ()]
        # Where both agree there is no luck: sqlglot may have spelled something otherwise.
        if all(other.ok for other in others) and len({repr(other.rows) for other in others}) > 1:
            found = [_compare(other, gold, engine, "strict", limits) for other in others]
    return next((each for each in found if each is not None and each is not reason), reason)


_SKIPPING: Final = re.compile(r"\boffset\b|\blimit\s[^(),]*,", re.IGNORECASE)


def _hangs_on_reading(
    sql: str,
    result: QueryResult,
    gold: GoldExamination,
    engine: SQLEngine,
    limits: ExecutionLimits,
) -> bool:
    """Whether a prediction takes one of several rows inside, and other rows give another answer.

    `group_concat`, a bare column or the row of a scalar subquery may be gold's by luck.
    """
    if result is gold.result or gold.digest is not None:
        return False
    if _CHOOSING.search(sql) is None:
        return False
    # Another answer may have more rows than gold.
    limits = replace(limits, max_rows=engine.limits.max_rows)
    if _SKIPPING.search(sql) is not None:
        # In the middle of rows that tie, the same one may come from both ends.
        problem, _ = _find_cut_tie(sql, result, engine, limits)
        if problem is not None:
            return True
    try:
        if not depends_on_scan_order(sql, engine.dialect, but_for_outer_limit=True):
            return False
    except SQLParseError:
        return False
    if _has_ambiguous_columns(sql, engine, limits):
        return True
    if not depends_on_scan_order(
        sql, engine.dialect, but_for_outer_limit=True, but_for_bare_columns=True
    ):
        return False
    if _choose_nothing(get_choosing_subqueries(sql, engine.dialect), engine, limits):
        return False
    if _breaks_ties_inside(sql, engine, limits, but_for_outer_limit=True):
        return True
    return any(
        other.ok and not bags_equal(other.rows, result.rows)
        for other in _reread(sql, engine, limits)
    )


def _order_tail(sql: str) -> str:
    """The text from the last ORDER BY on, without what does not matter in it."""
    text = sql.lower().replace("`", "").replace('"', "").rstrip().rstrip(";")
    found = list(_ORDER_BY.finditer(text))
    return _IN_TAIL.sub("", text[found[-1].start() :]) if found else ""


def _decide_by_text(
    predicted_sql: str,
    canonical: str | None,
    gold: GoldExamination,
    engine: SQLEngine,
    limits: ExecutionLimits,
    semantics: Semantics,
) -> Reason | None:
    """Decide about a long prediction without running it to its end, `None` if that cannot be."""
    if is_volatile(predicted_sql, engine.dialect):
        return None
    if gold.result.rows:
        bare = without_end(predicted_sql, engine.dialect)
        columns = engine.execute(_with_no_rows(bare), limits=limits).columns
        if columns and len(columns) != len(gold.result.columns):
            return Reason.COLUMN_COUNT_DIFFERS
    if canonical is None:
        return None
    if not gold.decided:
        own = _canonical_text(gold.sql, engine.dialect)
        gold.remember(own or "", _compare(gold.result, gold, engine, semantics, limits))
    return gold.decided.get(canonical)


def _with_no_rows(sql: str) -> str:
    """The same result columns and no work: SQLite looks at LIMIT 0 before it reads."""
    # The line break ends a comment behind the query.
    return f"SELECT * FROM (\n{sql}\n) LIMIT 0"


# What canonical texts do not tell apart, and SQLite does: a unary plus takes a column's affinity,
# CAST goes by the word for the type, mod() is no %, and the left side has the say on the collation.
_LOOSELY_READ: Final = re.compile(r"[<>+%]|\|\||\b(?:cast|mod|concat)\b|\bas\s+\w+\s*[()]")


def _canonical_text(sql: str, dialect: str) -> str | None:
    try:
        return "\n".join([canonical_sql(sql, dialect), *_LOOSELY_READ.findall(sql.lower())])
    except SQLParseError:
        return None


# One that is not closed goes to the end of the text.
_QUOTED: Final = re.compile(r"'[^']*'?|\"[^\"]*\"?|`[^`]*`?|\[[^\]]*\]?")
# White space to Python that is none to SQLite.
_OTHER_SPACE: Final = re.compile(r"[\x0b\x1c-\x1f]")


def _is_same_text(sql: str, gold: GoldExamination) -> bool:
    """Whether a query is gold's but for white space and the case of words outside quotes."""
    if len(sql) > 2 * len(gold.sql) + 100:
        # Padded with spaces beyond what an engine accepts it would be refused.
        return False
    if gold.plain_text is None:
        gold.plain_text = _plain_text(gold.sql)
    return _plain_text(sql) == gold.plain_text and _quoted_parts(sql) == _quoted_parts(gold.sql)


def _plain_text(sql: str) -> str:
    # A comment ends with its line, SQLite folds the case of ASCII alone, and DuckDB has strings
    # between dollars and with escaped quotes.
    if any(mark in sql for mark in ("--", "/*", "$", "\\")):
        return sql
    if not sql.isascii() or _OTHER_SPACE.search(sql):
        return sql
    text = " ".join(sql.lower().split()).replace(" ,", ",").replace(", ", ",")
    text = text.replace(" (", "(").replace("( ", "(").replace(" )", ")")
    return text.removesuffix(";").rstrip()


def _quoted_parts(sql: str) -> list[str]:
    return _QUOTED.findall(sql)


def _prediction_limits(
    gold: GoldExamination, engine: SQLEngine, semantics: Semantics, limits: ExecutionLimits | None
) -> tuple[ExecutionLimits, ExecutionLimits]:
    """Limits of a first, short run and of the whole one; one object where there is no first."""
    limits = engine.limits if limits is None else limits
    max_steps = budget = get_step_budget(limits)
    if semantics == "strict" and gold.result.steps is not None:
        max_steps = max(max(budget, _GOLD_STEPS) // 2, _STEPS_PER_GOLD_STEP * gold.result.steps)
    max_rows = limits.max_rows
    if gold.digest is not None:
        max_rows = gold.digest.num_rows
    elif semantics != "bird":
        # One row more than gold's already decides.
        max_rows = min(max_rows, len(gold.result.rows))
    counts_steps = gold.result.steps is not None and gold.digest is None
    return _capped(limits, min(limits.max_steps or max_steps, max_steps), max_rows, counts_steps)


@functools.lru_cache(maxsize=10_000)
def _capped(
    limits: ExecutionLimits, max_steps: int, max_rows: int, counts_steps: bool
) -> tuple[ExecutionLimits, ExecutionLimits]:
    # Checked and built anew for every prediction they would be a tenth of a cheap one's cost.
    whole = replace(limits, max_steps=max_steps, max_rows=max_rows)
    if not counts_steps or max_steps <= _LONG_STEPS:
        return whole, whole
    return replace(whole, max_steps=_LONG_STEPS), whole


def _compare(
    result: QueryResult,
    gold: GoldExamination,
    engine: SQLEngine,
    semantics: Semantics,
    limits: ExecutionLimits | None,
) -> Reason:
    try:
        return results_match(
            result,
            gold.result,
            semantics=semantics,
            gold_sql=gold.sql,
            dialect=engine.dialect,
            tie_groups=lambda: _get_tie_groups(gold, engine, limits),
        ).reason
    except SQLParseError:
        # The bags agree, and whether gold orders cannot be read.
        return Reason.ORDER_UNKNOWN


def verify_gold_itself(gold: GoldExamination) -> Verification:
    """Gold as its own prediction: correct, or undetermined with the reason."""
    reason = gold.problem
    if reason is None:
        has_rows = gold.result.rows or gold.digest is not None
        reason = Reason.RESULTS_EQUAL if has_rows else Reason.GOLD_EMPTY
    status = gold.result.status
    return Verification(
        reason.verdict, reason, status, status, gold.result.error, gold.result.elapsed_s
    )


def check_semantics(semantics: str) -> None:
    """Raise `InputError` if `semantics` is not one of the known ones."""
    if semantics not in get_args(Semantics):
        raise InputError(f"`semantics` is {semantics!r}; expected one of {get_args(Semantics)}.")


# ---------------------------------------------------------------------- Spider's changes

# What the tokenizer of Spider's script takes for one token, as far as deleting DISTINCT and
# finding the first statement need to know.
_TOKEN_KINDS: Final = r"""
    --[^\r\n]* | \#[^\r\n]* | {comment}
    | '(?:''|\\'|[^'])*' | "(?:""|\\"|[^"])*" | `(?:``|[^`])*`
    | \w[$\#\w]* | .
    """
_TOKEN, _TOKEN_AFTER_COMMENTS = (
    re.compile(_TOKEN_KINDS.format(comment=comment), re.VERBOSE | re.DOTALL)
    for comment in (r"/\*.*?\*/", r"(?!)")
)
# Engines refuse what is longer.
_MAX_SPIDER_CHARS: Final = 1_000_000
_CURRENT_YEAR: Final = re.compile(r"YEAR\s*\(\s*CURDATE\s*\(\s*\)\s*\)\s*", re.IGNORECASE)


def _spider_text(sql: str) -> str:
    """The text that Spider's script runs for `sql`."""
    if len(sql) > _MAX_SPIDER_CHARS:
        return sql
    sql = sql.replace("> =", ">=").replace("< =", "<=").replace("! =", "!=")
    kept = []
    depth = 0
    for token in _spider_tokens(sql):
        if token == "(":
            depth += 1
        elif token == ")":
            depth -= 1
        if token.lower() != "distinct":
            kept.append(token)
        if token == ";" and depth <= 0:
            break
    return _CURRENT_YEAR.sub("2020", "".join(kept))


def _spider_tokens(sql: str) -> Iterator[str]:
    for match in _TOKEN.finditer(sql):
        yield match.group()
        if match.group() == "/" and sql.startswith("/*", match.start()):
            # A comment that is not closed is none, and nor is any behind it. Looking for the end of
            # each would take the square of their number.
            yield from _TOKEN_AFTER_COMMENTS.findall(sql, match.end())
            return
