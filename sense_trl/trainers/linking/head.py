"""`LinkerHead`: maps of items over words, and the logits that they add up to."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Final

import torch
import torch.nn.functional as F
from torch import Tensor, nn

_MIN_SCALE: Final = 1e-4
_MIN_VARIANCE: Final = 1e-3


@dataclass(frozen=True, slots=True)
class ItemRelations:
    """What items are to each other, and how words of a text are like their names.

    Attributes:
        parents: `[..., items]`, position of the item that each is a part of; its own, if of none.
        linked: `[..., items, L]`, positions of the items that each leads to, -1 behind the last.
        places: `[n, places]`, which texts (of a batch), items and words are alike.
        likeness: `[n, features]`, how.
    """

    parents: Tensor
    linked: Tensor
    places: Tensor
    likeness: Tensor


class LinkerHead(nn.Module):  # type: ignore[misc]
    """Says from hidden states which items a text is about.

    For the state w of an item and the states g of the words of a text, standardised, and the
    features f of an item and a word that are alike,

        M(u) = <K w, Q g_u> / sqrt(rank) + n <a, f_u>       x = mean over the n words u of M(u) + b

    with a and b of the kind of the item. For a part x_p is the same of its parent, and x_l the
    largest of what it leads to, or x_p if that is smaller:

        z = x + c x_p + d x_l

    Maps add up in the same way, so that they say exactly what each word adds to the logit z: class
    activation maps, whose class weights K w are made of the item (arXiv 2304.12777 has a fixed
    weight for each class).

    Args:
        hidden_size: of the states.
        rank: of K and Q.
        num_kinds: of items, each with a, b, c and d of its own; those of kind 0 are no parts.
        num_features: of likeness.
        dropout: share of the numbers of standardised states that are left out in training.
        item_size: of what items are told by where that is other states than one, such as those of
            two marks around an item that is written behind the text, of which the last has read
            both. A term <v, w> of M(u), the same for all words, is learned then, too.
    """

    def __init__(
        self,
        hidden_size: int,
        *,
        rank: int = 128,
        num_kinds: int = 2,
        num_features: int = 0,
        dropout: float = 0.0,
        item_size: int | None = None,
    ) -> None:
        super().__init__()
        self.rank: Final = rank
        self.reads_items: Final = item_size is not None
        self.dropout = nn.Dropout(dropout)
        item_size = item_size or hidden_size
        self.item_projection = nn.Linear(item_size, rank + self.reads_items)
        self.word_projection = nn.Linear(hidden_size, rank)
        self.bias = nn.Parameter(torch.zeros(num_kinds))
        self.size_weight = nn.Parameter(torch.zeros(num_kinds))
        self.likeness_weight = nn.Parameter(torch.zeros(num_kinds, num_features))
        self.parent_weight = nn.Parameter(torch.zeros(num_kinds))
        self.link_weight = nn.Parameter(torch.zeros(num_kinds))
        for name, size in (("item", item_size), ("word", hidden_size)):
            self.register_buffer(f"{name}_mean", torch.zeros(size))
            self.register_buffer(f"{name}_scale", torch.ones(size))

    def get_parameter_groups(self) -> tuple[list[nn.Parameter], list[nn.Parameter]]:
        """K and Q, of which a number says little; and the few others."""
        matrices = [*self.item_projection.parameters(), *self.word_projection.parameters()]
        known = {id(parameter) for parameter in matrices}
        return matrices, [p for p in self.parameters() if id(p) not in known]

    @torch.no_grad()  # type: ignore[untyped-decorator]
    def initialize(self, items: Tensor, words: Tensor) -> None:
        """Start where a map is the likeness of a word's state to an item's.

        States are standardised, for a few directions of hidden states are hundreds of times as
        large as the others, and K and Q become the same: the principal directions of all states,
        each scaled to the variance of the others. A word that has read an item, or names it, is
        like it; training goes on from there.

        Args:
            items: `[n, hidden]`, or `[n, item_size]`, states to learn from.
            words: `[m, hidden]`.
        """
        both = []
        for name, states in (("item", items), ("word", words)):
            mean, scale = states.mean(0), states.std(0, unbiased=False).clamp(min=_MIN_SCALE)
            getattr(self, f"{name}_mean").copy_(mean)
            getattr(self, f"{name}_scale").copy_(scale)
            both.append((states - mean) / scale)
        hidden = words.shape[-1]
        joined = torch.cat([states[:, -hidden:] for states in both])
        values, directions = torch.linalg.eigh(joined.T @ joined / len(joined))
        # A state has `rank` directions of variance 1; fewer where there are not as many.
        count = min(self.rank, int((values > _MIN_VARIANCE).sum()))
        kept = directions[:, -count:] / values[-count:].sqrt()
        for projection in (self.item_projection, self.word_projection):
            projection.weight.zero_()
            projection.weight[:count, -hidden:].copy_(kept.T)
            projection.bias.zero_()

    def project_items(self, items: Tensor) -> Tensor:
        """K w: `[..., items, hidden]` -> `[..., items, rank]`."""
        return self._project("item", items)

    def project_words(self, words: Tensor) -> Tensor:
        """Q g: `[..., words, hidden]` -> `[..., words, rank]`."""
        projected = self._project("word", words)
        # What v is the last row of K for.
        return (
            F.pad(projected, (0, 1), value=math.sqrt(self.rank)) if self.reads_items else projected
        )

    def _project(self, name: str, states: Tensor) -> Tensor:
        standardised = (states - getattr(self, f"{name}_mean")) / getattr(self, f"{name}_scale")
        projected: Tensor = getattr(self, f"{name}_projection")(self.dropout(standardised))
        return projected

    def forward(
        self,
        items: Tensor,
        words: Tensor,
        kinds: Tensor,
        relations: ItemRelations | None = None,
        mask: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Logits and maps of items for one text, or for each of a batch.

        Args:
            items: `[..., items, hidden]`, or `item_size` in place of that.
            words: `[..., words, hidden]`.
            kinds: `[..., items]`, -1 where there is none.
            relations: of the items; none are alike or parts if not given.
            mask: `[..., words]`, boolean, of the words that are there; all if not given.

        Returns:
            `[..., items]`, and `[..., items, words]`, 0 where there is no word: what a word adds to
            a logit, times the number of words.
        """
        projected = self.project_items(items), self.project_words(words)
        return self.combine(*projected, kinds, relations, mask)

    def combine(
        self,
        items: Tensor,
        words: Tensor,
        kinds: Tensor,
        relations: ItemRelations | None = None,
        mask: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """The same of items and words that are projected."""
        maps = items @ words.transpose(-1, -2) / math.sqrt(self.rank)
        if mask is None:
            mask = maps.new_ones(maps.shape[:-2] + maps.shape[-1:], dtype=torch.bool)
        count = mask.sum(-1, keepdim=True).clamp(min=1)
        known = kinds.clamp(min=0)
        if relations is not None:
            places = relations.places.unbind(-1)
            weights = self.likeness_weight[known[places[:-1]]]
            added = (relations.likeness.to(maps.dtype) * weights).sum(-1)
            added = added * count[(*places[:-2], 0)]
            maps = maps.index_put(places, added, accumulate=True)
        maps = maps.masked_fill(~mask.unsqueeze(-2), 0.0)
        # The more parts there are, the fewer of them a text is about.
        size = (kinds > 0).sum(-1, keepdim=True).clamp(min=1).log()
        logits = maps.sum(-1) / count + self.bias[known] - self.size_weight[known] * size
        if relations is None:
            return logits, maps
        return self._relate(logits, maps, known, relations)

    def _relate(
        self, logits: Tensor, maps: Tensor, kinds: Tensor, relations: ItemRelations
    ) -> tuple[Tensor, Tensor]:
        """Add to parts what their parents have, and what they lead to."""
        parents, linked = relations.parents, relations.linked
        own = logits.gather(-1, parents)
        others = logits.gather(-1, linked.clamp(min=0).flatten(-2)).view(linked.shape)
        largest, chosen = others.masked_fill(linked < 0, -math.inf).max(-1)
        ends = linked.gather(-1, chosen.unsqueeze(-1)).squeeze(-1)
        is_linked = ends >= 0
        ends = torch.where(is_linked & (largest < own), ends, parents)
        is_part = kinds > 0
        by_parent = self.parent_weight[kinds] * is_part
        by_link = self.link_weight[kinds] * (is_part & is_linked)

        def get_rows(places: Tensor) -> Tensor:
            return maps.gather(-2, places.unsqueeze(-1).expand(maps.shape))

        return (
            logits + by_parent * own + by_link * logits.gather(-1, ends),
            maps
            + by_parent.unsqueeze(-1) * get_rows(parents)
            + by_link.unsqueeze(-1) * get_rows(ends),
        )
