"""Columns of preference data with one number per pair: its weight, and its target margin."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable
from typing import Any

import numpy as np
from datasets import IterableDataset

from sense_trl.collators import PAIR_MARGIN, PAIR_WEIGHT
from sense_trl.errors import InputError
from sense_trl.trainers.rows.checks import get_column_names

logger = logging.getLogger(__name__)


def prepare_pair_columns(dataset: Any, dataset_name: str, args: Any) -> Any:
    """Put weights and margins of pairs into `pair_weight` and `pair_margin`, checked.

    Weights are scaled to a mean of 1 over the dataset; those of a stream, whose mean is not known,
    are taken as they are. A column that `args` turns off is taken away, and so is one that changes
    nothing (equal weights, margins of 0) where a loss takes none.

    Args:
        dataset: a `Dataset` or a stream.
        dataset_name: `"train"` or `"eval"`.
        args: a `SenseDPOConfig`, which names the columns.

    Raises:
        InputError: a column that is named is missing, a value cannot be used, or changes something
            where a loss takes none.
    """
    dataset = _prepare_column(dataset, dataset_name, args, PAIR_WEIGHT, _scale_weights)
    return _prepare_column(dataset, dataset_name, args, PAIR_MARGIN, _convert_margins)


def _prepare_column(
    dataset: Any,
    dataset_name: str,
    args: Any,
    target: str,
    convert: Callable[[Any, str, str], Any],
) -> Any:
    """Put the values of the column that `args` names into the column `target`."""
    option = f"{target}_column"
    column = getattr(args, option)
    columns = get_column_names(dataset)
    if column is None:
        # The collator takes any column of this name.
        return dataset.remove_columns(target) if target in columns else dataset
    if column in columns:
        prepared = convert(dataset, dataset_name, column)
        try:
            args.check_losses_take_column(option, column)
        except InputError:
            if not _is_neutral(prepared, target):
                raise
            return prepared.remove_columns(target)
        return prepared
    if column != target:
        raise InputError(
            f"`{option}` is {column!r}, but the {dataset_name} dataset has only the columns "
            f"{sorted(columns)}. Name one of them, or leave the option out."
        )
    return dataset


def _is_neutral(dataset: Any, target: str) -> bool:
    """Whether every pair has the value that changes no loss; not known of a stream."""
    if isinstance(dataset, IterableDataset):
        return False
    neutral = 1.0 if target == PAIR_WEIGHT else 0.0
    return np.allclose(dataset[target][:], neutral, rtol=0.0, atol=1e-9)


def _convert_margins(dataset: Any, dataset_name: str, column: str) -> Any:
    def check(row: dict[str, Any], index: int) -> dict[str, float]:
        value = row[column]
        if not _is_finite(value):
            raise InputError(
                f"Row {index} of the margin column {column!r} of the {dataset_name} dataset is "
                f"{value!r}; expected a finite number; 0 asks for nothing more than a preference."
            )
        return {PAIR_MARGIN: float(value)}

    return dataset.map(check, with_indices=True)


def _scale_weights(dataset: Any, dataset_name: str, column: str) -> Any:
    if isinstance(dataset, IterableDataset):
        logger.info(
            "The weights of the %s dataset are used as they are: the mean of a stream is not "
            "known.",
            dataset_name,
        )
        return dataset.map(
            lambda row: {PAIR_WEIGHT: float(_check_weights([row[column]], column, dataset_name)[0])}
        )
    weights = _check_weights(dataset.select_columns(column)[:][column], column, dataset_name)
    mean = weights.mean()
    if mean == 0:
        raise InputError(
            f"Every weight of the column {column!r} of the {dataset_name} dataset is 0; expected "
            "at least one above. Correct the column or set `pair_weight_column` to null."
        )
    if abs(mean - 1) > 1e-6:
        logger.info(
            "Scaled the pair weights of the %s dataset (column %r) from a mean of %.6g to 1.",
            dataset_name,
            column,
            mean,
        )
        weights = weights / mean
    if PAIR_WEIGHT in dataset.column_names:
        dataset = dataset.remove_columns(PAIR_WEIGHT)
    return dataset.add_column(PAIR_WEIGHT, weights)


def _check_weights(values: Any, column: str, dataset_name: str) -> np.ndarray:
    """`values` as float64 `[num_pairs]`, all finite and at least 0."""
    for index, value in enumerate(values):
        if not (_is_finite(value) and value >= 0):
            raise InputError(
                f"Row {index} of the weight column {column!r} of the {dataset_name} dataset is "
                f"{value!r}; expected a finite number of at least 0."
            )
    return np.asarray(values, dtype=np.float64)


def _is_finite(value: Any) -> bool:
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return is_number and math.isfinite(value)
