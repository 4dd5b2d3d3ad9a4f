"""`StateReader`: hidden states of a frozen causal language model at spans of what it reads."""

from __future__ import annotations

import copy
import hashlib
import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate, chain
from typing import Any, Final

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import DynamicCache

from sense_trl.errors import InputError, ModelError
from sense_trl.model_traits import find_partial_attention, get_cache_argument
from sense_trl.trainers.teachers.cache import get_tokenizer_digest
from sense_trl.trainers.teachers.model_identity import describe_settings, get_weights_digest

MAX_BLOCK_CHARS: Final = 12_000
"""Of a block of a schema that is read at once, where the context has room."""
_DEPTH: Final = 2 / 3
# Tokens of texts that are read behind a prefix at a time.
_MAX_TOKENS: Final = 512


@dataclass(frozen=True, slots=True)
class Prefix:
    """What was read of a prefix.

    Attributes:
        states: `[spans, hidden]`, the mean of the states of the tokens of each.
        cache: keys and values of its tokens.
        num_tokens: of the prefix.
    """

    states: Tensor
    cache: Any
    num_tokens: int


class StateReader:
    """Reads prefixes, and texts behind them, up to a layer of a model.

    Layers above are not run, and the norm behind the last one is not applied.

    Args:
        model: a causal language model with full attention, such as Llama or Qwen2; PEFT's adapters
            stay on. It is not changed.
        tokenizer: its fast tokenizer.
        layer: the layer whose output is taken, from 1; the one at two thirds of the depth if not
            given.

    Raises:
        InputError: there is no such layer.
        ModelError: a token does not see all that came before it, the model's decoder has no
            `layers` and `norm`, or the tokenizer does not tell where tokens stand.
    """

    def __init__(self, model: Any, tokenizer: Any, *, layer: int | None = None) -> None:
        base = model.get_base_model() if hasattr(model, "peft_config") else model
        if (reason := find_partial_attention(base.config)) is not None:
            raise ModelError(f"States cannot be read behind a shared prefix: {reason}.")
        decoder = base.base_model
        if not (hasattr(decoder, "layers") and hasattr(decoder, "norm")):
            raise ModelError(
                f"{type(decoder).__name__} has no `layers` and `norm`; expected a decoder such as "
                "Llama, Mistral, Qwen2 or Qwen3."
            )
        if not tokenizer.is_fast:
            raise ModelError("The tokenizer does not tell where tokens stand; use a fast one.")
        count = len(decoder.layers)
        self.layer: Final = max(1, round(_DEPTH * count)) if layer is None else layer
        if not 1 <= self.layer <= count:
            raise InputError(f"`layer` is {layer}; the model has the layers 1 to {count}.")
        # A copy that shares all weights.
        self._decoder = copy.copy(decoder)
        self._decoder._modules = dict(decoder._modules)
        self._decoder.layers = decoder.layers[: self.layer]
        self._decoder.norm = nn.Identity()
        self._tokenizer = tokenizer
        self.hidden_size: Final = int(base.config.hidden_size)
        self.context: Final = int(getattr(base.config, "max_position_embeddings", sys.maxsize))

    @property
    def last_layer(self) -> nn.Module:
        """The model's own layer whose output is taken."""
        layer: nn.Module = self._decoder.layers[-1]
        return layer

    def read_row(self, input_ids: Sequence[int]) -> Tensor:
        """States of a text that is tokenised already, `[tokens, hidden]`."""
        ids = torch.tensor([input_ids], device=self._decoder.embed_tokens.weight.device)
        states: Tensor = self._decoder(input_ids=ids, use_cache=False).last_hidden_state
        return states[0]

    def get_identity(self) -> str:
        """Identity of what makes states of texts: weights, settings, tokens and the layer."""
        parts = [
            describe_settings(self._decoder),
            get_weights_digest(self._decoder.named_parameters()),
            get_tokenizer_digest(self._tokenizer),
            self.layer,
        ]
        return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()

    @torch.no_grad()  # type: ignore[untyped-decorator]
    def read_prefix(self, text: str, spans: Sequence[tuple[int, int]]) -> Prefix:
        """Read a prefix.

        Args:
            text: at least one token.
            spans: `[start, end)` in characters.

        Raises:
            InputError: it is longer than the model's context.
        """
        ids, pieces = tokenize(self._tokenizer, text, spans)
        self._check_length(0, len(ids))
        device = self._decoder.embed_tokens.weight.device
        cache = DynamicCache(config=self._decoder.config)
        output = self._decoder(
            input_ids=torch.tensor([ids], device=device),
            use_cache=True,
            return_dict=True,
            **{get_cache_argument(self._decoder): cache},
        )
        states = average(output.last_hidden_state[0], pieces)
        return Prefix(states.cpu(), cache, len(ids))

    @torch.no_grad()  # type: ignore[untyped-decorator]
    def read_behind(
        self, prefix: Prefix, texts: Sequence[str], spans: Sequence[Sequence[tuple[int, int]]]
    ) -> list[Tensor]:
        """Read each text behind a prefix, in one pass and without seeing each other.

        Args:
            prefix: of `read_prefix`; it stays as it is.
            texts: each of at least one token.
            spans: of each text.

        Returns:
            For each text the states of its spans, `[spans, hidden]`.

        Raises:
            InputError: one of them does not fit into the model's context.
        """
        rows = [
            tokenize(self._tokenizer, text, own) for text, own in zip(texts, spans, strict=True)
        ]
        for ids, _ in rows:
            self._check_length(prefix.num_tokens, len(ids))
        found: list[Tensor] = []
        start = 0
        while start < len(rows):
            end, size = start + 1, len(rows[start][0])
            while end < len(rows) and size + len(rows[end][0]) <= _MAX_TOKENS:
                size += len(rows[end][0])
                end += 1
            found += self._read_rows(prefix, rows[start:end])
            start = end
        return found

    def _read_rows(
        self, prefix: Prefix, rows: Sequence[tuple[list[int], list[list[int]]]]
    ) -> list[Tensor]:
        device = self._decoder.embed_tokens.weight.device
        lengths = [len(ids) for ids, _ in rows]
        total, before = sum(lengths), prefix.num_tokens
        # What is added to scores, which every attention that takes a mask understands.
        weight = self._decoder.embed_tokens.weight
        mask = torch.zeros(1, 1, total, before + total, dtype=weight.dtype, device=device)
        mask[..., before:] = torch.finfo(weight.dtype).min
        place = 0
        for length in lengths:
            rows_of = slice(place, place + length)
            columns = slice(before + place, before + place + length)
            mask[0, 0, rows_of, columns] = mask[0, 0, rows_of, columns].triu(1)
            place += length
        positions = torch.cat([torch.arange(before, before + length) for length in lengths])
        try:
            output = self._decoder(
                input_ids=torch.tensor([[i for ids, _ in rows for i in ids]], device=device),
                attention_mask=mask,
                position_ids=positions[None].to(device),
                use_cache=True,
                return_dict=True,
                **{get_cache_argument(self._decoder): prefix.cache},
            )
        finally:
            # What was read is behind the prefix for the next texts, too. Layers above the last
            # one that is run hold nothing.
            for layer in prefix.cache.layers:
                if (added := layer.get_seq_length() - before) > 0:
                    layer.crop(-added)
        states = output.last_hidden_state[0].split(lengths)
        return [average(own, pieces).cpu() for own, (_, pieces) in zip(states, rows, strict=True)]

    def _check_length(self, before: int, count: int) -> None:
        if before + count > self.context:
            raise InputError(
                f"A text of {count} tokens behind {before} others exceeds the model's context of "
                f"{self.context}. Read a schema in smaller blocks (`max_block_chars`), ask a "
                "shorter question, or take a model of a longer context."
            )


