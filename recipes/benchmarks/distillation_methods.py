"""Ways to train a small student: on gold alone, or with a teacher, and on which answers.

Needs: the folder of a fine-tuned model, which is the teacher, databases, and questions with gold
SQL for training and for evaluation; left out, those of the embedded database. Runs on the GPU if
there is one. With the model that `sense-trl quickstart` fine-tunes, on two CPU cores:

    python recipes/benchmarks/distillation_methods.py --teacher runs/quickstart/sft --seeds 0 1 2

The student is the teacher with `--student-layers` of its layers. From the same weights, with the
same questions in the same order, for the same number of steps, it is trained by

* `sft`: likelihood of gold;
* `fkd`, `rkd`: with forward or reverse KL to the teacher on the gold answers;
* `masking`: with reverse KL on gold answers in which a fifth of the tokens are masks;
* `kid`: with the masks filled by the student (KID, arXiv 2410.11371).

Printed are execution accuracy (strict) with its 95 % interval for each method and seed, the seconds
of training; and for each method the mean over seeds, with a bootstrap interval over questions, and
against `sft` the paired difference. What is finished in `--output` is not done again.

Not carried out in full yet. With 22 of 30 layers, one epoch of 262 questions and a seed, `sft` had
6 and `fkd` 5 of 115 right, in 149 and 224 CPU seconds: too short a training to tell methods apart.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

from sense_trl.cli.quickstart import quieten_libraries
from sense_trl.evaluation.evaluate import EvaluationReport, evaluate_sql
from sense_trl.evaluation.metrics import bootstrap_interval
from sense_trl.generation.generator import SamplingConfig
from sense_trl.pipeline.cpu import keep_freed_memory, wait_without_spinning
from sense_trl.pipeline.own_data_config import OwnDataConfig
from sense_trl.pipeline.pruning import prune_layers
from sense_trl.pipeline.task import DataArguments, TextToSQLTask, load_task
from sense_trl.prompts import extract_sql
from sense_trl.verification.verifier import SQLVerifier

METHODS: dict[str, dict[str, Any]] = {
    "sft": {},
    "fkd": {"imperfect_data": False, "kd_loss_type": "forward_kl"},
    "rkd": {"imperfect_data": False, "kd_loss_type": "reverse_kl"},
    "masking": {"fill": "mask"},
    "kid": {},
}


def train(
    method: str,
    seed: int,
    teacher: Any,
    tokenizer: Any,
    task: TextToSQLTask,
    arguments: argparse.Namespace,
) -> tuple[Any, dict[str, float]]:
    """A student that was trained by `method`, and what it took."""
    import datasets
    import torch

    from sense_trl import trainers

    is_sft = method == "sft"
    trainer_class: Any = trainers.SenseSFTTrainer if is_sft else trainers.KIDTrainer
    config_class: Any = trainers.SenseSFTConfig if is_sft else trainers.KIDConfig
    trainer = trainer_class(
        model=prune_layers(teacher, arguments.student_layers),
        args=config_class(
            output_dir=str(arguments.output / "trainer"),
            num_train_epochs=arguments.epochs,
            learning_rate=arguments.learning_rate,
            lr_scheduler_type="cosine",
            warmup_steps=5,
            per_device_train_batch_size=arguments.batch_size,
            group_by_columns=["db_id"],
            max_length=None,
            use_cpu=not torch.cuda.is_available(),
            bf16=torch.cuda.is_available(),
            gradient_checkpointing=False,
            logging_steps=1,
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
            seed=seed,
            **METHODS[method],
        ),
        train_dataset=datasets.Dataset.from_list(task.prompt_completion_rows(task.questions)),
        processing_class=tokenizer,
        **({} if is_sft else {"teacher_model": teacher}),
    )
    wall, cpu = time.monotonic(), time.process_time()
    trainer.train()
    cost = {"wall_s": time.monotonic() - wall, "cpu_s": time.process_time() - cpu}
    logs = [entry for entry in trainer.state.log_history if "loss" in entry]
    for name in ("losses/mle", "losses/kd", "kid/effective_error_rate", "loss"):
        values = [entry[name] for entry in logs if name in entry][-20:]
        if values:
            cost[f"last {name}"] = sum(values) / len(values)
    return trainer.model.eval(), cost


def evaluate(
    model: Any, tokenizer: Any, task: TextToSQLTask, name: str, arguments: argparse.Namespace
) -> EvaluationReport:
    """Greedy answers to the questions of `task`, executed."""
    from sense_trl.generation.transformers_generator import TransformersGenerator

    generator = TransformersGenerator(model, tokenizer, batch_size=64, name=name)
    prompts = [task.get_messages(question) for question in task.questions]
    greedy = SamplingConfig(max_new_tokens=arguments.max_new_tokens)
    answers = generator.generate(prompts, greedy)
    predictions = {
        question.question_id: extract_sql(completion.text)
        for question, (completion,) in zip(task.questions, answers, strict=True)
    }
    with SQLVerifier(task.catalog) as verifier:
        return evaluate_sql(task.questions, predictions, verifier, name=name)


def run(
    method: str,
    seed: int,
    teacher: Any,
    tokenizer: Any,
    tasks: tuple[TextToSQLTask, TextToSQLTask],
    arguments: argparse.Namespace,
) -> EvaluationReport:
    """One method with one seed, or what is left of an earlier run of it."""
    import transformers

    folder = arguments.output / f"{method}-{seed}"
    if not (folder / "cost.json").exists():
        transformers.set_seed(seed)
        model, cost = train(method, seed, teacher, tokenizer, tasks[0], arguments)
        report = evaluate(model, tokenizer, tasks[1], f"{method}, seed {seed}", arguments)
        report.save(folder / "evaluation.json")
        (folder / "cost.json").write_text(json.dumps(cost, indent=1), encoding="utf-8")
    cost = json.loads((folder / "cost.json").read_text(encoding="utf-8"))
    report = EvaluationReport.load(folder / "evaluation.json")
    text = ", ".join(f"{name} {value:.3g}" for name, value in cost.items())
    print(f"{method}, seed {seed}: {describe(report)}; {text}", flush=True)
    return report


def describe(report: EvaluationReport) -> str:
    """Execution accuracy with its interval."""
    return (
        f"{sum(report.correct)} of {len(report.correct)} correct, "
        f"{100 * report.execution_accuracy:.1f} % ({report.interval.text})"
    )


def get_shares(reports: list[EvaluationReport]) -> list[float]:
    """Per question the share of the seeds that answered it correctly."""
    return [sum(seeds) / len(seeds) for seeds in zip(*(r.correct for r in reports), strict=True)]


def describe_mean(values: list[float]) -> str:
    """A mean over questions in percent with its bootstrap interval."""
    return f"{100 * sum(values) / len(values):.1f} % ({bootstrap_interval(values).text})"


def main() -> None:
    """Run the benchmark."""
    database, questions = OwnDataConfig().get_data_paths()
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--teacher", required=True, help="folder of a fine-tuned model")
    parser.add_argument("--database", default=database)
    parser.add_argument("--train-questions", default=questions)
    parser.add_argument("--dev-questions", default=questions)
    parser.add_argument("--tables-json", help="Spider's tables.json")
    parser.add_argument("--max-train-questions", type=int)
    parser.add_argument("--max-dev-questions", type=int)
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--student-layers", type=int, default=20)
    parser.add_argument("--epochs", type=float, default=2.0)
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--learning-rate", type=float, default=3e-4)
    parser.add_argument("--max-new-tokens", type=int, default=80)
    parser.add_argument("--output", type=Path, default=Path("runs/distillation-methods"))
    arguments = parser.parse_args()
    quieten_libraries()
    from sense_trl.generation.transformers_generator import load_model, load_tokenizer

    is_embedded = arguments.train_questions == arguments.dev_questions
    tasks = tuple(
        load_task(
            DataArguments(
                arguments.database,
                questions,
                arguments.tables_json,
                split=split if is_embedded else None,
                max_questions=size,
                max_unusable_fraction=0.05,
            )
        )
        for questions, split, size in (
            (arguments.train_questions, "train", arguments.max_train_questions),
            (arguments.dev_questions, "test", arguments.max_dev_questions),
        )
    )
    teacher = load_model(arguments.teacher, dtype="float32").eval()
    tokenizer = load_tokenizer(arguments.teacher)
    print(
        f"{len(tasks[0].questions)} questions for training, {len(tasks[1].questions)} for "
        f"evaluation; student of {arguments.student_layers} layers"
    )
    own = arguments.output / "teacher.json"
    if not own.exists():
        evaluate(teacher, tokenizer, tasks[1], "teacher", arguments).save(own)
    print(f"teacher: {describe(EvaluationReport.load(own))}", flush=True)
    reports: dict[str, list[EvaluationReport]] = {method: [] for method in arguments.methods}
    for seed in arguments.seeds:
        for method, found in reports.items():
            found.append(run(method, seed, teacher, tokenizer, tasks, arguments))
    base = get_shares(reports["sft"]) if "sft" in reports else None
    for method, found in reports.items():
        shares = get_shares(found)
        line = f"{method}: mean of {len(found)} seeds {describe_mean(shares)}"
        if base is not None and method != "sft":
            differences = [own - others for own, others in zip(shares, base, strict=True)]
            line += f"; minus sft {describe_mean(differences)}"
        print(line)


if __name__ == "__main__":
    wait_without_spinning()
    keep_freed_memory()
    main()
