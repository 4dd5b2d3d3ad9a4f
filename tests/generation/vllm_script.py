"""Compares `VLLMGenerator` on vLLM itself with `TransformersGenerator`; see the test."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any, Final

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
# The engine in this process, with little memory.
os.environ |= {
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "VLLM_NO_USAGE_STATS": "1",
}

import tiny_models
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoModelForCausalLM, LlamaConfig
from vllm_cases import GREEDY, MAX_LENGTH, PROMPTS, SAMPLED, TOO_LONG, flatten

from sense_trl.errors import InputError
from sense_trl.generation.generator import SamplingConfig
from sense_trl.generation.transformers_generator import TransformersGenerator
from sense_trl.generation.vllm_generator import VLLMGenerator

ENGINE: Final[dict[str, Any]] = {
    "dtype": "float32",
    "max_model_len": MAX_LENGTH,
    "max_num_seqs": 16,
    "enforce_eager": True,
    # Not the longest prompt that comes, but less than all of them: some have to wait.
    "max_num_batched_tokens": MAX_LENGTH,
    # Blocks of the cache: it would take all that is allowed.
    "num_gpu_blocks_override": 128,
}


def main() -> None:
    folder = Path(sys.argv[1])
    model = folder / "model"
    found: dict[str, Any] = {}
    prepare(folder)
    ours = TransformersGenerator(model)
    found["ours"] = flatten(ours.generate(PROMPTS, GREEDY))
    generator = VLLMGenerator(model, **ENGINE)
    found["vllm"] = flatten(generator.generate(PROMPTS, GREEDY))
    found["alone"] = [flatten(generator.generate([prompt], GREEDY))[0] for prompt in PROMPTS]
    found["prompts_ours"] = [ours._encode(messages) for messages in PROMPTS]
    found["prompts_vllm"], found["cached"] = get_prompts(generator)
    found["sampled"] = [flatten(generator.generate(PROMPTS, SAMPLED)) for _ in range(2)]
    refused = []
    for prompts, sampling in (
        ([PROMPTS[0], TOO_LONG, PROMPTS[1]], GREEDY),
        (PROMPTS[:1], SamplingConfig(temperature=2.5)),
    ):
        try:
            generator.generate(prompts, sampling)
        except InputError as error:
            refused.append(str(error))
    found["refused"] = refused
    # What was refused has left nothing in the engine.
    found["after"] = flatten(generator.generate(PROMPTS, GREEDY))
    del generator

    adapted = VLLMGenerator(model, adapter=folder / "adapter", **ENGINE)
    found["adapter_vllm"] = flatten(adapted.generate(PROMPTS, GREEDY))
    base = AutoModelForCausalLM.from_pretrained(model)
    merged = PeftModel.from_pretrained(base, folder / "adapter").merge_and_unload()
    generator = TransformersGenerator(merged, ours.tokenizer)
    found["adapter_ours"] = flatten(generator.generate(PROMPTS, GREEDY))
    (folder / "found.json").write_text(json.dumps(found))


def prepare(folder: Path) -> None:
    """Write a tiny model that ends some of its answers, and an adapter of it."""
    path, tokenizer = folder / "model", tiny_models.build_tiny_tokenizer()
    # Heads of a size that vLLM's attention has.
    sizes = {"hidden_size": 128, "num_attention_heads": 4, "head_dim": 32}
    options = {**tiny_models.SMALL, **sizes, "max_position_embeddings": 2 * MAX_LENGTH}
    model = tiny_models.build_small_model(LlamaConfig, **options)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter *= 3  # so that it does not write one token all the time
    # An end besides the tokenizer's own: a token that it is known to write.
    generator = TransformersGenerator(model, tokenizer, name="tiny")
    [[written]] = generator.write([generator._encode(PROMPTS[0])], [""], GREEDY)
    model.generation_config.eos_token_id = [written[12], tokenizer.eos_token_id]
    model.save_pretrained(path)
    tokenizer.save_pretrained(path)
    config = LoraConfig(r=4, target_modules="all-linear", init_lora_weights=False)
    get_peft_model(model, config).save_pretrained(folder / "adapter")


def get_prompts(generator: VLLMGenerator) -> tuple[list[list[int]], list[int]]:
    """The token ids of the prompts as vLLM reads them, and how many of each were in the cache."""
    parameters = [generator._sampling_params(temperature=0.0, max_tokens=1) for _ in PROMPTS]
    outputs = generator._ask(PROMPTS, parameters)
    return (
        [list(output.prompt_token_ids) for output in outputs],
        [output.num_cached_tokens or 0 for output in outputs],
    )


if __name__ == "__main__":
    main()
