"""Settings of the quickstart, apart from it so that the command line can list them at once."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Final

from sense_trl.errors import InputError, check_at_least, check_positive
from sense_trl.jobs.own_data_config import OwnDataConfig
from sense_trl.options import option

# 111 questions on a small library taught SmolLM2-135M 12.5 % of 48 held-out ones in one epoch, 50 %
# in four.
_MIN_EXAMPLES_SEEN: Final = 256


@dataclass
class QuickstartConfig(OwnDataConfig):
    """Settings of the quickstart; `sense-trl quickstart` has one flag per field."""

    output_dir: str = option(
        "Folder for everything the run writes; a second run there continues.",
        default="runs/quickstart",
    )
    test_fraction: float = option(
        "Share of the questions held out for testing, if they name no split.", default=0.3
    )
    max_test_questions: int | None = option(
        "Test on at most this many questions, drawn at random.", default=None
    )
    max_new_tokens: int = option("Longest answer when generating, in tokens.", default=80)
    sft_epochs: float | None = option(
        "Epochs of supervised fine-tuning. If not given, the fewest in which "
        f"{_MIN_EXAMPLES_SEEN} examples are seen, at least 1.",
        default=None,
    )
    sft_learning_rate: float = option("Learning rate of supervised fine-tuning.", default=3e-4)
    sft_batch_size: int = option(
        "Questions per optimizer step of supervised fine-tuning.", default=8
    )
    max_sampled_questions: int | None = option(
        "Sample candidates for at most this many training questions, drawn at random: most of them "
        "give a pair, and only `max_pairs` are trained on.",
        default=160,
    )
    num_generations: int = option(
        "Candidates the weak model samples per sampled question.", default=2
    )
    temperature: float = option("Temperature of that sampling.", default=1.0)
    pairs_per_question: int = option("Preference pairs per question at most.", default=1)
    max_pairs: int | None = option(
        "Train on at most this many pairs, drawn at random.", default=120
    )
    dpo_epochs: float = option("Epochs of preference training.", default=1.0)
    dpo_learning_rate: float = option("Learning rate of preference training (LoRA).", default=5e-4)
    dpo_batch_size: int = option("Pairs per optimizer step of preference training.", default=4)
    beta: float = option("DPO's beta.", default=0.1)
    label_smoothing: float = option("cDPO's share of labels assumed to be wrong.", default=0.1)
    sft_weight: float = option(
        "Weight of the supervised loss on the chosen answer beside cDPO.", default=1.0
    )
    lora_r: int = option("Rank of the LoRA adapters.", default=16)

    def __post_init__(self) -> None:
        super().__post_init__()
        check_positive(
            sft_epochs=self.sft_epochs,
            dpo_epochs=self.dpo_epochs,
            sft_learning_rate=self.sft_learning_rate,
            dpo_learning_rate=self.dpo_learning_rate,
            beta=self.beta,
        )
        check_at_least(
            1,
            sft_batch_size=self.sft_batch_size,
            dpo_batch_size=self.dpo_batch_size,
            max_new_tokens=self.max_new_tokens,
            num_generations=self.num_generations,
            pairs_per_question=self.pairs_per_question,
            max_pairs=self.max_pairs,
            lora_r=self.lora_r,
        )
        check_at_least(0, sft_weight=self.sft_weight)
        if not 0 <= self.label_smoothing < 0.5:
            raise InputError(
                f"`label_smoothing` is {self.label_smoothing}; expected a share in [0, 0.5)."
            )
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
