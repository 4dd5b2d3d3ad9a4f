"""`TrainingRow`: what a round of recursive distillation fine-tunes on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from sense_trl.prompts import Messages
from sense_trl.synthesis.example import SynthesizedExample
from sense_trl.synthesis.recursive.config import RecursionSettings
from sense_trl.synthesis.recursive.data import METHOD, RecursionData
from sense_trl.synthesis.recursive.invention import format_invention


@dataclass(frozen=True, slots=True)
class TrainingRow:
    """One row to fine-tune on.

    Attributes:
        question_id: of the gold question or of the synthesised example.
        db_id: the database.
        task: `"answer"` (question to SQL) or `"invent"` (examples to question and SQL).
        source: `"gold"` or `"recursion"`.
        prompt: the conversation.
        completion: what the model is to write.
    """

    question_id: str
    db_id: str
    task: Literal["answer", "invent"]
    source: str
    prompt: Messages
    completion: str


def make_training_rows(
    data: RecursionData,
    settings: RecursionSettings,
    number: int,
    kept: Sequence[SynthesizedExample],
) -> list[TrainingRow]:
    """All gold, at most `gold_mix` times as much of what was kept, and inventions of both.

    Args:
        data: gold, and how prompts are built.
        settings: the shares, and the seed of the draws.
        number: of the round.
        kept: synthesised examples to draw from.
    """
    rng = settings.get_random(number, "rows")
    limit = min(len(kept), round(settings.gold_mix * len(data.gold)))
    chosen = [(data.as_question(example), METHOD) for example in rng.sample(kept, limit)]
    sources = [*((question, "gold") for question in data.gold), *chosen]
    rows = [
        TrainingRow(
            question.question_id,
            question.db_id,
            "answer",
            source,
            data.get_messages(question),
            question.gold_sql,
        )
        for question, source in sources
    ]
    shown = {
        db_id: data.draw_examples(
            db_id, settings.num_examples, settings.get_random(number, f"shown/{db_id}")
        )
        for db_id in sorted({question.db_id for question, _ in sources})
    }
    for question, source in rng.sample(sources, round(settings.invention_share * len(sources))):
        examples = shown[question.db_id]
        # The prompt must not show what is to be written.
        if question.question not in [example.question for example in examples]:
            rows.append(
                TrainingRow(
                    question.question_id,
                    question.db_id,
                    "invent",
                    source,
                    data.get_invention_prompt(question.db_id, examples),
                    format_invention(question.question, question.gold_sql),
                )
            )
    return rows
