"""Examples with several rejected answers as pairs, which TRL's preference losses are defined on."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from datasets import IterableDataset

from sense_trl.errors import InputError

EXAMPLE_INDEX = "example_index"
"""Column that says which pairs were one example."""


def split_rejected_lists(dataset: Any, pair_columns: Sequence[str]) -> Any:
    """One row for each rejected answer of a dataset whose `rejected` is a list of answers.

    All other columns are repeated, and `example_index` is added, by which the pairs of an example
    are drawn into the same batch: with shared prefixes, its prompt and chosen answer are computed
    once. A dataset with one rejected answer per row is returned as it is.

    Args:
        dataset: with `rejected`, a list of texts or of conversations, or `rejected_ids`, a list of
            lists of token ids.
        pair_columns: where their values are lists too, they are one value per rejected answer.

    Raises:
        InputError: an example has no rejected answer, or another number of values.
    """
    first = next(iter(dataset))
    column = "rejected_ids" if "rejected_ids" in first else "rejected"
    if not _is_list_of_answers(first.get(column), is_tokenized=column == "rejected_ids"):
        return dataset

    def split(batch: dict[str, list[Any]], indices: list[int]) -> dict[str, list[Any]]:
        rows: dict[str, list[Any]] = {name: [] for name in [*batch, EXAMPLE_INDEX]}
        for place, index in enumerate(indices):
            answers = batch[column][place]
            per_answer = {column: answers}
            for name in pair_columns:
                if name in batch and isinstance(batch[name][place], list):
                    per_answer[name] = batch[name][place]
            _check(per_answer, column, index)
            for name, values in batch.items():
                repeated = [values[place]] * len(answers)
                rows[name] += per_answer.get(name, repeated)
            rows[EXAMPLE_INDEX] += [index] * len(answers)
        return rows

    # Without its old columns, so that `rejected` may change its type.
    options = {} if isinstance(dataset, IterableDataset) else {"desc": "Pairing rejected answers"}
    return dataset.map(
        split, batched=True, with_indices=True, remove_columns=dataset.column_names, **options
    )


def _is_list_of_answers(value: Any, *, is_tokenized: bool) -> bool:
    if not isinstance(value, list):
        return False
    # A conversation is a list of messages, and one tokenised answer a list of numbers.
    return not value or isinstance(value[0], list if is_tokenized else str | list)


def _check(per_answer: dict[str, list[Any]], column: str, index: int) -> None:
    if not per_answer[column]:
        raise InputError(
            f"`{column}` of row {index} is empty; expected one or more answers. Leave out "
            "questions without a rejected answer."
        )
    for name, values in per_answer.items():
        if len(values) != len(per_answer[column]):
            raise InputError(
                f"`{name}` of row {index} has {len(values)} entries; expected one for each of its "
                f"{len(per_answer[column])} rejected answers."
            )
