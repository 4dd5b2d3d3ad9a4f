"""Several samples per question: pass@k, and the vote of their execution results.

Neither is comparable with the accuracy of greedy decoding, which asks for one answer: pass@k lets
gold choose among k, and a vote costs n times the generation. Report them under their own names.
"""

from __future__ import annotations

import math
from collections.abc import Container, Hashable, Sequence
from dataclasses import dataclass, replace
from typing import Final

from sense_trl.database.engine import (
    DigestingEngine,
    ExecutionLimits,
    LimitKind,
    QueryResult,
    SQLEngine,
)
from sense_trl.errors import InputError
from sense_trl.sql.volatility import is_volatile
from sense_trl.verification.comparison import Verdict, results_match
from sense_trl.verification.judging import MAX_DIGESTED_ROWS
from sense_trl.verification.values import canonical_value, is_inexact

# What is held of the results of one question's samples.
_MAX_HELD_VALUES: Final = 1_000_000


def estimate_pass_at_k(num_samples: int, num_correct: int, k: int) -> float:
    """Probability that at least one of `k` samples of one question is correct.

    1 - C(n - c, k) / C(n, k): the share of all choices of k among the n samples that hold a
    correct one, an unbiased estimate (Chen et al. 2021, "Evaluating Large Language Models Trained
    on Code", equation 1; 1 - (1 - c/n)^k is biased).

    Args:
        num_samples: n, samples drawn.
        num_correct: c, correct ones among them.
        k: at most n.

    Raises:
        InputError: not 1 <= k <= n, or not 0 <= c <= n.

    Example:
        >>> estimate_pass_at_k(4, 1, 2)  # 3 of the 6 pairs hold the correct sample
        0.5
    """
    if not 1 <= k <= num_samples:
        raise InputError(
            f"`k` is {k} with {num_samples} samples; expected 1 to the number of samples."
        )
    if not 0 <= num_correct <= num_samples:
        raise InputError(f"`num_correct` is {num_correct} of {num_samples} samples.")
    return 1 - math.comb(num_samples - num_correct, k) / math.comb(num_samples, k)


def pass_at_k(verdicts: Sequence[Sequence[Verdict]], k: int) -> float:
    """Mean of `estimate_pass_at_k` over questions, in [0, 1].

    Args:
        verdicts: for each question the verdicts of its samples; what is undetermined is not
            correct.
        k: at most the number of samples of every question.

    Raises:
        InputError: no questions, or one with fewer than `k` samples.
    """
    if not verdicts:
        raise InputError("`verdicts` is empty; pass@k over no question is undefined.")
    return sum(
        estimate_pass_at_k(len(samples), sum(v is Verdict.CORRECT for v in samples), k)
        for samples in verdicts
    ) / len(verdicts)


@dataclass(frozen=True, slots=True)
class ExecutionVote:
    """The outcome of a vote: the chosen sample, and how many agreed.

    Attributes:
        index: position of the chosen sample.
        sql: its text.
        num_votes: samples with the same result, itself included; 0 if no sample had a vote.
        num_samples: all samples.
        result: of the chosen sample; `None` where it was not run, or has no vote.
    """

    index: int
    sql: str
    num_votes: int
    num_samples: int
    result: QueryResult | None = None

    @property
    def share(self) -> float:
        """Votes among all samples, in [0, 1]."""
        return self.num_votes / self.num_samples


