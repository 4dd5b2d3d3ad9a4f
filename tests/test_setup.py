"""README.md as a package index shows it, and the versions that the package may be installed with."""

import re
import runpy
import subprocess
import sys
import tomllib
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
from packaging.requirements import Requirement

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
    # A package index gives headings the names that GitHub gives them.
    headings = re.findall("^#+ (.+)$", found, re.M)
    names = {
        "#" + re.sub(r"[^\w -]", "", heading).lower().replace(" ", "-") for heading in headings
    }
    assert all(link.startswith("https://") or link in names for link in links)
    assert "Limits and security says what is protected" in found


@pytest.fixture
def requirements() -> dict[str, Requirement]:
    """What pyproject.toml says of each library, by name."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    lists = [project["dependencies"], *project["optional-dependencies"].values()]
    return {found.name: found for texts in lists for found in map(Requirement, texts)}


def test_the_lowest_versions_of_ci_are_those_of_every_requirement(
    requirements: dict[str, Requirement],
) -> None:
    script = ROOT / ".ci" / "lowest.py"
    if not script.is_file():
        pytest.skip("the source archive has no .ci")
    done = subprocess.run([sys.executable, script], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    lowest = {
        name: next(part.version for part in found.specifier if part.operator == ">=")
        for name, found in requirements.items()
    }
    assert lowest.pop("torch")
    assert set(done.stdout.split()) == {f"{name}=={version}" for name, version in lowest.items()}


@pytest.mark.parametrize("file", ["constraints.txt", ".ci/newest.txt"])
def test_what_ci_installs_is_allowed(requirements: dict[str, Requirement], file: str) -> None:
    if not (ROOT / file).is_file():
        pytest.skip(f"the source archive has no {file}")
    lines = (ROOT / file).read_text(encoding="utf-8").splitlines()
    pins = dict(line.split("==") for line in lines if not line.startswith("#"))
    known = requirements.keys() & pins.keys()
    assert len(known) >= 2
    for name in known:
        assert requirements[name].specifier.contains(pins[name]), (name, pins[name])
