"""`RunFolder`: an output folder that belongs to one run with one set of settings."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from sense_trl._files import sha256_of, write_text_atomically
from sense_trl.errors import InputError

_MARKER = "settings.json"
_TOOL = "sense_trl"


class RunFolder:
    """Remembers what a folder was made with, so that two runs are never mixed in it.

    Args:
        path: the folder; created by `claim`.
        kind: which job writes it, e.g. `"quickstart"`.
        settings: everything the results depend on, as JSON data. Files stand in it by content (see
            `fingerprint_*`), not by path.
    """

    def __init__(self, path: str | Path, kind: str, settings: dict[str, Any]) -> None:
        self.path = Path(path)
        self.kind = kind
        # Through JSON and back, so that tuples compare equal to what a file gives.
        self.settings: dict[str, Any] = json.loads(json.dumps(settings, default=str))

    def claim(self) -> None:
        """Make the folder this run's.

        Raises:
            InputError: it holds a run with other settings or kind, or files of something else.
        """
        try:
            self.path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise InputError(
                f"`output_dir` {str(self.path)!r} cannot be used as a folder ({error.strerror}). "
                "Choose another path."
            ) from error
        found = self._read_marker()
        others = [p.name for p in self.path.iterdir() if not p.name.startswith(_MARKER)]
        # A run that was refused or stopped before it wrote anything keeps nobody out.
        if found is None or (not others and not self._is_ours(found)):
            if others:
                raise InputError(
                    f"`output_dir` {str(self.path)!r} is not empty and holds no run of sense_trl "
                    f"(found {sorted(others)[0]!r}). Choose another folder."
                )
            marker = {"tool": _TOOL, "kind": self.kind, "settings": self.settings}
            write_text_atomically(self.path / _MARKER, json.dumps(marker, indent=1))
            return
        if found["kind"] != self.kind:
            raise InputError(
                f"`output_dir` {str(self.path)!r} holds a run of {found['kind']!r}, not of "
                f"{self.kind!r}. Choose another folder."
            )
        before = found["settings"]
        changed = [
            f"{name} was {before.get(name)!r}, now {self.settings.get(name)!r}"
            for name in sorted({*before, *self.settings})
            if before.get(name) != self.settings.get(name)
        ]
        if changed:
            raise InputError(
                f"`output_dir` {str(self.path)!r} holds a run with other settings: "
                f"{'; '.join(changed)}. Choose another folder, or delete this one (where the "
                "command has `--overwrite`, it does that)."
            )

    def _is_ours(self, marker: dict[str, Any]) -> bool:
        return bool(marker["kind"] == self.kind and marker["settings"] == self.settings)

    def clear(self, inputs: Iterable[str | Path]) -> None:
        """Delete an earlier run of the same kind.

        Args:
            inputs: files and folders this run reads; none may lie inside.

        Raises:
            InputError: the folder is not a run of this kind, or an input lies inside it.
        """
        if not self.path.exists():
            return
        found = self._read_marker()
        if found is None and not any(self.path.iterdir()):
            return
        if found is None or found["kind"] != self.kind:
            raise InputError(
                f"`overwrite` was given, but `output_dir` {str(self.path)!r} holds no run of "
                f"{self.kind!r}. Nothing was deleted; choose another folder."
            )
        inside = [p for p in inputs if self.path.resolve() in Path(p).resolve().parents]
        if inside:
            raise InputError(
                f"`overwrite` would delete {str(inside[0])!r}, which this run reads, with "
                f"`output_dir` {str(self.path)!r}. Nothing was deleted; choose another folder."
            )
        shutil.rmtree(self.path)

    def _read_marker(self) -> dict[str, Any] | None:
        """The marker if it is ours, else `None`."""
        try:
            data = json.loads((self.path / _MARKER).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return None
        return data if isinstance(data, dict) and data.get("tool") == _TOOL else None


def check_new_folder(output: str | Path) -> None:
    """Refuse a path that holds something.

    Raises:
        InputError: it is a file, or a folder that is not empty.
    """
    path = Path(output)
    if path.is_file() or (path.is_dir() and any(path.iterdir())):
        raise InputError(
            f"`output` {str(output)!r} exists and is not empty; give a new or empty folder."
        )


def fingerprint_file(path: str | Path) -> str:
    """A file's identity: the SHA-256 of its content."""
    return sha256_of(path)


def fingerprint_databases(paths: Iterable[Path]) -> str:
    """Identity of databases by name, size and time of change: they may be too large to read."""
    return _fingerprint((path.name, *_stat(path)) for path in sorted(paths))


def fingerprint_model(path: str | Path) -> str:
    """Identity of a model: a hub id is itself, a folder the state of its config and weights."""
    folder = Path(path)
    if not folder.is_dir():
        return str(path)
    files = [p for p in folder.iterdir() if p.suffix in (".safetensors", ".bin", ".json")]
    weights = [p for p in files if p.suffix != ".json" or p.name == "config.json"]
    return f"{folder.name} {_fingerprint((p.name, *_stat(p)) for p in sorted(weights))}"


def _stat(path: Path) -> tuple[int, int]:
    state = path.stat()
    return state.st_size, state.st_mtime_ns


def _fingerprint(items: Iterable[tuple[object, ...]]) -> str:
    return hashlib.sha256(json.dumps(list(items)).encode()).hexdigest()[:16]
