"""Measure the index of a database's values: building it, memory, and the time a question takes.

    python recipes/benchmarks/value_index.py --values 1_000_000

A database of so many distinct texts (names of people and companies, streets, codes) is made for
SQLite and for DuckDB; questions name a value that is there, or none.

Expected: every value that is named is found; a million values are indexed in 14 s (SQLite) and 21 s
(DuckDB) with other work on the two cores, in 80 MB on the disk and 100 MB of memory; a question
takes 1 ms, one in twenty 6 ms or more.
"""

import argparse
import random
import resource
import sqlite3
import statistics
import tempfile
import time
from pathlib import Path

from sense_trl.database.catalog import DatabaseCatalog
from sense_trl.prompts.value_index import ValueIndex, build_value_index

_SYLLABLES = "ka lo mi ren tor vas el dun mar sho pel gri an bec or tis hul fen zu wy".split()  # noqa: SIM905
_KINDS = ("Street", "Road", "Avenue", "Lane")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--values", type=lambda text: int(text.replace("_", "")), default=1_000_000)
    parser.add_argument("--questions", type=int, default=500)
    arguments = parser.parse_args()
    rng = random.Random(0)
    rows = [_make_row(rng, number) for number in range(arguments.values // 4)]
    asked = [_make_question(rng, rows) for _ in range(arguments.questions)]
    with tempfile.TemporaryDirectory() as folder:
        for suffix in (".sqlite", ".duckdb"):
            path = Path(folder) / f"made{suffix}"
            _write(path, rows)
            index_path = Path(folder) / f"index{suffix}.sqlite"
            with DatabaseCatalog.from_path(path) as catalog:
                before, started = _peak_mb(), time.perf_counter()
                build_value_index(catalog.engine(path.stem), index_path)
                built_s = time.perf_counter() - started
            with ValueIndex(index_path) as index:
                num_values = len(index)
                times, found = [], 0
                for question, value in asked:
                    started = time.perf_counter()
                    matches = index.find(question, max_matches=10)
                    times.append(1e3 * (time.perf_counter() - started))
                    found += value is None or value in [match.value for match in matches]
            times.sort()
            database_mb, index_mb = (file.stat().st_size / 1e6 for file in (path, index_path))
            print(
                f"{suffix[1:]}: {num_values:,} values in {built_s:.1f} s, "
                f"{index_mb:.0f} MB (database {database_mb:.0f} MB), "
                f"{_peak_mb() - before:.0f} MB of memory more; "
                f"a question {statistics.median(times):.2f} ms (median), "
                f"{times[int(0.95 * len(times))]:.2f} ms (95 %), {times[-1]:.2f} ms (longest); "
                f"{found} of {len(asked)} as they should be"
            )


def _peak_mb() -> float:
    """Most memory that this process had."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def _make_word(rng: random.Random) -> str:
    return "".join(rng.choices(_SYLLABLES, k=rng.randint(2, 3))).title()


def _make_row(rng: random.Random, number: int) -> tuple[str, str, str, str]:
    person = f"{_make_word(rng)} {_make_word(rng)}"
    company = f"{_make_word(rng)} {_make_word(rng)} {rng.choice(('Ltd', 'Inc', 'Group'))}"
    street = f"{rng.randint(1, 999)} {_make_word(rng)} {rng.choice(_KINDS)}"
    return person, company, street, f"{rng.choice('ABCDEF')}{number:07d}"


def _make_question(
    rng: random.Random, rows: list[tuple[str, str, str, str]]
) -> tuple[str, str | None]:
    person, company, street, code = rng.choice(rows)
    return rng.choice(
        (
            (f"How many orders did {person.lower()} place in the year 2019?", person),
            (f"What is the total revenue of {company}?", company),
            (f"List the customers that live in {street} or near it.", street),
            (f"Show the name and the state of the order with the code {code}.", code),
            ("What is the average price of the products that were sold in each month?", None),
        )
    )


def _write(path: Path, rows: list[tuple[str, str, str, str]]) -> None:
    lines = "CREATE TABLE sale (person VARCHAR, company VARCHAR, street VARCHAR, code VARCHAR)"
    if path.suffix == ".sqlite":
        connection = sqlite3.connect(path)
        connection.execute(lines)
        connection.executemany("INSERT INTO sale VALUES (?, ?, ?, ?)", rows)
        connection.commit()
        connection.close()
        return
    import duckdb
    import pyarrow

    table = pyarrow.table(dict(zip(("a", "b", "c", "d"), zip(*rows, strict=True), strict=True)))
    with duckdb.connect(str(path)) as database:
        database.execute(lines)
        database.register("made", table)
        database.execute("INSERT INTO sale SELECT * FROM made")


if __name__ == "__main__":
    main()
