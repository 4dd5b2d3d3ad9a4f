"""Sampling candidates with a shared schema prefix against plain `generate`, vLLM and a server.

Needs: a model folder with a chat template (SmolLM2-135M-Instruct), Spider's schemas and questions
(the folder that `SENSE_TRL_DATA` names; see `--data`). Runs on the GPU if there is one.

    python recipes/benchmarks/generation.py --model smollm2 --questions 16 --databases 2
    python recipes/benchmarks/generation.py --model smollm2 --questions 200 --databases 20

All sides sample `--samples` answers of at most `--max-new-tokens` tokens to the same prompts, in
alternating rounds, with the same weights. `plain` is `model.generate` on prompts sorted by length
and padded left, with `num_return_sequences` and a KV cache, as most scripts do it; `shared` is
`TransformersGenerator`. Samples differ between the sides (each has its own random numbers), so
besides candidates per second the tokens that were written are printed, and ratios are of tokens per
second. Greedy answers must be the same; how many differ from those of the first side is printed
first.

Expected: 4.1 (3.9 .. 4.3) for 8 questions on one database, 8 samples each, on two CPU cores.

`vllm` is `VLLMGenerator` in this process, which takes an environment with vLLM and the memory
of one more copy of the weights; `server` is `OpenAIGenerator` on `--base-url`, where a server runs
with as many threads and the same type of numbers. On a CPU (see docs/scale.md for the environment):

    export OMP_NUM_THREADS=2 VLLM_CPU_OMP_THREADS_BIND=nobind VLLM_CPU_KVCACHE_SPACE=1
    export VLLM_ENABLE_V1_MULTIPROCESSING=0
    python recipes/benchmarks/generation.py --model qwen2.5-coder-0.5b --questions 200 \\
        --databases 20 --sides vllm shared
    vllm serve qwen2.5-coder-0.5b --dtype float32 --max-model-len 4096 --max-num-seqs 64 &
    python recipes/benchmarks/generation.py --model qwen2.5-coder-0.5b --questions 200 \\
        --databases 20 --sides server shared --base-url http://127.0.0.1:8000/v1
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from sense_trl.generation.generator import Completion, SamplingConfig
from sense_trl.generation.transformers_generator import TransformersGenerator
from sense_trl.prompts import get_prompt
from sense_trl.schema.formats import format_schema
from sense_trl.schema.schema import load_spider_schemas

SIDES = ("plain", "shared", "vllm", "server")
Run = Callable[[list[Any], SamplingConfig], list[list[Completion]]]
DEFAULT_DATA = Path(__file__).resolve().parents[3] / "shared" / "data"


def get_prompts(data: Path, num_questions: int, num_databases: int) -> list[Any]:
    """Questions on the databases with the most of them, equally many on each."""
    schemas = load_spider_schemas(data / "spider" / "tables.json")
    lines = (data / "spider" / "train.jsonl").read_text(encoding="utf-8").splitlines()
    examples = [json.loads(line) for line in lines]
    counts = Counter(example["db_id"] for example in examples)
    per_database = num_questions // num_databases
    prompts = []
    for db_id, _ in sorted(counts.items(), key=lambda item: (-item[1], item[0]))[:num_databases]:
        schema = format_schema(schemas[db_id])
        questions = [e["question"] for e in examples if e["db_id"] == db_id]
        prompts += [get_prompt(question, schema) for question in questions[:per_database]]
    return prompts


def generate_plainly(
    generator: TransformersGenerator, prompts: list[Any], sampling: SamplingConfig
) -> list[list[Completion]]:
    """What `model.generate` gives in batches of the generator's size."""
    model, tokenizer = generator.model, generator.tokenizer
    tokenizer.padding_side = "left"
    texts = [
        tokenizer.apply_chat_template(prompt, add_generation_prompt=True, tokenize=False)
        for prompt in prompts
    ]
    order = sorted(range(len(texts)), key=lambda index: len(texts[index]))
    per_batch = max(1, generator.batch_size // sampling.num_generations)
    results: list[list[Completion]] = [[] for _ in texts]
    for start in range(0, len(order), per_batch):
        chosen = order[start : start + per_batch]
        inputs = tokenizer(
            [texts[index] for index in chosen],
            return_tensors="pt",
            padding=True,
            add_special_tokens=False,
        ).to(model.device)
        settings: dict[str, Any] = {"do_sample": False}
        if sampling.temperature > 0:
            settings = {"do_sample": True, "temperature": sampling.temperature, "top_k": 0}
        with torch.inference_mode():
            written = model.generate(
                **inputs,
                **settings,
                max_new_tokens=sampling.max_new_tokens,
                num_return_sequences=sampling.num_generations,
                pad_token_id=tokenizer.pad_token_id,
            )[:, inputs["input_ids"].shape[1] :]
        for row, ids in enumerate(written):
            end = (ids == tokenizer.eos_token_id).nonzero()
            num_tokens = int(end[0]) + 1 if len(end) else len(ids)
            text = tokenizer.decode(ids, skip_special_tokens=True)
            results[chosen[row // sampling.num_generations]].append(
                Completion(text, num_tokens, bool(len(end)))
            )
    return results


def open_side(name: str, generator: TransformersGenerator, arguments: argparse.Namespace) -> Run:
    """What answers prompts on one side."""
    if name == "plain":
        return partial(generate_plainly, generator)
    if name == "shared":
        return generator.generate
    if name == "vllm":
        from sense_trl.generation.vllm_generator import VLLMGenerator

        # Above the longest prompt: vLLM on a CPU cannot read a prompt in pieces with seeds.
        return VLLMGenerator(
            arguments.model,
            dtype=arguments.dtype,
            max_model_len=4096,
            max_num_batched_tokens=4096,
            max_num_seqs=arguments.batch_size,
        ).generate
    if arguments.base_url is None:
        raise SystemExit("the side `server` needs --base-url")
    from sense_trl.generation.openai_generator import OpenAIGenerator

    return OpenAIGenerator(
        arguments.served_model or arguments.model,
        arguments.base_url,
        concurrency=arguments.concurrency,
        timeout_s=1800.0,
    ).generate


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    default_data = Path(os.environ.get("SENSE_TRL_DATA", DEFAULT_DATA))
    parser.add_argument("--model", required=True, help="model folder")
    parser.add_argument("--data", type=Path, default=default_data, help="folder of real data")
    parser.add_argument("--questions", type=int, default=16)
    parser.add_argument("--databases", type=int, default=2)
    parser.add_argument("--samples", type=int, default=8)
    parser.add_argument("--max-new-tokens", type=int, default=32)
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--sides", nargs="+", default=["plain", "shared"], choices=SIDES)
    parser.add_argument("--base-url", help="the server of the side `server`")
    parser.add_argument("--served-model", help="the server's name of the model; the folder's path")
    parser.add_argument("--concurrency", type=int, default=16, help="requests to the server")
    arguments = parser.parse_args()
    prompts = get_prompts(arguments.data, arguments.questions, arguments.databases)
    generator = TransformersGenerator(
        arguments.model, batch_size=arguments.batch_size, dtype=arguments.dtype
    )
    generator.model.eval()
    if generator.tokenizer.pad_token_id is None:
        generator.tokenizer.pad_token_id = generator.tokenizer.eos_token_id
    lengths = [len(generator._encode(prompt)) for prompt in prompts]
    print(
        f"{len(prompts)} questions on {arguments.databases} databases, prompts of "
        f"{min(lengths)} to {max(lengths)} tokens, {arguments.samples} samples each, torch "
        f"{torch.__version__} on {generator.model.device}, {arguments.dtype}, "
        f"load {os.getloadavg()[0]:.1f}"
    )
    greedy = SamplingConfig(max_new_tokens=arguments.max_new_tokens)
    sides = {name: open_side(name, generator, arguments) for name in arguments.sides}
    first, *others = sides
    expected = [c[0].text.strip() for c in sides[first](prompts, greedy)]
    for name in others:
        found = [c[0].text.strip() for c in sides[name](prompts, greedy)]
        num = sum(map(str.__ne__, expected, found))
        print(f"greedy answers of {name} that differ from {first}: {num} of {len(prompts)}")
    sampling = SamplingConfig(
        num_generations=arguments.samples,
        temperature=1.0,
        max_new_tokens=arguments.max_new_tokens,
    )
    rates: dict[str, list[float]] = {name: [] for name in sides}
    for number in range(arguments.rounds):
        for name, run in sides.items():
            started = time.perf_counter()
            results = run(prompts, replace(sampling, seed=number))
            seconds = time.perf_counter() - started
            completions = [completion for group in results for completion in group]
            tokens = sum(completion.num_tokens for completion in completions)
            rates[name].append(tokens / seconds)
            print(
                f"{name:<8}{seconds:8.1f} s{len(completions) / seconds:8.2f} candidates/s"
                f"{tokens / seconds:9.1f} tokens/s"
            )
    for name in others:
        ratios = [b / a for a, b in zip(rates[first], rates[name], strict=True)]
        print(
            f"tokens/s, {name} / {first}: median {statistics.median(ratios):.2f} "
            f"({min(ratios):.2f} .. {max(ratios):.2f}) over {len(ratios)} rounds"
        )


if __name__ == "__main__":
    main()
