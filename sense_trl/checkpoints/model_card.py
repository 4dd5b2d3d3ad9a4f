"""`format_model_card`: the README.md of a checkpoint, with base, training and evaluation."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from sense_trl._files import read_json
from sense_trl._version import __version__
from sense_trl.checkpoints.gguf import GGUF_HELP
from sense_trl.evaluation.markdown import format_markdown
from sense_trl.evaluation.records import EvaluationReport


def format_model_card(
    name: str,
    base: str,
    summary: str,
    *,
    training_data: str | None = None,
    run_folders: Iterable[Path] = (),
    evaluation: EvaluationReport | None = None,
) -> str:
    """Write a model card with the metadata that the hub reads.

    Args:
        name: heading, and the folder in the commands of the card.
        base: folder or hub id of the model that was trained.
        summary: what the checkpoint is.
        training_data: a sentence about it.
        run_folders: where to look for the settings and metrics that a stage left; the first folder
            that has them counts.
        evaluation: whose tables to show.
    """
    metadata = {
        # A local folder is no name that the hub knows.
        **({} if Path(base).is_dir() else {"base_model": base}),
        "library_name": "transformers",
        "pipeline_tag": "text-generation",
        "tags": ["text-to-sql", "sense-trl"],
    }
    lines = [f"{key}: {json.dumps(value)}" for key, value in metadata.items()]
    parts = [
        "\n".join(["---", *lines, "---"]),
        f"# {name}",
        f"A text-to-SQL model, written by sense_trl {__version__}: {summary}",
    ]
    training = [] if training_data is None else [training_data]
    training += _format_run(run_folders)
    if training:
        parts += ["## Training", *training]
    if evaluation is not None:
        tables = format_markdown([evaluation], title="Evaluation")
        # One level below the card's own heading.
        parts.append("\n".join(f"#{x}" if x.startswith("#") else x for x in tables.splitlines()))
    parts += ["## GGUF", GGUF_HELP.format(folder=name)]
    return "\n\n".join(part.strip() for part in parts) + "\n"


def _format_run(folders: Iterable[Path]) -> list[str]:
    """Settings and metrics of the stage that wrote one of the folders, as a table."""
    for folder in folders:
        run = _read_json(folder / "settings.json")
        if run.get("tool") != "sense_trl":
            continue
        metrics = _read_json(folder / "metrics.json")
        metrics.pop("log_history", None)
        values = {"stage": run["kind"], **run["settings"], **metrics}
        rows = [f"| {key} | {value} |" for key, value in values.items() if value is not None]
        return ["\n".join(["| setting or metric | value |", "|---|---|", *rows])]
    return []


def _read_json(file: Path) -> dict[str, Any]:
    """The object in a file; empty where there is none."""
    if not file.is_file():
        return {}
    return read_json(file, "the record of a run")
