"""Settings of recursive distillation, apart from it so that the command line lists them at once."""

from __future__ import annotations

from dataclasses import dataclass

from sense_trl.errors import InputError, check_at_least, check_positive
from sense_trl.jobs.own_data_config import OwnDataConfig
from sense_trl.jobs.quickstart_config import QuickstartConfig
from sense_trl.options import option, option_of
from sense_trl.synthesis.recursive.config import RecursionSettings


@dataclass
class RecursionConfig(RecursionSettings, OwnDataConfig):
    """Settings of recursive distillation; `sense-trl recurse` has one flag per field."""

    dev_questions: str | None = option(
        "Questions with gold SQL that each round is evaluated on, on the same databases or others "
        "of `database`. A share of `questions` if not given.",
        default=None,
    )
    output_dir: str = option_of(QuickstartConfig, "output_dir", default="runs/recurse")
    dev_fraction: float = option(
        "Share of `questions` held out, if neither `dev_questions` nor a split.", default=0.3
    )
    max_dev_questions: int | None = option(
        "Evaluate on at most this many questions, drawn at random.", default=None
    )
    max_new_tokens: int = option_of(RecursionSettings, "max_new_tokens", default=96)
    suite_size: int = option(
        "Neighbours of the database that answers must be right on, too.", default=8
    )
    num_epochs: float = option("Epochs of each fine-tuning.", default=1.0)
    learning_rate: float = option("Learning rate of each fine-tuning.", default=3e-4)
    train_batch_size: int = option("Rows per optimizer step.", default=8)
    lora_r: int | None = option(
        "Train LoRA adapters of this rank and merge them, for models too large to train whole. All "
        "weights if not given.",
        default=None,
    )
    seed: int = option_of(OwnDataConfig, "seed")

    def __post_init__(self) -> None:
        OwnDataConfig.__post_init__(self)
        if self.dev_questions is not None and self.questions is None:
            raise InputError("`dev_questions` is given without `questions`. Give both, or neither.")
        check_positive(num_epochs=self.num_epochs, learning_rate=self.learning_rate)
        sizes = {"train_batch_size": self.train_batch_size, "suite_size": self.suite_size}
        check_at_least(1, **sizes, lora_r=self.lora_r)
        RecursionSettings.__post_init__(self)
