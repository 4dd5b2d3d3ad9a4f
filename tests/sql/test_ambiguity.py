import sqlite3

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sense_trl.sql import ambiguity
from sense_trl.sql.ambiguity import (
    depends_on_scan_order,
    get_bare_column_queries,
    get_choosing_subqueries,
    get_tie_breaking_queries,
)
from sense_trl.sql.parsing import SQLParseError, canonical_sql
from sense_trl.sql.plain_query import PlainQuery, read_plain_query


@pytest.mark.parametrize(
    "sql",
    [
        "SELECT a FROM t",
        "SELECT a FROM t WHERE b > 1 ORDER BY c",
        "SELECT a, count(*), avg(b) FROM t GROUP BY a HAVING max(b) > 2",
        "SELECT count(DISTINCT a) FROM t",
        "SELECT x.a FROM t AS x JOIN u ON x.a = u.a WHERE u.b IN (SELECT b FROM v)",
        "SELECT a FROM t WHERE b = (SELECT max(b) FROM t)",
        "SELECT a FROM t UNION SELECT b FROM u",
        "SELECT 1 FROM t WHERE EXISTS (SELECT 1 FROM u WHERE u.a = t.a)",
        "SELECT t.a, count(*) FROM t GROUP BY 1",
        "SELECT lower(a) AS l, count(*) FROM t GROUP BY l",
        "SELECT a, rank() OVER (ORDER BY b), sum(c) OVER (ORDER BY b) FROM t",
        "SELECT a, sum(c) OVER (ORDER BY b GROUPS 1 PRECEDING) FROM t",
        "SELECT a, sum(c) FILTER (WHERE c > 1) OVER w FROM t WINDOW w AS (ORDER BY b)",
        "SELECT a FROM t WHERE EXISTS (SELECT 1 FROM u WHERE u.a = t.a LIMIT 1)",
    ],
)
def test_a_query_whose_rows_no_order_of_reading_changes(sql: str) -> None:
    assert not depends_on_scan_order(sql, "sqlite")


@pytest.mark.parametrize(
    "sql",
    [
        "SELECT a FROM t LIMIT 3",
        "SELECT a FROM t WHERE b IN (SELECT b FROM u LIMIT 1)",
        "SELECT group_concat(a) FROM t",
        "SELECT a, row_number() OVER (ORDER BY b) FROM t",
        "SELECT a, sum(c) OVER (ORDER BY b ROWS 1 PRECEDING) FROM t",
        "SELECT a, sum(c) OVER w FROM t WINDOW v AS (ROWS 1 PRECEDING), w AS (v)",
        "SELECT a, first_value(c) OVER w FROM t WINDOW w AS (ORDER BY b)",
        "SELECT json_group_array(a) FROM t",
        "SELECT a FROM t WHERE EXISTS (SELECT 1 FROM (SELECT b FROM u LIMIT 1) WHERE b = t.b)",
        "SELECT a, b, count(*) FROM t GROUP BY a",
        "SELECT a, max(b) FROM t",
        "SELECT * FROM t GROUP BY a",
        "SELECT t.a, u.a, count(*) FROM t JOIN u ON t.i = u.i GROUP BY t.a",
        "SELECT a FROM t WHERE b = (SELECT b FROM u)",
        "SELECT a FROM t WHERE b = (SELECT max(b) FROM u GROUP BY c)",
        "SELECT some_function(a) FROM t",
        'SELECT "b", count(*) FROM t GROUP BY a',
        "SELECT a FROM t WHERE (SELECT b FROM u) IN (1, 2)",
        "SELECT a FROM t WHERE b IN ((SELECT b FROM u))",
        "SELECT a FROM t JOIN u ON (SELECT b FROM u)",
        "SELECT a, (SELECT max(c) FROM u WHERE u.b = t.b), count(*) FROM t GROUP BY a",
    ],
)
def test_a_query_that_an_order_of_reading_may_change(sql: str) -> None:
    assert depends_on_scan_order(sql, "sqlite")


