"""Peak memory of trainings on a CPU: what `sense-trl estimate` says, and what was measured.

    python recipes/benchmarks/memory_estimate.py --model ~/.cache/sense_trl/SmolLM2-135M-Instruct

Every training is a process of its own that makes two optimizer steps (the moments of AdamW are
there from the second on); measured is its largest resident memory. The estimate is made from the
trainer's settings and its largest micro-batch, after that moment. The longest questions of the
embedded data set; in preference pairs another question's SQL is rejected.

SmolLM2-135M, float32, batches of 2 examples, two shared cores (2026-11-21), one run each:

    training                          tokens    estimate    measured   ratio
    SFT, all weights                     308    3.12 GiB    2.91 GiB    1.07
    SFT, LoRA                            308    2.37 GiB    2.17 GiB    1.09
    DPO, LoRA, shared prefixes           428    2.34 GiB    2.26 GiB    1.04
    DPO, LoRA, separate rows             984    3.30 GiB    3.54 GiB    0.93
    DPO, LoRA, checkpoints               428    1.63 GiB    1.72 GiB    0.94
    DPO, 4-bit LoRA, checkpoints         428    1.68 GiB    1.76 GiB    0.95

Two figures of the estimate on a CPU were fitted to this table: 840 MiB for the process, and 40 % on
top of the activations for memory that the C library keeps after it is freed; with checkpoints, of
the activations that there would be without, which came later: the two rows with checkpoints were
estimated at 40 % of their own. Of larger batches, the largest of an epoch of 3,000 questions of
Spider grouped by database, after the smallest, with checkpoints: SFT of 16 examples, 4,032 tokens,
5.35 GiB estimated and 4.78 measured (1.12); DPO with LoRA of 4 pairs, 2,464 tokens, 3.22 and 3.70
(0.87). One example with the text that a linker reads of it, LoRA: 447 tokens, 2.68 GiB and 2.63
(1.02); without the linker 272 tokens, 2.20 and 2.06. The rest is counted and
simulated: of the preference training with shared prefixes, a first step alone, with the C
library as it comes, took 0.65 GiB more than the loaded model, and 0.66 GiB by the simulation on the
same batch. No GPU was there to compare with; its context and fragmentation are assumed.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from importlib.resources import files

LORA = {"use_peft": True, "lora_r": 16, "lora_target_modules": ["all-linear"]}
FOUR_BITS = {**LORA, "load_in_4bit": True, "use_bnb_nested_quant": True}
# Name to: stage, model options, training options.
TRAININGS = {
    "SFT, all weights": ("sft", {}, {}),
    "SFT, LoRA": ("sft", LORA, {}),
    "SFT, LoRA, a linker": ("sft", LORA, {"link_weight": 0.1}),
    "DPO, LoRA, shared prefixes": ("dpo", LORA, {}),
    "DPO, LoRA, separate rows": ("dpo", LORA, {"prefix_sharing": "false"}),
    "DPO, LoRA, checkpoints": ("dpo", LORA, {"activation_checkpointing": True}),
    "DPO, 4-bit LoRA, checkpoints": ("dpo", FOUR_BITS, {"activation_checkpointing": True}),
}


def measure(name: str, model: str, batch_size: int, num_steps: int) -> dict[str, float]:
    """Peak and estimate of one training, in this process."""
    import warnings

    import datasets
    from transformers import AutoModelForCausalLM
    from trl import ModelConfig, get_peft_config, get_quantization_config

    from sense_trl.generation.transformers_generator import load_tokenizer
    from sense_trl.memory.estimate import estimate_memory
    from sense_trl.memory.training_setup import get_trainer_setup
    from sense_trl.options import DataArguments
    from sense_trl.steps.cpu import keep_freed_memory
    from sense_trl.steps.linking import write_linked_texts
    from sense_trl.steps.progress import peak_memory_bytes
    from sense_trl.task import load_task
    from sense_trl.trainers import (
        SenseDPOConfig,
        SenseDPOTrainer,
        SenseSFTConfig,
        SenseSFTTrainer,
        score_trained_positions_only,
    )

    warnings.simplefilter("ignore")
    keep_freed_memory()
    score_trained_positions_only()
    stage, model_options, options = TRAININGS[name]
    folder = files("sense_trl") / "data" / "nycflights"
    task = load_task(
        DataArguments(str(folder / "nycflights.sqlite"), str(folder / "questions.jsonl"))
    )
    tokenizer = load_tokenizer(model)
    rows = task.prompt_completion_rows(task.questions)
    if options.get("link_weight"):
        texts = write_linked_texts(task.questions, task.schemas, tokenizer, max_length=1024)
        rows = [{**row, "linked_texts": own} for row, own in zip(rows, texts, strict=True)]
    # Batches of the longest examples.
    rows.sort(key=lambda row: -len(str(row["prompt"]) + str(row["completion"])))
    rows = rows[: num_steps * batch_size]
    if stage == "dpo":
        answers = [row.pop("completion") for row in rows]
        rows = [
            {**row, "chosen": answers[i], "rejected": answers[i - 1]} for i, row in enumerate(rows)
        ]
    trainer_class, config_class = {
        "sft": (SenseSFTTrainer, SenseSFTConfig),
        "dpo": (SenseDPOTrainer, SenseDPOConfig),
    }[stage]
    arguments = ModelConfig(dtype="float32", **model_options)
    with tempfile.TemporaryDirectory() as output:
        trainer = trainer_class(
            model=AutoModelForCausalLM.from_pretrained(
                model, dtype="float32", quantization_config=get_quantization_config(arguments)
            ),
            args=config_class(
                output_dir=output,
                max_steps=num_steps,
                per_device_train_batch_size=batch_size,
                use_cpu=True,
                bf16=False,
                save_strategy="no",
                report_to="none",
                disable_tqdm=True,
                **{"activation_checkpointing": False, **options},
            ),
            train_dataset=datasets.Dataset.from_list(rows),
            processing_class=tokenizer,
            peft_config=get_peft_config(arguments),
        )
        trainer.train()
    measured = peak_memory_bytes()
    setup, config, _ = get_trainer_setup(trainer)
    estimate = estimate_memory(setup, config)
    print(estimate, file=sys.stderr)
    return {"estimate": estimate.total_bytes, "measured": measured, "tokens": estimate.tokens}


def main() -> None:
    """Measure all trainings and print a table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", required=True, help="model folder")
    parser.add_argument("--batch-size", type=int, default=2)
    parser.add_argument("--steps", type=int, default=2)
    parser.add_argument("--training", choices=TRAININGS, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.training:
        found = measure(arguments.training, arguments.model, arguments.batch_size, arguments.steps)
        print(json.dumps(found))
        return
    print(f"{'training':<32}{'tokens':>8}{'estimate':>12}{'measured':>12}{'ratio':>8}")
    for name in TRAININGS:
        done = subprocess.run(
            [sys.executable, __file__, *sys.argv[1:], "--training", name],
            stdout=subprocess.PIPE,
            text=True,
            check=True,
            env={"OMP_WAIT_POLICY": "PASSIVE", **os.environ},
        )
        found = json.loads(done.stdout.splitlines()[-1])
        estimate, measured = found["estimate"] / 2**30, found["measured"] / 2**30
        print(
            f"{name:<32}{found['tokens']:>8}{estimate:>8.2f} GiB{measured:>8.2f} GiB"
            f"{estimate / measured:>8.2f}"
        )


if __name__ == "__main__":
    main()
