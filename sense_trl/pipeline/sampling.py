"""Sampling that survives an interruption: every finished question is on disk."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from sense_trl.generation.generator import SamplingConfig, SQLGenerator
from sense_trl.pairs.candidates import Candidate, CandidateFile
from sense_trl.pipeline.task import TextToSQLTask
from sense_trl.prompts import extract_sql
from sense_trl.questions import Question


def sample_candidates(
    task: TextToSQLTask,
    questions: Sequence[Question],
    generator: SQLGenerator,
    sampling: SamplingConfig,
    path: str | Path,
    *,
    source: str,
    chunk_size: int = 16,
    on_progress: Callable[[int], None] | None = None,
) -> CandidateFile:
    """Sample candidates for `questions` into the file `path`.

    Questions that are in the file already are not sampled again. Chunks are cut from the full list
    of questions, so an interrupted run ends with the same file as one that was not.

    Args:
        source: `"weak"` or `"strong"`.
        chunk_size: questions sampled and written together; at most this many are lost.
        on_progress: called with the number of questions finished since the last call.
    """
    file = CandidateFile(path)
    for start in range(0, len(questions), chunk_size):
        chunk = questions[start : start + chunk_size]
        # The whole chunk is sampled again even if a part is there: batches of another make-up round
        # differently, and a sample near a tie could come out as another token.
        if any(question.question_id not in file for question in chunk):
            completions = generator.generate([task.get_messages(q) for q in chunk], sampling)
            for question, group in zip(chunk, completions, strict=True):
                if question.question_id in file:
                    continue
                file.append(
                    question.question_id,
                    [
                        Candidate(
                            question_id=question.question_id,
                            sample=sample,
                            sql=extract_sql(completion.text),
                            text=completion.text,
                            source=source,
                            model=generator.name,
                            finished=completion.finished,
                            num_tokens=completion.num_tokens,
                            temperature=sampling.temperature,
                            top_p=sampling.top_p,
                            seed=sampling.seed,
                        )
                        for sample, completion in enumerate(group)
                    ],
                )
        if on_progress is not None:
            on_progress(len(chunk))
    return file
