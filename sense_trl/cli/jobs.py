"""`sense-trl quickstart`, `recurse`, `online` and `doctor`: the jobs of `sense_trl.jobs`."""

from __future__ import annotations

import importlib
import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any, Final

from sense_trl.cli.parser import Command
from sense_trl.cli.terminal import quieten_libraries
from sense_trl.jobs.online_config import OnlineConfig
from sense_trl.jobs.quickstart_config import QuickstartConfig
from sense_trl.jobs.recursion_config import RecursionConfig
from sense_trl.options import option


def _make_run(job: str) -> Callable[[Any, Any], None]:
    """What runs a job of `sense_trl.jobs`, `MODULE:FUNCTION`, which takes long to import."""

    def run(config: Any, console: Any) -> None:
        module, _, name = job.partition(":")
        function = getattr(importlib.import_module(f"sense_trl.jobs.{module}"), name)
        quieten_libraries()
        print(function(config, console))  # noqa: T201 - the result of the command

    return run


ONLINE: Final = Command(
    "online",
    "let a model learn from its own right and wrong answers, round by round",
    _make_run("online:run_online"),
    (OnlineConfig,),
    description="In each round a model answers training questions, execution says which answers "
    "are right, right ones are paired with wrong ones, and it is trained on the pairs (cDPO) with "
    "the model before the round as reference. Prints the folder of the last model. An interrupted "
    "run continues.",
)
QUICKSTART: Final = Command(
    "quickstart",
    "train a small model on a database and report before and after",
    _make_run("quickstart:run_quickstart"),
    (QuickstartConfig,),
    description="Evaluate a model, fine-tune it, sample wrong SQL from it, build preference pairs "
    "by execution, train on them, evaluate again and write report.html. Runs on two CPU cores. "
    "Without --database it uses an embedded one. An interrupted run continues.",
)
RECURSE: Final = Command(
    "recurse",
    "let a model write training data, keep what holds, train, and again",
    _make_run("recursion:run_recursion"),
    (RecursionConfig,),
    description="In each round a model invents questions with SQL about a batch of databases and "
    "answers training questions. Gold judges its answers, on the database and on generated "
    "neighbours; invented pairs must run, return something and agree with what the model answers "
    "to the question. What is kept is mixed with gold, the base model is fine-tuned on it and "
    "evaluated, and writes the next round. Runs on two CPU cores. Without --database it uses an "
    "embedded one. An interrupted run continues.",
)


EXIT_BROKEN: Final = 1


@dataclass(kw_only=True)
class DoctorOptions:
    """Options of `doctor`: what to check, whether to train, and to print JSON."""

    database: str | None = option(
        "Check this instead of the installation: what the role of postgresql://user@host/name may "
        "do there besides reading, and the SQL that takes it away.",
        default=None,
    )

    json: bool = option("Print JSON.", default=False)
    skip_training: bool = option("Leave out the training step (some 10 s).", default=False)


def run_doctor(options: DoctorOptions, console: Any) -> int:
    """Run `sense-trl doctor`; 1 if something does not work, or no engine should use the role."""
    from sense_trl.jobs.doctor import check_role, run_checks

    findings = []
    with console.status("Checking") as status:
        found = (
            run_checks(
                training=not options.skip_training,
                on_check=lambda name: status.update(f"Checking {name}"),
            )
            if options.database is None
            else check_role(options.database)
        )
        for finding in found:
            findings.append(finding)
            if not options.json:
                # The result of the command.
                print(f"{finding.status:<6}{finding.name:<15} {finding.text}")  # noqa: T201
    statements = [finding.sql for finding in findings if finding.sql]
    if statements and not options.json:
        heading = "\n-- To be run in this database by its owner or a superuser:"
        print("\n".join([heading, *statements]))  # noqa: T201
    if options.json:
        shown = [asdict(finding) for finding in findings]
        shown = [{k: v for k, v in one.items() if v or k != "sql"} for one in shown]
        print(json.dumps(shown, indent=1))  # noqa: T201
    return EXIT_BROKEN if any(finding.status.is_failure for finding in findings) else 0


DOCTOR: Final = Command(
    "doctor",
    "check the installation",
    run_doctor,
    (DoctorOptions,),
    description="Check versions, GPUs, bfloat16, bitsandbytes, caches and the workers that run "
    "SQL, and train one step on a tiny model, in 4 bits where bitsandbytes is installed. Downloads "
    "nothing. Or, with `--database`, try what a role of a PostgreSQL server may do. Exit code 1 if "
    "something that is needed does not work, or a role is one that no engine should use.",
)
