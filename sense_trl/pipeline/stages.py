"""The stages of the main job one by one, each driven by its arguments: what the recipes call."""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console

from sense_trl._files import write_text_atomically
from sense_trl.errors import InputError
from sense_trl.evaluation.evaluate import EvaluationReport, evaluate_sql
from sense_trl.evaluation.report import describe_change, preview_results, write_html_report
from sense_trl.generation.generator import SamplingConfig
from sense_trl.pairs.builder import PreferencePairConfig, build_preference_pairs
from sense_trl.pairs.candidates import CandidateFile
from sense_trl.pipeline.cpu import keep_freed_memory
from sense_trl.pipeline.progress import progress_callback, stage_bar
from sense_trl.pipeline.sampling import sample_candidates
from sense_trl.pipeline.task import DataArguments, TextToSQLTask, load_task
from sense_trl.verification.verifier import SQLVerifier

if TYPE_CHECKING:
    from peft import LoraConfig
    from trl import SFTConfig

    from sense_trl.trainers import SenseDPOConfig


@dataclass
class GenerationArguments:
    """Which model writes SQL, and how."""

    model_name_or_path: str = field(
        metadata={"help": "Model folder or hub id with a chat template."}
    )
    output_dir: str = field(metadata={"help": "Folder for what the stage writes."})
    num_generations: int = field(default=1, metadata={"help": "Completions per question."})
    temperature: float = field(default=0.0, metadata={"help": "0 decodes greedily."})
    top_p: float = field(default=1.0, metadata={"help": "Nucleus share of sampling."})
    max_new_tokens: int = field(default=128, metadata={"help": "Longest answer in tokens."})
    batch_size: int = field(default=64, metadata={"help": "Completions written together."})
    generation_seed: int = field(default=0, metadata={"help": "Seed of sampling."})
    generation_dtype: str = field(
        default="auto",
        metadata={"help": "Type of the weights: auto, float32 (fastest on CPUs), bfloat16."},
    )

    def sampling(self) -> SamplingConfig:
        """These arguments as a `SamplingConfig`."""
        return SamplingConfig(
            num_generations=self.num_generations,
            temperature=self.temperature,
            top_p=self.top_p,
            max_new_tokens=self.max_new_tokens,
            seed=self.generation_seed,
        )


@dataclass
class PairArguments:
    """How candidates become pairs."""

    policy: str = field(default="grouped_any", metadata={"help": "Pair policy."})
    limit: int = field(default=1, metadata={"help": "Pairs per question at most."})
    chosen_sources: list[str] = field(
        default_factory=lambda: ["gold"],
        metadata={"help": "Whose correct SQL may be chosen: gold, strong, weak."},
    )
    pair_seed: int = field(default=0, metadata={"help": "Seed of the policy's draws."})

    def config(self) -> PreferencePairConfig:
        """These arguments as a `PreferencePairConfig`."""
        return PreferencePairConfig(
            policy=self.policy,
            limit=self.limit,
            chosen_sources=tuple(self.chosen_sources),
            seed=self.pair_seed,
        )


@dataclass
class EvaluationArguments:
    """What an evaluation is called and compared with."""

    run_name: str = field(default="model", metadata={"help": "Label of this run in the report."})
    compare_with: list[str] = field(
        default_factory=list,
        metadata={"help": "evaluation.json files of earlier runs on the same questions."},
    )


def _claim(folder: Path, settings: dict[str, Any]) -> None:
    """Remember what a folder was made with, and refuse to mix two runs in it."""
    path = folder / "settings.json"
    text = json.dumps(settings, indent=1, sort_keys=True, default=str)
    if path.exists() and path.read_text(encoding="utf-8") != text:
        raise InputError(
            f"`output_dir` {str(folder)!r} holds results of other settings (see {path.name} there)."
            " Choose another folder, or delete it."
        )
    write_text_atomically(path, text)


