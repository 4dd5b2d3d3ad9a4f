"""Tables for tests of schemas, in one line each."""

from __future__ import annotations

from sense_trl.database.engine import ColumnInfo, ForeignKeyInfo, TableInfo


def make_table(name: str, columns: str, *, is_view: bool = False, **keys: str) -> TableInfo:
    """A table of text columns, parted by spaces: `id` is its key, `keys` refer to others' `id`."""
    infos = tuple(ColumnInfo(c, "TEXT", False, int(c == "id")) for c in columns.split())
    foreign = tuple(ForeignKeyInfo((c,), other, ("id",)) for c, other in keys.items())
    return TableInfo(name, infos, foreign, is_view)
