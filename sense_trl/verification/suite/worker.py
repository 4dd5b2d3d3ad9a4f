"""Verifying the predictions of one gold query on its instances, here or in a worker process."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, TypeAlias

from sense_trl.database.engine import ExecutionLimits
from sense_trl.database.fuzzing import FuzzHints
from sense_trl.database.location import DatabasePath
from sense_trl.database.messages import Message
from sense_trl.database.opening import open_engine
from sense_trl.database.process import read_settings, serve_messages
from sense_trl.database.profile import ForeignKeyColumns
from sense_trl.database.watch import QueryWatch, WatchedEngine
from sense_trl.database.worker import EngineCache, limit_worker_memory
from sense_trl.verification.comparison import Reason, Verdict
from sense_trl.verification.suite.instances import (
    Instance,
    InstanceBuilder,
    SuiteChoice,
    SuiteSettings,
)

PackedChoice: TypeAlias = tuple[Any, ...]
_PLAIN: Final = (str, int, float, bool)


@dataclass(frozen=True, slots=True)
class SuiteTask:
    """Predictions for one gold query, which the original could not refute."""

    path: str
    gold_sql: str
    predictions: tuple[str, ...]
    foreign_keys: tuple[ForeignKeyColumns, ...] = ()
    choice: SuiteChoice | None = None


@dataclass(frozen=True, slots=True)
class SuiteFinding:
    """The finding of the instances on one prediction.

    Attributes:
        refuted_by: number of the first instance that refutes it, `None` if none does.
        reason: why that one does.
        num_equal: instances on which it answered as gold, with rows.
        num_undetermined: instances that could not tell, such as those that are empty for both.
    """

    refuted_by: int | None
    reason: Reason | None
    num_equal: int
    num_undetermined: int


class SuiteTaskRunner:
    """Builds the instances of each task and runs its predictions on them.

    Args:
        folder: where the files of instances lie while they are in use.
        settings: how many instances.
        limits: limits of each query.
        watch: knows of each query, in a process of its own.
    """

    def __init__(
        self,
        folder: Path,
        settings: SuiteSettings,
        limits: ExecutionLimits,
        watch: QueryWatch | None = None,
    ) -> None:
        def open_one(path: DatabasePath, **options: Any) -> Any:
            engine = open_engine(path, **options)
            return engine if watch is None else WatchedEngine(engine, watch)

        self._builder = InstanceBuilder(folder, settings, limits, open_one)
        self._engines = EngineCache(open_one)

    def run(self, task: SuiteTask, emit: Callable[[int, SuiteFinding], None]) -> SuiteChoice:
        """Run one task.

        Args:
            task: what to run.
            emit: called with the position of each prediction and what was found.

        Returns:
            The choice of instances, for later tasks of the same gold query.

        Raises:
            DatabaseError: the original cannot be read.
        """
        engine = self._engines.get(task.path)
        with self._builder.build(
            engine, task.gold_sql, foreign_keys=task.foreign_keys, choice=task.choice
        ) as (instances, choice):
            for position, sql in enumerate(task.predictions):
                emit(position, self._find(sql, instances))
        return choice

    def _find(self, sql: str, instances: Sequence[Instance]) -> SuiteFinding:
        num_equal = num_undetermined = 0
        for instance in instances:
            verification = self._builder.verify(instance, sql)
            if verification.verdict is Verdict.WRONG:
                return SuiteFinding(
                    instance.number, verification.reason, num_equal, num_undetermined
                )
            num_equal += verification.verdict is Verdict.CORRECT
            num_undetermined += verification.verdict is Verdict.UNDETERMINED
        return SuiteFinding(None, None, num_equal, num_undetermined)


# ---------------------------------------------------------------------- messages


class Settings(Message, frozen=True):
    """What a worker is started with."""

    folder: str
    suite: SuiteSettings
    limits: ExecutionLimits


class Found(Message, frozen=True):
    """The finding on one prediction of a task, by its position."""

    position: int
    finding: SuiteFinding


class Done(Message, frozen=True):
    """The end of a task, with the choice of its instances."""

    choice: PackedChoice


Answer: TypeAlias = Found | Done


def pack_choice(choice: SuiteChoice) -> PackedChoice:
    """A choice as messages and JSON can hold it."""
    hints = choice.hints
    values = [
        [[*name, [v for v in own if isinstance(v, _PLAIN)]] for name, own in named.items()]
        for named in (hints.constants, hints.neighbours)
    ]
    return list(choice.numbers), *values, [[*first, *second] for first, second in hints.joins]


def unpack_choice(packed: Sequence[Any]) -> SuiteChoice:
    """The inverse of `pack_choice`."""
    numbers, constants, neighbours, joins = packed
    return SuiteChoice(
        tuple(numbers),
        FuzzHints(
            {(table, column): list(own) for table, column, own in constants},
            {(table, column): list(own) for table, column, own in neighbours},
            tuple(((a, b), (c, d)) for a, b, c, d in joins),
        ),
    )


class Task(Message, frozen=True):
    """A `SuiteTask`."""

    path: str
    gold_sql: str
    predictions: tuple[str, ...]
    foreign_keys: tuple[ForeignKeyColumns, ...]
    choice: PackedChoice | None


def serve() -> None:
    """Run tasks from standard input until it ends (the main function of the worker)."""
    settings = read_settings(Settings)
    limit_worker_memory(settings.limits.memory_limit_bytes)
    runner = SuiteTaskRunner(Path(settings.folder), settings.suite, settings.limits, QueryWatch())

    def answer(task: Task, send: Callable[[object], None]) -> None:
        known = SuiteTask(
            task.path,
            task.gold_sql,
            task.predictions,
            task.foreign_keys,
            None if task.choice is None else unpack_choice(task.choice),
        )
        choice = runner.run(known, lambda *found: send(Found(*found)))
        send(Done(pack_choice(choice)))

    serve_messages(Task, answer)