@pytest.mark.parametrize(
    "sql",
    [
        "SELECT a FROM t",
        "SELECT a, count(*) FROM t GROUP BY a",
        "SELECT t.a, count(*) FROM t GROUP BY a ORDER BY count(*)",
        "SELECT a AS x, count(*) FROM t GROUP BY x",
        # SQLite takes `a` from the row of the maximum.
        "SELECT a, max(b) FROM t",
        # A quoted word may be a string.
        'SELECT "a", count(*) FROM t',
        "SELECT a FROM t WHERE b IN (SELECT b FROM u GROUP BY b)",
    ],
)
def test_a_query_without_a_free_choice_is_left_alone(sql: str) -> None:
    assert get_bare_column_queries(sql, "sqlite") is None


def test_what_is_no_query_is_an_error() -> None:
    with pytest.raises(SQLParseError):
        get_bare_column_queries("SELECT a, count( FROM t GROUP BY", "sqlite")


def _answers(rows: list[tuple[object, ...]], sql: str) -> list[list[tuple[object, ...]]]:
    connection = sqlite3.connect(":memory:")
    connection.execute("CREATE TABLE t (a, b)")
    connection.executemany("INSERT INTO t VALUES (?, ?)", rows)
    queries = get_bare_column_queries(sql, "sqlite")
    assert queries is not None
    answers = [connection.execute(query).fetchall() for query in queries]
    connection.close()
    return answers


def test_an_inner_column_keeps_its_name() -> None:
    sql = "SELECT b FROM (SELECT a, b FROM t GROUP BY a) AS s WHERE b > 1"
    low, high = _answers([(1, 2), (1, 3)], sql)
    assert (low, high) == ([(2,)], [(3,)])


values = st.one_of(st.none(), st.integers(0, 2), st.sampled_from(["x", "y"]))


@given(st.lists(st.tuples(st.integers(0, 2), values), max_size=8))
@settings(max_examples=100)
def test_the_two_answers_differ_if_and_only_if_a_group_has_several_values(
    rows: list[tuple[object, ...]],
) -> None:
    low, high = _answers(rows, "SELECT a, b FROM t GROUP BY a")
    groups: dict[object, set[object]] = {}
    for key, value in rows:
        groups.setdefault(key, set()).add(value)
    assert (sorted(map(repr, low)) != sorted(map(repr, high))) == any(
        len(group) > 1 for group in groups.values()
    )


@pytest.mark.parametrize(
    ("sql", "flag"),
    [
        ("SELECT a FROM t ORDER BY b LIMIT 1", "but_for_outer_limit"),
        ("SELECT a FROM t LIMIT 2 OFFSET 1", "but_for_outer_limit"),
        ("SELECT a, b, count(*) FROM t GROUP BY a", "but_for_bare_columns"),
    ],
)
def test_what_has_been_looked_at_is_left_out_of_account(sql: str, flag: str) -> None:
    assert depends_on_scan_order(sql, "sqlite")
    assert not depends_on_scan_order(sql, "sqlite", **{flag: True})


@pytest.mark.parametrize(
    "sql",
    [
        "SELECT a FROM (SELECT a FROM t LIMIT 1) LIMIT 1",
        "SELECT a, max(b) FROM t LIMIT 1",
        "SELECT * FROM t GROUP BY a",
    ],
)
def test_what_has_not_been_looked_at_still_counts(sql: str) -> None:
    assert depends_on_scan_order(sql, "sqlite", but_for_outer_limit=True, but_for_bare_columns=True)


