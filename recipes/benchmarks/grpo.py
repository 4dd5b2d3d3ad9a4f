"""Steps of online training (GRPO) on prefix trees against TRL's own trainer.

Needs: a model folder, e.g. Qwen2.5-Coder-0.5B-Instruct, and the Spider data that `SENSE_TRL_DATA`
names (see `--data`). Runs on the GPU if there is one.

    python recipes/benchmarks/grpo.py --model qwen2.5-coder-0.5b \\
        --prompt-tokens 500 1000 --group 8 16 --output grpo.json
    python recipes/benchmarks/grpo.py --model qwen2.5-coder-0.5b --layers 2 --random

A prompt is a question of Spider dev behind schemas, as many as it takes for `--prompt-tokens`; its
G completions are of `--answer-tokens` tokens each, whatever the model writes: no token ends one. A
micro-batch is one group. Adapters are trained (LoRA, r 16) unless `--full`. With `--layers` the
model is cut to its first layers: quick, but the head, the same on both sides, weighs more.

Sides, each in a process of its own, on the same prompts, one after the other in each round:
`trl_compact`, TRL whose head scores the positions of completions alone, as it does on a GPU but not
on a CPU; `sense`; and, where they are named, `trl` as it comes, and `sense_kept`, which never
checkpoints its gradients. The first step of each is not counted. Printed are seconds per step, of
generation, and of the loss with its backward pass (CPU seconds of all threads, steadier than wall
time on a machine that others use; wall time on a GPU); memory above the loaded model and in all;
tokens that the loss and that generation compute; and, per measure, the median over steps of the
ratio of both sides, with its range.

What TRL holds for the backward pass is estimated first. Where that exceeds `--memory-gb`, TRL and
`sense` checkpoint their gradients, which adds a forward pass to the loss of both, and it is said;
where that exceeds it still, the model is cut to as many layers as fit.

Seen with the whole Qwen2.5-Coder-0.5B in float32, LoRA, two idle cores, one counted step of each
side, a prompt of 499 tokens and 8 completions of 40 (`--memory-gb 19 --steps 1 --rounds 1`), in CPU
seconds, `sense` against `trl_compact`: loss and backward 15.6 to 83.6 (0.19), generation 23.7 to
48.6 (0.49), a step 39 to 132 (0.30), memory above the model 4.4 to 16.2 GB (0.27); positions 0.19.
With two layers, where the head, the same on both sides, is most of it: 0.43, 0.70 and 0.58.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from prefix_sharing import DEFAULT_DATA, get_prompts, get_schema_texts, read_jsonl

SIDES = ("trl", "trl_compact", "sense", "sense_kept")
MEASURES = (
    *("generation_s", "loss_s", "step_s", "above_gb", "peak_gb"),
    *("loss_tokens", "generation_tokens"),
)


def get_options(folder: str, arguments: argparse.Namespace) -> dict[str, object]:
    """Arguments of all sides."""
    import torch

    has_gpu = torch.cuda.is_available()
    (group,) = arguments.group
    return {
        "output_dir": folder,
        "max_steps": 1 + arguments.steps,
        "per_device_train_batch_size": group,
        "num_generations": group,
        "max_completion_length": arguments.answer_tokens,
        "beta": arguments.beta,
        "use_cpu": not has_gpu,
        "bf16": has_gpu,
        "gradient_checkpointing": arguments.checkpointing and arguments.side != "sense_kept",
        "report_to": "none",
        "disable_tqdm": True,
        "save_strategy": "no",
        "shuffle_dataset": False,
    }


def get_model(arguments: argparse.Namespace):
    """The model, whole or its first layers; nothing ends what it writes."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    config = AutoConfig.from_pretrained(arguments.model)
    if arguments.layers is not None:
        config.num_hidden_layers = arguments.layers
        if getattr(config, "layer_types", None):
            config.layer_types = config.layer_types[: arguments.layers]
    torch.manual_seed(0)
    if arguments.random:
        model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    else:
        model = AutoModelForCausalLM.from_pretrained(
            arguments.model, config=config, dtype=torch.float32
        )
    # The last row of the head, which no text holds.
    model.generation_config.eos_token_id = model.config.vocab_size - 1
    return model


