"""`build_preference_pairs`: candidates are executed, verdicts become pairs.

The rules that make a label defensible:

* gold is verified for itself first; a question whose gold fails, is empty or is not deterministic
  builds no pair;
* only a definite verdict labels: an undetermined candidate (time limit, result too large, ...) is
  neither chosen nor rejected;
* with a second opinion, a chosen query that is not gold is also right on other instances of the
  database; one that is not is dropped, for the label "wrong" would rest on data nobody has;
* a pair is made of two different queries: each canonical query of a source takes part once;
* an answer the model did not end by itself is not an answer, and is not used.

Whatever is left out is counted by reason.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NamedTuple, TypeVar

from sense_trl._files import replacing, sha256_of, write_text_atomically
from sense_trl.backends.backend import Backend, LocalBackend
from sense_trl.errors import InputError
from sense_trl.pairs.account import DropReason, PairAccount
from sense_trl.pairs.candidates import Candidate
from sense_trl.pairs.config import PreferencePairConfig
from sense_trl.pairs.databases import Databases
from sense_trl.pairs.dataset import HASH_FIELD, make_dataset, make_rows, make_table
from sense_trl.pairs.policies import get_policy, group_by_chosen, question_rng
from sense_trl.pairs.shards import ShardFolder
from sense_trl.prompts import Attempt, Messages, extract_sql
from sense_trl.prompts.messages import add_attempts
from sense_trl.questions import Question
from sense_trl.sql.taxonomy import ErrorClass
from sense_trl.task import TextToSQLTask
from sense_trl.verification.gold import find_undetermined_gold
from sense_trl.verification.suite.verifier import SuiteVerifier
from sense_trl.verification.verifier import (
    SQLVerifier,
    Verdict,
    Verification,
    VerificationRequest,
)

if TYPE_CHECKING:
    import datasets
    import pyarrow

__all__ = ["DropReason", "PairBuildResult", "PreferencePairConfig", "build_preference_pairs"]

T = TypeVar("T")

_QUESTIONS_PER_SHARD: Final = 64


@dataclass(kw_only=True, slots=True)
class PairBuildResult(PairAccount):
    """The dataset and the account of everything that is not in it.

    Attributes:
        dataset: one row per pair; see `build_preference_pairs`.
        config: the settings it was built with.
    """

    dataset: datasets.Dataset
    config: PreferencePairConfig

    def summary(self) -> dict[str, Any]:
        """The account as plain JSON data."""
        return {"num_pairs": len(self.dataset), **self.as_json()}

    def save(self, folder: str | Path, **facts: Any) -> Path:
        """Write `pairs.parquet`, and then `pairs.json`: summary, settings and further `facts`.

        Neither file is ever there half; the second one says that the first is complete, and its
        hash, by which `read_pairs` knows it.

        Returns:
            The path of `pairs.parquet`.

        Raises:
            OutputError: they cannot be written.
        """
        path = Path(folder) / "pairs.parquet"
        with replacing(path) as temporary:
            self.dataset.to_parquet(temporary)
        account = {**self.summary(), "config": self.config.as_json(), **facts}
        text = json.dumps({**account, HASH_FIELD: sha256_of(path)}, indent=1)
        write_text_atomically(path.with_suffix(".json"), text)
        return path


def build_preference_pairs(
    task: TextToSQLTask,
    candidates: Iterable[Candidate],
    verifier: SQLVerifier,
    *,
    config: PreferencePairConfig | None = None,
    suite_verifier: SuiteVerifier | None = None,
    shard_folder: str | Path | None = None,
    on_progress: Callable[[int], None] | None = None,
    backend: Backend | None = None,
) -> PairBuildResult:
    """Execute candidates and pair correct with erroneous ones (SENSE, arXiv 2408.03256).

    Args:
        task: questions with their gold SQL, their databases, and prompts: those that the
            candidates were sampled with.
        candidates: of those questions, from any source.
        verifier: executes and compares.
        config: policy, sources and form of the rows; SENSE's defaults if not given. With `repair`
            the prompt of a row goes on with its rejected query and what the database said of it,
            as a model is asked again (`Attempt.of`).
        suite_verifier: a second opinion: a chosen query that is not gold must be correct to it too.
        shard_folder: keeps finished parts of the work, so that a build that was interrupted
            continues when it is called again with the same arguments, and gives the same dataset
            (as far as no query meets `timeout_s` in one run and not in another). It belongs to one
            set of databases and verifier settings. Delete it afterwards.
        on_progress: called with the number of candidates verified since the last call, or found
            verified in `shard_folder`.
        backend: where parts of 64 questions are built, with copies of the verifiers: in this
            process if not given. The dataset is the same.

    Returns:
        The dataset has the columns `prompt, chosen, rejected, question_id, db_id, question,
        gold_sql, chosen_sql, rejected_sql, chosen_source, rejected_source, chosen_model,
        rejected_model, rejected_verdict, rejected_reason, rejected_error, error_classes,
        result_class, chosen_candidate_id, rejected_candidate_id, temperature, top_p, seed,
        pair_weight`; the sampler settings are those of the rejected query. It loads straight into
        `DPOTrainer` and `SenseDPOTrainer` (unless `spread_rejected` is off). Rows are ordered by
        question; the same input gives the same rows.

    Raises:
        InputError: a candidate for a question that is not given, or two questions with one id.
    """
    config = config or PreferencePairConfig()
    groups = group_by_question(task.questions, candidates)
    builder = _Builder(verifier, suite_verifier, Databases(task.catalog), config)
    shards = None if shard_folder is None else ShardFolder(shard_folder)
    ordered = sorted(task.questions, key=lambda question: question.question_id)
    parts: dict[int, tuple[pyarrow.Table, PairAccount]] = {}

    def find_missing() -> Iterator[tuple[tuple[int, str], list[_Asked]]]:
        for start in range(0, len(ordered), _QUESTIONS_PER_SHARD):
            part = [
                _Asked(question, task.get_training_messages(question), groups[question.question_id])
                for question in ordered[start : start + _QUESTIONS_PER_SHARD]
            ]
            key = "" if shards is None else ShardFolder.key(builder.identity(part))
            found = None if shards is None else shards.load(key)
            if found is None:
                yield (start, key), part
                continue
            parts[start] = found
            if on_progress is not None:
                on_progress(found[1].num_candidates)

    built = (LocalBackend() if backend is None else backend).map_shards(
        builder.build, find_missing(), get_name=_get_question_id, on_progress=on_progress
    )
    for (start, key), part in built:
        if shards is not None:
            shards.save(key, *part)
        parts[start] = part
    account, tables = PairAccount(), []
    for start in sorted(parts):
        table, own = parts[start]
        account.add(own)
        tables.append(table)
    return PairBuildResult(dataset=make_dataset(tables, config), config=config, **account.as_json())


class _Asked(NamedTuple):
    """A question, its prompt, and what was answered."""

    question: Question
    messages: Messages
    candidates: Sequence[Candidate]


def _get_question_id(asked: _Asked) -> str:
    return asked.question.question_id


def group_by_question(
    questions: Sequence[Question], candidates: Iterable[Candidate]
) -> dict[str, list[Candidate]]:
    """The candidates of each question by its id.

    Raises:
        InputError: a candidate for a question that is not given, or two questions with one id.
    """
    groups: dict[str, list[Candidate]] = {q.question_id: [] for q in questions}
    if len(groups) < len(questions):
        raise InputError(
            f"`questions` holds {len(questions)} questions, but {len(groups)} different "
            "`question_id`. Give each question its own."
        )
    for candidate in candidates:
        if candidate.question_id not in groups:
            raise InputError(
                f"A candidate is for the question {candidate.question_id!r}, which is not among "
                f"the {len(groups)} questions given. Give the questions that were sampled from."
            )
        groups[candidate.question_id].append(candidate)
    return groups


@dataclass(slots=True, eq=False)
class _Sides:
    """The correct and the erroneous queries of one question, and how the latter failed."""

    question: Question
    correct: list[Candidate]
    erroneous: list[Candidate]
    attempts: dict[Candidate, Attempt] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class _Builder:
    """Builds the rows of some questions."""

    verifier: SQLVerifier
    suite_verifier: SuiteVerifier | None
    databases: Databases
    config: PreferencePairConfig

    def identity(self, part: Iterable[_Asked]) -> list[Any]:
        """All that the rows of these questions depend on, but for the databases."""
        return [
            self.config.as_json(),
            self.suite_verifier is not None,
            [
                [asdict(question), messages, [asdict(c) for c in group]]
                for question, messages, group in part
            ],
        ]

    def build(
        self, part: Sequence[_Asked], on_progress: Callable[[int], None] | None
    ) -> tuple[pyarrow.Table, PairAccount]:
        """The rows of these questions, in their order, and the account of what is left out."""
        account = PairAccount(len(part), sum(len(asked.candidates) for asked in part))
        groups = {asked.question: asked.candidates for asked in part}
        messages = {asked.question: asked.messages for asked in part}
        usable = {
            question: self._worth_executing(question, group, account)
            for question, group in self._with_certain_gold(groups, account)
        }
        verifications = self._verify(usable, account.verdicts, on_progress)
        account.dropped_candidates[DropReason.CANDIDATE_UNDETERMINED] += sum(
            v.verdict is Verdict.UNDETERMINED for v in verifications.values()
        )
        sides = [
            self._sides(question, group, verifications, account)
            for question, group in usable.items()
        ]
        for side in sides:
            self._keep_failing(side, account)
        verifications |= self._add_mutants(sides, account)
        self._ask_the_suite(sides, account)
        rows: list[dict[str, Any]] = []
        for side in sides:
            if not side.correct:
                account.dropped_questions[DropReason.NO_CORRECT] += 1
            elif not side.erroneous:
                account.dropped_questions[DropReason.NO_ERRONEOUS] += 1
            else:
                rows += self._rows(side, messages[side.question], verifications)
        # Counted as none, a reason would be listed that does not occur.
        account.dropped_candidates = +account.dropped_candidates
        return make_table(rows, self.config), account

    # ------------------------------------------------------------------ before execution

    def _with_certain_gold(
        self, part: Mapping[Question, Sequence[Candidate]], account: PairAccount
    ) -> Iterator[tuple[Question, Sequence[Candidate]]]:
        """The questions whose gold query is right by itself; the others are counted."""

        undetermined = find_undetermined_gold(self.verifier, list(part))
        for question, group in part.items():
            gold = undetermined.get(question.question_id)
            if gold is None:
                yield question, group
                continue
            account.dropped_questions[DropReason.GOLD_UNDETERMINED] += 1
            detail = f": {gold.error}" if gold.error else ""
            account.gold_problems[question.question_id] = f"{gold.reason}{detail}"

    def _worth_executing(
        self, question: Question, group: Sequence[Candidate], account: PairAccount
    ) -> list[Candidate]:
        """Candidates that are finished and hold a query, each canonical one once per source.

        A candidate equal to gold is left out where gold itself may be chosen, and where its source
        may not be.
        """
        gold = self.databases.identify(question.db_id, question.gold_sql)
        seen: set[tuple[str, str]] = set()
        kept = []
        for candidate in group:
            reason = self._unusable(candidate)
            if reason is None:
                identity = self.databases.identify(question.db_id, candidate.sql)
                if identity == gold and (
                    "gold" in self.config.chosen_sources
                    or candidate.source not in self.config.chosen_sources
                ):
                    reason = DropReason.CANDIDATE_SAME_AS_GOLD
                elif (candidate.source, identity) in seen:
                    reason = DropReason.CANDIDATE_DUPLICATE
            if reason is not None:
                account.dropped_candidates[reason] += 1
                continue
            seen.add((candidate.source, identity))
            kept.append(candidate)
        return kept

    def _unusable(self, candidate: Candidate) -> DropReason | None:
        reason = find_fault(candidate)
        is_text = self.config.completion == "text"
        if reason is None and is_text and extract_sql(candidate.text) != candidate.sql:
            return DropReason.CANDIDATE_TEXT_DIFFERS
        return reason

    # ------------------------------------------------------------------ verdicts

    def _verify(
        self,
        groups: Mapping[Question, Sequence[Candidate]],
        verdicts: Counter[str],
        on_progress: Callable[[int], None] | None,
    ) -> dict[Candidate, Verification]:
        asked = [(question, c) for question, group in groups.items() for c in group]
        requests = [VerificationRequest(q.db_id, c.sql, q.gold_sql) for q, c in asked]
        answers = self.verifier.verify(requests, on_progress=on_progress)
        verdicts.update(answer.verdict for answer in answers)
        return {candidate: answer for (_, candidate), answer in zip(asked, answers, strict=True)}

    def _sides(
        self,
        question: Question,
        group: Sequence[Candidate],
        verifications: Mapping[Candidate, Verification],
        account: PairAccount,
    ) -> _Sides:
        correct = [
            c
            for c in group
            if verifications[c].verdict is Verdict.CORRECT
            and c.source in self.config.chosen_sources
        ]
        if "gold" in self.config.chosen_sources:
            correct.insert(0, _gold_candidate(question))
        erroneous = [
            c
            for c in group
            if verifications[c].verdict is Verdict.WRONG
            and c.source in self.config.rejected_sources
        ]
        return _Sides(
            question,
            self._distinct(question, correct, account),
            self._distinct_erroneous(question, erroneous, verifications, account),
        )

    def _keep_failing(self, side: _Sides, account: PairAccount) -> None:
        """With `repair`, drop the erroneous queries that a model would not be asked about again."""
        if not self.config.repair:
            return
        db_id, limits = side.question.db_id, self.verifier.limits
        for candidate in side.erroneous:
            attempt = self.databases.find_attempt(db_id, candidate.sql, limits)
            if attempt is not None:
                side.attempts[candidate] = attempt
        reason = DropReason.CANDIDATE_RETURNS_ROWS
        account.dropped_candidates[reason] += len(side.erroneous) - len(side.attempts)
        side.erroneous = list(side.attempts)

    def _add_mutants(
        self, sides: Sequence[_Sides], account: PairAccount
    ) -> dict[Candidate, Verification]:
        """Give mutants that are wrong to questions that have a correct query and no erroneous."""
        if self.config.num_mutants == 0:
            return {}
        lonely = {s.question: s for s in sides if s.correct and not s.erroneous}
        mutants = {
            question: self.databases.mutants(question, self.config.num_mutants, self.config.seed)
            for question in lonely
        }
        verifications = self._verify(mutants, account.mutant_verdicts, None)
        for question, side in lonely.items():
            wrong = [m for m in mutants[question] if verifications[m].verdict is Verdict.WRONG]
            # They are no candidates, so the account says nothing about them.
            side.erroneous = self._distinct_erroneous(question, wrong, verifications, PairAccount())
            self._keep_failing(side, PairAccount())
        return verifications

    def _ask_the_suite(self, sides: Sequence[_Sides], account: PairAccount) -> None:
        """Drop chosen candidates that are right on the database by chance."""
        if self.suite_verifier is None:
            return
        asked = [
            (side, candidate)
            for side in sides
            if side.erroneous
            for candidate in side.correct
            if candidate.source != "gold"
        ]
        answers = self.suite_verifier.verify(
            [VerificationRequest(s.question.db_id, c.sql, s.question.gold_sql) for s, c in asked]
        )
        for (side, candidate), answer in zip(asked, answers, strict=True):
            if answer.verdict is not Verdict.CORRECT:
                side.correct.remove(candidate)
                account.dropped_candidates[DropReason.CANDIDATE_REFUTED] += 1

    # ------------------------------------------------------------------ duplicates

    def _distinct(
        self, question: Question, candidates: Sequence[Candidate], account: PairAccount
    ) -> list[Candidate]:
        """The first of each canonical text, whatever the source, or of each normal form."""
        seen: set[object] = set()
        kept = []
        for candidate in candidates:
            text = self.databases.identify(question.db_id, candidate.sql)
            form = None
            if self.config.deduplicate_by != "text":
                form = self.databases.normal_form(question.db_id, candidate.sql)
            if text in seen:
                account.dropped_candidates[DropReason.CANDIDATE_DUPLICATE] += 1
            elif form is not None and form in seen:
                account.dropped_candidates[DropReason.CANDIDATE_SAME_FORM] += 1
            else:
                kept.append(candidate)
            seen |= {text, form}
        return kept

    def _distinct_erroneous(
        self,
        question: Question,
        candidates: Sequence[Candidate],
        verifications: Mapping[Candidate, Verification],
        account: PairAccount,
    ) -> list[Candidate]:
        """The same, and the first of each result; queries that did not run have none and stay."""
        candidates = self._distinct(question, candidates, account)
        if self.config.deduplicate_by != "result" or len(candidates) < 2:
            return candidates
        seen: set[str] = set()
        kept = []
        for candidate in candidates:
            result = None
            if verifications[candidate].error is None:
                result = self.databases.fingerprint(question.db_id, candidate.sql)
            if result is None or result not in seen:
                kept.append(candidate)
            else:
                account.dropped_candidates[DropReason.CANDIDATE_SAME_RESULT] += 1
            if result is not None:
                seen.add(result)
        return kept

    # ------------------------------------------------------------------ pairs

    def _rows(
        self,
        side: _Sides,
        messages: Messages,
        verifications: Mapping[Candidate, Verification],
    ) -> list[dict[str, Any]]:
        config, question = self.config, side.question
        classes = _OnDemand(lambda candidate: self._error_classes(question, candidate))
        results = _OnDemand(lambda candidate: self._result_class(question, candidate))
        dialect = self.databases.dialect(question.db_id)
        policy = get_policy(config.policy, dialect=dialect, classes=classes)
        total = len(side.correct) * len(side.erroneous)
        pairs = policy(
            side.correct,
            side.erroneous,
            config.limit if config.num_rejected == 1 else total,
            question_rng(config.seed, question.question_id),
        )
        groups = group_by_chosen(pairs, limit=config.limit, num_rejected=config.num_rejected)
        if config.repair:
            # The prompt tells how the rejected query failed, so each has its own.
            groups = [(chosen, [candidate]) for chosen, group in groups for candidate in group]
        return [
            row
            for chosen, rejected in groups
            for row in make_rows(
                question,
                add_attempts(messages, [side.attempts[c] for c in rejected if config.repair]),
                chosen,
                rejected,
                verifications,
                classes,
                results,
                config,
            )
        ]

    def _error_classes(self, question: Question, candidate: Candidate) -> tuple[ErrorClass, ...]:
        return self.databases.error_classes(question.db_id, candidate.sql, question.gold_sql)

    def _result_class(self, question: Question, candidate: Candidate) -> str:
        if not self.config.classify_results:
            return ""
        return self.databases.result_class(question.db_id, candidate.sql, question.gold_sql)


class _OnDemand(dict[Candidate, T]):
    """A fact about each of a question's candidates, found when it is asked for.

    Most policies ask for none, and a dataset holds few of many candidates.
    """

    def __init__(self, find: Callable[[Candidate], T]) -> None:
        super().__init__()
        self._find = find

    def __missing__(self, candidate: Candidate) -> T:
        self[candidate] = found = self._find(candidate)
        return found


def _gold_candidate(question: Question) -> Candidate:
    return Candidate(
        question_id=question.question_id,
        sample=0,
        sql=question.gold_sql,
        text=question.gold_sql,
        source="gold",
        model="gold",
    )


def find_fault(candidate: Candidate) -> DropReason | None:
    """The reason why a candidate is no answer at all, whatever it says; None if it is one."""
    if not candidate.finished:
        return DropReason.CANDIDATE_UNFINISHED
    if not candidate.sql.strip():
        return DropReason.CANDIDATE_EMPTY
    if not _is_unicode(candidate.sql + candidate.text):
        return DropReason.CANDIDATE_NOT_UNICODE
    return None


def _is_unicode(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
