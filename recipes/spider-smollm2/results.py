"""RESULTS.md and results.svg from the files in `results/`, as reproduce.py does after every part.

python recipes/spider-smollm2/results.py recipes/spider-smollm2
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sense_trl.evaluation.metrics import PairedComparison, bootstrap_interval, compare_paired

# What a model is called, by the beginning of its name; what is compared with what.
METHODS = {
    "sft": "baseline: SFT",
    "anchor": "the SFT anchor of SENSE alone, from the baseline",
    "sense": "SENSE: cDPO with that anchor, from the baseline",
    "student-sft": "student, SFT",
    "student-fkd": "student, forward KL",
    "student-rkd": "student, reverse KL",
    "student-masking": "student, reverse KL on masked answers",
    "student-kid": "student, KID",
    "data-gold": "SFT on gold questions",
    "data-synthesised": "SFT on synthesised questions",
    "data-both": "SFT on both",
    "groups-of-16": "SFT in steps of one database",
    "groups-of-4": "SFT in steps of four databases",
}
COMPARED_WITH = {
    "anchor": ("sft",),
    "sense": ("sft", "anchor"),
    "student-fkd": ("student-sft",),
    "student-rkd": ("student-sft",),
    "student-masking": ("student-sft", "student-rkd"),
    "student-kid": ("student-sft", "student-rkd"),
    "data-synthesised": ("data-gold",),
    "data-both": ("data-gold",),
    "groups-of-4": ("groups-of-16",),
}
HARDNESS = ("easy", "medium", "hard", "extra")


@dataclass(frozen=True)
class Result:
    """One evaluated model, as reproduce.py keeps it."""

    name: str
    summary: dict[str, Any]
    costs: dict[str, dict[str, Any]]
    tokens: float
    verdicts: str

    @property
    def method(self) -> str:
        """Its name without the seed."""
        return re.sub(r"-\d+$", "", self.name)

    @property
    def seed(self) -> str:
        """At the end of its name; empty where there is one run only."""
        return self.name.removeprefix(self.method)

    @property
    def accuracy(self) -> float:
        """Share of the questions asked that it answers correctly."""
        return self.verdicts.count("c") / (len(self.verdicts) - self.verdicts.count("-"))

    def get_score(self, name: str) -> str:
        """A score in percent with its interval."""
        score = self.summary["scores"].get(name)
        if score is None:
            return ""
        low, high = score["interval_95"]
        return f"{100 * score['value']:.1f} ({100 * low:.1f} to {100 * high:.1f})"

    def get_training_cost(self, key: str) -> float:
        """Of the training alone."""
        return float(next(iter(self.costs.values()))[key])


def read_results(folder: Path) -> dict[str, Result]:
    """Results by name: evaluations under the model's name, suites as they are called."""
    results = {}
    for path in sorted(folder.glob("*.json")):
        data = json.loads(path.read_text(encoding="utf-8"))
        name = data["name"].removeprefix("evaluate-")
        results[name] = Result(
            name, data["summary"], data["costs"], data["tokens_computed"], data["verdicts"]
        )
    return results


def find_common(*groups: Sequence[Result]) -> list[int]:
    """The questions, by their place in the file, that all runs of all groups were asked."""
    columns = zip(*(run.verdicts for runs in groups for run in runs), strict=True)
    return [place for place, letters in enumerate(columns) if "-" not in letters]


def get_shares(runs: Sequence[Result], places: Sequence[int]) -> list[float]:
    """Per question the share of the runs that answer it correctly."""
    return [sum(run.verdicts[place] == "c" for run in runs) / len(runs) for place in places]


def compare(before: Result, after: Result) -> PairedComparison:
    """McNemar's test over the questions that both were asked."""
    places = find_common([before], [after])
    first, second = ([run.verdicts[place] == "c" for place in places] for run in (before, after))
    return compare_paired(first, second)


def format_mean(values: Sequence[float], *, sign: str = "") -> str:
    """A mean over questions in percent, with its bootstrap interval."""
    interval = bootstrap_interval(values)
    mean = 100 * sum(values) / len(values)
    return f"{mean:{sign}.1f} ({100 * interval.low:{sign}.1f} to {100 * interval.high:{sign}.1f})"


def format_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def group_by_method(results: dict[str, Result]) -> dict[str, list[Result]]:
    """The runs on Spider's dev questions by method, in the order of `METHODS`."""
    return {
        method: runs
        for method in METHODS
        if (runs := [result for result in results.values() if result.method == method])
    }


def match_runs(runs: Sequence[Result], other: Sequence[Result]) -> list[tuple[Result, Result]]:
    """Each run with the one of the same seed, which saw the same data, or with one without seed."""
    by_seed = {run.seed: run for run in other}
    found = [(run, by_seed.get(run.seed) or by_seed.get("")) for run in runs]
    return [(run, base) for run, base in found if base is not None]


def describe_methods(groups: dict[str, list[Result]]) -> str:
    """A row per method: its mean over seeds, and what its training cost."""
    rows = []
    for method, runs in groups.items():
        seconds = [run.get_training_cost("cpu_s") for run in runs]
        rows.append(
            [
                METHODS[method],
                str(len(runs)),
                ", ".join(f"{100 * run.accuracy:.1f}" for run in runs),
                format_mean(get_shares(runs, find_common(runs))),
                f"{sum(seconds) / len(seconds) / 60:.1f}",
                f"{sum(run.tokens for run in runs) / len(runs) / 1000:.0f}",
            ]
        )
    header = (
        *("model", "runs", "EX of each, %", "mean EX, % (95 %)"),
        *("training, CPU min", "thousand tokens"),
    )
    return format_table(header, rows)


