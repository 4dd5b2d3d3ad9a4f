"""The stages of the main job one by one, each driven by its arguments: what the recipes call."""

from __future__ import annotations

import functools
import hashlib
import json
import math
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console

from sense_trl.checkpoints.starting_model import (
    StartingModel,
    check_model_arguments,
    load_starting_model,
)
from sense_trl.database.catalog import DatabaseCatalog
from sense_trl.end_tokens import get_end_token_ids
from sense_trl.errors import InputError
from sense_trl.evaluation.curves import TrainingLog
from sense_trl.evaluation.evaluate import EvaluationReport
from sense_trl.evaluation.report import describe_change, preview_results, write_html_report
from sense_trl.options import DataArguments, SuiteOptions, get_values
from sense_trl.pairs.builder import PreferencePairConfig
from sense_trl.pairs.candidates import CandidateFile
from sense_trl.prompts import PromptStyle
from sense_trl.prompts.style import get_style
from sense_trl.run_folder import (
    RunFolder,
    fingerprint_databases,
    fingerprint_file,
    fingerprint_model,
)
from sense_trl.steps import work
from sense_trl.steps.arguments import (
    EvaluationArguments,
    GenerationArguments,
    PairArguments,
    RewardArguments,
    check_answering,
)
from sense_trl.steps.cpu import keep_freed_memory
from sense_trl.steps.processes import get_processes
from sense_trl.steps.prompting import load_styled_task, replace_prompt_options
from sense_trl.steps.revision import Revision, get_revision_table, revise
from sense_trl.steps.verification import (
    check_verification,
    get_limits,
    get_shard_folder,
    get_suite_notes,
    open_execution,
    open_scorer,
)
from sense_trl.task import TextToSQLTask

if TYPE_CHECKING:
    import datasets
    from trl import ModelConfig

    from sense_trl.generation.generator import SQLGenerator
    from sense_trl.trainers import KIDConfig, SenseDPOConfig, SenseGRPOConfig, SenseSFTConfig


def _settings(
    task: TextToSQLTask, data: DataArguments, generation: GenerationArguments
) -> dict[str, Any]:
    """Settings that the results of a generation stage depend on; files by content."""
    settings = replace_prompt_options({**asdict(data), **asdict(generation)}, task.writer.style)
    # How long is waited for a server decides about no answer.
    transport = [*_get_facts(generation), "request_timeout_s"]
    for name in ("database", "output_dir", *transport):
        del settings[name]
    # A folder whose settings do not name it was made without it.
    if not generation.stop_at_fence:
        del settings["stop_at_fence"]
    return settings | {
        **({"at_server": True} if generation.base_url else {}),
        "databases": fingerprint_databases(map(task.catalog.path, task.schemas)),
        "questions": fingerprint_file(data.questions),
        "tables_json": fingerprint_file(data.tables_json) if data.tables_json else None,
        # A server may change what it calls by a name; only the name can be compared.
        "model_name_or_path": generation.model_name_or_path
        if generation.base_url
        else fingerprint_model(generation.model_name_or_path),
    }


def _get_facts(generation: GenerationArguments) -> dict[str, Any]:
    """Settings that may change while candidates are sampled: where a server is reached, and how."""
    names = ["base_url", "api_key_env"]
    if generation.base_url is not None:
        # Requests at a time; a model in this process rounds with its batches.
        names.append("batch_size")
    return {name: getattr(generation, name) for name in names}


