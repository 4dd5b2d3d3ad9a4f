"""What teaches a schema linker: gold, and what of a larger model's linker.

Needs: two models (folders or hub ids), Spider's questions and tables.json; no databases. Runs on
the GPU if there is one.

    python recipes/benchmarks/schema_linking.py --student Qwen/Qwen2.5-Coder-0.5B-Instruct \
        --teacher Qwen/Qwen2.5-Coder-1.5B-Instruct --train spider/train.jsonl \
        --dev spider/dev.jsonl --tables-json spider/tables.json --num-databases 40 \
        --per-database 12 --seeds 3

Training questions are drawn from some databases, development questions from all of theirs. Both
models read them once; the teacher's head learns from gold, and what it says of the training
questions is what the arms differ in. Printed for each arm and seed are the measures of
`sense-trl link evaluate`. `names` goes by words in common, without a model.
"""

from __future__ import annotations

import argparse
import random
import time
from collections.abc import Sequence
from dataclasses import replace

from sense_trl.prompts.linking import NameLinker
from sense_trl.questions import Question, load_questions
from sense_trl.schema import load_spider_schemas
from sense_trl.steps.linking import (
    measure_linking,
    open_reader,
    read_examples,
    score_examples,
    score_questions,
)
from sense_trl.trainers.linking.training import (
    DISTILLATIONS,
    LinkerTrainingConfig,
    teach,
    train_linker_head,
)


def draw(questions: Sequence[Question], num_databases: int, per_database: int) -> list[Question]:
    """So many questions on each of so many databases."""
    rng = random.Random(0)
    by_database: dict[str, list[Question]] = {}
    for question in questions:
        by_database.setdefault(question.db_id, []).append(question)
    enough = sorted(name for name, own in by_database.items() if len(own) >= per_database)
    chosen = rng.sample(enough, min(num_databases, len(enough)))
    return [q for name in chosen for q in rng.sample(by_database[name], per_database)]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    for name in ("--student", "--teacher", "--train", "--dev", "--tables-json"):
        parser.add_argument(name, required=True)
    parser.add_argument("--num-databases", type=int, default=40)
    parser.add_argument("--per-database", type=int, default=12)
    parser.add_argument("--num-dev", type=int, default=300)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--num-epochs", type=int, default=LinkerTrainingConfig.num_epochs)
    parser.add_argument("--weight", type=float, default=1.0, help="Of what the teacher says.")
    options = parser.parse_args()

    schemas = load_spider_schemas(options.tables_json)
    train = draw(load_questions(options.train), options.num_databases, options.per_database)
    dev = load_questions(options.dev)
    dev = random.Random(0).sample(dev, min(options.num_dev, len(dev)))
    print("names:", measure_linking(score_questions(NameLinker, dev, schemas)), flush=True)

    config = LinkerTrainingConfig(num_epochs=options.num_epochs)
    reader = open_reader(options.teacher)
    asked = read_examples(reader, train, schemas)
    teacher = train_linker_head(asked, config)
    teachings = {example.key: teach(teacher, example) for example in asked}
    size = sum(t.maps.numel() * t.maps.element_size() for t in teachings.values())
    print(f"{size / len(train):.0f} bytes of maps a question")
    examples = read_examples(reader, dev, schemas)
    print("teacher:", measure_linking(score_examples(teacher, examples, dev, schemas)), flush=True)
    del reader, asked, examples

    reader = open_reader(options.student)
    asked = read_examples(reader, train, schemas)
    start = time.perf_counter()
    examples = read_examples(reader, dev, schemas)
    print(f"{1000 * (time.perf_counter() - start) / len(dev):.0f} ms a question, with schemas")
    for seed in range(options.seeds):
        for distillation in (None, *DISTILLATIONS):
            head = train_linker_head(
                asked,
                replace(
                    config,
                    seed=seed,
                    distillation=distillation,
                    distillation_weight=options.weight,
                ),
                teachings=teachings,
            )
            found = measure_linking(score_examples(head, examples, dev, schemas))
            print(f"seed {seed}, {distillation or 'gold alone'}: {found}", flush=True)


if __name__ == "__main__":
    main()
