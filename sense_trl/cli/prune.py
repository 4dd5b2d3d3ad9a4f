"""`sense-trl prune`: a small student from a large model, by leaving layers out."""

from __future__ import annotations

import argparse
from typing import Any

__all__ = ["add_parser", "run"]


def add_parser(commands: Any) -> None:
    """Add the command and its flags; imports nothing heavy."""
    parser: argparse.ArgumentParser = commands.add_parser(
        "prune",
        help="make a smaller student of a model, by leaving out layers in its middle",
        description="Write a copy of a model without a block of layers in its middle, with the "
        "tokenizer. It has to be trained before it is of use (sense-trl kd, with the model as the "
        "teacher); the more layers are left out, the longer. For families without a small sibling.",
    )
    parser.add_argument("model", help="folder or hub id; an adapter has to be merged first")
    parser.add_argument("--num-layers", type=int, required=True, help="layers to keep")
    parser.add_argument("--output", required=True, help="new folder for the student")


def run(arguments: dict[str, Any], console: Any) -> int:
    """Run the command.

    Returns:
        0 when the student is written.

    Raises:
        InputError: the folder holds something, or the model cannot be pruned so (exit code 2).
    """
    from sense_trl.checkpoints.pruning import prune_layers
    from sense_trl.generation.transformers_generator import load_model, load_tokenizer
    from sense_trl.run_folder import check_new_folder

    output = arguments["output"]
    check_new_folder(output)
    with console.status("Pruning"):
        tokenizer = load_tokenizer(arguments["model"])
        model = load_model(arguments["model"], dtype="auto")
        student = prune_layers(model, arguments["num_layers"])
        student.save_pretrained(output)
        tokenizer.save_pretrained(output)
    print(  # noqa: T201 - the result of the command
        f"{output}: {student.config.num_hidden_layers} of {model.config.num_hidden_layers} layers, "
        f"{student.num_parameters() / 1e6:.0f} of {model.num_parameters() / 1e6:.0f} million "
        "parameters"
    )
    return 0
