"""Neighbour instances: what they keep, and that they are the same everywhere."""

from __future__ import annotations

import hashlib
import sqlite3
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sense_trl.database import SQLiteEngine, open_engine
from sense_trl.database.fuzzing import DatabaseFuzzer, FuzzHints
from sense_trl.database.profile import DatabaseProfile, profile_database
from sense_trl.errors import InputError

SHOP = """
CREATE TABLE customer (
    customer_id INTEGER PRIMARY KEY, name TEXT NOT NULL, email TEXT UNIQUE, city TEXT,
    boss INTEGER REFERENCES customer(customer_id));
CREATE TABLE product (code TEXT PRIMARY KEY, price REAL, born DATE);
CREATE TABLE purchase (
    customer INTEGER REFERENCES customer(customer_id), product TEXT REFERENCES product(code),
    amount INTEGER, PRIMARY KEY (customer, product));
CREATE TABLE review (
    customer INTEGER, product TEXT, stars INTEGER,
    FOREIGN KEY (customer, product) REFERENCES purchase(customer, product));
CREATE VIEW cheap AS SELECT * FROM product WHERE price < 5;
"""
SHOP_ROWS = [
    ("customer", [(i, f"n{i % 7}", f"n{i}@x", "Rome" if i % 2 else None, (i + 1) // 2) for i in range(1, 30)]),
    ("product", [(f"P{i}", i * 1.5, f"2020-0{1 + i % 9}-1{i % 10}") for i in range(20)]),
    ("purchase", [(i, f"P{(i * j) % 20}", j) for i in range(1, 30) for j in (1, 2)]),
]  # fmt: skip


@pytest.fixture
def shop(fresh_db: Callable[..., Path]) -> Path:
    path = fresh_db(SHOP, name="shop")
    with sqlite3.connect(path) as connection:
        for table, rows in SHOP_ROWS:
            marks = ", ".join("?" * len(rows[0]))
            connection.executemany(f"INSERT OR IGNORE INTO {table} VALUES ({marks})", rows)
        connection.execute("INSERT INTO review SELECT customer, product, 1 + amount FROM purchase")
    connection.close()
    return path


def _profile(path: Path, **settings: object) -> DatabaseProfile:
    with open_engine(path) as engine:
        return profile_database(engine, **settings)  # type: ignore[arg-type]


def test_declared_rules_hold_in_every_instance(shop: Path, tmp_path: Path) -> None:
    fuzzer = DatabaseFuzzer(_profile(shop))
    sizes = set()
    for number in range(40):
        file = tmp_path / f"{number}.sqlite"
        fuzzer.write(number, file)
        connection = sqlite3.connect(file)
        assert connection.execute("PRAGMA foreign_key_check").fetchall() == []
        assert connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
        for table, rows in fuzzer.draw(number).items():
            stored = connection.execute(f"SELECT * FROM {table}").fetchall()
            # UNIQUE, PRIMARY KEY and NOT NULL would have kept rows out.
            assert sorted(stored, key=repr) == sorted(rows, key=repr)
            assert len(rows) <= 40
            sizes.add(len(rows))
        connection.execute("SELECT * FROM cheap")
        connection.close()
    fuzzer.close()
    assert min(sizes) < 5 and max(sizes) > 30


def test_values_are_of_the_types_and_formats_of_the_original(shop: Path) -> None:
    hints = FuzzHints(
        constants={("PRODUCT", "price"): ["7"]},
        neighbours={
            ("product", "price"): [-1, 8.25],
            ("product", "born"): ["soon", "2031-01-01"],
            ("customer", "city"): ["Ro"],
        },
    )
    fuzzer = DatabaseFuzzer(_profile(shop), hints)
    products = [row for number in range(40) for row in fuzzer.draw(number)["product"]]
    prices = {price for _, price, _ in products}
    assert {7.0, 8.25} <= prices and all(type(price) is float and price >= 0 for price in prices)
    born = {day for _, _, day in products}
    assert "2031-01-01" in born and all(len(str(day)) == 10 for day in born)
    customers = [row for number in range(40) for row in fuzzer.draw(number)["customer"]]
    assert {city for *_, city, _ in customers} == {"Rome", "Ro", None}
    assert all(name is not None for _, name, *_ in customers)


def test_nulls_stand_only_where_the_original_has_some(shop: Path) -> None:
    fuzzer = DatabaseFuzzer(_profile(shop))
    for number in range(20):
        for row in fuzzer.draw(number)["purchase"]:
            assert None not in row


def test_nulls_can_be_asked_for_wherever_they_are_allowed(shop: Path) -> None:
    fuzzer = DatabaseFuzzer(_profile(shop), nulls="allowed")
    drawn = [fuzzer.draw(number) for number in range(20)]
    columns = {
        (table, position)
        for tables in drawn
        for table, rows in tables.items()
        for row in rows
        for position, value in enumerate(row)
        if value is None
    }
    assert {("purchase", 2), ("review", 2), ("product", 1)} <= columns
    assert not columns & {("customer", 0), ("customer", 1), ("purchase", 0), ("product", 0)}
    with pytest.raises(InputError, match="`nulls`"):
        DatabaseFuzzer(_profile(shop), nulls="none")  # type: ignore[arg-type]


def test_instances_are_the_same_in_every_process_and_order(shop: Path, tmp_path: Path) -> None:
    one, other = (DatabaseFuzzer(_profile(shop), seed=3) for _ in range(2))
    forwards = [one.draw(number) for number in range(6)]
    backwards = [other.draw(number) for number in reversed(range(6))]
    assert forwards == backwards[::-1]
    assert forwards != [DatabaseFuzzer(_profile(shop), seed=4).draw(n) for n in range(6)]
    one.write(5, tmp_path / "a.sqlite")
    other.write(0, tmp_path / "b.sqlite")
    other.write(5, tmp_path / "b.sqlite")
    dumps = []
    for name in ("a", "b"):
        connection = sqlite3.connect(tmp_path / f"{name}.sqlite")
        dumps.append(list(connection.iterdump()))
        connection.close()
    assert dumps[0] == dumps[1]


def test_rows_are_these_on_every_machine(fresh_db: Callable[..., Path]) -> None:
    script = "CREATE TABLE t (id INTEGER PRIMARY KEY, word TEXT); "
    script += "".join(f"INSERT INTO t VALUES ({i}, 'w{i % 5}');" for i in range(1, 20))
    rows = DatabaseFuzzer(_profile(fresh_db(script))).draw(2)["t"]
    digest = hashlib.sha256(repr(rows).encode()).hexdigest()
    assert digest[:16] == "40d49683d82a7157"


def test_what_looks_like_a_key_stays_unique(fresh_db: Callable[..., Path]) -> None:
    script = "CREATE TABLE t (student_id INT, name TEXT); "
    script += "".join(f"INSERT INTO t VALUES ({i}, 'n{i}');" for i in range(20))
    path = fresh_db(script)
    assert _profile(path).tables[0].keys == ((0,),)
    fuzzer = DatabaseFuzzer(_profile(path))
    drawn = [fuzzer.draw(number)["t"] for number in range(20)]
    assert all(len({row[0] for row in rows}) == len(rows) for rows in drawn)
    # Names do not repeat in the original either, but two students may share one.
    assert any(len({row[1] for row in rows}) < len(rows) for rows in drawn)


def test_a_text_that_never_repeats_in_many_rows_stays_unique(
    fresh_db: Callable[..., Path],
) -> None:
    script = "CREATE TABLE country (id INTEGER PRIMARY KEY, name TEXT, size REAL);"
    script += "".join(f"INSERT INTO country VALUES ({i}, 'n{i}', {i}.5);" for i in range(40))
    assert _profile(fresh_db(script)).tables[0].keys == ((0,), (1,))


def test_references_are_seen_by_name_and_content(fresh_db: Callable[..., Path]) -> None:
    script = "CREATE TABLE singer (id INT, name TEXT); CREATE TABLE song (singer_id INT, id INT);"
    script += "".join(f"INSERT INTO singer VALUES ({i}, 'n');" for i in range(9))
    script += "".join(f"INSERT INTO song VALUES ({i % 4}, {i});" for i in range(9))
    [singer, song] = _profile(fresh_db(script)).tables
    assert [(r.columns, r.table, r.referenced) for r in song.references] == [((0,), 0, (0,))]
    # `id` of one table holds the values of `id` of the other by accident.
    assert singer.references == ()


def test_references_can_be_given_and_slips_are_left_out(fresh_db: Callable[..., Path]) -> None:
    script = (
        "CREATE TABLE a (k INT PRIMARY KEY); CREATE TABLE b (x INT, y TEXT REFERENCES a(k));"
        "INSERT INTO a VALUES (1), (2), (3); INSERT INTO b VALUES (1, 'u'), (1, 'v'), (2, 'w');"
    )
    path = fresh_db(script)
    assert _profile(path).tables[1].references == ()
    given_keys = [("B", "X", "A", "K"), ("b", "nothing", "a", "k")]
    profile = _profile(path, foreign_keys=given_keys)
    assert [r.columns for r in profile.tables[1].references] == [(0,)]
    for number in range(20):
        drawn = DatabaseFuzzer(profile).draw(number)
        assert {row[0] for row in drawn["b"]} <= {row[0] for row in drawn["a"]}


def test_text_refers_to_a_number_as_sqlite_compares_them(fresh_db: Callable[..., Path]) -> None:
    script = (
        "CREATE TABLE a (k INTEGER PRIMARY KEY); CREATE TABLE b (x TEXT REFERENCES a(k));"
        "INSERT INTO a VALUES (1), (2), (3); INSERT INTO b VALUES ('1'), ('1'), ('3');"
    )
    path = fresh_db(script)
    drawn = DatabaseFuzzer(_profile(path)).draw(1)
    assert drawn["b"] and {int(str(row[0])) for row in drawn["b"]} <= {row[0] for row in drawn["a"]}
    assert all(type(row[0]) is str for row in drawn["b"])


def test_a_column_that_follows_from_another_still_does(fresh_db: Callable[..., Path]) -> None:
    script = "CREATE TABLE city (city TEXT, state TEXT, size INT);"
    for i in range(60):
        script += f"INSERT INTO city VALUES ('c{i % 12}', 's{i % 12 % 5}', {i});"
    profile = _profile(fresh_db(script))
    assert profile.tables[0].columns[1].follows == 0
    for number in range(20):
        state: dict[object, object] = {}
        for city, there, _ in DatabaseFuzzer(profile).draw(number)["city"]:
            assert state.setdefault(city, there) == there


def test_compared_columns_share_values(fresh_db: Callable[..., Path]) -> None:
    script = "CREATE TABLE a (x INT); CREATE TABLE b (y INT);"
    script += "".join(f"INSERT INTO a VALUES ({i}), ({i}); INSERT INTO b VALUES ({i + 500}), ({i + 500});" for i in range(99))  # fmt: skip
    path = fresh_db(script)

    def num_shared(hints: FuzzHints | None) -> int:
        fuzzer = DatabaseFuzzer(_profile(path), hints)
        drawn = [fuzzer.draw(number) for number in range(20)]
        return sum(bool({r[0] for r in d["a"]} & {r[0] for r in d["b"]}) for d in drawn)

    assert num_shared(None) == 0
    assert num_shared(FuzzHints(joins=[(("a", "x"), ("b", "y"))])) > 15


def test_cycles_and_shared_columns_of_references_end_without_orphans(
    fresh_db: Callable[..., Path], tmp_path: Path
) -> None:
    script = """
    CREATE TABLE a (id INTEGER PRIMARY KEY, b INT REFERENCES b(id));
    CREATE TABLE b (id INTEGER PRIMARY KEY, a INT REFERENCES a(id));
    CREATE TABLE c (id INTEGER PRIMARY KEY REFERENCES a(id) REFERENCES b(id));
    """
    for i in range(20):
        script += f"INSERT INTO a VALUES ({i}, {i}); INSERT INTO b VALUES ({i}, {i});"
        script += f"INSERT INTO c VALUES ({i});"
    fuzzer = DatabaseFuzzer(_profile(fresh_db(script)))
    num_rows = 0
    for number in range(20):
        file = tmp_path / f"{number}.sqlite"
        fuzzer.write(number, file)
        connection = sqlite3.connect(file)
        assert connection.execute("PRAGMA foreign_key_check").fetchall() == []
        num_rows += connection.execute("SELECT count(*) FROM c").fetchone()[0]
        connection.close()
    fuzzer.close()
    assert num_rows > 20


def test_an_empty_database_gets_rows_by_its_declarations(fresh_db: Callable[..., Path]) -> None:
    path = fresh_db("CREATE TABLE t (id INTEGER PRIMARY KEY, word TEXT, born DATE, share REAL)")
    rows = DatabaseFuzzer(_profile(path)).draw(0)["t"]
    assert len(rows) >= 3
    assert all(type(r[0]) is int and type(r[1]) is str and "-" in str(r[2]) for r in rows)


def test_a_generated_column_is_computed_and_not_drawn(
    fresh_db: Callable[..., Path], tmp_path: Path
) -> None:
    path = fresh_db(
        "CREATE TABLE sale (id INTEGER PRIMARY KEY, price REAL, n INT,"
        " total REAL AS (price * n), code TEXT AS ('S' || id) STORED UNIQUE);"
        "INSERT INTO sale (id, price, n) VALUES (1, 2.5, 2), (2, 4.0, 1), (3, 1.5, 6);"
    )
    [sale] = _profile(path).tables
    assert [column.name for column in sale.columns] == ["id", "price", "n"]
    assert {c.name: c.values for c in sale.generated} == {
        "total": (5.0, 4.0, 9.0),
        "code": ("S1", "S2", "S3"),
    }
    hints = FuzzHints(constants={("sale", "total"): [9.0], ("sale", "n"): [7]})
    DatabaseFuzzer(_profile(path), hints).write(0, tmp_path / "neighbour.sqlite")
    with open_engine(tmp_path / "neighbour.sqlite") as engine:
        rows = engine.execute("SELECT id, price, n, total, code FROM sale").rows
    assert len(rows) > 3 and any(n == 7 for _, _, n, _, _ in rows)
    assert all((total, code) == (price * n, f"S{i}") for i, price, n, total, code in rows)


def test_lists_and_structs_of_duckdb_are_drawn_like_other_values(tmp_path: Path) -> None:
    duckdb = pytest.importorskip("duckdb")
    path = tmp_path / "nested.duckdb"
    with duckdb.connect(str(path)) as connection:
        connection.execute(
            "CREATE TABLE t (id INTEGER PRIMARY KEY, tags VARCHAR[], deep INTEGER[][], "
            "pair STRUCT(a INTEGER, b VARCHAR[]), counts MAP(VARCHAR, INTEGER))"
        )
        connection.execute(
            "INSERT INTO t SELECT i, ['a', 'b' || i % 2], [[i % 3], []], "
            "{'a': i % 2, 'b': ['x']}, map {'k': i % 2} FROM range(20) AS r(i)"
        )
    profile = _profile(path)
    assert profile.tables[0].columns[1].values == (("a", "b0"), ("a", "b1"))
    fuzzer = DatabaseFuzzer(profile)
    fuzzer.write(0, tmp_path / "0.duckdb")
    with open_engine(tmp_path / "0.duckdb") as engine:
        rows = engine.execute("SELECT tags, deep, pair, counts FROM t").rows
    assert rows
    for tags, deep, pair, counts in rows:
        assert tags in (["a", "b0"], ["a", "b1"]) and deep[1] == []
        assert pair["b"] == ["x"] and set(counts) == {"k"}


def test_a_duckdb_database_gets_duckdb_instances(tmp_path: Path) -> None:
    duckdb = pytest.importorskip("duckdb")
    with duckdb.connect(str(tmp_path / "d.duckdb")) as connection:
        connection.execute("CREATE TABLE t (id INTEGER PRIMARY KEY, born DATE, share DECIMAL(4,2))")
        connection.execute(
            "INSERT INTO t SELECT i, DATE '2020-01-01' + i::INT, i / 10 FROM range(50) r(i)"
        )
    profile = _profile(tmp_path / "d.duckdb")
    hints = FuzzHints(constants={("t", "born"): ["2025-05-05"]})
    fuzzer = DatabaseFuzzer(profile, hints)
    fuzzer.write(0, tmp_path / "0.duckdb")
    with open_engine(tmp_path / "0.duckdb") as engine:
        rows = engine.execute("SELECT * FROM t ORDER BY id").rows
        counts = engine.execute("SELECT count(*), count(DISTINCT id) FROM t").rows[0]
    assert sorted(fuzzer.draw(0)["t"]) == list(rows)
    assert counts[0] == counts[1] >= 3
    assert any(
        str(row[1]) == "2025-05-05" for number in range(9) for row in fuzzer.draw(number)["t"]
    )


@settings(max_examples=40)
@given(
    values=st.lists(
        st.tuples(
            st.one_of(st.none(), st.integers(-(2**63), 2**63 - 1), st.text(max_size=5)),
            st.one_of(st.none(), st.floats(allow_nan=False), st.binary(max_size=3)),
        ),
        max_size=20,
    ),
    seed=st.integers(0, 10),
)
def test_any_content_gives_an_instance(
    values: list[tuple[object, object]], seed: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("any")
    connection = sqlite3.connect(folder / "any.sqlite")
    connection.execute("CREATE TABLE t (a, b)")
    clean = [
        tuple(v.encode(errors="ignore").decode() if isinstance(v, str) else v for v in row)
        for row in values
    ]
    connection.executemany("INSERT INTO t VALUES (?, ?)", clean)
    connection.commit()
    connection.close()
    with SQLiteEngine(folder / "any.sqlite") as engine:
        fuzzer = DatabaseFuzzer(profile_database(engine), seed=seed)
    fuzzer.write(seed, folder / "instance.sqlite")
    fuzzer.close()
    with SQLiteEngine(folder / "instance.sqlite") as engine:
        stored = engine.execute("SELECT * FROM t").rows
    assert list(stored) == fuzzer.draw(seed)["t"]
    if all(None not in row for row in clean) and clean:
        assert all(None not in row for row in stored)


@pytest.mark.parametrize("db_id", ["world_1", "car_1", "cre_Drama_Workshop_Groups", "sakila_1"])
def test_real_databases_have_neighbours_with_rows(db_id: str, spider_databases: Path) -> None:
    profile = _profile(spider_databases / db_id / f"{db_id}.sqlite")
    fuzzer = DatabaseFuzzer(profile)
    drawn = [fuzzer.draw(number) for number in range(8)]
    for table in profile.tables:
        # A column that refers to two tables can find no value that both have.
        assert sum(bool(rows[table.name]) for rows in drawn) >= 6
