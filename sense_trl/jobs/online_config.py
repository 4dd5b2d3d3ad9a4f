"""Settings of online SENSE, apart from it so that the command line lists them at once."""

from __future__ import annotations

from dataclasses import dataclass, field

from sense_trl.errors import InputError
from sense_trl.jobs.quickstart_config import QuickstartConfig
from sense_trl.jobs.recursion_config import RecursionConfig
from sense_trl.options import DataArguments, ExecutionOptions, GeneratorOptions, option_of


@dataclass
class OnlineConfig(ExecutionOptions, DataArguments):
    """Settings of online SENSE; `sense-trl online` has one flag per field."""

    model: str = field(
        kw_only=True,
        metadata={
            "help": "Model folder or hub id with a chat template that the first round starts from."
        },
    )
    output_dir: str = option_of(QuickstartConfig, "output_dir", default="runs/online")
    overwrite: bool = option_of(RecursionConfig, "overwrite")
    num_rounds: int = field(default=3, metadata={"help": "Rounds of sampling and training."})
    questions_per_round: int | None = field(
        default=None,
        metadata={"help": "Questions asked in a round, drawn anew for each; all if not given."},
    )
    num_samples: int = field(default=8, metadata={"help": "Answers per question."})
    temperature: float = option_of(QuickstartConfig, "temperature", default=1.0)
    max_new_tokens: int = option_of(GeneratorOptions, "max_new_tokens")
    batch_size: int = option_of(RecursionConfig, "batch_size")
    pairs_per_question: int = field(
        default=1, metadata={"help": "Pairs of a right and a wrong answer per question, at most."}
    )
    policy: str = field(
        default="nearest",
        metadata={
            "help": "Which right answer meets which wrong one; see `sense_trl.pairs.policies`."
        },
    )
    loss_type: list[str] = field(
        default_factory=lambda: ["cdpo"],
        metadata={"help": "Losses of `SenseDPOTrainer`, added up: cdpo, or cdpo and sft."},
    )
    beta: float = field(
        default=0.1, metadata={"help": "How near the policy is held to the model before the round."}
    )
    label_smoothing: float | None = field(
        default=None,
        metadata={"help": "Probability that a pair's label is wrong; 0.1 for cdpo if not given."},
    )
    num_epochs: float = field(default=1.0, metadata={"help": "Epochs of each training."})
    learning_rate: float = field(default=2e-5, metadata={"help": "Learning rate of each training."})
    train_batch_size: int = field(default=8, metadata={"help": "Pairs per optimizer step."})
    lora_r: int | None = option_of(RecursionConfig, "lora_r")
    max_length: int = option_of(RecursionConfig, "max_length")
    seed: int = option_of(RecursionConfig, "seed")

    def __post_init__(self) -> None:
        lowest = {"num_rounds": 1, "num_samples": 2, "pairs_per_question": 1, "seed": 0}
        lowest |= {"questions_per_round": 1, "batch_size": 1, "train_batch_size": 1, "lora_r": 1}
        lowest |= {"max_new_tokens": 1, "max_length": 2}
        for name, least in lowest.items():
            value = getattr(self, name)
            if value is not None and value < least:
                raise InputError(f"`{name}` is {value}; expected at least {least}.")
        for name in ("temperature", "num_epochs", "learning_rate", "beta"):
            if not getattr(self, name) > 0:
                raise InputError(f"`{name}` is {getattr(self, name)}; expected more than 0.")
