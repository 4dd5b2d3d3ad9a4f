"""`DataDictionary`: what the tables and columns of a database mean, for people to read and correct.

It is read from JSON (as `sense-trl synth explore` writes it) or YAML, from BIRD's
`database_description/*.csv`, and from the comments in a DuckDB or PostgreSQL database.
"""

from __future__ import annotations

import csv
import difflib
import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from sense_trl._files import write_text_atomically
from sense_trl.database.location import DatabasePath, locate
from sense_trl.errors import InputError
from sense_trl.schema.schema import DatabaseSchema

if TYPE_CHECKING:
    from sense_trl.schema.graph import ColumnName

_BIRD_FOLDER: Final = "database_description"
_BIRD_FIELDS: Final = ("original_column_name", "column_name", "column_description")
_SUFFIXES: Final = (".json", ".yaml", ".yml")
_MAX_SHOWN: Final = 5


@dataclass(frozen=True, slots=True)
class ColumnEntry:
    """Meaning, format and synonyms of a column; "" and () where nothing is known."""

    meaning: str = ""
    format: str = ""
    synonyms: tuple[str, ...] = ()

    @property
    def text(self) -> str:
        """All that is known, in one line."""
        facts = [self.meaning, self.format and f"format: {self.format}"]
        if self.synonyms:
            facts.append(f"also called {', '.join(self.synonyms)}")
        return "; ".join(filter(None, facts))


