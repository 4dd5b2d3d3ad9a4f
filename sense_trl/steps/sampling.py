"""Sampling that survives an interruption: every finished question is on disk."""

from __future__ import annotations

import glob
import itertools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final

from sense_trl.generation.generator import (
    Completion,
    ResumableGenerator,
    SamplingConfig,
    SQLGenerator,
)
from sense_trl.generation.recorded_generator import RecordedGenerator
from sense_trl.pairs.candidates import Candidate, CandidateFile, write_candidates
from sense_trl.prompts import extract_sql
from sense_trl.questions import Question
from sense_trl.steps.processes import Processes
from sense_trl.task import TextToSQLTask

# Of a server, together.
_MAX_QUESTIONS_ASKED: Final = 1_024


def sample_candidates(
    task: TextToSQLTask,
    questions: Sequence[Question],
    generator: SQLGenerator,
    sampling: SamplingConfig,
    path: str | Path,
    *,
    source: str,
    chunk_size: int = 16,
    processes: Processes | None = None,
    on_progress: Callable[[int], None] | None = None,
) -> CandidateFile:
    """Sample candidates for `questions` into the file `path`.

    Questions that are in the file already are not sampled again. Chunks are cut from the full list
    of questions, in the order of their databases so that those of a chunk share a schema; so an
    interrupted run ends with the same candidates as one that was not. What a server answers is kept
    beside the file one by one until all is there, so that nothing is paid for twice.

    Args:
        source: `"weak"` or `"strong"`.
        chunk_size: questions sampled and written together; at most this many are lost. Of a
            `ResumableGenerator` none is, and up to 1,024 are asked together.
        processes: several processes take turns at the chunks. Each writes a file of its own beside
            `path` until all have finished; then there is one file, the same as from one process.
            An interrupted run may be continued with another number of processes.
        on_progress: called with the number of questions finished since the last call.
    """
    processes = processes or Processes()
    path = Path(path)
    whole = CandidateFile(path)
    parts = [CandidateFile(part) for part in _find_beside(path, "part")]
    is_resumable = isinstance(generator, ResumableGenerator)
    if is_resumable:
        # At the end of each chunk a server runs empty.
        share = -(-len(questions) // processes.count)
        chunk_size = max(chunk_size, min(share, _MAX_QUESTIONS_ASKED))
        answers = path.with_name(f"{path.stem}.answers-{processes.index}{path.suffix}")
        others = [file for file in _find_beside(path, "answers") if file != answers]
        server = generator
        generator = RecordedGenerator(
            answers, server.name, lambda: server, chunk_size=chunk_size, others=others
        )
    # Nobody may write a part before everybody has looked.
    processes.wait()
    own = whole
    if processes.count > 1:
        own = CandidateFile(path.with_name(f"{path.stem}.part-{processes.index}{path.suffix}"))
    ordered = sorted(questions, key=lambda question: question.db_id)
    for start in range(0, len(ordered), chunk_size):
        chunk = ordered[start : start + chunk_size]
        num_questions = len(chunk)
        missing = {
            question.question_id
            for question in chunk
            if not any(question.question_id in file for file in (whole, *parts))
        }
        # A model here samples the whole chunk again even if a part is there: batches of another
        # make-up round differently, and a sample near a tie could come out as another token.
        if is_resumable:
            chunk = [question for question in chunk if question.question_id in missing]
        if missing and start // chunk_size % processes.count == processes.index:
            prompts = [task.get_messages(question) for question in chunk]
            if is_resumable:
                # Its answers are written before they are counted.
                counter = _QuestionCounter(sampling.num_generations, on_progress)
                completions = generator.generate(prompts, sampling, on_progress=counter.add)
                num_questions -= counter.num_questions
            else:
                completions = generator.generate(prompts, sampling)
            for question, group in zip(chunk, completions, strict=True):
                if question.question_id in missing:
                    candidates = _as_candidates(question, group, generator.name, sampling, source)
                    own.append(question.question_id, candidates)
        if on_progress is not None:
            on_progress(num_questions)
    processes.wait()
    if processes.is_main:
        _merge_parts(path, [question.question_id for question in ordered])
        for file in _find_beside(path, "answers"):
            file.unlink()
    processes.wait()
    return CandidateFile(path)


class _QuestionCounter:
    """Makes questions of completions, for a bar that counts those."""

    def __init__(self, num_generations: int, on_progress: Callable[[int], None] | None) -> None:
        self.num_questions = 0
        self._num_completions = 0
        self._num_generations = num_generations
        self._on_progress = on_progress

    def add(self, number: int) -> None:
        self._num_completions += number
        new = self._num_completions // self._num_generations - self.num_questions
        self.num_questions += new
        if new and self._on_progress is not None:
            self._on_progress(new)


def _as_candidates(
    question: Question,
    completions: Sequence[Completion],
    model: str,
    sampling: SamplingConfig,
    source: str,
) -> list[Candidate]:
    return [
        Candidate(
            question_id=question.question_id,
            sample=sample,
            sql=extract_sql(completion.text),
            text=completion.text,
            source=source,
            model=model,
            finished=completion.finished,
            num_tokens=completion.num_tokens,
            temperature=sampling.temperature,
            top_p=sampling.top_p,
            seed=sampling.seed,
        )
        for sample, completion in enumerate(completions)
    ]


def _find_beside(path: Path, kind: str) -> list[Path]:
    """Files of single processes, which are there until all have finished."""
    return sorted(path.parent.glob(f"{glob.escape(path.stem)}.{kind}-*{path.suffix}"))


def _merge_parts(path: Path, question_ids: Sequence[str]) -> None:
    """Make one file of `path` and its parts, in the order in which one process writes."""
    parts = _find_beside(path, "part")
    if not parts:
        return
    groups: dict[str, list[Candidate]] = {}
    for file in (CandidateFile(path), *map(CandidateFile, parts)):
        # A merge that was interrupted leaves a question in two files.
        for question_id, group in itertools.groupby(file, key=lambda c: c.question_id):
            groups.setdefault(question_id, list(group))
    # Questions of an earlier, longer list stay.
    ordered = [name for name in dict.fromkeys([*question_ids, *groups]) if name in groups]
    write_candidates(path, [groups[name] for name in ordered])
    for part in parts:
        part.unlink()
