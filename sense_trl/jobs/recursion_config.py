"""Settings of recursive distillation, apart from it so that the command line lists them at once."""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING

from sense_trl.errors import InputError
from sense_trl.jobs.own_data_config import OwnDataConfig
from sense_trl.jobs.quickstart_config import QuickstartConfig
from sense_trl.options import option_of

if TYPE_CHECKING:
    from sense_trl.synthesis.recursive.data import RecursionSettings


@dataclass
class RecursionConfig(OwnDataConfig):
    """Settings of recursive distillation; `sense-trl recurse` has one flag per field."""

    dev_questions: str | None = field(
        default=None,
        metadata={
            "help": "Questions with gold SQL that each round is evaluated on, on the same "
            "databases or others of `database`. A share of `questions` if not given."
        },
    )
    output_dir: str = option_of(QuickstartConfig, "output_dir", default="runs/recurse")
    dev_fraction: float = field(
        default=0.3,
        metadata={"help": "Share of `questions` held out, if neither `dev_questions` nor a split."},
    )
    max_dev_questions: int | None = field(
        default=None, metadata={"help": "Evaluate on at most this many questions, drawn at random."}
    )
    num_rounds: int = field(
        default=3, metadata={"help": "Rounds at most; they end when dev accuracy falls."}
    )
    skip_warm_up: bool = field(
        default=False,
        metadata={
            "help": "Let the model as it is write the first round, instead of one that was "
            "fine-tuned on gold alone."
        },
    )
    num_samples: int = field(
        default=8, metadata={"help": "Completions per prompt and per training question."}
    )
    temperature: float = option_of(QuickstartConfig, "temperature", default=0.8)
    max_new_tokens: int = field(
        default=96, metadata={"help": "Longest completion when generating, in tokens."}
    )
    num_examples: int = field(
        default=4, metadata={"help": "Gold examples in a prompt that asks for a new question."}
    )
    prompts_per_database: int = field(
        default=4, metadata={"help": "Such prompts per database and round."}
    )
    max_questions_per_round: int | None = field(
        default=None,
        metadata={"help": "Training questions answered per round at most, drawn at random."},
    )
    max_per_template: int = field(
        default=4, metadata={"help": "Invented queries kept per template, database and round."}
    )
    min_agreement: float = field(
        default=0.5,
        metadata={"help": "Share of the samples that must agree with an invented pair's result."},
    )
    suite_size: int = field(
        default=8,
        metadata={"help": "Neighbours of the database that answers must be right on, too."},
    )
    gold_mix: float = field(
        default=1.0, metadata={"help": "Synthesised rows per gold row in training, at most."}
    )
    invention_share: float = field(
        default=0.5,
        metadata={
            "help": "Share of the rows that are also trained on as inventions, so that the next "
            "round's model can still write questions."
        },
    )
    num_epochs: float = field(default=1.0, metadata={"help": "Epochs of each fine-tuning."})
    learning_rate: float = field(
        default=3e-4, metadata={"help": "Learning rate of each fine-tuning."}
    )
    train_batch_size: int = field(default=8, metadata={"help": "Rows per optimizer step."})
    lora_r: int | None = field(
        default=None,
        metadata={
            "help": "Train LoRA adapters of this rank and merge them, for models too large to "
            "train whole. All weights if not given."
        },
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
