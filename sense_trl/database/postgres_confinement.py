"""How well a role of a PostgreSQL server is confined, and the SQL that closes each gap."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final

import psycopg

from sense_trl.database.location import ServerDatabase
from sense_trl.database.postgres_session import (
    HARMLESS_FUNCTIONS,
    SPECIAL_FUNCTIONS,
    connect,
    describe_error,
)
from sense_trl.database.text import quote_name
from sense_trl.errors import DatabaseError

_MAX_NAMED: Final = 5
_MAX_TABLES: Final = 50


@dataclass(frozen=True, slots=True)
class Gap:
    """What a role may do beyond reading.

    Attributes:
        name: what it is about.
        text: what the role may do, or "" where it may not.
        sql: statements, for an owner of the database, that take it away.
        is_grave: whether an engine refuses such a role, or cannot make up for it.
    """

    name: str
    text: str = ""
    sql: str = ""
    is_grave: bool = False


# Functions by what they do; the first family that has a name takes it. Those for sequences ask for
# rights on the sequence, and what else PostgreSQL brings tells about the server or asks for rights.
_SEQUENCES: Final = ("nextval", "setval", "currval", "lastval")
_FAMILIES: Final = (
    ("advisory locks", "hold locks that other sessions wait for", "pg_(try_)?advisory_.*"),
    ("large objects", "write large objects, even when it may only read (before version 16)",
     "lo_.*|loread|lowrite"),
    ("other sessions", "end or cancel sessions of the same role", "pg_(terminate|cancel)_backend"),
    ("log", "fill the server's write-ahead log", "pg_logical_emit_message"),
    ("SQL in text", "run text as SQL", "query_to_.*|cursor_to_.*|ts_stat|ts_rewrite|dblink.*|"
     "crosstab.*|connectby|xpath_table"),
    ("settings", "change settings of its session", "set_config|setseed"),
    ("waiting", "sleep, and tell other sessions", "pg_sleep.*|pg_notify"),
    ("transactions", "use up transaction numbers, and lend snapshots",
     "txid_current|pg_current_xact_id|pg_export_snapshot"),
    ("own functions", "call volatile functions of the database, which may change anything", ".*"),
)  # fmt: skip
_POWERS: Final = {
    "rolsuper": "SUPERUSER",
    "rolcreaterole": "CREATEROLE",
    "rolcreatedb": "CREATEDB",
    "rolreplication": "REPLICATION",
    "rolbypassrls": "BYPASSRLS",
}
_MIGHTY: Final = (
    "pg_execute_server_program", "pg_read_server_files", "pg_write_server_files",
    "pg_signal_backend", "pg_write_all_data", "pg_maintain", "pg_checkpoint", "pg_monitor",
    "pg_create_subscription",
)  # fmt: skip
_FUNCTIONS: Final = """
    SELECT p.oid::regprocedure::text, p.proname::text, p.pronamespace = 'pg_catalog'::regnamespace
    FROM pg_catalog.pg_proc p JOIN pg_catalog.pg_namespace n ON n.oid = p.pronamespace
    WHERE p.proname = ANY (%(names)s) AND p.proname ~ ('^(' || %(pattern)s || ')$')
      AND (p.provolatile = 'v' OR p.proname = ANY (%(special)s))
      AND p.prokind IN ('f', 'w', 'a') AND p.prorettype <> 'trigger'::regtype
      AND NOT 'internal'::regtype = ANY (p.proargtypes)
      AND (%(pattern)s <> '.*' OR p.pronamespace <> 'pg_catalog'::regnamespace)
      AND has_function_privilege(p.oid, 'EXECUTE') AND n.nspname <> 'information_schema'
    ORDER BY 2, 1
