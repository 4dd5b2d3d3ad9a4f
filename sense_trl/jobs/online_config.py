"""Settings of online SENSE, apart from it so that the command line lists them at once."""

from __future__ import annotations

from dataclasses import dataclass

from sense_trl.errors import check_at_least, check_positive
from sense_trl.jobs.quickstart_config import QuickstartConfig
from sense_trl.jobs.recursion_config import RecursionConfig
from sense_trl.options import DataArguments, ExecutionOptions, GeneratorOptions, option, option_of


@dataclass(kw_only=True)
class OnlineConfig(ExecutionOptions, DataArguments):
    """Settings of online SENSE; `sense-trl online` has one flag per field."""

    model: str = option(
        "Model folder or hub id with a chat template that the first round starts from."
    )
    output_dir: str = option_of(QuickstartConfig, "output_dir", default="runs/online")
    overwrite: bool = option_of(RecursionConfig, "overwrite")
    num_rounds: int = option("Rounds of sampling and training.", default=3)
    questions_per_round: int | None = option(
        "Questions asked in a round, drawn anew for each; all if not given.", default=None
    )
    num_samples: int = option("Answers per question.", default=8)
    temperature: float = option_of(QuickstartConfig, "temperature", default=1.0)
    max_new_tokens: int = option_of(GeneratorOptions, "max_new_tokens")
    batch_size: int = option_of(RecursionConfig, "batch_size")
    pairs_per_question: int = option(
        "Pairs of a right and a wrong answer per question, at most.", default=1
    )
    policy: str = option(
        "Which right answer meets which wrong one; see `sense_trl.pairs.policies`.",
        default="nearest",
    )
    loss_type: list[str] = option(
        "Losses of `SenseDPOTrainer`, added up: cdpo, or cdpo and sft.",
        default_factory=lambda: ["cdpo"],
    )
    beta: float = option("How near the policy is held to the model before the round.", default=0.1)
    label_smoothing: float | None = option(
        "Probability that a pair's label is wrong; 0.1 for cdpo if not given.", default=None
    )
    num_epochs: float = option("Epochs of each training.", default=1.0)
    learning_rate: float = option("Learning rate of each training.", default=2e-5)
    train_batch_size: int = option("Pairs per optimizer step.", default=8)
    lora_r: int | None = option_of(RecursionConfig, "lora_r")
    max_length: int = option_of(RecursionConfig, "max_length")
    seed: int = option_of(RecursionConfig, "seed")

    def __post_init__(self) -> None:
        lowest = {"num_rounds": 1, "num_samples": 2, "pairs_per_question": 1, "seed": 0}
        lowest |= {"questions_per_round": 1, "batch_size": 1, "train_batch_size": 1, "lora_r": 1}
        lowest |= {"max_new_tokens": 1, "max_length": 2}
        for name, least in lowest.items():
            check_at_least(least, **{name: getattr(self, name)})
        for name in ("temperature", "num_epochs", "learning_rate", "beta"):
            check_positive(**{name: getattr(self, name)})
