"""One training step on prefix trees against TRL's own trainers on the same data.

Needs: a model folder, e.g. SmolLM2-135M-Instruct, and the Spider data that `SENSE_TRL_DATA` names
(see `--data`). Runs on the GPU if there is one. On two CPU cores a round of DPO at 1,024 tokens
takes some four minutes, and TRL's rows with three rejected answers 16 GiB beside the model:

    python recipes/benchmarks/prefix_sharing.py --model smollm2 --task dpo --rejected 1
    python recipes/benchmarks/prefix_sharing.py --model smollm2 --task sft --questions 8

Prompts are Spider's schemas and questions. A schema is followed by schemas of other databases until
the prompt has `--prompt-tokens`. DPO pairs are gold against real models' wrong predictions, those
with a length closest to `--answer-tokens` (further rejected answers are gold queries of other
questions). SFT batches are questions of one database. Every side trains on the same batch, a
different one in each round, in a process of its own; the first step is not counted.

Sides: `trl` as it comes; `trl_compact`, whose head scores trained positions only, as TRL does on a
GPU but not on a CPU; `sense`, on prefix trees. DPO sides compute the reference in every step, or,
named `..._precomputed`, before training. Printed are, per side, seconds per step, CPU seconds per
step (all threads; steadier than wall time on a machine that others use), peak memory above the
loaded model and operations; and the ratios of times within a round, as median, smallest and
largest, beside the ratio of positions computed, which is what the ratio of times would be if
nothing but positions cost time.

Seen with SmolLM2-135M in float32, LoRA, on two CPU cores that were busy with other work, so in CPU
seconds (median; two or three rounds), against TRL with its compact head:

* one rejected answer, reference live on both sides: 0.67 at prompts of 256 tokens, 0.57 at 512,
  0.54 at 1,024 (positions: 0.57, 0.54, 0.53), memory 0.52 to 0.53;
* precomputed on both sides: 0.61, 0.58, 0.55; ours precomputed against theirs live: 0.43, 0.43,
  0.40;
* three rejected answers at 1,024 tokens: 0.19; seven at 256: 0.23 (positions 0.16), memory 0.17;
* SFT with 16 questions per schema at 400 tokens, with gradient checkpointing, on a quiet machine:
  0.18 of the time (positions 0.14), memory 0.19; one round.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
from pathlib import Path

MODELS = (
    "chatgpt_zero_shot",
    "codes_1b_sft",
    "codex_few_shot",
    "dail_sql_gpt4",
    "dbgpt_codellama13b_lora",
)
SIDES = {
    "dpo": ("trl", "trl_compact", "sense", "trl_compact_precomputed", "sense_precomputed"),
    "sft": ("trl", "trl_compact", "sense"),
}
# Which side is divided by which.
RATIOS = {
    "dpo": (
        ("sense", "trl"),
        ("sense", "trl_compact"),
        ("sense_precomputed", "trl_compact_precomputed"),
        ("sense_precomputed", "trl"),
        ("sense_precomputed", "trl_compact"),
    ),
    "sft": (("sense", "trl"), ("sense", "trl_compact")),
}
DEFAULT_DATA = Path(__file__).resolve().parents[3] / "shared" / "data"


# ---------------------------------------------------------------------------------- data


def read_jsonl(path: Path) -> list[dict[str, str]]:
    """One record per line."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def get_schema_texts(data: Path) -> dict[str, str]:
    """The compact text of every Spider schema by database."""
    from sense_trl.schema.formats import format_schema
    from sense_trl.schema.schema import load_spider_schemas

    schemas = load_spider_schemas(data / "spider" / "tables.json")
    return {db_id: format_schema(schema) for db_id, schema in schemas.items()}


def get_prompts(
    db_id: str, questions: list[str], schemas: dict[str, str], tokenizer, num_tokens: int
) -> list[str]:
    """Prompts of about `num_tokens` tokens that begin with the same schemas."""
    others = [text for name, text in schemas.items() if name != db_id]
    longest = max(len(tokenizer(f"\n{question}\n").input_ids) for question in questions)
    ids = tokenizer("\n\n".join([schemas[db_id], *others])).input_ids[: num_tokens - longest]
    schema = tokenizer.decode(ids)
    return [f"{schema}\n{question}\n" for question in questions]


