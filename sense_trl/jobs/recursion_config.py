"""Settings of recursive distillation, apart from it so that the command line lists them at once."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import TYPE_CHECKING

from sense_trl.errors import InputError
from sense_trl.jobs.own_data_config import OwnDataConfig
from sense_trl.jobs.quickstart_config import QuickstartConfig
from sense_trl.options import option, option_of

if TYPE_CHECKING:
    from sense_trl.synthesis.recursive.data import RecursionSettings


@dataclass
class RecursionConfig(OwnDataConfig):
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
    num_rounds: int = option("Rounds at most; they end when dev accuracy falls.", default=3)
    skip_warm_up: bool = option(
        "Let the model as it is write the first round, instead of one that was fine-tuned on gold "
        "alone.",
        default=False,
    )
    num_samples: int = option("Completions per prompt and per training question.", default=8)
    temperature: float = option_of(QuickstartConfig, "temperature", default=0.8)
    max_new_tokens: int = option("Longest completion when generating, in tokens.", default=96)
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
    suite_size: int = option(
        "Neighbours of the database that answers must be right on, too.", default=8
    )
    gold_mix: float = option("Synthesised rows per gold row in training, at most.", default=1.0)
    invention_share: float = option(
        "Share of the rows that are also trained on as inventions, so that the next round's model "
        "can still write questions.",
        default=0.5,
    )
    num_epochs: float = option("Epochs of each fine-tuning.", default=1.0)
    learning_rate: float = option("Learning rate of each fine-tuning.", default=3e-4)
    train_batch_size: int = option("Rows per optimizer step.", default=8)
    lora_r: int | None = option(
        "Train LoRA adapters of this rank and merge them, for models too large to train whole. All "
        "weights if not given.",
        default=None,
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.dev_questions is not None and self.questions is None:
            raise InputError("`dev_questions` is given without `questions`. Give both, or neither.")
        for name in ("num_epochs", "learning_rate"):
            if not getattr(self, name) > 0:
                raise InputError(f"`{name}` is {getattr(self, name)}; expected more than 0.")
        for name in ("train_batch_size", "suite_size", "lora_r"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise InputError(f"`{name}` is {value}; expected at least 1.")
        self.get_settings()

    def get_settings(self) -> RecursionSettings:
        """The settings of the rounds themselves.

        Raises:
            InputError: a value is out of its range.
        """
        from sense_trl.synthesis.recursive.data import RecursionSettings

        names = {setting.name for setting in fields(RecursionSettings)} - {"chunk_size"}
        return RecursionSettings(
            **{name: getattr(self, name) for name in names},
            # Enough prompts to fill a batch: what a crash can cost is one chunk.
            chunk_size=max(1, self.batch_size // max(1, self.num_samples)),
        )
