"""The main job: from a database and questions to a better model and a report.

Baseline evaluation, supervised fine-tuning, sampling from the fine-tuned model as the weak one,
execution, verdicts, preference pairs, preference training, evaluation, report. Every stage leaves
its result in the output folder; a stage whose result is there is not done again, and the long ones
continue in the middle.
"""

from __future__ import annotations

import itertools
import json
import shlex
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table

from sense_trl._files import read_json, write_text_atomically
from sense_trl._version import __version__
from sense_trl.chat_template import check_chat_template
from sense_trl.database.location import hide_password
from sense_trl.evaluation.curves import TrainingLog
from sense_trl.evaluation.evaluate import EvaluationReport
from sense_trl.evaluation.report import (
    ReportSection,
    describe_change,
    preview_results,
    write_html_report,
)
from sense_trl.generation.generator import SamplingConfig, SQLGenerator
from sense_trl.generation.transformers_generator import load_tokenizer
from sense_trl.jobs.output import claim_output
from sense_trl.jobs.pretrained import get_smollm2
from sense_trl.jobs.quickstart_config import QuickstartConfig
from sense_trl.options import DataArguments, PromptOptions, get_values
from sense_trl.pairs.builder import PreferencePairConfig
from sense_trl.pairs.candidates import CandidateFile
from sense_trl.pairs.dataset import read_account, read_pairs
from sense_trl.prompts import PromptStyle
from sense_trl.questions import Question, split_questions
from sense_trl.steps import work
from sense_trl.steps.cpu import fastest_sampling_dtype
from sense_trl.steps.progress import peak_memory_bytes
from sense_trl.steps.prompting import load_styled_task
from sense_trl.steps.training import get_unattended_options, train_unattended
from sense_trl.task import (
    TextToSQLTask,
    draw_questions,
)
from sense_trl.verification.gold import find_undetermined_gold
from sense_trl.verification.verifier import SQLVerifier, Verdict

if TYPE_CHECKING:
    import datasets

# Larger models do not fit a common machine with float32 weights, gradients and two moments each.
_FULL_FINE_TUNING_LIMIT = 400_000_000

# Below this share of correct answers the end of a run says what to try next.
_WEAK = 0.3
# Nats of a token: an answer of 30 tokens has a probability of more than one half then.
_LEARNT_LOSS = 0.02


def run_quickstart(config: QuickstartConfig, console: Console) -> Path:
    """Run the main job, or what is left of it.

    Args:
        config: all settings.
        console: where progress and the result table are shown.

    Returns:
        Path of `report.html`.

    Raises:
        SenseTRLError: unusable input; what earlier stages wrote stays.
    """
    return _Quickstart(config, console).run()


