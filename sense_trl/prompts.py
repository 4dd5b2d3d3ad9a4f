"""`get_prompt` builds what a model reads, `extract_sql` finds the SQL in what it wrote."""

from __future__ import annotations

import re

# A conversation in the form chat templates and TRL expect.
Messages = list[dict[str, str]]

_DIALECT_NAMES = {"sqlite": "SQLite", "duckdb": "DuckDB", "postgres": "PostgreSQL"}

# A word after the fence is a language only where the line ends behind it, or where it names SQL.
_FENCE = re.compile(
    r"```(?:[ \t]*[A-Za-z]+[ \t]*\r?\n|[ \t]*(?:sql|sqlite|duckdb|postgresql)\b)?"
    r"(.*?)(?:```|\Z)",
    re.DOTALL | re.I,
)
_INLINE_CODE = re.compile(r"`([^`]+)`")
_LABEL = re.compile(r"\A\s*(?:the\s+)?(?:sql(?:ite)?(?:\s+query)?|query|answer)\s*:\s*", re.I)
# Prose begins with these words too ("With the schema above", "Select the oldest:"), so more than
# the word is asked for.
_QUERY = (
    r"(?:SELECT\b(?![^\n]*:[ \t]*(?:\n|\Z))"
    r"|WITH\s+(?:RECURSIVE\s+)?[\w\"`\[\]]+\s*(?:\([^()]*\)\s*)?AS\s+(?:(?:NOT\s+)?MATERIALIZED\s+)?\("
    r"|VALUES\s*\()"
)
_QUERY_START = re.compile(_QUERY, re.I)
_QUERY_LINE = re.compile(rf"^[ \t]*{_QUERY}", re.I | re.M)
_UPPER_CASE_QUERY = re.compile(rf"\b{_QUERY}")
# Any other statement a model may write. Text that starts with one is not searched for a query
# inside it: `DELETE FROM t; SELECT 1` must not come out as `SELECT 1`.
_OTHER_STATEMENT = re.compile(
    r"\A\s*(?:INSERT\s+(?:OR|INTO)|UPDATE\s+(?:OR\s+\w+\s+)?\S+\s+SET|DELETE\s+FROM|REPLACE\s+INTO"
    r"|CREATE\s+(?:OR|TEMP|TEMPORARY|TABLE|VIEW|INDEX|UNIQUE|TRIGGER|VIRTUAL|SCHEMA|MACRO|FUNCTION)"
    r"|DROP\s+(?:TABLE|VIEW|INDEX|TRIGGER|SCHEMA)|ALTER\s+TABLE|ATTACH\s|DETACH\s|PRAGMA\s"
    r"|VACUUM\b|REINDEX\b|ANALYZE\b|BEGIN\s*(?:;|\Z|TRANSACTION|IMMEDIATE)|COMMIT\b|ROLLBACK\b"
    r"|SAVEPOINT\s|RELEASE\s|EXPLAIN\s+(?:QUERY\s|ANALYZE\s|SELECT\b|WITH\b)|COPY\s|INSTALL\s"
    r"|LOAD\s|SET\s+\w+\s*=|CALL\s+\w+\s*\(|EXPORT\s|IMPORT\s|GRANT\s|TRUNCATE\s|MERGE\s+INTO)",
    re.I,
)
# What goes on behind an empty line. Prose starts with a capital, so mixed case does not count.
_CONTINUATION = re.compile(
    r"\s*(?:\(|\)|,|(?:FROM|WHERE|GROUP|ORDER|HAVING|LIMIT|OFFSET|UNION|INTERSECT|EXCEPT|JOIN|LEFT|"
    r"INNER|CROSS|NATURAL|ON|AND|OR|WINDOW)\b|(?:from|where|group|order|having|limit|union|"
    r"intersect|except|join|left|inner)\b)"
)
_BLANK_LINE = re.compile(r"\n[ \t]*\r?(?=\n)")
_QUOTES = (("'", "'"), ('"', '"'), ("`", "`"), ("[", "]"), ("--", "\n"), ("/*", "*/"))
_CTE_BODY = re.compile(r"\s*(?:SELECT|select|VALUES|values)\b")


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
    such as `SQL:` is dropped; if prose comes first, everything before the query is dropped (the
    first line that starts with one; failing that, one in inline code; failing that, the first in
    upper case). The query ends at the first `;`, or at an empty line behind which it does not go
    on, both outside strings, comments and parentheses.

    Nothing is repaired. A text that starts with another statement, and a query that is followed by
    another statement, are returned whole, so that the engine refuses them. The result may be empty:
    an answer without SQL is wrong, not an error.
    """
    fenced = next((m.group(1) for m in _FENCE.finditer(text) if m.group(1).strip()), None)
    sql = _LABEL.sub("", text if fenced is None else fenced, count=1).strip()
    if not sql or _OTHER_STATEMENT.match(sql):
        return sql
    query = _from_query_on(sql)
    if query is None:
        return sql
    sql = query
    end, separator = _query_end(sql)
    rest = sql[end:].lstrip("; \t\r\n")
    # Behind `;` any further statement counts. Behind an empty line a further query is a second
    # proposal, and dropped like the prose around it.
    if _OTHER_STATEMENT.match(rest) or (separator == ";" and _QUERY_START.match(rest)):
        return sql.strip()
    return sql[:end].strip()


def _from_query_on(sql: str) -> str | None:
    """`sql` without the prose before its query; `None` where there is no query."""
    head = re.match(r"(?:\s|--[^\n]*(?:\n|\Z)|/\*.*?\*/|\()*", sql, re.DOTALL)
    if _QUERY_START.match(sql, head.end() if head else 0):
        start = 0
    elif line := _QUERY_LINE.search(sql):
        start = line.start()
    else:
        for code in _INLINE_CODE.finditer(sql):
            if _QUERY_START.match(code.group(1).lstrip()):
                return code.group(1).strip()
        found = _UPPER_CASE_QUERY.search(sql)
        if found is None:
            return None
        start = found.start()
    return sql[start:].removesuffix("```").rstrip()


def _query_end(sql: str) -> tuple[int, str]:
    """Where the first query of `sql` ends, and at what: `";"`, an empty line, or `""` (the end)."""
    is_cte = bool(re.match(r"\s*WITH\b", sql, re.I))
    position, depth, begun = 0, 0, False
    while position < len(sql):
        char = sql[position]
        skipped = _skip_quoted(sql, position)
        if skipped is not None:
            position = skipped
            continue
        if char == ";":
            return position, ";"
        depth += (char == "(") - (char == ")")
        empty_line = _BLANK_LINE.match(sql, position) if char == "\n" else None
        if empty_line and depth <= 0 and begun:
            rest = sql[empty_line.end() :]
            if not (_CONTINUATION.match(rest) or (is_cte and _CTE_BODY.match(rest))):
                return position, "\n"
        begun = begun or not char.isspace()
        position += 1
    return len(sql), ""


def _skip_quoted(sql: str, position: int) -> int | None:
    """Position behind the string, quoted name or comment that starts here; `None` if none does.

    One that is never closed reaches to the end.
    """
    for opening, closing in _QUOTES:
        if sql.startswith(opening, position):
            end = sql.find(closing, position + len(opening))
            # A doubled quote ends one string and starts the next, to the same effect.
            return len(sql) if end < 0 else end + len(closing)
    return None
