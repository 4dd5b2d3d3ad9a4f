"""The two training stages, resumable: supervised fine-tuning and preference training."""

from __future__ import annotations

import json
import shutil
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sense_trl.pipeline.cpu import multiplies_bfloat16

if TYPE_CHECKING:
    import datasets
    from peft import LoraConfig

    from sense_trl.trainers import SenseDPOConfig, SenseSFTConfig


def last_complete_checkpoint(output_dir: str | Path) -> str | None:
    """The newest checkpoint that was written to its end; damaged ones are deleted.

    `transformers` writes `trainer_state.json` last, so a folder where it is missing or unreadable
    was interrupted, and resuming from it would fail.
    """
    folders = sorted(
        (p for p in Path(output_dir).glob("checkpoint-*") if p.name[11:].isdigit()),
        key=lambda p: int(p.name[11:]),
    )
    while folders:
        newest = folders.pop()
        try:
            json.loads((newest / "trainer_state.json").read_text(encoding="utf-8"))
            return str(newest)
        except (OSError, ValueError):
            shutil.rmtree(newest)
    return None


def train_sft(
    model: str | Path,
    dataset: datasets.Dataset,
    config: SenseSFTConfig,
    *,
    peft_config: LoraConfig | None = None,
    callbacks: Sequence[Any] = (),
) -> dict[str, Any]:
    """Fine-tune on `{prompt, completion}` rows with `SenseSFTTrainer`; resumes by itself.

    The final model and tokenizer go to `config.output_dir`. With `peft_config` the adapter is
    merged into the model before saving, so that the next stage starts from a plain checkpoint.

    Returns:
        The trainer's metrics.
    """
    from sense_trl.generation.transformers_generator import load_model, load_tokenizer
    from sense_trl.trainers import SenseSFTTrainer, score_trained_positions_only

    # For models whose prefixes cannot be shared; the others score nothing else anyway.
    score_trained_positions_only()
    tokenizer = load_tokenizer(model)
    trainer = SenseSFTTrainer(
        model=load_model(model, dtype="float32" if peft_config is None else "auto"),
        args=config,
        train_dataset=dataset,
        processing_class=tokenizer,
        peft_config=peft_config,
        callbacks=list(callbacks),
    )
    metrics = _train(trainer, config.output_dir)
    _save(trainer, tokenizer, Path(config.output_dir), has_adapter=peft_config is not None)
    return metrics


def train_dpo(
    model: str | Path,
    dataset: datasets.Dataset,
    config: SenseDPOConfig,
    *,
    peft_config: LoraConfig | None = None,
    callbacks: Sequence[Any] = (),
    merge: bool = True,
) -> dict[str, Any]:
    """Train on preference pairs with `SenseDPOTrainer`; resumes by itself.

    The adapter goes to `config.output_dir/adapter`. With `merge` the whole model, adapter merged,
    goes to `config.output_dir`; the base must then be held in 16 or 32 bits.

    Returns:
        The trainer's metrics.
    """
    from sense_trl.generation.transformers_generator import load_model, load_tokenizer
    from sense_trl.trainers import SenseDPOTrainer, score_trained_positions_only

    score_trained_positions_only()
    tokenizer = load_tokenizer(model)
    trainer = SenseDPOTrainer(
        model=load_model(model, dtype="auto"),
        args=config,
        train_dataset=dataset,
        processing_class=tokenizer,
        peft_config=peft_config,
        callbacks=list(callbacks),
    )
    metrics = _train(trainer, config.output_dir)
    output = Path(config.output_dir)
    if peft_config is not None and trainer.accelerator.is_main_process:
        trainer.model.save_pretrained(output / "adapter", selected_adapters=["default"])
    if merge:
        _save(trainer, tokenizer, output, has_adapter=peft_config is not None)
    return metrics


def _save(trainer: Any, tokenizer: Any, output: Path, *, has_adapter: bool) -> None:
    """Write the whole model, adapter merged, and the tokenizer, from the main process alone.

    Where the weights are sharded over processes (FSDP, DeepSpeed) no process could merge or write
    them; the trainer then saves what it holds, an adapter as an adapter.
    """
    if trainer.is_fsdp_enabled or trainer.is_deepspeed_enabled:
        trainer.save_model(str(output))
    elif trainer.accelerator.is_main_process:
        model = trainer.accelerator.unwrap_model(trainer.model)
        model = model.merge_and_unload() if has_adapter else model
        model.save_pretrained(output)
        tokenizer.save_pretrained(output)
    trainer.accelerator.wait_for_everyone()


def _train(trainer: Any, output_dir: str) -> dict[str, Any]:
    from transformers import PrinterCallback

    if trainer.args.bf16 and trainer.args.device.type == "cpu" and not multiplies_bfloat16():
        warnings.warn(
            "`bf16` is true, but this CPU has no instructions for bfloat16 and will take several "
            "times as long as with `bf16: false`.",
            stacklevel=3,
        )
    # It prints every log as a dict; the stage's progress bar shows the loss.
    trainer.remove_callback(PrinterCallback)
    with trainer.accelerator.main_process_first():
        checkpoint = last_complete_checkpoint(output_dir)
    result = trainer.train(resume_from_checkpoint=checkpoint)
    metrics = dict(result.metrics)
    metrics["log_history"] = trainer.state.log_history
    return metrics
