"""Entry point of `sense-trl`.

Nothing heavy is imported before a command runs, so that `--help` answers at once.
"""

from __future__ import annotations

import functools
import os
import select
import sys
from collections.abc import Callable, Sequence

from sense_trl._files import is_refusal
from sense_trl._version import __version__
from sense_trl.cli import (
    ask,
    checkpoints,
    completion,
    estimate,
    jobs,
    link,
    list_recipes,
    pairs,
    stages,
    synth,
    teacher,
    verify,
)
from sense_trl.cli.parser import Command, OptionParser
from sense_trl.database.location import hide_passwords
from sense_trl.errors import SenseTRLError

COMMANDS: dict[str, Command] = {
    command.name: command
    for command in (
        jobs.QUICKSTART,
        list_recipes.COMMAND,
        ask.ASK,
        ask.PROMPT,
        pairs.COMMAND,
        verify.COMMAND,
        teacher.COMMAND,
        link.COMMAND,
        synth.COMMAND,
        jobs.RECURSE,
        jobs.ONLINE,
        estimate.COMMAND,
        checkpoints.PRUNE,
        checkpoints.MERGE,
        jobs.DOCTOR,
    )
}
COMMANDS["completion"] = completion.make_command(COMMANDS)

EXIT_OK = 0
EXIT_INPUT = 2  # argparse uses 2 for unusable arguments too
EXIT_INTERRUPTED = 130
EXIT_PIPE_CLOSED = 141  # as a shell says of what SIGPIPE ends


def make_parser() -> OptionParser:
    """The parser of the whole command line."""
    parser = OptionParser(
        prog="sense-trl",
        description="From a database and questions to a better text-to-SQL model.",
    )
    parser.add_argument("--version", action="version", version=f"sense-trl {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for command in COMMANDS.values():
        command.add_parser(commands)
    stages.add_parsers(commands)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line.

    Args:
        argv: arguments; those of this process if not given.

    Returns:
        0 if all went well, 2 for unusable input, 130 after Ctrl-C, 141 if whoever reads the output,
        such as `head`, stopped.
    """
    try:
        try:
            return _run(argv)
        finally:
            sys.stdout.flush()
    except BrokenPipeError:
        if not _is_output_closed():
            raise
        # Python flushes once more when it ends.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return EXIT_PIPE_CLOSED


def _is_output_closed() -> bool:
    """Whether nobody reads the standard output any more; a worker's pipe can break as well."""
    poller = select.poll()
    poller.register(sys.stdout.fileno(), 0)
    return any(event & select.POLLERR for _, event in poller.poll(0))


def _run(argv: Sequence[str] | None) -> int:
    is_own = argv is None
    try:
        argv = hide_passwords(sys.argv[1:] if argv is None else argv)
    except SenseTRLError as error:
        sys.stderr.write(f"error: {error}\n")
        return EXIT_INPUT
    if not argv:
        make_parser().print_help(sys.stderr)
        return EXIT_INPUT
    if is_own:
        # Trackers of experiments write it down.
        sys.argv[1:] = argv
    if (found := stages.find_stage(argv)) is not None:
        stage, arguments = found
        run: Callable[..., int | None] = functools.partial(stage.run, arguments)
    else:
        given = vars(make_parser().parse_args(argv))
        command: Command = given.pop("chosen")
        run = functools.partial(command.run_with, given)
    # Read by libraries when they are imported, so set before. A user's own setting wins.
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    from rich.console import Console

    from sense_trl.steps.cpu import keep_freed_memory, wait_without_spinning

    wait_without_spinning()
    keep_freed_memory()
    console = Console(stderr=True)
    try:
        return run(console) or EXIT_OK
    except SenseTRLError as error:
        console.print("[bold red]error:[/]", end=" ")
        console.print(str(error), markup=False, highlight=False, soft_wrap=True)
        return EXIT_INPUT
    except OSError as error:
        # Many libraries write, each in its own way; a full disk is nobody's mistake in the code.
        if not is_refusal(error):
            raise
        console.print("[bold red]error:[/]", end=" ")
        console.print(
            f"{error}. The device takes no more, or is not to be written to: free space or choose "
            "another place. The same command continues.",
            markup=False,
            highlight=False,
            soft_wrap=True,
        )
        return EXIT_INPUT
    except KeyboardInterrupt:
        console.print("\nInterrupted. The same command continues (leave out --overwrite).")
        return EXIT_INTERRUPTED


if __name__ == "__main__":
    sys.exit(main())
