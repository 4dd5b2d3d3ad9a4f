"""`Critics`: what a model writes in a round of recursive distillation, and what of it is kept."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from sense_trl.generation.generator import SamplingConfig, SQLGenerator
from sense_trl.prompts import Messages, extract_sql
from sense_trl.questions import Question
from sense_trl.sql.dialects import get_dialect
from sense_trl.sql.parsing import SQLParseError, canonical_sql
from sense_trl.synthesis.example import Provenance, SynthesizedExample
from sense_trl.synthesis.filters.agreement import RoundTripFilter, SelfConsistencyFilter
from sense_trl.synthesis.filters.contamination import EvaluationIndex
from sense_trl.synthesis.filters.filters import (
    ContaminationFilter,
    DuplicateFilter,
    ExecutionFilter,
    FilterPipeline,
    OneSelectFilter,
    Rejection,
    TemplateCapFilter,
)
from sense_trl.synthesis.filters.sql_template import get_sql_template
from sense_trl.synthesis.recursive.config import RecursionSettings
from sense_trl.synthesis.recursive.data import METHOD, RecursionData
from sense_trl.synthesis.recursive.invention import parse_invention
from sense_trl.verification.comparison import Verdict
from sense_trl.verification.judging import VerificationRequest
from sense_trl.verification.suite.verifier import SuiteVerifier
from sense_trl.verification.verifier import SQLVerifier

_BY_GOLD = {"execution": "correct", "suite": "correct"}


@dataclass(frozen=True, slots=True)
class Review:
    """The outcome of the critics' look at a model's completions: kept, rejected, and counts.

    Attributes:
        kept: in the order of writing.
        rejected: those that a filter removed; what could not be read, and answers that gold
            refutes, are counted only.
        counts: how many completions were written, and how many are left after each critic, in
            the order in which they look.
    """

    kept: list[SynthesizedExample]
    rejected: list[Rejection]
    counts: dict[str, int]


class Critics:
    """Have a model write, and keep what holds.

    Args:
        data: gold, dev and prompts.
        settings: how much is written, and what is kept.
        verifier: executes invented SQL.
        suite_verifier: judges answers to training questions.
    """

    def __init__(
        self,
        data: RecursionData,
        settings: RecursionSettings,
        verifier: SQLVerifier,
        suite_verifier: SuiteVerifier,
    ) -> None:
        self._data = data
        self._settings = settings
        self._verifier = verifier
        self._suite_verifier = suite_verifier
        self._dev = EvaluationIndex(data.dev, dialect=data.dialect)

    def review_answers(
        self,
        number: int,
        generator: SQLGenerator,
        db_ids: Sequence[str],
        kept: Sequence[SynthesizedExample],
    ) -> Review:
        """Answers to training questions: right on the database and its neighbours, and new.

        Args:
            number: of the round.
            generator: the model that answers.
            db_ids: databases of the round.
            kept: what earlier rounds kept; no answer is kept twice, nor gold again.
        """
        questions = self._draw_questions(number, db_ids)
        sampling = self._settings.get_sampling(number)
        groups = generator.generate([self._data.get_messages(q) for q in questions], sampling)
        answers = [
            (question, extract_sql(completion.text))
            for question, group in zip(questions, groups, strict=True)
            for completion in group
            if completion.finished
        ]
        verifications = self._suite_verifier.verify(
            VerificationRequest(question.db_id, sql, question.gold_sql) for question, sql in answers
        )
        right = [
            SynthesizedExample(
                question.question,
                sql,
                question.db_id,
                question.level,
                self._get_origin(question.db_id, sql, generator, sampling, _BY_GOLD),
            )
            for (question, sql), verification in zip(answers, verifications, strict=True)
            if verification.verdict is Verdict.CORRECT
        ]
        new = self._drop_known(right, [*kept, *map(_as_example, questions)])
        counts = {
            "written": sum(map(len, groups)),
            "finished": len(answers),
            "execution": sum(v.original.verdict is Verdict.CORRECT for v in verifications),
            "suite": len(right),
            "new": len(new),
        }
        return Review(new, [], counts)

    def review_inventions(
        self,
        number: int,
        generator: SQLGenerator,
        db_ids: Sequence[str],
        kept: Sequence[SynthesizedExample],
    ) -> Review:
        """Invented pairs that pass the filters, what is close to dev among them removed.

        Args:
            number: of the round.
            generator: the model that invents, and answers what it invented.
            db_ids: databases of the round.
            kept: what earlier rounds kept; a question or a query of it or of gold is not new.
        """
        count = self._settings.num_examples
        prompts = []
        for db_id in db_ids:
            rng = self._settings.get_random(number, f"invent/{db_id}")
            for _ in range(self._settings.prompts_per_database):
                shown = self._data.draw_examples(db_id, count, rng)
                prompts.append((db_id, self._data.get_invention_prompt(db_id, shown)))
        sampling = self._settings.get_sampling(number)
        groups = generator.generate([prompt for _, prompt in prompts], sampling)
        pairs = [
            (db_id, parse_invention(completion.text) if completion.finished else None)
            for (db_id, _), group in zip(prompts, groups, strict=True)
            for completion in group
        ]
        examples = [
            SynthesizedExample(
                *pair, db_id, None, self._get_origin(db_id, pair[1], generator, sampling)
            )
            for db_id, pair in pairs
            if pair is not None
        ]
        filters = self._get_filters(generator, sampling, kept)
        result = filters.apply(examples)
        counts = {"written": len(pairs), "readable": len(examples)}
        left = len(examples)
        for name, reasons in filters.account.removed.items():
            left -= reasons.total()
            counts[name] = left
        return Review(result.kept, result.rejected, counts)

    def _draw_questions(self, number: int, db_ids: Sequence[str]) -> list[Question]:
        questions = [question for question in self._data.gold if question.db_id in db_ids]
        limit = self._settings.max_questions_per_round
        if limit is None or limit >= len(questions):
            return questions
        return self._settings.get_random(number, "questions").sample(questions, limit)

    def _get_filters(
        self,
        generator: SQLGenerator,
        sampling: SamplingConfig,
        kept: Sequence[SynthesizedExample],
    ) -> FilterPipeline:
        dialect = self._data.dialect
        duplicates = DuplicateFilter(dialect)
        # It remembers them, so that what is in the training data already is not kept again.
        duplicates.check([*map(_as_example, self._data.gold), *kept])
        asking = (generator, self._verifier, self._get_answer_prompt, sampling)
        return FilterPipeline(
            [
                OneSelectFilter(dialect),
                ContaminationFilter(self._dev),
                ExecutionFilter(self._verifier),
                duplicates,
                TemplateCapFilter(dialect, self._settings.max_per_template),
                RoundTripFilter(*asking),
                SelfConsistencyFilter(*asking, min_share=self._settings.min_agreement),
            ]
        )

    def _get_answer_prompt(self, example: SynthesizedExample) -> Messages:
        return self._data.get_messages(self._data.as_question(example))

    def _drop_known(
        self, examples: Sequence[SynthesizedExample], known: Sequence[SynthesizedExample]
    ) -> list[SynthesizedExample]:
        """The first of each query to a question, in whatever spelling, that is not known."""
        seen = {self._get_key(example) for example in known}
        new = []
        for example in examples:
            key = self._get_key(example)
            if key not in seen:
                seen.add(key)
                new.append(example)
        return new

    def _get_key(self, example: SynthesizedExample) -> tuple[str, str, str]:
        try:
            sql = canonical_sql(example.sql, get_dialect(self._data.dialect, example.db_id))
        except SQLParseError:
            sql = example.sql
        return example.db_id, example.question, sql

    def _get_origin(
        self,
        db_id: str,
        sql: str,
        generator: SQLGenerator,
        sampling: SamplingConfig,
        verdicts: Mapping[str, str] | None = None,
    ) -> Provenance:
        try:
            template = get_sql_template(sql, get_dialect(self._data.dialect, db_id))
        except SQLParseError:
            template = None
        return Provenance(
            METHOD, generator.name, sampling.seed, template=template, verdicts=verdicts or {}
        )


def _as_example(question: Question) -> SynthesizedExample:
    """A gold question in the form in which examples are compared."""
    origin = Provenance("gold", None, 0)
    return SynthesizedExample(
        question.question, question.gold_sql, question.db_id, question.level, origin
    )