@pytest.mark.parametrize(
    ("sql", "largest_first"),
    [
        ("SELECT a, b FROM t LIMIT 1", "SELECT a, b FROM t ORDER BY 1 DESC, 2 DESC LIMIT 1"),
        (
            "SELECT a FROM t WHERE b IN (SELECT b FROM t ORDER BY c LIMIT 1)",
            "SELECT a FROM t WHERE b IN (SELECT b FROM t ORDER BY c, 1 DESC LIMIT 1)",
        ),
        (
            "SELECT a, row_number() OVER (ORDER BY b) FROM t",
            "SELECT a, ROW_NUMBER() OVER (ORDER BY b, a DESC, b DESC) FROM t",
        ),
        (
            "SELECT a FROM t WHERE b = (SELECT b FROM u)",
            "SELECT a FROM t WHERE b = (SELECT b FROM u ORDER BY 1 DESC)",
        ),
        ("SELECT a FROM t", None),
        ("SELECT * FROM t LIMIT 1", None),
        ("SELECT a, rank() OVER (ORDER BY b) FROM t", None),
        ("SELECT 1 FROM t WHERE EXISTS (SELECT a FROM t LIMIT 1)", None),
        ("WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n LIMIT 5) SELECT i FROM n",
         None),
    ],
)  # fmt: skip
def test_ties_are_broken_where_one_of_several_rows_is_taken(
    sql: str, largest_first: str | None
) -> None:
    queries = get_tie_breaking_queries(sql, "sqlite")
    assert (None if queries is None else queries[1]) == largest_first


def test_the_rows_of_the_outermost_query_are_ordered_on_request() -> None:
    def ordered(sql: str) -> str:
        queries = get_tie_breaking_queries(sql, "sqlite", num_ordered_columns=2)
        assert queries is not None
        return queries[1]

    assert ordered("SELECT * FROM t") == "SELECT * FROM t ORDER BY 1 DESC, 2 DESC"
    assert (
        ordered("SELECT a, b FROM t UNION SELECT c, d FROM u ORDER BY 2")
        == "SELECT a, b FROM t UNION SELECT c, d FROM u ORDER BY 2, 1 DESC, 2 DESC"
    )
    # An order inside is passed on.
    assert (
        ordered("SELECT a, b FROM (SELECT a, b, c FROM t ORDER BY c)")
        == "SELECT a, b FROM (SELECT a, b, c FROM t ORDER BY c, 1 DESC, 2 DESC, 3 DESC)"
    )


PLAIN = st.builds(
    "SELECT {} FROM t{}{}{}{}".format,
    st.sampled_from(["a, b", "*", "a, max(b)", "a || 'order by', (b)"]),
    st.sampled_from(["", " WHERE (a = 1 OR b > 0)", " WHERE a IN (SELECT b FROM t LIMIT 1)"]),
    st.sampled_from(["", " GROUP BY a"]),
    st.sampled_from(["", " ORDER BY b", " order  by count(a) DESC", " ORDER BY (SELECT 1), a"]),
    st.sampled_from(["", " LIMIT 2", " LIMIT (1 + 1);", " LIMIT 1, 2", " -- LIMIT 1"]),
)


@given(PLAIN)
@settings(max_examples=100)
def test_a_plain_text_is_ordered_as_a_tree_would_be(sql: str) -> None:
    connection = sqlite3.connect(":memory:")
    connection.execute("CREATE TABLE t (a, b)")
    connection.executemany("INSERT INTO t VALUES (?, ?)", [(1, 2), (2, 1), (1, 0), (None, 2)])
    queries = get_tie_breaking_queries(sql, "sqlite", num_ordered_columns=2)
    # A comment behind it leaves the text to the parser.
    parsed = get_tie_breaking_queries(f"{sql.rstrip(';')} /* */", "sqlite", num_ordered_columns=2)
    assert queries is not None and parsed is not None

    def answer(query: str) -> object:
        try:
            return connection.execute(query).fetchall()
        except sqlite3.Error:
            return "an error"

    for query, wanted in zip(queries, parsed, strict=True):
        assert answer(query) == answer(wanted)
    connection.close()


