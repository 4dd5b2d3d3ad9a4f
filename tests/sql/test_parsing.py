from __future__ import annotations

import json
import logging
import sqlite3
from pathlib import Path

import hypothesis
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sense_trl.sql.parsing import (
    SQLParseError,
    canonical_sql,
    get_tie_query,
    order_matters,
    outer_limit,
    parse_sql,
    visible_sort_columns,
)


@pytest.mark.parametrize(
    ("sql", "ordered"),
    [
        ("SELECT a FROM t", False),
        ("SELECT a FROM t ORDER BY a", True),
        ("select a from t order\n  by a", True),
        ("(SELECT a FROM t ORDER BY a)", True),
        ("((SELECT a FROM t ORDER BY a))", True),
        ("SELECT a FROM t UNION SELECT b FROM u ORDER BY 1", True),
        ("SELECT a FROM t EXCEPT SELECT b FROM u", False),
        ("SELECT a FROM (SELECT a FROM t ORDER BY b LIMIT 3)", False),
        ("SELECT a FROM t WHERE b = (SELECT b FROM t ORDER BY b LIMIT 1)", False),
        ("WITH c AS (SELECT a FROM t ORDER BY a) SELECT a FROM c", False),
        ("WITH c AS (SELECT a FROM t) SELECT a FROM c ORDER BY a", True),
        ("SELECT rank() OVER (ORDER BY a) FROM t", False),
        ("SELECT 'order by' FROM t", False),
        ("SELECT a FROM t -- order by a", False),
        ('SELECT "order" FROM t', False),
    ],
)
def test_only_the_outermost_query_orders(sql: str, ordered: bool) -> None:
    assert order_matters(sql, "sqlite") is ordered


def test_an_aggregates_order_is_not_the_querys() -> None:
    assert not order_matters("SELECT string_agg(a, ',' ORDER BY a) FROM t", "duckdb")


@pytest.mark.parametrize(
    ("left", "right"),
    [
        ("select name from t", "SELECT\tNAME\nFROM T -- a comment"),
        ("SELECT a.x FROM t a", "SELECT B.X FROM t AS B"),
        ("SELECT x FROM t WHERE a <> 1", "SELECT x FROM t WHERE a != 1"),
        ("SELECT x FROM t WHERE 3 < a", "SELECT x FROM t WHERE a > 3"),
        ("SELECT x FROM t WHERE 3 >= a", "SELECT x FROM t WHERE a <= 3"),
        ("SELECT x FROM t INNER JOIN u ON t.i = u.i", "SELECT x FROM t JOIN u ON t.i = u.i"),
        ("SELECT (x) FROM t WHERE ((a)) = 1;", "SELECT x FROM t WHERE a = 1"),
        ("SELECT COUNT(*) FROM t", "SELECT count ( * ) FROM `t`"),
        (
            "SELECT p.x FROM t p JOIN u q ON p.i = q.i WHERE q.z IN (SELECT r.z FROM v r)",
            "SELECT T1.x FROM t AS T1 JOIN u AS T2 ON T1.i = T2.i "
            "WHERE T2.z IN (SELECT T3.z FROM v AS T3)",
        ),
    ],
)
def test_spellings_of_one_query_have_one_canonical_text(left: str, right: str) -> None:
    assert canonical_sql(left, "sqlite") == canonical_sql(right, "sqlite")


