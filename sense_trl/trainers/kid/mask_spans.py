"""Schema items of answers as groups of tokens that are masked together."""

from __future__ import annotations

from typing import Any

from sense_trl.chat_tokens import align_offsets
from sense_trl.collators import MASK_GROUPS
from sense_trl.errors import InputError
from sense_trl.trainers.kid.imperfect import get_mask_groups

MASK_SPANS = "mask_spans"
"""Dataset column with the schema items of a completion: lists of `[start, end]` in characters."""


def add_mask_groups(dataset: Any, dataset_name: str, columns: set[str], tokenizer: Any) -> Any:
    """Add the column `mask_groups`: the item that each token belongs to, -1 for none.

    Args:
        dataset: with `prompt`, `completion`, `mask_spans` and `input_ids`.
        dataset_name: `"train"` or `"eval"`.
        columns: of the dataset.
        tokenizer: that made the `input_ids`.

    Raises:
        InputError: a column is missing, a span lies outside of its completion, or the tokenizer
            does not tell which characters a token stands for.
    """
    if missing := {MASK_SPANS, "prompt", "completion"} - columns:
        raise InputError(
            f"`mask_unit` is 'schema_item', but the {dataset_name} dataset has no column "
            f"{sorted(missing)}. It takes the texts and, for each row, the items of the completion "
            f"in `{MASK_SPANS}`, a list of [start, end] in characters. Add them, or set "
            "`mask_unit` to 'token'."
        )
    if not tokenizer.is_fast:
        raise InputError(
            "`mask_unit` is 'schema_item', but the tokenizer does not say which characters a token "
            "stands for. Load it with use_fast=True, or set `mask_unit` to 'token'."
        )

    def add(row: dict[str, Any]) -> dict[str, list[int]]:
        text, answer, start = _render(row, tokenizer)
        spans = row[MASK_SPANS]
        if spans is None:
            raise InputError(
                f"`{MASK_SPANS}` of {answer!r} is null; expected a list, empty where a row has no "
                "item."
            )
        for span in spans:
            if not (
                isinstance(span, list) and len(span) == 2 and 0 <= span[0] < span[1] <= len(answer)
            ):
                raise InputError(
                    f"`{MASK_SPANS}` has {span}; expected [start, end] within the completion's "
                    f"{len(answer)} characters: {answer!r}."
                )
        is_text = isinstance(row["prompt"], str)
        encoded = tokenizer(text, add_special_tokens=is_text, return_offsets_mapping=True)
        offsets = align_offsets(tokenizer, text, encoded, row["input_ids"])
        if offsets is None:
            raise InputError(
                f"`mask_unit` is 'schema_item', but prompt and completion of a row of the "
                f"{dataset_name} dataset give other tokens than its `input_ids`: {answer!r}. Leave "
                "`input_ids` out, or set `mask_unit` to 'token'."
            )
        shifted = [[start + first, start + last] for first, last in spans]
        return {MASK_GROUPS: get_mask_groups(offsets, shifted)}

    return dataset.map(add)


def _render(row: dict[str, Any], tokenizer: Any) -> tuple[str, str, int]:
    """The text that TRL tokenises, the answer in it, and where the answer begins."""
    prompt, completion = row["prompt"], row["completion"]
    if isinstance(prompt, str):
        return prompt + completion, completion, len(prompt)
    text = tokenizer.apply_chat_template(prompt + completion, tokenize=False)
    answer = completion[-1]["content"]
    start = text.rfind(answer)
    if start < 0:
        raise InputError(
            f"`mask_unit` is 'schema_item', but the chat template changes the answer {answer!r}. "
            "Set `mask_unit` to 'token'."
        )
    return text, answer, start
