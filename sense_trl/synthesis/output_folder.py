"""`open_output_folder`: a data set's folder, for one run at a time."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from sense_trl.errors import InputError


@contextmanager
def open_output_folder(path: str | Path) -> Iterator[Path]:
    """Create a folder if it is not there, and keep other runs out of it.

    The lock, on the file `.lock`, ends with the process, however that ends.

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
        lock = FileLock(folder / ".lock", timeout=0).acquire()
    except Timeout as error:
        raise InputError(
            f"`output` {str(path)!r} is being written to by another run. Wait for its end, "
            "or give another folder."
        ) from error
    except OSError as error:
        raise InputError(
            f"`output` {str(path)!r} is no folder that can be written to ({error.strerror}). Give "
            "a new folder, or one of an earlier run."
        ) from error
    with lock:
        yield folder