def estimate_gb(config, positions: int, layers: int, checkpointing: bool) -> float:
    """Memory of TRL's step in float32: weights, and what is kept for the backward pass.

    A layer keeps some 11 vectors of the hidden and 5 of the intermediate size per position: 133 KB
    of Qwen2.5-Coder-0.5B, as measured; checkpointed, its input alone.
    """
    hidden, inner = config.hidden_size, config.intermediate_size
    layer = 11 * hidden + 5 * inner
    kept = layers * hidden + layer if checkpointing else layers * layer
    weights = config.vocab_size * hidden + layers * (3 * hidden * inner + 3 * hidden**2)
    # Python and its libraries, and the logits of a few chunks.
    return (4 * (positions * kept + weights) + 1.5e9) / 1e9


def fit_memory(arguments: argparse.Namespace, positions: int) -> list[str]:
    """Flags with which TRL's step on so many positions fits `--memory-gb`; prints what changes."""
    from transformers import AutoConfig

    config = AutoConfig.from_pretrained(arguments.model)
    layers, limit = arguments.layers or config.num_hidden_layers, arguments.memory_gb
    needed, flags = estimate_gb(config, positions, layers, arguments.checkpointing), []
    print(f"TRL needs some {needed:.1f} GB for {layers} layers in float32.", flush=True)
    if needed > limit and not arguments.checkpointing:
        needed, flags = estimate_gb(config, positions, layers, True), ["--checkpointing"]
        print(f"It checkpoints its gradients, as `sense` does: {needed:.1f} GB.", flush=True)
    while needed > limit and layers > 1:
        layers -= 1
        needed = estimate_gb(config, positions, layers, True)
        flags = ["--checkpointing", "--layers", str(layers)]
    if "--layers" in flags:
        print(f"Cut to {layers} of {config.num_hidden_layers} layers: {needed:.1f} GB.", flush=True)
    return flags


def get_peak_bytes() -> int:
    """The highest memory of this process, since `reset_peak` where there is one."""
    import torch

    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated()
    status = Path("/proc/self/status")
    if status.exists():
        lines = dict(line.split(":", 1) for line in status.read_text().splitlines())
        return 1024 * int(lines["VmHWM"].split()[0])
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def reset_peak() -> int:
    """Have the peak begin at what is held now, which is returned."""
    import torch

    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    elif Path("/proc/self/clear_refs").exists():
        Path("/proc/self/clear_refs").write_text("5")
    return get_peak_bytes()


def read_clock() -> float:
    """Seconds: of all threads, or, on a GPU, of the wall once it has finished."""
    import torch

    if torch.cuda.is_available():
        torch.cuda.synchronize()
        return time.perf_counter()
    return time.process_time()


def run_side(arguments: argparse.Namespace) -> list[dict[str, float]]:
    """The steps of a side, but for the first."""
    from datasets import Dataset
    from peft import LoraConfig
    from transformers import AutoTokenizer
    from trl import GRPOConfig, GRPOTrainer

    from sense_trl.trainers import (
        SenseGRPOConfig,
        SenseGRPOTrainer,
        score_trained_positions_only,
    )

    (group,), (num_tokens,) = arguments.group, arguments.prompt_tokens
    tokenizer = AutoTokenizer.from_pretrained(arguments.model, padding_side="left")
    rows = read_jsonl(arguments.data / "spider" / "dev.jsonl")
    schemas = get_schema_texts(arguments.data)
    picked = (rows[17 * arguments.round + 5 * step] for step in range(1 + arguments.steps))
    prompts = [
        get_prompts(row["db_id"], [row["question"]], schemas, tokenizer, num_tokens)[0]
        for row in picked
    ]
    if arguments.side == "trl_compact":
        score_trained_positions_only()
    is_ours = arguments.side.startswith("sense")
    trainer_class, config_class = (
        (SenseGRPOTrainer, SenseGRPOConfig) if is_ours else (GRPOTrainer, GRPOConfig)
    )
    model = get_model(arguments)
    with tempfile.TemporaryDirectory() as folder:
        config = config_class(**get_options(folder, arguments))
        # Nothing that a tokenizer writes ends a completion.
        tokenizer.eos_token_id = model.config.vocab_size - 1
        trainer = trainer_class(
            model,
            lambda completions, **_: [float(len(text) % 7) for text in completions],
            args=config,
            train_dataset=Dataset.from_list([{"prompt": prompt} for prompt in prompts]),
            processing_class=tokenizer,
            peft_config=None if arguments.full else LoraConfig(r=16, target_modules="all-linear"),
        )
        clocks: dict[str, list[float]] = {"generation": [], "scoring": [], "step": []}

        def measure(name: str, clock: str) -> None:
            original = getattr(trainer, name)

            def timed(*args, **options):
                start = read_clock()
                try:
                    return original(*args, **options)
                finally:
                    clocks[clock].append(read_clock() - start)

            setattr(trainer, name, timed)

        measure("_generate_single_turn", "generation")
        measure("_generate_and_score_completions", "scoring")
        measure("training_step", "step")
        before = reset_peak()
        trainer.train()
    peak, answer = get_peak_bytes(), arguments.answer_tokens
    found = []
    for step, (generation, scoring, whole) in enumerate(zip(*clocks.values(), strict=True)):
        length = len(tokenizer(prompts[step]).input_ids)
        apart, shared = group * (length + answer), length + group * answer
        found.append(
            {
                "generation_s": generation,
                "loss_s": whole - scoring,
                "step_s": whole,
                "above_gb": (peak - before) / 1e9,
                "peak_gb": peak / 1e9,
                "prompt_tokens": length,
                # The last token of a completion is read by nobody.
                "generation_tokens": (shared if is_ours else apart) - group,
                "loss_tokens": shared if is_ours else apart,
            }
        )
    return found[1:]


