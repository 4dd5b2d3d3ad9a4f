"""Questions made without a model, beside people's on the same databases; and inferred foreign keys.

Needs: Spider's databases, schemas and questions (the folder that `SENSE_TRL_DATA` names; see
`--data`). No GPU, no network.

    python recipes/benchmarks/synthesis.py          # some two minutes on two cores

First, the foreign keys that Spider's `tables.json` declares are hidden and inferred from names,
types and values (`infer_foreign_keys`), on all 164 databases that are there. Then the 20 training
databases with the most questions are explored (`explore_databases`, 200 questions each): templates
and weights come from the training split, and what is close to a dev question is left out. Every
query is run again by a plain connection to the file that is opened read-only, and compared with
dev's questions and queries by sets of strings, apart from the filters. A share is of the questions
on these databases; gold that Spider's own parser cannot read has no hardness.

Expected of inferred keys (766 of one column and between two tables are declared):

    confidence   inferred      right  precision     recall
          0.50        711        642      90.3%      83.8%
          0.75        630        579      91.9%      75.6%
          1.00        553        514      92.9%      67.1%

Expected of 4,000 questions: all return rows when they are run again, no question, query or
template of dev is among them, and 68 are made per second (on two cores that were busy otherwise,
mining 8,659 seed queries included). Of 10,149 attempts 3,779 find no columns that fit, 662 have a
part that says nothing, 204 have no words, 963 return nothing, 310 have no one answer or find
nothing but zeros, 203 are duplicates, and one has the template of a dev query. In samples of
2,077, all that people asked of these databases (most queries twice, in other words):

                              made      gold
    distinct queries          2074      1032
    distinct templates        2063      1027   SQL without constants
    distinct shapes           1337       691   SQL without names and constants
    10 commonest shapes       9.5%     12.4%
    no join                  65.0%     59.8%
    one join                 16.7%     26.0%
    two joins                14.4%     11.2%
    three joins or more       3.9%      3.0%
    WHERE                    65.6%     58.2%
    GROUP BY                 26.0%     25.3%
    HAVING                    8.7%      6.1%
    ORDER BY                 16.8%     19.0%
    LIMIT                    10.6%     14.1%
    subquery                 20.7%     10.1%
    set operation            11.5%      9.1%
    easy                     19.4%     20.7%
    medium                   27.8%     36.6%
    hard                     25.2%     24.5%
    extra                    27.6%     18.2%
"""

from __future__ import annotations

import argparse
import os
import random
import sqlite3
import tarfile
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from sqlglot import exp

from sense_trl.database import DatabaseCatalog
from sense_trl.errors import InputError
from sense_trl.evaluation.hardness import Hardness, get_hardness
from sense_trl.questions import Question, load_questions
from sense_trl.schema import DatabaseSchema, get_schema, load_spider_schemas
from sense_trl.schema.foreign_keys import infer_foreign_keys
from sense_trl.schema.graph import SchemaGraph
from sense_trl.sql.parsing import SQLParseError, canonical_sql, parse_sql
from sense_trl.synthesis.example import load_examples
from sense_trl.synthesis.explore.config import ExplorationConfig
from sense_trl.synthesis.explore.folder import ExplorationResult, explore_databases
from sense_trl.synthesis.explore.templates import TemplateMiner, get_complexity
from sense_trl.synthesis.filters.contamination import normalize_question
from sense_trl.synthesis.filters.sql_template import get_sql_template

DEFAULT_DATA = Path(__file__).resolve().parents[3] / "shared" / "data"
CLAUSES: dict[str, Callable[[exp.Expression], bool]] = {
    "DISTINCT": lambda tree: tree.find(exp.Distinct) is not None,
    "aggregate": lambda tree: tree.find(exp.AggFunc) is not None,
    "WHERE": lambda tree: tree.find(exp.Where) is not None,
    "AND, OR": lambda tree: tree.find(exp.And, exp.Or) is not None,
    "LIKE": lambda tree: tree.find(exp.Like) is not None,
    "BETWEEN": lambda tree: tree.find(exp.Between) is not None,
    "JOIN": lambda tree: tree.find(exp.Join) is not None,
    "GROUP BY": lambda tree: tree.find(exp.Group) is not None,
    "HAVING": lambda tree: tree.find(exp.Having) is not None,
    "ORDER BY": lambda tree: tree.find(exp.Order) is not None,
    "LIMIT": lambda tree: tree.find(exp.Limit) is not None,
    "subquery": lambda tree: tree.find(exp.Subquery) is not None,
    "set operation": lambda tree: tree.find(exp.SetOperation) is not None,
}


