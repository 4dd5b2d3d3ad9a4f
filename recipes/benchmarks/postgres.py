"""Spider's development databases on PostgreSQL: do queries agree, and how fast is verification?

Needs: Spider's questions, databases and the predictions of five models on them (the folder that
`SENSE_TRL_DATA` names; see `--data`), `pip install "sense_trl[postgres]" sqlparse`, and a server on
which you are a superuser. A database `sense_trl_benchmark` and a role of that name are made on it,
and removed at the end. No GPU, no network.

    python recipes/benchmarks/postgres.py postgresql://postgres@localhost/postgres
    python recipes/benchmarks/postgres.py DSN --quick      # every tenth pair
    python recipes/benchmarks/postgres.py DSN --pairs 0    # agreement only
    python recipes/benchmarks/postgres.py DSN --speed_only

Agreement: every database is written into a schema by `convert_sqlite`; every distinct gold query is
translated by `sqlite_to_postgres`, and its rows are compared with SQLite's (`strict`). What differs
is named by kind.

Speed: the same pairs of prediction and gold, translated where they can be. "The benchmarks' way" is
what BIRD mini-dev and LiveSQLBench do per pair: a new connection as superuser, prediction and gold
fetched whole, sets compared; one pair after the other, no limits. Ours runs as a role that may only
SELECT, one connection per worker, read-only transactions and cursors with limits, gold examined
once. Cold is a new verifier, warm one that knows gold and has seen none of the predictions. SQLite
is asked the original pairs.

Expected (PostgreSQL 18.6, sqlglot 30.30): 95.4 % of 564 gold queries equal, 98.9 % of those with
one answer, none fails; 63.7 % with sqlglot alone. What is left: LIMIT between ties (17), columns
that are neither grouped by nor aggregated (3), columns of wta_1 of numbers and empty text (6).
Speed (`--quick`, two runs on two idle cores): the benchmarks' way 205 to 217 pairs/s; `bird` with
two workers 1.4 times that cold, 3 times warm, `strict` 0.9 and 1.7 times; PostgreSQL takes 6.2
times as long as SQLite with gold known.
"""

from __future__ import annotations

import argparse
import json
import os
import secrets
import tarfile
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

import psycopg
import sqlglot
from psycopg import sql
from psycopg.conninfo import conninfo_to_dict, make_conninfo
from verification import DEFAULT_DATA, load_pairs

from sense_trl.database.catalog import DatabaseCatalog
from sense_trl.database.duckdb_import import convert_sqlite
from sense_trl.database.engine import SQLEngine
from sense_trl.database.location import locate
from sense_trl.sql.parsing import SQLParseError, get_tie_query, outer_limit
from sense_trl.sql.transpile import ColumnTypes, sqlite_to_postgres
from sense_trl.verification.comparison import Reason, Verdict, results_match
from sense_trl.verification.judging import VerificationRequest, examine_gold
from sense_trl.verification.verifier import SQLVerifier

NAME = "sense_trl_benchmark"
EQUAL = (Reason.RESULTS_EQUAL, Reason.BOTH_EMPTY)


# ---------------------------------------------------------------------- agreement


def compare(gold_sql: str, translated: str, sqlite: SQLEngine, postgres: SQLEngine) -> str:
    """`equal`, or the kind of difference."""
    gold = examine_gold(gold_sql, sqlite, "strict", None)
    if not gold.result.ok:
        return f"SQLite: {gold.result.status}"
    got = postgres.execute(translated)
    if not got.ok:
        return f"fails: {got.error}"

    def get_ties() -> list[object] | None:
        query = get_tie_query(gold_sql, "sqlite", limit=outer_limit(gold_sql, "sqlite"))
        rows = () if query is None else sqlite.execute(query).rows
        return [row[-1] for row in rows] or None

    found = results_match(
        got, gold.result, gold_sql=gold_sql, dialect="sqlite", tie_groups=get_ties
    ).reason
    if found in EQUAL:
        return "equal"
    if gold.problem not in (None, Reason.GOLD_EMPTY):
        return f"several answers: {gold.problem}"
    kinds = [{type(value) for value in column} for column in zip(*gold.result.rows, strict=True)]
    is_mixed = any({int, str} <= kind or {float, str} <= kind for kind in kinds)
    return f"{found}{', a column of numbers and texts' if is_mixed else ''}"


