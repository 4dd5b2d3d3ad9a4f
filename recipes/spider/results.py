"""RESULTS.md and results.svg from the files in `results/`, as reproduce.py does after every run.

python recipes/spider/results.py recipes/spider-smollm2

What an arm is called, and what it is compared with, stands in the arms.toml of the folder (or of
the one named second).
"""

from __future__ import annotations

import dataclasses
import functools
import json
import re
import sys
import tomllib
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from sense_trl.evaluation.metrics import PairedComparison, bootstrap_interval, compare_paired

# With the letter that stands for it in the files.
HARDNESS = {"easy": "e", "medium": "m", "hard": "h", "extra": "x"}
# Error classes in a table, the most frequent ones.
MAX_CLASSES = 8


@dataclass(frozen=True)
class Result:
    """One evaluated model, as reproduce.py keeps it.

    Attributes:
        name: of the model with its seed, and the suffix of the evaluation.
        file: what it was read from.
        arm: the model's name without the seed.
        seed: the rest of the model's name; empty where there is one run only.
        evaluation: whose tables it stands in; None for none.
        label: what the arm is called.
        against: what it is compared with.
        summary: the numbers of the evaluation.
        costs: by step; that of the training first, if the model was trained.
        is_trained: whether it was.
        tokens: positions that the training computed with gradient.
        verdicts: a letter for each question.
        spider_verdicts: the same under Spider's comparison; empty in files of an earlier form.
        first_verdicts: the same of answers before a second turn; empty where there was none.
        samples: how many sampled answers to each question are correct, where several were sampled.
        num_samples: of each question; 0 if there is its prediction alone.
        votes: of these samples, how many have the result of the prediction, which they chose;
            empty in files of an earlier form, where the first sample is the prediction.
        hardness: a letter for each question; empty in files of an earlier form.
        error_classes: by class, the places of the questions whose prediction has it; None in files
            of an earlier form.
    """

    name: str
    file: str
    arm: str
    seed: str
    evaluation: str | None
    label: str
    against: tuple[str, ...]
    summary: dict[str, Any]
    costs: dict[str, dict[str, Any]]
    is_trained: bool
    tokens: float
    verdicts: str
    samples: tuple[str, ...]
    num_samples: int
    votes: tuple[str, ...]
    hardness: str
    error_classes: dict[str, frozenset[int]] | None
    first_verdicts: str = ""
    spider_verdicts: str = ""

    @functools.cached_property
    def values(self) -> list[float | None]:
        """Per question of the file whether it is answered correctly, or the share of samples."""
        if self.num_samples:
            return [None if n == "-" else int(n) / self.num_samples for n in self.samples]
        return [None if letter == "-" else float(letter == "c") for letter in self.verdicts]

    @property
    def accuracy(self) -> float:
        """Share of the questions asked that it answers correctly; the mean of its samples."""
        known = [value for value in self.values if value is not None]
        return sum(known) / len(known)

    def count_correct(self, level: str) -> tuple[float, int]:
        """Of the questions of a hardness those answered correctly, and all."""
        if not self.num_samples:
            correct, total = self.summary["by_hardness"].get(level, [0, 0])
            return correct, total
        asked = zip(self.values, self.hardness, strict=True)
        values = [v for v, letter in asked if v is not None and letter == HARDNESS[level]]
        return sum(values), len(values)

    def get_score(self, name: str) -> str:
        """A score in percent with its interval."""
        score = self.summary["scores"].get(name)
        if score is None:
            return ""
        low, high = score["interval_95"]
        return f"{100 * score['value']:.1f} ({100 * low:.1f} to {100 * high:.1f})"

    def get_training_cost(self, key: str) -> float:
        """Of the training alone."""
        return float(next(iter(self.costs.values()))[key]) if self.is_trained else 0.0

    def get_whole_cost(self, key: str) -> float:
        """Of all that the model needed, but for the evaluation."""
        return sum(float(cost[key]) for name, cost in self.costs.items() if name != self.own_step)

    @property
    def own_step(self) -> str:
        """The evaluation."""
        return self.file.removesuffix(".json")