"""
_WRITABLE: Final = """
    SELECT c.oid::regclass::text FROM pg_catalog.pg_class c
    JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
    WHERE c.relkind IN ('r', 'p', 'v', 'm', 'f') AND n.nspname !~ '^pg_toast'
      AND n.nspname NOT IN ('pg_catalog', 'information_schema')
      AND has_table_privilege(c.oid, 'INSERT, UPDATE, DELETE, TRUNCATE, REFERENCES, TRIGGER')
    ORDER BY 1
"""


def find_gaps(location: ServerDatabase) -> Iterator[Gap]:
    """Try what the role of a URL may do on its server; nothing is changed.

    Yields:
        One for each thing that was tried, without `text` where the role is confined.

    Raises:
        DatabaseError: the server cannot be reached.
    """
    session = connect(location, allow_superuser=True)
    ask = session.connection.execute
    try:
        # What is tried is undone, and is allowed to write.
        ask("SET default_transaction_read_only = off")
        # Who runs the statements may have another search_path: names are written with schemas.
        ask("SET search_path = ''")
        role, database = (
            quote_name(name)
            for name in ask("SELECT current_user::text, current_database()::text").fetchone()
        )
        yield _check_powers(ask, role)
        yield _check_tables(ask, role)
        yield _check_schemas(ask, role)
        yield _try(
            session.connection,
            Gap(
                "temporary objects",
                "create temporary tables and views, which later queries would read in place of the "
                "database's own",
                f"REVOKE TEMPORARY ON DATABASE {database} FROM PUBLIC, {role};",
            ),
            "CREATE TEMPORARY VIEW sense_trl_probe AS SELECT 1",
        )
        yield _check_files(session.connection, role)
        others = _find_other_roles(ask)
        names = session.callable.difference(_SEQUENCES)
        for name, what, pattern in _FAMILIES:
            gap, taken = _check_functions(ask, name, what, pattern, names, role, others)
            names -= taken
            yield gap
    except psycopg.Error as error:
        said = describe_error(location, error)
        raise DatabaseError(f"cannot look into the rights of {location}: {said}") from None
    finally:
        session.close()


def _check_powers(ask: Any, role: str) -> Gap:
    row = ask(
        f"SELECT {', '.join(_POWERS)}, rolname::text FROM pg_catalog.pg_roles "
        "WHERE rolname = session_user"
    ).fetchone()
    powers = [word for word, has in zip(_POWERS.values(), row, strict=False) if has]
    member = [
        name
        for (name,) in ask(
            "SELECT rolname::text FROM pg_catalog.pg_roles WHERE rolname = ANY (%s) "
            "AND pg_has_role(current_user, oid, 'USAGE')",
            (list(_MIGHTY),),
        ).fetchall()
    ]
    if "SUPERUSER" in powers:
        return Gap(
            "role",
            "do everything: it is a superuser, which every engine refuses. Make one for the model",
            "CREATE ROLE sense_trl_reader LOGIN PASSWORD '...';\n"
            "GRANT USAGE ON SCHEMA public TO sense_trl_reader;\n"
            "GRANT SELECT ON ALL TABLES IN SCHEMA public TO sense_trl_reader;",
            is_grave=True,
        )
    if not powers and not member:
        return Gap("role")
    lines = [f"ALTER ROLE {role} {' '.join(f'NO{word}' for word in powers)};"] if powers else []
    lines += [f"REVOKE {name} FROM {role};" for name in member]
    text = f"use the powers {', '.join([*powers, *member])}"
    return Gap("role", text, "\n".join(lines), is_grave=True)


def _check_tables(ask: Any, role: str) -> Gap:
    tables = [name for (name,) in ask(_WRITABLE).fetchall()]
    sequences = [
        name
        for (name,) in ask(
            "SELECT oid::regclass::text FROM pg_catalog.pg_class WHERE relkind = 'S' "
            "AND CASE WHEN relkind = 'S' THEN has_sequence_privilege(oid, 'USAGE, UPDATE') END "
            "ORDER BY 1"
        ).fetchall()
    ]
    if not tables and not sequences:
        return Gap("writing")
    rights = "INSERT, UPDATE, DELETE, TRUNCATE, REFERENCES, TRIGGER"
    lines = [f"REVOKE {rights} ON {name} FROM PUBLIC, {role};" for name in tables[:_MAX_TABLES]]
    lines += [
        f"REVOKE USAGE, UPDATE ON SEQUENCE {name} FROM PUBLIC, {role};"
        for name in sequences[:_MAX_TABLES]
    ]
    if len(tables) > _MAX_TABLES or len(sequences) > _MAX_TABLES:
        lines.append("-- and the rest of them; the owner of a table keeps its rights")
    text = f"write to {_name([*tables, *sequences])}"
    return Gap("writing", text, "\n".join(lines))


def _check_schemas(ask: Any, role: str) -> Gap:
    schemas = [
        name
        for (name,) in ask(
            "SELECT quote_ident(nspname) FROM pg_catalog.pg_namespace "
            "WHERE nspname !~ '^pg_(toast|temp)' AND has_schema_privilege(oid, 'CREATE')"
        ).fetchall()
    ]
    if not schemas:
        return Gap("creating")
    lines = [f"REVOKE CREATE ON SCHEMA {name} FROM PUBLIC, {role};" for name in schemas]
    return Gap("creating", f"create tables and functions in {_name(schemas)}", "\n".join(lines))


def _check_files(connection: Any, role: str) -> Gap:
    gap = Gap(
        "files",
        "read files of the server",
        f"REVOKE EXECUTE ON FUNCTION pg_catalog.pg_read_file(text) FROM PUBLIC, {role};",
        is_grave=True,
    )
    return _try(connection, gap, "SELECT pg_read_file('PG_VERSION')")


def _check_functions(
    ask: Any,
    name: str,
    what: str,
    pattern: str,
    names: frozenset[str],
    role: str,
    others: list[str],
) -> tuple[Gap, frozenset[str]]:
    """The gap of a family, and the names in it."""
    arguments = {"names": sorted(names - HARMLESS_FUNCTIONS), "pattern": pattern}
    arguments["special"] = list(SPECIAL_FUNCTIONS)
    found = ask(_FUNCTIONS, arguments).fetchall()
    taken = frozenset(function for _, function, _ in found)
    if not found:
        return Gap(name), taken
    signatures = ", ".join(signature for signature, *_ in found)
    sql = f"REVOKE EXECUTE ON FUNCTION {signatures} FROM PUBLIC, {role};"
    if others:
        sql += f"\nGRANT EXECUTE ON FUNCTION {signatures} TO {', '.join(others)};"
    return Gap(name, f"{what}: {_name(sorted(taken))}", sql), taken


def _find_other_roles(ask: Any) -> list[str]:
    """Who uses the database besides this role, and keeps what PUBLIC loses."""
    return [
        name
        for (name,) in ask(
            "SELECT quote_ident(rolname) FROM pg_catalog.pg_roles WHERE rolcanlogin "
            "AND NOT rolsuper AND rolname <> current_user "
            "AND has_database_privilege(oid, current_database(), 'CONNECT') "
            "AND rolname !~ '^pg_' ORDER BY 1"
        ).fetchall()
    ]


def _try(connection: Any, gap: Gap, sql: str) -> Gap:
    """The gap, if a statement runs; it is undone."""
    # A standby takes no writes at all.
    refusals = psycopg.errors.InsufficientPrivilege, psycopg.errors.ReadOnlySqlTransaction
    with contextlib.suppress(*refusals, psycopg.errors.UndefinedFile):
        with connection.transaction(force_rollback=True):
            connection.execute(sql)
        return gap
    return Gap(gap.name)


def _name(names: list[str]) -> str:
    more = f" and {len(names) - _MAX_NAMED} more" if len(names) > _MAX_NAMED else ""
    return ", ".join(names[:_MAX_NAMED]) + more