def _write_candidates(
    task: TextToSQLTask, arguments: GenerationArguments, console: Console, file: str, title: str
) -> CandidateFile:
    from sense_trl.generation.transformers_generator import TransformersGenerator

    keep_freed_memory()
    sampling = arguments.sampling()
    path = Path(arguments.output_dir) / file
    done = CandidateFile(path)
    if all(question.question_id in done for question in task.questions):
        return done
    generator = TransformersGenerator(
        arguments.model_name_or_path,
        batch_size=arguments.batch_size,
        dtype=arguments.generation_dtype,
    )
    with stage_bar(console, title, len(task.questions)) as bar:
        return sample_candidates(
            task,
            task.questions,
            generator,
            sampling,
            path,
            source="weak",
            chunk_size=max(1, arguments.batch_size // sampling.num_generations),
            on_progress=bar.advance,
        )


def build_pairs(
    data: DataArguments,
    generation: GenerationArguments,
    pairs: PairArguments,
    console: Console,
) -> Path:
    """Sample from a weak model, execute, pair; returns the path of `pairs.parquet`.

    Resumable: candidates are on disk as they come.
    """
    folder = Path(generation.output_dir)
    task = load_task(data)
    _claim(folder, {**asdict(data), **asdict(generation), **asdict(pairs)})
    candidates = _write_candidates(
        task, generation, console, "candidates.jsonl", "Sample candidates"
    )
    with (
        SQLVerifier(task.catalog) as verifier,
        stage_bar(console, "Execute, build pairs", len(candidates)) as bar,
    ):
        result = build_preference_pairs(
            task.questions,
            candidates,
            verifier,
            get_messages=task.get_messages,
            config=pairs.config(),
            dialect=task.dialect,
            on_progress=bar.advance,
        )
        bar.set(len(candidates))
    path = folder / "pairs.parquet"
    temporary = path.with_suffix(".tmp")
    result.dataset.to_parquet(temporary)
    temporary.replace(path)
    summary = {**result.summary(), "unusable_questions": task.unusable}
    write_text_atomically(folder / "pairs.json", json.dumps(summary, indent=1))
    counts = {k: v for k, v in result.summary().items() if k != "gold_problems"}
    console.print_json(data=counts)
    return path


def evaluate(
    data: DataArguments,
    generation: GenerationArguments,
    evaluation: EvaluationArguments,
    console: Console,
) -> EvaluationReport:
    """Predict greedily, execute, compare; writes `evaluation.json` and `report.html`."""
    if generation.num_generations != 1:
        raise InputError(
            f"`num_generations` is {generation.num_generations}; an evaluation predicts once per "
            "question. Leave it at 1."
        )
    folder = Path(generation.output_dir)
    task = load_task(data)
    _claim(folder, {**asdict(data), **asdict(generation), **asdict(evaluation)})
    file = _write_candidates(task, generation, console, "predictions.jsonl", "Predict")
    predictions = {candidate.question_id: candidate.sql for candidate in file}
    with (
        SQLVerifier(task.catalog) as verifier,
        stage_bar(console, "Execute", len(predictions)) as bar,
    ):
        report = evaluate_sql(
            task.questions,
            predictions,
            verifier,
            name=evaluation.run_name,
            on_progress=bar.advance,
        )
    report.save(folder / "evaluation.json")
    runs = [*(EvaluationReport.load(path) for path in evaluation.compare_with), report]
    write_html_report(
        folder / "report.html",
        runs,
        title=f"Text-to-SQL: {evaluation.run_name}",
        subtitle=f"{len(task.questions)} questions, {len(task.unusable)} left out as unusable",
        previews=preview_results(report, task.catalog),
    )
    for before in runs[:-1]:
        console.print(describe_change(before, report))
    console.print_json(data=report.summary())
    return report


def sft(
    data: DataArguments,
    model: str,
    config: SFTConfig,
    console: Console,
    *,
    peft_config: LoraConfig | None = None,
) -> None:
    """Fine-tune on the gold SQL of the questions with TRL's `SFTTrainer`; resumes by itself."""
    import datasets

    from sense_trl.pipeline.training import train_sft

    keep_freed_memory()
    task = load_task(data)
    rows = datasets.Dataset.from_list(task.prompt_completion_rows(task.questions))
    with stage_bar(console, "Supervised fine-tuning", _num_steps(config, len(rows))) as bar:
        train_sft(model, rows, config, peft_config=peft_config, callbacks=[progress_callback(bar)])


def dpo(
    pairs: str,
    model: str,
    config: SenseDPOConfig,
    console: Console,
    *,
    peft_config: LoraConfig | None = None,
) -> None:
    """Train on a `pairs.parquet` with `SenseDPOTrainer`; resumes by itself.

    Raises:
        InputError: `pairs` is not a file, or holds no pair.
    """
    import datasets
    import pyarrow.parquet

    from sense_trl.pipeline.training import train_dpo

    if not Path(pairs).is_file():
        raise InputError(f"`pairs` is {pairs!r}, which is not a file. Build it with build_pairs.")
    if pyarrow.parquet.read_metadata(pairs).num_rows == 0:
        raise InputError(f"`pairs` {pairs!r} holds no pair; pairs.json beside it says why.")
    keep_freed_memory()
    rows = datasets.Dataset.from_parquet(pairs)
    with stage_bar(console, "Preference training", _num_steps(config, len(rows))) as bar:
        train_dpo(model, rows, config, peft_config=peft_config, callbacks=[progress_callback(bar)])


def _num_steps(config: Any, num_rows: int) -> int:
    """Optimizer steps of a training, for its progress bar."""
    if config.max_steps > 0:
        return int(config.max_steps)
    batch = int(config.per_device_train_batch_size)
    steps_per_epoch = -(-num_rows // (batch * int(config.gradient_accumulation_steps)))
    return max(1, math.ceil(float(config.num_train_epochs) * steps_per_epoch))
