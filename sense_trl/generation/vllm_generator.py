"""`VLLMGenerator`: samples with vLLM inside this process."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final

from sense_trl.chat_template import check_chat_template, fold_messages
from sense_trl.chat_tokens import apply_chat_template, find_control_strings
from sense_trl.errors import InputError, ModelError
from sense_trl.generation.fences import close_at_fence
from sense_trl.generation.generator import Completion, SamplingConfig, completion_seed
from sense_trl.prompts import Messages

# What vLLM takes for `max_lora_rank`.
_RANKS: Final = (8, 16, 32, 64, 128, 256, 320, 512)


class VLLMGenerator:
    """Samples SQL with vLLM's offline engine, prefix caching on.

    Prompts on one database go to the engine one after the other, so that their schema is read once
    and found in the cache from then on. Give it many prompts at a time: the engine fills its
    batches from all of them.

    vLLM is not among the dependencies of this package. The class follows the API of vLLM 0.32
    (`LLM`, its `chat` and `generate`, `SamplingParams`, `RequestOutput`, `LoRARequest`, its errors)
    and is tested against it, on a CPU, and against a stand-in with that API.

    Differences to `TransformersGenerator`: `n` samples of a prompt get seeds that vLLM derives from
    one, batches may change how a near tie is decided, vLLM raises temperatures between 1e-5 and
    0.01 to 0.01, and an answer that reaches the end of the model's context is not `finished`,
    where `TransformersGenerator` refuses the prompt beforehand.

    Args:
        model: a model folder or a hub id.
        adapter: folder of a LoRA adapter of this model, with which all is written.
        name: label for provenance; the folder's name if not given.
        fold_system_message: put the system's text in front of the user's, for chat templates
            without a system role.
        **engine_options: further arguments of `vllm.LLM`, e.g. `dtype`, `max_model_len`,
            `tensor_parallel_size`, `quantization`, `gpu_memory_utilization`.

    Raises:
        ModelError: vLLM is not installed or cannot load the model; the tokenizer's chat template
            cannot be used; `adapter` is no folder of a LoRA adapter.
    """

    def __init__(
        self,
        model: str | Path,
        *,
        adapter: str | Path | None = None,
        name: str | None = None,
        fold_system_message: bool = False,
        **engine_options: Any,
    ) -> None:
        try:
            import vllm  # type: ignore[import-not-found, unused-ignore]
            from vllm import platforms
        except ImportError as error:
            raise ModelError(
                f"vLLM cannot be imported ({error}). Install it (`pip install vllm`; it needs a "
                "GPU), use TransformersGenerator, or run a server elsewhere and use "
                "OpenAIGenerator."
            ) from error
        self._name = name or Path(model if adapter is None else adapter).name
        options = {"enable_prefix_caching": True, **engine_options}
        # With a seed, vLLM on a CPU dies of a prompt that it reads in pieces.
        if platforms.current_platform.is_cpu():
            options = {"enable_chunked_prefill": False, **options}
        if adapter is not None:
            options = {"enable_lora": True, "max_lora_rank": _get_rank(Path(adapter)), **options}
        try:
            self.llm: Any = vllm.LLM(model=str(model), **options)
        # What is raised depends on the part of vLLM that fails.
        except Exception as error:
            raise ModelError(
                f"vLLM cannot load `model` {str(model)!r} with {options} ({error}). Expected a "
                "model folder or the id of a model on the hub; `max_model_len` and "
                "`gpu_memory_utilization` decide how much memory it takes."
            ) from error
        self._sampling_params: Any = vllm.SamplingParams
        # What it raises about a request was a ValueError once.
        exceptions = getattr(vllm, "exceptions", None)
        self._refusals = (ValueError, getattr(exceptions, "VLLMClientError", ValueError))
        self._lora_request: Any = None
        if adapter is not None:
            from vllm.lora.request import (  # type: ignore[import-not-found, unused-ignore]
                LoRARequest,
            )

            self._lora_request = LoRARequest("adapter", 1, str(Path(adapter).absolute()))
        tokenizer = self.llm.get_tokenizer()
        # Mistral's own tokenizers format messages without a template.
        if hasattr(tokenizer, "chat_template"):
            check_chat_template(tokenizer, self._name, has_system=not fold_system_message)
        self._folds = fold_system_message

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

        `on_progress` is called once, at the end.

        Raises:
            InputError: vLLM refuses a prompt (longer than the model's context) or a setting.
        """
        if not prompts:
            return []
        keys = [json.dumps(messages) for messages in prompts]
        # The schema stands at the beginning of a prompt.
        order = sorted(range(len(prompts)), key=lambda index: keys[index])
        try:
            parameters = [
                self._sampling_params(
                    n=sampling.num_generations,
                    temperature=sampling.temperature,
                    top_p=sampling.top_p,
                    max_tokens=sampling.max_new_tokens,
                    seed=completion_seed(sampling.seed, keys[index], 0),
                )
                for index in order
            ]
            messages = [prompts[index] for index in order]
            if self._folds:
                messages = [fold_messages(conversation) for conversation in messages]
            outputs = self._ask(messages, parameters)
        except InputError:
            raise
        except self._refusals as error:
            raise InputError(
                f"vLLM refuses the prompts or `sampling` ({error}). If a prompt is too long, use a "
                "shorter schema style or raise `max_model_len`: prompts are never cut."
            ) from error
        results: list[list[Completion]] = [[] for _ in prompts]
        for index, output in zip(order, outputs, strict=True):
            results[index] = [
                Completion(
                    answer.text.strip(), len(answer.token_ids), answer.finish_reason == "stop"
                )
                for answer in sorted(output.outputs, key=lambda answer: answer.index)
            ]
        if sampling.stop_at_fence:
            results = [[close_at_fence(completion) for completion in group] for group in results]
        if on_progress is not None:
            on_progress(sum(map(len, results)))
        return results

    def _ask(self, prompts: Sequence[Messages], parameters: Sequence[Any]) -> list[Any]:
        tokenizer = self.llm.get_tokenizer()
        options: dict[str, Any] = {"use_tqdm": False}
        if self._lora_request is not None:
            options["lora_request"] = self._lora_request
        is_plain = not hasattr(tokenizer, "chat_template") or not any(
            find_control_strings(tokenizer, messages) for messages in prompts
        )
        if is_plain:
            return list(self.llm.chat([*prompts], [*parameters], **options))
        # vLLM applies the template to text, in which a control string of the data is a token.
        encoded = [
            apply_chat_template(
                tokenizer, messages, add_generation_prompt=True, tokenize=True, return_dict=True
            )["input_ids"]
            for messages in prompts
        ]
        tokens = [{"prompt_token_ids": [int(token) for token in ids]} for ids in encoded]
        return list(self.llm.generate(tokens, [*parameters], **options))


def _get_rank(adapter: Path) -> int:
    """The rank that vLLM makes room for: it takes some numbers only, and adapters up to them."""
    try:
        config = json.loads((adapter / "adapter_config.json").read_text(encoding="utf-8"))
        rank = max([int(config["r"]), *map(int, (config.get("rank_pattern") or {}).values())])
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ModelError(
            f"`adapter` is {str(adapter)!r}, which holds no LoRA adapter "
            f"({type(error).__name__}: {error}). Expected a folder with adapter_config.json and "
            "adapter_model.safetensors."
        ) from error
    return next((size for size in _RANKS if size >= rank), rank)
