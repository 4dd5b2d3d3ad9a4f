"""`explore_databases`: many databases into one folder, a finished part for each.

    questions.jsonl           all examples, as `load_questions` and `load_examples` read them
    account.json              what was kept and what was not, by reason, for each database
    dictionary/<db_id>.json   what tables and columns mean; made by a model, to be corrected
    answers-<hash>.jsonl      what the model of this name answered
    parts/                    finished databases

An interrupted exploration continues with the database it was at. A database is done again when
anything that its part was made from has changed, an edited dictionary included.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, NamedTuple

from sense_trl._files import read_json, sha256_of, write_text_atomically
from sense_trl.backends.backend import Backend, LocalBackend
from sense_trl.database.catalog import DatabaseCatalog
from sense_trl.database.location import get_content_hash
from sense_trl.errors import InputError
from sense_trl.generation.generator import SamplingConfig, SQLGenerator
from sense_trl.generation.recorded_generator import RecordedGenerator
from sense_trl.prompts import Messages, get_prompt
from sense_trl.questions import Question
from sense_trl.schema.data_dictionary import DataDictionary
from sense_trl.schema.foreign_keys import InferredForeignKey, infer_foreign_keys
from sense_trl.schema.formats import format_schema
from sense_trl.schema.graph import SchemaGraph
from sense_trl.schema.schema import DatabaseSchema, get_schema
from sense_trl.synthesis.example import SynthesizedExample, load_examples, write_examples
from sense_trl.synthesis.explore.config import ExplorationConfig
from sense_trl.synthesis.explore.data_dictionary import extract_dictionary, get_phrases
from sense_trl.synthesis.explore.exploration import ExplorationAccount, explore_database
from sense_trl.synthesis.explore.facts import DatabaseFacts, get_database_facts
from sense_trl.synthesis.explore.instructions import explore_with_model
from sense_trl.synthesis.explore.seeds import SortedSeeds, sort_seeds
from sense_trl.synthesis.explore.templates import SQLTemplate, mine_templates
from sense_trl.synthesis.filters.agreement import RoundTripFilter
from sense_trl.synthesis.filters.contamination import EvaluationIndex
from sense_trl.synthesis.filters.filters import ExampleFilter
from sense_trl.synthesis.output_folder import open_output_folder
from sense_trl.verification.verifier import SQLVerifier

# Changed whenever the same input gives other examples.
_FORMAT: Final = 3


@dataclass(frozen=True, slots=True)
class ModelOptions:
    """A model that explores.

    Attributes:
        generator: the model.
        sampling: how it answers.
        num_round_trip_samples: answers to each question of which one must return what the
            question's SQL returns; 0 asks for none.
    """

    generator: SQLGenerator
    sampling: SamplingConfig
    num_round_trip_samples: int = 0


@dataclass(frozen=True, slots=True)
class ExplorationResult:
    """The outcome of an exploration: its file, counts and seeds.

    Attributes:
        questions_path: the file with all examples.
        num_examples: kept, by database.
        account: counts over all databases.
        seeds: which seed questions were used, and which were left out.
        replaced: databases that the folder held with examples made from something else.
    """

    questions_path: Path
    num_examples: Mapping[str, int]
    account: ExplorationAccount
    seeds: SortedSeeds
    replaced: tuple[str, ...] = ()


def explore_databases(
    catalog: DatabaseCatalog,
    output: str | Path,
    config: ExplorationConfig | None = None,
    *,
    db_ids: Sequence[str] | None = None,
    schemas: Mapping[str, DatabaseSchema] | None = None,
    seeds: Sequence[Question] = (),
    excluded: Sequence[Question] = (),
    model: ModelOptions | None = None,
    num_workers: int | None = None,
    on_progress: Callable[[int], None] | None = None,
    backend: Backend | None = None,
) -> ExplorationResult:
    """Make questions with SQL about databases; see `explore_database`, `explore_with_model`.

    Where neither a database nor `schemas` has a foreign key, references are inferred
    (`infer_foreign_keys`) and written into the account.

    Args:
        catalog: the databases.
        output: the folder; created if it is not there.
        config: how many examples of each database, and how they are drawn.
        db_ids: which databases; all of the catalog if not given.
        schemas: their schemas where these are better known than the files declare them.
        seeds: training questions with gold SQL: templates come from all of them, weights of the
            graph from those on the same database. What is close to `excluded`, or cannot be read,
            is left out and named in the account (see `sort_seeds`).
        excluded: evaluation questions; what is close to one of them is left out.
        model: explores instead of templates and grammar.
        num_workers: processes that run the SQL; see `SQLVerifier`.
        on_progress: called with 1 for each database that is done.
        backend: where databases are explored, each a part: in this process if not given, or where
            a model explores. The folder is the same.

    Raises:
        InputError: a `db_id` is unknown, a seed is also excluded, more seeds are unreadable than
            the configuration allows, a dictionary has a slip, `output` cannot be written to or
            is being written to by another run, or there are a `model` and a `backend`.
        DatabaseError: a database cannot be read.
        ModelError: the model does not answer.
    """
    config = ExplorationConfig() if config is None else config
    db_ids = catalog.db_ids if db_ids is None else db_ids
    for db_id in db_ids:
        catalog.path(db_id)
    schemas = {} if schemas is None else schemas

    def get_dialect(db_id: str) -> str | None:
        if db_id in schemas:
            return schemas[db_id].dialect
        return catalog.dialect(db_id) if db_id in catalog else None

    allowed = config.max_unusable_fraction
    sorted_seeds = sort_seeds(seeds, excluded, get_dialect, max_unusable_fraction=allowed)
    if model is not None and backend is not None:
        raise InputError(
            "`backend` is given, and `model`: its answers are recorded by one process, and cost "
            "more than all else. Explore with a model in this process, without `backend`."
        )
    where = LocalBackend(num_workers) if backend is None else backend
    parts: dict[str, _Part] = {}
    with (
        open_output_folder(output) as path,
        SQLVerifier(catalog, num_workers=where.verifier_workers) as verifier,
    ):
        if model is not None:
            generator = model.generator
            file = path / f"answers-{_short_hash(generator.name)}.jsonl"
            recorded = RecordedGenerator(file, generator.name, lambda: generator)
            model = dataclasses.replace(model, generator=recorded)
        folder = _Folder(path, catalog, config, schemas, sorted_seeds, excluded, model)
        keep = None if model is None else folder.save_dictionary
        explorer = _Explorer(verifier, config, schemas, sorted_seeds.usable, excluded, model, keep)

        def advance(db_id: str, part: _Part) -> None:
            parts[db_id] = part
            if on_progress is not None:
                on_progress(1)

        def find_missing() -> Iterator[tuple[str, list[_Asked]]]:
            for db_id in db_ids:
                if (part := folder.load(db_id)) is None:
                    yield db_id, [folder.ask(db_id)]
                else:
                    advance(db_id, part)

        for db_id, made in where.map_shards(explorer, find_missing(), get_name=_get_db_id):
            advance(db_id, folder.save(db_id, made))
        return folder.finish({db_id: parts[db_id] for db_id in db_ids})


class _Asked(NamedTuple):
    """A database to explore, with its dictionary where there is one."""

    db_id: str
    dictionary: DataDictionary | None


class _Made(NamedTuple):
    """What there is to write about a database."""

    record: dict[str, Any]
    examples: list[SynthesizedExample]


def _get_db_id(asked: _Asked) -> str:
    return asked.db_id


_Part = tuple[dict[str, Any], int]
"""The record of a finished database, and its number of examples."""


@dataclass(eq=False)
class _Explorer:
    """Explores databases one by one: the work of a backend."""

    _verifier: SQLVerifier
    _config: ExplorationConfig
    _schemas: Mapping[str, DatabaseSchema]
    _seeds: Sequence[Question]
    _excluded: Sequence[Question]
    _model: ModelOptions | None
    _keep_dictionary: Callable[[str, DataDictionary], None] | None
    _templates: list[SQLTemplate] | None = None
    _indices: dict[str, EvaluationIndex] = field(default_factory=dict)

    def __call__(self, shard: Sequence[_Asked], _: object) -> _Made:
        """Explore the one database; nothing comes of one without a table, which is no slip."""
        [(db_id, dictionary)] = shard
        account, problems = ExplorationAccount(), Counter[str]()
        examples: list[SynthesizedExample] = []
        inferred: list[dict[str, Any]] = []
        has_table = any(
            table.columns and not table.is_view for table in self._get_schema(db_id).tables
        )
        if has_table:
            facts, inferred = self._get_facts(db_id)
            if dictionary is None:
                dictionary = self._extract_dictionary(db_id, facts, problems)
            examples = list(self._make(facts, dictionary, account))
        record = {
            "has_table": has_table,
            "num_examples": len(examples),
            "inferred_foreign_keys": inferred,
            "dictionary_problems": dict(sorted(problems.items())),
            **account.as_json(),
        }
        return _Made(record, examples)

    def _make(
        self,
        facts: DatabaseFacts,
        dictionary: DataDictionary | None,
        account: ExplorationAccount,
    ) -> Iterator[SynthesizedExample]:
        evaluation = self._get_index(facts.schema.dialect)
        if self._model is None:
            return explore_database(
                facts,
                self._verifier,
                self._config,
                templates=self._get_templates(),
                evaluation=evaluation,
                phrases=None if dictionary is None else get_phrases(dictionary),
                account=account,
            )
        return explore_with_model(
            facts,
            self._verifier,
            self._model.generator,
            self._model.sampling,
            self._config,
            dictionary=dictionary,
            templates=self._get_templates(),
            evaluation=evaluation,
            more_filters=_round_trip(self._model, facts, self._verifier),
            account=account,
        )

    def _get_schema(self, db_id: str) -> DatabaseSchema:
        return self._schemas.get(db_id) or get_schema(self._verifier.catalog.engine(db_id), db_id)

    def _get_facts(self, db_id: str) -> tuple[DatabaseFacts, list[dict[str, Any]]]:
        """The facts of a database, and the references that were inferred."""
        engine = self._verifier.catalog.engine(db_id)
        declared = get_schema(engine, db_id)
        schema = self._schemas.get(db_id, declared)
        inferred: tuple[InferredForeignKey, ...] = ()
        if not declared.foreign_keys and not schema.foreign_keys:
            inferred = infer_foreign_keys(engine, declared)
        facts = get_database_facts(
            engine,
            schema=schema,
            foreign_keys=[key.columns for key in inferred],
            seed_sql=[seed.gold_sql for seed in self._seeds if seed.db_id == db_id],
        )
        return facts, [dataclasses.asdict(key) for key in inferred]

    def _extract_dictionary(
        self, db_id: str, facts: DatabaseFacts, problems: Counter[str]
    ) -> DataDictionary | None:
        if self._model is None:
            return None
        dictionary = extract_dictionary(
            facts, self._model.generator, self._model.sampling, problems=problems
        )
        if self._keep_dictionary is not None:
            self._keep_dictionary(db_id, dictionary)
        return dictionary

    def _get_templates(self) -> list[SQLTemplate]:
        if self._templates is None:
            db_ids = dict.fromkeys(seed.db_id for seed in self._seeds)
            graphs = {db_id: SchemaGraph(self._get_schema(db_id)) for db_id in db_ids}
            self._templates = mine_templates([(s.db_id, s.gold_sql) for s in self._seeds], graphs)
        return self._templates

    def _get_index(self, dialect: str) -> EvaluationIndex | None:
        if self._excluded and dialect not in self._indices:
            self._indices[dialect] = EvaluationIndex(self._excluded, dialect=dialect)
        return self._indices.get(dialect)


@dataclass(eq=False)
class _Folder:
    """The folder of one exploration."""

    _path: Path
    _catalog: DatabaseCatalog
    _config: ExplorationConfig
    _schemas: Mapping[str, DatabaseSchema]
    _seeds: SortedSeeds
    _excluded: Sequence[Question]
    _model: ModelOptions | None
    _replaced: list[str] = field(default_factory=list)

    def load(self, db_id: str) -> _Part | None:
        """A part that is there and was made from the same."""
        record_path, examples_path = self._part_paths(db_id)
        if not (record_path.is_file() and examples_path.is_file()):
            return None
        record = read_json(record_path, "the record of an explored database", "key")
        if record["key"] != self._key(db_id):
            self._replaced.append(db_id)
            return None
        return record, len(load_examples(examples_path))

    def ask(self, db_id: str) -> _Asked:
        """What there is to know before a database is explored."""
        path = self._dictionary_path(db_id)
        return _Asked(db_id, DataDictionary.load(path) if path.is_file() else None)

    def save_dictionary(self, db_id: str, dictionary: DataDictionary) -> None:
        """Write what a model says that tables and columns mean."""
        dictionary.save(self._dictionary_path(db_id))

    def save(self, db_id: str, made: _Made) -> _Part:
        """Write a part."""
        record_path, examples_path = self._part_paths(db_id)
        write_examples(examples_path, made.examples)
        record = {"key": self._key(db_id), **made.record}
        # Last: a part is there when this is.
        write_text_atomically(record_path, json.dumps(record, indent=2) + "\n")
        return record, len(made.examples)

    def finish(self, finished: Mapping[str, _Part]) -> ExplorationResult:
        """Put the parts together."""
        records = {db_id: record for db_id, (record, _) in finished.items()}
        counts = {db_id: count for db_id, (_, count) in finished.items()}
        total = ExplorationAccount()
        for record in records.values():
            total.add(ExplorationAccount.from_json(record))
        questions_path = self._path / "questions.jsonl"
        parts = (load_examples(self._part_paths(db_id)[1]) for db_id in records)
        write_examples(questions_path, (example for part in parts for example in part))
        by_database = {
            db_id: {name: value for name, value in record.items() if name != "key"}
            for db_id, record in records.items()
        }
        content = {
            "config": dataclasses.asdict(self._config),
            "seeds": self._seeds.as_json(),
            "num_examples": sum(counts.values()),
            **total.as_json(),
            "databases": by_database,
        }
        write_text_atomically(self._path / "account.json", json.dumps(content, indent=2) + "\n")
        return ExplorationResult(questions_path, counts, total, self._seeds, tuple(self._replaced))

    def _key(self, db_id: str) -> str:
        """Identity of everything that a part is made from."""
        model = self._model
        path = self._catalog.path(db_id)
        dictionary = self._dictionary_path(db_id)
        content = [
            _FORMAT,
            db_id,
            dataclasses.asdict(self._config),
            get_content_hash(path) or str(path),
            repr(self._schemas.get(db_id)),
            [(seed.db_id, seed.gold_sql) for seed in self._seeds.usable],
            [(question.question, question.gold_sql) for question in self._excluded],
            model
            and [
                model.generator.name,
                dataclasses.asdict(model.sampling),
                model.num_round_trip_samples,
            ],
            sha256_of(dictionary) if dictionary.is_file() else None,
        ]
        return _short_hash(json.dumps(content))

    def _part_paths(self, db_id: str) -> tuple[Path, Path]:
        parts = self._path / "parts"
        return parts / f"{db_id}.json", parts / f"{db_id}.jsonl"

    def _dictionary_path(self, db_id: str) -> Path:
        return self._path / "dictionary" / f"{db_id}.json"


def _short_hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _round_trip(
    model: ModelOptions, facts: DatabaseFacts, verifier: SQLVerifier
) -> list[ExampleFilter]:
    if not model.num_round_trip_samples:
        return []
    schema_text = format_schema(facts.schema, style="ddl")

    def ask(example: SynthesizedExample) -> Messages:
        return get_prompt(example.question, schema_text, dialect=facts.schema.dialect)

    sampling = dataclasses.replace(
        model.sampling,
        num_generations=model.num_round_trip_samples,
        temperature=model.sampling.temperature or 1.0,
    )
    return [RoundTripFilter(model.generator, verifier, ask, sampling)]
