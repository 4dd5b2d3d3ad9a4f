"""`load_predictions`: what a model answered, in every layout that official scripts read."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Container, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from sense_trl.errors import InputError
from sense_trl.prompts import extract_sql
from sense_trl.questions import Question, get_file_ids
from sense_trl.sql.reading import read_query
from sense_trl.verification.comparison import Semantics

_SQL_FIELDS: Final = ("sql", "predicted_sql", "prediction")
# What BIRD's files put between a query and its `db_id`.
_BIRD_MARK: Final = "\t----- bird -----\t"
_BARE_BIRD_MARK: Final = _BIRD_MARK.rstrip("\t")
_NAME: Final = re.compile(r"[\w.-]+")
_JSON_ARRAY: Final = re.compile(r'\s*\[\s*[{"\[]')
# Below this many lines, one word behind a tab may be anything.
_MIN_LINES_OF_A_LAYOUT: Final = 3
_MAX_SHOWN: Final = 3


@dataclass(frozen=True, slots=True)
class _Answer:
    """One prediction as it stands in its file.

    Attributes:
        sql: the text.
        place: where it stands, for messages.
        db_id: the database that the file names for it, if it names one.
        question_id: the question that the file names for it, if it names one.
    """

    sql: str
    place: str
    db_id: str | None = None
    question_id: str | None = None


def load_predictions(
    path: str | Path,
    questions: Sequence[Question],
    *,
    semantics: Semantics = "strict",
    extract: bool = False,
) -> list[str]:
    """Read one prediction per question.

    These layouts are read:

    * plain text with one query per line in the order of the questions, an empty line where there is
      no answer (where that gives another number of lines than questions, empty lines count for
      nothing, as to Spider's script). A line may end in a tab and the question's `db_id`, as in
      Spider's files, in BIRD's with a mark between them;
    * BIRD's `predict_dev.json`: one JSON object of position (from 0) or `question_id` to
      `"SQL\\t----- bird -----\\tdb_id"`; what is not a string is no answer;
    * a JSON array of strings in the order of the questions, or of objects as in JSON Lines, which
      are taken in order where none has a `question_id`;
    * JSON Lines with `question_id` and `sql` (or `predicted_sql`, `prediction`) in any order, also
      as `CandidateFile` writes them, a list of one to a line.

    A database that a prediction names (behind the tab, or as `db_id`) has to be the question's:
    files that answer other questions, or in another order, are refused. Another tab is white space,
    except that under `spider` a plain line is read up to its first tab, whatever follows, as the
    official script does.

    Args:
        path: the file.
        questions: the questions that it answers.
        semantics: what the predictions will be compared by.
        extract: take the SQL out of each prediction (`extract_sql`), where they are whole answers
            of a chat model.

    Returns:
        One text per question, in their order.

    Raises:
        InputError: not a file, not UTF-8, a line that cannot be read, not one answer for each
            question, or answers on other databases. The message names file and line.
    """
    path = Path(path)
    if not path.is_file():
        raise InputError(f"`predictions` is {str(path)!r}, which is not a file")
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputError(
            f"`predictions` {str(path)!r} is not UTF-8 text (byte {error.start}); save it as UTF-8"
        ) from error
    answers = _read_json(path, text, questions)
    is_text = answers is None
    if answers is None:
        answers = _read_lines(path, text, questions, semantics)
    _check_databases(path, answers, questions)
    predictions = [answer.sql for answer in answers]
    if extract:
        predictions = [extract_sql(sql) for sql in predictions]
    if is_text and semantics == "spider":
        predictions = [sql.strip().split("\t")[0] for sql in predictions]
    return predictions


def count_chat(predictions: Sequence[str]) -> int:
    """Number of predictions with more than SQL: fences, tags, a label, or prose around a query."""
    return sum(
        extract_sql(text).rstrip("; \t\r\n") != text.strip().rstrip("; \t\r\n")
        for text in predictions
    )


# ---------------------------------------------------------------------- plain text


def _read_lines(
    path: Path, text: str, questions: Sequence[Question], semantics: Semantics
) -> list[_Answer]:
    lines = text.removesuffix("\n").split("\n") if text else []
    numbered = [(number, line.removesuffix("\r")) for number, line in enumerate(lines, start=1)]
    if len(numbered) != len(questions):
        filled = [(number, line) for number, line in numbered if line.strip()]
        if len(filled) != len(questions):
            raise InputError(
                f"`predictions` {path} has {len(lines)} lines for {len(questions)} questions; "
                "write one SQL query per line in the order of the questions (an empty line where "
                "there is no answer), or JSON Lines with question_id and sql"
            )
        numbered = filled
    known = _get_names(questions)
    names_databases = _names_databases([line for _, line in numbered])
    answers = []
    for number, line in numbered:
        sql, mark, name = line.partition(_BIRD_MARK)
        if not mark:
            sql, tab, name = line.rpartition("\t")
            # Elsewhere a tab is white space, and what stands behind it is SQL.
            if not tab or not (names_databases or name.strip().casefold() in known):
                sql, name = line, ""
        db_id = name.split("\t")[0].strip() or None
        sql = sql.removesuffix(_BARE_BIRD_MARK)
        if db_id is None and semantics == "spider":
            # The official script takes a name in the second column, and nothing from others.
            second = line.split("\t")[1:2]
            db_id = next(
                (part.strip() for part in second if part.strip().casefold() in known), None
            )
        answers.append(_Answer(sql, f"line {number}", db_id))
    return answers


def _names_databases(lines: Sequence[str]) -> bool:
    """Whether lines are a query, a tab and one word: all that hold anything, with some mistakes."""
    filled = [line for line in lines if line.strip()]
    if len(filled) < _MIN_LINES_OF_A_LAYOUT:
        return False
    num_whole = 0
    for line in filled:
        sql, tab, name = line.rpartition("\t")
        if not tab or not _NAME.fullmatch(name.strip()):
            return False
        # Of a query that a model broke off, the last word could as well be a part.
        num_whole += not sql.strip() or read_query(sql, max_tokens=500).is_closed
    return num_whole * 2 > len(filled)


# ---------------------------------------------------------------------- JSON


def _read_json(path: Path, text: str, questions: Sequence[Question]) -> list[_Answer] | None:
    """The answers of a file of JSON or JSON Lines, one per question; `None` for plain text."""
    head = text.lstrip()
    if not (head.startswith("{") or _JSON_ARRAY.match(head)):
        return None
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        records = _read_json_lines(path, text, error)
        if records is None:
            return None
        return _match_by_id(path, records, questions)
    if isinstance(value, dict) and not any(n in value for n in ("question_id", *_SQL_FIELDS)):
        return _match_by_key(path, value, questions)
    if isinstance(value, dict):
        return _match_by_id(path, [("line 1", value)], questions)
    ids = {str(part.get("question_id")) for part in value if isinstance(part, dict)}
    if len(value) > 1 and len(ids) == 1 and "None" not in ids and "\n" not in text.strip():
        # One line of a file of candidates.
        return _match_by_id(path, [("line 1", value)], questions)
    # As in BIRD's object, `null` is no answer.
    records = [
        (f"record {number}", "" if part is None else part)
        for number, part in enumerate(value, start=1)
    ]
    if any(isinstance(part, dict) and "question_id" in part for part in value):
        return _match_by_id(path, records, questions)
    if len(records) != len(questions):
        raise InputError(
            f"`predictions` {path} is an array of {len(records)} predictions for {len(questions)} "
            "questions; give one for each in their order (an empty string where there is no "
            "answer), or objects with question_id and sql"
        )
    known = _get_names(questions)
    return [
        _split_name(part, place, known)
        if isinstance(part, str)
        else _read_record(path, place, part, known, needs_id=False)
        for place, part in records
    ]


def _read_json_lines(path: Path, text: str, error: Exception) -> list[tuple[str, Any]] | None:
    """The records of JSON Lines; `None` for plain text that only begins like JSON."""
    lines = text.split("\n")
    first = next(line for line in lines if line.strip())
    is_array_of_strings = not first.lstrip().startswith(("{", "[{"))
    if is_array_of_strings and not all(
        line.strip()[:1] in ("", "{", "}", "[", "]", '"') for line in lines
    ):
        return None
    if is_array_of_strings or first.strip() in ("{", "[", "[{"):
        # Spread over lines, so it can only be meant as a whole.
        line = getattr(error, "lineno", 1)
        raise InputError(
            f"{path}, line {line}: invalid JSON ({_problem(error)}); write one JSON object or "
            "array, or one object per line"
        ) from error
    records = []
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            records.append((f"line {number}", json.loads(line)))
        except (ValueError, RecursionError) as problem:
            raise InputError(
                f"{path}, line {number}: invalid JSON ({_problem(problem)}); write one object per "
                "line"
            ) from problem
    return records


def _problem(error: Exception) -> str:
    # Only a JSONDecodeError knows its column: the others are numbers of thousands of digits and
    # nesting of thousands of levels.
    if isinstance(error, json.JSONDecodeError):
        return f"{error.msg} at column {error.colno}"
    return str(error)


def _get_names(questions: Sequence[Question]) -> frozenset[str]:
    """Of the databases that are asked, without regard to case."""
    return frozenset(question.db_id.casefold() for question in questions)


def _split_name(
    text: str, place: str, known: Container[str], question_id: str | None = None
) -> _Answer:
    """An answer that may carry the name of its database, behind BIRD's mark or behind a tab.

    Behind a tab only a name that is `known` is one. Where the file names the question, a tab is
    white space, and what stands behind it is SQL.
    """
    sql, mark, name = text.partition(_BIRD_MARK)
    if not mark and question_id is None:
        sql, _, name = text.rpartition("\t")
        if name.strip().casefold() not in known:
            sql, name = text, ""
    return _Answer(sql.removesuffix(_BARE_BIRD_MARK), place, name.strip() or None, question_id)


def _match_by_key(
    path: Path, value: dict[str, Any], questions: Sequence[Question]
) -> list[_Answer]:
    """BIRD's object of position or id to text."""
    by_id = {question.question_id: question for question in questions}
    positions = {str(position): question for position, question in enumerate(questions)}
    keys = by_id if value.keys() <= by_id.keys() else positions
    unknown = next((key for key in value if key not in keys), None)
    if unknown is not None:
        raise InputError(
            f"`predictions` {path}: the key {unknown!r} is neither a position from 0 to "
            f"{len(questions) - 1} nor a `question_id` of the questions; give an object of "
            'position to "SQL\\t----- bird -----\\tdb_id" as BIRD does, or JSON Lines with '
            "question_id and sql"
        )
    missing = next((key for key in keys if key not in value), None)
    if missing is not None:
        raise InputError(
            f"`predictions` {path} answers {len(value)} of {len(questions)} questions, the first "
            f"without an answer is {missing!r}; write an empty text where there is none"
        )
    texts = [value[key] for key in keys]
    if not any(isinstance(text, str) for text in texts):
        raise InputError(
            f"`predictions` {path}: none of the {len(texts)} values is a string; expected "
            f"SQL, found {type(texts[0]).__name__}"
        )
    known = _get_names(questions)
    return [
        _split_name(text if isinstance(text, str) else "", f"key {key!r}", known)
        for key, text in zip(keys, texts, strict=True)
    ]


def _read_record(
    path: Path, place: str, record: Any, known: Container[str], *, needs_id: bool = True
) -> _Answer:
    # As `sense-trl evaluate --config` writes them: a list of the candidates of each question.
    if isinstance(record, list) and all(isinstance(part, dict) for part in record):
        if len(record) != 1:
            raise InputError(
                f"{path}, {place}: {len(record)} candidates for one question; predict with "
                "`num_generations` 1"
            )
        (record,) = record
    question_id = record.get("question_id") if isinstance(record, dict) else None
    if not isinstance(record, dict) or (needs_id and not isinstance(question_id, (str, int))):
        expected = "with a `question_id`" if needs_id else "with `sql`, or a string"
        raise InputError(
            f"{path}, {place}: expected an object {expected}, found {str(record)[:80]!r}"
        )
    sql = next((record[name] for name in _SQL_FIELDS if isinstance(record.get(name), str)), None)
    if sql is None:
        raise InputError(
            f"{path}, {place}: no field {', '.join(f'`{name}`' for name in _SQL_FIELDS)} with a "
            f"string; the record has {sorted(record)}"
        )
    answer = _split_name(sql, place, known, None if question_id is None else str(question_id))
    db_id = record.get("db_id")
    if not isinstance(db_id, str) or answer.db_id is not None:
        return answer
    return _Answer(answer.sql, place, db_id, answer.question_id)


def _match_by_id(
    path: Path, records: Sequence[tuple[str, Any]], questions: Sequence[Question]
) -> list[_Answer]:
    # Questions that a file holds twice share the id that it gives them.
    file_ids = get_file_ids(questions)
    own_ids = {question.question_id for question in questions}
    num_copies, known = Counter(file_ids), _get_names(questions)
    found: dict[str, list[_Answer]] = {}
    for place, record in records:
        answer = _read_record(path, place, record, known)
        question_id = answer.question_id
        if question_id is None or question_id not in own_ids:
            raise InputError(
                f"{path}, {place}: `question_id` {question_id!r} is not among the questions"
            )
        given = found.setdefault(question_id, [])
        if len(given) >= max(num_copies[question_id], 1):
            raise InputError(
                f"{path}, {place}: `question_id` {question_id!r} was already answered in "
                f"{given[-1].place}; give one prediction per question"
            )
        given.append(answer)
    answers: list[_Answer | None] = []
    num_taken: Counter[str] = Counter()
    for question, file_id in zip(questions, file_ids, strict=True):
        given = found.get(question.question_id) or found.get(file_id) or []
        # One answer stands for all copies.
        answers.append(given[min(num_taken[file_id], len(given) - 1)] if given else None)
        num_taken[file_id] += 1
    missing = [q.question_id for q, a in zip(questions, answers, strict=True) if a is None]
    if missing:
        raise InputError(
            f"`predictions` {path} answers {len(found)} of {len(questions)} questions, the first "
            f"without an answer is {missing[0]!r}; write an empty `sql` where there is none"
        )
    return [answer for answer in answers if answer is not None]


# ---------------------------------------------------------------------- databases


def _check_databases(path: Path, answers: Sequence[_Answer], questions: Sequence[Question]) -> None:
    """Refuse answers that name another database than their question's."""
    wrong = [
        (answer, question)
        for answer, question in zip(answers, questions, strict=True)
        if answer.db_id is not None and answer.db_id.casefold() != question.db_id.casefold()
    ]
    if not wrong:
        return
    shown = [
        f"  {answer.place}: {answer.db_id!r}, but question {question.question_id!r} is asked of "
        f"{question.db_id!r}"
        for answer, question in wrong[:_MAX_SHOWN]
    ]
    if len(wrong) > _MAX_SHOWN:
        shown.append(f"  ... and {len(wrong) - _MAX_SHOWN} more")
    raise InputError(
        f"`predictions` {path}: {len(wrong)} of {len(answers)} predictions name another database "
        "than their question's:\n" + "\n".join(shown) + "\n"
        "The file answers other questions, or these in another order; give the file that belongs "
        "to `questions`, or JSON Lines with question_id and sql."
    )