# The training arguments of TRL and transformers that decide about the trained weights; the rest is
# about logging, saving and where it runs.
_DECISIVE = (
    *("learning_rate", "num_train_epochs", "max_steps", "per_device_train_batch_size"),
    *("gradient_accumulation_steps", "lr_scheduler_type", "warmup_steps", "weight_decay", "optim"),
    *("seed", "data_seed", "max_length", "bf16", "fp16", "max_grad_norm", "loss_type"),
    *("loss_weights", "beta", "label_smoothing", "label_smoothing_factor", "lr_scheduler_kwargs"),
    *("adam_beta1", "adam_beta2", "adam_epsilon", "optim_args", "optim_target_modules"),
    *("completion_only_loss", "assistant_only_loss", "packing", "chat_template_path", "eos_token"),
    *("router_aux_loss_coef", "neftune_noise_alpha", "disable_dropout", "dataloader_drop_last"),
    *("f_divergence_type", "f_alpha_divergence_coef", "ld_alpha", "use_weighting"),
    *("discopop_tau", "sync_ref_model", "ref_model_mixup_alpha", "ref_model_sync_steps"),
    *("num_generations", "generation_batch_size", "max_completion_length", "num_iterations"),
    *("temperature", "top_p", "top_k", "min_p", "repetition_penalty", "shuffle_dataset"),
    *("generation_kwargs", "reward_weights", "scale_rewards", "multi_objective_aggregation"),
    *("epsilon", "epsilon_high", "delta", "importance_sampling_level", "top_entropy_quantile"),
    *("mask_truncated_completions", "use_bias_correction_kl", "off_policy_mask_threshold"),
    *("entropy_coef", "use_adaptive_entropy", "entropy_target", "use_vllm"),
    *("entropy_coef_min", "entropy_coef_max", "entropy_coef_delta", "chat_template_kwargs"),
    *("sapo_temperature_neg", "sapo_temperature_pos", "vespo_k_pos", "vespo_lambda_pos"),
    *("vespo_k_neg", "vespo_lambda_neg", "vllm_importance_sampling_correction"),
    *("vllm_importance_sampling_mode", "vllm_importance_sampling_clip_max"),
    *("vllm_importance_sampling_clip_min", "cast_lm_head_to_fp32", "pad_to_multiple_of"),
)
# Ours that do not.
_NOT_DECISIVE = ("reference_cache",)


def _claim_training(kind: str, config: Any, model: ModelConfig, data: dict[str, Any]) -> None:
    """Claim `config.output_dir` for a training with these settings."""
    trls = next(base for base in type(config).__mro__ if base.__module__.startswith("trl."))
    ours = {option.name for option in fields(config)} - {option.name for option in fields(trls)}
    names = sorted({*_DECISIVE, *ours} - {*_NOT_DECISIVE})
    settings = {name: getattr(config, name, None) for name in names}
    settings |= {**asdict(model), **data}
    for name in ("model_name_or_path", "teacher_model_name_or_path"):
        if settings.get(name) is not None:
            settings[name] = fingerprint_model(str(settings[name]))
    RunFolder(config.output_dir, kind, settings).claim()


def _write_candidates(
    task: TextToSQLTask,
    arguments: GenerationArguments,
    console: Console,
    file: str,
    title: str,
    open_generator: Callable[[], SQLGenerator] | None = None,
) -> CandidateFile:
    """Sample what the file does not hold yet; the processes of `accelerate launch` take turns."""
    keep_freed_memory()
    return work.predict(
        task,
        task.questions,
        open_generator or arguments.get_generator,
        arguments.sampling(),
        Path(arguments.output_dir) / file,
        console,
        title,
        batch_size=arguments.batch_size,
        source=arguments.candidate_source,
    )


def build_pairs(
    data: DataArguments,
    generation: GenerationArguments,
    config: PreferencePairConfig,
    console: Console,
    options: PairArguments | None = None,
) -> Path:
    """Sample from a weak model, execute, pair; returns the path of `pairs.parquet`.

    Resumable: candidates are on disk as they come. Of several processes all sample, and the first
    one does the rest.
    """
    folder = Path(generation.output_dir)
    path = folder / "pairs.parquet"
    # Refused before anything is sampled.
    options = PairArguments() if options is None else options
    generation.sampling()
    task = load_styled_task(
        data,
        generation.model_name_or_path,
        base_url=generation.base_url,
        limits=get_limits(options),
    )
    check_verification(task.catalog, options)
    settings = {
        **_settings(task, data, generation),
        **config.as_json(),
        **get_values(SuiteOptions, options),
    }
    RunFolder(folder, "pairs", settings, facts=_get_facts(generation)).claim()
    candidates = _write_candidates(
        task, generation, console, "candidates.jsonl", "Sample candidates"
    )
    if not get_processes().is_main:
        return path
    shards = get_shard_folder(folder, task.catalog, data, options)
    with open_execution(task.catalog, options, task.schemas) as (
        backend,
        verifier,
        suite_verifier,
    ):
        result = work.pair(
            task,
            candidates,
            verifier,
            config,
            folder,
            console,
            suite_verifier=suite_verifier,
            shard_folder=shards,
            backend=backend,
        )
    shutil.rmtree(shards, ignore_errors=True)
    counts = {k: v for k, v in result.summary().items() if k != "gold_problems"}
    console.print_json(data=counts)
    return path


