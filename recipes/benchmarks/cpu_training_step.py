"""Time of one SFT step on a CPU: TRL's SFTTrainer as it comes, and as our pipeline runs it.

    python recipes/benchmarks/cpu_training_step.py --model ~/.cache/sense_trl/SmolLM2-135M-Instruct

Both sides run TRL's own trainer on the same rows of the embedded data set. Ours scores trained
positions only and keeps freed memory; both settings hold for a whole process, so every measurement
is a process of its own. Sides alternate; the ratio is taken round by round, and its median and
spread are printed with the peak memory of each side.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from importlib.resources import files

SIDES = ("trl", "sense_trl")


def measure(side: str, model: str, steps: int, batch_size: int) -> dict[str, float]:
    """Seconds per step (the first one not counted) and peak memory, in this process."""
    import time
    import warnings

    import datasets
    from transformers import TrainerCallback
    from trl import SFTConfig, SFTTrainer

    from sense_trl.generation.transformers_generator import load_model, load_tokenizer
    from sense_trl.options import DataArguments
    from sense_trl.steps.cpu import keep_freed_memory
    from sense_trl.steps.progress import peak_memory_bytes
    from sense_trl.task import load_task
    from sense_trl.trainers import score_trained_positions_only

    warnings.simplefilter("ignore")
    if side == "sense_trl":
        keep_freed_memory()
        score_trained_positions_only()
    folder = files("sense_trl") / "data" / "nycflights"
    task = load_task(
        DataArguments(str(folder / "nycflights.sqlite"), str(folder / "questions.jsonl"))
    )
    rows = datasets.Dataset.from_list(task.prompt_completion_rows(task.questions))
    times: list[float] = []

    class Clock(TrainerCallback):
        def on_step_begin(self, args, state, control, **kwargs):
            self.started = time.monotonic()

        def on_step_end(self, args, state, control, **kwargs):
            times.append(time.monotonic() - self.started)

    with tempfile.TemporaryDirectory() as folder:
        trainer = SFTTrainer(
            model=load_model(model, dtype="float32"),
            args=SFTConfig(
                output_dir=folder,
                max_steps=steps + 1,
                per_device_train_batch_size=batch_size,
                max_length=None,
                use_cpu=True,
                bf16=True,
                gradient_checkpointing=False,
                save_strategy="no",
                report_to="none",
                disable_tqdm=True,
                seed=0,
            ),
            train_dataset=rows,
            processing_class=load_tokenizer(model),
            callbacks=[Clock()],
        )
        loss = trainer.train().training_loss
    return {
        "step_s": statistics.mean(times[1:]),
        "peak_gib": peak_memory_bytes() / 2**30,
        "loss": loss,
    }


def main() -> None:
    """Alternate the sides and print ratios."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", required=True, help="model folder")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--side", choices=SIDES, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.side:
        found = measure(arguments.side, arguments.model, arguments.steps, arguments.batch_size)
        print(json.dumps(found))
        return
    ratios, results = [], {side: [] for side in SIDES}
    for number in range(arguments.rounds):
        for side in SIDES:
            done = subprocess.run(
                [sys.executable, __file__, *sys.argv[1:], "--side", side],
                capture_output=True,
                text=True,
                check=True,
                env={"OMP_WAIT_POLICY": "PASSIVE", **os.environ},
            )
            results[side].append(json.loads(done.stdout.splitlines()[-1]))
        ratios.append(results["sense_trl"][-1]["step_s"] / results["trl"][-1]["step_s"])
        print(f"round {number + 1}: {results['trl'][-1]} {results['sense_trl'][-1]}")
    for side in SIDES:
        step = statistics.median(r["step_s"] for r in results[side])
        peak = max(r["peak_gib"] for r in results[side])
        print(f"{side:>10}: {step:.2f} s per step, peak {peak:.1f} GiB")
    print(
        f"ratio sense_trl / trl: median {statistics.median(ratios):.2f}, "
        f"{min(ratios):.2f} to {max(ratios):.2f} over {len(ratios)} rounds"
    )


if __name__ == "__main__":
    main()
