"""What a prompt has to show: names, types and keys, values, values that the question names.

Needs: an instruct model (a folder or a hub id), a questions file with its databases. Runs on the
GPU if there is one.

    python recipes/benchmarks/prompt_styles.py --model Qwen/Qwen2.5-Coder-0.5B-Instruct \
        --questions spider/dev.json --database spider/database --tables-json spider/tables.json \
        --max-questions 200 --output runs/prompt-styles

The model answers the same questions, drawn by `--seed`, greedily under each style. Printed
are execution accuracy (strict, and Spider's way) with 95 % intervals, the paired difference to the
first style (McNemar's exact test), tokens of a prompt, tokens computed for it (questions on one
database share their schema), and CPU seconds. The answers of each style are written as they come;
the same command continues. Trained models are not measured here: their training decides what they
can use.
"""

from __future__ import annotations

import argparse
import json
import random
import time
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from sense_trl.database.catalog import DatabaseCatalog
from sense_trl.evaluation.evaluate import EvaluationReport, evaluate_sql
from sense_trl.evaluation.metrics import accuracy_interval, compare_paired
from sense_trl.generation.generator import SamplingConfig
from sense_trl.generation.transformers_generator import TransformersGenerator
from sense_trl.prompts import PromptStyle, extract_sql
from sense_trl.prompts.writer import PromptWriter
from sense_trl.questions import Question, load_questions
from sense_trl.schema.schema import load_spider_schemas
from sense_trl.verification.comparison import Verdict
from sense_trl.verification.verifier import SQLVerifier

STYLES = {
    "names": PromptStyle(num_matched_values=0),
    "values": PromptStyle(num_values=3, num_matched_values=0),
    "matched": PromptStyle(num_matched_values=5),
    "values+matched": PromptStyle(num_values=3, num_matched_values=5),
    "types+keys": PromptStyle(schema_style="codes", num_matched_values=0),
    "types+keys+values+matched": PromptStyle(
        schema_style="codes", num_values=3, num_matched_values=5
    ),
}


def answer(
    generator: TransformersGenerator,
    writer: PromptWriter,
    questions: Sequence[Question],
    file: Path,
    max_new_tokens: int,
) -> list[dict[str, Any]]:
    """One record per question: what the model wrote, tokens and seconds; from the file if there."""
    done: list[dict[str, Any]] = []
    if file.exists():
        done = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
    known = {record["question_id"] for record in done}
    by_database: dict[str, list[Question]] = defaultdict(list)
    for question in questions:
        if question.question_id not in known:
            by_database[question.db_id].append(question)
    sampling = SamplingConfig(max_new_tokens=max_new_tokens)
    for db_id, asked in by_database.items():
        started = time.process_time()
        prompts = [writer.get_messages(db_id, q.question, evidence=q.evidence) for q in asked]
        written_s = time.process_time() - started
        completions = generator.generate(prompts, sampling)
        seconds = time.process_time() - started
        ids = [
            generator.tokenizer.apply_chat_template(
                prompt, add_generation_prompt=True, return_dict=False
            )
            for prompt in prompts
        ]
        shared = count_shared(ids)
        with open(file, "a", encoding="utf-8") as out:
            for place, (question, [completion]) in enumerate(zip(asked, completions, strict=True)):
                record = {
                    "question_id": question.question_id,
                    "answer": completion.text,
                    "prompt_tokens": len(ids[place]),
                    "computed_tokens": shared / len(asked),
                    "new_tokens": completion.num_tokens,
                    "cpu_s": seconds / len(asked),
                    "writing_s": written_s / len(asked),
                }
                out.write(json.dumps(record) + "\n")
                done.append(record)
    return done


def count_shared(sequences: Sequence[Sequence[int]]) -> int:
    """Positions of the prefix tree of several token sequences."""
    ordered = sorted(map(tuple, sequences))
    total = 0
    before: tuple[int, ...] = ()
    for sequence in ordered:
        same = 0
        while same < min(len(before), len(sequence)) and before[same] == sequence[same]:
            same += 1
        total += len(sequence) - same
        before = sequence
    return total


def report_style(
    name: str,
    report: EvaluationReport,
    first: EvaluationReport,
    records: Sequence[dict[str, Any]],
) -> str:
    """One line of the table."""
    cells = [f"{name:<27}"]
    for semantics in ("strict", "spider"):
        own, base = (get_correct(each, semantics) for each in (report, first))
        interval = accuracy_interval(own)
        cells.append(f"{sum(own) / len(own):6.1%} ({interval.low:.1%}-{interval.high:.1%})")
        if report is not first:
            paired = compare_paired(base, own)
            cells.append(f"{paired.gained:+d}/{-paired.lost:d} p={paired.p_value:.3f}")
    means = {
        key: sum(record[key] for record in records) / len(records)
        for key in ("prompt_tokens", "computed_tokens", "new_tokens", "cpu_s", "writing_s")
    }
    cells.append(
        f"{means['prompt_tokens']:.0f} tokens, {means['computed_tokens']:.0f} computed, "
        f"{means['new_tokens']:.0f} new; {means['cpu_s']:.1f} CPU s, "
        f"{1000 * means['writing_s']:.0f} ms of it for the prompt"
    )
    return "  ".join(cells)


def get_correct(report: EvaluationReport, semantics: str) -> list[bool]:
    """Whether each answer is correct."""
    verdicts = (r.verdict if semantics == "strict" else r.spider for r in report.records)
    return [verdict is Verdict.CORRECT for verdict in verdicts]


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--model", required=True)
    parser.add_argument("--questions", required=True)
    parser.add_argument("--database", required=True)
    parser.add_argument("--tables-json", default=None)
    parser.add_argument("--max-questions", type=int, default=200)
    parser.add_argument("--max-new-tokens", type=int, default=160)
    parser.add_argument("--styles", nargs="+", choices=STYLES, default=list(STYLES))
    parser.add_argument("--dtype", default="auto", help="float32 is fastest on most CPUs")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, required=True)
    arguments = parser.parse_args()
    arguments.output.mkdir(parents=True, exist_ok=True)
    questions = load_questions(arguments.questions)
    if len(questions) > arguments.max_questions:
        questions = random.Random(arguments.seed).sample(questions, arguments.max_questions)
    schemas = load_spider_schemas(arguments.tables_json) if arguments.tables_json else None
    generator = TransformersGenerator(arguments.model, dtype=arguments.dtype)
    reports: dict[str, EvaluationReport] = {}
    with (
        DatabaseCatalog.from_path(arguments.database) as catalog,
        SQLVerifier(catalog) as verifier,
    ):
        for name in arguments.styles:
            with PromptWriter(catalog, STYLES[name], schemas=schemas) as writer:
                records = answer(
                    generator,
                    writer,
                    questions,
                    arguments.output / f"{name}.jsonl",
                    arguments.max_new_tokens,
                )
            predictions = {r["question_id"]: extract_sql(r["answer"]) for r in records}
            reports[name] = evaluate_sql(questions, predictions, verifier, name=name)
            reports[name].save(arguments.output / f"{name}.json")
            first = next(iter(reports.values()))
            print(report_style(name, reports[name], first, records), flush=True)


if __name__ == "__main__":
    main()
