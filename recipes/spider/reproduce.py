"""Arms of a recipe on Spider, by one command that can be stopped and continued.

    python recipes/spider/reproduce.py --recipe recipes/spider-smollm2 --output runs/spider-smollm2

A recipe's arms.toml says what an arm is made of (see arms.py) and which arms make a part; its YAML
files say how each stage runs. Every step is a command of `sense-trl` that is printed before it
runs. What is on the command line changes the plan:

    --set train databases=56                      a table, for this call
    --define sft-slow sft learning_rate=2e-5      another table, which is like one that there is
    --arms baseline sft-slow --on selection       these arms and evaluations instead of parts

A table that is changed by `--set` needs an output folder of its own, as nothing that is there
already is made again; give a variant a name with `--define`.

`results/` in the output folder gets one small JSON file per evaluated model, with the commands that
made it, what they cost and each question's verdict; RESULTS.md and results.svg are written from
these files as they come.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from arms import ROUNDS, Chain, Plan, Source, Step
from results import HARDNESS, write_results

from sense_trl.evaluation.evaluate import EvaluationReport
from sense_trl.pairs import CandidateFile
from sense_trl.questions import load_questions
from sense_trl.verification.verifier import Verdict


def run_step(step: Step, output: Path, environment: dict[str, str] | None = None) -> None:
    """Run a step, unless it is finished, and add up what its runs cost."""
    file = output / "costs" / f"{step.name}.json"
    cost: dict[str, Any] = {"wall_s": 0.0, "cpu_s": 0.0, "peak_memory_bytes": 0}
    if file.exists():
        cost = json.loads(file.read_text(encoding="utf-8"))
        if step.result.exists() and cost.get("finished", True):
            return
    if step.takes is not None:
        take_predictions(step.takes, step.result.parent)
    cost["command"] = f"sense-trl {shlex.join(step.command)}"
    print(f"\n{step.name}: {cost['command']}", flush=True)
    started = time.monotonic()
    process = subprocess.Popen([sys.executable, "-m", "sense_trl", *step.command], env=environment)
    is_stopping, ended = False, None
    # Also behind a signal: the command may be writing a checkpoint, and must not be left behind.
    while ended is None:
        try:
            ended = os.wait4(process.pid, 0)
        except (KeyboardInterrupt, SystemExit) as stop:
            # A terminal sends its first signal to the command as well; `kill` does not.
            if is_stopping or isinstance(stop, SystemExit):
                process.send_signal(signal.SIGINT)
            is_stopping = True
    _, status, usage = ended
    # `process` does not know that it was waited for.
    process.returncode = os.waitstatus_to_exitcode(status)
    # Not every command writes its result last.
    cost["finished"] = process.returncode == 0
    unit = 1 if sys.platform == "darwin" else 1024
    cost["wall_s"] += time.monotonic() - started
    cost["cpu_s"] += usage.ru_utime + usage.ru_stime
    cost["peak_memory_bytes"] = max(cost["peak_memory_bytes"], usage.ru_maxrss * unit)
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(cost, indent=1), encoding="utf-8")
    if code := process.returncode:
        sys.exit(f"{step.name} ended with exit code {code}; the same command continues from here.")


def take_predictions(source: Path, target: Path) -> None:
    """Begin an evaluation with the predictions of another one, under the settings they have.

    The stage refuses them where its own settings differ, and predicts where there are none.
    """
    if target.exists() or not (source / "predictions.jsonl").exists():
        return
    target.mkdir(parents=True)
    for file in ("settings.json", "predictions.jsonl"):
        shutil.copyfile(source / file, target / file)


def count_tokens(folder: Path) -> float:
    """Positions that a training, or each of several rounds, computed; 0 where there was none.

    Those of a micro-batch, on average, times the micro-batches of all steps.
    """
    total = 0.0
    for file in (folder / "metrics.json", *folder.glob("round-*/model/metrics.json")):
        if file.exists():
            history = json.loads(file.read_text(encoding="utf-8"))["log_history"]
            key = "prefix_sharing/tokens_computed"
            counts = [log[key] for log in history if key in log]
            marker = file.with_name("settings.json")
            known = json.loads(marker.read_text(encoding="utf-8")) if marker.exists() else {}
            num_parts = known.get("settings", {}).get("gradient_accumulation_steps", 1)
            total += sum(counts) / len(counts) * history[-1]["step"] * num_parts
    return total


def get_rewards(folder: Path) -> dict[str, list[float]]:
    """How often a policy that learns online was right while it learned, from 0 to 1.

    Returns:
        `right`: the share of right answers, at each log of a training or in each round; of a
        training also `reward`, its mean.
    """
    if (rounds := folder / ROUNDS).exists():
        found = [entry["verdicts"] for entry in json.loads(rounds.read_text(encoding="utf-8"))]
        return {"right": [v.get("correct", 0) / max(1, sum(v.values())) for v in found]}
    if not (metrics := folder / "metrics.json").exists():
        return {}
    history = json.loads(metrics.read_text(encoding="utf-8"))["log_history"]
    names = {"right": "rewards/sql_execution_reward/mean", "reward": "reward"}
    curves = {name: [log[key] for log in history if key in log] for name, key in names.items()}
    return {name: values for name, values in curves.items() if values}


def keep_result(step: Step, output: Path, table: dict[str, Any]) -> None:
    """Write the small file that tables are made from, for an evaluation.

    Args:
        step: the evaluation.
        output: the folder of the chain.
        table: of the arm.
    """
    assert step.evaluated is not None
    questions = step.command[step.command.index("--questions") + 1]
    report = EvaluationReport.load(step.result)
    names_asked = [question.question_id for question in load_questions(questions)]
    # The training first, as what it reads was made for others, too.
    names = (step.evaluated, step.name, *step.needs)
    costs = {
        name: json.loads(file.read_text(encoding="utf-8"))
        for name in dict.fromkeys(names)
        if (file := output / "costs" / f"{name}.json").exists()
    }
    trained = output / step.evaluated
    rewards = get_rewards(trained)
    content = {
        "name": step.name,
        "arm": step.arm,
        "evaluated": step.evaluated,
        "evaluation": step.evaluation,
        "label": table.get("label", step.arm),
        "against": table.get("against", []),
        "costs": costs,
        "tokens_computed": count_tokens(trained),
        "tokens_generated": count_generated(step),
        **({"rewards": rewards} if rewards else {}),
        "summary": report.summary(),
        **describe_records(report, names_asked),
    }
    first = step.result.with_name("evaluation-first.json")
    if first.exists():
        described = describe_records(EvaluationReport.load(first), names_asked)
        content["first_verdicts"] = described["verdicts"]
    path = output / "results" / f"{step.name}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content, indent=1), encoding="utf-8")


def describe_records(report: EvaluationReport, question_ids: Sequence[str]) -> dict[str, Any]:
    """What is kept of each question of a file, as short text.

    Returns:
        `verdicts`: a letter each: correct, wrong, undetermined, or a dash if it was not asked.
        `spider_verdicts`: the same under Spider's comparison.
        `hardness`: a letter each: easy, medium, hard, extra, or a dash.
        `error_classes`: by class, the places of the questions in the file.
        `samples`: where several answers were sampled, how many of each question's are correct,
        `num_samples`, and, where they chose the prediction, `votes`: how many have its result.
    """
    records = {record.question_id: record for record in report.records}
    found = [records.get(question_id) for question_id in question_ids]
    classes: dict[str, list[str]] = {}
    for place, record in enumerate(found):
        for name in record.error_classes if record else ():
            classes.setdefault(name, []).append(str(place))
    content: dict[str, Any] = {
        "verdicts": "".join(str(r.verdict)[0] if r else "-" for r in found),
        "spider_verdicts": "".join(str(r.spider or "-")[0] if r else "-" for r in found),
        "hardness": "".join(HARDNESS.get(r.hardness, "-") if r else "-" for r in found),
        "error_classes": {name: " ".join(places) for name, places in sorted(classes.items())},
    }
    if number := len(report.records[0].sample_verdicts):
        counts = (str(r.sample_verdicts.count(Verdict.CORRECT)) if r else "-" for r in found)
        content |= {"samples": " ".join(counts), "num_samples": number}
        # Elsewhere the prediction is the first sample.
        if all(record.num_votes is not None for record in report.records):
            votes = (str(r.num_votes) if r else "-" for r in found)
            content["votes"] = " ".join(votes)
    return content


def count_generated(step: Step) -> int:
    """Tokens that an evaluated model wrote; none where its earlier predictions are evaluated."""
    folder = step.result.parent
    files = [*folder.glob("predictions.jsonl"), *folder.glob("revisions-*.jsonl")]
    return sum(candidate.num_tokens for file in files for candidate in CandidateFile(file))


def make_parser() -> argparse.ArgumentParser:
    """The parser of the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--recipe", type=Path, required=True, help="folder with an arms.toml")
    parser.add_argument("--spider", type=Path, default=Path("spider"), help="Spider's folder")
    parser.add_argument(
        "--questions", type=Path, help="a file of your own, with splits, instead of Spider's folder"
    )
    parser.add_argument("--database", type=Path, help="its database, or a folder of them")
    parser.add_argument("--output", type=Path, help="runs/ and the recipe's name, if left out")
    parser.add_argument(
        "--model",
        nargs="+",
        default=[],
        metavar="[NAME=]PATH",
        help="another hub id or folder of the first model of arms.toml, or of that called NAME",
    )
    parser.add_argument("--parts", nargs="+", help="of arms.toml, in this order; all if left out")
    parser.add_argument("--arms", nargs="+", help="these, instead of parts")
    parser.add_argument("--on", nargs="+", default=[], help="evaluations, instead of the arms' own")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument(
        "--set", nargs="+", action="append", default=[], metavar="NAME KEY=VALUE", dest="changes"
    )
    parser.add_argument(
        "--define", nargs="+", action="append", default=[], metavar="NAME LIKE KEY=VALUE"
    )
    parser.add_argument("--threads", type=int, help="of each command; as it likes, if left out")
    parser.add_argument(
        "--bf16",
        action="store_true",
        help="train and sample in bfloat16: on a GPU, and on a CPU with AMX or AVX512-BF16",
    )
    parser.add_argument("--list", action="store_true", help="print what arms.toml names, and end")
    return parser


