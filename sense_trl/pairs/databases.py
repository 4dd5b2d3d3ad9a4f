"""What the builder asks about the databases themselves: schemas, normal forms, results."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Final, Protocol, TypeAlias

from sense_trl.pairs.candidates import Candidate
from sense_trl.questions import Question
from sense_trl.sql.mutation import mutate_sql
from sense_trl.sql.normal_form import Query, get_normal_form
from sense_trl.sql.parsing import SQLParseError, parse_sql
from sense_trl.sql.resolution import QueryNames, SchemaNames
from sense_trl.sql.taxonomy import ErrorClass, classify_errors, classify_results

__all__ = ["Catalog", "Databases"]

Columns: TypeAlias = Mapping[str, Mapping[str, str]]
"""Declared type of each column, by table and column."""

# Steps of SQLite's virtual machine, so that it does not depend on the machine which results are
# known. Of 3,666 predictions of five models on Spider dev, 9 take more than 1 M.
_MAX_STEPS: Final = 5_000_000
_MAX_ROWS: Final = 10_000


class Catalog(Protocol):
    """Opens databases by name; a `DatabaseCatalog`."""

    def engine(self, db_id: str) -> Any:
        """The engine of one database."""


class Databases:
    """Answers questions about queries that need the schema or the rows of their database.

    Args:
        catalog: opens the databases.
        dialect: sqlglot dialect of all queries.
    """

    def __init__(self, catalog: Catalog, dialect: str) -> None:
        self._catalog = catalog
        self._dialect = dialect
        self._columns: dict[str, Columns] = {}
        self._names: dict[str, SchemaNames] = {}
        self._foreign_keys: dict[str, list[tuple[str, str, str, str]]] = {}

    def error_classes(self, db_id: str, sql: str, gold_sql: str) -> tuple[ErrorClass, ...]:
        """How a query differs from gold; () also where sqlglot cannot read gold."""
        try:
            return classify_errors(sql, gold_sql, self._dialect, columns=self._get_columns(db_id))
        except SQLParseError:
            return ()

    def normal_form(self, db_id: str, sql: str) -> Query | None:
        """The query without its spelling, `None` where it has no such form."""
        try:
            tree = parse_sql(sql, self._dialect)
            return get_normal_form(
                tree, QueryNames(tree, self._get_names(db_id)), dialect=self._dialect
            )
        except SQLParseError:
            return None

    def result_class(self, db_id: str, sql: str, gold_sql: str) -> str:
        """How the rows of a query differ from gold's; "" where one of them gives none.

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

    def _execute(self, db_id: str, sql: str) -> Any:
        engine = self._catalog.engine(db_id)
        limits = replace(engine.limits, max_steps=_MAX_STEPS, max_rows=_MAX_ROWS)
        return engine.execute(sql, limits=limits)

    def mutants(self, question: Question, count: int, seed: int) -> list[Candidate]:
        """Neighbours of the gold query as candidates, at most `count`; none are verified yet."""
        try:
            mutants = mutate_sql(
                question.gold_sql,
                self._dialect,
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
