"""`SQLGenerator`: what every model that writes SQL looks like to the rest of the package."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from sense_trl.errors import InputError
from sense_trl.prompts import Messages


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
    """

    num_generations: int = 1
    temperature: float = 0.0
    top_p: float = 1.0
    max_new_tokens: int = 256
    seed: int = 0

    def __post_init__(self) -> None:
        if self.num_generations < 1:
            raise InputError(f"`num_generations` is {self.num_generations}; expected at least 1.")
        if not (math.isfinite(self.temperature) and self.temperature >= 0):
            raise InputError(
                f"`temperature` is {self.temperature}; expected 0 (greedy) or a finite number "
                "above it."
            )
        if not 0 < self.top_p <= 1:
            raise InputError(f"`top_p` is {self.top_p}; expected a share in (0, 1].")
        if self.max_new_tokens < 1:
            raise InputError(f"`max_new_tokens` is {self.max_new_tokens}; expected at least 1.")
        if self.temperature == 0 and self.num_generations > 1:
            raise InputError(
                f"`num_generations` is {self.num_generations} with `temperature` 0: greedy "
                "decoding would write the same completion each time. Set a temperature, e.g. 1.0."
            )


@dataclass(frozen=True, slots=True)
class Completion:
    """One answer of a model.

    Attributes:
        text: what the model wrote, without special tokens.
        num_tokens: generated tokens, the end token included.
        finished: the model ended by itself, before `max_new_tokens`.
    """

    text: str
    num_tokens: int
    finished: bool


class SQLGenerator(Protocol):
    """Writes completions for prompts."""

    @property
    def name(self) -> str:
        """The model's name in provenance columns and reports."""

    def generate(
        self,
        prompts: Sequence[Messages],
        sampling: SamplingConfig,
        *,
        on_progress: Callable[[int], None] | None = None,
    ) -> list[list[Completion]]:
        """Write `sampling.num_generations` completions for each prompt.

        Args:
            prompts: conversations as `get_prompt` builds them.
            sampling: how to sample.
            on_progress: called with the number of completions finished since the last call.

        Returns:
            One list per prompt, in the order of `prompts`.
        """


@runtime_checkable
class ResumableGenerator(SQLGenerator, Protocol):
    """Writes every completion by itself, and goes on where an interruption left some of them.

    What a server was paid for is kept one by one; a model in this process, whose batches round
    differently with another make-up, is no such generator.
    """

    def resume(
        self,
        prompts: Sequence[Messages],
        sampling: SamplingConfig,
        answered: Sequence[Mapping[int, Completion]],
        on_answers: Callable[[int, Mapping[int, Completion]], None],
        *,
        on_progress: Callable[[int], None] | None = None,
    ) -> list[list[Completion]]:
        """Write the completions that are missing.

        Args:
            prompts: conversations as `get_prompt` builds them.
            sampling: how to sample.
            answered: for each prompt the completions that are there, by the number of the sample.
            on_answers: called with the index of a prompt and completions of it as soon as they are
                there.
            on_progress: called with the number of completions finished since the last call.

        Returns:
            One list per prompt, those that were there included.
        """


def completion_seed(seed: int, prompt_key: str, index: int) -> int:
    """A 63-bit seed for completion `index` of the prompt identified by `prompt_key`."""
    digest = hashlib.sha256(f"{seed}\x00{index}\x00{prompt_key}".encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1
