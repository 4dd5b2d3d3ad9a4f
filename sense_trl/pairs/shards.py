"""`ShardFolder`: finished parts of a build on disk, so that an interrupted build continues."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sense_trl.pairs.account import PairAccount

if TYPE_CHECKING:
    import pyarrow

__all__ = ["ShardFolder"]

# Changed whenever the same input gives other rows: it is part of the key of a shard.
_FORMAT = 1


class ShardFolder:
    """Keeps the rows and the account of each part of a build, by the content it was made from.

    A shard is one file that is there wholly or not at all. The key covers what the caller puts
    into it; the databases and the verifier's settings are not in it, so a folder belongs to one
    set of them.

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
        """The shard of this key, if it is there."""
        import pyarrow

        file = self._file(key)
        if not file.exists():
            return None
        with pyarrow.OSFile(str(file)) as source, pyarrow.ipc.open_file(source) as reader:
            table = reader.read_all()
        metadata = dict(table.schema.metadata)
        account = PairAccount.from_json(json.loads(metadata.pop(b"account")))
        return table.replace_schema_metadata(metadata), account

    def save(self, key: str, table: pyarrow.Table, account: PairAccount) -> None:
        """Write a shard."""
        import pyarrow

        self._path.mkdir(parents=True, exist_ok=True)
        metadata = {**(table.schema.metadata or {}), "account": json.dumps(account.as_json())}
        table = table.replace_schema_metadata(metadata)
        file = self._file(key)
        temporary = file.with_suffix(".tmp")
        with (
            pyarrow.OSFile(str(temporary), "wb") as sink,
            pyarrow.ipc.new_file(sink, table.schema) as writer,
        ):
            writer.write_table(table)
        os.replace(temporary, file)

    def _file(self, key: str) -> Path:
        return self._path / f"{key}.arrow"
