"""Writing files so that a crash or a full disk leaves none of them half there, and reading them."""

from __future__ import annotations

import contextlib
import errno
import functools
import hashlib
import json
import os
import uuid
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

from sense_trl.errors import InputError, OutputError

# What a shell calls its own streams: a file there is written to, never replaced.
_STREAMS: Final = ("/dev/stdout", "/dev/stderr", "/dev/fd/", "/proc/")
# Of a file of which not the whole is read.
_NUM_BLOCKS: Final = 4096
_BLOCK_BYTES: Final = 2**16
_PROBE: Final = b"\0" * 4096
# What a device says that takes no more: full, over the quota or a limit, read-only.
_REFUSALS: Final = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS})


@contextmanager
def replacing(
    path: str | os.PathLike[str], *, is_shared: bool = False, is_synced: bool = True
) -> Iterator[Path]:
    """A file to write, which takes the place of `path` when the block ends.

    Until then `path` holds what it held. What is put in place is on the disk, not only on its way
    there; of a block that raises nothing stays. Folders are created. A symbolic link stays, and
    what it points to is replaced; a device or a pipe is written to as it is.

    Args:
        path: the file.
        is_shared: several processes may write `path` at the same time.
        is_synced: wait for the disk, some milliseconds. Not worth it for a cache whose entries
            tell when they are damaged.

    Yields:
        Where to write: beside `path`, with `.tmp` behind its name.

    Raises:
        OutputError: it cannot be written.
    """
    path = Path(path)
    with reporting_failure(path):
        if _is_stream(path):
            yield path
            return
        target = Path(os.path.realpath(path))
        target.parent.mkdir(parents=True, exist_ok=True)
        mark = f".{uuid.uuid4().hex[:12]}" if is_shared else ""
        temporary = target.with_name(f"{target.name}{mark}.tmp")
        try:
            yield temporary
            if is_synced:
                _sync(temporary)
            os.replace(temporary, target)
        except BaseException:
            # It may be what fills the disk.
            with contextlib.suppress(OSError):
                temporary.unlink()
            raise
        if is_synced:
            _sync_names(target.parent)


def write_text_atomically(path: str | Path, text: str, *, is_shared: bool = False) -> None:
    """Write `text` as UTF-8, what cannot be written so (lone surrogates) as escapes.

    See `replacing`.
    """
    data = text.encode("utf-8", "backslashreplace")
    with replacing(path, is_shared=is_shared) as temporary:
        temporary.write_bytes(data)


@contextmanager
def reporting_failure(path: str | os.PathLike[str]) -> Iterator[None]:
    """Within the block, what the system refuses to write is an `OutputError` that names `path`."""
    try:
        yield
    except OutputError:
        raise
    except OSError as error:
        refused = OutputError(
            f"{str(path)!r} cannot be written ({error.strerror or error}). Free space or choose "
            "another place, then run the same again: what was finished before is kept."
        )
        refused.errno = error.errno
        raise refused from error


def is_refusal(error: OSError) -> bool:
    """Whether an error of any library says that a device takes no more."""
    return error.errno in _REFUSALS


def check_writable(folder: str | Path, argument: str) -> None:
    """Create a folder and write to it once, before work is done whose result is to lie there.

    Args:
        folder: where something is going to be written.
        argument: what the user gave it as, for the message.

    Raises:
        InputError: it is a file, cannot be created, or takes no file.
    """
    if Path(folder).is_file():
        raise InputError(f"`{argument}` {str(folder)!r} is a file; give a folder.")
    probe = Path(folder) / f".{uuid.uuid4().hex[:12]}.tmp"
    try:
        probe.parent.mkdir(parents=True, exist_ok=True)
        try:
            probe.write_bytes(_PROBE)
            _sync(probe)
        finally:
            probe.unlink(missing_ok=True)
    except OSError as error:
        raise InputError(
            f"`{argument}` {str(folder)!r} is no folder that can be written to "
            f"({error.strerror or error}). Free space, or give another folder."
        ) from error


def check_writable_file(path: str | Path, argument: str) -> None:
    """The same as `check_writable` for a file that is going to be written.

    Raises:
        InputError: it is a folder, or its folder takes no file.
    """
    path = Path(path)
    if path.is_dir():
        raise InputError(f"`{argument}` {str(path)!r} is a folder; give a file.")
    if not _is_stream(path):
        check_writable(Path(os.path.realpath(path)).parent, argument)


def cache_folder() -> Path:
    """The folder for files that can be made again: `$SENSE_TRL_CACHE`, else the user's cache."""
    chosen = os.environ.get("SENSE_TRL_CACHE")
    if chosen:
        return Path(chosen)
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "sense_trl"


