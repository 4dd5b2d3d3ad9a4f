"""`RoundTripFilter`, `SelfConsistencyFilter`: does a model that reads the question write this SQL?

Where no person wrote the question, nobody has said what its right answer is. Both filters have a
model answer the question and compare what the answers return with what the example's SQL returns.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import KW_ONLY, dataclass
from typing import ClassVar

from sense_trl.errors import InputError
from sense_trl.generation.generator import SamplingConfig, SQLGenerator
from sense_trl.prompts import Messages, extract_sql
from sense_trl.synthesis.example import SynthesizedExample
from sense_trl.synthesis.filters.filters import FilterVerdict
from sense_trl.verification.comparison import Verdict
from sense_trl.verification.judging import VerificationRequest
from sense_trl.verification.verifier import SQLVerifier


def count_agreeing(
    examples: Sequence[SynthesizedExample],
    samples: Sequence[Sequence[str]],
    verifier: SQLVerifier,
) -> list[int]:
    """Count the queries that return what each example's SQL returns.

    A query whose verdict is undetermined does not agree.

    Args:
        examples: whose SQL is compared with.
        samples: queries for each example.
        verifier: over the databases of the examples.
    """
    requests = [
        VerificationRequest(example.db_id, sql, example.sql)
        for example, queries in zip(examples, samples, strict=True)
        for sql in queries
    ]
    agrees = iter([v.verdict is Verdict.CORRECT for v in verifier.verify(requests)])
    return [sum(next(agrees) for _ in queries) for queries in samples]


@dataclass
class _AgreementFilter(ABC):
    """Passes what enough of a model's samples confirm; a subclass says what is enough."""

    generator: SQLGenerator
    verifier: SQLVerifier
    get_messages: Callable[[SynthesizedExample], Messages]
    sampling: SamplingConfig

    failure: ClassVar[str]

    def check(self, examples: Sequence[SynthesizedExample]) -> list[FilterVerdict]:
        """One verdict per example."""
        prompts = [self.get_messages(example) for example in examples]
        answers = self.generator.generate(prompts, self.sampling)
        samples = [[extract_sql(answer.text) for answer in group] for group in answers]
        verdicts = []
        for count in count_agreeing(examples, samples, self.verifier):
            passed = count >= self.num_needed
            detail = f"{count} of {self.sampling.num_generations} samples agree"
            verdicts.append(FilterVerdict(passed, "passed" if passed else self.failure, detail))
        return verdicts

    @property
    @abstractmethod
    def num_needed(self) -> float:
        """Samples that have to agree."""


class RoundTripFilter(_AgreementFilter):
    """Passes what another sample confirms: one of them returns the same as the example's SQL.

    Reason: `"no_sample_agrees"`. Provenance gets "2 of 4 samples agree".

    Args:
        generator: the model that is asked. One that gives equal prompts equal samples (a seed makes
            them) must be asked by another prompt or seed than the SQL came from.
        verifier: over the databases of the examples.
        get_messages: the prompt of an example, e.g. `get_prompt` with its question and the schema
            of its database. It must not show the SQL.
        sampling: how many samples, and how.
    """

    name = "round_trip"
    failure = "no_sample_agrees"

    num_needed = 1


@dataclass
class SelfConsistencyFilter(_AgreementFilter):
    """Passes what most samples confirm: at least `min_share` return the same as the example's SQL.

    With more than one half, no other result can have as many samples, so the example's SQL is what
    a majority vote by execution would choose. Reason: `"too_few_agree"`.

    Args:
        generator: the model that is asked.
        verifier: over the databases of the examples.
        get_messages: the prompt of an example, without its SQL.
        sampling: how many samples, and how; `temperature` must be above 0 for more than one.
        min_share: of the samples, in (0, 1].

    Raises:
        InputError: `min_share` is out of its range.
    """

    name = "self_consistency"
    failure = "too_few_agree"

    _: KW_ONLY
    min_share: float = 0.5

    def __post_init__(self) -> None:
        if not 0.0 < self.min_share <= 1.0:
            raise InputError(
                f"`min_share` is {self.min_share}; expected a share above 0 and at most 1, e.g. "
                "0.5."
            )

    @property
    def num_needed(self) -> float:
        """Samples that have to agree."""
        return self.min_share * self.sampling.num_generations
