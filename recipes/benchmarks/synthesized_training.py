"""Fine-tuning on synthesised rows against as many gold rows, and against both together.

Needs: a model folder, databases, gold training questions, synthesised questions on the same or
other databases of that folder (what `sense-trl recurse` writes as kept.jsonl, `sense-trl synth` as
questions.jsonl), and dev questions that neither shares a query with. Two CPU cores are enough for a
model of 135M parameters.

    python recipes/benchmarks/synthesized_training.py --model smollm2 --database spider/database \\
        --gold train.jsonl --synthesized kept.jsonl --dev dev.jsonl --rows 500 --seeds 0 1 2

Each seed draws `--rows` rows of either kind and trains the model anew on the gold ones, on the
synthesised ones and on both (twice as many rows, and so twice as many steps). It prints execution
accuracy with its 95 % interval (Wilson) for each arm and seed, and for each arm the mean over seeds
with a bootstrap interval over dev questions. What is finished in `--output` is not done again.
"""

from __future__ import annotations

import argparse
import random
from dataclasses import replace
from pathlib import Path

from rich.console import Console

from sense_trl.cli.quickstart import quieten_libraries
from sense_trl.errors import InputError
from sense_trl.evaluation.evaluate import EvaluationReport
from sense_trl.evaluation.metrics import bootstrap_interval
from sense_trl.evaluation.report import describe_change
from sense_trl.pipeline.cpu import keep_freed_memory, wait_without_spinning
from sense_trl.pipeline.learner import TransformersLearner
from sense_trl.pipeline.recursion_config import RecursionConfig
from sense_trl.pipeline.task import DataArguments, TextToSQLTask, load_task
from sense_trl.synthesis.training_rows import TrainingRow
from sense_trl.verification.verifier import SQLVerifier


def get_rows(task: TextToSQLTask, source: str, count: int, seed: int) -> list[TrainingRow]:
    """`count` rows that answer a question, drawn at random."""
    if count > len(task.questions):
        raise InputError(f"`rows` is {count}, but there are {len(task.questions)} {source} rows.")
    return [
        TrainingRow(
            question.question_id,
            question.db_id,
            "answer",
            source,
            task.get_messages(question),
            question.gold_sql,
        )
        for question in random.Random(seed).sample(task.questions, count)
    ]


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--model", required=True, help="model folder")
    parser.add_argument("--database", required=True, help="folder of databases")
    parser.add_argument("--gold", required=True, help="training questions with gold SQL")
    parser.add_argument("--synthesized", required=True, help="synthesised questions")
    parser.add_argument("--dev", required=True, help="questions to evaluate on")
    parser.add_argument("--tables-json", help="Spider's tables.json")
    parser.add_argument("--rows", type=int, required=True, help="rows of either kind")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--epochs", type=float, default=2.0)
    parser.add_argument("--learning-rate", type=float, default=3e-4)
    parser.add_argument("--max-new-tokens", type=int, default=96)
    parser.add_argument("--output", default="runs/synthesized-training")
    arguments = parser.parse_args()
    quieten_libraries()
    gold, synthesized, dev = (
        load_task(DataArguments(arguments.database, path, arguments.tables_json))
        for path in (arguments.gold, arguments.synthesized, arguments.dev)
    )
    config = RecursionConfig(
        num_epochs=arguments.epochs,
        learning_rate=arguments.learning_rate,
        max_new_tokens=arguments.max_new_tokens,
    )
    runs: dict[str, list[EvaluationReport]] = {"gold": [], "synthesized": [], "both": []}
    console = Console(stderr=True)
    with SQLVerifier(dev.catalog) as verifier:
        for seed in arguments.seeds:
            learner = TransformersLearner(
                replace(config, seed=seed),
                Path(arguments.model),
                dev,
                dev.questions,
                verifier,
                console,
            )
            rows = {
                "gold": get_rows(gold, "gold", arguments.rows, seed),
                "synthesized": get_rows(synthesized, "synthesized", arguments.rows, seed),
            }
            rows["both"] = rows["gold"] + rows["synthesized"]
            for arm, found in runs.items():
                folder = Path(arguments.output) / f"{arm}-{seed}"
                learner.train(rows[arm], folder / "model")
                score = learner.evaluate(folder / "model", folder)
                found.append(EvaluationReport.load(folder / "evaluation.json"))
                print(
                    f"seed {seed}, {arm} ({len(rows[arm])} rows): "
                    f"{100 * score.execution_accuracy:.1f} % "
                    f"({100 * score.low:.1f} to {100 * score.high:.1f})",
                    flush=True,
                )
            for arm in ("synthesized", "both"):
                print(describe_change(runs["gold"][-1], runs[arm][-1]))
    for arm, found in runs.items():
        # Per dev question the share of the seeds that answered it.
        shares = [
            sum(seeds) / len(seeds) for seeds in zip(*(r.correct for r in found), strict=True)
        ]
        interval = bootstrap_interval(shares)
        mean = 100 * sum(shares) / len(shares)
        print(f"{arm}: mean of {len(found)} seeds {mean:.1f} % ({interval.text})")


if __name__ == "__main__":
    wait_without_spinning()
    keep_freed_memory()
    main()
