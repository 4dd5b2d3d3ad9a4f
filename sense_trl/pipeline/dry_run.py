"""What a stage would work on, counted without loading a model's weights."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from sense_trl.pipeline.stages import GenerationArguments, count_steps
from sense_trl.pipeline.starting_model import check_model_arguments, load_stage_tokenizer
from sense_trl.pipeline.task import DataArguments, load_task

if TYPE_CHECKING:
    import datasets
    from trl import ModelConfig

_ANSWER_COLUMNS = ("completion", "chosen", "rejected")


def describe_training(rows: datasets.Dataset, model: ModelConfig, config: Any) -> str:
    """The number of examples, their tokens, how many do not fit, and the optimizer steps.

    Args:
        rows: conversational, with `prompt` and `completion`, or `prompt`, `chosen`, `rejected`.
        model: names the tokenizer.
        config: the training arguments.

    Raises:
        InputError: see `check_model_arguments`.
        ModelError: there is no such tokenizer.
    """
    check_model_arguments(model, use_cpu=config.use_cpu)
    lengths = count_tokens(rows, load_stage_tokenizer(str(model.model_name_or_path)))
    kept = [n for n in lengths if config.max_length is None or n <= config.max_length]
    lines = [
        f"examples: {len(lengths)}",
        f"tokens per example: {sum(lengths) / len(lengths):.0f} on average, {max(lengths)} at most",
        f"longer than `max_length` {config.max_length}: {len(lengths) - len(kept)} (at most "
        f"{config.max_dropped_fraction:.1%} may be left out)",
        f"optimizer steps in one process: {count_steps(config, len(kept))}",
    ]
    return "\n".join(lines)


def describe_generation(data: DataArguments, generation: GenerationArguments) -> str:
    """The number of questions, databases and completions, and the tokens of the longest prompt.

    Raises:
        InputError: see `load_task`.
        ModelError: there is no such tokenizer.
    """
    task = load_task(data)
    lines = [
        f"questions: {len(task.questions)} on {len(task.schemas)} databases, "
        f"{len(task.unusable)} left out as unusable",
        f"completions: {len(task.questions) * generation.num_generations}, each of at most "
        f"{generation.max_new_tokens} tokens",
    ]
    if generation.base_url is None:
        tokenizer = load_stage_tokenizer(generation.model_name_or_path)
        prompts = [_count(tokenizer, task.get_messages(q)) for q in task.questions]
        lines.append(f"longest prompt: {max(prompts)} tokens")
    return "\n".join(lines)


def count_tokens(rows: datasets.Dataset, tokenizer: Any) -> list[int]:
    """Tokens of each conversational row, prompt and its longest answer, as the trainers count."""
    columns = [column for column in _ANSWER_COLUMNS if column in rows.column_names]
    return [
        max(_count(tokenizer, [*row["prompt"], *row[column]]) for column in columns)
        for row in rows.select_columns(["prompt", *columns])
    ]


def _count(tokenizer: Any, messages: Any) -> int:
    return len(tokenizer.apply_chat_template(messages, return_dict=False))
