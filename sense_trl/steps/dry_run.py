"""Dry runs: a stage's data and cost, counted without loading a model's weights."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from sense_trl.chat_template import (
    check_chat_template,
    fold_messages,
    naming_template_errors,
)
from sense_trl.chat_tokens import apply_chat_template
from sense_trl.checkpoints.starting_model import check_model_arguments, load_stage_tokenizer
from sense_trl.collators import LINKED_TEXTS
from sense_trl.memory.estimate import estimate_memory
from sense_trl.memory.micro_batches import Example, TrainingExamples
from sense_trl.memory.training_setup import get_stage_setup
from sense_trl.options import DataArguments
from sense_trl.steps.arguments import GenerationArguments
from sense_trl.steps.prompting import load_styled_task
from sense_trl.steps.stages import count_steps, get_prompt_rows
from sense_trl.trainers.rows.formats import prepare_chat_template
from sense_trl.trainers.rows.several_rejected import split_rejected_lists
from sense_trl.trainers.sharing.grouped_sampler import build_grouped_sampler

if TYPE_CHECKING:
    import datasets
    from trl import ModelConfig

    from sense_trl.database.engine import ExecutionLimits

_ANSWER_COLUMNS = ("completion", "chosen", "rejected")


def describe_training(stage: str, rows: datasets.Dataset, model: ModelConfig, config: Any) -> str:
    """The examples, their tokens, how many do not fit, the optimizer steps, and the memory.

    Args:
        stage: `"sft"`, `"dpo"` or `"kd"`.
        rows: with `prompt` and `completion`, or `prompt`, `chosen`, `rejected`: messages or text.
        model: names the model, of which only the tokenizer and the config are read.
        config: the training arguments.

    Raises:
        InputError: see `check_model_arguments`.
        ModelError: there is no such tokenizer or config, or its chat template cannot hold the rows.
    """
    check_model_arguments(model, use_cpu=config.use_cpu)
    rows = split_rejected_lists(rows, [])
    tokenizer = load_stage_tokenizer(str(model.model_name_or_path))
    prepare_chat_template(rows, tokenizer, fold=config.fold_system_message)
    with naming_template_errors("the dataset"):
        examples = tokenize(rows, tokenizer)
    totals = [len(prompt) + max(map(len, answers)) for prompt, answers in examples]
    limit = max(totals) if config.max_length is None else config.max_length
    kept = [index for index, total in enumerate(totals) if total <= limit]
    lines = [
        f"examples: {len(examples)}",
        f"tokens per example: {sum(totals) / len(totals):.0f} on average, {max(totals)} at most",
        f"longer than `max_length` {config.max_length}: {len(totals) - len(kept)} (at most "
        f"{config.max_dropped_fraction:.1%} may be left out)",
        f"optimizer steps in one process: {count_steps(config, len(kept))}",
    ]
    if kept:
        rows = rows.select(kept)
        order = _get_order(rows, config)
        known = TrainingExamples.from_examples([examples[index] for index in kept], order)
        if LINKED_TEXTS in rows.column_names:
            known = known.with_texts(rows)
        lines += _estimate(stage, model, config, examples=known)
    return "\n".join(lines)


def describe_online_training(
    data: DataArguments,
    model: ModelConfig,
    config: Any,
    *,
    limits: ExecutionLimits | None = None,
) -> str:
    """The prompts of an online training, their tokens, its completions and steps, and the memory.

    Args:
        data: the questions.
        model: names the model, of which only the tokenizer and the config are read.
        config: the training arguments.
        limits: see `load_task`.

    Raises:
        InputError: see `check_model_arguments` and `load_task`.
        ModelError: there is no such tokenizer or config, or its chat template cannot hold a prompt.
    """
    check_model_arguments(model, use_cpu=config.use_cpu)
    name = str(model.model_name_or_path)
    rows = get_prompt_rows(load_styled_task(data, name, limits=limits))
    tokenizer = load_stage_tokenizer(name)
    prepare_chat_template(rows, tokenizer, fold=config.fold_system_message)
    lengths = [len(prompt) for prompt, _ in tokenize(rows, tokenizer)]
    num_steps = count_steps(config, len(rows))
    per_generation = config.gradient_accumulation_steps / (
        config.steps_per_generation * config.num_iterations
    )
    completions = num_steps * per_generation * config.generation_batch_size
    return "\n".join(
        [
            f"prompts: {len(rows)}, {config.prompts_per_generation} at a time",
            f"completions per prompt: {config.num_generations}, each of at most "
            f"{config.max_completion_length} tokens",
            f"tokens per prompt: {sum(lengths) / len(lengths):.0f} on average, {max(lengths)} at "
            "most",
            f"optimizer steps in one process: {num_steps}, on {completions:.0f} completions",
            *_estimate("grpo", model, config, prompt_tokens=max(lengths)),
        ]
    )


def _get_order(rows: datasets.Dataset, config: Any) -> np.ndarray:
    """In groups as in the training; a random one is as good as that of the training."""
    sampler = build_grouped_sampler(rows, config)
    if sampler is None:
        return np.random.default_rng(config.seed).permutation(len(rows))
    return np.fromiter(sampler, dtype=np.int64)


def _estimate(stage: str, model: ModelConfig, config: Any, **known: Any) -> list[str]:
    on_gpu = not config.use_cpu
    setup, model_config, teacher = get_stage_setup(stage, config, model, on_gpu=on_gpu, **known)
    estimate = estimate_memory(setup, model_config, teacher_config=teacher)
    return ["memory, estimated:", str(estimate)]


def describe_generation(
    data: DataArguments,
    generation: GenerationArguments,
    *,
    limits: ExecutionLimits | None = None,
) -> str:
    """The number of questions, databases and completions, and the tokens of the longest prompt.

    Raises:
        InputError: see `load_task`.
        ModelError: there is no such tokenizer, or its chat template cannot hold a prompt.
    """
    task = load_styled_task(
        data, generation.model_name_or_path, base_url=generation.base_url, limits=limits
    )
    lines = [
        f"questions: {len(task.questions)} on {len(task.schemas)} databases, "
        f"{len(task.unusable)} left out as unusable",
        f"completions: {len(task.questions) * generation.num_generations}, each of at most "
        f"{generation.max_new_tokens} tokens",
    ]
    if generation.base_url is None:
        tokenizer = load_stage_tokenizer(generation.model_name_or_path)
        folds = generation.fold_system_message
        check_chat_template(tokenizer, generation.model_name_or_path, has_system=not folds)
        conversations = [task.get_messages(question) for question in task.questions]
        if folds:
            conversations = [fold_messages(messages) for messages in conversations]
        prompts = [_encode(tokenizer, messages) for messages in conversations]
        lines.append(f"longest prompt: {max(map(len, prompts))} tokens")
    return "\n".join(lines)


def tokenize(rows: datasets.Dataset, tokenizer: Any) -> list[Example]:
    """The tokens of each row, as the trainers make them."""
    columns = [column for column in _ANSWER_COLUMNS if column in rows.column_names]
    examples: list[Example] = []
    for row in rows.select_columns(["prompt", *columns]):
        prompt = _encode(tokenizer, row["prompt"], add_generation_prompt=True)
        # Text is given an end token, messages have theirs.
        end = [tokenizer.eos_token_id] if isinstance(row["prompt"], str) else []
        texts = [_encode(tokenizer, row["prompt"] + row[column]) for column in columns]
        answers = [np.array(text[len(prompt) :] + end, dtype=np.int32) for text in texts]
        examples.append((np.array(prompt, dtype=np.int32), answers))
    return examples


def _encode(tokenizer: Any, messages: Any, **options: Any) -> list[int]:
    if isinstance(messages, str):
        return list(tokenizer(messages)["input_ids"])
    return list(apply_chat_template(tokenizer, messages, return_dict=False, **options))
