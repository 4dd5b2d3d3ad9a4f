"""`extract_dictionary`: a model says what the tables and columns of a database mean.

It is shown one table at a time, with values. The result is a JSON file that is meant to be edited:
what it says goes into every later prompt and question.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Final

from sense_trl.generation.generator import Completion, SamplingConfig, SQLGenerator
from sense_trl.prompts import Messages
from sense_trl.schema.data_dictionary import ColumnEntry, DataDictionary, TableEntry
from sense_trl.schema.formats import format_schema
from sense_trl.schema.graph import ColumnName
from sense_trl.schema.naming import get_words
from sense_trl.synthesis.answers import find_json, is_refusal, is_text
from sense_trl.synthesis.explore.facts import DatabaseFacts
from sense_trl.synthesis.explore.phrases import PhraseBook

NUM_SAMPLE_VALUES: Final = 4
_MAX_CHARS: Final = 300
_MAX_SYNONYMS: Final = 5

_SYSTEM: Final = (
    "You document databases. You are shown one table with some of its values and say what it and "
    "its columns hold, so that somebody who has never seen it can ask questions about it."
)
_REQUEST: Final = """\
{table}

Answer with one JSON object and nothing else:

{{"meaning": "what one row of the table is",
 "synonyms": ["other words people use for such a row"],
 "columns": {{
   "column name as above": {{
     "meaning": "what the value says",
     "format": "how values are written: units, codes and what they stand for, date formats",
     "synonyms": ["other words people use for it"]}}}}}}

Name every column. Leave "format" empty where nothing is to be said. Do not make up codes or units \
that the values do not show."""


def get_phrases(dictionary: DataDictionary) -> PhraseBook:
    """Names for questions: the synonyms, and the words of the identifier."""
    tables = {
        name: [_words(name), *entry.synonyms]
        for name, entry in dictionary.tables.items()
        if entry.synonyms
    }
    columns = {
        ColumnName(table, name): [_words(name), *column.synonyms]
        for table, entry in dictionary.tables.items()
        for name, column in entry.columns.items()
        if column.synonyms
    }
    return PhraseBook(tables=tables, columns=columns)


def extract_dictionary(
    facts: DatabaseFacts,
    generator: SQLGenerator,
    sampling: SamplingConfig,
    *,
    problems: Counter[str] | None = None,
) -> DataDictionary:
    """Have a model say what the tables and columns of a database mean.

    Args:
        facts: the database; up to four values of each column are shown.
        generator: the model; it is asked once for each table.
        sampling: how it answers; of several completions the first that can be read counts.
        problems: counts are added to it: tables whose answers were `"unfinished"`, a `"refusal"`,
            `"malformed"`, and columns that were `"unknown_column"` or `"missing_column"`.

    Returns:
        An entry for every table and column, an empty one where the model said nothing usable.
    """
    problems = Counter() if problems is None else problems
    tables = list(dict.fromkeys(column.table for column in facts.graph.columns))
    answers = generator.generate([_get_prompt(facts, table) for table in tables], sampling)
    entries = {}
    for table, group in zip(tables, answers, strict=True):
        names = [facts_.name.column for facts_ in facts.of_table(table)]
        entries[table] = _read_table(group, names, problems)
    return DataDictionary(facts.schema.db_id, entries)


def _get_prompt(facts: DatabaseFacts, table: str) -> Messages:
    tables = tuple(info for info in facts.schema.tables if info.name == table)
    values = {
        (column.name.table, column.name.column): column.values[:NUM_SAMPLE_VALUES]
        for column in facts.of_table(table)
    }
    text = format_schema(replace(facts.schema, tables=tables), style="ddl", sample_values=values)
    return [
        {"role": "system", "content": _SYSTEM},
        {"role": "user", "content": _REQUEST.format(table=text)},
    ]


def _read_table(
    group: Sequence[Completion], names: Sequence[str], problems: Counter[str]
) -> TableEntry:
    reason = "unfinished"
    for answer in group:
        if not answer.finished:
            continue
        found = _find_entry(answer.text)
        if found is not None:
            return _make_entry(found, names, problems)
        reason = "refusal" if is_refusal(answer.text) else "malformed"
    problems[reason] += 1
    return TableEntry(columns={name: ColumnEntry() for name in names})


def _find_entry(text: str) -> dict[str, Any] | None:
    """The object that was asked for, or the same from lines such as `age: years since birth`."""
    if not is_text(text):
        return None
    for value in find_json(text):
        if isinstance(value, dict) and isinstance(value.get("columns"), dict):
            return value
    lines = [match.groups() for match in _LINE.finditer(text)]
    columns = {name.strip("*`\"' "): {"meaning": meaning} for name, meaning in lines}
    return {"columns": columns} if columns else None


# "- **name**: what it says"
_LINE: Final = re.compile(r"^[ \t]*(?:[-*+]|\d+[.)])[ \t]+([^:\n{}\[\]]{1,80}):[ \t]*(\S.*)$", re.M)


def _make_entry(
    found: Mapping[str, Any], names: Sequence[str], problems: Counter[str]
) -> TableEntry:
    spelling = {name.lower(): name for name in names}
    columns = {name: ColumnEntry() for name in names}
    for key, value in found["columns"].items():
        name = spelling.get(str(key).lower().rsplit(".", 1)[-1])
        if name is None:
            problems["unknown_column"] += 1
        elif isinstance(value, dict):
            columns[name] = ColumnEntry(
                _text(value.get("meaning")), _text(value.get("format")), _texts(value)
            )
        else:
            columns[name] = ColumnEntry(_text(value))
    problems["missing_column"] += sum(entry == ColumnEntry() for entry in columns.values())
    return TableEntry(_text(found.get("meaning")), _texts(found), columns)


def _text(value: object) -> str:
    return " ".join(value.split())[:_MAX_CHARS] if isinstance(value, str) else ""


def _texts(entry: Mapping[str, Any]) -> tuple[str, ...]:
    value = entry.get("synonyms")
    texts = [_text(item) for item in value] if isinstance(value, list) else []
    return tuple(dict.fromkeys(filter(None, texts)))[:_MAX_SYNONYMS]


def _words(identifier: str) -> str:
    return " ".join(get_words(identifier)) or identifier