class _Quickstart:
    """One run: holds what the stages share."""

    def __init__(self, config: QuickstartConfig, console: Console) -> None:
        self.config = config
        self.console = console
        self.output = Path(config.output_dir)
        self.costs: dict[str, dict[str, float]] = {}
        self.settings: dict[str, Any] = {}
        self._claimed = False

    def run(self) -> Path:
        config = self.config
        # Questions and databases are checked before anything is downloaded or written.
        task, train, test = self._load_data()
        if config.model is not None:
            model = Path(config.model)
            check_chat_template(load_tokenizer(model), model.name)
        else:
            with self._stage("model"):
                model = get_smollm2(on_download=self.console.print)
        self._claim_output(model, task)
        self.console.print(
            f"{len(train)} training and {len(test)} test questions on "
            f"{len({q.db_id for q in task.questions})} database(s); model {model.name}; "
            f"output {self.output}",
            markup=False,
        )
        self._warn_of_long_gold(model, [*train, *test])
        verifier = SQLVerifier(task.catalog)
        open_gold = {
            question_id: str(gold.reason)
            for question_id, gold in find_undetermined_gold(verifier, [*train, *test]).items()
        }
        runs = [self._evaluate("baseline", "baseline", model, task, test, verifier)]
        weak = self._supervised(model, task, train)
        runs.append(self._evaluate("sft", "after SFT", weak, task, test, verifier))
        sampled = draw_questions(
            train, config.max_sampled_questions, config.seed, argument="max_sampled_questions"
        )
        candidates = self._sample(weak, task, sampled)
        pairs, account = self._pairs(task, sampled, candidates, verifier)
        if pairs is not None:
            strong = self._preference(weak, pairs)
            runs.append(self._evaluate("dpo", "after SENSE DPO", strong, task, test, verifier))
        else:
            self.console.print(
                "[yellow]No preference pair could be built, so there is no preference training: "
                f"{json.dumps(account['dropped_questions'])}[/]"
            )
        report = self._report(runs, account, task, open_gold, model, len(train))
        self._show(runs, account, report, len(train))
        task.catalog.close()
        return report

    def _warn_of_long_gold(self, model: Path, questions: Sequence[Question]) -> None:
        """Say how many questions cannot be answered with gold's text within `max_new_tokens`."""
        tokenizer = load_tokenizer(model)
        limit = self.config.max_new_tokens
        # One more for the end of the answer.
        too_long = sum(len(tokenizer(q.gold_sql)["input_ids"]) + 1 > limit for q in questions)
        if too_long:
            self.console.print(
                f"warning: the gold SQL of {too_long} of {len(questions)} questions is longer than "
                f"`max_new_tokens` ({limit}); they can hardly be answered. Raise it.",
                style="yellow",
                markup=False,
            )

    # Stages

    def _load_data(self) -> tuple[TextToSQLTask, list[Question], list[Question]]:
        config = self.config
        database, questions = config.get_data_paths()
        task = load_styled_task(
            DataArguments(
                database,
                questions,
                **get_values(PromptOptions, config),
                max_unusable_fraction=config.max_unusable_fraction,
            ),
            config.model,
        )
        train, test = split_questions(
            task.questions,
            test_fraction=config.test_fraction,
            seed=config.seed,
            dialect=task.catalog.dialect,
        )
        limits = {"max_train_questions": train, "max_test_questions": test}
        train, test = (
            draw_questions(side, getattr(config, name), config.seed, argument=name)
            for name, side in limits.items()
        )
        return task, train, test

    def _evaluate(
        self,
        key: str,
        name: str,
        model: Path,
        task: TextToSQLTask,
        questions: Sequence[Question],
        verifier: SQLVerifier,
    ) -> EvaluationReport:
        path = self.output / f"evaluation-{key}.json"
        if path.exists():
            return EvaluationReport.load(path)
        with self._stage(f"evaluate {key}"):
            file = self._predict(
                model,
                task,
                questions,
                SamplingConfig(max_new_tokens=self.config.max_new_tokens),
                self.output / f"predictions-{key}.jsonl",
                f"Predict {key}",
            )
            return work.evaluate(questions, file, verifier, path, self.console, name=name)

    def _supervised(self, model: Path, task: TextToSQLTask, train: Sequence[Question]) -> Path:
        import datasets

        from sense_trl.trainers import SenseSFTConfig

        config = self.config
        rows = datasets.Dataset.from_list(task.prompt_completion_rows(train))
        num_epochs = config.get_sft_epochs(len(rows))
        arguments = SenseSFTConfig(
            learning_rate=config.sft_learning_rate,
            max_length=config.max_length,
            **self._get_options("sft", len(rows), num_epochs, config.sft_batch_size),
        )
        lora_r = config.lora_r if _num_parameters(model) > _FULL_FINE_TUNING_LIMIT else None
        title, style = "Supervised fine-tuning", task.writer.style
        return self._train("sft", title, model, rows, arguments, style, lora_r)

    def _sample(self, model: Path, task: TextToSQLTask, train: Sequence[Question]) -> CandidateFile:
        config = self.config
        sampling = SamplingConfig(
            num_generations=config.num_generations,
            temperature=config.temperature,
            max_new_tokens=config.max_new_tokens,
            seed=config.seed,
        )
        path = self.output / "candidates.jsonl"
        with nullcontext() if work.is_predicted(path, train) else self._stage("sample"):
            return self._predict(model, task, train, sampling, path, "Sample candidates")

    def _pairs(
        self,
        task: TextToSQLTask,
        train: Sequence[Question],
        candidates: CandidateFile,
        verifier: SQLVerifier,
    ) -> tuple[datasets.Dataset | None, dict[str, Any]]:
        import datasets

        path, account = self.output / "pairs.parquet", self.output / "pairs.json"
        if not account.exists():
            config = PreferencePairConfig(
                limit=self.config.pairs_per_question, seed=self.config.seed
            )
            with self._stage("pairs"):
                work.pair(
                    task.select(train), candidates, verifier, config, self.output, self.console
                )
        summary = read_account(account)
        if summary["num_pairs"] == 0:
            return None, summary
        read_pairs(path)
        pairs = datasets.Dataset.from_parquet(str(path), cache_dir=str(self.output / ".cache"))
        return pairs, summary

    def _preference(self, weak: Path, pairs: datasets.Dataset) -> Path:
        from sense_trl.trainers import SenseDPOConfig

        config = self.config
        if config.max_pairs is not None and config.max_pairs < len(pairs):
            pairs = pairs.shuffle(seed=config.seed).select(range(config.max_pairs))
        losses = {"cdpo": 1.0, "sft": config.sft_weight}
        losses = {name: weight for name, weight in losses.items() if weight > 0}
        arguments = SenseDPOConfig(
            loss_type=list(losses),
            loss_weights=list(losses.values()),
            beta=config.beta,
            label_smoothing=config.label_smoothing,
            learning_rate=config.dpo_learning_rate,
            max_length=config.max_length,
            **self._get_options("dpo", len(pairs), config.dpo_epochs, config.dpo_batch_size),
        )

        title, style = "Preference training", PromptStyle.find(weak)
        return self._train("dpo", title, weak, pairs, arguments, style, config.lora_r)

    # Shared by the stages

    def _predict(
        self,
        model: Path,
        task: TextToSQLTask,
        questions: Sequence[Question],
        sampling: SamplingConfig,
        path: Path,
        title: str,
    ) -> CandidateFile:
        def open_generator() -> SQLGenerator:
            from sense_trl.generation.transformers_generator import TransformersGenerator

            # An evaluation takes the checkpoint as it is, a few more seconds or not.
            dtype = "auto" if sampling.temperature == 0 else fastest_sampling_dtype()
            return TransformersGenerator(model, batch_size=batch_size, dtype=dtype)

        batch_size = self.config.batch_size
        return work.predict(
            task,
            questions,
            open_generator,
            sampling,
            path,
            self.console,
            title,
            batch_size=batch_size,
        )

    def _get_options(self, key: str, num_rows: int, num_epochs: float, batch: int) -> Any:
        """Arguments that both training stages share."""
        return get_unattended_options(
            self.output / key,
            num_rows=num_rows,
            num_epochs=num_epochs,
            batch_size=batch,
            group_by_columns=["db_id"],
            seed=self.config.seed,
        )

    def _train(
        self,
        key: str,
        title: str,
        model: Path,
        rows: datasets.Dataset,
        arguments: Any,
        style: PromptStyle | None,
        lora_r: int | None,
    ) -> Path:
        folder = self.output / key
        with nullcontext() if work.is_trained(folder) else self._stage(key):
            train_unattended(model, rows, arguments, style, self.console, title, lora_r=lora_r)
        return folder

    @contextmanager
    def _stage(self, name: str) -> Iterator[None]:
        """Add the block's wall time to the stage's cost, over interrupted runs too."""
        path = self.output / "costs.json"
        started = time.monotonic()
        try:
            yield
        finally:
            entry = self.costs.setdefault(name, {"wall_s": 0.0, "peak_memory_bytes": 0.0})
            entry["wall_s"] += time.monotonic() - started
            entry["peak_memory_bytes"] = max(entry["peak_memory_bytes"], peak_memory_bytes())
            if self._claimed:
                write_text_atomically(path, json.dumps(self.costs, indent=1))

    def _claim_output(self, model: Path, task: TextToSQLTask) -> None:
        self.settings = claim_output("quickstart", self.config, model, [task])
        # From here on a stage may write what it cost; an earlier run's costs count too.
        costs = self.output / "costs.json"
        if costs.exists():
            self.costs = {**read_json(costs, "the table of costs"), **self.costs}
        self._claimed = True

    # The end

    def _report(
        self,
        runs: Sequence[EvaluationReport],
        account: dict[str, Any],
        task: TextToSQLTask,
        open_gold: dict[str, str],
        model: Path,
        num_train: int,
    ) -> Path:
        data: dict[str, Any] = {
            "runs": [run.summary() for run in runs],
            "changes": [describe_change(a, b) for a, b in itertools.pairwise(runs)],
            "pairs": account,
            "gold_without_verdict": open_gold,
            "costs": self.costs,
            "settings": self.settings,
        }
        write_text_atomically(self.output / "report.json", json.dumps(data, indent=1))
        path = self.output / "report.html"
        write_html_report(
            path,
            runs,
            title="Text-to-SQL quickstart: before and after",
            subtitle=f"{model.name}, {num_train} training questions, sense-trl {__version__}",
            sections=[
                _pairs_section(account),
                _cost_section(self.costs),
                ReportSection(
                    "Gold queries that decide nothing",
                    ("question", "reason"),
                    tuple(open_gold.items()),
                    "Their result does not tell a right answer from a wrong one. They build no "
                    "pair and count as undetermined."
                    if open_gold
                    else "None: every gold query gives a result that can be compared.",
                ),
                ReportSection(
                    "Settings",
                    ("setting", "value"),
                    tuple((name, str(value)) for name, value in data["settings"].items()),
                ),
            ],
            trainings=[
                TrainingLog.load(self.output / key, title)
                for key, title in (("sft", "fine-tuning"), ("dpo", "preference training"))
                if (self.output / key / "metrics.json").is_file()
            ],
            previews=preview_results(runs, task.catalog),
        )
        return path

    def _show(
        self,
        runs: Sequence[EvaluationReport],
        account: dict[str, Any],
        report: Path,
        num_train: int,
    ) -> None:
        table = Table(title="Execution accuracy on held-out questions")
        for column in ("run", "accuracy", "95 % interval", "correct", "wrong", "undetermined"):
            table.add_column(column, justify="left" if column == "run" else "right")
        for run in runs:
            table.add_row(
                run.name,
                f"{100 * run.execution_accuracy:.1f} %",
                f"{100 * run.interval.low:.1f} - {100 * run.interval.high:.1f}",
                *(str(run.count(verdict)) for verdict in Verdict),
            )
        self.console.print(table)
        for before, after in itertools.pairwise(runs):
            self.console.print(describe_change(before, after))
        wall = sum(cost["wall_s"] for cost in self.costs.values())
        peak = max((cost["peak_memory_bytes"] for cost in self.costs.values()), default=0)
        self.console.print(
            f"{account['num_pairs']} preference pairs; {wall / 60:.1f} minutes; peak memory "
            f"{peak / 2**30:.1f} GiB"
        )
        best = max(run.execution_accuracy for run in runs)
        if best < _WEAK:
            self.console.print(
                self._get_advice(num_train), style="yellow", markup=False, highlight=False
            )
        command = self._get_ask_command(runs)
        if command is not None:
            self.console.print(f"Ask it: {command}", markup=False, highlight=False, soft_wrap=True)
        self.console.print(f"Report: {report}", markup=False)

    def _get_advice(self, num_train: int) -> str:
        """What to try where most answers are wrong, the likeliest help first."""
        others = "give more questions (sense-trl synth explore writes some), take a larger --model."
        log = TrainingLog.find(self.output / "sft", "fine-tuning")
        losses = [] if log is None else log.get_points("loss")
        if losses and (loss := losses[-1][1]) < _LEARNT_LOSS:
            return (
                "Most answers are still wrong, though those of the training are known by heart "
                f"(loss {loss:.2g}): longer fine-tuning will not help. In this order: {others}"
            )
        epochs = self.config.get_sft_epochs(num_train)
        return (
            "Most answers are still wrong. In this order: fine-tune longer (--sft_epochs "
            f"{4 * epochs:g}, now {epochs:g}; with another --output_dir), {others}"
        )

    def _get_ask_command(self, runs: Sequence[EvaluationReport]) -> str | None:
        """The command that asks the best trained model; None if none beats the given one."""
        # Of equals the one with less training.
        best = max(range(len(runs)), key=lambda index: runs[index].execution_accuracy)
        if best == 0:
            return None
        config = self.config
        command = [
            "sense-trl",
            "ask",
            "--model_name_or_path",
            str(self.output / ("sft", "dpo")[best - 1]),
        ]
        if config.database is not None:
            command += ["--database", hide_password(config.database)]
            if len({record.db_id for record in runs[0].records}) > 1:
                command += ["--db_id", runs[0].records[0].db_id]
        # How it is asked stands beside the model, but for what is known of the databases alone.
        for name in ("tables_json", "description_source"):
            if (value := getattr(config, name)) is not None:
                command += [f"--{name}", value]
        # What `ask` takes without being told.
        if config.max_new_tokens > 128:
            command += ["--max_new_tokens", str(config.max_new_tokens)]
        return shlex.join(command)


