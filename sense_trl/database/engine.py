"""The one interface through which SQL runs: `SQLEngine`, its limits and its result.

Everything that executes SQL here (pair building, evaluation, rewards) was written by a model or by
a data set and is hostile until shown otherwise. An engine therefore never raises for what a query
does: a query that is refused, fails, runs too long or returns too much is a `QueryResult` with the
matching `QueryStatus`. Only a database that cannot be read raises (`DatabaseError`).
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from types import TracebackType
from typing import Final, Protocol, Self, TypeVar, runtime_checkable

from sense_trl.database.digest import ResultDigest
from sense_trl.database.location import DatabasePath
from sense_trl.errors import InputError

_T = TypeVar("_T")

MAX_SQL_CHARS: Final = 200_000
"""A longer query is refused by every engine before anything reads it."""

OUT_OF_MEMORY: Final = "out of memory; raise `memory_limit_bytes`"
"""`QueryResult.error` where `LimitKind.MEMORY` stopped the query."""


class QueryStatus(StrEnum):
    """The outcome of one execution: `ok`, or the kind of failure."""

    OK = "ok"
    """All rows were read."""
    SYNTAX_ERROR = "syntax_error"
    """The text is no statement of the dialect (this includes an empty text and a lone comment)."""
    EXECUTION_ERROR = "execution_error"
    """The engine refused or failed: unknown table or column, bad cast, expression too deep."""
    DENIED = "denied"
    """The sandbox refused: not a single reading statement, or an object or function not allowed."""
    TIMEOUT = "timeout"
    """Stopped by `timeout_s` or `max_steps`; `QueryResult.exceeded` says which."""
    TOO_LARGE = "too_large"
    """Stopped by a cap on rows, bytes or memory; `QueryResult.exceeded` says which."""


class LimitKind(StrEnum):
    """The limit that stopped a query."""

    WALL_CLOCK = "wall_clock"
    """`timeout_s`; depends on the machine and its load."""
    STEPS = "steps"
    """`max_steps`; the same on every machine that runs the same engine version."""
    ROWS = "rows"
    """`max_rows`."""
    CELL_BYTES = "cell_bytes"
    """`max_cell_bytes`, by a value of the result or an intermediate one."""
    RESULT_BYTES = "result_bytes"
    """`max_result_bytes`."""
    MEMORY = "memory"
    """`memory_limit_bytes`."""


@dataclass(frozen=True, slots=True)
class ExecutionLimits:
    """Limits of one query: time, rows, bytes, memory and steps.

    Attributes:
        timeout_s: wall-clock seconds from the call to the last row, > 0.
        max_rows: rows of the result, >= 0; one more row gives `TOO_LARGE`.
        max_cell_bytes: bytes of one text or blob value, intermediate values included, >= 1.
        max_result_bytes: bytes of all values of the result (text and blobs by length, every other
            value counts 8), >= 1.
        memory_limit_bytes: memory of the engine itself, > 0. Who enforces it is written at the
            engine: SQLite can only limit a whole process, so only a worker process does.
        max_steps: instructions of SQLite's virtual machine, > 0, or `None` for no such budget.
            Engines that do not count instructions ignore it.

    Raises:
        InputError: a value is out of its range.
    """

    timeout_s: float = 30.0
    max_rows: int = 100_000
    max_cell_bytes: int = 1_000_000
    max_result_bytes: int = 64 * 2**20
    memory_limit_bytes: int = 256 * 2**20
    max_steps: int | None = None

    def __post_init__(self) -> None:
        if not (isinstance(self.timeout_s, (int, float)) and math.isfinite(self.timeout_s)):
            raise InputError(f"`timeout_s` is {self.timeout_s!r}; expected a finite number.")
        if self.timeout_s <= 0:
            raise InputError(f"`timeout_s` is {self.timeout_s!r}; expected seconds above 0.")
        minima = {
            "max_rows": 0,
            "max_cell_bytes": 1,
            "max_result_bytes": 1,
            "memory_limit_bytes": 1,
            "max_steps": 1,
        }
        for name, minimum in minima.items():
            value = getattr(self, name)
            if name == "max_steps" and value is None:
                continue
            if not isinstance(value, int) or isinstance(value, bool) or value < minimum:
                raise InputError(f"`{name}` is {value!r}; expected an integer >= {minimum}.")


def describe_exceeded(exceeded: LimitKind, limits: ExecutionLimits) -> tuple[QueryStatus, str]:
    """The status of a query that a limit stopped, and a message that names what to raise."""
    match exceeded:
        case LimitKind.WALL_CLOCK:
            stopped_by = f"stopped after {limits.timeout_s:g} s; raise `timeout_s`"
            return QueryStatus.TIMEOUT, stopped_by
        case LimitKind.STEPS:
            stopped_by = f"stopped after {limits.max_steps} instructions; raise `max_steps`"
            return QueryStatus.TIMEOUT, stopped_by
        case LimitKind.ROWS:
            message = f"more than {limits.max_rows} rows; raise `max_rows`"
        case LimitKind.CELL_BYTES:
            message = f"a value of more than {limits.max_cell_bytes} bytes; raise `max_cell_bytes`"
        case LimitKind.RESULT_BYTES:
            bytes_read = f"more than {limits.max_result_bytes} bytes of rows"
            message = f"{bytes_read}; raise `max_result_bytes`"
        case LimitKind.MEMORY:
            message = OUT_OF_MEMORY
    return QueryStatus.TOO_LARGE, message


def refuse_text(sql: str) -> tuple[QueryStatus, str] | None:
    """Status and message of a text that no engine runs, whatever it says; `None` for others."""
    if len(sql) > MAX_SQL_CHARS:
        return QueryStatus.DENIED, f"longer than {MAX_SQL_CHARS} characters"
    if "\x00" in sql:
        return QueryStatus.SYNTAX_ERROR, "the text contains a null character"
    try:
        sql.encode()
    except UnicodeEncodeError as error:
        return QueryStatus.SYNTAX_ERROR, str(error)
    return None


@dataclass(frozen=True, slots=True)
class TypedText:
    """A value for which Python has no type: the database's name of the type, and its text there.

    `str` gives the text; it equals no text.

    Example:
        >>> str(TypedText("BIT", "0101")), TypedText("BIT", "0101") == "0101"
        ('0101', False)
    """

    type: str
    text: str

    def __str__(self) -> str:
        return self.text


class MapValue(dict[object, object]):
    """A value of a MAP type; unlike a dict, which is a struct's value, it equals no struct."""

    def __eq__(self, other: object) -> bool:
        return isinstance(other, MapValue) and super().__eq__(other)

    def __ne__(self, other: object) -> bool:
        return not self == other

    def __repr__(self) -> str:
        return f"MapValue({super().__repr__()})"

    def __str__(self) -> str:
        return super().__repr__()


