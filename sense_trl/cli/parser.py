"""`OptionParser`: flags that are the fields of dataclasses; `build_options` makes these of them."""

from __future__ import annotations

import argparse
import importlib
import itertools
import os
import sys
import textwrap
import types
import typing
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import MISSING, Field, dataclass, fields
from difflib import get_close_matches
from typing import Any, Final, NoReturn

from sense_trl.cli.recipes import resolve_config
from sense_trl.database.location import hide_password
from sense_trl.errors import InputError

# How argparse begins the message.
_UNKNOWN: Final = "unrecognized arguments: "
_NUMBERS: Final = {int: ((int,), "a whole number"), float: ((int, float), "a number")}
_TRUTH: Final = {"true": True, "yes": True, "false": False, "no": False}


class OneSpellingParser(argparse.ArgumentParser):
    """Shows the first spelling of each flag only; the others are accepted all the same."""

    def add_argument(self, *args: Any, **options: Any) -> argparse.Action:
        """argparse's; `added` has what was added, by name."""
        action = super().add_argument(*args, **options)
        if action.option_strings and action.option_strings[0].startswith("--"):
            action.option_strings = action.option_strings[:1]
        # Called while argparse makes itself, too.
        if not hasattr(self, "added"):
            self.added: dict[str, argparse.Action] = {}
        self.added[action.dest] = action
        return action

    def error(self, message: str) -> NoReturn:
        """End with what is wrong; all the flags of a command in front of it would hide it."""
        if message.startswith(_UNKNOWN):
            flags = [f"--{name}" for name in self.added]
            words = message.removeprefix(_UNKNOWN).split()
            near = (get_close_matches(word, flags, 1) for word in words if word.startswith("--"))
            if found := " ".join(itertools.chain.from_iterable(near)):
                message += f" (near to it: {found})"
        self.exit(2, f"{self.prog}: error: {message}\nSee {self.prog} --help.\n")


