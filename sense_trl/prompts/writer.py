"""`PromptWriter`: from a question on a database to the messages that a model reads."""

from __future__ import annotations

import contextlib
import hashlib
import logging
import os
import shutil
import tempfile
import time
import weakref
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from sense_trl._closing import Closing
from sense_trl._files import cache_folder, check_writable, is_sampled, sampled_sha256_of
from sense_trl.database.catalog import DatabaseCatalog
from sense_trl.database.location import DatabasePath, ServerDatabase
from sense_trl.errors import DatabaseError, InputError, OutputError
from sense_trl.prompts.harmless import make_harmless
from sense_trl.prompts.linking import (
    SchemaChoice,
    SchemaChooser,
    SchemaLinker,
    find_named_items,
)
from sense_trl.prompts.messages import Attempt, Messages, add_attempts, get_prompt
from sense_trl.prompts.name_linker import NameLinker
from sense_trl.prompts.privacy import PrivacyRules, Sensitivity
from sense_trl.prompts.pruning import SchemaPruner
from sense_trl.prompts.style import NAME_LINKER, PromptStyle
from sense_trl.prompts.value_index import (
    INDEX_FORMAT,
    ValueIndex,
    ValueMatch,
    build_value_index,
)
from sense_trl.prompts.values import ChosenValues, choose_values
from sense_trl.schema.data_dictionary import find_dictionary
from sense_trl.schema.formats import (
    Descriptions,
    format_literal,
    format_notes,
    format_schema,
    quote_name,
)
from sense_trl.schema.naming import (
    ColumnKey,
    get_key,
    get_words,
    normalise,
    plural,
    singular,
)
from sense_trl.schema.schema import DatabaseSchema, get_schema

logger = logging.getLogger(__name__)

# Matches looked at before those of columns that are not shown are dropped.
_SPARE: Final = 4
_MAX_OF_VALUE: Final = 4
# Indices that are open at a time: a process may have some hundred files.
_MAX_OPEN: Final = 64
# Indexing that takes longer is spoken of.
_SLOW_S: Final = 5.0


MakeLinker = Callable[[DatabaseSchema, Descriptions], SchemaLinker]
"""Makes the linker of a database."""


@dataclass(frozen=True, slots=True)
class PromptParts:
    """A prompt in its parts, "" for those that it does not have.

    Attributes:
        instruction: what is asked for.
        schema: the tables, with values and descriptions.
        evidence: external knowledge.
        matched_values: values that the question names.
        question: the question.
        attempts: queries that failed before, each with what the database said.
        dialect: sqlglot name of the dialect that is asked for.
        left_out: what of the schema is not shown, to keep to `max_schema_tokens`.
    """

    instruction: str
    schema: str
    evidence: str
    matched_values: str
    question: str
    attempts: tuple[Attempt, ...]
    dialect: str
    left_out: str = ""

    @property
    def messages(self) -> Messages:
        """The conversation."""
        messages = get_prompt(
            self.question,
            self.schema,
            dialect=self.dialect,
            evidence=self.evidence,
            matched_values=self.matched_values,
            instruction=self.instruction,
        )
        return add_attempts(messages, self.attempts)


