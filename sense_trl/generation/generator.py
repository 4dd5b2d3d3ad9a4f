"""`SQLGenerator`: what every model that writes SQL looks like to the rest of the package."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from sense_trl.decoding.sampling import SamplingConfig, completion_seed
from sense_trl.prompts import Messages

__all__ = [
    "Completion",
    "ResumableGenerator",
    "SQLGenerator",
    "SamplingConfig",
    "completion_seed",
]


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
