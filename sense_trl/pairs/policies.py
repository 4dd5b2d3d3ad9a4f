"""Pair policies: which correct query meets which erroneous one.

A policy sees the correct and the erroneous candidates of one question, free of duplicates, and
returns pairs in the order in which it wants them. It must be a pure function of its arguments, so
that a dataset can be built again.
"""

from __future__ import annotations

import hashlib
import itertools
import math
import random
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import Final, TypeAlias

from sense_trl.pairs.candidates import Candidate
from sense_trl.pairs.distance import token_distance
from sense_trl.sql.taxonomy import ErrorClass

Pair: TypeAlias = tuple[Candidate, Candidate]
PairPolicy: TypeAlias = Callable[
    [Sequence[Candidate], Sequence[Candidate], int, random.Random], list[Pair]
]
CandidateClasses: TypeAlias = Mapping[Candidate, Sequence[str]]

POLICY_NAMES: Final = (
    "grouped_any",
    "random",
    "nearest",
    "farthest",
    "hard_first",
    "one_per_error_class",
)

_NOT_EXECUTABLE: Final = (
    ErrorClass.DOES_NOT_PARSE,
    ErrorClass.NOT_A_QUERY,
    ErrorClass.UNKNOWN_TABLE,
    ErrorClass.UNKNOWN_COLUMN,
    ErrorClass.AMBIGUOUS_COLUMN,
    ErrorClass.MISUSED_AGGREGATE,
)
_STRUCTURAL: Final = (
    ErrorClass.WRONG_TABLE,
    ErrorClass.MISSING_JOIN,
    ErrorClass.EXTRA_JOIN,
    ErrorClass.MISSING_SELECT_COLUMN,
    ErrorClass.EXTRA_SELECT_COLUMN,
    ErrorClass.WRONG_SET_OPERATION,
    ErrorClass.WRONG_NESTING,
)
CLASS_WEIGHTS: Final[Mapping[str, float]] = {
    **dict.fromkeys(ErrorClass, 1.0),
    **dict.fromkeys(_STRUCTURAL, 0.5),
    **dict.fromkeys(_NOT_EXECUTABLE, 0.0),
}
"""Difficulty of seeing an error: 1 for a detail, 0.5 for a structure, 0 for what cannot run.

Our choice; no publication gives such weights."""


def grouped_any(
    correct: Sequence[Candidate],
    erroneous: Sequence[Candidate],
    limit: int,
    rng: random.Random,
) -> list[Pair]:
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


def any_pair(
    correct: Sequence[Candidate],
    erroneous: Sequence[Candidate],
    limit: int,
    rng: random.Random,
) -> list[Pair]:
    """Pairs drawn uniformly from all of a question, none twice."""
    return _shuffled_pairs(correct, erroneous, rng)[:limit]


def by_distance(
    correct: Sequence[Candidate],
    erroneous: Sequence[Candidate],
    limit: int,
    rng: random.Random,
    *,
    dialect: str,
    farthest: bool = False,
) -> list[Pair]:
    """The pairs whose queries are nearest to (or farthest from) each other.

    ExCoT (arXiv 2503.19988) compares nearest and farthest with random pairs. An erroneous query
    comes a second time only after all came once.
    """
    sign = -1 if farthest else 1
    pairs = _shuffled_pairs(correct, erroneous, rng)
    pairs.sort(key=lambda pair: sign * token_distance(pair[0].sql, pair[1].sql, dialect))
    return _in_rounds(pairs)[:limit]


def hard_first(
    correct: Sequence[Candidate],
    erroneous: Sequence[Candidate],
    limit: int,
    rng: random.Random,
    *,
    classes: CandidateClasses,
) -> list[Pair]:
    """The erroneous queries that are hardest to tell from right ones first.

    A query is as hard as the least of its error classes' weights, for one glaring error gives it
    away; among equals, the one with fewer classes is harder. One without a class has weight 1.
    """

    def ease(pair: Pair) -> tuple[float, int]:
        own = classes[pair[1]]
        return -min((CLASS_WEIGHTS[name] for name in own), default=1.0), len(own)

    return _in_rounds(sorted(_shuffled_pairs(correct, erroneous, rng), key=ease))[:limit]


def one_per_error_class(
    correct: Sequence[Candidate],
    erroneous: Sequence[Candidate],
    limit: int,
    rng: random.Random,
    *,
    classes: CandidateClasses,
) -> list[Pair]:
    """One correct query with erroneous ones of which each shows an error class for the first time.

    Queries with few classes are asked first, so that classes come one by one.
    """
    shuffled = rng.sample(list(erroneous), len(erroneous))
    seen: set[str] = set()
    kept = []
    for candidate in sorted(shuffled, key=lambda c: len(classes[c])):
        # No class is a class of its own here: wrong, and the text does not show why.
        own = set(classes[candidate]) or {""}
        if not own <= seen:
            seen |= own
            kept.append(candidate)
    chosen = rng.sample(list(correct), min(1, len(correct)))
    return list(itertools.product(chosen, kept))[:limit]


def get_policy(
    name: str,
    *,
    dialect: str,
    classes: CandidateClasses,
) -> PairPolicy:
    """The policy called `name`, one of `POLICY_NAMES`, given what it needs to know.

    Args:
        dialect: of the queries.
        classes: error classes of each erroneous candidate.
    """
    policies: dict[str, PairPolicy] = {
        "grouped_any": grouped_any,
        "random": any_pair,
        "nearest": partial(by_distance, dialect=dialect),
        "farthest": partial(by_distance, dialect=dialect, farthest=True),
        "hard_first": partial(hard_first, classes=classes),
        "one_per_error_class": partial(one_per_error_class, classes=classes),
    }
    return policies[name]


def group_by_chosen(
    pairs: Sequence[Pair], *, limit: int, num_rejected: int
) -> list[tuple[Candidate, list[Candidate]]]:
    """Up to `limit` groups of a chosen query with up to `num_rejected` rejected ones.

    The first pair that is left opens a group, and the next pairs with its chosen query fill it.
    """
    left = list(pairs)
    groups: list[tuple[Candidate, list[Candidate]]] = []
    while left and len(groups) < limit:
        chosen = left[0][0]
        rejected = [r for c, r in left if c is chosen][:num_rejected]
        groups.append((chosen, rejected))
        taken = {(id(chosen), id(candidate)) for candidate in rejected}
        left = [(c, r) for c, r in left if (id(c), id(r)) not in taken]
    return groups


def question_rng(seed: int, question_id: str) -> random.Random:
    """Random numbers that depend on seed and question alone, not on the order of the questions."""
    digest = hashlib.sha256(f"{seed}\x00{question_id}".encode()).digest()
    return random.Random(int.from_bytes(digest[:8], "big"))


def _shuffled_pairs(
    correct: Iterable[Candidate], erroneous: Iterable[Candidate], rng: random.Random
) -> list[Pair]:
    pairs = list(itertools.product(correct, erroneous))
    rng.shuffle(pairs)
    return pairs


def _in_rounds(pairs: Sequence[Pair]) -> list[Pair]:
    """In the same order, but no erroneous query again before all others had as many turns."""
    turns: Counter[int] = Counter()
    keyed = []
    for pair in pairs:
        turns[id(pair[1])] += 1
        keyed.append((turns[id(pair[1])], pair))
    return [pair for _, pair in sorted(keyed, key=lambda item: item[0])]
