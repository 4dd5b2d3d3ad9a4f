"""Graphics cards, and how long a training step takes on one."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from sense_trl.memory.estimate import MemoryEstimate
from sense_trl.memory.training_setup import TrainingSetup

UTILISATION: Final = 0.35
"""Share of a card's peak that a training step is assumed to reach; not measured here."""

# Each 4-bit weight is read, written in 16 bits and read again, for every pass over the layers.
_BYTES_PER_4_BIT_WEIGHT: Final = 4.5
# AdamW in 32 bits reads gradient, weight and two moments, and writes three of them.
_OPTIMIZER_BYTES: Final = 28


@dataclass(frozen=True, slots=True)
class Card:
    """A graphics card by the figures of its maker.

    Attributes:
        name: of the product.
        memory_gib: memory in GiB; a desktop on the same card takes some of it.
        bf16_tflops: peak of dense bfloat16 matrix products with 32-bit sums, in 10^12 per second.
        bandwidth_gb_s: of its memory, in 10^9 bytes per second.
    """

    name: str
    memory_gib: float
    bf16_tflops: float
    bandwidth_gb_s: float

    @property
    def memory_bytes(self) -> int:
        """Memory in bytes."""
        return int(self.memory_gib * 2**30)


CARDS: Final = {
    "8": Card("GeForce RTX 4060", 8, 30.2, 272),
    "12": Card("GeForce RTX 4070", 12, 58.3, 504),
    "16": Card("GeForce RTX 4080", 16, 97.5, 717),
    "24": Card("GeForce RTX 4090", 24, 165.2, 1008),
    "40": Card("A100 40 GB", 40, 312, 1555),
    "80": Card("H100 80 GB SXM", 80, 989, 3350),
}
"""Common cards by their memory in GB, with the figures of NVIDIA's data sheets."""


def estimate_step_seconds(setup: TrainingSetup, estimate: MemoryEstimate, card: Card) -> float:
    """Time of one optimizer step of a setup on a card, in seconds.

    Operations at the assumed share of the peak, plus the memory traffic of the weights, one after
    the other. Reading and preparing data, logging and evaluation are not counted.
    """
    passes = 2 + setup.model.activation_checkpointing + setup.reference_passes
    per_weight = _BYTES_PER_4_BIT_WEIGHT if setup.model.load_in_4bit else 2
    traffic = setup.accumulation_steps * passes * per_weight * estimate.num_parameters
    traffic += _OPTIMIZER_BYTES * estimate.num_trained
    seconds = count_step_flops(setup, estimate) / (card.bf16_tflops * 1e12 * UTILISATION)
    return seconds + traffic / (card.bandwidth_gb_s * 1e9)


def count_step_flops(setup: TrainingSetup, estimate: MemoryEstimate) -> int:
    """Floating-point operations of one optimizer step, all micro-batches as large as estimated."""
    profile = estimate.profile
    flops = profile.flops + setup.reference_passes * profile.forward_flops
    # A rewritten answer is the student's own: one more pass of it.
    flops += profile.forward_flops // 2 if setup.rewrites else 0
    flops += 2 * estimate.teacher_parameters * estimate.tokens
    return setup.accumulation_steps * flops
