"""Exact-set match: hand-worked pairs, properties, and the script's verdicts on real predictions."""

from __future__ import annotations

import hashlib
import json
import re
import time
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sql_cases import SQLCase, load_cases, load_schema

from sense_trl.database import ColumnInfo, ForeignKeyInfo, TableInfo
from sense_trl.errors import InputError
from sense_trl.evaluation.exact_set_match import exact_set_match
from sense_trl.schema import DatabaseSchema, load_spider_schemas

CASES = load_cases(str(Path(__file__).parent / "cases" / "exact_set_match.sql"))
GOLDS = sorted({case.gold for case in CASES})


def make_schema() -> DatabaseSchema:
    columns, keys = load_schema()
    return DatabaseSchema(
        "music",
        "sqlite",
        tuple(
            TableInfo(
                table,
                tuple(ColumnInfo(name, kind, False, 0) for name, kind in columns[table].items()),
                tuple(ForeignKeyInfo((c,), t, (r,)) for owner, c, t, r in keys if owner == table),
                is_view=False,
            )
            for table in columns
        ),
    )


SCHEMA = make_schema()


@pytest.mark.parametrize("case", CASES, ids=lambda case: " ".join(case.labels))
def test_a_hand_worked_verdict(case: SQLCase) -> None:
    assert case.labels[0] in ("match", "no_match")
    assert exact_set_match(case.sql, case.gold, SCHEMA) is (case.labels[0] == "match")


@pytest.mark.parametrize("gold", GOLDS)
def test_gold_matches_itself(gold: str) -> None:
    assert exact_set_match(gold, gold, SCHEMA)


def test_depth_counts_nesting_and_not_subqueries() -> None:
    condition = "id IN (SELECT singer_id FROM song)"
    gold = f"SELECT name FROM singer WHERE {' AND '.join([condition] * 200)}"
    assert exact_set_match(gold, gold, SCHEMA)


def test_a_column_like_the_placeholder_never_matches() -> None:
    table = TableInfo("boxes", (ColumnInfo("value", "int", False, 0),), (), False)
    schema = DatabaseSchema("warehouse", "sqlite", (table,))
    assert not exact_set_match("SELECT value FROM boxes", "SELECT value FROM boxes", schema)
    # The script looks for the word in lower case only.
    assert exact_set_match("SELECT Value FROM boxes", "SELECT value FROM boxes", schema)


def test_foreign_keys_link_columns_in_groups_that_stay_apart() -> None:
    # a-b and c-d open two groups. b-c joins the first, but c counts for the second, which is later;
    # of the columns d, c, b, a the first of a group stands for it: a, b as c; c, d as d.
    links = (("a", "b"), ("c", "d"), ("b", "c"))
    table = TableInfo(
        "t",
        tuple(ColumnInfo(name, "int", False, 0) for name in "dcba"),
        tuple(ForeignKeyInfo((x,), "t", (y,)) for x, y in links),
        is_view=False,
    )
    schema = DatabaseSchema("keys", "sqlite", (table,))

    def same(x: str, y: str) -> bool:
        return exact_set_match(f"SELECT {x} FROM t", f"SELECT {y} FROM t", schema)

    assert same("a", "b")
    assert same("c", "d")
    assert not same("b", "c")


def test_a_foreign_key_to_nowhere_links_nothing() -> None:
    columns = tuple(ColumnInfo(name, "int", False, 0) for name in "ab")
    keys = (ForeignKeyInfo(("a",), "gone", ("b",)), ForeignKeyInfo(("b",), "t", ()))
    schema = DatabaseSchema("keys", "sqlite", (TableInfo("t", columns, keys, False),))
    assert not exact_set_match("SELECT a FROM t", "SELECT b FROM t", schema)


def test_a_view_is_no_table_to_the_script() -> None:
    view = TableInfo("v", (ColumnInfo("a", "int", False, 0),), (), is_view=True)
    schema = DatabaseSchema("views", "sqlite", (*SCHEMA.tables, view))
    with pytest.raises(InputError, match="`gold_sql`"):
        exact_set_match("SELECT a FROM v", "SELECT a FROM v", schema)


@pytest.mark.parametrize(
    "gold",
    ["", "SELECT 1", "SELECT name FROM singer WHERE name IS NULL", "SELECT a.name FROM singer a"],
)
def test_gold_that_the_script_cannot_read_is_an_error(gold: str) -> None:
    with pytest.raises(InputError, match=r"`gold_sql` is .* cannot parse"):
        exact_set_match("SELECT name FROM singer", gold, SCHEMA)


# ----------------------------------------------------------------------- properties

WORDS = re.findall(
    r"\S+",
    """
    select from where group by order having limit union intersect except distinct join on as not
    between in like is exists and or asc desc none count max avg = > < >= <= != ! <> + - * / ( ) ,
    ; . .. -- ` 1 2.5 1,2 nan 'x' "y" ' " T1 T2 T1.id T2.singer_id singer song id name age singer.id
    * SELECT FROM (SELECT with left inner null case when value \x00 \u2018
    """,
)
TEXTS = st.one_of(
    st.lists(st.sampled_from(WORDS), max_size=40).map(" ".join),
    st.lists(st.sampled_from(WORDS), max_size=40).map("".join),
    st.text(max_size=60),
)