class LineLog:
    """A file that grows by whole lines, each of them on the disk when `append` returns.

    The end of a line that a crash cut short is none: `read` does not give it, and the next
    `append` writes over it. Reading changes nothing.

    Args:
        path: the file; created by the first `append`.

    Attributes:
        path: the file.
        rest: what stands behind the last whole line, once `read` was called.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.rest = b""
        self._lacks_end = False

    def read(self) -> list[bytes]:
        """The whole lines, without their ends; none where there is no file."""
        try:
            content = self.path.read_bytes()
        except FileNotFoundError:
            return []
        *lines, self.rest = content.split(b"\n")
        return lines

    def keep_rest(self) -> None:
        """Take it for a line that lacks its end alone, which the next `append` gives it."""
        self.rest, self._lacks_end = b"", bool(self.rest)

    def append(self, lines: Iterable[str]) -> None:
        """Write lines and wait until they are on the disk; all of them or none.

        Raises:
            OutputError: they cannot be written.
        """
        text = "\n" * self._lacks_end + "".join(f"{line}\n" for line in lines)
        data = memoryview(text.encode("utf-8"))
        with reporting_failure(self.path):
            self.path.parent.mkdir(parents=True, exist_ok=True)
            is_new = not self.path.exists()
            with self.path.open("ab", buffering=0) as file:
                start = file.tell()
                if self.rest:
                    start -= len(self.rest)
                    file.truncate(start)
                    self.rest = b""
                try:
                    while data:
                        data = data[file.write(data) :]
                    os.fsync(file.fileno())
                except BaseException:
                    with contextlib.suppress(OSError):
                        file.truncate(start)
                    raise
            self._lacks_end = False
            if is_new:
                _sync_names(self.path.parent)


def read_json(path: str | Path, what: str, *names: str) -> dict[str, Any]:
    """A JSON object that the package wrote itself.

    Args:
        path: the file.
        what: what it is, for the message.
        names: of fields that it has.

    Raises:
        InputError: it is missing, damaged or something else.
    """
    try:
        data = json.loads(Path(path).read_bytes())
        if not isinstance(data, dict):
            raise ValueError(f"it holds a {type(data).__name__}")
        if missing := [name for name in names if name not in data]:
            raise ValueError(f"it lacks {missing}")
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(
            f"{str(path)!r} is not {what} as it was written ({error}). Something cut or changed "
            "it: delete it, then run the same again to have it made again."
        ) from error
    return data


def holds_json(path: str | Path) -> bool:
    """Whether a file is there and whole, where its being there says that something is finished."""
    try:
        json.loads(Path(path).read_bytes())
    except (OSError, ValueError, RecursionError):
        return False
    return True


def is_cut_short(path: str | Path, text: str) -> bool:
    """Whether a file holds nothing but a beginning of `text`, as a crash leaves it."""
    try:
        content = Path(path).read_bytes()
    except OSError:
        return False
    whole = text.encode("utf-8")
    return len(content) < len(whole) and whole.startswith(content)


def sha256_of(path: str | Path) -> str:
    """Hexadecimal SHA-256 of a file's content."""
    with Path(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def is_sampled(size: int) -> bool:
    """Whether `sampled_sha256_of` reads a part alone of a file of so many bytes."""
    return size > _NUM_BLOCKS * _BLOCK_BYTES


def sampled_sha256_of(path: str | Path) -> str:
    """SHA-256 of a file's size and content, with 256 MiB of it at most.

    A larger file is told by 4,096 blocks at equal distances, both ends among them, where engines
    count changes and weights have their header. A copy elsewhere, or restored later, is the same.
    A file that has not changed is read once in a process.
    """
    stat = os.stat(path)
    # The time of a change of its inode can be set by nobody.
    state = (stat.st_dev, stat.st_ino, stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns)
    return _hash_sample(os.path.abspath(path), state)


@functools.lru_cache(maxsize=4096)
def _hash_sample(path: str, state: tuple[int, ...]) -> str:
    with open(path, "rb") as file:
        size = file.seek(0, os.SEEK_END)
        digest = hashlib.sha256(str(size).encode())
        is_whole = not is_sampled(size)
        last = max(0, size - _BLOCK_BYTES)
        for block in range(_NUM_BLOCKS):
            start = block * _BLOCK_BYTES if is_whole else last * block // (_NUM_BLOCKS - 1)
            if start >= size:
                break
            file.seek(start)
            digest.update(file.read(_BLOCK_BYTES))
    return digest.hexdigest()


def _is_stream(path: Path) -> bool:
    if os.path.abspath(path).startswith(_STREAMS):
        return True
    return path.exists() and not path.is_file() and not path.is_dir()


def _sync(path: Path) -> None:
    """Wait until the content of a file is on the disk."""
    # Windows syncs only what is open for writing.
    descriptor = os.open(path, os.O_RDWR)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _sync_names(folder: Path) -> None:
    """Wait until what was renamed or created in a folder is on the disk, where a system can."""
    if os.name != "posix":
        return
    with contextlib.suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