@pytest.mark.parametrize(
    ("left", "right"),
    [
        ("SELECT a FROM t WHERE b = 'x'", "SELECT a FROM t WHERE b = 'X'"),
        ('SELECT a FROM t WHERE b = "x"', 'SELECT a FROM t WHERE b = "X"'),
        ('SELECT a FROM t WHERE b = "x"', "SELECT a FROM t WHERE b = x"),
        ("SELECT a FROM t WHERE b > 1", "SELECT a FROM t WHERE b < 1"),
        ("SELECT a FROM t WHERE a - (b - 1) = 0", "SELECT a FROM t WHERE a - b - 1 = 0"),
        ("SELECT DISTINCT a FROM t", "SELECT a FROM t"),
        ("SELECT a FROM t LEFT JOIN u ON t.i = u.i", "SELECT a FROM t JOIN u ON t.i = u.i"),
        ("SELECT x.a FROM t x, t y WHERE x.i < y.i", "SELECT y.a FROM t x, t y WHERE x.i < y.i"),
        ("SELECT count(a) FROM t", "SELECT count(DISTINCT a) FROM t"),
        ("SELECT a FROM t ORDER BY a", "SELECT a FROM t ORDER BY a DESC"),
        ("SELECT x FROM t WHERE (a OR b) AND c", "SELECT x FROM t WHERE a OR b AND c"),
        ("SELECT x FROM t WHERE NOT (a OR b)", "SELECT x FROM t WHERE NOT a OR b"),
        ("SELECT x FROM t WHERE c < a < b", "SELECT x FROM t WHERE b > a > c"),
        ("SELECT x FROM t WHERE 0 < NOT a", "SELECT x FROM t WHERE NOT a > 0"),
        ("SELECT x FROM t WHERE a NOT IN (1) = 5", "SELECT x FROM t WHERE NOT a IN (1) = 5"),
        # One alias in two scopes is not two aliases.
        (
            "SELECT x.a FROM t x WHERE x.b IN (SELECT x.b FROM u x)",
            "SELECT x.a FROM t x WHERE x.b IN (SELECT y.b FROM u y WHERE y.b = x.b)",
        ),
    ],
)
def test_different_queries_keep_different_texts(left: str, right: str) -> None:
    assert canonical_sql(left, "sqlite") != canonical_sql(right, "sqlite")


OPERANDS = st.sampled_from(["a", "b", "0", "1", "NULL"])
CONDITIONS = st.recursive(
    OPERANDS,
    lambda inner: st.one_of(
        st.builds("({})".format, inner),
        st.builds("NOT {}".format, inner),
        st.builds("{} IS NOT NULL".format, inner),
        st.builds(
            "{} {} {}".format,
            inner,
            st.sampled_from(["AND", "OR", "=", "<", "<=", ">", "NOT LIKE", "+", "||", "%"]),
            inner,
        ),
    ),
    max_leaves=6,
)


@given(CONDITIONS)
@hypothesis.example("a < a + NOT a")
def test_a_condition_and_its_canonical_text_mean_the_same(condition: str) -> None:
    connection = sqlite3.connect(":memory:")
    values = "VALUES (NULL, 0), (0, 1), (1, 0), (1, 1), (2, -1)"
    sql = f"WITH t(a, b) AS ({values}) SELECT {condition} FROM t"
    assert connection.execute(canonical_sql(sql, "sqlite")).fetchall() == (
        connection.execute(sql).fetchall()
    )
    connection.close()


def test_an_alias_that_is_also_a_table_keeps_its_name() -> None:
    connection = sqlite3.connect(":memory:")
    connection.executescript(
        "CREATE TABLE a (x); INSERT INTO a VALUES (1), (2);"
        "CREATE TABLE b (y); INSERT INTO b VALUES (2);"
    )
    sql = "SELECT b.x FROM a AS b WHERE b.x IN (SELECT b.y FROM b)"
    assert connection.execute(sql).fetchall() == [(2,)]
    assert connection.execute(canonical_sql(sql, "sqlite")).fetchall() == [(2,)]
    connection.close()


def test_the_canonical_text_of_gold_gives_golds_rows(
    shared_data: Path, spider_databases: Path
) -> None:
    """Every fifth gold query of Spider dev, run as it is and in its canonical spelling."""
    lines = (shared_data / "spider" / "dev.jsonl").read_text(encoding="utf-8").splitlines()
    examples = list(map(json.loads, lines))[::5]
    checked = 0
    for example in examples:
        path = spider_databases / example["db_id"] / f"{example['db_id']}.sqlite"
        connection = sqlite3.connect(path)
        connection.text_factory = lambda data: data.decode(errors="ignore")
        rows = connection.execute(example["query"]).fetchall()
        canonical = canonical_sql(example["query"], "sqlite")
        assert connection.execute(canonical).fetchall() == rows, canonical
        assert canonical_sql(canonical, "sqlite") == canonical
        connection.close()
        checked += 1
    assert checked > 200


