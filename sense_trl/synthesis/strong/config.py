"""`StrongDataConfig`: the settings of `build_strong_data`; imports nothing heavy."""

from __future__ import annotations

from dataclasses import dataclass, field

from sense_trl.errors import InputError
from sense_trl.options import ExecutionOptions, option_of


@dataclass(frozen=True, slots=True)
class StrongDataConfig:
    """Settings of data from a strong model: how it is asked, and what is kept.

    Raises:
        InputError: a value is out of its range.
    """

    num_calls: int = field(default=100, metadata={"help": "Data points to ask for."})
    calls_per_round: int = field(
        default=32,
        metadata={
            "help": "Calls whose prompts are written before any of them is answered, so that they "
            "can be under way together: a domain is closed from the next round on. What an "
            "interruption loses."
        },
    )
    max_per_domain: int = field(
        default=3, metadata={"help": "Answers from one domain; later ones are left out."}
    )
    temperature: float = field(default=1.0, metadata={"help": "Sampling temperature."})
    top_p: float = field(default=1.0, metadata={"help": "Nucleus share."})
    max_new_tokens: int = field(default=2048, metadata={"help": "Longest answer, in tokens."})
    num_rows: int = field(
        default=30, metadata={"help": "Rows per table; twice as many where it has foreign keys."}
    )
    max_fills: int = field(
        default=4,
        metadata={
            "help": "Times a database is filled with other rows while its query finds nothing or "
            "has several answers."
        },
    )
    num_round_trip_samples: int = field(
        default=0,
        metadata={
            "help": "Have the model answer its own question so many times, and keep what one of "
            "the answers confirms; 0 does not ask."
        },
    )
    min_similarity: float = field(
        default=0.6,
        metadata={
            "help": "Trigram similarity to a question of an excluded set from which on an example "
            "is left out."
        },
    )
    timeout_s: float = option_of(ExecutionOptions, "timeout_s", default=10.0)
    seed: int = field(
        default=0, metadata={"help": "Draws the examples shown, the levels and the rows."}
    )

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
