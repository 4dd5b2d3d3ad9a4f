"""`TransformersGenerator`: batched sampling from a `transformers` model with a shared prefix.

Questions on one database share the instruction and the schema, which are most of a prompt, and are
read once: see `PrefixDecoder`.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Sequence
from pathlib import Path, PureWindowsPath
from typing import TYPE_CHECKING, Any

from sense_trl.chat_template import check_chat_template, fold_messages
from sense_trl.chat_tokens import apply_chat_template
from sense_trl.decoding.decoder import PrefixDecoder
from sense_trl.end_tokens import get_end_token_ids
from sense_trl.errors import InputError, ModelError
from sense_trl.generation.fences import close_at_fence, find_block_end
from sense_trl.generation.generator import Completion, SamplingConfig
from sense_trl.prompts import Messages

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


class TransformersGenerator(PrefixDecoder):
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

        if isinstance(model, (str, Path)):
            tokenizer = tokenizer or load_tokenizer(model)
            device = device or ("cuda" if torch.cuda.is_available() else "cpu")
            loaded: Any = _to_device(load_model(model, dtype=dtype), device)
            name = name or Path(model).name
        else:
            if tokenizer is None:
                raise InputError("`tokenizer` is None; a loaded `model` needs its tokenizer.")
            loaded = model
            name = name or Path(str(getattr(model, "name_or_path", "model"))).name
        check_chat_template(tokenizer, name, has_system=not fold_system_message)
        self.tokenizer: Any = tokenizer
        self._folds = fold_system_message
        end_ids = _get_end_token_ids(loaded, tokenizer)
        super().__init__(loaded, end_ids, batch_size=batch_size, name=name)

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
        # Training may have taught the model another end since it was handed over.
        known = get_end_token_ids(self.model, self.tokenizer)
        self._end_ids = [*dict.fromkeys([*self._end_ids, *known])]
        token_ids = [self._encode(messages) for messages in prompts]
        self._check_lengths(prompts, token_ids, sampling)
        keys = [json.dumps(messages) for messages in prompts]
        is_complete = self._make_fence_check() if sampling.stop_at_fence else None
        written = self.write(
            token_ids, keys, sampling, is_complete=is_complete, on_progress=on_progress
        )
        completions = [[self._completion(tokens) for tokens in samples] for samples in written]
        if is_complete is None:
            return completions
        return [[close_at_fence(completion) for completion in group] for group in completions]

    def _make_fence_check(self) -> Callable[[list[int]], bool]:
        """Whether tokens end in the fence that closes a block with a query."""

        @functools.cache
        def may_close(token: int) -> bool:
            return bool({"`", "~"} & {*self.tokenizer.decode([token])})

        def is_complete(tokens: list[int]) -> bool:
            if not may_close(tokens[-1]):
                return False
            text = self.tokenizer.decode(tokens, skip_special_tokens=True)
            return find_block_end(text) is not None

        return is_complete

    def _encode(self, messages: Messages) -> list[int]:
        messages = fold_messages(messages) if self._folds else messages
        ids = apply_chat_template(
            self.tokenizer, messages, add_generation_prompt=True, tokenize=True, return_dict=True
        )["input_ids"]
        return [int(token) for token in ids]

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
                    "can read. Show the part of the schema that a question needs (`linker`, "
                    "`max_schema_tokens`), use a shorter schema style, or a model with a longer "
                    "context."
                )

    def _completion(self, tokens: list[int]) -> Completion:
        finished = tokens[-1] in self._end_ids
        # An end of the generation config need not be a special token.
        text = self.tokenizer.decode(tokens[: -1 if finished else None], skip_special_tokens=True)
        return Completion(text.strip(), len(tokens), finished)


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
