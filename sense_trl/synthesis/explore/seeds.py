"""`sort_seeds`: which training questions an exploration may learn from.

Seeds say which columns go together and what queries look like. Those that cannot be read say
nothing, and those that an evaluation asks in other words, or up to constants, must not steer what
is trained on.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sqlglot import exp

from sense_trl.errors import InputError
from sense_trl.questions import Question, describe_unusable
from sense_trl.sql.parsing import SQLParseError, parse_sql
from sense_trl.synthesis.filters.contamination import EvaluationIndex, find_evaluated


@dataclass(frozen=True, slots=True)
class SortedSeeds:
    """Seeds sorted into those that may be used and those that may not, with reasons.

    Attributes:
        usable: those that may, in their order.
        unreadable: question id to what is wrong with its SQL.
        too_close: question id to the evaluation question that it is close to, and how.
        num_without_schema: seeds on databases of which no schema is known; they are not looked at.
    """

    usable: tuple[Question, ...]
    unreadable: Mapping[str, str]
    too_close: Mapping[str, str]
    num_without_schema: int

    def as_json(self) -> dict[str, Any]:
        """The counts, and what was left out by question id, as plain JSON data."""
        return {
            "num_usable": len(self.usable),
            "num_without_schema": self.num_without_schema,
            "unreadable": dict(self.unreadable),
            "too_close": dict(self.too_close),
        }


def sort_seeds(
    seeds: Sequence[Question],
    excluded: Iterable[Question],
    get_dialect: Callable[[str], str | None],
    *,
    max_unusable_fraction: float = 0.0,
) -> SortedSeeds:
    """Leave out what cannot be read and what is close to an evaluation question.

    Seeds are compared with the evaluation questions on their own database: templates are stripped
    of names, so those of other databases give nothing away.

    Args:
        seeds: training questions with gold SQL.
        excluded: evaluation questions.
        get_dialect: of the SQL on a database; `None` where its schema is not known.
        max_unusable_fraction: share of the seeds that may be unreadable.

    Raises:
        InputError: a seed is an evaluation question (see `find_evaluated`), or more seeds are
            unreadable than `max_unusable_fraction` allows.
    """
    dialects = {db_id: get_dialect(db_id) for db_id in dict.fromkeys(s.db_id for s in seeds)}
    known = [seed for seed in seeds if dialects[seed.db_id] is not None]
    evaluated: dict[str, list[Question]] = {}
    for question in excluded:
        evaluated.setdefault(question.db_id, []).append(question)
    unreadable: dict[str, str] = {}
    too_close: dict[str, str] = {}
    for db_id, dialect in dialects.items():
        if dialect is None:
            continue
        own = [seed for seed in known if seed.db_id == db_id]
        unreadable |= _find_unreadable(own, dialect)
        if db_id in evaluated:
            _refuse_evaluated(own, evaluated[db_id], dialect)
            too_close |= _find_close(own, evaluated[db_id], dialect)
    if len(unreadable) > max_unusable_fraction * len(known):
        raise InputError(
            describe_unusable(unreadable, len(known), "`seeds`", max_unusable_fraction)
        )
    usable = [s for s in known if not {s.question_id} & (unreadable.keys() | too_close.keys())]
    return SortedSeeds(tuple(usable), unreadable, too_close, len(seeds) - len(known))


def _find_unreadable(seeds: Iterable[Question], dialect: str) -> dict[str, str]:
    found = {}
    for seed in seeds:
        try:
            tree = parse_sql(seed.gold_sql, dialect)
        except SQLParseError as error:
            found[seed.question_id] = str(error)
            continue
        if not isinstance(tree, exp.Query):
            found[seed.question_id] = f"no query: {seed.gold_sql[:200]!r}"
    return found


def _refuse_evaluated(
    seeds: Iterable[Question], evaluated: Sequence[Question], dialect: str
) -> None:
    for seed_id, found in find_evaluated(seeds, evaluated, dialect=dialect).items():
        raise InputError(
            f"`seeds` holds {seed_id}, which `excluded` has as {found}: templates come from "
            "training questions only. Leave evaluation questions out of `seeds`."
        )


def _find_close(
    seeds: Iterable[Question], evaluated: Sequence[Question], dialect: str
) -> dict[str, str]:
    index = EvaluationIndex(evaluated, dialect=dialect)
    found = ((seed, index.find(seed.question, seed.gold_sql)) for seed in seeds)
    return {s.question_id: f"{c.kind}: {c.question_id}" for s, c in found if c is not None}
