"""`ConfigParser`: TRL's parser of flags and of a YAML file, which it reads more strictly."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from typing import Any

from trl import TrlParser

from sense_trl.cli.parser import OneSpellingParser, check_number
from sense_trl.cli.recipes import resolve_config
from sense_trl.database.location import hide_password
from sense_trl.errors import InputError


class ConfigParser(OneSpellingParser, TrlParser):  # type: ignore[misc]
    """Takes `--config RECIPE/STAGE`, too, and refuses values in place of a number or of anything.

    argparse converts and checks text only, so that a list in the YAML file would get as far as the
    training.
    """

    def parse_args_and_config(self, args: Iterable[str] | None = None, **options: Any) -> Any:
        """TRL's, with the file of a recipe where `--config` names no other.

        Raises:
            InputError: see `resolve_config` and `set_defaults_with_config`.
        """
        args = list(sys.argv[1:] if args is None else args)
        if "--config" in args[:-1]:
            place = args.index("--config") + 1
            args[place] = str(resolve_config(args[place]))
        return super().parse_args_and_config(args, **options)

    def set_defaults_with_config(self, **kwargs: Any) -> list[str]:
        """Take the values of the file, by the names of their flags.

        Returns:
            Names and values that no flag has.

        Raises:
            InputError: a value that is required is null, or one in place of a number is none.
        """
        for name, action in self.added.items():
            if name in kwargs:
                _check(action, kwargs[name])
        kwargs = {
            name: hide_password(value, name) if isinstance(value, str) else value
            for name, value in kwargs.items()
        }
        remaining: list[str] = super().set_defaults_with_config(**kwargs)
        return remaining


def _check(action: Any, value: Any) -> None:
    if value is None:
        if action.required:
            raise InputError(f"`{action.dest}` is null in the YAML file; it is required.")
    elif action.nargs is None and not isinstance(value, str):
        check_number(action.dest, value, action.type)
