"""`RecursionSettings`: the options of the rounds of recursive distillation."""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import Final

from sense_trl.errors import InputError
from sense_trl.generation.generator import SamplingConfig
from sense_trl.options import option

_COUNTS: Final = (
    *("num_rounds", "num_samples", "max_new_tokens", "num_examples", "prompts_per_database"),
    *("max_questions_per_round", "max_per_template"),
)


@dataclass
class RecursionSettings:
    """Settings of the rounds: their number, and what is written and kept in each.

    Raises:
        InputError: a value is out of its range.
    """

    num_rounds: int = option("Rounds at most; they end when dev accuracy falls.", default=3)
    skip_warm_up: bool = option(
        "Let the model as it is write the first round, instead of one that was fine-tuned on gold "
        "alone.",
        default=False,
    )
    num_samples: int = option("Completions per prompt and per training question.", default=8)
    temperature: float = option("Temperature of the samples, which must differ.", default=0.8)
    max_new_tokens: int = option("Longest completion when generating, in tokens.", default=128)
    num_examples: int = option("Gold examples in a prompt that asks for a new question.", default=4)
    prompts_per_database: int = option("Such prompts per database and round.", default=4)
    max_questions_per_round: int | None = option(
        "Training questions answered per round at most, drawn at random.", default=None
    )
    max_per_template: int = option(
        "Invented queries kept per template, database and round.", default=4
    )
    min_agreement: float = option(
        "Share of the samples that must agree with an invented pair's result.", default=0.5
    )
    gold_mix: float = option("Synthesised rows per gold row in training, at most.", default=1.0)
    invention_share: float = option(
        "Share of the rows that are also trained on as inventions, so that the next round's model "
        "can still write questions.",
        default=0.5,
    )
    seed: int = option("Seed of all draws.", default=0)

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
