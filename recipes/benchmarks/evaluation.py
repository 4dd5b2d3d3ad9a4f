"""All scores of five models on Spider dev, and how long that takes against the official way.

Needs: the predictions of five models on Spider dev and Spider's databases (the folder that
`SENSE_TRL_DATA` names; see `--data`), and `pip install sqlparse`. No GPU, no network.

    python recipes/benchmarks/evaluation.py                # some 6 minutes on two cores
    python recipes/benchmarks/evaluation.py --suite 0      # without the suite, some 3 minutes

Printed are:

* a table of all scores, and the seconds that evaluating a model's 1,034 predictions takes, without
  and with eight neighbours of every database (nothing cached);
* seconds for one model's 1,034 predictions, and the ratio within a round, its median, smallest and
  largest value. A round is one model, every contender once.

The official way is Spider's execution accuracy as its script computes it, and BIRD's as that of
BIRD does in two processes (`spider_reference` and `bird_reference` of verification.py beside this
file, which say what is left out). `evaluate_sql` gives both of these numbers at once, and strict
verdicts, exact-set match, hardness, validity and error classes. Cold is a new verifier: workers
start, gold runs and is examined. Warm is a verifier that knows gold and no prediction.

Expected: spider verdicts equal to those of the reference on all 5,170 predictions. On two cores
with other work on them, Spider's way took 1.36 times as long as `evaluate_sql` cold (1.20 to 1.84
over five models) and 2.9 times as long as warm (2.4 to 4.9); BIRD's way, which gives one number,
0.37 and 0.81 times as long. Eight neighbours took 23 to 39 s for each model.
"""

from __future__ import annotations

import argparse
import os
import platform
import sqlite3
import statistics
import tarfile
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from verification import DEFAULT_DATA, MODELS, Pair, bird_reference, load_pairs, spider_reference

from sense_trl.database import DatabaseCatalog
from sense_trl.evaluation import EvaluationReport, evaluate_sql
from sense_trl.evaluation.markdown import get_score_table
from sense_trl.questions import Question, load_questions
from sense_trl.schema import DatabaseSchema, load_spider_schemas
from sense_trl.verification import SQLVerifier, Verdict, VerificationRequest
from sense_trl.verification.suite.verifier import SuiteSettings, SuiteVerifier

SPIDER, BIRD = "Spider's way", "BIRD's way, 2 processes"
COLD, WARM = "evaluate_sql, cold", "evaluate_sql, warm"
RATIOS = ((SPIDER, COLD), (SPIDER, WARM), (BIRD, COLD), (BIRD, WARM), (WARM, COLD))


@dataclass(frozen=True)
class Setting:
    """What every evaluation needs."""

    questions: Sequence[Question]
    schemas: Mapping[str, DatabaseSchema]
    catalog: DatabaseCatalog

    def evaluate(
        self, name: str, pairs: Sequence[Pair], verifier: SQLVerifier, suite: SuiteVerifier | None
    ) -> EvaluationReport:
        """Evaluate one model's predictions."""
        predictions = {
            question.question_id: predicted
            for question, (_, predicted, _) in zip(self.questions, pairs, strict=True)
        }
        return evaluate_sql(
            self.questions,
            predictions,
            verifier,
            name=name,
            schemas=self.schemas,
            suite_verifier=suite,
        )


def _seconds_since(started: float) -> float:
    return time.perf_counter() - started


def print_scores(
    setting: Setting, pairs_of: Mapping[str, Sequence[Pair]], num_instances: int
) -> None:
    """The table of scores, with the seconds of each model."""
    runs = []
    for model, pairs in pairs_of.items():
        started = time.perf_counter()
        with SQLVerifier(setting.catalog, num_workers=2) as verifier:
            run = setting.evaluate(model, pairs, verifier, None)
            line = f"{model:<26}{_seconds_since(started):>7.1f} s"
            if num_instances:
                started = time.perf_counter()
                with open_suite(setting, num_instances) as suite:
                    run = setting.evaluate(model, pairs, verifier, suite)
                line += f", with {num_instances} neighbours {_seconds_since(started):.1f} s"
        print(line)
        runs.append(run)
    table = get_score_table(runs)
    print()
    for row in (table.header, *table.rows):
        print(f"{row[0]:<30}" + "".join(f"{cell:>26}" for cell in row[1:]))
    print(table.note)


