"""`PairAccount`: what became of every question and candidate that is not in the dataset."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field, fields
from enum import StrEnum
from typing import Any


class DropReason(StrEnum):
    """The reason why a question gave no pair, or a candidate took no part."""

    GOLD_UNDETERMINED = "gold_undetermined"
    NO_CORRECT = "no_correct_candidate"
    NO_ERRONEOUS = "no_erroneous_candidate"
    CANDIDATE_UNDETERMINED = "candidate_undetermined"
    CANDIDATE_UNFINISHED = "candidate_unfinished"
    CANDIDATE_EMPTY = "candidate_empty"
    CANDIDATE_NOT_UNICODE = "candidate_not_unicode"
    """It holds half of a surrogate pair, which no file can hold."""
    CANDIDATE_TEXT_DIFFERS = "candidate_text_differs"
    """Whole answers are trained on, and the SQL that was verified is not the answer's."""
    CANDIDATE_DUPLICATE = "candidate_duplicate"
    CANDIDATE_SAME_FORM = "candidate_same_form"
    """Another one of its side has the same normal form."""
    CANDIDATE_SAME_RESULT = "candidate_same_result"
    """Another erroneous one returns the same rows."""
    CANDIDATE_SAME_AS_GOLD = "candidate_same_as_gold"
    CANDIDATE_RETURNS_ROWS = "candidate_returns_rows"
    """With `repair`: nothing that the database says tells that it is wrong."""
    CANDIDATE_REFUTED = "candidate_refuted_by_suite"
    """It is right on the database, and wrong or unknown on another instance of it."""


@dataclass(slots=True)
class PairAccount:
    """Counts of questions and candidates.

    Attributes:
        num_questions: questions given.
        num_candidates: candidates given, gold and mutants not counted.
        verdicts: candidates by verdict.
        mutant_verdicts: mutants by verdict.
        dropped_questions: questions without a pair, by `DropReason`.
        dropped_candidates: candidates that took no part, by `DropReason`.
        gold_problems: question id to the reason its gold query is no label.
    """

    num_questions: int = 0
    num_candidates: int = 0
    verdicts: Counter[str] = field(default_factory=Counter)
    mutant_verdicts: Counter[str] = field(default_factory=Counter)
    dropped_questions: Counter[str] = field(default_factory=Counter)
    dropped_candidates: Counter[str] = field(default_factory=Counter)
    gold_problems: dict[str, str] = field(default_factory=dict)

    def add(self, other: PairAccount) -> None:
        """Add the counts of other questions."""
        self.num_questions += other.num_questions
        self.num_candidates += other.num_candidates
        self.verdicts.update(other.verdicts)
        self.mutant_verdicts.update(other.mutant_verdicts)
        self.dropped_questions.update(other.dropped_questions)
        self.dropped_candidates.update(other.dropped_candidates)
        self.gold_problems.update(other.gold_problems)

    def as_json(self) -> dict[str, Any]:
        """The counts as plain JSON data, reasons in alphabetical order."""
        values = {f.name: getattr(self, f.name) for f in fields(PairAccount)}
        return {
            name: dict(sorted(value.items())) if isinstance(value, dict) else value
            for name, value in values.items()
        }

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> PairAccount:
        """The inverse of `as_json`."""
        account = cls(**data)
        for name in ("verdicts", "mutant_verdicts", "dropped_questions", "dropped_candidates"):
            setattr(account, name, Counter(getattr(account, name)))
        return account