def evaluate(
    data: DataArguments,
    generation: GenerationArguments,
    evaluation: EvaluationArguments,
    console: Console,
) -> EvaluationReport | None:
    """Predict, execute, compare; writes `evaluation.json` and `report.html`.

    The report shows the curves of the training whose log is beside the model. With several
    generations at a temperature, it has the mean of their verdicts and pass@k; the prediction of
    a question is the one whose result most of them have.

    Of several processes all predict, and the first one does the rest; the others get None.
    """
    number = generation.num_generations
    check_answering(number, generation.temperature, evaluation.revise)
    if evaluation.run_name is not None and len(evaluation.run_name) != 1:
        raise InputError(
            f"`run_name` is {evaluation.run_name}; expected one label for the one model."
        )
    name = evaluation.run_name[0] if evaluation.run_name else "model"
    folder = Path(generation.output_dir)
    task = load_styled_task(
        data,
        generation.model_name_or_path,
        base_url=generation.base_url,
        limits=get_limits(evaluation),
    )
    check_verification(task.catalog, evaluation)
    # Those of the prompts, which come from the file where it knows the database.
    schemas = task.schemas if data.tables_json else None
    # Label and comparison are about the report alone and may change from call to call.
    settings = _settings(task, data, generation)
    RunFolder(folder, "evaluate", settings, facts=_get_facts(generation)).claim()
    earlier = [EvaluationReport.load(path) for path in evaluation.compare_with]
    training = TrainingLog.find(generation.model_name_or_path, name)
    notes = get_suite_notes(evaluation)
    if number > 1:
        sampled = f"at temperature {generation.temperature:g}"
        notes["strict"] = f"Of the answer whose result most of {number} samples {sampled} have."
        notes["sample_mean"] = f"Sampled {sampled}."
    predictions, revision = _predict_and_revise(task, data, generation, evaluation, console)
    if not get_processes().is_main:
        return None
    sections = []
    with (
        open_execution(task.catalog, evaluation, schemas) as (backend, verifier, suite_verifier),
        open_scorer(folder, task.catalog, data, evaluation, backend) as scorer,
    ):
        score = functools.partial(
            work.evaluate,
            task.questions,
            verifier=verifier,
            console=console,
            notes=notes,
            score=scorer,
            schemas=schemas,
            suite_verifier=suite_verifier,
            soft_f1=evaluation.soft_f1,
            efficiency_repetitions=evaluation.efficiency,
        )
        path = folder / "evaluation.json"
        if revision is None:
            report = score(predictions, path=path, name=name)
        else:
            first = score(
                predictions, path=folder / "evaluation-first.json", name=f"{name}, first answers"
            )
            report = score(revision.answers, path=path, name=name, known=first)
            table = get_revision_table(revision, first, report)
            report = replace(report, notes={**report.notes, "strict": table.note})
            report.save(path)
            console.print(table.note)
            earlier.append(first)
            sections.append(table)
    runs = [*earlier, report]
    for before in runs[:-1]:
        console.print(describe_change(before, report))
    console.print_json(data=report.summary())
    page = folder / "report.html"
    write_html_report(
        page,
        runs,
        title=f"Text-to-SQL: {name}",
        subtitle=f"{len(task.questions)} questions, {len(task.unusable)} left out as unusable",
        sections=sections,
        trainings=[training] if training else [],
        previews=preview_results(runs, task.catalog),
    )
    console.print(f"report: {page}", markup=False, highlight=False, soft_wrap=True)
    return report


