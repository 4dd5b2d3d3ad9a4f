"""`TrainingExamples`: the largest micro-batch that a training will meet, from its own examples.

How many tokens a micro-batch computes depends on which examples meet in it: sixteen questions on
one database read its schema once, and sixteen on different ones read sixteen.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any, Final

import numpy as np

from sense_trl.collators import LINKED_TEXTS
from sense_trl.prefix_tree import PrefixTree, get_common_length

_IGNORED: Final = -100  # torch's label of a token that is not trained
# About 10,000 examples of Spider with their schemas, which take a second.
_MAX_TOKENS_READ: Final = 10_000_000
_NUM_LAID_OUT: Final = 3

Example = tuple["np.ndarray", list["np.ndarray"]]
"""Token ids of a prompt, and of each answer to it."""


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class TrainingExamples:
    """The examples of a training, by length, and the order in which an epoch draws them.

    Attributes:
        prompt_lengths: `[N]`, tokens of each example's prompt.
        answer_lengths: `[N, A]`, tokens of each of its answers.
        order: `[N]`, their indices as they are drawn.
        get_examples: reads the tokens of some of them.
        text_lengths: `[N, T]`, tokens of the texts that a linker reads of each example, which are
            rows of its batch without an answer; 0 behind the last. `[1, 0]` without a linker.
        get_texts: reads the tokens of those of some examples.
    """

    prompt_lengths: np.ndarray
    answer_lengths: np.ndarray
    order: np.ndarray
    get_examples: Callable[[np.ndarray], list[Example]]
    text_lengths: np.ndarray = field(default_factory=lambda: np.zeros((1, 0), dtype=np.int64))
    get_texts: Callable[[np.ndarray], list[np.ndarray]] = lambda indices: []

    @classmethod
    def from_examples(cls, examples: list[Example], order: np.ndarray) -> TrainingExamples:
        """Those of a list, at least one, each with as many answers."""
        return cls(
            np.array([len(prompt) for prompt, _ in examples]),
            np.array([[len(answer) for answer in answers] for _, answers in examples]),
            order,
            lambda indices: [examples[index] for index in indices],
        )

    def with_rewrites(self) -> TrainingExamples:
        """With another answer to each, of the same length, that has nothing in common with it."""

        def get_examples(indices: np.ndarray) -> list[Example]:
            # No token has a negative number.
            return [
                (prompt, [*answers, *(~answer for answer in answers)])
                for prompt, answers in self.get_examples(indices)
            ]

        lengths = self.answer_lengths.repeat(2, axis=1)
        return replace(self, answer_lengths=lengths, get_examples=get_examples)

    def with_texts(self, dataset: Any) -> TrainingExamples:
        """With those of a dataset's column `linked_texts`, one row for each example."""
        tables = dataset.select_columns([LINKED_TEXTS]).with_format("arrow")

        def get_texts(indices: np.ndarray) -> list[np.ndarray]:
            return _split(_get_text_ids(tables[indices.tolist()]))

        counts, found = [], []
        for table in tables.iter(batch_size=1000):
            counts.append(_count_values(_get_column(table, LINKED_TEXTS)))
            found.append(_count_values(_get_text_ids(table)))
        numbers = np.concatenate(counts)[:, None]
        lengths = np.zeros((len(numbers), numbers.max(initial=0)), dtype=np.int64)
        lengths[np.arange(lengths.shape[1]) < numbers] = np.concatenate(found)
        return replace(self, text_lengths=lengths, get_texts=get_texts)

    @property
    def lengths(self) -> np.ndarray:
        """`[N]`, tokens of the longest sequence of each: what `max_length` limits."""
        return np.asarray(self.prompt_lengths + self.answer_lengths.max(axis=1))

    @property
    def longest(self) -> tuple[int, int]:
        """Tokens of the prompt and of the longer answer of the longest example, at least 1 each."""
        index = int(self.lengths.argmax())
        return max(1, int(self.prompt_lengths[index])), max(
            1, int(self.answer_lengths[index].max())
        )

    def build_largest_batch(
        self, batch_size: int, *, share: bool, max_length: int | None = None
    ) -> PrefixTree:
        """The largest micro-batch of an epoch, laid out as the trainers do.

        With shared prefixes the tokens of batches are compared, those with the longest examples
        first, up to ten million of them.

        Args:
            batch_size: examples in it.
            share: whether common prefixes are computed once.
            max_length: examples with more tokens are left out; some have as many at most.
        """
        batches, sizes = self._get_batches(batch_size, share, max_length)
        by_size = np.argsort(-sizes, kind="stable")
        if not share:
            return self._build_tree(batches[by_size[0]], share=False)
        largest: list[tuple[int, int]] = []
        tokens_read = 0
        for place in by_size:
            # Those that follow would be smaller even without a token in common.
            is_found = bool(largest) and sizes[place] <= max(largest)[0]
            if is_found or tokens_read > _MAX_TOKENS_READ:
                break
            batch = batches[place]
            own = _get_sequences(self.get_examples(batch))
            size = _count_distinct([*own, *self.get_texts(batch)])
            largest.append((size, int(place)))
            tokens_read += int(sizes[place])
        # Rows are filled up to the longest, so that a little less may become a little more.
        trees = [
            self._build_tree(batches[place], share=True)
            for _, place in sorted(largest, reverse=True)[:_NUM_LAID_OUT]
        ]
        return max(trees, key=lambda tree: tree.input_ids.numel())

    def _get_batches(
        self, batch_size: int, share: bool, max_length: int | None
    ) -> tuple[list[np.ndarray], np.ndarray]:
        """Micro-batches of an epoch, and the most tokens that each may take."""
        lengths = self.lengths
        fits = lengths <= (lengths.max() if max_length is None else max_length)
        starts = np.arange(0, len(self.order), batch_size)
        drawn, texts = self.order, self.text_lengths
        if share:
            tokens = self.prompt_lengths + self.answer_lengths.sum(axis=1) + texts.sum(axis=1)
            sizes = np.add.reduceat((tokens * fits)[drawn], starts)
        else:
            num_rows = self.answer_lengths.shape[1] + (texts > 0).sum(axis=1)
            rows = np.add.reduceat((num_rows * fits)[drawn], starts)
            longest = np.maximum(lengths, texts.max(axis=1, initial=0)) * fits
            sizes = rows * np.maximum.reduceat(longest[drawn], starts)
        batches = [drawn[start : start + batch_size] for start in starts]
        return [batch[fits[batch]] for batch in batches], sizes

    def _build_tree(self, batch: np.ndarray, *, share: bool) -> PrefixTree:
        examples = self.get_examples(batch)
        texts = self.get_texts(batch)
        masks = [
            [0] * len(prompt) + [1] * len(answer)
            for prompt, answers in examples
            for answer in answers
        ]
        masks += [[0] * len(text) for text in texts]
        return PrefixTree.from_sequences([*_get_sequences(examples), *texts], masks, share=share)


