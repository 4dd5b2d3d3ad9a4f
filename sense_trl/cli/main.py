"""Entry point of `sense-trl`.

Nothing heavy is imported before a command runs, so that `--help` answers at once.
"""

from __future__ import annotations

import argparse
import dataclasses
import logging
import os
import sys
import types
import typing
import warnings
from collections.abc import Sequence
from typing import Any

from sense_trl._version import __version__
from sense_trl.cli import evaluate, pairs, verify
from sense_trl.errors import SenseTRLError

EXIT_OK = 0
EXIT_INPUT = 2  # argparse uses 2 for unusable arguments too
EXIT_INTERRUPTED = 130


def make_parser() -> argparse.ArgumentParser:
    """The parser of the whole command line."""
    from sense_trl.pipeline.quickstart_config import QuickstartConfig

    parser = argparse.ArgumentParser(
        prog="sense-trl",
        description="From a database and questions to a better text-to-SQL model.",
    )
    parser.add_argument("--version", action="version", version=f"sense-trl {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    quickstart = commands.add_parser(
        "quickstart",
        help="train a small model on a database and report before and after",
        description="Evaluate a model, fine-tune it, sample wrong SQL from it, build preference "
        "pairs by execution, train on them, evaluate again and write report.html. Runs on two CPU "
        "cores. Without --database it uses an embedded one. An interrupted run continues.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    add_dataclass_arguments(quickstart, QuickstartConfig)
    evaluate.add_parser(commands)
    pairs.add_parser(commands)
    verify.add_parser(commands)
    return parser


def add_dataclass_arguments(parser: argparse.ArgumentParser, config: type) -> None:
    """Add one flag per field of a dataclass; its `metadata["help"]` is the description."""
    hints = typing.get_type_hints(config)
    for field in dataclasses.fields(config):
        flag = "--" + field.name.replace("_", "-")
        help_text = field.metadata["help"].replace("%", "%%")
        if hints[field.name] is bool:
            parser.add_argument(flag, action="store_true", default=field.default, help=help_text)
            continue
        parser.add_argument(
            flag, type=_plain_type(hints[field.name]), default=field.default, help=help_text
        )


def _plain_type(hint: Any) -> Any:
    """`int` for both `int` and `int | None`."""
    if isinstance(hint, types.UnionType):
        (hint,) = (part for part in typing.get_args(hint) if part is not types.NoneType)
    return hint


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line.

    Returns:
        0 if all went well, 2 for unusable input, 130 after Ctrl-C.
    """
    arguments = vars(make_parser().parse_args(argv))
    command = arguments.pop("command")
    # Read by libraries when they are imported, so set before. A user's own setting wins.
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    from rich.console import Console

    from sense_trl.pipeline.cpu import keep_freed_memory, wait_without_spinning

    wait_without_spinning()
    keep_freed_memory()
    console = Console(stderr=True)
    try:
        if command == "quickstart":
            _quickstart(arguments, console)
        elif command == "evaluate":
            return evaluate.run(arguments, console)
        elif command == "pairs":
            return pairs.run(arguments, console)
        elif command == "verify":
            return verify.run(arguments, console)
    except SenseTRLError as error:
        console.print("[bold red]error:[/]", end=" ")
        console.print(str(error), markup=False, highlight=False, soft_wrap=True)
        return EXIT_INPUT
    except KeyboardInterrupt:
        console.print("\nInterrupted. The same command continues (leave out --overwrite).")
        return EXIT_INTERRUPTED
    return EXIT_OK


def _quickstart(arguments: dict[str, Any], console: Any) -> None:
    from sense_trl.pipeline.quickstart_config import QuickstartConfig

    config = QuickstartConfig(**arguments)
    from sense_trl.pipeline.quickstart import run_quickstart

    _quieten_libraries()
    print(run_quickstart(config, console))  # noqa: T201 - the result of the command


def _quieten_libraries() -> None:
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


if __name__ == "__main__":
    sys.exit(main())
