"""A schema and a question as the text in which a model reads them, with where each item stands.

The schema comes first, so that what a model reads of it does not depend on the question. It is read
in blocks of tables: a schema of any width is then read in time linear in it, and a question is put
behind every block.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from sense_trl.database.engine import TableInfo
from sense_trl.database.text import show_text
from sense_trl.linking.labels import ItemKey
from sense_trl.schema.formats import quote_name
from sense_trl.schema.naming import get_key
from sense_trl.schema.schema import DatabaseSchema

Span = tuple[int, int]
"""`[start, end)` in characters."""

HEADING: Final = "Tables with their columns:\n"
_ENDING: Final = "\nQuestion:"
_MAX_NAME_CHARS: Final = 200
# Of what is asked the last so many are read, evidence before them.
_MAX_QUESTION_CHARS: Final = 2_000
_WORD: Final = re.compile(r"\w+|[^\w\s]")


@dataclass(frozen=True, slots=True)
class SchemaBlock:
    """A part of a schema as a model reads it.

    Attributes:
        text: its tables and the keys among them, up to where a question goes on.
        items: tables as (table, ""), and columns, by names in lower case.
        spans: where in the text the name of each stands.
    """

    text: str
    items: tuple[ItemKey, ...]
    spans: tuple[Span, ...]


def write_blocks(schema: DatabaseSchema, *, max_chars: int = 3_000) -> list[SchemaBlock]:
    """Write a schema in blocks: a line for each table, and one for each foreign key.

    Args:
        schema: the database.
        max_chars: of a block, about. A table that is longer stands in several, each with some of
            its columns.

    Example:
        >>> from sense_trl.database import ColumnInfo, TableInfo
        >>> columns = tuple(ColumnInfo(name, "", False, 0) for name in ("id", "name"))
        >>> schema = DatabaseSchema("d", "sqlite", (TableInfo("Pet", columns, (), False),))
        >>> (block,) = write_blocks(schema)
        >>> print(block.text)
        Tables with their columns:
        Pet(id, name)
        <BLANKLINE>
        Question:
        >>> [block.text[start:end] for start, end in block.spans], block.items[1]
        (['Pet', 'id', 'name'], ('pet', 'id'))
    """
    blocks: list[SchemaBlock] = []
    lines: list[_Line] = []
    size = 0
    for table in schema.tables:
        for line in _write_table(table, max_chars):
            if lines and size + len(line.text) > max_chars:
                blocks.append(_join(schema, lines))
                lines, size = [], 0
            lines.append(line)
            size += len(line.text)
    return [*blocks, _join(schema, lines)] if lines else blocks


def split_question(question: str) -> tuple[str, tuple[Span, ...]]:
    """The text that goes behind a block, and the places of its words.

    The last place is the end of the line, where a model that reads from left to right has seen the
    whole question. Of a long text the end is read.

    Example:
        >>> text, spans = split_question("How old?")
        >>> text, [text[start:end] for start, end in spans]
        (' How old?\\n', ['How', 'old', '?', '\\n'])
    """
    text = f" {' '.join(show_text(question).split())[-_MAX_QUESTION_CHARS:]}\n"
    words = [match.span() for match in _WORD.finditer(text)]
    return text, (*words, (len(text) - 1, len(text)))


def repeat_items(
    question: str, block: SchemaBlock, *, max_chars: int = 2_000
) -> list[tuple[str, tuple[Span, ...]]]:
    """The texts that go behind a block to read its items again, after the question.

    Each is that of `split_question` and some of the items behind it, each between two marks. Its
    spans are those of the words, and then the two marks of each item.

    Args:
        question: what is asked.
        block: of the schema; one without items gives the question alone.
        max_chars: of the items of a text, about.

    Example:
        >>> block = SchemaBlock("Pet(id)", (("pet", ""), ("pet", "id")), ((0, 3), (4, 6)))
        >>> ((text, spans),) = repeat_items("How old?", block)
        >>> text
        ' How old?\\n[ Pet ]\\n[ Pet.id ]\\n'
        >>> [text[start:end] for start, end in spans]
        ['How', 'old', '?', '\\n', '[', ']', '[', ']']
    """
    asked, words = split_question(question)
    texts = []
    text, spans, table = asked, words, ""
    for (_, column), (start, end) in zip(block.items, block.spans, strict=True):
        name = block.text[start:end]
        table, name = (table, f"{table}.{name}") if column else (name, name)
        line = f"[ {name} ]\n"
        if len(spans) > len(words) and len(text) - len(asked) + len(line) > max_chars:
            texts.append((text, spans))
            text, spans = asked, words
        last = len(text) + len(line) - 2
        spans += ((len(text), len(text) + 1), (last, last + 1))
        text += line
    return [*texts, (text, spans)]


@dataclass(frozen=True, slots=True)
class _Line:
    text: str
    items: tuple[ItemKey, ...]
    spans: tuple[Span, ...]


def _write_name(name: str) -> str:
    return quote_name(" ".join(show_text(name).split())[:_MAX_NAME_CHARS])


def _write_table(table: TableInfo, max_chars: int) -> Iterator[_Line]:
    """Lines of at most `max_chars`, each with the name of the table and some of its columns."""
    name = _write_name(table.name)
    own = get_key(table.name, "")
    text, items, spans = f"{name}(", [own], [(0, len(name))]
    for column in table.columns:
        written = _write_name(column.name)
        if len(items) > 1 and len(text) + len(written) > max_chars:
            yield _Line(f"{text})\n", tuple(items), tuple(spans))
            text, items, spans = f"{name}(", [own], [(0, len(name))]
        text += ", " if len(items) > 1 else ""
        spans.append((len(text), len(text) + len(written)))
        items.append(get_key(table.name, column.name))
        text += written
    yield _Line(f"{text})\n", tuple(items), tuple(spans))


def _join(schema: DatabaseSchema, lines: list[_Line]) -> SchemaBlock:
    text = HEADING
    items: list[ItemKey] = []
    spans: list[Span] = []
    for line in lines:
        spans += [(len(text) + start, len(text) + end) for start, end in line.spans]
        items += line.items
        text += line.text
    there = set(items)
    for table, column, other, referenced in schema.foreign_key_columns:
        if {get_key(table, column), get_key(other, referenced)} <= there:
            names = [_write_name(name) for name in (table, column, other, referenced)]
            text += "{}.{} = {}.{}\n".format(*names)
    return SchemaBlock(text + _ENDING, tuple(items), tuple(spans))
