"""Imperfect answers: a share of the tokens of gold answers, masked and filled in by the student."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from sense_trl.collators import Answers
from sense_trl.prefix_tree import PrefixTree
from sense_trl.trainers.kid.imperfect import (
    TokenPrediction,
    choose_masked,
    get_maskable,
    get_random,
    get_units,
)
from sense_trl.trainers.kid.student import run_student
from sense_trl.trainers.kid.tokens import StudentTokens


class AnswerRewriter:
    """The first three stages of KID on a micro-batch: mask, predict and rewrite.

    Whatever is random depends on the example, the step and the seed alone.

    Args:
        args: a `KIDConfig`.
        tokens: of the student.
        lay_out: makes a tree of answers; see `PrefixSharing.lay_out`.
    """

    def __init__(
        self, args: Any, tokens: StudentTokens, lay_out: Callable[[Answers], PrefixTree]
    ) -> None:
        self._args = args
        self._tokens = tokens
        self._lay_out = lay_out

    def rewrite(
        self, model: Any, gold: Answers, groups: Tensor | None, state: Any
    ) -> tuple[Answers, list[list[int]]]:
        """The imperfect answers, and the positions that were masked in each.

        Args:
            model: the student, wrapped or not; left in the mode that it is in.
            gold: answers to rewrite.
            groups: `[N, L]`, the items that tokens are part of, -1 for none; None to mask tokens.
            state: of the trainer, which tells the step.
        """
        masked = self.choose_masked(model, gold, groups, state)
        sequences = [list(sequence) for sequence in gold.sequences]
        for sequence, positions in zip(sequences, masked, strict=True):
            for position in positions:
                sequence[position] = self._tokens.mask_id
        if self._args.fill != "mask":
            predicted = self._predict(model, sequences, masked, state)
            for row, positions in enumerate(masked):
                for position in positions:
                    sequences[row][position] = predicted[row][position - 1]
        return Answers(sequences, gold.is_trained), masked

    def choose_masked(
        self, model: Any, gold: Answers, groups: Tensor | None, state: Any
    ) -> list[list[int]]:
        """The positions of each sequence that are masked; see `rewrite`."""
        confidences: list[Any] = [None] * len(gold.sequences)
        if self._args.mask_strategy in ("hard", "easy"):
            log_probs = run_student(model, self._lay_out(gold)).log_probs
            # Aligned with the tokens: nothing predicts the first.
            confidences = [[0.0, *row] for row in log_probs.tolist()]
        masked = []
        for row, (sequence, is_trained) in enumerate(
            zip(gold.sequences, gold.is_trained, strict=True)
        ):
            maskable = get_maskable(
                sequence, is_trained, self._tokens.special_ids, self._tokens.end_ids
            )
            masked.append(
                choose_masked(
                    get_units(maskable, None if groups is None else groups[row].tolist()),
                    max(1, round(self._args.mask_ratio * len(maskable))),
                    self._args.mask_strategy,
                    get_random("mask", self._args.seed, state.global_step, sequence),
                    confidences[row],
                )
            )
        return masked

    def _predict(
        self, model: Any, sequences: list[list[int]], masked: Sequence[list[int]], state: Any
    ) -> list[list[int]]:
        """The student's tokens for the masked positions, each at the position before it."""
        is_masked = [
            [position in positions for position in range(len(sequence))]
            for sequence, positions in zip(sequences, map(set, masked), strict=True)
        ]
        tree = self._lay_out(Answers(sequences, is_masked))
        draws = None
        if self._args.fill == "sample":
            # By the text so far, not by the example: sequences that share a node share its draw.
            draws = torch.zeros(len(tree.target_ids), dtype=torch.float64)
            index = tree.on_host.target_index.tolist()
            for row, positions in enumerate(masked):
                for position in positions:
                    text = sequences[row][:position]
                    rng = get_random("fill", self._args.seed, state.global_step, text)
                    draws[index[row][position]] = rng.random()
        special_ids = torch.tensor(sorted(self._tokens.special_ids))
        prediction = TokenPrediction(self._tokens.num_tokens, special_ids, draws)
        (predicted,) = run_student(model, tree, [prediction]).logit_terms
        return predicted.long().tolist()