def _predict_and_revise(
    task: TextToSQLTask,
    data: DataArguments,
    generation: GenerationArguments,
    evaluation: EvaluationArguments,
    console: Console,
) -> tuple[CandidateFile, Revision | None]:
    """A model's answers, and what became of those it was asked about again, if that is wanted."""
    limits = get_limits(evaluation)
    # Loaded once, however often it is asked.
    open_generator = functools.cache(generation.get_generator)

    def ask(asked: TextToSQLTask, number: int) -> CandidateFile:
        file, title = "predictions.jsonl", "Predict"
        if number:
            file, title = f"revisions-{number}.jsonl", f"Ask again, round {number}"
        return _write_candidates(asked, generation, console, file, title, open_generator)

    predictions = ask(task, 0)
    if evaluation.revise == 0:
        return predictions, None
    folder = Path(generation.output_dir)
    with DatabaseCatalog.from_path(data.database, limits=limits) as catalog:
        return predictions, revise(
            task, predictions, ask, catalog, folder, console, num_rounds=evaluation.revise
        )


def sft(data: DataArguments, model: ModelConfig, config: SenseSFTConfig, console: Console) -> None:
    """Fine-tune on the gold SQL of the questions with `SenseSFTTrainer`; resumes by itself.

    Raises:
        InputError: see `check_model_arguments` and `load_task`.
    """
    check_model_arguments(model, use_cpu=config.use_cpu)
    rows = load_rows(data, model.model_name_or_path, link_for=config)
    style = get_style(data, model.model_name_or_path)
    title = "Supervised fine-tuning"
    _train("sft", title, rows, style, _identify(rows), model, config, console)


def kd(data: DataArguments, model: ModelConfig, config: KIDConfig, console: Console) -> None:
    """Distil a teacher on the gold SQL of the questions with `KIDTrainer`; resumes by itself.

    Raises:
        InputError: see `check_model_arguments` and `load_task`.
    """
    check_model_arguments(model, use_cpu=config.use_cpu)
    models = (model.model_name_or_path, config.teacher_model_name_or_path)
    rows = load_rows(data, *models, mask_spans=config.mask_unit == "schema_item")
    style = get_style(data, *models)
    identity = _identify(rows)
    if config.teacher_model_name_or_path is not None:
        identity["teacher_model_name_or_path"] = fingerprint_model(
            config.teacher_model_name_or_path
        )
    _train("kd", "Distillation", rows, style, identity, model, config, console)


def grpo(
    data: DataArguments,
    rewards: RewardArguments,
    model: ModelConfig,
    config: SenseGRPOConfig,
    console: Console,
) -> None:
    """Train online with `SenseGRPOTrainer` on what execution says; resumes by itself.

    What the policy writes is in `rollouts.jsonl`, and the pairs made of it in `pairs`.

    Raises:
        InputError: see `check_model_arguments` and `load_task`.
    """
    from sense_trl.steps.rollouts import (
        RolloutRecorder,
        collect_rollouts,
        open_rewards,
        pair_rollouts,
    )

    check_model_arguments(model, use_cpu=config.use_cpu)
    task = load_styled_task(data, model.model_name_or_path, limits=get_limits(rewards))
    rows = get_prompt_rows(task)
    options = {name: value for name, value in asdict(rewards).items() if name in _REWARDED_BY}
    identity = {
        **_identify(rows),
        "databases": fingerprint_databases(map(task.catalog.path, task.schemas)),
        **options,
    }
    folder, processes = Path(config.output_dir), get_processes()

    def get_rewards(start: StartingModel) -> dict[str, Any]:
        first, *more = opened
        recorder = RolloutRecorder(
            first,
            folder,
            model=Path(str(model.model_name_or_path)).name,
            sampling={name: getattr(config, name) for name in ("temperature", "top_p", "seed")},
            max_tokens=config.max_completion_length,
            end_ids=get_end_token_ids(start.model, start.tokenizer),
            process=processes.index,
        )
        return {"reward_funcs": [recorder, *more]}

    with open_rewards(data.database, rewards) as opened:
        title, style = "Online training", task.writer.style
        _train("grpo", title, rows, style, identity, model, config, console, get_rewards)
    if processes.is_main:
        candidates = collect_rollouts(folder)
        if rewards.rollout_pairs and len(candidates):
            pair_rollouts(task, candidates, folder / "pairs", rewards, console)


