"""`RecursionData`: what the rounds of recursive distillation work on."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final

from sense_trl.prompts import Messages
from sense_trl.questions import Question
from sense_trl.sql.dialects import Dialects, get_dialect
from sense_trl.synthesis.example import SynthesizedExample
from sense_trl.synthesis.recursive.invention import get_invention_prompt

# In provenance, ids and rows.
METHOD: Final = "recursion"


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