class OptionParser(OneSpellingParser):
    """argparse with a flag, or a positional argument, for each field of some dataclasses.

    A flag is the name of its field; hyphens in place of underscores are accepted. One that is a
    bool stands alone or has true or false behind it. What is not given is not in the result, so
    that the defaults are those of the dataclasses.

    Args:
        kinds: dataclasses, or `MODULE:CLASS` for what takes long to import: it is when something is
            parsed or the help is printed. Two may share a field that is described alike.
        takes_config: whether options may stand in a YAML file, which `--config` names; then only
            `parse_args_and_config` knows what is missing.
        optional: those of `kinds` that are left out where their first field is not given.
        options: of `argparse.ArgumentParser`.
    """

    def __init__(
        self,
        kinds: Sequence[type | str] = (),
        *,
        takes_config: bool = False,
        optional: Collection[type | str] = (),
        **options: Any,
    ) -> None:
        super().__init__(**options)
        self._kinds = kinds
        self._optional = optional
        self._takes_config = takes_config
        self._is_filled = False
        self._described: dict[str, str] = {}
        self._switches: set[str] = set()

    def fill(self) -> None:
        """Add the flags of the dataclasses, if that is still to be done."""
        if self._is_filled:
            return
        self._is_filled = True
        if self._takes_config:
            text = "YAML file with options, or RECIPE/STAGE; a flag given here wins over it."
            self.add_argument("--config", default=argparse.SUPPRESS, help=text)
        for kind in map(get_class, self._kinds):
            hints = typing.get_type_hints(kind)
            for option in fields(kind):
                text = option.metadata["help"]
                if option.init and self._described.get(option.name) != text:
                    self._described[option.name] = text
                    self._add_option(option, hints[option.name])

    def _add_option(self, option: Field[Any], hint: Any) -> None:
        text = option.metadata["help"]
        default = None if option.default is MISSING else option.default
        if option.default_factory is not MISSING:
            default = option.default_factory()
        if isinstance(default, list | tuple):
            default = " ".join(map(str, default))
        if default not in (None, False, ""):
            text += f" (default: {default})"
        keywords: dict[str, Any] = {"help": text.replace("%", "%%"), "default": argparse.SUPPRESS}
        kind = _get_plain_type(hint)
        if kind is bool:
            self._switches.add(option.name)
            self.add_argument(f"--{option.name}", action="store_true", **keywords)
            hidden = {**keywords, "help": argparse.SUPPRESS, "dest": option.name}
            self.add_argument(f"--no_{option.name}", action="store_false", **hidden)
            return
        is_required = _is_required(option) and not self._takes_config
        choices = option.metadata.get("choices")
        if (origin := typing.get_origin(kind)) is typing.Literal:
            kind, choices = str, typing.get_args(kind)
        elif origin is not None:
            kind = typing.get_args(kind)[0]
            keywords["nargs"] = "+" if is_required or not _is_positional(option) else "*"
            # A flag that is given twice means both.
            keywords["action"] = "extend"
        keywords |= {"type": kind, "choices": choices, "metavar": option.metadata.get("metavar")}
        if _is_positional(option):
            if origin is None and not is_required:
                keywords["nargs"] = "?"
            self.add_argument(option.name, **keywords)
        else:
            flags = [f"--{option.name}", *option.metadata.get("aliases", ())]
            self.add_argument(*flags, required=is_required, dest=option.name, **keywords)

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        """argparse's, with flags in either spelling."""
        self.fill()
        given = sys.argv[1:] if args is None else args
        found, unknown = super().parse_known_args(self._spell(given), namespace)
        # argparse would leave that to the parser of all commands, which knows none of the flags.
        if unknown and " " in self.prog and not self._takes_config:
            self.error(_UNKNOWN + " ".join(unknown))
        return found, unknown

    def parse_args_and_config(
        self, args: Sequence[str] | None = None, *, return_remaining_strings: bool = False
    ) -> tuple[Any, ...]:
        """The dataclasses of a command line and of the YAML file that it names.

        Args:
            args: the command line; that of this process if not given.
            return_remaining_strings: whether to pass over what is in no dataclass.

        Raises:
            InputError: the file cannot be read or has other options, or a value is refused.
        """
        if return_remaining_strings:
            given = vars(self.parse_known_args(args)[0])
        else:
            given = vars(self.parse_args(args))
        if (config := given.pop("config", None)) is not None:
            values = read_config(config)
            unknown = [name for name in values if name not in self._described]
            if unknown and not return_remaining_strings:
                raise InputError(
                    f"`config` {config!r} has options that are not known here: "
                    f"{', '.join(map(repr, unknown))}. Correct or remove them."
                )
            given = {**values, **given}
        return tuple(self._build(kind, given) for kind in self._kinds)

    def _build(self, kind: type | str, given: Mapping[str, Any]) -> Any:
        options = [option for option in fields(get_class(kind)) if option.init]
        first = options[0].name
        if kind in self._optional and first not in given:
            others = {
                option.name
                for other in self._kinds
                if other is not kind
                for option in fields(get_class(other))
            }
            for option in options:
                if option.name in given and option.name not in others:
                    raise InputError(
                        f"`{option.name}` is given without `{first}`, which it is an option of. "
                        f"Give `{first}`, or leave it out."
                    )
            return None
        for option in options:
            if option.name in given and given[option.name] is None and _is_required(option):
                raise InputError(f"`{option.name}` is null in the YAML file; it is required.")
        missing = [f"--{o.name}" for o in options if _is_required(o) and o.name not in given]
        if missing:
            self.error(f"the following arguments are required: {', '.join(missing)}")
        return build_options(get_class(kind), given)

    def format_help(self) -> str:
        """argparse's."""
        self.fill()
        return super().format_help()

    def _spell(self, arguments: Sequence[str]) -> list[str]:
        """Underscores in flags, and --no_FLAG for a bool with false behind it."""
        spelt: list[str] = []
        for index, argument in enumerate(arguments):
            if argument == "--":
                return [*spelt, *arguments[index:]]
            parts = [argument]
            if argument.startswith("--"):
                flag, equals, value = argument.partition("=")
                flag = "--" + flag[2:].replace("-", "_")
                is_switch = flag[2:] in self._switches
                parts = [flag, value] if equals and is_switch else [flag + equals + value]
            for part in parts:
                truth = _TRUTH.get(part.lower())
                flag = spelt[-1] if spelt else ""
                if truth is None or flag[:2] != "--" or flag[2:] not in self._switches:
                    spelt.append(part)
                elif not truth:
                    spelt[-1] = f"--no_{flag[2:]}"
        return spelt


