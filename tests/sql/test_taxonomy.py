from __future__ import annotations

import json
import random
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sql_cases import SQLCase, load_cases, load_schema
from sqlglot import exp

from sense_trl.sql.mutation import MutationKind, mutate_sql
from sense_trl.sql.parsing import SQLParseError, parse_sql
from sense_trl.sql.taxonomy import ErrorClass, ResultClass, classify_errors, classify_results

COLUMNS, FOREIGN_KEYS = load_schema()
CASES = load_cases("taxonomy.sql")
GOLDS = sorted({case.gold for case in CASES})

# What a mutant of each kind does to a query.
CLASS_OF_KIND = {
    MutationKind.WRONG_COLUMN: {ErrorClass.WRONG_COLUMN},
    MutationKind.SELECT_COLUMN_DROPPED: {ErrorClass.MISSING_SELECT_COLUMN},
    MutationKind.SELECT_COLUMN_ADDED: {ErrorClass.EXTRA_SELECT_COLUMN},
    MutationKind.WRONG_TABLE: {ErrorClass.WRONG_TABLE},
    MutationKind.WRONG_AGGREGATE: {ErrorClass.WRONG_AGGREGATE},
    MutationKind.COUNT_ARGUMENT: {
        ErrorClass.WRONG_COUNT_ARGUMENT,
        ErrorClass.MISSING_DISTINCT,
        ErrorClass.EXTRA_DISTINCT,
    },
    MutationKind.WRONG_OPERATOR: {ErrorClass.WRONG_OPERATOR},
    MutationKind.NEGATION: {ErrorClass.WRONG_OPERATOR},
    MutationKind.AND_OR: {ErrorClass.WRONG_CONNECTIVE},
    MutationKind.WRONG_LITERAL: {ErrorClass.WRONG_LITERAL},
    MutationKind.CONDITION_DROPPED: {ErrorClass.MISSING_CONDITION},
    MutationKind.CONDITION_ADDED: {ErrorClass.EXTRA_CONDITION},
    MutationKind.DISTINCT_DROPPED: {ErrorClass.MISSING_DISTINCT},
    MutationKind.DISTINCT_ADDED: {ErrorClass.EXTRA_DISTINCT},
    MutationKind.JOIN_DROPPED: {ErrorClass.MISSING_JOIN},
    MutationKind.JOIN_ADDED: {ErrorClass.EXTRA_JOIN},
    MutationKind.JOIN_SIDE: {ErrorClass.WRONG_JOIN_SIDE},
    MutationKind.WRONG_JOIN_KEY: {ErrorClass.WRONG_JOIN_KEY},
    MutationKind.GROUP_DROPPED: {ErrorClass.WRONG_GROUPING},
    MutationKind.WRONG_GROUP_KEY: {ErrorClass.WRONG_GROUPING},
    MutationKind.ORDER_DROPPED: {ErrorClass.WRONG_ORDER},
    MutationKind.ORDER_DIRECTION: {ErrorClass.WRONG_ORDER},
    MutationKind.WRONG_ORDER_KEY: {ErrorClass.WRONG_ORDER},
    MutationKind.WRONG_LIMIT: {ErrorClass.WRONG_LIMIT},
    MutationKind.SET_OPERATION: {ErrorClass.WRONG_SET_OPERATION},
    MutationKind.SET_OPERAND_DROPPED: {ErrorClass.WRONG_SET_OPERATION},
}


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case.sql} / {case.gold}")
def test_a_query_differs_from_gold_by_these_classes(case: SQLCase) -> None:
    wanted = {ErrorClass(label) for label in case.labels if label != "none"}
    assert set(classify_errors(case.sql, case.gold, "sqlite", columns=COLUMNS)) == wanted


def test_every_class_has_a_case() -> None:
    assert {label for case in CASES for label in case.labels} == {*ErrorClass, "none"}
    assert set(CLASS_OF_KIND) == set(MutationKind)


def test_column_names_are_enough() -> None:
    names = {table: list(own) for table, own in COLUMNS.items()}
    for case in CASES[:20]:
        assert classify_errors(case.sql, case.gold, "sqlite", columns=names) == classify_errors(
            case.sql, case.gold, "sqlite", columns=COLUMNS
        )


def test_duckdb_takes_account_of_the_case_in_like() -> None:
    gold, predicted = (f"SELECT name FROM singer WHERE name LIKE '%{x}%'" for x in ("A", "a"))
    assert classify_errors(predicted, gold, "duckdb", columns=COLUMNS) == ("wrong_literal",)
    assert classify_errors(predicted, gold, "sqlite", columns=COLUMNS) == ()


def test_gold_must_parse() -> None:
    with pytest.raises(SQLParseError, match="cannot parse"):
        classify_errors("SELECT 1", "SELECT FROM", "sqlite", columns=COLUMNS)


# ---------------------------------------------------------------------- respelling


