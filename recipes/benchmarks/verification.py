"""How fast predictions are verified, against the official evaluators' way of doing it.

Needs: the predictions of five models on Spider dev and Spider's databases (the folder that
`SENSE_TRL_DATA` names; see `--data`), and `pip install sqlparse`. No GPU, no network.

    python recipes/benchmarks/verification.py            # some 8 minutes on two cores
    python recipes/benchmarks/verification.py --quick    # under a minute, a sample

Both sides run in the same process, in alternating rounds, on the same pairs. Printed are pairs per
second and the median over rounds of the ratio within a round, with its smallest and largest value.

The references do what the official scripts do per pair, and no more:

* Spider (`exec_eval`, one database): texts changed as the script does, DISTINCT found by
  `sqlparse`; a new connection for gold and for the prediction, each awaited in an event loop of its
  own with a time-out; a quick rejection on sorted rows, then every order of the columns. Left out
  is what the whole script does besides: parsing both queries to tell their hardness.
* BIRD: a pool of processes, one task per pair, a thread per task that is abandoned after 30 s, a
  new connection, prediction and gold fetched whole, equality of sets.

Ours is measured cold (a new verifier: workers start, gold runs and is examined) and warm (a
verifier that knows gold and has seen none of the predictions). The floor is a loop over the
distinct queries on one open connection per database, in one process, without protections, limits or
a comparison.

Expected (two cores, SQLite 3.40, one round): Spider's way / ours with two workers 6.6 cold and 13.2
warm, 16 and 37 on queries under 1 ms; BIRD's way 1.6 and 3.1, 2.5 and 5.6; ours cold in one process
/ floor 1.09, 4.8 under 1 ms; second core 1.63, and 1.74 under 1 ms. Where long queries are most
of the time, SQLite is: on two cores the floor alone would be 15 times Spider's way.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import json
import multiprocessing
import os
import platform
import re
import sqlite3
import statistics
import tarfile
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

import sqlparse

from sense_trl.database.catalog import DatabaseCatalog
from sense_trl.verification.comparison import Verdict
from sense_trl.verification.judging import VerificationRequest
from sense_trl.verification.verifier import SQLVerifier

MODELS = (
    "chatgpt_zero_shot",
    "codes_1b_sft",
    "codex_few_shot",
    "dail_sql_gpt4",
    "dbgpt_codellama13b_lora",
)
DEFAULT_DATA = Path(__file__).resolve().parents[3] / "shared" / "data"
Pair = tuple[str, str, str]
"""Path of the database, prediction, gold."""


# ---------------------------------------------------------------------- references


def _rows(path: str, sql: str) -> list[tuple[object, ...]] | None:
    connection = sqlite3.connect(path)
    connection.text_factory = lambda data: data.decode(errors="ignore")
    try:
        return connection.execute(sql).fetchall()
    except (sqlite3.Error, sqlite3.Warning, ValueError):
        return None
    finally:
        connection.close()


async def _rows_in_a_loop(path: str, sql: str) -> list[tuple[object, ...]] | None:
    return _rows(path, sql)


def _sorted_row(row: Sequence[object]) -> tuple[object, ...]:
    return tuple(sorted(row, key=lambda value: str(value) + str(type(value))))


def _equal_in_some_order(
    gold: list[tuple[object, ...]], predicted: list[tuple[object, ...]], *, ordered: bool
) -> bool:
    if not gold and not predicted:
        return True
    if len(gold) != len(predicted) or len(gold[0]) != len(predicted[0]):
        return False
    left, right = list(map(_sorted_row, gold)), list(map(_sorted_row, predicted))
    if left != right if ordered else set(left) != set(right):
        return False
    width = len(gold[0])
    if width > 3:
        sample = gold[:20]
        values = [{row[column] for row in predicted} for column in range(width)]
        choices = [
            [c for c in range(width) if all(row[place] in values[c] for row in sample)]
            for place in range(width)
        ]
        orders = (o for o in itertools.product(*choices) if len(set(o)) == width)
    else:
        orders = itertools.permutations(range(width))
    bag = Counter(gold)
    for order in orders:
        moved = [tuple(row[column] for column in order) for row in predicted]
        if moved == gold if ordered else Counter(moved) == bag:
            return True
    return False


def _spider_text(sql: str) -> str:
    sql = sql.replace("> =", ">=").replace("< =", "<=").replace("! =", "!=")
    tokens = [token.value for token in sqlparse.parse(sql)[0].flatten()]
    sql = "".join(token for token in tokens if token.lower() != "distinct")
    return re.sub(r"YEAR\s*\(\s*CURDATE\s*\(\s*\)\s*\)\s*", "2020", sql, flags=re.IGNORECASE)


def spider_reference(pairs: Sequence[Pair]) -> list[bool]:
    """One pair after the other, as Spider's script does."""
    verdicts = []
    for path, predicted, gold in pairs:
        gold = _spider_text(gold)
        predicted = _spider_text(predicted.replace("value", "1"))
        rows = [
            asyncio.run(asyncio.wait_for(_rows_in_a_loop(path, sql), 60))
            for sql in (gold, predicted)
        ]
        verdicts.append(
            rows[0] is not None
            and rows[1] is not None
            and _equal_in_some_order(rows[0], rows[1], ordered="order by" in gold.lower())
        )
    return verdicts


