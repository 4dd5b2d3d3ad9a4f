"""`OptionParser`: flags that are the fields of dataclasses; `build_options` makes these of them."""

from __future__ import annotations

import argparse
import importlib
import sys
import types
import typing
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, Field, fields
from typing import Any, Final

from sense_trl.errors import InputError

__all__ = ["OptionParser", "build_options", "check_number", "get_class", "print_one_spelling"]

_NUMBERS: Final = {int: ((int,), "a whole number"), float: ((int, float), "a number")}
_TRUTH: Final = {"true": True, "yes": True, "false": False, "no": False}


class OptionParser(argparse.ArgumentParser):
    """argparse with a flag, or a positional argument, for each field of some dataclasses.

    A flag is the name of its field; hyphens in place of underscores are accepted. One that is a
    bool stands alone or has true or false behind it. What is not given is not in the result, so
    that the defaults are those of the dataclasses.

    Args:
        kinds: dataclasses, or `MODULE:CLASS` for what takes long to import: it is when something is
            parsed or the help is printed.
        options: of `argparse.ArgumentParser`.
    """

    def __init__(self, kinds: Sequence[type | str] = (), **options: Any) -> None:
        super().__init__(**options)
        self._kinds = [*kinds]
        self._switches: set[str] = set()

    def fill(self) -> None:
        """Add the flags of the dataclasses, if that is still to be done."""
        kinds, self._kinds = self._kinds, []
        for kind in map(get_class, kinds):
            hints = typing.get_type_hints(kind)
            for option in fields(kind):
                if option.init:
                    self._add_option(option, hints[option.name])
        print_one_spelling(self)

    def _add_option(self, option: Field[Any], hint: Any) -> None:
        text = option.metadata["help"]
        default = None if option.default is MISSING else option.default
        if option.default_factory is not MISSING:
            default = option.default_factory()
        if isinstance(default, list | tuple | dict):
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
        is_required = option.default is MISSING and option.default_factory is MISSING
        choices = option.metadata.get("choices")
        if (origin := typing.get_origin(kind)) is typing.Literal:
            kind, choices = str, typing.get_args(kind)
        elif origin is not None:
            kind = str if issubclass(origin, Mapping) else typing.get_args(kind)[0]
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
        return super().parse_known_args(self._spell(given), namespace)

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
    if value is None or origin is typing.Literal:
        return value
    if origin is None:
        return check_number(name, value, plain)
    if not issubclass(origin, Mapping):
        return origin([value] if isinstance(value, str) else value)
    if isinstance(value, Mapping):
        return dict(value)
    kind = typing.get_args(plain)[1]
    try:
        return {key: kind(text) for key, text in (item.split("=", 1) for item in value)}
    except ValueError:
        raise InputError(
            f"`{name}` is {' '.join(value)!r}; expected names with a number each, such as "
            f"{value[0].split('=')[0]}=1."
        ) from None


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


def print_one_spelling(parser: argparse.ArgumentParser) -> None:
    """Show the first spelling of each flag only; the others are accepted all the same."""
    for action in parser._actions:
        if action.option_strings and action.option_strings[0].startswith("--"):
            action.option_strings = action.option_strings[:1]


def _is_positional(option: Field[Any]) -> bool:
    return bool(option.metadata.get("positional"))


def _get_plain_type(hint: Any) -> Any:
    """`int` for both `int` and `int | None`."""
    if typing.get_origin(hint) in (types.UnionType, typing.Union):
        (hint,) = (part for part in typing.get_args(hint) if part is not types.NoneType)
    return hint