def vote_by_execution(
    samples: Sequence[str],
    engine: SQLEngine,
    *,
    limits: ExecutionLimits | None = None,
    failing: Container[str] = (),
) -> ExecutionVote:
    """Choose the sample whose result most samples agree on (self-consistency).

    Every distinct text is executed once. Samples vote for their result: the same bag of rows for
    one order of the columns, values equal as `results_match` says under `strict`; whether rows
    are ordered does not count, and all empty results are one. Results that together have more than
    a million values, and those of more rows than the limits allow (SQLite), are not held: they
    are compared by fingerprints of their columns. Samples that do not run to their end within the
    limits, and those that call `random` or read the clock, have no vote. The earliest sample with
    the result that has most votes is chosen; between results with equally many, the one that was
    written first. Without any vote the first sample is chosen, with 0 votes. Gold plays no part.

    The idea of voting is Wang et al. 2023, "Self-Consistency Improves Chain of Thought Reasoning
    in Language Models", with results in place of answers as in Shi et al. 2022, "Natural Language
    to Code Translation with Execution".

    Args:
        samples: SQL, in the order of sampling.
        engine: executes them; `IsolatedEngine` where a query may have to be killed.
        limits: limits of each query instead of the engine's.
        failing: texts that are known to fail, which are not run again.

    Raises:
        InputError: no samples.
        DatabaseError: the database cannot be read.

    Example:
        >>> import sqlite3, tempfile, pathlib
        >>> from sense_trl.database.sqlite_engine import SQLiteEngine
        >>> file = pathlib.Path(tempfile.mkdtemp()) / "pets.sqlite"
        >>> connection = sqlite3.connect(file)
        >>> _ = connection.execute("CREATE TABLE pet AS SELECT 'Rex' AS name, 3 AS age")
        >>> connection.close()
        >>> samples = ["SELECT age FROM pet", "SELECT nme FROM pet", "SELECT name FROM pet",
        ...            "SELECT name FROM pet WHERE age = 3"]
        >>> with SQLiteEngine(file) as engine:
        ...     vote = vote_by_execution(samples, engine)
        >>> vote.sql, vote.num_votes, vote.share
        ('SELECT name FROM pet', 2, 0.5)
    """
    if not samples:
        raise InputError("`samples` is empty; there is nothing to vote for.")
    limits = engine.limits if limits is None else limits
    results = _Results(engine, limits)
    # Per result the samples that vote for it; dictionaries keep the order of first occurrence.
    voters: dict[int, list[int]] = {}
    chosen_by: dict[str, int | None] = {}
    for index, sql in enumerate(samples):
        if sql not in chosen_by:
            has_vote = sql not in failing and not is_volatile(sql, engine.dialect)
            chosen_by[sql] = results.find(sql) if has_vote else None
        group = chosen_by[sql]
        if group is not None:
            voters.setdefault(group, []).append(index)
    if not voters:
        return ExecutionVote(0, samples[0], 0, len(samples))
    group, winners = max(voters.items(), key=lambda item: len(item[1]))
    first = winners[0]
    return ExecutionVote(first, samples[first], len(winners), len(samples), results.get(group))


@dataclass(frozen=True, slots=True)
class _Outcome:
    """A result, as far as it is kept.

    Attributes:
        shape: numbers of rows and columns; (0, 0) without rows.
        exact: fingerprints of the columns, the same for equal results; others differ unless their
            columns hold the same values in other rows. `None` where numbers may be equal within a
            tolerance.
        result: `None` if it is not held.
    """

    shape: tuple[int, int]
    exact: Hashable
    result: QueryResult | None

    def agrees(self, other: _Outcome, dialect: str) -> bool:
        """Whether the two are one result; those of which nothing certain is known are not."""
        if self.shape != other.shape:
            return False
        is_exact = self.exact is not None and other.exact is not None
        if is_exact and self.exact != other.exact:
            return False
        left, right = self.result, other.result
        if left is None or right is None or not left.rows:
            return is_exact
        # No text of gold: there is none that could ask for an order.
        comparison = results_match(left, right, semantics="strict", gold_sql="", dialect=dialect)
        return comparison.verdict is Verdict.CORRECT


class _Results:
    """The distinct results of one question's samples, by number."""

    def __init__(self, engine: SQLEngine, limits: ExecutionLimits) -> None:
        self._engine = engine
        self._limits = limits
        self._known: list[_Outcome] = []
        self._num_values = 0

    def find(self, sql: str) -> int | None:
        """Run a text; the number of its result, `None` if it does not run to its end."""
        outcome = self._run(sql)
        if outcome is None:
            return None
        for number, other in enumerate(self._known):
            if outcome.agrees(other, self._engine.dialect):
                return number
        num_values = outcome.shape[0] * outcome.shape[1]
        if self._num_values + num_values > _MAX_HELD_VALUES:
            outcome = replace(outcome, result=None)
        else:
            self._num_values += num_values
        self._known.append(outcome)
        return len(self._known) - 1

    def get(self, number: int) -> QueryResult | None:
        """A result, if it is held."""
        return self._known[number].result

    def _run(self, sql: str) -> _Outcome | None:
        result = self._engine.execute(sql, limits=self._limits)
        if result.ok:
            shape = (len(result.rows), len(result.rows[0])) if result.rows else (0, 0)
            return _Outcome(shape, _get_fingerprint(result.rows), result)
        is_large = result.exceeded in (LimitKind.ROWS, LimitKind.RESULT_BYTES)
        if not is_large or not isinstance(self._engine, DigestingEngine):
            return None
        unbounded = replace(self._limits, max_rows=MAX_DIGESTED_ROWS)
        _, digest = self._engine.execute_digest(sql, limits=unbounded)
        if digest is None:
            return None
        return _Outcome(
            (digest.num_rows, digest.num_columns), tuple(sorted(digest.column_bags)), None
        )


def _get_fingerprint(rows: Sequence[tuple[object, ...]]) -> Hashable:
    """Of each column which values it has, in any order; `None` where equality has a tolerance."""
    sums = []
    for column in zip(*rows, strict=True):
        values = [canonical_value(value) for value in column]
        # What is kept as a tuple may hold such numbers.
        if any(type(v) is tuple or (isinstance(v, float) and is_inexact(v)) for v in values):
            return None
        # The hash of a number is the number, and sums of these say little.
        sums.append(sum(hash((value,)) for value in values))
    return tuple(sorted(sums))
