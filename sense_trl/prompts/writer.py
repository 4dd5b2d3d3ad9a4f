"""`PromptWriter`: from a question on a database to the messages that a model reads."""

from __future__ import annotations

import hashlib
import logging
import os
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from sense_trl._closing import Closing
from sense_trl._files import cache_folder, sha256_of
from sense_trl.database.catalog import DatabaseCatalog
from sense_trl.database.engine import SQLEngine
from sense_trl.errors import DatabaseError
from sense_trl.prompts.messages import Messages, get_prompt
from sense_trl.prompts.privacy import PrivacyRules, Sensitivity
from sense_trl.prompts.style import PromptStyle
from sense_trl.prompts.value_index import (
    INDEX_FORMAT,
    ValueIndex,
    ValueMatch,
    build_value_index,
    normalise,
)
from sense_trl.prompts.values import ChosenValues, choose_values, get_key
from sense_trl.schema.formats import format_literal, format_notes, format_schema, quote_name
from sense_trl.schema.naming import get_words, plural, singular
from sense_trl.schema.schema import DatabaseSchema, get_schema

__all__ = ["PromptParts", "PromptWriter"]

logger = logging.getLogger(__name__)

# Matches looked at before those of columns that are not shown are dropped.
_SPARE: Final = 4
_MAX_OF_VALUE: Final = 4


@dataclass(frozen=True, slots=True)
class PromptParts:
    """A prompt in its parts, "" for those that it does not have.

    Attributes:
        instruction: what is asked for.
        schema: the tables, with values and descriptions.
        evidence: external knowledge.
        matched_values: values that the question names.
        question: the question.
        dialect: sqlglot name of the dialect that is asked for.
    """

    instruction: str
    schema: str
    evidence: str
    matched_values: str
    question: str
    dialect: str

    @property
    def messages(self) -> Messages:
        """The conversation."""
        return get_prompt(
            self.question,
            self.schema,
            dialect=self.dialect,
            evidence=self.evidence,
            matched_values=self.matched_values,
            instruction=self.instruction,
        )


