"""What a query on DuckDB may contain: nothing that reaches beyond the tables of its database."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import duckdb
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sense_trl.database.duckdb_check import FUNCTIONS, TABLE_FUNCTIONS, StatementCheck
from sense_trl.database.duckdb_engine import DuckDBEngine
from sense_trl.database.engine import QueryStatus

CASES = Path(__file__).with_name("cases") / "hostile_duckdb.sql"
SCRIPT = """
CREATE TABLE t AS SELECT range AS a, range % 3 AS b FROM range(9);
CREATE SEQUENCE s;
CREATE MACRO peek(x) AS current_setting(x);
CREATE MACRO peek_again(x) AS upper(peek(x));
CREATE MACRO one_of_two(x) AS x, (x, y) AS current_setting(x);
CREATE MACRO run(x) AS TABLE FROM query(x);
CREATE MACRO plus_one(x) AS x + 1;
CREATE MACRO plus_two(x) AS plus_one(plus_one(x));
CREATE MACRO first_rows(n) AS TABLE SELECT a FROM t ORDER BY a LIMIT n;
"""
IS_OLD = duckdb.__version__.startswith("1.")
# Functions of the parser or the binder, which DuckDB's own list of functions does not have.
UNLISTED = {"unnest"}
# Names that DuckDB takes for functions without parentheses; all of them are constant here.
CONSTANT_NAMES = {
    "current_catalog",
    "current_role",
    "current_schema",
    "current_user",
    "session_user",
    "user",
}


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[DuckDBEngine]:
    path = tmp_path_factory.mktemp("check") / "music.duckdb"
    with duckdb.connect(str(path)) as connection:
        connection.execute(SCRIPT)
    with DuckDBEngine(path) as engine:
        yield engine


@pytest.fixture(scope="module")
def check() -> Iterator[StatementCheck]:
    with duckdb.connect(":memory:") as connection:
        connection.execute("CREATE TABLE t (a INT)")
        yield StatementCheck(connection, "memory")


@pytest.fixture(scope="module")
def known_functions() -> list[tuple[str, str]]:
    with duckdb.connect(":memory:") as connection:
        return connection.execute(
            "SELECT DISTINCT function_name, function_type FROM duckdb_functions() ORDER BY ALL"
        ).fetchall()


def test_every_hostile_query_ends_as_its_case_says(engine: DuckDBEngine) -> None:
    file = engine.path.with_name("secret.csv")
    file.write_text("secret")
    files = {path.name for path in engine.path.parent.iterdir()}
    wrong, num_denied, status = [], 0, ""
    for line in CASES.read_text(encoding="utf-8").split("\n"):
        if not line or line.startswith("---"):
            continue
        if line.startswith("-- "):
            status = line.removeprefix("-- ")
            continue
        sql = line.replace("{file}", str(file)).replace("{folder}", str(file.parent))
        result = engine.execute(sql)
        num_denied += status == "denied"
        # Earlier versions cannot parse all of it.
        refused = {status, "syntax_error", "execution_error"} if IS_OLD else {status}
        if result.status not in refused or (status == "ok") != result.ok:
            wrong.append((status, sql, result.status, result.error))
    assert wrong == []
    assert num_denied >= 150
    assert {path.name for path in engine.path.parent.iterdir()} == files
    assert engine.execute("SELECT count(*) FROM t").rows == ((9,),)


def test_every_listed_function_exists(known_functions: list[tuple[str, str]]) -> None:
    if IS_OLD:
        pytest.skip("the list is that of DuckDB 2")
    names = {"expression": set(UNLISTED), "table": set()}
    for name, kind in known_functions:
        names["table" if kind == "table" else "expression"].add(name.lower())
    assert FUNCTIONS - names["expression"] == set()
    assert TABLE_FUNCTIONS - names["table"] == set()


def test_every_other_function_is_denied(
    check: StatementCheck, known_functions: list[tuple[str, str]]
) -> None:
    allowed = []
    for name, kind in known_functions:
        quoted = f'"{name}"'
        if name.lower() not in FUNCTIONS:
            texts = [f"SELECT {quoted}(1)", f"SELECT (1).{quoted}()", f"SELECT main.{quoted}(1)"]
        else:
            texts = []
        if name.lower() not in TABLE_FUNCTIONS and "table" in kind:
            texts += [f"FROM {quoted}(1)", f"SELECT 1 FROM t, LATERAL system.main.{quoted}(a)"]
        allowed += [text for text in texts if (check.refuse(text) or ("",))[0] != "denied"]
    assert allowed == []


def test_a_name_without_parentheses_calls_no_other_function(
    engine: DuckDBEngine, known_functions: list[tuple[str, str]]
) -> None:
    ran = {
        name
        for name in {name for name, _ in known_functions} - FUNCTIONS
        if name.isidentifier() and engine.execute(f"SELECT {name}").ok
    }
    assert ran <= CONSTANT_NAMES


def test_what_describes_the_tables_says_nothing_of_files_or_settings(engine: DuckDBEngine) -> None:
    for view in (
        "sqlite_master",
        "sqlite_schema",
        *(
            f"information_schema.{name}"
            for name in (
                "columns",
                "key_column_usage",
                "referential_constraints",
                "table_constraints",
                "tables",
                "views",
            )
        ),
    ):
        result = engine.execute(f"SELECT * FROM {view}")
        assert result.ok, result.error
        assert engine.path.stem not in str(result.rows)
        assert "memory" not in str(result.rows).replace("in_memory", "")


HIDES = st.sampled_from(
    ["", " ", "\t", "\n", "/**/", "-- x\n", "/*(*/", "\u00a0", "\u200b", "\ufeff"]
)
NAMES = st.sampled_from(["query", "setseed", "current_setting", "duckdb_settings", "read_text"])
PLACES = st.sampled_from(
    [
        "SELECT {}('x')",
        "SELECT * FROM {}('x')",
        "SELECT a FROM t WHERE ({}('x')) IS NULL",
        "SELECT list_transform([a], lambda x: {}('x')) FROM t",
        "SELECT CASE WHEN a THEN {}('x') END FROM t GROUP BY 1",
        "WITH c AS (SELECT max({}('x')) OVER () FROM t) FROM c",
        "SELECT (SELECT a FROM t ORDER BY {}('x') LIMIT 1)",
        "DESCRIBE SELECT {}('x')",
    ]
)


@given(place=PLACES, name=NAMES, hidden=st.lists(HIDES, min_size=3, max_size=3), data=st.data())
def test_no_spelling_and_no_place_hides_a_function(
    check: StatementCheck, place: str, name: str, hidden: list[str], data: st.DataObject
) -> None:
    spelled = "".join(data.draw(st.sampled_from([c, c.upper()])) for c in name)
    if data.draw(st.booleans()):
        spelled = f'"{spelled}"'
    if data.draw(st.booleans()):
        spelled = f"main{hidden[0]}.{hidden[1]}{spelled}"
    sql = place.format(spelled + hidden[2])
    refusal = check.refuse(sql)
    assert refusal is not None and refusal[0] is QueryStatus.DENIED, (sql, refusal)


@pytest.mark.parametrize(
    "sql",
    [
        "SELECT " + "(SELECT " * 240 + "1" + ")" * 240,
        "SELECT * FROM " + "(SELECT * FROM " * 2_000 + "t" + ")" * 2_000,
        "SELECT " + "+".join(["1"] * 5_000),
        "SELECT 1 IN (" + "1," * 60_000 + "1)",
        "FROM t " + "JOIN t USING (a) " * 3_000,
    ],
    ids=["subqueries", "from", "sum", "in", "joins"],
)
def test_what_is_too_large_to_look_at_is_refused(check: StatementCheck, sql: str) -> None:
    refusal = check.refuse(sql)
    assert refusal is not None
    assert refusal[0] in (QueryStatus.EXECUTION_ERROR, QueryStatus.SYNTAX_ERROR)


def test_a_text_is_parsed_once(check: StatementCheck) -> None:
    assert check.refuse("SELECT a FROM t") is None
    connection, check._connection = check._connection, None
    try:
        assert check.refuse("SELECT a FROM t") is None
    finally:
        check._connection = connection
