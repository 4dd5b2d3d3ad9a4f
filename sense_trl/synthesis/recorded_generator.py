"""`RecordedGenerator`: a generator whose completions are kept in a file."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict
from pathlib import Path

from sense_trl._files import LineLog
from sense_trl.errors import InputError
from sense_trl.generation.generator import Completion, SamplingConfig, SQLGenerator
from sense_trl.prompts import Messages

__all__ = ["RecordedGenerator"]


class RecordedGenerator:
    """Writes what a generator answers to a file, and asks it nothing twice.

    Completions are recorded as they come, a line for each prompt and way of sampling it. A second
    run that asks the same continues where the first was interrupted, and gets the same completions:
    prompts are sampled in the chunks of the whole list, also where a part of a chunk is there,
    because batches of another make-up round differently. The file belongs to one generator.

    Args:
        path: the file; created with the first completions.
        name: of the generator, for provenance.
        load: loads the generator; called only if something is missing.
        chunk_size: prompts sampled and written together; at most this many are lost.
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
        open_bar: Callable[[int], AbstractContextManager[Callable[[int], object]]] | None = None,
    ) -> None:
        self._log = LineLog(path)
        self._name = name
        self._load = load
        self._chunk_size = chunk_size
        self._open_bar = open_bar or _no_bar
        self._generator: SQLGenerator | None = None
        self._completions: dict[str, list[Completion]] = {}
        self._read()

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
        if not distinct.keys() <= self._completions.keys():
            self._sample(distinct, sampling)
        if on_progress is not None:
            on_progress(len(prompts) * sampling.num_generations)
        return [self._completions[key] for key in keys]

    def _sample(self, prompts: dict[str, Messages], sampling: SamplingConfig) -> None:
        if self._generator is None:
            self._generator = self._load()
        keys = list(prompts)
        with self._open_bar(len(keys)) as advance:
            for start in range(0, len(keys), self._chunk_size):
                chunk = keys[start : start + self._chunk_size]
                missing = [key for key in chunk if key not in self._completions]
                if missing:
                    groups = self._generator.generate([prompts[key] for key in chunk], sampling)
                    found = dict(zip(chunk, groups, strict=True))
                    self._write({key: found[key] for key in missing})
                advance(len(chunk))

    def _write(self, completions: dict[str, list[Completion]]) -> None:
        self._log.append(
            json.dumps({"key": key, "completions": [asdict(completion) for completion in group]})
            for key, group in completions.items()
        )
        self._completions |= completions

    def _read(self) -> None:
        for number, line in enumerate(self._log.read(), start=1):
            try:
                record = json.loads(line)
                group = [Completion(**completion) for completion in record["completions"]]
                self._completions[record["key"]] = group
            except (ValueError, KeyError, TypeError, RecursionError) as error:
                raise InputError(
                    f"{self._log.path}, line {number} is no record of completions ({error}). "
                    "The file was changed from outside; delete it to sample again."
                ) from error


def _key(prompt: Messages, sampling: SamplingConfig) -> str:
    content = json.dumps([prompt, asdict(sampling)], sort_keys=True)
    return hashlib.sha256(content.encode()).hexdigest()[:32]


def _no_bar(total: int) -> AbstractContextManager[Callable[[int], object]]:
    return nullcontext(lambda done: None)
