"""`PostgresSession`: one connection to a PostgreSQL server, with everything about it fixed."""

from __future__ import annotations

import contextlib
import os
import re
import socket
import time
from collections.abc import Collection
from typing import Any, Final, cast

import psycopg
from psycopg import pq

from sense_trl.database.location import ServerDatabase
from sense_trl.database.postgres_values import register_loaders
from sense_trl.database.text import quote_name
from sense_trl.errors import DatabaseError

_CONNECT_TIMEOUT_S: Final = 10
# When a backend is killed, by the system that lacks memory for it, the server ends all others and
# takes connections again after some seconds.
_RECOVERY_S: Final = 10
_CRASH_OF_OTHERS: Final = "57P02"
_RECOVERING: Final = re.compile(
    "starting up|recovery mode|not yet accepting|server closed the connection unexpectedly"
)
_SETTINGS: Final = {
    "client_encoding": "UTF8",
    # A query can cause notices without end.
    "client_min_messages": "warning",
    "TimeZone": "UTC",
    "DateStyle": "ISO, MDY",
    "IntervalStyle": "postgres",
    "extra_float_digits": "1",
    "bytea_output": "hex",
    "standard_conforming_strings": "on",
    "backslash_quote": "safe_encoding",
    "transform_null_equals": "off",
    "array_nulls": "on",
    "xmloption": "content",
    "row_security": "on",
    "default_transaction_read_only": "on",
    "default_transaction_isolation": "read committed",
    "statement_timeout": "60s",
    "idle_in_transaction_session_timeout": "60s",
    # A query gives its rows in one order, run after run, as far as it is the server's to choose.
    "max_parallel_workers_per_gather": "0",
    "synchronize_seqscans": "off",
    "jit": "off",
    # All rows are fetched, so plans are those of the query outside of a cursor.
    "cursor_tuple_fraction": "1",
}
# Ends a query whose client has gone (14 and later, on Linux).
_OPTIONAL_SETTINGS: Final = {"client_connection_check_interval": "1s"}

HARMLESS_FUNCTIONS: Final = frozenset(
    {
        "random", "random_normal", "clock_timestamp", "timeofday", "gen_random_uuid", "uuidv4",
        "uuidv7", "array_sample", "array_shuffle", "pg_relation_size", "pg_table_size",
        "pg_total_relation_size", "pg_indexes_size", "pg_database_size", "xmlvalidate",
    }
)  # fmt: skip
"""Functions of PostgreSQL that are volatile and yet change nothing and tell nothing secret."""

SPECIAL_FUNCTIONS: Final = (
    "txid_current", "pg_current_xact_id", "crosstab", "crosstab2", "crosstab3", "crosstab4",
    "crosstab_hash", "connectby", "xpath_table",
)  # fmt: skip
"""Functions that are not called volatile, and yet use up transactions or run text as SQL."""

# Volatile functions can do anything; what runs text as SQL can call them by names that do not stand
# in the query. What takes `internal` cannot be called in SQL.
_CALLABLE: Final = """
    SELECT DISTINCT p.proname::text
    FROM pg_catalog.pg_proc p JOIN pg_catalog.pg_namespace n ON n.oid = p.pronamespace
    WHERE (p.provolatile = 'v' OR p.proname = ANY (%s))
      AND p.prokind IN ('f', 'w', 'a') AND p.prorettype <> 'trigger'::regtype
      AND NOT 'internal'::regtype = ANY (p.proargtypes)
      AND has_function_privilege(p.oid, 'EXECUTE') AND has_schema_privilege(n.oid, 'USAGE')
      AND n.nspname <> 'information_schema'
"""


