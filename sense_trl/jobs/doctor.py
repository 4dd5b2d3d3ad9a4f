"""`run_checks`: whether an installation can do its work, one finding per check."""

from __future__ import annotations

import importlib.util
import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from enum import StrEnum
from importlib import metadata
from pathlib import Path
from typing import Final

from sense_trl._version import __version__
from sense_trl.errors import InputError

TESTED_VERSIONS: Final = {
    "accelerate": "1.15.0",
    "bitsandbytes": "0.50.2",
    "datasets": "5.2.0",
    "duckdb": "2.0.0",
    "peft": "0.21.2",
    "psycopg": "3.3.9",
    "ray": "2.60.0",
    "sqlglot": "30.30.0",
    "torch": "2.13.0",
    "transformers": "5.23.0",
    "trl": "1.16.0",
}
"""The versions that this version of sense_trl was tested with."""

_MIN_FREE_BYTES: Final = 10 * 2**30
_TRAINING_TIMEOUT_S: Final = 600


class FindingStatus(StrEnum):
    """The weight of a finding: fine, worth knowing, or an error."""

    OK = "ok"
    NOTE = "note"
    ERROR = "error"

    @property
    def is_failure(self) -> bool:
        """Whether something that is needed does not work."""
        return self is FindingStatus.ERROR


@dataclass(frozen=True, slots=True)
class Finding:
    """The result of a check.

    Attributes:
        name: what was looked at.
        status: `note` for what works with a limitation that the text explains.
        text: what was found, and what to do about it.
        sql: statements that mend it, "" where there are none.
    """

    name: str
    status: FindingStatus
    text: str
    sql: str = ""


def run_checks(
    *, training: bool = True, on_check: Callable[[str], None] = lambda name: None
) -> Iterator[Finding]:
    """Check an installation; yields findings as they come.

    Args:
        training: whether to train one step on a tiny model, which takes some 10 seconds.
        on_check: told the name of each check before it starts.
    """
    checks: dict[str, Callable[[], Iterator[Finding]]] = {
        "system": _check_system,
        "packages": _check_packages,
        "devices": _check_devices,
        "bfloat16": _check_bfloat16,
        "bitsandbytes": _check_bitsandbytes,
        "folders": _check_folders,
        "sandbox": _check_sandbox,
    }
    if training:
        checks["training"] = _check_training
    for name, check in checks.items():
        on_check(name)
        try:
            yield from check()
        # A broken installation fails in any way; saying how is what this is for.
        except Exception as error:
            yield Finding(name, FindingStatus.ERROR, f"{type(error).__name__}: {error}")


def check_role(database: str) -> Iterator[Finding]:
    """Try how well a role of a PostgreSQL server is confined; yields findings as they come.

    Args:
        database: the URL under which the role reaches a database.

    Raises:
        DatabaseError: the server cannot be reached.
        InputError: `database` is no such URL, or psycopg is not installed.
    """
    from sense_trl.database.location import ServerDatabase, locate
    from sense_trl.database.opening import check_psycopg

    location = locate(database)
    if not isinstance(location, ServerDatabase):
        raise InputError(
            f"`database` is {database!r}; expected the URL of a database on a PostgreSQL server, "
            "postgresql://user@host/name. A file needs no check: no query can write to it."
        )
    check_psycopg()
    from sense_trl.database.postgres_confinement import find_gaps

    for gap in find_gaps(location):
        if not gap.text:
            yield _ok(gap.name, "the role is confined")
        else:
            status = FindingStatus.ERROR if gap.is_grave else FindingStatus.NOTE
            yield Finding(gap.name, status, f"the role may {gap.text}", gap.sql)
    yield _note(
        "memory",
        "no role keeps a query from taking memory of the server; docs/postgres.md shows a server "
        "of one's own under a limit",
    )


def _ok(name: str, text: str) -> Finding:
    return Finding(name, FindingStatus.OK, text)


def _note(name: str, text: str) -> Finding:
    return Finding(name, FindingStatus.NOTE, text)


def _error(name: str, text: str) -> Finding:
    return Finding(name, FindingStatus.ERROR, text)


# ------------------------------------------------------------------------------------ checks


def _check_system() -> Iterator[Finding]:
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    yield _ok(
        "system",
        f"sense_trl {__version__}, Python {platform.python_version()}, {platform.platform()}, "
        f"{cores} CPU cores",
    )


def _check_packages() -> Iterator[Finding]:
    """Installed versions against what is required and what was tested."""
    from packaging.requirements import Requirement

    required = {}
    for line in metadata.requires("sense-trl") or []:
        requirement = Requirement(line)
        # Of the extras, only what is installed has to fit.
        extra = requirement.marker is not None and not requirement.marker.evaluate({"extra": ""})
        if not extra or requirement.name in TESTED_VERSIONS:
            required[requirement.name] = (requirement, extra)
    for name, (requirement, is_optional) in sorted(required.items()):
        try:
            version = metadata.version(name)
        except metadata.PackageNotFoundError:
            if not is_optional:
                yield _error(name, f"is not installed: pip install '{requirement}'")
            continue
        tested = TESTED_VERSIONS.get(name)
        if not requirement.specifier.contains(version, prereleases=True):
            wanted = f"{name}{requirement.specifier}"
            yield _error(name, f"{version}, but {wanted} is needed: pip install '{wanted}'")
        elif tested is not None and version.split("+")[0] != tested:
            yield _note(name, f"{version}; tested with {tested}")
        else:
            yield _ok(name, version)


