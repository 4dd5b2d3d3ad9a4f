"""`ExplorationConfig`: how a database is explored; imports nothing heavy."""

from __future__ import annotations

from dataclasses import dataclass

from sense_trl.errors import InputError
from sense_trl.options import option


@dataclass(frozen=True, slots=True)
class ExplorationConfig:
    """Settings of the exploration of a database."""

    num_per_database: int = option(
        "Questions to make for each database.", default=200, aliases=["--per_database"]
    )
    min_columns: int = option("Columns that a walk over the schema visits, at least.", default=3)
    max_columns: int = option("Columns that a walk over the schema visits, at most.", default=8)
    restart: float = option("Probability that a walk goes back to its start.", default=0.15)
    weighted_share: float = option(
        "Share of walks that go by how often seed queries join two columns.", default=0.5
    )
    template_share: float = option(
        "Share of queries filled into templates of seed queries, if there are.", default=0.5
    )
    max_per_template: int = option(
        "Questions of a database whose SQL differs in constants only.", default=2
    )
    max_per_shape: int = option(
        "Questions of a database whose SQL differs in names and constants only.", default=8
    )
    max_attempts_per_question: int = option(
        "Queries drawn for each question asked for, before giving up.", default=30
    )
    max_unusable_fraction: float = option(
        "Share of the seed questions whose SQL may be unreadable.", default=0.0
    )
    seed: int = option("Another seed gives other questions.", default=0)

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