class PostgresSession:
    """A connection whose settings are fixed, and what is known of its role.

    Attributes:
        connection: psycopg's; every statement of ours is committed at once.
        schemas: its search_path.
        started_at: when the server was started.
        version: such as "postgres 15.18".
        callable: names of the functions that this role may call and a model may not.
        fell_with_others: whether the server ended it because another session crashed.
    """

    def __init__(self, connection: Any, location: ServerDatabase, *, allow_superuser: bool) -> None:
        self.connection = connection
        self.pgconn = connection.pgconn
        self.num_interrupts = 0
        self.fell_with_others = False
        connection.add_notice_handler(self._take_notice)
        ask = connection.execute
        for name, value in _SETTINGS.items():
            ask(f"SET {name} = '{value}'")
        for name, value in _OPTIONAL_SETTINGS.items():
            with contextlib.suppress(psycopg.Error):
                ask(f"SET {name} = '{value}'")
        user, is_superuser, self.started_at = ask(
            "SELECT current_user::text, bool_or(rolsuper), pg_postmaster_start_time()::text "
            "FROM pg_catalog.pg_roles WHERE rolname IN (current_user, session_user)"
        ).fetchone()
        if is_superuser and not (allow_superuser or location.allows_superuser):
            raise DatabaseError(
                f"{location}: {user!r} is a superuser, whom nothing confines: SQL that a model "
                "writes could read the server's files and end its sessions. Make a role that may "
                f"only read: `sense-trl doctor --database '{location}'` prints the statements. "
                "Where the server holds nothing of value, `superuser=allow` in the URL (or "
                "`allow_superuser`) connects all the same."
            )
        self.schemas = self._set_search_path(location)
        names = {
            name for (name,) in ask(_CALLABLE, (list(SPECIAL_FUNCTIONS),)).fetchall()
        } - HARMLESS_FUNCTIONS
        self.callable: Final = frozenset(names)
        self._check: Final = NameCheck(names)
        # What a query has locked beyond its transaction.
        self.locks = any(name.startswith("pg_advisory") for name in names)
        self._end: Final = (
            b"ROLLBACK; SELECT pg_catalog.pg_advisory_unlock_all()" if self.locks else b"ROLLBACK"
        )
        number = connection.info.server_version
        self.version: Final = f"postgres {number // 10000}.{number % 10000}"
        register_loaders(connection)

    def _set_search_path(self, location: ServerDatabase) -> tuple[str, ...]:
        ask = self.connection.execute
        if not location.schemas:
            return tuple(ask("SELECT current_schemas(false)::text[]").fetchone()[0])
        known = {
            name
            for (name,) in ask(
                "SELECT nspname::text FROM pg_catalog.pg_namespace "
                "WHERE has_schema_privilege(oid, 'USAGE')"
            ).fetchall()
        }
        if missing := [name for name in location.schemas if name not in known]:
            shown = sorted(n for n in known if not n.startswith("pg_") and n[:11] != "information")
            raise DatabaseError(
                f"{location}: the role may use no schema {missing[0]!r}; there are "
                f"{', '.join(shown) or 'none'}. Mend `schemas` in the URL, or GRANT USAGE ON "
                f"SCHEMA {missing[0]}."
            )
        path = ", ".join(map(quote_name, location.schemas))
        ask(f"SET search_path = {path}")
        return location.schemas

    def find_denied(self, sql: str) -> str | None:
        """The name of a function in a text that a model may not call, `None` if there is none.

        Any occurrence counts, in a string as well: what is a string, PostgreSQL alone can tell.
        """
        return self._check.find(sql)

    def end_query(self) -> bool:
        """Undo what a query did to the session; false if the session cannot be used any more."""
        try:
            done = self.pgconn.exec_(self._end)
        except psycopg.Error:
            return False
        is_done = done.status in (pq.ExecStatus.COMMAND_OK, pq.ExecStatus.TUPLES_OK)
        return is_done and self.pgconn.transaction_status == pq.TransactionStatus.IDLE

    def interrupt(self) -> None:
        """Cancel the running query; when called again and again, close the connection's socket."""
        self.num_interrupts += 1
        if self.num_interrupts == 1:
            with contextlib.suppress(psycopg.Error):
                self.connection.cancel_safe(timeout=0.1)
        elif self.num_interrupts > 8:
            with contextlib.suppress(OSError, psycopg.Error):
                own = socket.socket(fileno=os.dup(self.pgconn.socket))
                own.shutdown(socket.SHUT_RDWR)
                own.close()

    def _take_notice(self, notice: Any) -> None:
        self.fell_with_others |= notice.sqlstate == _CRASH_OF_OTHERS

    def close(self) -> None:
        """Close the connection; closing twice is allowed."""
        self.connection.close()


def connect(location: ServerDatabase, *, allow_superuser: bool = False) -> PostgresSession:
    """Open a session; a server that recovers is waited for, up to 10 s.

    Raises:
        DatabaseError: the server cannot be reached or refuses, or the role is a superuser.
    """
    give_up_at = time.monotonic() + _RECOVERY_S
    while True:
        try:
            return _connect_once(location, allow_superuser=allow_superuser)
        except psycopg.Error as error:
            is_recovering = _RECOVERING.search(str(error)) is not None
            if not is_recovering or time.monotonic() > give_up_at:
                raise DatabaseError(_explain(location, error)) from None
        time.sleep(0.1)