def tokenize(
    tokenizer: Any, text: str, spans: Sequence[tuple[int, int]]
) -> tuple[list[int], list[list[int]]]:
    """Token ids of a text, and the positions of the tokens of each span.

    Args:
        tokenizer: a fast one.
        text: a name in it that looks like a control token is text.
        spans: `[start, end)` in characters.
    """
    encoded = tokenizer(
        text, add_special_tokens=False, return_offsets_mapping=True, split_special_tokens=True
    )
    offsets = encoded["offset_mapping"]
    pieces: list[list[int]] = [[] for _ in spans]
    first = 0
    for number, (start, end) in enumerate(spans):
        while first < len(offsets) - 1 and offsets[first][1] <= start:
            first += 1
        token = first
        while token < len(offsets) and offsets[token][0] < end:
            pieces[number].append(token)
            token += 1
        pieces[number] = pieces[number] or [first]
    return list(encoded["input_ids"]), pieces


def average(states: Tensor, pieces: Sequence[Sequence[int]]) -> Tensor:
    """Means of states, `[tokens, hidden]` -> `[spans, hidden]`, in float32."""
    places = torch.tensor([*chain.from_iterable(pieces)], device=states.device)
    starts = torch.tensor([0, *accumulate(map(len, pieces[:-1]))], device=states.device)
    # Once over all spans, and back: a step for each would make as many gradients of all states.
    return F.embedding_bag(places, states.float(), starts, mode="mean")
