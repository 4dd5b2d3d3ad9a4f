"""Chooses instances that tell a gold query from its wrong neighbours: `InstanceBuilder`."""

from __future__ import annotations

import os
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final, Literal

from sqlglot import exp

from sense_trl.database.engine import ExecutionLimits, QueryResult, QueryStatus, SQLEngine
from sense_trl.database.fuzzing import DatabaseFuzzer, FuzzHints
from sense_trl.database.location import get_state
from sense_trl.database.opening import open_engine
from sense_trl.database.profile import DatabaseProfile, ForeignKeyColumns, profile_database
from sense_trl.errors import InputError
from sense_trl.sql.ambiguity import get_bare_column_queries
from sense_trl.sql.mutation import mutate_sql
from sense_trl.sql.parsing import SQLParseError, get_tie_query, outer_limit, parse_sql, write_sql
from sense_trl.verification.comparison import Reason, Verdict, bags_equal
from sense_trl.verification.judging import (
    GoldExamination,
    Verification,
    examine_gold,
    verify_against,
)
from sense_trl.verification.suite.hints import get_hints, get_table_columns

# Instructions that a query may use on an instance. On 40 rows a table, real queries stay below a
# tenth of it; what needs more joins without a condition.
_INSTANCE_STEPS: Final = 2_000_000
_MIN_MUTANT_STEPS: Final = 2_000_000
_MAX_MUTANT_STEPS: Final = 20_000_000
# So many candidates in a row that refute nothing new end the search: what is left is most often
# not wrong at all.
_PATIENCE: Final = 4
_MAX_PROFILES: Final = 64
_SUFFIXES: Final = {"sqlite": ".sqlite", "duckdb": ".duckdb"}


@dataclass(frozen=True, slots=True)
class SuiteSettings:
    """Settings of a suite: the number of instances, of candidates and of mutants.

    Attributes:
        num_instances: instances that predictions are verified on.
        max_candidates: instances that are looked at to choose those from.
        max_mutants: wrong neighbours of gold that the choice goes by.
        seed: other seeds give other instances.
        nulls: "seen" puts NULL only where the original has some; "allowed" wherever the schema
            lets it, which also refutes COUNT(name) for COUNT(*), on data that may never occur.

    Raises:
        InputError: a number is out of range.
    """

    num_instances: int = 8
    max_candidates: int = 24
    max_mutants: int = 40
    seed: int = 0
    nulls: Literal["seen", "allowed"] = "seen"

    def __post_init__(self) -> None:
        minima = {"num_instances": 1, "max_candidates": self.num_instances, "max_mutants": 0}
        for name, minimum in minima.items():
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool) or value < minimum:
                raise InputError(f"`{name}` is {value!r}; expected an integer >= {minimum}.")


@dataclass(frozen=True, slots=True)
class SuiteChoice:
    """The instances of one gold query: what to draw them with, and their numbers."""

    numbers: tuple[int, ...]
    hints: FuzzHints


@dataclass(frozen=True, slots=True)
class Instance:
    """One open instance, and what gold gives on it."""

    number: int
    engine: SQLEngine
    gold: GoldExamination


def choose_instances(refuted: Sequence[frozenset[int]], count: int) -> list[int]:
    """Choose `count` instances that refute as many mutants as can be, each as often as can be.

    Greedy: a mutant that `n` chosen instances refute already counts 2^-n.

    Args:
        refuted: for each instance, the numbers of the mutants that it refutes.
        count: how many to choose; fewer if there are not as many.

    Returns:
        Positions in `refuted`, in the order of choice; of equally good ones the first.

    Example:
        >>> choose_instances([frozenset({1}), frozenset({1, 2}), frozenset({3})], 2)
        [1, 2]
    """
    times: dict[int, int] = {}
    chosen: list[int] = []
    remaining = list(range(len(refuted)))
    while remaining and len(chosen) < count:
        best = max(remaining, key=lambda i: sum(2.0 ** -times.get(m, 0) for m in refuted[i]))
        remaining.remove(best)
        chosen.append(best)
        for mutant in refuted[best]:
            times[mutant] = times.get(mutant, 0) + 1
    return chosen