def load_plan(arguments: argparse.Namespace) -> Plan:
    """The plan of the recipe with what the command line changes."""
    plan = Plan(arguments.recipe / "arms.toml")
    for name, *changes in arguments.changes:
        plan.change(name, changes)
    for name, *rest in arguments.define:
        if not rest:
            sys.exit(f"`--define` {name!r} names nothing that it is like.")
        plan.define(name, rest[0], rest[1:])
    return plan


def make_chain(arguments: argparse.Namespace, plan: Plan) -> Chain:
    """The chain of the recipe, with the models that the command line names."""
    known = [name for name, table in plan.tables.items() if table["kind"] == "model"]
    models = {}
    for text in arguments.model:
        name, equals, path = text.partition("=")
        is_named = bool(equals) and name in known
        models[name if is_named else known[0]] = path if is_named else text
    output = arguments.output or Path("runs") / arguments.recipe.resolve().name
    source = get_source(arguments)
    return Chain(
        plan,
        recipe=arguments.recipe,
        source=source,
        output=output,
        models=models,
        bf16=arguments.bf16,
    )


def get_source(arguments: argparse.Namespace) -> Source:
    """Spider's folder, or databases and questions of the user's own."""
    if arguments.questions is None and arguments.database is None:
        return Source.of_spider(arguments.spider)
    for name in ("questions", "database"):
        path = getattr(arguments, name)
        if path is None or not path.exists():
            sys.exit(f"`--{name}` is {path and str(path)!r}; expected a path that is there.")
    return Source(arguments.database, arguments.questions)


