"""Progress bars and the cost of a stage."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)


class StageBar:
    """The progress of one stage: a bar in a terminal, a line per tenth elsewhere."""

    def __init__(self, console: Console, title: str, total: int, progress: Progress | None) -> None:
        self._console = console
        self._title = title
        self._total = total
        self._progress = progress
        self._task = None if progress is None else progress.add_task(title, total=total, note="")
        self._completed = 0
        self._printed = 0
        self._started = time.monotonic()

    def advance(self, steps: int = 1) -> None:
        """Count `steps` more units as done."""
        self.set(self._completed + steps)

    def set(self, completed: int, note: str = "") -> None:
        """Say that `completed` units are done, with a short note behind the bar."""
        self._completed = completed
        if self._progress is not None and self._task is not None:
            self._progress.update(self._task, completed=completed, note=note)
            return
        tenth = 10 * completed // max(self._total, 1)
        if tenth > self._printed:
            self._printed = tenth
            elapsed = time.monotonic() - self._started
            line = f"{self._title}: {completed}/{self._total}, {elapsed:.0f} s {note}".rstrip()
            self._console.print(line, markup=False, highlight=False)


@contextmanager
def stage_bar(console: Console, title: str, total: int) -> Iterator[StageBar]:
    """Show the progress of a stage of `total` units until the block ends."""
    if not console.is_terminal:
        yield StageBar(console, title, total, None)
        return
    with Progress(
        TextColumn("{task.description:<28}"),
        BarColumn(bar_width=30),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}"),
        console=console,
    ) as progress:
        yield StageBar(console, title, total, progress)


def peak_memory_bytes() -> int:
    """Largest resident memory of this process so far, in bytes; 0 where the system does not say."""
    try:
        import resource
    except ImportError:  # Windows
        import psutil

        return int(getattr(psutil.Process().memory_info(), "peak_wset", 0))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def progress_callback(bar: StageBar) -> Any:
    """A `transformers` callback that moves `bar` with the optimizer steps and shows the loss.

    Or the reward of online training, whose loss is near 0 whatever is learned.
    """
    from transformers import TrainerCallback

    class _BarCallback(TrainerCallback):  # type: ignore[misc]
        """Reports to the stage's bar."""

        def __init__(self) -> None:
            self.note = ""

        def on_log(
            self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any
        ) -> None:
            name = "reward" if logs and "reward" in logs else "loss"
            if logs and name in logs:
                self.note = f"{name} {float(logs[name]):.3f}"
                bar.set(state.global_step, self.note)

        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            bar.set(state.global_step, self.note)

    return _BarCallback()
