"""The whole chain on Spider with SmolLM2-135M, by one command that can be stopped and continued.

    python recipes/spider-smollm2/reproduce.py --spider spider --output runs/spider-smollm2

Every step is a command of `sense-trl` that is printed before it runs. Parts, in this order:

* `baseline`: supervised fine-tuning (SFT) on Spider's training questions, evaluated;
* `distillation`: the fine-tuned model teaches a student, in five ways;
* `synthesis`: SFT on synthesised questions, on as many gold ones, and on both;
* `sense`: a weaker model's errors become verified pairs, on which the baseline is trained, with
  preferences and without;
* `grouping`: SFT in optimizer steps of one database, and of four;
* `transfer`: baseline and SENSE on Spider-Syn, and on suites of neighbouring databases.

`results/` in the output folder gets one small JSON file per evaluated model, with the commands that
made it, what they cost and each question's verdict; RESULTS.md and results.svg are written from
these files after every part.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import random
import shlex
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from results import write_results

from sense_trl.evaluation.evaluate import EvaluationReport
from sense_trl.questions import Question, load_questions

HERE = Path(__file__).resolve().parent
PARTS = ("baseline", "distillation", "synthesis", "sense", "grouping", "transfer")

# The ways to teach a student: stage and flags.
METHODS: dict[str, tuple[str, ...]] = {
    "sft": ("sft",),
    "fkd": ("kd", "--imperfect_data", "false", "--kd_loss_type", "forward_kl"),
    "rkd": ("kd", "--imperfect_data", "false", "--kd_loss_type", "reverse_kl"),
    "masking": ("kd", "--fill", "mask"),
    "kid": ("kd",),
}

# SENSE, and what it is without the preferences.
PREFERENCES: dict[str, tuple[str, ...]] = {
    "sense": (),
    "anchor": ("--loss_type", "sft", "--loss_weights", "1.0", "--label_smoothing", "0"),
}

# Questions on one database that stand together in a step of 16.
GROUP_SIZES = (16, 4)


@dataclass(frozen=True)
class Step:
    """A command of `sense-trl`.

    Attributes:
        name: of the step, unique.
        command: its arguments.
        result: the file that is there once it has finished.
        trained: for an evaluation, the step that trained what it evaluates.
    """

    name: str
    command: tuple[str, ...]
    result: Path
    trained: str | None = None


class Chain:
    """The steps of all parts, as the arguments ask for."""

    def __init__(self, arguments: argparse.Namespace) -> None:
        self.arguments = arguments
        self.output: Path = arguments.output
        self.train_questions = self._find("train_spider")
        self.dev_questions = self._find("dev")

    def get_steps(self, part: str) -> Iterator[Step]:
        """The steps of a part; what they read may be written by the ones before."""
        steps: Iterator[Step] = getattr(self, f"_{part}")()
        return steps

    # ------------------------------------------------------------------------------ the parts

    def _baseline(self) -> Iterator[Step]:
        size = str(self.arguments.train_questions)
        yield self._train("sft", "sft", ("--max_questions", size), model=self.arguments.model)
        yield self._evaluate("sft")

    def _distillation(self) -> Iterator[Step]:
        a = self.arguments
        student = self.output / "student"
        layers = ("--num-layers", str(a.student_layers))
        command = ("prune", str(self.output / "sft"), *layers, "--output", str(student))
        yield Step("student", command, student / "config.json")
        for seed in a.seeds:
            questions = ("--questions", str(self._write_gold(seed)))
            for method, (stage, *flags) in METHODS.items():
                name = f"student-{method}-{seed}"
                if stage == "kd":
                    flags += ["--teacher_model_name_or_path", str(self.output / "sft")]
                flags += [*questions, *self._short_training(seed)]
                yield self._train(name, stage, flags, model=str(student))
                yield self._evaluate(name, limit=a.short_dev_questions)

    def _synthesis(self) -> Iterator[Step]:
        a = self.arguments
        for seed in a.seeds:
            gold = self._write_gold(seed)
            db_ids = sorted({question.db_id for question in load_questions(gold)})
            explored = self.output / f"explored-{seed}"
            yield Step(
                f"explored-{seed}",
                (
                    *("synth", "explore", "--database", str(a.spider / "database")),
                    *("--tables-json", str(a.spider / "tables.json"), "--db-ids", *db_ids),
                    *("--exclude", str(self.dev_questions), "--seed", str(seed)),
                    *("--per-database", str(a.per_database), "--output", str(explored)),
                ),
                explored / "account.json",
            )
            synthesised = explored / "questions.jsonl"
            both = [*load_questions(gold), *load_questions(synthesised)]
            files = {
                "gold": gold,
                "synthesised": synthesised,
                "both": self._write(f"both-{seed}", both),
            }
            for data, file in files.items():
                step = self._train_on(data, file, seed)
                yield step
                yield self._evaluate(step.name, limit=a.short_dev_questions)

    def _sense(self) -> Iterator[Step]:
        a = self.arguments
        # The weak model is the first one that saw a few gold questions only.
        weak = self._train_on("gold", self._write_gold(0), 0)
        yield weak
        pairs = self.output / "pairs"
        yield Step(
            "pairs",
            (
                *("pairs", "--config", str(HERE / "pairs.yaml"), *self._data()),
                *("--questions", str(self.train_questions), "--output_dir", str(pairs)),
                *("--model_name_or_path", str(self.output / weak.name)),
                *("--max_questions", str(a.sampled_questions)),
            ),
            pairs / "pairs.parquet",
        )
        for seed, (method, flags) in itertools.product(a.seeds, PREFERENCES.items()):
            name = f"{method}-{seed}"
            folder = self.output / name
            yield Step(
                name,
                (
                    *("dpo", "--config", str(HERE / "dpo.yaml"), "--seed", str(seed)),
                    *("--model_name_or_path", str(self.output / "sft")),
                    *("--pairs", str(pairs / "pairs.parquet"), "--output_dir", str(folder)),
                    *("--max_steps", str(a.sense_steps), *flags),
                ),
                folder / "metrics.json",
            )
            yield self._evaluate(name)

    def _grouping(self) -> Iterator[Step]:
        a = self.arguments
        for seed in a.seeds:
            # As many on each database as fill whole steps.
            drawn = self._draw_questions(seed, a.grouped_databases, max(GROUP_SIZES))
            questions = ("--questions", str(self._write(f"grouped-{seed}", drawn)))
            for size in GROUP_SIZES:
                name = f"groups-of-{size}-{seed}"
                flags = (
                    *("--seed", str(seed), "--save_strategy", "no", "--group_size", str(size)),
                    *questions,
                )
                yield self._train(name, "sft", flags, model=a.model)
                yield self._evaluate(name, limit=a.short_dev_questions)

    def _transfer(self) -> Iterator[Step]:
        names = ["sft", *(f"sense-{seed}" for seed in self.arguments.seeds[:1])]
        synonyms = self.arguments.spider / "syn_dev.jsonl"
        for name in names if synonyms.exists() else []:
            yield self._evaluate(name, questions=synonyms, suffix="-syn")
        for name in names:
            folder = self.output / f"suite-{name}"
            predictions = self.output / f"evaluate-{name}" / "predictions.jsonl"
            yield Step(
                f"suite-{name}",
                (
                    *("evaluate", str(predictions), "--questions", str(self.dev_questions)),
                    *("--database", str(self.arguments.spider / "database")),
                    *("--tables", str(self.arguments.spider / "tables.json"), "--suite", "8"),
                    *("--name", name, "--cache-dir", str(self.output / "suites")),
                    *("--output", str(folder)),
                ),
                folder / "evaluation.json",
                trained=name,
            )

    # ------------------------------------------------------------------------------ what they share

    def _find(self, name: str) -> Path:
        for path in (
            self.arguments.spider / f"{name}.json",
            self.arguments.spider / f"{name}.jsonl",
        ):
            if path.is_file():
                return path
        sys.exit(f"`--spider` {str(self.arguments.spider)!r} has no {name}.json.")

    def _data(self) -> tuple[str, ...]:
        spider = self.arguments.spider
        return (
            "--database",
            str(spider / "database"),
            "--tables_json",
            str(spider / "tables.json"),
        )

    def _short_training(self, seed: int) -> tuple[str, ...]:
        """Of a few hundred questions: more steps, and nothing saved on the way."""
        batch = ("--per_device_train_batch_size", "8", "--save_strategy", "no")
        return ("--seed", str(seed), *batch)

    def _train(self, name: str, stage: str, flags: Sequence[str], *, model: str) -> Step:
        folder = self.output / name
        questions = () if "--questions" in flags else ("--questions", str(self.train_questions))
        command = (
            *(stage, "--config", str(HERE / f"{stage}.yaml"), *self._data(), *questions),
            *("--model_name_or_path", model, "--output_dir", str(folder), *flags),
        )
        return Step(name, command, folder / "metrics.json")

    def _train_on(self, data: str, file: Path, seed: int) -> Step:
        """SFT of the model as it comes on some questions."""
        flags = ("--questions", str(file), *self._short_training(seed))
        return self._train(f"data-{data}-{seed}", "sft", flags, model=self.arguments.model)

    def _evaluate(
        self,
        name: str,
        *,
        questions: Path | None = None,
        suffix: str = "",
        limit: int | None = None,
    ) -> Step:
        folder = self.output / f"evaluate-{name}{suffix}"
        limit = limit or self.arguments.dev_questions
        command = (
            *("evaluate", "--config", str(HERE / "evaluate.yaml"), *self._data()),
            *("--questions", str(questions or self.dev_questions)),
            *(() if limit is None else ("--max_questions", str(limit))),
            *("--model_name_or_path", str(self.output / name), "--output_dir", str(folder)),
            *("--run_name", f"{name}{suffix}"),
        )
        return Step(f"evaluate-{name}{suffix}", command, folder / "evaluation.json", name)

    def _write_gold(self, seed: int) -> Path:
        """What the short trainings see."""
        a = self.arguments
        return self._write(f"gold-{seed}", self._draw_questions(seed, a.databases, a.per_database))

    def _draw_questions(self, seed: int, databases: int, per_database: int) -> list[Question]:
        """Some questions on each of some databases: their schemas are read a few times only."""
        by_database: dict[str, list[Question]] = {}
        for question in load_questions(self.train_questions):
            by_database.setdefault(question.db_id, []).append(question)
        usable = [
            db_id
            for db_id, questions in sorted(by_database.items())
            if len(questions) >= per_database
            and (self.arguments.spider / "database" / db_id).is_dir()
        ]
        draws = random.Random(seed)
        return [
            question
            for db_id in draws.sample(usable, databases)
            for question in draws.sample(by_database[db_id], per_database)
        ]

    def _write(self, name: str, questions: list[Question]) -> Path:
        """A questions file; rewritten with the same content when the chain continues."""
        rows = [
            {"db_id": q.db_id, "question": q.question, "gold_sql": q.gold_sql} for q in questions
        ]
        path: Path = self.output / "data" / f"{name}.jsonl"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        return path


def run_step(step: Step, output: Path) -> None:
    """Run a step, unless it is finished, and add up what its runs cost."""
    file = output / "costs" / f"{step.name}.json"
    if step.result.exists() and file.exists():
        return
    cost: dict[str, Any] = {"wall_s": 0.0, "cpu_s": 0.0, "peak_memory_bytes": 0}
    if file.exists():
        cost = json.loads(file.read_text(encoding="utf-8"))
    cost["command"] = f"sense-trl {shlex.join(step.command)}"
    print(f"\n{step.name}: {cost['command']}", flush=True)
    started = time.monotonic()
    process = subprocess.Popen([sys.executable, "-m", "sense_trl", *step.command])
    try:
        _, status, usage = os.wait4(process.pid, 0)
    except KeyboardInterrupt:
        # The command got the signal as well, and may be writing a checkpoint.
        _, status, usage = os.wait4(process.pid, 0)
    # `process` does not know that it was waited for.
    process.returncode = os.waitstatus_to_exitcode(status)
    unit = 1 if sys.platform == "darwin" else 1024
    cost["wall_s"] += time.monotonic() - started
    cost["cpu_s"] += usage.ru_utime + usage.ru_stime
    cost["peak_memory_bytes"] = max(cost["peak_memory_bytes"], usage.ru_maxrss * unit)
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(cost, indent=1), encoding="utf-8")
    if code := process.returncode:
        sys.exit(f"{step.name} ended with exit code {code}; the same command continues from here.")


def count_tokens(folder: Path) -> float:
    """Positions that a training computed: those of a step, on average, times its steps."""
    metrics = json.loads((folder / "metrics.json").read_text(encoding="utf-8"))
    history = metrics["log_history"]
    key = "prefix_sharing/tokens_computed"
    counts = [log[key] for log in history if key in log]
    return float(sum(counts) / len(counts) * history[-1]["step"])


def keep_result(step: Step, output: Path) -> None:
    """Write the small file that tables are made from, for an evaluation."""
    assert step.trained is not None
    questions = step.command[step.command.index("--questions") + 1]
    report = EvaluationReport.load(step.result)
    costs = {
        name: json.loads((output / "costs" / f"{name}.json").read_text(encoding="utf-8"))
        for name in (step.trained, step.name)
    }
    letters = {record.question_id: str(record.verdict)[0] for record in report.records}
    content = {
        "name": step.name,
        "costs": costs,
        "tokens_computed": count_tokens(output / step.trained),
        "summary": report.summary(),
        # Correct, wrong or undetermined for each question of the file; a dash if it was not asked.
        "verdicts": "".join(letters.get(q.question_id, "-") for q in load_questions(questions)),
    }
    path = output / "results" / f"{step.name}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content, indent=1), encoding="utf-8")


def make_parser() -> argparse.ArgumentParser:
    """The parser of the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--spider", type=Path, default=Path("spider"), help="Spider's folder")
    parser.add_argument("--output", type=Path, default=Path("runs/spider-smollm2"))
    parser.add_argument("--model", default="HuggingFaceTB/SmolLM2-135M-Instruct")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--train-questions", type=int, default=3000, help="of the baseline")
    parser.add_argument("--dev-questions", type=int, help="evaluate on so many; all if left out")
    parser.add_argument(
        "--short-dev-questions",
        type=int,
        default=517,
        help="evaluate the models of the short trainings on so many, the same for all of them",
    )
    parser.add_argument("--student-layers", type=int, default=24, help="of the teacher's 30")
    parser.add_argument(
        "--databases", type=int, default=20, help="that each seed draws for the short trainings"
    )
    parser.add_argument("--per-database", type=int, default=15, help="questions on each of these")
    parser.add_argument(
        "--grouped-databases", type=int, default=48, help="with 16 questions each, for `grouping`"
    )
    parser.add_argument("--sampled-questions", type=int, default=400, help="by the weak model")
    parser.add_argument("--sense-steps", type=int, default=40, help="of preference training")
    return parser


def main() -> None:
    """Run the parts that are asked for."""
    arguments = make_parser().parse_args()
    chain = Chain(arguments)
    for part in arguments.parts:
        for step in chain.get_steps(part):
            run_step(step, arguments.output)
            if step.trained is not None:
                keep_result(step, arguments.output)
        write_results(arguments.output)


if __name__ == "__main__":
    main()
