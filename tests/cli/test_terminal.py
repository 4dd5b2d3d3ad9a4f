"""Results in a terminal: whatever they hold, they are readable and shown at once."""

from __future__ import annotations

import io
import subprocess
import sys

import pytest
from rich.console import Console

from sense_trl.cli.main import COMMANDS, EXIT_INPUT, EXIT_PIPE_CLOSED, main
from sense_trl.cli.terminal import format_result, make_visible
from sense_trl.database.engine import QueryResult, QueryStatus


def _show(
    columns: tuple[str, ...],
    *rows: tuple[object, ...],
    max_rows: int = 20,
    max_width: int | None = None,
) -> list[str]:
    result = QueryResult(QueryStatus.OK, columns, rows, None, 0.0, None)
    console = Console(file=io.StringIO(), width=80, record=True)
    console.print(format_result(result, max_rows, max_width=max_width))
    return [line.rstrip() for line in console.export_text().splitlines()]


def test_the_count_stands_alone_above_a_narrow_table() -> None:
    assert _show(("n",), (4048,)) == ["1 row", "n", "4048"]
    assert _show(("n",), (1,), (2,), max_rows=1) == ["2 rows", "n", "1", "…"]
    assert _show(("n",), (1,), max_rows=0) == ["1 row", "n", "…"]
    assert _show(("n",)) == ["0 rows", "n"]


def test_a_row_that_is_too_wide_has_a_line_per_column() -> None:
    columns = tuple(f"c{i}" for i in range(300))
    rows = [tuple(range(300)), (None,) * 300]
    lines = _show(columns, *rows, max_width=80)
    assert lines[:3] == ["2 rows", "c0: 0", "c1: 1"]
    assert lines[300:303] == ["c299: 299", "", "c0: NULL"]
    # Two spaces between columns.
    fits = _show(("a", "b"), ("x" * 77, 1), max_width=80)
    assert fits == ["1 row", f"{'a':<79}b", "x" * 77 + "  1"]
    assert "b: 1" in _show(("a", "b"), ("x" * 78, 1), max_width=80)


def test_a_long_value_is_cut() -> None:
    (value,) = _show(("a",), ("x" * 10**6,), max_width=1000)[2:3]
    assert value.startswith("xxx")
    assert sum(map(len, _show(("a",), ("x" * 10**6,)))) < 400
    assert sum(map(len, _show(("a",), (b"\x00" * 10**6,)))) < 400
    assert _show(("a",), (b"\x00\xff",)) == ["1 row", "a", "x'00ff'"]


def test_nothing_steers_the_terminal() -> None:
    assert make_visible("a\x1b[31mb\u202e\n\tc") == "a\\x1b[31mb\\x202e\n\tc"
    assert _show(("\x1b[1mn",), ("[red]\x07",)) == ["1 row", "\\x1b[1mn", "[red]\\x07"]


@pytest.mark.parametrize("num_read", [0, 10])
def test_a_reader_that_stops_ends_the_command_without_a_traceback(num_read: int) -> None:
    """The help of a stage is longer than what Python holds back."""
    command = [sys.executable, "-m", "sense_trl", "dpo", "--help"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.read(num_read)
        process.stdout.close()
        assert process.stderr.read() == b""
    assert process.returncode == EXIT_PIPE_CLOSED


def test_a_command_line_that_is_wrong_says_so_at_once(capsys: pytest.CaptureFixture[str]) -> None:
    for arguments, said in (
        (["ask", "How many?"], "sense-trl ask: error: the following arguments are required: "),
        (["doctor", "--gpu"], "sense-trl doctor: error: unrecognized arguments: --gpu"),
        (
            ["quickstart", "--epochs=3"],
            "unrecognized arguments: --epochs=3 (near to it: --sft_epochs)",
        ),
        (
            ["pairs", "--databse", "x"],
            "sense-trl pairs: error: unrecognized arguments: --databse x (near to it: --database)",
        ),
        (["sft", "--learning_rate", "x"], "error: argument --learning_rate: invalid float value"),
    ):
        with pytest.raises(SystemExit) as ended:
            main(arguments)
        assert ended.value.code == EXIT_INPUT
        first, second = capsys.readouterr().err.splitlines()
        assert said in first and second.startswith("See ") and second.endswith(" --help.")


def test_without_a_command_all_are_listed(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == EXIT_INPUT
    assert {*COMMANDS, "sft"} <= {
        line.strip().split(" ")[0] for line in capsys.readouterr().err.splitlines() if line
    }
