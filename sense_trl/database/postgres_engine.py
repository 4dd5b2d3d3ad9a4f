"""`PostgresEngine`: one database of a PostgreSQL server, read-only, confined and limited."""

from __future__ import annotations

import re
import selectors
import time
from collections.abc import Sequence
from typing import Any, Final

import psycopg
from psycopg import pq
from psycopg.adapt import Transformer

from sense_trl.database.engine import (
    ExecutionLimits,
    LimitKind,
    QueryResult,
    QueryStatus,
    ResultRows,
    TableInfo,
    failed,
    refuse_text,
    stopped,
)
from sense_trl.database.file_engine import OpenedEngine
from sense_trl.database.location import ServerDatabase, locate
from sense_trl.database.postgres_schema import read_tables
from sense_trl.database.postgres_session import PostgresSession, connect, describe_error
from sense_trl.database.watch import Interrupter
from sense_trl.errors import DatabaseError, InputError

# Rows that libpq hands over at once, and so the most that are in memory beside the result.
_CHUNK_ROWS: Final = 32
_MAX_TIMEOUT_MS: Final = 2**31 - 1
# The server's own clock comes first.
_CANCEL_AFTER_S: Final = 0.1
_MAX_RUNS: Final = 2

# First words of what is no query: a syntax error behind DECLARE ... CURSOR FOR.
_STATEMENTS: Final = frozenset(
    """
    abort alter analyse analyze attach begin call checkpoint close cluster comment commit copy
    create deallocate declare delete describe detach discard do drop end execute explain fetch
    grant import insert listen load lock merge move notify pragma prepare reassign refresh reindex
    release reset revoke rollback savepoint security set show start truncate unlisten update use
    vacuum
    """.split()  # noqa: SIM905
)
_FIRST_WORD: Final = re.compile(r"(?:\s++|--[^\n]*+|/\*.*?\*/)*+\(*+\s*+([A-Za-z]+)", re.DOTALL)

_QUERY_CANCELED: Final = "57014"
_ENDED_BY_ADMINISTRATOR: Final = "57P01"
_OUT_OF_MEMORY: Final = ("53200", "53100", "53400")
_CONFLICTS: Final = ("40001", "40P01")
_DENIED: Final = ("42501", "25006", "25001")
_TOO_LONG: Final = re.compile("length too large|invalid memory alloc request size|string buffer")


class _LostError(Exception):
    """The session ended: before the query was sent, or while it ran."""

    def __init__(self, state: str | None, message: str, *, in_query: bool) -> None:
        super().__init__(message)
        self.state = state
        self.in_query = in_query


