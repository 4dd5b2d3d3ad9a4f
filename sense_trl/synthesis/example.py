"""`SynthesizedExample`: a question and its SQL that no person wrote, and where they come from."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from sense_trl._files import write_text_atomically
from sense_trl.errors import InputError
from sense_trl.questions import Question


@dataclass(frozen=True, slots=True)
class Provenance:
    """The origin of an example: method, model, seed, template and verdicts of filters.

    Attributes:
        method: `"explore"`, `"strong"`, `"recursion"` or another one's name.
        generator: name of the model that wrote it; `None` where none did.
        seed: of the draw that led to it.
        subgraph: columns it was written about, as `table.column`; () where none were chosen.
        template: of its SQL, or the id of the template it was filled from; `None` if not known.
        verdicts: what each filter said of it, by the filter's name, in the order they looked.
    """

    method: str
    generator: str | None
    seed: int
    subgraph: tuple[str, ...] = ()
    template: str | None = None
    verdicts: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class SynthesizedExample:
    """One synthesised training row.

    Attributes:
        question: as a user would type it.
        sql: the query that answers it.
        db_id: the database it is asked of.
        level: difficulty, in the words of the method; `None` if it names none.
        provenance: where it comes from.
    """

    question: str
    sql: str
    db_id: str
    level: str | None
    provenance: Provenance

    @property
    def question_id(self) -> str:
        """Method and a hash of database, question and SQL: equal content has one id."""
        content = json.dumps([self.db_id, self.question, self.sql])
        return f"{self.provenance.method}-{hashlib.sha256(content.encode()).hexdigest()[:16]}"

    def as_question(self) -> Question:
        """The same as `load_questions` reads it from a file of `write_examples`."""
        return Question(
            self.question_id, self.db_id, self.question.strip(), self.sql.strip(), level=self.level
        )

    def as_json(self) -> dict[str, Any]:
        """The record that `load_questions` and `load_examples` read."""
        return {
            "question_id": self.question_id,
            "db_id": self.db_id,
            "question": self.question,
            "gold_sql": self.sql,
            "level": self.level,
            "provenance": asdict(self.provenance),
        }

    @classmethod
    def from_json(cls, record: Mapping[str, Any]) -> SynthesizedExample:
        """The inverse of `as_json`.

        Raises:
            InputError: a field is missing or unknown, or has another type.
        """
        try:
            origin = dict(record["provenance"])
            origin["subgraph"] = tuple(origin["subgraph"])
            origin["verdicts"] = dict(origin["verdicts"])
            texts = [record[name] for name in ("question", "gold_sql", "db_id")]
            if not all(isinstance(text, str) for text in texts):
                raise TypeError("`question`, `gold_sql` and `db_id` must be strings")
            question, sql, db_id = texts
            return cls(question, sql, db_id, record["level"], Provenance(**origin))
        except (KeyError, TypeError, ValueError) as error:
            raise InputError(
                f"{str(record)[:200]!r} is no synthesised example ({type(error).__name__}: "
                f"{error}). Expected a record as `write_examples` writes it."
            ) from error


def write_examples(path: str | Path, examples: Iterable[SynthesizedExample]) -> None:
    """Write examples as JSON Lines that `load_questions` reads; the file is replaced whole."""
    lines = (json.dumps(example.as_json(), ensure_ascii=False) + "\n" for example in examples)
    write_text_atomically(path, "".join(lines))


def load_examples(path: str | Path) -> list[SynthesizedExample]:
    """Read a file of `write_examples` with its provenance.

    Raises:
        InputError: not a file, or a line is no such record; the message names the line.
    """
    path = Path(path)
    if not path.is_file():
        raise InputError(f"`path` is {str(path)!r}, which is not a file.")
    examples = []
    for number, line in enumerate(path.read_bytes().split(b"\n"), start=1):
        if line.strip():
            try:
                examples.append(SynthesizedExample.from_json(json.loads(line)))
            except (ValueError, RecursionError) as error:
                raise InputError(f"{path}, line {number}: {error}") from error
    return examples