class InstanceBuilder:
    """Builds the instances of one gold query after the other.

    Args:
        folder: where the files of the instances lie while they are in use.
        settings: how many.
        limits: limits of each query.
        open_one: opens the engine over a file, as `open_engine` does.
    """

    def __init__(
        self,
        folder: Path,
        settings: SuiteSettings,
        limits: ExecutionLimits,
        open_one: Callable[..., SQLEngine] = open_engine,
    ) -> None:
        self._folder = folder
        self._open_one = open_one
        self._settings = settings
        self._limits = limits
        self._instance_limits = replace(limits, max_steps=_INSTANCE_STEPS)
        self._profiles: OrderedDict[tuple[object, ...], DatabaseProfile] = OrderedDict()
        self._num_files = 0

    @contextmanager
    def build(
        self,
        engine: SQLEngine,
        gold_sql: str,
        *,
        foreign_keys: Sequence[ForeignKeyColumns] = (),
        mutants: Sequence[str] | None = None,
        choice: SuiteChoice | None = None,
    ) -> Iterator[tuple[list[Instance], SuiteChoice]]:
        """The instances of `gold_sql`, open within the `with` block, and which ones these are.

        Gold has one answer on each of them. Candidates are drawn until the last few refute no
        mutant that was open, or `max_candidates` is reached.

        Args:
            engine: the original database.
            gold_sql: the query that the instances are for.
            foreign_keys: references that the database does not declare.
            mutants: wrong neighbours of gold to choose by; `get_mutants` gives them by default.
            choice: what an earlier call chose; it is not chosen anew.

        Raises:
            DatabaseError: the database cannot be read.
        """
        profile = self.get_profile(engine, foreign_keys)
        if choice is None:
            if mutants is None:
                mutants = self.get_mutants(engine, gold_sql, profile)
            hints = _get_hints(gold_sql, profile, mutants)
            numbers: Sequence[int] = range(self._settings.max_candidates)
        else:
            mutants, hints, numbers = [], choice.hints, choice.numbers
        fuzzer = DatabaseFuzzer(
            profile, hints, seed=self._settings.seed, nulls=self._settings.nulls
        )
        gold = _GoldQueries.of(gold_sql, profile.dialect)
        with ExitStack() as stack:
            stack.callback(fuzzer.close)
            instances: list[Instance] = []
            refuted: list[frozenset[int]] = []
            still_open = set(range(len(mutants)))
            num_idle = 0
            for number in numbers:
                if len(instances) >= self._settings.num_instances and (
                    not still_open or num_idle >= _PATIENCE
                ):
                    break
                instance = self._open(fuzzer, number, gold, stack)
                if instance is not None:
                    instances.append(instance)
                    refuted.append(
                        frozenset(
                            m
                            for m, sql in enumerate(mutants)
                            if self.verify(instance, sql).verdict is Verdict.WRONG
                        )
                    )
                    num_idle = 0 if refuted[-1] & still_open else num_idle + 1
                    still_open -= refuted[-1]
            best = choose_instances(refuted, self._settings.num_instances)
            chosen = [instances[position] for position in best]
            yield chosen, SuiteChoice(tuple(instance.number for instance in chosen), hints)

    def verify(self, instance: Instance, sql: str) -> Verification:
        """Verify a query on an instance.

        Not called wrong, though it may be: one that fails here and ran on the original, because
        small tables can lack what a function needs; and one that says "nothing" in another way
        than gold, by no row or by one row of NULL, as an aggregate over no row does.
        """
        limits = self._instance_limits
        found = verify_against(sql, instance.gold, instance.engine, "strict", limits)
        if found.verdict is not Verdict.WRONG:
            return found
        if found.predicted_status is not QueryStatus.OK:
            return replace(found, verdict=Verdict.UNDETERMINED)
        if _says_nothing(instance.gold.result):
            rows_kept = replace(limits, max_rows=1)
            if _says_nothing(instance.engine.execute(sql, limits=rows_kept)):
                return replace(found, verdict=Verdict.UNDETERMINED, reason=Reason.BOTH_EMPTY)
        return found

    def get_profile(
        self, engine: SQLEngine, foreign_keys: Sequence[ForeignKeyColumns] = ()
    ) -> DatabaseProfile:
        """The profile of the database, read once while the file does not change.

        Raises:
            DatabaseError: the database cannot be read.
        """
        key = (*get_state(engine.path), tuple(foreign_keys))
        if key not in self._profiles:
            self._profiles[key] = profile_database(engine, foreign_keys=foreign_keys)
            if len(self._profiles) > _MAX_PROFILES:
                self._profiles.popitem(last=False)
        self._profiles.move_to_end(key)
        return self._profiles[key]

    @staticmethod
    def get_references(profile: DatabaseProfile) -> list[ForeignKeyColumns]:
        """The references that neighbours of a database keep, column by column."""
        names = []
        for table in profile.tables:
            for reference in table.references:
                parent = profile.tables[reference.table]
                for own, other in zip(reference.columns, reference.referenced, strict=True):
                    own_name, other_name = table.columns[own].name, parent.columns[other].name
                    names.append((table.name, own_name, parent.name, other_name))
        return names

    def get_mutants(self, engine: SQLEngine, gold_sql: str, profile: DatabaseProfile) -> list[str]:
        """Wrong neighbours of gold that the original does not refute.

        Only these matter: a prediction that the original refutes needs no instance.
        """
        try:
            mutants = mutate_sql(
                gold_sql,
                profile.dialect,
                columns=get_table_columns(profile),
                foreign_keys=self.get_references(profile),
                seed=self._settings.seed,
                max_mutants=self._settings.max_mutants,
            )
        except SQLParseError:
            return []
        gold = examine_gold(gold_sql, engine, "strict", self._limits)
        steps = max(2 * (gold.result.steps or 0), _MIN_MUTANT_STEPS)
        if gold.problem is not None or steps > _MAX_MUTANT_STEPS:
            return [mutant.sql for mutant in mutants]
        limits = replace(self._limits, max_steps=steps)
        survivors = []
        for mutant in mutants:
            found = verify_against(mutant.sql, gold, engine, "strict", limits)
            if found.verdict is Verdict.CORRECT or found.reason is Reason.BOTH_EMPTY:
                survivors.append(mutant.sql)
        return survivors

    def _open(
        self, fuzzer: DatabaseFuzzer, number: int, gold: _GoldQueries, stack: ExitStack
    ) -> Instance | None:
        """Instance `number`, or `None` where gold has no one answer on it."""
        self._num_files += 1
        # Never a name twice: workers share the folder, and engines notice a change only late.
        path = self._folder / f"{os.getpid()}-{self._num_files}{_SUFFIXES[fuzzer.dialect]}"
        stack.callback(path.unlink, missing_ok=True)
        fuzzer.write(number, path)
        engine = stack.enter_context(closing(self._open_one(path, limits=self._instance_limits)))
        for sql in gold.inner:
            if examine_gold(sql, engine, "strict", self._instance_limits).problem is not None:
                return None
        examined = examine_gold(gold.sql, engine, "strict", self._instance_limits)
        if examined.problem is not None:
            return None
        limits = self._instance_limits
        if gold.cuts_a_tie(engine, limits) or gold.picks_a_row(engine, limits):
            return None
        return Instance(number, engine, examined)


