"""What teaches a schema linker: gold, and what of a larger model's linker.

Needs: two models (folders or hub ids), Spider's questions and tables.json; no databases. Runs on
the GPU if there is one.

    python recipes/benchmarks/schema_linking.py --student Qwen/Qwen2.5-Coder-0.5B-Instruct \
        --teacher Qwen/Qwen2.5-Coder-1.5B-Instruct --train spider/train.jsonl \
        --dev spider/dev.jsonl --tables-json spider/tables.json --states runs/states

Each model reads the questions once; what it read is kept in `--states`, so that a second run with
other seeds or weights trains heads alone, and an interrupted one goes on. The teacher's head
learns from gold, and what it says of the training questions is what the arms differ in. Without a
teacher, arms that learn from one are left out. With `--pooled-databases` an arm learns from wide
schemas, too, and all are measured on dev's databases in one schema besides. Printed for each arm
and seed are the measures of `sense-trl link evaluate`. `names` goes by names and keys, without a
model.
"""

from __future__ import annotations

import argparse
import random
import time
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from pooled_schema import rewrite

from sense_trl.linking.names import KINDS
from sense_trl.linking.pooling import join_schemas
from sense_trl.prompts.name_linker import NameLinker
from sense_trl.questions import Question, load_questions
from sense_trl.schema import load_spider_schemas
from sense_trl.steps.linking import (
    READOUTS,
    get_block_chars,
    measure_linking,
    open_reader,
    read_examples,
    score_examples,
    score_questions,
)
from sense_trl.trainers.linking import StateCache
from sense_trl.trainers.linking.training import (
    DISTILLATIONS,
    LinkerExample,
    LinkerTrainingConfig,
    teach,
    train_linker_head,
)


def draw(questions: Sequence[Question], num_databases: int, per_database: int) -> list[Question]:
    """So many questions on each of so many databases; all of a database that has fewer."""
    rng = random.Random(0)
    by_database: dict[str, list[Question]] = {}
    for question in questions:
        by_database.setdefault(question.db_id, []).append(question)
    chosen = rng.sample(sorted(by_database), min(num_databases, len(by_database)))
    return [
        question
        for own in (by_database[name] for name in chosen)
        for question in rng.sample(own, min(per_database, len(own)))
    ]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    for name in ("--student", "--train", "--dev", "--tables-json", "--states"):
        parser.add_argument(name, required=True)
    parser.add_argument("--teacher")
    parser.add_argument("--teacher-readout", choices=READOUTS, default="once")
    parser.add_argument("--num-databases", type=int, default=1000)
    parser.add_argument("--per-database", type=int, default=25)
    parser.add_argument("--num-dev", type=int, default=300)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--num-epochs", type=int, default=LinkerTrainingConfig.num_epochs)
    parser.add_argument("--pooled-databases", type=int, default=0)
    parser.add_argument("--linked-tables", type=int, default=6)
    parser.add_argument("--weight", type=float, default=1.0, help="Of what the teacher says.")
    options = parser.parse_args()

    schemas = load_spider_schemas(options.tables_json)
    train = draw(load_questions(options.train), options.num_databases, options.per_database)
    dev = load_questions(options.dev)
    dev = random.Random(0).sample(dev, min(options.num_dev, len(dev)))
    print(f"{len(train)} questions on {len({q.db_id for q in train})} databases, {len(dev)} of dev")
    # What is asked to measure: questions and schemas by name.
    parts = {"": (dev, schemas)}
    if options.pooled_databases:
        pool = join_schemas({db_id: schemas[db_id] for db_id in sorted({q.db_id for q in dev})})
        wide = [rewrite(pool, question) for question in dev]
        parts[", dev in one schema"] = wide, {pool.schema.db_id: pool.schema}
    for name, (asked, of) in parts.items():
        told = measure_linking(
            score_questions(NameLinker, asked, of), max_tables=options.linked_tables
        )
        print(f"names{name}: {told}", flush=True)

    def read(model: str, readout: str = "once") -> tuple[int, list[list[LinkerExample]]]:
        """Characters of the blocks that it read, and the examples: of train, and of each part."""
        reader = open_reader(model)
        cache = StateCache(reader, options.states)
        start = time.process_time()
        found = [
            read_examples(
                reader, train, schemas, cache=cache, readout=readout,
                pooled_databases=options.pooled_databases,
            )
        ]  # fmt: skip
        found += [
            read_examples(reader, asked, of, cache=cache, readout=readout)
            for asked, of in parts.values()
        ]
        print(f"{model}, {readout}: read in {time.process_time() - start:.0f} CPU s", flush=True)
        return get_block_chars(reader, readout), found

    config = LinkerTrainingConfig(num_epochs=options.num_epochs)
    arms: dict[str, dict[str, Any]] = {"gold alone": {}, "gold, focal": {"focal": True}}
    teachings = None
    if options.teacher is not None:
        chars, (asked, examples, *_) = read(options.teacher, options.teacher_readout)
        for seed in reversed(range(options.seeds)):
            teacher = train_linker_head(asked, replace(config, seed=seed), num_kinds=len(KINDS))
            scored = score_examples(teacher, examples, dev, schemas, max_block_chars=chars)
            print(f"teacher, seed {seed}: {measure_linking(scored)}", flush=True)
        teachings = {example.key: teach(teacher, example) for example in asked}
        size = sum(t.maps.numel() * t.maps.element_size() for t in teachings.values())
        print(f"{size / len(train):.0f} bytes of maps a question")
        arms |= {name: {"distillation": name} for name in DISTILLATIONS}
    chars, (asked, *examples) = read(options.student)
    single = [example for example in asked if not example.key.startswith("pool/")]
    if options.pooled_databases:
        arms["gold, wide schemas, too"] = {}
    for arm, changes in arms.items():
        for seed in range(options.seeds):
            changed = replace(config, seed=seed, distillation_weight=options.weight, **changes)
            own = asked if "wide" in arm else single
            head = train_linker_head(own, changed, num_kinds=len(KINDS), teachings=teachings)
            for (name, (questions, of)), read_of in zip(parts.items(), examples, strict=True):
                start = time.perf_counter()
                scored = list(score_examples(head, read_of, questions, of, max_block_chars=chars))
                cost = 1000 * (time.perf_counter() - start) / len(dev)
                told = measure_linking(scored, max_tables=options.linked_tables)
                print(
                    f"{arm}, seed {seed}{name}: {told}; the head {cost:.1f} ms a question",
                    flush=True,
                )


if __name__ == "__main__":
    main()
