"""A stand-in for vLLM: the part of its documented API that `VLLMGenerator` uses, checked strictly.

After the source of vLLM 0.32: `LLM(model, **engine arguments)`, `LLM.get_tokenizer()`,
`LLM.chat(messages, sampling_params, use_tqdm, lora_request)` and `LLM.generate` of token ids with results in the order of the prompts, `SamplingParams` with its checks, and `RequestOutput.outputs`. With `n` and a seed,
sample i is drawn with seed + i. Text comes from `chat_server.write_answer`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from types import ModuleType, SimpleNamespace
from typing import Any

import tiny_models
from chat_server import write_answer

# Arguments of `LLM` or of `EngineArgs`, as far as the tests use them.
_ENGINE_ARGUMENTS = {
    "dtype",
    "enable_chunked_prefill",
    "enable_lora",
    "enable_prefix_caching",
    "gpu_memory_utilization",
    "max_lora_rank",
    "max_model_len",
    "quantization",
    "seed",
    "tensor_parallel_size",
}


class VLLMClientError(Exception):
    """What is raised about a request: no ValueError, as it was up to some version."""


class VLLMValidationError(VLLMClientError):
    """The kind of it for arguments."""


@dataclass
class LoRARequest:
    lora_name: str
    lora_int_id: int
    lora_path: str


@dataclass
class SamplingParams:
    n: int = 1
    temperature: float = 1.0
    top_p: float = 1.0
    seed: int | None = None
    max_tokens: int | None = 16

    def __post_init__(self) -> None:
        if 0 < self.temperature < 1e-2:
            self.temperature = 1e-2
        if not (math.isfinite(self.temperature) and 0 <= self.temperature <= 2):
            raise VLLMValidationError(f"temperature must be in [0, 2], got {self.temperature}.")
        if not 0 < self.top_p <= 1:
            raise VLLMValidationError(f"top_p must be in (0, 1], got {self.top_p}.")
        if self.n < 1:
            raise VLLMValidationError(f"n must be at least 1, got {self.n}.")
        if self.temperature == 0 and self.n > 1:
            raise VLLMValidationError(f"n must be 1 when using greedy sampling, got {self.n}.")


@dataclass
class CompletionOutput:
    index: int
    text: str
    token_ids: list[int]
    finish_reason: str | None


@dataclass
class RequestOutput:
    outputs: list[CompletionOutput]
    finished: bool = True


class LLM:
    """Attributes: `calls`, the arguments of every `chat`; `options`, those of the constructor.

    And `generated`: the token ids of every `generate`; `adapters`: those of every call.
    """

    def __init__(self, model: str, **options: Any) -> None:
        assert isinstance(model, str)
        unknown = set(options) - _ENGINE_ARGUMENTS
        if unknown:
            raise TypeError(f"EngineArgs.__init__() got an unexpected keyword argument {unknown}")
        if model == "no/such-model":
            raise OSError(f"{model} is not a local folder and is not a valid model identifier")
        self.options = options
        self.calls: list[tuple[list[list[dict[str, str]]], list[SamplingParams]]] = []
        self.generated: list[list[list[int]]] = []
        self.adapters: list[LoRARequest | None] = []
        self.tokenizer: Any = tiny_models.build_tiny_tokenizer()

    def get_tokenizer(self) -> Any:
        return self.tokenizer

    def chat(
        self,
        messages: list[list[dict[str, str]]],
        sampling_params: list[SamplingParams],
        use_tqdm: bool = True,
        lora_request: LoRARequest | None = None,
    ) -> list[RequestOutput]:
        self.adapters.append(lora_request)
        assert all(isinstance(conversation, list) for conversation in messages)
        assert all(isinstance(params, SamplingParams) for params in sampling_params)
        assert len(messages) == len(sampling_params)
        assert not use_tqdm
        limit = self.options.get("max_model_len")
        for conversation in messages:
            num_tokens = len(self.tokenizer.apply_chat_template(conversation)["input_ids"])
            if limit is not None and num_tokens > limit:
                raise VLLMValidationError(
                    f"The decoder prompt (length {num_tokens}) is longer than the maximum model "
                    f"length of {limit}."
                )
        self.calls.append((messages, sampling_params))
        return [
            RequestOutput([_output(conversation, params, i) for i in range(params.n)])
            for conversation, params in zip(messages, sampling_params, strict=True)
        ]

    def generate(
        self,
        prompts: list[dict[str, list[int]]],
        sampling_params: list[SamplingParams],
        use_tqdm: bool = True,
        lora_request: LoRARequest | None = None,
    ) -> list[RequestOutput]:
        self.adapters.append(lora_request)
        assert all(prompt.keys() == {"prompt_token_ids"} for prompt in prompts)
        assert all(type(i) is int for prompt in prompts for i in prompt["prompt_token_ids"])
        assert len(prompts) == len(sampling_params)
        assert not use_tqdm
        ids = [prompt["prompt_token_ids"] for prompt in prompts]
        self.generated.append(ids)
        texts = [[{"role": "user", "content": self.tokenizer.decode(row)}] for row in ids]
        return [
            RequestOutput([_output(text, params, i) for i in range(params.n)])
            for text, params in zip(texts, sampling_params, strict=True)
        ]


def _output(messages: list[dict[str, str]], params: SamplingParams, index: int) -> CompletionOutput:
    assert params.seed is not None and params.max_tokens is not None
    text, num_tokens, reason = write_answer(
        messages, params.seed + index, params.temperature, params.max_tokens
    )
    # The end token is among the ids and not in the text.
    return CompletionOutput(index, text, list(range(num_tokens)), reason)


def build_module() -> ModuleType:
    """What `import vllm` gives."""
    module = ModuleType("vllm")
    module.LLM = LLM  # type: ignore[attr-defined]
    module.SamplingParams = SamplingParams  # type: ignore[attr-defined]
    module.exceptions = SimpleNamespace(VLLMClientError=VLLMClientError)  # type: ignore[attr-defined]
    platform = SimpleNamespace(is_cpu=lambda: False)
    module.platforms = SimpleNamespace(current_platform=platform)  # type: ignore[attr-defined]
    module.LoRARequest = LoRARequest  # type: ignore[attr-defined]
    return module
