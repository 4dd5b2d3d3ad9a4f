"""Distributions of a teacher on disk, for given answers: the training machine never holds it.

For every token of an answer the k likeliest tokens with their log-probabilities and that of all
others together are kept, or some tokens drawn at random. At k = 16 that is 98 bytes a token instead
of the 600,000 of a vocabulary of 150,000. `teacher_cache_builder` makes a cache.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from sense_trl.errors import InputError
from sense_trl.losses.divergence import Divergence, forward_kl
from sense_trl.losses.sparse_teacher import reduce_to_top_k, sampled_forward_kl
from sense_trl.prefix_tree import PrefixTree
from sense_trl.trainers.rows.token_rows import TokenRow
from sense_trl.trainers.sharing.heads import LogitTerm
from sense_trl.trainers.teachers.teacher import pick_rows

SETTINGS_FILE = "cache.json"
FORMAT = 1
"""Raised whenever the same answers give other entries."""

KEY_BYTES = 16


@dataclass(frozen=True)
class TeacherCacheSettings:
    """Settings that the entries of a cache depend on.

    Attributes:
        teacher: name of the model.
        weights: identity of its weights and their type.
        tokenizer: identity of its tokens and their ids.
        num_tokens: V, how many tokens there are; rows beyond them in the heads are left out.
        top_k: likeliest tokens kept; 0 in a cache of samples.
        num_samples: tokens drawn; 0 in a cache of the likeliest.
        seed: of the draws.
        temperature: the teacher's logits were divided by it.
        model_settings: of the teacher's config and adapters; None in a cache of version 0.1.0.
        template_date: day on which a chat template that writes the date wrote the prompts; None for
            other templates.
    """

    teacher: str
    weights: str
    tokenizer: str
    num_tokens: int
    top_k: int
    num_samples: int
    seed: int
    temperature: float
    model_settings: dict[str, Any] | None = None
    template_date: str | None = None

    @property
    def num_ids(self) -> int:
        """Tokens kept per token of an answer."""
        return self.top_k or self.num_samples

    @property
    def num_logps(self) -> int:
        """Log-probabilities kept per token of an answer: with the k likeliest, that of the rest."""
        return self.top_k + 1 if self.top_k else self.num_samples


class TeacherCache:
    """A folder with a teacher's distribution at the tokens of many answers.

    An answer is found again by its tokens and those of the prompt, whatever the dataset around it
    or its order. The log-probabilities are rounded to 16 bits: each is off by at most 1 / 2048 of
    itself, 0.005 nats for a probability of e^-10, and the k + 1 of a token are scaled to sum to 1
    when they are compared.

    With the k likeliest tokens, the student's distribution is reduced to the same k tokens and the
    rest, and any divergence compares the two. It is never negative and, but for `adaptive_kl` and
    the rounding, never more than that of the full vocabulary; it says nothing about how the rest is
    spread over its tokens. `forward_kl` loses least by that, for it weighs tokens as the teacher
    does: with SmolLM2-135M as the teacher of its own first 24 layers, on 150 tokens of Spider,
    k = 16 kept 0.88 of it, 0.84 of the generalised JSD and 0.49 of `reverse_kl`.

    A cache of samples gives an unbiased, noisier estimate of the full `forward_kl`, and of no other
    divergence.

    What a teacher says of answers that are made during training (KID, on-policy distillation)
    cannot be cached: use it with plain distillation, or with preference training on the chosen
    answers.

    Args:
        path: the folder.

    Raises:
        InputError: there is no cache, or it cannot be read.

    Example:

    ```python
    cache = build_teacher_cache("cache", teacher, tokenizer, [(prompt_ids, completion_ids)])
    token_ids, logps = cache.lookup(prompt_ids, completion_ids)  # [L, 16] and [L, 17]
    ```
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.settings = read_settings(self.path)
        # Key of a sequence to its file and to the rows there that are its answer's tokens.
        self._places: dict[bytes, tuple[Any, range]] = {}
        for shard in sorted(self.path.glob("*.safetensors")):
            self.add_shard(shard)

    def __len__(self) -> int:
        """Number of answers."""
        return len(self._places)

    def __contains__(self, row: TokenRow) -> bool:
        return self._find(row) is not None

    @property
    def num_completion_tokens(self) -> int:
        """Number of tokens of all answers."""
        return sum(len(rows) for _, rows in self._places.values())

    @property
    def num_bytes(self) -> int:
        """Size on disk."""
        return sum(file.stat().st_size for file in self.path.iterdir())

    def add_shard(self, shard: Path) -> None:
        """Read the index of a file of the folder.

        Raises:
            InputError: it is damaged, or something else.
        """
        try:
            file: Any = safe_open(shard, framework="pt")
            keys, ends = file.get_tensor("keys").numpy(), file.get_tensor("ends").tolist()
        except (OSError, SafetensorError) as error:
            raise InputError(
                f"`path`: {str(shard)!r} is not a part of a teacher cache ({error}). Delete it, "
                "and run `sense-trl teacher cache` again."
            ) from error
        for key, start, end in zip(keys, [0, *ends[:-1]], ends, strict=True):
            self._places[key.tobytes()] = file, range(start, end)

    def check_tokenizer(self, tokenizer: Any, vocab_size: int) -> None:
        """Make sure that a student's tokens are the teacher's.

        Args:
            tokenizer: the student's, of transformers.
            vocab_size: rows of its head.

        Raises:
            InputError: they are others.
        """
        num_tokens = self.settings.num_tokens
        if get_tokenizer_digest(tokenizer) != self.settings.tokenizer or vocab_size < num_tokens:
            raise InputError(
                f"`teacher_cache` {str(self.path)!r} was made with the tokenizer of "
                f"{self.settings.teacher!r}, which has {num_tokens} tokens and is not the "
                f"student's: that one has {len(tokenizer)}, and its head {vocab_size} rows. "
                "Distillation compares distributions over the same tokens. Choose a teacher of the "
                "student's family."
            )

    def check_rows(self, rows: Sequence[TokenRow], what: str) -> None:
        """Make sure that the teacher has been asked about all of some answers.

        Args:
            what: where they come from, for the message.

        Raises:
            InputError: some are missing.
        """
        missing = [index for index, row in enumerate(rows) if row not in self]
        if missing:
            prompt_ids, completion_ids = rows[missing[0]]
            shown = ", ".join(map(str, completion_ids[:8]))
            raise InputError(
                f"{len(missing)} of {len(rows)} answers of {what} are not among the {len(self)} of "
                f"the teacher cache {str(self.path)!r}. The first is number {missing[0]}: "
                f"{len(completion_ids)} tokens [{shown}, ...] after a prompt of "
                f"{len(prompt_ids)}. Add them with `sense-trl teacher cache`, from the same rows, "
                "tokenizer and chat template, and, where that writes the date, of the same day "
                "(`template_date`)."
            )

    def lookup(
        self, prompt_ids: Sequence[int], completion_ids: Sequence[int]
    ) -> tuple[Tensor, Tensor]:
        """Look up what the teacher said of an answer of L tokens.

        Returns:
            Token ids `[L, k]`, the likeliest first, and float32 log-probabilities `[L, k + 1]`, the
            last one that of all other tokens. From a cache of samples, `[L, S]` and `[L, S]`.

        Raises:
            InputError: the answer is not there.
        """
        found = self._find((prompt_ids, completion_ids))
        if found is None:
            self.check_rows([(prompt_ids, completion_ids)], "this call")
        assert found is not None, "otherwise the check has raised"
        file, rows = found
        token_ids, logps = (
            file.get_slice(name)[rows.start : rows.stop] for name in ("token_ids", "logps")
        )
        return token_ids.long(), logps.float()

    def get_term(
        self,
        tree: PrefixTree,
        divergence: Divergence,
        *,
        temperature: float = 1.0,
    ) -> LogitTerm:
        """Look the answers of `tree` up; see `Teacher.get_term`.

        The trained tokens of a sequence are its answer, and all before them its prompt.

        Raises:
            InputError: an answer is missing, something else than the end of a sequence is trained,
                the cache was made at another temperature, or it holds samples and `divergence` is
                not `forward_kl`.
        """
        self.check_comparison(divergence, temperature)
        settings = self.settings
        answers = _get_answers(tree)
        self.check_rows([row for row, _ in answers], "a batch")
        token_ids = torch.zeros(len(tree.target_ids), settings.num_ids, dtype=torch.long)
        logps = torch.zeros(len(tree.target_ids), settings.num_logps)
        for (prompt_ids, completion_ids), nodes in answers:
            token_ids[nodes], logps[nodes] = self.lookup(prompt_ids, completion_ids)
        device = tree.target_ids.device
        token_ids, logps = (each.to(device, non_blocking=True) for each in (token_ids, logps))

        def term(logits: Tensor, rows: slice | Tensor) -> Tensor:
            student = logits[:, : settings.num_tokens]
            ids, teacher = (pick_rows(v, rows).to(logits.device) for v in (token_ids, logps))
            if settings.num_samples:
                return sampled_forward_kl(student, ids, teacher, temperature=temperature)
            return divergence(reduce_to_top_k(student, ids, temperature=temperature), teacher)

        return term

    def check_comparison(self, divergence: Divergence, temperature: float) -> None:
        """Make sure that a divergence can be computed from what was kept.

        Raises:
            InputError: the cache was made at another temperature, or it holds samples and
                `divergence` is not `forward_kl`.
        """
        made_at = self.settings.temperature
        if temperature != made_at:
            raise InputError(
                f"`temperature` is {temperature}, but the teacher cache {str(self.path)!r} was "
                f"made at {made_at}. At another temperature the rest of the vocabulary has another "
                "probability, which the one that was kept does not tell. Train at "
                f"{made_at}, or make a cache with `--temperature {temperature}`."
            )
        function = getattr(divergence, "func", divergence)
        if self.settings.num_samples and function is not forward_kl:
            raise InputError(
                f"`divergence` is {getattr(function, '__name__', function)}, but the teacher cache "
                f"{str(self.path)!r} holds samples, from which forward_kl alone can be estimated. "
                "Use forward_kl, or a cache made with `--top_k`."
            )

    def _find(self, row: TokenRow) -> tuple[Any, range] | None:
        prompt_ids, completion_ids = row
        found = self._places.get(get_key([*prompt_ids, *completion_ids]))
        # Trainers may see the same text's answer begin a token later, but not sooner.
        if found is None or len(found[1]) < len(completion_ids):
            return None
        file, rows = found
        return file, rows[len(rows) - len(completion_ids) :]