@pytest.mark.parametrize(
    "sql", ["", ";", "-- only words", "SELECT (", "SELECT 1; SELECT 2", "(" * 9]
)
def test_what_is_not_one_statement_is_refused(sql: str) -> None:
    with pytest.raises(SQLParseError):
        parse_sql(sql, "sqlite")


def test_deep_nesting_is_an_error_of_ours() -> None:
    with pytest.raises(SQLParseError):
        parse_sql("SELECT " + "(" * 5_000 + "1" + ")" * 5_000, "sqlite")


@settings(max_examples=100)
@given(st.text(max_size=60) | st.text("SELCTFROMW()'\",;*-/ \n1ax", max_size=60))
def test_any_text_parses_or_raises_our_error(text: str) -> None:
    try:
        parse_sql(text, "sqlite")
    except SQLParseError as error:
        assert str(error)


@pytest.mark.parametrize(
    ("sql", "limit"),
    [
        ("SELECT a FROM t", None),
        ("SELECT a FROM t LIMIT 3", 3),
        ("SELECT a FROM t LIMIT 3 OFFSET 2", 3),
        ("SELECT a FROM t LIMIT 2, 3", 3),
        ("SELECT a FROM t UNION SELECT b FROM u LIMIT 4", 4),
        ("SELECT a FROM (SELECT a FROM t LIMIT 3)", None),
        ("SELECT a FROM t LIMIT 1 + 1", None),
        ("SELECT a FROM t LIMIT -1", None),
    ],
)
def test_the_outermost_limit_is_found(sql: str, limit: int | None) -> None:
    assert outer_limit(sql, "sqlite") == limit


@pytest.mark.parametrize(
    ("sql", "columns"),
    [
        ("SELECT a, b FROM t ORDER BY b", (1,)),
        ("SELECT a, b FROM t ORDER BY 2, 1 DESC", (1, 0)),
        ("SELECT a, count(*) AS n FROM t GROUP BY a ORDER BY n", (1,)),
        ("SELECT a, count(*) FROM t GROUP BY a ORDER BY COUNT(*)", (1,)),
        ("SELECT a AS b, b AS a FROM t ORDER BY a", (1,)),
        ("SELECT a FROM t ORDER BY b", None),
        ("SELECT a FROM t ORDER BY a COLLATE NOCASE", None),
        ("SELECT * FROM t ORDER BY a", None),
        ("SELECT a FROM t", None),
        ("SELECT a FROM t UNION SELECT b FROM u ORDER BY a", (0,)),
        ("SELECT a || 'x' FROM t ORDER BY a || 'X'", None),
    ],
)
def test_sort_keys_among_the_result_columns_are_found(
    sql: str, columns: tuple[int, ...] | None
) -> None:
    assert visible_sort_columns(sql, "sqlite") == columns