def build_options(kind: type, given: Mapping[str, Any]) -> Any:
    """A dataclass of what was given on a command line or in a YAML file; the rest is its defaults.

    Raises:
        InputError: a value is of another type, or the dataclass refuses it.
    """
    hints = typing.get_type_hints(kind)
    return kind(
        **{
            option.name: _convert(option.name, given[option.name], hints[option.name])
            for option in fields(kind)
            if option.init and option.name in given
        }
    )


def _convert(name: str, value: Any, hint: Any) -> Any:
    plain = _get_plain_type(hint)
    origin = typing.get_origin(plain)
    if isinstance(value, str):
        # From here on no password stands in an option, so none is printed or written down.
        value = hide_password(value, name)
    if value is None or origin is typing.Literal:
        return value
    if origin is None:
        return check_number(name, value, plain)
    return origin([value] if isinstance(value, str) else value)


def read_config(config: str) -> dict[str, Any]:
    """The options of a YAML file; what it has as `env` is put into the environment.

    Args:
        config: see `resolve_config`.

    Raises:
        InputError: it cannot be read, or holds something else.
    """
    import yaml  # type: ignore[import-untyped]

    try:
        with open(resolve_config(config), encoding="utf-8") as file:
            values = yaml.safe_load(file)
    # A file in another encoding than UTF-8 is a ValueError.
    except (OSError, ValueError, yaml.YAMLError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"`config` {config!r} cannot be read: {error}.") from error
    if not isinstance(values, dict):
        raise InputError(f"`config` {config!r} holds no options; expected NAME: VALUE.")
    for name, value in (values.pop("env", None) or {}).items():
        os.environ[name] = str(value)
    return values


def check_number(name: str, value: Any, kind: Any) -> Any:
    """The value of an option; of a number in text, the number.

    Args:
        name: of the option.
        value: out of a YAML file, or of a type already.
        kind: what it has to be; only int and float are checked.

    Raises:
        InputError: it is not.
    """
    if kind not in _NUMBERS:
        return value
    types_, expected = _NUMBERS[kind]
    try:
        number = kind(value) if isinstance(value, str) else value
    except ValueError:
        number = None
    if isinstance(number, bool) or not isinstance(number, types_):
        raise InputError(f"`{name}` is {value!r} in the YAML file; expected {expected}.")
    return number


def get_class(kind: type | str) -> type:
    """A class, or the one that `MODULE:CLASS` names."""
    if isinstance(kind, type):
        return kind
    module, _, name = kind.partition(":")
    found: type = getattr(importlib.import_module(module), name)
    return found


def _is_required(option: Field[Any]) -> bool:
    return option.default is MISSING and option.default_factory is MISSING


def _is_positional(option: Field[Any]) -> bool:
    return bool(option.metadata.get("positional"))


def _get_plain_type(hint: Any) -> Any:
    """`int` for both `int` and `int | None`."""
    if typing.get_origin(hint) in (types.UnionType, typing.Union):
        (hint,) = (part for part in typing.get_args(hint) if part is not types.NoneType)
    return hint


@dataclass(frozen=True, slots=True)
class Command:
    """A command, or an action of one.

    Attributes:
        name: what is typed.
        help: a line for the list of commands.
        run: takes the options and a console, and prints what it found. It returns an exit code
            where that is not 0; unusable input is a `SenseTRLError`.
        options: dataclasses whose fields are its arguments, or `MODULE:CLASS` for those that take
            long to import; see `OptionParser`.
        description: opens its help.
        epilog: ends its help.
        actions: instead of `run` and `options`.
    """

    name: str
    help: str
    run: Callable[..., int | None] | None = None
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

    def run_with(self, given: Mapping[str, Any], console: Any) -> int | None:
        """Run it with what was given on the command line, by the names of the fields."""
        assert self.run is not None, "a command with actions is never chosen itself"
        return self.run(*(build_options(get_class(k), given) for k in self.options), console)
