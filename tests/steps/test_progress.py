"""Progress, in a terminal and in a log file."""

import io

import pytest
from rich.console import Console

from sense_trl.steps.progress import peak_memory_bytes, stage_bar


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


def test_peak_memory_is_that_of_this_process() -> None:
    block = bytearray(64 * 2**20)
    assert peak_memory_bytes() > len(block)