@pytest.mark.parametrize(
    ("sql", "limit", "ranks"),
    [
        ("SELECT a FROM t ORDER BY b", None, [1, 1, 2, 3, 3]),
        ("SELECT a FROM t ORDER BY b DESC LIMIT 1", 3, [1, 1, 2]),
        ("SELECT a, b AS k FROM t ORDER BY k LIMIT 2", 2, [1, 1]),
        ("SELECT b, count(*) FROM t GROUP BY 1 ORDER BY 2 DESC, 1", None, [1, 2, 3]),
        ("SELECT b, count(*) FROM t GROUP BY b ORDER BY count(*)", None, [1, 2, 2]),
        ("SELECT a FROM t ORDER BY c COLLATE NOCASE", None, [1, 1, 1, 2, 3]),
        ("SELECT a FROM t ORDER BY b LIMIT 2 OFFSET 1", 3, [1, 2, 3]),
    ],
)
def test_tie_ranks_follow_the_sort_keys(sql: str, limit: int | None, ranks: list[int]) -> None:
    connection = sqlite3.connect(":memory:")
    connection.execute("CREATE TABLE t (a, b, c)")
    connection.executemany(
        "INSERT INTO t VALUES (?, ?, ?)",
        [("p", 1, "x"), ("q", 1, "X"), ("r", 2, "x"), ("s", 3, "y"), ("u", 3, None)],
    )
    tie_sql = get_tie_query(sql, "sqlite", limit=limit)
    assert tie_sql is not None
    found = [row[-1] for row in connection.execute(tie_sql)]
    if "NOCASE" in sql:
        # NULL sorts first and ties with nothing.
        assert found == [1, 2, 2, 2, 3]
    else:
        assert found == ranks
    connection.close()


def test_what_cannot_be_ranked_is_left_alone() -> None:
    assert get_tie_query("SELECT a FROM t", "sqlite", limit=None) is None
    assert get_tie_query("SELECT DISTINCT a FROM t ORDER BY b", "sqlite", limit=None) is None
    assert (
        get_tie_query("SELECT a FROM t UNION SELECT b FROM u ORDER BY 1", "sqlite", limit=1) is None
    )


def test_what_the_dialect_cannot_write_has_no_canonical_form() -> None:
    for columns in ("a, b", "b, a"):
        with pytest.raises(SQLParseError, match="not sqlite"):
            canonical_sql(f"SELECT a FROM (SELECT 1, 2) AS t({columns})", "sqlite")


@pytest.mark.parametrize(
    "sql",
    [
        "SELECT,name FROM t",
        "SELECT name,, age FROM t",
        "SELECT name, FROM t",
        "SELECT a FROM t ORDER BY a ASC DESC",
        "WITH x (SELECT a FROM t) SELECT a FROM x",
        "SELECT a FROM t UNION DISTINCT SELECT b FROM u",
        "SELECT count(name,) FROM t",
        "SELECT name FROM t WHERE age BETWEEN 3 5",
        "SELECT name FROM t WHERE age IN (1,, 2)",
        "AS SELECT name FROM t",
        "+ SELECT name FROM t",
        "SELECT name FROM t * AS u",
        "SELECT name FROM . t",
        "SELECT count(ALL *) FROM t",
        "SELECT count(* EXCEPT) FROM t",
        "SELECT name FROM t NATURAL UNION SELECT name FROM t",
    ],
)
def test_what_sqlglot_forgives_is_not_one_with_a_query_that_runs(sql: str) -> None:
    connection = sqlite3.connect(":memory:")
    with pytest.raises(sqlite3.Error, match=r"syntax|NATURAL"):
        connection.execute(sql)
    connection.close()
    with pytest.raises(SQLParseError):
        canonical_sql(sql, "sqlite")


def test_a_comma_before_from_is_duckdbs() -> None:
    assert canonical_sql("SELECT a, FROM t", "duckdb") == canonical_sql("SELECT a FROM t", "duckdb")


def test_a_text_that_breaks_the_parser_does_not_parse() -> None:
    with pytest.raises(SQLParseError, match="cannot parse"):
        parse_sql("->", "sqlite")


def test_prose_that_begins_like_a_command_warns_nobody(caplog, monkeypatch):
    logger = logging.getLogger("sqlglot")
    # Other libraries switch it off.
    monkeypatch.setattr(logger, "disabled", False)
    caplog.set_level(logging.WARNING, logger="sqlglot")
    parse_sql("Create a data table as a list.", "sqlite")
    parse_sql("If a school is 456, it will have addresses", "sqlite")
    assert caplog.records == []
    logger.warning("something else")
    assert len(caplog.records) == 1
