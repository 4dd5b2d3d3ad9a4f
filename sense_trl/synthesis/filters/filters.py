"""`FilterPipeline`: what keeps a synthesised example out of the training data, counted.

A filter says of each example whether it passes and, if not, why. A pipeline asks one filter after
the other, each only about what the ones before it let pass, so cheap filters go first:

    FilterPipeline([
        OneSelectFilter("sqlite"),
        ContaminationFilter(EvaluationIndex(dev, dialect="sqlite")),
        DuplicateFilter("sqlite"),
        TemplateCapFilter("sqlite", max_per_template=2),
        ExecutionFilter(verifier),
        RoundTripFilter(generator, verifier, get_messages, sampling),
    ])

`DuplicateFilter` and `TemplateCapFilter` remember what they let pass, so their answers depend on
the order of the examples and on what a later filter removes: examples that are given again in the
same order, to a new pipeline, get the same answers. `agreement` has the filters that ask a model.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Final, Protocol

from sqlglot import exp

from sense_trl.database.engine import QueryStatus
from sense_trl.errors import InputError
from sense_trl.sql.dialects import Dialects, get_dialect
from sense_trl.sql.parsing import SQLParseError, canonical_sql, parse_sql
from sense_trl.synthesis.example import SynthesizedExample
from sense_trl.synthesis.filters.contamination import EvaluationIndex, normalize_question
from sense_trl.synthesis.filters.sql_template import get_sql_template
from sense_trl.verification.comparison import Reason, Verdict
from sense_trl.verification.judging import VerificationRequest, get_step_budget
from sense_trl.verification.verifier import SQLVerifier


@dataclass(frozen=True, slots=True)
class FilterVerdict:
    """The verdict of a filter on one example.

    Attributes:
        passed: whether it stays.
        reason: a word to count by; `"passed"` for what stays.
        detail: what to add for a reader, e.g. the engine's message.
    """

    passed: bool
    reason: str
    detail: str | None = None


PASSED = FilterVerdict(True, "passed")


class ExampleFilter(Protocol):
    """Decides which examples stay."""

    @property
    def name(self) -> str:
        """The filter's name in provenance and counts."""

    def check(self, examples: Sequence[SynthesizedExample]) -> list[FilterVerdict]:
        """One verdict per example, in the order of the examples."""


class OneByOneFilter(ABC):
    """A filter that looks at one example at a time; a subclass says how, in `_check`."""

    def check(self, examples: Sequence[SynthesizedExample]) -> list[FilterVerdict]:
        """One verdict per example."""
        return [self._check(example) for example in examples]

    @abstractmethod
    def _check(self, example: SynthesizedExample) -> FilterVerdict:
        """The verdict on one example."""


@dataclass(frozen=True, slots=True)
class Rejection:
    """An example that went out, with the filter that removed it and its reason."""

    example: SynthesizedExample
    filter: str
    reason: str
    detail: str | None

    def as_json(self) -> dict[str, Any]:
        """The example's record with `removed_by`, `reason` and `detail`."""
        why = {"removed_by": self.filter, "reason": self.reason, "detail": self.detail}
        return {**self.example.as_json(), **why}


@dataclass(frozen=True, slots=True)
class FilterResult:
    """The examples that a pipeline kept and rejected, both in their order."""

    kept: list[SynthesizedExample]
    rejected: list[Rejection]


