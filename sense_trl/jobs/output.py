"""The output folder of a job: it belongs to one run with one set of settings."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from sense_trl._version import __version__
from sense_trl.run_folder import (
    RunFolder,
    fingerprint_databases,
    fingerprint_file,
    fingerprint_model,
)
from sense_trl.steps.prompting import replace_prompt_options
from sense_trl.task import TextToSQLTask

_FILES = ("questions", "dev_questions", "tables_json")


def claim_output(
    kind: str,
    config: Any,
    model: str | Path,
    tasks: Sequence[TextToSQLTask],
    *,
    not_decisive: Iterable[str] = (),
) -> dict[str, Any]:
    """Make the output folder of a job this run's, or refuse one that holds something else.

    Args:
        kind: of the job.
        config: its settings, a dataclass with `output_dir` and `overwrite`.
        model: that it starts from.
        tasks: what it reads; the first one writes the prompts.
        not_decisive: fields of `config` that the results do not depend on.

    Returns:
        The settings that the results depend on, files and databases by content.

    Raises:
        InputError: see `RunFolder`.
    """
    settings = replace_prompt_options(asdict(config), tasks[0].writer.style)
    for name in ("output_dir", "overwrite", *not_decisive):
        del settings[name]
    databases = {task.catalog.path(db_id) for task in tasks for db_id in task.schemas}
    files = {name: settings[name] for name in _FILES if settings.get(name)}
    settings |= {
        "version": __version__,
        "model": fingerprint_model(model),
        "database": fingerprint_databases(databases),
        "questions": "embedded",
        **{name: fingerprint_file(file) for name, file in files.items()},
    }
    folder = RunFolder(config.output_dir, kind, settings)
    if config.overwrite:
        # A server is in no folder.
        places = [place for place in databases if isinstance(place, Path)]
        folder.clear([model, *places, *files.values()])
    folder.claim()
    return folder.settings
