"""Queries in PostgreSQL's own syntax: canonical texts, error classes, mutants and labels."""

from __future__ import annotations

import pytest

from sense_trl.database import ColumnInfo, TableInfo
from sense_trl.linking.labels import get_linking_labels
from sense_trl.schema import DatabaseSchema
from sense_trl.sql.mutation import MutationKind, mutate_sql
from sense_trl.sql.parsing import canonical_sql
from sense_trl.sql.taxonomy import ErrorClass, classify_errors

COLUMNS = {
    "Customer": {"id": "integer", "fullName": "text", "user": "text", "seen": "date"},
    "client": {"id": "integer", "fullName": "text", "user": "text", "seen": "date"},
    "bill": {"id": "integer", "customer_id": "integer", "tags": "text[]", "body": "jsonb", "day": "date"},
}  # fmt: skip
SCHEMA = DatabaseSchema(
    "shop",
    "postgres",
    tuple(
        TableInfo(
            table,
            tuple(ColumnInfo(name, type_, False, 0) for name, type_ in own.items()),
            (),
            False,
        )
        for table, own in COLUMNS.items()
    ),
)
QUERIES = [
    "SELECT t FROM bill, unnest(bill.tags) AS t",
    "SELECT u.t, n FROM bill CROSS JOIN LATERAL unnest(bill.tags) WITH ORDINALITY AS u(t, n)",
    "SELECT d::date FROM generate_series('2020-01-01'::date, '2020-02-01', INTERVAL '1 day') AS d",
    "SELECT c.\"fullName\", x.n FROM \"Customer\" AS c CROSS JOIN LATERAL "
    "(SELECT max(b.day) AS n FROM bill AS b WHERE b.customer_id = c.id) AS x",
    "SELECT row_to_json(x) FROM (SELECT id, day FROM bill) AS x",
    "SELECT b FROM bill AS b WHERE b.xmin IS NOT NULL AND 'red' = ANY (tags)",
    "SELECT v.n FROM (VALUES (1, 'a'), (2, 'b')) AS v(n, word) WHERE v.word ILIKE 'A%'",
    "SELECT DISTINCT ON (customer_id) customer_id, body->>'a' FROM bill ORDER BY customer_id, day",
    "SELECT count(*) FILTER (WHERE day > DATE '2020-01-01' - INTERVAL '1 day') AS Total FROM bill",
    "SELECT E'it\\'s', $$a$$ FROM bill GROUP BY GROUPING SETS ((id), ()) FETCH FIRST 3 ROWS ONLY",
]  # fmt: skip


@pytest.mark.parametrize("query", QUERIES)
def test_a_query_of_postgresql_is_its_own_and_has_no_unknown_names(
    query: str, capfd: pytest.CaptureFixture[str]
) -> None:
    assert classify_errors(query, query, "postgres", columns=COLUMNS) == ()
    assert get_linking_labels(query, SCHEMA).unresolved == ()
    assert canonical_sql(query.replace(" AS x", " x"), "postgres") == canonical_sql(
        query, "postgres"
    )
    assert mutate_sql(query, "postgres", columns=COLUMNS)
    assert "not supported" not in capfd.readouterr().err


@pytest.mark.parametrize(
    ("left", "right", "are_one"),
    [
        ('SELECT c."fullName" FROM "Customer" c', "SELECT c.fullName FROM Customer c", False),
        ('SELECT c.id FROM "Customer" c', "SELECT c.id FROM Customer c", False),
        ('SELECT "user" FROM client', "SELECT user FROM client", False),
        ('SELECT id FROM x ORDER BY a COLLATE "C"', "SELECT id FROM x ORDER BY a COLLATE c", False),
        ("SELECT b FROM bill b", "SELECT c FROM bill c", False),
        ("SELECT b FROM bill b", "SELECT b FROM bill c", False),
        ('SELECT b."id" FROM "bill" b', "SELECT T1.ID FROM Bill AS T1", True),
        ("SELECT x::int FROM bill", "SELECT CAST(x AS integer) FROM bill", True),
    ],
)  # fmt: skip
def test_names_are_one_as_the_server_reads_them(left: str, right: str, are_one: bool) -> None:
    assert (canonical_sql(left, "postgres") == canonical_sql(right, "postgres")) is are_one


@pytest.mark.parametrize(
    ("query", "expected"),
    [
        ('SELECT fullName FROM "Customer"', {ErrorClass.UNKNOWN_COLUMN}),
        ('SELECT "FullName" FROM "Customer"', {ErrorClass.UNKNOWN_COLUMN}),
        ('SELECT "fullName" FROM Customer', {ErrorClass.UNKNOWN_TABLE}),
        # No word in double quotes is a string.
        ('SELECT "fullName" FROM "Customer" WHERE "fullName" = "Ann"', {ErrorClass.UNKNOWN_COLUMN}),
        ('SELECT "fullName" AS Name FROM "Customer" ORDER BY NAME', set()),
        ('WITH C AS (SELECT "fullName" AS N FROM "Customer") SELECT c.n FROM c', set()),
    ],
)
def test_a_name_without_its_quotes_is_unknown(query: str, expected: set[ErrorClass]) -> None:
    gold = 'SELECT "fullName" FROM "Customer"'
    found = {*classify_errors(query, gold, "postgres", columns=COLUMNS)}
    assert found & {ErrorClass.UNKNOWN_COLUMN, ErrorClass.UNKNOWN_TABLE} == expected


def test_mutants_have_quotes_where_names_need_them_and_like_on_text_alone() -> None:
    mutants = mutate_sql('SELECT c.seen, T."fullName" FROM client C JOIN client T ON C.id = T.id',
                         "postgres", columns=COLUMNS)  # fmt: skip
    texts = [mutant.sql for mutant in mutants]
    assert any('FROM "Customer" AS c' in text for text in texts)
    assert all("Customer" not in text.replace('"Customer"', "") for text in texts)
    assert all("fullName" not in text.replace('"fullName"', "") for text in texts)
    added = [
        mutant.sql
        for seed in range(20)
        for mutant in mutate_sql("SELECT id FROM bill", "postgres", columns=COLUMNS, seed=seed)
        if mutant.kind is MutationKind.CONDITION_ADDED
    ]
    assert added and not any(" LIKE " in text for text in added)
    assert any(
        '"fullName" LIKE' in mutant.sql
        for seed in range(20)
        for mutant in mutate_sql("SELECT id FROM client", "postgres", columns=COLUMNS, seed=seed)
    )
