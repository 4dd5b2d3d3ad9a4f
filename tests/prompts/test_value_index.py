"""Values that the words of a question name."""

import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sense_trl.database.engine import ExecutionLimits
from sense_trl.database.opening import open_engine
from sense_trl.errors import DatabaseError
from sense_trl.prompts import value_index
from sense_trl.prompts.value_index import ValueIndex, build_value_index

CITIES = """
CREATE TABLE place (city VARCHAR, state VARCHAR, code VARCHAR, founded DATE, people INTEGER);
INSERT INTO place VALUES
    ('New York', 'OR', 'A', '1624-01-01', 8), ('York', 'NY', 'h', '0071-01-01', 1),
    ('São Paulo', 'in', '42', '1554-01-25', 12), ('北京', 'US', 'x y z', '1045-01-01', 21),
    ('Republic of Ireland', 'Date', 'cat', '1922-12-06', 5), (NULL, '', '!?', NULL, NULL);
"""


@pytest.fixture(params=["p.sqlite", "p.duckdb"])
def index(request: pytest.FixtureRequest, make_database: Callable[..., Path]) -> ValueIndex:
    path = make_database(CITIES, name=request.param)
    return build(path)


def build(path: Path, **options: object) -> ValueIndex:
    target = path.with_suffix(".index")
    with open_engine(path) as engine:
        build_value_index(engine, target, **options)  # type: ignore[arg-type]
    return ValueIndex(target)


def found(index: ValueIndex, text: str, **options: object) -> list[str]:
    matches = index.find(text, max_matches=10, **options)  # type: ignore[arg-type]
    return [match.value for match in matches]


@pytest.mark.parametrize(
    ("question", "values"),
    [
        ("how many live in new york?", ["New York"]),
        ("how many live in York or new york?", ["New York", "York"]),
        ("Who is from Sao Paulo?", ["São Paulo"]),
        ("Who is from SÃO PAULO?", ["São Paulo"]),
        ("北京有多少人?", ["北京"]),
        ("Is it in the US?", ["US"]),
        ("Tell us who", []),
        ("one or two", []),
        ("one OR two", ["OR"]),
        ("which state in it", []),
        ("grade A please", ["A"]),
        ("is a thing", []),
        ("the section named h", []),
        ("the section named 'h'", ["h"]),
        ("42 of them", []),
        ('code "42"', ["42"]),
        ("founded on 1554-01-25", ["1554-01-25"]),
        ("two cats", ["cat"]),
        ("people of Ireland republic", []),
        ("the republic of ireland", ["Republic of Ireland"]),
        ("what of Republic Ireland", []),
        ("ireland, the republic of irelan", ["Republic of Ireland"]),
        ("", []),
        ("?!", []),
    ],
)
def test_the_values_that_a_question_names_are_found(
    index: ValueIndex, question: str, values: list[str]
) -> None:
    assert sorted(found(index, question)) == sorted(values)


def test_matches_say_where_and_how_much(index: ValueIndex) -> None:
    [match] = index.find("in new york", max_matches=3)
    assert (match.table, match.column, match.score) == ("place", "city", 1.0)
    [match] = index.find("in republic of irelan", max_matches=3)
    assert match.score == pytest.approx(18 / 19)
    assert len(index.find("York, New York, Sao Paulo", max_matches=2)) == 2
    assert index.find("York", max_matches=0) == []


def test_words_of_the_schema_are_no_values_unless_written_as_stored(index: ValueIndex) -> None:
    assert found(index, "the date", names={"date"}) == []
    assert found(index, "the Date", names={"date"}) == ["Date"]
    assert found(index, "ireland republic of", names={"ireland", "republic"}) == []


def test_what_is_left_out(make_database: Callable[..., Path]) -> None:
    path = make_database(
        "CREATE TABLE t (a TEXT, b TEXT, n INTEGER); CREATE VIEW v AS SELECT a AS c FROM t;"
        f"INSERT INTO t VALUES ('{'long ' * 21}', 'secret word', 7), ('two' || char(10) || 'lines',"
        " 'x', 8), ('<|im_end|> hello', 'y', 9), ('kept', '--', 'text here')"
    )
    index = build(path, excluded={("t", "b")})
    assert len(index) == 1
    assert found(index, "kept secret word hello two lines") == ["kept"]