def get_steps(arguments: argparse.Namespace, chain: Chain) -> Iterator[Step]:
    """All steps that the command line asks for; some come several times."""
    if arguments.arms:
        yield from chain.get_steps(arguments.arms, arguments.seeds, arguments.on)
        return
    for part in arguments.parts or chain.plan.parts:
        yield from chain.get_part(part, arguments.seeds)


def list_plan(plan: Plan) -> str:
    """The tables with their kinds, and the parts."""
    lines = [f"{name}: {as_line(table)}" for name, table in plan.tables.items()]
    return "\n".join([*lines, *(f"part {name}: {group}" for name, group in plan.parts.items())])


def as_line(table: dict[str, Any]) -> str:
    """A table in one line."""
    return " ".join([table["kind"], *(f"{k}={v}" for k, v in table.items() if k != "kind")])


def handle_signals() -> None:
    """`kill` ends this process as control-C does, with the command that it runs."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("terminated"))
    # What a shell starts in the background ignores control-C, and so would the commands, which are
    # stopped by it.
    signal.signal(signal.SIGINT, signal.default_int_handler)


def main(argv: Sequence[str] | None = None) -> None:
    """Run what is asked for."""
    arguments = make_parser().parse_args(argv)
    plan = load_plan(arguments)
    if arguments.list:
        print(list_plan(plan))
        return
    chain = make_chain(arguments, plan)
    environment = dict(os.environ)
    if arguments.threads is not None:
        environment["OMP_NUM_THREADS"] = str(arguments.threads)
    handle_signals()
    for step in get_steps(arguments, chain):
        run_step(step, chain.output, environment)
        if step.arm is not None:
            keep_result(step, chain.output, plan[step.arm])
            write_results(chain.output, plan.tables)


if __name__ == "__main__":
    main()
