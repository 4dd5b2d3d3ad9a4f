"""Prompts and answers as the token ids that the trainers will see."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

from sense_trl.chat_tokens import apply_chat_template
from sense_trl.errors import InputError
from sense_trl.prefix_tree import get_common_length
from sense_trl.trainers.rows.formats import get_answers, unify_row
from sense_trl.trainers.rows.long_examples import name_row

TokenRow: TypeAlias = tuple[Sequence[int], Sequence[int]]
"""Token ids of a prompt and of the answer to it."""

_ANSWERS = ("completion", "chosen")


def get_token_row(row: Mapping[str, Any], tokenizer: Any) -> TokenRow:
    """Token ids of the prompt of a dataset row and of its answer, with what ends the answer.

    The same ids as TRL's `SFTTrainer` and `DPOTrainer` make of the row: a plain answer gets the end
    token, a conversation the chat template, and the answer begins where the tokens of the prompt
    alone and those of prompt and answer part.

    Args:
        row: `prompt` and `completion` or `chosen`, as text or as messages, with `rejected`, `tools`
            and `chat_template_kwargs` where the dataset has them; or tokenised already:
            `prompt_ids` with `completion_ids` or `chosen_ids`, or `input_ids` with `labels` or
            `completion_mask`.
        tokenizer: of the model that is going to be trained.

    Raises:
        InputError: the row has none of these, or is tokenised with other tokens trained than its
            last ones.

    Example:
        >>> get_token_row({"input_ids": [5, 6, 7], "labels": [-100, 6, 7]}, tokenizer=None)
        ([5], [6, 7])
    """
    for name in _ANSWERS:
        if "prompt_ids" in row and f"{name}_ids" in row:
            return list(row["prompt_ids"]), list(row[f"{name}_ids"])
        if name in row and not {"input_ids", "prompt_ids"} & row.keys():
            row = unify_row(row, name_row(dict(row), None, "rows"))
            return _tokenize(row, row[name], tokenizer)
    if "input_ids" in row and ("labels" in row or "completion_mask" in row):
        return _split(row)
    raise InputError(
        f"A row has the columns {sorted(row)}; expected `prompt` and `completion` or `chosen`, or "
        "the token ids of both."
    )


def answers_differ(row: Mapping[str, Any], tokenizer: Any) -> bool:
    """True where no rejected answer of a row is, in tokens, its chosen one.

    Chat templates that trim make the same tokens of texts that differ in spaces alone.

    Args:
        row: `prompt`, `chosen` and `rejected`, as `get_token_row` takes them; or `chosen_ids` and
            `rejected_ids`.
        tokenizer: of the model that is going to be trained.
    """
    if "chosen_ids" in row:
        answers = row["rejected_ids"]
        answers = answers if answers and isinstance(answers[0], list) else [answers]
        return row["chosen_ids"] not in answers
    row = unify_row(row, name_row(dict(row), None, "pairs"))

    def get_tokens(answer: Any) -> list[int]:
        prompt_ids, answer_ids = get_token_row({**row, "rejected": [], "chosen": answer}, tokenizer)
        return [*prompt_ids, *answer_ids]

    chosen = get_tokens(row["chosen"])
    return all(get_tokens(answer) != chosen for answer in get_answers(row["rejected"]))


def _tokenize(row: Mapping[str, Any], answer: Any, tokenizer: Any) -> TokenRow:
    prompt = row["prompt"]
    rejected = get_answers(row.get("rejected", []))
    if isinstance(prompt, str):
        end = tokenizer.eos_token
        prompt_ids, *answers = (
            tokenizer(text)["input_ids"]
            for text in (
                prompt,
                *(prompt + (a if a.endswith(end) else a + end) for a in (answer, *rejected)),
            )
        )
    else:
        tools = row.get("tools")
        options = {
            "tools": json.loads(tools) if isinstance(tools, str) else tools,
            "tokenize": True,
            "return_dict": True,
            **(row.get("chat_template_kwargs") or {}),
        }
        prompt_ids = apply_chat_template(tokenizer, prompt, add_generation_prompt=True, **options)[
            "input_ids"
        ]
        answers = [
            apply_chat_template(tokenizer, [*prompt, *a], **options)["input_ids"]
            for a in (answer, *rejected)
        ]
    # A pair has one prompt, which ends where the first of the two answers parts from it.
    start = min(get_common_length(prompt_ids, ids) for ids in answers)
    return answers[0][:start], answers[0][start:]


def get_tokenizer(processing_class: Any) -> Any:
    """The tokenizer of what a trainer processes rows with; a processor of images holds one."""
    return getattr(processing_class, "tokenizer", processing_class)


def _split(row: Mapping[str, Any]) -> TokenRow:
    ids = list(row["input_ids"])
    trained = (
        [label != -100 for label in row["labels"]]
        if "labels" in row
        else [bool(mask) for mask in row["completion_mask"]]
    )
    start = len(ids) - sum(trained)
    if not all(trained[start:]):
        raise InputError(
            f"A row trains {sum(trained)} of {len(ids)} tokens that are not its last ones, "
            "expected an answer at the end."
        )
    return ids[:start], ids[start:]
