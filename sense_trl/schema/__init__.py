"""Schemas of databases, as data and as prompt text."""

from sense_trl.schema.formats import SCHEMA_STYLES, format_schema
from sense_trl.schema.schema import (
    DatabaseSchema,
    check_tables,
    get_schema,
    load_spider_schemas,
)

__all__ = [
    "SCHEMA_STYLES",
    "DatabaseSchema",
    "check_tables",
    "format_schema",
    "get_schema",
    "load_spider_schemas",
]