def test_a_value_stands_once_however_often_it_comes_and_however_it_is_read(
    make_database: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Portions of 100 rows; tables with a hole, without a rowid, and with a column of its name."""
    monkeypatch.setattr(value_index, "_PAGE_CELLS", 1)
    monkeypatch.setattr(value_index, "_MAX_REMEMBERED", 10)
    rows = ", ".join(f"({n}, 'value {n % 250}')" for n in range(1_000))
    path = make_database(
        f"CREATE TABLE a (i INTEGER PRIMARY KEY, x TEXT); INSERT INTO a VALUES {rows};"
        f"CREATE TABLE b (i INTEGER PRIMARY KEY, x TEXT) WITHOUT ROWID; INSERT INTO b VALUES {rows};"
        f"CREATE TABLE c (rowid TEXT, x TEXT); INSERT INTO c SELECT 'same', x FROM a;"
        "DELETE FROM a WHERE i BETWEEN 100 AND 700"
    )
    read: list[tuple[str, int]] = []
    index = build(path, on_progress=lambda table, rows: read.append((table, rows)))
    assert len(index) == 3 * 250 + 1
    assert [m.table for m in index.find("value 249", max_matches=9)] == ["a", "b", "c"]
    assert read[-1] == ("c", 1_000)
    duck = make_database(
        "CREATE TABLE d AS SELECT 'value ' || (i % 250) AS x FROM range(1000) r(i);"
        "DELETE FROM d WHERE x = 'value 7'",
        name="d.duckdb",
    )
    assert len(build(duck)) == 249


def test_columns_of_more_values_than_are_taken_say_so(
    make_database: Callable[..., Path],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(value_index, "_MAX_PER_COLUMN", 5)
    rows = ", ".join(f"('value {n}', 'other {n}')" for n in range(9))
    path = make_database(f"CREATE TABLE t (x TEXT, y TEXT); INSERT INTO t VALUES {rows}")
    assert len(build(path)) == 10
    assert "t.x" in caplog.text
    assert "the first 5" in caplog.text


def test_a_file_that_is_no_index_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "i.sqlite"
    with pytest.raises(DatabaseError, match="is no index of values"):
        ValueIndex(file)
    for content in (b"", b"nonsense" * 1000):
        file.write_bytes(content)
        with pytest.raises(DatabaseError, match="is no index of values"):
            ValueIndex(file)


@settings(max_examples=30)
@given(st.text(max_size=40).map(lambda text: text.strip()))
def test_a_value_is_found_in_quotes(tmp_path_factory: pytest.TempPathFactory, value: str) -> None:
    import sqlite3

    path = tmp_path_factory.mktemp("d") / "d.sqlite"
    connection = sqlite3.connect(path)
    connection.execute("CREATE TABLE t (x TEXT)")
    try:
        connection.execute("INSERT INTO t VALUES (?)", (value,))
    except UnicodeEncodeError:
        return
    connection.commit()
    connection.close()
    with build(path) as index:
        expected = [value] if len(index) else []
        assert found(index, f"Which rows have '{value}'?") == expected


def test_a_word_of_every_question_has_no_other_number(make_database: Callable[..., Path]) -> None:
    statements = (
        "CREATE TABLE hero (name TEXT); INSERT INTO hero VALUES ('Ares'), ('Alls'), ('Heros')"
    )
    with build(make_database(statements)) as index:
        assert found(index, "Which are they, and how old are all?") == []
        assert found(index, "Is ares a hero?") == ["Ares", "Heros"]


PUBLISHERS = """
CREATE TABLE publisher (name TEXT);
INSERT INTO publisher VALUES ('Marvel Comics'), ('DC Comics'), ('Image Comics'), ('Ms Marvel 2'),
    ('Marvel'), ('Harvard Business Review');
"""


@pytest.mark.parametrize(
    ("question", "values"),
    [
        # What the others have in common with the question is taken, in any number.
        ("published by marvel comics", ["Marvel Comics"]),
        ("marvel comics, and once more Marvel Comics", ["Marvel Comics"]),
        # A word of their own counts, and so does one that stands apart a second time.
        ("DC and Marvel Comics", ["DC Comics", "Marvel Comics"]),
        ("comics beside marvel comics", ["DC Comics", "Marvel Comics"]),
        ("comics", ["DC Comics"]),
        ("the harvard business revue and Marvel", ["Harvard Business Review", "Marvel"]),
    ],
)
def test_values_that_share_the_words_of_others_alone_are_not_named(
    make_database: Callable[..., Path], question: str, values: list[str]
) -> None:
    with build(make_database(PUBLISHERS)) as index:
        assert sorted(found(index, question)) == sorted(values)


def test_of_a_table_a_bounded_part_is_read(
    make_database: Callable[..., Path],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    rows = ", ".join(f"('word{n}', 'x{n}')" for n in range(400))
    path = make_database(
        f"CREATE TABLE a (x TEXT, y TEXT); INSERT INTO a VALUES {rows};"
        "CREATE TABLE b (z TEXT); INSERT INTO b VALUES ('behind')",
        name="long.sqlite",
    )
    monkeypatch.setattr(value_index, "_PAGE_CELLS", 200)
    monkeypatch.setattr(value_index, "_MAX_CELLS", 500)
    with build(path) as index:
        # Three portions of 100 rows; the next table has a budget of its own.
        assert len(index) == 2 * 300 + 1
        assert found(index, "what is word7, word299, word300 or behind?") == [
            "word299",
            "behind",
            "word7",
        ]
    [record] = caplog.records
    assert "Of a of " in record.message and "the first 300 rows" in record.message
    caplog.clear()
    monkeypatch.setattr(value_index, "_MAX_VALUES", 150)
    seen: list[tuple[str, int]] = []
    with build(path, on_progress=lambda table, number: seen.append((table, number))) as index:
        assert len(index) == 150
    # What finds no room is not read either.
    assert seen == [("a", 100)]
    assert "No values of tables behind a" in caplog.text


def test_long_texts_are_passed_over_and_a_generated_column_may_be_named_rowid(
    make_database: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(value_index, "_PAGE_CELLS", 1)
    rows = ", ".join(f"('value {n}')" for n in range(250))
    path = make_database(
        "CREATE TABLE a (x TEXT, rowid TEXT GENERATED ALWAYS AS (x) VIRTUAL);"
        f"INSERT INTO a (x) VALUES {rows};"
        # To SQLite the second has no character, and it alone is more than a result may be.
        "INSERT INTO a (x) VALUES (printf('%.*c', 2000000, 'x'));"
        "INSERT INTO a (x) VALUES (CAST(zeroblob(900000) AS TEXT))"
    )
    limits = ExecutionLimits(max_result_bytes=100_000)
    with open_engine(path, limits=limits) as engine:
        build_value_index(engine, path.with_suffix(".index"))
    # Both columns hold each of them.
    assert len(ValueIndex(path.with_suffix(".index"))) == 500


def test_an_index_that_is_damaged_behind_its_start_says_so(
    make_database: Callable[..., Path],
) -> None:
    rows = ", ".join(f"('word{n} and more', 'x{n}')" for n in range(2_000))
    path = make_database(f"CREATE TABLE a (x TEXT, y TEXT); INSERT INTO a VALUES {rows}")
    build(path).close()
    file = path.with_suffix(".index")
    content = file.read_bytes()
    kept = int(0.6 * len(content))
    file.write_bytes(content[:kept] + b"\xab" * (len(content) - kept))
    with (
        ValueIndex(file) as index,
        pytest.raises(DatabaseError, match=r"\.index is damaged \(.*\)\. Delete it"),
    ):
        found(index, "what is word7 and more, or word1999 and more?")


@pytest.fixture
def passable_folder() -> Iterator[Path]:
    """A folder that everybody may go through, up to the root; those of pytest are private."""
    with tempfile.TemporaryDirectory(dir="/tmp") as folder:
        Path(folder).chmod(0o755)
        yield Path(folder)


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() != 0, reason="root gives away files")
def test_a_group_that_may_not_read_the_database_may_not_read_its_index(
    make_database: Callable[..., Path], passable_folder: Path
) -> None:
    path = Path(shutil.move(make_database(CITIES), passable_folder))
    path.chmod(0o640)
    os.chown(path, -1, os.getegid() + 1)
    build(path)
    assert path.with_suffix(".index").stat().st_mode & 0o777 == 0o600


@pytest.mark.skipif(os.name != "posix", reason="rights are those of POSIX")
@pytest.mark.parametrize("mode", [0o600, 0o640, 0o644])
def test_an_index_is_read_by_whom_the_database_is(
    make_database: Callable[..., Path], passable_folder: Path, mode: int
) -> None:
    path = Path(shutil.move(make_database(CITIES), passable_folder))
    path.chmod(mode)
    build(path).close()
    assert path.with_suffix(".index").stat().st_mode & 0o777 == mode


@pytest.mark.skipif(os.name != "posix", reason="rights are those of POSIX")
@pytest.mark.parametrize(("folder", "expected"), [(0o700, 0o600), (0o750, 0o640), (0o711, 0o644)])
def test_whom_a_folder_keeps_from_the_database_it_keeps_from_its_index(
    make_database: Callable[..., Path], passable_folder: Path, folder: int, expected: int
) -> None:
    private = passable_folder / "private"
    private.mkdir()
    path = Path(shutil.move(make_database(CITIES), private))
    path.chmod(0o644)
    private.chmod(folder)
    with open_engine(path) as engine:
        build_value_index(engine, passable_folder / "values.index")
    assert (passable_folder / "values.index").stat().st_mode & 0o777 == expected


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() != 0, reason="root gives away files")
def test_a_folder_of_another_group_lets_the_own_one_through_as_others(
    make_database: Callable[..., Path], passable_folder: Path
) -> None:
    folder = passable_folder / "theirs"
    folder.mkdir()
    os.chown(folder, -1, os.getegid() + 1)
    path = Path(shutil.move(make_database(CITIES), folder))
    path.chmod(0o640)
    for mode, expected in ((0o750, 0o600), (0o701, 0o640)):
        folder.chmod(mode)
        with open_engine(path) as engine:
            build_value_index(engine, passable_folder / "values.index")
        assert (passable_folder / "values.index").stat().st_mode & 0o777 == expected
