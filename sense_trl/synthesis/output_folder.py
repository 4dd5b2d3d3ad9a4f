"""`open_output_folder`: a data set's folder, for one run at a time."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from sense_trl.errors import InputError

__all__ = ["open_output_folder"]


@contextmanager
def open_output_folder(path: str | Path) -> Iterator[Path]:
    """Create a folder if it is not there, and keep other runs out of it.

    The lock ends with the process, however that ends; the file `.lock` stays. Where there are no
    POSIX locks, nothing is kept out.

    Args:
        path: the folder.

    Yields:
        The folder.

    Raises:
        InputError: the folder cannot be created or written to, or another run writes to it.
    """
    folder = Path(path)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = (folder / ".lock").open("a")
    except OSError as error:
        raise InputError(
            f"`output` {str(path)!r} is no folder that can be written to ({error.strerror}). Give "
            "a new folder, or one of an earlier run."
        ) from error
    with lock:
        if os.name == "posix":
            import fcntl

            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                raise InputError(
                    f"`output` {str(path)!r} is being written to by another run. Wait for its end, "
                    "or give another folder."
                ) from error
        yield folder