@dataclass(frozen=True, slots=True)
class TableEntry:
    """Meaning of one row of a table, its synonyms, and its columns by name."""

    meaning: str = ""
    synonyms: tuple[str, ...] = ()
    columns: Mapping[str, ColumnEntry] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class DataDictionary:
    """The entries of a database.

    Attributes:
        db_id: the database; "" where a file does not say.
        tables: by name.
    """

    db_id: str
    tables: Mapping[str, TableEntry]

    # ------------------------------------------------------------------ reading and writing

    def save(self, path: str | Path) -> None:
        """Write it as JSON, indented to be edited; the file is replaced whole."""
        write_text_atomically(path, json.dumps(asdict(self), ensure_ascii=False, indent=2) + "\n")

    @classmethod
    def load(cls, path: str | Path) -> DataDictionary:
        """Read a JSON file of `save` after it may have been edited, or the same in YAML.

        A table or a column may be a text alone, which is its meaning:

            tables:
              customer:
                meaning: a person who has bought something
                columns:
                  status: A is active, I is inactive
                  joined: {meaning: first order, format: YYYY-MM-DD, synonyms: [member since]}

        Raises:
            InputError: not a file, no JSON or YAML, or a field that is not known or of another
                type; the message says where.
        """
        path = Path(path)
        if not path.is_file():
            raise InputError(f"`path` is {str(path)!r}, which is not a file.")
        record = _checked(_read(path), dict, str(path), {"db_id", "tables"})
        tables = {}
        for table, entry in _checked(record.get("tables", {}), dict, f"{path}, tables").items():
            place = f"{path}, tables.{_checked_name(table, f'{path}, tables')}"
            if isinstance(entry, str):
                entry = {"meaning": entry}
            entry = _checked(entry, dict, place, {"meaning", "synonyms", "columns"})
            columns = _checked(entry.get("columns", {}), dict, f"{place}.columns")
            tables[table] = TableEntry(
                _checked(entry.get("meaning", ""), str, f"{place}.meaning"),
                _checked_list(entry.get("synonyms", []), f"{place}.synonyms"),
                {
                    _checked_name(name, f"{place}.columns"): _load_column(
                        column, f"{place}.columns.{name}"
                    )
                    for name, column in columns.items()
                },
            )
        return cls(_checked(record.get("db_id", ""), str, f"{path}, db_id"), tables)

    @classmethod
    def from_bird(cls, folder: str | Path) -> DataDictionary:
        """Read a folder of BIRD, with a CSV file for each table.

        The fields are original_column_name, column_name (in words), column_description and, where
        they are, data_format and value_description. Files that are not UTF-8, as some of BIRD's
        are, are read as Windows-1252.

        Raises:
            InputError: no such folder, no CSV file in it, or a file without the fields.
        """
        folder = Path(folder)
        files = sorted(folder.glob("*.csv"))
        if not files:
            raise InputError(
                f"`path` {str(folder)!r} holds no CSV file; expected one for each table, with the "
                f"fields {', '.join(_BIRD_FIELDS)} and value_description."
            )
        return cls("", {file.stem: _read_bird(file) for file in files})

    @classmethod
    def from_comments(cls, schema: DatabaseSchema) -> DataDictionary:
        """The comments that the database itself has (DuckDB's `COMMENT ON`)."""
        tables = {}
        for table in schema.tables:
            columns = {c.name: ColumnEntry(c.comment) for c in table.columns if c.comment}
            if columns or table.comment:
                tables[table.name] = TableEntry(table.comment, (), columns)
        return cls(schema.db_id, tables)

    # ------------------------------------------------------------------ using

    def describe(self, columns: Iterable[ColumnName]) -> str:
        """All that is known of some columns and their tables, a line each; "" if nothing is."""
        lines = []
        wanted = list(columns)
        for table in dict.fromkeys(column.table for column in wanted):
            entry = self.tables.get(table, TableEntry())
            if entry.meaning:
                lines.append(f"{table}: {entry.meaning}")
            for name in (column for column in wanted if column.table == table):
                if text := entry.columns.get(name.column, ColumnEntry()).text:
                    lines.append(f"{name}: {text}")
        return "\n".join(lines)

    def spelled_as(self, schema: DatabaseSchema, place: str | Path) -> DataDictionary:
        """The same with the names of tables and columns as a schema writes them.

        Args:
            schema: of the database.
            place: where the entries come from, for the message.

        Raises:
            InputError: a table or a column is not in the schema; the message names up to five, and
                near matches.
        """
        unknown: list[str] = []
        known = {table.name.lower(): table for table in schema.tables}
        tables = {}
        for name, entry in self.tables.items():
            table = known.get(name.strip().lower())
            if table is None:
                unknown.append(f"the table {name!r}{_hint(name, known)}")
                continue
            columns = {column.name.lower(): column.name for column in table.columns}
            found = {}
            for column, described in entry.columns.items():
                if (spelled := columns.get(column.strip().lower())) is None:
                    unknown.append(f"the column {name}.{column!r}{_hint(column, columns)}")
                else:
                    found[spelled] = described
            tables[table.name] = TableEntry(entry.meaning, entry.synonyms, found)
        if unknown:
            more = f" and {len(unknown) - _MAX_SHOWN} more" if len(unknown) > _MAX_SHOWN else ""
            raise InputError(
                f"{str(place)!r} describes what the database {schema.db_id!r} does not have: "
                f"{'; '.join(unknown[:_MAX_SHOWN])}{more}. Mend or remove these entries."
            )
        return DataDictionary(schema.db_id, tables)

    def updated_with(self, other: DataDictionary) -> DataDictionary:
        """This one with the entries of another, whose texts win where both say something."""
        tables = dict(self.tables)
        for name, entry in other.tables.items():
            own = tables.get(name, TableEntry())
            columns = dict(own.columns)
            for column, described in entry.columns.items():
                before = columns.get(column, ColumnEntry())
                columns[column] = ColumnEntry(
                    described.meaning or before.meaning,
                    described.format or before.format,
                    described.synonyms or before.synonyms,
                )
            tables[name] = TableEntry(
                entry.meaning or own.meaning, entry.synonyms or own.synonyms, columns
            )
        return DataDictionary(other.db_id or self.db_id, tables)


def find_dictionary(
    schema: DatabaseSchema, database: DatabasePath | str, source: str | Path | None = None
) -> DataDictionary:
    """All that is known of a database: its comments, BIRD's files beside it, and a file.

    Args:
        schema: of the database, with its comments.
        database: its place; `database_description/` beside it is read where its folder is the
            database's own, as BIRD has it.
        source: a JSON or YAML file; a folder of such, `<db_id>.json` or `<db_id>.yaml`; a folder of
            BIRD's CSV files; or a root of BIRD, with `<db_id>/database_description`. Where it says
            something, it wins. A folder need not have every database.

    Raises:
        InputError: `source` is not there, or a file is unusable or describes what the database does
            not have.
    """
    found = DataDictionary.from_comments(schema)
    database = locate(database)
    if isinstance(database, Path) and database.parent.name == database.stem:
        found = _update_with_bird(found, database.parent / _BIRD_FOLDER, schema)
    if source is None:
        return found
    source = Path(source)
    if source.is_file():
        return found.updated_with(DataDictionary.load(source).spelled_as(schema, source))
    if not source.is_dir():
        raise InputError(f"`description_source` is {str(source)!r}, which does not exist.")
    if any(source.glob("*.csv")):
        return _update_with_bird(found, source, schema)
    found = _update_with_bird(found, source / schema.db_id / _BIRD_FOLDER, schema)
    for suffix in _SUFFIXES:
        file = source / f"{schema.db_id}{suffix}"
        if file.is_file():
            return found.updated_with(DataDictionary.load(file).spelled_as(schema, file))
    return found


