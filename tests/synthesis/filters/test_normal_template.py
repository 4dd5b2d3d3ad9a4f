"""Finding a query again that differs in spelling and constants."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sqlglot import exp

from sense_trl.database.catalog import DatabaseCatalog
from sense_trl.questions import load_questions
from sense_trl.schema.schema import get_schema, load_spider_schemas
from sense_trl.sql.mutation import mutate_sql
from sense_trl.sql.parsing import SQLParseError, parse_sql
from sense_trl.sql.resolution import QueryNames, SchemaNames
from sense_trl.synthesis.filters.normal_template import TemplateIndex, get_normal_template
from sense_trl.verification import Verdict, verify_sql

JOIN = "SELECT T1.name FROM singer AS T1 JOIN song AS T2 ON T1.id = T2.singer_id WHERE T2.sales > 9"
SAME = {
    "SELECT name FROM singer WHERE age > 30": [
        "SELECT T1.name FROM singer AS T1 WHERE T1.age > 20",
        "select singer.NAME from Singer where 20 < singer.age;",
        "SELECT name AS n FROM singer s WHERE NOT s.age <= 4",
    ],
    JOIN: [
        "SELECT singer.name FROM singer JOIN song ON singer.id = song.singer_id WHERE sales > 1",
        "SELECT name FROM song JOIN singer ON singer_id = id WHERE 5 < sales",
        "SELECT a.name FROM song b INNER JOIN singer a ON b.singer_id = a.id AND b.sales > 5",
        "SELECT a.name FROM singer a, song b WHERE b.sales > 5 AND b.singer_id = a.id",
    ],
    "SELECT s.id, count(*) FROM s JOIN t ON s.id = t.sid GROUP BY s.id": [
        "SELECT count(1), t.sid FROM t JOIN s ON t.sid = s.id GROUP BY t.sid",
        "SELECT t.sid AS x, count(*) AS n FROM t JOIN s ON t.sid = s.id GROUP BY x",
    ],
    "SELECT a FROM t WHERE b = 1 AND (c != 2 OR d IS NULL)": [
        "SELECT a FROM t WHERE (d IS NULL OR 5 <> c) AND b = 'x'",
    ],
    "SELECT a FROM t WHERE b IN (1, 2)": [
        "SELECT a FROM t WHERE b = 3 OR b = 4",
        "SELECT a FROM t WHERE b IN ('x', 'y', 'z')",
    ],
    "SELECT a FROM t WHERE b BETWEEN 1 AND 5": ["SELECT a FROM t WHERE b <= 9 AND 3 <= b"],
    "SELECT a FROM t JOIN u USING (id)": ["SELECT a FROM u JOIN t ON u.id = t.id"],
    "SELECT x.a FROM f AS x JOIN f AS y ON x.id = y.other WHERE y.age > 1": [
        "SELECT y.a FROM f AS x JOIN f AS y ON y.id = x.other WHERE x.age > 1",
    ],
    "SELECT a FROM t WHERE b = 1 UNION SELECT a FROM u": [
        "SELECT z.a FROM u AS z UNION SELECT y.a FROM t AS y WHERE y.b = 7",
    ],
    'SELECT a FROM t WHERE b = "x" ORDER BY c DESC LIMIT 1': [
        "SELECT t.a FROM t WHERE t.b = 'y' ORDER BY t.c DESC LIMIT 3",
    ],
    'SELECT "a" FROM t': ["SELECT a FROM t"],
    "SELECT z.a + s.b * 2 FROM s JOIN z ON s.id = z.sid": [
        "SELECT 3 * b + a FROM z JOIN s ON s.id = z.sid",
        "SELECT a + 3 * b FROM z JOIN s ON s.id = z.sid",
    ],
    "SELECT z.a + s.b FROM s JOIN z ON s.id = z.sid": [
        "SELECT b + a FROM z JOIN s ON sid = id",
    ],
    "SELECT a FROM t ORDER BY count(b)": ["SELECT x.a FROM t AS x ORDER BY count(x.b)"],
    "SELECT a FROM t WHERE c IN (SELECT max(c) FROM t)": [
        "SELECT x.a FROM t AS x WHERE x.c IN (SELECT max(y.c) FROM t AS y)",
    ],
}
DIFFERENT = [
    ("SELECT name FROM singer", "SELECT name FROM dancer"),
    ("SELECT name FROM singer WHERE age > 3", "SELECT name FROM singer WHERE age >= 3"),
    ("SELECT name FROM singer WHERE age > 3", "SELECT name FROM singer WHERE height > 3"),
    ("SELECT name FROM singer", "SELECT DISTINCT name FROM singer"),
    ("SELECT count(*) FROM singer", "SELECT count(id) FROM singer"),
    ("SELECT count(*) FROM singer", "SELECT count(NULL) FROM singer"),
    ("SELECT a FROM t WHERE b = 1", "SELECT a FROM t WHERE b = 1 OR b = 2"),
    ("SELECT a FROM t WHERE b = 1 AND c = 2", "SELECT a FROM t WHERE b = 1 OR c = 2"),
    ("SELECT a FROM t ORDER BY b", "SELECT a FROM t ORDER BY b DESC"),
    ("SELECT a FROM t EXCEPT SELECT a FROM u", "SELECT a FROM u EXCEPT SELECT a FROM t"),
    ("SELECT a, b FROM t UNION SELECT c, d FROM u", "SELECT a, b FROM t UNION SELECT d, c FROM u"),
    (JOIN, JOIN.replace("T1.name", "T2.name")),
    (JOIN, JOIN.replace("JOIN song", "LEFT JOIN song")),
    (JOIN, JOIN.replace("T1.id = T2.singer_id", "T1.id = T2.id")),
    # An outer join's other side may be NULL where its own is not.
    (
        "SELECT t.id FROM t LEFT JOIN u ON t.id = u.tid",
        "SELECT u.tid FROM t LEFT JOIN u ON t.id = u.tid",
    ),
    ("SELECT a FROM t JOIN u USING (id)", "SELECT a FROM t JOIN u"),
]


def _is_found(sql: str, known: str) -> bool:
    index = TemplateIndex()
    index.add(get_normal_template(known, "sqlite"), "known")
    return index.find(get_normal_template(sql, "sqlite")) == "known"


@pytest.mark.parametrize("queries", [[known, *others] for known, others in SAME.items()])
def test_spelling_and_constants_do_not_hide_a_query(queries: list[str]) -> None:
    for one, other in itertools.permutations(queries, 2):
        assert _is_found(one, other), (one, other)


@pytest.mark.parametrize(("one", "other"), DIFFERENT)
def test_another_query_is_not_found(one: str, other: str) -> None:
    assert not _is_found(one, other)
    assert not _is_found(other, one)


def test_tables_of_columns_count_where_both_queries_say_them() -> None:
    other = JOIN.replace("T1.name", "T2.name")
    bare = JOIN.replace("T1.name", "name")
    assert _is_found(bare, JOIN) and _is_found(bare, other)
    assert _is_found(JOIN, bare) and _is_found(other, bare)
    assert not _is_found(JOIN, other)


def test_a_name_of_an_inner_query_is_not_taken_for_the_outer_one() -> None:
    inner = "SELECT a FROM t WHERE id IN (SELECT {} FROM u JOIN v ON u.id = v.uid)"
    assert _is_found(inner.format("tid"), inner.format("v.tid"))


def test_the_first_query_of_a_template_is_named() -> None:
    index = TemplateIndex()
    for name, sql in (("one", "SELECT a FROM t LIMIT 1"), ("two", "SELECT t.a FROM t LIMIT 2")):
        index.add(get_normal_template(sql, "sqlite"), name)
    assert index.find(get_normal_template("SELECT a FROM t LIMIT 3", "sqlite")) == "one"


def test_a_query_that_doubles_with_every_name_is_refused_at_once() -> None:
    parts = ["c0 AS (SELECT 1 AS a)"]
    parts += [f"c{i} AS (SELECT x.a FROM c{i - 1} x JOIN c{i - 1} y)" for i in range(1, 40)]
    with pytest.raises(SQLParseError, match="nested"):
        get_normal_template(f"WITH {', '.join(parts)} SELECT a FROM c39", "sqlite")


# Conditions of one query, each in two spellings.
CONDITIONS = [
    ("x.a > 1", "2 < t.a"),
    ("x.b = 'k'", "'v' = t.b"),
    ("x.c IN (1, 2)", "(t.c = 4 OR 3 = t.c)"),
    ("x.d IS NOT NULL", "NOT t.d IS NULL"),
    ("x.e BETWEEN 1 AND 2", "(t.e <= 5 AND t.e >= 4)"),
    ("NOT x.f LIKE 'z%'", "t.f NOT LIKE '%y%'"),
]


@given(st.lists(st.sampled_from(CONDITIONS), min_size=1, max_size=6, unique=True), st.randoms())
@settings(max_examples=60)
def test_conditions_are_found_in_any_order_and_spelling(
    conditions: list[tuple[str, str]], rng: object
) -> None:
    shuffled = list(conditions)
    rng.shuffle(shuffled)  # type: ignore[attr-defined]
    one = f"SELECT x.k FROM t AS x WHERE {' AND '.join(c for c, _ in conditions)}"
    other = f"SELECT k FROM t WHERE {' AND '.join(c for _, c in shuffled)}"
    assert _is_found(one, other)
    less = f"SELECT k FROM t WHERE {' AND '.join(c for _, c in shuffled[1:])}"
    assert len(conditions) == 1 or not _is_found(one, less)


# ---------------------------------------------------------------------- Spider


def _without_aliases(tree: exp.Expression, names: QueryNames) -> bool:
    selects = list(tree.find_all(exp.Select))
    for select in selects:
        tables = [source.table for source in names.sources(select)]
        if "" in tables or len(set(tables)) < len(tables):
            return False
    tables_of = [(c, names.resolve(c)) for c in tree.find_all(exp.Column) if c.table]
    aliased = [source.node for select in selects for source in names.sources(select)]
    for column, source in tables_of:
        assert source is not None
        column.set("table", exp.to_identifier(source.table))
    for table in aliased:
        table.set("alias", None)
    return True


def _without_tables(tree: exp.Expression, names: QueryNames) -> bool:
    bare = []
    for column in tree.find_all(exp.Column):
        sources = names.sources(column.parent_select)
        having = [s for s in sources if column.name.lower() in (s.columns or {})]
        if having == [names.resolve(column)] and not isinstance(column.this, exp.Star):
            bare.append(column)
    for column in bare:
        column.set("table", None)
    return True


def _with_joins_in_where(tree: exp.Expression, names: QueryNames) -> bool:
    for select in tree.find_all(exp.Select):
        conditions = []
        for join in select.args.get("joins") or []:
            if join.args.get("on") is None or join.args.get("side"):
                return False
            conditions.append(join.args["on"].copy())
            join.set("on", None)
        if conditions:
            where = select.args.get("where")
            conditions += [] if where is None else [exp.paren(where.this.copy())]
            select.set("where", exp.Where(this=exp.and_(*conditions)))
    return True


def _commuted(tree: exp.Expression, names: QueryNames) -> bool:
    for node in tree.find_all(exp.And, exp.Or, exp.EQ):
        sides = (node.this, node.expression)
        # On the left, a word in quotes is a column.
        if not any(isinstance(side, exp.Column) and side.this.quoted for side in sides):
            node.set("this", sides[1])
            node.set("expression", sides[0])
    return True


@pytest.mark.parametrize(
    "respell", [_without_aliases, _without_tables, _with_joins_in_where, _commuted]
)
def test_gold_is_found_in_other_spellings(
    shared_data: Path, respell: Callable[[exp.Expression, QueryNames], bool]
) -> None:
    schemas = load_spider_schemas(shared_data / "spider" / "tables.json")
    dev = load_questions(shared_data / "spider" / "dev.jsonl")[::5]
    index = TemplateIndex()
    templates = {}
    for question in dev:
        templates[question.question_id] = get_normal_template(question.gold_sql, "sqlite")
        index.add(templates[question.question_id], question.question_id)
    num_respelled = 0
    for question in dev:
        tables = schemas[question.db_id].tables
        tree = parse_sql(question.gold_sql, "sqlite")
        columns = SchemaNames.of({t.name: [c.name for c in t.columns] for t in tables})
        if respell(tree, QueryNames(tree, columns)):
            sql = tree.sql(dialect="sqlite")
            expected = index.find(templates[question.question_id])
            assert index.find(get_normal_template(sql, "sqlite")) == expected, sql
            num_respelled += 1
    assert num_respelled > 100


@pytest.mark.slow
def test_no_mutant_with_other_rows_and_the_same_constants_is_found(
    shared_data: Path, spider_databases: Path
) -> None:
    dev = load_questions(shared_data / "spider" / "dev.jsonl")
    golds = {question.gold_sql: question.db_id for question in dev}
    num_same = 0
    with DatabaseCatalog.from_path(spider_databases) as catalog:
        for gold, db_id in golds.items():
            schema = get_schema(catalog.engine(db_id), db_id)
            columns = {t.name: {c.name: c.type for c in t.columns} for t in schema.tables}
            for mutant in mutate_sql(gold, "sqlite", columns=columns, max_mutants=20):
                if _constants(mutant.sql) == _constants(gold) and _is_found(mutant.sql, gold):
                    verdict = verify_sql(mutant.sql, gold, catalog.engine(db_id)).verdict
                    assert verdict is not Verdict.WRONG, (gold, mutant.sql)
                    num_same += 1
    assert num_same > 0


def _constants(sql: str) -> list[str]:
    return sorted(literal.this for literal in parse_sql(sql, "sqlite").find_all(exp.Literal))
