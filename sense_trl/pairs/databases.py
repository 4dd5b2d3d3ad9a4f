"""Facts about the databases that the builder asks for: schemas, normal forms, results."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import replace
from functools import lru_cache
from typing import Final, TypeAlias

from sense_trl.database.catalog import DatabaseCatalog
from sense_trl.database.engine import ExecutionLimits, QueryResult
from sense_trl.pairs.candidates import Candidate
from sense_trl.prompts import Attempt
from sense_trl.questions import Question
from sense_trl.sql.mutation import mutate_sql
from sense_trl.sql.normal_form import Query, get_normal_form
from sense_trl.sql.parsing import SQLParseError, canonical_sql, parse_folded
from sense_trl.sql.reading import scan_tokens
from sense_trl.sql.resolution import QueryNames, SchemaNames
from sense_trl.sql.taxonomy import ErrorClass, classify_errors, classify_results

Columns: TypeAlias = Mapping[str, Mapping[str, str]]
"""Declared type of each column, by table and column."""

# Steps of SQLite's virtual machine, so that it does not depend on the machine which results are
# known. Of 3,666 predictions of five models on Spider dev, 9 take more than 1 M.
_MAX_STEPS: Final = 5_000_000
_MAX_ROWS: Final = 10_000


class Databases:
    """Answers questions about queries that need the schema or the rows of their database.

    Args:
        catalog: opens the databases.
    """

    def __init__(self, catalog: DatabaseCatalog) -> None:
        self._catalog = catalog
        self._columns: dict[str, Columns] = {}
        self._names: dict[str, SchemaNames] = {}
        self._foreign_keys: dict[str, list[tuple[str, str, str, str]]] = {}

    def dialect(self, db_id: str) -> str:
        """The sqlglot dialect of the queries on a database."""
        return self._catalog.dialect(db_id)

    def identify(self, db_id: str, sql: str) -> str:
        """An identity of a query on a database, the same for every spelling of it."""
        return identify_query(sql, self.dialect(db_id))

    def error_classes(self, db_id: str, sql: str, gold_sql: str) -> tuple[ErrorClass, ...]:
        """Classes of a query's differences from gold; () also where sqlglot cannot read gold."""
        dialect, columns = self.dialect(db_id), self._get_columns(db_id)
        try:
            return classify_errors(sql, gold_sql, dialect, columns=columns)
        except SQLParseError:
            return ()

    def normal_form(self, db_id: str, sql: str) -> Query | None:
        """The query without its spelling, `None` where it has no such form."""
        dialect = self.dialect(db_id)
        try:
            tree = parse_folded(sql, dialect)
            names = QueryNames(tree, self._get_names(db_id), dialect=dialect)
            return get_normal_form(tree, names, dialect=dialect)
        except SQLParseError:
            return None

    def result_class(self, db_id: str, sql: str, gold_sql: str) -> str:
        """Class of the difference of a query's rows from gold's; "" where one of them gives none.

        A query gives none if it fails, or exceeds 5 M steps or 10,000 rows.
        """
        result, gold = self._execute(db_id, sql), self._execute(db_id, gold_sql)
        if not (result.ok and gold.ok):
            return ""
        # One class at most.
        return "".join(classify_results(result.rows, gold.rows))

    def fingerprint(self, db_id: str, sql: str) -> str | None:
        """A hash of the bag of rows that a query returns.

        `None` where it does not run to its end within 5 M steps and 10,000 rows.
        """
        result = self._execute(db_id, sql)
        if not result.ok:
            return None
        rows = (len(result.columns), sorted(map(repr, result.rows)))
        return hashlib.sha256(repr(rows).encode("utf-8", "surrogatepass")).hexdigest()

    def find_attempt(self, db_id: str, sql: str, limits: ExecutionLimits) -> Attempt | None:
        """Make the attempt that a query's model is asked again with, if it is; see `Attempt.of`."""
        return Attempt.of(sql, self._catalog.engine(db_id).execute(sql, limits=limits))

    def _execute(self, db_id: str, sql: str) -> QueryResult:
        engine = self._catalog.engine(db_id)
        limits = replace(engine.limits, max_steps=_MAX_STEPS, max_rows=_MAX_ROWS)
        return engine.execute(sql, limits=limits)

    def mutants(self, question: Question, count: int, seed: int) -> list[Candidate]:
        """Neighbours of the gold query as candidates, at most `count`; none are verified yet."""
        try:
            mutants = mutate_sql(
                question.gold_sql,
                self.dialect(question.db_id),
                columns=self._get_columns(question.db_id),
                foreign_keys=self._foreign_keys[question.db_id],
                seed=seed,
                max_mutants=count,
            )
        except SQLParseError:
            # SQLite reads a little more than sqlglot.
            return []
        return [
            Candidate(
                question_id=question.question_id,
                sample=sample,
                sql=mutant.sql,
                text=mutant.sql,
                source="mutation",
                model=str(mutant.kind),
                seed=seed,
            )
            for sample, mutant in enumerate(mutants)
        ]

    def _get_names(self, db_id: str) -> SchemaNames:
        if db_id not in self._names:
            self._names[db_id] = SchemaNames.of(self._get_columns(db_id))
        return self._names[db_id]

    def _get_columns(self, db_id: str) -> Columns:
        if db_id not in self._columns:
            tables = self._catalog.engine(db_id).get_tables()
            # What is not UTF-8 in a name is no character that a query could hold.
            self._columns[db_id] = {
                table.name: {c.name: c.type for c in table.columns if c.name.isprintable()}
                for table in tables
                if table.name.isprintable()
            }
            self._foreign_keys[db_id] = [
                (table.name, own, key.referenced_table, referenced)
                for table in tables
                for key in table.foreign_keys
                for own, referenced in zip(key.columns, key.referenced_columns, strict=False)
                if f"{table.name}{own}{key.referenced_table}{referenced}".isprintable()
            ]
        return self._columns[db_id]


# Texts that are longer are one with none but themselves.
_MAX_IDENTITY_CHARS: Final = 100_000


@lru_cache(maxsize=16_384)
def identify_query(sql: str, dialect: str) -> str:
    """A text that two queries share if they differ in layout alone."""
    try:
        return canonical_sql(sql, dialect)
    except SQLParseError:
        if len(sql) > _MAX_IDENTITY_CHARS:
            return sql
        # White space within quotes tells texts apart; that between tokens does not.
        return "\n".join(token.text for token in scan_tokens(sql) if token.text.strip())
