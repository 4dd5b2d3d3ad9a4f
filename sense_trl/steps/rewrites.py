"""KID's rewritten answers as candidates: those that fail become rejected answers (KID meets SENSE).

A student that is distilled from imperfect data makes imperfect copies of gold queries in every
step, at the price of one forward each. Executed, the failing ones are mistakes that the student
itself would make at a few places of an otherwise right query: close negatives for preference
training, without sampling.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sense_trl.pairs.candidates import Candidate, CandidateFile
from sense_trl.prompts import extract_sql
from sense_trl.questions import Question
from sense_trl.task import TextToSQLTask

if TYPE_CHECKING:
    from sense_trl.trainers.kid_trainer import KIDTrainer


def rewrite_gold(
    task: TextToSQLTask,
    questions: Sequence[Question],
    trainer: KIDTrainer,
    path: str | Path,
    *,
    chunk_size: int = 64,
    on_progress: Callable[[int], None] | None = None,
) -> CandidateFile:
    """Have the student of `trainer` rewrite the gold queries, into the file `path`.

    Hand the file's candidates to `build_preference_pairs`, alone or with sampled ones. They count
    as those of a weak model, and its verifier says which of them fail; a rewrite that equals gold
    or answers as gold does is never rejected. Questions that are in the file already are not
    rewritten again.

    Args:
        trainer: before, during or after its training; what is masked depends on its step.
        chunk_size: questions rewritten and written together.
        on_progress: called with the number of questions finished since the last call.

    Raises:
        InputError: see `KIDTrainer.rewrite_completions`; or with `mask_unit="schema_item"`, a gold
            query that cannot be parsed.
    """
    file = CandidateFile(path)
    model = f"{Path(trainer.model.config.name_or_path).name}, rewriting gold"
    # Questions about one database share its schema.
    ordered = sorted(questions, key=lambda question: question.db_id)
    for start in range(0, len(ordered), chunk_size):
        chunk = ordered[start : start + chunk_size]
        missing = [question for question in chunk if question.question_id not in file]
        texts = trainer.rewrite_completions(_get_rows(task, missing, trainer)) if missing else []
        for question, text in zip(missing, texts, strict=True):
            candidate = Candidate(
                question_id=question.question_id,
                sample=0,
                sql=extract_sql(text),
                text=text,
                source="weak",
                model=model,
                seed=trainer.args.seed,
            )
            file.append(question.question_id, [candidate])
        if on_progress is not None:
            on_progress(len(chunk))
    return file


def _get_rows(
    task: TextToSQLTask, questions: Sequence[Question], trainer: KIDTrainer
) -> list[dict[str, Any]]:
    masks_items = trainer.args.mask_unit == "schema_item"
    return task.prompt_completion_rows(questions, mask_spans=masks_items)
