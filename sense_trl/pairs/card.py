"""`format_card`: the dataset card, from the dataset and its account."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    import datasets

COUNTED_COLUMNS: Final = {
    "rejected_reason": "Why the rejected queries are wrong",
    "error_classes": "How they differ from gold (several classes per query)",
    "result_class": "How their rows differ from gold's",
    "chosen_source": "Who wrote the chosen queries",
    "rejected_source": "Who wrote the rejected queries",
}
"""Columns whose values are worth a table, with its title."""

_FRONT_MATTER: Final = """---
configs:
- config_name: default
  data_files: pairs.parquet
task_categories:
- text-generation
tags:
- dpo
- preference
- text-to-sql
- sense-trl
---
"""


def count_column(dataset: datasets.Dataset, name: str) -> Counter[str]:
    """Count the values of a column, those in lists included; "" is no value."""
    return Counter(value for value in _leaves(dataset.with_format(None)[name]) if value != "")


def format_card(
    dataset: datasets.Dataset, summary: Mapping[str, Any], config: Mapping[str, Any], *, title: str
) -> str:
    """The dataset card (README.md) as Markdown.

    Args:
        dataset: the pairs.
        summary: their account, as `PairBuildResult.summary` gives it.
        config: their settings, as `PreferencePairConfig.as_json` gives them.
        title: the heading.
    """
    gold_problems = Counter(text.split(":")[0] for text in summary["gold_problems"].values())
    parts = [
        f"{_FRONT_MATTER}\n# {title}",
        "Each row holds a prompt, a chosen query that returns what the gold query returns, and a "
        "rejected one that was executed and does not. Gold was verified for itself first; verdicts "
        "that are not certain (time limits, empty results on both sides, ties under LIMIT, ...) "
        "label nothing. Built with sense_trl.",
        _table(
            "What went in and what came out",
            {
                "questions": summary["num_questions"],
                "candidates": summary["num_candidates"],
                "rows": summary["num_pairs"],
            },
        ),
        _table("Candidates by verdict", summary["verdicts"]),
        _table("Mutants of gold by verdict", summary["mutant_verdicts"]),
        _table("Questions without a pair", summary["dropped_questions"]),
        _table("Questions whose gold query is no label", gold_problems),
        _table("Candidates that took no part", summary["dropped_candidates"]),
        *(_table(text, count_column(dataset, name)) for name, text in COUNTED_COLUMNS.items()),
        f"## Settings\n\n```json\n{json.dumps(config, indent=1)}\n```",
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _table(title: str, counts: Mapping[str, int]) -> str:
    """A heading and a table, largest count first; "" where there is nothing to count."""
    if not counts:
        return ""
    ordered = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    rows = "\n".join(f"| {name} | {count:,} |" for name, count in ordered)
    return f"## {title}\n\n| | count |\n|---|---:|\n{rows}"


def _leaves(values: Iterable[Any]) -> Iterable[str]:
    for value in values:
        if isinstance(value, list):
            yield from _leaves(value)
        else:
            yield value
