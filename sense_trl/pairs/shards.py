"""`ShardFolder`: finished parts of a build on disk, so that an interrupted build continues."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sense_trl._files import replacing
from sense_trl.errors import InputError
from sense_trl.pairs.account import PairAccount

if TYPE_CHECKING:
    import pyarrow

__all__ = ["ShardFolder"]

# Changed whenever the same input gives other rows: it is part of the key of a shard.
_FORMAT = 1


class ShardFolder:
    """Keeps the rows and the account of each part of a build, by the content it was made from.

    A shard is one Arrow file that is there wholly or not at all, with its account and a hash of
    both, so that one that was changed is refused. The key covers what the caller puts into it; the
    databases and the verifier's settings are not in it, so a folder belongs to one set of them.

    Args:
        path: the folder; created with the first shard.
    """

    def __init__(self, path: str | Path) -> None:
        self._path = Path(path)

    @staticmethod
    def key(content: Any) -> str:
        """Identity of JSON data."""
        text = json.dumps([_FORMAT, content], sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:32]

    def load(self, key: str) -> tuple[pyarrow.Table, PairAccount] | None:
        """The shard of this key, if it is there.

        Raises:
            InputError: it is not what was written.
        """
        import pyarrow

        file = self._file(key)
        if not file.exists():
            return None
        try:
            with pyarrow.OSFile(str(file)) as source, pyarrow.ipc.open_file(source) as reader:
                table = reader.read_all()
            metadata = dict(table.schema.metadata)
            account, digest = metadata.pop(b"account"), metadata.pop(b"sha256")
            table = table.replace_schema_metadata(metadata)
            if digest != _get_digest(table, account):
                raise ValueError("its rows or its account are others")
            return table, PairAccount.from_json(json.loads(account))
        # What Arrow raises at bytes that nobody wrote is up to the byte.
        except (OSError, ValueError, TypeError, KeyError, pyarrow.ArrowException) as error:
            raise InputError(
                f"{str(file)!r}, a finished part of the pairs, is not what was written "
                f"({error}). Something cut or changed it: delete it, then run the same again to "
                "have this part made again."
            ) from error

    def save(self, key: str, table: pyarrow.Table, account: PairAccount) -> None:
        """Write a shard.

        Raises:
            OutputError: it cannot be written.
        """
        import pyarrow

        counts = json.dumps(account.as_json()).encode()
        marks = {"account": counts, "sha256": _get_digest(table, counts)}
        table = table.replace_schema_metadata({**(table.schema.metadata or {}), **marks})
        with (
            replacing(self._file(key)) as temporary,
            pyarrow.OSFile(str(temporary), "wb") as sink,
            pyarrow.ipc.new_file(sink, table.schema) as writer,
        ):
            writer.write_table(table)

    def _file(self, key: str) -> Path:
        return self._path / f"{key}.arrow"


def _get_digest(table: pyarrow.Table, account: bytes) -> bytes:
    """Hash of an account and of rows as values: how Arrow lays them out is up to its version."""
    rows = json.dumps([table.column_names, table.to_pylist()]).encode()
    return hashlib.sha256(account + rows).hexdigest().encode()
