"""`get_prompt` builds what a model reads, `extract_sql` finds the SQL in what it wrote."""

from __future__ import annotations

import re
from collections.abc import Iterator

# A conversation in the form chat templates and TRL expect.
Messages = list[dict[str, str]]

_DIALECT_NAMES = {"sqlite": "SQLite", "duckdb": "DuckDB", "postgres": "PostgreSQL"}

_FENCE = re.compile(r"```[ \t]*[A-Za-z]*[ \t]*\r?\n?(.*?)(?:```|\Z)", re.DOTALL)
_LABEL = re.compile(r"\A\s*(?:the\s+)?(?:sql(?:ite)?(?:\s+query)?|query|answer)\s*:\s*", re.I)
_QUERY_START = re.compile(r"\b(?:SELECT|WITH|VALUES)\b", re.I)
# Any other statement a model may write. Text that starts with one is not searched for a query
# inside it: `DELETE FROM t; SELECT 1` must not come out as `SELECT 1`.
_OTHER_STATEMENT = re.compile(
    r"\A\s*(?:INSERT|UPDATE|DELETE|REPLACE|CREATE|DROP|ALTER|ATTACH|DETACH|PRAGMA|VACUUM|REINDEX|"
    r"ANALYZE|BEGIN|COMMIT|END|ROLLBACK|SAVEPOINT|RELEASE|EXPLAIN|COPY|INSTALL|LOAD|SET|CALL|"
    r"EXPORT|IMPORT|GRANT|TRUNCATE|MERGE)\b",
    re.I,
)
_BLANK_LINE = re.compile(r"\n[ \t]*\r?\n")


def get_prompt(
    question: str,
    schema_text: str,
    *,
    dialect: str = "sqlite",
    evidence: str | None = None,
) -> Messages:
    """Build the conversation that asks for one query.

    The instruction and the schema form the system message and the question the user message, so
    that all questions on one database share the longest possible prefix: generation prefills it
    once.

    Args:
        question: the user's question.
        schema_text: the schema as `format_schema` writes it.
        dialect: sqlglot name of the SQL dialect to ask for.
        evidence: external knowledge (BIRD), put before the question.

    Returns:
        Two messages, `system` and `user`.
    """
    name = _DIALECT_NAMES.get(dialect, dialect)
    system = f"Write one {name} query that answers the question.\n\n{schema_text}"
    user = f"{evidence.strip()}\n{question}" if evidence else question
    return [{"role": "system", "content": system}, {"role": "user", "content": user}]


def extract_sql(text: str) -> str:
    """Take the SQL out of a model's answer.

    In this order: the first fenced block that holds anything, else the whole text; a leading label
    such as `SQL:` is dropped; if prose comes first, everything before the first line that starts
    with SELECT, WITH or VALUES is dropped (failing that, before the first upper-case such word);
    the query ends at the first `;` outside quotes and comments, or at a blank line.

    Nothing is repaired, and a text that starts with another statement is returned as it is, so that
    the engine refuses it. The result may be empty: an answer without SQL is wrong, not an error.
    """
    fenced = next((m.group(1) for m in _FENCE.finditer(text) if m.group(1).strip()), None)
    sql = _LABEL.sub("", text if fenced is None else fenced, count=1).strip()
    if not sql or _OTHER_STATEMENT.match(sql):
        return sql
    start = _query_start(sql)
    if start is None:
        return sql
    sql = sql[start:]
    blank = _BLANK_LINE.search(sql)
    if blank and fenced is None:
        sql = sql[: blank.start()]
    end = next(_statement_ends(sql), len(sql))
    # What follows the first statement is prose to drop or a second statement. A second statement
    # stays, so that the engine refuses the answer as a whole.
    rest = sql[end + 1 :].strip()
    if rest and (_OTHER_STATEMENT.match(rest) or _QUERY_START.match(rest)):
        return sql.strip()
    return sql[:end].strip()


def _query_start(sql: str) -> int | None:
    """Position of the query in `sql`; 0 where it starts with it, `None` where there is none."""
    stripped = re.match(r"(?:\s|--[^\n]*\n|/\*.*?\*/|\()*", sql, re.DOTALL)
    head = stripped.end() if stripped else 0
    if _QUERY_START.match(sql, head):
        return 0
    for match in re.finditer(r"^[ \t]*(?:SELECT|WITH|VALUES)\b", sql, re.I | re.M):
        return match.start()
    for match in re.finditer(r"\b(?:SELECT|WITH|VALUES)\b", sql):
        return match.start()
    return None


def _statement_ends(sql: str) -> Iterator[int]:
    """Yield the positions of `;` outside strings, quoted names and comments."""
    position = 0
    while position < len(sql):
        char = sql[position]
        if char in "'\"`":
            closing = sql.find(char, position + 1)
            if closing < 0:
                return
            position = closing + 1  # a doubled quote reopens at once, with the same effect
        elif char == "[":
            closing = sql.find("]", position + 1)
            position = closing + 1 if closing > 0 else position + 1
        elif sql.startswith("--", position):
            line_end = sql.find("\n", position)
            if line_end < 0:
                return
            position = line_end + 1
        elif sql.startswith("/*", position):
            closing = sql.find("*/", position + 2)
            if closing < 0:
                return
            position = closing + 2
        else:
            if char == ";":
                yield position
            position += 1