def _update_with_bird(
    found: DataDictionary, folder: Path, schema: DatabaseSchema
) -> DataDictionary:
    if not any(folder.glob("*.csv")):
        return found
    return found.updated_with(DataDictionary.from_bird(folder).spelled_as(schema, folder))


def _hint(name: str, known: Iterable[str]) -> str:
    near = difflib.get_close_matches(name.lower(), list(known), n=1)
    return f" (did you mean {near[0]!r}?)" if near else ""


# ---------------------------------------------------------------------- files


def _read(path: Path) -> Any:
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputError(
            f"{path} is not UTF-8 text (byte {error.start}). Save it as UTF-8."
        ) from error
    if path.suffix.lower() in (".yaml", ".yml"):
        import yaml  # type: ignore[import-untyped]

        try:
            return yaml.safe_load(text)
        except (yaml.YAMLError, RecursionError, ValueError) as error:
            raise InputError(f"{path}: invalid YAML ({' '.join(str(error).split())}).") from error
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path}: invalid JSON ({error}).") from error


def _read_bird(file: Path) -> TableEntry:
    data = file.read_bytes()
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError:
        text = data.decode("cp1252", errors="replace")
    columns = {}
    try:
        reader = csv.DictReader(text.splitlines(keepends=True), skipinitialspace=True)
        names = [(name or "").strip().lower() for name in reader.fieldnames or ()]
        reader.fieldnames = names
        if missing := [name for name in _BIRD_FIELDS if name not in names]:
            raise InputError(
                f"{file}: the field {missing[0]!r} is missing; expected the header of BIRD's "
                f"files: {', '.join(_BIRD_FIELDS)}, value_description. It has {names}."
            )
        for row in reader:
            fields = (*_BIRD_FIELDS, "value_description")
            column, words, meaning, values = (_one_line(row.get(name)) for name in fields)
            if column:
                is_new = words.lower() not in {"", column.lower(), meaning.lower()}
                synonyms = (words,) if is_new and meaning else ()
                columns[column] = ColumnEntry(meaning or words, values, synonyms)
    except csv.Error as error:
        raise InputError(f"{file}: invalid CSV ({error}).") from error
    return TableEntry(columns=columns)


def _one_line(value: Any) -> str:
    return " ".join(value.split()) if isinstance(value, str) else ""


def _load_column(value: Any, place: str) -> ColumnEntry:
    if isinstance(value, str):
        return ColumnEntry(value)
    entry = _checked(value, dict, place, {"meaning", "format", "synonyms"})
    return ColumnEntry(
        _checked(entry.get("meaning", ""), str, f"{place}.meaning"),
        _checked(entry.get("format", ""), str, f"{place}.format"),
        _checked_list(entry.get("synonyms", []), f"{place}.synonyms"),
    )


def _checked(value: Any, kind: type[Any], place: str, fields: set[str] | None = None) -> Any:
    if type(value) is not kind:
        raise InputError(f"{place}: expected {_KINDS[kind]}, got {value!r}.")
    if fields is not None and not value.keys() <= fields:
        unknown = sorted(map(str, value.keys() - fields))
        raise InputError(f"{place}: unknown field {unknown[0]!r}; expected {sorted(fields)}.")
    return value


def _checked_name(name: Any, place: str) -> str:
    """A key of YAML, which reads `no` as false and `1` as a number."""
    if not isinstance(name, str):
        raise InputError(f"{place}: the name {name!r} is no text. Put it in quotes.")
    return name


def _checked_list(value: Any, place: str) -> tuple[str, ...]:
    return tuple(_checked(item, str, place) for item in _checked(value, list, place))


_KINDS: Final[dict[type[Any], str]] = {
    dict: "an object",
    str: "a string",
    list: "a list of strings",
}
