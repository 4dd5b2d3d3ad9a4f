"""What a step of distillation costs, against TRL's supervised fine-tuning on the same rows.

Needs: a model folder, e.g. SmolLM2-135M-Instruct, and the Spider data that `SENSE_TRL_DATA` names
(see `--data`). Runs on the GPU if there is one. On two CPU cores a round takes two minutes:

    python recipes/benchmarks/distillation_cost.py --model smollm2 --rounds 3

The model is the teacher; the student is a copy of it with `--student-layers` of its layers, trained
by LoRA. Every side takes the same rows in every round: compact schema, question and gold query of
Spider's train split. Rounds come in pairs: first all rows are about one database (which is what
`group_by_columns` makes of a dataset), then each is about another one. A step is the loss and its
gradient; the optimiser, which is the same for all, is left out, and a first round is not counted.
Sides:

* `trl`: TRL's SFTTrainer as it comes; `trl_compact`: with a head that scores trained positions
  only, as TRL does on a GPU but not on a CPU;
* `sft`: SenseSFTTrainer;
* `fkd`, `rkd`: KIDTrainer with `imperfect_data` false, forward and reverse KL on gold answers;
* `masking`, `kid`: with masks left in place, and filled by the student;
* `gkd`: on answers that the student writes, of at most `--new-tokens` (a student that is not
  trained does not stop before), generalised JSD, no likelihood of gold.

After every round are printed, per side: seconds and CPU seconds (steadier on a machine
that others use) per row; the ratios to `trl` and `trl_compact` within a round, as median, smallest
and largest; and the positions computed per row, with gradient and without by the student, and by
the teacher. A student's position costs some three times as much with gradient as without; a
teacher's, its share of layers more.

Seen with SmolLM2-135M and 12 of its 30 layers as the student, 4 rows a step, on two cores that
others used as well; the command was stopped after two rounds about one database and one about
several. Times of `trl` (of `trl_compact`):

    one database:       sft 0.19 (0.46), fkd 0.40 (1.00), rkd 0.30 (0.75), masking 0.35 (0.86),
                        kid 0.40, 0.40 to 0.41 (1.00, 0.98 to 1.03), gkd 2.33, 0.71 to 3.95 (5.85)
    several databases:  sft 0.12 (0.74), fkd 0.23 (1.44), rkd 0.23 (1.43), masking 0.25 (1.56),
                        kid 0.30 (1.87), gkd 0.50 (3.08)

Positions per row in the first rounds of each: `trl` 442 and 438; `kid` 192 and 294 with gradient,
152 and 268 without, and 152 and 268 by the teacher. With one row a step, whose answers share its
prompt and nothing else, kid took 1.9 to 2.0 of the CPU time of `trl` and 2.6 of `trl_compact`.
"""

from __future__ import annotations

import argparse
import collections
import copy
import json
import os
import statistics
import tempfile
import time
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

DEFAULT_DATA = Path(__file__).resolve().parents[3] / "shared" / "data"

KID_SIDES: dict[str, dict[str, Any]] = {
    "fkd": {"imperfect_data": False, "kd_loss_type": "forward_kl"},
    "rkd": {"imperfect_data": False},
    "masking": {"fill": "mask"},
    "kid": {},
    "gkd": {
        "imperfect_data": False,
        "on_policy_fraction": 1.0,
        "kd_loss_type": "generalized_jsd",
        "mle_weight": 0.0,
    },
}
SIDES = ("trl", "trl_compact", "sft", *KID_SIDES)
BASELINES = ("trl", "trl_compact")


