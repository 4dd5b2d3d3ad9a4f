"""Flags that several commands share; imports nothing heavy."""

from __future__ import annotations

import argparse
import dataclasses
import types
import typing
from typing import Any

__all__ = ["add_data_arguments", "add_dataclass_arguments", "add_execution_arguments"]


def add_data_arguments(parser: argparse.ArgumentParser) -> None:
    """The questions and the databases they are asked of."""
    parser.add_argument(
        "--questions",
        required=True,
        help="questions with gold SQL, as JSON Lines or a JSON array (Spider, BIRD or own format)",
    )
    parser.add_argument(
        "--database",
        required=True,
        help="a database file (.sqlite, .db, .duckdb), a folder of them, or a Spider or BIRD root",
    )


def add_execution_arguments(
    parser: argparse.ArgumentParser, *, kept: str = "results of slow gold queries"
) -> None:
    """How SQL is executed.

    Args:
        parser: of the command.
        kept: what the command keeps in `--cache-dir`.
    """
    parser.add_argument(
        "--num-workers",
        type=int,
        default=None,
        help="worker processes; 0 runs queries in this process, without a way to stop some of them",
    )
    parser.add_argument("--timeout-s", type=float, default=30.0, help="seconds each query may run")
    parser.add_argument("--cache-dir", default=None, help=f"folder to keep {kept} in")


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