def _renamed(tree: exp.Expression, rng: random.Random) -> exp.Expression:
    """Every table of a query by an alias of its own, and its columns qualified by it."""
    if len(list(tree.find_all(exp.Select))) > 1 or tree.find(exp.CTE):
        return tree
    names = {}
    for position, table in enumerate(tree.find_all(exp.Table)):
        names[(table.alias or table.name).lower()] = f"q{position}{rng.randrange(9)}"
    for table in tree.find_all(exp.Table):
        alias = names[(table.alias or table.name).lower()]
        table.set("alias", exp.TableAlias(this=exp.to_identifier(alias)))
    for column in tree.find_all(exp.Column):
        if column.table:
            column.set("table", exp.to_identifier(names[column.table.lower()]))
    return tree


def _flipped(tree: exp.Expression, rng: random.Random) -> exp.Expression:
    """Comparisons and AND with their operands exchanged."""
    others = {
        exp.EQ: exp.EQ, exp.NEQ: exp.NEQ, exp.GT: exp.LT, exp.LT: exp.GT,
        exp.GTE: exp.LTE, exp.LTE: exp.GTE, exp.And: exp.And, exp.Or: exp.Or,
    }  # fmt: skip

    def flip(node: exp.Expression) -> exp.Expression:
        other = others.get(type(node))
        if other is None or rng.random() < 0.3:
            return node
        left, right = node.this, node.expression
        connective = isinstance(node, (exp.And, exp.Or))
        return other(this=exp.paren(right) if connective else right, expression=left)

    return tree.transform(flip)


def _spelled(tree: exp.Expression, rng: random.Random) -> exp.Expression:
    for between in list(tree.find_all(exp.Between)):
        bounds = [
            exp.GTE(this=between.this.copy(), expression=between.args["low"].copy()),
            exp.LTE(this=between.this.copy(), expression=between.args["high"].copy()),
        ]
        between.replace(exp.paren(exp.and_(*bounds)))
    for join in list(tree.find_all(exp.Join)):
        if join.args.get("on") and not join.args.get("side"):
            join.set("kind", "INNER")
    return tree


RESPELLINGS: list[Callable[[exp.Expression, random.Random], exp.Expression]] = [
    _renamed,
    _flipped,
    _spelled,
]


def respell(sql: str, rng: random.Random) -> str:
    tree = parse_sql(sql, "sqlite").copy()
    for change in RESPELLINGS:
        if rng.random() < 0.7:
            tree = change(tree, rng)
    text: str = tree.sql(dialect="sqlite", pretty=rng.random() < 0.5)
    return text


@given(st.sampled_from(GOLDS), st.randoms(use_true_random=False))
@settings(max_examples=100)
def test_spelling_is_no_error(gold: str, rng: random.Random) -> None:
    respelled = respell(gold, rng)
    assert classify_errors(respelled, gold, "sqlite", columns=COLUMNS) == (), respelled


# ---------------------------------------------------------------------- any text


WORDS = [
    "SELECT", "FROM", "WHERE", "singer", "song", "name", "x.y", "*", "(", ")", ",", "=", "1", "'a'",
    '"b"', "JOIN", "ON", "GROUP BY", "ORDER BY", "count(*)", "IN", "NOT", "UNION", "AS t", "LIMIT",
    "WITH t AS", ";", "--", "NULL", "CASE", "END", "OVER ()", "VALUES",
]  # fmt: skip


@given(st.lists(st.sampled_from(WORDS), max_size=12).map(" ".join) | st.text(max_size=30))
@settings(max_examples=100)
def test_no_text_of_a_model_raises(text: str) -> None:
    gold = "SELECT name FROM singer WHERE id IN (SELECT singer_id FROM song)"
    assert isinstance(classify_errors(text, gold, "sqlite", columns=COLUMNS), tuple)


@pytest.mark.parametrize(
    "text", ["->", "SELECT max(", "SELECT a FROM t JOIN f ( b )", "SELECT t.*"]
)
def test_what_only_the_parser_takes_is_classified(text: str) -> None:
    assert classify_errors(text, "SELECT name FROM singer", "sqlite", columns=COLUMNS)


@pytest.mark.parametrize(
    "text",
    [
        "SELECT " + "(" * 400 + "1" + ")" * 400,
        "SELECT " + "abs(" * 300 + "1" + ")" * 300,
        "SELECT name FROM singer WHERE " + " OR ".join(f"id = {i}" for i in range(2000)),
        "SELECT " + " + ".join(["1"] * 2000),
        "WITH t AS (SELECT * FROM t) SELECT * FROM t",
        "SELECT a AS b, b AS a FROM (SELECT 1)",
        # Written out, these are 2 to the power of 40 times as long.
        "WITH c0 AS (SELECT 1 AS a), "
        + ", ".join(f"c{i + 1} AS (SELECT * FROM c{i}, c{i} AS d)" for i in range(40))
        + " SELECT * FROM c40",
        "SELECT id AS a0, "
        + ", ".join(f"a{i} + a{i} AS a{i + 1}" for i in range(40))
        + " FROM singer",
    ],
)
def test_a_huge_query_is_classified_too(text: str) -> None:
    assert classify_errors(text, "SELECT name FROM singer", "sqlite", columns=COLUMNS)