def _get_sequences(examples: list[Example]) -> list[np.ndarray]:
    return [np.concatenate([prompt, answer]) for prompt, answers in examples for answer in answers]


def _count_distinct(sequences: list[np.ndarray]) -> int:
    """Tokens of the tree of all prefixes: those that a sequence has not in common with another.

    In any lexicographic order, the longest prefix that a sequence has in common with one before it
    is the one that it has in common with its neighbour; that of bytes is the fastest to sort by.
    """
    ordered = sorted(sequence.astype(np.int32).tobytes() for sequence in sequences)
    arrays = [np.frombuffer(text, dtype=np.int32) for text in ordered]
    shared = sum(map(get_common_length, arrays, arrays[1:]))
    return sum(map(len, arrays)) - shared


# ----------------------------------------------------------------------------- of a trainer


def read_examples(trainer: Any) -> TrainingExamples | None:
    """The examples of a trainer that is built, in the order of its sampler.

    Args:
        trainer: one of ours.

    Returns:
        None for a stream, which is not read ahead.
    """
    import torch
    from datasets import IterableDataset

    dataset = trainer.train_dataset
    if isinstance(dataset, IterableDataset):
        return None
    # A random order is drawn from torch's generator, which training is to find as it was.
    with torch.random.fork_rng(devices=[]):
        order = np.fromiter(trainer._get_train_sampler(), dtype=np.int64)
    if "prompt_ids" in dataset.column_names:
        return _read_pairs(dataset, order)
    examples = _read_answers(dataset, order)
    trains_linker = getattr(trainer, "linking", None) is not None
    return examples.with_texts(dataset) if trains_linker else examples


def _read_pairs(dataset: Any, order: np.ndarray) -> TrainingExamples:
    columns = ["prompt_ids", "chosen_ids", "rejected_ids"]
    tables = dataset.select_columns(columns).with_format("arrow")
    lengths = np.concatenate(
        [
            np.stack([_count_values(_get_column(table, column)) for column in columns], axis=1)
            for table in tables.iter(batch_size=1000)
        ]
    )

    def get_examples(indices: np.ndarray) -> list[Example]:
        table = tables[indices.tolist()]
        prompts, *answers = (_split(_get_column(table, column)) for column in columns)
        return [(prompt, list(both)) for prompt, *both in zip(prompts, *answers, strict=True)]

    return TrainingExamples(lengths[:, 0], lengths[:, 1:], order, get_examples)


def _read_answers(dataset: Any, order: np.ndarray) -> TrainingExamples:
    has_labels = "labels" in dataset.column_names
    tables = dataset.select_columns(
        ["input_ids", "labels"] if has_labels else ["input_ids"]
    ).with_format("arrow")
    found, trained = [], []
    for table in tables.iter(batch_size=1000):
        found.append(_count_values(_get_column(table, "input_ids")))
        trained.append(_count_trained(table) if has_labels else found[-1])
    lengths = np.concatenate(found)
    # Nothing predicts the first token.
    prompt_lengths = np.maximum(lengths - np.concatenate(trained), 1)
    answer_lengths = (lengths - prompt_lengths)[:, None]

    def get_examples(indices: np.ndarray) -> list[Example]:
        sequences = _split(_get_column(tables[indices.tolist()], "input_ids"))
        prompts = prompt_lengths[indices]
        return [(ids[:n], [ids[n:]]) for ids, n in zip(sequences, prompts, strict=True)]

    return TrainingExamples(prompt_lengths, answer_lengths, order, get_examples)


def _get_column(table: Any, column: str) -> Any:
    """The lists of an Arrow table's column."""
    return table.column(column).combine_chunks()


def _get_text_ids(table: Any) -> Any:
    return _get_column(table, LINKED_TEXTS).flatten().field("input_ids")


def _count_values(lists: Any) -> np.ndarray:
    # A row may have no list.
    lengths = lists.value_lengths().fill_null(0).to_numpy(zero_copy_only=False)
    return np.asarray(lengths, dtype=np.int64)


def _split(lists: Any) -> list[np.ndarray]:
    return np.split(lists.flatten().to_numpy(), np.cumsum(_count_values(lists))[:-1])


def _count_trained(table: Any) -> np.ndarray:
    labels = _split(_get_column(table, "labels"))
    return np.array([np.count_nonzero(row != _IGNORED) for row in labels])
