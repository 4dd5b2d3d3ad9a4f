"""Questions with their gold SQL: one dataclass, one loader, one leak-free split.

The loader reads JSON Lines (one object per line), JSON arrays and CSV, with the field names of
Spider (`question`, `query`), BIRD (`question`, `SQL`, `evidence`) and this project (`question`,
`gold_sql`). Where the wording is not needed, it also reads the gold files of both benchmarks'
scripts: one query per line, a tab and the `db_id`.
"""

from __future__ import annotations

import csv
import hashlib
import io
import json
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from sense_trl._files import write_text_atomically
from sense_trl.errors import InputError
from sense_trl.sql.dialects import Dialects, get_dialect
from sense_trl.sql.parsing import SQLParseError, canonical_sql

# Questions that one error names.
_MAX_SHOWN = 10
# The first name that a record has is used; Spider also has a field `sql`, which holds a parse tree
# and not a string, so a value that is not a string is passed over.
_GOLD_SQL_FIELDS = ("gold_sql", "query", "SQL", "sql")
# Between the id of a record that a file holds several times, and the number of the copy.
_COPY_MARK = "#"
_GOLD_LINE = re.compile(r"[\s(]*(?:SELECT|WITH|VALUES)\b", re.I)
_LEVEL_FIELDS = ("level", "hardness", "difficulty")
_SPLIT_NAMES = {
    "train": "train",
    "training": "train",
    "test": "test",
    "dev": "test",
    "validation": "test",
    "val": "test",
    "eval": "test",
}


@dataclass(frozen=True, slots=True)
class Question:
    """One natural-language question about one database, with the SQL that answers it.

    Attributes:
        question_id: unique within its file; `<file stem>-<position>` where the file gives none. Of
            a record that a file holds several times, the copies are `<id>#2`, `<id>#3`, ...
        db_id: the database it is asked of.
        question: the question as a user would type it; empty where a file of gold SQL has none.
        gold_sql: the reference query.
        split: `"train"`, `"test"` or whatever the file says; `None` if it says nothing.
        level: difficulty as the file gives it, else `None`.
        evidence: BIRD's external knowledge; `None` if there is none.
        completion: the whole answer to train on, which ends in the reference query, e.g. reasoning
            before it; `None` for the query alone.
    """

    question_id: str
    db_id: str
    question: str
    gold_sql: str
    split: str | None = None
    level: str | None = None
    evidence: str | None = None
    completion: str | None = None


def describe_unusable(
    unusable: Mapping[str, str], num_questions: int, source: str, allowed: float
) -> str:
    """Text of the error for more questions that cannot be used than are allowed.

    Args:
        unusable: question id to the reason.
        num_questions: all there are.
        source: where they come from, as the user named it.
        allowed: `max_unusable_fraction`.
    """
    shown = [f"  {question}: {reason}" for question, reason in list(unusable.items())[:_MAX_SHOWN]]
    if len(unusable) > _MAX_SHOWN:
        shown.append(f"  ... and {len(unusable) - _MAX_SHOWN} more")
    return (
        f"{len(unusable)} of {num_questions} questions in {source} cannot be used:\n"
        + "\n".join(shown)
        + f"\nMend or remove them, or raise `max_unusable_fraction` (now {allowed}) to leave them "
        "out."
    )