def read_results(folder: Path, tables: Mapping[str, Mapping[str, Any]]) -> dict[str, Result]:
    """Results by name: evaluations under the model's name, suites as they are called.

    Args:
        folder: of the files.
        tables: of arms.toml.
    """
    main = next((name for name, table in tables.items() if table["kind"] == "evaluation"), None)
    results = {}
    for path in sorted(folder.glob("*.json")):
        data = json.loads(path.read_text(encoding="utf-8"))
        name = data["name"].removeprefix("evaluate-")
        # Files of an earlier form name neither arm nor evaluation.
        arm = data.get("arm") or re.sub(r"-\d+$", "", name)
        table = tables.get(arm, {})
        evaluation = data.get("evaluation", main if table else None)
        results[name] = Result(
            name=name,
            file=path.name,
            arm=arm,
            seed=data.get("evaluated", name).removeprefix(arm),
            evaluation=tables.get(evaluation, {}).get("joins", evaluation),
            label=data.get("label") or table.get("label", arm),
            # What an arm is compared with may be found out after it has run.
            against=tuple(table.get("against") or data.get("against", ())),
            summary=data["summary"],
            costs=data["costs"],
            is_trained=data["tokens_computed"] > 0.0,
            tokens=data["tokens_computed"],
            verdicts=data["verdicts"],
            samples=tuple(data.get("samples", "").split()),
            num_samples=data.get("num_samples", 0),
            votes=tuple(data.get("votes", "").split()),
            hardness=data.get("hardness", ""),
            error_classes={
                name: frozenset(map(int, places.split()))
                for name, places in data["error_classes"].items()
            }
            if "error_classes" in data
            else None,
            first_verdicts=data.get("first_verdicts", ""),
            spider_verdicts=data.get("spider_verdicts", ""),
        )
    return results


def find_common(*groups: Sequence[Result]) -> list[int]:
    """The questions, by their place in the file, that all runs of all groups were asked."""
    columns = zip(*(run.values for runs in groups for run in runs), strict=True)
    return [place for place, values in enumerate(columns) if None not in values]


def get_shares(runs: Sequence[Result], places: Sequence[int]) -> list[float]:
    """Per question the share of the runs that answer it correctly."""
    columns = [[run.values[place] or 0.0 for run in runs] for place in places]
    return [sum(column) / len(column) for column in columns]


def compare(before: Result, after: Result) -> PairedComparison:
    """McNemar's test over the questions that both were asked."""
    places = find_common([before], [after])
    first, second = ([run.verdicts[place] == "c" for place in places] for run in (before, after))
    return compare_paired(first, second)


def get_p_value(differences: Sequence[float]) -> float:
    """Two-sided: how often random signs of the questions' differences give as large a mean."""
    from scipy.stats import permutation_test

    found = permutation_test(
        (np.asarray(differences),),
        lambda values, axis: values.mean(axis=axis),
        permutation_type="samples",
        vectorized=True,
        batch=1000,
        rng=0,
    )
    return float(found.pvalue)


def format_mean(values: Sequence[float], *, sign: str = "") -> str:
    """A mean over questions in percent, with its bootstrap interval."""
    interval = bootstrap_interval(values)
    mean = 100 * sum(values) / len(values)
    return f"{mean:{sign}.1f} ({100 * interval.low:{sign}.1f} to {100 * interval.high:{sign}.1f})"


def format_difference(own: Sequence[Result], base: Sequence[Result], places: Sequence[int]) -> str:
    """The mean difference of two groups of runs over these questions, and how certain it is."""
    shares = (get_shares(runs, places) for runs in (own, base))
    differences = [after - before for after, before in zip(*shares, strict=True)]
    return f"{format_mean(differences, sign='+')}, p {get_p_value(differences):.2g}"


