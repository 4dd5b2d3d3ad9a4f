"""`RecordedGenerator`: a generator whose completions are kept in a file."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict
from pathlib import Path

from sense_trl._files import LineLog
from sense_trl.errors import InputError
from sense_trl.generation.generator import (
    Completion,
    ResumableGenerator,
    SamplingConfig,
    SQLGenerator,
)
from sense_trl.prompts import Messages


class RecordedGenerator:
    """Writes what a generator answers to a file, and asks it nothing twice.

    Completions are recorded as they come, a line for each prompt and way of sampling it. A second
    run that asks the same continues where the first was interrupted, and gets the same completions:
    prompts are sampled in the chunks of the whole list, also where a part of a chunk is there,
    because batches of another make-up round differently. Of a `ResumableGenerator` every answer has
    its line, and only what is missing is asked. The file belongs to one generator.

    Args:
        path: the file; created with the first completions.
        name: of the generator, for provenance.
        load: loads the generator; called only if something is missing.
        chunk_size: prompts sampled and written together; at most this many are lost. A
            `ResumableGenerator` gets all at once, and loses none.
        others: files of other processes, to be read as well.
        open_bar: shows the progress of so many prompts: a context that gives a function to call
            with the number of prompts finished since the last call.

    Raises:
        InputError: a line other than the last, which a crash may have cut short, is damaged.
    """

    def __init__(
        self,
        path: str | Path,
        name: str,
        load: Callable[[], SQLGenerator],
        *,
        chunk_size: int = 16,
        others: Iterable[str | Path] = (),
        open_bar: Callable[[int], AbstractContextManager[Callable[[int], object]]] | None = None,
    ) -> None:
        self._log = LineLog(path)
        self._name = name
        self._load = load
        self._chunk_size = chunk_size
        self._open_bar = open_bar or (lambda total: nullcontext(lambda done: None))
        self._generator: SQLGenerator | None = None
        # By the number of the sample.
        self._completions: dict[str, dict[int, Completion]] = {}
        for log in (*map(LineLog, others), self._log):
            self._read(log)

    @property
    def name(self) -> str:
        """Label used in provenance."""
        return self._name

    def generate(
        self,
        prompts: Sequence[Messages],
        sampling: SamplingConfig,
        *,
        on_progress: Callable[[int], None] | None = None,
    ) -> list[list[Completion]]:
        """Completions from the file, or from the generator where it has none; see `SQLGenerator`.

        Prompts that are equal get equal completions.
        """
        keys = [_key(prompt, sampling) for prompt in prompts]
        distinct = dict(zip(keys, prompts, strict=True))
        num_reported = 0

        def report(number: int) -> None:
            nonlocal num_reported
            num_reported += number
            if on_progress is not None:
                on_progress(number)

        if self._find_missing(distinct, sampling):
            self._sample(distinct, sampling, report)
        report(len(prompts) * sampling.num_generations - num_reported)
        samples = range(sampling.num_generations)
        return [[self._completions[key][sample] for sample in samples] for key in keys]

    def _find_missing(self, keys: Iterable[str], sampling: SamplingConfig) -> list[str]:
        """Those of which samples are not there."""
        num = sampling.num_generations
        return [key for key in keys if len(self._completions.get(key, ())) < num]

    def _sample(
        self,
        prompts: dict[str, Messages],
        sampling: SamplingConfig,
        on_progress: Callable[[int], None],
    ) -> None:
        if self._generator is None:
            self._generator = self._load()
        keys = list(prompts)
        # A server would run empty at the end of each chunk, and keeps its answers one by one.
        is_resumable = isinstance(self._generator, ResumableGenerator)
        chunk_size = len(keys) if is_resumable else self._chunk_size
        with self._open_bar(len(keys)) as advance:
            for start in range(0, len(keys), chunk_size):
                chunk = keys[start : start + chunk_size]
                missing = self._find_missing(chunk, sampling)
                if missing and isinstance(self._generator, ResumableGenerator):
                    rest = {key: prompts[key] for key in missing}
                    self._resume(self._generator, rest, sampling, on_progress)
                elif missing:
                    groups = self._generator.generate([prompts[key] for key in chunk], sampling)
                    found = dict(zip(chunk, groups, strict=True))
                    self._write({key: dict(enumerate(found[key])) for key in missing})
                advance(len(chunk))

    def _resume(
        self,
        generator: ResumableGenerator,
        prompts: dict[str, Messages],
        sampling: SamplingConfig,
        on_progress: Callable[[int], None],
    ) -> None:
        keys = list(prompts)
        generator.resume(
            list(prompts.values()),
            sampling,
            [self._completions.get(key, {}) for key in keys],
            lambda index, answers: self._write({keys[index]: answers}),
            on_progress=on_progress,
        )

    def _write(self, completions: Mapping[str, Mapping[int, Completion]]) -> None:
        self._log.append(
            json.dumps(
                {
                    "key": key,
                    "completions": [asdict(completion) for completion in group.values()],
                    # Left out where they are all.
                    **({} if [*group] == [*range(len(group))] else {"samples": [*group]}),
                }
            )
            for key, group in completions.items()
        )
        for key, group in completions.items():
            self._completions.setdefault(key, {}).update(group)

    def _read(self, log: LineLog) -> None:
        for number, line in enumerate(log.read(), start=1):
            try:
                record = json.loads(line)
                group = [Completion(**completion) for completion in record["completions"]]
                samples = record.get("samples", range(len(group)))
                known = self._completions.setdefault(record["key"], {})
                known.update(zip(samples, group, strict=True))
            except (ValueError, KeyError, TypeError, RecursionError) as error:
                raise InputError(
                    f"{log.path}, line {number} is no record of completions ({error}). "
                    "The file was changed from outside; delete it to sample again."
                ) from error


def _key(prompt: Messages, sampling: SamplingConfig) -> str:
    settings = asdict(sampling)
    # Files of an earlier form know nothing of it.
    if not sampling.stop_at_fence:
        del settings["stop_at_fence"]
    content = json.dumps([prompt, settings], sort_keys=True)
    return hashlib.sha256(content.encode()).hexdigest()[:32]
