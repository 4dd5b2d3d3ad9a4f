"""Asking a teacher about many answers, and keeping what it says as a `TeacherCache`."""

from __future__ import annotations

import json
import uuid
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, TypeAlias

import torch
from safetensors.torch import save
from torch import Tensor

from sense_trl._files import is_cut_short, replacing, write_text_atomically
from sense_trl.errors import InputError, check_at_least
from sense_trl.losses.logprobs import check_temperature, get_log_probs
from sense_trl.losses.sparse_teacher import reduce_to_top_k
from sense_trl.prefix_tree import PrefixTree
from sense_trl.trainers.rows.token_rows import TokenRow
from sense_trl.trainers.sharing.heads import get_vocab_size
from sense_trl.trainers.teachers.cache import (
    FORMAT,
    KEY_BYTES,
    SETTINGS_FILE,
    TeacherCache,
    TeacherCacheSettings,
    get_key,
    get_tokenizer_digest,
    read_settings,
)
from sense_trl.trainers.teachers.model_identity import (
    describe_differences,
    describe_settings,
    get_weights_digest,
)
from sense_trl.trainers.teachers.teacher import LiveTeacher, check_vocabularies

_CHUNK_BYTES = 64 * 2**20
"""Size of one chunk of float32 logits; a few such chunks are alive at once."""

_Entry: TypeAlias = tuple[bytes, Tensor, Tensor]
"""Key of a sequence; token ids `[L, k]` and log-probabilities `[L, k + 1]` of its answer."""


def build_teacher_cache(
    path: str | Path,
    model: Any,
    tokenizer: Any,
    rows: Iterable[TokenRow],
    *,
    top_k: int = 16,
    num_samples: int | None = None,
    temperature: float = 1.0,
    seed: int = 0,
    template_date: str | None = None,
    batch_size: int = 8,
    batches_per_shard: int = 64,
    on_progress: Callable[[int], None] | None = None,
) -> TeacherCache:
    """Ask a teacher about many answers and keep what it says.

    Answers are ordered so that those with the same prompt or schema meet in a batch, whose common
    beginnings are computed once. What is computed when the work is interrupted is kept: the same
    call continues, and gives the same entries.

    Args:
        path: the folder, new or with a cache of the same settings, to which answers are added.
        model: the teacher, on its device; it is put into eval mode and frozen.
        tokenizer: of the student, with the same tokens as its own.
        rows: token ids of prompts and answers, neither of them empty, including what ends an
            answer.
        top_k: likeliest tokens to keep for each token of an answer.
        num_samples: draw so many tokens instead of keeping the likeliest.
        temperature: divides the teacher's logits; training has to use the same.
        seed: of the draws.
        template_date: day that the chat template was told when it wrote the prompts, where it
            writes the date; see `sense_trl.template_date`. Trainers with this cache take it over.
        batch_size: answers per batch.
        batches_per_shard: batches per file.
        on_progress: called with the number of answers finished since the last call.

    Returns:
        The cache, with these answers and those that were there.

    Raises:
        InputError: an argument is out of range, the model lacks tokens of the tokenizer, or the
            folder holds something else.
    """
    path = Path(path)
    ordered = sorted({(tuple(prompt), tuple(answer)) for prompt, answer in rows})
    if not all(prompt and answer for prompt, answer in ordered):
        raise InputError(
            "`rows` has an empty prompt or answer; expected one token or more of each. Leave such "
            "rows out."
        )
    num_rows = get_vocab_size(model)
    check_vocabularies(tokenizer, tokenizer, (num_rows, num_rows))
    settings = TeacherCacheSettings(
        teacher=model.config.name_or_path,
        weights=get_weights_digest(model.named_parameters()),
        tokenizer=get_tokenizer_digest(tokenizer),
        num_tokens=max(tokenizer.get_vocab().values()) + 1,
        top_k=top_k if num_samples is None else 0,
        num_samples=num_samples or 0,
        seed=seed,
        temperature=temperature,
        model_settings=describe_settings(model),
        template_date=template_date,
    )
    if not 1 <= top_k <= settings.num_tokens:
        raise InputError(
            f"`top_k` is {top_k}; expected 1 to {settings.num_tokens}, the number of tokens."
        )
    check_at_least(1, num_samples=num_samples, batch_size=batch_size)
    check_temperature(temperature)
    _claim(path, settings)
    cache = TeacherCache(path)
    teacher = LiveTeacher(model, vocab_size=settings.num_tokens)
    finished: list[_Entry] = []
    try:
        # Cut from the full list, so that a second run computes the same batches.
        for start in range(0, len(ordered), batch_size):
            batch = ordered[start : start + batch_size]
            if any(row not in cache for row in batch):
                finished += _ask(teacher, settings, batch)
            if len(finished) >= batch_size * batches_per_shard:
                cache.add_shard(_write_shard(path, finished))
                finished = []
            if on_progress is not None:
                on_progress(len(batch))
    finally:
        if finished:
            cache.add_shard(_write_shard(path, finished))
    return cache


