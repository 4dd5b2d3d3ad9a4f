"""Finished parts of a build on disk."""

from pathlib import Path

import pyarrow
import pytest

from sense_trl.errors import InputError
from sense_trl.pairs.account import PairAccount
from sense_trl.pairs.shards import _SEAL, _ZEROS, ShardFolder


def test_rows_come_back_whatever_they_hold(tmp_path: Path) -> None:
    mark = (_SEAL + _ZEROS).decode()
    table = pyarrow.table({"sql": [mark, "x\0\U0001f600", None], "ids": [[1, 2], [], None]})
    folder, key = ShardFolder(tmp_path), ShardFolder.key([1])
    assert folder.load(key) is None
    folder.save(key, table, PairAccount())
    loaded = folder.load(key)
    assert loaded is not None and loaded[0].to_pylist() == table.to_pylist()
    assert loaded[1] == PairAccount()


def test_no_damaged_byte_reaches_arrow(tmp_path: Path) -> None:
    # Arrow follows the offsets of a changed file out of its memory.
    folder, key = ShardFolder(tmp_path), ShardFolder.key([1])
    folder.save(key, pyarrow.table({"sql": ["SELECT 1", "SELECT 2"]}), PairAccount())
    (file,) = tmp_path.iterdir()
    whole = file.read_bytes()
    for place in range(0, len(whole), 5):
        changed = bytes([whole[place] ^ (1 << place % 8)])
        for damaged in (whole[:place], whole[:place] + changed + whole[place + 1 :]):
            file.write_bytes(damaged)
            with pytest.raises(InputError, match="a finished part of the pairs, is not what was"):
                folder.load(key)
