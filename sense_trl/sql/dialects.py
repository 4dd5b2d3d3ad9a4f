"""`Dialects`: one dialect for all SQL, or that of each database."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

Dialects: TypeAlias = str | Callable[[str], str]
"""The sqlglot dialect of all SQL, or a function from `db_id` to dialect such as
`DatabaseCatalog.dialect`."""


def get_dialect(dialects: Dialects, db_id: str) -> str:
    """The dialect of the SQL on one database.

    Example:
        >>> get_dialect("sqlite", "pets"), get_dialect({"pets": "duckdb"}.__getitem__, "pets")
        ('sqlite', 'duckdb')
    """
    return dialects if isinstance(dialects, str) else dialects(db_id)
