"""`RunFolder`: an output folder that belongs to one run with one set of settings."""

from __future__ import annotations

import hashlib
import json
import logging
import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from sense_trl._files import is_cut_short, sampled_sha256_of, sha256_of, write_text_atomically
from sense_trl.errors import InputError

logger = logging.getLogger(__name__)

_MARKER = "settings.json"
_TOOL = "sense_trl"


class RunFolder:
    """Remembers what a folder was made with, so that two runs are never mixed in it.

    Args:
        path: the folder; created by `claim`.
        kind: which job writes it, e.g. `"quickstart"`.
        settings: everything the results depend on, as JSON data. Files stand in it by content (see
            `fingerprint_*`), not by path.
        facts: what is written down beside them and may be another the next time, such as the
            address of a server: the last one is kept.
    """

    def __init__(
        self,
        path: str | Path,
        kind: str,
        settings: dict[str, Any],
        *,
        facts: Mapping[str, Any] | None = None,
    ) -> None:
        self.path = Path(path)
        self.kind = kind
        # Through JSON and back, so that tuples compare equal to what a file gives.
        self.settings: dict[str, Any] = json.loads(json.dumps(settings, default=str))
        self.facts: dict[str, Any] = json.loads(json.dumps(facts or {}, default=str))

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
        others = sorted(p.name for p in self.path.iterdir() if not p.name.startswith(_MARKER))
        marker = {"tool": _TOOL, "kind": self.kind, "settings": self.settings, "facts": self.facts}
        # A run that was refused or stopped before it wrote anything keeps nobody out.
        if found is None or (not others and not self._is_ours(found)):
            if others and not is_cut_short(self.path / _MARKER, json.dumps(marker, indent=1)):
                raise InputError(
                    f"`output_dir` {str(self.path)!r} is not empty and holds no run of sense_trl "
                    f"(found {others[0]!r}). Choose another folder."
                )
            if others:
                logger.warning(
                    "%s is cut short, so a run in that folder was interrupted. What it finished "
                    "(%s) is taken for this run's; choose another folder if its settings or its "
                    "input were others.",
                    self.path / _MARKER,
                    ", ".join(others),
                )
                marker["adopted"] = others
            self._write_marker(marker)
            return
        if found["kind"] != self.kind:
            raise InputError(
                f"`output_dir` {str(self.path)!r} holds a run of {found['kind']!r}, not of "
                f"{self.kind!r}. Choose another folder."
            )
        before = found["settings"]
        changed = [
            f"{name} was {before.get(name)!r}, now {self.settings.get(name)!r}"
            for name in sorted({*before, *self.settings} - {*self.facts})
            if before.get(name) != self.settings.get(name)
        ]
        if changed:
            raise InputError(
                f"`output_dir` {str(self.path)!r} holds a run with other settings: "
                f"{'; '.join(changed)}. Choose another folder, or delete this one (where the "
                "command has `--overwrite`, it does that)."
            )
        if found.get("facts", {}) != self.facts:
            self._write_marker({**found, "facts": self.facts})

    def _write_marker(self, marker: dict[str, Any]) -> None:
        write_text_atomically(self.path / _MARKER, json.dumps(marker, indent=1))

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
        if "adopted" in found:
            raise InputError(
                f"`overwrite` was given, but `output_dir` {str(self.path)!r} held files before the "
                f"run that is there now ({', '.join(found['adopted'])}), and whether another run "
                "made them is not known. Nothing was deleted; delete it yourself, or choose "
                "another folder."
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
            data = json.loads((self.path / _MARKER).read_bytes())
        except (OSError, ValueError, RecursionError):
            return None
        is_marker = (
            isinstance(data, dict)
            and data.get("tool") == _TOOL
            and isinstance(data.get("kind"), str)
            and isinstance(data.get("settings"), dict)
        )
        return data if is_marker else None


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


def fingerprint_folder(path: str | Path, suffixes: Iterable[str]) -> str:
    """Identity of a file, or of those of a folder that have one of some suffixes, by content."""
    place = Path(path)
    files = [place] if place.is_file() else sorted(p for p in place.rglob("*") if p.is_file())
    kept = [file for file in files if file.suffix.lower() in suffixes]
    return _fingerprint((str(file.relative_to(place)), sha256_of(file)) for file in kept)


def fingerprint_databases(paths: Iterable[Any]) -> str:
    """Identity of databases by name and content; see `sampled_sha256_of` for large ones.

    A database on a server is its URL: that its content stays while a run lasts is taken for
    granted.
    """
    return _fingerprint(
        (path.name, sampled_sha256_of(path)) if isinstance(path, Path) else (str(path),)
        for path in sorted(paths)
    )


def fingerprint_model(path: str | Path) -> str:
    """Identity of a model: a hub id is itself, a folder its config and weights by content."""
    folder = Path(path)
    if not folder.is_dir():
        return str(path)
    files = [p for p in folder.iterdir() if p.suffix in (".safetensors", ".bin", ".json")]
    weights = [p for p in files if p.suffix != ".json" or p.name == "config.json"]
    return f"{folder.name} {_fingerprint((p.name, sampled_sha256_of(p)) for p in sorted(weights))}"


def _fingerprint(items: Iterable[tuple[object, ...]]) -> str:
    return hashlib.sha256(json.dumps(list(items)).encode()).hexdigest()[:16]
