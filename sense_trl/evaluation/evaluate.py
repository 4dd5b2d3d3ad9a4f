"""`evaluate_sql`: predictions against gold, question by question."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Final

from sense_trl.database.engine import QueryStatus
from sense_trl.errors import InputError
from sense_trl.evaluation.efficiency import PairTiming, measure_efficiency
from sense_trl.evaluation.measures import (
    SoftScores,
    check_schemas,
    get_error_classes,
    get_spider_measures,
    measure_soft_f1,
)
from sense_trl.evaluation.records import EvaluationRecord, EvaluationReport
from sense_trl.evaluation.samples import ExecutionVote, vote_by_execution
from sense_trl.questions import Question
from sense_trl.schema import DatabaseSchema
from sense_trl.verification.judging import get_step_budget
from sense_trl.verification.suite.verifier import SuiteVerification, SuiteVerifier
from sense_trl.verification.verifier import (
    Reason,
    SQLVerifier,
    Verdict,
    Verification,
    VerificationRequest,
)

__all__ = ["EvaluationRecord", "EvaluationReport", "evaluate_sql"]


def evaluate_sql(
    questions: Sequence[Question],
    predictions: Mapping[str, str] | None,
    verifier: SQLVerifier,
    *,
    name: str = "predictions",
    on_progress: Callable[[int], None] | None = None,
    spider_predictions: Mapping[str, str] | None = None,
    schemas: Mapping[str, DatabaseSchema] | None = None,
    suite_verifier: SuiteVerifier | None = None,
    soft_f1: bool = False,
    efficiency_repetitions: int | None = None,
    samples: Mapping[str, Sequence[str]] | None = None,
) -> EvaluationReport:
    """Execute predictions, compare them with gold, and say how those that are not correct differ.

    Always measured are execution accuracy under all three semantics (each distinct text is run
    once for all of them), whether predictions execute, exact-set match and hardness as Spider
    defines them, and the error classes of predictions that are not correct.

    Args:
        questions: the questions to score.
        predictions: question id to SQL; every question needs one (the empty string is an answer,
            and a wrong one). None takes of each question's `samples` the one whose result most of
            them have, as `vote_by_execution` says.
        verifier: executes and compares. The report has all semantics, whatever its own.
        name: label of the run.
        on_progress: called with the number of predictions finished since the last call, over all
            that is measured.
        spider_predictions: what Spider's script would read, where that is another text (it cuts a
            line at its first tab); for the `spider` verdict and exact-set match.
        schemas: schemas by `db_id` for exact-set match and hardness, from `load_spider_schemas`;
            without them they are read from the databases, many of which declare no foreign keys.
        suite_verifier: verifies on further instances of the databases, too.
        soft_f1: whether to measure Soft-F1, which takes every row of gold and prediction.
        efficiency_repetitions: rounds for VES and R-VES of the predictions that are correct under
            `bird`; `None` does not measure them.
        samples: question id to several answers that were sampled, as many for each question: the
            report has the mean of their verdicts under `strict`, and pass@k.

    Raises:
        InputError: no questions, a question without a prediction, one that is no string,
            `schemas` without a database, `efficiency_repetitions` below 2, `samples` that lack
            some, or neither predictions nor samples.
        DatabaseError: a database cannot be read.

    Example:
        >>> import sqlite3, tempfile, pathlib
        >>> from sense_trl.database import DatabaseCatalog
        >>> folder = pathlib.Path(tempfile.mkdtemp())
        >>> connection = sqlite3.connect(folder / "pets.sqlite")
        >>> _ = connection.execute("CREATE TABLE pet AS SELECT 'Rex' AS name, 3 AS age")
        >>> connection.close()
        >>> questions = [Question("q1", "pets", "How old is Rex?", "SELECT age FROM pet")]
        >>> with DatabaseCatalog.from_path(folder) as catalog, SQLVerifier(catalog) as verifier:
        ...     report = evaluate_sql(questions, {"q1": "SELECT name FROM pet"}, verifier)
        >>> [(score.name, score.value) for score in report.scores[:3]]
        [('strict', 0.0), ('spider', 0.0), ('bird', 0.0)]
        >>> report.by_error_class()
        {'wrong_column': 1}
    """
    check_answers(questions, predictions, samples)
    check_schemas((question.db_id for question in questions), schemas)
    if efficiency_repetitions is not None and efficiency_repetitions < 2:
        raise InputError(
            f"`efficiency_repetitions` is {efficiency_repetitions}; expected at least 2, e.g. 100."
        )
    catalog = verifier.catalog
    num_parts = 3 + (suite_verifier is not None) + soft_f1 + (efficiency_repetitions is not None)
    advance = _count_whole(num_parts + (predictions is None), on_progress)
    sampled = _verify_samples(verifier, questions, samples or {})
    votes: Mapping[str, ExecutionVote] = {}
    if predictions is None:
        votes = _vote(questions, samples or {}, sampled, verifier, advance)
        predictions = {question_id: vote.sql for question_id, vote in votes.items()}
    requests, spider_requests = (
        [VerificationRequest(q.db_id, texts[q.question_id], q.gold_sql) for q in questions]
        for texts in (predictions, {**predictions, **(spider_predictions or {})})
    )
    clauses = get_spider_measures(spider_requests, catalog, schemas)
    strict, spider, bird = _verify_under_all(verifier, requests, spider_requests, advance)
    executes = [_executes(verification) for verification in bird]
    classes = get_error_classes(requests, _are_correct(strict), catalog)
    count = len(requests)
    notes = {} if schemas is not None else {"exact_match": _KEYS_NOTE}
    suites: Sequence[SuiteVerification | None] = [None] * count
    if suite_verifier is not None:
        suites = suite_verifier.verify(requests, on_progress=advance)
    soft_scores: Sequence[SoftScores | None] = [None] * count
    if soft_f1:
        soft_scores = measure_soft_f1(
            requests, executes, catalog, limits=verifier.limits, on_progress=advance
        )
    timings: Sequence[PairTiming | None] = [None] * count
    if efficiency_repetitions is not None:
        efficiency = measure_efficiency(
            requests,
            _are_correct(bird),
            catalog,
            repetitions=efficiency_repetitions,
            limits=verifier.limits,
            on_progress=advance,
        )
        timings, notes["ves"] = efficiency.timings, efficiency.describe()
    return EvaluationReport(
        name,
        tuple(
            EvaluationRecord(
                question_id=question.question_id,
                db_id=question.db_id,
                level=question.level,
                question=question.question,
                gold_sql=question.gold_sql,
                predicted_sql=requests[i].predicted_sql,
                verdict=strict[i].verdict,
                reason=str(strict[i].reason),
                error=strict[i].error,
                executes=executes[i],
                spider=spider[i].verdict,
                bird=bird[i].verdict,
                suite=None if (suite := suites[i]) is None else suite.verdict,
                refuted_by=None if suite is None else suite.refuted_by,
                num_confirming=None if suite is None else suite.num_equal,
                hardness=clauses[i].hardness,
                exact_match=clauses[i].exact_match,
                soft_f1=None if (soft := soft_scores[i]) is None else soft.bird,
                soft_f1_unordered=None if soft is None else soft.unordered,
                time_ratio=None if (timing := timings[i]) is None else timing.ratio,
                error_classes=classes[i],
                sample_verdicts=tuple(verification.verdict for verification in sampled[i]),
                num_votes=votes[question.question_id].num_votes if votes else None,
            )
            for i, question in enumerate(questions)
        ),
        notes,
    )


_KEYS_NOTE: Final = (
    "By the foreign keys that the databases declare; official figures take those of tables.json."
)
_DOES_NOT_EXECUTE: Final = frozenset(
    {
        Reason.PREDICTION_SYNTAX_ERROR,
        Reason.PREDICTION_EXECUTION_ERROR,
        Reason.PREDICTION_DENIED,
    }
)

_HAS_NO_VOTE: Final = _DOES_NOT_EXECUTE | {Reason.PREDICTION_TIMEOUT}


def _verify_under_all(
    verifier: SQLVerifier,
    requests: Sequence[VerificationRequest],
    spider_requests: Sequence[VerificationRequest],
    on_progress: Callable[[int], None] | None,
) -> tuple[list[Verification], list[Verification], list[Verification]]:
    """Verifications under `strict`, `spider` and `bird`, from one pass over all texts."""
    found = verifier.verify(
        [
            *(replace(request, semantics="strict") for request in requests),
            *(replace(request, semantics="spider") for request in spider_requests),
            *(replace(request, semantics="bird") for request in requests),
        ],
        on_progress=on_progress,
    )
    count = len(requests)
    return found[:count], found[count : 2 * count], found[2 * count :]


def _verify_samples(
    verifier: SQLVerifier, questions: Sequence[Question], samples: Mapping[str, Sequence[str]]
) -> list[list[Verification]]:
    """The verifications of the samples of each question."""
    groups = [samples.get(question.question_id, ()) for question in questions]
    requests = [
        VerificationRequest(question.db_id, sql, question.gold_sql, "strict")
        for question, group in zip(questions, groups, strict=True)
        for sql in group
    ]
    found = iter(verifier.verify(requests))
    return [list(itertools.islice(found, len(group))) for group in groups]


def _vote(
    questions: Sequence[Question],
    samples: Mapping[str, Sequence[str]],
    verifications: Sequence[Sequence[Verification]],
    verifier: SQLVerifier,
    on_progress: Callable[[int], None] | None,
) -> dict[str, ExecutionVote]:
    """The vote of each question's samples, by its id, without the results.

    Those that were seen to fail do not run again, as far as gold had no part in it: what ran much
    longer than gold was stopped, and may have a vote.
    """
    # The budget of gold queries, so that slower machines count the same votes.
    limits = replace(verifier.limits, max_steps=get_step_budget(verifier.limits))
    votes = {}
    for question, seen in zip(questions, verifications, strict=True):
        group = samples[question.question_id]
        failing = {
            sql
            for sql, verification in zip(group, seen, strict=True)
            if verification.reason in _HAS_NO_VOTE
        }
        engine = verifier.catalog.engine(question.db_id)
        vote = vote_by_execution(group, engine, limits=limits, failing=failing)
        votes[question.question_id] = replace(vote, result=None)
        if on_progress is not None:
            on_progress(1)
    return votes


def _are_correct(verifications: Iterable[Verification]) -> list[bool]:
    return [verification.verdict is Verdict.CORRECT for verification in verifications]


def _executes(verification: Verification) -> bool | None:
    """From a verification under `bird`, which runs the text as it is and reads every row."""
    if verification.reason in _DOES_NOT_EXECUTE:
        return False
    return True if verification.predicted_status is QueryStatus.OK else None


def _count_whole(
    num_parts: int, on_progress: Callable[[int], None] | None
) -> Callable[[int], None] | None:
    """Turn the progress of parts of the work into that of predictions, each of `num_parts`."""
    if on_progress is None:
        return None
    num_done = 0

    def advance(count: int) -> None:
        nonlocal num_done
        before, num_done = num_done, num_done + count
        num_finished = num_done // num_parts - before // num_parts
        if num_finished:
            on_progress(num_finished)

    return advance


def _check_samples(questions: Sequence[Question], samples: Mapping[str, Sequence[str]]) -> None:
    for question_id, group in samples.items():
        if isinstance(group, str) or not all(isinstance(sql, str) for sql in group):
            raise InputError(
                f"`samples[{question_id!r}]` is {str(group)[:80]!r}; expected a list of SQL as "
                "strings. Write an empty string where the model has no answer."
            )
    numbers = {len(samples.get(question.question_id, ())) for question in questions}
    if numbers == {0} or len(numbers) > 1:
        raise InputError(
            f"`samples` holds {min(numbers)} to {max(numbers)} answers to a question; expected at "
            "least one, and as many for each. Sample all questions in the same way."
        )


def check_answers(
    questions: Sequence[Question],
    predictions: Mapping[str, str] | None,
    samples: Mapping[str, Sequence[str]] | None,
) -> None:
    """Refuse what `evaluate_sql` refuses of these arguments.

    Raises:
        InputError: see there.
    """
    if not questions:
        raise InputError("`questions` is empty; there is nothing to evaluate.")
    if samples is not None:
        _check_samples(questions, samples)
    if predictions is None:
        if samples is None:
            raise InputError(
                "`predictions` is None without `samples`; give one of them for every question."
            )
        return
    missing = [q.question_id for q in questions if q.question_id not in predictions]
    if missing:
        raise InputError(
            f"`predictions` lacks {len(missing)} of {len(questions)} questions, first "
            f"{missing[0]!r}. Predict every question; write an empty string where the model has "
            "no answer."
        )
    for question in questions:
        prediction = predictions[question.question_id]
        if not isinstance(prediction, str):
            raise InputError(
                f"`predictions[{question.question_id!r}]` is {prediction!r}; expected SQL as a "
                "string. Write an empty string where the model has no answer."
            )
