"""Labels of tables and columns out of gold SQL."""

import json
from pathlib import Path

import pytest
from schema_cases import make_table

from sense_trl.linking import LinkingLabels, get_linking_labels
from sense_trl.prompts.linking import find_named_items
from sense_trl.schema import DatabaseSchema, load_spider_schemas
from sense_trl.sql.parsing import SQLParseError

SCHEMA = DatabaseSchema(
    "shop",
    "sqlite",
    (
        make_table("Customer", "id Name city"),
        make_table("purchase", "id customer_id day"),
        make_table("item", "purchase_id product price"),
        make_table("recent", "id day", is_view=True),
    ),
)


def label(sql: str) -> tuple[set[str], set[str]]:
    labels = get_linking_labels(sql, SCHEMA)
    assert labels.unresolved == ()
    return set(labels.tables), {".".join(column) for column in labels.columns}


@pytest.mark.parametrize(
    ("sql", "tables", "columns"),
    [
        ("SELECT count(*) FROM customer", "customer", ""),
        ("SELECT * FROM customer", "customer", ""),
        ("SELECT c.* FROM customer c", "customer", ""),
        ("SELECT name FROM CUSTOMER WHERE City = 'Rome'", "customer", "customer.name customer.city"),
        # A string in double quotes is no column.
        ('SELECT name FROM customer WHERE city = "day"', "customer", "customer.name customer.city"),
        (
            "SELECT T1.name FROM customer AS T1 JOIN purchase AS T2 ON T1.id = T2.customer_id",
            "customer purchase",
            "customer.name customer.id purchase.customer_id",
        ),
        (
            "SELECT city FROM customer JOIN purchase USING (id)",
            "customer purchase",
            "customer.city customer.id purchase.id",
        ),
        (
            "SELECT city FROM customer NATURAL JOIN purchase",
            "customer purchase",
            "customer.city customer.id purchase.id",
        ),
        # A name of a result column is not one of the database.
        (
            "SELECT count(*) AS n FROM purchase GROUP BY day ORDER BY n",
            "purchase",
            "purchase.day",
        ),
        ("SELECT day FROM recent", "recent", "recent.day"),
        (
            "SELECT name FROM customer WHERE id NOT IN (SELECT customer_id FROM purchase)",
            "customer purchase",
            "customer.name customer.id purchase.customer_id",
        ),
        # A correlated subquery means the outer table.
        (
            "SELECT name FROM customer c WHERE EXISTS (SELECT 1 FROM purchase WHERE customer_id = c.id)",
            "customer purchase",
            "customer.name customer.id purchase.customer_id",
        ),
        (
            "SELECT name FROM customer UNION SELECT product FROM item",
            "customer item",
            "customer.name item.product",
        ),
        (
            "WITH spent AS (SELECT purchase_id AS p, sum(price) AS s FROM item GROUP BY purchase_id) "
            "SELECT s FROM spent JOIN purchase ON p = purchase.id",
            "item purchase",
            "item.purchase_id item.price purchase.id",
        ),
        # Read out of a star.
        ("SELECT s.city FROM (SELECT * FROM customer) AS s", "customer", "customer.city"),
        (
            "SELECT id FROM (SELECT * FROM customer UNION SELECT * FROM recent EXCEPT SELECT * FROM item)",
            "customer recent item",
            "customer.id recent.id",
        ),
        (
            "WITH a AS (SELECT * FROM item), b AS (SELECT a.* FROM a JOIN purchase p) SELECT price FROM b",
            "item purchase",
            "item.price",
        ),
    ],
)  # fmt: skip
def test_items_that_a_query_uses(sql: str, tables: str, columns: str) -> None:
    assert label(sql) == (set(tables.split()), set(columns.split()))


def test_a_recursive_expression_ends() -> None:
    sql = (
        "WITH RECURSIVE r AS (SELECT * FROM customer UNION ALL SELECT * FROM r) SELECT city FROM r"
    )
    assert ("customer", "city") in get_linking_labels(sql, SCHEMA).columns


def test_stars_of_the_same_query_are_looked_into_once() -> None:
    # Each of 18 levels reads the one before it three times: 3^18 ways to the table.
    levels = ["q0 AS (SELECT * FROM customer)"]
    levels += [f"q{n} AS (SELECT * FROM q{n - 1} a, q{n - 1} b, q{n - 1} c)" for n in range(1, 18)]
    found = get_linking_labels(f"WITH {', '.join(levels)} SELECT city FROM q17", SCHEMA)
    assert ("customer", "city") in found.columns


def test_names_that_the_schema_does_not_have_are_told() -> None:
    labels = get_linking_labels("SELECT name, colour FROM customer, nowhere", SCHEMA)
    assert labels.tables == {"customer"}
    assert "nowhere" in labels.unresolved
    assert get_linking_labels("SELECT colour FROM customer", SCHEMA) == LinkingLabels(
        frozenset({"customer"}), frozenset(), ("colour",)
    )


def test_text_that_is_no_query_is_refused() -> None:
    with pytest.raises(SQLParseError):
        get_linking_labels("SELEC name FRM customer", SCHEMA)


def test_every_gold_query_of_spider_dev_is_resolved(shared_data: Path) -> None:
    spider = shared_data / "spider"
    schemas = load_spider_schemas(spider / "tables.json")
    lines = (spider / "dev.jsonl").read_text(encoding="utf-8").splitlines()
    num_tables = num_columns = 0
    for row in map(json.loads, lines):
        schema = schemas[row["db_id"]]
        labels = get_linking_labels(row["query"], schema)
        assert labels.unresolved == ()
        assert labels.tables
        # Every label stands in the query by name.
        assert labels.items <= find_named_items(row["query"], schema)
        num_tables += len(labels.tables)
        num_columns += len(labels.columns)
    assert len(lines) == 1_034
    assert (num_tables, num_columns) == (1_565, 2_847)
