"""What a written query returns, as rewards for online training.

`get_sql_execution_reward` says whether it answers as gold does, `get_sql_partial_rewards` how far
it is from that.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, NamedTuple

from sqlglot import exp

from sense_trl._closing import Closing
from sense_trl.database.catalog import DatabaseCatalog
from sense_trl.database.engine import ExecutionLimits, QueryStatus
from sense_trl.database.location import DatabasePath, locate
from sense_trl.errors import DatabaseError, InputError
from sense_trl.evaluation.soft_f1 import soft_f1
from sense_trl.prompts import extract_sql
from sense_trl.schema import DatabaseSchema, get_schema
from sense_trl.schema.graph import get_used_columns
from sense_trl.sql.parsing import SQLParseError, parse_sql
from sense_trl.verification.comparison import Reason, Semantics, Verdict
from sense_trl.verification.judging import Verification, VerificationRequest
from sense_trl.verification.verifier import SQLVerifier

Databases = str | os.PathLike[str] | Mapping[str, str | os.PathLike[str]]

# What TRL passes beside the columns of the data set.
_TRL_COLUMN: Final = "completion_ids"
_NOT_RUN: Final = frozenset(
    {
        Reason.PREDICTION_SYNTAX_ERROR,
        Reason.PREDICTION_EXECUTION_ERROR,
        Reason.PREDICTION_DENIED,
    }
)


def get_sql_execution_reward(
    databases: Databases,
    *,
    correct: float = 1.0,
    wrong: float = 0.0,
    error: float = 0.0,
    undetermined: float | None = None,
    semantics: Semantics = "strict",
    limits: ExecutionLimits | None = None,
    num_workers: int | None = None,
    cache_dir: str | os.PathLike[str] | None = None,
    db_id_column: str = "db_id",
    gold_sql_column: str = "gold_sql",
    name: str = "sql_execution_reward",
) -> SQLExecutionReward:
    """Build a reward function for TRL that executes each completion and compares it with gold.

    The data set needs the columns `db_id` and `gold_sql`; hand the result to
    `GRPOTrainer(reward_funcs=...)`, `RLOOTrainer` or `trl.experimental.online_dpo`.

    A query that cannot be judged (see `verify_sql`) gets `undetermined`, by default `None`. What
    TRL 1.16 makes of `None`, as long as no other reward function scores the completion:

    * `GRPOTrainer` and `RLOOTrainer` leave it out of the mean (the baseline) of its group and of
      its spread, and give it advantage 0: it does not move the policy. They warn when it happens.
    * `OnlineDPOTrainer` (experimental) adds it up as 0, so it ties with a wrong answer of reward 0
      and beats one of a negative reward. There, give a number between `wrong` and `correct`.

    Where gold has no single answer every completion is undetermined, and where its result is empty
    none is correct: leave such questions out (`SQLVerifier.verify_gold` names them). Runaway SQL is
    undetermined too; to punish it, give `undetermined` a number.

    Args:
        databases: a database file, a folder, or the root of Spider or BIRD, as
            `DatabaseCatalog.from_path` reads them; or a file for each `db_id`.
        correct: reward of a query that answers as gold does.
        wrong: reward of one that runs and answers otherwise.
        error: reward of one that does not run: no SQL, a syntax error, an unknown column, a
            statement that the sandbox refuses.
        undetermined: reward where nothing can be said.
        semantics: "strict", "spider" or "bird", see `results_match`.
        limits: limits of each query.
        num_workers: worker processes, see `SQLVerifier`.
        cache_dir: folder for what is known about gold, see `SQLVerifier`.
        db_id_column: column that names the database.
        gold_sql_column: column with the reference query.
        name: what TRL's logs call this reward.

    Raises:
        DatabaseError: `databases` holds no database, or names a file that is not there.
        InputError: `semantics` is unknown, or `num_workers` is negative.

    Example:
        >>> import sqlite3, tempfile, pathlib
        >>> file = pathlib.Path(tempfile.mkdtemp()) / "pets.sqlite"
        >>> connection = sqlite3.connect(file)
        >>> _ = connection.execute("CREATE TABLE pet AS SELECT 'Rex' AS name, 3 AS age")
        >>> connection.close()
        >>> with get_sql_execution_reward(file, error=-1.0, num_workers=0) as reward:
        ...     reward(
        ...         prompts=["Who?"] * 3,
        ...         completions=["SELECT name FROM pet", "SELECT age FROM pet", "SELECT nme"],
        ...         db_id=["pets"] * 3,
        ...         gold_sql=["SELECT name FROM pet"] * 3,
        ...     )
        [1.0, 0.0, -1.0]
    """
    settings = _Settings(
        paths=_find_databases(databases),
        rewards=_Rewards(correct, wrong, error, undetermined),
        semantics=semantics,
        limits=limits,
        num_workers=num_workers,
        cache_dir=None if cache_dir is None else Path(cache_dir).absolute(),
        db_id_column=db_id_column,
        gold_sql_column=gold_sql_column,
        name=name,
    )
    return SQLExecutionReward(settings)


PARTIAL_REWARDS: Final = ("executes", "columns", "overlap", "schema_items")
"""The parts that `get_sql_partial_rewards` knows."""


def get_sql_partial_rewards(
    databases: Databases,
    parts: Sequence[str] = PARTIAL_REWARDS,
    *,
    limits: ExecutionLimits | None = None,
    db_id_column: str = "db_id",
    gold_sql_column: str = "gold_sql",
) -> list[SQLPartialReward]:
    """Build reward functions for TRL that say how far a query is from gold, each in [0, 1].

    They stand alone, and beside `get_sql_execution_reward`: TRL logs each by its name and adds them
    up with `reward_weights`. A query that several of them score is run once.

    * `executes`: 1 for a query that runs to its end.
    * `columns`: the number of its result's columns beside gold's, the smaller by the larger one.
    * `overlap`: `soft_f1` of both results, the share of cells that they have in common.
    * `schema_items`: F1 of the tables and columns that it uses beside those of gold. Nothing runs.

    What does not run, or is no SQL, scores 0. Where nothing can be said, because a limit stopped a
    query or gold does not run, the reward is `None`: see `get_sql_execution_reward`.

    Args:
        databases, limits, db_id_column, gold_sql_column: as of `get_sql_execution_reward`.
        parts: of `PARTIAL_REWARDS`; the functions come in this order.

    Raises:
        DatabaseError: `databases` holds no database, or names a file that is not there.
        InputError: a part is unknown.

    Example:
        >>> import sqlite3, tempfile, pathlib
        >>> file = pathlib.Path(tempfile.mkdtemp()) / "pets.sqlite"
        >>> connection = sqlite3.connect(file)
        >>> _ = connection.execute("CREATE TABLE pet AS SELECT 'Rex' AS name, 3 AS age")
        >>> connection.close()
        >>> answers = ["SELECT name FROM pet", "SELECT name, age FROM pet", "SELECT nme FROM pet"]
        >>> columns = {"db_id": ["pets"] * 3, "gold_sql": ["SELECT name FROM pet"] * 3}
        >>> for reward in get_sql_partial_rewards(file):
        ...     print(reward.__name__, reward(["Who?"] * 3, answers, **columns))
        ...     reward.close()
        sql_executes [1.0, 1.0, 0.0]
        sql_columns [1.0, 0.5, 0.0]
        sql_overlap [1.0, 0.6666666666666666, 0.0]
        sql_schema_items [1.0, 0.8, 0.6666666666666666]
    """
    if unknown := [part for part in parts if part not in PARTIAL_REWARDS]:
        raise InputError(
            f"`parts` has {unknown[0]!r}; expected some of {', '.join(PARTIAL_REWARDS)}."
        )
    runs = _Runs(_find_databases(databases), limits)
    return [SQLPartialReward(part, runs, db_id_column, gold_sql_column) for part in parts]


class SQLPartialReward(Closing):
    """One of the reward functions that `get_sql_partial_rewards` builds.

    `close` ends the worker that it shares with the others; another call would start a new one.
    """

    def __init__(self, part: str, runs: _Runs, db_id_column: str, gold_sql_column: str) -> None:
        self._part = part
        self._runs = runs
        self._columns = db_id_column, gold_sql_column
        # TRL names its metrics by this.
        self.__name__ = f"sql_{part}"

    def close(self) -> None:
        """End the worker and close the databases; closing twice is allowed."""
        self._runs.close()

    def __call__(
        self,
        prompts: Sequence[Any],
        completions: Sequence[str | Sequence[Mapping[str, Any]]],
        **columns: Any,
    ) -> list[float | None]:
        """Score completions; see `SQLExecutionReward`."""
        db_ids, gold = (_get_column(name, columns, len(completions)) for name in self._columns)
        compare = self._runs.compare_items if self._part == "schema_items" else self._score
        return [
            compare(db_id, extract_sql(_answer(completion)), gold_sql)
            for db_id, completion, gold_sql in zip(db_ids, completions, gold, strict=True)
        ]

    def _score(self, db_id: str, sql: str, gold_sql: str) -> float | None:
        run = self._runs.run(db_id, sql, gold_sql)
        score: float | None = getattr(run, self._part)
        return score


class _Run(NamedTuple):
    """What the execution of a query says of it; `None` where nothing."""

    executes: float | None
    columns: float | None
    overlap: float | None


_WRONG: Final = _Run(0.0, 0.0, 0.0)
# Queries whose results are remembered: those of a few batches.
_MAX_RUNS: Final = 4096


class _Runs(Closing):
    """Executions of queries beside gold, each done once."""

    def __init__(self, paths: dict[str, DatabasePath], limits: ExecutionLimits | None) -> None:
        self._paths = paths
        self._limits = limits
        self._lock = threading.Lock()
        self._known: dict[tuple[str, str, str], _Run] = {}
        self._schemas: dict[str, DatabaseSchema] = {}
        self._opened: DatabaseCatalog | None = None

    def close(self) -> None:
        with self._lock:
            opened, self._opened = self._opened, None
        if opened is not None:
            opened.close()

    def run(self, db_id: str, sql: str, gold_sql: str) -> _Run:
        """Run a query and gold, unless that was done."""
        key = (db_id, sql, gold_sql)
        if key not in self._known:
            if len(self._known) >= _MAX_RUNS:
                self._known.clear()
            self._known[key] = self._compare(db_id, sql, gold_sql)
        return self._known[key]

    def _compare(self, db_id: str, sql: str, gold_sql: str) -> _Run:
        engine = self._get_catalog().engine(db_id)
        result = engine.execute(sql)
        if result.status in (QueryStatus.TIMEOUT, QueryStatus.TOO_LARGE):
            return _Run(None, None, None)
        if not result.ok:
            return _WRONG
        gold = engine.execute(gold_sql)
        if not gold.ok:
            return _Run(1.0, None, None)
        widths = sorted((len(result.columns), len(gold.columns)))
        return _Run(1.0, widths[0] / widths[1], soft_f1(result.rows, gold.rows))

    def compare_items(self, db_id: str, sql: str, gold_sql: str) -> float | None:
        """F1 of the schema items that a query uses beside those of gold."""
        if db_id not in self._schemas:
            self._schemas[db_id] = get_schema(self._get_catalog().engine(db_id), db_id)
        schema = self._schemas[db_id]
        try:
            expected = _get_items(gold_sql, schema)
        except SQLParseError:
            return None
        try:
            found = _get_items(sql, schema)
        except SQLParseError:
            return 0.0
        if not expected and not found:
            return 1.0
        return 2 * len(found & expected) / (len(found) + len(expected))

    def _get_catalog(self) -> DatabaseCatalog:
        with self._lock:
            if self._opened is None:
                self._opened = DatabaseCatalog(
                    self._paths, source="`databases`", limits=self._limits
                )
            return self._opened


def _get_items(sql: str, schema: DatabaseSchema) -> set[tuple[str, str | None]]:
    """Tables that a query names, and columns that it uses, in lower case."""
    known = {table.name.lower() for table in schema.tables}
    tree = parse_sql(sql, schema.dialect)
    named = {table.name.lower() for table in tree.find_all(exp.Table)} & known
    columns = get_used_columns(sql, schema)
    return {(name, None) for name in named} | {
        (column.table.lower(), column.column.lower()) for column in columns
    }


@dataclass(frozen=True, slots=True)
class _Rewards:
    correct: float
    wrong: float
    error: float
    undetermined: float | None

    def of(self, verification: Verification) -> float | None:
        match verification.verdict:
            case Verdict.CORRECT:
                return self.correct
            case Verdict.UNDETERMINED:
                return self.undetermined
            case Verdict.WRONG:
                return self.error if verification.reason in _NOT_RUN else self.wrong


@dataclass(frozen=True, slots=True)
class _Settings:
    """All that a reward is made of; this, and nothing opened, is what gets pickled."""

    paths: dict[str, DatabasePath]
    rewards: _Rewards
    semantics: Semantics
    limits: ExecutionLimits | None
    num_workers: int | None
    cache_dir: Path | None
    db_id_column: str
    gold_sql_column: str
    name: str


class SQLExecutionReward(Closing):
    """A reward function over one `SQLVerifier`; `get_sql_execution_reward` builds it.

    It may be called from several threads. It pickles as its settings: a copy in another process
    opens workers of its own when it is first called. `close` ends the workers; another call would
    start new ones.
    """

    def __init__(self, settings: _Settings) -> None:
        self._settings = settings
        # TRL names its metrics by this.
        self.__name__ = settings.name
        self._lock = threading.Lock()
        # Unfit settings are refused here and not at the first step, after the model was loaded.
        self._opened: tuple[DatabaseCatalog, SQLVerifier] | None = self._open()

    def close(self) -> None:
        """End the workers and close the databases; closing twice is allowed."""
        with self._lock:
            opened, self._opened = self._opened, None
        if opened is not None:
            catalog, verifier = opened
            verifier.close()
            catalog.close()

    def __call__(
        self,
        prompts: Sequence[Any],
        completions: Sequence[str | Sequence[Mapping[str, Any]]],
        *,
        log_metric: Callable[[str, float], None] | None = None,
        **columns: Any,
    ) -> list[float | None]:
        """Score completions, all in one batch.

        Args:
            prompts: not read; TRL passes them.
            completions: texts, or conversations whose last message is the answer.
            log_metric: TRL's; gets the share of undetermined completions as
                `<name>/undetermined_share`.
            columns: columns of the data set, one value per completion; whatever else TRL passes
                is ignored.

        Returns:
            One reward per completion.

        Raises:
            InputError: a column is missing or of another length, or a `db_id` is unknown.
            DatabaseError: a database cannot be read.
        """
        settings = self._settings
        db_ids = _get_column(settings.db_id_column, columns, len(completions))
        gold = _get_column(settings.gold_sql_column, columns, len(completions))
        requests = [
            VerificationRequest(db_id, extract_sql(_answer(completion)), gold_sql)
            for db_id, completion, gold_sql in zip(db_ids, completions, gold, strict=True)
        ]
        verifications = self._verifier().verify(requests)
        if log_metric is not None and verifications:
            open_questions = sum(v.verdict is Verdict.UNDETERMINED for v in verifications)
            share = open_questions / len(verifications)
            log_metric(f"{settings.name}/undetermined_share", share)
        return [settings.rewards.of(verification) for verification in verifications]

    def _verifier(self) -> SQLVerifier:
        with self._lock:
            if self._opened is None:
                self._opened = self._open()
            return self._opened[1]

    def _open(self) -> tuple[DatabaseCatalog, SQLVerifier]:
        """The databases and the verifier; neither opens a file or starts a process yet."""
        settings = self._settings
        catalog = DatabaseCatalog(settings.paths, source="`databases`", limits=settings.limits)
        return catalog, SQLVerifier(
            catalog,
            semantics=settings.semantics,
            num_workers=settings.num_workers,
            cache_dir=settings.cache_dir,
        )


def _find_databases(databases: Databases) -> dict[str, DatabasePath]:
    if not isinstance(databases, Mapping):
        catalog = DatabaseCatalog.from_path(databases)
        return {db_id: catalog.path(db_id) for db_id in catalog.db_ids}
    places = {db_id: locate(path) for db_id, path in databases.items()}
    paths = {
        db_id: place.absolute() if isinstance(place, Path) else place
        for db_id, place in places.items()
    }
    for db_id, path in paths.items():
        if isinstance(path, Path) and not path.is_file():
            raise DatabaseError(f"`databases` names {path} for {db_id!r}, which is not a file")
    return paths


def _answer(completion: str | Sequence[Mapping[str, Any]]) -> str:
    """The text of a completion; a conversation's is what its last message says."""
    if isinstance(completion, str):
        return completion
    # A call of a tool has no content.
    content = completion[-1].get("content") if completion else None
    if isinstance(content, list):
        # Parts, as models that also read images write them.
        content = "".join(part.get("text") or "" for part in content)
    return content if isinstance(content, str) else ""


def _get_column(name: str, columns: Mapping[str, Any], length: int) -> Sequence[str]:
    if name not in columns:
        found = sorted(k for k, v in columns.items() if isinstance(v, list) and k != _TRL_COLUMN)
        raise InputError(
            f"The reward needs the column {name!r}, which the data set lacks (it has "
            f"{', '.join(found) or 'no other'}). Add it, or name another one with "
            "`db_id_column` or `gold_sql_column`; with `remove_unused_columns=True` the "
            "trainer drops it."
        )
    values: Sequence[str] = columns[name]
    if len(values) != length:
        raise InputError(
            f"The column {name!r} has {len(values)} values for {length} completions; expected "
            "one for each."
        )
    for value in values:
        if not isinstance(value, str):
            raise InputError(f"The column {name!r} holds {value!r}; expected text.")
    return values