class PostgresEngine(OpenedEngine):
    """A database of a PostgreSQL server on which untrusted queries are run, one at a time.

    How a query is held:

    * the session's settings are fixed when it begins (UTC, ISO dates, no parallel workers, ...);
      each query has a transaction of its own, `READ ONLY` by a first statement of ours so that
      nothing in the query can change that, and ended by `ROLLBACK`;
    * the text is sent as one statement of the extended protocol, behind `DECLARE ... CURSOR FOR`,
      where only SELECT, VALUES, TABLE and WITH are statements at all;
    * a name of a volatile function that this role may call is refused wherever it stands in the
      text, but for a few harmless ones such as `random`: those that change sequences, settings,
      locks, large objects and other sessions, or run text as SQL. Functions of the database's own
      that only read have to be declared STABLE or IMMUTABLE;
    * a superuser is refused, unless told otherwise. What else a role may do is found out by
      `sense-trl doctor --database`, which also prints the SQL that takes it away;
    * `statement_timeout` ends it; 0.1 s later it is cancelled from here, and 0.3 s later its
      connection is cut;
    * rows come from the cursor a few at a time, and no more than `max_rows` + 1 of them.

    A session that ends in any other way than with a clean transaction is replaced. `max_steps` is
    ignored. Values are as `register_loaders` says.

    Not protected, because a client cannot: the server's memory. `memory_limit_bytes` limits the
    worker process of an `IsolatedEngine` only; see docs/postgres.md for a server under a limit of
    its own, where a query that wants more is `TOO_LARGE`.

    Args:
        dsn: `postgresql://user:password@host:port/name`, with the parameters that `ServerDatabase`
            adds to those of libpq.
        schemas: the schemas that are read, and the search_path; over those of the URL.
        limits: the limits that hold where `execute` is given none.
        allow_superuser: whether the role may be a superuser.

    Raises:
        DatabaseError: the server cannot be reached or refuses the role, or it is a superuser.
        InputError: `dsn` cannot be read.
    """

    dialect: Final = "postgres"

    def __init__(
        self,
        dsn: str | ServerDatabase,
        *,
        schemas: Sequence[str] = (),
        limits: ExecutionLimits | None = None,
        allow_superuser: bool = False,
    ) -> None:
        location = locate(dsn)
        if not isinstance(location, ServerDatabase):
            raise InputError(f"`dsn` is {dsn!r}; expected postgresql://user@host/name.")
        if schemas:
            location = location.with_schemas(schemas)
        self._path: ServerDatabase
        super().__init__(location, limits)
        self._allow_superuser = allow_superuser
        self._session: PostgresSession | None = None
        self._version = self._get_session().version

    @property
    def path(self) -> ServerDatabase:
        """The place of the database, without a password."""
        return self._path

    @property
    def version(self) -> str:
        """The version of the server."""
        return self._version

    def execute(self, sql: str, *, limits: ExecutionLimits | None = None) -> QueryResult:
        """Run one reading statement.

        Args:
            sql: the text as the model wrote it; one trailing semicolon is allowed.
            limits: limits of this query instead of the engine's.

        Returns:
            The result; see `QueryStatus` for what each ending means. `steps` is `None`.

        Raises:
            DatabaseError: the server cannot be reached any more.
            InputError: the engine is closed or belongs to another thread or process.
        """
        self._check_usable()
        limits = self._limits if limits is None else limits
        started = time.perf_counter()
        refused = refuse_text(sql)
        if refused is not None:
            return failed(*refused, started)
        for run in range(_MAX_RUNS):
            session = self._get_session()
            if name := session.find_denied(sql):
                message = f"{name} is not allowed: it can change more than its result"
                return failed(QueryStatus.DENIED, message, started)
            try:
                return self._run(session, sql, limits, started)
            except _LostError as lost:
                self._disconnect()
                lost_at = time.perf_counter()
                left_s = limits.timeout_s - (lost_at - started)
                restarted_at = self._get_session().started_at
                # The server may have taken its time to recover.
                started += time.perf_counter() - lost_at
                # Its server was stopped, or somebody ended it: that was not the query's doing.
                is_innocent = (
                    not lost.in_query
                    or lost.state in (_ENDED_BY_ADMINISTRATOR, *_CONFLICTS)
                    or session.fell_with_others
                    or restarted_at != session.started_at
                )
                if not is_innocent or (run + 1 == _MAX_RUNS and lost.in_query):
                    message = f"the session ended while the query ran: {lost}"
                    return failed(QueryStatus.TOO_LARGE, message, started, LimitKind.MEMORY)
                problem = str(lost)
                if left_s <= 0:
                    break
        raise DatabaseError(
            f"{self._path}: the connection is lost again and again ({problem}). Run again when the "
            "server is well: what was finished is kept."
        )

    def get_tables(self) -> tuple[TableInfo, ...]:
        """Read the tables and views of the schemas that the role may read, the oldest first.

        Raises:
            DatabaseError: the schema cannot be read.
            InputError: the engine is closed or belongs to another thread or process.
        """
        self._check_usable()
        num_runs = 0
        while True:
            session = self._get_session()
            try:
                return read_tables(session.connection, session.schemas)
            except psycopg.Error as error:
                # The server may have been started anew, or a session may have been idle for long.
                is_lost = session.connection.broken
                self._disconnect()
                num_runs += 1
                if not is_lost or num_runs == _MAX_RUNS:
                    said = describe_error(self._path, error)
                    raise DatabaseError(f"cannot read the schema of {self._path}: {said}") from None

    # ------------------------------------------------------------------ the session

    def _get_session(self) -> PostgresSession:
        if self._session is None:
            self._session = connect(self._path, allow_superuser=self._allow_superuser)
        return self._session

    def _disconnect(self) -> None:
        session, self._session = self._session, None
        if session is not None:
            session.close()

    # ------------------------------------------------------------------ one query

    def _run(
        self, session: PostgresSession, sql: str, limits: ExecutionLimits, started: float
    ) -> QueryResult:
        timeout_ms = min(max(round(limits.timeout_s * 1000), 1), _MAX_TIMEOUT_MS)
        session.num_interrupts = 0
        begin = f"BEGIN READ ONLY; SET LOCAL statement_timeout = {timeout_ms}; SELECT 1"
        _ask(session, begin.encode(), in_query=False)
        deadline = started + limits.timeout_s
        late = _INTERRUPTER.watch(session, deadline + _CANCEL_AFTER_S)
        try:
            declare = b"DECLARE c NO SCROLL CURSOR FOR " + sql.encode()
            error = _ask(session, declare, one_statement=True)
            columns: tuple[str, ...] = ()
            rows: list[tuple[object, ...]] = []
            exceeded = None
            if error is None:
                left_ms = round((deadline - time.perf_counter()) * 1000)
                # Each statement has a clock of its own, and planning took some of the time.
                if left_ms < 0.95 * timeout_ms:
                    _ask(session, f"SET LOCAL statement_timeout = {max(left_ms, 1)}".encode())
                columns, rows, error, exceeded = _fetch(session, limits)
        except _LostError:
            if late.is_set():
                self._disconnect()
                return stopped(LimitKind.WALL_CLOCK, limits, started)
            raise
        finally:
            _INTERRUPTER.unwatch(session)
        if exceeded is not None or not session.end_query():
            # What was not read to its end is still on its way.
            self._disconnect()
        if exceeded is not None:
            return stopped(exceeded, limits, started)
        if error is not None:
            return _classify(error, sql, limits, started)
        elapsed_s = time.perf_counter() - started
        return QueryResult(QueryStatus.OK, columns, tuple(rows), None, elapsed_s, None)


