"""`get_spider_record`: a designed schema as an entry of Spider's tables.json."""

from __future__ import annotations

from typing import Any, Final

from sense_trl.synthesis.strong.schema_design import ColumnKind, SchemaDesign

_TYPES: Final = {
    ColumnKind.INTEGER: "number",
    ColumnKind.REAL: "number",
    ColumnKind.TEXT: "text",
    ColumnKind.BOOLEAN: "boolean",
    ColumnKind.DATE: "time",
    ColumnKind.DATETIME: "time",
    ColumnKind.TIME: "time",
}


def get_spider_record(db_id: str, design: SchemaDesign) -> dict[str, Any]:
    """The record that `load_spider_schemas` reads.

    A foreign key of several columns becomes one pair per column, as in Spider; a primary key of
    several columns is a list, as in BIRD.
    """
    columns = [
        (number, column) for number, table in enumerate(design.tables) for column in table.columns
    ]
    # Column 0 is "*", of no table.
    places = {
        (design.tables[number].name, column.name): index
        for index, (number, column) in enumerate(columns, start=1)
    }
    names = [[-1, "*"], *([number, column.name] for number, column in columns)]
    primary_keys: list[int | list[int]] = []
    foreign_keys: list[list[int]] = []
    for table in design.tables:
        key = [places[table.name, name] for name in table.primary_key]
        primary_keys += [key] if len(key) > 1 else key
        for foreign in table.foreign_keys:
            for name, other in zip(foreign.columns, foreign.referenced_columns, strict=True):
                target = places[foreign.referenced_table, other]
                foreign_keys.append([places[table.name, name], target])
    return {
        "db_id": db_id,
        "table_names_original": [table.name for table in design.tables],
        "table_names": [_words(table.name) for table in design.tables],
        "column_names_original": names,
        "column_names": [[number, _words(str(name))] for number, name in names],
        "column_types": ["text", *(_TYPES[column.kind] for _, column in columns)],
        "primary_keys": primary_keys,
        "foreign_keys": foreign_keys,
    }


def _words(name: str) -> str:
    return name.replace("_", " ").lower()
