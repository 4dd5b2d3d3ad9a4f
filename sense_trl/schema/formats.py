"""`format_schema`: a schema as the text a model reads.

Three styles, from short to long:

* `compact`: one line per table with its column names, then one line per foreign key. The shortest;
  for small models and wide schemas.
* `codes`: the same with types, keys and, where asked, sample values, in the spirit of the CodeS
  prompts (Li et al., 2024, arXiv 2402.16347).
* `ddl`: `CREATE TABLE` statements, the form large models have seen most.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Literal, get_args

from sense_trl.database.engine import ForeignKeyInfo, TableInfo
from sense_trl.database.text import show_text
from sense_trl.errors import InputError
from sense_trl.schema.schema import DatabaseSchema
from sense_trl.sql.postgres_names import is_plain_name

SchemaStyle = Literal["compact", "codes", "ddl"]
SCHEMA_STYLES: tuple[str, ...] = get_args(SchemaStyle)

# (table, column) to a few values that occur in it.
SampleValues = Mapping[tuple[str, str], Sequence[object]]
# (table, column) to what it holds, and (table, "") to what the table does; one line each.
Descriptions = Mapping[tuple[str, str], str]

_PLAIN_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*\Z")
_LINE_BREAKS = re.compile(r"\s*[\n\r\t\v\f\x1c-\x1e\x85\u2028\u2029]\s*")
# Words that SQLite (and, with few exceptions, DuckDB) refuses as a bare table or column name, and
# words that it takes and sqlglot, which reads what is written with them, does not.
_RESERVED = frozenset(
    """
    add all alter and as autoincrement between case cast check collate commit constraint create
    cross current_date current_time current_timestamp default deferrable delete distinct drop
    else escape except exists foreign from full group having if in index inner insert intersect
    into is isnull join left limit natural not nothing notnull null on or order outer primary
    raise references returning right select set table then to transaction union unique update
    using values when where with
    any connect_by_root cube current_account current_account_name current_user describe false
    fetch for glob grant ilike lateral like lock offset partitioned_by qualify regexp revoke rlike
    rollback rollup tablesample true uncache window xor
    """.split()  # noqa: SIM905
)
# The same of DuckDB, beyond those.
_RESERVED_IN_DUCKDB = frozenset(
    """
    analyse analyze anti array asc asof asymmetric at authorization binary both by collation column
    concurrently current_catalog desc do end force freeze initially install lambda leading
    localtime localtimestamp map only overlaps pivot pivot_longer pivot_wider placing positional
    semi session_user show similar some summarize symmetric trailing unpack unpivot variadic
    verbose
    """.split()  # noqa: SIM905
)


def format_schema(
    schema: DatabaseSchema,
    *,
    style: str = "compact",
    sample_values: SampleValues | None = None,
    descriptions: Descriptions | None = None,
) -> str:
    """Write `schema` as prompt text.

    Foreign keys that refer to something the schema does not have are left out. What is not UTF-8 in
    a name or a value is written as `\\xe9`.

    Args:
        style: `"compact"`, `"codes"` or `"ddl"`.
        sample_values: values to show per column (`codes` and `ddl`; `compact` has no place, see
            `format_notes`).
        descriptions: what tables and columns hold, likewise.

    Raises:
        InputError: unknown style, or sample values or descriptions for `compact`.
    """
    if style not in _STYLES:
        raise InputError(f"`style` is {style!r}; expected one of {', '.join(SCHEMA_STYLES)}.")
    for name, given in (("sample_values", sample_values), ("descriptions", descriptions)):
        if given and style == "compact":
            raise InputError(
                f'`{name}` were given with `style="compact"`, which shows none. '
                'Use "codes" or "ddl".'
            )
    return show_text(_STYLES[style](schema, sample_values or {}, descriptions or {}))


def format_notes(
    schema: DatabaseSchema, sample_values: SampleValues, descriptions: Descriptions
) -> str:
    """Notes that the style `compact` has no place for: a line for each table or column with some.

    Args:
        schema: the tables, in whose order the lines stand.
        sample_values: values by table and column, as the schema writes them.
        descriptions: texts by table and column, and by table and "".

    Returns:
        Lines such as `singer.country: 'France', 'Peru'`; "" where there are none.
    """
    quote = partial(quote_name, dialect=schema.dialect)
    lines = []
    for table in schema.tables:
        if text := descriptions.get((table.name, "")):
            lines.append(f"{quote(table.name)}: {text}")
        for column in table.columns:
            key = (table.name, column.name)
            values = ", ".join(map(format_literal, sample_values.get(key, ())))
            if facts := " | ".join(filter(None, (descriptions.get(key), values))):
                lines.append(f"{quote(table.name)}.{quote(column.name)}: {facts}")
    heading = "columns:" if descriptions else "values:"
    return show_text("\n".join([heading, *lines])) if lines else ""


def quote_name(name: str, dialect: str = "sqlite") -> str:
    """Quote an identifier only if SQL needs it: a model copies what it sees.

    PostgreSQL takes a name without quotes for its lower case.

    Example:
        >>> print(*(quote_name("Name", dialect) for dialect in ("sqlite", "postgres")))
        Name "Name"
    """
    is_plain = _PLAIN_NAME.match(name) is not None
    if dialect == "postgres":
        is_plain = is_plain_name(name)
    is_reserved = name.lower() in _RESERVED or (
        dialect == "duckdb" and name.lower() in _RESERVED_IN_DUCKDB
    )
    if is_plain and not is_reserved:
        return name
    return '"' + name.replace('"', '""') + '"'


def _key_lines(schema: DatabaseSchema) -> list[str]:
    return [
        _key_line(table, key, schema.dialect)
        for table, key in schema.foreign_keys
        if _is_sound(schema, key)
    ]


def _is_sound(schema: DatabaseSchema, key: ForeignKeyInfo) -> bool:
    """Whether the columns that `key` refers to are there: SQLite does not check it."""
    if not key.columns or len(key.columns) != len(key.referenced_columns):
        return False
    name = key.referenced_table.lower()
    found = {c.name.lower() for t in schema.tables if t.name.lower() == name for c in t.columns}
    return found.issuperset(column.lower() for column in key.referenced_columns)


def _key_line(table: str, key: ForeignKeyInfo, dialect: str) -> str:
    return " AND ".join(
        f"{quote_name(table, dialect)}.{quote_name(column, dialect)} = "
        f"{quote_name(key.referenced_table, dialect)}.{quote_name(referenced, dialect)}"
        for column, referenced in zip(key.columns, key.referenced_columns, strict=True)
    )


def _compact(
    schema: DatabaseSchema, sample_values: SampleValues, descriptions: Descriptions
) -> str:
    quote = partial(quote_name, dialect=schema.dialect)
    lines = [
        f"{quote(t.name)}({', '.join(quote(c.name) for c in t.columns)})" for t in schema.tables
    ]
    return "\n".join(lines + _key_lines(schema))


def _codes(schema: DatabaseSchema, sample_values: SampleValues, descriptions: Descriptions) -> str:
    quote = partial(quote_name, dialect=schema.dialect)
    lines = []
    for table in schema.tables:
        parts = []
        for column in table.columns:
            facts = [column.type.lower()] if column.type else []
            if column.primary_key:
                facts.append("primary key")
            if text := descriptions.get((table.name, column.name)):
                facts.append(text)
            if values := sample_values.get((table.name, column.name)):
                facts.append("values: " + ", ".join(format_literal(v) for v in values))
            note = f" ({' | '.join(facts)})" if facts else ""
            parts.append(quote(column.name) + note)
        meaning = descriptions.get((table.name, ""))
        about = f" ({meaning})" if meaning else ""
        lines.append(f"table {quote(table.name)}{about}, columns = [ {', '.join(parts)} ]")
    keys = _key_lines(schema)
    if keys:
        lines += ["foreign keys:", *keys]
    return "\n".join(lines)


def _ddl(schema: DatabaseSchema, sample_values: SampleValues, descriptions: Descriptions) -> str:
    created = (_create_table(schema, t, sample_values, descriptions) for t in schema.tables)
    return "\n\n".join(created)


def _create_table(
    schema: DatabaseSchema,
    table: TableInfo,
    sample_values: SampleValues,
    descriptions: Descriptions,
) -> str:
    quote = partial(quote_name, dialect=schema.dialect)
    primary = sorted((c for c in table.columns if c.primary_key), key=lambda c: c.primary_key)
    # Each line with the comment that follows its comma.
    lines: list[tuple[str, str]] = []
    for column in table.columns:
        text = quote(column.name) + (f" {column.type}" if column.type else "")
        if primary == [column]:
            text += " PRIMARY KEY"
        elif column.not_null:
            text += " NOT NULL"
        name = (table.name, column.name)
        values = ", ".join(map(format_literal, sample_values.get(name, ())))
        facts = "; ".join(filter(None, (descriptions.get(name), values)))
        lines.append((text, f"  -- {facts}" if facts else ""))
    if len(primary) > 1:
        lines.append((f"PRIMARY KEY ({', '.join(quote(c.name) for c in primary)})", ""))
    for key in table.foreign_keys:
        if not _is_sound(schema, key):
            continue
        lines.append(
            (
                f"FOREIGN KEY ({', '.join(map(quote, key.columns))}) REFERENCES "
                f"{quote(key.referenced_table)} "
                f"({', '.join(map(quote, key.referenced_columns))})",
                "",
            )
        )
    body = "\n".join(
        f"  {text}{',' if i < len(lines) - 1 else ''}{note}" for i, (text, note) in enumerate(lines)
    )
    meaning = descriptions.get((table.name, ""))
    about = f"  -- {meaning}" if meaning else ""
    kind = "VIEW" if table.is_view else "TABLE"
    return f"CREATE {kind} {quote(table.name)} ({about}\n{body}\n);"


def format_literal(value: object) -> str:
    """A value as SQL writes it, on one line.

    Example:
        >>> print(format_literal("O'Neil"), format_literal(2.5), format_literal(None))
        'O''Neil' 2.5 NULL
    """
    if value is None:
        return "NULL"
    if isinstance(value, (int, float)):
        return str(value)
    if isinstance(value, bytes):
        return f"x'{value.hex()}'"
    # A line break inside a value would end the comment that holds it.
    text = " ".join(_LINE_BREAKS.split(str(value)))
    return "'" + text.replace("'", "''") + "'"


_STYLES: dict[str, Callable[[DatabaseSchema, SampleValues, Descriptions], str]] = {
    "compact": _compact,
    "codes": _codes,
    "ddl": _ddl,
}
