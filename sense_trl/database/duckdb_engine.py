"""`DuckDBEngine`: one DuckDB file, read-only, sandboxed and limited, in the calling process."""

from __future__ import annotations

import os
import re
import time
from pathlib import Path
from typing import Any, Final

import duckdb

from sense_trl.database.duckdb_check import StatementCheck
from sense_trl.database.duckdb_values import (
    ValueReader,
    get_reader,
    is_infinite_day,
    select_with,
)
from sense_trl.database.engine import (
    ColumnInfo,
    ExecutionLimits,
    ForeignKeyInfo,
    LimitKind,
    QueryResult,
    QueryStatus,
    ResultRows,
    TableInfo,
    failed,
    get_key_position,
    refuse_text,
    stopped,
)
from sense_trl.database.file_engine import FileEngine, read_header
from sense_trl.database.watch import Interrupter
from sense_trl.errors import DatabaseError

_CHUNK_ROWS: Final = 1_000

# Set before the database is attached; `_SETTINGS` only afterwards, because attaching is access to
# a file and would be refused.
_CONFIG: Final = {
    "autoinstall_known_extensions": "false",
    "autoload_known_extensions": "false",
    "allow_community_extensions": "false",
    "allow_persistent_secrets": "false",
    # Otherwise a table name may be a variable of the Python program.
    "python_enable_replacements": "false",
    "temp_directory": "",
    "max_expression_depth": "250",
    "threads": "1",
}
_SETTINGS: Final = (
    # Both follow the environment of the process otherwise, and answers follow them.
    "SET TimeZone = 'UTC'",
    "SET Calendar = 'gregorian'",
    "SET enable_progress_bar = false",
    "SET enable_external_access = false",
    "SET lock_configuration = true",
)

_LOCKED: Final = re.compile(
    r"configuration has been locked|read-only mode|disabled by configuration|"
    r"file system operations are disabled",
    re.IGNORECASE,
)


