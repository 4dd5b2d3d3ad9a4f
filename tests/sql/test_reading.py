"""Where a query ends, and what tells a query from a sentence."""

import pytest

from sense_trl.sql.reading import read_query, scan_tokens


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