_REWARDED_BY = ("rewards", "reward_error", "timeout_s", "query_limit")


def get_prompt_rows(task: TextToSQLTask) -> datasets.Dataset:
    """The questions of a task as rows `{question_id, db_id, gold_sql, prompt}`, as it is asked."""
    import datasets

    return datasets.Dataset.from_list(
        [
            {
                "question_id": question.question_id,
                "db_id": question.db_id,
                "gold_sql": question.gold_sql,
                "prompt": task.get_messages(question),
            }
            for question in task.questions
        ]
    )


def dpo(
    pairs: str | Sequence[str],
    model: ModelConfig,
    config: SenseDPOConfig,
    console: Console,
    *,
    columns: str | Mapping[str, str] | None = None,
    force_style: bool = False,
) -> None:
    """Train on pairs with `SenseDPOTrainer`; resumes by itself.

    Args:
        pairs, columns: see `load_pairs`.
        force_style: train on prompts of another style than the model's.

    Raises:
        InputError: see `check_model_arguments` and `load_pairs`; the pairs were built with prompts
            of another style than the model's.
    """
    check_model_arguments(model, use_cpu=config.use_cpu)
    rows = load_pairs(pairs, columns)
    files = [pairs] if isinstance(pairs, str) else pairs
    identity = {"pairs": " ".join(map(fingerprint_file, files))}
    if columns is not None:
        identity["columns"] = json.dumps(columns)
    places = [*(str(Path(file).parent) for file in files), str(model.model_name_or_path)]
    found = [(style, place) for place in places if (style := PromptStyle.find(place)) is not None]
    style = found[0][0] if found else None
    for other, place in found[1:]:
        if style is not None and not force_style:
            style.check_equals(other, place)
    _train("dpo", "Preference training", rows, style, identity, model, config, console)


def load_rows(
    data: DataArguments,
    *models: str | None,
    mask_spans: bool = False,
    link_for: SenseSFTConfig | None = None,
) -> datasets.Dataset:
    """The gold answers of the questions as rows `{db_id, prompt, completion}`.

    Args:
        data: the questions.
        models: see `load_styled_task`.
        mask_spans: see `TextToSQLTask.prompt_completion_rows`.
        link_for: how the first of `models` is trained: with a linker, for which there are
            `linked_texts`, where it has a `link_weight`.

    Raises:
        InputError: see `load_task` and `write_linked_texts`.
    """
    import datasets

    task = load_styled_task(data, *models)
    rows = task.prompt_completion_rows(task.questions, mask_spans=mask_spans)
    if link_for is not None and link_for.link_weight:
        from sense_trl.checkpoints.starting_model import load_stage_tokenizer
        from sense_trl.steps.linking import write_linked_texts

        assert models[0] is not None, "checked before"
        texts = write_linked_texts(
            task.questions,
            task.schemas,
            load_stage_tokenizer(models[0]),
            max_length=link_for.max_length,
        )
        for row, own in zip(rows, texts, strict=True):
            row["linked_texts"] = own
    return datasets.Dataset.from_list(rows)


def _identify(rows: datasets.Dataset) -> dict[str, str]:
    """Rows say all about questions, schemas and their style."""
    # The JSON of their list, a row at a time: what a linker reads of each may be 100 kB.
    digest = hashlib.sha256(b"[")
    for number, row in enumerate(rows):
        digest.update((", " * bool(number) + json.dumps(row)).encode())
    digest.update(b"]")
    return {"rows": digest.hexdigest()}


