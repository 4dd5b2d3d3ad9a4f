"""`PrefixDecoder`: batched sampling of token ids from a `transformers` model with shared prefixes.

Prompts on one database begin alike, and so do all samples of one prompt. Their common prefix is run
through the model once and its keys and values are held once for all rows. Prompts with several
prefixes fill a batch together, each behind its own. Rows that are finished leave the batch, so that
one long answer does not hold up the rest.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from sense_trl.decoding.sampling import SamplingConfig, completion_seed
from sense_trl.decoding.shared_prefix import (
    shared_prefix_attention,
    supports_shared_prefix,
)
from sense_trl.errors import ModelError, check_at_least
from sense_trl.model_traits import get_cache_argument, has_full_attention

if TYPE_CHECKING:
    import torch

# A shorter common prefix is not worth a cache of its own.
_MIN_PREFIX_TOKENS = 16
# A group may lose this share of its prefix to a newcomer, or as many tokens as a question has.
_MAX_LOST_SHARE = 0.2
_MAX_LOST_TOKENS = 32
# A group of less than this share of a batch does not get a prefix of its own: attention is computed
# for one prefix after the other.
_MIN_GROUP_SHARE = 1 / 16
# Rows whose prompts go on for so many times as many tokens are not padded to one length.
_MAX_LENGTH_RATIO = 2
# Finished rows are dropped once they are this share of a batch; dropping copies the cache.
_COMPACT_SHARE = 0.25
# Tokens of different prompts read at a time; their activations have to fit beside the model.
_MAX_PREFILL_TOKENS = 16_384
# Float32 logits divided by less than this may overflow.
_GREEDY_BELOW = 1e-5


@dataclass(slots=True)
class _Row:
    """One completion being written."""

    prompt: int
    sample: int
    group: int
    suffix: list[int]
    tokens: list[int] = field(default_factory=list)
    finished: bool = False


class PrefixDecoder:
    """Samples token ids from a causal language model.

    Args:
        model: the model, which is in evaluation mode while it writes.
        end_ids: tokens that end a completion, at least one; the first also fills rows up.
        batch_size: completions written at the same time. Memory grows with it; beside their own
            keys and values, those of up to 16 prefixes are held.
        name: of the model, in errors.
    """

    def __init__(
        self, model: Any, end_ids: Sequence[int], *, batch_size: int = 32, name: str = "model"
    ) -> None:
        check_at_least(1, batch_size=batch_size)
        self.model = model
        self.batch_size = batch_size
        self._end_ids = [*end_ids]
        self._name = name

    @property
    def name(self) -> str:
        """Label used in provenance columns."""
        return self._name

    def write(
        self,
        token_ids: Sequence[list[int]],
        keys: Sequence[str],
        sampling: SamplingConfig,
        *,
        is_complete: Callable[[list[int]], bool] | None = None,
        on_progress: Callable[[int], None] | None = None,
    ) -> list[list[list[int]]]:
        """Write completions, each with the token that ends it, if it ends by itself.

        Args:
            token_ids: prompts, none of them empty; they have to leave room in the model's context.
            keys: what seeds the samples of each prompt, see `completion_seed`.
            sampling: how to sample.
            is_complete: asked of a completion after each token whether it ends there.
            on_progress: called with the number of completions finished since the last call.

        Returns:
            `sampling.num_generations` lists of token ids per prompt.

        Raises:
            ModelError: the model's cache cannot be copied for several rows (Mamba), or it gives
                probabilities that are not finite.
        """
        import torch

        results: list[list[list[int]]] = [
            [[] for _ in range(sampling.num_generations)] for _ in token_ids
        ]
        prompts = [*token_ids]
        was_training = self.model.training
        self.model.eval()
        try:
            # In inference mode autocast would convert every weight for every token.
            with torch.no_grad():
                groups = self._merge_small(self._groups(prompts), prompts, sampling)
                rows = [
                    _Row(index, sample, group, prompts[index][len(prefix) :])
                    for group, (prefix, members) in enumerate(groups)
                    for index in members
                    for sample in range(sampling.num_generations)
                ]
                # Rows of similar length share a batch, so that little of it is padding.
                rows.sort(key=lambda row: (row.group, -len(row.suffix), row.prompt, row.sample))
                held: dict[int, _Prefix] = {}
                for batch in self._batches(rows):
                    used = dict.fromkeys(row.group for row in batch)
                    # Those of the batch before go before others are read.
                    held = {group: held[group] for group in used if group in held}
                    for group in used:
                        if group not in held:
                            prefix = groups[group][0]
                            held[group] = _Prefix(len(prefix), self._prefill(prefix))
                    seeds = [keys[row.prompt] for row in batch]
                    self._decode(
                        batch, seeds, [held[group] for group in used], sampling, is_complete
                    )
                    for row in batch:
                        results[row.prompt][row.sample] = row.tokens
                    if on_progress is not None:
                        on_progress(len(batch))
        finally:
            self.model.train(was_training)
        return results

    def _batches(self, rows: list[_Row]) -> Iterator[list[_Row]]:
        """Cut `rows`, sorted by group and length, into batches."""
        # Padding takes up room in a window or a recurrent state, so what such a model writes would
        # depend on its company; behind a shared prefix there is none of either.
        same_length = not has_full_attention(self.model.config)
        several_groups = supports_shared_prefix(self.model)
        batch: list[_Row] = []
        prompts: set[int] = set()
        longest = shortest = 0
        for row in rows:
            length = len(row.suffix)
            longest, shortest = max(longest, length), min(shortest or length, length)
            is_new = row.prompt not in prompts
            is_new_group = bool(batch) and row.group != batch[-1].group
            # Every prompt is padded to the longest.
            num_tokens = (len(prompts) + is_new) * longest
            if batch and (
                len(batch) == self.batch_size
                or (same_length and longest != shortest)
                or (is_new_group and not several_groups)
                or (is_new_group and longest > _MAX_LENGTH_RATIO * shortest + _MAX_LOST_TOKENS)
                or (is_new and num_tokens > _MAX_PREFILL_TOKENS)
            ):
                yield batch
                batch, prompts, longest, shortest = [], set(), length, length
            batch.append(row)
            prompts.add(row.prompt)
        if batch:
            yield batch

    def _groups(self, token_ids: list[list[int]]) -> list[tuple[list[int], list[int]]]:
        """Group prompts that share a long prefix: (prefix, indices into `token_ids`).

        In sorted order prompts on one database are neighbours. A prompt joins the group before it
        if at least half of the shortest prompt is shared by all and nobody loses much by it: the
        members keep (nearly) the prefix they had, and the prompt does not share much more with the
        one that follows. Otherwise one short prompt on another database, which shares no more than
        the instruction, would take the schema out of the prefix of all. A group of one has no
        prefix to lose. The samples of a prompt alone in its group share that prompt.
        """
        # At least one token stays outside the prefix: its logits start the answer.
        order = sorted(range(len(token_ids)), key=lambda index: token_ids[index])
        groups: list[tuple[list[int], list[int]]] = []
        for place, index in enumerate(order):
            ids = token_ids[index]
            if groups:
                prefix, members = groups[-1]
                common = _common_length(prefix, ids[:-1])
                shorter = min(len(ids), *(len(token_ids[member]) for member in members))
                others = [len(prefix)] if len(members) > 1 else []
                if place + 1 < len(order):
                    others.append(_common_length(ids[:-1], token_ids[order[place + 1]][:-1]))
                loses_little = all(
                    other - common <= max(_MAX_LOST_TOKENS, _MAX_LOST_SHARE * other)
                    for other in others
                )
                if common >= _MIN_PREFIX_TOKENS and 2 * common >= shorter and loses_little:
                    groups[-1] = (ids[:common], [*members, index])
                    continue
            groups.append((ids[:-1], [index]))
        return groups

    def _merge_small(
        self,
        groups: list[tuple[list[int], list[int]]],
        token_ids: list[list[int]],
        sampling: SamplingConfig,
    ) -> list[tuple[list[int], list[int]]]:
        """Join the groups that are too small for a prefix of their own, behind what all share.

        A step for a few rows takes nearly as long as one for a whole batch. Where rows behind
        several prefixes can be decoded together, only groups of a few rows are joined; elsewhere
        those that do not fill half a batch: questions on many databases would otherwise be answered
        a handful at a time, and reading some schemas twice costs less.
        """
        share = _MIN_GROUP_SHARE if supports_shared_prefix(self.model) else 1 / 2
        # A single row has nobody to share a prefix with.
        fewest = max(2, share * self.batch_size)

        def is_small(group: tuple[list[int], list[int]]) -> bool:
            return len(group[1]) * sampling.num_generations < fewest

        small = [group for group in groups if is_small(group)]
        if len(small) < 2 or not has_full_attention(self.model.config):
            return groups
        members = [index for _, indices in small for index in indices]
        prefix = small[0][0]
        for index in members:
            prefix = prefix[: _common_length(prefix, token_ids[index][:-1])]
        if not prefix:
            return groups
        return [*(group for group in groups if not is_small(group)), (prefix, members)]

    def _prefill(self, prefix: list[int]) -> Any:
        import torch
        from transformers import DynamicCache

        cache = DynamicCache(config=self.model.config)
        # Before a prompt of one token there is nothing; a model has to be run on something.
        ids = torch.tensor([prefix or self._end_ids[:1]], device=self.model.device)
        options = {get_cache_argument(self.model): cache, "use_cache": True, "logits_to_keep": 1}
        self.model(input_ids=ids, **options)
        if not prefix:
            cache.crop(-1)
        return cache

    def _decode(
        self,
        rows: list[_Row],
        keys: list[str],
        prefixes: list[_Prefix],
        sampling: SamplingConfig,
        is_complete: Callable[[list[int]], bool] | None,
    ) -> None:
        """Write all completions of `rows` into their `tokens`.

        Args:
            rows: those of one group after those of another.
            keys: per row, what seeds its samples.
            prefixes: of the groups, in the order of the rows.
        """
        import torch

        device = self.model.device
        uniforms = _uniforms(rows, keys, sampling) if sampling.temperature > 0 else None
        # Every prompt is read once, whatever the number of its samples.
        suffixes = {row.prompt: row.suffix for row in rows}
        width = max(map(len, suffixes.values()))
        pad_id = self._end_ids[0]
        ids = torch.tensor(
            [[pad_id] * (width - len(s)) + s for s in suffixes.values()], device=device
        )
        # The padding stands between prefix and suffix; positions count real tokens only.
        real = torch.tensor(
            [[False] * (width - len(s)) + [True] * len(s) for s in suffixes.values()], device=device
        )
        groups = torch.tensor([*{row.prompt: row.group for row in rows}.values()], device=device)
        # Which of the prefixes each prompt follows.
        _, behind = groups.unique_consecutive(return_inverse=True)
        lengths = torch.tensor([prefix.length for prefix in prefixes], device=device)
        positions = (real.cumsum(dim=1) - 1).clamp(min=0) + lengths[behind][:, None]
        forward = _Forward(self.model, prefixes, behind)
        logits = forward(ids, real, positions)
        place = {prompt: index for index, prompt in enumerate(suffixes)}
        source = torch.tensor([place[row.prompt] for row in rows], device=device)
        forward.select(source)
        logits, real, positions = logits[source], real[source], positions[source]
        active = list(range(len(rows)))
        for step in range(sampling.max_new_tokens):
            draws = None if uniforms is None else uniforms[active, step].to(device)
            self._check_logits(logits)
            chosen = _choose(logits, draws, sampling)
            kept = []
            for slot, token in enumerate(chosen.tolist()):
                row = rows[active[slot]]
                if row.finished:
                    continue
                row.tokens.append(token)
                row.finished = token in self._end_ids or (
                    is_complete is not None and is_complete(row.tokens)
                )
                if not row.finished:
                    kept.append(slot)
            if not kept or step + 1 == sampling.max_new_tokens:
                break
            if len(kept) <= (1 - _COMPACT_SHARE) * len(active):
                selected = torch.tensor(kept, device=device)
                forward.select(selected)
                chosen, real, positions = chosen[selected], real[selected], positions[selected]
                active = [active[slot] for slot in kept]
            real = torch.cat([real, torch.ones_like(real[:, :1])], dim=1)
            positions = positions[:, -1:] + 1
            logits = forward(chosen[:, None], real, positions)

    def _check_logits(self, logits: torch.Tensor) -> None:
        # Single tokens may be ruled out by -inf, so the highest logit of every row must be finite;
        # NaN is the highest wherever it occurs.
        if not bool(logits.max(dim=-1).values.isfinite().all()):
            raise ModelError(
                f"The model {self.name!r} gives probabilities that are not finite (dtype "
                f'{self.model.dtype}). Load it with `dtype="float32"`; if that does not help, its '
                "weights are damaged or its training diverged."
            )


@dataclass(frozen=True, slots=True)
class _Prefix:
    """A prefix that has been read: its number of tokens, and its cache."""

    length: int
    cache: Any


class _Forward:
    """Runs a model behind shared prefixes, holding the cache of what comes after them.

    Models that `supports_shared_prefix` knows read each prefix from one place; for all others the
    cache of the one prefix is copied to every row, which any model with keys and values in a
    `DynamicCache` can do.

    Args:
        model: the model.
        prefixes: one, or for models that `supports_shared_prefix` knows, any number.
        behind: per row, which prefix it follows, in ascending order.
    """

    def __init__(self, model: Any, prefixes: list[_Prefix], behind: torch.Tensor) -> None:
        from transformers import DynamicCache

        self._model = model
        self._cache_argument = get_cache_argument(model)
        self._prefixes = prefixes
        self._set_rows(behind)
        self._is_shared = supports_shared_prefix(model)
        if self._is_shared:
            self._cache = DynamicCache(config=model.config)
            return
        (prefix,) = prefixes
        self._cache = copy.deepcopy(prefix.cache)
        try:
            self._cache.batch_repeat_interleave(len(behind))
        except (AttributeError, NotImplementedError) as error:
            raise ModelError(
                f"Models of the type {model.config.model_type!r} cannot be sampled: they keep "
                "a recurrent state instead of keys and values, and transformers cannot copy "
                "it for several rows. Use a model that is a transformer throughout."
            ) from error

    def select(self, rows: torch.Tensor) -> None:
        """Keep the rows with these indices, in ascending order; one may occur several times."""
        self._cache.batch_select_indices(rows)
        self._set_rows(self._behind[rows])

    def _set_rows(self, behind: torch.Tensor) -> None:
        self._behind = behind
        counts = behind.bincount(minlength=len(self._prefixes)).tolist()
        self._used = [
            (prefix.cache, count)
            for prefix, count in zip(self._prefixes, counts, strict=True)
            if count
        ]

    def __call__(
        self, ids: torch.Tensor, real: torch.Tensor, positions: torch.Tensor
    ) -> torch.Tensor:
        """Logits [rows, vocab] of the last position.

        Args:
            ids: new tokens [rows, n].
            real: [rows, all tokens behind the prefixes], false at padding.
            positions: of the new tokens [rows, n], the prefix counted.
        """
        import torch

        options: dict[str, Any] = {
            "input_ids": ids,
            "position_ids": positions,
            self._cache_argument: self._cache,
            "use_cache": True,
            "logits_to_keep": 1,
        }
        if not self._is_shared:
            prefix = real.new_ones(len(real), self._prefixes[0].length)
            mask = torch.cat([prefix, real], dim=1).long()
            return self._last(self._model(attention_mask=mask, **options))
        num_keys = real.shape[1]
        order = torch.arange(num_keys, device=real.device)
        causal = order[None, :] <= order[num_keys - ids.shape[1] :, None]
        mask = (real[:, None, :] & causal)[:, None]
        with shared_prefix_attention(self._model):
            return self._last(
                self._model(attention_mask=mask, shared_prefixes=self._used, **options)
            )

    @staticmethod
    def _last(output: Any) -> torch.Tensor:
        logits: torch.Tensor = output.logits[:, -1]
        return logits


def _choose(
    logits: torch.Tensor, draws: torch.Tensor | None, sampling: SamplingConfig
) -> torch.Tensor:
    """The next token of each row: `logits` [rows, vocab], `draws` [rows] uniform in [0, 1)."""
    import torch

    if draws is None or sampling.temperature < _GREEDY_BELOW:
        return logits.argmax(dim=-1)
    probs = (logits.float() / sampling.temperature).softmax(dim=-1)
    if sampling.top_p < 1:
        ordered, order = probs.sort(dim=-1, descending=True)
        # A token stays if the mass before it is below top_p: the first always does.
        ordered = ordered.masked_fill(ordered.cumsum(dim=-1) - ordered >= sampling.top_p, 0.0)
        probs = probs.new_zeros(probs.shape).scatter(1, order, ordered)
    # Inverse transform sampling in float64: one uniform number decides one token, so a row's text
    # depends on nothing but its own numbers.
    mass = probs.double().cumsum(dim=-1)
    targets = draws.double()[:, None] * mass[:, -1:]
    chosen = torch.searchsorted(mass, targets, right=True).squeeze(1)
    return chosen.clamp(max=logits.shape[-1] - 1)


def _uniforms(rows: list[_Row], keys: list[str], sampling: SamplingConfig) -> torch.Tensor:
    """Uniform numbers [rows, max_new_tokens], each row from its own seed."""
    import torch

    return torch.stack(
        [
            torch.rand(
                sampling.max_new_tokens,
                generator=torch.Generator().manual_seed(
                    completion_seed(sampling.seed, key, row.sample)
                ),
                dtype=torch.float64,
            )
            for row, key in zip(rows, keys, strict=True)
        ]
    )


def _common_length(a: list[int], b: list[int]) -> int:
    for position, (x, y) in enumerate(zip(a, b, strict=False)):
        if x != y:
            return position
    return min(len(a), len(b))
