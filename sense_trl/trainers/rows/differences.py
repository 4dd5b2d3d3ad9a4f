"""Pairs of answers from the first token on in which they differ.

Two SQL queries for one question begin alike: `SELECT name FROM singer WHERE `. Of a loss that is a
function of the margin `log pi(y_w) - log pi(y_l)` alone those tokens cancel, value and gradient.
What is left to choose is where an answer ends and where it begins; both are choices about rows, so
that every loss, the reference, weights and prefix trees work on them as on any other pair.
"""

from __future__ import annotations

from typing import Any

from sense_trl.prefix_tree import get_common_length


def count_shared_tokens(chosen: Any, rejected: Any) -> int:
    """How many tokens two answers begin with alike, at most one less than the shorter one has.

    Where one answer is the beginning of the other, nothing of it differs: its last token stays
    behind, so that no answer becomes empty.

    Args:
        chosen, rejected: token ids of the answers, `[T_w]` and `[T_l]`, at least one each.

    Example:
        >>> count_shared_tokens([5, 6, 7, 2], [5, 6, 8, 9, 2])
        2
        >>> count_shared_tokens([5, 6], [5, 6, 7])
        1
    """
    return min(get_common_length(chosen, rejected), len(chosen) - 1, len(rejected) - 1)


def keep_differences(
    dataset: Any, *, shared_prefix_as_prompt: bool, truncate_rejected_after: int | None
) -> Any:
    """Begin answers, and end rejected ones, at the first token in which a pair differs.

    Done twice it changes nothing more.

    Args:
        dataset: with `prompt_ids`, `chosen_ids`, `rejected_ids`; a `Dataset` or a stream.
        shared_prefix_as_prompt: put what both answers begin with at the end of the prompt.
        truncate_rejected_after: keep of a rejected answer so many tokens from the first one that
            differs; None keeps all.

    Example:
        >>> from datasets import Dataset
        >>> row = {"prompt_ids": [1], "chosen_ids": [5, 6, 7, 2], "rejected_ids": [5, 6, 8, 9, 2]}
        >>> options = {"shared_prefix_as_prompt": True, "truncate_rejected_after": 1}
        >>> list(keep_differences(Dataset.from_list([row]), **options))
        [{'prompt_ids': [1, 5, 6], 'chosen_ids': [7, 2], 'rejected_ids': [8]}]
    """
    if not shared_prefix_as_prompt and truncate_rejected_after is None:
        return dataset

    def keep(row: dict[str, Any]) -> dict[str, Any]:
        prompt, chosen, rejected = (row[f"{p}_ids"] for p in ("prompt", "chosen", "rejected"))
        shared = count_shared_tokens(chosen, rejected)
        if truncate_rejected_after is not None:
            rejected = rejected[: shared + truncate_rejected_after]
        moved = shared if shared_prefix_as_prompt else 0
        return {
            "prompt_ids": [*prompt, *chosen[:moved]],
            "chosen_ids": chosen[moved:],
            "rejected_ids": rejected[moved:],
        }

    return dataset.map(keep)
