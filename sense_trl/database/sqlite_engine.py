"""`SQLiteEngine`: one SQLite file, read-only, sandboxed and limited, in the calling process."""

from __future__ import annotations

import contextlib
import os
import re
import sqlite3
import time
from pathlib import Path
from typing import Final

from sense_trl.database.digest import DigestBuilder, ResultDigest
from sense_trl.database.engine import (
    MAX_SQL_CHARS,
    ColumnInfo,
    ExecutionLimits,
    ForeignKeyInfo,
    LimitKind,
    QueryResult,
    QueryStatus,
    TableInfo,
    describe_exceeded,
)
from sense_trl.database.file_engine import FileEngine, read_header
from sense_trl.database.text import decode_text, has_bad_bytes, quote_name, show_text
from sense_trl.errors import DatabaseError, InputError

# The wall clock and the step budget are looked at once per so many instructions of the virtual
# machine. 1,000 instructions are some 20 µs; the call back into Python is 0.2 µs of it.
_POLL_STEPS: Final = 1_000

_HEADER: Final = b"SQLite format 3\x00"

# Caps of the parser and the planner, whose work cannot be interrupted. Real queries stay far below
# (the longest of Spider's gold joins 9 tables); what they stop is an EXECUTION_ERROR.
_PARSER_CAPS: Final = {
    sqlite3.SQLITE_LIMIT_SQL_LENGTH: 4 * MAX_SQL_CHARS,
    sqlite3.SQLITE_LIMIT_EXPR_DEPTH: 200,
    sqlite3.SQLITE_LIMIT_COMPOUND_SELECT: 50,
    sqlite3.SQLITE_LIMIT_VDBE_OP: 100_000,
    sqlite3.SQLITE_LIMIT_ATTACHED: 0,
    sqlite3.SQLITE_LIMIT_LIKE_PATTERN_LENGTH: 200,
    # Not 0: full-text tables bind parameters in statements of their own.
    sqlite3.SQLITE_LIMIT_VARIABLE_NUMBER: 100,
    sqlite3.SQLITE_LIMIT_TRIGGER_DEPTH: 0,
    sqlite3.SQLITE_LIMIT_WORKER_THREADS: 0,
}
_MAX_COLUMNS: Final = 500

# Functions a query may call. An allow-list, so that a function that a later SQLite or an automatic
# extension brings is refused until someone has looked at it. Left out on purpose: load_extension,
# fts3_tokenizer and fts5 (run code), readfile, writefile, edit, fsdir (files), sqlite_log (writes
# a log), optimize (rewrites an index), rtreecheck (reads every page).
_FUNCTIONS: Final = frozenset(
    """
    -> ->> abs acos acosh asin asinh atan atan2 atanh avg bm25 ceil ceiling changes char coalesce
    concat concat_ws cos cosh count cume_dist current_date current_time current_timestamp date
    datetime degrees dense_rank exp first_value floor format glob group_concat hex highlight if
    ifnull iif instr json json_array json_array_insert json_array_length json_error_position
    json_extract json_group_array json_group_object json_insert json_object json_patch json_pretty
    json_quote json_remove json_replace json_set json_type json_valid jsonb jsonb_array
    jsonb_extract jsonb_group_array jsonb_group_object jsonb_insert jsonb_object jsonb_patch
    jsonb_remove jsonb_replace jsonb_set julianday lag last_insert_rowid last_value lead length
    like likelihood likely ln log log10 log2 lower ltrim match matchinfo max median min mod
    nth_value ntile nullif octet_length offsets percent_rank percentile percentile_cont
    percentile_disc pi pow power printf quote radians random randomblob rank regexp replace round
    row_number rtrim sign sin sinh snippet soundex sqlite_version sqrt strftime string_agg substr
    substring subtype sum tan tanh time timediff total total_changes trim trunc typeof unhex
    unicode unistr unistr_quote unixepoch unlikely upper zeroblob
    """.split()  # noqa: SIM905
)

