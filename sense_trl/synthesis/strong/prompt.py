"""The prompt that has a strong model invent a database with a question, and how it is answered."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from sense_trl.errors import SenseTRLError
from sense_trl.prompts import Messages, extract_sql
from sense_trl.questions import Question
from sense_trl.synthesis.answers import find_json, is_refusal, is_text
from sense_trl.synthesis.strong.level import Level

_SYSTEM: Final = (
    "You invent training data for models that translate questions into SQL. Each time you make up "
    "one small database from a domain of your choice and one question about it."
)
_USER: Final = """\
These examples show how questions and queries are written:

{examples}

Invent a new data point (number {number}) that is not about them:

1. A domain that few people would think of. Not these: {closed}.
2. A SQLite schema for it: CREATE TABLE statements for two to five tables, with types, primary \
keys and foreign keys, and nothing else. Write each column on a line of its own, and behind each \
column of text a comment with some values it holds, like this:
    city TEXT, -- 'Oslo', 'Lima'
3. A question of the level "{level}" ({description}), as somebody who works in this domain would \
ask it. It names every value exactly as the data spells it.
4. One SQLite query that answers this question: no more and no other columns than are asked for, \
nothing that depends on today's date, and no LIMIT where several rows could tie.

Answer in exactly this form:

DOMAIN: a few words
SCHEMA:
```sql
CREATE TABLE ...
```
QUESTION: one or two sentences
SQL:
```sql
SELECT ...
```"""


class AnswerError(SenseTRLError):
    """An answer has not the parts that were asked for.

    Attributes:
        reason: a word to count by: `"refusal"`, `"malformed"` (none of the parts), `"no_domain"`,
            `"no_schema"`, `"no_question"`, `"no_sql"`, `"too_long"` or `"not_text"` (it holds what
            no file or database could: half of a surrogate pair, or a NUL).
    """

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason


@dataclass(frozen=True, slots=True)
class StrongAnswer:
    """The parts of an answer, none of them empty and none of them checked."""

    domain: str
    ddl: str
    question: str
    sql: str


def get_strong_prompt(
    number: int, examples: Sequence[Question], level: Level, closed_domains: Sequence[str]
) -> Messages:
    """Build the conversation that asks for one data point.

    Args:
        number: of the data point. It stands in the text, so that no two prompts are the same.
        examples: training questions to show, two of them in SENSE.
        level: of the question to ask for.
        closed_domains: what it must not be about.
    """
    shown = "\n\n".join(
        f"Question: {example.question}\nSQL: {example.gold_sql}" for example in examples
    )
    user = _USER.format(
        examples=shown,
        number=number,
        closed=", ".join(closed_domains),
        level=level,
        description=level.description,
    )
    return [{"role": "system", "content": _SYSTEM}, {"role": "user", "content": user}]


_MAX_QUESTION_CHARS: Final = 1_000
_MAX_DOMAIN_CHARS: Final = 80
_PARTS: Final = ("domain", "schema", "question", "sql")
# How models call the parts.
_NAMES: Final = {
    "domain": "domain",
    "schema": "schema",
    "database schema": "schema",
    "database_schema": "schema",
    "tables": "schema",
    "ddl": "schema",
    "question": "question",
    "sql": "sql",
    "sql query": "sql",
    "sql_query": "sql",
    "query": "sql",
}
# A label begins a line, in bold, as a heading or in a list; a colon or the end of the line ends it.
# The marks around it are few: where several parts may take the same ones, long runs would be
# divided in all ways.
_LABEL: Final = re.compile(
    r"^[ \t>#*\d.)]{0,40}(?:-[ \t]{1,40})?[ \t*]{0,40}"
    rf"(?P<name>{'|'.join(sorted(_NAMES, key=len, reverse=True))})"
    r"[ \t]{0,40}(?:\([^()\n]{0,200}\))?[ \t*]{0,40}(?::[ \t*]*+|$)",
    re.I | re.M,
)
_FENCE: Final = re.compile(r"```[ \t]*\w*[ \t]*\n?(.*?)(?:```|\Z)", re.S)
_THOUGHTS: Final = re.compile(r"<think>.*?(?:</think>|\Z)", re.S)


def parse_answer(text: str) -> StrongAnswer:
    """Read an answer: labelled parts, in Markdown or not, or a JSON object with their names.

    A part that is given more than once counts as it is given last, so that drafts do not matter;
    what stands between <think> and </think> is passed over.

    Raises:
        AnswerError: a part is missing, too long or no text.
    """
    text = _THOUGHTS.sub("", text)
    if not is_text(text):
        raise AnswerError("not_text", "the answer holds a lone surrogate or a NUL")
    parts = max(_from_json(text), _from_labels(text), key=len)
    if not parts:
        reason = "refusal" if is_refusal(text) else "malformed"
        raise AnswerError(reason, " ".join(text.split())[:200])
    values = {name: _cleaned(name, parts.get(name, "")) for name in _PARTS}
    for name, value in values.items():
        if not value:
            raise AnswerError(f"no_{name}", " ".join(text.split())[:200])
    if len(values["question"]) > _MAX_QUESTION_CHARS or len(values["domain"]) > _MAX_DOMAIN_CHARS:
        raise AnswerError("too_long", f"{values['domain'][:100]}: {values['question'][:100]}")
    return StrongAnswer(values["domain"], values["schema"], values["question"], values["sql"])


def _from_json(text: str) -> dict[str, str]:
    parts: dict[str, str] = {}
    for record in find_json(text):
        for name, value in record.items() if isinstance(record, dict) else ():
            part = _NAMES.get(name.lower())
            if isinstance(value, list):
                value = "\n".join(map(str, value))
            if part is not None and isinstance(value, str):
                parts[part] = value
    return parts


def _from_labels(text: str) -> dict[str, str]:
    labels = list(_LABEL.finditer(text))
    starts = [label.start() for label in labels] + [len(text)]
    return {
        _NAMES[label.group("name").lower()]: text[label.end() : end]
        for label, end in zip(labels, starts[1:], strict=True)
    }


def _cleaned(name: str, text: str) -> str:
    if name == "sql":
        return extract_sql(text)
    if name == "schema":
        return "\n".join(_FENCE.findall(text)).strip() or text.strip()
    # A paragraph, without the marks and quotes that some models put around it.
    paragraph = text.strip().split("\n\n")[0]
    return " ".join(paragraph.split()).strip("*_`\"' ")
