"""What is written is there wholly or not at all, and a full disk is an error that says so."""

import errno
import json
import os
import random
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from sense_trl._files import (
    LineLog,
    check_writable,
    check_writable_file,
    holds_json,
    is_cut_short,
    read_json,
    replacing,
    sampled_sha256_of,
    write_text_atomically,
)
from sense_trl.errors import InputError, OutputError


def test_what_is_no_unicode_is_written_as_an_escape(tmp_path: Path) -> None:
    write_text_atomically(tmp_path / "run.json", '["a \ud800 é"]')
    assert (tmp_path / "run.json").read_text(encoding="utf-8") == '["a \\ud800 é"]'
    assert json.loads((tmp_path / "run.json").read_text(encoding="utf-8")) == ["a \ud800 é"]


def _under_file_limit(code: str, limit: int, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run code in a process whose files may have so many bytes, as if the disk were full."""
    start = f"import resource\nresource.setrlimit(resource.RLIMIT_FSIZE, ({limit}, {limit}))\n"
    return subprocess.run(
        [sys.executable, "-c", start + code, *arguments], capture_output=True, text=True
    )


def test_a_file_is_replaced_whole_and_nothing_stays_behind(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "é.json"
    write_text_atomically(path, "old\n")
    with pytest.raises(ZeroDivisionError), replacing(path) as temporary:
        temporary.write_text("half")
        raise ZeroDivisionError
    assert path.read_text() == "old\n"
    with replacing(path, is_shared=True) as temporary:
        temporary.write_text("new")
        assert path.read_text() == "old\n"
    assert path.read_text() == "new"
    assert [file.name for file in path.parent.iterdir()] == ["é.json"]


def test_a_full_disk_leaves_the_old_file_and_names_the_new_one(tmp_path: Path) -> None:
    path = tmp_path / "report.json"
    path.write_text("old")
    code = """
import sys
from sense_trl._files import LineLog, write_text_atomically
from sense_trl.errors import OutputError
for write in (write_text_atomically, lambda path, text: LineLog(path).append([text])):
    try:
        write(sys.argv[1], "x" * 20000)
    except OutputError as error:
        print(error.errno, error)
"""
    done = _under_file_limit(code, 8192, str(path))
    lines = done.stdout.splitlines()
    assert len(lines) == 2, done.stderr
    for line in lines:
        assert line.startswith(str(errno.EFBIG))
        assert "report.json' cannot be written (File too large). Free space" in line
    assert path.read_text() == "old"
    assert [file.name for file in tmp_path.iterdir()] == ["report.json"]


def test_links_stay_and_devices_are_not_replaced(tmp_path: Path) -> None:
    (tmp_path / "real").write_text("old")
    (tmp_path / "link").symlink_to(tmp_path / "real")
    write_text_atomically(tmp_path / "link", "new")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "real").read_text() == "new"
    write_text_atomically("/dev/null", "lost")
    assert stat.S_ISCHR(os.stat("/dev/null").st_mode)
    if Path("/dev/full").exists():
        with pytest.raises(OutputError, match=r"'/dev/full' cannot be written .No space left"):
            write_text_atomically("/dev/full", "x")
        assert stat.S_ISCHR(os.stat("/dev/full").st_mode)
    code = "from sense_trl._files import write_text_atomically as w; w('/dev/stdout', 'seen')"
    with (tmp_path / "out").open("w") as output:
        subprocess.run([sys.executable, "-c", code], stdout=output, check=True)
    assert (tmp_path / "out").read_text() == "seen"


def test_a_place_that_takes_nothing_is_refused_beforehand(tmp_path: Path) -> None:
    check_writable(tmp_path / "new" / "folder", "output")
    assert not list((tmp_path / "new" / "folder").iterdir())
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match=r"`output` '.*file' is a file; give a folder"):
        check_writable(tmp_path / "file", "output")
    with pytest.raises(InputError, match=r"`output` .* is a folder; give a file"):
        check_writable_file(tmp_path, "output")
    with pytest.raises(InputError, match="`output`"):
        check_writable_file(tmp_path / "file" / "verdicts.jsonl", "output")
    check_writable_file("/dev/full", "output")
    code = """
import sys
from sense_trl._files import check_writable
from sense_trl.errors import InputError
try:
    check_writable(sys.argv[1], "output")
except InputError as error:
    print(error)
"""
    done = _under_file_limit(code, 100, str(tmp_path / "full"))
    assert "is no folder that can be written to (File too large)" in done.stdout, done.stderr
    assert not list((tmp_path / "full").iterdir())


def test_a_log_cut_anywhere_gives_its_whole_lines_and_goes_on(tmp_path: Path) -> None:
    path = tmp_path / "log"
    lines = [f"line {i} é\u2028{'x' * i}" for i in range(9)]
    LineLog(path).append(lines)
    whole = path.read_bytes()
    for cut in random.Random(0).sample(range(len(whole)), 30):
        path.write_bytes(whole[:cut])
        log = LineLog(path)
        found = [line.decode() for line in log.read()]
        assert found == lines[: len(found)]
        assert path.read_bytes() == whole[:cut]
        log.append(lines[len(found) :])
        assert path.read_bytes() == whole


def test_lines_that_could_not_be_written_leave_no_half(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = LineLog(tmp_path / "log")
    log.append(["first"])
    with monkeypatch.context() as full:

        def refuse(descriptor: int) -> None:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        full.setattr(os, "fsync", refuse)
        with pytest.raises(OutputError, match="No space left on device"):
            log.append(["lost"])
    log.append(["second"])
    assert (tmp_path / "log").read_text() == "first\nsecond\n"


@pytest.mark.parametrize(
    "content", [b"", b'{"a": 1', b"[1]", b"{}", b'{"a": "\xff"}', b"[" * 100_000, b"\0" * 50]
)
def test_a_damaged_record_is_named_with_what_to_do(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "costs.json"
    path.write_bytes(content)
    with pytest.raises(InputError, match=r"costs\.json' is not the table .* delete it"):
        read_json(path, "the table of costs", "a")
    assert holds_json(path) == (content in (b"[1]", b"{}"))


def test_a_beginning_is_told_from_another_file(tmp_path: Path) -> None:
    path = tmp_path / "settings.json"
    text = json.dumps({"tool": "sense_trl", "name": "é"}, ensure_ascii=False)
    assert not is_cut_short(path, text)
    for content, is_beginning in (
        (b"", True),
        (text.encode()[:-2], True),
        (text.encode(), False),
        (b'{"editor', False),
    ):
        path.write_bytes(content)
        assert is_cut_short(path, text) == is_beginning


@pytest.mark.parametrize(("size", "seen"), [(0, 0), (5, 5), (64, 64), (65, 64), (1000, 64)])
def test_large_files_are_told_by_size_and_blocks_of_which_the_ends_are_two(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, size: int, seen: int
) -> None:
    monkeypatch.setattr("sense_trl._files._NUM_BLOCKS", 4)
    monkeypatch.setattr("sense_trl._files._BLOCK_BYTES", 16)
    path = tmp_path / "file"

    def digest(content: bytes) -> str:
        path.write_bytes(content)
        return sampled_sha256_of(path)

    plain = digest(bytes(size))
    assert digest(bytes(size)) == plain
    assert digest(bytes(size + 1)) != plain
    changed = {
        place
        for place in range(size)
        if digest(bytes(place) + b"x" + bytes(size - place - 1)) != plain
    }
    assert len(changed) == seen
    assert changed >= {*range(min(16, size)), *range(max(0, size - 16), size)}