class PromptWriter(Closing):
    """Writes prompts of one style for the databases of a catalog.

    What a database shows of itself (values, the index of its values) is read when it is first
    asked about, and again where its file has changed.

    Args:
        catalog: the databases; it stays open.
        style: how prompts are written.
        schemas: schemas by `db_id` that are used in place of the databases' own, such as those of
            Spider's tables.json.
        cache_dir: where indices of values are kept, a file for each content of a database;
            `cache_folder()` if not given.
        on_progress: called with the `db_id`, a table and the number of its rows read so far, while
            an index is built.
    """

    def __init__(
        self,
        catalog: DatabaseCatalog,
        style: PromptStyle | None = None,
        *,
        schemas: Mapping[str, DatabaseSchema] | None = None,
        cache_dir: str | os.PathLike[str] | None = None,
        on_progress: Callable[[str, str, int], None] | None = None,
    ) -> None:
        self.catalog: Final = catalog
        self.style: Final = style or PromptStyle()
        self._schemas = dict(schemas or {})
        self._rules = PrivacyRules(self.style.shown_columns, self.style.hidden_columns)
        self._cache_dir = Path(cache_dir) if cache_dir is not None else None
        self._on_progress = on_progress
        self._contents: dict[str, _DatabaseContent] = {}
        self._indices: dict[Path, ValueIndex] = {}

    def get_schema(self, db_id: str) -> DatabaseSchema:
        """The schema of a database, as prompts show it."""
        if db_id not in self._schemas:
            self._schemas[db_id] = get_schema(self.catalog.engine(db_id), db_id)
        return self._schemas[db_id]

    def get_schema_text(self, db_id: str) -> str:
        """The schema with values, the same for all questions on a database."""
        if self.style.num_values == 0:
            return format_schema(self.get_schema(db_id), style=self.style.schema_style)
        return self._get_content(db_id).schema_text

    def get_left_out(self, db_id: str) -> Mapping[str, int]:
        """How many columns and values are not shown, by reason."""
        return self._get_content(db_id).chosen.left_out

    def get_parts(self, db_id: str, question: str, *, evidence: str | None = None) -> PromptParts:
        """The parts of the prompt of a question.

        Raises:
            InputError: there is no such database.
            DatabaseError: it cannot be read.
        """
        return PromptParts(
            self.style.full_instruction,
            self.get_schema_text(db_id),
            evidence or "",
            self._get_matched_values(db_id, question, evidence),
            question,
            self.get_schema(db_id).dialect,
        )

    def get_messages(self, db_id: str, question: str, *, evidence: str | None = None) -> Messages:
        """The prompt of a question; see `get_parts`."""
        return self.get_parts(db_id, question, evidence=evidence).messages

    def find_values(self, db_id: str, text: str) -> list[ValueMatch]:
        """The values of a database that a text names and that may be shown, the best first."""
        wanted = self.style.num_matched_values
        if wanted == 0:
            return []
        index = self._get_index(db_id)
        sensitivity = self._get_content(db_id).chosen.sensitivity
        found = []
        columns: Counter[str] = Counter()
        names = self._get_content(db_id).names
        for match in index.find(text, max_matches=_SPARE * wanted, names=names):
            judged = sensitivity.get(get_key(match.table, match.column), Sensitivity.NONE)
            # Whoever has typed all of it learns nothing but where it stands.
            is_shown = judged is Sensitivity.NONE or match.score == 1
            if is_shown and len(match.value) <= self.style.max_value_chars:
                columns[match.value] += 1
                if columns[match.value] <= _MAX_OF_VALUE:
                    found.append(match)
        return found[:wanted]

    def close(self) -> None:
        """Close the indices; the catalog stays open."""
        for index in self._indices.values():
            index.close()
        self._indices.clear()

    # ------------------------------------------------------------------ what a database holds

    def _get_matched_values(self, db_id: str, question: str, evidence: str | None) -> str:
        matches = self.find_values(db_id, f"{evidence or ''}\n{question}")
        if not matches:
            return ""
        schema = self.get_schema(db_id)
        spelling = {
            get_key(table.name, column.name): f"{quote_name(table.name)}.{quote_name(column.name)}"
            for table in schema.tables
            for column in table.columns
        }
        shown = [
            f"{spelling[key]} = {format_literal(match.value)}"
            for match in matches
            if (key := get_key(match.table, match.column)) in spelling
        ]
        return f"Values that may be meant: {', '.join(shown)}" if shown else ""

    def _get_content(self, db_id: str) -> _DatabaseContent:
        """What is known of a database in its present state."""
        path = self.catalog.path(db_id)
        state = _get_state(path)
        content = self._contents.get(db_id)
        if content is None or content.state != state:
            engine = self.catalog.engine(db_id)
            chosen = choose_values(
                engine,
                num_values=self.style.num_values,
                max_chars=self.style.max_value_chars,
                rules=self._rules,
            )
            text = self._write_schema(db_id, chosen)
            content = _DatabaseContent(state, chosen, text, _get_names(self.get_schema(db_id)))
            self._contents[db_id] = content
        return content

    def _write_schema(self, db_id: str, chosen: ChosenValues) -> str:
        schema = self.get_schema(db_id)
        values = {
            (table.name, column.name): chosen.values[key]
            for table in schema.tables
            for column in table.columns
            if (key := get_key(table.name, column.name)) in chosen.values
        }
        if self.style.schema_style != "compact":
            return format_schema(schema, style=self.style.schema_style, sample_values=values)
        return "\n".join(
            filter(None, (format_schema(schema, style="compact"), format_notes(schema, values)))
        )

    def _get_index(self, db_id: str) -> ValueIndex:
        content = self._get_content(db_id)
        if content.index_path is None:
            content.index_path = self._find_index_path(db_id, content)
        path = content.index_path
        if path not in self._indices:
            try:
                self._indices[path] = ValueIndex(path)
            except DatabaseError:
                # There is none, or it is damaged.
                self._build_index(db_id, path, self._get_secrets(content))
                self._indices[path] = ValueIndex(path)
        return self._indices[path]

    def _build_index(self, db_id: str, path: Path, secrets: Sequence[tuple[str, str]]) -> None:
        engine: SQLEngine = self.catalog.engine(db_id)
        report = self._on_progress
        build_value_index(
            engine,
            path,
            excluded=secrets,
            on_progress=None if report is None else lambda table, n: report(db_id, table, n),
        )

    def _find_index_path(self, db_id: str, content: _DatabaseContent) -> Path:
        """Named by all that its content depends on."""
        identity = hashlib.sha256()
        path = self.catalog.path(db_id)
        for file in (path, Path(f"{path}-wal"), Path(f"{path}.wal")):
            identity.update((sha256_of(file) if file.is_file() else "-").encode())
        identity.update(repr((INDEX_FORMAT, self._get_secrets(content))).encode())
        folder = (self._cache_dir or cache_folder()) / "values"
        return folder / f"{identity.hexdigest()[:40]}.sqlite"

    @staticmethod
    def _get_secrets(content: _DatabaseContent) -> list[tuple[str, str]]:
        judged = content.chosen.sensitivity.items()
        return sorted(key for key, sensitivity in judged if sensitivity is Sensitivity.SECRET)


@dataclass(slots=True)
class _DatabaseContent:
    """What was read of a database in one state of its file."""

    state: tuple[object, ...]
    chosen: ChosenValues
    schema_text: str
    names: frozenset[str]
    index_path: Path | None = None


def _get_names(schema: DatabaseSchema) -> frozenset[str]:
    """The words by which a question means a table or a column."""
    columns = [column.name for table in schema.tables for column in table.columns]
    names = [*columns, *(table.name for table in schema.tables)]
    words = {word for name in names for word in normalise(" ".join(get_words(name))).split()}
    return frozenset(other for word in words for other in (word, singular(word), plural(word)))


def _get_state(path: Path) -> tuple[object, ...]:
    """Changes whenever a database's file or its log does."""
    states: list[object] = []
    for file in (path, Path(f"{path}-wal"), Path(f"{path}.wal")):
        try:
            stat = os.stat(file)
        except FileNotFoundError:
            states.append(None)
        else:
            states.append((stat.st_ino, stat.st_size, stat.st_mtime_ns))
    return tuple(states)
