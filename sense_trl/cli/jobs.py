"""`sense-trl quickstart` and `sense-trl recurse`: whole jobs on one's own database."""

from __future__ import annotations

from typing import Any, Final

from sense_trl.cli.command import Command
from sense_trl.cli.terminal import quieten_libraries
from sense_trl.jobs.quickstart_config import QuickstartConfig
from sense_trl.jobs.recursion_config import RecursionConfig


def run_quickstart(config: QuickstartConfig, console: Any) -> int:
    """Run `sense-trl quickstart`.

    Returns:
        0 when the report is written.

    Raises:
        SenseTRLError: unusable input (exit code 2).
    """
    from sense_trl.jobs import quickstart

    quieten_libraries()
    print(quickstart.run_quickstart(config, console))  # noqa: T201 - the result of the command
    return 0


def run_recursion(config: RecursionConfig, console: Any) -> int:
    """Run `sense-trl recurse`.

    Returns:
        0 when the rounds are done.

    Raises:
        SenseTRLError: unusable input (exit code 2).
    """
    from sense_trl.jobs import recursion

    quieten_libraries()
    print(recursion.run_recursion(config, console))  # noqa: T201 - the result of the command
    return 0


QUICKSTART: Final = Command(
    "quickstart",
    "train a small model on a database and report before and after",
    run_quickstart,
    (QuickstartConfig,),
    description="Evaluate a model, fine-tune it, sample wrong SQL from it, build preference pairs "
    "by execution, train on them, evaluate again and write report.html. Runs on two CPU cores. "
    "Without --database it uses an embedded one. An interrupted run continues.",
)
RECURSE: Final = Command(
    "recurse",
    "let a model write training data, keep what holds, train, and again",
    run_recursion,
    (RecursionConfig,),
    description="In each round a model invents questions with SQL about a batch of databases and "
    "answers training questions. Gold judges its answers, on the database and on generated "
    "neighbours; invented pairs must run, return something and agree with what the model answers "
    "to the question. What is kept is mixed with gold, the base model is fine-tuned on it and "
    "evaluated, and writes the next round. Runs on two CPU cores. Without --database it uses an "
    "embedded one. An interrupted run continues.",
)
