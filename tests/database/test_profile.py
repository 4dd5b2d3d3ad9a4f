"""What the rows of a table show about its columns."""

from __future__ import annotations

import math
import random
import sqlite3
import tempfile
from collections import Counter
from pathlib import Path

from hypothesis import given, settings
from hypothesis import strategies as st

from sense_trl.database.profile import profile_database
from sense_trl.database.sqlite_engine import SQLiteEngine

Row = tuple[int | None, ...]


def _make_rows(rng: random.Random) -> list[Row]:
    """Some columns that follow from others, perhaps but for one value, and some that do not."""
    rows: list[list[int | None]] = [[rng.randrange(9)] for _ in range(rng.choice((3, 20, 60)))]
    for _ in range(5):
        source = rng.randrange(len(rows[0]))
        target = {key: rng.choice((None, 1, 2, 3)) for key in {row[source] for row in rows}}
        for row in rows:
            row.append(target[row[source]])
        if rng.random() < 0.3:
            rng.choice(rows)[-1] = rng.randrange(4)
    return [tuple(row) for row in rows]


def _find_dependencies(rows: list[Row]) -> dict[int, int]:
    """The obvious way, as the docstring of the source says it, without keys and references."""
    width = len(rows[0])
    counts = [Counter(row[c] for row in rows) for c in range(width)]
    same = [sum((n / len(rows)) ** 2 for n in counts[c].values()) for c in range(width)]
    sources = [c for c in range(width) if 1 < len(counts[c]) < len(rows)]
    follows: dict[int, int] = {}
    for source in sorted(sources, key=lambda c: (-len(counts[c]), c)):
        if source in follows:
            continue
        known = [row for row in rows if row[source] is not None]
        repeats = len(known) - len({row[source] for row in known})
        for column in range(width):
            if column == source or column in follows or column in follows.values():
                continue
            if len(counts[column]) < 2 or repeats * math.log(same[column]) > math.log(1e-6):
                continue
            pairs = {(row[source], row[column]) for row in known}
            if len(pairs) == len({source for source, _ in pairs}):
                follows[column] = source
    return follows


@given(st.integers(0, 10**6))
@settings(max_examples=40)
def test_columns_follow_as_they_do_by_the_obvious_way(seed: int) -> None:
    rows = _make_rows(random.Random(seed))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "made.sqlite"
        connection = sqlite3.connect(path)
        columns = [f"c{number}" for number in range(len(rows[0]))]
        connection.execute(f"CREATE TABLE made ({', '.join(columns)})")
        marks = ", ".join("?" * len(columns))
        connection.executemany(f"INSERT INTO made VALUES ({marks})", rows)
        connection.commit()
        connection.close()
        with SQLiteEngine(path) as engine:
            (table,) = profile_database(engine).tables
    found = {n: c.follows for n, c in enumerate(table.columns) if c.follows is not None}
    assert found == _find_dependencies(rows)


def test_the_obvious_way_finds_what_there_is() -> None:
    rows: list[Row] = [(n % 5, n % 5 % 2, None if n % 5 else 7, n % 3) for n in range(60)]
    assert _find_dependencies(rows) == {1: 0, 2: 0}
