"""`SamplingConfig`: how completions are drawn, and the seed of each."""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass

from sense_trl.errors import InputError, check_at_least


@dataclass(frozen=True, slots=True)
class SamplingConfig:
    """Settings of sampling: number, temperature, length and seed.

    Attributes:
        num_generations: completions per prompt.
        temperature: 0 is greedy decoding; greedy decoding gives one completion per prompt. Below
            1e-5, where the probabilities of real logits are 0 and 1, sampling is greedy as well.
        top_p: nucleus sampling; 1 keeps the whole distribution.
        max_new_tokens: limit per completion. A completion that reaches it is marked unfinished.
        seed: every completion's random numbers come from (seed, prompt, index of the completion)
            alone, so that they do not depend on batch size, order or an interruption.
        stop_at_fence: a completion ends, and is finished, where its first fenced block with a query
            is closed; the generator knows what that is.
    """

    num_generations: int = 1
    temperature: float = 0.0
    top_p: float = 1.0
    max_new_tokens: int = 256
    seed: int = 0
    stop_at_fence: bool = False

    def __post_init__(self) -> None:
        check_at_least(1, num_generations=self.num_generations, max_new_tokens=self.max_new_tokens)
        if not (math.isfinite(self.temperature) and self.temperature >= 0):
            raise InputError(
                f"`temperature` is {self.temperature}; expected 0 (greedy) or a finite number "
                "above it."
            )
        if not 0 < self.top_p <= 1:
            raise InputError(f"`top_p` is {self.top_p}; expected a share in (0, 1].")
        if self.temperature == 0 and self.num_generations > 1:
            raise InputError(
                f"`num_generations` is {self.num_generations} with `temperature` 0: greedy "
                "decoding would write the same completion each time. Set a temperature, e.g. 1.0."
            )


def completion_seed(seed: int, prompt_key: str, index: int) -> int:
    """A 63-bit seed for completion `index` of the prompt identified by `prompt_key`."""
    digest = hashlib.sha256(f"{seed}\x00{index}\x00{prompt_key}".encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1
