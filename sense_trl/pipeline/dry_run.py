"""What a stage would work on and take, counted without loading a model's weights."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from sense_trl.pipeline.estimate import MemoryEstimate, estimate_memory
from sense_trl.pipeline.model_config import load_model_config
from sense_trl.pipeline.stages import GenerationArguments, count_steps
from sense_trl.pipeline.starting_model import check_model_arguments, load_stage_tokenizer
from sense_trl.pipeline.task import DataArguments, load_task
from sense_trl.pipeline.training_setup import get_training_setup

if TYPE_CHECKING:
    import datasets
    from trl import ModelConfig

_ANSWER_COLUMNS = ("completion", "chosen", "rejected")


@dataclass(frozen=True, slots=True)
class ExampleLength:
    """Tokens of an example: its prompt, and the longest of its answers."""

    prompt: int
    answer: int

    @property
    def total(self) -> int:
        """What `max_length` limits."""
        return self.prompt + self.answer


def describe_training(stage: str, rows: datasets.Dataset, model: ModelConfig, config: Any) -> str:
    """The examples, their tokens, how many do not fit, the optimizer steps, and the memory.

    Args:
        stage: `"sft"`, `"dpo"` or `"kd"`.
        rows: with `prompt` and `completion`, or `prompt`, `chosen`, `rejected`: messages or text.
        model: names the model, of which only the tokenizer and the config are read.
        config: the training arguments.

    Raises:
        InputError: see `check_model_arguments`.
        ModelError: there is no such tokenizer or config.
    """
    check_model_arguments(model, use_cpu=config.use_cpu)
    lengths = count_tokens(rows, load_stage_tokenizer(str(model.model_name_or_path)))
    totals = [length.total for length in lengths]
    kept = [n for n in lengths if config.max_length is None or n.total <= config.max_length]
    lines = [
        f"examples: {len(lengths)}",
        f"tokens per example: {sum(totals) / len(totals):.0f} on average, {max(totals)} at most",
        f"longer than `max_length` {config.max_length}: {len(lengths) - len(kept)} (at most "
        f"{config.max_dropped_fraction:.1%} may be left out)",
        f"optimizer steps in one process: {count_steps(config, len(kept))}",
    ]
    if kept:
        longest = max(kept, key=lambda length: length.total)
        lines += ["memory, estimated:", str(_estimate(stage, longest, model, config))]
    return "\n".join(lines)


def _estimate(
    stage: str, longest: ExampleLength, model: ModelConfig, config: Any
) -> MemoryEstimate:
    model_config, adapter = load_model_config(str(model.model_name_or_path))
    teacher_config = None
    if (teacher := getattr(config, "teacher_model_name_or_path", None)) is not None:
        teacher_config, _ = load_model_config(teacher)
    setup = get_training_setup(
        stage,
        config,
        model,
        model_config,
        adapter=adapter,
        on_gpu=not config.use_cpu,
        prompt_tokens=longest.prompt,
        completion_tokens=longest.answer,
        teacher_config=teacher_config,
    )
    return estimate_memory(setup, model_config, teacher_config=teacher_config)


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


def count_tokens(rows: datasets.Dataset, tokenizer: Any) -> list[ExampleLength]:
    """Tokens of each row, as the trainers count them."""
    columns = [column for column in _ANSWER_COLUMNS if column in rows.column_names]
    lengths = []
    for row in rows.select_columns(["prompt", *columns]):
        prompt = _count(tokenizer, row["prompt"], add_generation_prompt=True)
        total = max(_count(tokenizer, row["prompt"] + row[column]) for column in columns)
        # Text is given an end token, messages have theirs.
        total += isinstance(row["prompt"], str)
        lengths.append(ExampleLength(prompt, total - prompt))
    return lengths


def _count(tokenizer: Any, messages: Any, **options: Any) -> int:
    if isinstance(messages, str):
        return len(tokenizer(messages)["input_ids"])
    return len(tokenizer.apply_chat_template(messages, return_dict=False, **options))
