"""`TransformersGenerator`: batched sampling from a `transformers` model with a shared prefix.

Questions on one database share the instruction and the schema, which are most of a prompt. Their
common prefix is run through the model once and its keys and values are held once for all rows.
Questions on several databases fill a batch together, each behind its own prefix. Rows that are
finished leave the batch, so that one long answer does not hold up the rest.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PureWindowsPath
from typing import TYPE_CHECKING, Any

from sense_trl.chat_template import check_chat_template, fold_messages
from sense_trl.chat_tokens import apply_chat_template
from sense_trl.end_tokens import get_end_token_ids
from sense_trl.errors import InputError, ModelError
from sense_trl.generation.generator import Completion, SamplingConfig, completion_seed
from sense_trl.generation.shared_prefix import (
    shared_prefix_attention,
    supports_shared_prefix,
)
from sense_trl.model_traits import has_full_attention
from sense_trl.prompts import Messages

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

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


class TransformersGenerator:
    """Samples SQL from a causal language model.

    Args:
        model: a model folder, a hub id, or a loaded model.
        tokenizer: its tokenizer; read from the same folder if `model` is a path.
        batch_size: completions written at the same time. Memory grows with it; beside their own
            keys and values, those of up to 16 schemas are held.
        dtype: weights when loading from a path: `"auto"`, `"float32"`, `"bfloat16"`. On CPUs
            float32 decodes fastest.
        device: where a model loaded from a path goes; CUDA if there is one.
        name: label for provenance; the folder's name if not given.
        fold_system_message: put the system's text in front of the user's, for chat templates
            without a system role.

    Raises:
        ModelError: the folder has no model, no tokenizer, or a tokenizer without a usable chat
            template; `device` cannot be used.
    """

    def __init__(
        self,
        model: str | Path | PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase | None = None,
        *,
        batch_size: int = 32,
        dtype: str = "auto",
        device: str | None = None,
        name: str | None = None,
        fold_system_message: bool = False,
    ) -> None:
        import torch

        if batch_size < 1:
            raise InputError(f"`batch_size` is {batch_size}; expected at least 1.")
        if isinstance(model, (str, Path)):
            tokenizer = tokenizer or load_tokenizer(model)
            device = device or ("cuda" if torch.cuda.is_available() else "cpu")
            self.model: Any = _to_device(load_model(model, dtype=dtype), device)
            self._name = name or Path(model).name
        else:
            if tokenizer is None:
                raise InputError("`tokenizer` is None; a loaded `model` needs its tokenizer.")
            self.model = model
            self._name = name or Path(str(getattr(model, "name_or_path", "model"))).name
        self.tokenizer: Any = tokenizer
        check_chat_template(self.tokenizer, self._name, has_system=not fold_system_message)
        self._folds = fold_system_message
        self.batch_size = batch_size
        self._end_ids = _get_end_token_ids(self.model, self.tokenizer)

    @property
    def name(self) -> str:
        """Label used in provenance columns."""
        return self._name

    def generate(
        self,
        prompts: Sequence[Messages],
        sampling: SamplingConfig,
        *,
        on_progress: Callable[[int], None] | None = None,
    ) -> list[list[Completion]]:
        """Write completions; see `SQLGenerator.generate`.

        A prompt that leaves no room for an answer in the model's context is an `InputError` that
        names the prompt: prompts are never cut. A model whose cache cannot be copied for several
        rows (Mamba), or that gives probabilities that are not finite, is a `ModelError`.
        """
        import torch

        # Training may have taught the model another end since it was handed over.
        known = get_end_token_ids(self.model, self.tokenizer)
        self._end_ids = [*dict.fromkeys([*self._end_ids, *known])]
        token_ids = [self._encode(messages) for messages in prompts]
        self._check_lengths(prompts, token_ids, sampling)
        results: list[list[Completion | None]] = [
            [None] * sampling.num_generations for _ in prompts
        ]
        was_training = self.model.training
        self.model.eval()
        try:
            with torch.inference_mode():
                groups = self._merge_small(self._groups(token_ids), token_ids, sampling)
                rows = [
                    _Row(index, sample, group, token_ids[index][len(prefix) :])
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
                    keys = [json.dumps(prompts[row.prompt]) for row in batch]
                    self._decode(batch, keys, [held[group] for group in used], sampling)
                    for row in batch:
                        results[row.prompt][row.sample] = self._completion(row)
                    if on_progress is not None:
                        on_progress(len(batch))
        finally:
            self.model.train(was_training)
        return [[c for c in completions if c is not None] for completions in results]

    def _encode(self, messages: Messages) -> list[int]:
        messages = fold_messages(messages) if self._folds else messages
        ids = apply_chat_template(
            self.tokenizer, messages, add_generation_prompt=True, tokenize=True, return_dict=True
        )["input_ids"]
        return [int(token) for token in ids]

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

    def _check_lengths(
        self, prompts: Sequence[Messages], token_ids: list[list[int]], sampling: SamplingConfig
    ) -> None:
        limit = getattr(self.model.config, "max_position_embeddings", None)
        if limit is None:
            return
        for index, ids in enumerate(token_ids):
            if len(ids) + sampling.max_new_tokens > limit:
                question = " ".join(prompts[index][-1]["content"].split())
                beginning = question if len(question) <= 80 else question[:77] + "..."
                raise InputError(
                    f"Prompt {index} ({beginning!r}) has {len(ids)} tokens; with `max_new_tokens` "
                    f"{sampling.max_new_tokens} it exceeds the {limit} tokens that {self.name} "
                    "can read. Use a shorter schema style, or a model with a longer context."
                )

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
        ids = torch.tensor([prefix], device=self.model.device)
        self.model(input_ids=ids, past_key_values=cache, use_cache=True, logits_to_keep=1)
        return cache

    def _decode(
        self,
        rows: list[_Row],
        keys: list[str],
        prefixes: list[_Prefix],
        sampling: SamplingConfig,
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
                row.finished = token in self._end_ids
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

    def _completion(self, row: _Row) -> Completion:
        text = self.tokenizer.decode(row.tokens, skip_special_tokens=True)
        return Completion(text.strip(), len(row.tokens), row.finished)


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
            "past_key_values": self._cache,
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


def _get_end_token_ids(model: Any, tokenizer: Any) -> list[int]:
    ids = get_end_token_ids(model, tokenizer)
    if not ids:
        raise ModelError(
            "The tokenizer and the generation config name no end-of-sequence token, so an answer "
            "would never end. Set `eos_token` in tokenizer_config.json."
        )
    return ids


def load_tokenizer(path: str | Path) -> Any:
    """Load the tokenizer of a model folder or hub id.

    Raises:
        ModelError: the folder is missing or broken, or has no readable tokenizer.
    """
    from transformers import AutoTokenizer

    _check_source(path)
    try:
        return AutoTokenizer.from_pretrained(str(path))
    # What a broken file raises is up to the library that reads it; here and below.
    except Exception as error:
        raise ModelError(
            f"`model` {str(path)!r} has no usable tokenizer ({_first_line(error)}). Expected "
            "tokenizer.json and tokenizer_config.json beside the weights: copy them from the model "
            "that this one was trained from."
        ) from error


def load_model(path: str | Path, *, dtype: str = "auto") -> Any:
    """Load a causal language model from a folder or hub id.

    Raises:
        ModelError: there is none, or it cannot be read as `dtype`.
    """
    from transformers import AutoModelForCausalLM

    _check_source(path)
    try:
        return AutoModelForCausalLM.from_pretrained(str(path), dtype=dtype)
    except Exception as error:
        raise ModelError(
            f"`model` {str(path)!r} cannot be loaded with `dtype` {dtype!r} "
            f"({_first_line(error)}). Expected a folder with config.json and model.safetensors, or "
            "the id of a model on the hub."
        ) from error


def _check_source(path: str | Path) -> None:
    """Refuse what cannot be a model before the hub is asked for it."""
    folder = Path(path)
    expected = (
        "Give a folder with config.json, model.safetensors and the tokenizer's files, or the id of "
        "a model on the hub (owner/name)."
    )
    if folder.exists():
        config = folder / "config.json"
        if not config.is_file():
            raise ModelError(
                f"`model` {str(path)!r} is not a model folder: it has no config.json. {expected}"
            )
        try:
            if not isinstance(json.loads(config.read_bytes()), dict):
                raise ValueError("not a JSON object")
        except (OSError, ValueError, RecursionError) as error:
            raise ModelError(
                f"`model` {str(path)!r} has a broken config.json ({_first_line(error)}). Copy it "
                "from the model that this one was trained from, or save the model again."
            ) from error
        return
    # A hub id has the form owner/name.
    looks_local = (
        len(folder.parts) != 2
        or str(path).startswith((".", "~"))
        or folder.is_absolute()
        or folder.parent.is_dir()
        or bool(PureWindowsPath(path).drive)
    )
    if looks_local:
        raise ModelError(
            f"`model` {str(path)!r} is not a model folder: there is no such folder. {expected}"
        )
    _check_hub(str(path))


def _check_hub(name: str) -> None:
    """Say why the hub does not give a model: what `transformers` says then is of the tokenizer."""
    import huggingface_hub
    from huggingface_hub.errors import (
        EntryNotFoundError,
        GatedRepoError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
    )

    try:
        huggingface_hub.hf_hub_download(name, "config.json")
    except LocalEntryNotFoundError as error:
        raise ModelError(
            f"`model` {name!r} is neither a folder here nor complete in the hub's cache, and the "
            f"hub cannot be reached ({_first_line(error.__cause__ or error)}). Look at the "
            f"connection and at HF_HUB_OFFLINE and HF_ENDPOINT, or run `hf download {name} "
            "--local-dir FOLDER` where the hub can be reached, and give that folder."
        ) from error
    except GatedRepoError as error:
        raise ModelError(
            f"`model` {name!r} is gated on the hub. Accept its terms there, then log in with "
            "`hf auth login`."
        ) from error
    except RepositoryNotFoundError as error:
        raise ModelError(
            f"`model` {name!r} is neither a folder here nor a model on the hub that you may read. "
            "Look at its spelling; for a private one log in with `hf auth login`."
        ) from error
    # An adapter's repository has no config.json.
    except EntryNotFoundError:
        return
    # A name that no model can have, an endpoint that is none, any other answer of the hub.
    except Exception as error:
        raise ModelError(
            f"`model` {name!r} is no folder here, and the hub does not give it "
            f"({_first_line(error)})."
        ) from error


def _to_device(model: Any, device: str) -> Any:
    try:
        return model.to(device)
    # Torch refuses with RuntimeError what it does not know, and with AssertionError what it was
    # built without.
    except (RuntimeError, AssertionError) as error:
        raise ModelError(
            f"`device` {device!r} cannot be used ({_first_line(error)}). Leave it out to use CUDA "
            'if there is one, or give "cpu".'
        ) from error


def _first_line(error: BaseException) -> str:
    return next((line.strip() for line in str(error).splitlines() if line.strip()), repr(error))