def count_bytes(value: object) -> int:
    """The size of a value as the caps on bytes count it; see `ExecutionLimits`."""
    if isinstance(value, (str, bytes)):
        return len(value)
    if isinstance(value, TypedText):
        return len(value.text)
    if isinstance(value, (list, tuple)):
        return 8 + sum(map(count_bytes, value))
    if isinstance(value, dict):
        return 8 + sum(count_bytes(key) + count_bytes(item) for key, item in value.items())
    return 8


@dataclass(frozen=True, slots=True)
class QueryResult:
    """The result of one query: its rows, or the error.

    Attributes:
        status: how it ended.
        columns: names of the result columns, () unless `status` is OK.
        rows: the rows in the order the engine gave them, () unless `status` is OK: a result that
            was cut short is never handed on. Values are None, int, float, str and bytes; from
            DuckDB also bool, Decimal, the types of `datetime`, UUID, list, tuple, dict (a struct),
            `MapValue` and `TypedText`. Text that is not UTF-8 has its bad bytes as lone surrogates
            (`surrogateescape`).
        error: the engine's or the sandbox's message, `None` if and only if `status` is OK.
        elapsed_s: wall-clock seconds.
        steps: instructions of the virtual machine, rounded down to the engine's polling interval;
            `None` where the engine does not count.
        exceeded: the limit that stopped it, set if and only if `status` is TIMEOUT or TOO_LARGE.
    """

    status: QueryStatus
    columns: tuple[str, ...]
    rows: tuple[tuple[object, ...], ...]
    error: str | None
    elapsed_s: float
    steps: int | None
    exceeded: LimitKind | None = None

    @property
    def ok(self) -> bool:
        """Whether all rows were read."""
        return self.status is QueryStatus.OK


def failed(
    status: QueryStatus, message: str, started: float, exceeded: LimitKind | None = None
) -> QueryResult:
    """The result of a query that gave no rows.

    Args:
        started: `time.perf_counter()` at its beginning.
    """
    elapsed_s = time.perf_counter() - started
    return QueryResult(status, (), (), message, elapsed_s, None, exceeded)


def stopped(exceeded: LimitKind, limits: ExecutionLimits, started: float) -> QueryResult:
    """The result of a query that a limit stopped; see `failed`."""
    return failed(*describe_exceeded(exceeded, limits), started, exceeded)


