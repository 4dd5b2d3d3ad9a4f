"""Names in PostgreSQL's SQL: without quotes they mean their lower case, and some need quotes."""

from __future__ import annotations

import re
import string
from typing import Final

_LOWER: Final = str.maketrans(string.ascii_uppercase, string.ascii_lowercase)
_PLAIN_NAME: Final = re.compile("[a-z_][a-z0-9_]*")
# Those that `pg_get_keywords()` calls reserved, in PostgreSQL 15 to 18.
_RESERVED: Final = frozenset(
    """
    all analyse analyze and any array as asc asymmetric authorization binary both case cast check
    collate collation column concurrently constraint create cross current_catalog current_date
    current_role current_schema current_time current_timestamp current_user default deferrable
    desc distinct do else end except false fetch for foreign freeze from full grant group having
    ilike in initially inner intersect into is isnull join lateral leading left like limit
    localtime localtimestamp natural not notnull null offset on only or order outer overlaps
    placing primary references returning right select session_user similar some symmetric
    system_user table tablesample then to trailing true union unique user using variadic verbose
    when where window with
    """.split()  # noqa: SIM905
)


def fold_name(name: str) -> str:
    """What a name without quotes means.

    Example:
        >>> fold_name("Singer_ID")
        'singer_id'
    """
    return name.translate(_LOWER)


def is_plain_name(name: str) -> bool:
    """Whether a name may stand without quotes.

    Example:
        >>> [is_plain_name(name) for name in ("name", "Name", "user")]
        [True, False, False]
    """
    return _PLAIN_NAME.fullmatch(name) is not None and name not in _RESERVED
