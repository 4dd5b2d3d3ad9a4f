"""`evaluate_sql`: predictions against gold, question by question."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Final

from sense_trl._files import write_text_atomically
from sense_trl.database.engine import QueryStatus
from sense_trl.errors import InputError
from sense_trl.evaluation.efficiency import PairTiming, get_r_ves_reward, measure_efficiency
from sense_trl.evaluation.hardness import Hardness
from sense_trl.evaluation.measures import (
    SoftScores,
    get_error_classes,
    get_spider_measures,
    measure_soft_f1,
)
from sense_trl.evaluation.metrics import (
    GroupAccuracy,
    Interval,
    Score,
    accuracy_interval,
    bootstrap_interval,
    execution_accuracy,
)
from sense_trl.questions import Question
from sense_trl.schema import DatabaseSchema
from sense_trl.verification.suite import SuiteVerification, SuiteVerifier
from sense_trl.verification.verifier import (
    Reason,
    SQLVerifier,
    Verdict,
    Verification,
    VerificationRequest,
)


@dataclass(frozen=True, slots=True)
class EvaluationRecord:
    """One question, its prediction and the verdict.

    What was not measured is `None` (or empty).

    Attributes:
        level: difficulty as the questions file gives it.
        verdict: correct, wrong or undetermined, under `strict`.
        reason: why, one of `sense_trl.verification.Reason`.
        error: the engine's message where there is one.
        executes: whether the prediction runs to its end as it is written; `None` where a limit
            stopped it, or gold fails and it was not run.
        spider: verdict as Spider's official script gives it.
        bird: verdict as BIRD's official script gives it.
        suite: verdict over the original database and further instances of it.
        refuted_by: the instance that refutes what the original database accepts.
        hardness: Spider's easy, medium, hard or extra.
        exact_match: Spider's exact-set match.
        soft_f1: BIRD's Soft-F1 in [0, 1], rows aligned by position.
        soft_f1_unordered: Soft-F1 in [0, 1] whatever the order of rows.
        time_ratio: gold's time divided by the prediction's; only for those correct under `bird`.
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
    executes: bool | None = None
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
        notes: by the name of a score, a sentence on how it was measured.
    """

    name: str
    records: tuple[EvaluationRecord, ...]
    notes: Mapping[str, str] = field(default_factory=dict, hash=False)

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

    @property
    def scores(self) -> tuple[Score, ...]:
        """What was measured, in the order of reports.

        Shares have Wilson's interval, means over questions that of the bootstrap (seed 0).
        """
        records = self.records
        shares: list[tuple[str, str, Sequence[bool | None]]] = [
            ("strict", "Execution accuracy (strict)", self.correct),
            ("spider", "Execution accuracy (Spider)", _are_correct(r.spider for r in records)),
            ("bird", "Execution accuracy (BIRD)", _are_correct(r.bird for r in records)),
            ("suite", "Suite accuracy", _are_correct(r.suite for r in records)),
            ("exact_match", "Exact-set match", [r.exact_match for r in records]),
        ]
        means: list[tuple[str, str, Sequence[float | None]]] = [
            ("soft_f1", "Soft-F1 (BIRD)", [r.soft_f1 for r in records]),
            (
                "soft_f1_unordered",
                "Soft-F1 (any order of rows)",
                [r.soft_f1_unordered for r in records],
            ),
            *self._efficiency_values(),
        ]
        rest: list[tuple[str, str, Sequence[bool | None]]] = [
            ("validity", "Predictions that execute", [r.executes for r in records]),
            ("undetermined", "Undetermined", [v is Verdict.UNDETERMINED for v in self.verdicts]),
        ]
        found = [self._share(*share) for share in shares]
        found += [self._mean(*mean) for mean in means]
        found += [self._share(*share) for share in rest]
        return tuple(score for score in found if score is not None)

    def get_score(self, name: str) -> Score | None:
        """The score called `name`, `None` if it was not measured."""
        return next((score for score in self.scores if score.name == name), None)

    def by_level(self) -> dict[str, GroupAccuracy]:
        """Accuracy per difficulty level of the questions file, in order of first appearance."""
        return self._by(record.level or _NO_GROUP for record in self.records)

    def by_hardness(self) -> dict[str, GroupAccuracy]:
        """Accuracy per level of Spider, from easy to extra; empty if none was measured.

        Questions whose gold Spider's parser cannot read are `unspecified`, and come last.
        """
        table = self._by(record.hardness or _NO_GROUP for record in self.records)
        if table.keys() == {_NO_GROUP}:
            return {}
        return {level: table[level] for level in (*map(str, Hardness), _NO_GROUP) if level in table}

    def by_db_id(self) -> dict[str, GroupAccuracy]:
        """Accuracy per database, in the order of their names."""
        return dict(sorted(self._by(record.db_id for record in self.records).items()))

    def by_error_class(self) -> dict[str, int]:
        """Predictions that are not correct by error class, most frequent first.

        A prediction may have several classes, or none.
        """
        counts = Counter(name for record in self.records for name in record.error_classes)
        return dict(counts.most_common())

    def summary(self) -> dict[str, Any]:
        """The numbers as plain JSON data; each group is [correct, questions]."""
        return {
            "name": self.name,
            "num_questions": len(self.records),
            "execution_accuracy": self.execution_accuracy,
            "interval_95": [self.interval.low, self.interval.high],
            **{str(verdict): self.count(verdict) for verdict in Verdict},
            "scores": {
                score.name: {
                    "label": score.label,
                    "value": score.value,
                    "interval_95": [score.interval.low, score.interval.high],
                    "num_questions": score.num_questions,
                    "note": score.note,
                }
                for score in self.scores
            },
            "reasons": self.reasons,
            "error_classes": self.by_error_class(),
            "by_level": _as_lists(self.by_level()),
            "by_hardness": _as_lists(self.by_hardness()),
            "by_db_id": _as_lists(self.by_db_id()),
        }

    def _by(self, groups: Iterable[str]) -> dict[str, GroupAccuracy]:
        counts: dict[str, tuple[int, int]] = {}
        for group, correct in zip(groups, self.correct, strict=True):
            done, total = counts.get(group, (0, 0))
            counts[group] = (done + correct, total + 1)
        return {group: GroupAccuracy(*pair) for group, pair in counts.items()}

    def _share(self, name: str, label: str, outcomes: Sequence[bool | None]) -> Score | None:
        known = [outcome for outcome in outcomes if outcome is not None]
        if not known:
            return None
        share, interval = sum(known) / len(known), accuracy_interval(known)
        return Score(name, label, share, interval, len(known), self._note(name, len(known)))

    def _mean(self, name: str, label: str, values: Sequence[float | None]) -> Score | None:
        known = [value for value in values if value is not None]
        if not known:
            return None
        mean, interval = math.fsum(known) / len(known), bootstrap_interval(known)
        return Score(name, label, mean, interval, len(known), self._note(name, len(known)))

    def _efficiency_values(self) -> list[tuple[str, str, Sequence[float]]]:
        ratios = [record.time_ratio for record in self.records]
        if not any(ratios):
            return []
        rewards = [None if ratio is None else get_r_ves_reward(ratio) for ratio in ratios]
        # What is not correct, or could not be timed, scores 0.
        return [
            ("ves", "VES", [math.sqrt(ratio or 0.0) for ratio in ratios]),
            ("r_ves", "R-VES", [math.sqrt(reward or 0.0) for reward in rewards]),
        ]

    def _note(self, name: str, num_known: int) -> str:
        sentences = []
        num_left_out = len(self.records) - num_known
        if num_left_out and name in _LEFT_OUT:
            sentences.append(f"{num_left_out} left out: {_LEFT_OUT[name]}.")
        if name == "suite":
            refuted = sum(record.refuted_by is not None for record in self.records)
            sentences.append(f"Refuted by another instance of the database: {refuted}.")
        if name in self.notes:
            sentences.append(self.notes[name])
        return " ".join(sentences)

    def save(self, path: str | Path) -> None:
        """Write summary and records as JSON."""
        data = {
            "summary": self.summary(),
            "notes": dict(self.notes),
            "records": [asdict(record) for record in self.records],
        }
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
            return cls(data["summary"]["name"], tuple(records), dict(data.get("notes", {})))
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise InputError(
                f"{str(path)!r} is no readable evaluation ({type(error).__name__}: {error}). "
                "Expected a file that EvaluationReport.save wrote; delete it to evaluate again."
            ) from error


_NO_GROUP: Final = "unspecified"
# Why a question may be without a score.
_LEFT_OUT: Final = {
    "exact_match": "Spider's parser cannot read their gold query",
    "soft_f1": "gold does not run to its end",
    "soft_f1_unordered": "gold does not run to its end",
    "validity": "stopped by a limit, or not run because gold fails",
}


def _are_correct(verdicts: Iterable[Verdict | None]) -> list[bool | None]:
    return [None if verdict is None else verdict is Verdict.CORRECT for verdict in verdicts]


def _as_lists(table: Mapping[str, GroupAccuracy]) -> dict[str, list[int]]:
    return {group: list(counts) for group, counts in table.items()}


_VERDICT_FIELDS: Final = ("verdict", "spider", "bird", "suite")


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
    spider_predictions: Mapping[str, str] | None = None,
    schemas: Mapping[str, DatabaseSchema] | None = None,
    suite_verifier: SuiteVerifier | None = None,
    soft_f1: bool = False,
    efficiency_repetitions: int | None = None,
) -> EvaluationReport:
    """Execute predictions, compare them with gold, and say how those that are not correct differ.

    Always measured are execution accuracy under all three semantics (each distinct text is run
    once for all of them), whether predictions execute, exact-set match and hardness as Spider
    defines them, and the error classes of predictions that are not correct.

    Args:
        questions: the questions to score.
        predictions: question id to SQL; every question needs one (the empty string is an answer,
            and a wrong one).
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

    Raises:
        InputError: no questions, a question without a prediction, one that is no string,
            `schemas` without a database, or `efficiency_repetitions` below 2.
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
    _check(questions, predictions)
    if efficiency_repetitions is not None and efficiency_repetitions < 2:
        raise InputError(
            f"`efficiency_repetitions` is {efficiency_repetitions}; expected at least 2, e.g. 100."
        )
    catalog = verifier._catalog
    requests, spider_requests = (
        [VerificationRequest(q.db_id, texts[q.question_id], q.gold_sql) for q in questions]
        for texts in (predictions, {**predictions, **(spider_predictions or {})})
    )
    num_parts = 3 + (suite_verifier is not None) + soft_f1 + (efficiency_repetitions is not None)
    advance = _count_whole(num_parts, on_progress)
    verifications = verifier.verify(
        [
            *(replace(request, semantics="strict") for request in requests),
            *(replace(request, semantics="spider") for request in spider_requests),
            *(replace(request, semantics="bird") for request in requests),
        ],
        on_progress=advance,
    )
    count = len(requests)
    strict, spider, bird = (verifications[i * count : (i + 1) * count] for i in range(3))
    correct = [verification.verdict is Verdict.CORRECT for verification in strict]
    executes = [_executes(verification) for verification in bird]
    clauses = get_spider_measures(spider_requests, catalog, schemas)
    classes = get_error_classes(requests, correct, catalog)
    notes = {} if schemas is not None else {"exact_match": _KEYS_NOTE}
    suites: Sequence[SuiteVerification | None] = [None] * count
    if suite_verifier is not None:
        suites = suite_verifier.verify(requests, on_progress=advance)
    soft_scores: Sequence[SoftScores | None] = [None] * count
    if soft_f1:
        soft_scores = measure_soft_f1(requests, executes, catalog, on_progress=advance)
    timings: Sequence[PairTiming | None] = [None] * count
    if efficiency_repetitions is not None:
        efficiency = measure_efficiency(
            requests,
            [verification.verdict is Verdict.CORRECT for verification in bird],
            catalog,
            repetitions=efficiency_repetitions,
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
                hardness=clauses[i].hardness,
                exact_match=clauses[i].exact_match,
                soft_f1=None if (soft := soft_scores[i]) is None else soft.bird,
                soft_f1_unordered=None if soft is None else soft.unordered,
                time_ratio=None if (timing := timings[i]) is None else timing.ratio,
                error_classes=classes[i],
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


def _check(questions: Sequence[Question], predictions: Mapping[str, str]) -> None:
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