def _check_devices() -> Iterator[Finding]:
    import psutil
    import torch

    memory = psutil.virtual_memory()
    yield _ok(
        "memory",
        f"{memory.total / 2**30:.0f} GiB, {memory.available / 2**30:.0f} GiB of them free",
    )
    if not torch.cuda.is_available():
        built = torch.version.cuda or getattr(torch.version, "hip", None)
        why = "torch was built without CUDA" if built is None else "no device was found"
        yield _note("GPU", f"none ({why}); small models train on the CPU")
        return
    for index in range(torch.cuda.device_count()):
        free, total = torch.cuda.mem_get_info(index)
        yield _ok(
            "GPU",
            f"{torch.cuda.get_device_name(index)}, {total / 2**30:.0f} GiB, {free / 2**30:.0f} GiB "
            f"of them free, CUDA {torch.version.cuda}",
        )


def _check_bfloat16() -> Iterator[Finding]:
    from sense_trl.steps.cpu import multiplies_bfloat16

    if multiplies_bfloat16():
        yield _ok("bfloat16", "multiplied in hardware")
    else:
        yield _note("bfloat16", "not multiplied in hardware here: train with `bf16: false`")


def _check_bitsandbytes() -> Iterator[Finding]:
    """Find the native library, and tell whether its CPU kernels must be kept from training."""
    if importlib.util.find_spec("bitsandbytes") is None:
        yield _note("4 bits", "bitsandbytes is not installed: pip install 'sense-trl[qlora]'")
        return
    import bitsandbytes
    from bitsandbytes.cextension import lib
    from bitsandbytes.functional import has_avx512bf16

    name = Path(getattr(getattr(lib, "_lib", None), "_name", None) or "no native library").name
    yield _ok("4 bits", f"bitsandbytes in {Path(bitsandbytes.__file__).parent}, {name}")
    if has_avx512bf16():
        yield _note(
            "4 bits",
            "this CPU has AVX512-BF16, for which bitsandbytes rewrites weights in eval mode and "
            "gradients would be wrong afterwards; sense_trl's trainers switch that off, a trainer "
            "of your own needs `disable_cpu_weight_repacking`",
        )


def _check_folders() -> Iterator[Finding]:
    """The caches of models and data: writable, and with room."""
    from huggingface_hub.constants import HF_HUB_CACHE

    from sense_trl._files import cache_folder

    for name, folder in (("cache", cache_folder()), ("model cache", Path(HF_HUB_CACHE))):
        try:
            folder.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=folder):
                pass
        except OSError as error:
            yield _error(name, f"{folder} cannot be written ({error.strerror})")
            continue
        free = shutil.disk_usage(folder).free
        text = f"{folder}, {free / 2**30:.0f} GiB free"
        if free < _MIN_FREE_BYTES:
            yield _note(name, f"{text}: a model of 7 billion parameters has 15 GB")
        else:
            yield _ok(name, text)


def _check_sandbox() -> Iterator[Finding]:
    """A query and a forbidden one in a worker process."""
    import sqlite3

    from sense_trl.database.engine import QueryStatus
    from sense_trl.database.worker import IsolatedEngine

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "doctor.sqlite"
        connection = sqlite3.connect(path)
        connection.executescript("CREATE TABLE t (a); INSERT INTO t VALUES (1), (2);")
        connection.close()
        with IsolatedEngine(path) as engine:
            answer = engine.execute("SELECT sum(a) FROM t")
            attack = engine.execute("DELETE FROM t")
            version = engine.version
    if not answer.ok or list(answer.rows or ()) != [(3,)]:
        yield _error("sandbox", f"a query in a worker gave {answer.status} ({answer.error})")
    elif attack.status is not QueryStatus.DENIED:
        yield _error("sandbox", f"a worker answered DELETE with {attack.status}; expected denied")
    else:
        yield _ok("sandbox", f"worker processes run queries and refuse to write ({version})")


def _check_training() -> Iterator[Finding]:
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    command = [sys.executable, "-m", "sense_trl.jobs.tiny_training"]
    try:
        done = subprocess.run(
            command,
            capture_output=True,
            text=True,
            check=False,
            timeout=_TRAINING_TIMEOUT_S,
            env=environment,
        )
    except subprocess.TimeoutExpired:
        yield _error("training", f"one step was not done within {_TRAINING_TIMEOUT_S} s")
        return
    if done.returncode != 0:
        lines = [line for line in done.stderr.splitlines() if line.strip()]
        said = lines[-1] if lines else "it said nothing"
        yield _error("training", f"one step ended with exit code {done.returncode}: {said}")
        return
    found = json.loads(done.stdout.splitlines()[-1])
    text = (
        f"one step of preference training with {found['bits']}-bit weights and {found['dtype']} "
        f"products on {found['device']} took {found['seconds']} s, loading included"
    )
    yield _ok("training", text)