class PromptWriter(Closing):
    """Writes prompts of one style for the databases of a catalog.

    What a database shows of itself (values, descriptions, the index of its values) is read when it
    is first asked about, and again where its file has changed.

    Args:
        catalog: the databases; it stays open.
        style: how prompts are written.
        schemas: schemas by `db_id` that are used in place of the databases' own, such as those of
            Spider's tables.json.
        description_source: where tables and columns are described, besides the databases
            themselves and what BIRD has beside them; see `find_dictionary`.
        count_tokens: the number of tokens of a text, for the style's `max_schema_tokens`.
        make_linker: what chooses parts of a schema, made once for each database from its schema and
            descriptions; `NameLinker` if not given.
        cache_dir: where indices of values are kept, a file for each content of a database;
            `cache_folder()` if not given.
        on_progress: called with the `db_id`, a table and the number of its rows read so far, while
            an index is built.

    Raises:
        InputError: the style limits the tokens of the schema, and `count_tokens` is missing; or it
            names a linker that is not `names`, and `make_linker` is.

    Example:
        >>> import sqlite3, tempfile, pathlib
        >>> folder = pathlib.Path(tempfile.mkdtemp())
        >>> connection = sqlite3.connect(folder / "pets.sqlite")
        >>> _ = connection.execute("CREATE TABLE pet AS SELECT 'Rex' AS name, 'dog' AS kind")
        >>> connection.close()
        >>> catalog = DatabaseCatalog.from_path(folder)
        >>> style = PromptStyle(num_matched_values=3)
        >>> with catalog, PromptWriter(catalog, style, cache_dir=folder / "cache") as writer:
        ...     print(writer.get_messages("pets", "How many dogs are there?")[1]["content"])
        Values that may be meant: pet.kind = 'dog'
        How many dogs are there?
    """

    def __init__(
        self,
        catalog: DatabaseCatalog,
        style: PromptStyle | None = None,
        *,
        schemas: Mapping[str, DatabaseSchema] | None = None,
        description_source: str | os.PathLike[str] | None = None,
        count_tokens: Callable[[str], int] | None = None,
        make_linker: MakeLinker | None = None,
        cache_dir: str | os.PathLike[str] | None = None,
        on_progress: Callable[[str, str, int], None] | None = None,
    ) -> None:
        self.catalog: Final = catalog
        self.style: Final = style or PromptStyle()
        if self.style.max_schema_tokens is not None and count_tokens is None:
            raise InputError(
                f"`max_schema_tokens` is {self.style.max_schema_tokens}, but there is nothing to "
                "count tokens with. Give `count_tokens`, e.g. "
                "`lambda text: len(tokenizer(text)['input_ids'])`."
            )
        if self.style.linker not in (None, NAME_LINKER) and make_linker is None:
            raise InputError(
                f"`linker` is {self.style.linker!r}, but it is not there. Give `make_linker`, e.g. "
                "that of `sense_trl.steps.linking.open_linker`."
            )
        self._schemas = dict(schemas or {})
        self._rules = PrivacyRules(self.style.shown_columns, self.style.hidden_columns)
        self._description_source = None if description_source is None else Path(description_source)
        self._count_tokens = count_tokens
        self._make_linker = make_linker or NameLinker
        self._cache_dir = Path(cache_dir) if cache_dir is not None else None
        self._on_progress = on_progress
        self._contents: dict[str, _DatabaseContent] = {}
        self._indices: OrderedDict[Path, ValueIndex] = OrderedDict()
        self._scratch: Path | None = None
        # Spent on indices since that was last said.
        self._quiet_s = 0.0

    # ------------------------------------------------------------------ prompts

    def get_schema(self, db_id: str) -> DatabaseSchema:
        """The schema of a database, as prompts show it."""
        if db_id not in self._schemas:
            self._schemas[db_id] = get_schema(self.catalog.engine(db_id), db_id)
        return self._schemas[db_id]

    def get_schema_text(self, db_id: str) -> str:
        """The whole schema with values and descriptions, the same for all questions."""
        return self._get_content(db_id).schema_text

    def get_left_out(self, db_id: str) -> Mapping[str, int]:
        """Numbers of columns, values and descriptions that are not shown, or cut, by reason."""
        return self._get_content(db_id).left_out

    def get_parts(
        self,
        db_id: str,
        question: str,
        *,
        evidence: str | None = None,
        gold_sql: str | None = None,
        attempts: Iterable[Attempt] = (),
    ) -> PromptParts:
        """The parts of the prompt of a question.

        Args:
            db_id: the database.
            question: as the user typed it.
            evidence: external knowledge.
            gold_sql: in training, the query whose tables and columns are shown however wide the
                schema is.
            attempts: queries that failed before.

        Raises:
            InputError: there is no such database, or a description does not fit it.
            DatabaseError: it cannot be read.
        """
        content = self._get_content(db_id)
        asked = f"{evidence or ''}\n{question}"
        matches = self.find_values(db_id, asked)
        schema = self.get_schema(db_id)
        text, left_out = content.schema_text, ""
        if content.chooser is not None:
            kept = set() if gold_sql is None else find_named_items(gold_sql, schema)
            choice = content.chooser.choose(asked, matches=matches, kept=kept)
            schema, text, left_out = choice.schema, choice.text, _describe_left_out(choice)
        return PromptParts(
            self.style.full_instruction,
            text,
            evidence or "",
            _write_matches(matches, schema),
            question,
            tuple(attempts),
            schema.dialect,
            left_out,
        )

    def get_messages(
        self,
        db_id: str,
        question: str,
        *,
        evidence: str | None = None,
        gold_sql: str | None = None,
        attempts: Iterable[Attempt] = (),
    ) -> Messages:
        """The prompt of a question; see `get_parts`."""
        return self.get_parts(
            db_id, question, evidence=evidence, gold_sql=gold_sql, attempts=attempts
        ).messages

    def find_values(self, db_id: str, text: str) -> list[ValueMatch]:
        """The values of a database that a text names and that may be shown, the best first."""
        wanted = self.style.num_matched_values
        if wanted == 0:
            return []
        content = self._get_content(db_id)
        index = self._get_index(db_id, content)
        found = []
        columns: Counter[str] = Counter()
        for match in index.find(text, max_matches=_SPARE * wanted, names=content.names):
            judged = content.sensitivity.get(get_key(match.table, match.column), Sensitivity.NONE)
            # Whoever has typed all of it learns nothing but where it stands.
            is_shown = judged is Sensitivity.NONE or match.score == 1
            if is_shown and len(match.value) <= self.style.max_value_chars:
                columns[match.value] += 1
                if columns[match.value] <= _MAX_OF_VALUE:
                    found.append(match)
        return found[:wanted]

    def prepare(self, db_id: str) -> None:
        """Read what prompts on a database show, and build its index, before it is asked about."""
        content = self._get_content(db_id)
        if self.style.num_matched_values:
            self._get_index(db_id, content)

    def close(self) -> None:
        """Close the indices; the catalog stays open."""
        for index in self._indices.values():
            index.close()
        self._indices.clear()

    # ------------------------------------------------------------------ what a database holds

    def _get_content(self, db_id: str) -> _DatabaseContent:
        """The content of a database in its present state, read anew if its file has changed."""
        style = self.style
        path = self.catalog.path(db_id)
        # A schema that was given has nothing to do with the state of the file.
        reads_values = style.num_values > 0 or style.num_matched_values > 0
        state = _get_state(path) if reads_values or style.descriptions else ()
        content = self._contents.get(db_id)
        if content is None or content.state != state:
            schema = self.get_schema(db_id)
            chosen = ChosenValues({})
            if reads_values:
                with _naming_the_way_out(db_id):
                    chosen = choose_values(
                        self.catalog.engine(db_id),
                        num_values=style.num_values,
                        max_chars=style.max_value_chars,
                        rules=self._rules,
                    )
            left_out = Counter(chosen.left_out)
            descriptions = self._read_descriptions(db_id, left_out) if style.descriptions else {}
            content = self._make_content(state, schema, chosen, descriptions, left_out)
            self._contents[db_id] = content
        return content

    def _make_content(
        self,
        state: tuple[object, ...],
        schema: DatabaseSchema,
        chosen: ChosenValues,
        descriptions: Mapping[ColumnKey, str],
        left_out: Mapping[str, int],
    ) -> _DatabaseContent:
        # By the names of the schema, which tables.json may spell otherwise than the database.
        values: dict[tuple[str, str], Sequence[object]] = {}
        texts: dict[tuple[str, str], str] = {}
        for table in schema.tables:
            for name in ("", *(column.name for column in table.columns)):
                key = get_key(table.name, name)
                if key in chosen.values:
                    values[table.name, name] = chosen.values[key]
                if key in descriptions:
                    texts[table.name, name] = descriptions[key]
        style = self.style.schema_style

        def write(part: DatabaseSchema) -> str:
            if style != "compact":
                return format_schema(part, style=style, sample_values=values, descriptions=texts)
            notes = format_notes(part, values, texts)
            return format_schema(part, style=style) + (f"\n{notes}" if notes else "")

        chooser: SchemaChooser | SchemaPruner | None = None
        if self.style.max_schema_tokens is not None and self._count_tokens is not None:
            chooser = SchemaChooser(
                schema,
                self._make_linker(schema, texts),
                max_tokens=self.style.max_schema_tokens,
                count_tokens=self._count_tokens,
                write=write,
            )
            if not chooser.fits:
                logger.warning(
                    "The schema of %r takes %d tokens, `max_schema_tokens` is %d: of each question "
                    "the tables that it seems to be about are shown.",
                    schema.db_id,
                    chooser.num_tokens,
                    self.style.max_schema_tokens,
                )
        elif self.style.linker is not None:
            chooser = SchemaPruner(
                schema,
                self._make_linker(schema, texts),
                write=write,
                max_tables=self.style.linked_tables,
                max_columns=self.style.linked_columns,
            )
        names = _get_names(schema)
        text = write(schema)
        return _DatabaseContent(state, text, names, chosen.sensitivity, left_out, chooser)

    def _read_descriptions(self, db_id: str, left_out: Counter[str]) -> dict[ColumnKey, str]:
        """One line for each table and column that is described, by names in lower case."""
        # Comments are the database's own, whatever schema prompts show.
        own = get_schema(self.catalog.engine(db_id), db_id)
        source = self._description_source
        dictionary = find_dictionary(own, self.catalog.path(db_id), source)
        limit = self.style.max_description_chars
        texts = {}
        for table, entry in dictionary.tables.items():
            told = {"": entry.meaning, **{name: c.text for name, c in entry.columns.items()}}
            for name, text in told.items():
                text = make_harmless(text)
                if len(text) > limit:
                    left_out["descriptions cut"] += 1
                    text = text[: limit - 3].rstrip() + "..."
                if text:
                    texts[get_key(table, name)] = text
        return texts

    def _get_index(self, db_id: str, content: _DatabaseContent) -> ValueIndex:
        if content.index_path is None:
            content.index_path = self._find_index_path(db_id, content)
        path = content.index_path
        if path not in self._indices:
            try:
                index = ValueIndex(path)
            except DatabaseError:
                # There is none, or it is damaged.
                content.index_path = path = self._build_index(db_id, content, path)
                index = ValueIndex(path)
            self._indices[path] = index
            if len(self._indices) > _MAX_OPEN:
                _, oldest = self._indices.popitem(last=False)
                oldest.close()
        self._indices.move_to_end(path)
        return self._indices[path]

    def _build_index(self, db_id: str, content: _DatabaseContent, path: Path) -> Path:
        """Write an index and return where: elsewhere if the cache takes no files."""
        try:
            check_writable(path.parent, "cache_dir")
        except InputError as error:
            if self._scratch is None:
                self._scratch = Path(tempfile.mkdtemp(prefix="sense_trl-values-"))
                weakref.finalize(self, shutil.rmtree, self._scratch, ignore_errors=True)
                logger.warning(
                    "The index of values is made for this run alone: %s SENSE_TRL_CACHE names the "
                    "cache.",
                    str(error),
                )
            path = self._scratch / path.name
        # Many small databases take their time, too.
        started = time.monotonic() - self._quiet_s
        is_told = False

        def report(table: str, num_rows: int) -> None:
            nonlocal is_told
            if not is_told and time.monotonic() - started > _SLOW_S:
                is_told = True
                logger.warning(
                    "Indexing the values of %r, which is done once for a state of it: %d rows of "
                    "%s so far. `num_matched_values` 0 does without.",
                    db_id,
                    num_rows,
                    table,
                )
            if self._on_progress is not None:
                self._on_progress(db_id, table, num_rows)

        with _naming_the_way_out(db_id):
            build_value_index(
                self.catalog.engine(db_id), path, excluded=content.secrets, on_progress=report
            )
        self._quiet_s = 0.0 if is_told else time.monotonic() - started
        return path

    def _find_index_path(self, db_id: str, content: _DatabaseContent) -> Path:
        """Named by all that its content depends on."""
        identity = hashlib.sha256()
        path = self.catalog.path(db_id)
        if isinstance(path, ServerDatabase):
            # Without the label of a snapshot it is taken to be what it was an hour ago, not more.
            hour = "" if path.snapshot else f"{time.time() // 3600:.0f}"
            identity.update(f"{path} {hour}".encode())
        else:
            identity.update("".join(map(_identify_file, _get_files(path))).encode())
        identity.update(repr((INDEX_FORMAT, content.secrets)).encode())
        folder = (self._cache_dir or cache_folder()) / "values"
        return folder / f"{identity.hexdigest()[:40]}.sqlite"


