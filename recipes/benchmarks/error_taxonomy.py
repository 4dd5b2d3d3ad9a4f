"""How real models get text-to-SQL wrong: classes of errors by model, over wrong predictions.

Needs: the predictions of five models on Spider dev and of three on one database of BIRD (the folder
that `SENSE_TRL_DATA` names; see `--data`). No GPU, no network.

    python recipes/benchmarks/error_taxonomy.py          # under a minute on two cores

A prediction is wrong here if its rows differ from gold's under `strict` semantics, or if it does
not execute. Printed are the share of each model's wrong predictions that show a class (several per
prediction), by the text (`classify_errors`) and, of those that execute, by the rows
(`classify_results`); the share without any class, and microseconds per call.

Expected: a class for 99.6 % of 1,382 wrong predictions. The six without one are four that name the
other side of a join whose two columns hold values of different types, and two with clauses in an
order that sqlglot reads and SQLite does not.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import tarfile
import tempfile
import time
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from sense_trl.database import DatabaseCatalog, QueryStatus
from sense_trl.sql.taxonomy import ErrorClass, ResultClass, classify_errors, classify_results
from sense_trl.verification import SQLVerifier, Verdict, VerificationRequest

SPIDER_MODELS = (
    "chatgpt_zero_shot",
    "codes_1b_sft",
    "codex_few_shot",
    "dail_sql_gpt4",
    "dbgpt_codellama13b_lora",
)
BIRD_MODELS = ("gpt4", "llama3_8b", "mixtral_8x7b")
DEFAULT_DATA = Path(__file__).resolve().parents[3] / "shared" / "data"


@dataclass(frozen=True)
class Prediction:
    """One model's answer to one question."""

    model: str
    request: VerificationRequest


def load_spider(data: Path) -> list[Prediction]:
    """The predictions on Spider dev."""
    questions = _read_jsonl(data / "spider" / "dev.jsonl")
    return [
        Prediction(model, VerificationRequest(question["db_id"], sql, question["query"]))
        for model in SPIDER_MODELS
        for question, sql in zip(
            questions, _read_lines(data / "predictions" / model / "spider_dev.sql"), strict=True
        )
    ]


def load_bird(data: Path) -> list[Prediction]:
    """The predictions on BIRD's `superhero`."""
    folder = data / "bird_superhero"
    questions = _read_jsonl(folder / "mini_dev.jsonl")
    return [
        Prediction(f"bird {model}", VerificationRequest("superhero", sql, question["query"]))
        for model in BIRD_MODELS
        for question, sql in zip(
            questions, _read_lines(folder / "predictions" / f"{model}.sql"), strict=True
        )
    ]


def find_wrong(predictions: Sequence[Prediction], catalog: DatabaseCatalog) -> list[Prediction]:
    """The predictions that are wrong under `strict` semantics."""
    with SQLVerifier(catalog) as verifier:
        verifications = verifier.verify([prediction.request for prediction in predictions])
    return [
        prediction
        for prediction, verification in zip(predictions, verifications, strict=True)
        if verification.verdict is Verdict.WRONG
    ]


def print_table(
    title: str, classes: Iterable[StrEnum], found: Sequence[tuple[str, Sequence[StrEnum]]]
) -> None:
    """A row for each class, a column for each model, in per cent of its predictions."""
    totals = Counter(model for model, _ in found)
    counts = Counter((model, name) for model, names in found for name in names)
    print(f"\n{title}")
    print(f"{'':24}" + "".join(f"{model[:13]:>14}" for model in totals) + f"{'all':>8}")
    print(f"{'predictions':24}" + "".join(f"{n:14}" for n in totals.values()) + f"{len(found):8}")
    everywhere = {name: sum(counts[model, name] for model in totals) for name in classes}
    for name in sorted(everywhere, key=lambda name: -everywhere[name]):
        shares = (100 * counts[model, name] / totals[model] for model in totals)
        row = "".join(f"{share:13.1f}%" for share in shares)
        print(f"{name:24}{row}{100 * everywhere[name] / len(found):7.1f}%")


def main() -> None:
    """Print both tables."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    default_data = Path(os.environ.get("SENSE_TRL_DATA", DEFAULT_DATA))
    parser.add_argument("--data", type=Path, default=default_data, help="folder of real data")
    parser.add_argument(
        "--show", type=int, default=0, metavar="N", help="N predictions without a class"
    )
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        with tarfile.open(arguments.data / "spider" / "databases.tar.xz") as tar:
            tar.extractall(scratch, filter="data")
        databases = next(Path(scratch).rglob("*.sqlite")).parents[1]
        (databases / "superhero").mkdir()
        shutil.copy(arguments.data / "bird_superhero" / "superhero.sqlite", databases / "superhero")
        with DatabaseCatalog.from_path(databases) as catalog:
            predictions = load_spider(arguments.data) + load_bird(arguments.data)
            wrong = find_wrong(predictions, catalog)
            report(wrong, catalog, num_shown=arguments.show)


def report(wrong: Sequence[Prediction], catalog: DatabaseCatalog, *, num_shown: int) -> None:
    """Classify and print."""
    columns: dict[str, dict[str, list[str]]] = {}
    by_text: list[tuple[str, tuple[ErrorClass, ...]]] = []
    by_rows: list[tuple[str, tuple[ResultClass, ...]]] = []
    without: list[Prediction] = []
    seconds = 0.0
    for prediction in wrong:
        request = prediction.request
        engine = catalog.engine(request.db_id)
        if request.db_id not in columns:
            columns[request.db_id] = {
                table.name: [column.name for column in table.columns]
                for table in engine.get_tables()
            }
        start = time.perf_counter()
        classes = classify_errors(
            request.predicted_sql,
            request.gold_sql,
            engine.dialect,
            columns=columns[request.db_id],
        )
        seconds += time.perf_counter() - start
        by_text.append((prediction.model, classes))
        if not classes:
            without.append(prediction)
        predicted = engine.execute(request.predicted_sql)
        gold = engine.execute(request.gold_sql)
        if predicted.status is gold.status is QueryStatus.OK:
            by_rows.append((prediction.model, classify_results(predicted.rows, gold.rows)))
    print_table("By the text (several classes per prediction)", ErrorClass, by_text)
    print_table("By the rows, of those that execute", ResultClass, by_rows)
    print(
        f"\nno class: {len(without)} of {len(wrong)} ({100 * len(without) / len(wrong):.2f} %); "
        f"{seconds / len(wrong) * 1e6:.0f} µs per call"
    )
    for prediction in without[:num_shown]:
        print(f"\n{prediction.model}\n  gold: {prediction.request.gold_sql}")
        print(f"  predicted: {prediction.request.predicted_sql}")


def _read_lines(path: Path) -> list[str]:
    return path.read_text(encoding="utf-8").removesuffix("\n").split("\n")


def _read_jsonl(path: Path) -> list[dict[str, str]]:
    return [json.loads(line) for line in _read_lines(path)]


if __name__ == "__main__":
    main()
