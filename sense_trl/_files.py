"""Writing and identifying files."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path


def write_text_atomically(path: str | Path, text: str) -> None:
    """Write `text` so that `path` holds either its old or its whole new content, never half."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_text(text, encoding="utf-8")
    os.replace(temporary, path)


def sha256_of(path: str | Path) -> str:
    """Hexadecimal SHA-256 of a file's content."""
    with Path(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
