"""`EvaluationReport`: the records of an evaluated run, and the numbers that follow from them."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Final

from sense_trl._files import write_text_atomically
from sense_trl.errors import InputError
from sense_trl.evaluation.efficiency import get_r_ves_reward
from sense_trl.evaluation.hardness import Hardness
from sense_trl.evaluation.metrics import (
    GroupAccuracy,
    Interval,
    Score,
    accuracy_interval,
    bootstrap_interval,
    execution_accuracy,
)
from sense_trl.verification.verifier import Verdict


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
        num_confirming: of these instances, those on which it answered as gold.
        hardness: Spider's easy, medium, hard or extra.
        exact_match: Spider's exact-set match.
        soft_f1: BIRD's Soft-F1 in [0, 1], rows aligned by position.
        soft_f1_unordered: Soft-F1 in [0, 1] whatever the order of rows.
        time_ratio: gold's time divided by the prediction's; only for those correct under `bird`.
        error_classes: how the query differs from gold, from `sense_trl.sql.taxonomy`; only for
            predictions that are not correct.
        sample_verdicts: verdicts of several sampled answers, under `strict`.
        num_votes: where these chose the prediction, how many have its result.
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
    num_confirming: int | None = None
    hardness: str | None = None
    exact_match: bool | None = None
    soft_f1: float | None = None
    soft_f1_unordered: float | None = None
    time_ratio: float | None = None
    error_classes: tuple[str, ...] = ()
    sample_verdicts: tuple[Verdict, ...] = ()
    num_votes: int | None = None


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
        """For each prediction, whether it is correct."""
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
        """The scores that were measured, in the order of reports.

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
            *self._sample_values(),
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

    def _sample_values(self) -> list[tuple[str, str, Sequence[float]]]:
        samples = [record.sample_verdicts for record in self.records]
        number = min(map(len, samples), default=0)
        if number == 0:
            return []
        return [
            (
                "sample_mean",
                f"Mean of {number} samples (strict)",
                [v.count(Verdict.CORRECT) / len(v) for v in samples],
            ),
            (
                "sample_pass",
                f"pass@{number} (strict)",
                [float(Verdict.CORRECT in verdicts) for verdicts in samples],
            ),
        ]

    def _note(self, name: str, num_known: int) -> str:
        sentences = []
        num_left_out = len(self.records) - num_known
        if num_left_out and name in _LEFT_OUT:
            sentences.append(f"{num_left_out} left out: {_LEFT_OUT[name]}.")
        if name == "suite":
            refuted = [record for record in self.records if record.refuted_by is not None]
            num_correct = sum(record.verdict is Verdict.CORRECT for record in refuted)
            sentences.append(
                f"{len(refuted)} refuted by another instance of the database, {num_correct} of "
                "them correct (strict) on the original."
                if refuted
                else "None refuted by another instance of the database."
            )
            correct = [record for record in self.records if record.suite is Verdict.CORRECT]
            if unconfirmed := sum(record.num_confirming == 0 for record in correct):
                sentences.append(
                    f"{unconfirmed} of the {len(correct)} correct ones met no other instance that "
                    "can tell right from wrong."
                )
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
            data = json.loads(Path(path).read_bytes())
            records = [_read_record(record) for record in data["records"]]
            return cls(data["summary"]["name"], tuple(records), dict(data.get("notes", {})))
        except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
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
    lists = {
        "error_classes": tuple(data.get("error_classes", ())),
        "sample_verdicts": tuple(map(Verdict, data.get("sample_verdicts", ()))),
    }
    return EvaluationRecord(**{**data, **verdicts, **lists})
