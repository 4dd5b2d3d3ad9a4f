"""Preference pairs: whether every label holds, what they cost, and whether a killed build recovers.

Needs: the predictions of five models on Spider dev and Spider's databases (the folder that
`SENSE_TRL_DATA` names; see `--data`). No GPU, no network.

    python recipes/benchmarks/pairs.py              # some 7 minutes on two cores
    python recipes/benchmarks/pairs.py --only real  # or kills, scale or ray

* real: pairs from the five models' predictions as candidates. Every chosen and every rejected query
  is run again with plain `sqlite3` and its rows are counted, by code that shares nothing with the
  verifier (whole results, floats rounded to nine digits, any order of columns; of ordered results,
  that they differ at all). Expected: 1,707 pairs of 520 questions, no label that does not hold,
  some 2 s of CPU time per 1,000 candidates.
* kills: the command `sense-trl pairs build` is killed (SIGKILL) 20 times at random moments and run
  again. Expected: the files of an uninterrupted build, byte for byte.
* scale: 10,000 questions with 16 candidates each on four small databases. Expected: below
  2 GB (0.5 GB), some 0.7 s per 1,000 candidates.
* ray (only where it is asked for; needs Ray): the pairs of "real" in this process and on a Ray
  cluster of this machine with 1, 2 and 4 workers, which must be the same; how long the cluster
  takes to start, and what a part costs beside its work. More workers than cores show that
  scheduling works, and no speed. (docs/scale.md has figures.)
"""

from __future__ import annotations

import argparse
import filecmp
import itertools
import os
import random
import re
import resource
import shutil
import sqlite3
import subprocess
import sys
import tarfile
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from sense_trl.database import DatabaseCatalog
from sense_trl.evaluation.predictions import load_predictions
from sense_trl.pairs import (
    Candidate,
    PairBuildResult,
    PreferencePairConfig,
    build_preference_pairs,
)
from sense_trl.prompts import Messages
from sense_trl.questions import Question, load_questions
from sense_trl.task import TextToSQLTask, make_task
from sense_trl.verification import SQLVerifier

MODELS = (
    "chatgpt_zero_shot",
    "codes_1b_sft",
    "codex_few_shot",
    "dail_sql_gpt4",
    "dbgpt_codellama13b_lora",
)
DEFAULT_DATA = Path(__file__).resolve().parents[3] / "shared" / "data"
NUM_KILLS = 20


# ---------------------------------------------------------------------- real predictions


def load_real(data: Path) -> tuple[list[Question], list[Candidate]]:
    """The questions of Spider dev, and what five models answered."""
    questions = load_questions(data / "spider" / "dev.jsonl")
    candidates = [
        Candidate(question.question_id, 0, sql, sql, "weak", model)
        for model in MODELS
        for question, sql in zip(
            questions,
            load_predictions(data / "predictions" / model / "spider_dev.sql", questions),
            strict=True,
        )
    ]
    return questions, candidates


def build_real(data: Path, databases: Path) -> None:
    """Pairs from five models, every label checked again."""
    questions, candidates = load_real(data)
    config = PreferencePairConfig(chosen_sources=("any",), limit=100, deduplicate_by="result")
    start, start_cpu = time.perf_counter(), sum(os.times()[:4])
    with DatabaseCatalog.from_path(databases) as catalog, SQLVerifier(catalog) as verifier:
        result = build_preference_pairs(
            make_task(catalog, questions), candidates, verifier, config=config
        )
    seconds, cpu = time.perf_counter() - start, sum(os.times()[:4]) - start_cpu
    with_pair = len(set(result.dataset["question_id"]))
    print(
        f"{len(questions)} questions, {len(candidates)} candidates: {len(result.dataset)} pairs of "
        f"{with_pair} questions in {seconds:.1f} s, "
        f"{1000 * seconds / len(candidates):.2f} s per 1,000 candidates (CPU time of all processes "
        f"{1000 * cpu / len(candidates):.2f} s)"
    )
    _print_counts("verdicts", result.verdicts)
    _print_counts("questions left out", result.dropped_questions)
    _print_counts("candidates left out", result.dropped_candidates)
    _print_counts("rejected because", Counter(result.dataset["rejected_reason"]))
    rejected = {
        (row["question_id"], row["rejected_sql"]): row["error_classes"] for row in result.dataset
    }
    classes = Counter(itertools.chain.from_iterable(rejected.values()))
    print(f"error classes of {len(rejected)} rejected queries")
    for name, count in classes.most_common():
        print(f"  {name:24}{count:6}{100 * count / len(rejected):7.1f} %")
    print(f"  {'(none)':24}{sum(not own for own in rejected.values()):6}")
    outcomes = check_labels(result, databases)
    _print_counts("labels checked again", outcomes)
    assert all(name.startswith("holds") for name in outcomes), "a label does not hold"


