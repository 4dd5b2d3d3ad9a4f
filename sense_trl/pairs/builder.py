"""`build_preference_pairs`: candidates are executed, verdicts become pairs.

The rules that make a label defensible:

* gold is verified for itself first; a question whose gold fails, is empty or is not deterministic
  builds no pair;
* only a definite verdict labels: an undetermined candidate (time limit, result too large, ...) is
  neither chosen nor rejected;
* a pair is made of two different queries: each canonical query of a source takes part once;
* an answer the model did not end by itself is not an answer, and is not used.

Whatever is left out is counted by reason.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sense_trl._files import write_text_atomically
from sense_trl.errors import InputError
from sense_trl.pairs.candidates import Candidate
from sense_trl.pairs.policies import POLICIES, question_rng
from sense_trl.prompts import Messages
from sense_trl.questions import Question
from sense_trl.sql.parsing import SQLParseError, canonical_sql
from sense_trl.verification.verifier import (
    SQLVerifier,
    Verdict,
    Verification,
    VerificationRequest,
)

if TYPE_CHECKING:
    import datasets

SOURCES = ("gold", "strong", "weak")


class DropReason(StrEnum):
    """Why a question gave no pair, or a candidate took no part."""

    GOLD_UNDETERMINED = "gold_undetermined"
    NO_CORRECT = "no_correct_candidate"
    NO_ERRONEOUS = "no_erroneous_candidate"
    CANDIDATE_UNDETERMINED = "candidate_undetermined"
    CANDIDATE_UNFINISHED = "candidate_unfinished"
    CANDIDATE_EMPTY = "candidate_empty"
    CANDIDATE_DUPLICATE = "candidate_duplicate"
    CANDIDATE_SAME_AS_GOLD = "candidate_same_as_gold"


@dataclass(frozen=True, slots=True)
class PreferencePairConfig:
    """How pairs are chosen.

    Attributes:
        policy: name of a policy in `sense_trl.pairs.policies`.
        limit: pairs per question at most; 1 as in SENSE's release.
        chosen_sources: whose correct queries may be chosen. Gold is verified like any other.
        rejected_sources: whose erroneous queries may be rejected.
        seed: for the policy's draws.
    """

    policy: str = "grouped_any"
    limit: int = 1
    chosen_sources: tuple[str, ...] = ("gold",)
    rejected_sources: tuple[str, ...] = ("weak",)
    seed: int = 0

    def __post_init__(self) -> None:
        if self.policy not in POLICIES:
            raise InputError(f"`policy` is {self.policy!r}; expected one of {sorted(POLICIES)}.")
        if self.limit < 1:
            raise InputError(f"`limit` is {self.limit}; expected at least one pair per question.")
        for name in ("chosen_sources", "rejected_sources"):
            sources = getattr(self, name)
            if not sources or not set(sources) <= set(SOURCES):
                raise InputError(f"`{name}` is {sources!r}; expected some of {SOURCES}.")
        if "gold" in self.rejected_sources:
            raise InputError(
                "`rejected_sources` names 'gold', which is the definition of correct. Remove it."
            )


@dataclass(frozen=True, slots=True)
class PairBuildResult:
    """The dataset and the account of everything that is not in it.

    Attributes:
        dataset: one row per pair; see `build_preference_pairs`.
        num_questions: questions given.
        num_candidates: candidates given, gold not counted.
        verdicts: candidates by verdict.
        dropped_questions: questions without a pair, by `DropReason`.
        dropped_candidates: candidates that took no part, by `DropReason`.
        gold_problems: question id to the reason its gold query is no label.
    """

    dataset: datasets.Dataset
    num_questions: int
    num_candidates: int
    verdicts: dict[str, int]
    dropped_questions: dict[str, int]
    dropped_candidates: dict[str, int]
    gold_problems: dict[str, str]

    def summary(self) -> dict[str, Any]:
        """The account as plain JSON data."""
        return {
            "num_pairs": len(self.dataset),
            "num_questions": self.num_questions,
            "num_candidates": self.num_candidates,
            "verdicts": self.verdicts,
            "dropped_questions": self.dropped_questions,
            "dropped_candidates": self.dropped_candidates,
            "gold_problems": self.gold_problems,
        }

    def save(self, folder: str | Path, **facts: Any) -> Path:
        """Write `pairs.parquet`, and then `pairs.json` with the summary and further `facts`.

        Neither file is ever there half; the second one says that the first is complete.

        Returns:
            The path of `pairs.parquet`.
        """
        path = Path(folder) / "pairs.parquet"
        temporary = path.with_suffix(".tmp")
        self.dataset.to_parquet(temporary)
        temporary.replace(path)
        text = json.dumps({**self.summary(), **facts}, indent=1)
        write_text_atomically(path.with_suffix(".json"), text)
        return path


def build_preference_pairs(
    questions: Sequence[Question],
    candidates: Iterable[Candidate],
    verifier: SQLVerifier,
    *,
    get_messages: Callable[[Question], Messages],
    config: PreferencePairConfig | None = None,
    dialect: str = "sqlite",
    on_progress: Callable[[int], None] | None = None,
) -> PairBuildResult:
    """Execute candidates and pair correct with erroneous ones (SENSE, arXiv 2408.03256).

    Args:
        questions: with their gold SQL.
        candidates: of those questions, from any source.
        verifier: executes and compares.
        get_messages: the prompt of a question; the same that the candidates were sampled with.
        config: policy and sources; SENSE's defaults if not given.
        dialect: sqlglot dialect, for finding duplicates.
        on_progress: called with the number of candidates verified since the last call.

    Returns:
        The dataset has the columns `prompt, chosen, rejected` (conversational), `question_id,
        db_id, question, gold_sql, chosen_sql, rejected_sql, chosen_source, rejected_source,
        chosen_model, rejected_model, rejected_reason, rejected_error, chosen_candidate_id,
        rejected_candidate_id, temperature, top_p, seed, pair_weight`. It loads straight into
        `DPOTrainer` and `SenseDPOTrainer`. Rows are ordered by question; the same input gives the
        same rows.

    Raises:
        InputError: a candidate for a question that is not given.
    """
    config = config or PreferencePairConfig()
    by_id = {question.question_id: question for question in questions}
    groups: dict[str, list[Candidate]] = {question_id: [] for question_id in by_id}
    for candidate in candidates:
        if candidate.question_id not in groups:
            raise InputError(
                f"A candidate is for the question {candidate.question_id!r}, which is not among "
                f"the {len(by_id)} questions given. Give the questions that were sampled from."
            )
        groups[candidate.question_id].append(candidate)

    num_candidates = sum(len(group) for group in groups.values())
    dropped_questions: Counter[str] = Counter()
    dropped_candidates: Counter[str] = Counter()
    gold_problems: dict[str, str] = {}
    usable: dict[str, list[Candidate]] = {}
    for question_id in sorted(by_id):
        question = by_id[question_id]
        gold = verifier.verify_gold(question.db_id, question.gold_sql)
        if gold.verdict is not Verdict.CORRECT:
            dropped_questions[DropReason.GOLD_UNDETERMINED] += 1
            detail = f": {gold.error}" if gold.error else ""
            gold_problems[question_id] = f"{gold.reason}{detail}"
            continue
        usable[question_id] = _distinct(
            groups[question_id], question, dialect, config, dropped_candidates
        )

    requests = [
        VerificationRequest(by_id[q].db_id, candidate.sql, by_id[q].gold_sql)
        for q, group in usable.items()
        for candidate in group
    ]
    verifications = iter(verifier.verify(requests, on_progress=on_progress))
    verdicts: Counter[str] = Counter()
    rows: list[dict[str, Any]] = []
    for question_id, group in usable.items():
        question = by_id[question_id]
        labelled = [(candidate, next(verifications)) for candidate in group]
        for _, verification in labelled:
            verdicts[verification.verdict] += 1
            if verification.verdict is Verdict.UNDETERMINED:
                dropped_candidates[DropReason.CANDIDATE_UNDETERMINED] += 1
        correct = [
            candidate
            for candidate, verification in labelled
            if verification.verdict is Verdict.CORRECT and candidate.source in config.chosen_sources
        ]
        if "gold" in config.chosen_sources:
            correct.insert(0, _gold_candidate(question))
        correct = _one_per_query(correct, dialect)
        wrong = {
            candidate: verification
            for candidate, verification in labelled
            if verification.verdict is Verdict.WRONG and candidate.source in config.rejected_sources
        }
        erroneous = {c: wrong[c] for c in _one_per_query(wrong, dialect)}
        if not correct:
            dropped_questions[DropReason.NO_CORRECT] += 1
        elif not erroneous:
            dropped_questions[DropReason.NO_ERRONEOUS] += 1
        else:
            pairs = POLICIES[config.policy](
                correct, list(erroneous), config.limit, question_rng(config.seed, question_id)
            )
            messages = get_messages(question)
            rows += [_row(question, messages, c, r, erroneous) for c, r in pairs]
    return PairBuildResult(
        dataset=_dataset(rows),
        num_questions=len(by_id),
        num_candidates=num_candidates,
        verdicts=dict(sorted(verdicts.items())),
        dropped_questions=dict(sorted(dropped_questions.items())),
        dropped_candidates=dict(sorted(dropped_candidates.items())),
        gold_problems=gold_problems,
    )


def _distinct(
    group: list[Candidate],
    question: Question,
    dialect: str,
    config: PreferencePairConfig,
    dropped: Counter[str],
) -> list[Candidate]:
    """Candidates worth executing: finished, not empty, each canonical query once per source.

    A candidate equal to gold is left out where gold itself may be chosen, and where its source may
    not be.
    """
    gold = _identity(question.gold_sql, dialect)
    seen: set[tuple[str, str]] = set()
    kept = []
    for candidate in group:
        if not candidate.finished:
            dropped[DropReason.CANDIDATE_UNFINISHED] += 1
            continue
        if not candidate.sql.strip():
            dropped[DropReason.CANDIDATE_EMPTY] += 1
            continue
        identity = _identity(candidate.sql, dialect)
        if identity == gold and (
            "gold" in config.chosen_sources or candidate.source not in config.chosen_sources
        ):
            dropped[DropReason.CANDIDATE_SAME_AS_GOLD] += 1
            continue
        if (candidate.source, identity) in seen:
            dropped[DropReason.CANDIDATE_DUPLICATE] += 1
            continue
        seen.add((candidate.source, identity))
        kept.append(candidate)
    return kept


def _one_per_query(candidates: Iterable[Candidate], dialect: str) -> list[Candidate]:
    """The first candidate of each canonical query, whatever the source."""
    found: dict[str, Candidate] = {}
    for candidate in candidates:
        found.setdefault(_identity(candidate.sql, dialect), candidate)
    return list(found.values())


def _identity(sql: str, dialect: str) -> str:
    try:
        return canonical_sql(sql, dialect)
    except SQLParseError:
        return " ".join(sql.split())


def _gold_candidate(question: Question) -> Candidate:
    return Candidate(
        question_id=question.question_id,
        sample=0,
        sql=question.gold_sql,
        text=question.gold_sql,
        source="gold",
        model="gold",
    )


def _row(
    question: Question,
    messages: Messages,
    chosen: Candidate,
    rejected: Candidate,
    erroneous: Mapping[Candidate, Verification],
) -> dict[str, Any]:
    verification = erroneous[rejected]
    return {
        "prompt": messages,
        "chosen": [{"role": "assistant", "content": chosen.sql}],
        "rejected": [{"role": "assistant", "content": rejected.sql}],
        "question_id": question.question_id,
        "db_id": question.db_id,
        "question": question.question,
        "gold_sql": question.gold_sql,
        "chosen_sql": chosen.sql,
        "rejected_sql": rejected.sql,
        "chosen_source": chosen.source,
        "rejected_source": rejected.source,
        "chosen_model": chosen.model,
        "rejected_model": rejected.model,
        "rejected_reason": str(verification.reason),
        "rejected_error": verification.error or "",
        "chosen_candidate_id": chosen.candidate_id,
        "rejected_candidate_id": rejected.candidate_id,
        "temperature": rejected.temperature,
        "top_p": rejected.top_p,
        "seed": rejected.seed,
        "pair_weight": 1.0,
    }


def _dataset(rows: list[dict[str, Any]]) -> datasets.Dataset:
    import datasets

    message = [{"role": datasets.Value("string"), "content": datasets.Value("string")}]
    conversations = ("prompt", "chosen", "rejected")
    numbers = {"temperature": "float64", "top_p": "float64", "seed": "int64"}
    text = [
        *("question_id", "db_id", "question", "gold_sql", "chosen_sql", "rejected_sql"),
        *("chosen_source", "rejected_source", "chosen_model", "rejected_model"),
        *("rejected_reason", "rejected_error", "chosen_candidate_id", "rejected_candidate_id"),
    ]
    # Given explicitly, so that a dataset without a single pair has its columns too.
    features = datasets.Features(
        {
            **dict.fromkeys(conversations, message),
            **{name: datasets.Value("string") for name in text},
            **{name: datasets.Value(kind) for name, kind in numbers.items()},
            "pair_weight": datasets.Value("float64"),
        }
    )
    columns = {name: [row[name] for row in rows] for name in features}
    return datasets.Dataset.from_dict(columns, features=features)
