"""`StrongDataConfig`: the settings of `build_strong_data`; imports nothing heavy."""

from __future__ import annotations

from dataclasses import dataclass

from sense_trl.errors import InputError
from sense_trl.options import ExecutionOptions, option, option_of


@dataclass(frozen=True, slots=True)
class StrongDataConfig:
    """Settings of data from a strong model: how it is asked, and what is kept.

    Raises:
        InputError: a value is out of its range.
    """

    num_calls: int = option("Data points to ask for.", default=100)
    calls_per_round: int = option(
        "Calls whose prompts are written before any of them is answered, so that they can be under "
        "way together: a domain is closed from the next round on. What an interruption loses.",
        default=32,
    )
    max_per_domain: int = option("Answers from one domain; later ones are left out.", default=3)
    suggest_domains: bool = option(
        "Name a domain in each prompt instead of those that are closed, each of 159 in turn. For "
        "small models, which take up what they are told to leave.",
        default=False,
    )
    temperature: float = option("Sampling temperature.", default=1.0)
    top_p: float = option("Nucleus share.", default=1.0)
    max_new_tokens: int = option("Longest answer, in tokens.", default=2048)
    num_rows: int = option("Rows per table; twice as many where it has foreign keys.", default=30)
    max_fills: int = option(
        "Times a database is filled with other rows while its query finds nothing or has several "
        "answers.",
        default=4,
    )
    num_round_trip_samples: int = option(
        "Have the model answer its own question so many times, and keep what one of the answers "
        "confirms; 0 does not ask.",
        default=0,
    )
    min_similarity: float = option(
        "Trigram similarity to a question of an excluded set from which on an example is left out.",
        default=0.6,
    )
    timeout_s: float = option_of(ExecutionOptions, "timeout_s", default=10.0)
    seed: int = option("Draws the examples shown, the levels and the rows.", default=0)

    def __post_init__(self) -> None:
        for name in ("num_calls", "calls_per_round", "max_per_domain", "num_rows", "max_fills"):
            if getattr(self, name) < 1:
                raise InputError(f"`{name}` is {getattr(self, name)}; expected at least 1.")
        if not self.timeout_s > 0:
            raise InputError(f"`timeout_s` is {self.timeout_s}; expected seconds above 0.")
        if self.num_round_trip_samples < 0:
            raise InputError(
                f"`num_round_trip_samples` is {self.num_round_trip_samples}; expected 0 or more."
            )
