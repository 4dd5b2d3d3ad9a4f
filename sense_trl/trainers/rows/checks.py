"""Datasets that nothing can be learned from: refused with the column and the rows."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, Final

import numpy as np
from datasets import Dataset, IterableDataset

from sense_trl.errors import InputError
from sense_trl.trainers.rows.long_examples import name_row

_NUM_NAMED: Final = 5


def check_datasets(
    train_dataset: Any,
    eval_dataset: Any,
    layouts: Sequence[tuple[str, ...]],
    *,
    remedy: str = "Rename yours with `dataset.rename_columns({'yours': 'expected'})`.",
) -> None:
    """Refuse datasets without rows, without the columns of any layout, or with nulls in them.

    Args:
        train_dataset: what a trainer was given; None is left to TRL.
        eval_dataset: the same, or a dict of them.
        layouts: the columns that a dataset may have its text or tokens in; empty for any. A prompt
            may be missing where both answers are conversations that begin with it.
        remedy: what to do about other columns.

    Raises:
        InputError: names the dataset, the column and the first rows. Of a stream only the first
            row is looked at.
    """
    named = {"train_dataset": train_dataset}
    if isinstance(eval_dataset, dict):
        named |= {f"eval_dataset[{name!r}]": part for name, part in eval_dataset.items()}
    else:
        named["eval_dataset"] = eval_dataset
    for argument, dataset in named.items():
        if dataset is not None:
            _check_dataset(argument, dataset, layouts, remedy)


def refuse_equal_answers(dataset: Any, dataset_name: str) -> Any:
    """Refuse pairs whose chosen and rejected answers are the same tokens; returns the dataset.

    Such a pair has no gradient in any loss of the difference, and comes from a mistake where pairs
    were built.

    Args:
        dataset: with `chosen_ids` and `rejected_ids`; a stream is checked as it is read.
        dataset_name: `"train"` or `"eval"`.

    Raises:
        InputError: counts them and names the first.
    """
    return refuse_rows(
        dataset,
        ("chosen_ids", "rejected_ids"),
        lambda chosen, rejected: np.array_equal(chosen, rejected),
        lambda found: _describe_equal(found, dataset_name),
        noun="pairs",
    )


def refuse_untrained_rows(dataset: Any, dataset_name: str, column: str, noun: str) -> Any:
    """Refuse rows without a token that is learned; returns the dataset.

    Args:
        dataset: a stream is checked as it is read.
        dataset_name: `"train"` or `"eval"`.
        column: `labels`, -100 where nothing is learned and of no use for the first token, which
            nothing predicts; or the token ids of an answer.
        noun: what messages call the rows, in the plural.

    Raises:
        InputError: counts them and names the first.
    """

    def has_nothing(ids: np.ndarray) -> bool:
        if column == "labels":
            return not (ids[1:] != -100).any()
        return not len(ids)

    return refuse_rows(
        dataset,
        (column,),
        has_nothing,
        lambda found: (
            f"`{column}` of the {dataset_name} dataset has no token to learn in {found}. They "
            "would count as examples and teach nothing. Leave them out, or look at what marks the "
            "answers (`labels`, `completion_mask`, the chat template)."
        ),
        noun=noun,
    )


def refuse_rows(
    dataset: Any,
    columns: Sequence[str],
    is_refused: Callable[..., bool],
    describe: Callable[[str], str],
    *,
    noun: str,
) -> Any:
    """Refuse a dataset for some of its rows; returns it if there are none.

    Args:
        dataset: a stream is checked as it is read.
        columns: of token ids.
        is_refused: gets the token ids of each column.
        describe: makes the message of what was found.
        noun: what messages call the rows, in the plural.

    Raises:
        InputError: counts the rows and names the first.
    """
    if isinstance(dataset, IterableDataset):

        def check(row: dict[str, Any]) -> dict[str, Any]:
            if is_refused(*(np.asarray(row[column]) for column in columns)):
                raise InputError(describe(name_row(row, None, noun)))
            return row

        return dataset.map(check)
    found = [
        index
        for index, ids in enumerate(
            zip(*(iterate_token_ids(dataset, column) for column in columns), strict=True)
        )
        if is_refused(*ids)
    ]
    if found:
        names = _name_rows(dataset, found, noun)
        raise InputError(describe(f"{len(found)} of {len(dataset)} {noun}: {names}"))
    return dataset


def get_column_names(dataset: Any) -> set[str]:
    """Columns of a dataset; a stream may not know them before its first example is read."""
    return set(dataset.column_names or next(iter(dataset)))


def iterate_token_ids(dataset: Dataset, column: str) -> Iterator[np.ndarray]:
    """The token ids of each row, without a Python object for each."""
    for table in dataset.select_columns([column]).with_format("arrow").iter(batch_size=1000):
        for chunk in table.column(column).chunks:
            ends = np.cumsum(chunk.value_lengths().to_numpy(zero_copy_only=False))
            ids = chunk.flatten().to_numpy(zero_copy_only=False)
            yield from np.split(ids, ends.astype(np.int64))[: len(chunk)]


def _describe_equal(found: str, dataset_name: str) -> str:
    return (
        f"`chosen` and `rejected` of the {dataset_name} dataset are the same answer in {found}. "
        "Nothing is learned from such a pair, and whatever built it has a mistake; a chat template "
        "may trim what differs. Mend the answers, or leave such pairs out with `dataset.filter("
        "lambda row: answers_differ(row, tokenizer))` of sense_trl.trainers.rows.token_rows."
    )


def _check_dataset(
    argument: str, dataset: Any, layouts: Sequence[tuple[str, ...]], remedy: str
) -> None:
    if isinstance(dataset, dict):
        raise InputError(
            f"`{argument}` is a {type(dataset).__name__} of {sorted(map(str, dataset))}; expected "
            "one of its parts, e.g. `dataset['train']`."
        )
    if not isinstance(dataset, Dataset | IterableDataset):
        raise InputError(
            f"`{argument}` is a {type(dataset).__name__}; expected a datasets.Dataset. "
            "`Dataset.from_list(rows)` makes one of dicts."
        )
    first = next(iter(dataset), None)
    if first is None:
        raise InputError(
            f"`{argument}` has no rows; expected at least one. If a filter made it, it let nothing "
            "through."
        )
    if not layouts:
        return
    # A prompt cannot be told from two texts, but from two conversations it can.
    implied = {"prompt"} if isinstance(first.get("chosen"), list) else set()
    found = (columns for columns in layouts if first.keys() >= {*columns} - implied)
    layout = next(found, None)
    if layout is None:
        expected = "; or ".join(", ".join(f"`{name}`" for name in columns) for columns in layouts)
        raise InputError(
            f"`{argument}` has the columns {sorted(first)}; expected {expected}. {remedy}"
        )
    columns = [name for name in dict.fromkeys([*layout, "prompt"]) if name in first]
    if isinstance(dataset, Dataset):
        _refuse_nulls(argument, dataset, columns)


def _refuse_nulls(argument: str, dataset: Dataset, columns: list[str]) -> None:
    nulls: dict[str, list[int]] = {column: [] for column in columns}
    start = 0
    for table in dataset.select_columns(columns).with_format("arrow").iter(batch_size=1000):
        for column, rows in nulls.items():
            is_null = table.column(column).is_null()
            if table.column(column).null_count:
                rows += [start + i for i, null in enumerate(is_null.to_pylist()) if null]
        start += len(table)
    for column, rows in nulls.items():
        if rows:
            raise InputError(
                f"`{column}` of `{argument}` is null in {len(rows)} of {len(dataset)} rows: "
                f"{_name_rows(dataset, rows, 'rows')}. Fill them in, or leave them out with "
                f"`dataset.filter(lambda row: row[{column!r}] is not None)`."
            )


def _name_rows(dataset: Dataset, rows: list[int], noun: str) -> str:
    named = "; ".join(name_row(dataset[index], index, noun) for index in rows[:_NUM_NAMED])
    more = len(rows) - _NUM_NAMED
    return f"{named}; and {more} more" if more > 0 else named
