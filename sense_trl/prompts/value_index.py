"""`ValueIndex`: which values of a database do the words of a question name?

The distinct short texts of a database lie in an SQLite file of their own, in a normal form (lower
case, no accents, words with one space between) with an FTS5 index over its words. A question is
looked up in two ways: every run of its words as a whole value, and every word that few values have
as a part of one. What is found is ranked by the longest common substring relative to the value, as
in CodeS (Li et al., 2024, arXiv 2402.16347), which ranks after a BM25 look-up; here words that
more than some hundred values share are no look-up of their own, so that a question takes
milliseconds at a million values.
"""

from __future__ import annotations

import logging
import os
import re
import sqlite3
import threading
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from sense_trl._closing import Closing
from sense_trl._files import replacing
from sense_trl.database.engine import LimitKind, SQLEngine, TableInfo
from sense_trl.database.text import get_nameable_tables, quote_name
from sense_trl.errors import DatabaseError, OutputError
from sense_trl.prompts.harmless import is_harmless
from sense_trl.schema.naming import normalise, plural, singular

logger = logging.getLogger(__name__)

INDEX_FORMAT: Final = 1
"""Part of the name of an index file: raised when its content changes its meaning."""

# ---------------------------------------------------------------------- building
MAX_VALUE_CHARS: Final = 100
_MAX_WORDS: Final = 16
_MAX_VALUES: Final = 5_000_000
_MAX_PER_COLUMN: Final = 1_000_000
# Of a table, in rows times columns with texts: some 20 s, and nearly all values but for keys.
_MAX_CELLS: Final = 20_000_000
# Cells read at once: some 10 MB, and a look at the clock for the progress.
_PAGE_CELLS: Final = 100_000
_PAGE_TIMEOUT_S: Final = 120.0
# Values of a column that are remembered to be there, so that a column of few is written once.
_MAX_REMEMBERED: Final = 50_000
# Words that more values have are common.
_MAX_OF_WORD: Final = 300
# Columns of these types hold no text, in DuckDB for certain and in SQLite by its affinity.
_NUMBER_TYPE: Final = re.compile(r"INT|REAL|FLOA|DOUB|DEC|NUMERIC|NUMBER|BOOL|BLOB|BINARY", re.I)
# Types of PostgreSQL whose values nobody writes as texts.
_POSTGRES_NO_TEXT: Final = re.compile(
    r"\b(?:timestamp|time|interval|jsonb?|uuid|bytea|xml|tsvector)\b|\[\]"
)
_DUCKDB_TEXT: Final = re.compile(r"(?:VARCHAR|ENUM\(.*\)|DATE)\Z", re.S)

# ---------------------------------------------------------------------- looking up
_MAX_ASKED_CHARS: Final = 4_000
_MAX_ASKED_WORDS: Final = 256
_MAX_RUN: Final = 8
_MAX_RANKED: Final = 400
# Columns that hold the same value are many in a schema of thousands.
_MAX_FOUND: Final = 2_000
_WEIGHT: Final = 1_000_000
_MIN_SHARE: Final = 0.6
_MIN_COMMON_CHARS: Final = 3
# Of a value that is found by another number of its last word.
_INFLECTED_SCORE: Final = 0.95

_QUOTES: Final = "'\"`\u2018\u2019\u201c\u201d"
_STOP_WORDS: Final = frozenset(
    """
    a about after all also an and any are as at be been before between both but by can could did
    do does each few find for from get give had has have he her his how i if in into is it its
    list many me more most much my name names no nor not of off on one only or other our out over
    own per same she show so some such than that the their them then there these they this those
    to too under up us use was we were what when where which while who whom whose why will with
    you your
    """.split()  # noqa: SIM905
)


@dataclass(frozen=True, slots=True)
class ValueMatch:
    """A value that a question seems to name.

    Attributes:
        table: its table, as the database writes it.
        column: its column.
        value: as it is stored.
        score: share of the value that stands in the question, in (0, 1].
    """

    table: str
    column: str
    value: str
    score: float


# ---------------------------------------------------------------------- building


