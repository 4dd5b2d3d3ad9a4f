"""`Candidate`: one SQL query somebody proposed for a question, and the file candidates live in."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from sense_trl.errors import InputError


@dataclass(frozen=True, slots=True)
class Candidate:
    """A proposed query with its provenance.

    Attributes:
        question_id: the question it answers.
        sample: index among the candidates of that question from the same model and settings.
        sql: the query taken out of `text`.
        text: what the model wrote.
        source: `"weak"`, `"strong"`, `"gold"` or `"mutation"`.
        model: name of the model; `"gold"` for the reference query, the `MutationKind` of a mutant.
        finished: whether the model ended its answer by itself.
        num_tokens: tokens generated.
        temperature: sampling temperature.
        top_p: nucleus share.
        seed: sampling seed.
    """

    question_id: str
    sample: int
    sql: str
    text: str
    source: str
    model: str
    finished: bool = True
    num_tokens: int = 0
    temperature: float = 0.0
    top_p: float = 1.0
    seed: int = 0

    @property
    def candidate_id(self) -> str:
        """Content key: the same model, settings, question, sample and text give the same id."""
        content = json.dumps(asdict(self), sort_keys=True)
        return hashlib.sha256(content.encode()).hexdigest()[:16]


_FIELDS = {field.name for field in fields(Candidate)}


class CandidateFile:
    """Candidates as JSON Lines, written as they come and readable after a crash.

    All candidates of a question are written in one `append`, so a question is in the file wholly or
    not at all: a last line that a crash cut short, and its question with it, is dropped on opening.

    Args:
        path: the file; created on the first `append`.

    Raises:
        InputError: a line other than the last is damaged, or has other fields.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self._groups: dict[str, list[Candidate]] = {}
        if self.path.exists():
            self._load()

    def __contains__(self, question_id: object) -> bool:
        return question_id in self._groups

    def __len__(self) -> int:
        return sum(len(group) for group in self._groups.values())

    def __iter__(self) -> Iterator[Candidate]:
        for group in self._groups.values():
            yield from group

    def append(self, question_id: str, candidates: Iterable[Candidate]) -> None:
        """Write all candidates of one question and flush them to disk."""
        group = list(candidates)
        line = json.dumps([asdict(candidate) for candidate in group], ensure_ascii=False)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("a", encoding="utf-8") as file:
            file.write(line + "\n")
            file.flush()
            os.fsync(file.fileno())
        self._groups[question_id] = group

    def _load(self) -> None:
        content = self.path.read_bytes()
        complete = content.rfind(b"\n") + 1
        for number, line in enumerate(content[:complete].splitlines(), start=1):
            group = self._parse(line, number)
            if group:
                self._groups[group[0].question_id] = group
        if complete < len(content):
            # Cut what a crash left half written, so that the next append starts on a fresh line.
            with self.path.open("rb+") as file:
                file.truncate(complete)

    def _parse(self, line: bytes, number: int) -> list[Candidate]:
        place = f"{self.path}, line {number}"
        try:
            records: Any = json.loads(line)
        except ValueError as error:
            raise InputError(
                f"{place}: invalid JSON ({error}). The file was changed from outside; delete it to "
                "sample again."
            ) from error
        group = []
        for record in records if isinstance(records, list) else [None]:
            if not isinstance(record, dict) or set(record) != _FIELDS:
                raise InputError(
                    f"{place}: expected a list of candidates with the fields {sorted(_FIELDS)}. "
                    "The file was written by something else; choose another path."
                )
            group.append(Candidate(**record))
        return group
