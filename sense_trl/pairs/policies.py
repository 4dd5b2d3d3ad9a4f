"""Pair policies: which correct query meets which erroneous one.

A policy sees the correct and the erroneous candidates of one question, free of duplicates, and
returns pairs. It must be a pure function of its arguments, so that a dataset can be built again.
"""

from __future__ import annotations

import hashlib
import math
import random
from collections.abc import Callable, Sequence

from sense_trl.pairs.candidates import Candidate

PairPolicy = Callable[
    [Sequence[Candidate], Sequence[Candidate], int, random.Random],
    list[tuple[Candidate, Candidate]],
]


def grouped_any(
    correct: Sequence[Candidate],
    erroneous: Sequence[Candidate],
    limit: int,
    rng: random.Random,
) -> list[tuple[Candidate, Candidate]]:
    """Any correct with any erroneous query of the same question, at most `limit` pairs.

    SENSE's release uses this with a limit of one ("grouped-any-limit1"). No erroneous query is used
    twice before every one was used once, nor three times before every one was used twice, and so
    on; the same holds for correct ones.
    """
    rejected = rng.sample(list(erroneous), len(erroneous))
    chosen = rng.sample(list(correct), len(correct))
    total = len(chosen) * len(rejected)
    # Both lists are walked in circles side by side. That meets the same pair again after the least
    # common multiple of their lengths: from there on one list is shifted by one more.
    circle = math.lcm(len(chosen), len(rejected))
    return [
        (chosen[(step + step // circle) % len(chosen)], rejected[step % len(rejected)])
        for step in range(min(limit, total))
    ]


POLICIES: dict[str, PairPolicy] = {"grouped_any": grouped_any}


def question_rng(seed: int, question_id: str) -> random.Random:
    """Random numbers that depend on seed and question alone, not on the order of the questions."""
    digest = hashlib.sha256(f"{seed}\x00{question_id}".encode()).digest()
    return random.Random(int.from_bytes(digest[:8], "big"))