def _num_parameters(model: Path) -> int:
    """Parameters of a model from its config alone."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    with torch.device("meta"):
        return int(
            AutoModelForCausalLM.from_config(
                AutoConfig.from_pretrained(str(model))
            ).num_parameters()
        )


def _pairs_section(account: dict[str, Any]) -> ReportSection:
    rows = [("pairs", account["num_pairs"]), ("candidates", account["num_candidates"])]
    rows += [(f"verdict {name}", count) for name, count in account["verdicts"].items()]
    for table in ("dropped_questions", "dropped_candidates"):
        kind = table.removeprefix("dropped_").removesuffix("s")
        rows += [(f"{kind} left out: {r}", n) for r, n in account[table].items()]
    return ReportSection(
        "Preference pairs",
        ("what", "count"),
        tuple((name, str(count)) for name, count in rows),
        "Chosen: gold SQL that was executed. Rejected: SQL of the fine-tuned model that was "
        "executed and is definitely wrong. Undetermined verdicts build no pair.",
    )


def _cost_section(costs: dict[str, dict[str, float]]) -> ReportSection:
    return ReportSection(
        "Cost",
        ("stage", "wall time", "peak memory of the process so far"),
        tuple(
            (name, f"{cost['wall_s']:.0f} s", f"{cost['peak_memory_bytes'] / 2**30:.1f} GiB")
            for name, cost in costs.items()
        ),
    )
