"""`sense-trl estimate`: whether a training fits on a card, its time, and what to change."""

from __future__ import annotations

import argparse
import json
import math
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Final, Literal

from sense_trl.cli.jobs import DoctorOptions
from sense_trl.cli.parser import Command
from sense_trl.errors import InputError
from sense_trl.options import option, option_of

if TYPE_CHECKING:
    from sense_trl.memory.cards import Card
    from sense_trl.memory.check import MemoryChange
    from sense_trl.memory.estimate import MemoryEstimate
    from sense_trl.memory.training_setup import TrainingSetup

EXIT_DOES_NOT_FIT: Final = 1


@dataclass(kw_only=True)
class EstimateOptions:
    """A stage of training and a card."""

    config: str = option("YAML file of a stage sft, dpo, kd or grpo, or RECIPE/STAGE.")
    stage: Literal["sft", "dpo", "kd", "grpo"] | None = option(
        "By default the name of the file, as in dpo.yaml.", default=None
    )
    set: list[str] = option(
        "Options of the stage that win over the file, e.g. max_length=4096 lora_r=8.",
        default_factory=list,
        metavar="NAME=VALUE",
    )
    card: str | None = option(
        "A common card by its memory in GB: 8, 12, 16, 24, 40 or 80.", default=None
    )
    memory_gb: float | None = option(
        "Memory of the device in GiB, instead of a card.", default=None
    )
    prompt_tokens: int | None = option(
        "Longest prompt; by default what max_length leaves, or 1024 for grpo.", default=None
    )
    completion_tokens: int | None = option(
        "Longest answer; by default 128, or `max_completion_length`.", default=None
    )
    shared_tokens: int = option(
        "Tokens that the prompts of a batch begin with alike: the schema, with group_by_columns. "
        "By default every question is on another database.",
        default=0,
    )
    json: bool = option_of(DoctorOptions, "json")


def run(given: EstimateOptions, console: Any) -> int:
    """Run the command; 1 if the training does not fit."""
    from sense_trl.checkpoints.starting_model import check_model_arguments
    from sense_trl.memory.check import find_changes
    from sense_trl.memory.estimate import estimate_memory
    from sense_trl.memory.training_setup import get_stage_setup

    card, available = _get_device(given)
    stage = _get_stage(given)
    options = _read_options(stage, given)
    model = _get_model_arguments(options)
    check_model_arguments(model, use_cpu=options.use_cpu)
    setup, config, teacher_config = get_stage_setup(
        stage,
        options,
        model,
        on_gpu=card is not None or not options.use_cpu,
        prompt_tokens=given.prompt_tokens,
        completion_tokens=given.completion_tokens,
        shared_tokens=given.shared_tokens,
    )
    estimate = estimate_memory(setup, config, teacher_config=teacher_config)
    fits = available is None or estimate.total_bytes <= available
    changes: list[MemoryChange] = []
    if available is not None and not fits:
        changes = find_changes(setup, config, available, teacher_config=teacher_config)
    if given.json:
        text = _as_json(setup, estimate, card, available, changes)
    else:
        text = _as_text(setup, estimate, card, available, changes)
    print(text)  # noqa: T201 - the result of the command
    return 0 if fits else EXIT_DOES_NOT_FIT


# ---------------------------------------------------------------------- input


def _get_stage(given: EstimateOptions) -> str:
    from pathlib import Path

    from sense_trl.memory.training_setup import STAGES

    stage = given.stage or Path(given.config).stem
    if stage not in STAGES:
        raise InputError(
            f"`config` {given.config!r} is named after no training stage; say with --stage "
            f"which it is: {', '.join(STAGES)}."
        )
    return str(stage)


def _read_options(stage: str, given: EstimateOptions) -> argparse.Namespace:
    """All options of the stage, with their defaults.

    They are not made into TRL's config objects, which refuse bfloat16 where there is no GPU for it.
    """
    from sense_trl.cli import stages
    from sense_trl.cli.parser import read_config

    values = read_config(given.config)
    parser = next(known for known in stages.STAGES if known.name == stage).make_parser()
    if unknown := parser.set_defaults_with_config(**values):
        raise InputError(
            f"`config` {given.config!r} has options that the stage {stage!r} does not know: "
            f"{unknown[::2]}. Correct or remove them."
        )
    flags: list[str] = []
    for item in given.set:
        name, separator, value = item.partition("=")
        if not separator:
            raise InputError(f"`set` has {item!r}; expected NAME=VALUE, e.g. max_length=4096.")
        flags += [f"--{name}", value]
    options: argparse.Namespace = parser.parse_args(flags)
    return options