def load_pairs(
    paths: str | Sequence[str], columns: str | Mapping[str, str] | None = None
) -> datasets.Dataset:
    """The pairs of a file, or of several, prompt and answers all text or all messages.

    Args:
        paths: `.parquet` or JSON Lines; of several files only columns that all have are kept.
        columns: which columns hold what, or the name of a layout; see `select_pair_columns`. None
            for `prompt`, `chosen` and `rejected`.

    Raises:
        InputError: it is not a file of pairs, or holds none; prompts and answers of one file are
            text, and those of another one messages.
    """
    import datasets

    if isinstance(paths, str):
        return _load_pairs(paths, columns)
    parts = [_load_pairs(path, columns) for path in paths]
    shared = [name for name in parts[0].column_names if all(name in p.features for p in parts)]
    try:
        return datasets.concatenate_datasets([part.select_columns(shared) for part in parts])
    except ValueError as error:
        raise InputError(
            f"`pairs` are {', '.join(map(repr, paths))}, whose columns differ in kind: {error}. "
            "Build them with the same `prompt_format`."
        ) from error


def _load_pairs(path: str, columns: str | Mapping[str, str] | None) -> datasets.Dataset:
    import datasets

    from sense_trl.steps.teacher import load_answers
    from sense_trl.trainers.rows.formats import PAIR_LAYOUTS, select_pair_columns, unify_rows

    if not Path(path).is_file():
        raise InputError(
            f"`pairs` is {path!r}, which is not a file. Build it with the stage `pairs`."
        )
    if path.endswith((".json", ".jsonl")):
        rows = datasets.Dataset.from_list(load_answers(path, argument="pairs"))
    else:
        rows = _read_parquet(path)
    if columns is not None:
        return select_pair_columns(rows, columns)
    names = rows.column_names
    # Conversations may begin with what was asked.
    is_text = isinstance(rows[0].get("chosen"), str)
    if missing := {"chosen", "rejected", *(["prompt"] if is_text else [])} - {*names}:
        raise InputError(
            f"`pairs` {path!r} lacks the columns {sorted(missing)}; it has {sorted(names)}. Give "
            "the pairs.parquet that the stage `pairs` wrote, or say which columns hold the prompt "
            'and the answers as `columns`: e.g. {"system": "system", "prompt": "question"}, or one '
            f"of {', '.join(PAIR_LAYOUTS)}."
        )
    return unify_rows(rows)


def _read_parquet(path: str) -> datasets.Dataset:
    import datasets
    import pyarrow.parquet

    try:
        metadata = pyarrow.parquet.read_metadata(path)
    except pyarrow.ArrowInvalid as error:
        raise InputError(
            f"`pairs` is {path!r}, which cannot be read as Parquet ({error}). Give the "
            "pairs.parquet that the stage `pairs` wrote."
        ) from error
    if metadata.num_rows == 0:
        raise InputError(f"`pairs` {path!r} holds no pair; pairs.json beside it says why.")
    return datasets.Dataset.from_parquet(path)


def _train(
    kind: str,
    title: str,
    rows: datasets.Dataset,
    style: PromptStyle | None,
    identity: dict[str, Any],
    model: ModelConfig,
    config: Any,
    console: Console,
    get_options: Callable[[StartingModel], dict[str, Any]] = lambda start: {},
) -> None:
    """Run a training in its folder, unless it is finished there.

    `get_options` has what else the trainer is given.
    """
    from sense_trl.steps.training import train_model

    _claim_training(kind, config, model, identity)
    folder = Path(config.output_dir)
    if work.is_trained(folder):
        console.print(f"{folder} is finished; nothing to do.", markup=False)
        return
    keep_freed_memory()
    start = load_starting_model(model, use_cpu=config.use_cpu)

    def run(callback: Any) -> dict[str, Any]:
        options = get_options(start)
        return train_model(start, rows, config, style=style, callbacks=[callback], **options)

    work.train(folder, run, count_steps(config, len(rows)), console, title)
    console.print(f"model: {folder}", markup=False, highlight=False, soft_wrap=True)


def count_steps(config: Any, num_rows: int) -> int:
    """Optimizer steps of a training in one process, for its progress bar."""
    if config.max_steps > 0:
        return int(config.max_steps)
    batch = int(config.per_device_train_batch_size)
    # Of a prompt that completions are written for, each is an example, as often as it is used.
    num_rows *= getattr(config, "num_generations", 1) * getattr(config, "num_iterations", 1)
    steps_per_epoch = -(-num_rows // (batch * int(config.gradient_accumulation_steps)))
    return max(1, math.ceil(float(config.num_train_epochs) * steps_per_epoch))
