"""`sense-trl recurse`: a model writes training data for itself, round by round."""

from __future__ import annotations

import argparse
from typing import Any

from sense_trl.cli.arguments import add_dataclass_arguments
from sense_trl.cli.quickstart import quieten_libraries

__all__ = ["add_parser", "run"]


def add_parser(commands: Any) -> None:
    """Add the command and its flags; imports nothing heavy."""
    from sense_trl.jobs.recursion_config import RecursionConfig

    parser: argparse.ArgumentParser = commands.add_parser(
        "recurse",
        help="let a model write training data, keep what holds, train, and again",
        description="In each round a model invents questions with SQL about a batch of databases "
        "and answers training questions. Gold judges its answers, on the database and on generated "
        "neighbours; invented pairs must run, return something and agree with what the model "
        "answers to the question. What is kept is mixed with gold, the base model is fine-tuned on "
        "it and evaluated, and writes the next round. Runs on two CPU cores. Without --database it "
        "uses an embedded one. An interrupted run continues.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    add_dataclass_arguments(parser, RecursionConfig)


def run(arguments: dict[str, Any], console: Any) -> int:
    """Run the command.

    Returns:
        0 when the rounds are done.

    Raises:
        SenseTRLError: unusable input (exit code 2).
    """
    from sense_trl.jobs.recursion_config import RecursionConfig

    config = RecursionConfig(**arguments)
    from sense_trl.jobs.recursion import run_recursion

    quieten_libraries()
    print(run_recursion(config, console))  # noqa: T201 - the result of the command
    return 0
