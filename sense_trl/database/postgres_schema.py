"""The tables of a PostgreSQL database from pg_catalog: `read_tables`."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any, Final

from sense_trl.database.engine import ColumnInfo, ForeignKeyInfo, TableInfo, get_key_position

logger = logging.getLogger(__name__)

_MAX_LABELS: Final = 20
_MAX_NAMED: Final = 5

# What the role may read, in the order of creation. A partition is part of its table, and a table
# of an extension is none of the user's. information_schema shows a role that may only SELECT no
# keys, and nobody a materialised view.
_RELATIONS: Final = """
    SELECT c.oid::int8, n.nspname::text, c.relname::text, c.relkind = 'v',
           coalesce(obj_description(c.oid, 'pg_class'), ''), pg_table_is_visible(c.oid)
    FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
    WHERE n.nspname = ANY (%(schemas)s) AND c.relkind IN ('r', 'v', 'm', 'p', 'f')
      AND NOT c.relispartition AND has_schema_privilege(n.oid, 'USAGE')
      AND has_any_column_privilege(c.oid, 'SELECT')
      AND NOT EXISTS (SELECT FROM pg_depend d WHERE d.classid = 'pg_class'::regclass
                      AND d.objid = c.oid AND d.deptype = 'e')
    ORDER BY c.oid
"""
_COLUMNS: Final = """
    SELECT a.attrelid::int8, a.attnum::int, a.attname::text,
           format_type(CASE WHEN t.typtype = 'd' THEN t.typbasetype ELSE a.atttypid END,
                       CASE WHEN t.typtype = 'd' THEN t.typtypmod ELSE a.atttypmod END),
           a.attnotnull OR t.typnotnull, coalesce(col_description(a.attrelid, a.attnum), ''),
           CASE WHEN t.typelem <> 0 AND t.typlen = -1 THEN t.typelem ELSE t.oid END::int8
    FROM pg_attribute a JOIN pg_type t ON t.oid = a.atttypid
    WHERE a.attrelid = ANY (%(oids)s::oid[]) AND a.attnum > 0 AND NOT a.attisdropped
      AND has_column_privilege(a.attrelid, a.attnum, 'SELECT')
    ORDER BY a.attrelid, a.attnum
"""
_KEYS: Final = """
    SELECT conrelid::int8, contype::text, conkey::int[], confrelid::int8, confkey::int[]
    FROM pg_constraint
    WHERE contype IN ('p', 'f') AND conrelid = ANY (%(oids)s::oid[])
    ORDER BY conrelid, oid
"""
_LABELS: Final = """
    SELECT e.enumtypid::int8, array_agg(e.enumlabel::text ORDER BY e.enumsortorder)
    FROM pg_enum e GROUP BY e.enumtypid
"""


def read_tables(connection: Any, schemas: Sequence[str]) -> tuple[TableInfo, ...]:
    """Read the tables and views of some schemas that the role may read.

    Materialised views, foreign tables and partitioned tables are tables; partitions are not named.
    A table that another schema hides, so that its name alone means the other one, is left out with
    a warning. Comments are those of the database; that of a column of an enum ends in its labels.

    Args:
        connection: a psycopg connection whose search_path is `schemas`.
        schemas: their names.

    Raises:
        psycopg.Error: the catalog cannot be read.
    """
    relations = connection.execute(_RELATIONS, {"schemas": list(schemas)}).fetchall()
    if hidden := [f"{schema}.{name}" for _, schema, name, *_, is_seen in relations if not is_seen]:
        logger.warning(
            "%d tables have the name of one in a schema before theirs and are left out: %s%s. "
            "Read their schema as a database of its own (`?schemas=NAME`).",
            len(hidden),
            ", ".join(hidden[:_MAX_NAMED]),
            ", ..." * (len(hidden) > _MAX_NAMED),
        )
    relations = [row for row in relations if row[-1]]
    oids = {"oids": [row[0] for row in relations]}
    names = {row[0]: row[2] for row in relations}
    labels = dict(connection.execute(_LABELS).fetchall())
    columns: dict[int, dict[int, tuple[Any, ...]]] = {}
    for oid, number, *facts in connection.execute(_COLUMNS, oids).fetchall():
        columns.setdefault(oid, {})[number] = tuple(facts)
    primary: dict[int, list[int]] = {}
    foreign: dict[int, list[ForeignKeyInfo]] = {}
    for oid, kind, own, other, referenced in connection.execute(_KEYS, oids).fetchall():
        known = columns.get(oid, {})
        if kind == "p":
            primary[oid] = own
        elif other in names and known.keys() >= {*own}:
            others = columns.get(other, {})
            if others.keys() >= {*referenced}:
                key = ForeignKeyInfo(
                    tuple(known[number][0] for number in own),
                    names[other],
                    tuple(others[number][0] for number in referenced),
                )
                foreign.setdefault(oid, []).append(key)
    return tuple(
        TableInfo(
            name,
            tuple(
                ColumnInfo(
                    column,
                    type_,
                    not_null,
                    get_key_position(primary.get(oid, []), number),
                    _add_labels(comment, labels.get(type_oid)),
                )
                for number, (column, type_, not_null, comment, type_oid) in columns.get(
                    oid, {}
                ).items()
            ),
            tuple(foreign.get(oid, ())),
            is_view,
            comment,
        )
        for oid, _, name, is_view, comment, _ in relations
    )


def _add_labels(comment: str, labels: Sequence[str] | None) -> str:
    if not labels:
        return comment
    shown = ["'" + label.replace("'", "''") + "'" for label in labels[:_MAX_LABELS]]
    more = f", and {len(labels) - _MAX_LABELS} others" if len(labels) > _MAX_LABELS else ""
    text = f"one of {', '.join(shown)}{more}"
    return f"{comment}; {text}" if comment else text