@dataclass(slots=True)
class FilterAccount:
    """Counts of examples.

    Attributes:
        num_examples: given.
        num_kept: those that passed every filter.
        removed: those that did not, by filter and reason.
    """

    num_examples: int = 0
    num_kept: int = 0
    removed: dict[str, Counter[str]] = field(default_factory=dict)

    def add(self, other: FilterAccount) -> None:
        """Add the counts of other examples."""
        self.num_examples += other.num_examples
        self.num_kept += other.num_kept
        for name, reasons in other.removed.items():
            self.removed.setdefault(name, Counter()).update(reasons)

    def as_json(self) -> dict[str, Any]:
        """The counts as plain JSON data, reasons in alphabetical order."""
        return {
            "num_examples": self.num_examples,
            "num_kept": self.num_kept,
            "removed": {name: dict(sorted(r.items())) for name, r in self.removed.items()},
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> FilterAccount:
        """The inverse of `as_json`."""
        removed = {name: Counter(reasons) for name, reasons in data["removed"].items()}
        return cls(data["num_examples"], data["num_kept"], removed)


class FilterPipeline:
    """Asks filters in turn and counts what each removes.

    Args:
        filters: in the order in which they are asked; names must differ.

    Raises:
        InputError: two filters have one name.
    """

    def __init__(self, filters: Sequence[ExampleFilter]) -> None:
        names = [a_filter.name for a_filter in filters]
        if len(set(names)) < len(names):
            raise InputError(f"`filters` has two filters of one name: {names}. Leave one out.")
        self._filters = tuple(filters)
        self.account = FilterAccount(removed={name: Counter() for name in names})

    def apply(self, examples: Sequence[SynthesizedExample]) -> FilterResult:
        """Part examples into those that every filter passes and the others.

        What is kept carries each filter's verdict in its provenance.
        """
        rejected: dict[int, Rejection] = {}
        left = dict(enumerate(examples))
        for a_filter in self._filters:
            verdicts = a_filter.check(list(left.values())) if left else []
            for (number, example), verdict in zip(list(left.items()), verdicts, strict=True):
                if verdict.passed:
                    left[number] = _with_verdict(example, a_filter.name, verdict)
                    continue
                del left[number]
                rejected[number] = Rejection(example, a_filter.name, verdict.reason, verdict.detail)
                self.account.removed[a_filter.name][verdict.reason] += 1
        self.account.num_examples += len(examples)
        self.account.num_kept += len(left)
        return FilterResult(list(left.values()), [rejected[number] for number in sorted(rejected)])


def _with_verdict(
    example: SynthesizedExample, name: str, verdict: FilterVerdict
) -> SynthesizedExample:
    verdicts = {**example.provenance.verdicts, name: verdict.detail or verdict.reason}
    return replace(example, provenance=replace(example.provenance, verdicts=verdicts))


class OneSelectFilter(OneByOneFilter):
    """Passes a text that is one query that reads, and that sqlglot can parse.

    Reasons: `"unparsable"` (also for several statements, and none), `"not_a_query"`.

    Args:
        dialect: sqlglot dialect of the SQL, or a function that tells it by `db_id`.
    """

    name = "one_select"

    def __init__(self, dialect: Dialects) -> None:
        self._dialect = dialect

    def _check(self, example: SynthesizedExample) -> FilterVerdict:
        try:
            tree = parse_sql(example.sql, get_dialect(self._dialect, example.db_id))
        except SQLParseError as error:
            return FilterVerdict(False, "unparsable", str(error))
        if not isinstance(tree, exp.Query) or tree.find(*_WRITES) is not None:
            return FilterVerdict(False, "not_a_query", tree.key)
        return PASSED


_WRITES = (exp.DML, exp.DDL, exp.Command, exp.Into)


class ContaminationFilter(OneByOneFilter):
    """Passes what is not too close to an evaluation set.

    Reasons: the kinds of `Contamination`. The detail names the evaluation question.

    Args:
        index: of the evaluation sets.
    """

    name = "contamination"

    def __init__(self, index: EvaluationIndex) -> None:
        self._index = index

    def _check(self, example: SynthesizedExample) -> FilterVerdict:
        found = self._index.find(example.question, example.sql, example.db_id)
        return PASSED if found is None else FilterVerdict(False, found.kind, found.question_id)


class DuplicateFilter(OneByOneFilter):
    """Passes the first example of a database with its wording, and with its canonical SQL.

    Reasons: `"empty_question"`, `"duplicate_question"`, `"duplicate_sql"`.

    Args:
        dialect: sqlglot dialect of the SQL, or a function that tells it by `db_id`.
        per_database: whether the same question may be asked of another database.
    """

    name = "duplicate"

    def __init__(self, dialect: Dialects, *, per_database: bool = True) -> None:
        self._dialect = dialect
        self._per_database = per_database
        self._seen: set[tuple[str, str, str]] = set()

    def _check(self, example: SynthesizedExample) -> FilterVerdict:
        wording = normalize_question(example.question)
        if not wording:
            return FilterVerdict(False, "empty_question")
        place = example.db_id if self._per_database else ""
        dialect = get_dialect(self._dialect, example.db_id)
        keys = [
            (place, "question", wording),
            (place, "sql", _canonical(example.sql, dialect)),
        ]
        for key in keys:
            if key in self._seen:
                return FilterVerdict(False, f"duplicate_{key[1]}")
        self._seen.update(keys)
        return PASSED


class TemplateCapFilter(OneByOneFilter):
    """Passes the first examples of each SQL template of a database.

    Reason: `"template_full"`; the detail is the template (`get_sql_template`).

    Args:
        dialect: sqlglot dialect of the SQL, or a function that tells it by `db_id`.
        max_per_template: how many.

    Raises:
        InputError: `max_per_template` is below 1.
    """

    name = "template_cap"

    def __init__(self, dialect: Dialects, max_per_template: int) -> None:
        if max_per_template < 1:
            raise InputError(f"`max_per_template` is {max_per_template}; expected at least 1.")
        self._dialect = dialect
        self._max_per_template = max_per_template
        self._counts: Counter[tuple[str, str]] = Counter()

    def _check(self, example: SynthesizedExample) -> FilterVerdict:
        try:
            template = get_sql_template(example.sql, get_dialect(self._dialect, example.db_id))
        except SQLParseError:
            template = example.sql
        key = (example.db_id, template)
        if self._counts[key] == self._max_per_template:
            return FilterVerdict(False, "template_full", template)
        self._counts[key] += 1
        return PASSED


class ExecutionFilter:
    """Passes SQL that a verifier would take as gold and that returns something.

    It must run within the limits, have one answer (see `verify_sql`) and return a row. Nothing but
    NULL says nothing; neither does one row of NULL and 0, as sums and counts over no rows give it.
    Reasons: the `Reason` of the verifier (`"gold_execution_error"`, `"gold_timeout"`, ...),
    `"empty"`, `"nothing_found"`, and `"too_large"` or `"timeout"` for results beyond the limits of
    the catalog's engine, which the verifier can judge by digest.

    Args:
        verifier: over the databases of the examples.
        is_trusted: whether no model wrote the SQL; it is then run before the verifier has seen it,
            and large results cost no verification, which reads them twice.
    """

    name = "execution"

    def __init__(self, verifier: SQLVerifier, *, is_trusted: bool = False) -> None:
        self._verifier = verifier
        self._is_trusted = is_trusted

    def check(self, examples: Sequence[SynthesizedExample]) -> list[FilterVerdict]:
        """One verdict per example.

        Raises:
            InputError: an example's `db_id` is unknown to the verifier.
            DatabaseError: a database cannot be read.
        """
        verdicts: dict[int, FilterVerdict] = {}
        if self._is_trusted:
            verdicts = {number: self._look_at_rows(e) for number, e in enumerate(examples)}
        # What is beyond the limits here stays so; for the rest the verifier has a word.
        left = [n for n in range(len(examples)) if n not in verdicts or not _is_beyond(verdicts[n])]
        # Its own prediction: gold is examined, and the text is not run twice.
        chosen = [examples[number] for number in left]
        requests = [VerificationRequest(e.db_id, e.sql, e.sql) for e in chosen]
        for number, verification in zip(left, self._verifier.verify(requests), strict=True):
            if verification.reason is Reason.BOTH_EMPTY:
                verdicts[number] = FilterVerdict(False, "empty")
            elif verification.verdict is not Verdict.CORRECT:
                reason = str(verification.reason)
                verdicts[number] = FilterVerdict(False, reason, verification.error)
            elif number not in verdicts:
                verdicts[number] = self._look_at_rows(examples[number])
        return [verdicts[number] for number in range(len(examples))]

    def _look_at_rows(self, example: SynthesizedExample) -> FilterVerdict:
        engine = self._verifier.catalog.engine(example.db_id)
        # As for the verifier's gold.
        limits = replace(engine.limits, max_steps=get_step_budget(engine.limits))
        result = engine.execute(example.sql, limits=limits)
        if not result.ok:
            return FilterVerdict(False, str(result.status), result.error)
        values = [value for row in result.rows for value in row]
        if all(value is None for value in values):
            return _NOTHING_FOUND
        if len(result.rows) == 1 and all(value is None or value == 0 for value in values):
            return _NOTHING_FOUND
        return PASSED


_NOTHING_FOUND: Final = FilterVerdict(False, "nothing_found")


def _is_beyond(verdict: FilterVerdict) -> bool:
    """Whether a query was stopped by a limit."""
    return verdict.reason in (QueryStatus.TOO_LARGE, QueryStatus.TIMEOUT)


def _canonical(sql: str, dialect: str) -> str:
    try:
        return canonical_sql(sql, dialect)
    except SQLParseError:
        return " ".join(sql.split()).lower()