ITEMS = [
    "a", "b", "t.a", "count(*)", "max(b)", "min(a) AS m", "avg(t.b)", "lower(a)", "a+b", "*", "1",
    "(SELECT a FROM u)", "(SELECT max(a) FROM u)", "group_concat(a)", "'x'", '"a"', "max(a, b)",
    "count(DISTINCT a)", "b AS a", "upper('group')", "u.b", "b c",
]  # fmt: skip
SHORT_TEXTS = st.builds(
    "SELECT {}{} FROM t{}{}{}{}{}".format,
    st.sampled_from(["", "DISTINCT "]),
    st.lists(st.sampled_from(ITEMS), min_size=1, max_size=2).map(", ".join),
    st.sampled_from(["", ", u", " JOIN u ON t.a = u.a", " JOIN (SELECT b FROM u) AS x"]),
    st.sampled_from([
        "", " WHERE a IN (SELECT b FROM u)", " WHERE a > (SELECT avg(b) FROM u)",
        " WHERE a = (SELECT b FROM u)", " WHERE EXISTS (SELECT * FROM u)",
        " WHERE a IN (SELECT b FROM u ORDER BY b LIMIT 1)", " WHERE a IN ((SELECT b FROM u))",
        " WHERE a IN (SELECT b FROM u GROUP BY a)", " WHERE a IN (SELECT b FROM u GROUP BY b)",
        " WHERE a IN (SELECT b FROM u) OR b = (SELECT max(a) FROM u WHERE a IN (SELECT b FROM u))",
    ]),
    st.sampled_from([
        "", " GROUP BY a", " GROUP BY t.a", " GROUP BY u.a", " GROUP BY lower(a)",
        " GROUP BY a, b", " GROUP BY 1", ' GROUP BY "a"', " GROUP BY (a)", " GROUP BY m",
    ]),
    st.sampled_from(["", "", " HAVING count(*) > 1", " HAVING b > 1", " HAVING m > 1"]),
    st.sampled_from([
        "", " ORDER BY a", " ORDER BY count(*)", " ORDER BY b", " ORDER BY b DESC", " ORDER BY m", " LIMIT 1",
        " ORDER BY a LIMIT 1", " ORDER BY max(b) LIMIT 2 OFFSET 1", " UNION SELECT a FROM u",
        " UNION SELECT a FROM u GROUP BY b", " UNION SELECT b, max(a) FROM u LIMIT 3",
    ]),
)  # fmt: skip


@given(SHORT_TEXTS, st.booleans(), st.booleans())
@settings(max_examples=150)
def test_what_is_told_without_a_tree_is_what_a_tree_tells(
    sql: str, cut_known: bool, columns_known: bool
) -> None:
    def ask() -> bool:
        return depends_on_scan_order(
            sql, "sqlite", but_for_outer_limit=cut_known, but_for_bare_columns=columns_known
        )

    told = ask()
    if ambiguity.read_plain_query(sql) is not None:
        with pytest.MonkeyPatch.context() as patched:
            patched.setattr(ambiguity, "read_plain_query", lambda _: None)
            assert told == ask()


@given(SHORT_TEXTS)
@settings(max_examples=150)
def test_columns_chosen_by_text_are_those_chosen_in_a_tree(sql: str) -> None:
    texts = get_bare_column_queries(sql, "sqlite")
    if ambiguity.read_plain_query(sql) is not None:
        with pytest.MonkeyPatch.context() as patched:
            patched.setattr(ambiguity, "read_plain_query", lambda _: None)
            wanted = get_bare_column_queries(sql, "sqlite")
        assert (texts is None) == (wanted is None)
        for text, other in zip(texts or (), wanted or (), strict=True):
            assert canonical_sql(text, "sqlite") == canonical_sql(other, "sqlite")


