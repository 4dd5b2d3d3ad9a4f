"""Flags that several commands share; imports nothing heavy."""

from __future__ import annotations

import argparse
import dataclasses
import types
import typing
from collections.abc import Collection
from itertools import islice
from typing import TYPE_CHECKING, Any, Final

from sense_trl.errors import InputError

if TYPE_CHECKING:
    from sense_trl.database.engine import ExecutionLimits
    from sense_trl.generation.openai_generator import OpenAIGenerator

__all__ = [
    "add_data_arguments",
    "add_dataclass_arguments",
    "add_endpoint_arguments",
    "add_execution_arguments",
    "add_extract_argument",
    "hint_at_chat",
    "name_first",
    "take_generator",
    "take_limits",
]

# Predictions with more than SQL from which on a file looks like answers of a chat model.
_MIN_CHAT_SHARE: Final = 0.05
# The fields of `ExecutionLimits` beside `timeout_s`; its module would load the engines.
_OTHER_LIMITS: Final = (
    "max_steps",
    "max_rows",
    "max_cell_bytes",
    "max_result_bytes",
    "memory_limit_bytes",
)


def add_data_arguments(parser: argparse.ArgumentParser, *, needs_text: bool = True) -> None:
    """The questions and the databases they are asked of; see `load_questions` for `needs_text`."""
    gold_lines = "" if needs_text else ", or lines of gold SQL, a tab and the db_id"
    parser.add_argument(
        "--questions",
        required=True,
        help="questions with gold SQL, as JSON Lines or a JSON array (Spider, BIRD or own format)"
        + gold_lines,
    )
    parser.add_argument(
        "--database",
        required=True,
        help="a database file (.sqlite, .db, .duckdb), a folder of them, or a Spider or BIRD root",
    )


def add_extract_argument(parser: argparse.ArgumentParser) -> None:
    """Whether predictions are whole answers of a chat model."""
    parser.add_argument(
        "--extract",
        action="store_true",
        help="take the SQL out of each prediction first: out of fences, tags, JSON and prose, "
        "without reasoning",
    )


def hint_at_chat(
    console: Any, path: str, predictions: Collection[str], arguments: dict[str, Any]
) -> None:
    """Say so where many predictions hold more than SQL and `--extract` was not given."""
    from sense_trl.evaluation.predictions import count_chat

    if arguments["extract"]:
        return
    num_chat = count_chat(list(predictions))
    if num_chat > _MIN_CHAT_SHARE * len(predictions):
        console.print(
            f"hint: {num_chat} of {len(predictions)} predictions in {path} hold more than SQL "
            "(fences, tags, a label or prose); --extract takes the SQL out",
            soft_wrap=True,
            highlight=False,
            markup=False,
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
    parser.add_argument(
        "--query-limit",
        action="append",
        default=[],
        metavar="NAME=NUMBER",
        help=f"another limit of each query, one of {', '.join(_OTHER_LIMITS)}; may be repeated",
    )
    parser.add_argument("--cache-dir", default=None, help=f"folder to keep {kept} in")


def take_limits(arguments: dict[str, Any]) -> ExecutionLimits:
    """The limits that the flags of `add_execution_arguments` name.

    Raises:
        InputError: an unknown limit, one that is named twice, or a value that is out of range.
    """
    from sense_trl.database.engine import ExecutionLimits

    limits: dict[str, int] = {}
    for text in arguments["query_limit"]:
        name, _, number = text.partition("=")
        name = name.strip().replace("-", "_")
        if name not in _OTHER_LIMITS or name in limits:
            raise InputError(
                f"`query_limit` is {text!r}; expected NAME=NUMBER with NAME one of "
                f"{', '.join(_OTHER_LIMITS)}, each at most once."
            )
        try:
            limits[name] = int(number.replace("_", ""))
        except ValueError:
            raise InputError(
                f"`query_limit` is {text!r}; expected a whole number behind {name}=."
            ) from None
    return ExecutionLimits(timeout_s=arguments["timeout_s"], **limits)


def add_endpoint_arguments(parser: Any, *, required: bool) -> None:
    """A model behind an OpenAI-compatible server; `take_generator` makes it of the arguments.

    Args:
        parser: of the command, or a group of it.
        required: whether the command does nothing without.
    """
    parser.add_argument("--model", required=required, help="the name the server gives the model")
    parser.add_argument("--base-url", required=required, help="e.g. http://localhost:8000/v1")
    parser.add_argument(
        "--api-key-env", default=None, help="environment variable that holds the server's key"
    )
    parser.add_argument("--concurrency", type=int, default=16, help="requests under way at a time")
    parser.add_argument(
        "--request-timeout-s", type=float, default=120.0, help="seconds one request may take"
    )


def take_generator(arguments: dict[str, Any]) -> OpenAIGenerator | None:
    """Take the flags of `add_endpoint_arguments` out of the arguments.

    Returns:
        The model; None where neither `--model` nor `--base-url` was given.

    Raises:
        InputError: one of the two was.
    """
    names = ("model", "base_url", "api_key_env", "concurrency", "request_timeout_s")
    given = {name: arguments.pop(name) for name in names}
    if given["model"] is None and given["base_url"] is None:
        return None
    for name in ("model", "base_url"):
        if given[name] is None:
            raise InputError(
                f"`{name}` is missing: a model needs both --model and --base-url. Leave both out "
                "to work without one."
            )
    from sense_trl.generation.openai_generator import OpenAIGenerator

    return OpenAIGenerator(
        given["model"],
        given["base_url"],
        api_key_env=given["api_key_env"],
        concurrency=given["concurrency"],
        timeout_s=given["request_timeout_s"],
    )


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


def name_first(names: Collection[str]) -> str:
    """The first five of some names, and whether there are more."""
    return ", ".join([*islice(names, 5), *(["..."] if len(names) > 5 else [])])