class DuckDBEngine(FileEngine):
    """A read-only DuckDB database that runs untrusted queries inside the calling process.

    How a query is held:

    * the file is attached read-only to a private instance with one thread, a memory limit, no
      temporary files, no extensions loaded on demand, no access to files or network, no
      replacement scans (a table name is never a Python variable), and locked configuration;
    * DuckDB's own parser splits the text: exactly one statement, of kind SELECT (so WITH, VALUES,
      FROM, TABLE, DESCRIBE and SUMMARIZE too; not EXPLAIN, PRAGMA, CALL, SHOW, nor a PIVOT that
      has to create a type);
    * its parse may contain the tables and views of the database, those of DuckDB that describe
      them, and functions on an allow-list (`StatementCheck`): none that read or change settings,
      files, or the state of the connection;
    * time zone and calendar are fixed (UTC, Gregorian), whatever the environment says;
    * a watching thread interrupts it at `timeout_s`; caps on rows and bytes while rows are read.

    `max_steps` is ignored: DuckDB counts no instructions, so what is too slow is stopped by the
    wall clock only. `max_cell_bytes` holds for values of the result, not for intermediate ones.
    Values are read without loss: what Python has no type for (nanoseconds, infinite and far dates,
    bit strings) is a `TypedText`, a map a `MapValue`, and a timestamp with a time zone a `datetime`
    in UTC. To have them, a query with such columns is run twice.

    Not protected, because DuckDB offers no way inside a process (`IsolatedEngine` and
    `SQLVerifier` with workers cover both): some operations cannot be interrupted and outlive
    `timeout_s` (planning very large queries, one call of a string function on huge values); and
    `memory_limit_bytes` is exceeded by string functions, which allocate outside DuckDB's buffers.

    Args:
        path: the database file.
        limits: the limits that hold where `execute` is given none; `memory_limit_bytes` is fixed
            when the engine opens.

    Raises:
        DatabaseError: `path` is missing, a directory, or not a DuckDB database.

    Example:
        >>> import duckdb, tempfile, pathlib
        >>> file = pathlib.Path(tempfile.mkdtemp()) / "pets.duckdb"
        >>> with duckdb.connect(str(file)) as connection:
        ...     _ = connection.execute("CREATE TABLE pet AS SELECT 'Rex' AS name")
        >>> with DuckDBEngine(file) as engine:
        ...     engine.execute("SELECT name FROM pet").rows
        ...     engine.execute("FROM read_text('/etc/hostname')").status
        (('Rex',),)
        <QueryStatus.DENIED: 'denied'>
    """

    dialect: Final = "duckdb"

    def __init__(
        self, path: str | os.PathLike[str], *, limits: ExecutionLimits | None = None
    ) -> None:
        super().__init__(path, limits)
        self._connection: Any = self._connect()

    @property
    def version(self) -> str:
        """The version of DuckDB."""
        return f"duckdb {duckdb.__version__}"

    def execute(self, sql: str, *, limits: ExecutionLimits | None = None) -> QueryResult:
        """Run one reading statement.

        Args:
            sql: the text as the model wrote it; one trailing semicolon is allowed.
            limits: limits of this query instead of the engine's, except `memory_limit_bytes`.

        Returns:
            The result; see `QueryStatus` for what each ending means. `steps` is `None`.

        Raises:
            DatabaseError: the file is unreadable, gone, or changes faster than the query can be
                repeated.
            InputError: the engine is closed or belongs to another thread or process.
        """
        self._check_usable()
        limits = self._limits if limits is None else limits
        started = time.perf_counter()
        return self._run_on_unchanged_file(started, lambda: self._run(sql, limits, started))

    def get_tables(self) -> tuple[TableInfo, ...]:
        """Read the tables and views of the schema `main` in the order of their creation.

        Raises:
            DatabaseError: the schema cannot be read.
            InputError: the engine is closed or belongs to another thread or process.
        """
        self._check_usable()
        connection = self._get_connection()
        try:
            return _read_tables(connection)
        except duckdb.Error as error:
            raise DatabaseError(f"cannot read the schema of {self._path}: {error}") from error

    # ------------------------------------------------------------------ connections

    def _connect(self) -> Any:
        _check_file(self._path)
        config = {**_CONFIG, "memory_limit": f"{max(self._limits.memory_limit_bytes, 2**20)}B"}
        # A private instance in memory: DuckDB shares one instance between all connections of a
        # process to one file, and with it the configuration.
        connection = duckdb.connect(":memory:", config=config)
        quoted = str(self._path).replace("'", "''")
        try:
            connection.execute(f"ATTACH '{quoted}' AS {_ALIAS} (READ_ONLY, TYPE duckdb)")
            connection.execute(f"USE {_ALIAS}")
            for setting in _SETTINGS:
                connection.execute(setting)
            self._statement_check = StatementCheck(connection, _ALIAS)
        except duckdb.Error as error:
            connection.close()
            raise DatabaseError(f"cannot open {self._path} as DuckDB: {error}") from error
        return connection

    def _get_connection(self) -> Any:
        if self._connection is None:
            self._connection = self._connect()
        return self._connection

    def _disconnect(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.close()

    # ------------------------------------------------------------------ one query

    def _run(self, sql: str, limits: ExecutionLimits, started: float) -> QueryResult:
        if refused := refuse_text(sql):
            return failed(*refused, started)
        connection = self._get_connection()
        deadline = started + limits.timeout_s
        late = _WATCHDOG.watch(connection, deadline)
        try:
            statements = connection.extract_statements(sql)
            refused = _refuse_statements(statements) or self._statement_check.refuse(sql)
            if refused is not None:
                return failed(*refused, started)
            cursor = connection.execute(statements[0])
            description = cursor.description or []
            types = [column[1] for column in description]
            readers = [get_reader(type_) for type_ in types]
            query = statements[0].query
            if any(reader.select for reader in readers):
                cursor = connection.execute(select_with(readers, query))
            rows, exceeded = _fetch(cursor, limits, deadline)
            if exceeded is None and _find_infinities(rows, readers, types):
                cursor = connection.execute(select_with(readers, query))
                rows, exceeded = _fetch(cursor, limits, deadline)
            rows = _convert(rows, readers)
        except (duckdb.Error, MemoryError, ValueError, OverflowError) as error:
            return self._classify(error, limits, late.is_set(), started)
        finally:
            _WATCHDOG.unwatch(connection)
        if exceeded is not None:
            self._abandon(connection)
            return stopped(exceeded, limits, started)
        columns = tuple(column[0] for column in description)
        elapsed_s = time.perf_counter() - started
        return QueryResult(QueryStatus.OK, columns, tuple(rows), None, elapsed_s, None)

    def _abandon(self, connection: Any) -> None:
        """Drop a result that was not read to its end; it would hold its memory."""
        try:
            connection.execute("SELECT 1").fetchall()
        except duckdb.Error:
            self._disconnect()

    def _classify(
        self, error: Exception, limits: ExecutionLimits, was_late: bool, started: float
    ) -> QueryResult:
        message = str(error)
        if isinstance(error, (duckdb.FatalException, duckdb.InternalException)):
            # Either makes the instance unusable.
            self._disconnect()
        if was_late or isinstance(error, duckdb.InterruptException):
            return stopped(LimitKind.WALL_CLOCK, limits, started)
        if isinstance(error, (MemoryError, duckdb.OutOfMemoryException)) or (
            "bad_alloc" in message or "failed to allocate" in message.lower()
        ):
            return stopped(LimitKind.MEMORY, limits, started)
        if isinstance(error, duckdb.PermissionException) or _LOCKED.search(message):
            status = QueryStatus.DENIED
        elif isinstance(error, (duckdb.ParserException, duckdb.SyntaxException)):
            status = QueryStatus.SYNTAX_ERROR
        elif isinstance(error, duckdb.IOException) and str(self._path) in message:
            raise DatabaseError(f"{self._path} cannot be read: {message}") from error
        else:
            status = QueryStatus.EXECUTION_ERROR
        return failed(status, message, started)


_ALIAS: Final = "main_database"


_WATCHDOG: Final = Interrupter()


def _refuse_statements(statements: list[Any]) -> tuple[QueryStatus, str] | None:
    if not statements:
        return QueryStatus.SYNTAX_ERROR, "the text holds no statement"
    if len(statements) > 1:
        return QueryStatus.DENIED, "more than one statement"
    kind = statements[0].type
    if kind != duckdb.StatementType.SELECT:
        return QueryStatus.DENIED, f"{kind.name} is not allowed, only queries"
    if statements[0].named_parameters:
        return QueryStatus.EXECUTION_ERROR, "the query has parameters, and no values are given"
    return None


def _find_infinities(
    rows: list[tuple[object, ...]], readers: list[ValueReader], types: list[Any]
) -> bool:
    """Give columns of which a date may be infinite another reader; whether there are any."""
    found = False
    for number, reader in enumerate(readers):
        if reader.may_be_infinite and any(is_infinite_day(row[number]) for row in rows):
            readers[number] = get_reader(types[number], exactly=True)
            found = True
    return found


def _convert(
    rows: list[tuple[object, ...]], readers: list[ValueReader]
) -> list[tuple[object, ...]]:
    converters = [(number, r.convert) for number, r in enumerate(readers) if r.convert is not None]
    if not converters or not rows:
        return rows
    columns = list(zip(*rows, strict=True))
    for number, convert in converters:
        columns[number] = tuple(
            None if value is None else convert(value) for value in columns[number]
        )
    return list(zip(*columns, strict=True))


def _fetch(
    cursor: Any, limits: ExecutionLimits, deadline: float
) -> tuple[list[tuple[object, ...]], LimitKind | None]:
    read = ResultRows(limits)
    while True:
        chunk = cursor.fetchmany(min(_CHUNK_ROWS, limits.max_rows + 1 - len(read.rows)))
        if exceeded := read.add(chunk):
            return [], exceeded
        if not chunk:
            return read.rows, None
        if time.perf_counter() > deadline:
            return [], LimitKind.WALL_CLOCK


def _check_file(path: Path) -> None:
    header = read_header(path, 12, "a DuckDB database")
    if header[8:12] != b"DUCK":
        raise DatabaseError(f"{path} is not a DuckDB database: it begins with {header!r}")


def _read_tables(connection: Any) -> tuple[TableInfo, ...]:
    where = f"WHERE database_name = '{_ALIAS}' AND schema_name = 'main'"
    entries = connection.execute(
        "SELECT table_name, table_oid, false, coalesce(comment, '') FROM duckdb_tables() "
        f"{where} AND NOT internal UNION ALL SELECT view_name, view_oid, true, "
        f"coalesce(comment, '') FROM duckdb_views() {where} AND NOT internal ORDER BY 2"
    ).fetchall()
    described: dict[str, list[tuple[str, str, bool, str]]] = {}
    for table, column, type_, nullable, comment in connection.execute(
        "SELECT table_name, column_name, data_type, is_nullable, coalesce(comment, '') "
        f"FROM duckdb_columns() {where} ORDER BY table_oid, column_index"
    ).fetchall():
        described.setdefault(table, []).append((column, type_, not nullable, comment))
    primary_keys: dict[str, list[str]] = {}
    foreign_keys: dict[str, list[ForeignKeyInfo]] = {}
    for table, kind, columns, referenced_table, referenced_columns in connection.execute(
        "SELECT table_name, constraint_type, constraint_column_names, referenced_table, "
        f"referenced_column_names FROM duckdb_constraints() {where} ORDER BY constraint_index"
    ).fetchall():
        if kind == "PRIMARY KEY":
            primary_keys[table] = columns
        elif kind == "FOREIGN KEY":
            key = ForeignKeyInfo(tuple(columns), referenced_table, tuple(referenced_columns))
            foreign_keys.setdefault(table, []).append(key)
    return tuple(
        TableInfo(
            name,
            tuple(
                ColumnInfo(
                    column,
                    type_,
                    not_null,
                    get_key_position(primary_keys.get(name, []), column),
                    comment,
                )
                for column, type_, not_null, comment in described.get(name, [])
            ),
            tuple(foreign_keys.get(name, [])),
            is_view,
            comment,
        )
        for name, _, is_view, comment in entries
    )
