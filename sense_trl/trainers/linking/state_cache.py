"""`StateCache`: hidden states on disk, found again by what was read."""

from __future__ import annotations

import hashlib
import json
import shutil
import time
import uuid
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, Final, TypeAlias

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from sense_trl._files import replacing
from sense_trl.errors import InputError
from sense_trl.trainers.linking.reader import Prefix, StateReader

_SUFFIX: Final = ".states"
# Raised whenever the same texts give other states.
_FORMAT: Final = 1
_NUM_READ_AT_ONCE: Final = 20
_SECONDS_BETWEEN_WRITING: Final = 20.0
_BYTES_PER_NUMBER: Final = 2
# What training writes beside states.
_SPARE_BYTES: Final = 64 * 2**20

Marked: TypeAlias = tuple[str, Sequence[tuple[int, int]]]
"""A text, and spans `[start, end)` of it in characters."""


class StateCache:
    """States that a reader gave, in float16, each read once.

    They are found by the texts, the spans and the identity of the reader, so that several models
    may share a folder. What is read is written as it comes: an interrupted run loses what it read
    within the last 20 seconds at most. States that are on disk are mapped, not loaded: they take
    memory only while nothing else needs it.

    Args:
        reader: of the model's states.
        folder: where states are kept, made when the first are; in memory if not given.

    Raises:
        InputError: a file of the folder is damaged.
    """

    def __init__(self, reader: StateReader, folder: str | Path | None = None) -> None:
        self._reader = reader
        self._identity = "" if folder is None else f"{_FORMAT} {reader.get_identity()}"
        self.folder: Final = None if folder is None else Path(folder)
        # Of what is in files, the file; of what is in memory, the states.
        self._found: dict[str, Any] = {}
        self._pending: dict[str, Tensor] = {}
        self._written = time.monotonic()
        for path in [] if self.folder is None else sorted(self.folder.glob(f"*{_SUFFIX}")):
            self._open(path)

    def get_missing(self, prefix: Marked, texts: Iterable[Marked]) -> list[Marked]:
        """The texts that were not read behind a prefix yet."""
        return [text for text in texts if self._get_key(prefix, text) not in self._found]

    def check_space(self, num_states: int) -> None:
        """Make sure that so many states that are missing fit on the disk.

        Raises:
            InputError: they do not.
        """
        if self.folder is None:
            return
        there = next(p for p in (self.folder, *self.folder.absolute().parents) if p.exists())
        free = shutil.disk_usage(there).free
        needed = num_states * self._reader.hidden_size * _BYTES_PER_NUMBER + _SPARE_BYTES
        if needed > free:
            raise InputError(
                f"`state_cache` is {str(self.folder)!r}, where {free / 1e9:.1f} GB are free, and "
                f"the states of these questions take {needed / 1e9:.1f} GB. Name a folder on "
                "another disk, or take fewer questions."
            )

    def read(
        self,
        prefix: Marked,
        texts: Sequence[Marked],
        *,
        on_progress: Callable[[int], None] | None = None,
    ) -> tuple[Tensor, list[Tensor]]:
        """States of a prefix, `[spans, hidden]`, and of texts behind it, `[spans, hidden]` each.

        Args:
            prefix: at least one token.
            texts: each of at least one token.
            on_progress: called with the number of texts finished since the last call.
        """
        own = self._get_key(prefix)
        keys = [self._get_key(prefix, text) for text in texts]
        missing = {key: text for key, text in zip(keys, texts, strict=True)
                   if key not in self._found}  # fmt: skip
        if on_progress is not None:
            on_progress(len(texts) - len(missing))
        if missing or own not in self._found:
            read = self._reader.read_prefix(*prefix)
            try:
                if own not in self._found:
                    self._add(own, read.states)
                self._read_behind(read, missing, on_progress)
            finally:
                self._flush()
        return self._get(own), [self._get(key) for key in keys]

    def _read_behind(
        self, prefix: Prefix, missing: dict[str, Marked], on_progress: Callable[[int], None] | None
    ) -> None:
        keys = list(missing)
        for start in range(0, len(keys), _NUM_READ_AT_ONCE):
            chosen = keys[start : start + _NUM_READ_AT_ONCE]
            texts, spans = zip(*(missing[key] for key in chosen), strict=True)
            for key, states in zip(
                chosen, self._reader.read_behind(prefix, texts, spans), strict=True
            ):
                self._add(key, states)
            if time.monotonic() - self._written > _SECONDS_BETWEEN_WRITING:
                self._flush()
            if on_progress is not None:
                on_progress(len(chosen))

    def _get_key(self, *texts: Marked) -> str:
        content = json.dumps([self._identity, texts])
        return hashlib.sha256(content.encode()).hexdigest()[:32]

    def _add(self, key: str, states: Tensor) -> None:
        largest = torch.finfo(torch.float16).max
        self._pending[key] = states.clamp(-largest, largest).half()

    def _flush(self) -> None:
        """Write what was read; without a folder, keep it."""
        self._written = time.monotonic()
        if self.folder is None:
            self._found |= self._pending
        elif self._pending:
            # A name of its own: two processes may add to one folder.
            path = self.folder / f"{uuid.uuid4().hex}{_SUFFIX}"
            with replacing(path) as temporary:
                save_file(self._pending, temporary)
            self._open(path)
        self._pending = {}

    def _open(self, path: Path) -> None:
        try:
            file: Any = safe_open(path, framework="pt")
            self._found |= dict.fromkeys(file.keys(), file)
        except (OSError, SafetensorError) as error:
            raise InputError(
                f"`state_cache`: {str(path)!r} holds no states ({error}). Delete it, and run "
                "`sense-trl link train` again."
            ) from error

    def _get(self, key: str) -> Tensor:
        found = self._found[key]
        states: Tensor = found if isinstance(found, Tensor) else found.get_tensor(key)
        return states