def check_labels(result: PairBuildResult, databases: Path) -> Counter[str]:
    """Run every query again with `sqlite3` alone and compare counts of rows."""
    outcomes: Counter[str] = Counter()
    rows_of: dict[tuple[str, str], list[tuple[Any, ...]] | None] = {}

    def rows(db_id: str, sql: str) -> list[tuple[Any, ...]] | None:
        if (db_id, sql) not in rows_of:
            rows_of[db_id, sql] = _run(databases / db_id / f"{db_id}.sqlite", sql)
        return rows_of[db_id, sql]

    for row in result.dataset:
        gold = rows(row["db_id"], row["gold_sql"])
        chosen, rejected = (
            rows(row["db_id"], row[f"{side}_sql"]) for side in ("chosen", "rejected")
        )
        if not gold:
            outcomes["GOLD IS NO LABEL"] += 1
        elif chosen is None or not _same_bag(chosen, gold):
            outcomes["CHOSEN IS NOT RIGHT"] += 1
        elif rejected is None:
            outcomes["holds: rejected does not run"] += 1
        elif not _same_bag(rejected, gold):
            outcomes["holds: rejected has other rows"] += 1
        elif _orders(row["gold_sql"]) and rejected != gold:
            outcomes["holds: rejected has another order"] += 1
        else:
            outcomes["REJECTED IS RIGHT"] += 1
    return outcomes


def _orders(sql: str) -> bool:
    """Whether ORDER BY stands outside of all parentheses."""
    text, count = sql.lower(), 1
    while count:
        text, count = re.subn(r"\([^()]*\)", "", text)
    return "order by" in text


def _run(path: Path, sql: str) -> list[tuple[Any, ...]] | None:
    connection = sqlite3.connect(f"file:{path}?mode=ro", uri=True)
    connection.text_factory = lambda data: data.decode(errors="replace")
    try:
        return connection.execute(sql).fetchall()
    except (sqlite3.Error, sqlite3.Warning):
        return None
    finally:
        connection.close()


def _same_bag(left: list[tuple[Any, ...]], right: list[tuple[Any, ...]]) -> bool:
    """Equal counts of rows for one order of the columns; floats by nine digits."""
    left, right = [
        [tuple(round(v, 9) if isinstance(v, float) else v for v in row) for row in rows]
        for rows in (left, right)
    ]
    if len(left) != len(right) or (left and len(left[0]) != len(right[0])):
        return False
    wanted = Counter(right)
    return any(
        Counter(tuple(row[i] for i in order) for row in left) == wanted
        for order in itertools.permutations(range(len(left[0]) if left else 0))
    )


# ---------------------------------------------------------------------- kills


