"""The few-shot prompt that has a model write a question and its SQL, and how its answer is read."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Final

from sense_trl.prompts import Messages, extract_sql
from sense_trl.questions import Question

_REQUEST: Final = "Question:"
# A line that begins with it ends the question; what comes before may be left out, or said again.
_SQL_LABEL: Final = re.compile(
    r"^[ \t>*]*(?:SQL(?:ite)?|SQL query|query|answer)[ \t*]*:|```", re.I | re.M
)
_SURROGATE: Final = re.compile("[\ud800-\udfff]")
_QUESTION_LABEL: Final = re.compile(
    r"\A[\s>*#-]*+question[ \t*]{0,40}\d{0,6}[ \t]{0,40}[:.][\s*]*+", re.I
)


def get_invention_prompt(
    schema_text: str, examples: Sequence[Question], *, dialect: str = "sqlite"
) -> Messages:
    """Build the conversation that asks for a new question about a database and for its SQL.

    The examples are earlier turns: each time the user asks with "Question:", and the assistant
    writes the question and, on the next line, the SQL. So the schema and the examples are a common
    prefix of all samples. (SmolLM2-135M, with four examples in one message that ended the same way,
    answered the last example's question or talked about it; asked in turns it wrote pairs.)

    Args:
        schema_text: the schema as `format_schema` writes it.
        examples: questions with gold SQL, on this database where there are any.
        dialect: sqlglot name of the SQL dialect to ask for.

    Returns:
        `system`, two messages per example, and a last `user` message.
    """
    system = (
        "Write questions that users ask about this database, each with one SQL query "
        f"({dialect}) that answers it.\n\n{schema_text}"
    )
    messages = [{"role": "system", "content": system}]
    for example in examples:
        written = format_invention(example.question, example.gold_sql)
        messages += [
            {"role": "user", "content": _REQUEST},
            {"role": "assistant", "content": written},
        ]
    return [*messages, {"role": "user", "content": _REQUEST}]


def format_invention(question: str, sql: str) -> str:
    """Write a pair as the prompt's examples do.

    Example:
        >>> format_invention("How many pets are there?", "SELECT COUNT(*) FROM pet")
        'How many pets are there?\\nSQL: SELECT COUNT(*) FROM pet'
    """
    return f"{question}\nSQL: {sql}"


def parse_invention(text: str) -> tuple[str, str] | None:
    """Read a question and its SQL from what a model wrote.

    The question is what stands before the first line that begins with `SQL:` (or `Query:`,
    `Answer:`) or before the first code fence, on one line and without a label of its own; the SQL
    is what `extract_sql` finds behind it. `None` where either is missing, or where the text holds
    half of a surrogate pair, which no file can hold.

    Example:
        >>> parse_invention("How old is Rex?\\nSQL: SELECT age FROM pet WHERE name = 'Rex'")
        ('How old is Rex?', "SELECT age FROM pet WHERE name = 'Rex'")
        >>> parse_invention("SELECT age FROM pet") is None
        True
    """
    label = _SQL_LABEL.search(text)
    if label is None or _SURROGATE.search(text):
        return None
    question = " ".join(_QUESTION_LABEL.sub("", text[: label.start()], count=1).split())
    is_fence = label.group().startswith("`")
    sql = extract_sql(text[label.start() if is_fence else label.end() :])
    return (question, sql) if question and sql else None
