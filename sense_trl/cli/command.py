"""`Command`: what `sense-trl` can be told to do, with the dataclasses that its arguments fill."""

from __future__ import annotations

import argparse
import textwrap
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from sense_trl.cli.parser import OptionParser, build_options, get_class


@dataclass(frozen=True, slots=True)
class Command:
    """A command, or an action of one.

    Attributes:
        name: what is typed.
        help: a line for the list of commands.
        run: takes the options and a console, runs the command, and returns its exit code.
        options: dataclasses whose fields are its arguments, or `MODULE:CLASS` for those that take
            long to import; see `OptionParser`.
        description: opens its help.
        epilog: ends its help.
        actions: instead of `run` and `options`.
    """

    name: str
    help: str
    run: Callable[..., int] | None = None
    options: tuple[type | str, ...] = ()
    description: str = ""
    epilog: str | None = None
    actions: tuple[Command, ...] = ()

    def add_parser(self, commands: Any) -> None:
        """Add the parser of the command to the subparsers of another one."""
        formatter = argparse.HelpFormatter
        description = self.description
        if self.epilog is not None and "\n" in self.epilog:
            formatter, description = (
                argparse.RawDescriptionHelpFormatter,
                textwrap.fill(description),
            )
        parser = commands.add_parser(
            self.name,
            help=self.help,
            kinds=self.options,
            description=description,
            epilog=self.epilog,
            formatter_class=formatter,
        )
        parser.set_defaults(chosen=self)
        if self.actions:
            actions = parser.add_subparsers(
                required=True, metavar="ACTION", parser_class=OptionParser
            )
            for action in self.actions:
                action.add_parser(actions)

    def run_with(self, given: Mapping[str, Any], console: Any) -> int:
        """Run it with what was given on the command line, by the names of the fields."""
        assert self.run is not None, "a command with actions is never chosen itself"
        return self.run(*(build_options(get_class(k), given) for k in self.options), console)
