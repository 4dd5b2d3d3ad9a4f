"""Settings of the quickstart, apart from it so that the command line can list them at once."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Final

from sense_trl.errors import InputError
from sense_trl.jobs.own_data_config import OwnDataConfig

# 111 questions on a small library taught SmolLM2-135M 12.5 % of 48 held-out ones in one epoch, 50 %
# in four.
_MIN_EXAMPLES_SEEN: Final = 256


@dataclass
class QuickstartConfig(OwnDataConfig):
    """Settings of the quickstart; `sense-trl quickstart` has one flag per field."""

    output_dir: str = field(
        default="runs/quickstart",
        metadata={"help": "Folder for everything the run writes; a second run there continues."},
    )
    test_fraction: float = field(
        default=0.3,
        metadata={"help": "Share of the questions held out for testing, if they name no split."},
    )
    max_test_questions: int | None = field(
        default=None, metadata={"help": "Test on at most this many questions, drawn at random."}
    )
    max_new_tokens: int = field(
        default=80, metadata={"help": "Longest answer when generating, in tokens."}
    )
    sft_epochs: float | None = field(
        default=None,
        metadata={
            "help": "Epochs of supervised fine-tuning. If not given, the fewest in which "
            f"{_MIN_EXAMPLES_SEEN} examples are seen, at least 1."
        },
    )
    sft_learning_rate: float = field(
        default=3e-4, metadata={"help": "Learning rate of supervised fine-tuning."}
    )
    sft_batch_size: int = field(
        default=8, metadata={"help": "Questions per optimizer step of supervised fine-tuning."}
    )
    max_sampled_questions: int | None = field(
        default=160,
        metadata={
            "help": "Sample candidates for at most this many training questions, drawn at random: "
            "most of them give a pair, and only `max_pairs` are trained on."
        },
    )
    num_generations: int = field(
        default=2, metadata={"help": "Candidates the weak model samples per sampled question."}
    )
    temperature: float = field(default=1.0, metadata={"help": "Temperature of that sampling."})
    pairs_per_question: int = field(
        default=1, metadata={"help": "Preference pairs per question at most."}
    )
    max_pairs: int | None = field(
        default=120,
        metadata={"help": "Train on at most this many pairs, drawn at random."},
    )
    dpo_epochs: float = field(default=1.0, metadata={"help": "Epochs of preference training."})
    dpo_learning_rate: float = field(
        default=5e-4, metadata={"help": "Learning rate of preference training (LoRA)."}
    )
    dpo_batch_size: int = field(
        default=4, metadata={"help": "Pairs per optimizer step of preference training."}
    )
    beta: float = field(default=0.1, metadata={"help": "DPO's beta."})
    label_smoothing: float = field(
        default=0.1, metadata={"help": "cDPO's share of labels assumed to be wrong."}
    )
    sft_weight: float = field(
        default=1.0,
        metadata={"help": "Weight of the supervised loss on the chosen answer beside cDPO."},
    )
    lora_r: int = field(default=16, metadata={"help": "Rank of the LoRA adapters."})

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("sft_epochs", "dpo_epochs", "sft_learning_rate", "dpo_learning_rate", "beta"):
            if getattr(self, name) is not None and not getattr(self, name) > 0:
                raise InputError(f"`{name}` is {getattr(self, name)}; expected more than 0.")
        for name in (
            "sft_batch_size",
            "dpo_batch_size",
            "max_new_tokens",
            "num_generations",
            "pairs_per_question",
            "lora_r",
        ):
            if getattr(self, name) < 1:
                raise InputError(f"`{name}` is {getattr(self, name)}; expected at least 1.")
        if not 0 <= self.label_smoothing < 0.5:
            raise InputError(
                f"`label_smoothing` is {self.label_smoothing}; expected a share in [0, 0.5)."
            )
        if self.sft_weight < 0:
            raise InputError(f"`sft_weight` is {self.sft_weight}; expected 0 or more.")
        if self.max_pairs is not None and self.max_pairs < 1:
            raise InputError(f"`max_pairs` is {self.max_pairs}; expected at least 1.")
        if not self.temperature > 0:
            raise InputError(
                f"`temperature` is {self.temperature}; the candidates must differ, so it has to be "
                "above 0, e.g. 1.0."
            )

    def get_sft_epochs(self, num_questions: int) -> float:
        """`sft_epochs`, or what it is for so many training questions."""
        if self.sft_epochs is not None:
            return self.sft_epochs
        return max(1, math.ceil(_MIN_EXAMPLES_SEEN / num_questions))