def measure_agreement(
    examples: Sequence[tuple[str, str]],
    sqlite: DatabaseCatalog,
    postgres: DatabaseCatalog,
    types: dict[str, ColumnTypes],
) -> None:
    """Print how many distinct gold queries give the same rows."""
    plain: Counter[str] = Counter()
    ours: Counter[str] = Counter()
    for db_id, gold in sorted(set(examples)):
        engines = sqlite.engine(db_id), postgres.engine(db_id)
        alone = sqlglot.transpile(gold, read="sqlite", write="postgres")[0]
        plain["equal" if compare(gold, alone, *engines) == "equal" else "differs"] += 1
        kind = compare(gold, sqlite_to_postgres(gold, types[db_id]), *engines)
        ours[kind] += 1
        if kind != "equal":
            print(f"  {db_id}: {kind}: {gold}")
    total = sum(ours.values())
    certain = total - sum(n for kind, n in ours.items() if kind.startswith("several"))
    print(f"{total} distinct gold queries; sqlglot alone: {plain['equal'] / total:.1%} equal")
    share, of_certain = ours["equal"] / total, ours["equal"] / certain
    print(f"sqlite_to_postgres: {share:.1%} equal, {of_certain:.1%} but for several answers")
    print(dict(ours.most_common()))


# ---------------------------------------------------------------------- speed


def benchmarks_way(conninfo: str, requests: Sequence[VerificationRequest]) -> list[bool]:
    """One pair after the other, as the scripts of benchmarks do."""
    verdicts = []
    for request in requests:
        connection = psycopg.connect(conninfo, options=f'-c search_path="{request.db_id}"')
        try:
            rows = [
                set(connection.execute(text).fetchall())
                for text in (request.predicted_sql, request.gold_sql)
            ]
            verdicts.append(rows[0] == rows[1])
        except (psycopg.Error, TypeError):
            verdicts.append(False)
        finally:
            connection.close()
    return verdicts


def seconds(work: Callable[[], object]) -> float:
    """Of one call."""
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def measure_speed(
    conninfo: str,
    translated: Sequence[VerificationRequest],
    original: Sequence[VerificationRequest],
    postgres: DatabaseCatalog,
    sqlite: DatabaseCatalog,
) -> None:
    """Print pairs a second, and ratios to the benchmarks' way."""
    # The page cache and the server's are warm for everybody.
    theirs = benchmarks_way(conninfo, translated)
    times: dict[str, float] = {}
    base = seconds(lambda: benchmarks_way(conninfo, translated))

    def report(name: str, value: float) -> None:
        times[name] = value
        rate = len(translated) / value
        ratio = base / value
        print(f"{name:<42}{value:>9.3f} s{rate:>9.0f} pairs/s{ratio:>8.2f} x theirs", flush=True)

    report("the benchmarks' way", base)
    contenders = [
        ("PostgreSQL", postgres, translated, semantics, workers)
        for semantics, workers in (("bird", 1), ("bird", 2), ("strict", 1), ("strict", 2))
    ]
    contenders += [("SQLite", sqlite, original, "strict", workers) for workers in (1, 2)]
    for name, catalog, requests, semantics, workers in contenders:
        for state in ("cold", "warm"):
            with SQLVerifier(catalog, semantics=semantics, num_workers=workers) as verifier:
                if state == "warm":
                    verifier.verify(
                        VerificationRequest(r.db_id, r.gold_sql, r.gold_sql) for r in requests
                    )
                started = time.perf_counter()
                found = verifier.verify(requests)
                label = f"{name}, {semantics}, {workers} workers, {state}"
                report(label, time.perf_counter() - started)
            if (name, semantics, workers, state) == ("PostgreSQL", "bird", 2, "warm"):
                ours = [v.verdict is Verdict.CORRECT for v in found]
                different = sum(map(bool.__ne__, ours, theirs))
                print(f"bird verdicts that differ from theirs: {different} of {len(theirs)}")
    server, file = (times[f"{n}, strict, 2 workers, warm"] for n in ("PostgreSQL", "SQLite"))
    print(f"PostgreSQL / SQLite, strict, 2 workers, warm: {server / file:.2f} times as long")