def _connect_once(location: ServerDatabase, *, allow_superuser: bool) -> PostgresSession:
    connection = psycopg.connect(
        location.conninfo,
        autocommit=True,
        # Prepared statements would be seen by queries.
        prepare_threshold=None,
        application_name="sense_trl",
        connect_timeout=_CONNECT_TIMEOUT_S,
        **cast("dict[str, Any]", location.secrets),
    )
    try:
        return PostgresSession(connection, location, allow_superuser=allow_superuser)
    except BaseException:
        connection.close()
        raise


def describe_error(location: ServerDatabase, error: BaseException | str) -> str:
    """A message of libpq or the server in one line, without a password."""
    text = " ".join(str(error).split())
    for secret in location.secrets.values():
        if secret:
            text = text.replace(secret, "***")
    return text


# What a refusal means, by words of the server or of libpq, and what to do.
_ADVICE: Final = (
    ("password authentication failed", "Mend the user or the password: in the URL, in $PGPASSWORD "
     "or in ~/.pgpass."),
    ("no password supplied", "Give the password: in the URL, in $PGPASSWORD or in ~/.pgpass."),
    ("too many connections|remaining connection slots|too many clients", "Each worker has one "
     "connection: use fewer (`num_workers`), or let the role have more (ALTER ROLE ... CONNECTION "
     "LIMIT)."),
    ("hot standby mode is disabled", "The server is a standby that takes no queries: ask its "
     "primary, or set hot_standby = on."),
    ("starting up|shutting down|recovery mode|not yet accepting", "Wait until the server takes "
     "connections, and run again: what was finished is kept."),
    ("could not connect|connection refused|no such file|timeout expired|could not translate|"
     "connection failed|is the server running|resolve", "Is the server running, and are host and "
     "port right? Run again when it is: what was finished is kept."),
    ("does not exist", "Mend the name of the database or the role."),
    ("permission denied", "GRANT the role what it needs: CONNECT on the database, USAGE on the "
     "schema, SELECT on the tables."),
    ("pg_hba.conf|no encryption", "The server lets this role in from elsewhere or otherwise only; "
     "see its pg_hba.conf, and `sslmode` in the URL."),
)  # fmt: skip


def _explain(location: ServerDatabase, error: BaseException) -> str:
    said = describe_error(location, error)
    advice = next((text for words, text in _ADVICE if re.search(words, said, re.IGNORECASE)), "")
    return f"cannot open {location}: {said.rstrip('.?')}. {advice}".rstrip()


class NameCheck:
    """Finds the names of functions in a text, wherever they stand in it.

    Digits may stand before a name: old servers read `1e5nextval` as two words. So may dollars and
    letters beyond ASCII, as in `$a$text$a$nextval`.

    Args:
        names: of the functions.

    Example:
        >>> check = NameCheck({"nextval"})
        >>> check.find("SELECT NextVal ('s')"), check.find("SELECT nextvalue, 'my_nextval'")
        ('nextval', None)
    """

    def __init__(self, names: Collection[str]) -> None:
        self._plain = {name.lower() for name in names if _PLAIN.fullmatch(name)}
        # As they stand between double quotes.
        self._others = {name.replace('"', '""').lower() for name in names} - self._plain

    def find(self, text: str) -> str | None:
        """One of the names that stand in `text`, `None` if none does."""
        if _ESCAPED_NAME.search(text):
            # By a name in Unicode escapes any function can be called.
            return 'U&"'
        text = text.lower()
        word: str
        for word in set(_WORD.findall(text)):
            # The server cuts longer names.
            if word in self._plain or word[:_MAX_NAME] in self._plain:
                return word[:_MAX_NAME]
            for start in _BEHIND_DIGIT.finditer(word):
                name = word[start.start() :][:_MAX_NAME]
                if name in self._plain:
                    return name
        return next((other for other in self._others if other in text), None)


_MAX_NAME: Final = 63
_PLAIN: Final = re.compile("[A-Za-z_][A-Za-z0-9_]*")
_WORD: Final = re.compile("[a-z0-9_]+")
_BEHIND_DIGIT: Final = re.compile("(?<=[0-9])[a-z_]")
_ESCAPED_NAME: Final = re.compile(r'U&"', re.IGNORECASE)
