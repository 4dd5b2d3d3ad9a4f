"""Several samples per question: pass@k, and the vote of their execution results.

Neither is comparable with the accuracy of greedy decoding, which asks for one answer: pass@k lets
gold choose among k, and a vote costs n times the generation. Report them under their own names.
"""

from __future__ import annotations

import math
from collections.abc import Container, Sequence
from dataclasses import dataclass

from sense_trl.database.engine import ExecutionLimits, QueryResult, SQLEngine
from sense_trl.errors import InputError
from sense_trl.sql.volatility import is_volatile
from sense_trl.verification.comparison import Verdict, results_match


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
    """

    index: int
    sql: str
    num_votes: int
    num_samples: int

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
    are ordered does not count, and all empty results are one. Samples that do not run to their
    end within the limits, and those that call `random` or read the clock, have no vote. The
    earliest sample with the result that has most votes is chosen; between results with equally
    many, the one that was written first. Without any vote the first sample is chosen, with 0
    votes. Gold plays no part.

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
    results: list[QueryResult] = []
    # Per result the samples that vote for it; dictionaries keep the order of first occurrence.
    voters: dict[int, list[int]] = {}
    chosen_by: dict[str, int | None] = {}
    for index, sql in enumerate(samples):
        if sql not in chosen_by:
            chosen_by[sql] = None
            if sql not in failing and not is_volatile(sql, engine.dialect):
                result = engine.execute(sql, limits=limits)
                if result.ok:
                    chosen_by[sql] = _find(result, results, engine.dialect)
        group = chosen_by[sql]
        if group is not None:
            voters.setdefault(group, []).append(index)
    if not voters:
        return ExecutionVote(0, samples[0], 0, len(samples))
    winners = max(voters.values(), key=len)
    return ExecutionVote(winners[0], samples[winners[0]], len(winners), len(samples))


def _find(result: QueryResult, known: list[QueryResult], dialect: str) -> int:
    """Position of an equal result in `known`, where it is added if there is none."""
    for number, other in enumerate(known):
        if _agree(result, other, dialect):
            return number
    known.append(result)
    return len(known) - 1


def _agree(left: QueryResult, right: QueryResult, dialect: str) -> bool:
    if not left.rows or not right.rows:
        return not left.rows and not right.rows
    # No text of gold: there is none that could ask for an order.
    comparison = results_match(left, right, semantics="strict", gold_sql="", dialect=dialect)
    return comparison.verdict is Verdict.CORRECT