def build_value_index(
    engine: SQLEngine,
    path: str | os.PathLike[str],
    *,
    excluded: Collection[tuple[str, str]] = (),
    on_progress: Callable[[str, int], None] | None = None,
) -> None:
    """Write the index of a database; several processes may do so at the same time.

    The distinct texts of each column of each table, but for views, texts of more than 100
    characters, what holds control tokens, fences or line breaks, and texts without a letter or
    digit. Above 1,000,000 values of a column or 5,000,000 in all no more are taken, and of a table
    20,000,000 cells are read, its first rows; what that leaves out is logged. A table is read in
    portions, so memory does not grow with it.

    Args:
        engine: an open database.
        path: the file to write.
        excluded: table and column, in lower case, of columns that are left out.
        on_progress: called with the name of a table and the number of rows read of it so far.

    Raises:
        DatabaseError: the database cannot be read.
        OutputError: the file cannot be written.
    """
    with replacing(path, is_shared=True, is_synced=False) as temporary:
        # Whoever may not read the database is not to read its texts here.
        temporary.touch()
        temporary.chmod(_get_mode(engine, temporary.stat().st_gid))
        connection = sqlite3.connect(temporary, isolation_level=None)
        try:
            connection.executescript(
                "PRAGMA journal_mode=OFF; PRAGMA synchronous=OFF; PRAGMA cache_size=-32768;"
                "CREATE TABLE source(id INTEGER PRIMARY KEY, table_name TEXT, column_name TEXT);"
                "CREATE TABLE stage(words TEXT, source INTEGER, text TEXT)"
            )
            _stage(engine, connection, frozenset(excluded), on_progress)
            connection.executescript(_INDEX)
        # The database's own errors are no exceptions of this module.
        except sqlite3.Error as error:
            raise OutputError(f"{str(path)!r} cannot be written ({error}). Free space.") from error
        finally:
            connection.close()


def _get_mode(engine: SQLEngine, group: int) -> int:
    """Rights to a group's file of what a database holds: those to read it, or the user's own."""
    readers = 0
    if isinstance(engine.path, Path):
        path = engine.path.resolve()
        # Another group's rights are not those of this one.
        stat = path.stat()
        readers = stat.st_mode & (0o044 if stat.st_gid == group else 0o004)
        for folder in path.parents:
            # Whom a folder does not let through reads nothing in it; bits of x below those of r.
            stat = folder.stat()
            through = (stat.st_mode & 0o011) << 2
            if stat.st_gid != group:
                through = through & 0o004 | (through & 0o004) << 3
            readers &= through
    return 0o600 | readers


# Sorted by words, so that the index over them is written in one go.
_INDEX: Final = f"""
CREATE TABLE value(id INTEGER PRIMARY KEY, words TEXT, source INTEGER, text TEXT);
INSERT INTO value(words, source, text)
    SELECT words, source, text FROM stage GROUP BY words, source, text;
DROP TABLE stage;
CREATE INDEX value_words ON value(words);
CREATE VIRTUAL TABLE part USING fts5(words, content='value', content_rowid='id', detail=none,
    columnsize=0, tokenize="unicode61 remove_diacritics 0");
INSERT INTO part(part) VALUES('rebuild');
CREATE VIRTUAL TABLE vocabulary USING fts5vocab(part, row);
CREATE TABLE common(word TEXT PRIMARY KEY) WITHOUT ROWID;
INSERT INTO common SELECT term FROM vocabulary WHERE doc > {_MAX_OF_WORD};
PRAGMA user_version={INDEX_FORMAT};
"""


