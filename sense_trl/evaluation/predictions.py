"""`load_predictions`: what a model answered, from JSON Lines or one query per line."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from sense_trl.errors import InputError
from sense_trl.questions import Question
from sense_trl.verification.comparison import Semantics

__all__ = ["load_predictions"]

_SQL_FIELDS: Final = ("sql", "predicted_sql", "prediction")
# What BIRD's files put between a query and its `db_id`.
_BIRD_MARK: Final = "\t----- bird -----"


def load_predictions(
    path: str | Path, questions: Sequence[Question], *, semantics: Semantics = "strict"
) -> list[str]:
    """Read one prediction per question.

    Two layouts are read: JSON Lines with `question_id` and `sql` (or `predicted_sql`,
    `prediction`) in any order, also as `CandidateFile` writes them, a list of one to a line; and
    plain text with one query per line in the order of the questions, an empty line where there is
    no answer.

    A line of plain text may end in a tab and the question's `db_id`, as in Spider's files (in
    BIRD's with a mark between them), which is cut off. Another tab is white space, except under
    `spider`: the official script reads a line up to its first tab, whatever follows.

    Args:
        path: the file.
        questions: the questions that it answers.
        semantics: what the predictions will be compared by.

    Returns:
        One text per question, in their order.

    Raises:
        InputError: not a file, not UTF-8, a line that cannot be read, or not one answer for each
            question. The message names file and line.
    """
    path = Path(path)
    if not path.is_file():
        raise InputError(f"`predictions` is {str(path)!r}, which is not a file")
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputError(
            f"`predictions` {str(path)!r} is not UTF-8 text (byte {error.start})"
        ) from error
    lines = text.removesuffix("\n").split("\n") if text else []
    if next((line for line in lines if line.strip()), "").lstrip().startswith(("{", "[{")):
        return _match_by_id(path, lines, questions)
    if len(lines) != len(questions):
        raise InputError(
            f"`predictions` {path} has {len(lines)} lines for {len(questions)} questions; write "
            "one SQL query per line in the order of the questions (an empty line where there is "
            "no answer), or JSON Lines with question_id and sql"
        )
    if semantics == "spider":
        return [line.strip().split("\t")[0] for line in lines]
    return [
        line.removesuffix("\r").removesuffix(f"\t{question.db_id}").removesuffix(_BIRD_MARK)
        for line, question in zip(lines, questions, strict=True)
    ]


def _match_by_id(path: Path, lines: Sequence[str], questions: Sequence[Question]) -> list[str]:
    known = {question.question_id for question in questions}
    found: dict[str, str] = {}
    places: dict[str, int] = {}
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        place = f"{path}, line {number}"
        try:
            record = json.loads(line)
        except (ValueError, RecursionError) as error:
            # Only a JSONDecodeError knows its column: the others are numbers of thousands of
            # digits and nesting of thousands of levels.
            problem = str(error)
            if isinstance(error, json.JSONDecodeError):
                problem = f"{error.msg} at column {error.colno}"
            raise InputError(
                f"{place}: invalid JSON ({problem}); write one object per line"
            ) from error
        # As `sense-trl evaluate --config` writes them: a list of the candidates of each question.
        if isinstance(record, list):
            if len(record) != 1:
                raise InputError(
                    f"{place}: {len(record)} candidates for one question; predict with "
                    "`num_generations` 1"
                )
            (record,) = record
        if not isinstance(record, dict) or not isinstance(record.get("question_id"), (str, int)):
            raise InputError(f"{place}: expected an object with a `question_id`")
        question_id = str(record["question_id"])
        sql = next(
            (record[name] for name in _SQL_FIELDS if isinstance(record.get(name), str)), None
        )
        if sql is None:
            raise InputError(
                f"{place}: no field {', '.join(f'`{name}`' for name in _SQL_FIELDS)} with a "
                f"string; the record has {sorted(record)}"
            )
        if question_id not in known:
            raise InputError(f"{place}: `question_id` {question_id!r} is not among the questions")
        if question_id in found:
            raise InputError(
                f"{place}: `question_id` {question_id!r} was already answered in line "
                f"{places[question_id]}; give one prediction per question"
            )
        found[question_id], places[question_id] = sql, number
    missing = [q.question_id for q in questions if q.question_id not in found]
    if missing:
        raise InputError(
            f"`predictions` {path} answers {len(found)} of {len(questions)} questions, the first "
            f"without an answer is {missing[0]!r}; write an empty `sql` where there is none"
        )
    return [found[question.question_id] for question in questions]
