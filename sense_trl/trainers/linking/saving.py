"""How the head of a linker stands in a folder."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Final

from safetensors.torch import save_file

from sense_trl._files import read_json, replacing, write_text_atomically
from sense_trl.trainers.linking.head import LinkerHead

LINKER_FILE: Final = "sense_linker.json"
WEIGHTS_FILE: Final = "sense_linker.safetensors"
TEACHINGS_FILE: Final = "sense_teachings.safetensors"
FORMAT: Final = 2


def save_head(
    folder: str | Path,
    head: LinkerHead,
    *,
    base: str,
    layer: int,
    max_block_chars: int,
    readout: str = "once",
    weights: str | None = None,
) -> None:
    """Write a head into a folder; the model is not copied.

    Args:
        folder: where it goes.
        head: what is written.
        base: folder or hub id of the model whose states it reads; `.` is the folder itself.
        layer: whose states.
        max_block_chars: of the blocks in which a schema is read.
        readout: where items are read.
        weights: identity of the model; not checked if not given.

    Raises:
        OutputError: it cannot be written.
    """
    folder = Path(folder)
    # Those of a linker that was here before are not what this one says.
    (folder / TEACHINGS_FILE).unlink(missing_ok=True)
    with replacing(folder / WEIGHTS_FILE) as file:
        save_file({k: v.contiguous() for k, v in head.state_dict().items()}, file)
    record = {
        "format": FORMAT,
        "base": base,
        "layer": layer,
        "rank": head.rank,
        "max_block_chars": max_block_chars,
        "readout": readout,
        "weights": weights,
    }
    write_text_atomically(folder / LINKER_FILE, json.dumps(record, indent=2) + "\n")


def copy_head(source: str | Path, target: str | Path) -> None:
    """Copy the head of a folder, if it has one that reads the model of its own folder."""
    file = Path(source) / LINKER_FILE
    if file.is_file() and read_json(file, "a linker", "base")["base"] == ".":
        for name in (WEIGHTS_FILE, LINKER_FILE):
            shutil.copyfile(Path(source) / name, Path(target) / name)
