"""One run at a time in a data set's folder."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from sense_trl.errors import InputError
from sense_trl.synthesis.output_folder import open_output_folder


def test_a_second_run_is_kept_out_until_the_first_ends(tmp_path: Path) -> None:
    path = tmp_path / "new" / "out"
    with (
        open_output_folder(path) as folder,
        pytest.raises(InputError, match="by another run"),
        open_output_folder(path),
    ):
        pass
    assert folder == path and path.is_dir()
    with open_output_folder(path):
        pass


def test_a_file_is_no_folder(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for path in (tmp_path / "file", tmp_path / "file" / "out"):
        with (
            pytest.raises(InputError, match="no folder that can be written to"),
            open_output_folder(path),
        ):
            pass


def test_the_lock_ends_with_the_process(tmp_path: Path) -> None:
    code = (
        "import sys; from sense_trl.synthesis.output_folder import open_output_folder\n"
        "with open_output_folder(sys.argv[1]): print('held', flush=True); sys.stdin.read()"
    )
    command = [sys.executable, "-c", code, str(tmp_path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as holder:
        assert holder.stdout is not None and holder.stdout.readline().strip() == b"held"
        with pytest.raises(InputError, match="by another run"), open_output_folder(tmp_path):
            pass
        holder.kill()
        holder.wait()
    with open_output_folder(tmp_path):
        pass
