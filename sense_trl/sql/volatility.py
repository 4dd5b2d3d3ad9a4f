"""Queries that answer differently tomorrow, or twice in a row: `is_volatile`."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final

import sqlglot
from sqlglot.errors import SqlglotError

# Functions that throw dice, read the clock, or tell of the connection or the library. Those of
# DuckDB are the ones that `duckdb_functions()` does not call consistent, and macros over them;
# those of SQLite are not deterministic by `pragma_function_list`; those of PostgreSQL are volatile
# by `pg_proc`, or stable and without arguments.
_VOLATILE_FUNCTIONS: Final = frozenset(
    """
    random randomblob setseed uuid gen_random_uuid uuidv4 uuidv7 nextval currval setval
    now today ago get_current_time get_current_timestamp transaction_timestamp
    current_date current_time current_timestamp current_localtime current_localtimestamp
    localtime localtimestamp statement_timestamp clock_timestamp
    changes total_changes last_insert_rowid sqlite_version sqlite_source_id
    version pg_backend_pid pg_postmaster_start_time pg_conf_load_time txid_current
    current_connection_id current_transaction_id current_query current_query_id
    current_setting current_database current_catalog current_schema current_schemas
    in_search_path getvariable write_log error sleep_ms pg_sleep vector_type stats
    timeofday random_normal lastval array_sample array_shuffle set_config txid_status
    txid_current_if_assigned txid_current_snapshot inet_client_addr inet_client_port
    inet_server_addr inet_server_port current_user session_user system_user getpgusername
    get_current_ts_config query_to_xml ts_stat
    """.split()  # noqa: SIM905
)
# Sketches, whose error no other way to write the query makes.
_APPROXIMATE: Final = re.compile(r"approx_\w+|reservoir_quantile|lttb")
# Without parentheses.
_CLOCK_WORDS: Final = frozenset(
    """
    current_date current_time current_timestamp localtime localtimestamp current_localtime
    current_localtimestamp
    """.split()  # noqa: SIM905
)
# To PostgreSQL alone: what tells of the server (a type and a definition are the same tomorrow), and
# words without parentheses, as names and as texts that are read as dates.
_OF_THE_SERVER: Final = re.compile(r"(?:pg_(?!typeof|get_)|lo_|loread|lowrite)\w*")
_ROLE_WORDS: Final = frozenset({"current_user", "session_user", "system_user", "current_role"})
_DAYS: Final = frozenset({"now", "today", "tomorrow", "yesterday"})
_POSTGRES_HINT: Final = re.compile(
    rf"\b(?:{'|'.join(_VOLATILE_FUNCTIONS | _ROLE_WORDS | _DAYS)})\b|{_OF_THE_SERVER.pattern}",
    re.IGNORECASE,
)
# What SQLite reads as the present, and as a shift by the time zone of the machine.
_NOW: Final = frozenset({"now", "subsec", "subsecond"})
_ZONES: Final = frozenset({"localtime", "utc"})
# Position of the first time value among the arguments; without one it is the present.
_TIME_VALUES: Final = {
    "date": 0, "time": 0, "datetime": 0, "julianday": 0, "unixepoch": 0, "strftime": 1,
    "timediff": 0,
}  # fmt: skip
_CALLED: Final = frozenset({*_TIME_VALUES, "age"})
# Words inside an expression that name no column.
_NO_COLUMN: Final = frozenset(
    """
    and as between binary blob case cast char collate distinct else end escape false from glob in
    int integer is isnull like limit nocase not notnull null numeric or order by real rtrim select
    text then true union all values varchar when where with
    """.split()  # noqa: SIM905
)
_WORD: Final = re.compile(r"[^\W\d]\w*")
# At least one of these stands in every text that is volatile. Most texts hold none, and looking
# for them is ten times as fast as splitting the text into words, which in turn is ten times as
# fast as reading it.
_HINTS: Final = (
    "random", "uuid", "seed", "val", "now", "today", "ago", "current", "transaction", "stamp",
    "localtime", "changes", "last_insert", "version", "source_id", "pg_", "txid", "search_path",
    "variable", "write_log", "error", "sleep", "vector", "stats", "approx_", "reservoir", "lttb",
    "sample", "date", "time", "julianday", "unixepoch", "age(", "age ", 'age"',
)  # fmt: skip
_ALWAYS_SUSPECT: Final = (
    _VOLATILE_FUNCTIONS | _CLOCK_WORDS | {"now", "lttb", "reservoir_quantile"}
    | {"sample", "tablesample"}
)  # fmt: skip
_CALL: Final = re.compile(rf"\b(?:{'|'.join(_TIME_VALUES)}|age)\b[\"`\]]?\s*(?:\(|--|/\*)")


def _is_suspect(sql: str, dialect: str) -> bool:
    if dialect == "postgres" and _POSTGRES_HINT.search(sql):
        return True
    text = sql.lower()
    for hint in _HINTS:
        if hint in text:
            break
    else:
        return False
    words = _WORD.findall(text)
    if not _ALWAYS_SUSPECT.isdisjoint(words) or "approx_" in text:
        return True
    return not _CALLED.isdisjoint(words) and _CALL.search(text) is not None


def is_volatile(sql: str, dialect: str = "sqlite") -> bool:
    """Whether the text tells that a query may answer differently on the same data.

    Looks for functions of chance, of the clock, of the connection and of the library's version,
    for samples and for approximate aggregates. To SQLite a date function without a time value
    reads the clock, and so may one whose time value is computed from constants
    (`date('n' || 'ow')`). The strings 'now' and 'localtime' count wherever they stand; that errs
    on the side of caution. What columns hold the text does not tell, see `get_clock_queries`.

    Example:
        >>> is_volatile("SELECT strftime('%Y') - born FROM singer")
        True
        >>> is_volatile("SELECT strftime('%Y', born) FROM singer")
        False
    """
    if not _is_suspect(sql, dialect):
        return False
    try:
        tokens = _read_tokens(sql, dialect)
    except SqlglotError:
        # Such a text hardly runs; if it does, these words are all that is known of it.
        words = {word.lower() for word in _WORD.findall(sql)}
        return not words.isdisjoint(_VOLATILE_FUNCTIONS | _NOW | _ZONES)
    is_postgres = dialect == "postgres"
    days, bare = (_DAYS, _CLOCK_WORDS | _ROLE_WORDS) if is_postgres else ({"now"}, _CLOCK_WORDS)
    for index, token in enumerate(tokens):
        following = tokens[index + 1].text if index + 1 < len(tokens) else ""
        word = token.text.lower()
        if token.is_string or token.is_quoted:
            if word in days or (token.is_string and word == "localtime"):
                return True
            if not token.is_quoted or following != "(":
                continue
        if following == "(":
            if word in _VOLATILE_FUNCTIONS or _APPROXIMATE.fullmatch(word):
                return True
            if is_postgres and _OF_THE_SERVER.fullmatch(word):
                return True
        elif word in bare and following != "." and tokens[index - 1].text != ".":
            return True
        if word == "tablesample" or (word == "using" and following.lower() == "sample"):
            return True
    if dialect != "sqlite":
        ages = (call for call in _find_calls(tokens) if call.name == "age")
        return any(len(call.arguments) == 1 for call in ages)
    num_columns = _count_columns(tokens)
    return any(_is_clock_call(call, tokens, num_columns) for call in _find_calls(tokens))


def get_clock_queries(sql: str, dialect: str) -> tuple[str, str] | None:
    """Rewrite a query so that two answers show whether it reads the clock through its data.

    To SQLite, `date(x)` is today where `x` is 'now'. The rewritten queries take the year 1 and
    the year 9999 for today instead, and a day less and a day more for a shift by the time zone.

    Returns:
        The two texts; `None` where the query has no date function over an expression.

    Example:
        >>> get_clock_queries("SELECT date('2020-01-01')", "sqlite") is None
        True
        >>> low, high = get_clock_queries("SELECT date(d) FROM t", "sqlite")
        >>> low[:71]
        "SELECT date((CASE WHEN lower(CAST((d) AS TEXT)) IN ('now', 'subsec', 's"
    """
    if dialect != "sqlite" or not _is_suspect(sql, dialect):
        return None
    try:
        tokens = _read_tokens(sql, dialect)
    except SqlglotError:
        return None
    # By position, what to put in there for the early and for the late clock.
    pieces: list[tuple[int, str, str]] = []
    for call in _find_calls(tokens):
        first = _TIME_VALUES.get(call.name)
        if first is None:
            continue
        for place, (head_token, end_token) in enumerate(call.arguments):
            argument = tokens[head_token:end_token]
            if place < first or not argument or _is_literal(argument):
                continue
            start, end = argument[0].start, argument[-1].end
            is_value = place == first or (call.name == "timediff" and place < 2)
            words = ", ".join(f"'{word}'" for word in sorted(_NOW if is_value else _ZONES))
            head = f"(CASE WHEN lower(CAST(({sql[start:end]}) AS TEXT)) IN ({words}) THEN "
            early, late = ("0001-01-01", "9999-12-31") if is_value else ("-1 day", "+1 day")
            pieces.append((start, f"{head}'{early}' ELSE (", f"{head}'{late}' ELSE ("))
            pieces.append((end, ") END)", ") END)"))
    if not pieces:
        return None
    texts = []
    for which in (1, 2):
        text, done = "", 0
        for piece in sorted(pieces, key=lambda piece: piece[0]):
            text += sql[done : piece[0]] + str(piece[which])
            done = piece[0]
        texts.append(text + sql[done:])
    return texts[0], texts[1]


@dataclass(frozen=True, slots=True)
class _Token:
    """A word, a string or a sign: the characters `[start, end)` of the text."""

    text: str
    start: int
    end: int
    is_string: bool
    is_quoted: bool
    is_number: bool


@dataclass(frozen=True, slots=True)
class _Call:
    """A call of a date function; its arguments are tokens `[start, end)`."""

    name: str
    arguments: list[tuple[int, int]]


def _read_tokens(sql: str, dialect: str) -> list[_Token]:
    tokens: list[Any] = sqlglot.tokenize(sql, read=dialect)
    kinds = sqlglot.TokenType
    return [
        _Token(
            token.text,
            token.start,
            token.end + 1,
            token.token_type in (kinds.STRING, kinds.HEREDOC_STRING, kinds.NATIONAL_STRING),
            token.token_type is kinds.IDENTIFIER,
            token.token_type is kinds.NUMBER,
        )
        for token in tokens
    ]


def _find_calls(tokens: Sequence[_Token]) -> Iterator[_Call]:
    """Calls of date functions, each behind those inside it."""
    # Per open parenthesis the name before it and where its arguments begin.
    open_calls: list[tuple[str, list[int]]] = []
    for index, token in enumerate(tokens):
        sign = "" if token.is_string or token.is_quoted else token.text
        if sign == "(":
            name = ""
            if index and not tokens[index - 1].is_string:
                name = tokens[index - 1].text.lower()
            open_calls.append((name, [index + 1]))
        elif sign == "," and open_calls:
            open_calls[-1][1].append(index + 1)
        elif sign == ")" and open_calls:
            name, starts = open_calls.pop()
            if name in _CALLED:
                ends = [*(start - 1 for start in starts[1:]), index]
                arguments = list(zip(starts, ends, strict=True))
                yield _Call(name, [] if arguments == [(index, index)] else arguments)


def _is_literal(argument: Sequence[_Token]) -> bool:
    if len(argument) == 2 and argument[0].text in ("-", "+"):
        return argument[1].is_number
    return len(argument) == 1 and (argument[0].is_string or argument[0].is_number)


def _count_columns(tokens: Sequence[_Token]) -> list[int]:
    """Number of columns before each token."""
    counts = [0]
    for index, token in enumerate(tokens):
        following = tokens[index + 1].text if index + 1 < len(tokens) else ""
        is_column = token.is_quoted or (
            not token.is_string
            and _WORD.fullmatch(token.text) is not None
            and following != "("
            and token.text.lower() not in _NO_COLUMN
        )
        counts.append(counts[-1] + is_column)
    return counts


def _is_clock_call(call: _Call, tokens: Sequence[_Token], num_columns: Sequence[int]) -> bool:
    first = _TIME_VALUES.get(call.name)
    if first is None:
        return False
    for place, (start, end) in enumerate(call.arguments[first:]):
        # Longer ones are no literals.
        if _is_literal(tokens[start : min(end, start + 3)]):
            word = tokens[start].text.lower()
            if word in (_NOW if place == 0 else _ZONES):
                return True
        elif num_columns[end] == num_columns[start]:
            return True
    return len(call.arguments) <= first
