"""`Candidate`: one SQL query somebody proposed for a question, and the file candidates live in."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Final

from sense_trl._files import LineLog, write_text_atomically
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


# Annotations are text here.
_TYPES: Final[dict[str, tuple[type, ...]]] = {
    "str": (str,),
    "int": (int,),
    "bool": (bool,),
    "float": (float, int),
}
_FIELDS: Final = {field.name: _TYPES[str(field.type)] for field in fields(Candidate)}


class CandidateFile:
    """Candidates as JSON Lines, written as they come and readable after a crash.

    All candidates of a question are written in one `append`, so a question is in the file wholly or
    not at all: a last line that a crash cut short, and its question with it, is left out. Opening
    changes nothing in the file.

    Args:
        path: the file; created on the first `append`.

    Raises:
        InputError: a line other than the last is damaged, or has other fields or types.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self._log = LineLog(path)
        self._groups: dict[str, list[Candidate]] = {}
        self._load()

    def __contains__(self, question_id: object) -> bool:
        return question_id in self._groups

    def __len__(self) -> int:
        return sum(len(group) for group in self._groups.values())

    def __iter__(self) -> Iterator[Candidate]:
        for group in self._groups.values():
            yield from group

    def append(self, question_id: str, candidates: Iterable[Candidate]) -> None:
        """Write all candidates of one question and flush them to disk.

        Raises:
            OutputError: they cannot be written.
        """
        group = list(candidates)
        self._log.append([_as_line(group)])
        self._groups[question_id] = group

    def _load(self) -> None:
        lines = self._log.read()
        if _is_json(self._log.rest):
            # Only its end is missing, as in a file that a person wrote.
            lines.append(self._log.rest)
            self._log.keep_rest()
        for number, line in enumerate(lines, start=1):
            if group := self._parse(line, number):
                self._groups[group[0].question_id] = group

    def _parse(self, line: bytes, number: int) -> list[Candidate]:
        place = f"{self.path}, line {number}"
        try:
            records: Any = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise InputError(
                f"{place}: invalid JSON ({error}). The file was changed from outside; delete it to "
                "sample again."
            ) from error
        group = []
        for record in records if isinstance(records, list) else [None]:
            if not isinstance(record, dict) or record.keys() != _FIELDS.keys():
                raise InputError(
                    f"{place}: expected a list of candidates with the fields {sorted(_FIELDS)}. "
                    "The file was written by something else; choose another path."
                )
            for name, types in _FIELDS.items():
                if type(record[name]) not in types:
                    raise InputError(
                        f"{place}: `{name}` is {record[name]!r}; expected {types[0].__name__}. The "
                        "file was changed from outside; mend it, or delete it to sample again."
                    )
            group.append(Candidate(**record))
        return group


def write_candidates(path: str | Path, groups: Iterable[Sequence[Candidate]]) -> None:
    """Write a whole file of candidates, those of each question together; it is replaced.

    Raises:
        OutputError: it cannot be written.
    """
    write_text_atomically(path, "".join(f"{_as_line(group)}\n" for group in groups))


def _as_line(group: Sequence[Candidate]) -> str:
    return json.dumps([asdict(candidate) for candidate in group], ensure_ascii=False)


def _is_json(text: bytes) -> bool:
    try:
        json.loads(text)
    except (ValueError, RecursionError):
        return False
    return True
