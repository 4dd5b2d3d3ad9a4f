"""Settings and data of the rounds of recursive distillation: `RecursionSettings`,
`RecursionData`."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final

from sense_trl.errors import InputError
from sense_trl.generation.generator import SamplingConfig
from sense_trl.prompts import Messages
from sense_trl.questions import Question
from sense_trl.sql.dialects import Dialects, get_dialect
from sense_trl.synthesis.example import SynthesizedExample
from sense_trl.synthesis.recursive.invention import get_invention_prompt

# In provenance, ids and rows.
METHOD: Final = "recursion"

_COUNTS: Final = (
    *("num_rounds", "num_samples", "max_new_tokens", "num_examples", "prompts_per_database"),
    *("max_questions_per_round", "max_per_template", "chunk_size"),
)


@dataclass(frozen=True, slots=True)
class RecursionSettings:
    """Settings of the rounds: their number, and what is written and kept in each.

    Attributes:
        num_rounds: at most; dev accuracy that falls ends the rounds earlier.
        skip_warm_up: the base model writes the first round, not one fine-tuned on gold alone.
        num_samples: completions per prompt and per question.
        temperature: of the sampling.
        max_new_tokens: limit of a completion; what reaches it is not kept.
        num_examples: gold examples in the prompt that asks for a new question.
        prompts_per_database: such prompts per database and round, each with other examples.
        max_questions_per_round: training questions answered in a round; `None` for all of its
            databases.
        max_per_template: invented queries per SQL template and database that are kept in a round.
        min_agreement: share of the samples that must return what an invented pair's SQL returns.
        gold_mix: synthesised rows per gold row at most.
        invention_share: share of the training rows that are also trained on as inventions. Without
            them the next round's model, trained to answer, no longer writes questions.
        chunk_size: prompts sampled and written to disk together.
        seed: of all draws.

    Raises:
        InputError: a value is out of its range.
    """

    num_rounds: int = 3
    skip_warm_up: bool = False
    num_samples: int = 8
    temperature: float = 0.8
    max_new_tokens: int = 128
    num_examples: int = 4
    prompts_per_database: int = 4
    max_questions_per_round: int | None = None
    max_per_template: int = 4
    min_agreement: float = 0.5
    gold_mix: float = 1.0
    invention_share: float = 0.5
    chunk_size: int = 8
    seed: int = 0

    def __post_init__(self) -> None:
        for name in _COUNTS:
            value = getattr(self, name)
            if value is not None and value < 1:
                raise InputError(f"`{name}` is {value}; expected at least 1.")
        if not self.temperature > 0:
            raise InputError(
                f"`temperature` is {self.temperature}; the samples must differ, so it has to be "
                "above 0, e.g. 0.8."
            )
        if not 0 < self.min_agreement <= 1:
            raise InputError(
                f"`min_agreement` is {self.min_agreement}; expected a share above 0 and at most 1."
            )
        if not self.gold_mix > 0:
            raise InputError(f"`gold_mix` is {self.gold_mix}; expected more than 0, e.g. 1.0.")
        if not 0 <= self.invention_share <= 1:
            raise InputError(
                f"`invention_share` is {self.invention_share}; expected a share in [0, 1]."
            )

    def get_sampling(self, number: int) -> SamplingConfig:
        """Sampling of the model in round `number`, with a seed of its own."""
        return SamplingConfig(
            num_generations=self.num_samples,
            temperature=self.temperature,
            max_new_tokens=self.max_new_tokens,
            seed=self.seed + number,
        )

    def get_random(self, number: int, purpose: str) -> random.Random:
        """Random numbers of a round for one purpose, whatever is drawn for others."""
        return random.Random(f"{self.seed}/{number}/{purpose}")


@dataclass(frozen=True, slots=True)
class RecursionData:
    """Data of the rounds: gold, held-out questions, schemas and prompts.

    Attributes:
        gold: training questions with gold SQL.
        dev: held-out questions. Nothing is kept that is close to one of them.
        schema_texts: by `db_id` of the training questions, as prompts show the schema.
        get_messages: the prompt that asks for the answer to a question.
        dialect: sqlglot dialect of all SQL, or a function that tells it by `db_id`.
    """

    gold: Sequence[Question]
    dev: Sequence[Question]
    schema_texts: Mapping[str, str]
    get_messages: Callable[[Question], Messages]
    dialect: Dialects

    def draw_examples(self, db_id: str, count: int, rng: random.Random) -> list[Question]:
        """Gold examples for a prompt: of the database itself as far as it has any."""
        own = [question for question in self.gold if question.db_id == db_id]
        others = [question for question in self.gold if question.db_id != db_id]
        drawn = rng.sample(own, min(count, len(own)))
        return rng.sample(others, min(count - len(drawn), len(others))) + drawn

    def get_invention_prompt(self, db_id: str, examples: Sequence[Question]) -> Messages:
        """The prompt that asks for a question about a database, and its SQL."""
        dialect = get_dialect(self.dialect, db_id)
        return get_invention_prompt(self.schema_texts[db_id], examples, dialect=dialect)

    def as_question(self, example: SynthesizedExample) -> Question:
        """The example as a question, with the evidence of the training question it answers."""
        question = example.as_question()
        for gold in self.gold:
            if (gold.db_id, gold.question) == (question.db_id, question.question):
                return replace(question, evidence=gold.evidence)
        return question