def _says_nothing(result: QueryResult) -> bool:
    rows = result.rows
    return result.ok and (not rows or (len(rows) == 1 and set(rows[0]) == {None}))


@dataclass(frozen=True, slots=True)
class _GoldQueries:
    """A gold query, and the queries that show whether an instance is fair to it.

    Attributes:
        sql: gold itself.
        inner: queries inside it that are cut by LIMIT; each must have one answer, too.
        limit: rows that its own LIMIT leaves, `None` if it has none.
        ranked: gold with one row more and, last, the rank of each row under its ORDER BY.
        bounds: gold with the smallest and with the largest values of its bare columns.
    """

    sql: str
    inner: tuple[str, ...] = ()
    limit: int | None = None
    ranked: str | None = None
    bounds: tuple[str, str] | None = None

    @classmethod
    def of(cls, sql: str, dialect: str) -> _GoldQueries:
        try:
            tree = parse_sql(sql, dialect)
            limit = outer_limit(sql, dialect)
            ranked = None if not limit else get_tie_query(sql, dialect, limit=limit + 1)
            bounds = get_bare_column_queries(_with_row_counts(tree, dialect), dialect)
        except SQLParseError:
            return cls(sql)
        limited = [node for node in tree.find_all(exp.Select) if node.args.get("limit")]
        inner = tuple(write_sql(n, dialect) for n in limited if n.parent is not None)
        return cls(sql, inner, limit, ranked, bounds)

    def picks_a_row(self, engine: SQLEngine, limits: ExecutionLimits) -> bool:
        """Whether a bare column has several values in a group, also beside one MIN or MAX.

        SQLite then takes the row of the extreme, and any of several such rows.
        """
        if self.bounds is None:
            return False
        low, high = (engine.execute(sql, limits=limits) for sql in self.bounds)
        return low.ok and high.ok and not bags_equal(low.rows, high.rows)

    def cuts_a_tie(self, engine: SQLEngine, limits: ExecutionLimits) -> bool:
        """Whether LIMIT leaves out a row that ties with one that it keeps, even an equal one.

        Such an answer is defined, but who asks for "the youngest" does not ask for one of two
        youngest of the same name.
        """
        if self.limit is None or self.ranked is None:
            return False
        rows = engine.execute(self.ranked, limits=limits).rows
        return len(rows) > self.limit and rows[self.limit][-1] == rows[self.limit - 1][-1]


def _with_row_counts(tree: exp.Expression, dialect: str) -> str:
    """A query that also counts the rows of each group that MIN or MAX alone would pick from."""
    counted = tree.copy()
    for select in counted.find_all(exp.Select):
        if any(isinstance(e.unalias(), (exp.Min, exp.Max)) for e in select.expressions):
            select.append("expressions", exp.Count(this=exp.Star()))
    return write_sql(counted, dialect)


def _get_hints(sql: str, profile: DatabaseProfile, mutants: Sequence[str]) -> FuzzHints:
    try:
        return get_hints(sql, profile, other_queries=mutants)
    except SQLParseError:
        # SQLite reads a little more than sqlglot; values of the original alone have to do.
        return FuzzHints()
