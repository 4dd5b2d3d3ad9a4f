"""`evaluate_in_parts`: an evaluation in parts of some dozens of questions, on any backend."""

from __future__ import annotations

import functools
import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Final, NamedTuple

from sense_trl.backends.backend import Backend
from sense_trl.errors import InputError
from sense_trl.evaluation.evaluate import check_answers, evaluate_sql
from sense_trl.evaluation.records import EvaluationRecord, EvaluationReport
from sense_trl.questions import Question
from sense_trl.verification.verifier import SQLVerifier

# Changed whenever the same input gives other records.
_FORMAT: Final = 2
_QUESTIONS_PER_SHARD: Final = 64


def evaluate_in_parts(
    questions: Sequence[Question],
    predictions: Mapping[str, str] | None,
    verifier: SQLVerifier,
    *,
    backend: Backend,
    shard_folder: str | Path | None = None,
    name: str = "predictions",
    on_progress: Callable[[int], None] | None = None,
    spider_predictions: Mapping[str, str] | None = None,
    samples: Mapping[str, Sequence[str]] | None = None,
    **options: Any,
) -> EvaluationReport:
    """Evaluate like `evaluate_sql`, with the same report, 64 questions at a time.

    Args:
        questions: as for `evaluate_sql`, like all that is not named here.
        predictions: likewise.
        verifier: copies of it verify.
        backend: where parts are evaluated.
        shard_folder: keeps finished parts, so that an evaluation that was interrupted continues
            when it is called again. It belongs to one set of databases, schemas and settings
            of verifiers. Delete it afterwards.
        name: label of the run.
        on_progress: called with the number of predictions finished since the last call.
        spider_predictions: what Spider's script would read, where that is another text.
        samples: question id to several answers that were sampled.
        options: further ones of `evaluate_sql`; without `efficiency_repetitions`.

    Raises:
        InputError: see `evaluate_sql`; or efficiency is to be measured.
        ExecutionBackendError: the backend failed.
    """
    check_answers(questions, predictions, samples)
    if (repetitions := options.get("efficiency_repetitions")) is not None:
        raise InputError(
            f"`efficiency_repetitions` is {repetitions}, but times that are taken in parts, beside "
            "other work, say nothing. Measure efficiency with `evaluate_sql`."
        )
    asked = [
        _Asked(q, *(_find(texts, q) for texts in (predictions, spider_predictions, samples)))
        for q in questions
    ]
    # Questions of one database together: what is known of it is asked for again.
    order = sorted(range(len(asked)), key=lambda place: asked[place].question.db_id)
    records: dict[int, EvaluationRecord] = {}
    notes: dict[str, str] = {}

    def take(places: Sequence[int], report: EvaluationReport) -> None:
        records.update(zip(places, report.records, strict=True))
        notes.update(report.notes)

    def find_missing() -> Iterator[tuple[tuple[Sequence[int], Path | None], list[_Asked]]]:
        for start in range(0, len(order), _QUESTIONS_PER_SHARD):
            places = order[start : start + _QUESTIONS_PER_SHARD]
            shard = [asked[place] for place in places]
            path = None
            if shard_folder is not None:
                path = Path(shard_folder) / f"{_get_key(name, shard, options)}.json"
            if path is None or not path.exists():
                yield (places, path), shard
                continue
            take(places, EvaluationReport.load(path))
            if on_progress is not None:
                on_progress(len(places))

    evaluated = backend.map_shards(
        functools.partial(_evaluate, verifier=verifier, name=name, **options),
        find_missing(),
        get_name=_get_question_id,
        on_progress=on_progress,
    )
    for (places, path), report in evaluated:
        if path is not None:
            report.save(path)
        take(places, report)
    return EvaluationReport(name, tuple(records[place] for place in range(len(asked))), notes)


class _Asked(NamedTuple):
    """A question and what was answered, once as Spider's script would read it."""

    question: Question
    prediction: str | None
    spider_prediction: str | None
    samples: Sequence[str] | None


def _evaluate(
    shard: Sequence[_Asked], on_progress: Callable[[int], None] | None, **options: Any
) -> EvaluationReport:
    ids = [asked.question.question_id for asked in shard]
    predictions, spider_predictions, samples = (
        {key: given for key, given in zip(ids, answers, strict=True) if given is not None} or None
        for answers in list(zip(*shard, strict=True))[1:]
    )
    return evaluate_sql(
        [asked.question for asked in shard],
        predictions,
        spider_predictions=spider_predictions,
        samples=samples,
        on_progress=on_progress,
        **options,
    )


def _find(answers: Mapping[str, Any] | None, question: Question) -> Any:
    return None if answers is None else answers.get(question.question_id)


def _get_key(name: str, shard: Sequence[_Asked], options: Mapping[str, Any]) -> str:
    rows = [(asdict(asked.question), *asked[1:]) for asked in shard]
    content = [_FORMAT, name, bool(options.get("soft_f1")), rows]
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()[:32]


def _get_question_id(asked: _Asked) -> str:
    return asked.question.question_id
