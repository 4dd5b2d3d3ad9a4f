"""`evaluate_sql`: predictions against gold, question by question."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from sense_trl._files import write_text_atomically
from sense_trl.errors import InputError
from sense_trl.evaluation.metrics import Interval, accuracy_interval, execution_accuracy
from sense_trl.questions import Question
from sense_trl.verification.verifier import SQLVerifier, Verdict, VerificationRequest


@dataclass(frozen=True, slots=True)
class EvaluationRecord:
    """One question, its prediction and the verdict.

    What was not measured is `None` (or empty).

    Attributes:
        level: difficulty as the questions file gives it.
        verdict: correct, wrong or undetermined, under `strict`.
        reason: why, one of `sense_trl.verification.Reason`.
        error: the engine's message where there is one.
        spider: verdict as Spider's official script gives it.
        bird: verdict as BIRD's official script gives it.
        suite: verdict over the original database and further instances of it.
        refuted_by: the instance that refutes what the original database accepts.
        hardness: Spider's easy, medium, hard or extra.
        exact_match: Spider's exact-set match.
        soft_f1: BIRD's Soft-F1 in [0, 1], rows aligned by position.
        soft_f1_unordered: Soft-F1 in [0, 1] whatever the order of rows.
        time_ratio: gold's time divided by the prediction's; only for correct predictions.
        error_classes: how the query differs from gold, from `sense_trl.sql.taxonomy`; only for
            predictions that are not correct.
    """

    question_id: str
    db_id: str
    level: str | None
    question: str
    gold_sql: str
    predicted_sql: str
    verdict: Verdict
    reason: str
    error: str | None
    spider: Verdict | None = None
    bird: Verdict | None = None
    suite: Verdict | None = None
    refuted_by: str | None = None
    hardness: str | None = None
    exact_match: bool | None = None
    soft_f1: float | None = None
    soft_f1_unordered: float | None = None
    time_ratio: float | None = None
    error_classes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class EvaluationReport:
    """An evaluated run: the records and the numbers that follow from them.

    Attributes:
        name: label of the run.
        records: one per question, in the order of the questions.
    """

    name: str
    records: tuple[EvaluationRecord, ...]

    @property
    def verdicts(self) -> tuple[Verdict, ...]:
        """Verdicts in the order of the questions."""
        return tuple(record.verdict for record in self.records)

    @property
    def correct(self) -> tuple[bool, ...]:
        """Whether each prediction is correct."""
        return tuple(verdict is Verdict.CORRECT for verdict in self.verdicts)

    @property
    def execution_accuracy(self) -> float:
        """Share of correct predictions in [0, 1]; undetermined ones are not correct."""
        return execution_accuracy(self.verdicts)

    @property
    def interval(self) -> Interval:
        """95 % interval (Wilson) of the execution accuracy."""
        return accuracy_interval(self.correct)

    def count(self, verdict: Verdict) -> int:
        """Number of predictions with this verdict."""
        return sum(v is verdict for v in self.verdicts)

    @property
    def reasons(self) -> dict[str, int]:
        """Predictions by `verdict: reason`, most frequent first."""
        counts = Counter(f"{r.verdict}: {r.reason}" for r in self.records)
        return dict(counts.most_common())

    def by_level(self) -> dict[str, tuple[int, int]]:
        """(correct, all) per difficulty level, in order of first appearance."""
        table: dict[str, tuple[int, int]] = {}
        for record, correct in zip(self.records, self.correct, strict=True):
            done, total = table.get(record.level or "unspecified", (0, 0))
            table[record.level or "unspecified"] = (done + correct, total + 1)
        return table

    def summary(self) -> dict[str, Any]:
        """The numbers as plain JSON data."""
        return {
            "name": self.name,
            "num_questions": len(self.records),
            "execution_accuracy": self.execution_accuracy,
            "interval_95": [self.interval.low, self.interval.high],
            **{str(verdict): self.count(verdict) for verdict in Verdict},
            "reasons": self.reasons,
            "by_level": {level: list(counts) for level, counts in self.by_level().items()},
        }

    def save(self, path: str | Path) -> None:
        """Write summary and records as JSON."""
        data = {"summary": self.summary(), "records": [asdict(record) for record in self.records]}
        write_text_atomically(path, json.dumps(data, indent=1))

    @classmethod
    def load(cls, path: str | Path) -> EvaluationReport:
        """Read what `save` wrote.

        Raises:
            InputError: the file is missing or holds something else.
        """
        try:
            data = json.loads(Path(path).read_text(encoding="utf-8"))
            records = [_read_record(record) for record in data["records"]]
            return cls(data["summary"]["name"], tuple(records))
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise InputError(
                f"{str(path)!r} is no readable evaluation ({type(error).__name__}: {error}). "
                "Expected a file that EvaluationReport.save wrote; delete it to evaluate again."
            ) from error


_VERDICT_FIELDS = ("verdict", "spider", "bird", "suite")


def _read_record(data: dict[str, Any]) -> EvaluationRecord:
    verdicts = {
        name: None if data.get(name) is None else Verdict(data[name]) for name in _VERDICT_FIELDS
    }
    classes = tuple(data.get("error_classes", ()))
    return EvaluationRecord(**{**data, **verdicts, "error_classes": classes})


def evaluate_sql(
    questions: Sequence[Question],
    predictions: Mapping[str, str],
    verifier: SQLVerifier,
    *,
    name: str = "predictions",
    on_progress: Callable[[int], None] | None = None,
) -> EvaluationReport:
    """Execute predictions and compare them with gold.

    Args:
        questions: the questions to score.
        predictions: question id to SQL; every question needs one (the empty string is an answer,
            and a wrong one).
        verifier: executes and compares; its semantics are the report's.
        name: label of the run.
        on_progress: called with the number of predictions verified since the last call.

    Raises:
        InputError: no questions, a question without a prediction, or one that is no string.
    """
    if not questions:
        raise InputError("`questions` is empty; there is nothing to evaluate.")
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
    requests = [
        VerificationRequest(q.db_id, predictions[q.question_id], q.gold_sql) for q in questions
    ]
    verifications = verifier.verify(requests, on_progress=on_progress)
    return EvaluationReport(
        name,
        tuple(
            EvaluationRecord(
                question_id=question.question_id,
                db_id=question.db_id,
                level=question.level,
                question=question.question,
                gold_sql=question.gold_sql,
                predicted_sql=predictions[question.question_id],
                verdict=verification.verdict,
                reason=str(verification.reason),
                error=verification.error,
            )
            for question, verification in zip(questions, verifications, strict=True)
        ),
    )