_READING_HEADS: Final = frozenset({"select", "with", "values"})
_OTHER_HEADS: Final = frozenset(
    """
    alter analyze attach begin commit create delete detach drop end explain insert pragma reindex
    release replace rollback savepoint update vacuum
    """.split()  # noqa: SIM905
)
_HEAD: Final = re.compile(
    r"(?:[\s;\ufeff]|--[^\n]*(?:\n|\Z)|/\*.*?(?:\*/|\Z))*(?P<head>[A-Za-z_]+|.)?", re.DOTALL
)
# One statement, and what may stand behind the `;` that ends it. Possessive: nothing is read twice.
_STATEMENT: Final = re.compile(
    r"[\s;]*+(?:[^;'\"`\[/-]++|'[^']*+'|\"[^\"]*+\"|`[^`]*+`|\[[^\]]*+\]|--[^\n]*+"
    r"|/\*(?:[^*]++|\*(?!/))*+(?:\*/)?|[/-])*+(?=;)"
)
_EMPTY_STATEMENTS: Final = re.compile(
    r";(?:\s++|--[^\n]*+|/\*(?:[^*]++|\*(?!/))*+(?:\*/)?)*+"
    r";(?:[\s;]++|--[^\n]*+|/\*(?:[^*]++|\*(?!/))*+(?:\*/)?)*+\Z"
)

_OK: Final = sqlite3.SQLITE_OK
_DENY: Final = sqlite3.SQLITE_DENY
# Result codes that speak of the file and not of the query (primary codes: the low byte).
_FILE_ERRORS: Final = frozenset(
    {
        sqlite3.SQLITE_CORRUPT,
        sqlite3.SQLITE_NOTADB,
        sqlite3.SQLITE_IOERR,
        sqlite3.SQLITE_CANTOPEN,
        sqlite3.SQLITE_PROTOCOL,
        # Another program holds it, or has left a journal that has to be played back first.
        sqlite3.SQLITE_BUSY,
        sqlite3.SQLITE_LOCKED,
        sqlite3.SQLITE_READONLY,
    }
)
_SYNTAX_MESSAGE: Final = re.compile(
    r'near ".*": syntax error|incomplete input|unrecognized token: ', re.DOTALL
)


def set_process_heap_limit(limit_bytes: int) -> None:
    """Limit the memory of SQLite in this whole process, for good.

    SQLite knows one heap limit per process and Python can only lower it: neither an engine nor its
    caller could take it back, and it would hold for every other use of `sqlite3` in the process.
    `SQLiteEngine` therefore never sets it; a process that does nothing but run queries should.

    Args:
        limit_bytes: bytes, > 0. A query that needs more ends as `TOO_LARGE` (`MEMORY`).

    Raises:
        InputError: `limit_bytes` is not positive.
    """
    if limit_bytes <= 0:
        raise InputError(f"`limit_bytes` is {limit_bytes!r}; expected bytes above 0.")
    connection = sqlite3.connect(":memory:")
    try:
        connection.execute(f"PRAGMA hard_heap_limit={int(limit_bytes)}").fetchall()
    finally:
        connection.close()