@given(TEXTS, st.sampled_from(GOLDS), st.integers(0, 80))
@settings(max_examples=200)
def test_any_text_gets_a_verdict(text: str, gold: str, cut: int) -> None:
    # Alone, and behind the beginning of a real query, where the reader is deep in a clause.
    assert exact_set_match(text, gold, SCHEMA) in (True, False)
    assert exact_set_match(f"{gold[:cut]} {text}", gold, SCHEMA) in (True, False)


@pytest.mark.parametrize(
    "text",
    [
        "SELECT name FROM singer WHERE id IN (" * 3000,
        "SELECT count(*) FROM (" * 3000 + "SELECT name FROM singer" + ")" * 3000,
        "SELECT name FROM singer UNION " * 3000 + "SELECT name FROM singer",
        "(" * 100_000,
        "SELECT " + "name, " * 50_000 + "name FROM singer",
        "SELECT name FROM singer WHERE id = " + "9" * 100_000,
        "SELECT name FROM singer" + " ." * 50_000 + " " * 50_000,
    ],
    ids=["conditions", "from", "union", "parentheses", "columns", "digits", "stops"],
)
def test_long_and_deep_text_is_no_match_in_little_time(text: str) -> None:
    start = time.process_time()
    assert not exact_set_match(text, "SELECT country FROM singer", SCHEMA)
    assert time.process_time() - start < 5


COLUMNS = st.lists(st.sampled_from(["name", "country", "age"]), min_size=1, unique=True)
CONDITIONS = st.lists(
    st.sampled_from(["age > {}", "name = {}", "country != {}", "name NOT LIKE {}", "id < {}"]),
    unique=True,
    max_size=4,
)


@given(COLUMNS, CONDITIONS, st.sampled_from([" AND ", " OR "]), st.booleans(), st.data())
@settings(max_examples=100)
def test_order_values_and_distinct_do_not_matter_and_parts_do(
    columns: list[str], conditions: list[str], connective: str, join: bool, data: st.DataObject
) -> None:
    def write(
        columns: list[str], conditions: list[str], values: str, tables: list[str], distinct: str
    ) -> str:
        where = connective.join(c.format(values) for c in conditions)
        return (
            f"SELECT {distinct} {', '.join(columns)} FROM {' JOIN '.join(tables)}"
            f"{' WHERE ' + where if where else ''}"
        )

    tables = ["singer", "song"] if join else ["singer"]
    gold = write(columns, conditions, "1", tables, "")
    shuffled = write(
        data.draw(st.permutations(columns)),
        data.draw(st.permutations(conditions)),
        data.draw(st.sampled_from(["2", "'x'"])),
        data.draw(st.permutations(tables)),
        data.draw(st.sampled_from(["", "DISTINCT"])),
    )
    assert exact_set_match(shuffled, gold, SCHEMA)
    assert exact_set_match(gold, shuffled, SCHEMA)
    for lacking in (
        write(columns[1:], conditions, "1", tables, ""),
        write(columns, conditions[1:], "1", tables, "") if conditions else "",
        write(columns, conditions, "1", [*tables, "stadium"], ""),
    ):
        assert not exact_set_match(lacking, gold, SCHEMA)


@given(st.sampled_from(CASES), st.sampled_from(CASES))
@settings(max_examples=100)
def test_the_comparison_is_symmetric(first: SQLCase, second: SQLCase) -> None:
    assert exact_set_match(first.gold, second.gold, SCHEMA) is exact_set_match(
        second.gold, first.gold, SCHEMA
    )
    # What does not match when it is read as gold matches nothing as a prediction, and back.
    try:
        backward = exact_set_match(first.gold, first.sql, SCHEMA)
    except InputError:
        backward = False
    if "value" not in first.sql:
        assert exact_set_match(first.sql, first.gold, SCHEMA) is backward


# ------------------------------------------------------------------------ real data

# Matches of 1,034, and the SHA-256 of the string of 1 and 0 that the official script (with NLTK's
# tokenizer and Punkt's English sentences) gives line by line.
OFFICIAL = {
    "chatgpt_zero_shot": (392, "0960d23138f3c08f"),
    "codex_few_shot": (519, "f880c0b1e6c5acfd"),
    "dail_sql_gpt4": (724, "939b1d15c92e197a"),
    "codes_1b_sft": (741, "cdef0a8b2d3d37e8"),
    "dbgpt_codellama13b_lora": (540, "92041781dc51b5b9"),
}


# The first model is compared line by line by tests/evaluation/test_evaluate.py, too.
@pytest.mark.parametrize(
    "model",
    [
        model if model == "dbgpt_codellama13b_lora" else pytest.param(model, marks=pytest.mark.slow)
        for model in OFFICIAL
    ],
)
def test_every_line_of_spider_dev_gets_the_verdict_of_the_script(
    model: str, shared_data: Path
) -> None:
    schemas = load_spider_schemas(shared_data / "spider" / "tables.json")
    questions = [
        json.loads(line)
        for line in (shared_data / "spider" / "dev.jsonl").read_text(encoding="utf-8").splitlines()
    ]
    path = shared_data / "predictions" / model / "spider_dev.sql"
    predictions = path.read_text(encoding="utf-8").splitlines()
    verdicts = "".join(
        str(int(exact_set_match(predicted, question["query"], schemas[question["db_id"]])))
        for predicted, question in zip(predictions, questions, strict=True)
    )
    matches, digest = OFFICIAL[model]
    assert verdicts.count("1") == matches
    assert hashlib.sha256(verdicts.encode()).hexdigest()[:16] == digest
