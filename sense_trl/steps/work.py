"""The four steps that every job is made of: `predict`, `pair`, `train` and `evaluate`.

Each leaves its result in files, and does only what is not there yet.
"""

from __future__ import annotations

import gc
import json
import shutil
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console

from sense_trl._files import holds_json, write_text_atomically
from sense_trl.evaluation.evaluate import EvaluationReport, evaluate_sql
from sense_trl.generation.generator import SamplingConfig, SQLGenerator
from sense_trl.pairs.builder import PairBuildResult, PreferencePairConfig, build_preference_pairs
from sense_trl.pairs.candidates import Candidate, CandidateFile
from sense_trl.questions import Question
from sense_trl.steps.processes import get_processes
from sense_trl.steps.progress import progress_callback, stage_bar
from sense_trl.steps.sampling import sample_candidates
from sense_trl.task import TextToSQLTask
from sense_trl.verification.verifier import SQLVerifier

if TYPE_CHECKING:
    from transformers import TrainerCallback

_METRICS = "metrics.json"


def is_predicted(path: Path, questions: Sequence[Question]) -> bool:
    """Whether a file of candidates holds answers to all questions."""
    done = CandidateFile(path)
    return all(question.question_id in done for question in questions)


def predict(
    task: TextToSQLTask,
    questions: Sequence[Question],
    open_generator: Callable[[], SQLGenerator],
    sampling: SamplingConfig,
    path: Path,
    console: Console,
    title: str,
    *,
    batch_size: int,
    source: str = "weak",
) -> CandidateFile:
    """Have a model answer questions, into a file of candidates.

    Processes of `accelerate launch` take turns; see `sample_candidates`.

    Args:
        task: writes the prompts.
        questions: what is asked; those that the file holds are not asked again.
        open_generator: loads the model; not called where nothing is missing.
        sampling: how.
        path: the file, written as answers come.
        console: where a bar called `title` is shown.
        title: name of the bar.
        batch_size: completions written together: what a crash can cost.
        source: what the candidates are recorded as, weak or strong.
    """
    if is_predicted(path, questions):
        return CandidateFile(path)
    if task.writer.style.num_matched_values:
        # What cannot be indexed is said before a model is loaded.
        for db_id in sorted({question.db_id for question in questions}):
            task.writer.prepare(db_id)
    generator = open_generator()
    with stage_bar(console, title, len(questions)) as bar:
        return sample_candidates(
            task,
            questions,
            generator,
            sampling,
            path,
            source=source,
            chunk_size=max(1, batch_size // sampling.num_generations),
            processes=get_processes(),
            on_progress=bar.advance,
        )


def pair(
    task: TextToSQLTask,
    candidates: Collection[Candidate],
    verifier: SQLVerifier,
    config: PreferencePairConfig,
    folder: Path,
    console: Console,
    **options: Any,
) -> PairBuildResult:
    """Execute candidates and pair them; writes `pairs.parquet`, and then the account `pairs.json`.

    The style of the prompts stands beside them.

    Args:
        task: the questions, and their prompts.
        candidates: what models wrote.
        verifier: over the task's databases.
        config: how.
        folder: where the pairs are written.
        console: where a bar is shown.
        options: further ones of `build_preference_pairs`.
    """
    with stage_bar(console, "Execute, build pairs", len(candidates)) as bar:
        result = build_preference_pairs(
            task, candidates, verifier, config=config, on_progress=bar.advance, **options
        )
        bar.set(len(candidates))
    # What says that all is there is written last.
    task.writer.style.save(folder)
    result.save(folder, unusable_questions=task.unusable)
    return result


def is_trained(folder: Path) -> bool:
    """Whether a training in this folder has ended: its metrics are written last."""
    return holds_json(folder / _METRICS)


def train(
    folder: Path,
    run: Callable[[TrainerCallback], dict[str, Any]],
    num_steps: int,
    console: Console,
    title: str,
    *,
    keeps_checkpoints: bool = True,
) -> None:
    """Run a training unless it has ended, and write its metrics.

    Args:
        folder: where the training saves.
        run: trains and saves, telling the given callback of its progress; returns metrics.
        num_steps: optimizer steps, for the bar.
        console: where a bar called `title` is shown.
        title: name of the bar.
        keeps_checkpoints: whether those of the training stay when it has ended.
    """
    if not is_trained(folder):
        with stage_bar(console, title, num_steps) as bar:
            metrics = run(progress_callback(bar))
        if get_processes().is_main:
            write_text_atomically(folder / _METRICS, json.dumps(metrics, indent=1))
    # Those of a run that was killed here, too.
    for checkpoint in [] if keeps_checkpoints else folder.glob("checkpoint-*"):
        shutil.rmtree(checkpoint)
    gc.collect()


def evaluate(
    questions: Sequence[Question],
    predictions: Iterable[Candidate],
    verifier: SQLVerifier,
    path: Path,
    console: Console,
    *,
    name: str,
    notes: Mapping[str, str] | None = None,
    known: EvaluationReport | None = None,
    score: Callable[..., EvaluationReport] = evaluate_sql,
    **options: Any,
) -> EvaluationReport:
    """Execute predictions and compare them with gold; writes the report to `path`.

    Args:
        questions: what was asked.
        predictions: one of each question; or several samples, of which the prediction is the one
            whose result most of them have.
        verifier: over their databases.
        path: of the report.
        console: where a bar is shown.
        name: label of the report.
        notes: of scores, by their names.
        known: a report on the same questions and options, whose records hold for equal answers.
        score: `evaluate_sql`, or what has the same report from elsewhere.
        options: further ones of `score`.
    """
    samples: dict[str, list[str]] = {}
    for candidate in predictions:
        samples.setdefault(candidate.question_id, []).append(candidate.sql)
    are_several = max(map(len, samples.values()), default=0) > 1
    answers = {question_id: group[0] for question_id, group in samples.items()}
    kept = {}
    if known is not None:
        equal = (r for r in known.records if r.predicted_sql == answers[r.question_id])
        kept = {record.question_id: record for record in equal}
    asked = [question for question in questions if question.question_id not in kept]
    if known is not None and not asked:
        report = replace(known, name=name)
    else:
        with stage_bar(console, f"Execute {name}", len(asked)) as bar:
            report = score(
                asked,
                None if are_several else answers,
                verifier,
                name=name,
                on_progress=bar.advance,
                samples=samples if are_several else None,
                **options,
            )
    if known is not None:
        records = kept | {record.question_id: record for record in report.records}
        # How efficiency was measured stays as the first report says it.
        report = replace(
            report,
            records=tuple(records[question.question_id] for question in questions),
            notes={**report.notes, **known.notes},
        )
    report = replace(report, notes={**report.notes, **(notes or {})})
    report.save(path)
    return report
