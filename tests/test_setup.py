"""README.md as a package index shows it."""

import re
import runpy
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture
def describe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str, str], str]:
    def run(readme: str, urls: str) -> str:
        given: dict[str, str] = {}
        # The real one replaces distutils for the whole process.
        for name, part in (
            ("setuptools", SimpleNamespace(setup=lambda **options: given.update(options))),
            ("setuptools.command", SimpleNamespace()),
            ("setuptools.command.build_py", SimpleNamespace(build_py=object)),
        ):
            monkeypatch.setitem(sys.modules, name, part)
        monkeypatch.chdir(tmp_path)
        Path("README.md").write_text(readme, encoding="utf-8")
        Path("pyproject.toml").write_text(f"[project]\n{urls}", encoding="utf-8")
        runpy.run_path(str(ROOT / "setup.py"))
        return given["long_description"]

    return run


README = "[TRL](https://example.org/trl), [a page](docs/a.md#b), [below](#c)"


def test_links_to_files_begin_with_the_source(describe: Callable[[str, str], str]) -> None:
    found = describe(README, '[project.urls]\nSource = "https://example.org/sense/"')
    expected = "[a page](https://example.org/sense/blob/main/docs/a.md#b)"
    assert found == README.replace("[a page](docs/a.md#b)", expected)


def test_links_to_files_are_text_while_no_source_is_named(
    describe: Callable[[str, str], str],
) -> None:
    found = describe((ROOT / "README.md").read_text(encoding="utf-8"), "")
    links = re.findall(r"\]\(([^)]+)\)", found)
    assert links
    assert all(link.startswith("https://") for link in links)
    assert "Limits and security says what is protected" in found
