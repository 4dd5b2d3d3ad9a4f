"""Gold and predictions on a PostgreSQL server: what decides, and what has several answers."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from postgres_server import PostgresServer

from sense_trl.database.postgres_engine import PostgresEngine
from sense_trl.verification.comparison import Reason
from sense_trl.verification.judging import examine_gold, verify_sql

AMBIGUOUS = {Reason.GOLD_NOT_DETERMINISTIC, Reason.GOLD_LIMIT_TIE}
PEOPLE = """
CREATE TABLE s (id INTEGER PRIMARY KEY, name TEXT, age INT, land TEXT, day DATE);
INSERT INTO s VALUES
    (1, 'Ann', 20, 'NL', '2020-01-05'), (2, 'Ben', 20, 'FR', '2021-03-01'),
    (3, 'Cem', 30, 'DE', '2020-07-09'), (4, 'Dan', 40, 'DE', NULL);
CREATE TABLE doc (id INT, body JSON, kind TEXT, at POINT);
INSERT INTO doc VALUES (1, '{"a": 1}', 'x', '(1,2)'), (2, '{"a": 2}', 'x', NULL), (3, '{}', 'y', NULL);
"""


@pytest.fixture(scope="module")
def people(postgres_server: PostgresServer) -> Iterator[PostgresEngine]:
    dsn = postgres_server.dsn(postgres_server.create_database(PEOPLE))
    with PostgresEngine(dsn, allow_superuser=True) as engine:
        yield engine


@pytest.mark.parametrize(
    "sql",
    [
        "SELECT name FROM s ORDER BY age LIMIT 2",
        "SELECT name FROM s ORDER BY day LIMIT 3",
        "SELECT name FROM s ORDER BY name LIMIT ALL",
        "SELECT name FROM s ORDER BY age FETCH FIRST 1 ROW WITH TIES",
        "SELECT string_agg(DISTINCT land, ',') FROM s",
        "SELECT array_agg(name ORDER BY name), (array_agg(name ORDER BY id))[1] FROM s",
        "SELECT DISTINCT ON (land) land, name FROM s ORDER BY land, name",
        "SELECT percentile_disc(0.5) WITHIN GROUP (ORDER BY age) FROM s",
        "SELECT mode() WITHIN GROUP (ORDER BY land) FROM s",
        "SELECT bool_and(age > 3), bit_or(age) FROM s",
        "SELECT land, count(*) FILTER (WHERE age > 20) FROM s GROUP BY GROUPING SETS ((land), ())",
        # The key decides the other columns.
        "SELECT id, name FROM s GROUP BY id",
        "SELECT s.name, x.n FROM s CROSS JOIN LATERAL "
        "(SELECT max(u.id) AS n FROM s AS u WHERE u.age = s.age) AS x",
        "SELECT jsonb_object_agg(id, name) FROM s",
        "SELECT id, body, at FROM doc ORDER BY id LIMIT 1",
        "SELECT max(body::text) FROM doc GROUP BY kind",
        "SELECT name FROM s WHERE name = (SELECT name FROM s WHERE age = 30 LIMIT 1)",
    ],
)
def test_gold_with_one_answer_decides(people: PostgresEngine, sql: str) -> None:
    gold = examine_gold(sql, people, "strict", None)
    assert (gold.problem, gold.result.error) == (None, None)


@pytest.mark.parametrize(
    "sql",
    [
        "SELECT name FROM s ORDER BY age LIMIT 1",
        "SELECT name FROM s ORDER BY age FETCH FIRST 1 ROW ONLY",
        "SELECT name FROM s ORDER BY age NULLS FIRST OFFSET 1",
        "SELECT array_agg(name) FROM s",
        "SELECT string_agg(name, ',' ORDER BY age) FROM s",
        "SELECT DISTINCT ON (age) age, name FROM s",
        "SELECT jsonb_agg(name), json_agg(s) FROM s",
        "SELECT kind, (array_agg(body))[1] FROM doc GROUP BY kind",
        "SELECT body, at FROM doc WHERE kind = 'x' LIMIT 1",
        "SELECT (SELECT at FROM doc WHERE kind = 'x' LIMIT 1)",
        "SELECT s.name, x.name FROM s CROSS JOIN LATERAL "
        "(SELECT u.name FROM s AS u WHERE u.age = s.age LIMIT 1) AS x",
        "SELECT row_number() OVER (ORDER BY age), name FROM s",
        "SELECT random()",
        "SELECT name FROM s WHERE day < now()",
        "SELECT name FROM s WHERE day < 'today'",
        "SELECT current_user",
    ],
)
def test_gold_with_several_answers_decides_nothing(people: PostgresEngine, sql: str) -> None:
    gold = examine_gold(sql, people, "strict", None)
    assert gold.problem in AMBIGUOUS, gold.result.error
    assert examine_gold(sql, people, "bird", None).problem is None


@pytest.mark.parametrize(
    ("predicted", "gold", "reason"),
    [
        # NULLs are last where the order ascends.
        ("SELECT day FROM s ORDER BY day NULLS LAST", "SELECT day FROM s ORDER BY day", Reason.RESULTS_EQUAL),
        ("SELECT day FROM s ORDER BY day NULLS FIRST", "SELECT day FROM s ORDER BY day", Reason.ORDER_DIFFERS),
        ("SELECT day FROM s ORDER BY day DESC NULLS FIRST", "SELECT day FROM s ORDER BY day DESC", Reason.RESULTS_EQUAL),
        # Rows that tie come in any order, also by keys that are not shown.
        ("SELECT name FROM s ORDER BY age, name DESC", "SELECT name FROM s ORDER BY age", Reason.RESULTS_EQUAL),
        ("SELECT name FROM s ORDER BY age DESC", "SELECT name FROM s ORDER BY age", Reason.ORDER_DIFFERS),
        # The collation decides which texts tie, and the server knows it.
        ("SELECT land FROM s ORDER BY lower(land)", "SELECT land FROM s ORDER BY land", Reason.RESULTS_EQUAL),
        # LIKE tells letters apart.
        ("SELECT name FROM s WHERE name LIKE 'a%'", "SELECT name FROM s WHERE name ILIKE 'a%'", Reason.ROW_COUNT_DIFFERS),
        # Integers divide to integers, numerics to some 17 digits.
        ("SELECT sum(age) / count(*) FROM s WHERE id < 4", "SELECT avg(age) FROM s WHERE id < 4", Reason.VALUES_DIFFER),
        ("SELECT sum(age)::float8 / count(*) FROM s WHERE id < 4", "SELECT avg(age) FROM s WHERE id < 4", Reason.RESULTS_EQUAL),
        ("SELECT 100 * (1.0 * id / 3) FROM s", "SELECT 100.0 * id / 3 FROM s", Reason.RESULTS_EQUAL),
        ("SELECT round(100.0 * id / 3, 2) FROM s", "SELECT 100.0 * id / 3 FROM s", Reason.VALUES_DIFFER),
        ("SELECT name::char(9) FROM s", "SELECT name FROM s", Reason.RESULTS_EQUAL),
        ("SELECT day::timestamp FROM s", "SELECT day FROM s", Reason.RESULTS_EQUAL),
        ("SELECT day::text FROM s", "SELECT day FROM s", Reason.VALUES_DIFFER),
        ("SELECT body::jsonb FROM doc", "SELECT body FROM doc", Reason.RESULTS_EQUAL),
        ("SELECT body->>'a' FROM doc", "SELECT body->'a' FROM doc", Reason.VALUES_DIFFER),
        ("SELECT age > 20 FROM s", "SELECT (age > 20)::int FROM s", Reason.RESULTS_EQUAL),
        ("SELECT 'NaN'::float8", "SELECT 'NaN'::numeric", Reason.RESULTS_EQUAL),
    ],
)  # fmt: skip
def test_strict_is_decided_by_the_server_and_by_values(
    people: PostgresEngine, predicted: str, gold: str, reason: Reason
) -> None:
    assert verify_sql(predicted, gold, people).reason is reason


@pytest.mark.parametrize(
    ("predicted", "gold", "reason"),
    [
        ("SELECT land FROM s ORDER BY land DESC", "SELECT DISTINCT land FROM s", Reason.RESULTS_EQUAL),
        ("SELECT age, name FROM s", "SELECT name, age FROM s", Reason.VALUES_DIFFER),
        ("SELECT age::numeric FROM s", "SELECT age::float8 FROM s", Reason.RESULTS_EQUAL),
        ("SELECT 0.1::numeric", "SELECT 0.1::float8", Reason.VALUES_DIFFER),
        ("SELECT avg(age)::float8 FROM s WHERE id < 4", "SELECT avg(age) FROM s WHERE id < 4", Reason.VALUES_DIFFER),
        ("SELECT day::timestamp FROM s", "SELECT day FROM s", Reason.VALUES_DIFFER),
        ("SELECT name FROM s WHERE false", "SELECT land FROM s WHERE false", Reason.RESULTS_EQUAL),
        ("SELECT array_agg(name ORDER BY id) FROM s", "SELECT array_agg(name ORDER BY name) FROM s", Reason.RESULTS_EQUAL),
    ],
)  # fmt: skip
def test_bird_compares_sets_of_python_values(
    people: PostgresEngine, predicted: str, gold: str, reason: Reason
) -> None:
    assert verify_sql(predicted, gold, people, semantics="bird").reason is reason