# ---------------------------------------------------------------------- real queries


def _spider(shared_data: Path, count: int, seed: int) -> list[tuple[str, dict, list]]:  # type: ignore[type-arg]
    from sense_trl.schema.schema import load_spider_schemas

    schemas = load_spider_schemas(shared_data / "spider" / "tables.json")
    found = []
    for part in ("dev", "train"):
        text = (shared_data / "spider" / f"{part}.jsonl").read_text(encoding="utf-8")
        for question in random.Random(seed).sample(text.splitlines(), count // 2):
            record = json.loads(question)
            schema = schemas[record["db_id"]]
            columns = {t.name: {c.name: c.type for c in t.columns} for t in schema.tables}
            keys = [
                (table, key.columns[0], key.referenced_table, key.referenced_columns[0])
                for table, key in schema.foreign_keys
            ]
            found.append((record["query"], columns, keys))
    return found


def _check_mutants(shared_data: Path, count: int) -> None:
    total, missed = 0, Counter[MutationKind]()
    for gold, columns, keys in _spider(shared_data, count, seed=1):
        for mutant in mutate_sql(gold, "sqlite", columns=columns, foreign_keys=keys):
            classes = set(classify_errors(mutant.sql, gold, "sqlite", columns=columns))
            total += 1
            if not CLASS_OF_KIND[mutant.kind] & classes:
                missed[mutant.kind] += 1
    assert total > 15 * count
    assert missed.total() <= 0.02 * total, missed


def test_the_class_of_a_mutant_is_found(shared_data: Path) -> None:
    _check_mutants(shared_data, 60)


@pytest.mark.slow
def test_the_class_of_a_mutant_is_found_on_many_queries(shared_data: Path) -> None:
    _check_mutants(shared_data, 1000)


def test_respelled_gold_has_no_errors(shared_data: Path) -> None:
    rng = random.Random(0)
    for gold, columns, _ in _spider(shared_data, 200, seed=2):
        respelled = respell(gold, rng)
        found = classify_errors(respelled, gold, "sqlite", columns=columns)
        # What gold itself gets wrong about its schema, its spellings do.
        assert found == classify_errors(gold, gold, "sqlite", columns=columns), respelled


# ---------------------------------------------------------------------- results


@pytest.mark.parametrize(
    ("predicted", "gold", "wanted"),
    [
        ([(1,)], [(1,)], None),
        ([], [], None),
        ([], [(1,)], ResultClass.EMPTY),
        ([(1,)], [], ResultClass.NOT_EMPTY),
        ([(1, 2)], [(1,)], ResultClass.WRONG_ARITY),
        ([(2,), (1,)], [(1,), (2,)], ResultClass.OTHER_ORDER),
        ([(1,), (1,)], [(1,)], ResultClass.OTHER_COUNTS),
        ([(1,), (2,), (2,)], [(1,), (1,), (2,)], ResultClass.OTHER_COUNTS),
        ([(1,), (2,)], [(1,)], ResultClass.SUPERSET),
        ([(1,)], [(1,), (2,)], ResultClass.SUBSET),
        ([(1,), (3,)], [(1,), (2,)], ResultClass.OVERLAP),
        ([(3,)], [(1,), (2,)], ResultClass.DISJOINT),
        ([("1",)], [(1,)], ResultClass.DISJOINT),
        ([[None]], [(None,)], None),
    ],
)
def test_rows_differ_from_golds_in_one_way(
    predicted: list[tuple[object, ...]], gold: list[tuple[object, ...]], wanted: ResultClass | None
) -> None:
    assert classify_results(predicted, gold) == (() if wanted is None else (wanted,))


rows = st.lists(st.tuples(st.integers(min_value=0, max_value=3)), max_size=5)
OPPOSITE = {
    ResultClass.EMPTY: ResultClass.NOT_EMPTY,
    ResultClass.NOT_EMPTY: ResultClass.EMPTY,
    ResultClass.SUPERSET: ResultClass.SUBSET,
    ResultClass.SUBSET: ResultClass.SUPERSET,
}


@given(rows, rows)
def test_exchanging_both_exchanges_superset_and_subset(
    left: list[tuple[int]], right: list[tuple[int]]
) -> None:
    found = classify_results(left, right)
    assert classify_results(right, left) == tuple(OPPOSITE.get(name, name) for name in found)
    assert (found == ()) is (left == right)


def test_a_table_that_occurs_dozens_of_times_costs_little() -> None:
    tables = ", ".join(f"singer AS s{i}" for i in range(40))
    assert classify_errors(
        f"SELECT s0.name FROM {tables}", "SELECT name FROM singer", "sqlite", columns=COLUMNS
    ) == (ErrorClass.EXTRA_JOIN,)
