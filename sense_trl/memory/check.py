"""`warn_of_memory`: say before a training that it will not fit, and what would make it fit."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any, Final

from sense_trl.memory.cards import count_step_flops
from sense_trl.memory.estimate import MemoryEstimate, estimate_memory
from sense_trl.memory.training_setup import TrainingSetup, get_trainer_setup

logger = logging.getLogger(__name__)

_GIB: Final = 2**30


@dataclass(frozen=True, slots=True)
class MemoryChange:
    """Options to set, as they stand in a YAML file, and the estimate with them."""

    options: str
    estimate: MemoryEstimate


def format_bytes(num_bytes: int) -> str:
    """In GiB, with one decimal."""
    return f"{num_bytes / _GIB:.1f} GiB"


def find_changes(
    setup: TrainingSetup, config: Any, available_bytes: int, *, teacher_config: Any = None
) -> list[MemoryChange]:
    """Find changes after which a training fits, those that cost least first.

    Returns:
        Every single change with which it fits: those that cost nothing, those that cost time by
        how much, those that train something else, and what leaves data out. If there is none, one
        entry with changes added up until it fits, or all of them if it never does.
    """

    def estimate(changed: TrainingSetup) -> MemoryEstimate:
        return estimate_memory(changed, config, teacher_config=teacher_config)

    def find_mildest(change: _Change, setup: TrainingSetup) -> tuple[MemoryChange, Any] | None:
        """The first step of a change with which the setup fits, else its last one."""
        found = None
        for options, changed in change(setup):
            found = MemoryChange(options, estimate(changed)), changed
            if found[0].estimate.total_bytes <= available_bytes:
                break
        return found

    fitting: list[MemoryChange] = []
    for group in _CHANGES:
        found = [find_mildest(change, setup) for change in group]
        fits = [f for f in found if f and f[0].estimate.total_bytes <= available_bytes]
        fits.sort(key=lambda pair: count_step_flops(pair[1], pair[0].estimate))
        fitting += [change for change, _ in fits]
    if fitting:
        return fitting
    names: list[str] = []
    total: list[MemoryChange] = []
    for change in (change for group in _CHANGES for change in group):
        if (result := find_mildest(change, setup)) is None:
            continue
        added, setup = result
        names.append(added.options)
        total = [MemoryChange(", ".join(names), added.estimate)]
        if added.estimate.total_bytes <= available_bytes:
            break
    return total


# -------------------------------------------------------------------------------- changes
# Each gives the options to set and the setup with them, from the smallest step to the largest;
# nothing where there is nothing to save.

_Steps = Iterator[tuple[str, TrainingSetup]]
_Change = Callable[[TrainingSetup], _Steps]


def _share_prefixes(setup: TrainingSetup) -> _Steps:
    has_common_tokens = setup.completions_per_prompt > 1 or setup.examples is not None
    if has_common_tokens and not setup.prefix_sharing:
        yield "prefix_sharing: auto", replace(setup, prefix_sharing=True)


def _compute_reference_first(setup: TrainingSetup) -> _Steps:
    if setup.reference == "weights" and setup.stage != "grpo":
        changed = replace(setup, reference="nothing", reference_passes=0)
        yield "precompute_ref_log_probs: true", changed


def _keep_less(setup: TrainingSetup) -> _Steps:
    if not setup.model.activation_checkpointing:
        model = replace(setup.model, activation_checkpointing=True)
        yield "activation_checkpointing: true", replace(setup, model=model)


def _accumulate(setup: TrainingSetup) -> _Steps:
    total = setup.accumulation_steps * setup.batch_size
    for size in range(setup.batch_size - 1, 0, -1):
        if setup.batch_size % size == 0:
            steps = total // size
            # Online, completions are counted.
            rows = size * (setup.completions_per_prompt if setup.stage == "grpo" else 1)
            options = f"per_device_train_batch_size: {rows}, gradient_accumulation_steps: {steps}"
            yield options, replace(setup, batch_size=size, accumulation_steps=steps)


def _shrink_optimizer(setup: TrainingSetup) -> _Steps:
    if "8bit" not in setup.optimizer and setup.model.on_gpu:
        yield "optim: paged_adamw_8bit", replace(setup, optimizer="paged_adamw_8bit")


def _train_adapter(setup: TrainingSetup) -> _Steps:
    if setup.model.lora is None:
        model = replace(setup.model, lora=_get_default_lora())
        options = "use_peft: true, lora_target_modules: [all-linear]"
        yield options, replace(setup, model=model, reference="nothing")


def _quantise(setup: TrainingSetup) -> _Steps:
    if setup.model.lora is not None and not setup.model.load_in_4bit:
        model = replace(setup.model, load_in_4bit=True, dtype="bfloat16")
        options = "load_in_4bit: true, use_bnb_nested_quant: true, dtype: bfloat16"
        yield options, replace(setup, model=model, double_quantization=True)


def _shorten(setup: TrainingSetup) -> _Steps:
    half = (setup.prompt_tokens + setup.completion_tokens) // 2
    prompt = half - setup.completion_tokens
    # Online there is no `max_length`.
    if prompt < 1 or setup.stage == "grpo":
        return
    options = f"max_length: {half}"
    if setup.examples is not None:
        dropped = (setup.examples.lengths > half).mean()
        if dropped == 1.0:
            return
        # Without it, training would refuse to leave so many out.
        options += f", max_dropped_fraction: {math.ceil(100 * dropped) / 100:g}"
    yield (
        options,
        replace(
            setup,
            prompt_tokens=prompt,
            shared_tokens=min(setup.shared_tokens, prompt),
            linked_tokens=min(setup.linked_tokens, prompt),
        ),
    )


# What costs least comes first: nothing, time, another training, data.
_CHANGES: Final[tuple[tuple[_Change, ...], ...]] = (
    (_share_prefixes,),
    (_compute_reference_first,),
    (_keep_less, _accumulate),
    (_shrink_optimizer,),
    (_train_adapter,),
    (_quantise,),
    (_shorten,),
)


def _get_default_lora() -> Any:
    from peft import LoraConfig

    return LoraConfig(r=16, target_modules="all-linear", task_type="CAUSAL_LM")


# ------------------------------------------------------------------------------ in a training


def warn_of_memory(trainer: Any) -> MemoryEstimate | None:
    """Estimate a trainer's memory, and log a warning if the device has less.

    Call it once the trainer is built. The largest micro-batch of its next epoch is taken.

    Returns:
        The estimate; None where weights are sharded over devices, which is not estimated, and for
        a model that cannot be estimated, which is logged.
    """
    if trainer.is_deepspeed_enabled or trainer.is_fsdp_enabled:
        return None
    try:
        setup, config, teacher_config = get_trainer_setup(trainer)
        estimate = estimate_memory(setup, config, teacher_config=teacher_config)
        available = _get_available_bytes(trainer.args.device)
        if estimate.total_bytes > available:
            changes = find_changes(setup, config, available, teacher_config=teacher_config)
            _warn(estimate, available, changes)
    # Architectures are anybody's code, and it is run here in an unusual way. Training does not
    # depend on it.
    except Exception as error:
        logger.warning("The memory of this training could not be estimated: %r", error)
        return None
    return estimate


def _warn(estimate: MemoryEstimate, available: int, changes: list[MemoryChange]) -> None:
    texts = [f"`{c.options}` ({format_bytes(c.estimate.total_bytes)})" for c in changes]
    logger.warning(
        "Training is estimated to take %s at its largest moment, and %s are available: it may run "
        "out of memory. With less: %s.",
        format_bytes(estimate.total_bytes),
        format_bytes(available),
        " or ".join(texts) or "a smaller model",
    )


def _get_available_bytes(device: Any) -> int:
    """Memory of a device that no other program holds."""
    import psutil
    import torch

    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        return int(free + torch.cuda.memory_reserved(device))
    return int(psutil.virtual_memory().available + psutil.Process().memory_info().rss)