def _bird_pair(pair: Pair) -> bool:
    path, predicted, gold = pair
    answer = []

    def compare() -> None:
        connection = sqlite3.connect(path)
        try:
            cursor = connection.cursor()
            rows = []
            for sql in (predicted, gold):
                cursor.execute(sql)
                rows.append(set(cursor.fetchall()))
            answer.append(rows[0] == rows[1])
        except (sqlite3.Error, sqlite3.Warning, ValueError):
            answer.append(False)
        finally:
            connection.close()

    thread = threading.Thread(target=compare, daemon=True)
    thread.start()
    thread.join(30)
    return bool(answer and answer[0])


def bird_reference(pairs: Sequence[Pair], num_processes: int) -> list[bool]:
    """A task per pair in a pool of processes, as BIRD's script does."""
    with multiprocessing.get_context("fork").Pool(num_processes) as pool:
        return [task.get() for task in [pool.apply_async(_bird_pair, (pair,)) for pair in pairs]]


def floor(pairs: Sequence[Pair]) -> None:
    """Every distinct query once, on one connection per database."""
    queries: dict[str, dict[str, None]] = {}
    for path, predicted, gold in pairs:
        queries.setdefault(path, {}).update({gold: None, predicted: None})
    for path, texts in queries.items():
        connection = sqlite3.connect(f"file:{path}?mode=ro&immutable=1", uri=True)
        connection.text_factory = lambda data: data.decode(errors="ignore")
        for sql in texts:
            try:
                connection.execute(sql).fetchall()
            except (sqlite3.Error, sqlite3.Warning, ValueError):
                continue
        connection.close()


# ---------------------------------------------------------------------- rounds


def _seconds(work: Callable[[], object]) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def measure_round(
    pairs: Sequence[Pair], requests: Sequence[VerificationRequest], catalog: DatabaseCatalog
) -> dict[str, float]:
    """Seconds of every contender, once."""
    times = {
        SPIDER: _seconds(lambda: spider_reference(pairs)),
        "BIRD's way, 1 process": _seconds(lambda: bird_reference(pairs, 1)),
        BIRD: _seconds(lambda: bird_reference(pairs, 2)),
        FLOOR: _seconds(lambda: floor(pairs)),
    }
    contenders = [("strict", 0), ("strict", 1), ("strict", 2), ("spider", 2), ("bird", 2)]
    for semantics, num_workers in contenders:
        for state in ("cold", "warm"):
            with SQLVerifier(catalog, semantics=semantics, num_workers=num_workers) as verifier:
                if state == "warm":
                    verifier.verify(
                        VerificationRequest(r.db_id, r.gold_sql, r.gold_sql) for r in requests
                    )
                name = f"ours, {semantics}, {num_workers} workers, {state}"
                times[name] = _seconds(lambda verifier=verifier: verifier.verify(requests))
    return times


SPIDER, BIRD, FLOOR = "Spider's way", "BIRD's way, 2 processes", "floor"
RATIOS = (
    (SPIDER, "ours, strict, 2 workers, cold"),
    (SPIDER, "ours, strict, 2 workers, warm"),
    (SPIDER, "ours, spider, 2 workers, cold"),
    (SPIDER, "ours, spider, 2 workers, warm"),
    (BIRD, "ours, strict, 2 workers, cold"),
    (BIRD, "ours, strict, 2 workers, warm"),
    (BIRD, "ours, bird, 2 workers, cold"),
    (BIRD, "ours, bird, 2 workers, warm"),
    ("ours, strict, 1 workers, warm", "ours, strict, 2 workers, warm"),
    ("ours, strict, 0 workers, cold", FLOOR),
    ("ours, strict, 1 workers, cold", FLOOR),
    ("ours, strict, 0 workers, warm", FLOOR),
    ("ours, bird, 2 workers, cold", FLOOR),
)