def get_pairs(arguments: argparse.Namespace, tokenizer) -> list[dict[str, str]]:
    """One question of Spider dev with its gold query and several wrong ones, as pairs."""
    data = arguments.data
    dev = read_jsonl(data / "spider" / "dev.jsonl")
    wrong: list[list[str]] = [[] for _ in dev]
    for model in MODELS:
        folder = data / "predictions" / model
        lines = (folder / "spider_dev.sql").read_text(encoding="utf-8").splitlines()
        verdicts = json.loads((folder / "spider_dev.verdicts.json").read_text(encoding="utf-8"))
        for index, (sql, verdict) in enumerate(zip(lines, verdicts, strict=True)):
            if verdict == "wrong":
                wrong[index].append(sql)

    def get_distance(index: int) -> float:
        answers = [dev[index]["query"], *wrong[index]]
        lengths = [len(tokenizer(sql).input_ids) for sql in answers]
        return abs(statistics.mean(lengths) - arguments.answer_tokens)

    candidates = sorted((i for i, sqls in enumerate(wrong) if sqls), key=get_distance)
    example = dev[candidates[arguments.round]]
    schemas = get_schema_texts(data)
    (prompt,) = get_prompts(
        example["db_id"], [example["question"]], schemas, tokenizer, arguments.prompt_tokens
    )
    others = [row["query"] for row in dev if row["db_id"] == example["db_id"]]
    others.sort(key=len, reverse=True)
    rejected = list(dict.fromkeys([*wrong[candidates[arguments.round]], *others]))
    rejected = [sql for sql in rejected if sql != example["query"]][: arguments.rejected]
    return [{"prompt": prompt, "chosen": example["query"], "rejected": sql} for sql in rejected]


def get_questions(arguments: argparse.Namespace, tokenizer) -> list[dict[str, str]]:
    """Several questions about one database of Spider's train split."""
    train = read_jsonl(arguments.data / "spider" / "train.jsonl")
    by_database: dict[str, list[dict[str, str]]] = {}
    for row in train:
        by_database.setdefault(row["db_id"], []).append(row)
    large = [rows for rows in by_database.values() if len(rows) >= arguments.questions]
    # Spread over the split: neighbours in it are alike.
    rows = large[(arguments.round * 37) % len(large)][: arguments.questions]
    prompts = get_prompts(
        rows[0]["db_id"],
        [row["question"] for row in rows],
        get_schema_texts(arguments.data),
        tokenizer,
        arguments.prompt_tokens,
    )
    return [
        {"prompt": prompt, "completion": row["query"]}
        for prompt, row in zip(prompts, rows, strict=True)
    ]


# --------------------------------------------------------------------------- measurement


def measure(arguments: argparse.Namespace) -> dict[str, float]:
    """Train on one batch in this process and time all steps but the first and the last.

    The first one warms up, in the last one operations are counted.
    """
    import torch
    from peft import LoraConfig
    from training_steps import count_operations, time_training
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from sense_trl import trainers

    side, task = arguments.side, arguments.task
    if "compact" in side:
        trainers.score_trained_positions_only()
    tokenizer = AutoTokenizer.from_pretrained(arguments.model)
    rows = (get_pairs if task == "dpo" else get_questions)(arguments, tokenizer)
    model = AutoModelForCausalLM.from_pretrained(
        arguments.model, dtype=torch.float32, attn_implementation=arguments.attention
    )
    is_sense = side.startswith("sense")
    options = {
        "max_length": None,
        "learning_rate": 1e-5,
        "use_cpu": not torch.cuda.is_available(),
        "bf16": arguments.bf16,
        "gradient_checkpointing": arguments.checkpointing,
    }
    if task == "dpo":
        options |= {
            "loss_type": ["sigmoid"],
            "precompute_ref_log_probs": side.endswith("_precomputed"),
        }
    if is_sense:
        options["prefix_sharing"] = True
    adapter = LoraConfig(r=16, lora_alpha=32, target_modules="all-linear")
    return time_training(
        task,
        is_sense,
        model,
        tokenizer,
        rows,
        num_steps=arguments.steps,
        probes=[count_operations],
        options=options,
        peft_config=None if arguments.full else adapter,
    )


