"""`sense-trl merge`: an adapter and its base as one checkpoint, with a model card."""

from __future__ import annotations

import argparse
from typing import Any

from sense_trl.checkpoints.gguf import GGUF_HELP

__all__ = ["add_parser", "run"]


def add_parser(commands: Any) -> None:
    """Add the command and its flags; imports nothing heavy."""
    parser: argparse.ArgumentParser = commands.add_parser(
        "merge",
        help="merge an adapter into its 16-bit base, with a model card",
        description="Add the adapter that a training wrote to its base in 16 bits (also if it was "
        "trained on 4-bit weights), write the checkpoint with tokenizer and model card, read it "
        "back, and compare its outputs with those of base and adapter. The folder appears only if "
        "they are the same up to rounding.",
        epilog=GGUF_HELP.format(folder="OUTPUT"),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("adapter", help="folder with adapter_config.json")
    parser.add_argument("--output", required=True, help="new folder for the merged checkpoint")
    parser.add_argument(
        "--base", default=None, help="folder or hub id of the base; by default the adapter's own"
    )
    parser.add_argument(
        "--dtype",
        choices=("bfloat16", "float16", "float32"),
        default="bfloat16",
        help="type of the merged weights (default: bfloat16)",
    )
    parser.add_argument(
        "--evaluation", default=None, help="evaluation.json, whose tables go into the model card"
    )
    parser.add_argument(
        "--training-data", default=None, help="a sentence about it, for the model card"
    )


def run(arguments: dict[str, Any], console: Any) -> int:
    """Run the command.

    Returns:
        0 when the merged checkpoint is in place.

    Raises:
        SenseTRLError: unusable input, or a merged model with other outputs (exit code 2).
    """
    from sense_trl.checkpoints.merge import merge_adapter

    with console.status("Merging"):
        check = merge_adapter(**arguments)
    print(  # noqa: T201 - the result of the command
        f"{arguments['output']}: outputs differ from base and adapter by {check.distance:.4f} "
        f"(rounding explains {check.tolerance}); the adapter changes them by "
        f"{check.adapter_distance:.4f}"
    )
    if check.rounds_adapter_away:
        console.print(
            f"warning: rounding to {arguments['dtype']} changes the outputs about as much as the "
            "adapter does. Merge with --dtype float32 (or float16) to keep what was learned.",
            style="yellow",
            markup=False,
            soft_wrap=True,
        )
    return 0
