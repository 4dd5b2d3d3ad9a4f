"""Progress, in a terminal and in a log file."""

import io
from types import SimpleNamespace

import pytest
from rich.console import Console

from sense_trl.steps.progress import peak_memory_bytes, progress_callback, stage_bar


def test_a_log_file_gets_one_line_per_tenth() -> None:
    out = io.StringIO()
    with stage_bar(Console(file=out, width=80), "Train", 200) as bar:
        for step in range(1, 201):
            bar.set(step, "loss 0.5")
    lines = out.getvalue().splitlines()
    assert len(lines) == 10
    assert lines[0].startswith("Train: 20/200, ")
    assert lines[-1].startswith("Train: 200/200, ")
    assert lines[-1].endswith("loss 0.5")


@pytest.mark.parametrize("terminal", [True, False])
def test_advancing_reaches_the_end(terminal: bool) -> None:
    out = io.StringIO()
    console = Console(file=out, force_terminal=terminal, width=120)
    with stage_bar(console, "Sample", 3) as bar:
        bar.advance(2)
        bar.advance()
    assert "3/3" in out.getvalue()


def test_an_empty_stage_is_no_error() -> None:
    with stage_bar(Console(file=io.StringIO()), "Nothing", 0) as bar:
        bar.set(0)


@pytest.mark.parametrize(
    ("logs", "note"),
    [
        ({"loss": 0.25}, "loss 0.250"),
        ({"loss": 0.01, "reward": 0.5, "rewards/execution/mean": 0.4}, "reward 0.500"),
    ],
)
def test_a_training_shows_what_says_most(logs: dict[str, float], note: str) -> None:
    out = io.StringIO()
    with stage_bar(Console(file=out, width=80), "Train", 1) as bar:
        callback = progress_callback(bar)
        # That of the end has neither.
        for logged in (logs, {"train_runtime": 1.0}):
            callback.on_log(None, SimpleNamespace(global_step=1), None, logs=logged)
        callback.on_step_end(None, SimpleNamespace(global_step=1), None)
    assert out.getvalue().splitlines()[-1].endswith(note)


def test_peak_memory_is_that_of_this_process() -> None:
    block = bytearray(64 * 2**20)
    assert peak_memory_bytes() > len(block)