def get_tokenizer_digest(tokenizer: Any) -> str:
    """Identity of a tokenizer's tokens and their ids; how it cuts texts does not matter."""
    vocabulary = json.dumps(sorted(tokenizer.get_vocab().items()))
    return hashlib.sha256(vocabulary.encode()).hexdigest()


def get_key(sequence: Sequence[int]) -> bytes:
    """Identity of the token ids of a prompt and an answer."""
    return hashlib.sha256(json.dumps(list(sequence)).encode()).digest()[:KEY_BYTES]


def read_settings(path: Path) -> TeacherCacheSettings:
    """Read the settings that the cache in a folder was made with.

    Raises:
        InputError: there is none, or one of another format.
    """
    try:
        content = json.loads((path / SETTINGS_FILE).read_text(encoding="utf-8"))
        version = content.pop("format")
        if version != FORMAT:
            raise ValueError(f"format {version}; expected {FORMAT}")
        return TeacherCacheSettings(**content)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(
            f"`path` is {str(path)!r}, which is not the folder of a teacher cache ({error}). Make "
            "one with `sense-trl teacher cache`."
        ) from error


def _get_answers(tree: PrefixTree) -> list[tuple[TokenRow, Tensor]]:
    """The answer of each sequence, and which of the M trained nodes its tokens are."""
    own = tree.on_host
    paths, targets, tokens = own.sequence_nodes, own.target_index, own.input_ids.flatten()
    answers: list[tuple[TokenRow, Tensor]] = []
    for path, target in zip(paths, targets, strict=True):
        length = int((path >= 0).sum())
        is_trained = target[:length] < len(tree.target_ids)
        num_trained = int(is_trained.sum())
        start = length - num_trained
        if not is_trained[start:].all():
            raise InputError(
                f"`tree` trains {num_trained} tokens of a sequence of {length} that are not its "
                "last ones; expected an answer at the end. A teacher cache knows prompts and "
                "answers; a live teacher takes any tokens."
            )
        if num_trained:
            ids = tokens[path[:length]].tolist()
            answers.append(((ids[:start], ids[start:]), target[start:length]))
    return answers