def format_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def group_by_method(
    results: dict[str, Result], tables: Mapping[str, Mapping[str, Any]], evaluation: str
) -> dict[str, list[Result]]:
    """The runs of an evaluation by arm, in the order of arms.toml, and what is not there behind."""
    found = [result for result in results.values() if result.evaluation == evaluation]
    arms = dict.fromkeys([*tables, *(result.arm for result in found)])
    groups = {arm: [result for result in found if result.arm == arm] for arm in arms}
    return {arm: runs for arm, runs in groups.items() if runs}


def match_runs(runs: Sequence[Result], other: Sequence[Result]) -> list[tuple[Result, Result]]:
    """Each run with the one of the same seed, which saw the same data, or with one without seed."""
    by_seed = {run.seed: run for run in other}
    found = [(run, by_seed.get(run.seed) or by_seed.get("")) for run in runs]
    return [(run, base) for run, base in found if base is not None]


def describe_methods(groups: dict[str, list[Result]]) -> str:
    """A row per method: its mean over seeds, and what its training cost."""
    rows = []
    for runs in groups.values():
        seconds = [run.get_training_cost("cpu_s") for run in runs]
        rows.append(
            [
                runs[0].label,
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
    for own, base, common in find_comparisons(groups):
        pairs = list(zip(own, base, strict=True))
        points = [100 * get_difference(*pair) for pair in pairs]
        rows.append(
            [
                own[0].label,
                base[0].label,
                ", ".join(f"{point:+.1f}" for point in points),
                format_difference(own, base, common),
                "; ".join(describe_test(*pair) for pair in pairs),
                describe_spider_difference(own, base),
            ]
        )
    header = (
        *("model", "against", "difference in EX of each run, points"),
        *("mean (95 % over questions)", "gained/lost, McNemar", "mean under Spider's comparison"),
    )
    return format_table(header, rows)


def describe_spider_difference(own: Sequence[Result], base: Sequence[Result]) -> str:
    """The mean difference under Spider's comparison; nothing for samples and older files."""
    sides = [
        [dataclasses.replace(run, verdicts=run.spider_verdicts) for run in runs]
        for runs in (own, base)
    ]
    if any(run.num_samples or not run.verdicts for runs in sides for run in runs):
        return ""
    return format_difference(*sides, find_common(*sides))


def describe_test(after: Result, before: Result) -> str:
    """McNemar's test; nothing for samples, which are no one answer."""
    if after.num_samples:
        return ""
    test = compare(before, after)
    return f"{test.gained}/{test.lost}, p {test.p_value:.2g}"


def describe_revisions(groups: dict[str, list[Result]]) -> str:
    """A row per method that was asked again: its first answers, and those that stand."""
    rows = []
    for runs in groups.values():
        if not all(run.first_verdicts for run in runs):
            continue
        firsts = [dataclasses.replace(run, verdicts=run.first_verdicts) for run in runs]
        common = find_common(firsts, runs)
        tests = [compare(*pair) for pair in zip(firsts, runs, strict=True)]
        rows.append(
            [
                runs[0].label,
                format_mean(get_shares(firsts, common)),
                format_mean(get_shares(runs, common)),
                format_difference(runs, firsts, common),
                "; ".join(f"{test.gained}/{test.lost}" for test in tests),
            ]
        )
    header = (
        *("model", "first answers, EX % (95 %)", "after a second turn"),
        *("difference (95 % over questions)", "mended/broken in each run"),
    )
    return format_table(header, rows) if rows else ""


def describe_votes(groups: dict[str, list[Result]]) -> str:
    """A row per method that was sampled: the mean, and the answer that most samples agree on."""
    rows = []
    for runs in groups.values():
        if not all(run.votes for run in runs):
            continue
        voted = [dataclasses.replace(run, num_samples=0) for run in runs]
        common = find_common(runs)
        united = [
            after.values[place] or 0.0
            for run, after in zip(runs, voted, strict=True)
            for place in common
            if run.votes[place] == str(run.num_samples)
        ]
        rows.append(
            [
                runs[0].label,
                format_mean(get_shares(runs, common)),
                format_mean(get_shares(voted, common)),
                format_difference(voted, runs, common),
                f"{100 * len(united) / (len(runs) * len(common)):.0f}",
                f"{100 * sum(united) / len(united):.1f}" if united else "",
            ]
        )
    header = (
        *("model", "mean of the samples, EX % (95 %)", "their vote"),
        *("difference (95 % over questions)", "all agree, % of questions", "EX of these, %"),
    )
    return format_table(header, rows) if rows else ""


def get_difference(after: Result, before: Result) -> float:
    """Of two runs, over the questions that both were asked, in [-1, 1]."""
    common = find_common([after], [before])
    columns = zip(get_shares([after], common), get_shares([before], common), strict=True)
    return sum(own - base for own, base in columns) / len(common)


def find_comparisons(
    groups: dict[str, list[Result]],
) -> Iterator[tuple[list[Result], list[Result], list[int]]]:
    """Runs, those they are compared with, and the questions that all were asked."""
    for runs in groups.values():
        for name in runs[0].against:
            if pairs := match_runs(runs, groups.get(name, [])):
                own, base = ([pair[side] for pair in pairs] for side in (0, 1))
                yield own, base, find_common(own, base)


def describe_hardness_differences(groups: dict[str, list[Result]]) -> str:
    """A row per comparison with the difference at each of Spider's levels of hardness."""
    rows = []
    for own, base, common in find_comparisons(groups):
        cells = []
        for letter in HARDNESS.values():
            places = [place for place in common if own[0].hardness[place : place + 1] == letter]
            columns = zip(get_shares(own, places), get_shares(base, places), strict=True)
            differences = [after - before for after, before in columns]
            cells.append(format_mean(differences, sign="+") if differences else "")
        if any(cells):
            rows.append([own[0].label, base[0].label, *cells])
    return format_table(("model", "against", *HARDNESS), rows) if rows else ""


def describe_class_differences(groups: dict[str, list[Result]]) -> str:
    """A row per comparison with how much more often a prediction has an error of a class.

    Files of an earlier form, which name none, are left out.
    """
    groups = {
        name: known
        for name, runs in groups.items()
        if (known := [run for run in runs if run.error_classes is not None])
    }
    runs = [run for group in groups.values() for run in group]
    classes = [run.error_classes or {} for run in runs]
    counts = Counter(n for found in classes for n, places in found.items() for _ in places)
    names = [name for name, _ in counts.most_common(MAX_CLASSES)]
    rows = []
    for own, base, common in find_comparisons(groups):
        cells = []
        for name in names:
            after, before = (
                [
                    sum(p in (r.error_classes or {}).get(name, ()) for r in side) / len(side)
                    for p in common
                ]
                for side in (own, base)
            )
            differences = [a - b for a, b in zip(after, before, strict=True)]
            cells.append(format_mean(differences, sign="+"))
        rows.append([own[0].label, base[0].label, *cells])
    header = ("model", "against", *(name.replace("_", " ") for name in names))
    return format_table(header, rows) if rows and names else ""


def describe_hardness(groups: dict[str, list[Result]]) -> str:
    """EX by Spider's hardness, over all runs of a method."""
    rows = []
    for runs in groups.values():
        cells = []
        for level in HARDNESS:
            counts = [run.count_correct(level) for run in runs]
            correct, total = (sum(column) for column in zip(*counts, strict=True))
            cells.append(f"{100 * correct / total:.1f}" if total else "")
        undetermined = sum(run.summary["scores"]["undetermined"]["value"] for run in runs)
        invalid = [1 - run.summary["scores"]["validity"]["value"] for run in runs]
        rows.append(
            [
                runs[0].label,
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
        evaluation = result.costs[result.own_step]
        rows.append(
            [
                f"[{result.name}](results/{result.file})",
                str(result.summary["num_questions"]),
                *(result.get_score(name) for name in ("strict", "spider", "suite", "exact_match")),
                f"{result.get_training_cost('wall_s') / 60:.1f}",
                f"{result.get_training_cost('cpu_s') / 60:.1f}",
                f"{result.get_whole_cost('cpu_s') / 60:.1f}",
                f"{result.get_training_cost('peak_memory_bytes') / 2**30:.1f}",
                f"{evaluation['wall_s'] / 60:.1f}",
            ]
        )
    header = (
        *("run", "questions", "EX strict, %", "EX Spider, %", "suite, %", "exact match, %"),
        *("training, min", "CPU min", "with all it needs", "peak GiB", "evaluation, min"),
    )
    return format_table(header, rows)


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
    for runs in groups.values():
        accuracies = [100 * run.accuracy for run in runs]
        minutes = [run.get_training_cost("cpu_s") / 60 for run in runs]
        left.scatter(minutes, accuracies, label=runs[0].label)
        right.scatter([run.tokens / 1000 for run in runs], accuracies)
    left.set(xlabel="training, CPU minutes", ylabel="execution accuracy (strict), %")
    left.set_ylim(bottom=0)
    left.legend(fontsize="small")
    right.set(xlabel="thousand tokens that the trained model computed with gradient")
    figure.tight_layout()
    figure.savefig(path, metadata={"Date": None})
    pyplot.close(figure)
    return True


def write_results(folder: Path, tables: Mapping[str, Mapping[str, Any]]) -> None:
    """Write RESULTS.md and, where matplotlib is installed, results.svg beside `results/`.

    Args:
        folder: that holds `results/`.
        tables: of arms.toml.
    """
    results = read_results(folder / "results", tables)
    if not results:
        return
    parts = [
        f"# Results{'' if any('split' in table for table in tables.values()) else ' on Spider'}",
        "Written by `recipes/spider/results.py` from the files in `results/`. EX is strict "
        "execution accuracy: an undetermined answer is not correct. Means are over the runs of a "
        "method, with a bootstrap interval over questions; differences are paired by seed, as runs "
        "with one seed saw the same data, and by question, with a permutation test of their mean. "
        "Intervals and tests hold for these seeds: how much others would differ, the columns of "
        "each run show.",
    ]
    # Without matplotlib an earlier picture is kept.
    picture = folder / "results.svg"
    is_first = True
    for name, table in tables.items():
        groups = group_by_method(results, tables, name)
        if not groups:
            continue
        parts += [f"## {table.get('label', name)}", describe_methods(groups)]
        parts += ["### Differences", describe_differences(groups)]
        if text := describe_revisions(groups):
            parts += ["### Asked again about answers that fail or find no rows", text]
        if text := describe_votes(groups):
            parts += ["### The answer whose result most samples have", text]
        # One picture, of the first evaluation.
        if is_first and (plot(groups, picture) or picture.exists()):
            parts.append("![EX against the cost of training](results.svg)")
        is_first = False
        parts += ["### By hardness (EX, %)", describe_hardness(groups)]
        if text := describe_hardness_differences(groups):
            parts += ["### Differences by hardness, points (95 % over questions)", text]
        if text := describe_class_differences(groups):
            parts += ["### More or fewer errors of a class, points (95 % over questions)", text]
    parts += ["## Every run", describe_runs(results)]
    (folder / "RESULTS.md").write_text("\n\n".join(parts) + "\n", encoding="utf-8")


def main(argv: Sequence[str]) -> None:
    """Write the tables of a folder, as the arms.toml there, or in a second folder, names arms."""
    folder, recipe = (Path(text) for text in (argv[0], argv[-1]))
    data = tomllib.loads((recipe / "arms.toml").read_text(encoding="utf-8"))
    write_results(folder, {name: table for name, table in data.items() if name != "parts"})


if __name__ == "__main__":
    main(sys.argv[1:])