def test_most_texts_are_told_without_a_tree() -> None:
    for sql in (
        "SELECT count(*), max(a) FROM t WHERE b = 'x; y'",
        "SELECT t1.a, count(*) FROM t AS t1 JOIN u ON t1.id = u.id GROUP BY t1.a ORDER BY count(*)",
        "SELECT a FROM t WHERE b > (SELECT avg(b) FROM t) AND c NOT IN (SELECT c FROM u);",
        "SELECT a FROM t WHERE b IN (SELECT b FROM u GROUP BY b HAVING count(*) > 1)",
    ):
        assert read_plain_query(sql) == PlainQuery(False, ())


@pytest.mark.parametrize(
    ("sql", "bare"),
    [
        ("SELECT t.b , count(*) FROM t GROUP BY t.a", ["t.b"]),
        ("SELECT DISTINCT B, count(*) FROM t GROUP BY a ORDER BY c DESC, a LIMIT 1", ["B", "c"]),
        ("SELECT b, count(*) AS n FROM t WHERE c = 'b' GROUP BY a ORDER BY n", ["b"]),
        ("SELECT b FROM t GROUP BY a UNION SELECT c FROM t", None),
        ("SELECT b + 1, count(*) FROM t GROUP BY a", None),
        ("SELECT b, max(c) FROM t GROUP BY a", None),
        ("SELECT b, count(*) FROM t GROUP BY a HAVING c > 1", None),
        ("SELECT b n, count(*) FROM t GROUP BY a", None),
        ("SELECT b AS n, count(*) FROM t GROUP BY n", None),
        ("SELECT a, count(*) FROM t GROUP BY a ORDER BY b COLLATE nocase", None),
        ("SELECT a FROM t WHERE b IN (SELECT b FROM t GROUP BY a)", None),
        ('SELECT "b", count(*) FROM t GROUP BY a', None),
        ("SELECT b, count(*) FROM t GROUP BY 'é'", None),
    ],
)
def test_bare_columns_are_found_in_a_text(sql: str, bare: list[str] | None) -> None:
    plain = read_plain_query(sql)
    found = None if plain is None else [sql[start:end] for start, end in plain.bare_columns]
    assert found == bare


@pytest.mark.parametrize(
    ("sql", "subqueries"),
    [
        (
            "SELECT a FROM t WHERE b = (SELECT b FROM u WHERE c = 1)",
            ["SELECT b FROM u WHERE c = 1"],
        ),
        ("SELECT a FROM t WHERE b IN (SELECT b FROM u LIMIT 3)", ["SELECT b FROM u LIMIT 3"]),
        ("SELECT a FROM t WHERE b IN (SELECT b FROM u) LIMIT 3", []),
        (
            "SELECT a FROM t WHERE b = (SELECT b FROM u WHERE c = (SELECT c FROM v LIMIT 1))",
            ["SELECT b FROM u WHERE c = (SELECT c FROM v LIMIT 1)", "SELECT c FROM v LIMIT 1"],
        ),
        ("WITH w AS (SELECT a FROM t) SELECT a FROM t WHERE b = (SELECT a FROM w)", None),
        ('SELECT a FROM t WHERE b = (SELECT b FROM u WHERE c = "x")', None),
        ("SELECT group_concat(a) FROM t WHERE b = (SELECT b FROM u)", None),
        ("SELECT row_number() OVER () FROM t WHERE b = (SELECT b FROM u)", None),
        ("SELECT max(a), b FROM t WHERE b = (SELECT b FROM u)", None),
        ("SELECT * FROM t WHERE b = (SELECT b FROM u) GROUP BY a", None),
    ],
)
def test_subqueries_that_choose_are_found(sql: str, subqueries: list[str] | None) -> None:
    assert get_choosing_subqueries(sql, "sqlite") == subqueries


def test_distinct_on_chooses_as_well() -> None:
    sql = "SELECT a FROM t WHERE b IN (SELECT DISTINCT ON (c) b FROM u)"
    assert get_choosing_subqueries(sql, "duckdb") is None