@dataclass(slots=True)
class _DatabaseContent:
    """Schema text, names and facts read of a database in one state of its file."""

    state: tuple[object, ...]
    schema_text: str
    names: frozenset[str]
    sensitivity: Mapping[ColumnKey, Sensitivity]
    left_out: Mapping[str, int]
    chooser: SchemaChooser | SchemaPruner | None
    index_path: Path | None = None

    @property
    def secrets(self) -> list[ColumnKey]:
        """The columns of which nothing may be known."""
        return sorted(k for k, judged in self.sensitivity.items() if judged is Sensitivity.SECRET)


@contextlib.contextmanager
def _naming_the_way_out(db_id: str) -> Iterator[None]:
    """Within the block, what goes wrong with values says which options do without them."""
    try:
        yield
    except (DatabaseError, OutputError) as error:
        raise type(error)(
            f"The values of {db_id!r} cannot be used ({error}). `num_values` 0 and "
            "`num_matched_values` 0 do without them."
        ) from error


def _write_matches(matches: Sequence[ValueMatch], schema: DatabaseSchema) -> str:
    if not matches:
        return ""
    spelling = {
        get_key(table.name, column.name): f"{quote_name(table.name, schema.dialect)}."
        f"{quote_name(column.name, schema.dialect)}"
        for table in schema.tables
        for column in table.columns
    }
    shown = [
        f"{spelling[key]} = {format_literal(match.value)}"
        for match in matches
        if (key := get_key(match.table, match.column)) in spelling
    ]
    return f"Values that may be meant: {', '.join(shown)}" if shown else ""


