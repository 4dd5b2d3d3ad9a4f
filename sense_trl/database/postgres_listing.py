"""The databases or schemas that a URL with `{db_id}` in it names: `find_databases`."""

from __future__ import annotations

import re
from typing import Final

import psycopg

from sense_trl.database.location import ServerDatabase
from sense_trl.database.postgres_session import connect, describe_error
from sense_trl.errors import DatabaseError

_PLACE: Final = "{db_id}"
_DATABASES: Final = """
    SELECT datname::text FROM pg_catalog.pg_database
    WHERE datallowconn AND NOT datistemplate AND datname <> 'postgres'
      AND has_database_privilege(oid, 'CONNECT')
"""
_SCHEMAS: Final = """
    SELECT nspname::text FROM pg_catalog.pg_namespace
    WHERE nspname !~ '^pg_' AND nspname <> 'information_schema'
      AND has_schema_privilege(oid, 'USAGE')
"""


def find_databases(template: ServerDatabase) -> dict[str, ServerDatabase]:
    """Ask a server what it has in place of `{db_id}`.

    Args:
        template: a URL with `{db_id}` as its database, or in its `schemas`.

    Raises:
        DatabaseError: the server cannot be reached, or has none that fits.
        InputError: `{db_id}` stands elsewhere.
    """
    if template.find_part() == "database":
        pattern, sql = template.stem, _DATABASES
        places = [template.with_database(name) for name in ("postgres", "template1")]
    else:
        pattern, sql = ",".join(template.schemas), _SCHEMAS
        places = [template]
        # Other schemas of the URL are the same for all.
        pattern = next(part for part in pattern.split(",") if _PLACE in part)
    names: list[str] = []
    for place in places:
        try:
            session = connect(place.with_schemas(()))
        except DatabaseError:
            if place == places[-1]:
                raise
            continue
        try:
            names = [name for (name,) in session.connection.execute(sql).fetchall()]
        except psycopg.Error as error:
            said = describe_error(place, error)
            raise DatabaseError(f"cannot list what {template} has: {said}") from None
        finally:
            session.close()
        break
    before, after = pattern.split(_PLACE)
    fits = re.compile(f"{re.escape(before)}(.+){re.escape(after)}", re.DOTALL)
    found = {match[1]: template.fill(match[1]) for name in names if (match := fits.fullmatch(name))}
    if not found:
        what = "database" if template.find_part() == "database" else "schema"
        raise DatabaseError(
            f"the server of {template} has no {what} that fits and that the role may use; it has "
            f"{', '.join(sorted(names)[:10]) or 'none at all'}."
        )
    return found
