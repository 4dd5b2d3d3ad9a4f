"""Ends of trained answers: generation is made to stop at them, or training is refused."""

from __future__ import annotations

import functools
import itertools
import logging
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np
from datasets import IterableDataset

from sense_trl.end_tokens import add_end_token, get_end_token_ids, get_special_ids
from sense_trl.errors import InputError
from sense_trl.trainers.rows.checks import iterate_token_ids
from sense_trl.trainers.rows.long_examples import name_row

logger = logging.getLogger(__name__)

# Of a stream only the first rows are looked at.
_NUM_STREAMED: Final = 16
# Behind the last word of an answer.
_NUM_READ: Final = 64
_NUM_NAMED: Final = 3
_NUM_SHOWN: Final = 5
_NOT_TRAINED: Final = -100


@dataclass
class AnswerEnds:
    """The special tokens that the trained tokens of a dataset's rows end in.

    A key is those that follow the text of an answer, in order, blanks between and behind them left
    out; it is empty where an answer ends in text.

    Attributes:
        counts: to how many rows end so.
        examples: to the first rows that do, as messages name them.
    """

    counts: dict[tuple[int, ...], int] = field(default_factory=dict)
    examples: dict[tuple[int, ...], list[str]] = field(default_factory=dict)


def find_answer_ends(dataset: Any, column: str, tokenizer: Any) -> AnswerEnds:
    """Find the special tokens that the rows of a dataset end in.

    Args:
        dataset: of a stream the first rows count.
        column: of token ids, -100 where a token is not trained.
    """
    # The unknown token stands for text.
    special = get_special_ids(tokenizer) - {tokenizer.unk_token_id}
    is_blank = functools.cache(lambda token: not tokenizer.decode([token]).strip())
    streamed: list[Any] | None = None
    if isinstance(dataset, IterableDataset):
        streamed = list(itertools.islice(dataset, _NUM_STREAMED))
    rows = iterate_token_ids(dataset, column) if streamed is None else (r[column] for r in streamed)
    ends = AnswerEnds()
    for index, ids in enumerate(rows):
        ids = np.asarray(ids)
        trained = ids[ids != _NOT_TRAINED][-_NUM_READ:].tolist()
        tail = itertools.takewhile(lambda t: t in special or is_blank(t), reversed(trained))
        end = tuple(dict.fromkeys(token for token in [*tail][::-1] if token in special))
        ends.counts[end] = ends.counts.get(end, 0) + 1
        examples = ends.examples.setdefault(end, [])
        if len(examples) < _NUM_NAMED:
            row = dataset[index] if streamed is None else streamed[index]
            name = name_row(row, index, "rows")
            examples.append(f"{name} in {tokenizer.decode(trained[-_NUM_SHOWN:])!r}")
    return ends


def ensure_answers_end(
    ends: AnswerEnds, model: Any, tokenizer: Any, *, is_required: bool = True
) -> None:
    """Have generation stop at the token that trained answers end in, or refuse answers without one.

    A model that is trained on answers whose end generation does not stop at writes them and goes on
    until its limit. Where all of them end in one special token, that one becomes an end token of
    the model's generation config and the tokenizer's `eos_token`, both of which are saved.

    Args:
        ends: of the training dataset.
        model, tokenizer: those that are trained and saved; changed.
        is_required: whether answers that end in no special token are refused; else the log says so.

    Raises:
        InputError: answers end in text, or in several tokens of which none is an end token.
    """
    known = {*get_end_token_ids(model)}
    missing = [end for end in ends.counts if not known.intersection(end)]
    if not missing:
        return
    eos = tokenizer.eos_token_id
    # They stand for something else, unless one of them is the end as well.
    others = {tokenizer.bos_token_id, tokenizer.pad_token_id} - {eos}
    # Generation meets the first one first.
    found = {end: next((t for t in end if t not in others), None) for end in missing}
    new = {token for token in found.values() if token != eos}
    without = [end for end, token in found.items() if token is None]
    if without or len(new) > 1:
        message = _describe(ends, without or missing, tokenizer)
        if is_required:
            raise InputError(f"{message} `require_end_token=False` trains on them all the same.")
        logger.warning("%s", message)
        return
    for token in {token for token in found.values() if token is not None}:
        name = tokenizer.convert_ids_to_tokens(token)
        add_end_token(model, token)
        logger.warning(
            "Trained answers end in %r, which the model's generation did not stop at. It is an end "
            "token of the generation config from now on%s.",
            name,
            ", and the tokenizer's `eos_token`" if token in new else "",
        )
        if token in new:
            tokenizer.eos_token = name


def _describe(ends: AnswerEnds, missing: list[tuple[int, ...]], tokenizer: Any) -> str:
    num_rows = sum(ends.counts[end] for end in missing)
    named = "; ".join(name for end in missing for name in ends.examples[end])
    return (
        f"The trained tokens of {num_rows} of {sum(ends.counts.values())} rows do not end in a "
        f"token that generation can stop at: {_shorten(named)}. A model that learns from them "
        f"never stops writing. Have the chat template write the end token, {tokenizer.eos_token!r} "
        "of this tokenizer, behind the assistant's message (with `assistant_only_loss` inside of "
        f"`{{% generation %}}`), or let your token ids end in {tokenizer.eos_token_id}."
    )


def _shorten(text: str, length: int = 400) -> str:
    return text if len(text) <= length else text[:length] + "..."