class ResultRows:
    """The rows of a result while they are read.

    Args:
        limits: what they may be, in number and size.

    Attributes:
        rows: those read so far.
    """

    def __init__(self, limits: ExecutionLimits) -> None:
        self.rows: list[tuple[object, ...]] = []
        self._limits = limits
        self._num_bytes = 0

    def add(self, rows: Sequence[tuple[object, ...]]) -> LimitKind | None:
        """Take further rows; the limit that they exceed, if any."""
        limits = self._limits
        for row in rows:
            for value in row:
                size = count_bytes(value)
                if size > limits.max_cell_bytes and size > 8:
                    return LimitKind.CELL_BYTES
                self._num_bytes += size
        self.rows += rows
        if len(self.rows) > limits.max_rows:
            return LimitKind.ROWS
        return LimitKind.RESULT_BYTES if self._num_bytes > limits.max_result_bytes else None


@dataclass(frozen=True, slots=True)
class ColumnInfo:
    """One column of a table or view.

    What is not UTF-8 in a name is kept as lone surrogates (`sense_trl.database.text`).
    `type` is the declared type as written ("" where none is declared); `primary_key` is the
    column's 1-based position in the primary key, 0 if it is not part of it. `comment` is what the
    database says about it, "" where nothing (SQLite keeps no comments).
    """

    name: str
    type: str
    not_null: bool
    primary_key: int
    comment: str = ""


def get_key_position(key: Sequence[_T], column: _T) -> int:
    """The 1-based position of a column in a primary key, 0 if it is not part of it."""
    return key.index(column) + 1 if column in key else 0


@dataclass(frozen=True, slots=True)
class ForeignKeyInfo:
    """One foreign key: `columns` of this table refer to `referenced_columns`, in this order.

    `referenced_columns` is resolved to the primary key where the declaration names none; it is ()
    where the referenced table does not exist or has no primary key.
    """

    columns: tuple[str, ...]
    referenced_table: str
    referenced_columns: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class TableInfo:
    """One table or view, columns and foreign keys in the order of their declaration.

    `comment` is what the database says about it, as for columns.
    """

    name: str
    columns: tuple[ColumnInfo, ...]
    foreign_keys: tuple[ForeignKeyInfo, ...]
    is_view: bool
    comment: str = ""


class SQLEngine(Protocol):
    """A read-only, limited executor over one database.

    An engine belongs to the thread that opened it. Two queries never influence each other: no
    query can change the database, the settings of the connection or what a later query sees.

    `SQLiteEngine`, `DuckDBEngine` and `PostgresEngine` are here; the tests in
    `tests/database/test_engine_contract.py` run against any engine. `PostgresEngine` shows what an
    adapter for another server has to bring with that server's means.
    """

    @property
    def dialect(self) -> str:
        """The name of the dialect as sqlglot spells it."""

    @property
    def version(self) -> str:
        """Name and version of the library that runs the queries; answers may depend on it."""

    @property
    def path(self) -> DatabasePath:
        """The database file, or its place on a server."""

    @property
    def limits(self) -> ExecutionLimits:
        """The limits that apply where `execute` is given none."""

    def execute(self, sql: str, *, limits: ExecutionLimits | None = None) -> QueryResult:
        """Run one reading statement; whatever the query does is in the result, not raised."""

    def get_tables(self) -> tuple[TableInfo, ...]:
        """Tables and views in the order of their creation, without the engine's own."""

    def close(self) -> None:
        """Release the database; closing twice is allowed."""

    def __enter__(self) -> Self: ...

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None: ...


@runtime_checkable
class DigestingEngine(Protocol):
    """An engine that can read a result of any size and keep only its fingerprints."""

    def execute_digest(
        self, sql: str, *, limits: ExecutionLimits | None = None, reverse: bool = False
    ) -> tuple[QueryResult, ResultDigest | None]:
        """Run `sql`; the result has no rows, and a digest if and only if it is OK.

        `max_result_bytes` does not apply; with `reverse`, scans go backwards as in
        `execute_reordered`.
        """


@runtime_checkable
class ReorderingEngine(Protocol):
    """An engine that can also run a query in another order that SQL allows as well.

    A query whose rows differ between the two runs has no defined answer.
    """

    def execute_reordered(self, sql: str, *, limits: ExecutionLimits | None = None) -> QueryResult:
        """Run `sql` like `execute`, but scan backwards where no order is asked for."""


class ForwardingEngine:
    """Base of engines that stand before another one and change how its queries are run.

    It can whatever the other one can: the methods of `ReorderingEngine` and `DigestingEngine` are
    there if the other one has them.

    Args:
        engine: runs the queries.
    """

    def __init__(self, engine: SQLEngine) -> None:
        self._engine = engine
        self.dialect = engine.dialect
        self.version = engine.version
        self.path = engine.path
        self.limits = engine.limits
        self.get_tables = engine.get_tables
        self.close = engine.close
        for name in ("execute_reordered", "execute_digest"):
            if hasattr(engine, name):
                setattr(self, name, self._forward(getattr(engine, name)))

    def _forward(self, execute: Callable[..., _T]) -> Callable[..., _T]:
        """The other engine's method as this one offers it."""
        return execute
