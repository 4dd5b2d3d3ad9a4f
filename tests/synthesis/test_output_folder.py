"""One run at a time in a data set's folder."""

from __future__ import annotations

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
