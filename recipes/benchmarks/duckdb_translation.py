"""How many queries give the same rows on DuckDB, after importing the database and translating them.

Needs: Spider's questions and databases (the folder that `SENSE_TRL_DATA` names; see `--data`). No
GPU, no network.

    python recipes/benchmarks/duckdb_translation.py            # every gold query, some 2 minutes
    python recipes/benchmarks/duckdb_translation.py --limit 500

Expected: 99.1 % of 5,067 queries with `sqlite_to_duckdb`, 61.8 % with sqlglot alone (DuckDB 2.0.0,
sqlglot 30.30.0); what is left are columns that hold text and numbers, ties in another order, and
names that only SQLite finds.

Every database is converted by `convert_sqlite`; every distinct gold query that SQLite runs is
translated by sqlglot alone and by `sqlite_to_duckdb`, and compared by `results_match` (`strict`)
with what SQLite returns. Queries whose answer is ambiguous are left out and counted. Two empty
results count as agreement here.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import statistics
import tarfile
import tempfile
import time
from collections import Counter
from pathlib import Path

import sqlglot
from sqlglot.errors import SqlglotError

from sense_trl.database.catalog import DatabaseCatalog
from sense_trl.database.duckdb_engine import DuckDBEngine
from sense_trl.database.duckdb_import import convert_sqlite
from sense_trl.database.engine import QueryResult
from sense_trl.sql.parsing import SQLParseError
from sense_trl.sql.transpile import sqlite_to_duckdb
from sense_trl.verification.comparison import Reason, Verdict, results_match
from sense_trl.verification.judging import examine_gold

DEFAULT_DATA = Path(__file__).resolve().parents[3] / "shared" / "data"


def judge(sql: str, expected: QueryResult, got: QueryResult) -> str:
    """`equal`, `differs` with the reason, or how the query failed."""
    if not got.ok:
        return f"fails: {got.status}"
    comparison = results_match(got, expected, gold_sql=sql, dialect="sqlite")
    if comparison.verdict is Verdict.CORRECT or comparison.reason is Reason.BOTH_EMPTY:
        return "equal"
    return f"differs: {comparison.reason}"


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    default_data = Path(os.environ.get("SENSE_TRL_DATA", DEFAULT_DATA))
    parser.add_argument("--data", type=Path, default=default_data, help="folder of real data")
    parser.add_argument("--limit", type=int, help="so many queries, drawn at random")
    parser.add_argument("--show", type=int, default=10, help="print so many that do not agree")
    arguments = parser.parse_args()
    spider = arguments.data / "spider"
    queries = set()
    for name in ("train.jsonl", "dev.jsonl"):
        for line in (spider / name).read_text(encoding="utf-8").splitlines():
            example = json.loads(line)
            queries.add((example["db_id"], example["query"]))
    with tempfile.TemporaryDirectory() as scratch:
        with tarfile.open(spider / "databases.tar.xz") as tar:
            tar.extractall(scratch, filter="data")
        folder = next(Path(scratch).rglob("*.sqlite")).parents[1]
        with DatabaseCatalog.from_path(folder) as catalog:
            chosen = sorted(query for query in queries if query[0] in catalog)
            if arguments.limit is not None:
                chosen = sorted(random.Random(0).sample(chosen, arguments.limit))
            run(chosen, catalog, Path(scratch), arguments.show)


def run(
    queries: list[tuple[str, str]], catalog: DatabaseCatalog, scratch: Path, num_shown: int
) -> None:
    """Convert the databases, run the queries on both sides and print what came of it."""
    types, seconds = {}, []
    for db_id in catalog.db_ids:
        started = time.perf_counter()
        types[db_id] = convert_sqlite(catalog.path(db_id), scratch / f"{db_id}.duckdb").types
        seconds.append(time.perf_counter() - started)
    print(
        f"{len(seconds)} databases converted in {sum(seconds):.1f} s "
        f"(median {statistics.median(seconds) * 1000:.0f} ms, longest {max(seconds):.1f} s)"
    )
    plain, ours, left_out = Counter(), Counter(), Counter()
    engine, opened = None, ""
    for db_id, sql in queries:
        gold = examine_gold(sql, catalog.engine(db_id), "strict", None)
        if gold.problem is not None:
            left_out[str(gold.problem)] += 1
            continue
        if engine is None or opened != db_id:
            if engine is not None:
                engine.close()
            engine, opened = DuckDBEngine(scratch / f"{db_id}.duckdb"), db_id
        try:
            text = sqlglot.transpile(sql, read="sqlite", write="duckdb")[0]
            plain[judge(sql, gold.result, engine.execute(text))] += 1
        except SqlglotError:
            plain["fails: translation"] += 1
        try:
            text = sqlite_to_duckdb(sql, types[db_id])
            result = engine.execute(text)
            outcome, message = judge(sql, gold.result, result), result.error or ""
        except SQLParseError as error:
            text, outcome, message = "", "fails: translation", str(error)
        ours[outcome] += 1
        if outcome != "equal" and num_shown > 0:
            num_shown -= 1
            print(f"\n{db_id} {outcome}\n  {sql}\n  {text}\n  {message}")
    if engine is not None:
        engine.close()
    total = sum(ours.values())
    print(f"\n{total} distinct queries compared; left out: {dict(left_out)}")
    for name, counts in (("sqlglot alone", plain), ("sqlite_to_duckdb", ours)):
        print(f"{name:<20}{counts['equal'] / total:8.1%} equal   {dict(counts.most_common())}")


if __name__ == "__main__":
    main()
