"""Progress bars and the cost of a stage."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)


@dataclass(slots=True)
class StageBar:
    """The progress bar of one stage."""

    progress: Progress
    task: TaskID

    def advance(self, steps: int = 1) -> None:
        """Count `steps` more units as done."""
        self.progress.advance(self.task, steps)

    def set(self, completed: int, note: str = "") -> None:
        """Say that `completed` units are done, with a short note behind the bar."""
        self.progress.update(self.task, completed=completed, note=note)


@contextmanager
def stage_bar(console: Console, title: str, total: int) -> Iterator[StageBar]:
    """Show a bar for a stage of `total` units until the block ends."""
    with Progress(
        TextColumn("{task.description:<28}"),
        BarColumn(bar_width=30),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}"),
        console=console,
        # Without a terminal a bar would be written as thousands of lines; the last state suffices.
        refresh_per_second=4 if console.is_terminal else 0.1,
    ) as progress:
        yield StageBar(progress, progress.add_task(title, total=total, note=""))


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
    """A `transformers` callback that moves `bar` with the optimizer steps and shows the loss."""
    from transformers import TrainerCallback

    class _BarCallback(TrainerCallback):  # type: ignore[misc]
        """Reports to the stage's bar."""

        def __init__(self) -> None:
            self.loss = ""

        def on_log(
            self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any
        ) -> None:
            if logs and "loss" in logs:
                self.loss = f"loss {float(logs['loss']):.3f}"
                bar.set(state.global_step, self.loss)

        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            bar.set(state.global_step, self.loss)

    return _BarCallback()