def _describe_left_out(choice: SchemaChoice) -> str:
    parts = []
    if tables := choice.left_out_tables:
        parts.append(f"{len(tables)} tables ({', '.join(tables[:5])}{', ...' * (len(tables) > 5)})")
    if choice.num_left_out_columns:
        parts.append(f"{choice.num_left_out_columns} columns of the others")
    return " and ".join(parts)


def _get_names(schema: DatabaseSchema) -> frozenset[str]:
    """The words by which a question means a table or a column."""
    columns = [column.name for table in schema.tables for column in table.columns]
    names = [*columns, *(table.name for table in schema.tables)]
    words = {word for name in names for word in normalise(" ".join(get_words(name))).split()}
    return frozenset(other for word in words for other in (word, singular(word), plural(word)))


def _get_files(path: Path) -> tuple[Path, Path, Path]:
    """A database and its log, as SQLite and as DuckDB name it."""
    return path, Path(f"{path}-wal"), Path(f"{path}.wal")


def _identify_file(file: Path) -> str:
    if not file.is_file():
        return "-"
    stat = file.stat()
    # A part of a content alone would miss small changes.
    time_ = f"{stat.st_mtime_ns}" if is_sampled(stat.st_size) else ""
    return f"{sampled_sha256_of(file)}{time_}"


def _get_state(path: DatabasePath) -> tuple[object, ...]:
    """Changes whenever a database's file or its log does."""
    if isinstance(path, ServerDatabase):
        return (path,)
    states: list[object] = []
    for file in _get_files(path):
        try:
            stat = os.stat(file)
        except FileNotFoundError:
            states.append(None)
        else:
            states.append((stat.st_ino, stat.st_size, stat.st_mtime_ns))
    return tuple(states)