def load_questions(
    path: str | Path, *, default_db_id: str | None = None, needs_text: bool = True
) -> list[Question]:
    """Read questions from a `.jsonl`, `.json` or `.csv` file.

    Args:
        path: JSON Lines (one object per line, blank lines skipped) or a JSON array of objects; in a
            `.csv` file the first line names the fields, with commas, semicolons or tabs between.
        default_db_id: database of the records that name none; without it such a record is an error.
        needs_text: the wording is needed; otherwise lines of gold SQL, a tab and the `db_id`, as
            the scripts of Spider and BIRD read them, are read as well.

    Raises:
        InputError: the file is missing or empty, a line is not valid JSON or has other columns
            than the first, a field is missing or not a string, or an id stands for different
            questions. The message names file, line and field.
    """
    path = Path(path)
    if not path.is_file():
        raise InputError(
            f"`questions` is {str(path)!r}, which is not a file. Give a JSON Lines file with the "
            'fields "question" and "gold_sql" (or Spider\'s "query", BIRD\'s "SQL") on every line.'
        )
    questions: list[Question] = []
    seen: dict[str, tuple[str, Question]] = {}
    num_copies: Counter[str] = Counter()
    for place, record in _records(path, needs_text):
        question = _question(record, place, f"{path.stem}-{len(questions) + 1:05d}", default_db_id)
        file_id = question.question_id
        if file_id in seen and seen[file_id][1] == question:
            # Official files hold some records twice, and their scripts count both.
            num_copies[file_id] += 1
            copy_id = f"{file_id}{_COPY_MARK}{num_copies[file_id] + 1}"
            question = replace(question, question_id=copy_id)
        if question.question_id in seen:
            raise InputError(
                f"{place}: `question_id` {question.question_id!r} was already used at "
                f"{seen[question.question_id][0]} for another question. Give every question its "
                "own id, or none at all."
            )
        seen[question.question_id] = (place, question)
        questions.append(question)
    if not questions:
        raise InputError(f"`questions` {str(path)!r} holds no question. Add at least one line.")
    return questions


def write_questions(path: str | Path, questions: Iterable[Question]) -> None:
    """Write a file that `load_questions` reads back; what a question does not say is left out.

    Raises:
        OutputError: it cannot be written.
    """
    rows = (
        {name: value for name, value in asdict(question).items() if value is not None}
        for question in questions
    )
    write_text_atomically(path, "".join(json.dumps(row) + "\n" for row in rows))


def get_file_ids(questions: Sequence[Question]) -> list[str]:
    """The id that its file gives each question: copies share that of the first.

    Example:
        >>> first = Question("q7", "pets", "How many?", "SELECT count(*) FROM pet")
        >>> get_file_ids([first, replace(first, question_id="q7#2")])
        ['q7', 'q7']
    """
    by_id = {question.question_id: question for question in questions}
    file_ids = []
    for question in questions:
        first = by_id.get(question.question_id.rpartition(_COPY_MARK)[0])
        is_copy = first is not None and question == replace(first, question_id=question.question_id)
        file_ids.append(first.question_id if first and is_copy else question.question_id)
    return file_ids


def _records(path: Path, needs_text: bool) -> Iterator[tuple[str, Any]]:
    """Yield (place for messages, decoded JSON value) of every record in `path`."""
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputError(
            f"`questions` {str(path)!r} is not UTF-8 text (byte {error.start}). Save it as UTF-8."
        ) from error
    if path.suffix.lower() == ".csv":
        yield from _table_records(path, text)
        return
    if text.lstrip().startswith("["):
        try:
            records = json.loads(text)
        except (ValueError, RecursionError) as error:
            # Only a JSONDecodeError knows its line: the others are numbers of thousands of digits
            # and nesting of thousands of levels.
            raise InputError(
                f"{path}, line {getattr(error, 'lineno', 1)}: invalid JSON "
                f"({getattr(error, 'msg', error)}). The file starts with `[`, so it must be one "
                "JSON array of objects."
            ) from error
        for index, record in enumerate(records):
            yield f"{path}, record {index + 1}", record
        return
    lines = [
        (number, line) for number, line in enumerate(text.split("\n"), start=1) if line.strip()
    ]
    if not needs_text and all(_GOLD_LINE.match(line) for _, line in lines):
        for number, line in lines:
            sql, tab, db_id = line.rpartition("\t")
            record = _GoldLine(gold_sql=sql, db_id=db_id) if tab else _GoldLine(gold_sql=line)
            yield f"{path}, line {number}", record
        return
    for number, line in lines:
        try:
            record = json.loads(line)
        except (ValueError, RecursionError) as error:
            problem = str(error)
            if isinstance(error, json.JSONDecodeError):
                problem = f"{error.msg} at column {error.colno}"
            raise InputError(
                f"{path}, line {number}: invalid JSON ({problem}): "
                f"{line.strip()[:80]!r}. Write one JSON object per line."
            ) from error
        yield f"{path}, line {number}", record


