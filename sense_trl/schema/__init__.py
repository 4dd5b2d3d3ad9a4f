"""What a database looks like, as data and as prompt text."""

from sense_trl.schema.formats import SCHEMA_STYLES, format_schema
from sense_trl.schema.schema import DatabaseSchema, get_schema, load_spider_schemas

__all__ = ["SCHEMA_STYLES", "DatabaseSchema", "format_schema", "get_schema", "load_spider_schemas"]
