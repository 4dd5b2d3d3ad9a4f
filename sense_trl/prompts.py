"""`get_prompt` builds what a model reads; `extract_sql` finds the SQL in what it wrote."""

from __future__ import annotations

from sense_trl.sql.extraction import extract_sql

__all__ = ["Messages", "extract_sql", "get_prompt"]

# A conversation in the form chat templates and TRL expect.
Messages = list[dict[str, str]]

_DIALECT_NAMES = {"sqlite": "SQLite", "duckdb": "DuckDB", "postgres": "PostgreSQL"}


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
