"""`ExplorationConfig`: how a database is explored; imports nothing heavy."""

from __future__ import annotations

from dataclasses import dataclass, field

from sense_trl.errors import InputError


@dataclass(frozen=True, slots=True)
class ExplorationConfig:
    """Settings of the exploration of a database."""

    num_per_database: int = field(
        default=200,
        metadata={
            "help": "Questions to make for each database.",
            "aliases": ["--per_database"],
        },
    )
    min_columns: int = field(
        default=3, metadata={"help": "Columns that a walk over the schema visits, at least."}
    )
    max_columns: int = field(
        default=8, metadata={"help": "Columns that a walk over the schema visits, at most."}
    )
    restart: float = field(
        default=0.15, metadata={"help": "Probability that a walk goes back to its start."}
    )
    weighted_share: float = field(
        default=0.5,
        metadata={"help": "Share of walks that go by how often seed queries join two columns."},
    )
    template_share: float = field(
        default=0.5,
        metadata={"help": "Share of queries filled into templates of seed queries, if there are."},
    )
    max_per_template: int = field(
        default=2, metadata={"help": "Questions of a database whose SQL differs in constants only."}
    )
    max_per_shape: int = field(
        default=8,
        metadata={"help": "Questions of a database whose SQL differs in names and constants only."},
    )
    max_attempts_per_question: int = field(
        default=30,
        metadata={"help": "Queries drawn for each question asked for, before giving up."},
    )
    max_unusable_fraction: float = field(
        default=0.0,
        metadata={"help": "Share of the seed questions whose SQL may be unreadable."},
    )
    seed: int = field(default=0, metadata={"help": "Another seed gives other questions."})

    def __post_init__(self) -> None:
        for name in (
            "num_per_database",
            "max_per_template",
            "max_per_shape",
            "max_attempts_per_question",
        ):
            if getattr(self, name) < 1:
                raise InputError(f"`{name}` is {getattr(self, name)}; expected at least 1.")
        for name in ("template_share", "max_unusable_fraction"):
            if not 0 <= getattr(self, name) <= 1:
                raise InputError(f"`{name}` is {getattr(self, name)}; expected a share in [0, 1].")
