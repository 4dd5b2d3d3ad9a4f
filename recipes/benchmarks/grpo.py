"""One step of online training (GRPO) on prefix trees against TRL's own trainer.

Needs: a model folder, e.g. Qwen2.5-Coder-0.5B-Instruct, and the Spider data that `SENSE_TRL_DATA`
names (see `--data`). Runs on the GPU if there is one.

    python recipes/benchmarks/grpo.py --model qwen2.5-coder-0.5b --layers 4
    python recipes/benchmarks/grpo.py --model qwen2.5-coder-0.5b --prompt-tokens 1000 --group 16

A prompt is a question of Spider dev behind schemas, as many as it takes for `--prompt-tokens`; its
G completions are of `--answer-tokens` tokens each, whatever the model writes: no token ends one. A
micro-batch is one group. With `--layers` the model has as many layers and random weights: quick,
and the head weighs more than in the whole model. Adapters are trained (LoRA, r 16) unless `--full`.

Sides, each in a process of its own, on the same prompts: `trl` as it comes; `trl_compact`, whose
head scores the positions of completions alone, as TRL does on a GPU but not on a CPU; `sense`. The
first step of each is not counted. Printed are CPU seconds per step (all threads; steadier than wall
time on a machine that others use), of generation, and of the loss with its backward pass; peak
memory above the loaded model; and the ratios, beside that of positions computed.

Seen with two layers and random weights in float32, LoRA, one thread of a machine that was busy with
other work, one round, a prompt of 499 tokens and 8 completions of 40, in CPU seconds, `sense`
against `trl_compact`: loss and backward 4.0 to 9.2 (0.43), generation 7.7 to 11.0 (0.70), a step
11.7 to 20.2 (0.58), memory 0.11 to 1.15 GB (0.10); positions 0.19. With so few layers the head, the
same on both sides, is most of it. The whole model has not been compared yet.
"""

from __future__ import annotations

import argparse
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

SIDES = ("trl", "trl_compact", "sense")


def get_options(folder: str, arguments: argparse.Namespace) -> dict[str, object]:
    """Arguments of all sides."""
    import torch

    has_gpu = torch.cuda.is_available()
    return {
        "output_dir": folder,
        "max_steps": 2,
        "per_device_train_batch_size": arguments.group,
        "num_generations": arguments.group,
        "max_completion_length": arguments.answer_tokens,
        "beta": arguments.beta,
        "use_cpu": not has_gpu,
        "bf16": has_gpu,
        "gradient_checkpointing": False,
        "report_to": "none",
        "disable_tqdm": True,
        "save_strategy": "no",
        "shuffle_dataset": False,
    }


def get_model(arguments: argparse.Namespace):
    """The model, whole or with fewer layers and random weights; nothing ends what it writes."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    if arguments.layers is None:
        model = AutoModelForCausalLM.from_pretrained(arguments.model, dtype=torch.float32)
    else:
        config = AutoConfig.from_pretrained(arguments.model)
        config.num_hidden_layers = arguments.layers
        if getattr(config, "layer_types", None):
            config.layer_types = config.layer_types[: arguments.layers]
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    # The last row of the head, which no text holds.
    model.generation_config.eos_token_id = model.config.vocab_size - 1
    return model


def get_peak_bytes() -> int:
    """The highest memory this process has had."""
    import torch

    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated()
    return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def run_side(arguments: argparse.Namespace) -> dict[str, float]:
    """Two steps of a side; what the second one took."""
    from datasets import Dataset
    from peft import LoraConfig
    from transformers import AutoTokenizer
    from trl import GRPOConfig, GRPOTrainer

    from sense_trl.trainers import (
        SenseGRPOConfig,
        SenseGRPOTrainer,
        score_trained_positions_only,
    )

    tokenizer = AutoTokenizer.from_pretrained(arguments.model, padding_side="left")
    rows = read_jsonl(arguments.data / "spider" / "dev.jsonl")
    schemas = get_schema_texts(arguments.data)
    picked = rows[17 * arguments.round], rows[17 * arguments.round + 5]
    prompts = [
        get_prompts(row["db_id"], [row["question"]], schemas, tokenizer, arguments.prompt_tokens)[0]
        for row in picked
    ]
    if arguments.side == "trl_compact":
        score_trained_positions_only()
    is_ours = arguments.side == "sense"
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
                start = time.process_time()
                try:
                    return original(*args, **options)
                finally:
                    clocks[clock].append(time.process_time() - start)

            setattr(trainer, name, timed)

        measure("_generate_single_turn", "generation")
        measure("_generate_and_score_completions", "scoring")
        measure("training_step", "step")
        before = get_peak_bytes()
        trainer.train()
    generation, scoring, step = (clocks[name][-1] for name in ("generation", "scoring", "step"))
    lengths = [len(tokenizer(prompt).input_ids) for prompt in prompts]
    group, answer = arguments.group, arguments.answer_tokens
    return {
        "generation_s": generation,
        "loss_s": step - scoring,
        "step_s": step,
        "peak_gb": (get_peak_bytes() - before) / 1e9,
        "prompt_tokens": lengths[-1],
        "positions": lengths[-1] + group * answer if is_ours else group * (lengths[-1] + answer),
    }


def main() -> None:
    """Run all sides and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", required=True)
    parser.add_argument("--layers", type=int)
    parser.add_argument("--prompt-tokens", type=int, default=500)
    parser.add_argument("--answer-tokens", type=int, default=40)
    parser.add_argument("--group", type=int, default=8)
    parser.add_argument("--beta", type=float, default=0.0)
    parser.add_argument("--full", action="store_true")
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--sides", nargs="+", choices=SIDES, default=SIDES)
    data = Path(os.environ.get("SENSE_TRL_DATA", DEFAULT_DATA))
    parser.add_argument("--data", type=Path, default=data)
    parser.add_argument("--side", choices=SIDES, help=argparse.SUPPRESS)
    parser.add_argument("--round", type=int, default=0, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.side is not None:
        print(json.dumps(run_side(arguments)))
        return
    found: dict[str, list[dict[str, float]]] = {side: [] for side in arguments.sides}
    for number in range(arguments.rounds):
        for side in arguments.sides:
            command = [sys.executable, __file__, *sys.argv[1:], "--side", side]
            done = subprocess.run(
                [*command, "--round", str(number)], stdout=subprocess.PIPE, text=True, check=True
            )
            found[side].append(json.loads(done.stdout.splitlines()[-1]))
            print(side, found[side][-1], flush=True)
    for side in arguments.sides:
        if side == "sense":
            continue
        for name in ("generation_s", "loss_s", "step_s", "peak_gb", "positions"):
            pairs = zip(found["sense"], found[side], strict=True)
            ratio = statistics.median(ours[name] / theirs[name] for ours, theirs in pairs)
            print(f"sense / {side}: {name} {ratio:.2f}")


if __name__ == "__main__":
    main()