_INTERRUPTER: Final = Interrupter()


def _ask(
    session: PostgresSession, command: bytes, *, in_query: bool = True, one_statement: bool = False
) -> Any:
    """Run a command; the result that says what is wrong with it, or `None`.

    Raises:
        _LostError: the session has ended.
    """
    pgconn = session.pgconn
    try:
        result = pgconn.exec_params(command, []) if one_statement else pgconn.exec_(command)
    except psycopg.Error as error:
        raise _LostError(None, " ".join(str(error).split()), in_query=in_query) from None
    if pgconn.status != pq.ConnStatus.OK:
        raise _LostError(_state_of(result), _message_of(result), in_query=in_query)
    if result.status in (pq.ExecStatus.COMMAND_OK, pq.ExecStatus.TUPLES_OK):
        return None
    if not one_statement:
        raise _LostError(_state_of(result), _message_of(result), in_query=in_query)
    return result


def _fetch(
    session: PostgresSession, limits: ExecutionLimits
) -> tuple[tuple[str, ...], list[tuple[object, ...]], Any, LimitKind | None]:
    """Columns, rows, the result that says what went wrong, and the limit that was reached."""
    pgconn = session.pgconn
    columns: tuple[str, ...] = ()
    read = ResultRows(limits)
    transformer = Transformer(session.connection)
    is_first = True
    try:
        pgconn.send_query(b"FETCH FORWARD %d FROM c" % (limits.max_rows + 1))
        if pq.version() >= 170000:
            pgconn.set_chunked_rows_mode(_CHUNK_ROWS)
        else:
            pgconn.set_single_row_mode()
        while (result := _wait_for_result(pgconn)) is not None:
            if result.status in (pq.ExecStatus.FATAL_ERROR, pq.ExecStatus.BAD_RESPONSE):
                if pgconn.status == pq.ConnStatus.OK:
                    return (), [], result, None
                state, said = _state_of(result), _message_of(result)
                if "memory" in said.lower() and state is None:
                    return (), [], None, LimitKind.MEMORY
                raise _LostError(state, said, in_query=True)
            if is_first:
                names = (result.fname(number) or b"" for number in range(result.nfields))
                columns = tuple(name.decode(errors="surrogateescape") for name in names)
            if is_first or result.ntuples:
                transformer.set_pgresult(result, set_loaders=is_first, format=pq.Format.TEXT)
                is_first = False
                chunk = transformer.load_rows(0, result.ntuples, tuple)
                if exceeded := read.add(chunk):
                    return (), [], None, exceeded
    except MemoryError:
        return (), [], None, LimitKind.MEMORY
    except psycopg.Error as error:
        raise _LostError(None, " ".join(str(error).split()), in_query=True) from None
    return columns, read.rows, None, None


def _wait_for_result(pgconn: Any) -> Any:
    # `get_result` waits with Python's lock held, so that nothing could end a server that hangs.
    while pgconn.is_busy():
        with selectors.DefaultSelector() as selector:
            selector.register(pgconn.socket, selectors.EVENT_READ)
            selector.select()
        try:
            pgconn.consume_input()
        except psycopg.Error:
            # The last words of the server may have come before.
            break
    return pgconn.get_result()


def _state_of(result: Any) -> str | None:
    field = result.error_field(pq.DiagnosticField.SQLSTATE)
    return None if field is None else field.decode()


def _message_of(result: Any) -> str:
    parts = [
        field.decode(errors="replace")
        for name in (pq.DiagnosticField.MESSAGE_PRIMARY, pq.DiagnosticField.MESSAGE_HINT)
        if (field := result.error_field(name))
    ]
    return ". ".join(parts) or " ".join(result.error_message.decode(errors="replace").split())


def _classify(result: Any, sql: str, limits: ExecutionLimits, started: float) -> QueryResult:
    """The outcome of a query that the server did not run, or not to its end."""
    state, message = _state_of(result) or "", _message_of(result)
    if state == _QUERY_CANCELED:
        return stopped(LimitKind.WALL_CLOCK, limits, started)
    if state in _OUT_OF_MEMORY:
        return stopped(LimitKind.MEMORY, limits, started)
    if state in _CONFLICTS:
        raise _LostError(state, message, in_query=True)
    if _TOO_LONG.search(message):
        return stopped(LimitKind.CELL_BYTES, limits, started)
    status = QueryStatus.EXECUTION_ERROR
    if state in _DENIED:
        status = QueryStatus.DENIED
    elif state == "42601":
        has_position = result.error_field(pq.DiagnosticField.STATEMENT_POSITION) is not None
        first = _FIRST_WORD.match(sql)
        is_statement = first is not None and first[1].lower() in _STATEMENTS
        # Without a position: more than one statement.
        is_denied = not has_position or is_statement or "INTO" in message
        status = QueryStatus.DENIED if is_denied else QueryStatus.SYNTAX_ERROR
    elif state == "0A000" and "DECLARE" in message:
        status, message = QueryStatus.DENIED, "only queries are allowed, nothing that writes"
    return failed(status, message, started)