# ---------------------------------------------------------------------------------- folder


def _claim(path: Path, settings: TeacherCacheSettings) -> None:
    """Make the folder that of these settings, or refuse one of others."""
    text = json.dumps({"format": FORMAT, **asdict(settings)}, indent=1)
    file = path / SETTINGS_FILE
    if file.exists() and not is_cut_short(file, text):
        before, now = asdict(read_settings(path)), asdict(settings)
        models = [values.pop("model_settings") for values in (before, now)]
        if models[0] is None:
            raise InputError(
                f"`path` {str(path)!r} holds a teacher cache of sense_trl 0.1.0, which did not "
                "write down the settings of the model that it asked. Train with it as it is, or "
                "make a new one in another folder."
            )
        # The same weights may be loaded from another folder.
        del before["teacher"], now["teacher"]
        changed = describe_differences(before, now) + describe_differences(*models)
        if changed:
            raise InputError(
                f"`path` {str(path)!r} holds a teacher cache with other settings: "
                f"{'; '.join(changed)}. Choose another folder, or delete this one."
            )
        return
    # Of an interrupted claim the rest of the folder is this cache's.
    is_other = not path.is_dir() or (any(path.iterdir()) and not file.exists())
    if path.exists() and is_other:
        raise InputError(
            f"`path` {str(path)!r} exists and is no teacher cache. Choose another folder."
        )
    write_text_atomically(file, text)


def _write_shard(path: Path, entries: Sequence[_Entry]) -> Path:
    """Write answers as a file that is there wholly or not at all."""
    keys, token_ids, logps = zip(*entries, strict=True)
    tensors = {
        "keys": torch.frombuffer(bytearray(b"".join(keys)), dtype=torch.uint8).view(-1, KEY_BYTES),
        "ends": torch.tensor([len(ids) for ids in token_ids]).cumsum(0),
        "token_ids": torch.cat(token_ids),
        "logps": torch.cat(logps),
    }
    # A name of its own: two processes may add to one folder.
    shard = path / f"{uuid.uuid4().hex}.safetensors"
    with replacing(shard) as temporary:
        temporary.write_bytes(save(tensors))
    return shard


# --------------------------------------------------------------------------------- entries


def _ask(
    teacher: LiveTeacher, settings: TeacherCacheSettings, batch: Sequence[TokenRow]
) -> list[_Entry]:
    sequences = [[*prompt, *answer] for prompt, answer in batch]
    masks = [[0] * len(prompt) + [1] * len(answer) for prompt, answer in batch]
    tree = PrefixTree.from_sequences(sequences, masks)
    get_logits = teacher.run(tree)
    keys = [get_key(sequence) for sequence in sequences]
    # The draws of a batch depend on what is in it, not on what was computed before.
    seed = settings.seed + int.from_bytes(keys[0][:6], "big")
    num_nodes = len(tree.target_ids)
    step = max(1, _CHUNK_BYTES // (4 * settings.num_tokens))
    parts = [
        _reduce(get_logits(slice(start, start + step)), settings, seed + start)
        for start in range(0, num_nodes, step)
    ]
    token_ids, logps = (torch.cat(part).cpu() for part in zip(*parts, strict=True))
    entries = []
    for key, mask, index in zip(keys, masks, tree.target_index, strict=True):
        nodes = index[: len(mask)][-sum(mask) :]
        entries.append((key, token_ids[nodes].int(), logps[nodes].half()))
    return entries


def _reduce(logits: Tensor, settings: TeacherCacheSettings, seed: int) -> tuple[Tensor, Tensor]:
    """Reduce logits `[C, V]` to the tokens and log-probabilities that are kept."""
    if settings.top_k:
        ids = logits.topk(settings.top_k).indices
        return ids, reduce_to_top_k(logits, ids, temperature=settings.temperature)
    log_probs = get_log_probs(logits, settings.temperature)
    generator = torch.Generator(logits.device).manual_seed(seed)
    ids = log_probs.exp().multinomial(settings.num_samples, replacement=True, generator=generator)
    return ids, log_probs.gather(1, ids)
