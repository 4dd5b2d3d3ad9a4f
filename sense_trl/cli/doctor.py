"""`sense-trl doctor`: whether this installation can do its work."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from typing import Any, Final

from sense_trl.cli.command import Command

EXIT_BROKEN: Final = 1


@dataclass(kw_only=True)
class DoctorOptions:
    """Options of `doctor`: whether to train, and to print JSON."""

    json: bool = field(default=False, metadata={"help": "Print JSON."})
    skip_training: bool = field(
        default=False, metadata={"help": "Leave out the training step (some 10 s)."}
    )


def run(options: DoctorOptions, console: Any) -> int:
    """Run the command.

    Returns:
        0 if everything that is needed works, 1 if not.
    """
    from sense_trl.jobs.doctor import run_checks

    findings = []
    with console.status("Checking") as status:
        for finding in run_checks(
            training=not options.skip_training,
            on_check=lambda name: status.update(f"Checking {name}"),
        ):
            findings.append(finding)
            if not options.json:
                # The result of the command.
                print(f"{finding.status:<6}{finding.name:<16}{finding.text}")  # noqa: T201
    if options.json:
        print(json.dumps([asdict(finding) for finding in findings], indent=1))  # noqa: T201
    return EXIT_BROKEN if any(finding.status.is_failure for finding in findings) else 0


COMMAND: Final = Command(
    "doctor",
    "check the installation",
    run,
    (DoctorOptions,),
    description="Check versions, GPUs, bfloat16, bitsandbytes, caches and the workers that run "
    "SQL, and train one step on a tiny model, in 4 bits where bitsandbytes is installed. Downloads "
    "nothing. Exit code 1 if something that is needed does not work.",
)
