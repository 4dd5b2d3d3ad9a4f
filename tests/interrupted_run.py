"""A command in a process of its own that gets a signal at a given moment."""

from __future__ import annotations

import hashlib
import multiprocessing
import os
import pkgutil
import signal
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Moment:
    """Just before a function is called for the n-th time.

    Attributes:
        function: `package.module:name` or `package.module:Class.name`.
        number: counted from 1.
        signal: what the process gets.
    """

    function: str
    number: int
    signal: signal.Signals


def run_until(arguments: Sequence[str], moment: Moment | None = None) -> int:
    """Run `sense-trl` up to a moment, or to its end; returns the exit code, or minus the signal.

    What a model writes and what it is rewarded for are replaced: `online` gets a right and a wrong
    answer to each question, `grpo` a number that depends on the answer's text alone. Everything
    heavy is imported once for all such processes.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["sense_trl.trainers", "sense_trl.jobs.online"])
    process = context.Process(target=_run, args=([*arguments], moment))
    process.start()
    process.join(timeout=400)
    assert process.exitcode is not None, "it hangs"
    return process.exitcode


def _run(arguments: list[str], moment: Moment | None) -> None:
    from sense_trl.cli.main import main
    from sense_trl.jobs import online
    from sense_trl.rewards import SQLExecutionReward

    signal.signal(signal.SIGINT, signal.default_int_handler)
    online.TransformersGenerator = FixedWriter  # type: ignore[assignment, misc]
    SQLExecutionReward.__call__ = _reward_text  # type: ignore[method-assign]
    if moment is not None:
        _arm(moment)
    sys.exit(main(arguments))


def _arm(moment: Moment) -> None:
    owner_name, _, name = moment.function.replace(":", ".").rpartition(".")
    owner: Any = pkgutil.resolve_name(owner_name)
    original, calls = getattr(owner, name), []

    def called(*args: Any, **options: Any) -> Any:
        calls.append(None)
        if len(calls) == moment.number:
            os.kill(os.getpid(), moment.signal)
        return original(*args, **options)

    setattr(owner, name, called)


class FixedWriter:
    """Writes a right and a wrong answer about pets to every question."""

    def __init__(self, model: Any, *, name: str, **_: Any) -> None:
        self.name = name

    def generate(self, prompts: Any, sampling: Any, **_: Any) -> Any:
        from sense_trl.generation.generator import Completion

        texts = ("SELECT name FROM pet", "SELECT age FROM pet")
        return [[Completion(text, 4, True) for text in texts] for _ in prompts]


def _reward_text(self: Any, prompts: Any, completions: Any, **_: Any) -> list[float]:
    texts = [completion[-1]["content"] for completion in completions]
    return [hashlib.sha256(text.encode()).digest()[0] / 256 for text in texts]
