"""`sense-trl doctor`: whether this installation can do its work."""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict
from typing import Any, Final

__all__ = ["EXIT_BROKEN", "add_parser", "run"]

EXIT_BROKEN: Final = 1


def add_parser(commands: Any) -> None:
    """Add the command and its flags; imports nothing heavy."""
    parser: argparse.ArgumentParser = commands.add_parser(
        "doctor",
        help="check the installation",
        description="Check versions, GPUs, bfloat16, bitsandbytes, caches and the workers that "
        "run SQL, and train one step on a tiny model, in 4 bits where bitsandbytes is installed. "
        "Downloads nothing. Exit code 1 if something that is needed does not work.",
    )
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.add_argument(
        "--skip-training", action="store_true", help="leave out the training step (some 10 s)"
    )


def run(arguments: dict[str, Any], console: Any) -> int:
    """Run the command.

    Returns:
        0 if everything that is needed works, 1 if not.
    """
    from sense_trl.jobs.doctor import run_checks

    findings = []
    with console.status("Checking") as status:
        for finding in run_checks(
            training=not arguments["skip_training"],
            on_check=lambda name: status.update(f"Checking {name}"),
        ):
            findings.append(finding)
            if not arguments["json"]:
                # The result of the command.
                print(f"{finding.status:<6}{finding.name:<16}{finding.text}")  # noqa: T201
    if arguments["json"]:
        print(json.dumps([asdict(finding) for finding in findings], indent=1))  # noqa: T201
    return EXIT_BROKEN if any(finding.status.is_failure for finding in findings) else 0