def _stage(
    engine: SQLEngine,
    connection: sqlite3.Connection,
    excluded: Collection[tuple[str, str]],
    on_progress: Callable[[str, int], None] | None,
) -> None:
    """Write the texts of all columns, some of them several times."""
    total = number = 0
    for table in get_nameable_tables(engine.get_tables()):
        if table.is_view or total >= _MAX_VALUES:
            continue
        names = [
            column.name
            for column in table.columns
            if (table.name.lower(), column.name.lower()) not in excluded
            and _may_hold_text(column.type, engine.dialect)
        ]
        if not names:
            continue
        sources = range(number, number + len(names))
        number += len(names)
        connection.executemany(
            "INSERT INTO source VALUES (?, ?, ?)",
            [(source, table.name, name) for source, name in zip(sources, names, strict=True)],
        )
        seen: list[set[str]] = [set() for _ in names]
        counts = [0] * len(names)
        num_rows = 0
        connection.execute("BEGIN")
        for rows in _read_pages(engine, table, names):
            num_rows += len(rows)
            for position, source in enumerate(sources):
                if counts[position] >= _MAX_PER_COLUMN or total >= _MAX_VALUES:
                    continue
                texts = {text for row in rows if isinstance(text := row[position], str)}
                texts -= seen[position]
                new = [(words, source, text) for text in texts if (words := _get_indexed(text))]
                room = min(_MAX_PER_COLUMN - counts[position], _MAX_VALUES - total)
                if len(new) > room:
                    logger.warning(
                        "%s.%s of %s has more values than are indexed: those behind the first %d "
                        "are not matched with questions.",
                        table.name,
                        names[position],
                        engine.path,
                        counts[position] + room,
                    )
                    del new[room:]
                connection.executemany("INSERT INTO stage VALUES (?, ?, ?)", new)
                counts[position] += len(new)
                total += len(new)
                if len(seen[position]) < _MAX_REMEMBERED:
                    seen[position] |= texts
            if on_progress is not None:
                on_progress(table.name, num_rows)
            if total >= _MAX_VALUES or min(counts) >= _MAX_PER_COLUMN:
                break
            if num_rows * len(names) >= _MAX_CELLS:
                logger.warning(
                    "Of %s of %s the values in the first %d rows are indexed: others are not "
                    "matched with questions.",
                    table.name,
                    engine.path,
                    num_rows,
                )
                break
        connection.execute("COMMIT")
        if total >= _MAX_VALUES:
            logger.warning(
                "No values of tables behind %s of %s are indexed.", table.name, engine.path
            )


def _may_hold_text(type_: str, dialect: str) -> bool:
    if dialect == "duckdb":
        return _DUCKDB_TEXT.match(type_) is not None
    if dialect == "postgres" and _POSTGRES_NO_TEXT.search(type_):
        return False
    return _NUMBER_TYPE.search(type_) is None


def _get_indexed(text: str) -> str:
    """The normal form of a text, "" for one that is not indexed."""
    if not is_harmless(text):
        return ""
    words = normalise(text)
    return "" if words.count(" ") >= _MAX_WORDS else words


