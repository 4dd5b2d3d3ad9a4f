"""How well neighbour instances tell right queries from wrong ones, and what that costs.

Needs: Spider's databases and questions and the predictions of five models (the folder that
`SENSE_TRL_DATA` names; see `--data`). No GPU, no network.

    python recipes/benchmarks/suite_accuracy.py             # some 6 minutes on two cores
    python recipes/benchmarks/suite_accuracy.py --quick     # a minute, a sample

Printed are:

* milliseconds per instance, drawn and written, over all databases;
* the share of surviving mutants that k instances refute. Survivors are mutants that agree with
  gold on the original database; many of them mean the same as gold (DISTINCT over a key), which
  no instance may refute. The instances are chosen by every other survivor and tested on the rest;
* false alarms: equivalent rewrites of gold that an instance refutes;
* for each model, the predictions that the original calls correct and an instance refutes, and the
  milliseconds per question; with `--show N`, N of them with what they answered.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import random
import sqlite3
import statistics
import tarfile
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from sqlglot import exp

from sense_trl.database.catalog import DatabaseCatalog
from sense_trl.database.engine import SQLEngine
from sense_trl.database.fuzzing import DatabaseFuzzer
from sense_trl.database.profile import profile_database
from sense_trl.errors import SenseTRLError
from sense_trl.sql.mutation import MutationKind, mutate_sql
from sense_trl.sql.parsing import canonical_sql, order_matters, parse_sql
from sense_trl.verification.comparison import Verdict
from sense_trl.verification.judging import VerificationRequest
from sense_trl.verification.suite.hints import get_table_columns
from sense_trl.verification.suite.instances import InstanceBuilder, SuiteSettings
from sense_trl.verification.suite.verifier import SuiteVerification, SuiteVerifier, suite_accuracy

MODELS = (
    "chatgpt_zero_shot",
    "codes_1b_sft",
    "codex_few_shot",
    "dail_sql_gpt4",
    "dbgpt_codellama13b_lora",
)
DEFAULT_DATA = Path(__file__).resolve().parents[3] / "shared" / "data"
Gold = tuple[str, str]
"""Name of the database, and the query."""


# ---------------------------------------------------------------------- equivalent rewrites


def rename_aliases(tree: exp.Expression) -> bool:
    """T1 becomes x_t1."""
    aliases = {a.name for a in tree.find_all(exp.TableAlias) if a.name}
    for alias in tree.find_all(exp.TableAlias):
        alias.set("this", exp.to_identifier(f"x_{alias.name}"))
    for column in tree.find_all(exp.Column):
        if column.table in aliases:
            column.set("table", exp.to_identifier(f"x_{column.table}"))
    return bool(aliases)


def commute_connectors(tree: exp.Expression) -> bool:
    """a AND b becomes b AND a, and so with OR."""
    nodes = list(tree.find_all(exp.And, exp.Or))
    for node in nodes:
        left, right = node.this.copy(), node.expression.copy()
        node.set("this", exp.paren(right))
        node.set("expression", exp.paren(left))
    return bool(nodes)


def flip_comparisons(tree: exp.Expression) -> bool:
    """a > b becomes b < a; a = b becomes b = a."""
    flipped = {exp.GT: exp.LT, exp.LT: exp.GT, exp.GTE: exp.LTE, exp.LTE: exp.GTE, exp.EQ: exp.EQ}
    nodes = [node for node in tree.find_all(*flipped) if type(node) in flipped]
    for node in nodes:
        node.replace(flipped[type(node)](this=node.expression.copy(), expression=node.this.copy()))
    return bool(nodes)


def split_between(tree: exp.Expression) -> bool:
    """a BETWEEN 1 AND 2 becomes a >= 1 AND a <= 2."""
    nodes = list(tree.find_all(exp.Between))
    for node in nodes:
        low = exp.GTE(this=node.this.copy(), expression=node.args["low"].copy())
        high = exp.LTE(this=node.this.copy(), expression=node.args["high"].copy())
        node.replace(exp.paren(exp.And(this=low, expression=high)))
    return bool(nodes)


def negate_equality(tree: exp.Expression) -> bool:
    """a <> b becomes NOT (a = b)."""
    nodes = list(tree.find_all(exp.NEQ))
    for node in nodes:
        equal = exp.EQ(this=node.this.copy(), expression=node.expression.copy())
        node.replace(exp.paren(exp.Not(this=exp.paren(equal))))
    return bool(nodes)


def equality_as_list(tree: exp.Expression) -> bool:
    """a = 'x' becomes a IN ('x')."""
    nodes = [n for n in tree.find_all(exp.EQ) if isinstance(n.expression, exp.Literal)]
    nodes = [node for node in nodes if isinstance(node.this, exp.Column)]
    for node in nodes:
        node.replace(exp.In(this=node.this.copy(), expressions=[node.expression.copy()]))
    return bool(nodes)


def count_ones(tree: exp.Expression) -> bool:
    """count(*) becomes count(1)."""
    nodes = [node for node in tree.find_all(exp.Count) if isinstance(node.this, exp.Star)]
    for node in nodes:
        node.set("this", exp.Literal.number(1))
    return bool(nodes)


def swap_first_join(tree: exp.Expression) -> bool:
    """FROM a JOIN b ON c becomes FROM b JOIN a ON c."""
    changed = False
    for select in tree.find_all(exp.Select):
        clause = select.args.get("from_") or select.args.get("from")
        joins = select.args.get("joins") or []
        if not joins or any(e.is_star for e in select.expressions):
            continue
        join = joins[0]
        if any(j.args.get(part) for j in joins for part in ("side", "kind", "method", "using")):
            continue
        first, second = clause.this.copy(), join.this.copy()
        clause.set("this", second)
        join.set("this", first)
        changed = True
    return changed


def join_in_where(tree: exp.Expression) -> bool:
    """FROM a JOIN b ON c WHERE d becomes FROM a CROSS JOIN b WHERE c AND d."""
    changed = False
    for select in tree.find_all(exp.Select):
        joins = select.args.get("joins") or []
        if not joins or any(
            j.args.get(part) for j in joins for part in ("side", "kind", "method", "using")
        ):
            continue
        for join in joins:
            condition = join.args.get("on")
            if condition is not None:
                join.set("on", None)
                join.set("kind", "CROSS")
                select.where(exp.paren(condition.copy()), copy=False)
                changed = True
    return changed


def wrap_tables(tree: exp.Expression) -> bool:
    """FROM t AS x becomes FROM (SELECT * FROM t) AS x."""
    tables = [t for t in tree.find_all(exp.Table) if isinstance(t.parent, (exp.From, exp.Join))]
    tables = [table for table in tables if not table.args.get("joins")]
    for table in tables:
        inner = exp.select("*").from_(exp.to_table(f'"{table.name}"', dialect="sqlite"))
        table.replace(inner.subquery(table.alias or table.name))
    return bool(tables)


def distinct_as_group(tree: exp.Expression) -> bool:
    """SELECT DISTINCT a, b becomes SELECT a, b ... GROUP BY a, b."""
    changed = False
    for select in tree.find_all(exp.Select):
        plain = all(isinstance(e, exp.Column) and not e.is_star for e in select.expressions)
        others = any(select.args.get(part) for part in ("group", "having", "limit", "order"))
        if select.args.get("distinct") and plain and not others:
            select.set("distinct", None)
            select.group_by(*[e.copy() for e in select.expressions], copy=False)
            changed = True
    return changed


def swap_set_operands(tree: exp.Expression) -> bool:
    """a UNION b becomes b UNION a, and so with INTERSECT."""
    if not isinstance(tree, (exp.Union, exp.Intersect)) or tree.args.get("order"):
        return False
    if isinstance(tree.this, exp.SetOperation) or isinstance(tree.expression, exp.SetOperation):
        return False
    left, right = tree.this.copy(), tree.expression.copy()
    tree.set("this", right)
    tree.set("expression", left)
    return True


def reverse_columns(tree: exp.Expression) -> bool:
    """SELECT a, b becomes SELECT b, a."""
    if not isinstance(tree, exp.Select) or len(tree.expressions) < 2:
        return False
    clauses = [tree.args.get(part) for part in ("group", "order")]
    if any(c is not None and any(c.find_all(exp.Literal)) for c in clauses):
        return False
    tree.set("expressions", tree.expressions[::-1])
    return True


def add_truth(tree: exp.Expression) -> bool:
    """... WHERE a becomes WHERE a AND 1 = 1."""
    if not isinstance(tree, exp.Select):
        return False
    tree.where("1 = 1", copy=False)
    return True


TREE_REWRITES: tuple[Callable[[exp.Expression], bool], ...] = (
    rename_aliases,
    commute_connectors,
    flip_comparisons,
    split_between,
    negate_equality,
    equality_as_list,
    count_ones,
    swap_first_join,
    join_in_where,
    wrap_tables,
    distinct_as_group,
    swap_set_operands,
    reverse_columns,
    add_truth,
)


def rewrites(sql: str) -> Iterator[tuple[str, str]]:
    """Queries that mean the same as `sql`, each with the name of the rule."""
    same = canonical_sql(sql, "sqlite")
    for rule in TREE_REWRITES:
        tree = parse_sql(sql, "sqlite").copy()
        # Every node has a parent, so that the outermost can be replaced like the others.
        root = exp.Paren(this=tree)
        if rule(tree):
            text = root.this.sql(dialect="sqlite")
            if canonical_sql(text, "sqlite") != same or rule is rename_aliases:
                yield rule.__name__, text
    if not order_matters(sql, "sqlite"):
        bare = sql.rstrip().rstrip(";")
        yield "in a subquery", f"SELECT * FROM ({bare})"
        yield "in a common table expression", f"WITH q AS ({bare}) SELECT * FROM q"


# ---------------------------------------------------------------------- measurements


def measure_instances(catalog: DatabaseCatalog, folder: Path) -> None:
    """Milliseconds per instance and per profile."""
    times, profiles = [], []
    for db_id in catalog.db_ids:
        started = time.perf_counter()
        profile = profile_database(catalog.engine(db_id))
        profiles.append(time.perf_counter() - started)
        fuzzer = DatabaseFuzzer(profile)
        for number in range(9):
            started = time.perf_counter()
            fuzzer.write(number, folder / "instance.sqlite")
            if number:
                times.append(time.perf_counter() - started)
        fuzzer.close()
    times.sort()
    print(f"\n== instances: {len(times)} of {len(catalog)} databases ==")
    print(
        f"ms per instance: median {statistics.median(times) * 1e3:.2f}, "
        f"p90 {times[int(0.9 * len(times))] * 1e3:.2f}; "
        f"ms per profile: median {statistics.median(profiles) * 1e3:.1f}"
    )


def _survivors(
    builder: InstanceBuilder, engine: SQLEngine, sql: str
) -> tuple[list[str], dict[str, MutationKind]]:
    """Mutants that agree with gold on the original, and the kind of every mutant."""
    profile = builder.get_profile(engine)
    mutants = mutate_sql(
        sql,
        "sqlite",
        columns=get_table_columns(profile),
        foreign_keys=builder.get_references(profile),
        max_mutants=SuiteSettings().max_mutants,
    )
    return builder.get_mutants(engine, sql, profile), {m.sql: m.kind for m in mutants}


def measure_mutants(
    catalog: DatabaseCatalog, folder: Path, golds: Sequence[Gold], settings: SuiteSettings
) -> None:
    """Share of surviving mutants that instances refute."""
    counts: Counter[str] = Counter()
    refuted: Counter[tuple[int, str]] = Counter()
    seconds: Counter[int] = Counter()
    builders = {
        size: InstanceBuilder(folder, replace(settings, num_instances=size), catalog.limits)
        for size in (1, 4, 8, 16)
    }
    for db_id, sql in golds:
        engine = catalog.engine(db_id)
        survivors, kinds = _survivors(builders[8], engine, sql)
        groups = {"held out": survivors[1::2], "chosen by": survivors[::2]}
        for name in list(groups):
            rare = [m for m in groups[name] if not kinds[m].is_often_equivalent]
            groups[f"{name}, rarely equivalent kinds"] = rare
        counts.update({name: len(group) for name, group in groups.items()})
        for size, builder in builders.items():
            builder.get_profile(engine)
            started = time.perf_counter()
            with builder.build(engine, sql, mutants=survivors[::2]) as (instances, _):
                seconds[size] += time.perf_counter() - started
                dead = {
                    mutant
                    for mutant in survivors
                    if any(builder.verify(i, mutant).verdict is Verdict.WRONG for i in instances)
                }
            refuted.update({(size, name): len(dead & set(g)) for name, g in groups.items()})
    print(f"\n== mutants that agree with gold on the original: {len(golds)} gold queries ==")
    for name, count in counts.items():
        shares = ", ".join(
            f"k={size}: {100 * refuted[size, name] / count:.1f} %" for size in seconds
        )
        print(f"{name:<40}{count:>6} survivors, refuted {shares}")
    print(
        "ms per gold to choose and build: "
        + ", ".join(f"k={size}: {1e3 * s / len(golds):.1f}" for size, s in seconds.items())
    )


def measure_false_alarms(
    catalog: DatabaseCatalog, golds: Sequence[Gold], workers: int, settings: SuiteSettings
) -> None:
    """Equivalent rewrites that an instance refutes."""
    requests, rules = [], []
    for db_id, sql in golds:
        try:
            for rule, text in rewrites(sql):
                requests.append(VerificationRequest(db_id, text, sql))
                rules.append(rule)
        except SenseTRLError:
            continue
    with SuiteVerifier(catalog, settings=settings, num_workers=workers) as verifier:
        found = verifier.verify(requests)
    judged: Counter[str] = Counter()
    alarms: Counter[str] = Counter()
    num_on_original = 0
    examples = []
    for request, rule, verification in zip(requests, rules, found, strict=True):
        if verification.original.verdict is Verdict.WRONG:
            num_on_original += 1
            examples.append((rule, request, verification))
        elif verification.num_equal or verification.refuted_by:
            judged[rule] += 1
            if verification.refuted_by:
                alarms[rule] += 1
                examples.append((rule, request, verification))
    print(f"\n== equivalent rewrites: {len(golds)} gold queries ==")
    print(
        f"{sum(judged.values())} rewrites judged by instances, {sum(alarms.values())} refuted "
        f"({1e4 * sum(alarms.values()) / max(sum(judged.values()), 1):.1f} in 10,000); "
        f"{num_on_original} called wrong on the original"
    )
    print("  " + ", ".join(f"{rule} {count}" for rule, count in judged.most_common()))
    for rule, request, verification in examples[:20]:
        print(f"  {rule} on {request.db_id}, {verification.refuted_by}: {verification.reason}")
        print(f"    gold      {request.gold_sql}\n    rewritten {request.predicted_sql}")


def measure_predictions(
    catalog: DatabaseCatalog, data: Path, step: int, workers: int, settings: SuiteSettings
) -> list[tuple[str, VerificationRequest, SuiteVerification]]:
    """What the suite says about the predictions of real models."""
    lines = (data / "spider" / "dev.jsonl").read_text(encoding="utf-8").splitlines()
    examples = list(map(json.loads, lines))
    print(f"\n== predictions on Spider dev, every {step}. question ==")
    refuted = []
    for model in MODELS:
        text = (data / "predictions" / model / "spider_dev.sql").read_text(encoding="utf-8")
        predictions = text.removesuffix("\n").split("\n")
        pairs = list(zip(examples, predictions, strict=True))[::step]
        requests = [VerificationRequest(e["db_id"], p.split("\t")[0], e["query"]) for e, p in pairs]
        with SuiteVerifier(catalog, settings=settings, num_workers=workers) as verifier:
            times = []
            for _ in range(2):
                started = time.perf_counter()
                found = verifier.verify(requests)
                times.append(1e3 * (time.perf_counter() - started) / len(requests))
        correct = [v for v in found if v.original.verdict is Verdict.CORRECT]
        wrong = [v for v in correct if v.verdict is Verdict.WRONG]
        empty = [v for v in found if v.original.verdict is Verdict.UNDETERMINED]
        also = [v for v in empty if v.verdict is Verdict.WRONG]
        print(
            f"{model:<26}correct on the original {len(correct)} of {len(found)}, of these refuted "
            f"{len(wrong)} ({100 * len(wrong) / len(correct):.1f} %); undetermined {len(empty)}, "
            f"of these refuted {len(also)}; suite accuracy {100 * suite_accuracy(found):.1f} %; "
            f"ms per question {times[0]:.1f} cold, {times[1]:.1f} with chosen instances"
        )
        refuted += [
            (e["question"], r, v)
            for (e, _), r, v in zip(pairs, requests, found, strict=True)
            if v.refuted_by is not None and v.original.verdict is Verdict.CORRECT
        ]
    return refuted


def show(
    catalog: DatabaseCatalog,
    folder: Path,
    refuted: Sequence[tuple[str, VerificationRequest, SuiteVerification]],
    settings: SuiteSettings,
) -> None:
    """Print refutations with what the two queries answered on the instance."""
    builder = InstanceBuilder(folder, settings, catalog.limits)
    for number, (question, request, verification) in enumerate(refuted, start=1):
        print(f"\n[{number}] {request.db_id}: {question}")
        print(f"  gold      {request.gold_sql}\n  predicted {request.predicted_sql}")
        engine = catalog.engine(request.db_id)
        with builder.build(engine, request.gold_sql) as (instances, _):
            for instance in instances:
                if f"neighbour {instance.number}" == verification.refuted_by:
                    gold = Counter(instance.engine.execute(request.gold_sql).rows)
                    other = Counter(instance.engine.execute(request.predicted_sql).rows)
                    print(f"  {verification.refuted_by}, {verification.reason}")
                    print(f"  gold only      {list((gold - other).elements())[:6]}")
                    print(f"  predicted only {list((other - gold).elements())[:6]}")


# ---------------------------------------------------------------------- data


def load_golds(data: Path, catalog: DatabaseCatalog) -> list[Gold]:
    """Distinct gold queries whose database is here and has rows, in a fixed random order."""
    golds = set()
    has_rows = {}
    for db_id in catalog.db_ids:
        tables = profile_database(catalog.engine(db_id)).tables
        has_rows[db_id] = any(column.values for table in tables for column in table.columns)
    for part in ("train", "dev"):
        lines = (data / "spider" / f"{part}.jsonl").read_text(encoding="utf-8").splitlines()
        golds |= {(e["db_id"], e["query"]) for e in map(json.loads, lines)}
    kept = sorted(gold for gold in golds if has_rows.get(gold[0]))
    random.Random(0).shuffle(kept)
    return kept


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    default_data = Path(os.environ.get("SENSE_TRL_DATA", DEFAULT_DATA))
    parser.add_argument("--data", type=Path, default=default_data, help="folder of real data")
    parser.add_argument(
        "--databases", type=Path, default=None, help="unpacked Spider databases, if you have them"
    )
    parser.add_argument("--mutants", type=int, default=600, help="gold queries to mutate")
    parser.add_argument("--rewrites", type=int, default=2500, help="gold queries to rewrite")
    parser.add_argument("--nulls", choices=("seen", "allowed"), default="seen")
    parser.add_argument("--no-predictions", action="store_true", help="leave out the models")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--show", type=int, default=0, help="refutations to print")
    parser.add_argument("--quick", action="store_true", help="a tenth of everything")
    arguments = parser.parse_args()
    share = 10 if arguments.quick else 1
    settings = SuiteSettings(nulls=arguments.nulls)
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        databases = arguments.databases
        if databases is None:
            with tarfile.open(arguments.data / "spider" / "databases.tar.xz") as tar:
                tar.extractall(scratch, filter="data")
            databases = next(folder.rglob("*.sqlite")).parents[1]
        print(
            f"{platform.platform()}, {os.cpu_count()} CPUs, load {os.getloadavg()[0]:.1f}, "
            f"Python {platform.python_version()}, SQLite {sqlite3.sqlite_version}"
        )
        with DatabaseCatalog.from_path(databases) as catalog:
            measure_instances(catalog, folder)
            golds = load_golds(arguments.data, catalog)
            if arguments.mutants:
                measure_mutants(catalog, folder, golds[: arguments.mutants // share], settings)
            if arguments.rewrites:
                rewritten = golds[: arguments.rewrites // share]
                measure_false_alarms(catalog, rewritten, arguments.workers, settings)
            if not arguments.no_predictions:
                refuted = measure_predictions(
                    catalog, arguments.data, share, arguments.workers, settings
                )
                random.Random(0).shuffle(refuted)
                show(catalog, folder, refuted[: arguments.show], settings)


if __name__ == "__main__":
    main()
