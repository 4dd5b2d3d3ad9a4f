"""`sense-trl quickstart`: from a database and questions to a report, on two CPU cores."""

from __future__ import annotations

import argparse
import logging
import warnings
from typing import Any

from sense_trl.cli.arguments import add_dataclass_arguments

__all__ = ["add_parser", "run"]


def add_parser(commands: Any) -> None:
    """Add the command and its flags; imports nothing heavy."""
    from sense_trl.jobs.quickstart_config import QuickstartConfig

    parser: argparse.ArgumentParser = commands.add_parser(
        "quickstart",
        help="train a small model on a database and report before and after",
        description="Evaluate a model, fine-tune it, sample wrong SQL from it, build preference "
        "pairs by execution, train on them, evaluate again and write report.html. Runs on two CPU "
        "cores. Without --database it uses an embedded one. An interrupted run continues.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    add_dataclass_arguments(parser, QuickstartConfig)


def run(arguments: dict[str, Any], console: Any) -> int:
    """Run the command.

    Returns:
        0 when the report is written.

    Raises:
        SenseTRLError: unusable input (exit code 2).
    """
    from sense_trl.jobs.quickstart_config import QuickstartConfig

    config = QuickstartConfig(**arguments)
    from sense_trl.jobs.quickstart import run_quickstart

    quieten_libraries()
    print(run_quickstart(config, console))  # noqa: T201 - the result of the command
    return 0


def quieten_libraries() -> None:
    """Hide what libraries tell their developers; errors and our own messages stay."""
    import datasets
    import transformers

    warnings.filterwarnings("ignore", category=FutureWarning)
    warnings.filterwarnings("ignore", category=DeprecationWarning)
    # It announces, as a warning, that an optional faster kernel is not installed.
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    datasets.disable_progress_bars()