def compare(ours: list[dict[str, float]], theirs: list[dict[str, float]], name: str) -> str:
    """The median of the ratios of the steps, with the lowest and the highest one."""
    ratios = [own[name] / other[name] for own, other in zip(ours, theirs, strict=True)]
    return f"{statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})"


def run_case(
    arguments: argparse.Namespace, num_tokens: int, group: int
) -> dict[str, list[dict[str, float]]]:
    """All rounds of all sides with prompts and groups of a size; their ratios are printed."""
    print(f"\nprompts of {num_tokens} tokens, {group} completions", flush=True)
    flags = fit_memory(arguments, group * (num_tokens + arguments.answer_tokens))
    found: dict[str, list[dict[str, float]]] = {side: [] for side in arguments.sides}
    case = ["--prompt-tokens", str(num_tokens), "--group", str(group)]
    for number in range(arguments.rounds):
        for side in arguments.sides:
            command = [sys.executable, __file__, *sys.argv[1:], *flags, *case, "--side", side]
            done = subprocess.run(
                [*command, "--round", str(number)], stdout=subprocess.PIPE, text=True, check=True
            )
            steps = json.loads(done.stdout.splitlines()[-1])
            found[side] += steps
            for step in steps:
                values = (f"{name} {step[name]:.2f}" for name in MEASURES)
                print(f"{side}: {', '.join(values)}", flush=True)
    ours = [side for side in arguments.sides if side.startswith("sense")]
    for own, side in itertools.product(ours, set(arguments.sides).difference(ours)):
        for name in MEASURES:
            print(f"{own} / {side}: {name} {compare(found[own], found[side], name)}", flush=True)
    return found


def main() -> None:
    """Run all sides and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", required=True)
    parser.add_argument("--layers", type=int, help="its first ones; all if left out")
    parser.add_argument("--random", action="store_true", help="random weights of its shape")
    parser.add_argument("--prompt-tokens", type=int, nargs="+", default=[500])
    parser.add_argument("--answer-tokens", type=int, default=40)
    parser.add_argument("--group", type=int, nargs="+", default=[8])
    parser.add_argument("--beta", type=float, default=0.0)
    parser.add_argument("--full", action="store_true")
    parser.add_argument("--checkpointing", action="store_true")
    parser.add_argument("--memory-gb", type=float, default=12.0)
    parser.add_argument("--steps", type=int, default=1, help="counted ones of each round")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--sides", nargs="+", choices=SIDES, default=SIDES[1:3])
    parser.add_argument("--output", type=Path, help="a JSON file for all that is measured")
    data = Path(os.environ.get("SENSE_TRL_DATA", DEFAULT_DATA))
    parser.add_argument("--data", type=Path, default=data)
    parser.add_argument("--side", choices=SIDES, help=argparse.SUPPRESS)
    parser.add_argument("--round", type=int, default=0, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.side is not None:
        print(json.dumps(run_side(arguments)))
        return
    cases = []
    for num_tokens in arguments.prompt_tokens:
        for group in arguments.group:
            found = run_case(arguments, num_tokens, group)
            cases.append({"prompt_tokens": num_tokens, "group": group, "steps": found})
            if arguments.output is not None:
                arguments.output.write_text(json.dumps(cases, indent=1), encoding="utf-8")


if __name__ == "__main__":
    main()
