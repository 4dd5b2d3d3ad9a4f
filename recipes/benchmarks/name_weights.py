"""Learn what a linker without a model goes by (`NAME_WEIGHTS`), and measure what is there.

Needs: questions and tables.json of Spider; no databases, no model.

    python recipes/benchmarks/name_weights.py --train spider/train_spider.json \
        --dev spider/dev.json --tables-json spider/tables.json --seeds 3

Questions are put to their database alone, and some again to schemas into which several databases
were joined, so that wide schemas are learnt from, too. A `LinkerHead` learns from them without
states. Printed are the measures of `sense-trl link evaluate` for the weights of the package, on dev
and on all of dev's databases in one schema, and the weights that each seed learns, as they stand in
`sense_trl.linking.names`.
"""

from __future__ import annotations

import argparse
import random
from collections import defaultdict
from collections.abc import Iterator, Sequence

import torch
from pooled_schema import rewrite

from sense_trl.linking import get_linking_labels
from sense_trl.linking.names import KINDS, NameWeights, get_names
from sense_trl.linking.pooling import Pool, join_schemas
from sense_trl.linking.reading import split_question
from sense_trl.prompts.name_linker import NameLinker
from sense_trl.questions import Question, load_questions
from sense_trl.schema import load_spider_schemas
from sense_trl.schema.naming import get_key
from sense_trl.steps.linking import ItemTensors, measure_linking, score_questions
from sense_trl.trainers.linking import LinkerHead
from sense_trl.trainers.linking.training import (
    LinkerExample,
    LinkerTrainingConfig,
    train_linker_head,
)

# Numbers of databases that are joined, and questions on each such schema.
_JOINED = (3, 6, 10, 20)
_QUESTIONS_OF_POOL = 60


def read(pool: Pool, questions: Sequence[Question], key: str) -> Iterator[LinkerExample]:
    """Questions on databases in a pool, as examples without states."""
    items = [get_key(*name) for name in get_names(pool.schema)]
    tensors = ItemTensors(pool.schema, items)
    nothing = torch.zeros(len(items), 1)
    for question in questions:
        wanted = get_linking_labels(rewrite(pool, question).gold_sql, pool.schema).items
        yield LinkerExample(
            f"{question.question_id}/{key}",
            nothing,
            torch.zeros(len(split_question(question.question)[1]), 1),
            tensors.kinds,
            torch.tensor([item in wanted for item in items]),
            tensors.relate(question.question),
        )


def write(head: LinkerHead) -> str:
    """The weights of a head as they stand in the package."""
    parameters = (head.bias, head.size_weight, head.parent_weight, head.link_weight)
    rows = zip(*(p.tolist() for p in (*parameters, head.likeness_weight)), strict=True)
    weights = [
        NameWeights(*(round(n, 2) for n in single), tuple(round(n, 2) for n in likeness))
        for *single, likeness in rows
    ]
    return "\n".join(f"    {own}," for own in weights)


def main() -> None:
    """Measure and learn."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    for name in ("--train", "--dev", "--tables-json"):
        parser.add_argument(name, required=True)
    parser.add_argument("--per-database", type=int, default=20)
    parser.add_argument("--num-pools", type=int, default=16)
    parser.add_argument("--seeds", type=int, default=1)
    options = parser.parse_args()
    schemas = load_spider_schemas(options.tables_json)
    dev = load_questions(options.dev)
    print("dev:", measure_linking(score_questions(NameLinker, dev, schemas)), flush=True)
    pool = join_schemas({name: schemas[name] for name in sorted({q.db_id for q in dev})})
    asked = [rewrite(pool, question) for question in dev]
    scored = score_questions(NameLinker, asked, {pool.schema.db_id: pool.schema})
    print("dev in one schema:", measure_linking(scored, max_tables=10), flush=True)

    by_database: dict[str, list[Question]] = defaultdict(list)
    for question in load_questions(options.train):
        by_database[question.db_id].append(question)
    rng = random.Random(0)
    groups = [([name], options.per_database) for name in sorted(by_database)]
    for _ in range(options.num_pools):
        names = rng.sample(sorted(by_database), min(rng.choice(_JOINED), len(by_database)))
        groups.append((names, _QUESTIONS_OF_POOL // len(names)))
    examples: list[LinkerExample] = []
    for number, (names, count) in enumerate(groups):
        own = [by_database[name] for name in names]
        asked = [question for each in own for question in rng.sample(each, min(count, len(each)))]
        examples += read(join_schemas({n: schemas[n] for n in names}), asked, str(number))
    print(f"{len(examples)} questions on {len(by_database)} databases", flush=True)
    for seed in range(options.seeds):
        head = train_linker_head(examples, LinkerTrainingConfig(seed=seed), num_kinds=len(KINDS))
        print(f"seed {seed}:\n{write(head)}", flush=True)


if __name__ == "__main__":
    main()