def _table_records(path: Path, text: str) -> Iterator[tuple[str, dict[str, str]]]:
    """The records of a table as spreadsheets save it; an empty cell is none."""
    head = text.partition("\n")[0]
    # A field may hold lines; those that end the rows are left to the reader.
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=max(",;\t", key=head.count))
    names: list[str] = []
    try:
        for row in reader:
            place = f"{path}, line {reader.line_num}"
            if not names:
                names = [name.strip() for name in row]
            elif len(row) > len(names) and any(row[len(names) :]):
                raise InputError(
                    f"{place}: {len(row)} cells under {len(names)} names, {names}. Put double "
                    "quotes around a cell that holds the character between cells."
                )
            elif any(cell.strip() for cell in row):
                yield place, {name: cell for name, cell in zip(names, row, strict=False) if cell}
    except csv.Error as error:
        raise InputError(f"{path}, line {reader.line_num}: no CSV ({error}).") from error


class _GoldLine(dict[str, str]):
    """A record that has no wording."""


def _question(record: Any, place: str, fallback_id: str, default_db_id: str | None) -> Question:
    if not isinstance(record, dict):
        raise InputError(
            f"{place}: expected a JSON object with the fields `question` and `gold_sql`, "
            f"got {type(record).__name__}."
        )
    text = "" if isinstance(record, _GoldLine) else _required(record, ("question",), place)
    gold_sql = _required(record, _GOLD_SQL_FIELDS, place)
    db_id = _optional(record, ("db_id",), place) or default_db_id
    if db_id is None:
        raise InputError(
            f"{place}: the field `db_id` is missing and several databases are given. Name the "
            f"database of each question in `db_id`. The record has {sorted(record)}."
        )
    return Question(
        question_id=_optional(record, ("question_id", "id"), place) or fallback_id,
        db_id=db_id,
        question=text,
        gold_sql=gold_sql,
        split=_optional(record, ("split",), place),
        level=_optional(record, _LEVEL_FIELDS, place),
        evidence=_optional(record, ("evidence",), place),
        completion=_optional(record, ("completion",), place),
    )


def _required(record: dict[str, Any], names: Sequence[str], place: str) -> str:
    values = ((n, record[n]) for n in names if isinstance(record.get(n), str))
    name, value = next(((n, v) for n, v in values if v.strip()), (names[0], ""))
    if not value:
        also = f" (or {', '.join(names[1:])})" if len(names) > 1 else ""
        found = next((n for n in names if n in record), None)
        problem = "is missing" if found is None else f"is {record[found]!r}, not a non-empty string"
        raise InputError(
            f"{place}: the field `{names[0]}`{also} {problem}. The record has {sorted(record)}."
        )
    return _checked(value.strip(), name, place)


def _optional(record: dict[str, Any], names: Sequence[str], place: str) -> str | None:
    for name in names:
        value = record.get(name)
        if value is None or (isinstance(value, str) and not value.strip()):
            continue
        if isinstance(value, (str, int)) and not isinstance(value, bool):
            return _checked(str(value), name, place)
        raise InputError(
            f"{place}: the field `{name}` is {value!r}; expected a string. Leave it out if there "
            "is nothing to say."
        )
    return None


def _checked(value: str, name: str, place: str) -> str:
    """Refuse half of a surrogate pair: no file could hold it."""
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise InputError(
            f"{place}: the field `{name}` has the lone surrogate {value[error.start]!r} at "
            f"character {error.start + 1}, which is no text. Write the whole character, or remove "
            "the escape."
        ) from error
    return value