def _get_model_arguments(options: argparse.Namespace) -> Any:
    from dataclasses import fields

    from trl import ModelConfig

    return ModelConfig(
        **{field.name: getattr(options, field.name) for field in fields(ModelConfig)}
    )


def _get_device(given: EstimateOptions) -> tuple[Card | None, int | None]:
    from sense_trl.memory.cards import CARDS

    name, memory = given.card, given.memory_gb
    if name is not None and memory is not None:
        raise InputError(f"`card` is {name!r} and `memory_gb` {memory:g}; expected one of them.")
    if name is None:
        if memory is None:
            return None, None
        if not 0 < memory < math.inf:
            raise InputError(f"`memory_gb` is {memory:g}; expected GiB above 0.")
        return None, int(memory * 2**30)
    card = CARDS.get(name.lower().removesuffix("gb").strip())
    if card is None:
        raise InputError(
            f"`card` is {name!r}; expected one of {', '.join(CARDS)}, or give --memory_gb."
        )
    return card, card.memory_bytes


# ---------------------------------------------------------------------- output


def _as_text(
    setup: TrainingSetup,
    estimate: MemoryEstimate,
    card: Card | None,
    available: int | None,
    changes: list[MemoryChange],
) -> str:
    from sense_trl.memory.cards import UTILISATION, estimate_step_seconds
    from sense_trl.memory.check import format_bytes

    lines = [
        f"{estimate.num_parameters / 1e6:.0f} M parameters, {estimate.num_trained / 1e6:.1f} M "
        f"trained; micro-batch of {setup.batch_size} examples of {setup.prompt_tokens} + "
        f"{setup.completion_tokens} tokens, {estimate.tokens} tokens computed",
        str(estimate),
    ]
    if available is not None:
        where = "the device" if card is None else card.name
        verdict = "fits in" if estimate.total_bytes <= available else "does not fit in"
        lines.append(f"{verdict} the {format_bytes(available)} of {where} (estimated)")
    if card is not None:
        seconds = estimate_step_seconds(setup, estimate, card)
        lines.append(
            f"{seconds:.2f} s per optimizer step (estimated, at {UTILISATION:.0%} of "
            f"{card.bf16_tflops:g} TFLOPS and {card.bandwidth_gb_s:g} GB/s)"
        )
    for change in changes:
        total = format_bytes(change.estimate.total_bytes)
        lines.append(f"with {change.options}: {total}")
    return "\n".join(lines)


def _as_json(
    setup: TrainingSetup,
    estimate: MemoryEstimate,
    card: Card | None,
    available: int | None,
    changes: list[MemoryChange],
) -> str:
    from sense_trl.memory.cards import estimate_step_seconds

    data = {
        "total_bytes": estimate.total_bytes,
        "parts": [asdict(part) for part in estimate.parts],
        "available_bytes": available,
        "fits": None if available is None else estimate.total_bytes <= available,
        "step_seconds": None if card is None else estimate_step_seconds(setup, estimate, card),
        "tokens": estimate.tokens,
        "num_parameters": estimate.num_parameters,
        "num_trained": estimate.num_trained,
        "changes": [
            {"options": change.options, "total_bytes": change.estimate.total_bytes}
            for change in changes
        ],
    }
    return json.dumps(data, indent=1)


COMMAND: Final = Command(
    "estimate",
    "memory and time of a training on a card, before it runs",
    run,
    (EstimateOptions,),
    description="Estimate the memory of a training by part, and the time of a step, from the YAML "
    "file of the stage and the model's config.json; no weights are read and no GPU is needed. With "
    "a card, or its memory, say whether it fits and which options would make it fit. Exit code 1 "
    "if it does not. For a stage that starts from what another one will have written, name that "
    "one's model: --set model_name_or_path=MODEL use_peft=true lora_r=16. With `link_weight`, a "
    "text as long as a prompt counts for each example.",
)
