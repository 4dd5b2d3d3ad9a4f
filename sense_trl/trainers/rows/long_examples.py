"""Examples that exceed `max_length`: counted, named and left out, or refused; never cut."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable
from typing import Any

import numpy as np
from datasets import IterableDataset

from sense_trl.errors import InputError

logger = logging.getLogger(__name__)

# Columns by which a row is named in messages, in this order, besides its number.
_IDENTIFIER_COLUMNS = ("pair_id", "question_id", "id", "db_id")
_NUM_NAMED = 5

GetLength = Callable[[dict[str, Any]], Any]
"""Maps the token counts of some columns, integers or arrays of them, to the length in tokens."""


def leave_out_long_examples(
    dataset: Any,
    dataset_name: str,
    args: Any,
    *,
    columns: tuple[str, ...],
    get_length: GetLength,
    noun: str,
) -> Any:
    """Drop what is longer than `max_length`, up to `max_dropped_fraction`, and say which.

    Args:
        dataset: with lists of token ids in `columns`.
        args: config of one of our trainers.
        get_length: length of an example from the lengths of its `columns`.
        noun: what messages call the examples, in the plural.

    Raises:
        InputError: more are too long than may be left out; at the first one, if the dataset is a
            stream, of which no share is known.
    """
    if args.max_length is None:
        return dataset
    if isinstance(dataset, IterableDataset):
        return _refuse_long_ones_of_stream(dataset, dataset_name, args, columns, get_length, noun)
    lengths = np.concatenate(
        [
            get_length({column: _get_list_lengths(table, column) for column in columns})
            for table in dataset.select_columns(list(columns))
            .with_format("arrow")
            .iter(batch_size=1000)
        ]
    )
    too_long = np.flatnonzero(lengths > args.max_length)
    if not len(too_long):
        return dataset
    named = "; ".join(
        f"{name_row(dataset[int(index)], int(index), noun)}: {lengths[index]} tokens"
        for index in too_long[:_NUM_NAMED]
    )
    if len(too_long) > _NUM_NAMED:
        named += f"; and {len(too_long) - _NUM_NAMED} more"
    fraction = len(too_long) / len(dataset)
    found = (
        f"{len(too_long)} of {len(dataset)} {noun} ({fraction:.2%}) of the {dataset_name} dataset "
        f"are longer than `max_length` {args.max_length}"
    )
    if fraction > args.max_dropped_fraction:
        raise InputError(
            f"{found}, more than `max_dropped_fraction` {args.max_dropped_fraction} allows: "
            f"{named}. Set `max_length` to {lengths.max()} to keep them all, shorten their "
            f"prompts, or set `max_dropped_fraction` to at least {_round_up(fraction)} to leave "
            "them out."
        )
    logger.warning("%s and left out: %s.", found, named)
    return dataset.select(np.flatnonzero(lengths <= args.max_length))


def _refuse_long_ones_of_stream(
    dataset: IterableDataset,
    dataset_name: str,
    args: Any,
    columns: tuple[str, ...],
    get_length: GetLength,
    noun: str,
) -> IterableDataset:
    if args.max_dropped_fraction > 0:
        raise InputError(
            f"`max_dropped_fraction` is {args.max_dropped_fraction}, but the {dataset_name} "
            "dataset is an IterableDataset, of which no share is known before it is read to its "
            "end. Set it to 0 and filter the stream, or use a Dataset."
        )

    max_length = args.max_length
    assert max_length is not None

    def check(example: dict[str, Any]) -> dict[str, Any]:
        length = get_length({column: len(example[column]) for column in columns})
        if length > max_length:
            raise InputError(
                f"{name_row(example, None, noun)} of the {dataset_name} dataset has {length} "
                f"tokens, more than `max_length` {max_length}. Raise `max_length` or filter the "
                "stream."
            )
        return example

    return dataset.map(check)


def name_row(row: dict[str, Any], index: int | None, noun: str) -> str:
    """A row in a message: its number where there is one, and the columns that identify it."""
    parts = [] if index is None else [f"row {index}"]
    parts += [f"{column} {row[column]!r}" for column in _IDENTIFIER_COLUMNS if column in row]
    return ", ".join(parts) or f"one of the {noun}"


def _round_up(fraction: float) -> float:
    return math.ceil(fraction * 10_000) / 10_000


def _get_list_lengths(table: Any, column: str) -> np.ndarray:
    return table.column(column).combine_chunks().value_lengths().to_numpy(zero_copy_only=False)
