"""Values that show how a column is written."""

from collections.abc import Callable
from pathlib import Path

import pytest

from sense_trl.database.opening import open_engine
from sense_trl.prompts.privacy import PrivacyRules
from sense_trl.prompts.values import ChosenValues, choose_values


def choose(path: Path, num_values: int = 3, **options: object) -> ChosenValues:
    with open_engine(path) as engine:
        return choose_values(
            engine,
            num_values=num_values,
            **{"max_chars": 40, **options},  # type: ignore[arg-type]
        )


def test_frequent_values_come_first_and_private_columns_show_none(
    make_database: Callable[..., Path],
) -> None:
    chosen = choose(make_database())
    assert chosen.values == {
        ("customer", "status"): ("A", "I"),
        ("customer", "city"): ("New York", "York", "São Paulo"),
        ("login", "used"): ("2024-03-01", "2024-04-01"),
    }
    # name and email of customer; password; the city that would end a turn.
    assert chosen.left_out == {"personal": 2, "secret": 1, "unsafe": 1}


def test_what_is_allowed_is_shown_and_what_is_hidden_is_not(
    make_database: Callable[..., Path],
) -> None:
    rules = PrivacyRules(shown=("*.name",), hidden=("*.status",))
    chosen = choose(make_database(), rules=rules)
    # No name comes twice: one is enough.
    assert chosen.values["customer", "name"] == ("Ada Lovelace",)
    assert ("customer", "status") not in chosen.values


def test_each_format_is_shown_before_a_second_value_of_one(
    make_database: Callable[..., Path],
) -> None:
    dates = ["2020-01-01", "2020-01-02", "2020-01-03"] * 5 + ["03/2020", "04/2020"] * 2
    rows = ", ".join(f"('{date}')" for date in dates)
    chosen = choose(make_database(f"CREATE TABLE t (d TEXT); INSERT INTO t VALUES {rows}"), 2)
    assert chosen.values == {("t", "d"): ("2020-01-01", "03/2020")}


@pytest.mark.parametrize(
    ("count", "repeated", "shown"), [(3, 2, (0, 1, 2)), (20, 2, None), (3, 1, None)]
)
def test_numbers_are_shown_where_they_are_codes(
    make_database: Callable[..., Path], count: int, repeated: int, shown: tuple[int, ...] | None
) -> None:
    rows = ", ".join(f"({number})" for number in list(range(count)) * repeated)
    path = make_database(f"CREATE TABLE t (n INTEGER); INSERT INTO t VALUES {rows}")
    assert choose(path).values.get(("t", "n")) == shown


def test_long_values_are_left_out_and_counted(make_database: Callable[..., Path]) -> None:
    path = make_database(
        f"CREATE TABLE t (a TEXT); INSERT INTO t VALUES ('{'x' * 41}'), ('short'), ('short')"
    )
    chosen = choose(path)
    assert chosen.values == {("t", "a"): ("short",)}
    assert chosen.left_out == {"too long": 1}


def test_a_table_without_rows_or_with_blobs_shows_nothing(
    make_database: Callable[..., Path],
) -> None:
    path = make_database(
        "CREATE TABLE e (a TEXT); CREATE TABLE b (x BLOB, y TEXT);"
        "INSERT INTO b VALUES (x'00ff', ''), (x'00ff', '  ')"
    )
    assert choose(path).values == {}


def test_duckdb_shows_the_same(make_database: Callable[..., Path]) -> None:
    path = make_database(
        "CREATE TABLE t (s VARCHAR, d DATE, l INTEGER[]);"
        "INSERT INTO t VALUES ('A', '2020-01-01', [1]), ('A', '2020-01-01', [1])",
        name="d.duckdb",
    )
    assert {key: tuple(map(str, v)) for key, v in choose(path).values.items()} == {
        ("t", "s"): ("A",),
        ("t", "d"): ("2020-01-01",),
    }
