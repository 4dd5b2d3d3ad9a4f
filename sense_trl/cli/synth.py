"""`sense-trl synth`: make training questions where there are none."""

from __future__ import annotations

import argparse
from typing import Any

from sense_trl.cli import synth_explore, synth_strong

__all__ = ["add_parser", "run"]

_ACTIONS = {"explore": synth_explore, "strong": synth_strong}


def add_parser(commands: Any) -> None:
    """Add the command and its actions; imports nothing heavy."""
    parser: argparse.ArgumentParser = commands.add_parser(
        "synth",
        help="make training questions with SQL",
        description="Make training questions with SQL, checked by execution.",
    )
    actions = parser.add_subparsers(dest="action", required=True, metavar="ACTION")
    for module in _ACTIONS.values():
        module.add_parser(actions)


def run(arguments: dict[str, Any], console: Any) -> int:
    """Run an action and return its exit code."""
    code: int = _ACTIONS[arguments.pop("action")].run(arguments, console)
    return code
