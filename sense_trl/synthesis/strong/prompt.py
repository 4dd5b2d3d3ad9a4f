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
SHOWN_DOMAIN: Final = "lighthouses"
"""The domain of the example in the prompt."""

# What is the same in every call stands first, where servers keep it, and shows the form as a whole:
# small models do not find it in a description.
_USER: Final = """\
Invent a new data point: a domain that few people would think of, a SQLite schema for it, a \
question that somebody who works in this domain would ask, and the one SQLite query that answers \
it. Answer with these four parts and nothing else, in exactly the form of this example:

DOMAIN: {shown_domain}
SCHEMA:
```sql
CREATE TABLE lighthouse (
    lighthouse_id INTEGER PRIMARY KEY,
    name TEXT, -- 'North Head', 'Old Pier'
    coast TEXT -- 'Baltic', 'Atlantic'
);
CREATE TABLE lamp (
    lamp_id INTEGER PRIMARY KEY,
    lighthouse_id INTEGER REFERENCES lighthouse(lighthouse_id),
    kind TEXT, -- 'Fresnel', 'LED'
    range_km REAL
);
```
QUESTION: How far does the strongest lamp of each lighthouse on the Baltic coast reach?
SQL:
```sql
SELECT lighthouse.name, MAX(lamp.range_km) FROM lighthouse JOIN lamp ON lamp.lighthouse_id = \
lighthouse.lighthouse_id WHERE lighthouse.coast = 'Baltic' GROUP BY lighthouse.lighthouse_id
```

The schema has CREATE TABLE statements for two to five tables, with types, primary keys and \
foreign keys, and nothing else. Each column stands on a line of its own, and behind each column \
of text a comment names some values that it holds. The question names every value exactly as the \
data spells it. The query returns no more and no other columns than are asked for, depends on \
nothing like today's date, and has no LIMIT where several rows could tie.

These show how questions and queries of other databases are written:

{examples}

Write one new data point (number {number}). {about} Its question is of the level "{level}" \
({description}). Give all four parts: DOMAIN, SCHEMA, QUESTION and SQL."""


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
    number: int,
    examples: Sequence[Question],
    level: Level,
    closed_domains: Sequence[str],
    domain: str | None = None,
) -> Messages:
    """Build the conversation that asks for one data point.

    Args:
        number: of the data point. It stands in the text, so that no two prompts are the same.
        examples: training questions to show, two of them in SENSE.
        level: of the question to ask for.
        closed_domains: what it must not be about; not said where there is a `domain`.
        domain: what it is to be about; the model's choice if not given.
    """
    shown = "\n\n".join(
        f"Question: {example.question}\nSQL: {example.gold_sql}" for example in examples
    )
    others = ", ".join([SHOWN_DOMAIN, *closed_domains])
    user = _USER.format(
        examples=shown,
        number=number,
        about=f"Its domain is: {domain}."
        if domain
        else f"It is about another domain than {others}.",
        shown_domain=SHOWN_DOMAIN,
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
_CLOSED_FENCE: Final = re.compile(r"```[ \t]{0,9}\w{0,20}[ \t]{0,9}\n(?P<query>[^`]*)```")
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


def is_complete(text: str) -> bool:
    """Whether the last part of an answer is a query in a closed fence: what follows is no part.

    Small models go on with the instructions, or with the next question, until they are cut off.
    """
    labels = list(_LABEL.finditer(_THOUGHTS.sub("", text)))
    if not labels or _NAMES[labels[-1].group("name").lower()] != "sql":
        return False
    fence = _CLOSED_FENCE.match(labels[-1].string[labels[-1].end() :].lstrip())
    return fence is not None and bool(fence["query"].strip())


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