def build_with_kills(data: Path, databases: Path, scratch: Path) -> None:
    """Kill the command at random moments and compare what it ends with."""
    weak = [str(data / "predictions" / model / "spider_dev.sql") for model in MODELS]
    command = [sys.executable, "-m", "sense_trl", "pairs", "build", "--weak", *weak]
    command += ["--questions", str(data / "spider" / "dev.jsonl"), "--database", str(databases)]
    command += ["--limit", "3", "--num_mutants", "4", "--deduplicate_by", "result"]
    start = time.perf_counter()
    subprocess.run([*command, "--output_dir", str(scratch / "whole")], check=True, **_QUIET)
    whole_s = time.perf_counter() - start
    rng = random.Random(0)
    kills, folders, files = 0, 0, 0
    delays, kept = [], []
    while kills < NUM_KILLS:
        folder = scratch / f"killed-{folders}"
        folders += 1
        is_done = False
        while not is_done:
            process = subprocess.Popen([*command, "--output_dir", str(folder)], **_QUIET)
            delay = rng.uniform(0, whole_s) if kills < NUM_KILLS else None
            try:
                is_done = process.wait(delay) == 0
                assert is_done, "the command failed"
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
                kills += 1
                delays.append(delay)
                kept.append(len(list(folder.glob("shards/*.arrow"))))
        for name in ("pairs.parquet", "pairs.json", "README.md"):
            assert filecmp.cmp(folder / name, scratch / "whole" / name, shallow=False), name
            files += 1
        assert not (folder / "shards").exists()
    moments = ", ".join(f"{d:.1f}" for d in delays)
    print(
        f"killed {kills} times over {folders} builds of {whole_s:.1f} s, after {moments} s with "
        f"{', '.join(map(str, kept))} parts done: {files} files identical to the uninterrupted ones"
    )


_QUIET: dict[str, Any] = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}


# ---------------------------------------------------------------------- scale


def build_at_scale(scratch: Path, *, num_questions: int, num_candidates: int) -> None:
    """Time and memory of many cheap candidates."""
    for name in _SCALE_DATABASES:
        connection = sqlite3.connect(scratch / f"{name}.sqlite")
        connection.execute("CREATE TABLE item (id INTEGER PRIMARY KEY, name TEXT, price INTEGER)")
        rows = [(i, f"{name} {i}", i * 7 % 50) for i in range(200)]
        connection.executemany("INSERT INTO item VALUES (?, ?, ?)", rows)
        connection.commit()
        connection.close()
    questions = [
        Question(
            f"q{number:05d}",
            _SCALE_DATABASES[number % len(_SCALE_DATABASES)],
            f"Which items with a number up to {number % 150 + 10} cost more than {number % 37}?",
            f"SELECT name FROM item WHERE price > {number % 37} AND id <= {number % 150 + 10}",
        )
        for number in range(num_questions)
    ]
    candidates = _cheap_candidates(questions, num_candidates)
    with DatabaseCatalog.from_path(scratch) as catalog, SQLVerifier(catalog) as verifier:
        start = time.perf_counter()
        result = build_preference_pairs(
            _LongTask(catalog, tuple(questions), {}, "compact", {}),
            candidates,
            verifier,
            config=PreferencePairConfig(limit=1, deduplicate_by="normal_form"),
            shard_folder=scratch / "shards",
        )
        result.save(scratch)
        seconds = time.perf_counter() - start
    own = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    worker = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024
    print(
        f"{num_questions:,} questions x {num_candidates} candidates: {len(result.dataset):,} pairs "
        f"in {seconds:.0f} s ({1e6 * seconds / num_questions / num_candidates / 1000:.2f} s per "
        f"1,000 candidates); peak memory {own:.0f} MB, largest worker {worker:.0f} MB"
    )
    _print_counts("verdicts", result.verdicts)
    assert own < 2000, "more than 2 GB"


class _LongTask(TextToSQLTask):
    """One whose prompts are as long as those of a large schema."""

    def get_messages(self, question: Question) -> Messages:
        return [
            {"role": "system", "content": "item(id, name, price)\n" * 150},
            {"role": "user", "content": question.question},
        ]


_SCALE_DATABASES = ("books", "games", "films", "songs")


def _cheap_candidates(questions: list[Question], count: int) -> Iterator[Candidate]:
    for question in questions:
        rng = random.Random(question.question_id)
        for sample in range(count):
            column = rng.choice(["name", "name", "id", "price", "nam"])
            price, last = rng.randrange(50), rng.randrange(200)
            sql = f"SELECT {column} FROM item WHERE price > {price} AND id <= {last}"
            text = f"The question asks for items. Here is the query:\n```sql\n{sql}\n```"
            yield Candidate(
                question.question_id, sample, sql, text, "weak", "m", temperature=1.0, seed=sample
            )


# ---------------------------------------------------------------------- ray

_RAY_WORKERS = (1, 2, 4)
_NUM_EMPTY_SHARDS = 400


