"""Answers that the student writes itself, in place of a share of the given ones (GKD)."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Set
from typing import Any

import torch
from transformers import GenerationConfig

from sense_trl.collators import Answers
from sense_trl.end_tokens import get_end_token_ids
from sense_trl.trainers.compat.dropout import evaluating
from sense_trl.trainers.compat.trl import unwrap_model_for_generation
from sense_trl.trainers.kid.imperfect import get_random


class AnswerWriter:
    """Has the student continue prompts.

    Args:
        args: a `KIDConfig`.
        tokenizer: of the student.
        accelerator: that wraps it.
        unused_ids: rows of its head that are no tokens, never written.
    """

    def __init__(self, args: Any, tokenizer: Any, accelerator: Any, unused_ids: range) -> None:
        self._args = args
        self._tokenizer = tokenizer
        self._accelerator = accelerator
        self._unused_ids = unused_ids

    def replace(self, model: Any, answers: Answers, step: int) -> Answers:
        """The answers, a share of them replaced by those that the student writes itself.

        Args:
            model: the student, wrapped or not; left in the mode that it is in.
            step: of the optimiser.
        """
        takes_own = [
            get_random("own", self._args.seed, step, sequence).random()
            < self._args.on_policy_fraction
            for sequence in answers.sequences
        ]
        # All processes write something: weights that are sharded take all of them to be gathered.
        rows = [row for row, takes in enumerate(takes_own) if takes] or [0]
        prompts = [answers.get_prompt(row) for row in rows]
        sequences, is_trained = list(answers.sequences), list(answers.is_trained)
        written = self.write(model, prompts, step)
        for row, prompt, answer in zip(rows, prompts, written, strict=True):
            if takes_own[row]:
                sequences[row] = prompt + answer
                is_trained[row] = [False] * len(prompt) + [True] * len(answer)
        return Answers(sequences, is_trained)

    def write(self, model: Any, prompts: list[list[int]], step: int) -> list[list[int]]:
        """The student's own answers to some prompts, each up to and including its end."""
        tokenizer, device = self._tokenizer, self._accelerator.device
        temperature = self._args.on_policy_temperature
        end_ids = get_end_token_ids(self._accelerator.unwrap_model(model), tokenizer)
        config = GenerationConfig(
            max_new_tokens=self._args.on_policy_max_new_tokens,
            do_sample=temperature > 0,
            temperature=temperature if temperature > 0 else None,
            top_k=0 if temperature > 0 else None,
            pad_token_id=tokenizer.pad_token_id,
            eos_token_id=end_ids,
            suppress_tokens=list(self._unused_ids) or None,
        )
        # Rows that are continued are padded on the left.
        width = max(map(len, prompts))
        paddings = [width - len(prompt) for prompt in prompts]
        pairs = list(zip(paddings, prompts, strict=True))
        input_ids = [[tokenizer.pad_token_id] * padding + prompt for padding, prompt in pairs]
        attention_mask = [[0] * padding + [1] * len(prompt) for padding, prompt in pairs]
        text = [token for prompt in prompts for token in prompt]
        rng = get_random("write", self._args.seed, step, text)
        with (
            unwrap_model_for_generation(model, self._accelerator) as unwrapped,
            _without_generation_config(unwrapped),
            evaluating(unwrapped),
            torch.random.fork_rng([device] if device.type == "cuda" else []),
        ):
            torch.manual_seed(rng.getrandbits(32))
            rows = unwrapped.generate(
                input_ids=torch.tensor(input_ids, device=device),
                attention_mask=torch.tensor(attention_mask, device=device),
                generation_config=config,
            )
        return [_cut_at_end(answer, {*end_ids}) for answer in rows[:, width:].tolist()]


@contextlib.contextmanager
def _without_generation_config(model: Any) -> Iterator[None]:
    """`generate` fills what it is not told from the model's own settings; here it has none."""
    # The wrapper of an adapter hands its settings to the model in it.
    models = [model, model.get_base_model()] if hasattr(model, "get_base_model") else [model]
    configs = [held.generation_config for held in models]
    for held in models:
        held.generation_config = GenerationConfig()
    try:
        yield
    finally:
        for held, config in zip(models, configs, strict=True):
            held.generation_config = config


def _cut_at_end(answer: list[int], end_ids: Set[int]) -> list[int]:
    end = next((index for index, token in enumerate(answer) if token in end_ids), len(answer))
    return answer[: end + 1]