def _read_pages(
    engine: SQLEngine, table: TableInfo, names: Sequence[str]
) -> Iterator[Sequence[tuple[object, ...]]]:
    """The texts of a table in portions, `None` for what is no text or too long."""
    if engine.dialect == "sqlite":
        # To SQLite a text ends at a NUL, whatever comes behind it; a character has up to 4 bytes.
        form = (
            "CASE WHEN typeof({0}) = 'text' AND length({0}) <= {1}"
            " AND length(CAST({0} AS BLOB)) <= 4 * {1} THEN {0} END"
        )
    else:
        form = "CASE WHEN length({0}::VARCHAR) <= {1} THEN {0}::VARCHAR END"
    columns = ", ".join(form.format(quote_name(name), MAX_VALUE_CHARS) for name in names)
    size = max(_PAGE_CELLS // len(names), 100)
    rowid = _find_rowid(engine, table)
    source = quote_name(table.name)
    limits = replace(
        engine.limits,
        timeout_s=max(engine.limits.timeout_s, _PAGE_TIMEOUT_S),
        max_rows=max(engine.limits.max_rows, size),
    )

    def read(rest: str, more: str = "") -> Sequence[tuple[object, ...]]:
        sql = f"SELECT {columns}{more} FROM {source} {rest}"
        result = engine.execute(sql, limits=limits)
        if result.exceeded is LimitKind.CELL_BYTES:
            # SQLite measures a text by reading it; with longer ones it hands out rows one by one.
            longest = max(limits.max_cell_bytes, limits.memory_limit_bytes)
            result = engine.execute(sql, limits=replace(limits, max_cell_bytes=longest))
        if not result.ok:
            raise DatabaseError(f"cannot read {table.name} of {engine.path}: {result.error}")
        return result.rows

    if rowid is not None and engine.dialect == "duckdb":
        # Its row numbers have few gaps, and a range of them reads only what it names.
        [(last,)] = engine.execute(f"SELECT max({rowid}) FROM {source}").rows or [(None,)]
        for start in range(0, (last if isinstance(last, int) else -1) + 1, size):
            yield read(f"WHERE {rowid} >= {start} AND {rowid} < {start + size}")
        return
    rest = f"ORDER BY {rowid} LIMIT {size}" if rowid else f"LIMIT {size}"
    offset = 0
    while rows := read(rest, f", {rowid}" if rowid else ""):
        yield rows
        offset += len(rows)
        if len(rows) < size:
            return
        # Behind the last row is found at once, so many rows further only by reading them.
        last = rows[-1][-1]
        rest = f"LIMIT {size} OFFSET {offset}"
        if rowid:
            rest = f"WHERE {rowid} > {last} ORDER BY {rowid} LIMIT {size}"


def _find_rowid(engine: SQLEngine, table: TableInfo) -> str | None:
    """The name of the hidden number of a table's rows; `None` where it has none."""
    taken = {column.name.lower() for column in table.columns}
    for name in ("rowid", "_rowid_", "oid") if engine.dialect == "sqlite" else ("rowid",):
        if name not in taken:
            found = engine.execute(f"SELECT {name} FROM {quote_name(table.name)} LIMIT 1")
            return name if found.ok else None
    return None


# ---------------------------------------------------------------------- looking up


class ValueIndex(Closing):
    """Looks up the words of questions in a file of `build_value_index`.

    Threads may share it.

    Args:
        path: the file.

    Raises:
        DatabaseError: it is no index, or one of another version.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self._path = Path(path).absolute()
        self._lock = threading.Lock()
        self._connections: dict[tuple[int, int], sqlite3.Connection] = {}
        try:
            connection = self._get_connection()
            [version] = connection.execute("PRAGMA user_version").fetchone()
            if version != INDEX_FORMAT:
                raise sqlite3.DatabaseError(f"its format is {version}, not {INDEX_FORMAT}")
            self._sources: dict[int, tuple[str, str]] = {
                number: (table, column)
                for number, table, column in connection.execute("SELECT * FROM source")
            }
            connection.execute("SELECT 1 FROM part, common, value LIMIT 1").fetchone()
        except sqlite3.Error as error:
            self.close()
            raise DatabaseError(f"{self._path} is no index of values: {error}") from error

    def __len__(self) -> int:
        count: int = self._get_connection().execute("SELECT count(*) FROM value").fetchone()[0]
        return count

    def find(self, text: str, *, max_matches: int, names: Collection[str] = ()) -> list[ValueMatch]:
        """The values that the words of a text name, the best first.

        A value counts if at least 60 % of it stand in the text as they are, but for case, accents
        and what parts words. Words such as "in" and values of one or two characters count only as
        they are written in the text, and not in lower case, or in quotes. A value inside a longer
        one that was found ("york" in "new york") does not count, nor one that has only words of
        values found as a whole in common with the text ("DC Comics" with "Marvel Comics").

        Args:
            text: a question, with its evidence.
            max_matches: how many at most, >= 0.

        Raises:
            DatabaseError: the file is damaged.
        """
        text = text[:_MAX_ASKED_CHARS]
        asked = normalise(text).split()[:_MAX_ASKED_WORDS]
        if not asked or max_matches < 1:
            return []
        try:
            found, taken = self._find_whole(text, asked, names)
            free = {word for place, word in enumerate(asked) if place not in taken} - _STOP_WORDS
            found += self._find_parts(asked, free, {match.value for match in found}, names)
        except sqlite3.Error as error:
            raise DatabaseError(
                f"The index of values {self._path} is damaged ({error}). Delete it, then run the "
                "same again: it is made anew."
            ) from error
        found.sort(key=lambda match: (-match.score, -len(match.value), match.value))
        return found[:max_matches]

    def _find_whole(
        self, text: str, asked: Sequence[str], names: Collection[str]
    ) -> tuple[list[ValueMatch], set[int]]:
        """Values that are a run of the words, and the places of these words."""
        runs: dict[str, list[tuple[int, int]]] = {}
        inflected: dict[str, str] = {}
        for start in range(len(asked)):
            for end in range(start + 1, min(start + _MAX_RUN, len(asked)) + 1):
                run = " ".join(asked[start:end])
                runs.setdefault(run, []).append((start, end))
                *before, last = asked[start:end]
                for other in (singular(last), plural(last)):
                    # "Are" is no Ares.
                    if other != last and last not in _STOP_WORDS:
                        inflected.setdefault(" ".join([*before, other]), run)
        entries = self._select("words", [*runs, *sorted(inflected.keys() - runs.keys())])
        run_of = {words: words if words in runs else inflected[words] for words, _, _ in entries}
        spans = {span for run in run_of.values() for span in runs[run]}
        matches = []
        taken: set[int] = set()
        for words, source, value in entries:
            run = run_of[words]
            if all(_is_covered(span, spans) for span in runs[run]):
                continue
            if (len(words) <= 2 or words in _STOP_WORDS) and not _is_written(value, text):
                continue
            if value not in text and all(word in names for word in words.split()):
                continue
            score = 1.0 if run == words else _INFLECTED_SCORE
            matches.append(ValueMatch(*self._sources[source], value, score))
            taken.update(place for start, end in runs[run] for place in range(start, end))
        return matches, taken

    def _find_parts(
        self,
        asked: Sequence[str],
        free: Collection[str],
        known: Collection[str],
        names: Collection[str],
    ) -> list[ValueMatch]:
        """Values of which most stands in the text, found by a word that few values have.

        One of their words has to be among the `free` ones, which no other value has taken.
        """
        connection = self._get_connection()
        words = {word for word in asked if len(word) > 2 and word not in _STOP_WORDS}
        words |= {other for word in words for other in (singular(word), plural(word))}
        listed = sorted(words.difference(names))
        marks = ", ".join("?" * len(listed))
        common = {
            word
            for (word,) in connection.execute(
                f"SELECT word FROM common WHERE word IN ({marks})", listed
            )
        }
        weights: Counter[int] = Counter()
        for word in listed:
            if word in common:
                continue
            ids = connection.execute(
                "SELECT rowid FROM part WHERE part MATCH ?", (f'"{word}"',)
            ).fetchall()
            for (number,) in ids:
                weights[number] += _WEIGHT // (1 + len(ids))
        line = f" {' '.join(asked)} "
        forms = {form for word in free for form in (word, singular(word), plural(word))}
        matches = []
        ranked = [number for number, _ in weights.most_common(_MAX_RANKED)]
        for words_, source, value in self._select("id", ranked):
            length = len(_find_common(f" {words_} ", line).strip())
            share = length / len(words_)
            # What stands there as a whole was found, but for the longest, or dropped.
            is_new = share < 1 or words_.count(" ") >= _MAX_RUN
            is_enough = share >= _MIN_SHARE and length >= _MIN_COMMON_CHARS
            is_apart = not forms.isdisjoint(words_.split())
            if is_new and is_enough and is_apart and value not in known:
                matches.append(ValueMatch(*self._sources[source], value, share))
        return matches

    def _select(self, name: str, keys: Sequence[object]) -> list[tuple[str, int, str]]:
        """Words, source and text of the values whose column `name` holds one of `keys`."""
        marks = ", ".join("?" * len(keys))
        sql = f"SELECT words, source, text FROM value WHERE {name} IN ({marks}) LIMIT {_MAX_FOUND}"
        return self._get_connection().execute(sql, keys).fetchall()

    def _get_connection(self) -> sqlite3.Connection:
        """The connection of this thread of this process."""
        key = (os.getpid(), threading.get_ident())
        with self._lock:
            if key not in self._connections:
                # It is replaced and never changed.
                uri = f"{self._path.as_uri()}?mode=ro&immutable=1"
                self._connections[key] = sqlite3.connect(
                    uri, uri=True, isolation_level=None, check_same_thread=False
                )
            return self._connections[key]

    def close(self) -> None:
        """Close the file; closing twice is allowed."""
        with self._lock:
            connections, self._connections = self._connections, {}
        for (process, _), connection in connections.items():
            if process == os.getpid():
                connection.close()


def _is_covered(span: tuple[int, int], spans: Iterable[tuple[int, int]]) -> bool:
    """Whether a run of words lies inside a longer one."""
    start, end = span
    return any(s <= start and end <= e and (s, e) != span for s, e in spans)


def _is_written(value: str, text: str) -> bool:
    """Whether a short value stands in a text as it is, so that it is no word of a sentence."""
    if re.search(rf"[{_QUOTES}]{re.escape(value)}[{_QUOTES}]", text):
        return True
    if value.islower() or value.isdigit():
        return False
    return re.search(rf"(?<!\w){re.escape(value)}(?!\w)", text) is not None


def _find_common(value: str, text: str) -> str:
    """The longest common substring of two texts, the first of several in `value`."""
    start = longest = 0
    for position in range(len(value)):
        while position + longest < len(value) and value[position : position + longest + 1] in text:
            start, longest = position, longest + 1
    return value[start : start + longest]