# -------------------------------------------------------------------------------- report


def print_report(task: str, results: dict[str, list[dict[str, float]]]) -> None:
    """Medians per side and ratios round by round."""
    for side, rounds in results.items():
        step, cpu, memory, tflop = (
            statistics.median(r[name] for r in rounds)
            for name in ("step_s", "cpu_s", "activations_gib", "tflop")
        )
        print(
            f"{side:>24}: {step:6.2f} s per step, {cpu:6.2f} CPU s, {memory:5.2f} GiB above the "
            f"model, {tflop:6.3f} TFLOP"
        )
    for ours, theirs in RATIOS[task]:
        if not (ours in results and theirs in results):
            continue

        def get_ratio(name: str, ours: str = ours, theirs: str = theirs) -> str:
            pairs = zip(results[ours], results[theirs], strict=True)
            ratios = [a[name] / b[name] for a, b in pairs]
            return f"{statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})"

        losses = max(
            abs(a["loss"] - b["loss"]) for a, b in zip(results[ours], results[theirs], strict=True)
        )
        print(
            f"{ours} / {theirs}, {len(results[ours])} rounds: time {get_ratio('step_s')}, CPU time "
            f"{get_ratio('cpu_s')}, memory {get_ratio('activations_gib')}, operations "
            f"{get_ratio('tflop')}, positions {get_ratio('computed')}; losses differ by "
            f"{losses:.0e}"
        )


def main() -> None:
    """Alternate the sides and print ratios."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", required=True, help="model folder")
    parser.add_argument("--data", type=Path, help="folder of real data")
    parser.add_argument("--task", choices=SIDES, default="dpo")
    parser.add_argument("--prompt-tokens", type=int, default=1024)
    parser.add_argument("--answer-tokens", type=int, default=64, help="DPO only")
    parser.add_argument("--rejected", type=int, default=1, help="rejected answers (DPO)")
    parser.add_argument("--questions", type=int, default=8, help="questions per schema (SFT)")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=1, help="timed steps per round and side")
    parser.add_argument("--sides", nargs="+", help="leave some out to save time")
    parser.add_argument("--full", action="store_true", help="full fine-tuning instead of LoRA")
    parser.add_argument("--bf16", action="store_true", help="autocast to bfloat16")
    parser.add_argument("--checkpointing", action="store_true")
    parser.add_argument("--attention", default="sdpa")
    parser.add_argument("--side", help=argparse.SUPPRESS)
    parser.add_argument("--round", type=int, default=0, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    arguments.data = arguments.data or Path(os.environ.get("SENSE_TRL_DATA", DEFAULT_DATA))
    if arguments.side:
        print(json.dumps(measure(arguments)))
        return
    sides = arguments.sides or SIDES[arguments.task]
    results: dict[str, list[dict[str, float]]] = {side: [] for side in sides}
    for number in range(arguments.rounds):
        for side in sides:
            command = [sys.executable, __file__, *sys.argv[1:]]
            done = subprocess.run(
                [*command, "--side", side, "--round", str(number)],
                stdout=subprocess.PIPE,
                text=True,
                check=True,
                env={"OMP_WAIT_POLICY": "PASSIVE", "HF_HUB_OFFLINE": "1", **os.environ},
            )
            results[side].append(json.loads(done.stdout.splitlines()[-1]))
            print(f"round {number + 1} {side}: {done.stdout.splitlines()[-1]}", flush=True)
    print_report(arguments.task, results)


if __name__ == "__main__":
    main()
