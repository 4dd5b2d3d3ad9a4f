"""What option groups that several commands share are made into; imports nothing heavy."""

from __future__ import annotations

from collections.abc import Collection
from itertools import islice
from typing import TYPE_CHECKING, Any, Final

from sense_trl.errors import InputError
from sense_trl.options import OTHER_LIMITS, EndpointOptions, ExecutionOptions, ExtractOptions

if TYPE_CHECKING:
    from sense_trl.database.engine import ExecutionLimits
    from sense_trl.generation.openai_generator import OpenAIGenerator

__all__ = ["get_generator", "get_limits", "hint_at_chat", "name_first"]

# Predictions with more than SQL from which on a file looks like answers of a chat model.
_MIN_CHAT_SHARE: Final = 0.05


def hint_at_chat(
    console: Any, path: str, predictions: Collection[str], options: ExtractOptions
) -> None:
    """Say so where many predictions hold more than SQL and `--extract` was not given."""
    from sense_trl.evaluation.predictions import count_chat

    if options.extract:
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


def get_limits(options: ExecutionOptions) -> ExecutionLimits:
    """The limits that the options name.

    Raises:
        InputError: an unknown limit, one that is named twice, or a value that is out of range.
    """
    from sense_trl.database.engine import ExecutionLimits

    limits: dict[str, int] = {}
    for text in options.query_limit:
        name, _, number = text.partition("=")
        name = name.strip().replace("-", "_")
        if name not in OTHER_LIMITS or name in limits:
            raise InputError(
                f"`query_limit` is {text!r}; expected NAME=NUMBER with NAME one of "
                f"{', '.join(OTHER_LIMITS)}, each at most once."
            )
        try:
            limits[name] = int(number.replace("_", ""))
        except ValueError:
            raise InputError(
                f"`query_limit` is {text!r}; expected a whole number behind {name}=."
            ) from None
    return ExecutionLimits(timeout_s=options.timeout_s, **limits)


def get_generator(options: EndpointOptions) -> OpenAIGenerator | None:
    """The model that the options name.

    Returns:
        None where neither `model_name_or_path` nor `base_url` was given.

    Raises:
        InputError: one of the two was.
    """
    if options.model_name_or_path is None and options.base_url is None:
        return None
    for name in ("model_name_or_path", "base_url"):
        if getattr(options, name) is None:
            raise InputError(
                f"`{name}` is missing: a model needs both --model_name_or_path and --base_url. "
                "Leave both out to work without one."
            )
    assert options.model_name_or_path is not None and options.base_url is not None
    from sense_trl.generation.openai_generator import OpenAIGenerator

    return OpenAIGenerator(
        options.model_name_or_path,
        options.base_url,
        api_key_env=options.api_key_env,
        concurrency=options.concurrency,
        timeout_s=options.request_timeout_s,
    )


def name_first(names: Collection[str]) -> str:
    """The first five of some names, and whether there are more."""
    return ", ".join([*islice(names, 5), *(["..."] if len(names) > 5 else [])])
