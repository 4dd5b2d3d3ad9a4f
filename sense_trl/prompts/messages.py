"""`get_prompt`: the conversation that asks for one query."""

from __future__ import annotations

from typing import Final

__all__ = ["DIALECT_MARK", "INSTRUCTION", "Messages", "get_prompt"]

# A conversation in the form chat templates and TRL expect.
Messages = list[dict[str, str]]

DIALECT_MARK: Final = "{dialect}"
"""Stands for the name of the SQL dialect in an instruction."""
INSTRUCTION: Final = f"Write one {DIALECT_MARK} query that answers the question."

_DIALECT_NAMES: Final = {"sqlite": "SQLite", "duckdb": "DuckDB", "postgres": "PostgreSQL"}


def get_prompt(
    question: str,
    schema_text: str,
    *,
    dialect: str = "sqlite",
    evidence: str | None = None,
    matched_values: str = "",
    instruction: str = INSTRUCTION,
) -> Messages:
    """Build the conversation that asks for one query.

    The instruction and the schema form the system message and what depends on the question the user
    message, so that all questions on one database share the longest possible prefix: generation
    prefills it once.

    Args:
        question: the user's question.
        schema_text: the schema as `format_schema` writes it.
        dialect: sqlglot name of the SQL dialect to ask for.
        evidence: external knowledge (BIRD), put before the question.
        matched_values: a line on values that the question seems to name, put before the question.
        instruction: what is asked for; `{dialect}` in it becomes the name of the dialect.

    Returns:
        Two messages, `system` and `user`.
    """
    asked = instruction.replace(DIALECT_MARK, _DIALECT_NAMES.get(dialect, dialect))
    parts = ((evidence or "").strip(), matched_values, question)
    return [
        {"role": "system", "content": f"{asked}\n\n{schema_text}"},
        {"role": "user", "content": "\n".join(filter(None, parts))},
    ]