def describe_differences(groups: dict[str, list[Result]]) -> str:
    """A row per comparison, paired by seed and by question."""
    rows = []
    for method, runs in groups.items():
        for name in COMPARED_WITH.get(method, ()):
            pairs = match_runs(runs, groups.get(name, []))
            if not pairs:
                continue
            own, base = ([pair[side] for pair in pairs] for side in (0, 1))
            common = find_common(own, base)
            columns = zip(get_shares(own, common), get_shares(base, common), strict=True)
            tests = [compare(before, after) for after, before in pairs]
            sizes = [len(find_common([after], [before])) for after, before in pairs]
            points = [100 * (t.gained - t.lost) / n for t, n in zip(tests, sizes, strict=True)]
            rows.append(
                [
                    METHODS[method],
                    METHODS[name],
                    ", ".join(f"{point:+.1f}" for point in points),
                    format_mean([after - before for after, before in columns], sign="+"),
                    "; ".join(f"{t.gained}/{t.lost}, p {t.p_value:.2g}" for t in tests),
                ]
            )
    header = (
        *("model", "against", "difference in EX of each run, points"),
        *("mean (95 % over questions)", "gained/lost, McNemar"),
    )
    return format_table(header, rows)


def describe_hardness(groups: dict[str, list[Result]]) -> str:
    """EX by Spider's hardness, over all runs of a method."""
    rows = []
    for method, runs in groups.items():
        cells = []
        for level in HARDNESS:
            counts = [run.summary["by_hardness"].get(level, [0, 0]) for run in runs]
            correct, total = (sum(column) for column in zip(*counts, strict=True))
            cells.append(f"{100 * correct / total:.1f}" if total else "")
        undetermined = sum(run.summary["scores"]["undetermined"]["value"] for run in runs)
        invalid = [1 - run.summary["scores"]["validity"]["value"] for run in runs]
        rows.append(
            [
                METHODS[method],
                *cells,
                f"{100 * sum(invalid) / len(invalid):.0f}",
                f"{100 * undetermined / len(runs):.1f}",
            ]
        )
    header = ("model", *HARDNESS, "does not execute, %", "undetermined, %")
    return format_table(header, rows)


def describe_runs(results: dict[str, Result]) -> str:
    """A row per evaluation."""
    rows = []
    for result in results.values():
        evaluation = result.costs.get(f"evaluate-{result.name}") or result.costs[result.name]
        rows.append(
            [
                f"[{result.name}](results/{get_file(result)})",
                str(result.summary["num_questions"]),
                *(result.get_score(name) for name in ("strict", "spider", "suite", "exact_match")),
                f"{result.get_training_cost('wall_s') / 60:.1f}",
                f"{result.get_training_cost('cpu_s') / 60:.1f}",
                f"{result.get_training_cost('peak_memory_bytes') / 2**30:.1f}",
                f"{evaluation['wall_s'] / 60:.1f}",
            ]
        )
    header = (
        *("run", "questions", "EX strict, %", "EX Spider, %", "suite, %", "exact match, %"),
        *("training, min", "CPU min", "peak GiB", "evaluation, min"),
    )
    return format_table(header, rows)


def get_file(result: Result) -> str:
    """Where reproduce.py keeps it."""
    return (
        f"{result.name}.json"
        if result.name.startswith("suite-")
        else f"evaluate-{result.name}.json"
    )


def plot(groups: dict[str, list[Result]], path: Path) -> bool:
    """EX against the cost of training, a point per run; False without matplotlib."""
    try:
        import matplotlib  # type: ignore[import-not-found,unused-ignore]
    except ImportError:
        return False
    matplotlib.use("svg")
    matplotlib.rcParams["svg.hashsalt"] = "results"
    from matplotlib import pyplot

    figure, (left, right) = pyplot.subplots(1, 2, sharey=True, figsize=(11, 5))
    for method, runs in groups.items():
        accuracies = [100 * run.accuracy for run in runs]
        minutes = [run.get_training_cost("cpu_s") / 60 for run in runs]
        left.scatter(minutes, accuracies, label=METHODS[method])
        right.scatter([run.tokens / 1000 for run in runs], accuracies)
    left.set(xlabel="training, CPU minutes", ylabel="execution accuracy (strict), %")
    left.set_ylim(bottom=0)
    left.legend(fontsize="small")
    right.set(xlabel="thousand tokens that the trained model computed with gradient")
    figure.tight_layout()
    figure.savefig(path, metadata={"Date": None})
    pyplot.close(figure)
    return True


def write_results(folder: Path) -> None:
    """Write RESULTS.md and, where matplotlib is installed, results.svg beside `results/`."""
    results = read_results(folder / "results")
    if not results:
        return
    groups = group_by_method(results)
    has_plot = plot(groups, folder / "results.svg")
    parts = [
        "# Results on Spider's development questions",
        "Written by `results.py` from the files in `results/`. EX is strict execution accuracy: "
        "an undetermined answer is not correct. Means are over the runs of a method, with a "
        "bootstrap interval over questions; differences are paired by seed, as runs with one seed "
        "saw the same data, and by question. The intervals hold for these seeds: how much others "
        "would differ, the columns of each run show.",
        describe_methods(groups),
        "## Differences",
        describe_differences(groups),
        *(["![EX against the cost of training](results.svg)"] if has_plot else []),
        "## By hardness (EX, %)",
        describe_hardness(groups),
        "## Every run",
        describe_runs(results),
    ]
    (folder / "RESULTS.md").write_text("\n\n".join(parts) + "\n", encoding="utf-8")


if __name__ == "__main__":
    write_results(Path(sys.argv[1]))