@contextmanager
def open_suite(setting: Setting, num_instances: int) -> Iterator[SuiteVerifier]:
    """A verifier on neighbours that keep the foreign keys of `tables.json`."""
    keys = {
        db_id: [
            (table, key.columns[0], key.referenced_table, key.referenced_columns[0])
            for table, key in schema.foreign_keys
        ]
        for db_id, schema in setting.schemas.items()
    }
    settings = SuiteSettings(num_instances=num_instances, max_candidates=3 * num_instances)
    with SuiteVerifier(
        setting.catalog, settings=settings, foreign_keys=keys, num_workers=2
    ) as suite:
        yield suite


def measure_round(setting: Setting, pairs: Sequence[Pair]) -> dict[str, float]:
    """Seconds of every contender on one model's predictions; their spider verdicts must agree."""
    times = {}
    started = time.perf_counter()
    theirs = spider_reference(pairs)
    times[SPIDER] = _seconds_since(started)
    started = time.perf_counter()
    bird_reference(pairs, 2)
    times[BIRD] = _seconds_since(started)
    for contender in (COLD, WARM):
        with SQLVerifier(setting.catalog, num_workers=2) as verifier:
            if contender == WARM:
                verifier.verify(
                    VerificationRequest(q.db_id, q.gold_sql, q.gold_sql, semantics)
                    for q in setting.questions
                    for semantics in ("strict", "spider", "bird")
                )
            started = time.perf_counter()
            run = setting.evaluate(contender, pairs, verifier, None)
            times[contender] = _seconds_since(started)
        ours = [record.spider is Verdict.CORRECT for record in run.records]
        num_different = sum(map(bool.__ne__, ours, theirs))
        if num_different:
            print(f"spider verdicts that differ from the reference: {num_different}")
    return times


def print_times(rounds: Sequence[Mapping[str, float]], num_pairs: int) -> None:
    """Seconds, and ratios within rounds."""
    print(f"\n{num_pairs} predictions, {len(rounds)} rounds")
    for name in rounds[0]:
        seconds = [times[name] for times in rounds]
        print(f"{name:<42}{statistics.median(seconds):>7.2f} s")
    print(f"{'ratio within a round':<42}{'median':>7}   (min .. max)")
    for numerator, denominator in RATIOS:
        ratios = [times[numerator] / times[denominator] for times in rounds]
        spread = f"({min(ratios):.2f} .. {max(ratios):.2f})"
        print(f"{numerator + ' / ' + denominator:<42}{statistics.median(ratios):>7.2f}   {spread}")


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    default_data = Path(os.environ.get("SENSE_TRL_DATA", DEFAULT_DATA))
    parser.add_argument("--data", type=Path, default=default_data, help="folder of real data")
    parser.add_argument(
        "--databases", type=Path, default=None, help="unpacked Spider databases, if you have them"
    )
    parser.add_argument("--repeats", type=int, default=2, help="rounds for each model")
    parser.add_argument("--suite", type=int, default=8, help="neighbours; 0 leaves them out")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        databases = arguments.databases
        if databases is None:
            with tarfile.open(arguments.data / "spider" / "databases.tar.xz") as tar:
                tar.extractall(scratch, filter="data")
            databases = next(Path(scratch).rglob("*.sqlite")).parents[1]
        questions = load_questions(arguments.data / "spider" / "dev.jsonl")
        schemas = load_spider_schemas(arguments.data / "spider" / "tables.json")
        pairs, _ = load_pairs(arguments.data, databases)
        size = len(questions)
        pairs_of = {m: pairs[i * size : (i + 1) * size] for i, m in enumerate(MODELS)}
        print(
            f"{platform.platform()}, {os.cpu_count()} CPUs, load {os.getloadavg()[0]:.1f}, "
            f"Python {platform.python_version()}, SQLite {sqlite3.sqlite_version}"
        )
        with DatabaseCatalog.from_path(databases) as catalog:
            setting = Setting(questions, schemas, catalog)
            print_scores(setting, pairs_of, arguments.suite)
            rounds = [
                measure_round(setting, pairs)
                for _ in range(arguments.repeats)
                for pairs in pairs_of.values()
            ]
            print_times(rounds, size)


if __name__ == "__main__":
    main()