def split_questions(
    questions: Iterable[Question], *, test_fraction: float = 0.3, seed: int = 0, dialect: Dialects
) -> tuple[list[Question], list[Question]]:
    """Split into train and test so that no gold query and no question stands on both sides.

    Questions on the same database with the same canonical gold SQL (paraphrases of each other) or
    the same wording (but for case, spaces and final punctuation) stay together. Records that
    already name a split keep it: `"train"` and `"training"` go to train; `"test"`, `"dev"`,
    `"val"`, `"validation"` and `"eval"` to test, in any case. The other groups are ordered by a
    hash of seed and content, so the split does not depend on the order of the file, and adding a
    question moves few others.

    Args:
        test_fraction: share of the questions without a split that should go to test, in (0, 1).
        seed: another seed gives another split.
        dialect: the sqlglot dialect of the gold SQL, or a function that tells it by `db_id`.

    Raises:
        InputError: `test_fraction` outside (0, 1), an unknown split, one side empty, or a declared
            split that puts the same gold query or the same wording on both sides.
    """
    if not 0.0 < test_fraction < 1.0:
        raise InputError(
            f"`test_fraction` is {test_fraction}; expected a share between 0 and 1, e.g. 0.3."
        )
    train: list[Question] = []
    test: list[Question] = []
    free: list[tuple[str, list[Question]]] = []
    for key, group in _groups(questions, dialect):
        declared = {_split_name(q): q.question_id for q in group if q.split is not None}
        if len(declared) == 2:
            ids = ", ".join(q.question_id for q in group[:4])
            raise InputError(
                f"The questions {ids} share one gold query or one wording, directly or through "
                f"each other, but {declared['train']} stands in train and {declared['test']} in "
                "test, so the test would measure memory. Put them in the same split, or leave "
                "`split` out."
            )
        if declared:
            (train if "train" in declared else test).extend(group)
        else:
            free.append((key, group))
    free.sort(key=lambda item: hashlib.sha256(f"{seed}\n{item[0]}".encode()).digest())
    wanted = round(test_fraction * sum(len(group) for _, group in free))
    taken = 0
    for _, group in free:
        if taken < wanted:
            test.extend(group)
            taken += len(group)
        else:
            train.extend(group)
    for name, side in (("training", train), ("test", test)):
        if not side:
            raise InputError(
                f"The {name} set is empty: {len(train)} training and {len(test)} test questions "
                "after the split. Give more questions, or mark some with "
                f'"split": "{"train" if name == "training" else "test"}".'
            )
    return sorted(train, key=_by_id), sorted(test, key=_by_id)


def _by_id(question: Question) -> str:
    return question.question_id


def _split_name(question: Question) -> str:
    name = _SPLIT_NAMES.get((question.split or "").strip().lower())
    if name is None:
        raise InputError(
            f"The question {question.question_id} has the `split` {question.split!r}; expected "
            f"one of {', '.join(_SPLIT_NAMES)}. Leave `split` out to have it chosen."
        )
    return name


def _groups(questions: Iterable[Question], dialect: Dialects) -> list[tuple[str, list[Question]]]:
    """(key, questions) of the finest grouping that parts no gold query and no wording."""
    keyed = [(_gold_key(question, dialect), question) for question in questions]
    # Union-find. The smallest gold query of a group leads it, whatever the order of the questions.
    leaders: dict[tuple[int, str], tuple[int, str]] = {}

    def leader(node: tuple[int, str]) -> tuple[int, str]:
        while leaders.setdefault(node, node) != node:
            leaders[node] = leaders[leaders[node]]
            node = leaders[node]
        return node

    for gold, question in keyed:
        first, second = sorted((leader((0, gold)), leader((1, _wording_key(question)))))
        leaders[second] = first
    groups: dict[str, list[Question]] = {}
    for gold, question in keyed:
        groups.setdefault(leader((0, gold))[1], []).append(question)
    return list(groups.items())


def _gold_key(question: Question, dialect: Dialects) -> str:
    try:
        canonical = canonical_sql(question.gold_sql, get_dialect(dialect, question.db_id))
    except SQLParseError:
        # A gold query that sqlglot cannot parse may still run; its text is then its identity.
        canonical = " ".join(question.gold_sql.split()).lower()
    return f"{question.db_id}\n{canonical}"


def _wording_key(question: Question) -> str:
    wording = " ".join(question.question.casefold().split()).rstrip(" ?.!")
    return f"{question.db_id}\n{wording}"