def main() -> None:
    """Print all tables."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    default_data = Path(os.environ.get("SENSE_TRL_DATA", DEFAULT_DATA))
    parser.add_argument("--data", type=Path, default=default_data, help="folder of real data")
    parser.add_argument("--num-databases", type=int, default=20)
    parser.add_argument("--per-database", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    spider = arguments.data / "spider"
    schemas = load_spider_schemas(spider / "tables.json")
    train = load_questions(spider / "train.jsonl")
    dev = load_questions(spider / "dev.jsonl")
    with tempfile.TemporaryDirectory() as scratch:
        with tarfile.open(spider / "databases.tar.xz") as tar:
            tar.extractall(scratch, filter="data")
        root = next(Path(scratch).rglob("*.sqlite")).parents[1]
        with DatabaseCatalog.from_path(root) as catalog:
            print_foreign_keys(catalog, schemas)
            db_ids = choose_databases(train, catalog, arguments.num_databases)
            start = time.perf_counter()
            result = explore_databases(
                catalog,
                Path(scratch) / "explored",
                ExplorationConfig(num_per_database=arguments.per_database, seed=arguments.seed),
                db_ids=db_ids,
                schemas=schemas,
                seeds=train,
                excluded=dev,
            )
            seconds = time.perf_counter() - start
            print_exploration(result, catalog, dev, seconds)
            made = [example.as_question() for example in load_examples(result.questions_path)]
            gold = [question for question in train if question.db_id in db_ids]
            print_comparison(made, gold, schemas)


def choose_databases(
    questions: Iterable[Question], catalog: DatabaseCatalog, num: int
) -> list[str]:
    """The databases with rows that have the most questions."""
    counts = Counter(question.db_id for question in questions if question.db_id in catalog)
    filled = []
    for db_id, _ in counts.most_common():
        engine = catalog.engine(db_id)
        tables = [table.name for table in engine.get_tables()]
        if all(engine.execute(f'SELECT 1 FROM "{table}" LIMIT 1').rows for table in tables):
            filled.append(db_id)
    return filled[:num]


def print_foreign_keys(catalog: DatabaseCatalog, schemas: dict[str, DatabaseSchema]) -> None:
    """Precision and recall of inferred keys against those that `tables.json` declares."""
    print(
        f"{'confidence':>12}{'declared':>10}{'inferred':>10}{'right':>8}{'precision':>11}", end=""
    )
    print(f"{'recall':>9}")
    found: dict[str, dict[tuple[str, ...], float]] = {}
    declared: dict[str, set[tuple[str, ...]]] = {}
    start = time.perf_counter()
    for db_id in catalog.db_ids:
        engine = catalog.engine(db_id)
        declared[db_id] = {
            _lower((table, key.columns[0], key.referenced_table, key.referenced_columns[0]))
            for table, key in schemas[db_id].foreign_keys
            if table.lower() != key.referenced_table.lower()
        }
        keys = infer_foreign_keys(engine, get_schema(engine, db_id), min_confidence=0.0)
        found[db_id] = {_lower(key.columns): key.confidence for key in keys}
    seconds = time.perf_counter() - start
    num_declared = sum(map(len, declared.values()))
    for least in (0.5, 0.75, 1.0):
        kept = [
            (db_id, key)
            for db_id, keys in found.items()
            for key, confidence in keys.items()
            if confidence >= least
        ]
        right = sum(key in declared[db_id] for db_id, key in kept)
        print(f"{least:12.2f}{num_declared:10}{len(kept):10}{right:8}", end="")
        print(f"{100 * right / len(kept):10.1f}%{100 * right / num_declared:8.1f}%")
    print(f"{seconds:.0f} s for {len(found)} databases\n")


def print_exploration(
    result: ExplorationResult, catalog: DatabaseCatalog, dev: Sequence[Question], seconds: float
) -> None:
    """What became of the attempts, and whether every query holds."""
    account = result.account
    examples = load_examples(result.questions_path)
    print(f"{len(result.num_examples)} databases, {len(examples)} questions, ", end="")
    print(f"{seconds:.0f} s, {len(examples) / seconds:.0f} questions/s")
    short = {
        db_id: n
        for db_id, n in result.num_examples.items()
        if n < max(result.num_examples.values())
    }
    print(f"databases with fewer than the others: {short or 'none'}")
    print(f"attempts {account.num_attempts}; not made {dict(account.not_made)}")
    print(f"removed { ({n: dict(r) for n, r in account.filters.removed.items() if r}) }")
    good = sum(runs_and_returns(catalog.path(e.db_id), e.sql) for e in examples)
    print(f"run again by a plain connection: {good} of {len(examples)} return rows")
    questions = {normalize_question(question.question) for question in dev}
    queries = {canonical_sql(question.gold_sql, "sqlite") for question in dev}
    templates = {get_sql_template(question.gold_sql, "sqlite") for question in dev}
    leaks = {
        "questions": sum(normalize_question(e.question) in questions for e in examples),
        "queries": sum(canonical_sql(e.sql, "sqlite") in queries for e in examples),
        "templates": sum(get_sql_template(e.sql, "sqlite") in templates for e in examples),
    }
    print(f"of dev: {leaks}\n")


def runs_and_returns(path: Path, sql: str) -> bool:
    """Whether a query gives a row, without any of this package."""
    connection = sqlite3.connect(f"file:{path}?mode=ro", uri=True)
    connection.text_factory = bytes
    try:
        return connection.execute(sql).fetchone() is not None
    except sqlite3.Error:
        return False
    finally:
        connection.close()


def print_comparison(
    made: Sequence[Question], gold: Sequence[Question], schemas: dict[str, DatabaseSchema]
) -> None:
    """Diversity and difficulty, both sides."""
    miners = {q.db_id: TemplateMiner(SchemaGraph(schemas[q.db_id])) for q in gold}
    rng = random.Random(0)
    # A template that is new among a thousand is old among ten thousand.
    size = min(len(made), len(gold))
    sides = {"made": rng.sample(made, size), "gold": rng.sample(gold, size)}
    print(f"{'of ' + str(size) + ' each':24}{'made':>10}{'gold':>10}")
    rows: dict[str, list[str]] = {}
    for side in sides.values():
        trees = [tree for q in side if (tree := _parse(q.gold_sql)) is not None]
        canonical = {_try(canonical_sql, q.gold_sql) for q in side}
        templates = {_try(get_sql_template, q.gold_sql) for q in side}
        shapes = Counter(
            shape.text for q in side if (shape := miners[q.db_id].mine(q.gold_sql)) is not None
        )
        depths = Counter(min(3, len(list(tree.find_all(exp.Join)))) for tree in trees)
        levels = Counter(get_complexity(tree.sql("sqlite"), "sqlite") for tree in trees)
        hardness = Counter(filter(None, (_hardness(q, schemas[q.db_id]) for q in side)))
        column = {
            "distinct queries": str(len(canonical)),
            "distinct templates": str(len(templates)),
            "distinct shapes": str(len(shapes)),
            "10 commonest shapes": _percent(sum(n for _, n in shapes.most_common(10)), size),
            **{f"joins: {d}{'+' * (d == 3)}": _percent(depths[d], size) for d in range(4)},
            **{name: _percent(sum(map(has, trees)), size) for name, has in CLAUSES.items()},
            **{f"level {n}": _percent(levels[n], size) for n in (1, 2, 3, 4)},
            **{str(h): _percent(hardness[h], hardness.total()) for h in Hardness},
            "has a hardness": _percent(hardness.total(), size),
        }
        for name, value in column.items():
            rows.setdefault(name, []).append(value)
    for name, values in rows.items():
        print(f"{name:24}" + "".join(f"{value:>10}" for value in values))


def _lower(names: Iterable[str]) -> tuple[str, ...]:
    return tuple(name.lower() for name in names)


def _parse(sql: str) -> exp.Expression | None:
    try:
        return parse_sql(sql, "sqlite")
    except SQLParseError:
        return None


def _try(write: Callable[[str, str], str], sql: str) -> str:
    try:
        return write(sql, "sqlite")
    except SQLParseError:
        return sql


def _hardness(question: Question, schema: DatabaseSchema) -> Hardness | None:
    try:
        return get_hardness(question.gold_sql, schema)
    except InputError:
        return None


def _percent(count: int, total: int) -> str:
    return f"{100 * count / total:.1f}%"


if __name__ == "__main__":
    main()
