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

# Changed whenever the same input gives other rows or files: it is part of the key of a shard.
_FORMAT = 2
# Before the hash of a file, in the metadata at its beginning and at its end.
_SEAL = b"SHA-256 of this file with zeros in place of it: "
_ZEROS = b"0" * 64


class ShardFolder:
    """Keeps the rows and the account of each part of a build, by the content it was made from.

    A shard is one Arrow file that is there wholly or not at all, with its account and a hash of
    its bytes, so that one that was changed is refused before Arrow, which would crash, reads it.
    The key covers what the caller puts into it; the databases and the verifier's settings are not
    in it, so a folder belongs to one set of them.

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
            content = bytearray(file.read_bytes())
            seals = [bytes(content[place]) for place in _find_seals(content)]
            if len(seals) != 2 or {*seals} != {_get_digest(content)}:
                raise ValueError("its hash is another")
            with pyarrow.ipc.open_file(pyarrow.BufferReader(bytes(content))) as reader:
                table = reader.read_all()
            metadata = dict(table.schema.metadata)
            del metadata[b"sha256"]
            account = metadata.pop(b"account")
            table = table.replace_schema_metadata(metadata)
            return table, PairAccount.from_json(json.loads(account))
        except (OSError, ValueError, KeyError, pyarrow.ArrowException) as error:
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
        marks = {"account": counts, "sha256": _SEAL + _ZEROS}
        table = table.replace_schema_metadata({**(table.schema.metadata or {}), **marks})
        sink = pyarrow.BufferOutputStream()
        with pyarrow.ipc.new_file(sink, table.schema) as writer:
            writer.write_table(table)
        content = bytearray(sink.getvalue())
        digest = _get_digest(content)
        for place in _find_seals(content):
            content[place] = digest
        with replacing(self._file(key)) as temporary:
            temporary.write_bytes(content)

    def _file(self, key: str) -> Path:
        return self._path / f"{key}.arrow"


def _find_seals(content: bytearray) -> list[slice]:
    """Places of the hash: first in the schema, last in the footer; between them are rows."""
    starts = sorted({content.find(_SEAL), content.rfind(_SEAL)} - {-1})
    return [slice(start + len(_SEAL), start + len(_SEAL) + len(_ZEROS)) for start in starts]


def _get_digest(content: bytearray) -> bytes:
    """Hash of a file without the hash."""
    blank = content.copy()
    for place in _find_seals(content):
        blank[place] = _ZEROS
    return hashlib.sha256(blank).hexdigest().encode()