class SQLiteEngine(FileEngine):
    """A read-only SQLite database that runs untrusted queries inside the calling process.

    How a query is held:

    * the file is opened with `mode=ro` and, where that is safe (below), `immutable=1`;
    * one statement, and one that begins with SELECT, WITH or VALUES after comments; nothing else
      is prepared at all;
    * an authorizer that allows reading `main`, an allow-list of functions and recursion, and so
      refuses temporary objects, ATTACH, PRAGMA (also as table-valued functions), virtual tables
      of the library except `json_each` and `json_tree`, and functions that reach files or code;
    * a progress handler that stops it at `timeout_s` and, exactly and on every machine alike, at
      `max_steps` (both looked at every 1,000 instructions);
    * caps of the library on value length, SQL length, depth, columns, compound terms, program
      size and LIKE patterns; caps on rows and bytes while rows are read, in chunks so small that
      no more than `max_result_bytes` can arrive between two looks at the sum;
    * temporary b-trees in memory, no statement cache (a cached statement keeps counting where it
      stopped), no state that one query could leave to the next.

    Immutable: `immutable=1` takes no locks and saves system calls, but SQLite then ignores a
    write-ahead log and does not notice that the file changes. So it is used only if no non-empty
    `-wal` or `-journal` file lies beside the database, and the file's identity, size and time of
    modification are compared after every query, or after several that took less than 1 ms in all:
    after a change the connection is opened anew and the query repeated, so what is read of an old
    state is never older than 1 ms. With such a file beside it the database is opened with
    `mode=ro` alone.

    Text that is not UTF-8 keeps its bad bytes as lone surrogates (`sense_trl.database.text`), in
    values as in names. A query that reads a column whose *name* is not UTF-8, which only `SELECT *`
    can, is an EXECUTION_ERROR: Python cannot pass such a name on.

    Not protected, because SQLite offers no way inside a process (`IsolatedEngine` and
    `SQLVerifier` with workers cover the first two):

    * Single long operations cannot be interrupted: planning a join of dozens of tables, and one
      call of `instr`, `replace`, `like` or `glob` on values near `max_cell_bytes`. They can
      outlive `timeout_s`, by seconds and in bad cases by minutes.
    * `memory_limit_bytes` is not enforced (see `set_process_heap_limit`): sorting, grouping or
      DISTINCT over a large cross join grows until the time or step limit ends it.
    * A double-quoted word that names no column is a string, not an error: `WHERE "nme" = 'x'`
      runs. Gold SQL of Spider depends on it, and Python 3.11 has no switch for it.
    * A bug of SQLite itself that corrupts memory.

    Args:
        path: the database file.
        limits: the limits that hold where `execute` is given none.

    Raises:
        DatabaseError: `path` is missing, a directory, empty or not an SQLite database.

    Example:
        >>> import sqlite3, tempfile, pathlib
        >>> file = pathlib.Path(tempfile.mkdtemp()) / "pets.sqlite"
        >>> connection = sqlite3.connect(file)
        >>> _ = connection.execute("CREATE TABLE pet AS SELECT 'Rex' AS name")
        >>> connection.close()
        >>> with SQLiteEngine(file) as engine:
        ...     engine.execute("SELECT name FROM pet").rows
        ...     engine.execute("DROP TABLE pet").status
        (('Rex',),)
        <QueryStatus.DENIED: 'denied'>
    """

    dialect: Final = "sqlite"

    def __init__(
        self, path: str | os.PathLike[str], *, limits: ExecutionLimits | None = None
    ) -> None:
        super().__init__(path, limits)
        self._connection: sqlite3.Connection | None = None
        self._reversed: sqlite3.Connection | None = None
        self._length_limits: dict[bool, int] = {}
        self._has_bad_text = False
        self._digesting = False
        self._digest: ResultDigest | None = None
        # State of the query that runs, read by the callbacks.
        self._deadline = 0.0
        self._polls = 0
        self._max_polls: float = 0.0
        self._exceeded: LimitKind | None = None
        self._refusal: str | None = None
        self._connection = self._connect(reverse=False)

    @property
    def version(self) -> str:
        """The version of SQLite."""
        return f"sqlite {sqlite3.sqlite_version}"

    def execute(self, sql: str, *, limits: ExecutionLimits | None = None) -> QueryResult:
        """Run one reading statement.

        Args:
            sql: the text as the model wrote it; one trailing semicolon is allowed.
            limits: limits of this query instead of the engine's.

        Returns:
            The result; see `QueryStatus` for what each ending means.

        Raises:
            DatabaseError: the file is damaged, unreadable, gone, or changes faster than the query
                can be repeated.
            InputError: the engine is closed or belongs to another thread or process.
        """
        return self._execute(sql, self._limits if limits is None else limits, reverse=False)

    def execute_reordered(self, sql: str, *, limits: ExecutionLimits | None = None) -> QueryResult:
        """Run `sql` with `PRAGMA reverse_unordered_selects`, on a connection of its own.

        Scans without an ORDER BY run backwards, so a query whose answer hangs on the order of
        storage (LIMIT without ORDER BY, `group_concat`) shows another answer. What SQLite sorts
        itself is *not* reversed: neither ties of an ORDER BY nor the rows of a group, so a bare
        column beside a GROUP BY looks well defined. Arguments, result and errors as in `execute`.
        """
        return self._execute(sql, self._limits if limits is None else limits, reverse=True)

    def execute_digest(
        self, sql: str, *, limits: ExecutionLimits | None = None, reverse: bool = False
    ) -> tuple[QueryResult, ResultDigest | None]:
        """Run `sql` and keep only fingerprints of its rows; see `DigestingEngine`."""
        self._digesting = True
        try:
            result = self._execute(sql, self._limits if limits is None else limits, reverse=reverse)
        finally:
            self._digesting = False
        digest, self._digest = self._digest, None
        return result, digest if result.ok else None

    def get_tables(self) -> tuple[TableInfo, ...]:
        """Read the tables and views of `main` in the order of their creation.

        SQLite's internal tables are left out, and so are views that SQLite itself cannot resolve
        (they refer to a table that is gone): no query could use them.

        Raises:
            DatabaseError: the schema cannot be read.
            InputError: the engine is closed or belongs to another thread or process.
        """
        self._check_usable()
        connection = self._open_file()
        try:
            return _read_tables(connection)
        except sqlite3.Error as error:
            raise _as_database_error(self._path, error) from error
        finally:
            connection.close()

    # ------------------------------------------------------------------ connections

    def _open_file(self) -> sqlite3.Connection:
        immutable = _find_log(self._path) is None
        uri = self._path.as_uri() + ("?mode=ro&immutable=1" if immutable else "?mode=ro")
        try:
            # `_check_usable` watches over threads, with a better message; SQLite's own check
            # would forbid another thread even to close.
            connection = sqlite3.connect(
                uri, uri=True, isolation_level=None, cached_statements=0, check_same_thread=False
            )
        except sqlite3.Error as error:
            raise DatabaseError(f"cannot open {self._path}: {error}") from error
        connection.text_factory = decode_text
        return connection

    def _connect(self, *, reverse: bool) -> sqlite3.Connection:
        _check_file(self._path)
        connection = self._open_file()
        try:
            connection.execute("PRAGMA temp_store=MEMORY")
            connection.execute("PRAGMA trusted_schema=OFF")
            connection.execute("PRAGMA query_only=ON")
            connection.execute("PRAGMA mmap_size=0").fetchall()
            if reverse:
                connection.execute("PRAGMA reverse_unordered_selects=ON")
            _connect_virtual_tables(connection)
            # Tables wider than the cap stay readable: the cap also bounds `SELECT *`.
            widest = connection.execute(
                "SELECT coalesce(max(n), 0) FROM (SELECT count(*) n FROM sqlite_master m,"
                " pragma_table_xinfo(m.name) WHERE m.type = 'table' GROUP BY m.rowid)"
            ).fetchone()[0]
        except sqlite3.Error as error:
            connection.close()
            raise _as_database_error(self._path, error) from error
        connection.text_factory = decode_text if self._has_bad_text else str
        connection.setlimit(sqlite3.SQLITE_LIMIT_COLUMN, max(_MAX_COLUMNS, widest))
        for category, cap in _PARSER_CAPS.items():
            connection.setlimit(category, cap)
        connection.set_authorizer(self._authorize)
        connection.set_progress_handler(self._poll, _POLL_STEPS)
        return connection

    def _disconnect(self) -> None:
        for connection in (self._connection, self._reversed):
            if connection is not None:
                connection.close()
        self._connection = None
        self._reversed = None
        self._length_limits.clear()

    # ------------------------------------------------------------------ callbacks of SQLite

    def _authorize(
        self, action: int, arg1: str | None, arg2: str | None, db: str | None, source: str | None
    ) -> int:
        if action == sqlite3.SQLITE_READ:
            # `db` is None where only rows and no column are read.
            if db == "main" or (db is None and not (arg1 or "").startswith("sqlite_temp_")):
                return _OK
            self._refusal = f"reading {db}.{arg1} is not allowed"
        elif action == sqlite3.SQLITE_SELECT or action == sqlite3.SQLITE_RECURSIVE:
            return _OK
        elif action == sqlite3.SQLITE_FUNCTION:
            if arg2 is not None and arg2.lower() in _FUNCTIONS:
                return _OK
            self._refusal = f"function {arg2} is not allowed"
        elif action == sqlite3.SQLITE_PRAGMA and arg1 == "data_version" and arg2 is None:
            # Full-text tables ask for it themselves; a query cannot (see _refuse_statement).
            return _OK
        elif self._refusal is None:
            self._refusal = "only reading from the tables of the database is allowed"
        return _DENY

    def _poll(self) -> int:
        self._polls += 1
        if self._polls >= self._max_polls:
            self._exceeded = LimitKind.STEPS
            return 1
        if time.perf_counter() > self._deadline:
            self._exceeded = LimitKind.WALL_CLOCK
            return 1
        return 0

    # ------------------------------------------------------------------ one query

    def _execute(self, sql: str, limits: ExecutionLimits, *, reverse: bool) -> QueryResult:
        self._check_usable()
        started = time.perf_counter()
        refused = _refuse_statement(sql)
        if refused is not None:
            status, message = refused
            return QueryResult(status, (), (), message, time.perf_counter() - started, 0)
        self._deadline = started + limits.timeout_s
        return self._run_on_unchanged_file(
            started, lambda: self._run(sql, limits, started, reverse=reverse)
        )

    def _run(
        self, sql: str, limits: ExecutionLimits, started: float, *, reverse: bool
    ) -> QueryResult:
        if reverse:
            connection = self._reversed = self._reversed or self._connect(reverse=True)
        else:
            connection = self._connection = self._connection or self._connect(reverse=False)
        if self._length_limits.get(reverse) != limits.max_cell_bytes:
            connection.setlimit(sqlite3.SQLITE_LIMIT_LENGTH, limits.max_cell_bytes)
            self._length_limits[reverse] = limits.max_cell_bytes
        self._polls = 0
        # The handler runs each time another _POLL_STEPS instructions are done.
        self._max_polls = (
            float("inf") if limits.max_steps is None else -(-limits.max_steps // _POLL_STEPS)
        )
        self._exceeded = None
        self._refusal = None
        columns: tuple[str, ...] = ()
        rows: tuple[tuple[object, ...], ...] = ()
        status, message = QueryStatus.OK, None
        cursor: sqlite3.Cursor | None = None
        try:
            cursor = connection.execute(sql)
            if cursor.description is None:
                status, message = QueryStatus.SYNTAX_ERROR, "the text holds no statement"
            else:
                columns = tuple([column[0] for column in cursor.description])
                read = self._fetch_digest if self._digesting else self._fetch
                fetched = read(cursor, len(columns), limits)
                if fetched is None:
                    status, message = self._stopped(limits)
                else:
                    rows = fetched
        except (sqlite3.Error, sqlite3.Warning, ValueError, OverflowError, MemoryError) as error:
            if not self._has_bad_text and str(error).startswith("Could not decode to UTF-8"):
                # `str` decodes twice as fast as a callback and gives the same where it gives
                # anything; from here on this file gets the callback.
                self._has_bad_text = True
                for each in (self._connection, self._reversed):
                    if each is not None:
                        each.text_factory = decode_text
                return self._run(sql, limits, started, reverse=reverse)
            if "one statement at a time" in str(error):
                first = without_empty_statements(sql)
                if first != sql:
                    return self._run(first, limits, started, reverse=reverse)
            status, message = self._classify(error, limits)
        finally:
            # Ends the statement; an open one would hold its temporary b-trees.
            if cursor is not None:
                cursor.close()
        if status is not QueryStatus.OK:
            columns = rows = ()
        return QueryResult(
            status,
            columns,
            rows,
            message,
            time.perf_counter() - started,
            self._polls * _POLL_STEPS,
            self._exceeded if status in (QueryStatus.TIMEOUT, QueryStatus.TOO_LARGE) else None,
        )

    def _fetch(
        self, cursor: sqlite3.Cursor, width: int, limits: ExecutionLimits
    ) -> tuple[tuple[object, ...], ...] | None:
        """Read all rows; `None` with `_exceeded` set where a cap or the clock ended it."""
        # No value is longer than max_cell_bytes, so a chunk of this many rows cannot hold more
        # than max_result_bytes: counting begins with the second chunk.
        worst_row = width * max(limits.max_cell_bytes, 8)
        chunk_rows = min(max(limits.max_result_bytes // worst_row, 1), 1_000)
        chunk = cursor.fetchmany(min(chunk_rows, limits.max_rows + 1))
        rows = chunk
        counted = 0
        total_bytes = 0
        while True:
            if len(rows) > limits.max_rows:
                self._exceeded = LimitKind.ROWS
                return None
            complete = len(chunk) < chunk_rows
            if not complete or len(rows) > chunk_rows:
                for row in rows[counted:]:
                    for value in row:
                        total_bytes += len(value) if isinstance(value, (str, bytes)) else 8
                counted = len(rows)
                if total_bytes > limits.max_result_bytes:
                    self._exceeded = LimitKind.RESULT_BYTES
                    return None
            if complete:
                return tuple(rows)
            if time.perf_counter() > self._deadline:
                self._exceeded = LimitKind.WALL_CLOCK
                return None
            chunk = cursor.fetchmany(chunk_rows)
            rows += chunk

    def _fetch_digest(
        self, cursor: sqlite3.Cursor, width: int, limits: ExecutionLimits
    ) -> tuple[tuple[object, ...], ...] | None:
        """Read all rows into `_digest`; `None` with `_exceeded` set where something ended it."""
        worst_row = width * max(limits.max_cell_bytes, 8)
        chunk_rows = min(max(limits.max_result_bytes // worst_row, 1), 1_000)
        builder = DigestBuilder(width)
        num_rows = 0
        while chunk := cursor.fetchmany(chunk_rows):
            num_rows += len(chunk)
            if num_rows > limits.max_rows:
                self._exceeded = LimitKind.ROWS
                return None
            builder.add(chunk)
            if time.perf_counter() > self._deadline:
                self._exceeded = LimitKind.WALL_CLOCK
                return None
        self._digest = builder.finish()
        return ()

    def _stopped(self, limits: ExecutionLimits) -> tuple[QueryStatus, str]:
        assert self._exceeded is not None, "no limit was exceeded"
        return describe_exceeded(self._exceeded, limits)

    def _classify(
        self, error: Exception | MemoryError, limits: ExecutionLimits
    ) -> tuple[QueryStatus, str]:
        message = str(error)
        if self._exceeded is not None:
            return self._stopped(limits)
        if self._refusal is not None:
            return QueryStatus.DENIED, self._refusal
        code = getattr(error, "sqlite_errorcode", None)
        primary = None if code is None else code & 0xFF
        if isinstance(error, MemoryError):
            self._exceeded = LimitKind.MEMORY
            return self._stopped(limits)
        if primary == sqlite3.SQLITE_TOOBIG:
            self._exceeded = LimitKind.CELL_BYTES
            return self._stopped(limits)
        if primary in _FILE_ERRORS:
            raise _as_database_error(self._path, error) from error
        if "one statement at a time" in message:
            return QueryStatus.DENIED, "more than one statement"
        if isinstance(error, UnicodeEncodeError) or "null character" in message:
            return QueryStatus.SYNTAX_ERROR, message
        if isinstance(error, UnicodeDecodeError):
            shown = show_text(decode_text(error.object))
            return QueryStatus.EXECUTION_ERROR, f"a name that is read is not UTF-8 text: {shown}"
        if _SYNTAX_MESSAGE.match(message):
            return QueryStatus.SYNTAX_ERROR, message
        return QueryStatus.EXECUTION_ERROR, message


def without_empty_statements(sql: str) -> str:
    """`sql` up to its `;`, where a second one and nothing else but comments stands behind.

    SQLite's shell takes `SELECT 1;;`; Python's module calls it two statements.

    Example:
        >>> without_empty_statements("SELECT ';;' AS a; -- once; more\\n;")
        "SELECT ';;' AS a"
        >>> without_empty_statements("SELECT 1; SELECT 2;;")
        'SELECT 1; SELECT 2;;'
    """
    statement = _STATEMENT.match(sql)
    if statement is None or not _EMPTY_STATEMENTS.match(sql, statement.end()):
        return sql
    return statement.group()


def _refuse_statement(sql: str) -> tuple[QueryStatus, str] | None:
    """Refuse what is not one SELECT, WITH or VALUES statement before SQLite sees it."""
    if len(sql) > MAX_SQL_CHARS:
        return QueryStatus.DENIED, f"longer than {MAX_SQL_CHARS} characters"
    match = _HEAD.match(sql)
    head = (match["head"] or "").lower() if match else ""
    if head in _READING_HEADS:
        return None
    if head in _OTHER_HEADS:
        return QueryStatus.DENIED, f"{head.upper()} is not allowed, only SELECT, WITH, VALUES"
    if not head:
        return QueryStatus.SYNTAX_ERROR, "the text holds no statement"
    return QueryStatus.SYNTAX_ERROR, f'near "{head}": expected SELECT, WITH or VALUES'


def _find_log(path: Path) -> Path | None:
    """The file beside a database with changes that are not in it, or to be taken back, if any."""
    for file in (Path(f"{path}-wal"), Path(f"{path}-journal")):
        with contextlib.suppress(OSError):
            if file.stat().st_size:
                return file
    return None


def _as_database_error(path: Path, error: Exception) -> DatabaseError:
    log = _find_log(path)
    advice = (
        ""
        if log is None
        else f". {log.name} beside it is of a program that writes to it or was stopped while it "
        "did: let it end; or copy both to a folder that you may write to, open the copy once with "
        "the sqlite3 shell, run `SELECT count(*) FROM sqlite_master;`, and give the copy"
    )
    return DatabaseError(f"{path} cannot be read: {error}{advice}")


def _check_file(path: Path) -> None:
    header = read_header(path, len(_HEADER), "an SQLite database")
    if header != _HEADER:
        raise DatabaseError(
            f"{path} is not an SQLite database: it begins with {header!r}, not {_HEADER!r}"
        )


def _connect_virtual_tables(connection: sqlite3.Connection) -> None:
    """Let SQLite set up the virtual tables that queries may use.

    Setting one up asks the authorizer for a write to the schema, which it refuses; done once
    before the authorizer is installed it is never asked again, and every other virtual table of
    the library stays out of reach.
    """
    virtual = connection.execute(
        "SELECT name FROM sqlite_master WHERE type = 'table' AND sql LIKE 'create virtual table%'"
    ).fetchall()
    quoted = [quote_name(name) for (name,) in virtual if not has_bad_bytes(name)]
    for table in ("json_each('[]')", "json_tree('[]')", *quoted):
        try:
            connection.execute(f"SELECT * FROM {table} LIMIT 0").fetchall()
        except sqlite3.OperationalError:
            # The module is not in this build of SQLite; a query that uses it is refused later.
            continue


def _read_tables(connection: sqlite3.Connection) -> tuple[TableInfo, ...]:
    entries = connection.execute(
        "SELECT name, type, rowid FROM sqlite_master WHERE type IN ('table', 'view')"
        " AND name NOT LIKE 'sqlite\\_%' ESCAPE '\\' ORDER BY rowid"
    ).fetchall()
    columns: dict[str, tuple[ColumnInfo, ...]] = {}
    # Tables go by their number: a name that is not UTF-8 cannot be handed to SQLite.
    of_table = "FROM sqlite_master m, {} p WHERE m.rowid = ?"
    for name, kind, number in entries:
        try:
            described = connection.execute(
                'SELECT p.name, p.type, p."notnull", p.pk '
                # Generated columns are read like others; those that virtual tables hide are not.
                + of_table.format("pragma_table_xinfo(m.name)")
                + " AND p.hidden <> 1",
                (number,),
            ).fetchall()
        except sqlite3.OperationalError:
            if kind == "view":
                continue
            raise
        columns[name] = tuple(
            ColumnInfo(column, type_ or "", bool(not_null), key)
            for column, type_, not_null, key in described
        )
    by_lower_name = {name.lower(): name for name in columns}

    def primary_key(table: str) -> tuple[str, ...]:
        known = columns.get(by_lower_name.get(table.lower(), ""), ())
        keys = sorted((column.primary_key, column.name) for column in known if column.primary_key)
        return tuple(name for _, name in keys)

    tables = []
    for name, kind, number in entries:
        if name not in columns:
            continue
        grouped: dict[int, list[tuple[str, str, str | None]]] = {}
        for key_id, table, column, referenced in connection.execute(
            'SELECT p.id, p."table", p."from", p."to" '
            + of_table.format("pragma_foreign_key_list(m.name)")
            + " ORDER BY p.id DESC, p.seq",
            (number,),
        ):
            # SQLite numbers foreign keys from the last declared to the first.
            grouped.setdefault(key_id, []).append((table, column, referenced))
        foreign_keys = []
        for parts in grouped.values():
            referenced_table = by_lower_name.get(parts[0][0].lower(), parts[0][0])
            named = tuple(to for _, _, to in parts if to is not None)
            foreign_keys.append(
                ForeignKeyInfo(
                    columns=tuple(column for _, column, _ in parts),
                    referenced_table=referenced_table,
                    referenced_columns=named or primary_key(referenced_table),
                )
            )
        tables.append(TableInfo(name, columns[name], tuple(foreign_keys), kind == "view"))
    return tuple(tables)
