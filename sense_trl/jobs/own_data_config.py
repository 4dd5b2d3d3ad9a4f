"""Settings of commands that work on one's own database, or on the embedded one."""

from __future__ import annotations

from dataclasses import dataclass
from importlib.resources import files

from sense_trl.errors import InputError, check_at_least
from sense_trl.options import DataArguments, PromptOptions, option, option_of

MODEL_NAME = "SmolLM2-135M-Instruct"


@dataclass
class OwnDataConfig(PromptOptions):
    """Options of jobs on the user's own data: data, model and prompts; one flag per field."""

    database: str | None = option_of(
        DataArguments, "database", default=None, note="The embedded nycflights if not given."
    )
    questions: str | None = option_of(DataArguments, "questions", default=None)
    model: str | None = option(
        f"Model folder or hub id with a chat template; {MODEL_NAME} if not given.", default=None
    )
    overwrite: bool = option("Delete what is in the output folder and start over.", default=False)
    max_train_questions: int | None = option(
        "Train on at most this many questions, drawn at random.", default=None
    )
    batch_size: int = option("Completions written at the same time when generating.", default=64)
    max_length: int = option(
        "Longest prompt plus answer in tokens; longer ones stop the run.", default=2048
    )
    max_unusable_fraction: float = option_of(DataArguments, "max_unusable_fraction")
    seed: int = option("Seed of everything random.", default=0)

    def __post_init__(self) -> None:
        if (self.database is None) != (self.questions is None):
            given, missing = (
                ("database", "questions") if self.database else ("questions", "database")
            )
            raise InputError(
                f"`{given}` is given without `{missing}`. Give both, or neither for the embedded "
                "example."
            )
        check_at_least(1, batch_size=self.batch_size, max_length=self.max_length)
        check_at_least(0, seed=self.seed)

    def get_data_paths(self) -> tuple[str, str]:
        """The database and the questions; those of the embedded example if none are given."""
        embedded = files("sense_trl") / "data" / "nycflights"
        return (
            self.database or str(embedded / "nycflights.sqlite"),
            self.questions or str(embedded / "questions.jsonl"),
        )
