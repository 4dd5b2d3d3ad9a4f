"""Measures of `evaluate_sql` besides verdicts, each for all questions at once."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from sense_trl.database.catalog import DatabaseCatalog
from sense_trl.database.engine import ExecutionLimits
from sense_trl.errors import InputError
from sense_trl.evaluation.exact_set_match import exact_set_match
from sense_trl.evaluation.hardness import get_hardness
from sense_trl.evaluation.soft_f1 import bird_soft_f1, soft_f1
from sense_trl.schema import DatabaseSchema, get_schema
from sense_trl.sql.parsing import SQLParseError
from sense_trl.sql.taxonomy import classify_errors
from sense_trl.verification.judging import VerificationRequest


@dataclass(frozen=True, slots=True)
class SpiderMeasures:
    """Hardness and exact-set match of a question by Spider's script, without running anything.

    Attributes:
        hardness: easy, medium, hard or extra; `None` if its parser cannot read gold.
        exact_match: exact-set match; `None` if its parser cannot read gold.
    """

    hardness: str | None = None
    exact_match: bool | None = None


def check_schemas(db_ids: Iterable[str], schemas: Mapping[str, DatabaseSchema] | None) -> None:
    """Refuse schemas that are given, but not for every database.

    Raises:
        InputError: names the first that is missing.
    """
    missing = next(
        (db_id for db_id in db_ids if schemas is not None and db_id not in schemas), None
    )
    if missing is not None:
        raise InputError(
            f"`schemas` has no {missing!r}; give the schema of every database that is asked, or no "
            "`schemas` to have them read from the databases."
        )


def get_spider_measures(
    requests: Sequence[VerificationRequest],
    catalog: DatabaseCatalog,
    schemas: Mapping[str, DatabaseSchema] | None,
) -> list[SpiderMeasures]:
    """Hardness and exact-set match of each request.

    Args:
        requests: predictions with their gold.
        catalog: where the databases are.
        schemas: schemas by `db_id`; without them they are read from the databases.
    """
    if schemas is None:
        schemas = {
            db_id: get_schema(catalog.engine(db_id), db_id) for db_id in {r.db_id for r in requests}
        }
    found = []
    for request in requests:
        schema = schemas[request.db_id]
        try:
            hardness = str(get_hardness(request.gold_sql, schema))
            matches = exact_set_match(request.predicted_sql, request.gold_sql, schema)
        except InputError:
            found.append(SpiderMeasures())
        else:
            found.append(SpiderMeasures(hardness, matches))
    return found


def get_error_classes(
    requests: Sequence[VerificationRequest], correct: Sequence[bool], catalog: DatabaseCatalog
) -> list[tuple[str, ...]]:
    """The classes of `classify_errors` for each request that is not correct.

    () for the correct ones, and where gold cannot be parsed.
    """

    @functools.cache
    def get_columns(db_id: str) -> dict[str, dict[str, str]]:
        tables = get_schema(catalog.engine(db_id), db_id).tables
        return {table.name: {c.name: c.type for c in table.columns} for table in tables}

    found: list[tuple[str, ...]] = []
    for request, is_correct in zip(requests, correct, strict=True):
        if is_correct:
            found.append(())
            continue
        dialect, columns = catalog.dialect(request.db_id), get_columns(request.db_id)
        try:
            classes = classify_errors(
                request.predicted_sql, request.gold_sql, dialect, columns=columns
            )
        except SQLParseError:
            classes = ()
        found.append(tuple(map(str, classes)))
    return found


class SoftScores(NamedTuple):
    """Soft-F1 of one prediction: as BIRD computes it, and without the order of rows."""

    bird: float
    unordered: float


def measure_soft_f1(
    requests: Sequence[VerificationRequest],
    executes: Sequence[bool | None],
    catalog: DatabaseCatalog,
    *,
    limits: ExecutionLimits | None = None,
    on_progress: Callable[[int], None] | None = None,
) -> list[SoftScores | None]:
    """Soft-F1 of each request; `None` where gold does not run to its end.

    Gold and the predictions that execute run again, to have their rows.

    Args:
        requests: predictions with their gold.
        executes: whether a prediction runs to its end; the others score 0 and are not run.
        catalog: where the databases are.
        limits: of each query instead of the catalog's.
        on_progress: called with the number of requests done since the last call.
    """
    scores: list[SoftScores | None] = []
    for request, runs in zip(requests, executes, strict=True):
        engine = catalog.engine(request.db_id)
        gold = engine.execute(request.gold_sql, limits=limits)
        predicted = None
        if gold.ok and runs:
            predicted = engine.execute(request.predicted_sql, limits=limits)
        if not gold.ok:
            scores.append(None)
        elif predicted is None or not predicted.ok:
            scores.append(SoftScores(0.0, 0.0))
        else:
            both = (predicted.rows, gold.rows)
            scores.append(SoftScores(bird_soft_f1(*both), soft_f1(*both)))
        if on_progress is not None:
            on_progress(1)
    return scores