def get_rounds(arguments: argparse.Namespace) -> list[list[dict[str, str]]]:
    """The rows of each round: about one database, then about as many as there are rows."""
    from sense_trl.schema.formats import format_schema
    from sense_trl.schema.schema import load_spider_schemas

    path = arguments.data / "spider"
    lines = (path / "train.jsonl").read_text(encoding="utf-8").splitlines()
    by_database = collections.defaultdict(list)
    for row in map(json.loads, lines):
        by_database[row["db_id"]].append(row)
    schemas = load_spider_schemas(path / "tables.json")
    size = arguments.rows
    groups = [rows[:size] for rows in by_database.values() if len(rows) >= size]
    # Spread over the split: neighbours in it are alike.
    groups = [groups[index * 37 % len(groups)] for index in range(len(groups))]
    rounds = []
    for start in range(0, (arguments.rounds + 1) * size, size):
        rounds.append(groups[start])
        rounds.append([group[0] for group in groups[start : start + size]])
    return [
        [
            {
                "prompt": f"{format_schema(schemas[row['db_id']])}\n{row['question']}\n",
                "completion": row["query"],
            }
            for row in rows
        ]
        # The first one that is left is to warm up.
        for rows in rounds[1:]
    ]


def prune(model: Any, num_layers: int) -> Any:
    """A copy with `num_layers` of the model's layers, evenly spaced."""
    from torch import nn

    student = copy.deepcopy(model)
    layers = student.model.layers
    kept = [layers[index * len(layers) // num_layers] for index in range(num_layers)]
    for index, layer in enumerate(kept):
        layer.self_attn.layer_idx = index
    student.model.layers = nn.ModuleList(kept)
    student.config.num_hidden_layers = num_layers
    return student


def build_trainer(side: str, teacher: Any, arguments: argparse.Namespace, rows: list, folder: str):
    """The trainer of one side, with a student of its own."""
    import torch
    from datasets import Dataset
    from peft import LoraConfig
    from transformers import AutoTokenizer
    from trl import SFTConfig, SFTTrainer

    from sense_trl import trainers

    classes: dict[str, tuple[Any, Any]] = {
        "trl": (SFTTrainer, SFTConfig),
        "trl_compact": (SFTTrainer, SFTConfig),
        "sft": (trainers.SenseSFTTrainer, trainers.SenseSFTConfig),
    }
    trainer_class, config_class = classes.get(side, (trainers.KIDTrainer, trainers.KIDConfig))
    options = dict(KID_SIDES.get(side, {}))
    if side == "gkd":
        options["on_policy_max_new_tokens"] = arguments.new_tokens
    trainer = trainer_class(
        model=prune(teacher, arguments.student_layers),
        args=config_class(
            output_dir=folder,
            max_length=None,
            use_cpu=not torch.cuda.is_available(),
            bf16=arguments.bf16,
            gradient_checkpointing=False,
            report_to="none",
            disable_tqdm=True,
            **options,
        ),
        train_dataset=Dataset.from_list(rows),
        processing_class=AutoTokenizer.from_pretrained(arguments.model),
        peft_config=LoraConfig(r=64, lora_alpha=32, target_modules="all-linear"),
        **({"teacher_model": teacher} if side in KID_SIDES else {}),
    )
    trainer.model.train()
    return trainer


@dataclass(frozen=True)
class Step:
    """What one step of one side took, and the positions that were computed, by whom and how."""

    wall_s: float
    cpu_s: float
    positions: dict[str, int]


class Positions:
    """Counts the positions that the backbones of teacher and student compute."""

    def __init__(self, teacher: Any, trainers: dict[str, Any]) -> None:
        self.counts: collections.Counter[str] = collections.Counter()
        self._watch(teacher, "teacher")
        for trainer in trainers.values():
            self._watch(trainer.model.get_base_model(), "student")

    def _watch(self, model: Any, name: str) -> None:
        import torch

        def count(module: Any, args: Any, kwargs: dict[str, Any]) -> None:
            suffix = "with gradient" if torch.is_grad_enabled() else "without"
            what = name if name == "teacher" else f"{name} {suffix}"
            self.counts[what] += kwargs["input_ids"].numel()

        model.base_model.register_forward_pre_hook(count, with_kwargs=True)


def run_step(trainer: Any, examples: list[dict[str, Any]]) -> tuple[float, float]:
    """Wall and CPU seconds of the loss of some examples and its gradient."""
    import torch

    batch = trainer._prepare_inputs(trainer.data_collator(examples))
    num_items = (batch["labels"][:, 1:] != -100).sum()
    trainer.model.zero_grad()
    started = time.monotonic(), time.process_time()
    with trainer.compute_loss_context_manager():
        loss = trainer.compute_loss(trainer.model, batch, num_items_in_batch=num_items)
    loss.backward()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.monotonic() - started[0], time.process_time() - started[1]


def measure(arguments: argparse.Namespace) -> None:
    """Run all sides in turn, and report after every round."""
    import torch
    from transformers import AutoModelForCausalLM
    from trl.trainer import utils as trl_utils

    from sense_trl.trainers import score_trained_positions_only

    warnings.simplefilter("ignore")
    rounds = get_rounds(arguments)
    teacher = AutoModelForCausalLM.from_pretrained(arguments.model, dtype=torch.float32)
    teacher.to("cuda" if torch.cuda.is_available() else "cpu")
    as_it_comes = trl_utils._use_triton
    score_trained_positions_only()
    compact = trl_utils._use_triton
    with tempfile.TemporaryDirectory() as folder:
        rows = [row for round_rows in rounds for row in round_rows]
        trainers = {
            side: build_trainer(side, teacher, arguments, rows, f"{folder}/{side}")
            for side in arguments.sides
        }
        counter = Positions(teacher, trainers)
        results: dict[str, list[dict[str, Step]]] = {"one database": [], "several databases": []}
        for number in range(len(rounds)):
            steps = {}
            # Who begins moves on.
            shift = number % len(arguments.sides)
            for side in arguments.sides[shift:] + arguments.sides[:shift]:
                trl_utils._use_triton = as_it_comes if side == "trl" else compact
                dataset = trainers[side].train_dataset
                first = number * arguments.rows
                counter.counts.clear()
                seconds = run_step(
                    trainers[side], [dataset[first + i] for i in range(arguments.rows)]
                )
                steps[side] = Step(*seconds, dict(counter.counts))
            if number > 0:
                name = list(results)[(number + 1) % 2]
                results[name].append(steps)
                print_report(name, results[name], arguments)


def print_report(name: str, rounds: list[dict[str, Step]], arguments: argparse.Namespace) -> None:
    """One line per side."""
    print(f"{name}, {arguments.rows} rows a step, {len(rounds)} rounds:", flush=True)
    for side in arguments.sides:
        steps = [steps[side] for steps in rounds]
        wall, cpu = (
            statistics.median(getattr(step, what) for step in steps) / arguments.rows
            for what in ("wall_s", "cpu_s")
        )
        parts = [f"{side:>12}: {wall:6.3f} s, {cpu:6.3f} CPU s"]
        for baseline in BASELINES:
            if baseline in arguments.sides and side != baseline:
                ratios = [
                    [
                        getattr(steps[side], what) / getattr(steps[baseline], what)
                        for steps in rounds
                    ]
                    for what in ("wall_s", "cpu_s")
                ]
                time_ratio, cpu_ratio = (
                    f"{statistics.median(r):.2f} ({min(r):.2f} to {max(r):.2f})" for r in ratios
                )
                parts.append(f"of {baseline} {time_ratio}, CPU {cpu_ratio}")
        counts: collections.Counter[str] = collections.Counter()
        for step in steps:
            counts.update(step.positions)
        computed = ", ".join(
            f"{what} {count / len(rounds) / arguments.rows:.0f}"
            for what, count in sorted(counts.items())
        )
        print("; ".join([*parts, f"positions: {computed}"]), flush=True)


def main() -> None:
    """Alternate the sides and print ratios."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", required=True, help="model folder")
    parser.add_argument("--data", type=Path, help="folder of real data")
    parser.add_argument("--student-layers", type=int, default=12)
    parser.add_argument("--rows", type=int, default=4, help="rows per step")
    parser.add_argument("--rounds", type=int, default=3, help="pairs of rounds that are counted")
    parser.add_argument("--new-tokens", type=int, default=48, help="longest answer of `gkd`")
    parser.add_argument("--bf16", action="store_true", help="autocast to bfloat16")
    parser.add_argument("--sides", nargs="+", choices=SIDES, default=list(SIDES))
    arguments = parser.parse_args()
    arguments.data = arguments.data or Path(os.environ.get("SENSE_TRL_DATA", DEFAULT_DATA))
    measure(arguments)


if __name__ == "__main__":
    main()