# ---------------------------------------------------------------------- server


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("dsn", help="a superuser's, of any database of the server")
    default_data = Path(os.environ.get("SENSE_TRL_DATA", DEFAULT_DATA))
    parser.add_argument("--data", type=Path, default=default_data, help="folder of real data")
    parser.add_argument("--quick", action="store_true", help="every tenth pair")
    parser.add_argument("--pairs", type=int, help="at most so many pairs; 0 for none")
    parser.add_argument("--speed_only", action="store_true", help="no agreement of gold")
    arguments = parser.parse_args()
    password = secrets.token_hex(8)
    owner = make_conninfo(**{**conninfo_to_dict(arguments.dsn), "dbname": NAME})
    name = sql.Identifier(NAME)
    with psycopg.connect(arguments.dsn, autocommit=True) as server:
        server.execute(sql.SQL("CREATE DATABASE {} TEMPLATE template0").format(name))
        try:
            server.execute(
                sql.SQL("CREATE ROLE {} LOGIN PASSWORD {}").format(name, sql.Literal(password))
            )
            run(arguments, owner, password)
        finally:
            server.execute(sql.SQL("DROP DATABASE {} WITH (FORCE)").format(name))
            server.execute(sql.SQL("DROP ROLE IF EXISTS {}").format(name))


def make_url(conninfo: str, schemas: str, **changes: str) -> str:
    """A URL of the benchmark's database."""
    parts = {**conninfo_to_dict(conninfo), **changes}
    user, secret = parts.get("user", "postgres"), parts.get("password")
    rest = [f"{key}={parts[key]}" for key in ("host", "port") if parts.get(key)]
    query = "&".join([*rest, f"schemas={schemas}"])
    return f"postgresql://{user}{f':{secret}' if secret else ''}@/{NAME}?{query}"


def run(arguments: argparse.Namespace, owner: str, password: str) -> None:
    """Fill the database, and measure."""
    lines = (arguments.data / "spider" / "dev.jsonl").read_text(encoding="utf-8").splitlines()
    examples = [(e["db_id"], e["query"]) for e in map(json.loads, lines)]
    with tempfile.TemporaryDirectory() as scratch:
        with tarfile.open(arguments.data / "spider" / "databases.tar.xz") as tar:
            tar.extractall(scratch, filter="data")
        folder = next(Path(scratch).rglob("*.sqlite")).parents[1]
        db_ids = sorted({db_id for db_id, _ in examples})
        types = {}
        started = time.perf_counter()
        for db_id in db_ids:
            source = folder / db_id / f"{db_id}.sqlite"
            types[db_id] = convert_sqlite(source, make_url(owner, db_id)).types
        print(f"{len(db_ids)} databases written in {time.perf_counter() - started:.1f} s")
        with psycopg.connect(owner, autocommit=True) as connection:
            for db_id in db_ids:
                schema, role = sql.Identifier(db_id), sql.Identifier(NAME)
                for grant in (
                    "GRANT USAGE ON SCHEMA {} TO {}",
                    "GRANT SELECT ON ALL TABLES IN SCHEMA {} TO {}",
                ):
                    connection.execute(sql.SQL(grant).format(schema, role))
            (version,) = connection.execute("SHOW server_version").fetchone() or ("",)
        urls = {
            db_id: locate(make_url(owner, db_id, user=NAME, password=password)) for db_id in db_ids
        }
        print(f"PostgreSQL {version}, {os.cpu_count()} CPUs, load {os.getloadavg()[0]:.1f}")
        with DatabaseCatalog.from_path(folder) as sqlite, DatabaseCatalog(urls) as postgres:
            if not arguments.speed_only:
                measure_agreement(examples, sqlite, postgres, types)
            if arguments.pairs == 0:
                return
            _, original = load_pairs(arguments.data, folder)
            original = original[:: 10 if arguments.quick else 1][: arguments.pairs]
            translated = [translate(request, types[request.db_id]) for request in original]
            measure_speed(owner, translated, original, postgres, sqlite)


def translate(request: VerificationRequest, types: ColumnTypes) -> VerificationRequest:
    """The pair in PostgreSQL's SQL; what cannot be read stays as it is."""
    gold = sqlite_to_postgres(request.gold_sql, types)
    try:
        predicted = sqlite_to_postgres(request.predicted_sql, types)
    except SQLParseError:
        predicted = request.predicted_sql
    return VerificationRequest(request.db_id, predicted, gold)


if __name__ == "__main__":
    main()
