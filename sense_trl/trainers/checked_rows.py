"""Datasets that nothing can be learned from: refused with the column and the rows."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

from datasets import Dataset, IterableDataset

from sense_trl.errors import InputError
from sense_trl.trainers.long_examples import name_row

_NUM_NAMED: Final = 5


def check_datasets(
    train_dataset: Any, eval_dataset: Any, layouts: Sequence[tuple[str, ...]]
) -> None:
    """Refuse datasets without rows, without the columns of any layout, or with nulls in them.

    Args:
        train_dataset: what a trainer was given; None is left to TRL.
        eval_dataset: the same, or a dict of them.
        layouts: the columns that a dataset may have its text or tokens in; empty for any.

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
            _check_dataset(argument, dataset, layouts)


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
    if isinstance(dataset, IterableDataset):

        def check(row: dict[str, Any]) -> dict[str, Any]:
            if row["chosen_ids"] == row["rejected_ids"]:
                raise InputError(_describe_equal(name_row(row, None, "pairs"), dataset_name))
            return row

        return dataset.map(check)
    equal: list[int] = []
    tables = dataset.select_columns(["chosen_ids", "rejected_ids"]).with_format("arrow")
    start = 0
    for table in tables.iter(batch_size=1000):
        answers = zip(
            table.column("chosen_ids").to_pylist(),
            table.column("rejected_ids").to_pylist(),
            strict=True,
        )
        equal += [start + i for i, (chosen, rejected) in enumerate(answers) if chosen == rejected]
        start += len(table)
    if equal:
        names = _name_rows(dataset, equal, "pairs")
        found = f"{len(equal)} of {len(dataset)} pairs: {names}"
        raise InputError(_describe_equal(found, dataset_name))
    return dataset


def _describe_equal(found: str, dataset_name: str) -> str:
    return (
        f"`chosen` and `rejected` of the {dataset_name} dataset are the same answer in {found}. "
        "Nothing is learned from such a pair, and whatever built it has a mistake. Leave them out "
        "with `dataset.filter(lambda row: row['chosen'] != row['rejected'])`, or mend the answers."
    )


def _check_dataset(argument: str, dataset: Any, layouts: Sequence[tuple[str, ...]]) -> None:
    if not isinstance(dataset, Dataset | IterableDataset):
        raise InputError(
            f"`{argument}` is a {type(dataset).__name__}, expected a datasets.Dataset. "
            "`Dataset.from_list(rows)` makes one of dicts."
        )
    first = next(iter(dataset), None)
    if first is None:
        raise InputError(
            f"`{argument}` has no rows, expected at least one. If a filter made it, it let nothing "
            "through."
        )
    if not layouts:
        return
    layout = next((columns for columns in layouts if first.keys() >= {*columns}), None)
    if layout is None:
        expected = "; or ".join(", ".join(f"`{name}`" for name in columns) for columns in layouts)
        raise InputError(
            f"`{argument}` has the columns {sorted(first)}, expected {expected}. Rename yours with "
            "`dataset.rename_columns({'yours': 'expected'})`."
        )
    columns = [*layout, "prompt"] if "prompt" in first and "prompt" not in layout else [*layout]
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
