"""`LinkerHead`: maps of items over words, and the logits that they add up to."""

from __future__ import annotations

import math
from typing import Final

import torch
from torch import Tensor, nn

from sense_trl.errors import InputError

POOLINGS: Final = ("mean", "logsumexp")
_MIN_SCALE: Final = 1e-4
_MIN_VARIANCE: Final = 1e-3


class LinkerHead(nn.Module):  # type: ignore[misc]
    """Says from hidden states which items a text is about.

    For the state w of an item and the states g of the words of a text, standardised,

        M(u) = <K w, Q g_u> / sqrt(rank)        z = mean over u of M(u) + b

    so the map M says exactly what each word adds to the logit z: a class activation map, whose
    class weights K w are made of the item (arXiv 2304.12777 has a fixed weight for each class).
    With `"logsumexp"`, `log mean exp M(u)`, one word may name an item; the map then ranks words
    without adding up.

    Args:
        hidden_size: of the states.
        rank: of K and Q.
        num_kinds: of items, each with a bias of its own.
        pooling: `"mean"` or `"logsumexp"`.

    Raises:
        InputError: an unknown `pooling`.
    """

    def __init__(
        self, hidden_size: int, *, rank: int = 128, num_kinds: int = 2, pooling: str = "mean"
    ) -> None:
        super().__init__()
        if pooling not in POOLINGS:
            raise InputError(f"`pooling` is {pooling!r}; expected one of {', '.join(POOLINGS)}.")
        self.pooling: Final = pooling
        self.rank: Final = rank
        self.item_projection = nn.Linear(hidden_size, rank)
        self.word_projection = nn.Linear(hidden_size, rank)
        self.bias = nn.Parameter(torch.zeros(num_kinds))
        for name in ("item", "word"):
            self.register_buffer(f"{name}_mean", torch.zeros(hidden_size))
            self.register_buffer(f"{name}_scale", torch.ones(hidden_size))

    @torch.no_grad()  # type: ignore[untyped-decorator]
    def initialize(self, items: Tensor, words: Tensor) -> None:
        """Start where a map is the likeness of a word's state to an item's.

        States are standardised, for a few directions of hidden states are hundreds of times as
        large as the others, and K and Q become the same: the principal directions of all states,
        each scaled to the variance of the others. A word that has read an item, or names it, is
        like it; training goes on from there.

        Args:
            items: `[n, hidden]`, states to learn from.
            words: `[m, hidden]`.
        """
        both = []
        for name, states in (("item", items), ("word", words)):
            mean, scale = states.mean(0), states.std(0, unbiased=False).clamp(min=_MIN_SCALE)
            getattr(self, f"{name}_mean").copy_(mean)
            getattr(self, f"{name}_scale").copy_(scale)
            both.append((states - mean) / scale)
        joined = torch.cat(both)
        values, directions = torch.linalg.eigh(joined.T @ joined / len(joined))
        # A state has `rank` directions of variance 1; fewer where there are not as many.
        count = min(self.rank, int((values > _MIN_VARIANCE).sum()))
        kept = directions[:, -count:] / values[-count:].sqrt()
        for projection in (self.item_projection, self.word_projection):
            projection.weight.zero_()
            projection.weight[:count].copy_(kept.T)
            projection.bias.zero_()

    def project_items(self, items: Tensor) -> Tensor:
        """K w: `[..., items, hidden]` -> `[..., items, rank]`."""
        projected: Tensor = self.item_projection((items - self.item_mean) / self.item_scale)
        return projected

    def project_words(self, words: Tensor) -> Tensor:
        """Q g: `[..., words, hidden]` -> `[..., words, rank]`."""
        projected: Tensor = self.word_projection((words - self.word_mean) / self.word_scale)
        return projected

    def get_maps(self, items: Tensor, words: Tensor) -> Tensor:
        """Maps `[..., items, words]` of projected items and words."""
        return items @ words.transpose(-1, -2) / math.sqrt(self.rank)

    def get_logits(self, maps: Tensor, kinds: Tensor, mask: Tensor | None = None) -> Tensor:
        """Logits `[..., items]`.

        Args:
            maps: `[..., items, words]`.
            kinds: `[..., items]`, which bias each has.
            mask: `[..., words]`, boolean, of the words that are there; all if not given.
        """
        if mask is None:
            mask = torch.ones(maps.shape[:-2] + maps.shape[-1:], dtype=torch.bool)
        there = mask.unsqueeze(-2).expand_as(maps)
        count = there.sum(-1).clamp(min=1)
        if self.pooling == "mean":
            pooled = torch.where(there, maps, torch.zeros_like(maps)).sum(-1) / count
        else:
            hidden = torch.where(there, maps, torch.full_like(maps, -math.inf))
            pooled = hidden.logsumexp(-1) - count.log()
        return pooled + self.bias[kinds]

    def forward(self, items: Tensor, words: Tensor, kinds: Tensor) -> tuple[Tensor, Tensor]:
        """Logits and maps of items for one text.

        Args:
            items: `[items, hidden]`.
            words: `[words, hidden]`.
            kinds: `[items]`.

        Returns:
            `[items]` and `[items, words]`.
        """
        maps = self.get_maps(self.project_items(items), self.project_words(words))
        return self.get_logits(maps, kinds), maps