def report(title: str, num_pairs: int, rounds: Sequence[dict[str, float]]) -> None:
    """Print pairs per second, and ratios within rounds."""
    print(f"\n== {title}: {num_pairs} pairs, {len(rounds)} rounds ==")
    for name in rounds[0]:
        seconds = [times[name] for times in rounds]
        rate = num_pairs / statistics.median(seconds)
        print(f"{name:<42}{statistics.median(seconds):>9.3f} s{rate:>10.0f} pairs/s")
    print(f"{'ratio within a round':<62}{'median':>7}   (min .. max)")
    for numerator, denominator in RATIOS:
        ratios = [times[numerator] / times[denominator] for times in rounds]
        print(
            f"{numerator + ' / ' + denominator:<62}{statistics.median(ratios):>7.2f}   "
            f"({min(ratios):.2f} .. {max(ratios):.2f})"
        )


# ---------------------------------------------------------------------- data


def load_pairs(data: Path, databases: Path) -> tuple[list[Pair], list[VerificationRequest]]:
    """All predictions of all models, by line of Spider dev."""
    lines = (data / "spider" / "dev.jsonl").read_text(encoding="utf-8").splitlines()
    examples = list(map(json.loads, lines))
    pairs, requests = [], []
    for model in MODELS:
        text = (data / "predictions" / model / "spider_dev.sql").read_text(encoding="utf-8")
        for example, line in zip(examples, text.removesuffix("\n").split("\n"), strict=True):
            db_id, predicted = example["db_id"], line.split("\t")[0]
            path = str(databases / db_id / f"{db_id}.sqlite")
            pairs.append((path, predicted, example["query"]))
            requests.append(VerificationRequest(db_id, predicted, example["query"]))
    return pairs, requests


def is_cheap(pair: Pair) -> bool:
    """Whether gold and prediction each run in less than a millisecond."""
    path, *queries = pair
    connection = sqlite3.connect(f"file:{path}?mode=ro&immutable=1", uri=True)
    connection.text_factory = lambda data: data.decode(errors="ignore")
    try:
        connection.execute("SELECT count(*) FROM sqlite_master").fetchall()
        for sql in queries:
            started = time.perf_counter()
            connection.execute(sql).fetchall()
            if time.perf_counter() - started > 0.001:
                return False
    except (sqlite3.Error, sqlite3.Warning, ValueError):
        return False
    finally:
        connection.close()
    return True


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    default_data = Path(os.environ.get("SENSE_TRL_DATA", DEFAULT_DATA))
    parser.add_argument("--data", type=Path, default=default_data, help="folder of real data")
    parser.add_argument(
        "--databases", type=Path, default=None, help="unpacked Spider databases, if you have them"
    )
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--quick", action="store_true", help="every tenth pair, three rounds")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        databases = arguments.databases
        if databases is None:
            with tarfile.open(arguments.data / "spider" / "databases.tar.xz") as tar:
                tar.extractall(scratch, filter="data")
            databases = next(Path(scratch).rglob("*.sqlite")).parents[1]
        pairs, requests = load_pairs(arguments.data, databases)
        if arguments.quick:
            pairs, requests = pairs[::10], requests[::10]
        num_rounds = 3 if arguments.quick else arguments.rounds
        print(
            f"{platform.platform()}, {os.cpu_count()} CPUs, load {os.getloadavg()[0]:.1f}, "
            f"Python {platform.python_version()}, SQLite {sqlite3.sqlite_version}"
        )
        with DatabaseCatalog.from_path(databases) as catalog:
            check_agreement(pairs, requests, catalog)
            mixed = [measure_round(pairs, requests, catalog) for _ in range(num_rounds)]
            report("all pairs", len(pairs), mixed)
            cheap = [number for number, pair in enumerate(pairs) if is_cheap(pair)]
            pairs = [pairs[number] for number in cheap]
            requests = [requests[number] for number in cheap]
            rounds = [measure_round(pairs, requests, catalog) for _ in range(num_rounds)]
            report("pairs of queries under 1 ms", len(pairs), rounds)


def check_agreement(
    pairs: Sequence[Pair], requests: Sequence[VerificationRequest], catalog: DatabaseCatalog
) -> None:
    """Both sides must say the same before their times mean anything; warms the page cache too."""
    with SQLVerifier(catalog, semantics="spider", num_workers=2) as verifier:
        ours = [v.verdict is Verdict.CORRECT for v in verifier.verify(requests)]
    theirs = spider_reference(pairs)
    different = sum(left != right for left, right in zip(ours, theirs, strict=True))
    print(f"spider verdicts that differ from the reference: {different} of {len(pairs)}")
    with SQLVerifier(catalog, semantics="bird", num_workers=2) as verifier:
        ours = [v.verdict is Verdict.CORRECT for v in verifier.verify(requests)]
    different = sum(map(bool.__ne__, ours, bird_reference(pairs, 2)))
    print(f"bird verdicts that differ from the reference: {different} of {len(pairs)}")


if __name__ == "__main__":
    main()
