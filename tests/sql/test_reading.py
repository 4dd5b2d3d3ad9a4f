"""Where a query ends, and what tells a query from a sentence."""

import time

import pytest

from sense_trl.sql.extraction import extract_sql
from sense_trl.sql.parsing import canonical_sql
from sense_trl.sql.reading import count_flaws, read_query, scan_tokens


@pytest.mark.parametrize(
    "query",
    [
        "SELECT left(a, 2), glob('a*', b), a -> '$.x', a::INT FROM t",
        "SELECT * EXCEPT (a) FROM t WHERE a > = 3 AND NOT b IS NOT NULL",
        "SELECT CASE a WHEN 1 THEN 'x' ELSE (SELECT max(b) FROM u) END kind FROM t",
        "SELECT DATE '2020-01-01' + INTERVAL 1 DAY FROM t WHERE d > INTERVAL '2' MONTHS + e",
        "SELECT a[1], [1, 2], {'k': 1}, list[2:3] FROM t, u AS v JOIN w USING (id), x",
        "SELECT sum(a) FILTER (WHERE b) OVER (PARTITION BY c ORDER BY d ROWS 2 PRECEDING) FROM t",
        "SELECT CAST(a AS DOUBLE PRECISION), extract(YEAR FROM d) FROM t NATURAL LEFT JOIN u",
        "SELECT a FROM t WINDOW w AS (PARTITION BY b), v AS (ORDER BY c) ORDER BY a NULLS FIRST",
        "FROM t SELECT a WHERE b IS DISTINCT FROM c UNION BY NAME SELECT a FROM u",
        "SELECT a FROM t INDEXED BY i WHERE a NOT NULL AND b NOTNULL GROUP BY ALL",
        "WITH a (x) AS (VALUES (1), (2)), b AS MATERIALIZED (SELECT 2) SELECT * FROM a, b",
    ],
)
def test_a_query_reads_without_a_flaw(query: str) -> None:
    reading = read_query(query)
    assert reading.is_plausible and reading.end == len(query)
    assert reading.flaws == 0


@pytest.mark.parametrize(
    "query",
    [
        "SELECT a::double precision AS x, b::character varying(20) y, '{1}'::int[] FROM t",
        "SELECT a::timestamp with time zone AS x FROM t WHERE b::time without time zone > '10:00'",
        "SELECT TIMESTAMP WITH TIME ZONE '2020-01-01 00:00+00', now() AT TIME ZONE 'UTC' - interval '1 day'",
        'SELECT DISTINCT ON (a) a, t."Full Name" FROM "My Table" AS t WHERE t."Id" = 1 ORDER BY a',
        "SELECT a FROM t WHERE b NOT ILIKE '%b%' OR b ~* '^a' OR b !~ 'x' OR b !~~ 'y' AND b SIMILAR TO 'z'",
        "SELECT a->'b'->>0, a#>>'{a,b}', a#>'{c}', a @? '$.a' FROM t WHERE a @> '{}' AND a ? 'x' AND a ?| ARRAY['y']",
        "SELECT a && b, a <@ b, to_tsvector(c) @@ to_tsquery('x & y') FROM t ORDER BY c <-> d LIMIT ALL OFFSET 2 ROWS",
        "SELECT E'it\\'s; -- a', $$don't; $1$$, $x$a $$ b;$x$ FROM t",
        "SELECT a, count(*) FILTER (WHERE b > 1) FROM t GROUP BY GROUPING SETS ((a), ())",
        "SELECT u.tag FROM t CROSS JOIN LATERAL unnest(t.tags) WITH ORDINALITY AS u(tag, n) WHERE u.n = 1",
        "SELECT x.a FROM t, jsonb_to_recordset(t.body) AS x(a int, b text) WHERE EXISTS (SELECT FROM u)",
        "SELECT overlay(a PLACING 'x' FROM 1 FOR 2) FROM t WHERE a BETWEEN SYMMETRIC 3 AND 1",
        "SELECT a FROM t ORDER BY a DESC NULLS LAST OFFSET 3 ROWS FETCH NEXT 2 ROWS ONLY",
        "SELECT d::date FROM generate_series('2020-01-01'::date, '2020-02-01', INTERVAL '1 day') AS d",
    ],
)
def test_queries_of_postgresql_are_read_whole(query: str) -> None:
    reading = read_query(query)
    assert (reading.flaws, count_flaws(query, "postgres")) == (0, 0)
    canonical = canonical_sql(query, "postgres")
    assert canonical_sql(canonical, "postgres") == canonical
    behind = "This query counts all the people who live in the country."
    for text in (
        f"The SQL query is: {query};\nIt works.",
        f"```sql\n{query}\n```",
        f"{query}\n{behind}",
    ):
        assert extract_sql(text) == query


def test_marks_of_strings_that_never_end_take_no_time() -> None:
    started = time.process_time()
    for text in ("$a$ " * 9_999, "".join(f"$a{i}$" for i in range(9_999)), "E'\\'" * 9_999):
        assert len(list(scan_tokens("SELECT " + text))) > 1
    assert time.process_time() - started < 3


@pytest.mark.parametrize(
    "sentence",
    [
        "Select the oldest singer:",
        "select all the names that we need.",
        "With the schema above we can write this:",
        "Select name and age of the singer, then sort them.",
        "From the table singer we take the name.",
        "Values are compared as text here.",
    ],
)
def test_a_sentence_is_no_query(sentence: str) -> None:
    assert not read_query(sentence).is_plausible


def test_a_wrong_query_is_one_all_the_same_and_stays_whole() -> None:
    for query in (
        "SELECT name age city FROM singer WHERE a = 1",
        "SELECT name FROM singer\n\nAND age > 60 AND country = 'France' ORDER BY name",
        "SELECT name FROM singer\n\nGROUP name HAVING count(*) > 1",
    ):
        reading = read_query(query + "\n\nThis gives the names of all.")
        assert reading.flaws and query == query[: reading.end]


def test_quotes_and_apostrophes() -> None:
    kinds = [(t.kind, t.text) for t in scan_tokens("don't say 'it''s' LIKE'x' x'4D' `a``b` \"c")]
    assert kinds == [
        ("word", "DON"), ("other", "'t"), ("word", "SAY"), ("string", "'it''s'"), ("word", "LIKE"),
        ("string", "'x'"), ("word", "X"), ("string", "'4D'"), ("name", "`a`"), ("name", "`b`"),
        ("other", '"'), ("word", "C"),
    ]  # fmt: skip


def test_what_ends_a_query() -> None:
    for text, separator in (
        ("SELECT 1", ""),
        ("SELECT 1; x", ";"),
        ("SELECT 1\n```", "mark"),
        ("SELECT 1</x>", "mark"),
        ("SELECT 1}", "mark"),
        ("SELECT 1\n\nThis is it.", "\n"),
        ("SELECT 1\n\nSELECT 2", "\n"),
    ):
        reading = read_query(text)
        assert (text[: reading.end].strip(), reading.separator) == ("SELECT 1", separator)
    assert read_query("SELECT {'a': 1}").separator == ""
