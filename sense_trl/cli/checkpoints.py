"""`sense-trl merge` and `sense-trl prune`: checkpoints made of others."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final, Literal

from sense_trl.checkpoints.gguf import GGUF_HELP
from sense_trl.cli.parser import Command
from sense_trl.options import option, option_of


@dataclass
class MergeOptions:
    """Options of `merge`: the adapter, its base and the new folder."""

    adapter: str = option("Folder with adapter_config.json.", positional=True)
    output: str = option("New folder for the checkpoint.")
    base: str | None = option(
        "Folder or hub id of the base; by default the adapter's own.", default=None
    )
    dtype: Literal["bfloat16", "float16", "float32"] = option(
        "Type of the merged weights.", default="bfloat16"
    )
    evaluation: str | None = option(
        "evaluation.json, whose tables go into the model card.", default=None
    )
    training_data: str | None = option("A sentence about it, for the model card.", default=None)


def merge(options: MergeOptions, console: Any) -> None:
    """Run `sense-trl merge`."""
    from sense_trl.checkpoints.merge import merge_adapter

    with console.status("Merging"):
        check = merge_adapter(
            options.adapter,
            output=options.output,
            base=options.base,
            dtype=options.dtype,
            evaluation=options.evaluation,
            training_data=options.training_data,
        )
    print(  # noqa: T201 - the result of the command
        f"{options.output}: outputs differ from base and adapter by {check.distance:.4f} "
        f"(rounding explains {check.tolerance}); the adapter changes them by "
        f"{check.adapter_distance:.4f}"
    )
    if check.rounds_adapter_away:
        console.print(
            f"warning: rounding to {options.dtype} changes the outputs about as much as the "
            "adapter does. Merge with --dtype float32 (or float16) to keep what was learned.",
            style="yellow",
            markup=False,
            soft_wrap=True,
        )


@dataclass
class PruneOptions:
    """Options of `prune`: the model, the layers to keep and the new folder."""

    model: str = option("Folder or hub id; an adapter has to be merged first.", positional=True)
    num_layers: int = option("Layers to keep.")
    output: str = option_of(MergeOptions, "output")


def prune(options: PruneOptions, console: Any) -> None:
    """Run `sense-trl prune`."""
    from sense_trl.checkpoints.pruning import prune_layers
    from sense_trl.generation.transformers_generator import load_model, load_tokenizer
    from sense_trl.run_folder import check_new_folder

    output = options.output
    check_new_folder(output)
    with console.status("Pruning"):
        tokenizer = load_tokenizer(options.model)
        model = load_model(options.model, dtype="auto")
        student = prune_layers(model, options.num_layers)
        student.save_pretrained(output)
        tokenizer.save_pretrained(output)
    print(  # noqa: T201 - the result of the command
        f"{output}: {student.config.num_hidden_layers} of {model.config.num_hidden_layers} layers, "
        f"{student.num_parameters() / 1e6:.0f} of {model.num_parameters() / 1e6:.0f} million "
        "parameters"
    )


MERGE: Final = Command(
    "merge",
    "merge an adapter into its 16-bit base, with a model card",
    merge,
    (MergeOptions,),
    description="Add the adapter that a training wrote to its base in 16 bits (also if it was "
    "trained on 4-bit weights), write the checkpoint with tokenizer and model card, read it back, "
    "and compare its outputs with those of base and adapter. The folder appears only if they are "
    "the same up to rounding.",
    epilog=GGUF_HELP.format(folder="OUTPUT"),
)
PRUNE: Final = Command(
    "prune",
    "make a smaller student of a model, by leaving out layers in its middle",
    prune,
    (PruneOptions,),
    description="Write a copy of a model without a block of layers in its middle, with the "
    "tokenizer. It has to be trained before it is of use (sense-trl kd, with the model as the "
    "teacher); the more layers are left out, the longer. For families without a small sibling.",
)