def build_on_ray(data: Path, databases: Path) -> None:
    """The same pairs from 1, 2 and 4 workers, and what Ray costs."""
    import ray

    from sense_trl.backends.backend import LocalBackend
    from sense_trl.backends.ray_backend import RayBackend

    questions, candidates = load_real(data)
    config = PreferencePairConfig(chosen_sources=("any",), limit=100, deduplicate_by="result")

    def build(backend: Any) -> tuple[list[dict[str, Any]], float]:
        start = time.perf_counter()
        with SQLVerifier(catalog, num_workers=backend.verifier_workers) as verifier:
            task = make_task(catalog, questions)
            result = build_preference_pairs(
                task, candidates, verifier, config=config, backend=backend
            )
        return result.dataset.to_list(), time.perf_counter() - start

    def show(name: str, seconds: float) -> None:
        rate = len(candidates) / seconds
        print(f"{name}: {seconds:.1f} s, {rate:.0f} candidates a second", flush=True)

    with DatabaseCatalog.from_path(databases) as catalog:
        print(f"{len(candidates)} candidates, load {os.getloadavg()[0]:.1f}")
        expected, seconds = build(LocalBackend(1))
        show("in this process, 1 worker process", seconds)
        start = time.perf_counter()
        ray.init(
            num_cpus=max(_RAY_WORKERS) + 1,
            include_dashboard=False,
            object_store_memory=200 * 2**20,
            log_to_driver=False,
            logging_level="WARNING",
        )
        print(f"a cluster starts in {time.perf_counter() - start:.1f} s")
        try:
            for num_workers in _RAY_WORKERS:
                with RayBackend(catalog, num_workers=num_workers) as backend:
                    found, seconds = build(backend)
                    assert found == expected, "other pairs than in this process"
                    show(f"Ray, {num_workers} workers", seconds)
                    _measure_shards(backend)
        finally:
            ray.shutdown()


def _measure_shards(backend: Any) -> None:
    """What a part of no work costs, after the first, for which workers start."""
    shards = [(number, ["x" * 1_000] * 64) for number in range(_NUM_EMPTY_SHARDS)]
    start = time.perf_counter()
    results = backend.map_shards(_do_nothing, shards, get_name=str)
    next(results)
    first = time.perf_counter() - start
    rest = sum(1 for _ in results)
    each = (time.perf_counter() - start - first) / rest
    print(f"  empty parts of 64 kB: the first in {first:.1f} s, then {1000 * each:.1f} ms each")


def _do_nothing(shard: Any, on_progress: Any) -> int:
    return len(shard)


# ---------------------------------------------------------------------- command


def _print_counts(title: str, counts: dict[str, int] | Counter[str]) -> None:
    ordered = sorted(counts.items(), key=lambda item: -item[1])
    print(f"{title}: {', '.join(f'{name} {count}' for name, count in ordered)}")


def main() -> None:
    """Run the parts asked for."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    default_data = Path(os.environ.get("SENSE_TRL_DATA", DEFAULT_DATA))
    parser.add_argument("--data", type=Path, default=default_data, help="folder of real data")
    parser.add_argument("--only", choices=("real", "kills", "scale", "ray"), help="one part alone")
    parser.add_argument("--questions", type=int, default=10_000, help="of scale")
    arguments = parser.parse_args()
    scratch = Path(tempfile.mkdtemp())
    try:
        if arguments.only in (None, "scale"):
            # First, so that peak memory is its own.
            (scratch / "scale").mkdir()
            build_at_scale(scratch / "scale", num_questions=arguments.questions, num_candidates=16)
        if arguments.only != "scale":
            with tarfile.open(arguments.data / "spider" / "databases.tar.xz") as tar:
                tar.extractall(scratch / "spider", filter="data")
            databases = next((scratch / "spider").rglob("*.sqlite")).parents[1]
        if arguments.only in (None, "real"):
            build_real(arguments.data, databases)
        if arguments.only in (None, "kills"):
            build_with_kills(arguments.data, databases, scratch)
        if arguments.only == "ray":
            build_on_ray(arguments.data, databases)
    finally:
        shutil.rmtree(scratch)


if __name__ == "__main__":
    main()
