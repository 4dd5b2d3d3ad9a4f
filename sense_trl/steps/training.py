"""The training stages, resumable: fine-tuning, preference training and distillation."""

from __future__ import annotations

import json
import logging
import shutil
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sense_trl._files import write_text_atomically
from sense_trl.chat_tokens import apply_chat_template
from sense_trl.checkpoints.merge import MergeCheck, merge_in_place
from sense_trl.checkpoints.model_card import format_model_card
from sense_trl.checkpoints.starting_model import StartingModel, load_unquantized_model
from sense_trl.errors import InputError, ModelError
from sense_trl.memory.check import warn_of_memory
from sense_trl.prompts import PromptStyle
from sense_trl.steps import work
from sense_trl.steps.cpu import multiplies_bfloat16
from sense_trl.steps.prompting import get_save_callback

if TYPE_CHECKING:
    import datasets
    from rich.console import Console

    from sense_trl.trainers import KIDConfig, SenseDPOConfig, SenseGRPOConfig, SenseSFTConfig

logger = logging.getLogger(__name__)


# Says which day a chat template was told that writes the date, for a run that is resumed.
_TEMPLATE_DATE = "template_date.txt"


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


def get_unattended_options(
    output_dir: str | Path,
    *,
    num_rows: int,
    num_epochs: float,
    batch_size: int,
    group_by_columns: Sequence[str],
    seed: int,
) -> dict[str, Any]:
    """Options of a training whose length and machine are all that is known of it.

    Args:
        output_dir: for checkpoints and the model.
        num_rows: examples.
        num_epochs: how often each is seen.
        batch_size: examples per step.
        group_by_columns: of the dataset; what a batch shares is computed once.
        seed: of everything random.
    """
    import torch

    steps = max(1, round(num_epochs * num_rows / batch_size))
    return {
        "output_dir": str(output_dir),
        "max_steps": steps,
        "num_train_epochs": num_epochs,
        "per_device_train_batch_size": batch_size,
        "group_by_columns": list(group_by_columns),
        "use_cpu": not torch.cuda.is_available(),
        "bf16": multiplies_bfloat16(),
        "gradient_checkpointing": torch.cuda.is_available(),
        "lr_scheduler_type": "cosine",
        "warmup_steps": max(1, steps // 10),
        "logging_steps": max(1, steps // 20),
        # The last step is saved anyway: twice on the way, not again just before the end.
        "save_steps": steps // 3 + 1,
        "save_total_limit": 1,
        "seed": seed,
        "report_to": "none",
        "disable_tqdm": True,
    }


def train_unattended(
    path: str | Path,
    rows: datasets.Dataset,
    config: Any,
    style: PromptStyle | None,
    console: Console,
    title: str,
    *,
    lora_r: int | None,
) -> None:
    """Train a model in 32 bits or by an adapter into `config.output_dir`, unless that has ended.

    Args:
        path: of the model, a folder or hub id.
        rows, config, style: as `train_model` takes them; see `get_unattended_options`.
        console: where a bar called `title` is shown.
        title: name of the bar.
        lora_r: see `load_unquantized_model`.
    """

    def run(callback: Any) -> dict[str, Any]:
        start = load_unquantized_model(path, use_cpu=config.use_cpu, lora_r=lora_r)
        return train_model(start, rows, config, style=style, callbacks=[callback])

    folder = Path(config.output_dir)
    work.train(folder, run, config.max_steps, console, title, keeps_checkpoints=False)


def train_model(
    start: StartingModel,
    dataset: datasets.Dataset,
    config: SenseSFTConfig | SenseDPOConfig | KIDConfig | SenseGRPOConfig,
    *,
    style: PromptStyle | None = None,
    callbacks: Sequence[Any] = (),
    **options: Any,
) -> dict[str, Any]:
    """Train with the trainer that `config` is of; resumes by itself.

    What the next stage starts from goes to `config.output_dir`: see `_save`.

    Args:
        start: the model. Preference training takes it as it is for its reference: an adapter that
            is trained further is its own reference.
        dataset: rows of the layout that the trainer asks for.
        config: decides about the trainer, too: `KIDTrainer` for a `KIDConfig`, and so on.
        style: that of the prompts of `dataset`.
        callbacks: further ones of the trainer.
        options: further arguments of the trainer, such as `reward_funcs`.

    Returns:
        The trainer's metrics.
    """
    from sense_trl import trainers
    from sense_trl.trainers.compat.saving import check_whole_models_can_be_saved

    trainer_class = getattr(trainers, type(config).__name__.replace("Config", "Trainer"))
    noted = Path(config.output_dir) / _TEMPLATE_DATE
    if config.template_date is None and noted.is_file():
        config.template_date = noted.read_text(encoding="utf-8").strip()
    if style is not None:
        callbacks = [*callbacks, get_save_callback(style)]
    # For models whose prefixes cannot be shared; the others score nothing else anyway.
    trainers.score_trained_positions_only()
    try:
        trainer = trainer_class(
            model=start.model,
            args=config,
            train_dataset=dataset,
            processing_class=start.tokenizer,
            peft_config=start.peft_config,
            callbacks=list(callbacks),
            **options,
        )
    # How transformers, TRL and peft refuse options, e.g. `eval_strategy` without such data.
    except ValueError as error:
        if isinstance(error, InputError):
            raise
        raise InputError(
            f"{trainer_class.__name__} refuses these options: {error} Mend them in the YAML file."
        ) from error
    if config.template_date is not None and trainer.accelerator.is_main_process:
        write_text_atomically(noted, config.template_date)
    check_whole_models_can_be_saved(trainer)
    warn_of_memory(trainer)
    metrics = _train(trainer, config.output_dir)
    check = _save(trainer, start, Path(config.output_dir), style)
    if check is not None:
        metrics["merge_distance"] = check.distance
        metrics["adapter_distance"] = check.adapter_distance
    return metrics


def _save(
    trainer: Any, start: StartingModel, output: Path, style: PromptStyle | None
) -> MergeCheck | None:
    """Write what the next stage starts from, with the tokenizer, from the main process alone.

    The style of the prompts, where it is known, and a linker that was trained along stand beside it
    and beside its adapter.

    An adapter on 16 or 32 bits is merged, so that `output` is a plain checkpoint; the adapter alone
    is in `output / "adapter"`, with the tokenizer as well, which starting from it needs. An adapter
    on quantised weights is written as it is: merged there it would be rounded to 4 bits, and
    belongs onto the base in 16. So is one whose base is sharded over processes (FSDP, DeepSpeed),
    where no process could merge it.

    Returns:
        How the merged model differs from base and adapter; None where nothing was merged.
    """
    check = None
    if trainer.is_fsdp_enabled or trainer.is_deepspeed_enabled:
        trainer.save_model(str(output))
        if trainer.accelerator.is_main_process:
            _check_saved(output)
    elif trainer.accelerator.is_main_process:
        model = trainer.accelerator.unwrap_model(trainer.model)
        if start.trains_adapter:
            # Not the frozen copy that TRL keeps as the reference.
            target = output if start.is_quantized else output / "adapter"
            model.save_pretrained(target, selected_adapters=["default"])
            start.tokenizer.save_pretrained(target)
        if not start.is_quantized:
            if start.trains_adapter:
                model, check = merge_in_place(
                    model, _get_token_ids(trainer.train_dataset, start.tokenizer)
                )
                if check.is_notable:
                    _warn_of_rounding(check, model, output)
            model.save_pretrained(output)
            _write_card(trainer, start, output)
        start.tokenizer.save_pretrained(output)
    # Neither is in what `save_pretrained` writes.
    beside = [part for part in (style, getattr(trainer, "linking", None)) if part is not None]
    if trainer.accelerator.is_main_process:
        adapters = [output / "adapter"] if (output / "adapter").is_dir() else []
        for folder in (output, *adapters):
            for part in beside:
                part.save(folder)
    trainer.accelerator.wait_for_everyone()
    return check


def _write_card(trainer: Any, start: StartingModel, output: Path) -> None:
    """A card in place of TRL's, which asks a text-to-SQL model about time machines."""
    base = start.model.config.name_or_path
    paper = trainer._paper.get("id")
    source = f" ([arXiv {paper}](https://arxiv.org/abs/{paper}))" if paper else ""
    summary = f"`{base}`, trained with {trainer._name}{source}."
    card = format_model_card(output.name, base, summary, run_folders=(output, output.parent))
    write_text_atomically(output / "README.md", card)


def _get_token_ids(dataset: Any, tokenizer: Any) -> Iterator[list[int]]:
    """The token ids of prompts with their (chosen, or gold) answers."""
    for row in dataset:
        if "input_ids" in row:
            yield row["input_ids"]
        elif "prompt_ids" in row:
            yield row["prompt_ids"] + row["chosen_ids"]
        else:
            answer = {"role": "assistant", "content": row["gold_sql"]}
            yield apply_chat_template(
                tokenizer, [*row["prompt"], answer], tokenize=True, return_dict=True
            )["input_ids"]


def _warn_of_rounding(check: MergeCheck, model: Any, output: Path) -> None:
    share = check.distance / max(check.adapter_distance, 1e-9)
    logger.warning(
        "%s is the adapter merged into weights of %s, and rounding them changes its outputs by "
        "%.0f %% of what the adapter does (total variation %.4f of %.4f). Nothing is rounded in "
        "%s: train further from there, evaluate it with `generation_dtype: float32`, or merge it "
        "with `sense-trl merge --dtype float32`.",
        output,
        str(model.dtype).removeprefix("torch."),
        100 * share,
        check.distance,
        check.adapter_distance,
        output / "adapter",
    )


def _check_saved(output: Path) -> None:
    """Make sure that a model of processes was written, which may fail without a word.

    Raises:
        ModelError: there are no weights.
    """
    names = ("*.safetensors", "pytorch_model*.bin", "adapter_model.bin")
    if not any(path.stat().st_size for name in names for path in output.glob(name)):
        raise ModelError(
            f"The training is finished, but no weights were written to {str(output)!r}: FSDP or "
            "DeepSpeed left them in shards. Its last checkpoint is there; have the launcher's "
            "configuration gather the weights, and run the same command again."
        )


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
    if hasattr(trainer.args, "beta"):
        # With it rewards are log-ratios.
        metrics["beta"] = trainer.args.beta
    return metrics
